"""What blocks share: all of it is there for who takes it, and nothing of it is kept for long."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoco_zoo.layout import Layout
from spoco_zoo.margins import (
    SharedMargins,
    across_faces,
    count_embedded,
    count_shared,
    gives,
    plan_order,
)
from spoco_zoo.tiling import inner_box, widen

MARGINS = (2, 3)


def wide(layout, number):
    return widen(layout.box(number), MARGINS, layout.shape)


def parts_of(box, rows):
    """Ranges along the first axis, as a block embeds them one after the other."""
    for start in range(box[0].start, box[0].stop, rows):
        yield (slice(start, min(start + rows, box[0].stop)), *box[1:])


def share(layout, image, folder, rows, order):
    """Let blocks see their parts; what each had, and how many pixels it embedded."""
    for number in order:
        shared = SharedMargins(folder, layout, MARGINS, number)
        embedded, right = 0, True
        for box in parts_of(wide(layout, number), rows):
            into = [np.full((2, *(s.stop - s.start for s in box)), np.nan, np.float32)]
            left = shared.take(box, into)
            if left is not None:
                into[0][(slice(None), *inner_box(box, left))] = image[(slice(None), *left)]
                embedded += math.prod(s.stop - s.start for s in left)
            shared.give(box, into)
            right &= np.array_equal(into[0], image[(slice(None), *box)])
        shared.forget()
        yield number, embedded, right


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.sampled_from([6, 10]), st.sampled_from([8, 13])),
    st.integers(2, 50),
    st.integers(1, 4),
)
def test_every_block_sees_the_image_in_any_order(tmp_path_factory, shape, block, rows, workers):
    layout = Layout(shape, block)
    image = np.random.default_rng(0).random((2, *shape), np.float32)
    folder = tmp_path_factory.mktemp("shared")
    order = plan_order(layout, workers)
    assert sorted(order) == list(range(len(layout)))
    for _, _, right in share(layout, image, folder, rows, order):
        assert right
    assert not list(folder.glob("*/*.zip"))
    backwards = share(layout, image, folder / "b", rows, order[::-1])
    assert all(right for _, _, right in backwards)


@pytest.mark.parametrize("rows", [4, 10, 100])
def test_blocks_embed_what_was_counted_and_little_twice(tmp_path, rows):
    layout = Layout((60, 80), (60, 16))  # blocks as long as the image, as they are planned
    image = np.zeros((2, 60, 80), np.float32)
    order = plan_order(layout, 1)
    total = 0
    for number, embedded, _ in share(layout, image, tmp_path, rows, order):
        assert embedded == count_embedded(layout, MARGINS, number)
        total += embedded
    assert total == 60 * 80


def test_in_two_dimensions_little_is_embedded_twice(tmp_path):
    layout = Layout((100, 120), (20, 24))
    image = np.zeros((2, 100, 120), np.float32)
    found = list(share(layout, image, tmp_path, 1000, plan_order(layout, 1)))
    for number, embedded, _ in found:
        assert embedded == count_embedded(layout, MARGINS, number)
    alone = sum(math.prod(s.stop - s.start for s in wide(layout, n)) for n in range(len(layout)))
    total = sum(embedded for _, embedded, _ in found)
    assert total < 1.05 * 100 * 120 < alone


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 4, 5), (1, 6, 7), (2, 1, 1)])
def test_who_takes_has_neighbours_that_give_and_comes_after_them(counts):
    layout = Layout(tuple(10 * n for n in counts), (10, 10, 10))
    for number in range(len(layout)):
        others = across_faces(layout, number)
        assert all(gives(layout, other) != gives(layout, number) for other in others)
    for workers in (1, 2, 5):
        place = {number: n for n, number in enumerate(plan_order(layout, workers))}
        assert len(place) == len(layout)
        last_giver = max(n for number, n in place.items() if gives(layout, number))
        for number, n in place.items():
            if not gives(layout, number) and n < last_giver:
                assert all(place[other] <= n - workers for other in across_faces(layout, number))


def test_only_some_rows_of_blocks_lie_in_files_at_a_time():
    margins = (0, 3, 3)
    few = Layout((10, 100, 100), (10, 10, 10))
    many = Layout((10, 1000, 100), (10, 10, 10))
    held = [count_shared(layout, margins, plan_order(layout, 1)) for layout in (few, many)]
    assert 0 < held[0] == held[1]


def test_what_is_damaged_is_not_taken(tmp_path):
    layout = Layout((20, 40), (20, 20))
    image = np.ones((2, 20, 40), np.float32)
    giver, taker = (SharedMargins(tmp_path, layout, MARGINS, n) for n in (0, 1))
    giver.give(wide(layout, 0), [image[(slice(None), *wide(layout, 0))]])
    box = wide(layout, 1)
    into = [np.zeros((2, 20, 23), np.float32)]
    assert taker.take(box, into) == (slice(0, 20), slice(23, 40))
    (path,) = tmp_path.glob("*/*.zip")
    content = path.read_bytes()
    for place in [*range(0, 200, 3), *range(200, len(content), 41)]:  # names and headers, too
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert taker.take(box, into) == box


def test_files_of_blocks_that_were_cut_smaller_are_not_left(tmp_path):
    layout = Layout((20, 40), (20, 20))
    giver = SharedMargins(tmp_path, layout, MARGINS, 0)
    whole = np.zeros((2, 20, 23), np.float32)
    for columns in (slice(0, 19), slice(19, 23)):
        giver.give((slice(0, 20), columns), [whole[:, :, columns]])
    assert not list(tmp_path.glob("*/*"))
    giver.give((slice(0, 20), slice(0, 23)), [whole])
    assert len(list(tmp_path.glob("*/*"))) == 1
