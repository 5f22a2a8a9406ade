"""Laws of the simulated nuclei."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo.errors import SettingError
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

SMALL = NucleiSettings(radius_mean=4.0, density=0.2)


def touching_pairs(labels):
    pairs = set()
    for axis in range(labels.ndim):
        one = np.moveaxis(labels, axis, 0)[:-1]
        other = np.moveaxis(labels, axis, 0)[1:]
        meet = (one != other) & (one > 0) & (other > 0)
        pairs |= {frozenset(pair) for pair in zip(one[meet], other[meet], strict=True)}
    return pairs


worlds = st.builds(
    NucleiSettings,
    count=st.none() | st.integers(0, 12),
    density=st.floats(0, 1),
    radius_mean=st.floats(1, 8),
    radius_spread=st.floats(0, 1),
    elongation=st.floats(1, 3),
    irregularity=st.floats(0, 1),
    clustering=st.floats(0, 1),
    z_spacing=st.floats(0.5, 4),
    bit_depth=st.sampled_from([8, 16]),
)
shapes = st.lists(st.integers(1, 40), min_size=2, max_size=2) | st.lists(
    st.integers(1, 14), min_size=3, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 2**32), worlds)
def test_ids_are_consecutive_and_each_is_one_piece(shape, seed, world):
    image, labels = simulate_nuclei(shape, seed, world)
    assert image.shape == labels.shape == tuple(shape)
    assert image.dtype == (np.uint8 if world.bit_depth == 8 else np.uint16)
    assert labels.dtype == np.uint32
    n = int(labels.max())
    assert set(np.unique(labels)) - {0} == set(range(1, n + 1))
    assert all(ndimage.label(labels == label)[1] == 1 for label in range(1, n + 1))
    if world.count is not None:
        assert n <= world.count


@pytest.mark.parametrize("shape", [(64, 80), (12, 40, 40)])
def test_a_seed_makes_the_same_again_and_another_seed_does_not(shape):
    first, again, other = (simulate_nuclei(shape, seed, SMALL) for seed in (3, 3, 4))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("shape", [(96, 96), (20, 48, 48)])
def test_clustering_decides_whether_nuclei_touch(shape):
    together = simulate_nuclei(shape, 0, replace(SMALL, clustering=1.0, count=10))[1]
    apart = simulate_nuclei(shape, 0, replace(SMALL, clustering=0.0, count=10))[1]
    assert len(touching_pairs(together)) >= 5
    assert not touching_pairs(apart)


@pytest.mark.parametrize("shape", [(128, 128), (20, 48, 48)])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_nuclei_are_brighter_than_what_is_between_them(shape, bit_depth):
    image, labels = simulate_nuclei(shape, 1, replace(SMALL, bit_depth=bit_depth))
    inside, outside = image[labels > 0], image[labels == 0]
    assert inside.mean() > 3 * outside.mean()
    assert np.median(inside) > np.percentile(outside, 90)


def test_as_many_are_placed_as_asked_for_where_there_is_room():
    assert simulate_nuclei((128, 128), 0, replace(SMALL, count=20))[1].max() == 20
    assert simulate_nuclei((16, 16), 0, replace(SMALL, count=200))[1].max() < 20


def test_no_nuclei_leave_a_dark_image():
    image, labels = simulate_nuclei((64, 64), 0, NucleiSettings(count=0))
    assert not labels.any()
    assert image.max() < 20


def test_typical_nuclei_have_the_size_and_cover_that_were_asked_for():
    labels = simulate_nuclei((256, 256), 0)[1]
    radius = np.sqrt(np.bincount(labels.ravel())[1:] / np.pi)
    assert np.median(radius) == pytest.approx(10, rel=0.2)
    assert (labels > 0).mean() == pytest.approx(0.14, rel=0.3)


def test_nuclei_keep_their_shape_in_micrometers_when_slices_are_far_apart():
    world = NucleiSettings(
        count=1, radius_mean=8.0, z_spacing=4.0, elongation=1.0, radius_spread=0.0
    )
    for seed in range(50):
        labels = simulate_nuclei((9, 41, 41), seed, world)[1]
        (box,) = ndimage.find_objects(labels)
        if all(side.start > 0 and side.stop < n for side, n in zip(box, labels.shape, strict=True)):
            break
    depth, height, width = (side.stop - side.start for side in box)
    assert height == pytest.approx(width, abs=3)
    assert depth * 4 == pytest.approx(height, abs=6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"bit_depth": 12}, "bit_depth is 12, but must be 8 or 16"),
        ({"count": -1}, "count is -1, but must be 0 or more"),
        ({"clustering": 1.5}, "clustering is 1.5, but must be from 0 to 1"),
        ({"elongation": 0.5}, "elongation is 0.5, but must be 1 or more"),
        ({"texture": float("nan")}, "texture is nan, but must be 0 or more"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(words, sentence):
    with pytest.raises(SettingError) as error:
        NucleiSettings(**words)
    assert str(error.value) == sentence


@pytest.mark.parametrize("shape", [(8,), (8, 0), (1, 2, 3, 4)])
def test_a_shape_that_is_no_image_is_refused(shape):
    with pytest.raises(SettingError) as error:
        simulate_nuclei(shape, 0)
    assert (
        str(error.value) == f"shape is {shape}, but must be (y, x) or (z, y, x) of positive sizes"
    )
