"""The proofs of an export notice what they are for: a proof that cannot fail proves nothing."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bioimageio.core")

from spoco_zoo.engines import pick_engines
from spoco_zoo.errors import PackageError
from spoco_zoo.package import load_package
from spoco_zoo.packaging import acceptance, proof
from spoco_zoo.packaging.graphs import package_net, quiet, write_onnx, write_torchscript
from spoco_zoo.training.checkpoints import load_run


@pytest.fixture
def net(tiny_run):
    spec, pair, _ = load_run(tiny_run)
    return package_net(spec, pair, momentum=False)


@pytest.fixture
def other_net(tiny_run):
    """The same network with one weight of its first convolution moved by a thousandth."""
    spec, pair, _ = load_run(tiny_run)
    net = package_net(spec, pair, momentum=False)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] += 1e-3
    return net


@pytest.fixture
def damaged(tiny_export, tmp_path):
    """A copy of the exported package to damage."""
    return shutil.copytree(tiny_export[0], tmp_path / "package")


@pytest.fixture
def truth(net):
    """What the network gives, as a run of the proof."""

    def run(image):
        with torch.no_grad():
            return [output.numpy() for output in net(torch.from_numpy(image))]

    return run


def prove(folder, truth=None, **changes):
    candidate = replace(proof.read_candidate(folder), **changes)
    return proof.prove(candidate, pick_engines("installed"), truth)


def test_runtimes_of_one_network_agree(truth, damaged):
    found = prove(damaged, truth)
    assert found.failed == []
    assert len([check for check in found.checks if check.name == "agreement"]) == 2
    assert found.worst("agreement") < 1e-5
    assert found.worst("tiles") < 1e-6
    assert found.worst("tiles off the grid") > 1e-3
    assert found.worst("pixels seen beyond the halo") <= 0
    found.demand()


@pytest.mark.parametrize("runtime", ["PyTorch", "ONNX Runtime"])
def test_one_weight_that_moved_a_little_is_noticed(truth, other_net, damaged, runtime):
    example = torch.zeros(1, 1, 5, 5)
    with quiet():
        script = torch.jit.trace(other_net, example)
    if runtime == "PyTorch":
        write_torchscript(script, damaged / "weights_torchscript.pt")
    else:
        write_onnx(script, example, ["embedding", "foreground"], damaged / "weights.onnx")
    (check,) = prove(damaged, truth).failed
    assert (check.name, check.engine.startswith(runtime)) == ("agreement", True)
    assert 1e-4 < check.value < 1


def test_a_halo_that_is_too_small_is_noticed(truth, damaged):
    names = [check.name for check in prove(damaged, truth, halo=(6, 6)).failed]
    assert names == ["tiles", "pixels seen beyond the halo"]


def test_weights_that_are_none_are_told_with_their_engine(damaged, truth):
    (damaged / "weights_torchscript.pt").write_bytes(b"no weights")
    (check,) = prove(damaged, truth).failed
    assert check.engine.startswith("PyTorch")
    assert "weights_torchscript.pt" in str(check)


def test_labels_that_differ_are_counted():
    labels = np.array([[[[1, 1, 0, 2]]]])
    assert proof.difference([labels], [labels]) == 0
    assert proof.difference([labels], [labels % 2]) == 0.25
    assert proof.difference([labels], [labels[..., :2]]) == np.inf


def test_numbers_are_compared_by_the_length_of_a_vector():
    ones = np.full((1, 4, 3, 3), 2.0, np.float32)  # of length 4
    assert proof.difference([ones], [ones + 0.4]) == pytest.approx(0.1)
    assert proof.difference([ones], [ones * np.nan]) == np.inf
    assert proof.difference([ones / 100], [ones / 100 + 0.4]) == pytest.approx(0.4)


def test_a_description_that_says_too_little_is_refused(damaged, edit_rdf):
    edit_rdf(damaged, lambda words: words["inputs"][0]["axes"][2].update(size=64))
    with pytest.raises(PackageError, match=r"cannot be proven .* sizes of the kind min and step$"):
        proof.read_candidate(damaged)


def test_without_weights_that_an_engine_opens_nothing_is_proven(damaged):
    with pytest.raises(PackageError, match="has weights keras, which no engine here opens"):
        prove(damaged, weights={"keras": "weights.h5"})


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves files open
def test_bioimageio_notices_outputs_that_are_not_reproduced(damaged, edit_rdf):
    path = damaged / "test_embedding.npy"
    np.save(path, np.load(path) * 1.01)

    def change(words):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        words["outputs"][0]["test_tensor"]["sha256"] = digest

    edit_rdf(damaged, change)
    with pytest.raises(PackageError) as error:
        acceptance.test_with_bioimageio(damaged, ["onnx"])
    assert str(error.value).startswith("bioimageio.core does not accept the onnx weights: ")
    assert "embedding" in str(error.value)
    assert len(str(error.value)) < 600


def test_a_package_that_reads_back_otherwise_is_noticed(tiny_export):
    package = load_package(tiny_export[0])
    written = {
        "name": package.name,
        "channels": package.channels,
        "normalization": package.normalization,
        "outputs": package.outputs,
        "embedding_dim": package.embedding_dim,
        "config": package.config,
    }
    acceptance.check_round_trip(tiny_export[0], written)
    with pytest.raises(PackageError) as error:
        acceptance.check_round_trip(tiny_export[0], written | {"channels": 2, "name": "Other"})
    assert str(error.value) == (
        "the package reads back with another name, channels than was written: "
        "this is a defect of spoco-zoo, please report it"
    )
