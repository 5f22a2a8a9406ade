"""What the outputs of a stranger mean is what it says, and what it does not say is refused."""

import copy
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from spoco_zoo.errors import PackageError
from spoco_zoo.foreign import (
    Boundaries,
    Embeddings,
    LabelImage,
    Plane,
    Side,
    arrange,
    is_foreign,
    load_foreign,
    restore,
)

DATA = Path(__file__).parent / "data"


def refused(location):
    with pytest.raises(PackageError) as error:
        load_foreign(location)
    return str(error.value)


@pytest.mark.parametrize(
    ("outputs", "meaning"),
    [
        ({"out": ("bcyx", "abc", {})}, Embeddings("out", 3, None)),
        (
            {"out": ("bcyx", "ab", {}), "foreground": ("bcyx", "f", {})},
            Embeddings("out", 2, Plane("foreground")),
        ),
        (
            {"out": ("bcyx", "ab", {}), "p": ("bcyx", ["Foreground probability"], {})},
            Embeddings("out", 2, Plane("p")),
        ),
        (
            {"embedding": ("bcyx", "ab", {}), "features": ("bcyx", "abc", {})},
            Embeddings("embedding", 2, None),
        ),
        (
            {"out": ("bcyx", ["foreground", "boundaries"], {})},
            Boundaries(Plane("out", 1), Plane("out", 0), excludes=False),
        ),
        (
            {"out": ("bcyx", ["background", "interior", "cell border"], {})},
            Boundaries(Plane("out", 2), Plane("out", 1), excludes=True),
        ),
        (
            {"boundary": ("byx", "", {}), "foreground": ("bcyx", "f", {})},
            Boundaries(Plane("boundary"), Plane("foreground"), excludes=False),
        ),
        ({"contours": ("bcyx", "c", {})}, Boundaries(Plane("contours"), None, excludes=False)),
        ({"out": ("bcyx", "a", {"data": {"type": "uint16"}})}, LabelImage("out")),
        ({"instance_segmentation": ("byx", "", {})}, LabelImage("instance_segmentation")),
        (
            {"out": ("bcyx", "ab", {}), "Labels": ("bcyx", "a", {})},
            LabelImage("Labels"),
        ),
    ],
)
def test_outputs_mean_what_they_are_called(make_foreign, outputs, meaning):
    package = load_foreign(make_foreign(b"net", outputs))
    assert package.meaning == meaning
    assert (package.name, package.n_axes, package.channels) == ("Stranger", 2, 1)
    used = {tensor.name for tensor in package.outputs}
    assert used <= set(outputs)
    assert used


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"out": ("bcyx", "a", {})}, "out of 1 channels"),
        ({"mask": ("bcyx", ["background", "foreground"], {})}, "mask of 2 channels"),
        (
            {"a": ("bcyx", "ab", {}), "b": ("bcyx", "ab", {})},
            "a of 2 channels, b of 2 channels",
        ),
        ({"out": ("bcyx", "ab", {"data": {"type": "int32"}})}, "out of 2 channels"),
    ],
)
def test_outputs_that_mean_no_instances_are_refused(make_foreign, outputs, told):
    folder = make_foreign(b"net", outputs)
    assert refused(folder) == (
        f"{folder / 'rdf.yaml'}: outputs are {told}: expected an embedding of several channels, "
        "a channel named boundary, or one channel of labels; choose a package for instances"
    )


def test_ours_and_theirs_are_told_apart(tiny_package, make_stranger, zip_folder, tmp_path):
    folder = make_stranger()
    assert not is_foreign(tiny_package)
    assert not is_foreign(tiny_package / "rdf.yaml")
    assert is_foreign(folder)
    assert is_foreign(zip_folder(folder, tmp_path / "packed.zip"))
    with pytest.raises(PackageError):
        is_foreign(tmp_path / "none")


def test_folder_zip_and_either_name_of_the_description_give_the_same(
    make_stranger, zip_folder, tmp_path
):
    folder = make_stranger()
    first = load_foreign(folder)
    packed = load_foreign(zip_folder(folder, tmp_path / "packed.zip"))
    (folder / "rdf.yaml").rename(folder / "bioimageio.yaml")
    renamed = load_foreign(folder / "bioimageio.yaml")
    assert first == renamed
    assert packed.description == first.description
    assert packed.read_weights() == first.read_weights()
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
        file.write(folder / "bioimageio.yaml", "bioimageio.yaml")
        file.write(folder / "net.onnx", "net.onnx")
    assert load_foreign(tmp_path / "new.zip").description == first.description


def test_sizes_and_halo_are_those_of_the_description(make_stranger):
    package = load_foreign(make_stranger(halo=6, size={"min": 8, "step": 4}))
    assert package.sides == (Side(8, 4, 6),) * 2
    assert package.has_halo


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "nothing is known of its context, so every image is taken as one tile"),
        (32, "nothing is known of its context, and tiles of its one size may show seams"),
    ],
)
def test_what_is_not_known_is_said(make_stranger, caplog, size, words):
    folder = make_stranger(halo=0, size=size)
    with caplog.at_level(logging.WARNING):
        load_foreign(folder)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder / 'rdf.yaml'}: declares no halo: {words}"
    ]


def test_weights_without_a_hash_are_used_and_said_so(make_stranger, caplog):
    folder = make_stranger(change=lambda words: words["weights"]["onnx"].pop("sha256"))
    with caplog.at_level(logging.WARNING):
        load_foreign(folder)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder / 'rdf.yaml'}: states no sha256 of net.onnx: not verified"
    ]


def test_other_weights_than_those_that_are_stated_are_refused(make_stranger):
    folder = make_stranger()
    package = load_foreign(folder)
    (folder / "net.onnx").write_bytes(b"other")
    for call in (package.read_weights, lambda: load_foreign(folder)):
        with pytest.raises(PackageError) as error:
            call()
        assert str(error.value).startswith(f"{folder / 'net.onnx'}: sha256 is ")


def _image(words):
    return words["inputs"][0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda words: words["inputs"].append(copy.deepcopy(_image(words)) | {"id": "second"}),
            "has 2 inputs: expected one image",
        ),
        (
            lambda words: words["outputs"][1].update(id="image"),
            "two tensors of image, embedding, image share a name: rename one",
        ),
        (
            lambda words: _image(words).update(preprocessing=[], axes=_image(words)["axes"][:3]),
            "axes of space of image are y: expected y and x, or z, y and x, "
            "and nothing else of more than one place but channels",
        ),
        (
            lambda words: _image(words)["axes"].append({"type": "time", "size": 5}),
            "axes of space of image are time of more than one place: expected y and x, or z, y "
            "and x, and nothing else of more than one place but channels",
        ),
        (
            lambda words: words["outputs"][0]["axes"][3]["size"].update(axis_id="y"),
            "output embedding is not as long as image on axis x: "
            "expected one pixel for each of the image",
        ),
        (
            lambda words: words["outputs"][0]["axes"][3]["size"].update(offset=2),
            "output embedding is not as long as image on axis x: "
            "expected one pixel for each of the image",
        ),
        (
            lambda words: words["outputs"][0]["axes"][3].update(scale=2),
            "output embedding is not as long as image on axis x: "
            "expected one pixel for each of the image",
        ),
        (
            lambda words: words["outputs"][0]["axes"][3].update(size=64),
            "output embedding is not as long as image on axis x: "
            "expected one pixel for each of the image",
        ),
        (
            lambda words: _image(words)["axes"][3].update(
                size={"tensor_id": "image", "axis_id": "y"}
            ),
            "the size of image on axis x depends on another: expected sizes of its own",
        ),
        (
            lambda words: _image(words)["axes"][3].update(size=8),
            "axis x has 8 pixels and a halo of 4 on both sides: "
            "nothing is left between them; ask the authors",
        ),
    ],
)
def test_what_would_be_guessed_is_refused(make_stranger, change, problem):
    folder = make_stranger(change=change)
    assert refused(folder) == f"{folder / 'rdf.yaml'}: {problem}"


def test_a_fixed_output_of_a_fixed_image_is_as_long(make_stranger):
    def change(words):
        for axis in words["outputs"][0]["axes"][2:]:
            axis["size"] = 32

    assert load_foreign(make_stranger(size=32, change=change)).sides == (Side(32, 0, 4),) * 2


@pytest.mark.parametrize("letters", ["bcyx", "yxc", "cxy", "byx", "tbyxc", "yx", "xbyci"])
def test_axes_are_brought_there_and_back(make_foreign, letters):
    channels = ("a", "b") if "c" in letters else ("a",)
    folder = make_foreign(
        b"net", {"embedding": ("bcyx", "ab", {})}, axes=letters, channels=channels
    )
    package = load_foreign(folder)
    values = np.arange(len(channels) * 15).reshape(-1, 3, 5)
    there = arrange(values, package.image, package.space)
    sizes = {"c": len(channels), "y": 3, "x": 5}
    assert there.shape == tuple(sizes.get(letter, 1) for letter in letters)
    at = tuple({"c": len(channels) - 1, "y": 2, "x": 1}.get(letter, 0) for letter in letters)
    assert there[at] == values[-1, 2, 1]
    assert (restore(there, package.image, package.space) == values).all()


def test_nothing_but_the_network_is_read(make_stranger, tmp_path):
    def change(words):
        words["weights"] |= {
            "torchscript": {"source": "../evil.pt"},
            "pytorch_state_dict": {"source": "evil.pt", "architecture": {"source": "evil.py"}},
        }

    folder = make_stranger(change=change)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    load_foreign(folder)
    assert not (tmp_path / "marker").exists()


def test_weights_in_other_files_are_refused(make_foreign):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DATA / "foreign" / "boundaries.onnx")
    for tensor in model.graph.initializer[:2]:
        tensor.ClearField("raw_data")
        tensor.external_data.add(key="location", value="rdf.yaml")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    folder = make_foreign(model.SerializeToString(), {"maps": ("bcyx", ["boundary", "b"], {})})
    assert refused(folder) == (
        f"{folder / 'net.onnx'}: keeps 2 of its weights in other files, 'twenty' first: "
        "expected one ONNX file with all of them; save it again without external data"
    )
