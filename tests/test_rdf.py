"""Descriptions of 0.4 and 0.5 say the same things in two ways, and nothing is guessed."""

from pathlib import Path

import pytest

from spoco_zoo.errors import PackageError
from spoco_zoo.operations import EnsureDtype, FixedZeroMeanUnitVariance, ScaleLinear, ScaleRange
from spoco_zoo.operations import ZeroMeanUnitVariance as Zmuv
from spoco_zoo.rdf import Axis, Reference, parse_description

PLACE = Path("rdf.yaml")
FLOAT = EnsureDtype(id="ensure_dtype", dtype="float32")


def weights():
    return {"onnx": {"source": "net.onnx", "opset_version": 17, "sha256": "0" * 64}}


def new_words(**image):
    axes = [
        {"type": "batch"},
        {"type": "channel", "channel_names": ["a", "b"]},
        {"type": "space", "id": "y", "size": {"min": 64, "step": 16}},
        {"type": "space", "id": "x", "size": 128, "scale": 0.5},
    ]
    spaces = [
        {"type": "space", "id": i, "size": {"tensor_id": "image", "axis_id": i}, "halo": 8}
        for i in "yx"
    ]
    return {
        "type": "model",
        "format_version": "0.5.4",
        "name": "New",
        "inputs": [{"id": "image", "axes": axes, "data": {"type": "uint8"}} | image],
        "outputs": [{"id": "out", "axes": [*axes[:2], *spaces]}],
        "weights": weights(),
    }


def old_words(*preprocessing, **more):
    image = {"name": "image", "axes": "bcyx", "data_type": "uint8"}
    image |= {"shape": {"min": [1, 2, 64, 64], "step": [0, 0, 16, 32]}}
    image |= {"preprocessing": list(preprocessing)}
    output = {"name": "out", "axes": "bcyx", "data_type": "float32", "halo": [0, 0, 8, 4]}
    shape = {"reference_tensor": "image", "scale": [1, None, 1, 2], "offset": [0, 1.5, 0, -4]}
    return {
        "format_version": "0.4.10",
        "name": "Old",
        "inputs": [image | more],
        "outputs": [output | {"shape": shape}],
        "weights": weights(),
    }


def refused(words):
    with pytest.raises(PackageError) as error:
        parse_description(PLACE, words)
    return str(error.value)


def test_a_description_of_format_5_is_read():
    found = parse_description(PLACE, new_words(pad={"mode": "constant", "value": 3}))
    assert (found.name, found.onnx_name, found.sha256) == ("New", "net.onnx", "0" * 64)
    image, out = found.inputs[0], found.outputs[0]
    assert image.axes == (
        Axis("batch", "batch"),
        Axis("channel", "channel", 2, 0, channel_names=("a", "b")),
        Axis("y", "space", 64, 16),
        Axis("x", "space", 128, 0, scale=0.5),
    )
    assert (image.pad, image.pad_value) == ("constant", 3)
    assert image.operations == (EnsureDtype(id="ensure_dtype", dtype="uint8"),)
    assert out.operations == (FLOAT,)
    assert out.pad == "symmetric"
    assert out.axes[2] == Axis("y", "space", 1, None, 8, follows=Reference("image", "y", 0))


def test_a_description_of_format_4_is_read():
    found = parse_description(PLACE, old_words())
    image, out = found.inputs[0], found.outputs[0]
    assert image.axes == (
        Axis("batch", "batch"),
        Axis("channel", "channel", 2, 0, channel_names=("channel0", "channel1")),
        Axis("y", "space", 64, 16),
        Axis("x", "space", 64, 32),
    )
    assert image.operations == (FLOAT,)  # as bioimageio.core does it
    assert out.channel_names == ("channel0", "channel1", "channel2")
    assert out.axes[2] == Axis("y", "space", 1, None, 8, follows=Reference("image", "y", 0))
    assert out.axes[3] == Axis(
        "x", "space", 1, None, 4, scale=0.5, follows=Reference("image", "x", -8)
    )


def test_sizes_of_format_4_may_be_fixed():
    words = old_words(shape=[1, 2, 100, 120])
    assert [(a.least, a.step) for a in parse_description(PLACE, words).inputs[0].axes[1:]] == [
        (2, 0),
        (100, 0),
        (120, 0),
    ]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (
            {"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "cyx"}},
            Zmuv(id="zero_mean_unit_variance", axes=("channel", "y", "x")),
        ),
        (
            {
                "name": "zero_mean_unit_variance",
                "kwargs": {"mode": "per_sample", "axes": "yx", "eps": 1e-3},
            },
            Zmuv(id="zero_mean_unit_variance", axes=("y", "x"), eps=1e-3),
        ),
        (
            {
                "name": "zero_mean_unit_variance",
                "kwargs": {"mode": "fixed", "axes": "yx", "mean": [1, 2], "std": [3, 4]},
            },
            FixedZeroMeanUnitVariance(
                id="fixed_zero_mean_unit_variance", mean=(1, 2), std=(3, 4), axis="channel"
            ),
        ),
        (
            {"name": "zero_mean_unit_variance", "kwargs": {"axes": "cyx", "mean": 1, "std": 3}},
            FixedZeroMeanUnitVariance(id="fixed_zero_mean_unit_variance", mean=1, std=3),
        ),
        (
            {
                "name": "scale_range",
                "kwargs": {
                    "mode": "per_sample",
                    "axes": "yx",
                    "max_percentile": 99,
                    "reference_tensor": "image",
                },
            },
            ScaleRange(id="scale_range", axes=("y", "x"), max_percentile=99),
        ),
        (
            {"name": "scale_linear", "kwargs": {"axes": "yx", "gain": [1, 2], "offset": 3}},
            ScaleLinear(id="scale_linear", gain=(1, 2), offset=3, axis="channel"),
        ),
        (
            {"name": "scale_linear", "kwargs": {"gain": 2}},
            ScaleLinear(id="scale_linear", gain=2),
        ),
    ],
)
def test_operations_of_format_4_become_those_of_5(operation, expected):
    assert parse_description(PLACE, old_words(operation)).inputs[0].operations[1:] == (
        expected,
        FLOAT,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "operation",
    [
        {"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "yx"}},
        {"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "cyx"}},
        {"name": "scale_linear", "kwargs": {"axes": "yx", "gain": [1, 2], "offset": [0, 1]}},
        {"name": "binarize", "kwargs": {"threshold": 3}},
        {"name": "clip", "kwargs": {"min": 3, "max": 5}},
        {"name": "sigmoid"},
    ],
)
def test_bioimageio_spec_turns_them_into_the_same(operation):
    pytest.importorskip("bioimageio.spec")
    from bioimageio.spec.model import v0_4, v0_5
    from pydantic import TypeAdapter

    from spoco_zoo.operations import parse_operation

    old = TypeAdapter(v0_4.PreprocessingDescr).validate_python(operation)
    told = v0_5._convert_proc(old, "bcyx").model_dump(mode="json", exclude_none=True)
    names = {"c": "channel"}
    kwargs = told.get("kwargs", {})
    kwargs = {
        key: [names.get(v, v) for v in value] if key == "axes" else value
        for key, value in kwargs.items()
    }
    kwargs |= {"axis": "channel"} if "axis" in kwargs else {}
    expected = parse_operation({"id": told["id"], "kwargs": kwargs}, ["channel", "y", "x"])
    assert parse_description(PLACE, old_words(operation)).inputs[0].operations[1] == expected


@pytest.mark.parametrize(
    ("operation", "problem"),
    [
        (
            {"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_dataset", "axes": "yx"}},
            "zero_mean_unit_variance: statistics of a data set are asked for and not given",
        ),
        (
            {"name": "zero_mean_unit_variance", "kwargs": {"axes": "yx"}},
            "zero_mean_unit_variance: mode fixed without mean and std",
        ),
        (
            {"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "zyx"}},
            "scale_range: axes zyx are not of bcyx",
        ),
        (
            {"name": "scale_linear", "kwargs": {"axes": "y", "gain": [1, 2]}},
            "scale_linear: numbers along more than one axis",
        ),
        ({"name": "scale_linear", "kwargs": 5}, "scale_linear: kwargs are no words and values"),
        ({"name": "gamma"}, "gamma: is no operation that is known here"),
    ],
)
def test_operations_that_would_be_guessed_are_refused(operation, problem):
    assert refused(old_words(operation)) == (
        f"rdf.yaml: tensor image: {problem}; expected what formats 0.4 and 0.5 describe"
    )


def test_an_unknown_operation_of_format_5_is_refused_by_name():
    assert refused(new_words(preprocessing=[{"id": "denoise"}])) == (
        "rdf.yaml: tensor image: denoise: is no operation that is known here; "
        "expected what formats 0.4 and 0.5 describe"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"format_version": "0.3.6"}, "model of format 0.3.6"),
        ({"format_version": "0.6.0"}, "model of format 0.6.0"),
        ({"type": "dataset"}, "dataset of format 0.5.4"),
    ],
)
def test_another_format_is_refused(words, told):
    assert refused(new_words() | words) == (
        f"rdf.yaml: is {told}: expected model of format 0.4 or 0.5; "
        "update the package with bioimageio update-format"
    )


@pytest.mark.parametrize(
    ("onnx", "problem"),
    [
        (
            None,
            "has no onnx weights, and no others are run, since they may hold code: "
            "add them with bioimageio add-weights, or ask the authors for them",
        ),
        (
            {"source": "net.onnx", "external_data": {"source": "net.data"}},
            "keeps weights beside net.onnx: expected one ONNX file with all of them; "
            "save it again without external data",
        ),
        (
            {"source": "https://example.org/net.onnx"},
            "weights are at https://example.org/net.onnx: nothing is downloaded; "
            "put the file into the package and name it in weights.onnx.source",
        ),
    ],
)
@pytest.mark.parametrize("make", [new_words, old_words])
def test_weights_that_are_not_one_file_of_the_package_are_refused(make, onnx, problem):
    words = make() | {"weights": {"torchscript": {"source": "net.pt"}, "onnx": onnx}}
    assert refused(words) == f"rdf.yaml: {problem}"


ABSURD = [0, -1, 2**21, 1.5, float("nan"), float("inf"), True, "64", [64], {"min": 0, "step": 1}]
ABSURD += [{"min": 1, "step": -1}, {"min": 1, "step": 2**17}, {"min": 2**70, "step": 1}, {}]


@pytest.mark.parametrize("size", ABSURD)
def test_absurd_sizes_are_refused(size):
    words = new_words()
    words["inputs"][0]["axes"][2]["size"] = size
    assert refused(words).startswith("rdf.yaml: inputs.0.axes.2.size.")


@pytest.mark.parametrize("halo", [-1, 2**17, 0.5, float("nan"), "8"])
def test_absurd_halos_are_refused(halo):
    words = new_words()
    words["outputs"][0]["axes"][2]["halo"] = halo
    assert refused(words).startswith("rdf.yaml: outputs.0.axes.2.halo: ")
    words = old_words()
    words["outputs"][0]["halo"][2] = halo
    assert refused(words).startswith("rdf.yaml: outputs.0.halo.2: ")


@pytest.mark.parametrize(
    ("tensor", "words", "problem"),
    [
        ("image", {"shape": [1, 2, 64]}, "axes bcyx have 3 sizes"),
        ("image", {"axes": "bccyx", "shape": [1, 2, 2, 4, 4]}, "two axes"),
        ("image", {"shape": {"min": [1, 2, 4, 4], "step": [0, 1, 1, 1]}}, "the count of its"),
        ("image", {"shape": [1, 5000, 4, 4]}, "the count of its channels"),
    ],
)
def test_shapes_of_format_4_that_cannot_be_are_refused(tensor, words, problem):
    assert refused(old_words(**words)).startswith(f"rdf.yaml: tensor {tensor}: {problem}")


@pytest.mark.parametrize("offset", [-1, 0, 1e30])
def test_an_output_of_format_4_of_impossible_length_is_refused(offset):
    words = old_words()
    words["outputs"][0]["shape"]["offset"][1] = offset
    assert refused(words).startswith("rdf.yaml: tensor out: axis channel has ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda axes: axes[1].pop("channel_names"), "the channel axis has no channel_names"),
        (lambda axes: axes[2].pop("id"), "two axes of batch, channel, x, x share a name"),
        (lambda axes: axes.append({"type": "batch", "id": "b"}), "there are two axes of type"),
    ],
)
def test_axes_that_cannot_be_are_refused(change, problem):
    words = new_words()
    change(words["inputs"][0]["axes"])
    assert refused(words).startswith(f"rdf.yaml: tensor image: {problem}")


def test_a_missing_word_is_named():
    words = new_words()
    del words["name"]
    assert refused(words) == (
        "rdf.yaml: name: field required; the description is wrong: ask its authors"
    )
