"""The proofs of an export notice what they are for: a proof that cannot fail proves nothing."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import hashlib
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bioimageio.core")

from spoco_zoo.errors import PackageError
from spoco_zoo.package import load_package
from spoco_zoo.packaging import proof
from spoco_zoo.packaging.graphs import package_net, write_onnx, write_torchscript
from spoco_zoo.session import EmbeddingSession
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


def test_runtimes_of_one_network_agree(net, damaged):
    with EmbeddingSession(load_package(damaged), "cpu") as session:
        worst = proof.measure_agreement(net, damaged / "weights_torchscript.pt", session)
    assert sorted(worst) == ["ONNX Runtime", "TorchScript"]
    assert max(worst.values()) < 1e-5


@pytest.mark.parametrize("runtime", ["TorchScript", "ONNX Runtime"])
def test_one_weight_that_moved_a_little_is_noticed(net, other_net, damaged, edit_rdf, runtime):
    example = torch.zeros(1, 1, 5, 5)
    if runtime == "TorchScript":
        write_torchscript(other_net, example, damaged / "weights_torchscript.pt")
    else:
        write_onnx(other_net, example, damaged / "weights.onnx")
    edit_rdf(damaged)
    with (
        EmbeddingSession(load_package(damaged), "cpu") as session,
        pytest.raises(PackageError) as error,
    ):
        proof.measure_agreement(net, damaged / "weights_torchscript.pt", session)
    start, number, end = (
        str(error.value).partition(" by ")[0],
        *str(error.value).split(" by ")[1:],
        "",
    )
    assert start == f"{runtime} differs from the training code"
    number, end = number.split(": ", 1)
    assert 1e-4 < float(number) < 1
    assert end == ("expected at most 0.0001; this torch and this runtime do not fit together")


def test_tiles_of_a_right_package_equal_the_whole(load_tiny, damaged):
    for package in (load_tiny("package"), load_tiny("volume"), load_package(damaged)):
        with EmbeddingSession(package, "cpu") as session:
            assert proof.measure_tiling(session) < 1e-6


def test_a_halo_that_is_too_small_is_noticed(tiny_package, edit_rdf):
    edit_rdf(tiny_package, lambda words: words["config"]["spoco_zoo"].update(halo=[4, 0]))
    with (
        EmbeddingSession(load_package(tiny_package), "cpu") as session,
        pytest.raises(PackageError) as error,
    ):
        proof.measure_tiling(session)
    number = str(error.value).split(" by ")[1].split(": ")[0]
    assert 1e-4 < float(number) < 1
    assert str(error.value) == (
        f"tiles differ from the whole image by {number}: expected at most 0.0001; "
        "the halo [4, 0] does not cover the receptive field"
    )


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
        proof.test_with_bioimageio(damaged)
    assert str(error.value).startswith("bioimageio.core does not accept the onnx weights: ")
    assert "embedding" in str(error.value)
    assert len(str(error.value)) < 600


def test_a_package_that_reads_back_otherwise_is_noticed(tiny_export, net):
    package = load_package(tiny_export[0])
    written = {
        "name": package.name,
        "channels": package.channels,
        "normalization": package.normalization,
        "embedding_dim": package.embedding_dim,
        "config": package.config,
    }
    proof.check_round_trip(tiny_export[0], net, written)
    with pytest.raises(PackageError) as error:
        proof.check_round_trip(tiny_export[0], net, written | {"channels": 2, "name": "Other"})
    assert str(error.value) == (
        "the package reads back with another name, channels than was written: "
        "this is a defect of spoco-zoo, please report it"
    )
