"""A good package has no finding, and the same with one thing changed has exactly that one."""

import copy
import datetime
import hashlib
import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from spoco_zoo.errors import PackageError
from spoco_zoo.lint import CONSUMERS, Finding, Report, choose_consumers, evidence, lint_package

ROOT = Path(__file__).resolve().parent.parent
FLOAT32, UINT8, INT64, FLOAT16 = 1, 2, 7, 10


# --- packages written by hand


def field(number, value):
    """One field of a protobuf message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def onnx(
    outputs,
    opset=17,
    ir=8,
    domain=None,
    given=(("x", FLOAT32, ("b", 1, "y", "x")),),
    external=False,
):
    """The header of an ONNX file; outputs and inputs are name, type and shape, or None for it."""

    def value(name, kind, shape):
        dims = [field(1, s) if isinstance(s, int) else field(2, s.encode()) for s in shape or ()]
        shaped = b"" if shape is None else field(2, b"".join(field(1, dim) for dim in dims))
        return field(1, name.encode()) + field(2, field(1, field(1, kind) + shaped))

    graph = b"".join(field(11, value(*tensor)) for tensor in given)
    graph += b"".join(field(12, value(*tensor)) for tensor in outputs)
    graph += field(5, field(8, b"w") + field(14, 1)) if external else b""
    sets = field(8, field(2, opset))
    sets += field(8, field(1, domain.encode()) + field(2, 1)) if domain else b""
    return field(1, ir) + field(7, graph) + sets


def torchscript(*operators):
    """A TorchScript file as far as its code goes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/version", "3\n")
        code = "".join(f"  y = torch.{name}(x)\n" for name in ("conv2d", *operators))
        archive.writestr("net/code/__torch__/net.py", f"def forward(self, x):\n{code}")
    return file.getvalue()


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


class World:
    """The words and files of a package, to be changed and then written."""

    def __init__(self, words, files):
        self.words, self.files = words, files

    def put(self, path, value):
        """Set, or with `None` remove, the value at a path such as `inputs.0.id`."""
        *parts, last = [int(p) if p.isdigit() else p for p in path.split(".")]
        place = self.words
        for part in parts:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        if value is None:
            del place[last]
        else:
            place[last] = copy.deepcopy(value)

    def write(self, folder):
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        self._hash(self.words)
        (folder / "rdf.yaml").write_text(yaml.safe_dump(self.words, sort_keys=False))
        return folder

    def _hash(self, value):
        """State the true hash of every file whose hash is stated."""
        parts = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict) and value.get("sha256") == "":
            value["sha256"] = hashlib.sha256(self.files[value["source"]]).hexdigest()
        for part in parts:
            if isinstance(part, dict | list):
                self._hash(part)


def file(name):
    return {"source": name, "sha256": ""}


def make(kind):
    """A package without a finding: labels, maps, embeddings, or qupath."""
    names = {
        "labels": ["labels"],
        "maps": ["foreground", "boundary", "interior"],
        "embeddings": [f"embedding{n}" for n in range(4)],
        "qupath": ["cells"],
    }[kind]
    network = "instanseg.pt" if kind == "qupath" else "net.pt"
    output = {"labels": "labels", "qupath": "instance_segmentation"}.get(kind, kind)
    whole = kind == "labels"
    least = {"maps": {"min": 64, "step": 16}}.get(kind, {"min": 16, "step": 1})
    pixel = {"scale": 0.5, "unit": "micrometer"} if kind == "qupath" else {}
    halo = {"halo": 16} if kind == "maps" else {}
    channels = {"type": "channel", "id": "channel"}
    batch = {"type": "batch", "id": "batch", "size": 1}
    image = np.linspace(1, 200, 64 * 80, dtype=np.float32).reshape(1, 1, 64, 80)
    result = np.repeat(image / 200, len(names), axis=1)
    result = (result * 9).astype(np.int64) if whole else result
    normalize = {"id": "scale_linear", "kwargs": {"gain": 0.01}}
    if kind == "qupath":
        kwargs = {"axes": ["y", "x"], "min_percentile": 0.1, "max_percentile": 99.9}
        normalize = {"id": "scale_range", "kwargs": kwargs}
    limits = {"relative_tolerance": 0, "absolute_tolerance": 0} if whole else {}
    words = {
        "type": "model",
        "format_version": "0.5.4",
        "id": "good",
        "name": "A good package",
        "description": "Channels: foreground, boundary, interior.",
        "authors": [{"name": "Ada"}],
        "cite": [{"text": "SPOCO", "url": "https://arxiv.org/abs/2103.14572"}],
        "license": "MIT",
        "tags": ["nuclei"],
        "documentation": "README.md",
        "covers": ["cover.png"],
        "inputs": [
            {
                "id": "raw",
                "axes": [
                    dict(batch),
                    channels | {"channel_names": ["grey"]},
                    *({"type": "space", "id": a, "size": dict(least)} | pixel for a in "yx"),
                ],
                "data": {"type": "float32"},
                "test_tensor": file("raw.npy"),
                "preprocessing": [
                    normalize,
                    {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
                ],
            }
        ],
        "outputs": [
            {
                "id": output,
                "axes": [
                    dict(batch),
                    channels | {"channel_names": names},
                    *(
                        {"type": "space", "id": a, "size": {"tensor_id": "raw", "axis_id": a}}
                        | pixel
                        | halo
                        for a in "yx"
                    ),
                ],
                "data": {"type": "int64" if whole else "float32"},
                "test_tensor": file("out.npy"),
            }
        ],
        "weights": {
            "torchscript": file(network) | {"pytorch_version": "2.7.0"},
            "onnx": file("net.onnx") | {"opset_version": 17, "parent": "torchscript"},
        },
        "config": {
            "bioimageio": {"reproducibility_tolerance": [{"output_ids": [output]} | limits]},
            "spoco_zoo": {"files": {}},
        },
    }
    shape = ("b", len(names), "y", "x")
    files = {
        "README.md": b"# Good\n",
        "cover.png": cover(),
        "raw.npy": npy(image),
        "out.npy": npy(result),
        network: torchscript(),
        "net.onnx": onnx([("y", INT64 if whole else FLOAT32, shape)]),
    }
    hashes = words["config"]["spoco_zoo"]["files"]
    for name in ("README.md", "cover.png"):
        hashes[name] = hashlib.sha256(files[name]).hexdigest()
    return World(words, files)


def cover():
    from PIL import Image

    picture = io.BytesIO()
    Image.new("L", (40, 20)).save(picture, "png")
    return picture.getvalue()


SUITS = {
    "labels": ("JDLL", "bioimageio.core"),
    "maps": ("ilastik", "bioimageio.core"),
    "embeddings": ("JDLL", "bioimageio.core"),
    "qupath": ("QuPath", "bioimageio.core"),  # JDLL takes no pixel size, QuPath needs one
}


@pytest.mark.parametrize("kind", SUITS)
def test_a_good_package_has_no_finding(kind, tmp_path):
    folder = make(kind).write(tmp_path / "package")
    assert lint_package(folder, SUITS[kind]) == []
    assert choose_consumers(folder) == SUITS[kind]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SUITS)
def test_a_good_package_is_one_for_bioimageio_too(kind, tmp_path, monkeypatch):
    spec = pytest.importorskip("bioimageio.spec")
    folder = make(kind).write(tmp_path / "package")
    with spec.ValidationContext(root=folder, perform_io_checks=False):
        assert spec.load_description(folder / "rdf.yaml").validation_summary.status != "failed"


@pytest.mark.parametrize(
    ("flavour", "program"), [("", "JDLL"), ("-instances", "JDLL"), ("-boundaries", "ilastik")]
)
def test_shipped_packages_have_no_error_for_their_programs(flavour, program):
    report = Report.of(ROOT / "weights" / f"nuclei-2d{flavour}", ())
    assert report.consumers == (program, "bioimageio.core")
    assert report.errors == 0


# --- one change, one finding


def put(path, value):
    """Set a value of the description, or remove it."""
    return lambda world: world.put(path, value)


def replace(name, content):
    """Change a file of the package."""
    return lambda world: world.files.update({name: content})


def both(*changes):
    """Make several changes."""

    def change(world):
        for part in changes:
            part(world)

    return change


def double(key, halo=None):
    """Add a second input or output to the description, its tolerances and the ONNX file."""

    def change(world):
        second = copy.deepcopy(world.words[key][0])
        second["id"] = "second"
        if halo:
            second["axes"][2]["halo"] = second["axes"][3]["halo"] = halo
        world.words[key].append(second)
        tolerances = world.words["config"]["bioimageio"]["reproducibility_tolerance"]
        tolerances.append(dict(tolerances[0], output_ids=["second"]))
        kind = {"int64": INT64, "float32": FLOAT32}[world.words["outputs"][0]["data"]["type"]]
        given = [(f"x{n}", FLOAT32, None) for n in range(len(world.words["inputs"]))]
        outputs = [(f"y{n}", kind, None) for n in range(len(world.words["outputs"]))]
        world.files["net.onnx"] = onnx(outputs, given=given)

    return change


def labels_onnx(kind=INT64, **words):
    return replace("net.onnx", onnx([("y", kind, ("b", 1, "y", "x"))], **words))


def swap_axes(world):
    """Let the output have x before y, in its test tensor too."""
    axes = world.words["outputs"][0]["axes"]
    axes[2], axes[3] = axes[3], axes[2]
    values = np.load(io.BytesIO(world.files["out.npy"]))
    world.files["out.npy"] = npy(values.swapaxes(2, 3))


def halve(world):
    """Let the output be half as high, in its test tensor too."""
    world.words["outputs"][0]["axes"][2]["scale"] = 2
    values = np.load(io.BytesIO(world.files["out.npy"]))
    world.files["out.npy"] = npy(values[..., ::2, :])


def drop_axis(side, at):
    """Take an axis out of an input or output and of everything that shows it."""

    def change(world):
        tensor = world.words[side][0]
        del tensor["axes"][at]
        name = tensor["test_tensor"]["source"]
        values = np.load(io.BytesIO(world.files[name]))
        world.files[name] = npy(values.take(0, at))
        del world.words["weights"]["onnx"]

    return change


def sizes(value, key="size", side="inputs"):
    """Set both sizes of space."""
    return both(*(put(f"{side}.0.axes.{n}.{key}", value) for n in (2, 3)))


def tolerance(**words):
    """Set limits of the output."""

    def change(world):
        world.words["config"]["bioimageio"]["reproducibility_tolerance"][0].update(words)

    return change


STATE_DICT = file("net.pt") | {"pytorch_version": "2.7.0"}
NO_PARENT = put("weights.onnx.parent", None)
NO_TORCHSCRIPT = both(put("weights.torchscript", None), NO_PARENT)
MAPPED = {"source": "README.md", "sha256": ""}
ZOO_SIZE = put("outputs.0.axes.2.size", {"min": 16, "step": 1})

# fmt: off
JDLL = [
    pytest.param("labels", "error", put("documentation", MAPPED), "documentation is a mapping, with which the model is not listed: write a plain string", id="documentation"),
    pytest.param("labels", "error", put("license", MAPPED), "license is a mapping, with which the model is not listed: write a plain string", id="license"),
    pytest.param("labels", "error", put("git_repo", ["a"]), "git_repo is a list, with which the model is not listed: write a plain string", id="git_repo"),
    pytest.param("labels", "error", put("id", 5), "id is a number, with which the model is not listed: write a plain string", id="number"),
    pytest.param("labels", "error", put("id", True), "id is true or false, with which the model is not listed: write a plain string", id="truth"),
    pytest.param("labels", "error", put("id", datetime.date(2026, 1, 1)), "id is of type date, with which the model is not listed: write a plain string", id="date"),
    pytest.param("labels", "error", put("covers", [{"source": "cover.png"}]), "covers holds a mapping, with which no model at all is listed: write plain strings", id="covers"),
    pytest.param("embeddings", "error", put("covers", [{"source": "cover.png"}]), "covers holds a mapping, with which no model at all is listed: write plain strings", id="embeddings-covers"),
    pytest.param("labels", "error", put("id", None), "id is missing beside a config, which ends in an error: write an id", id="no-id"),
    pytest.param("labels", "warning", both(put("id", None), put("config", {})), "id is missing, and another is made up at every start: write an id", id="neither-id-nor-config"),
    pytest.param("labels", "error", put("config.deepimagej", {"allow_tiling": False}), "config.deepimagej does not say allow_tiling: true, which asks for tiles of size -1: leave config.deepimagej out", id="no-tiling"),
    pytest.param("labels", "warning", put("config.deepimagej", {"allow_tiling": True, "prediction": {"postprocess": ["a.ijm"]}}), "config.deepimagej.prediction.postprocess names macros, which deepImageJ 3 does not run: leave config.deepimagej out", id="macro"),
    pytest.param("labels", "warning", both(put("name", "My StarDist"), put("config.stardist", {"a": 1})), "name holds stardist and there is a config.stardist, which is run as StarDist in a Python environment: choose another name", id="stardist"),
    pytest.param("labels", "error", double("inputs"), "there are 2 inputs: only one image can be given", id="two-inputs"),
    pytest.param("labels", "error", put("inputs.0.data.type", "bool"), "raw is of type bool, which is not known: write one of float32, float64, int16, int32, int64, int8, uint16, uint32, uint8", id="bool"),
    pytest.param("labels", "error", put("inputs.0.axes.1.channel_names", None), "raw.channel has no channel_names, which ends in an error: name every channel", id="no-channel-names"),
    pytest.param("labels", "error", put("inputs.0.axes.1", {"type": "index", "id": "index", "size": 1}), "raw.index is of type index, which is refused: expected batch, channel, and x, y or z alone", id="index"),
    pytest.param("labels", "error", both(put("inputs.0.axes.2.id", "row"), put("outputs.0.axes.2.size.axis_id", "row")), "raw.row has the id row: expected x, y or z, and stated", id="row"),
    pytest.param("labels", "error", put("inputs.0.axes.3.id", None), "raw.x has the id None: expected x, y or z, and stated", id="unstated-x"),
    pytest.param("labels", "warning", put("outputs.0.axes.0.size", None), "labels.batch has no fixed size: write size: 1, since images are given one by one", id="free-batch"),
    pytest.param("labels", "error", put("outputs.0.postprocessing", [{"id": "custom"}]), "labels asks for the operation custom, which is not there and stops the run: do it inside the network", id="operation"),
    pytest.param("embeddings", "error", put("inputs.0.preprocessing.0", {"name": "softmax"}), "raw asks for the operation softmax, which is not there and stops the run: do it inside the network", id="old-name"),
    pytest.param("labels", "error", put("inputs.0.preprocessing.0", {"id": "scale_range", "kwargs": {"reference_tensor": "raw"}}), "raw takes the range of another tensor in scale_range, which is not supported: leave reference_tensor out", id="reference-tensor"),
    pytest.param("labels", "error", put("outputs.0.axes.2.size", {"min": 16, "step": 1}), "labels.y has a size of its own from 16 on, which is refused as too complex: refer to an axis of the input", id="own-size"),
    pytest.param("embeddings", "warning", sizes(4, "halo", "outputs"), "outputs have a halo of 4, by which the image is mirrored at its border even where one tile is enough, so results differ from the test tensor: pad inside the network and leave the halo out", id="halo"),
    pytest.param("labels", "error", sizes({"min": 16, "step": 16}), "raw is not of any size in y in steps of 16, x in steps of 16, so images are cut into tiles whose labels collide: pad inside the network and write step: 1", id="step"),
    pytest.param("labels", "error", put("inputs.0.axes.3.size", 80), "raw is not of any size in x, so images are cut into tiles whose labels collide: pad inside the network and write step: 1", id="fixed"),
    pytest.param("embeddings", "warning", both(put("inputs.0.axes.3.size", 80), put("outputs.0.axes.1.channel_names", ["a"]), replace("out.npy", npy(np.ones((1, 1, 64, 80), np.float32))), replace("net.onnx", onnx([("y", FLOAT32, None)]))), "raw is not of any size in x, so images are cut into tiles: pad inside the network and write step: 1", id="one-channel"),
    pytest.param("embeddings", "warning", both(put("inputs.0.axes.3.size", 80), put("outputs.0.data.type", "int64"), replace("out.npy", npy(np.ones((1, 4, 64, 80), np.int64))), replace("net.onnx", onnx([("y", INT64, None)]))), "raw is not of any size in x, so images are cut into tiles: pad inside the network and write step: 1", id="whole-numbers"),
    pytest.param("embeddings", "warning", put("inputs.0.axes.3.size", 80), "raw is not of any size in x, so images are cut into tiles: pad inside the network and write step: 1", id="embeddings-step"),
    pytest.param("labels", "error", both(put("inputs.0.axes.2.size.min", 4730), put("inputs.0.axes.3.size.min", 10642)), "raw has at least 50336660 elements, and more than 50331648 are never done: take smaller images", id="large-image"),
    pytest.param("labels", "error", both(put("weights.onnx.source", "sub/net.onnx"), lambda world: world.files.update({"sub/net.onnx": world.files["net.onnx"]})), "onnx weights are sub/net.onnx, which is not found: put them beside rdf.yaml", id="folder"),
    pytest.param("labels", "error", put("weights", {"pytorch_state_dict": STATE_DICT}), "weights are pytorch_state_dict: expected onnx or torchscript, for which no Python environment has to be installed", id="state-dict"),
    pytest.param("labels", "error", labels_onnx(ir=10), "the ONNX file is of IR version 10, and 8 is the newest that opens: export with dynamo=False, opset_version=17", id="ir"),
    pytest.param("labels", "error", both(labels_onnx(opset=18), put("weights.onnx.opset_version", 18)), "the ONNX file is of opset 18, and 17 is the newest that opens: export with dynamo=False, opset_version=17", id="opset"),
    pytest.param("labels", "error", labels_onnx(domain="com.example"), "the ONNX file asks for operators of com.example, which are not there: export with operators of ONNX alone", id="domain"),
    pytest.param("labels", "warning", labels_onnx(external=True), "the ONNX file keeps 1 weights in another file, which is lost when the model is moved: export with external_data=False", id="external"),
    pytest.param("labels", "error", labels_onnx(given=[("x", UINT8, None)]), "the ONNX input x is uint8, and float32 is always given: cast inside the network", id="onnx-input"),
    pytest.param("labels", "error", labels_onnx(FLOAT16), "the ONNX output y is float16, which cannot be taken over: give float32, int32 or int64", id="float16"),
    pytest.param("labels", "error", labels_onnx(FLOAT32), "the ONNX output y is float32 and labels is described as int64, which is refused: describe it as float32", id="onnx-type"),
    pytest.param("labels", "error", put("weights.torchscript.pytorch_version", "0.4"), "torchscript weights are of PyTorch 0.4: expected 1 or 2, for which there are engines; write the pytorch_version", id="old-torch"),
    pytest.param("labels", "error", replace("net.pt", torchscript("_upsample_lanczos2d_aa")), "the TorchScript file names the operator _upsample_lanczos2d_aa, which PyTorch 2.0.0 refuses: trace the network and script only what is around it", id="new-operator"),
    pytest.param("labels", "warning", both(put("outputs.0.data.type", "uint8"), put("weights.onnx", None)), "labels is of type uint8, which ends at 127 or 255 objects: write int32 or int64", id="uint8"),
]
ILASTIK = [
    pytest.param("maps", "error", double("outputs"), "there are 1 inputs and 2 outputs: expected one of each; export a package with one output", id="two-outputs"),
    pytest.param("maps", "error", double("inputs"), "there are 2 inputs and 1 outputs: expected one of each; export a package with one output", id="two-inputs"),
    pytest.param("maps", "error", NO_TORCHSCRIPT, "weights are onnx: expected torchscript, without which the model is refused; export it too", id="onnx-alone"),
    pytest.param("maps", "error", put("weights", {"pytorch_state_dict": STATE_DICT | {"architecture": {"import_from": "spoco"}}}), "weights are a state dict whose architecture is no file of the package: expected torchscript, since the library is not there; export it too", id="library"),
    pytest.param("maps", "warning", put("weights", {"pytorch_state_dict": STATE_DICT | {"architecture": MAPPED}}), "weights are a state dict alone, whose code is run when the model is opened: export torchscript too", id="state-dict"),
    pytest.param("maps", "warning", replace("net.pt", torchscript("group_norm")), "the TorchScript file names group_norm, whose statistics differ from tile to tile: train with batch norm", id="group-norm"),
    pytest.param("maps", "error", put("documentation", MAPPED), "documentation is written as a mapping, which only bioimageio.spec 0.5.11 and later read: write plain strings", id="documentation"),
    pytest.param("maps", "error", put("outputs.0.postprocessing", [{"id": "custom"}]), "maps asks for the operation custom, which bioimageio.spec 0.5.9 does not know: do it inside the network", id="custom"),
    pytest.param("maps", "error", swap_axes, "axes of maps are in the order batch, channel, x, y: expected batch, channel, y, x as in raw, or zeros are shown; transpose inside the network", id="order"),
    pytest.param("maps", "error", halve, "maps.y is not as large as raw.y, which shows zeros or shifts the result: give an output of the size of the input and refer to it", id="half"),
    pytest.param("maps", "error", put("outputs.0.axes.2.size.offset", -8), "maps.y is not as large as raw.y, which shows zeros or shifts the result: give an output of the size of the input and refer to it", id="valid"),
    pytest.param("maps", "error", put("outputs.0.axes.3.size", {"min": 1}), "maps.x is not as large as raw.x, which shows zeros or shifts the result: give an output of the size of the input and refer to it", id="unknown-size"),
    pytest.param("maps", "warning", sizes(None, "halo", "outputs"), "maps has no halo in y, x, which leaves seams between tiles: write at least the receptive field", id="no-halo"),
    pytest.param("maps", "error", put("outputs.0.axes.2.halo", 32), "maps.y has a halo of 32 and raw a least size of 64: expected more than both halos", id="large-halo"),
    pytest.param("maps", "warning", put("outputs.0.axes.3.halo", 24), "maps.x has a halo of 24 and raw steps of 16, so results differ from the test tensor: write a multiple of the step", id="odd-halo"),
    pytest.param("maps", "error", sizes({"min": 3072, "step": 16}), "a tile of 3072 x 3072 has 113246208 bytes in maps, and a message less than 104857600: give fewer channels or a smaller least size", id="large-tile"),
    pytest.param("maps", "warning", put("inputs.0.preprocessing.0", {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}}), "raw is normalized by zero_mean_unit_variance, whose statistics are taken from each tile: use scale_linear or fixed_zero_mean_unit_variance", id="per-tile"),
    pytest.param("maps", "error", both(put("inputs.0.data.type", "uint8"), put("inputs.0.preprocessing.1", None)), "raw is of type uint8, to which it is cast before the network, which then shows zeros: describe it as float32, or end with ensure_dtype float32", id="uint8"),
    pytest.param("maps", "warning", both(put("outputs.0.data.type", "int32"), put("outputs.0.axes.1.channel_names", ["a"]), replace("net.onnx", onnx([("y", FLOAT32, None)])), replace("out.npy", npy(np.ones((1, 1, 64, 80), np.int32)))), "maps is a label image, whose objects are cut and numbered anew in every tile: give foreground, boundary and interior", id="labels"),
    pytest.param("maps", "warning", put("outputs.0.axes.1.channel_names", ["boundary", "foreground", "interior"]), "channels of maps are boundary, foreground, interior, of which no workflow makes instances: give foreground, boundary, interior in this order", id="channels"),
    pytest.param("maps", "warning", put("description", "Maps, the foreground first"), "the description does not name boundary, interior, and channels are shown by number alone: write what the channels are, in their order", id="description"),
    pytest.param("maps", "error", replace("out.npy", npy(np.full((1, 3, 64, 80), 1.5, np.float32))), "maps is from 1.5 to 1.5 in its test tensor, and only 0 to 1 is shown: scale it inside the network", id="range"),
]
QUPATH = [
    pytest.param("qupath", "error", both(put("weights.torchscript", None), NO_PARENT, lambda world: world.files.pop("instanseg.pt")), "there is no instanseg.pt: put the TorchScript file beside rdf.yaml so named", id="file"),
    pytest.param("qupath", "error", double("inputs"), "there are 2 inputs: expected one image", id="two-inputs"),
    pytest.param("qupath", "error", put("outputs.0.id", "labels"), "outputs are labels: expected instance_segmentation, which says what is found; rename the output", id="output"),
    pytest.param("qupath", "error", both(put("outputs.0.axes.1.channel_names", ["a", "b", "c"]), replace("net.onnx", onnx([("y", FLOAT32, None)])), replace("out.npy", npy(np.ones((1, 3, 64, 80), np.float32)))), "instance_segmentation has 3 channels: expected labels in one or two", id="channels"),
    pytest.param("qupath", "error", drop_axis("inputs", 0), "axes of raw are channel, y, x: expected batch, channel, y, x, which is how images are given", id="axes"),
    pytest.param("qupath", "error", put("inputs.0.axes.1.channel_names", None), "raw does not say how many channels it has: name them", id="no-channel-names"),
    pytest.param("qupath", "error", put("inputs.0.data.type", "uint8"), "raw is of type uint8: expected float32, which is given", id="uint8"),
    pytest.param("qupath", "error", both(put("inputs.0.axes.2.unit", None), put("outputs.0.axes.2.unit", None)), "raw.y has no scale in micrometer, and images are resampled: write the pixel size of the training images as scale, and the unit", id="unit"),
    pytest.param("qupath", "warning", put("inputs.0.preprocessing.0", {"id": "sigmoid"}), "raw is normalized by sigmoid, which is not done: percentiles 0.1 to 99.9 are always; train with scale_range, or normalize inside the network", id="normalization"),
]
CORE = [
    pytest.param("labels", "error", put("documentation", MAPPED), "documentation is written as a mapping, which core 0.10 and earlier do not read: write plain strings", id="documentation"),
    pytest.param("labels", "error", put("covers", [{"source": "cover.png"}]), "covers is written as a mapping, which core 0.10 and earlier do not read: write plain strings", id="covers"),
    pytest.param("labels", "warning", put("format_version", "0.5.10"), "format_version is 0.5.10, which not every reader knows: write 0.5.4 where nothing newer is used", id="version"),
    pytest.param("labels", "warning", both(put("tags", []), put("cite", None)), "cite, tags not filled in, which the zoo reports: fill them in", id="empty"),
    pytest.param("labels", "error", put("name", "Tiny"), "name is 'Tiny': expected 5 to 128 letters, digits, spaces and any of _ + - ( )", id="short-name"),
    pytest.param("labels", "error", put("name", "nuclei/2d"), "name is 'nuclei/2d': expected 5 to 128 letters, digits, spaces and any of _ + - ( )", id="odd-name"),
    pytest.param("labels", "warning", put("inputs.0.preprocessing.0", {"id": "scale_range", "kwargs": {}}), "scale_range of raw does not name its axes or names batch, which asks for statistics of a whole dataset: write the axes of one image", id="dataset"),
    pytest.param("labels", "warning", put("outputs.0.postprocessing", [{"id": "custom"}]), "labels asks for the operation custom, which runs code of the package and core before 0.10 does not know: do it inside the network", id="custom"),
    pytest.param("maps", "error", double("outputs", halo=24), "outputs have different halos, so some come back larger than the image: write the same halo for every output", id="halos"),
    pytest.param("maps", "error", put("outputs.0.axes.2.size", 64), "maps.y has a halo and a size of its own: refer to an axis of the input", id="fixed-output"),
    pytest.param("maps", "error", put("outputs.0.axes.2.halo", 32), "maps.y has a halo of 32 and its input a least size of 64: expected more than both halos; make it larger", id="large-halo"),
    pytest.param("maps", "error", put("outputs.0.axes.3.halo", 20), "maps.x has a halo of 20 and its input steps of 16: expected both halos together to be a multiple of the step", id="odd-halo"),
    pytest.param("labels", "error", drop_axis("outputs", 1), "labels has no channel axis and is left out where tiles are used: add one", id="no-channel"),
    pytest.param("labels", "error", put("outputs.0.test_tensor", None), "labels has no test_tensor, without which nothing can be tested", id="no-test"),
    pytest.param("labels", "error", replace("out.npy", npy(np.ones((1, 1, 64, 80), np.int32))), "the test tensor of labels is int32: expected int64", id="test-type"),
    pytest.param("labels", "error", replace("out.npy", npy(np.zeros((1, 1, 64, 80), np.int64))), "the test tensor of labels is 0 everywhere, which is refused: take an image with something in it", id="test-zero"),
    pytest.param("labels", "warning", put("config.bioimageio", None), "labels has no tolerance of its own, and defaults differ between versions: write one under config.bioimageio.reproducibility_tolerance with output_ids", id="no-tolerance"),
    pytest.param("labels", "warning", tolerance(output_ids="any_discrete_output"), "labels has no tolerance of its own, and defaults differ between versions: write one under config.bioimageio.reproducibility_tolerance with output_ids", id="tolerance-of-all"),
    pytest.param("labels", "error", tolerance(absolute_tolerance=1e-3), "tolerances of labels are 0 relative and 0.001 absolute: expected 0 and 0, since it is of whole numbers", id="labels-tolerance"),
    pytest.param("maps", "error", tolerance(relative_tolerance=0.05), "tolerances of maps are 0.05 relative and 100 elements in a million: expected at most 0.01 and 5000", id="relative"),
    pytest.param("maps", "error", tolerance(mismatched_elements_per_million=30000), "tolerances of maps are 0.001 relative and 30000 elements in a million: expected at most 0.01 and 5000", id="elements"),
    pytest.param("maps", "error", tolerance(relative_tolerance="much"), "tolerances of maps are inf relative and 100 elements in a million: expected at most 0.01 and 5000", id="words"),
    pytest.param("maps", "error", tolerance(relative_tolerance=10**400), "tolerances of maps are inf relative and 100 elements in a million: expected at most 0.01 and 5000", id="many-digits"),
    pytest.param("maps", "warning", NO_PARENT, "weights without a parent are onnx, torchscript: expected one; write parent: pytorch_state_dict for those made of it", id="parents"),
    pytest.param("maps", "error", put("weights.torchscript.pytorch_version", "2.7.0+cpu"), "torchscript weights are of pytorch_version 2.7.0+cpu: expected the plain version, such as '2.7.0'", id="local-version"),
    pytest.param("maps", "error", put("weights.torchscript.pytorch_version", 2.7), "torchscript weights are of pytorch_version 2.7: expected the plain version, such as '2.7.0'", id="number-version"),
    pytest.param("maps", "error", put("weights.onnx.opset_version", None), "onnx weights have no opset_version: write that of the file", id="no-opset"),
]
FORMAT = [
    pytest.param("maps", "error", both(double("outputs"), put("outputs.1.id", "maps")), "2 tensors have the id maps: rename one", id="same-id"),
    pytest.param("labels", "error", put("outputs.0.id", "My-Labels"), "a tensor has the id 'My-Labels': expected a name in lower case, of at most 32 letters, digits and _", id="odd-id"),
    pytest.param("labels", "error", put("outputs.0.axes.3.id", "y"), "axes of labels are batch, channel, y, y: expected each once", id="same-axis"),
    pytest.param("labels", "error", put("weights", {}), "there are no weights of a known format: export them", id="no-weights"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", {"min": 16}), "raw.y has a size from 16 on without a step: write min and step", id="no-step"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", None), "raw.y has no size: write one", id="no-size"),
    pytest.param("labels", "error", put("outputs.0.axes.2.size.axis_id", "z"), "labels.y is as large as raw.z, which has no size of its own: refer to an axis that has", id="lost-reference"),
    pytest.param("labels", "error", put("outputs.0.axes.2.size", {"tensor_id": "labels", "axis_id": "x"}), "labels.y is as large as labels.x, which has no size of its own: refer to an axis that has", id="chain"),
    pytest.param("qupath", "error", put("outputs.0.axes.2.unit", "nanometer"), "instance_segmentation.y and raw.y have different units: write the same", id="units"),
    pytest.param("labels", "error", replace("raw.npy", npy(np.ones((64, 80), np.float32))), "the test tensor of raw is 64 x 80 and has 4 axes in rdf.yaml: expected one size for each", id="test-axes"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", {"min": 16, "step": 5}), "the test tensor of raw is 1 x 1 x 64 x 80, which is not what rdf.yaml says of y: expected another size there", id="test-size"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", {"min": 65, "step": 1}), "the test tensor of raw is 1 x 1 x 64 x 80, which is not what rdf.yaml says of y: expected another size there", id="test-small"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", 80), "the test tensor of raw is 1 x 1 x 64 x 80, which is not what rdf.yaml says of y: expected another size there", id="test-fixed"),
    pytest.param("labels", "error", put("outputs.0.axes.2.scale", 2), "the test tensor of labels is 1 x 1 x 64 x 80, which is not what rdf.yaml says of y: expected another size there", id="test-output"),
    pytest.param("labels", "error", labels_onnx(opset=16), "opset_version is 17 and the ONNX file has 16: write that of the file", id="opset"),
    pytest.param("labels", "error", replace("net.onnx", onnx([("y", INT64, None), ("z", INT64, None)])), "the ONNX file has 2 outputs and rdf.yaml describes 1: describe all of them", id="onnx-outputs"),
    pytest.param("labels", "error", labels_onnx(given=()), "the ONNX file has 0 inputs and rdf.yaml describes 1: describe all of them", id="onnx-inputs"),
    pytest.param("labels", "error", replace("net.onnx", onnx([("y", INT64, (1, "y", "x"))])), "y is 1 x y x x in the ONNX file, which is not what rdf.yaml says of labels: describe the axes in the order of the file", id="onnx-axes"),
    pytest.param("labels", "error", replace("net.onnx", onnx([("y", INT64, ("b", 2, "y", "x"))])), "y is b x 2 x y x x in the ONNX file, which is not what rdf.yaml says of labels: describe the axes in the order of the file", id="onnx-channels"),
    pytest.param("labels", "warning", put("weights.onnx.sha256", None), "net.onnx without a sha256, so damage is not noticed: write it", id="hash"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", "large"), "inputs.0.axes.2.size: Input should be a valid dictionary or instance of Size: see the description of the format, model 0.5, and export the package again", id="words"),
    pytest.param("labels", "error", put("outputs", []), "outputs: is empty: see the description of the format, model 0.5, and export the package again", id="no-outputs"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", 0), "inputs.0.axes.2.size: is 0 or in steps of 0: see the description of the format, model 0.5, and export the package again", id="zero"),
    pytest.param("labels", "error", put("inputs.0.axes.2.size", {"min": 4, "step": 1, "tensor_id": "a", "axis_id": "b"}), "inputs.0.axes.2.size: is no number, no min and step, and no tensor_id and axis_id: see the description of the format, model 0.5, and export the package again", id="two-sizes"),
    pytest.param("labels", "error", put("outputs.0.id", "a\nb"), "outputs.0.id: holds what cannot be printed: see the description of the format, model 0.5, and export the package again", id="line-break"),
    pytest.param("labels", "error", put("format_version", "0.4.10"), "format_version: String should match pattern '^0\\.5\\.\\d{1,4}$': see the description of the format, model 0.5, and export the package again", id="format-04"),
    pytest.param("labels", "error", put("type", "dataset"), "type: Input should be 'model': see the description of the format, model 0.5, and export the package again", id="dataset"),
]
# fmt: on


def changed(kind, change, folder):
    world = make(kind)
    change(world)
    return world.write(folder)


@pytest.mark.parametrize(("kind", "severity", "change", "message"), JDLL)
def test_fiji(kind, severity, change, message, tmp_path):
    folder = changed(kind, change, tmp_path / "package")
    assert of("JDLL", folder) == [Finding("JDLL", severity, message)]


@pytest.mark.parametrize(("kind", "severity", "change", "message"), ILASTIK)
def test_ilastik(kind, severity, change, message, tmp_path):
    folder = changed(kind, change, tmp_path / "package")
    assert of("ilastik", folder) == [Finding("ilastik", severity, message)]


@pytest.mark.parametrize(("kind", "severity", "change", "message"), QUPATH)
def test_qupath(kind, severity, change, message, tmp_path):
    folder = changed(kind, change, tmp_path / "package")
    assert of("QuPath", folder) == [Finding("QuPath", severity, message)]


@pytest.mark.parametrize(("kind", "severity", "change", "message"), CORE)
def test_bioimageio_core(kind, severity, change, message, tmp_path):
    folder = changed(kind, change, tmp_path / "package")
    assert of("bioimageio.core", folder) == [Finding("bioimageio.core", severity, message)]


@pytest.mark.parametrize(("kind", "severity", "change", "message"), FORMAT)
def test_what_contradicts_itself(kind, severity, change, message, tmp_path):
    folder = changed(kind, change, tmp_path / "package")
    assert lint_package(folder, ()) == [Finding("format", severity, message)]


def of(consumer, folder):
    """Findings for one program, and those of the format where they stand in its way."""
    return [f for f in lint_package(folder, [consumer]) if f.consumer == consumer]


def test_a_step_must_divide_the_least_size(tmp_path):
    size = put("inputs.0.axes.2.size", {"min": 24, "step": 16})
    found = of("JDLL", changed("embeddings", size, tmp_path / "package"))
    sentence = (
        "raw.y is at least 24 in steps of 16: expected a least size that is a multiple of the step"
    )
    assert found[0] == Finding("JDLL", "error", sentence)


@pytest.mark.parametrize("at", [0, 1])
def test_ilastik_needs_batch_and_channels_on_both_sides(at, tmp_path):
    found = of("ilastik", changed("maps", drop_axis("inputs", at), tmp_path / "package"))
    kind = ("batch", "channel")[at]
    axes = ("channel, y, x", "batch, y, x")[at]
    assert [f.message for f in found] == [
        f"raw has no {kind} axis: expected one; declare it",
        f"axes are {axes} in raw and batch, channel, y, x in maps: "
        "expected the same, or nothing is shown",
    ]


def test_ilastik_shows_images_and_volumes_alone(tmp_path):
    index = put("inputs.0.axes.3", {"type": "index", "id": "x", "size": 80})
    found = [f.message for f in of("ilastik", changed("maps", index, tmp_path / "package"))]
    assert found[:2] == [
        "raw has 1 axes of space: expected two or three",
        "raw has an index axis, which no image has: leave it out",
    ]


@pytest.mark.parametrize(("channels", "fits"), [(12, True), (13, False)])
def test_a_tile_of_a_volume_fits_into_a_message_or_not(channels, fits, tmp_path):
    """128 pixels a side are 8 MiB a channel, and a message has less than 100."""
    world = make("maps")
    for side in ("inputs", "outputs"):
        z = copy.deepcopy(world.words[side][0]["axes"][2]) | {"id": "z"}
        world.words[side][0]["axes"].insert(2, z)
        for axis in world.words[side][0]["axes"][2:]:
            if side == "inputs":
                axis["size"] = {"min": 128, "step": 16}
            else:
                axis["size"] = {"tensor_id": "raw", "axis_id": axis["id"]}
    names = [f"c{n}" for n in range(channels)]
    world.put("outputs.0.axes.1.channel_names", names)
    world.files["net.onnx"] = onnx([("y", FLOAT32, None)], given=[("x", FLOAT32, None)])
    found = of("ilastik", world.write(tmp_path / "package"))
    errors = [f.message for f in found if f.severity == "error"]
    assert errors == (
        []
        if fits
        else [
            "a tile of 128 x 128 x 128 has 109051904 bytes in maps, and a message less than "
            "104857600: give fewer channels or a smaller least size"
        ]
    )


@pytest.mark.parametrize(("size", "same"), [(64, True), (32, False)])
def test_ilastik_takes_fixed_sizes_that_are_equal(size, same, tmp_path):
    fixed = both(
        put("inputs.0.axes.2.size", 64),
        put("outputs.0.axes.2.size", size),
        replace("out.npy", npy(np.full((1, 3, size, 80), 0.5, np.float32))),
    )
    found = [f.message for f in of("ilastik", changed("maps", fixed, tmp_path / "package"))]
    sentence = (
        "maps.y is not as large as raw.y, which shows zeros or shifts the result: "
        "give an output of the size of the input and refer to it"
    )
    assert found == ([] if same else [sentence])


def test_a_tile_grows_by_steps_until_a_side_is_long_enough(tmp_path):
    """From 64 by 64 in steps of 96 and 16, five steps make 544 by 144."""
    world = make("maps")
    world.put("inputs.0.axes.2.size.step", 96)
    world.put("outputs.0.axes.1.channel_names", [f"c{n}" for n in range(400)])
    found = [f.message for f in of("ilastik", world.write(tmp_path / "package"))]
    assert (
        "a tile of 544 x 144 has 125337600 bytes in maps, and a message less than 104857600: "
        "give fewer channels or a smaller least size"
    ) in found


@pytest.mark.parametrize(("length", "fits"), [(4, False), (5, True), (128, True), (129, False)])
def test_names_have_5_to_128_letters(length, fits, tmp_path):
    found = of("bioimageio.core", changed("labels", put("name", "n" * length), tmp_path / "p"))
    assert (found == []) is fits


def test_sizes_that_are_not_known_make_no_tile(tmp_path):
    unknown = put("inputs.0.axes.2.size", {"min": 64})
    many = put("outputs.0.axes.1.channel_names", [f"c{n}" for n in range(9999)])
    found = of("ilastik", changed("maps", both(unknown, many), tmp_path / "package"))
    assert not any("a tile of" in f.message for f in found)


def test_qupath_opens_a_folder(zip_folder, tmp_path):
    packed = zip_folder(make("qupath").write(tmp_path / "package"), tmp_path / "packed.zip")
    sentence = "packed.zip is a zip: unpack it, since a folder is opened"
    assert lint_package(packed, ["QuPath"]) == [Finding("QuPath", "warning", sentence)]


def test_folder_zip_and_description_give_the_same(zip_folder, tmp_path):
    folder = changed("labels", put("id", None), tmp_path / "package")
    packed = zip_folder(folder, tmp_path / "packed.zip")
    for place in (folder, str(folder), folder / "rdf.yaml", packed):
        assert lint_package(place, ["JDLL"]) == lint_package(folder, ["JDLL"]) != []
        assert choose_consumers(place) == ("JDLL", "bioimageio.core")


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("labels", put("outputs.0.data.type", "float32"), ("JDLL", "bioimageio.core")),
        ("maps", put("outputs.0.data.type", "uint8"), ("JDLL", "bioimageio.core")),
        (
            "maps",
            put("outputs.0.axes.1.channel_names", ["Boundary", "Interior"]),
            ("ilastik", "bioimageio.core"),
        ),
        ("maps", put("outputs", 5), ("bioimageio.core",)),
    ],
)
def test_a_package_is_for_what_its_outputs_suit(kind, change, expected, tmp_path):
    world = make(kind)
    change(world)
    world.files["net.onnx"] = onnx([("y", FLOAT32, None)])
    world.words["outputs"] = [] if world.words["outputs"] == 5 else world.words["outputs"]
    assert choose_consumers(world.write(tmp_path / "package")) == expected


# --- damage


def refused(folder):
    with pytest.raises(PackageError) as error:
        lint_package(folder, CONSUMERS)
    return str(error.value)


def test_a_package_must_be_there(tmp_path):
    assert refused(tmp_path / "none.zip") == (
        f"{tmp_path / 'none.zip'}: no such package: expected a folder or a zip"
    )


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "raw.npy", "README.md", "cover.png"])
def test_every_file_is_the_one_that_is_stated(name, tmp_path):
    folder = make("labels").write(tmp_path / "package")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b"?")
    assert refused(folder).endswith("the file was changed after export; export again")
    (folder / name).unlink()
    assert refused(folder) == (
        f"{folder / name}: cannot be read (No such file or directory): "
        "the package is incomplete; copy or export it again"
    )


@pytest.mark.parametrize("source", ["https://example.org/net.onnx", "../net.onnx", "/net.onnx"])
def test_files_lie_in_the_package(source, tmp_path):
    world = make("labels")
    folder = world.write(tmp_path / "package")
    world.words["weights"]["onnx"]["source"] = source
    (folder / "rdf.yaml").write_text(yaml.safe_dump(world.words))
    assert refused(folder) == (
        f"{folder}: names the file {source!r}: expected a path inside the package"
    )


def test_a_package_without_its_onnx_file_is_one_for_others(tmp_path):
    folder = changed("labels", both(put("weights.onnx", None)), tmp_path / "package")
    assert lint_package(folder, ["JDLL"]) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no zip", "is no TorchScript file (File is not a zip file): the weights are damaged; "),
        (None, "is no TorchScript file: it holds 0 files of code, expected some with at most "),
    ],
)
def test_damaged_torchscript_is_refused(content, reason, tmp_path):
    world = make("labels")
    if content is None:
        file = io.BytesIO()
        zipfile.ZipFile(file, "w").close()
        content = file.getvalue()
    world.files["net.pt"] = content
    folder = world.write(tmp_path / "package")
    assert refused(folder).startswith(f"{folder / 'net.pt'}: {reason}")


def test_torchscript_of_too_much_code_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "_MOST_CODE_BYTES", 10)
    folder = make("labels").write(tmp_path / "package")
    assert "it holds 1 files of code, expected some with at most 10 bytes" in refused(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOF: reading magic string, expected 8 bytes got 0"),
        (npy(np.array(["a"])), "numbers of type <U1"),
        (npy(np.array([None])), "numbers of type object"),
        (npy(np.zeros((0, 3))), "0 numbers for the shape (0, 3)"),
        (npy(np.zeros(3))[:-8], "2 numbers for the shape (3,)"),
    ],
)
def test_damaged_test_tensors_are_refused(content, reason, tmp_path):
    folder = changed("labels", replace("raw.npy", content), tmp_path / "package")
    assert refused(folder) == (
        f"{folder / 'raw.npy'}: is no NPY file of numbers ({reason}): "
        "the test tensor is damaged; copy or export it again"
    )


JUNK = [
    None, True, -1, 0, 2**40, "@huge@", 1.5, float("nan"), float("inf"), "", "x", "raw", "y" * 1000, "\n",
    [], [1], {}, {"a": 1}, {"source": "README.md"}, {"min": 1}, {"min": 3, "step": 2},
    {"tensor_id": "raw", "axis_id": "y"}, "space", "index", "int64", b"\xff", "1e400", [[]],
    datetime.date(2026, 1, 1),
]  # fmt: skip


def dump(words):
    """Write a description; a number of too many digits to be written is put in as text."""
    return yaml.safe_dump(words).replace("'@huge@'", "0x1" + 5000 * "0")


def places(value):
    """Every mapping and list within a value."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from places(part)


@pytest.mark.uncounted
def test_any_change_of_words_ends_in_findings_or_in_our_error(tmp_path):
    chance = random.Random(0)
    worlds = {kind: make(kind) for kind in SUITS}
    folders = {kind: world.write(tmp_path / kind) for kind, world in worlds.items()}
    ends, sentences = {"findings": 0, "refused": 0}, []
    for _ in range(1000):
        kind = chance.choice(list(worlds))
        words = copy.deepcopy(worlds[kind].words)
        for _ in range(chance.choice((1, 1, 2, 4))):
            place = chance.choice([p for p in places(words) if p])
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if chance.random() < 0.3:
                del place[key]
            else:
                place[key] = copy.deepcopy(chance.choice(JUNK))
        path = folders[kind] / "rdf.yaml"
        path.write_text(dump(words))
        try:
            report = Report.of(folders[kind], CONSUMERS if chance.random() < 0.8 else ())
        except PackageError as error:
            ends["refused"] += 1
            sentences.append(str(error))
            continue
        ends["findings"] += 1
        for finding in report.findings:
            assert finding.message.isprintable()
            assert len(finding.message) < 1000
        json.loads(report.to_json())
    assert all(sentence.isprintable() for sentence in sentences)
    assert ends["findings"] > 500
    assert ends["refused"] > 15


@pytest.mark.uncounted
def test_any_test_tensor_ends_in_findings_or_in_our_error(tmp_path):
    chance = random.Random(0)
    world = make("labels")
    for entry in (world.words["inputs"][0], world.words["outputs"][0]):
        del entry["test_tensor"]["sha256"]
    folder = world.write(tmp_path / "package")
    ends, sentences = 0, []
    for _ in range(300):
        for name in ("raw.npy", "out.npy"):
            content = bytearray(world.files[name])
            for _ in range(chance.randrange(3)):
                content[chance.randrange(128)] = chance.randrange(256)
            (folder / name).write_bytes(content)
        try:
            ends += len(lint_package(folder, CONSUMERS)) > 0
        except PackageError as error:
            sentences.append(str(error))
    assert all("is no NPY file of numbers" in sentence for sentence in sentences)
    assert ends > 20
    assert len(sentences) > 20


# --- reports


def test_a_report_is_a_table_and_json(tmp_path):
    from rich.console import Console

    folder = changed("labels", both(put("id", None), put("tags", [])), tmp_path / "package")
    report = Report.of(folder, ())
    assert (report.errors, report.consumers) == (1, ("JDLL", "bioimageio.core"))
    assert report.summary == "errors: 1, warnings: 1, for JDLL, bioimageio.core"
    console = Console(width=120, file=io.StringIO())
    console.print(report.table())
    rows = [line.strip("│ ").split("│") for line in console.file.getvalue().splitlines()]
    shown = [[cell.strip() for cell in row] for row in rows if len(row) == 3]
    assert shown == [
        ["format", "", "nothing"],
        ["JDLL", "error", "id is missing beside a config, which ends in an error: write an id"],
        [
            "bioimageio.core",
            "warning",
            "tags not filled in, which the zoo reports: fill them in",
        ],
    ]
    words = json.loads(report.to_json())
    assert words["consumers"] == ["JDLL", "bioimageio.core"]
    assert words["errors"] == 1
    assert [Finding(**entry) for entry in words["findings"]] == list(report.findings)


def test_reading_a_package_needs_neither_torch_nor_onnx():
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'bioimageio'): sys.modules[name] = None\n"
        "from spoco_zoo.lint import lint_package\n"
        f"print(len(lint_package({str(ROOT / 'weights' / 'nuclei-2d')!r}, ['bioimageio.core'])))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
