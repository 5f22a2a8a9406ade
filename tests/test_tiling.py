"""Laws of tiles on random geometries, in images and volumes."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoco_zoo.errors import SettingError
from spoco_zoo.tiling import inner_box, plan_tiles

quick = settings(max_examples=80, deadline=None)


@st.composite
def axes(draw):
    """Size, write, halo, overlap and multiple_of of one axis, at most 8 tiles long."""
    step = draw(st.integers(1, 8))
    write = step * draw(st.integers(1, 4))
    size = draw(st.integers(1, 8 * write))
    return size, write, draw(st.integers(0, 20)), draw(st.integers(0, 10)), step


geometries = st.lists(axes(), min_size=2, max_size=2) | st.lists(axes(), min_size=3, max_size=3)


def plan(geometry):
    return list(plan_tiles(*zip(*geometry, strict=True)))


@quick
@given(geometries)
def test_write_boxes_partition_the_array(geometry):
    owners = np.zeros([size for size, *_ in geometry], int)
    for tile in plan(geometry):
        owners[tile.write] += 1
    assert (owners == 1).all()


@quick
@given(geometries)
def test_boxes_nest_within_the_array(geometry):
    for tile in plan(geometry):
        for write, keep, read, (size, *_) in zip(
            tile.write, tile.keep, tile.read, geometry, strict=True
        ):
            assert 0 <= read.start <= keep.start <= write.start
            assert write.start < write.stop <= keep.stop <= read.stop <= size


@quick
@given(geometries)
def test_reads_start_and_end_on_the_grid_of_the_network(geometry):
    for tile in plan(geometry):
        for read, (size, _, _, _, step) in zip(tile.read, geometry, strict=True):
            assert read.start % step == 0
            assert read.stop % step == 0 or read.stop == size


@quick
@given(geometries)
def test_halo_and_overlap_are_whole_unless_the_array_ends(geometry):
    for tile in plan(geometry):
        for write, keep, read, (size, _, halo, overlap, step) in zip(
            tile.write, tile.keep, tile.read, geometry, strict=True
        ):
            assert write.start - keep.start == overlap or keep.start == 0
            assert keep.stop - write.stop == overlap or keep.stop == size
            assert halo <= keep.start - read.start < halo + step or read.start == 0
            assert halo <= read.stop - keep.stop < halo + step or read.stop == size


@quick
@given(geometries)
def test_tiles_are_of_the_written_size_and_come_last_axis_fastest(geometry):
    starts = [tuple(side.start for side in tile.write) for tile in plan(geometry)]
    assert starts == list(product(*(range(0, size, write) for size, write, *_ in geometry)))
    for tile in plan(geometry):
        for side, (size, write, *_) in zip(tile.write, geometry, strict=True):
            assert side.stop - side.start == write or side.stop == size


@quick
@given(geometries)
def test_an_array_cut_and_put_back_is_the_same_array(geometry):
    shape = [size for size, *_ in geometry]
    whole = np.arange(np.prod(shape)).reshape(shape)
    copy = np.zeros_like(whole)
    for tile in plan(geometry):
        seen = whole[tile.read]
        assert (seen[inner_box(tile.read, tile.keep)] == whole[tile.keep]).all()
        copy[tile.write] = seen[inner_box(tile.read, tile.write)]
    assert (copy == whole).all()


def test_a_tile_in_numbers():
    # the margin of 6 + 2 pixels is rounded up to 8; the array ends at 40
    *_, tile = plan_tiles((16, 40), (16, 16), (6, 6), (2, 2), (8, 8))
    assert tile.write == (slice(0, 16), slice(32, 40))
    assert tile.keep == (slice(0, 16), slice(30, 40))
    assert tile.read == (slice(0, 16), slice(24, 40))


def test_inner_box_counts_from_the_outer_one():
    outer, inner = (slice(8, 32), slice(0, 20)), (slice(10, 30), slice(0, 7))
    assert inner_box(outer, inner) == (slice(2, 22), slice(0, 7))


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        ((32, 30), "write size 30 on axis 1 is not a multiple of 16: use 16 or 32"),
        ((33, 32), "write size 33 on axis 0 is not a multiple of 16: use 32 or 48"),
        ((7, 32), "write size 7 on axis 0 is not a multiple of 16: use 16"),
        ((32, 0), "write size 0 on axis 1 is not a multiple of 16: use 16"),
        ((-16, 32), "write size -16 on axis 0 is not a multiple of 16: use 16"),
    ],
)
def test_write_off_the_grid_names_the_axis_and_the_ways_out(write, sentence):
    with pytest.raises(SettingError) as error:
        list(plan_tiles((64, 64), write, (8, 8), (0, 0), (16, 16)))
    assert str(error.value) == sentence
