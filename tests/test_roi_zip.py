"""ROIs are opened again by roifile and by ourselves, to equal masks."""

import zipfile

import numpy as np
import pytest
import roifile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shapely.geometry import Polygon

from spoco_zoo.annotations import read_annotations
from spoco_zoo.errors import OutputError
from spoco_zoo.imagej_rois import read_rois
from spoco_zoo.measurements import measure
from spoco_zoo.outlines import Traced, trace_objects
from spoco_zoo.polygons import fill
from spoco_zoo.roi_zip import write_roi_zip

quick = settings(max_examples=60, deadline=None)
scenes = hnp.arrays(
    np.uint32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.sampled_from([0, 1, 2, 5]),
)


def write(path, labels, channels=1, factor=1, time=None):
    labels = labels.astype(np.uint32) * factor
    boxes = measure(labels).boxes()
    colors = {label: (label % 256, 7, 9) for label, _ in boxes}
    objects = trace_objects(labels, boxes)
    write_roi_zip(path, objects, colors, channels=channels, time=time, overwrite=True)
    return path


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((2, 2), 1, (5, 0, 0)),  # a stack has planes, whatever its third axis is called
        ((2, 2), 2, (0, 0, 5)),
        ((1, 2, 2), 1, (0, 1, 5)),
        ((1, 2, 2), 2, (0, 1, 5)),
    ],
)
def test_a_point_in_time_is_its_frame(tmp_path, shape, channels, expected):
    path = write(tmp_path / "a.zip", np.ones(shape, int), channels, time=4)
    roi = roifile.roiread(path)
    roi = roi[0] if isinstance(roi, list) else roi
    assert (roi.position, roi.z_position, roi.t_position) == expected
    assert (read_annotations(path, shape) == 1).all()


def rings_of(roi):
    """Corners as roifile gives them: of all rings."""
    found = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
    return [np.asarray(ring, float) for ring in found]


def shoelace(ring):
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@quick
@given(scenes, st.sampled_from([1, 70, 70_000]), st.sampled_from([1, 2]))
def test_masks_come_back(tmp_path_factory, labels, factor, channels):
    if not labels.any():
        return
    path = write(tmp_path_factory.mktemp("a") / "a.zip", labels, channels, factor)
    ids = np.unique(labels[labels > 0])
    assert (np.r_[0, ids][read_annotations(path, labels.shape)] == labels).all()
    rois = roifile.roiread(path)
    for roi in rois if isinstance(rois, list) else [rois]:
        label = int(roi.name)
        z = roi.position or roi.z_position
        mask = (labels if labels.ndim == 2 else labels[z - 1]) * factor == label
        assert sum(map(shoelace, rings_of(roi))) == mask.sum()
        assert roi.stroke_color == bytes([255, label % 256, 7, 9])


def test_one_ring_is_a_traced_selection_and_several_are_composite(tmp_path):
    labels = np.zeros((9, 9), int)
    labels[1:4, 1:4] = 1
    labels[5:8, 1:4] = 2
    labels[6, 2] = 0
    labels[0, 5], labels[1, 6] = 3, 3
    one, hole, two = roifile.roiread(write(tmp_path / "a.zip", labels))
    assert (one.name, one.roitype, one.composite) == ("1", roifile.ROI_TYPE.TRACED, False)
    assert one.coordinates().tolist() == [[1, 1], [4, 1], [4, 4], [1, 4]]
    assert (hole.composite, two.composite) == (True, True)
    outer, inner = (Polygon(ring) for ring in rings_of(hole))
    assert (outer.area, inner.area, outer.contains(inner)) == (9, 1, True)
    assert (two.left, two.top, two.right, two.bottom) == (5, 0, 7, 2)


def test_slices_of_an_object_are_held_together_by_group_or_property(tmp_path):
    labels = np.zeros((3, 4, 4), int)
    labels[:2, 1:3, 1:3] = 1
    labels[1:, 3, 3] = 255
    few = roifile.roiread(write(tmp_path / "few.zip", labels))
    assert [roi.group for roi in few] == [1, 1, 255, 255]
    assert [roi.position for roi in few] == [1, 2, 2, 3]
    assert [roi.z_position for roi in few] == [0] * 4
    assert [roi.props for roi in few] == ["label: 1\n"] * 2 + ["label: 255\n"] * 2
    with zipfile.ZipFile(tmp_path / "few.zip") as archive:
        assert archive.namelist() == ["1-z1.roi", "1-z2.roi", "255-z2.roi", "255-z3.roi"]
    # ImageJ has 255 groups, so with more objects none has one
    many = roifile.roiread(write(tmp_path / "many.zip", labels, channels=2, factor=2))
    assert [roi.group for roi in many] == [0] * 4
    assert [roi.position for roi in many] == [0] * 4
    assert [roi.z_position for roi in many] == [1, 2, 2, 3]
    assert [o.group for o in read_rois(tmp_path / "many.zip", 9)] == [2, 2, 510, 510]


@pytest.mark.parametrize("start", [0, 32_766, 60_531, 60_532, 65_533, 70_000, (1 << 24) - 4])
@pytest.mark.parametrize("has_hole", [False, True])
def test_places_far_from_the_corner_are_kept(tmp_path, start, has_hole):
    """16 bits hold 60535 pixels, floats 2 ** 24."""
    mask = np.ones((3, 4), bool)
    mask[1, 1] = not has_hole
    (near,) = trace_objects(mask.astype(int), [(1, (slice(0, 3), slice(0, 4)))])
    polygons = tuple(tuple(ring + start for ring in polygon) for polygon in near.polygons)
    far = Traced(1, None, polygons, near.area, near.perimeter, near.hull_area)
    write_roi_zip(tmp_path / "a.zip", [far], {1: (1, 2, 3)})
    (outline,) = read_rois(tmp_path / "a.zip", 9)
    rings = [ring for polygon in outline.shape for ring in polygon]
    expected = [ring for polygon in polygons for ring in polygon]
    for ring, other in zip(rings, expected, strict=True):
        assert (ring[: len(other)] == other).all()
    if start < 10**5:
        box, part = fill(outline, (start + 5, start + 5))
        assert (box[0].start, box[1].start) == (start, start)
        assert (part == mask).all()


def test_places_that_no_roi_can_hold_are_refused(tmp_path):
    corners = np.array([[0, 0], [(1 << 24) + 1, 0], [(1 << 24) + 1, 1], [0, 1]])
    far = Traced(5, None, ((corners,),), 1 << 24, 0.0, 0.0)
    with pytest.raises(OutputError) as error:
        write_roi_zip(tmp_path / "a.zip", [far], {5: (0, 0, 0)})
    assert str(error.value) == (
        f"{tmp_path / 'a.zip'}: object 5 is 16777217 pixels from the corner of the image: ROIs of "
        "ImageJ reach 16777216; save GeoJSON instead"
    )
    assert list(tmp_path.iterdir()) == []


def test_more_corners_than_a_selection_has_make_a_composite(tmp_path):
    labels = np.zeros((2, 40_000), np.uint8)
    labels[0], labels[1, ::2] = 1, 1  # a comb
    roi = roifile.roiread(write(tmp_path / "a.zip", labels))
    roi = roi[0] if isinstance(roi, list) else roi
    assert roi.composite
    assert (read_annotations(tmp_path / "a.zip", labels.shape) == labels).all()


def test_equal_outlines_are_equal_files_and_none_is_replaced(tmp_path):
    labels = np.eye(5, dtype=int)
    one, other = write(tmp_path / "a.zip", labels), write(tmp_path / "b.zip", labels)
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(OutputError) as error:
        write_roi_zip(one, [], {})
    problem = f"{one}: exists already: choose another name or add --overwrite"
    assert str(error.value) == problem
