"""Outlines have the areas of their masks, are valid polygons, and give the masks back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shapely.geometry import MultiPolygon, Polygon
from skimage.measure import perimeter

import spoco_zoo.outlines
from spoco_zoo.measurements import measure
from spoco_zoo.outlines import trace_objects
from spoco_zoo.polygons import fill_polygon

quick = settings(max_examples=100, deadline=None)
images = hnp.arrays(
    np.uint32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 0, 1, 2, 70_000]),
)
volumes = hnp.arrays(
    np.uint32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    elements=st.sampled_from([0, 1, 2]),
)


def trace(labels):
    return list(trace_objects(labels, measure(labels).boxes()))


def shape_of(traced):
    return MultiPolygon([Polygon(polygon[0], polygon[1:]) for polygon in traced.polygons])


def mask_of(traced, shape):
    """The pixels of all polygons, by the rule of those who read outlines."""
    mask = np.zeros(shape, bool)
    for polygon in traced.polygons:
        box, part = fill_polygon([ring.astype(float) for ring in polygon], shape)
        mask[box] |= part
    return mask


@quick
@given(images)
def test_outlines_are_valid_and_give_the_masks_back(labels):
    found = trace(labels)
    assert [traced.label for traced in found] == np.unique(labels[labels > 0]).tolist()
    for traced in found:
        mask, shape = labels == traced.label, shape_of(traced)
        assert shape.is_valid
        assert shape.area == mask.sum() == traced.area
        assert (mask_of(traced, labels.shape) == mask).all()
        for polygon in shape.geoms:
            assert polygon.exterior.is_ccw  # as RFC 7946 has it, where y points up
            assert not any(hole.is_ccw for hole in polygon.interiors)


@quick
@given(images)
def test_rings_turn_at_each_corner_and_meet_none_of_their_own(labels):
    for traced in trace(labels):
        for ring in (ring for polygon in traced.polygons for ring in polygon):
            sides = np.roll(ring, -1, axis=0) - ring
            is_upright = sides[:, 0] == 0
            assert (is_upright != (sides[:, 1] == 0)).all()
            assert (is_upright != np.roll(is_upright, -1)).all()
            assert len(np.unique(ring, axis=0)) == len(ring)


@quick
@given(images)
def test_perimeters_are_those_of_scikit_image_and_hulls_those_of_shapely(labels):
    for traced in trace(labels):
        mask = np.pad(labels == traced.label, 1)
        assert traced.perimeter == pytest.approx(perimeter(mask, 4))
        assert traced.hull_area == pytest.approx(shape_of(traced).convex_hull.area)


@quick
@given(volumes)
def test_a_volume_is_traced_slice_by_slice(labels):
    found = trace(labels)
    again = np.zeros_like(labels)
    for traced in found:
        again[traced.z][mask_of(traced, labels.shape[1:])] = traced.label
    assert (again == labels).all()
    ids = [(i, z) for i in np.unique(labels[labels > 0]) for z in range(len(labels))]
    with_pixels = [(i, z) for i, z in ids if (labels[z] == i).any()]
    assert [(traced.label, traced.z) for traced in found] == with_pixels


@pytest.mark.parametrize(
    ("rows", "pieces", "holes"),
    [
        ([[1]], 1, 0),
        ([[1, 1], [1, 1]], 1, 0),
        ([[1, 0], [0, 1]], 2, 0),  # pixels that share a corner are two pieces
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1]], 1, 1),
        ([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], 1, 2),  # holes that touch
        ([[1, 1, 1], [1, 0, 1], [1, 1, 0]], 1, 1),  # a hole that touches the outside
        ([[1, 1, 0], [1, 0, 1], [1, 1, 1]], 1, 1),
        ([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1] * 5], 2, 1),
    ],
)
def test_pieces_and_holes(rows, pieces, holes):
    (traced,) = trace(np.array(rows))
    assert len(traced.polygons) == pieces
    assert sum(len(polygon) - 1 for polygon in traced.polygons) == holes
    assert shape_of(traced).is_valid


def test_an_object_in_the_hole_of_another_is_left_to_itself():
    labels = np.ones((5, 5), np.uint8)
    labels[1:4, 1:4] = 2
    ring, inner = trace(labels)
    assert (ring.area, inner.area) == (16, 9)
    assert [len(polygon) for polygon in ring.polygons] == [2]
    assert inner.polygons[0][0].tolist() == [[1, 1], [4, 1], [4, 4], [1, 4]]


def test_objects_come_in_the_order_that_was_asked_for():
    labels = np.arange(1, 7).reshape(2, 3)
    boxes = measure(labels).boxes()[::-1]
    assert [traced.label for traced in trace_objects(labels, boxes)] == [6, 5, 4, 3, 2, 1]


class Stored:
    """Labels that are cut like an array, and remember how much was read."""

    def __init__(self, labels):
        self.labels, self.shape, self.most = labels, labels.shape, 0

    def __getitem__(self, box):
        self.most = max(self.most, self.labels[box].size)
        return self.labels[box]


@pytest.mark.parametrize("read", [0, 100, 1 << 26])
@pytest.mark.parametrize("canvas", [1, 60, 1 << 22])
@pytest.mark.parametrize("shape", [(23, 31), (5, 9, 11)])
def test_parts_and_stores_change_nothing(monkeypatch, shape, canvas, read):
    labels = np.random.default_rng(0).integers(0, 9, shape).repeat(2, -1).repeat(2, -2)
    whole = trace(labels)
    boxes = measure(labels).boxes()
    monkeypatch.setattr(spoco_zoo.outlines, "_CANVAS", canvas)
    monkeypatch.setattr(spoco_zoo.outlines, "_READ", read)
    parts = list(trace_objects(Stored(labels), boxes))
    assert [(t.label, t.z, t.area) for t in parts] == [(t.label, t.z, t.area) for t in whole]
    for one, other in zip(parts, whole, strict=True):
        assert shape_of(one).equals(shape_of(other))
        assert (one.perimeter, one.hull_area) == (other.perimeter, other.hull_area)


def test_no_more_is_read_than_the_boxes_hold():
    labels = np.zeros((900, 900), np.uint16)
    labels[10:20, 30:40], labels[15:30, 50:60] = 1, 2
    stored = Stored(labels)
    assert [t.area for t in trace_objects(stored, measure(labels).boxes())] == [100, 150]
    assert stored.most == 20 * 30


def test_nothing_comes_of_nothing():
    assert trace(np.zeros((4, 5), int)) == []
    assert list(trace_objects(np.zeros((4, 5), int), [(3, (slice(0, 2), slice(0, 2)))])) == []
