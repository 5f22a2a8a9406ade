"""A pixel belongs to an outline when its centre is inside, and to one of two neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import spoco_zoo.polygons
from spoco_zoo.polygons import Ellipse, Outline, fill, fill_ellipse, fill_polygon, kind_of

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
quick = settings(max_examples=60, deadline=None)


def paint(filled, shape):
    """Put a mask of a part into the whole image."""
    (rows, columns), mask = filled
    whole = np.zeros(shape, bool)
    whole[rows, columns] = mask
    return whole


masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda s: arrays(bool, s))


@quick
@given(masks)
def test_the_outline_of_a_mask_gives_back_the_mask(trace, mask):
    rings = trace(mask)
    if rings:
        assert (paint(fill_polygon(rings, mask.shape), mask.shape) == mask).all()


@quick
@given(masks, st.data())
def test_so_it_does_a_part_of_the_image_at_a_time(trace, mask, data):
    rings = trace(mask)
    most = data.draw(st.integers(1, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoco_zoo.polygons, "_AT_ONCE", most)
        if rings:
            assert (paint(fill_polygon(rings, mask.shape), mask.shape) == mask).all()


def is_inside(x, y, ring):
    """Count the edges to the right of a point, one by one."""
    inside = False
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (y1 <= y) != (y2 <= y):
            inside ^= x <= x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return inside


# eighths are exact, so neither way of counting rounds where it matters
corners = st.integers(-40, 120).map(lambda n: n / 8)
polygons = st.lists(st.tuples(corners, corners), min_size=3, max_size=8).map(np.array)


@quick
@given(polygons)
def test_a_polygon_holds_the_pixels_whose_centre_is_inside(ring):
    found = paint(fill_polygon([ring], (9, 11)), (9, 11))
    for row, column in np.ndindex(9, 11):
        # a centre within rounding of an edge may fall either way
        sides = {is_inside(column + 0.5 + d, row + 0.5, ring) for d in (-1e-9, 0, 1e-9)}
        assert found[row, column] in sides


@quick
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 1000]))
def test_polygons_that_tile_the_plane_share_no_pixel_and_leave_none_out(seed, steps):
    from scipy.spatial import Delaunay

    random = np.random.default_rng(seed)
    points = np.round(random.uniform(0, 12, (20, 2)) * steps) / steps
    points = np.unique(np.vstack([points, [[-1, -1], [13, -1], [-1, 13], [13, 13]]]), axis=0)
    count = np.zeros((12, 12), int)
    for triangle in Delaunay(points).simplices:
        count += paint(fill_polygon([points[triangle]], (12, 12)), (12, 12))
    assert (count == 1).all()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1]])
def test_a_centre_on_an_edge_belongs_to_the_left_or_lower_neighbour(order):
    square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 2.5], [0.5, 2.5]])[order]
    found = paint(fill_polygon([square], (4, 4)), (4, 4))
    assert np.argwhere(found).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_a_ring_within_a_ring_is_a_hole():
    rings = [6.0 * SQUARE, 2.0 * SQUARE + 2]
    found = paint(fill_polygon(rings, (6, 6)), (6, 6))
    assert found.sum() == 32
    assert not found[2:4, 2:4].any()


def make_outline(*parts):
    return Outline("a", "instance", tuple((part,) for part in parts), None, None, None)


def test_parts_of_one_outline_are_put_together():
    # the box of the second part holds a pixel of the first that the part itself does not
    triangle = np.array([[6, 3], [6, 6], [3, 6]], float)
    beside = 3.0 * SQUARE + [50, 0]
    found = paint(fill(make_outline(3.0 * SQUARE + 1, triangle, beside), (8, 8)), (8, 8))
    assert found.sum() == 9 + 3
    assert found[1:4, 1:4].all()
    assert found[5, 4:6].all()
    over = make_outline(3.0 * SQUARE, 3.0 * SQUARE + 1)
    assert paint(fill(over, (8, 8)), (8, 8)).sum() == 9 + 9 - 4
    assert fill(make_outline(3.0 * SQUARE + [9, 1], beside), (8, 8))[1].size == 0


@quick
@given(st.floats(-5, 12), st.floats(-5, 12), st.floats(0.1, 15), st.floats(0.1, 15))
def test_an_ellipse_holds_the_pixels_whose_centre_is_inside(x, y, width, height):
    ellipse = Ellipse((x, y), (width, height))
    found = paint(fill_ellipse(ellipse, (9, 11)), (9, 11))
    row, column = np.mgrid[:9, :11] + 0.5
    down, right = (row - y) / (height / 2) - 1, (column - x) / (width / 2) - 1
    distance = down**2 + right**2
    sure = np.abs(distance - 1) > 1e-9
    assert (found == (distance <= 1))[sure].all()


def test_an_oval_in_a_square_of_ten_pixels_is_that_of_imagej():
    found = paint(fill_ellipse(Ellipse((0.0, 0.0), (10.0, 10.0)), (10, 10)), (10, 10))
    assert found.sum(axis=1).tolist() == [4, 8, 8, 10, 10, 10, 10, 8, 8, 4]


@pytest.mark.parametrize("size", [(0.0, 4.0), (4.0, 0.0), (-2.0, 3.0)])
def test_an_ellipse_without_an_inside_is_empty(size):
    assert not fill_ellipse(Ellipse((2.0, 2.0), size), (9, 9))[1].any()


@pytest.mark.parametrize(
    "move", [(-20.0, 0.0), (20.0, 0.0), (0.0, -20.0), (0.0, 20.0), (1e9, 1e9), (-1e9, 0.0)]
)
def test_what_lies_beside_the_image_is_nothing(move):
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], float) + move
    assert fill_polygon([square], (10, 10))[1].size == 0
    assert fill_ellipse(Ellipse(move, (10.0, 10.0)), (10, 10))[1].size == 0


def test_what_is_larger_than_the_image_fills_it():
    square = np.array([[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]])
    assert fill_polygon([square], (10, 12))[1].sum() == 120


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("", "instance"),
        ("Tumor: Positive", "instance"),
        ("my background", "instance"),
        ("BackGround", "background"),
        ("background*", "background"),
        ("Ignore*", "ignored"),
        ("ignore", "ignored"),
        ("Region*", None),
    ],
)
def test_the_class_says_what_an_outline_is(word, kind):
    assert kind_of(word) == kind
