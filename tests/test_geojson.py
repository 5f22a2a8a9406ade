"""Features of QuPath come in with their pixels, class and plane, and what is none is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import spoco_zoo.geojson
from spoco_zoo.annotations import read_annotations
from spoco_zoo.errors import ImageError
from spoco_zoo.geojson import read_geojson

quick = settings(max_examples=30, deadline=None)
masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda s: arrays(bool, s))
CURE = "export the annotations from QuPath as GeoJSON"


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(coordinates=None, kind="Polygon", properties=None, **geometry):
    coordinates = [square(1, 1, 2)] if coordinates is None else coordinates
    return {
        "type": "Feature",
        "id": "5a9f1d30-4fb1-4a6e-9b48-6f0f5a1f9f5e",
        "geometry": {"type": kind, "coordinates": coordinates, **geometry},
        "properties": {"objectType": "annotation"} if properties is None else properties,
    }


def write(folder, words, name="a.geojson"):
    path = folder / name
    path.write_text(words if isinstance(words, str) else json.dumps(words), encoding="utf-8")
    return path


def read(folder, *features):
    return read_geojson(write(folder, list(features)), 9)


def refuse(path):
    with pytest.raises(ImageError) as error:
        read_geojson(path, 3)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


# What comes in.


@quick
@given(masks)
def test_a_polygon_around_any_mask_gives_back_the_mask(tmp_path_factory, trace, mask):
    if mask.any():
        rings = [[*ring.tolist(), ring[0].tolist()] for ring in trace(mask)]
        path = write(tmp_path_factory.mktemp("features"), feature(rings))
        assert (read_annotations(path, mask.shape) == mask).all()


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".GeoJSON"])
@pytest.mark.parametrize("frame", ["collection", "list", "one"])
def test_features_come_in_a_collection_a_list_or_alone(tmp_path, frame, suffix):
    one = feature()
    words = {"collection": {"type": "FeatureCollection", "features": [one]}, "list": [one]}
    path = write(tmp_path, words.get(frame, one), f"a{suffix}")
    assert np.argwhere(read_annotations(path, (4, 5))).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_a_multipolygon_is_one_object_with_holes(tmp_path):
    parts = [[square(0, 0, 6), square(2, 2, 2)], [square(8, 0, 2)]]
    labels = read_annotations(write(tmp_path, feature(parts, "MultiPolygon")), (7, 11))
    assert labels.sum() == 36 - 4 + 4
    assert not labels[2:4, 2:4].any()
    assert labels[0:2, 8:10].all()


def test_an_ellipse_is_that_of_its_box_and_not_of_its_corners(tmp_path):
    corners = [[[0, 5], [5, 0], [10, 5], [5, 10], [0, 5]]]
    coarse = read_annotations(write(tmp_path, feature(corners)), (10, 10))
    exact = read_annotations(write(tmp_path, feature(corners, isEllipse=True)), (10, 10))
    assert exact.sum(axis=1).tolist() == [4, 8, 8, 10, 10, 10, 10, 8, 8, 4]
    assert coarse.sum() < 60 < exact.sum()


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ({}, "instance"),
        (None, "instance"),
        ({"objectType": "detection", "classification": {"name": "Tumor"}}, "instance"),
        ({"objectType": "cell", "classification": {"names": ["Tumor", "Positive"]}}, "instance"),
        ({"classification": {"name": "BACKGROUND", "color": [1, 2, 3]}}, "background"),
        ({"classification": "background"}, "background"),
        ({"classification": {"name": "Ignore*"}}, "ignored"),
        ({"classification": {"name": None}}, "instance"),
    ],
)
def test_the_class_of_a_feature_says_what_it_is(tmp_path, properties, kind):
    one = feature()
    one["properties"] = properties
    (outline,) = read(tmp_path, one)
    assert outline.kind == kind


@pytest.mark.parametrize(
    "properties",
    [
        {"classification": {"name": "Region*"}},
        {"objectType": "tile"},
        {"objectType": "tmaCore"},
        {"object_type": "root"},
    ],
)
def test_what_is_no_object_is_passed_over(tmp_path, properties):
    old = {**feature(), "id": "PathTileObject", "properties": {}}
    outlines = read(tmp_path, feature(properties=properties), old, feature())
    assert [outline.name for outline in outlines] == ["feature 3"]


def test_a_feature_knows_its_name_and_plane(tmp_path):
    plane = {"c": -1, "z": 3, "t": 2}
    first, second = read(tmp_path, feature(properties={"name": "b 1"}, plane=plane), feature())
    assert (first.name, first.z, first.frame, first.group) == ("feature 1 'b 1'", 3, 2, "b 1")
    # QuPath writes no plane where it is the first
    assert (second.name, second.z, second.frame, second.group) == ("feature 2", 0, 0, None)


def test_heights_of_corners_are_left_out(tmp_path):
    corners = [[[x, y, 7] for x, y in square(1, 1, 2)]]
    assert read_annotations(write(tmp_path, feature(corners)), (4, 5)).sum() == 4


# What does not.


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, "1" * 5000])
def test_what_is_no_json_is_refused(tmp_path, text):
    assert refuse(write(tmp_path, text)) == f"is not valid JSON: {CURE}"


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe{}")
    assert refuse(path) == f"is not valid JSON: {CURE}"


@pytest.mark.parametrize(
    "words",
    [
        1,
        None,
        {},
        {"type": "FeatureCollection"},
        {"type": "FeatureCollection", "features": {}},
        {"type": "Polygon", "coordinates": [square(1, 1, 2)]},
        [feature(), 3],
        [feature(), {"type": "Point"}],
    ],
)
def test_json_that_is_no_geojson_is_refused(tmp_path, words):
    assert refuse(write(tmp_path, words)) == (
        "is not GeoJSON: expected a FeatureCollection, a Feature or a list of Features; " + CURE
    )


@pytest.mark.parametrize("kind", ["Point", "LineString", "GeometryCollection"])
def test_what_is_no_area_is_refused_by_name(tmp_path, kind):
    one = feature([1, 1], kind, {"name": "x"})
    assert refuse(write(tmp_path, one)) == (
        f"feature 1 'x' is a {kind}: expected a Polygon or MultiPolygon around an object; "
        "delete it or draw around the object"
    )


def test_a_feature_without_geometry_is_refused(tmp_path):
    assert refuse(write(tmp_path, feature([1, 1], None, {"name": "x"}))) == (
        "feature 1 'x' has no geometry: expected a Polygon or MultiPolygon around an object; "
        "delete it or draw around the object"
    )


@pytest.mark.parametrize(
    ("coordinates", "kind"),
    [
        ([], "Polygon"),
        (None, "MultiPolygon"),
        ([], "MultiPolygon"),
        ([[]], "MultiPolygon"),
        ([[]], "Polygon"),
        ({}, "Polygon"),
        ([7], "Polygon"),
        ([[1, 2, 3]], "Polygon"),
        ([[[1], [2], [3]]], "Polygon"),
        ([[[1, 2], [3]]], "Polygon"),
        ([[["1", "2"], ["3", "4"], ["5", "6"]]], "Polygon"),
        ([[[True, False], [True, True]]], "Polygon"),
        ([[[None, 1], [2, 3]]], "Polygon"),
        ([[{"x": 1}, {"x": 2}]], "Polygon"),
        ([[[10**400, 1], [2, 3], [4, 5]]], "Polygon"),
    ],
)
def test_coordinates_of_no_polygon_are_refused(tmp_path, coordinates, kind):
    one = feature(kind=kind)
    one["geometry"]["coordinates"] = coordinates
    assert refuse(write(tmp_path, one)) == (
        f"feature 1 has no coordinates of a polygon: expected lists of [x, y]; {CURE}"
    )


@pytest.mark.parametrize(
    ("value", "word"),
    [(float("nan"), "nan"), (float("-inf"), "-inf"), (1e300, "1e+300"), (-(2**63), "-9.22337e+18")],
)
def test_coordinates_that_no_image_has_are_refused(tmp_path, value, word):
    ring = square(1, 1, 2)
    ring[1] = [3, value]
    assert refuse(write(tmp_path, [feature(), feature([ring])])) == (
        f"feature 2 has the coordinate {word}: expected finite numbers of pixels; draw it again"
    )


@pytest.mark.parametrize("plane", [{"z": -1}, {"z": "2"}, {"z": 1.5}, {"z": None}])
def test_a_plane_that_is_no_number_is_refused(tmp_path, plane):
    assert refuse(write(tmp_path, feature(plane=plane))) == (
        f"feature 1 is in the plane z {plane['z']!r}: expected a number from 0; {CURE}"
    )


def test_too_many_or_too_large_features_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, [feature()] * 4)
    assert refuse(path) == "holds 4 features: expected at most 3"
    monkeypatch.setattr(spoco_zoo.geojson, "_MOST_BYTES", 99)
    assert refuse(path) == f"has {path.stat().st_size} bytes: expected at most 99"


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / "a.json"
    assert refuse(path) == "cannot be read (No such file or directory): check the file"
