"""Sums and ranks of parts against NumPy's of the whole, in every dtype that images have."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spoco_zoo.intensities import find_moments, find_percentiles, sum_rows

quick = settings(max_examples=60, deadline=None)
DTYPES = ["u1", "i1", "u2", "i2", "i4", "u4", "f2", "f4", "f8", ">u2", ">f4"]


def answer(asking, parts):
    """Put every question to every part until the answer is known; it and the count of questions."""
    asked = 0
    question = next(asking)
    try:
        while True:
            asked += 1
            first, *others = [question(part) for part in parts]
            question = asking.send(sum(others, start=first))
    except StopIteration as end:
        return end.value, asked


@st.composite
def images(draw):
    kind = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(1, 2)), *draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    if kind.kind == "f":
        most = 64.0 if kind.itemsize == 2 else 2.0**30
        elements = st.floats(-most, most, width=8 * kind.itemsize)
    else:
        elements = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    return draw(arrays.arrays(kind, shape, elements=elements))


@quick
@given(images())
def test_moments_are_those_of_numpy(pixels):
    count = pixels[0].size
    (means, deviations), _ = answer(find_moments(len(pixels), count, pixels.dtype), [pixels])
    wide = pixels.reshape(len(pixels), -1).astype(np.float64)
    np.testing.assert_allclose(means, wide.mean(axis=1), rtol=1e-12, atol=1e-6)
    np.testing.assert_allclose(deviations, wide.std(axis=1), rtol=1e-9, atol=1e-6)


@quick
@given(images(), st.lists(st.floats(0, 100), min_size=1, max_size=3))
def test_percentiles_are_those_of_numpy(pixels, percentiles):
    count = pixels[0].size
    found, asked = answer(find_percentiles(len(pixels), count, pixels.dtype, percentiles), [pixels])
    wide = pixels.reshape(len(pixels), -1).astype(np.float64)
    np.testing.assert_allclose(
        found, np.percentile(wide, percentiles, axis=1), rtol=1e-9, atol=1e-9
    )
    # 16 bits a look
    assert asked == max(pixels.dtype.itemsize // 2, 1)


@quick
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_sums_are_not_rounded(numbers):
    rows = np.array(numbers)[None, :, None]
    assert sum_rows(rows, None)[0] == sum(map(Fraction, numbers))


@pytest.mark.parametrize("kind", DTYPES)
def test_the_order_of_parts_changes_no_bit(kind):
    random = np.random.default_rng(0)
    pixels = (random.normal(60, 20, (1, 64, 33)).clip(0, 120)).astype(kind)
    asked = [
        answer(find_moments(1, pixels[0].size, pixels.dtype), parts)[0].tobytes()
        for parts in (
            [pixels],
            np.array_split(pixels, 5, axis=1),
            np.array_split(pixels, 7, axis=1)[::-1],
        )
    ]
    assert len(set(asked)) == 1
