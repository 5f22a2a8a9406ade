"""Weights of a run or package go into a new network, adapted where they can be, never run."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile

from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.normalization import ScaleRange
from spoco_zoo.package import load_package
from spoco_zoo.spec import NetSettings, Spec, change_spec, dump_spec, parse_spec
from spoco_zoo.training import TrainOptions, read_start, train
from spoco_zoo.training.checkpoints import CHECKPOINT_VERSION, build_net, load_checkpoint
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import PackagedUNet
from spoco_zoo.training.starting import fill

torch.set_num_threads(1)

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "nuclei-2d"
WORDS = {
    "in_channels": 1,
    "embedding_dim": 2,
    "widths": [8, 12],
    "pooling": [[2, 2]],
    "foreground_head": True,
    "order": "cbr",
}


def refuse(error_class, action, *arguments):
    with pytest.raises(error_class) as error:
        action(*arguments)
    return str(error.value)


def random_net(words):
    """A network whose every number differs from that of a new one, statistics included."""
    torch.manual_seed(7)
    net = build_net(Spec(net=NetSettings(**words)))
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1)
    return net.eval()


@pytest.fixture
def make_run(tmp_path):
    """Write a run as far as its best network."""

    def make(**words):
        words = WORDS | words
        spec = parse_spec(
            {
                "net": words | {"dimensions": len(words["pooling"][0])},
                "data": {"normalization": {"id": "scale_range"}},
                "loss": {"delta_var": 0.75},
                "schedule": {"crop": [24] * len(words["pooling"][0])},
            },
            "test",
        )
        net = random_net(spec.net.model_dump())
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "spec.yaml").write_text(dump_spec(spec))
        state = {"version": CHECKPOINT_VERSION, "pair": MomentumPair(net).state_dict()}
        torch.save(state, folder / "best.pt")
        return folder, net

    return make


@pytest.fixture
def make_package(tiny_package, edit_rdf):
    """Write a package with a state dict; words of its architecture and content may be changed."""

    def make(change=lambda entry: None, state=None, **words):
        net = random_net(WORDS)
        packaged = PackagedUNet(**WORDS)
        packaged.embedding_net.load_state_dict(net.state_dict())
        path = tiny_package / "weights.pt"
        torch.save(dict(packaged.state_dict()) if state is None else state, path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

        def describe(rdf):
            kwargs = WORDS | {"momentum": False} | words
            architecture = {"source": "net.py", "callable": "PackagedUNet", "kwargs": kwargs}
            entry = {"source": "weights.pt", "sha256": sha256, "architecture": architecture}
            change(entry)
            rdf["weights"]["pytorch_state_dict"] = entry
            rdf["config"]["spoco_zoo"]["files"]["weights.pt"] = sha256

        edit_rdf(tiny_package, describe)
        return tiny_package, net

    return make


def filled(start, **words):
    """Fill a new network that differs by some words; return it with the notes."""
    settings = start.net.model_copy(update=words)
    torch.manual_seed(1)
    net = build_net(Spec(net=settings, data={"label_zero": "background"}, schedule=_crop(settings)))
    return net, fill(net, settings, start)


def _crop(settings):
    return {"crop": (24,) * settings.dimensions}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in second) and len(first) == len(
        second
    )


# What is taken.


def test_the_best_network_of_a_run_is_taken_as_it_is(make_run):
    folder, net = make_run()
    start = read_start(folder)
    assert start.source == str(folder)
    assert start.sha256 == hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest()
    new, notes = filled(start)
    assert notes == []
    assert same(new.state_dict(), net.state_dict())


def test_without_a_spec_what_the_weights_are_tied_to_comes_from_their_source(make_run):
    spec = change_spec(Spec(), read_start(make_run()[0]).changes)
    assert (spec.net.widths, spec.net.embedding_dim, spec.net.steps) == ((8, 12), 2, ((2, 2),))
    assert (spec.net.in_channels, spec.net.foreground_head) == (None, None)
    assert (spec.data.normalization, spec.loss.delta_var) == (ScaleRange(), 0.75)
    assert spec.schedule.crop == (24, 24)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_state_dict_of_a_package_is_taken_as_it_is(make_package, zip_folder, tmp_path, kind):
    source, net = make_package()
    package = load_package(source)
    if kind == "zip":
        source = zip_folder(source, tmp_path / "package.zip")
    start = read_start(source)
    assert start.sha256 == package.config.files["weights.pt"]
    new, notes = filled(start)
    assert notes == []
    assert same(new.state_dict(), net.state_dict())
    spec = change_spec(Spec(), start.changes)
    assert spec.data.normalization == package.normalization
    assert spec.schedule.crop == package.config.crop
    assert spec.loss.delta_var == package.config.delta_var


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped packages are not here")
def test_a_shipped_package_embeds_as_before_once_its_weights_are_in_a_new_network():
    start = read_start(SHIPPED)
    net, notes = filled(start)
    image = torch.from_numpy(np.load(SHIPPED / "test_input.npy").astype(np.float32))
    (normalization,) = [load_package(SHIPPED).normalization]
    from spoco_zoo.normalization import fit_affine

    pixels = fit_affine(image[0].numpy(), normalization).apply(image[0].numpy())
    with torch.no_grad():
        embedding = net.eval().embed(torch.from_numpy(pixels)[None]).embedding
    expected = torch.from_numpy(np.load(SHIPPED / "test_embedding.npy"))
    assert notes == []
    assert torch.allclose(embedding, expected, atol=1e-3)


# What is adapted.


@pytest.mark.parametrize("order", ["cbr", "bcr"])
def test_other_channels_start_with_the_mean_and_equal_channels_embed_as_one(make_run, order):
    folder, net = make_run(order=order)
    new, notes = filled(read_start(folder), in_channels=3)
    assert notes == [
        "the images have 3 channels and those of the start 1: "
        "the first convolution starts with their mean"
    ]
    grey = torch.randn(1, 1, 12, 14)
    with torch.no_grad():
        expected, found = net(grey), new.eval()(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max())


def test_fewer_channels_get_the_mean_of_all(make_run):
    folder, net = make_run(in_channels=2)
    new, _ = filled(read_start(folder), in_channels=1)
    first = new.encoders[0][0].weight
    assert torch.allclose(first, net.encoders[0][0].weight.sum(dim=1, keepdim=True))


def test_embeddings_of_other_length_are_new_and_foreground_is_kept(make_run):
    folder, net = make_run()
    new, notes = filled(read_start(folder), embedding_dim=5)
    assert notes == ["embeddings have 5 numbers and 2 at the start: they are new"]
    assert torch.equal(new.head.weight[5:], net.head.weight[2:])
    assert torch.equal(new.head.bias[5:], net.head.bias[2:])
    assert new.head.weight[:5].abs().max() < 0.5  # as a convolution is initialised
    assert torch.equal(new.encoders[1][0].weight, net.encoders[1][0].weight)


@pytest.mark.parametrize(
    ("before", "now", "note"),
    [
        (False, True, "the start has no foreground head: it is new"),
        (True, False, "the foreground head of the start is left out"),
    ],
)
def test_a_foreground_head_can_be_new_or_left_out(make_run, before, now, note):
    folder, net = make_run(foreground_head=before)
    new, notes = filled(read_start(folder), foreground_head=now)
    assert notes == [note]
    assert torch.equal(new.head.weight[:2], net.head.weight[:2])
    assert torch.equal(new.head.bias[:2], net.head.bias[:2])
    assert len(new.head.bias) == 2 + now


# What is refused.


def test_volumes_do_not_start_from_images(make_run):
    start = read_start(make_run()[0])
    other = NetSettings(dimensions=3, in_channels=1, embedding_dim=2, widths=(8, 12))
    net = build_net(Spec(net=other, schedule=_crop(other)))
    assert refuse(SettingError, fill, net, other, start) == (
        "net.dimensions is 3, and 2 in what --from starts from: "
        "expected the same; change the spec or train without --from"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"widths": (8, 16)}, "net.widths is [8, 16], and [8, 12]"),
        ({"pooling": ((4, 4),)}, "net.pooling is [[4, 4]], and [[2, 2]]"),
        ({"order": "bcr"}, "net.order is bcr, and cbr"),
    ],
)
def test_another_network_is_refused(make_run, words, told):
    start = read_start(make_run()[0])
    other = NetSettings(**(start.net.model_dump() | words))
    net = build_net(Spec(net=other, schedule=_crop(other)))
    assert refuse(SettingError, fill, net, other, start) == (
        f"{told} in what --from starts from: "
        "expected the same; change the spec or train without --from"
    )


def test_so_many_channels_that_the_network_has_another_shape_are_refused(make_run):
    start = read_start(make_run()[0])
    assert refuse(SettingError, lambda: filled(start, in_channels=5)) == (
        "the images have 5 channels and those of the start 1: with more than 4 the network has "
        "another shape; train without --from"
    )


def test_what_is_not_there_is_told(tmp_path):
    assert refuse(SettingError, read_start, tmp_path / "none") == (
        f"{tmp_path / 'none'}: no such run or package: expected a run folder, or a package as "
        "folder or zip"
    )
    (tmp_path / "train" / "images").mkdir(parents=True)
    assert refuse(SettingError, read_start, tmp_path) == (
        f"{tmp_path}: no such run or package: expected a run folder, or a package as folder or zip"
    )


def test_a_run_without_a_network_or_with_another_is_told(make_run):
    folder, _ = make_run()
    words = (folder / "spec.yaml").read_text().replace("embedding_dim: 2", "embedding_dim: 3")
    (folder / "spec.yaml").write_text(words)
    path = folder / "best.pt"
    assert refuse(SettingError, read_start, folder) == (
        f"{path}: does not fit spec.yaml beside it: put back the spec of the run"
    )
    torch.save({"version": CHECKPOINT_VERSION, "pair": 3}, path)
    assert "does not fit spec.yaml" in refuse(SettingError, read_start, folder)
    path.unlink()
    assert refuse(SettingError, read_start, folder) == (f"{path}: no such checkpoint: train first")


def test_a_package_without_a_state_dict_is_told(tiny_package):
    assert refuse(PackageError, read_start, tiny_package) == (
        f"{tiny_package}: has no state dict to go on from: expected a run folder, or a package "
        "of the flavour embeddings"
    )


def test_weights_that_were_changed_are_not_read(make_package):
    source, _ = make_package()
    content = bytearray((source / "weights.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (source / "weights.pt").write_bytes(content)
    assert "weights.pt: sha256 is" in refuse(PackageError, read_start, source)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("architecture"),
        lambda entry: entry.update(source="other.pt"),
        lambda entry: entry.update(sha256="0" * 64),
        lambda entry: entry["architecture"]["kwargs"].pop("widths"),
        lambda entry: entry["architecture"]["kwargs"].update(widths=[8]),
        lambda entry: entry["architecture"]["kwargs"].update(widths=[8, 2**16 + 1]),
        lambda entry: entry["architecture"]["kwargs"].update(pooling=[]),
        lambda entry: entry["architecture"]["kwargs"].update(unknown=1),
        lambda entry: entry.update(architecture="net.py"),
    ],
)
def test_a_state_dict_described_otherwise_is_refused(make_package, change):
    source, _ = make_package(change)
    assert refuse(PackageError, read_start, source) == (
        f"{source / 'rdf.yaml'}: the state dict is not described as spoco-zoo export does: "
        "export the package again"
    )


@pytest.mark.parametrize("words", [{"embedding_dim": 3}, {"widths": [8, 2**16]}])
def test_weights_that_do_not_fit_what_is_said_of_them_are_refused(make_package, words):
    """And nothing is built of a size that only a description claims."""
    source, _ = make_package(**words)
    assert refuse(PackageError, read_start, source) == (
        f"{source / 'weights.pt'}: does not fit the architecture in rdf.yaml: "
        "export the package again"
    )


class _Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_weights_that_want_to_run_code_are_refused_and_nothing_runs(make_package, tmp_path):
    """The hash is right: it says who wrote the file, not what is in it."""
    source, _ = make_package(state={"embedding_net.head.bias": _Trap(tmp_path / "sprung")})
    assert refuse(PackageError, read_start, source) == (
        f"{source / 'weights.pt'}: holds no weights that can be read (UnpicklingError): "
        "export the package again"
    )
    assert not (tmp_path / "sprung").exists()


# In a run.


@pytest.fixture
def patches(tmp_path):
    for part, seed in (("train", 0), ("val", 1)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
        labels = np.zeros((32, 32), np.uint16)
        labels[4:14, 5:15], labels[18:28, 16:27] = 1, 2
        image = 100 * (labels > 0) + np.random.default_rng(seed).normal(50, 10, labels.shape)
        folder = tmp_path / "data" / part
        tifffile.imwrite(folder / "images" / "a.tif", image.astype(np.float32))
        tifffile.imwrite(folder / "labels" / "a.tif", labels)
    return tmp_path / "data"


def test_a_run_starts_from_another_says_so_and_goes_on_without_it(make_run, patches, tmp_path):
    source, net = make_run(foreground_head=False)
    start = read_start(source)
    words = {
        "schedule": {
            "steps": 2,
            "batch_size": 1,
            "workers": 0,
            "learning_rate": 1e-9,
            "precision": "float32",
        },
        "clustering": {"fit": False, "min_size": 5},
    }
    spec = change_spec(change_spec(Spec(), start.changes), words)
    folder, notes = tmp_path / "run", []
    options = TrainOptions(device="cpu", start=source, on_note=notes.append, max_minutes=0.0)
    assert not train(spec, patches, folder, options).finished
    assert notes == ["the start has no foreground head: it is new"]
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["started_from"] == {
        "source": str(source),
        "sha256": start.sha256,
        "notes": notes,
    }
    pair = load_checkpoint(folder / "last.pt")["pair"]
    for twin in ("embedding_net", "momentum_net"):
        first = pair[f"{twin}.encoders.0.0.weight"]
        assert torch.allclose(first, net.encoders[0][0].weight, atol=1e-6)
    shutil.rmtree(source)
    again = TrainOptions(device="cpu", start=source, resume=True)
    assert train(spec, patches, folder, again).finished
