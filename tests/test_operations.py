"""Operations of the format: on paper, as bioimageio.core does them, or refused by name."""

import re

import numpy as np
import pytest

from spoco_zoo.errors import ImageError
from spoco_zoo.operations import apply_operations, ensure_dtype, parse_operation

AXES = ("batch", "channel", "y", "x")


def do(values, *operations, axes=AXES):
    parsed = [parse_operation({"id": name, "kwargs": kwargs}, axes) for name, kwargs in operations]
    return apply_operations(values, axes, parsed)


@pytest.fixture
def image():
    random = np.random.default_rng(0)
    channels = np.array([0, 500]).reshape(1, 2, 1, 1)
    return (random.gamma(2, 300, (1, 2, 13, 17)) + channels).astype(np.float32)


SAME_AS_CORE = [
    ("binarize", {"threshold": 600.0}),
    ("clip", {"min": 100.0, "max": 700.0}),
    ("clip", {"min": 100.0}),
    ("clip", {"max": 700.0}),
    ("clip", {"min_percentile": 5.0, "max_percentile": 95.0, "axes": ["channel", "y", "x"]}),
    ("clip", {"min_percentile": 5.0, "max_percentile": 95.0, "axes": ["y", "x"]}),
    ("ensure_dtype", {"dtype": "int32"}),
    ("fixed_zero_mean_unit_variance", {"mean": 500.0, "std": 20.0}),
    ("fixed_zero_mean_unit_variance", {"axis": "channel", "mean": [500, 900], "std": [2, 30]}),
    ("scale_linear", {"gain": 0.5, "offset": -3.0}),
    ("scale_linear", {"axis": "channel", "gain": [0.5, 2], "offset": [-3, 4]}),
    ("scale_range", {}),
    ("scale_range", {"axes": ["y", "x"]}),
    ("scale_range", {"axes": ["channel", "y", "x"], "min_percentile": 2, "max_percentile": 98.5}),
    ("scale_range", {"axes": ["batch", "channel", "y", "x"]}),
    ("sigmoid", {}),
    ("softmax", {"axis": "channel"}),
    ("softmax", {"axis": "x"}),
    ("zero_mean_unit_variance", {}),
    ("zero_mean_unit_variance", {"axes": ["y", "x"]}),
    ("zero_mean_unit_variance", {"axes": ["channel", "x"]}),
    ("zero_mean_unit_variance", {"axes": ["batch", "y", "x"]}),
]


def run_core(values, name, kwargs):
    """Do one operation as bioimageio.core does it."""
    from bioimageio.core import Sample, Tensor
    from bioimageio.core.proc_ops import get_proc
    from bioimageio.core.stat_calculators import compute_measures
    from bioimageio.spec.model import v0_5
    from pydantic import TypeAdapter

    words = {"id": name} | ({"kwargs": kwargs} if name != "sigmoid" else {})
    described = TypeAdapter(v0_5.PreprocessingDescr).validate_python(words)
    axes = [
        {"type": "batch"},
        {"type": "channel", "channel_names": ["a", "b"]},
        {"type": "space", "id": "y", "size": 13},
        {"type": "space", "id": "x", "size": 17},
    ]
    tensor = v0_5.InputTensorDescr.model_construct(
        id=v0_5.TensorId("image"), axes=TypeAdapter(list[v0_5.InputAxis]).validate_python(axes)
    )
    operation = get_proc(described, tensor)
    member = operation.input
    sample = Sample(members={member: Tensor.from_numpy(values, dims=AXES)}, stat={}, id="sample")
    sample.stat.update(compute_measures(operation.required_measures, [sample]))
    operation(sample)
    return np.asarray(sample.members[member].data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kwargs"), SAME_AS_CORE)
def test_every_operation_gives_what_bioimageio_core_gives(image, name, kwargs):
    pytest.importorskip("bioimageio.core")
    image = (image - 600) / 100 if name in ("sigmoid", "softmax") else image
    found, expected = do(image, (name, kwargs)), run_core(image, name, kwargs)
    assert found.dtype.kind == expected.dtype.kind
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=2e-5, atol=2e-5
    )


def test_a_threshold_for_each_channel_is_used_along_its_axis(image):
    # bioimageio.core 0.11 forgets the axis
    found = do(image, ("binarize", {"threshold": [600, 1100], "axis": "channel"}))
    assert (found[0, 0] == (image[0, 0] > 600)).all()
    assert (found[0, 1] == (image[0, 1] > 1100)).all()


def test_the_number_that_is_added_is_that_of_the_package(image):
    # bioimageio.core 0.11 adds 1e-6 whatever is said
    kwargs = {"axes": ["y", "x"], "eps": 0.1}
    plane = image[0, 1].astype(np.float64)
    found = do(image, ("zero_mean_unit_variance", kwargs))
    assert np.allclose(found[0, 1], (plane - plane.mean()) / (plane.std() + 0.1), rtol=1e-12)
    found = do(image, ("scale_range", kwargs))
    least, most = plane.min(), plane.max()
    assert np.allclose(found[0, 1], (plane - least) / (most - least + 0.1), rtol=1e-12)


def test_operations_come_one_after_the_other(image):
    # and statistics are those of what is there then; bioimageio.core 0.11 takes the raw image's
    found = do(
        image, ("clip", {"max": 600}), ("scale_range", {}), ("ensure_dtype", {"dtype": "uint8"})
    )
    clipped = np.minimum(image.astype(np.float64), 600)
    scaled = (clipped - clipped.min()) / (clipped.max() - clipped.min() + 1e-6)
    assert found.dtype == np.uint8
    assert (found == scaled.astype(np.uint8)).all()


def test_large_integers_keep_their_digits():
    values = np.array([[65534, 65535]], np.uint16)
    found = do(
        values, ("fixed_zero_mean_unit_variance", {"mean": 65534, "std": 1}), axes=("y", "x")
    )
    assert np.allclose(found, [[0, 1]], atol=1e-5)


def test_far_logits_are_no_warning():
    found = do(np.array([[-1e4, 1e4]]), ("sigmoid", {}), axes=("y", "x"))
    assert (found == [[0, 1]]).all()
    found = do(np.array([[-1e4, 1e4]]), ("softmax", {"axis": "x"}), axes=("y", "x"))
    assert (found == [[0, 1]]).all()


def test_no_operation_changes_its_argument(image):
    before = image.copy()
    for name, kwargs in SAME_AS_CORE:
        do(image, (name, kwargs))
    assert (image == before).all()


@pytest.mark.parametrize(
    ("values", "dtype", "told"),
    [
        ([-1.0, 5.0], "uint8", "holds values from -1 to 5"),
        ([0, 256], "uint8", "holds values from 0 to 256"),
        ([0.0, np.nan], "int32", "holds values from nan to nan"),
        ([-129], "int8", "holds values from -129 to -129"),
    ],
)
def test_values_that_a_type_cannot_hold_are_not_wrapped(values, dtype, told):
    with pytest.raises(ImageError) as error:
        ensure_dtype(np.array(values), dtype)
    room = np.iinfo(dtype)
    assert str(error.value) == (
        f"{told}, and the package takes them as {dtype}: expected {room.min} to {room.max}; "
        "scale the image first"
    )


def test_values_that_a_type_can_hold_are_cut_to_it():
    assert (ensure_dtype(np.array([0.9, 255.9]), "uint8") == [0, 255]).all()
    assert ensure_dtype(np.zeros(0), "uint8").dtype == np.uint8


def test_numbers_for_another_count_of_channels_are_refused(image):
    with pytest.raises(ImageError) as error:
        do(image, ("scale_linear", {"gain": [1, 2, 3], "axis": "channel"}))
    assert str(error.value) == (
        "has 2 places along channel, and the package gives 3 numbers for them: expected as many"
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"id": "blur"}, "blur: is no operation that is known here"),
        ({}, "None: is no operation that is known here"),
        ({"id": ["clip"]}, "['clip']: is no operation that is known here"),
        (
            {"id": "custom", "kwargs": {"source": "a.py"}},
            "custom: is no operation that is known here",
        ),
        ({"id": "clip", "kwargs": [1]}, "clip: kwargs are no words and values"),
        ({"id": "clip"}, "clip: expected at most one lower and one upper end, and one at least"),
        (
            {"id": "clip", "kwargs": {"min": 1, "min_percentile": 2}},
            "clip: expected at most one lower and one upper end, and one at least",
        ),
        (
            {"id": "clip", "kwargs": {"min": 2, "max": 1}},
            "clip: the lower end 2 is not below the upper, 1",
        ),
        (
            {"id": "scale_range", "kwargs": {"min_percentile": 60, "max_percentile": 50}},
            "scale_range: min_percentile 60 is not below max_percentile, 50",
        ),
        (
            {"id": "scale_range", "kwargs": {"reference_tensor": "other"}},
            "scale_range: reference_tensor: extra inputs are not permitted",
        ),
        ({"id": "scale_range", "kwargs": {"axes": ["z"]}}, "scale_range: there is no axis z"),
        ({"id": "softmax", "kwargs": {"axis": "c"}}, "softmax: there is no axis c"),
        (
            {"id": "scale_linear", "kwargs": {"gain": [1, 2]}},
            "scale_linear: several numbers and no axis",
        ),
        (
            {"id": "scale_linear", "kwargs": {"gain": float("nan")}},
            "scale_linear: gain.float: input should be a finite number",
        ),
        (
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1}},
            "fixed_zero_mean_unit_variance: std: field required",
        ),
        (
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1, "std": 0}},
            "fixed_zero_mean_unit_variance: std.constrained-float: "
            "input should be greater than or equal to 0.000001",
        ),
        (
            {"id": "ensure_dtype", "kwargs": {"dtype": "float16"}},
            "ensure_dtype: dtype: input should be 'float32', 'float64', 'uint8', 'int8', "
            "'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64' or 'bool'",
        ),
    ],
)
def test_what_is_unknown_or_impossible_is_refused_by_name(words, problem):
    with pytest.raises(ValueError, match=rf"^{re.escape(problem)}$"):
        parse_operation(words, AXES)
