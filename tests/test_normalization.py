"""Normalization against the formulas of the bioimage.io format and against its own software."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.normalization import (
    FixedZeroMeanUnitVariance,
    Normalization,
    ScaleLinear,
    ScaleRange,
    ZeroMeanUnitVariance,
    fit_affine,
    fit_affine_in_parts,
)

quick = settings(max_examples=60, deadline=None)

OPERATIONS = [
    ZeroMeanUnitVariance(),
    ZeroMeanUnitVariance(eps=0.01),
    FixedZeroMeanUnitVariance(mean=(101.5,), std=(7.25,)),
    FixedZeroMeanUnitVariance(mean=(101.5, -3.0), std=(7.25, 0.3)),
    ScaleLinear(gain=(0.1, 3.0), offset=(5.0, -7.0)),
    ScaleLinear(gain=(0.1,)),
    ScaleRange(),
    ScaleRange(min_percentile=1, max_percentile=99.8, eps=1e-3),
]
DTYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64]


def noise(dtype, shape=(2, 24, 20), seed=0):
    values = np.random.default_rng(seed).normal(100, 30, shape).clip(0, 255)
    return values.astype(dtype)


def two_of(numbers):
    """One number a channel, where one stands for both."""
    return tuple(numbers) if len(numbers) == 2 else tuple(numbers) * 2


def by_formula(pixels, operation):
    """What the format says, in float64, one channel after the other."""
    out = np.empty(pixels.shape)
    for c, channel in enumerate(pixels.astype(np.float64)):
        match operation:
            case ZeroMeanUnitVariance(eps=eps):
                out[c] = (channel - channel.mean()) / (channel.std() + eps)
            case FixedZeroMeanUnitVariance(mean=mean, std=std):
                out[c] = (channel - two_of(mean)[c]) / two_of(std)[c]
            case ScaleLinear(gain=gain, offset=offset):
                out[c] = channel * two_of(gain)[c] + two_of(offset)[c]
            case ScaleRange(min_percentile=low, max_percentile=high, eps=eps):
                bottom, top = np.percentile(channel, low), np.percentile(channel, high)
                out[c] = (channel - bottom) / (top - bottom + eps)
    return out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 24, 20), (2, 6, 8, 10)])
def test_each_operation_is_that_of_the_format(operation, dtype, shape):
    pixels = noise(dtype, shape)
    normalized = fit_affine(pixels, operation).apply(pixels)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, by_formula(pixels, operation), rtol=1e-6, atol=1e-6)


@quick
@given(
    st.sampled_from(OPERATIONS),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.data(),
)
def test_applying_to_a_part_equals_applying_to_the_whole(operation, dtype, space, data):
    pixels = noise(dtype, (2, *space))
    affine = fit_affine(pixels, operation)
    sides = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in space]
    part = (slice(None), *(slice(a, b) for a, b in sides))
    assert affine.apply(pixels[part]).tobytes() == affine.apply(pixels)[part].tobytes()


# bioimageio.core 0.11 does not hand on another eps than its own
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if getattr(o, "eps", 1e-6) == 1e-6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bioimageio_core_comes_to_the_same(operation, dtype):
    pytest.importorskip("bioimageio.core")
    from bioimageio.core import Sample, Tensor, proc_ops
    from bioimageio.core.common import MemberId
    from bioimageio.core.stat_calculators import compute_measures
    from bioimageio.spec.model import v0_5

    words = operation.model_dump(mode="json", exclude={"id"})
    lists = {word: list(two_of(value)) for word, value in words.items() if type(value) is list}
    where = {"axis": "channel"} if lists else {"axes": ["y", "x"]}
    name = operation.id.title().replace("_", "")
    described = getattr(v0_5, f"{name}Descr")(id=operation.id, kwargs=words | lists | where)
    raw = MemberId("raw")
    judge = getattr(proc_ops, name).from_proc_descr(described, raw)
    pixels = noise(dtype)
    tensor = Tensor(pixels.astype(np.float32), dims=("channel", "y", "x"))
    sample = Sample(members={raw: tensor}, stat={}, id=None)
    sample.stat.update(compute_measures(judge.required_measures, [sample]))
    judge(sample)
    theirs = sample.members[raw].data.to_numpy()
    ours = fit_affine(pixels, operation).apply(pixels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("operation", [ZeroMeanUnitVariance(), ScaleRange()])
def test_a_small_contrast_on_a_bright_ground_keeps_its_digits(operation, dtype):
    values = np.random.default_rng(0).normal(60000, 3, (1, 128, 128))
    pixels = values.round().astype(dtype)
    normalized = fit_affine(pixels, operation).apply(pixels)
    exact = by_formula(pixels, operation)
    np.testing.assert_allclose(normalized, exact, atol=1e-6)
    if operation.id == "zero_mean_unit_variance":
        assert abs(normalized.mean(dtype=np.float64)) < 1e-6
        assert normalized.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("operation", [ZeroMeanUnitVariance(), ScaleRange()])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_constant_image_becomes_zero(operation, dtype, value):
    pixels = np.full((2, 30, 30), value, dtype)
    # a warning would be an error
    assert not fit_affine(pixels, operation).apply(pixels).any()


def test_each_channel_has_its_own_numbers():
    pixels = np.stack([noise(np.float32)[0], 50 * noise(np.float32)[0] - 900])
    first, second = fit_affine(pixels, ZeroMeanUnitVariance()).apply(pixels)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_the_image_is_left_as_it_is():
    pixels = noise(np.uint16)
    before = pixels.copy()
    fit_affine(pixels, ScaleRange()).apply(pixels)
    assert (pixels == before).all()
    assert pixels.dtype == np.uint16


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        (
            FixedZeroMeanUnitVariance(mean=(1.0, 2.0), std=(1.0,)),
            "normalization mean has 2 numbers for 3 channels: expected one, or one a channel",
        ),
        (
            FixedZeroMeanUnitVariance(mean=(1.0,), std=()),
            "normalization std has 0 numbers for 3 channels: expected one, or one a channel",
        ),
        (
            ScaleLinear(gain=(1.0,) * 4),
            "normalization gain has 4 numbers for 3 channels: expected one, or one a channel",
        ),
        (
            ScaleLinear(offset=(1.0, 2.0)),
            "normalization offset has 2 numbers for 3 channels: expected one, or one a channel",
        ),
    ],
)
def test_a_wrong_count_of_numbers_is_refused(operation, sentence):
    with pytest.raises(SettingError) as error:
        fit_affine(np.zeros((3, 4, 5), np.uint8), operation)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("words", "place", "reason"),
    [
        ({"id": "zero_mean_unit_variance", "eps": 0}, "eps", "Input should be greater than 0"),
        (
            {"id": "zero_mean_unit_variance", "esp": 1e-6},
            "esp",
            "Extra inputs are not permitted",
        ),
        (
            {"id": "fixed_zero_mean_unit_variance", "mean": [1], "std": [0]},
            "std",
            "Input should be greater than or equal to 0.000001",
        ),
        (
            {"id": "scale_linear", "gain": [float("nan")]},
            "gain",
            "Input should be a finite number",
        ),
        (
            {"id": "scale_range", "max_percentile": 100.5},
            "max_percentile",
            "Input should be less than or equal to 100",
        ),
        (
            {"id": "scale_range", "min_percentile": 99, "max_percentile": 1.5},
            "scale_range",
            "Value error, min_percentile is 99: expected less than max_percentile, which is 1.5",
        ),
    ],
)
def test_impossible_settings_are_refused(words, place, reason):
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Normalization).validate_python(words)
    (problem,) = error.value.errors()
    assert place in problem["loc"]
    assert problem["msg"] == reason


@pytest.mark.parametrize("operation", OPERATIONS)
def test_settings_survive_json(operation):
    adapter = TypeAdapter(Normalization)
    assert adapter.validate_json(adapter.dump_json(operation)) == operation


@quick
@given(st.sampled_from(OPERATIONS), st.sampled_from(DTYPES), st.integers(0, 99), st.data())
def test_parts_give_the_numbers_of_the_whole(operation, dtype, seed, data):
    pixels = noise(dtype, (2, 9, 7, 5), seed)
    pixels[1, 2:] = pixels[1, 0]  # many equal values
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), max_size=4)))
    parts = [p for part in np.split(pixels, cuts, axis=1) for p in np.array_split(part, 3, axis=2)]
    parts = data.draw(st.permutations(parts))
    whole = fit_affine(pixels, operation)
    found = fit_affine_in_parts(lambda: parts, operation, pixels.shape, pixels.dtype)
    assert found.gain.tobytes() == whole.gain.tobytes()
    assert found.offset.tobytes() == whole.offset.tobytes()
