"""What pixels answer in memory is what the definitions say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoco_zoo.pixels import HostPixels, Pixels

few = settings(max_examples=40, deadline=None)


@st.composite
def parts(draw):
    """An embedding in 2D or 3D, a mask, and places."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    embedding = random.normal(size=(draw(st.integers(1, 6)), *shape)).astype(np.float32)
    mask = random.random(shape) < 0.7
    places = np.flatnonzero(random.random(shape).ravel() < 0.5)
    return embedding, mask, places


@few
@given(parts())
def test_points_are_the_embeddings_of_places(part):
    embedding, _, places = part
    points = HostPixels(embedding).points(places)
    assert points.flags.c_contiguous
    assert (points == embedding.reshape(len(embedding), -1)[:, places].T).all()


@few
@given(parts(), st.integers(1, 5))
def test_squares_are_those_of_the_distance_from_the_own_centre(part, n):
    embedding, _, places = part
    random = np.random.default_rng(n)
    centers = random.normal(size=(n, len(embedding))).astype(np.float32)
    index = random.integers(0, n, len(places))
    pixels = HostPixels(embedding)
    squares = ((pixels.points(places) - centers[index]) ** 2).sum(axis=1)
    np.testing.assert_allclose(pixels.squares(places, index, centers), squares, rtol=1e-5)


@few
@given(parts())
def test_steps_are_to_the_nearer_neighbour_in_the_mask_on_the_worst_axis(part):
    embedding, mask, _ = part
    steps = HostPixels(embedding).steps(mask)
    for here in np.ndindex(mask.shape):
        worst = 0.0
        for axis in range(mask.ndim):
            gaps = []
            for by in (-1, 1):
                there = list(here)
                there[axis] += by
                inside = 0 <= there[axis] < mask.shape[axis]
                if inside and mask[here] and mask[tuple(there)]:
                    offset = embedding[(slice(None), *here)] - embedding[(slice(None), *there)]
                    gaps.append(np.linalg.norm(offset))
            worst = max(worst, min(gaps, default=0.0))
        assert steps[here] == pytest.approx(worst, rel=1e-5, abs=1e-6)


@few
@given(parts())
def test_a_crop_answers_as_the_cut_array_does(part):
    embedding, mask, _ = part
    box = tuple(slice(n // 3, max(n // 3 + 1, n - 1)) for n in mask.shape)
    crop, cut = HostPixels(embedding).crop(box), HostPixels(embedding[(slice(None), *box)].copy())
    places = np.arange(mask[box].size)
    assert crop.dim == len(embedding)
    assert (crop.points(places) == cut.points(places)).all()
    assert (crop.steps(mask[box]) == cut.steps(mask[box])).all()


def test_finite_numbers_are_finite_even_where_their_sum_is_not():
    embedding = np.full((2, 8, 8), np.finfo(np.float32).max)
    assert HostPixels(embedding).is_finite()
    for value in (np.nan, np.inf, -np.inf):
        broken = embedding.copy()
        broken[1, 3, 4] = value
        assert not HostPixels(broken).is_finite()


def test_pixels_in_memory_are_pixels():
    assert isinstance(HostPixels(np.zeros((1, 2, 2), np.float32)), Pixels)
