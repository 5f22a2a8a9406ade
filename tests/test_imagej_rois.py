"""ROIs of ImageJ come in with their pixels, and what is none is refused by name."""

import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import spoco_zoo.imagej_rois
from spoco_zoo.annotations import read_annotations
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.imagej_rois import read_rois

roifile = pytest.importorskip("roifile")
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi  # noqa: E402

quick = settings(max_examples=30, deadline=None)
masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda s: arrays(bool, s))


def make_roi(kind, name="a", **words):
    roi = ImagejRoi()
    roi.roitype, roi.name = kind, name
    for word, value in words.items():
        setattr(roi, word, value)
    return roi


def make_polygon(points, kind=ROI_TYPE.POLYGON, name="a", **words):
    roi = ImagejRoi.frompoints(np.asarray(points))
    roi.roitype, roi.name = kind, name
    for word, value in words.items():
        setattr(roi, word, value)
    return roi


def make_composite(path, name="a"):
    numbers = np.array(path, np.float32)
    return make_roi(
        ROI_TYPE.RECT, name, right=9, bottom=9, multi_coordinates=numbers, shape_roi_size=len(path)
    )


def make_box(left, top, width, height, kind=ROI_TYPE.RECT, name="a", **words):
    sides = {"left": left, "top": top, "right": left + width, "bottom": top + height}
    return make_roi(kind, name, **sides, **words)


def write(folder, *rois, name="rois.zip"):
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, roi in enumerate(rois):
            archive.writestr(f"{number:04}.roi", roi.tobytes())
    return path


def path_of(rings):
    """Write rings as a path: go to the first corner, draw lines, close."""
    numbers = []
    for ring in rings:
        for step, (x, y) in enumerate(ring):
            numbers += [min(step, 1), x, y]
        numbers += [4]
    return numbers


def refuse(path):
    with pytest.raises(ImageError) as error:
        read_rois(path, 5)
    return str(error.value)


# What comes in.


@quick
@given(masks)
def test_a_composite_around_any_mask_gives_back_the_mask(tmp_path_factory, trace, mask):
    if mask.any():
        path = write(tmp_path_factory.mktemp("rois"), make_composite(path_of(trace(mask))))
        assert (read_annotations(path, mask.shape) == mask).all()


@quick
@given(masks)
def test_traced_polygons_give_back_the_pieces_of_a_mask(tmp_path_factory, trace, mask):
    from spoco_zoo.labels import split_disconnected

    labels = split_disconnected(mask.astype(np.uint8))
    rings = [trace(labels == number) for number in range(1, int(labels.max()) + 1)]
    whole = [n for n, ring in enumerate(rings, start=1) if len(ring) == 1]
    if whole:
        rois = [make_polygon(rings[n - 1][0].astype(int), ROI_TYPE.TRACED, f"{n}") for n in whole]
        found = read_annotations(write(tmp_path_factory.mktemp("rois"), *rois), mask.shape)
        for number, piece in enumerate(whole, start=1):
            assert ((found == number) == (labels == piece)).all()


@pytest.mark.parametrize("kind", [ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED])
def test_corners_between_pixels_count(tmp_path, kind):
    # the upper row and the left column lie outside by a tenth of a pixel
    roi = make_polygon([[1.6, 1.6], [5.0, 1.6], [5.0, 4.0], [1.6, 4.0]], kind)
    labels = read_annotations(write(tmp_path, roi), (6, 7))
    assert np.argwhere(labels).min(axis=0).tolist() == [2, 2]
    assert labels.sum() == 2 * 3


def test_a_rectangle_and_an_oval_are_what_imagej_makes_of_them(tmp_path):
    path = write(tmp_path, make_box(1, 2, 3, 4), make_box(5, 0, 10, 10, ROI_TYPE.OVAL))
    labels = read_annotations(path, (12, 16))
    assert (labels[2:6, 1:4] == 1).all()
    assert (labels == 1).sum() == 12
    assert (labels == 2).sum(axis=1).tolist() == [4, 8, 8, 10, 10, 10, 10, 8, 8, 4, 0, 0]


@pytest.mark.parametrize(("kind", "count"), [(ROI_TYPE.RECT, 4), (ROI_TYPE.OVAL, 4)])
def test_a_box_may_lie_between_pixels(tmp_path, kind, count):
    words = {"options": ROI_OPTIONS.SUB_PIXEL_RESOLUTION, "version": 227}
    # from 0.75 to 3.25: the centres 1.5 and 2.5, though its whole numbers would say more
    box = {"xd": 0.75, "yd": 0.75, "widthd": 2.5, "heightd": 2.5}
    path = write(tmp_path, make_box(0, 0, 4, 4, kind, **words, **box))
    labels = read_annotations(path, (6, 6))
    assert labels.sum() == count
    assert (labels[1:3, 1:3] == 1).all()


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        # below a parabola lies a third of the square, below a quarter of a circle what it leaves
        ([2, 20, 0, 40, 40], 1600 / 3),
        ([3, 40 * 0.55228, 0, 40, 40 * (1 - 0.55228), 40, 40], 1600 * (1 - np.pi / 4)),
    ],
)
def test_curves_of_a_composite_are_bent(tmp_path, curve, area):
    path = write(tmp_path, make_composite([0, 0, 0, *curve, 1, 40, 0, 4]))
    assert read_annotations(path, (50, 50)).sum() == pytest.approx(area, abs=15)


def test_a_roi_file_by_itself_is_one_object(tmp_path):
    path = tmp_path / "cell.roi"
    path.write_bytes(make_box(1, 1, 2, 2).tobytes())
    assert read_annotations(path, (5, 5)).sum() == 4


def test_names_say_what_is_background_and_what_to_pass_over(tmp_path):
    names = ["Background", "background-1", "ignore-12", "Region*-1", "cell-1", "my background"]
    outlines = read_rois(write(tmp_path, *(make_box(1, 1, 2, 2, name=n) for n in names)), 6)
    assert [(o.name, o.kind) for o in outlines] == [
        ("ROI 'Background'", "background"),
        ("ROI 'background-1'", "background"),
        ("ROI 'ignore-12'", "ignored"),
        ("ROI 'cell-1'", "instance"),
        ("ROI 'my background'", "instance"),
    ]


def test_the_name_of_the_file_is_that_of_a_roi_without_one(tmp_path):
    (outline,) = read_rois(write(tmp_path, make_box(1, 1, 2, 2, name="")), 5)
    assert outline.name == "ROI '0000'"


@pytest.mark.parametrize(
    ("words", "z", "frame", "group"),
    [
        ({}, None, None, None),
        ({"position": 3}, 2, None, None),
        ({"position": 7, "z_position": 2, "t_position": 4, "group": 9}, 1, 3, 9),
    ],
)
def test_a_roi_knows_its_slice_frame_and_group(tmp_path, words, z, frame, group):
    (outline,) = read_rois(write(tmp_path, make_box(1, 1, 2, 2, **words)), 5)
    assert (outline.z, outline.frame, outline.group) == (z, frame, group)


def test_what_macos_adds_to_a_zip_is_passed_over(tmp_path):
    path = write(tmp_path, make_box(1, 1, 2, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("rois/", b"")
        archive.writestr("__MACOSX/._0000.roi", b"?")
        archive.writestr("rois/b.ROI", make_box(3, 3, 1, 1, name="").tobytes())
    assert [outline.name for outline in read_rois(path, 5)] == ["ROI 'a'", "ROI 'b'"]


# What does not.

NO_AREA = (
    ": expected an outline of an object (rectangle, oval, polygon, freehand, traced, composite); "
    "delete it or draw around the object"
)


@pytest.mark.parametrize(
    ("roi", "what"),
    [
        (make_roi(ROI_TYPE.LINE, x2=4.0, y2=4.0), "line"),
        (make_polygon([[1, 1], [4, 4]], ROI_TYPE.POLYLINE), "polyline"),
        (make_polygon([[1, 1], [4, 4]], ROI_TYPE.FREELINE), "freeline"),
        (make_polygon([[1, 1], [4, 4], [4, 1]], ROI_TYPE.ANGLE), "angle"),
        (make_polygon([[1, 1]], ROI_TYPE.POINT), "point"),
        (make_roi(ROI_TYPE.NOROI), "noroi"),
        (make_roi(ROI_TYPE.LINE, subtype=ROI_SUBTYPE.ARROW), "arrow"),
        (make_box(1, 1, 3, 3, subtype=ROI_SUBTYPE.TEXT), "text"),
        (make_box(1, 1, 3, 3, rounded_rect_arc_size=2), "rectangle with round corners"),
        (
            make_polygon([[1, 1], [4, 4], [4, 1]], options=ROI_OPTIONS.SPLINE_FIT),
            "spline, whose curve is not in the file",
        ),
    ],
)
def test_what_is_no_area_is_refused_by_name(tmp_path, roi, what):
    path = write(tmp_path, roi)
    assert refuse(path) == f"{path}: ROI 'a' is a {what}{NO_AREA}"


@pytest.mark.parametrize(
    "roi",
    [
        make_composite([1, 3, 3]),
        make_composite([0, 3, 3, 1, 4]),
        make_composite([0, 3, 3, 7, 1, 1]),
        make_roi(ROI_TYPE.POLYGON, integer_coordinates=np.empty((0, 2), np.int32)),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(tmp_path, roi):
    path = write(tmp_path, roi)
    assert refuse(path) == f"{path}: ROI 'a' is damaged: draw it again and save the set in Fiji"


@pytest.mark.parametrize("content", [b"", b"Iout", b"?" * 99, make_box(1, 1, 2, 2).tobytes()[:50]])
def test_a_damaged_roi_is_refused(tmp_path, content):
    path = tmp_path / "a.roi"
    path.write_bytes(content)
    assert refuse(path) == f"{path}: ROI 'a' is damaged: draw it again and save the set in Fiji"


def test_a_roi_that_says_it_has_more_corners_than_bytes_is_refused(tmp_path):
    content = bytearray(make_polygon([[1, 1], [4, 4], [4, 1]]).tobytes())
    content[16:18] = b"\xff\xff"
    path = tmp_path / "a.roi"
    path.write_bytes(content)
    assert refuse(path) == f"{path}: ROI 'a' is damaged: draw it again and save the set in Fiji"


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-1e30, "-1e+30")])
def test_coordinates_that_no_image_has_are_refused(tmp_path, value, word):
    sentence = (
        f"ROI 'a' has the coordinate {word}: expected finite numbers of pixels; draw it again"
    )
    polygon = make_polygon([[1.5, 1.0], [4.0, 4.0], [4.0, 1.0]])
    polygon.subpixel_coordinates[1, 0] = value
    box = make_box(0, 0, 4, 4, options=ROI_OPTIONS.SUB_PIXEL_RESOLUTION, version=227, widthd=value)
    for roi in (polygon, box, make_composite([0, 3, value, 1, 4, 4])):
        path = write(tmp_path, roi)
        assert refuse(path) == f"{path}: {sentence}"


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"?" * 60])
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    assert refuse(path) == (
        f"{path}: cannot be read as a zip of ROIs (File is not a zip file): save it again in Fiji"
    )


def test_a_zip_with_a_flipped_byte_is_refused(tmp_path):
    path = write(tmp_path, make_box(1, 1, 2, 2))
    content = bytearray(path.read_bytes())
    content[45] ^= 0xFF
    path.write_bytes(content)
    assert refuse(path).startswith(f"{path}: cannot be read as a zip of ROIs (")


@pytest.mark.parametrize("name", ["rdf.yaml", "../a.roi", "/a.roi", "rois/../../a.roi"])
def test_a_zip_of_other_things_or_of_names_that_leave_it_is_refused(tmp_path, name):
    path = write(tmp_path, make_box(1, 1, 2, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, make_box(1, 1, 2, 2).tobytes())
    assert refuse(path) == (
        f"{path}: holds {name!r}: expected ROIs alone; save them with Fiji's ROI Manager"
    )


def test_too_many_or_too_large_rois_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, *(make_box(1, 1, 2, 2) for _ in range(6)))
    assert refuse(path) == f"{path}: holds 6 ROIs: expected at most 5"
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.roi", bytes(200_000))
    monkeypatch.setattr(spoco_zoo.imagej_rois, "_MOST_BYTES", 100_000)
    assert refuse(bomb) == f"{bomb}: its ROIs have 200000 bytes: expected at most 100000"
    large = tmp_path / "a.roi"
    large.write_bytes(bytes(200_000))
    assert refuse(large) == f"{large}: its ROIs have 200000 bytes: expected at most 100000"


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / "a.roi"
    assert refuse(path) == f"{path}: cannot be read (No such file or directory): check the file"


def test_without_roifile_the_cure_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, make_box(1, 1, 2, 2))
    monkeypatch.setitem(sys.modules, "roifile", None)
    with pytest.raises(MissingExtraError) as error:
        read_rois(path, 5)
    assert str(error.value) == (
        f"{path}: ROIs of ImageJ need roifile: pip install 'spoco-zoo[train]'"
    )
