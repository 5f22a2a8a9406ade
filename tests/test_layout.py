"""Blocks: of whole windows and whole chunks, each pixel in one of them."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spoco_zoo.errors import SettingError
from spoco_zoo.layout import Layout, plan_chunks, plan_layout
from spoco_zoo.recipe import Recipe


@st.composite
def geometries(draw):
    n_axes = draw(st.sampled_from([2, 3]))
    sizes = st.tuples(*[st.integers(1, 60)] * n_axes)
    return draw(sizes), draw(st.tuples(*[st.integers(8, 20)] * n_axes)), draw(sizes)


@settings(deadline=None, max_examples=50)
@given(geometries(), st.integers(0, 30))
def test_blocks_are_whole_windows_and_whole_chunks_and_cover_each_pixel_once(geometry, reach):
    shape, window, wish = geometry
    recipe = Recipe(window=window, fill_reach=reach)
    chunks = plan_chunks(shape, recipe, wish)
    layout = plan_layout(shape, recipe, chunks, wish)
    owners = np.zeros(shape, int)
    for box in layout.boxes():
        owners[box] += 1
        for side, n, w, c in zip(box, shape, window, chunks, strict=True):
            assert side.start % w == 0
            assert side.start % c == 0
            assert side.stop == n or side.stop % w == side.stop % c == 0
    assert (owners == 1).all()
    assert len(layout) == len(layout.boxes())
    # an instance that grows ends in the next block
    assert all(b >= reach for b in layout.block)


@settings(deadline=None, max_examples=50)
@given(geometries())
def test_neighbors_share_a_face_edge_or_corner_and_know_each_other(geometry):
    shape, _, block = geometry
    assume(np.prod([-(-n // b) for n, b in zip(shape, block, strict=True)]) < 60)
    layout = Layout(shape, block)
    for number in range(len(layout)):
        around = {other: offset for offset, other in layout.around(number)}
        for other in range(len(layout)):
            sides = list(zip(layout.box(number), layout.box(other), strict=True))
            is_near = all(a.start <= b.stop and b.start <= a.stop for a, b in sides)
            assert (other in around) == (is_near and other != number)
        for other, offset in around.items():
            assert layout.neighbor(number, offset) == other
            assert layout.neighbor(other, [-o for o in offset]) == number


def test_blocks_are_numbered_in_reading_order():
    layout = Layout((5, 7), (3, 4))
    assert layout.counts == (2, 2)
    assert layout.boxes() == [
        (slice(0, 3), slice(0, 4)),
        (slice(0, 3), slice(4, 7)),
        (slice(3, 5), slice(0, 4)),
        (slice(3, 5), slice(4, 7)),
    ]
    assert layout.neighbor(0, (-1, 0)) is None
    assert layout.neighbor(1, (0, 1)) is None
    assert layout.neighbor(1, (1, -1)) == 2


def test_chunks_are_about_a_thousand_pixels_a_side_and_128_in_volumes():
    assert plan_chunks((9000, 9000), Recipe()) == (1024, 1024)
    assert plan_chunks((900, 900, 900), Recipe()) == (128, 128, 128)
    assert plan_chunks((9000, 9000), Recipe(window=(300, 300))) == (900, 900)
    assert plan_chunks((9000, 9000), Recipe(), (512, 4096)) == (512, 1024)
    assert plan_chunks((100, 9000), Recipe()) == (256, 1024)


def test_chunks_that_never_meet_windows_are_refused():
    with pytest.raises(SettingError) as error:
        plan_layout((5000, 5000), Recipe(window=(250, 250)), (1024, 1024), (1024, 1024))
    assert str(error.value) == (
        "chunks of 1024 pixels and windows of 250 first meet after 128000: "
        "expected chunks that are a multiple of 250"
    )
