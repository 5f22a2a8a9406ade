"""GeoJSON is opened again by shapely and by ourselves, to equal masks."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shapely.geometry import shape as to_shape

from spoco_zoo.annotations import read_annotations
from spoco_zoo.errors import OutputError
from spoco_zoo.measurements import measure
from spoco_zoo.outlines import trace_objects
from spoco_zoo.qupath_objects import Place, _planes, write_qupath_objects

quick = settings(max_examples=60, deadline=None)
scenes = hnp.arrays(
    np.uint32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.sampled_from([0, 1, 2, 70_000]),
)


def write(path, labels, place=None, measurements=None):
    boxes = measure(labels).boxes()
    colors = {label: (label % 256, 7, 9) for label, _ in boxes}
    objects = trace_objects(labels, boxes)
    write_qupath_objects(path, objects, colors, place=place or Place(), measurements=measurements)
    return json.loads(path.read_text())["features"]


@quick
@given(scenes)
def test_masks_come_back(tmp_path_factory, labels):
    if not labels.any():
        return
    path = tmp_path_factory.mktemp("a") / "a.geojson"
    for feature in write(path, labels):
        label = int(feature["properties"]["name"])
        plane = labels
        if labels.ndim == 3:
            place = feature["geometry"].pop("plane")
            assert (place["c"], place["t"]) == (-1, 0)
            plane = labels[place["z"]]
        geometry = to_shape(feature["geometry"])
        assert geometry.is_valid
        assert geometry.area == (plane == label).sum()
        assert feature["properties"]["color"] == [label % 256, 7, 9]
    ids = np.unique(labels[labels > 0])
    assert (np.r_[0, ids][read_annotations(path, labels.shape)] == labels).all()


def test_an_object_is_a_detection_with_its_numbers(tmp_path):
    labels = np.zeros((4, 5), int)
    labels[1:3, 1:4] = 6
    features = write(tmp_path / "a.geojson", labels, measurements={6: {"area_px": 6, "mean": 0.5}})
    assert features == [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]],
            },
            "properties": {
                "objectType": "detection",
                "name": "6",
                "color": [6, 7, 9],
                "measurements": {"area_px": 6, "mean": 0.5},
            },
        }
    ]


def test_pieces_are_one_multipolygon(tmp_path):
    (feature,) = write(tmp_path / "a.geojson", np.eye(3, dtype=int))
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert to_shape(feature["geometry"]).area == 3


@pytest.mark.parametrize("scale", [(4.0, 2.0), (1.5, 0.25)])
def test_a_level_is_scaled_to_the_full_resolution(tmp_path, scale):
    labels = np.zeros((6, 7), int)
    labels[2:5, 1:3] = 1
    (feature,) = write(tmp_path / "a.geojson", labels, Place(scale))
    y, x = scale
    assert to_shape(feature["geometry"]).bounds == (1 * x, 2 * y, 3 * x, 5 * y)


@pytest.mark.parametrize(
    ("deep", "depth", "planes"),
    [
        (3.0, 9, [6, 7, 8]),
        (3.0, 8, [6, 7]),  # the last slice of a level may reach beyond the image
        (2.5, 8, [5, 6]),
        (1.0, 3, [2]),
    ],
)
def test_a_slice_of_a_level_is_all_that_it_covers_of_the_full_resolution(
    tmp_path, deep, depth, planes
):
    labels = np.zeros((3, 4, 5), int)
    labels[2, 1:3, 1:4] = 1
    place = Place((deep, 2.0, 2.0), (depth, 8, 10))
    features = write(tmp_path / "a.geojson", labels, place)
    told = [feature["geometry"]["plane"] for feature in features]
    assert told == [{"c": -1, "z": z, "t": 0} for z in planes]
    for feature in features:
        assert to_shape(feature["geometry"]).bounds == (2, 2, 8, 6)


@given(st.integers(1, 9), st.floats(1, 5))
def test_each_slice_is_covered_once(count, deep):
    place = Place((deep, 1.0, 1.0))
    planes = [plane for z in range(count) for plane in _planes(z, place)]
    assert planes == list(range(math.ceil(count * deep - 0.5)))


def test_a_point_in_time_is_told(tmp_path):
    (feature,) = write(tmp_path / "a.geojson", np.ones((2, 2), int), Place(time=4))
    assert feature["geometry"]["plane"] == {"c": -1, "z": 0, "t": 4}
    (feature,) = write(tmp_path / "b.geojson", np.ones((1, 2, 2), int), Place(time=4))
    assert feature["geometry"]["plane"] == {"c": -1, "z": 0, "t": 4}


def test_no_objects_are_no_features_and_nothing_is_replaced(tmp_path):
    assert write(tmp_path / "a.geojson", np.zeros((3, 3), int)) == []
    with pytest.raises(OutputError) as error:
        write(tmp_path / "a.geojson", np.eye(3, dtype=int))
    problem = f"{tmp_path / 'a.geojson'}: exists already: choose another name or add --overwrite"
    assert str(error.value) == problem
