"""The label functions against slow loops and scipy, with ids up to the end of uint32."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo.labels import (
    count_ids,
    fill_from_neighbors,
    find_ids,
    find_pieces,
    look_up,
    relabel,
    remove_small,
    split_disconnected,
)

HIGHEST = 2**32 - 1

quick = settings(max_examples=80, deadline=None)
shapes = st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple)
ids = st.sampled_from([0, 0, 1, 2, 7, HIGHEST - 1, HIGHEST])


def arrays(shape, values, dtype):
    n = math.prod(shape)
    return st.lists(values, min_size=n, max_size=n).map(
        lambda flat: np.array(flat, dtype).reshape(shape)
    )


label_images = shapes.flatmap(lambda shape: arrays(shape, ids, np.uint32))
masks = shapes.flatmap(lambda shape: arrays(shape, st.booleans(), bool))
labels_and_mask = shapes.flatmap(
    lambda shape: st.tuples(arrays(shape, ids, np.uint32), arrays(shape, st.booleans(), bool))
)


def line(text):
    """Read a label image of one line, a digit for each pixel."""
    return np.array([[int(digit) for digit in text]], np.uint32)


def text(labels):
    return "".join(str(label) for label in labels.ravel())


def pixel_sets(labels):
    """The partition: a frozen set of flat pixel numbers for each instance."""
    return {frozenset(np.flatnonzero(labels == i).tolist()) for i in np.unique(labels) if i}


def is_numbered(labels):
    """Whether ids are 1..n in the order of their first pixels."""
    met = list(dict.fromkeys(labels[labels > 0].tolist()))
    return labels.dtype == np.uint32 and met == list(range(1, len(met) + 1))


def split_by_scipy(labels, structure):
    """Connected pieces of each instance, one by one."""
    pieces = set()
    for i in np.unique(labels):
        if i:
            pieces |= pixel_sets(ndimage.label(labels == i, structure)[0])
    return pieces


@quick
@given(label_images)
def test_relabel_numbers_in_the_order_of_first_pixels_and_keeps_the_partition(labels):
    new = relabel(labels)
    assert is_numbered(new)
    assert pixel_sets(new) == pixel_sets(labels)
    assert ((new == 0) == (labels == 0)).all()


@quick
@given(label_images, st.permutations([3, 11, 12, HIGHEST - 2, HIGHEST]))
def test_relabel_of_one_partition_is_one_image_whatever_the_ids_were(labels, names):
    new = dict(zip([1, 2, 7, HIGHEST - 1, HIGHEST], names, strict=True)) | {0: 0}
    renamed = np.vectorize(new.get, otypes=[np.uint32])(labels)
    assert (relabel(renamed) == relabel(labels)).all()
    assert (relabel(relabel(labels)) == relabel(labels)).all()


def test_relabel_takes_any_integers():
    expected = line("1012230")
    for dtype in (np.uint8, np.int16, np.dtype(">u4"), np.int64, np.uint64):
        assert (relabel(line("9093370").astype(dtype)) == expected).all()
    assert (relabel(np.array([[-1, 0, -1, 2**40, 2**40, 5, 0]])) == expected).all()
    assert (relabel(np.array([[7, 7], [3, 7]])) == [[1, 1], [2, 1]]).all()
    assert relabel(np.zeros((0, 4), np.uint32)).shape == (0, 4)


@quick
@given(label_images, st.integers(0, 12))
def test_remove_small_drops_those_below_and_only_those(labels, min_size):
    kept = remove_small(labels, min_size)
    assert is_numbered(kept)
    assert pixel_sets(kept) == {pixels for pixels in pixel_sets(labels) if len(pixels) >= min_size}


def test_an_instance_of_just_the_size_stays():
    assert text(remove_small(line("1110222204"), 3)) == "1110222200"
    assert text(remove_small(line("1110222204"), 4)) == "0000111100"


@quick
@given(label_images)
def test_split_disconnected_gives_the_pieces_that_scipy_finds(labels):
    pieces = split_disconnected(labels)
    assert is_numbered(pieces)
    cross = ndimage.generate_binary_structure(labels.ndim, 1)
    assert pixel_sets(pieces) == split_by_scipy(labels, cross)


def test_pieces_that_meet_at_a_corner_are_apart():
    assert (split_disconnected(np.eye(3, dtype=np.uint32)) == np.diag([1, 2, 3])).all()


def test_neighbours_whose_ids_differ_beyond_32_bits_stay_apart():
    labels = np.array([[1, 2**32 + 1, 2**32, 0]])
    assert text(split_disconnected(labels)) == "1230"


@quick
@given(masks)
def test_pieces_of_the_foreground_connect_over_corners(mask):
    pieces = find_pieces(mask)
    assert pieces.dtype == np.uint32
    assert ((pieces > 0) == mask).all()
    everything = np.ones((3,) * mask.ndim)
    assert pixel_sets(pieces) == split_by_scipy(mask, everything)
    assert set(np.unique(pieces)) - {0} == set(range(1, len(pixel_sets(pieces)) + 1))


def slow_fill(labels, foreground, reach):
    """The definition: every step, each open pixel takes the lowest id next to it."""
    grown = labels.copy()
    for _ in range(reach):
        before = grown.copy()
        for here in product(*map(range, labels.shape)):
            if before[here] or not foreground[here]:
                continue
            around = []
            for axis, by in product(range(labels.ndim), (-1, 1)):
                there = tuple(p + by * (n == axis) for n, p in enumerate(here))
                if all(0 <= p < size for p, size in zip(there, labels.shape, strict=True)):
                    around.append(before[there])
            grown[here] = min((i for i in around if i), default=0)
    return grown


@quick
@given(labels_and_mask, st.integers(0, 5))
def test_filling_is_that_of_its_definition(pair, reach):
    labels, foreground = pair
    filled = fill_from_neighbors(labels, foreground, reach)
    assert filled.dtype == np.uint32
    assert (filled == slow_fill(labels, foreground, reach)).all()


@quick
@given(labels_and_mask, st.integers(0, 5))
def test_filling_keeps_ids_stays_in_the_foreground_and_leaves_its_argument(pair, reach):
    labels, foreground = pair
    before = labels.copy()
    filled = fill_from_neighbors(labels, foreground, reach)
    assert (labels == before).all()
    assert not np.shares_memory(filled, labels)
    assert (filled[labels > 0] == labels[labels > 0]).all()
    assert not filled[(labels == 0) & ~foreground].any()


@pytest.mark.parametrize(
    ("labels", "foreground", "reach", "filled"),
    [
        ("100000000", "111111111", 3, "111100000"),  # so far and no farther
        ("100000000", "111011111", 9, "111000000"),  # never over a gap
        ("200000001", "111111111", 9, "222211111"),  # in the middle both arrive: the lower stays
        ("100000002", "111111111", 9, "111112222"),
        ("100000002", "111111111", 2, "111000222"),
        ("100000000", "111111111", 0, "100000000"),
        ("000000000", "111111111", 9, "000000000"),
        ("300000000", "000000000", 9, "300000000"),  # what is outside stays, and does not grow
        ("300000000", "011000000", 9, "333000000"),  # but may give
    ],
)
def test_filling_on_a_line(labels, foreground, reach, filled):
    assert text(fill_from_neighbors(line(labels), line(foreground) > 0, reach)) == filled


def test_filling_does_not_turn_a_corner_that_is_not_there():
    labels = np.array([[5, 0], [0, 0]], np.uint32)
    assert (fill_from_neighbors(labels, np.array([[1, 0], [0, 1]], bool), 9) == labels).all()


def test_the_highest_of_all_ids_grows_like_any_other():
    labels = np.array([[HIGHEST, 0, 0, 0, HIGHEST - 1]], np.uint32)
    filled = fill_from_neighbors(labels, np.ones((1, 5), bool), 9)
    assert filled.tolist() == [[HIGHEST, HIGHEST, HIGHEST - 1, HIGHEST - 1, HIGHEST - 1]]


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7)])
def test_no_function_changes_its_argument(shape):
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint32)
    labels.flags.writeable = False  # a write would raise
    assert relabel(labels).max() == 3
    assert remove_small(labels, labels.size).max() == 0
    assert split_disconnected(labels).max() > 3
    assert fill_from_neighbors(labels, labels == 0, 99).min() > 0


@given(data=st.data())
def test_counts_are_those_of_looking_at_each_id(data):
    shape = data.draw(st.tuples(st.integers(0, 6), st.integers(1, 9)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ids = random.integers(0, 5, shape).astype(np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spoco_zoo.labels._RUNS_AT_ONCE", data.draw(st.integers(1, 20)))
        firsts, sizes = count_ids(ids, 6)
        found = find_ids(ids, 6)
    for number in range(1, 7):
        place = np.flatnonzero(ids == number)
        assert firsts[number] == (place[0] if len(place) else ids.size)
        assert sizes[number] == len(place)
        assert found[number] == (len(place) > 0)
    assert not found[0]


def test_looking_up_may_go_into_the_ids_themselves():
    ids = np.arange(12, dtype=np.uint32).reshape(3, 4) % 5
    table = np.array([0, 7, 5, 3, 1], np.uint32)
    expected = table[ids]
    assert (look_up(table, ids) == expected).all()
    assert (look_up(table > 4, ids) == (expected > 4)).all()
    look_up(table, ids, out=ids)
    assert (ids == expected).all()
