"""Outlines become labels: numbers in the order of the file, and what cannot be meant is refused."""

import json
import time

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import spoco_zoo.annotations
from spoco_zoo.annotations import read_annotations, read_painted
from spoco_zoo.errors import ImageError
from spoco_zoo.evaluation import evaluate
from spoco_zoo.images import pair_files, stem_of
from spoco_zoo.labels import KNOWN_BACKGROUND, UNLABELED

quick = settings(max_examples=50, deadline=None)


def box(x, y, width, height, name="", kind="", z=0, t=0):
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [corners], "plane": {"z": z, "t": t}},
        "properties": {"name": name, "classification": {"name": kind}},
    }


def write(folder, *features, name="a.geojson"):
    path = folder / name
    path.write_text(json.dumps(features), encoding="utf-8")
    return path


def refuse(path, shape=(10, 12)):
    with pytest.raises(ImageError) as error:
        read_annotations(path, shape)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


# What is painted.


def test_objects_are_numbered_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path, box(8, 6, 2, 2), box(0, 9, 1, 1, kind="background"), box(0, 0, 3, 1))
    labels = read_annotations(path, (10, 12))
    assert labels.dtype == np.int32
    assert (labels[6:8, 8:10] == 1).all()
    assert (labels[0, :3] == 2).all()
    assert labels[9, 0] == KNOWN_BACKGROUND
    assert (labels == 0).sum() == 120 - 4 - 3 - 1


@quick
@given(st.permutations([("", 1, 1), ("background", 0, 0), ("Ignore*", 2, 0), ("", 5, 5)]))
def test_objects_lie_over_what_is_ignored_and_that_over_background(tmp_path_factory, order):
    features = [box(x, y, 3, 3, kind=kind) for kind, x, y in order]
    labels = read_annotations(write(tmp_path_factory.mktemp("a"), *features), (10, 12))
    assert (labels[1:4, 1:4] > 0).all()
    assert (labels[5:8, 5:8] > 0).all()
    assert sorted(np.unique(labels)) == [KNOWN_BACKGROUND, UNLABELED, 0, 1, 2]
    assert (labels[0, 2:5] == UNLABELED).all()
    assert (labels == KNOWN_BACKGROUND).sum() == 4
    assert (labels == UNLABELED).sum() == 5


def test_what_reaches_over_the_edge_is_cut(tmp_path):
    labels = read_annotations(write(tmp_path, box(-3, -3, 5, 5), box(11, 8, 99, 99)), (10, 12))
    assert np.argwhere(labels == 1).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert np.argwhere(labels == 2).tolist() == [[8, 11], [9, 11]]


def test_the_first_keeps_a_rim_that_two_share(tmp_path):
    path = write(tmp_path, box(0, 0, 10, 1), box(9, 0, 1, 10))
    labels = read_annotations(path, (10, 12))
    assert (labels == 1).sum() == 10
    assert (labels == 2).sum() == 9


def test_background_alone_is_worth_saying(tmp_path):
    labels = read_annotations(write(tmp_path, box(0, 0, 2, 2, kind="Background")), (10, 12))
    assert np.unique(labels).tolist() == [KNOWN_BACKGROUND, 0]


def test_in_a_volume_an_outline_is_painted_in_its_slice_and_a_name_is_one_object(tmp_path):
    path = write(
        tmp_path,
        box(0, 0, 3, 3, "a", z=1),
        box(6, 6, 2, 2, z=1),
        box(0, 1, 3, 3, "a", z=2),
        box(0, 0, 12, 10, kind="background", z=0),
    )
    labels = read_annotations(path, (4, 10, 12))
    assert (labels[1, 0:3, 0:3] == 1).all()
    assert (labels[2, 1:4, 0:3] == 1).all()
    assert (labels == 1).sum() == 18
    assert (labels == 2).sum() == 4
    assert (labels[0] == KNOWN_BACKGROUND).all()
    assert not labels[3].any()


def test_in_an_image_a_name_is_no_object(tmp_path):
    path = write(tmp_path, box(0, 0, 3, 3, "cell"), box(5, 5, 3, 3, "cell"))
    assert read_annotations(path, (10, 12)).max() == 2


def test_outlines_in_far_slices_or_beside_each_other_are_objects_of_their_own(tmp_path):
    path = write(tmp_path, box(0, 0, 3, 3, z=0), box(0, 0, 3, 3, z=2), box(2, 2, 3, 3, z=1))
    assert read_annotations(path, (3, 10, 12)).max() == 3


def test_thousands_of_outlines_are_painted_at_once(tmp_path):
    corners = np.stack(np.meshgrid(np.arange(0, 990, 11), np.arange(0, 990, 11)), -1).reshape(-1, 2)
    path = write(tmp_path, *(box(int(x), int(y), 8, 8) for x, y in corners))
    began = time.process_time()
    labels = read_annotations(path, (1000, 1000))
    assert time.process_time() - began < 20  # by the pixel it would be a minute
    assert labels.max() == len(corners) == 8100
    assert (np.bincount(labels.ravel())[1:] == 64).all()


# What cannot be meant.


def test_an_outline_beside_the_image_is_refused(tmp_path):
    path = write(tmp_path, box(0, 0, 2, 2), box(12, 0, 5, 5, "x"))
    assert refuse(path) == (
        "feature 2 'x' lies outside of the image of 10 x 12 pixels: is it the file of another "
        "image, or of a larger version of it?"
    )


def test_background_beside_the_image_is_refused_too(tmp_path):
    path = write(tmp_path, box(0, -9, 2, 2, kind="background"))
    assert refuse(path).startswith("feature 1 lies outside of the image of 10 x 12 pixels")


def test_an_outline_without_a_pixel_is_refused(tmp_path):
    path = write(tmp_path, box(2.6, 2.6, 0.3, 0.3))
    assert refuse(path) == "feature 1 holds the centre of no pixel: draw it larger or delete it"


@pytest.mark.parametrize(
    ("second", "shared", "smaller"),
    [
        ((0, 0, 5, 5), 25, 25),
        ((3, 0, 5, 5), 10, 25),
        ((1, 1, 2, 2), 4, 4),
        ((4, 4, 3, 3), 1, 9),  # little of the first, but much of the second
    ],
)
def test_objects_over_each_other_are_refused_with_names_and_pixels(
    tmp_path, second, shared, smaller
):
    path = write(tmp_path, box(0, 0, 5, 5, "one"), box(*second, "two"))
    back = write(tmp_path, box(*second, "two"), box(0, 0, 5, 5, "one"), name="b.json")
    sentence = (
        f"share {shared} pixels, and the smaller has {smaller}: expected objects beside each "
        "other; delete one, or draw it anew"
    )
    assert refuse(path) == f"feature 1 'one' and feature 2 'two' {sentence}"
    assert refuse(back) == f"feature 1 'two' and feature 2 'one' {sentence}"


def test_an_object_that_many_neighbours_eat_up_is_refused(tmp_path):
    around = [box(0, 0, 1, 10), box(9, 0, 1, 10), box(1, 0, 8, 1)]
    whole = box(0, 0, 10, 10, "x")
    path = write(tmp_path, *[box(-9, 0, 10, 10), box(9, 0, 10, 10)], whole)
    assert refuse(path, (20, 12)) == (
        "feature 1 and feature 3 'x' share 10 pixels, and the smaller has 10: expected objects "
        "beside each other; delete one, or draw it anew"
    )
    assert refuse(write(tmp_path, *around, whole)).startswith(
        "feature 1 and feature 4 'x' share 10"
    )


def test_a_file_without_outlines_is_refused(tmp_path):
    for features in ([], [box(0, 0, 2, 2, kind="Region*")]):
        assert refuse(write(tmp_path, *features)) == (
            "holds no outline: expected at least one; draw some and save"
        )


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert refuse(tmp_path / "a.zip") == "no such file: check the path"


def test_too_many_outlines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(spoco_zoo.annotations, "_MOST_OUTLINES", 1)
    path = write(tmp_path, box(0, 0, 2, 2), box(5, 5, 2, 2))
    assert refuse(path) == "holds 2 features: expected at most 1"


@pytest.mark.parametrize(
    ("words", "other"), [("slices 2 to 5", {"z": 4}), ("frames 1 to 3", {"t": 2})]
)
def test_outlines_of_several_slices_or_frames_are_refused_for_one(tmp_path, words, other):
    path = write(tmp_path, box(0, 0, 2, 2, z=1), box(5, 5, 2, 2, **{"z": 1, **other}))
    assert refuse(path) == (
        f"its outlines are in {words}, and the image is one of these: "
        "save the outlines of each to a file of its own"
    )


def test_a_slice_that_the_volume_has_not_is_refused(tmp_path):
    path = write(tmp_path, box(0, 0, 2, 2, z=3))
    assert refuse(path, (3, 10, 12)) == (
        "feature 1 is in slice 4: the volume has 3; is it the file of another image?"
    )


def test_a_roi_without_a_slice_is_refused_for_a_volume(tmp_path):
    roifile = pytest.importorskip("roifile")
    path = tmp_path / "a.roi"
    path.write_bytes(roifile.ImagejRoi.frompoints([[1, 1], [4, 1], [4, 4]], name="x").tobytes())
    assert refuse(path, (3, 10, 12)) == (
        "ROI 'x' is in no slice of the volume: set its Z position (in Fiji: Properties > Position)"
    )


def test_outlines_over_each_other_in_neighbouring_slices_need_a_group(tmp_path):
    path = write(tmp_path, box(6, 6, 2, 2, z=1), box(0, 0, 4, 4, z=1), box(1, 0, 4, 4, z=2))
    assert refuse(path, (3, 10, 12)) == (
        "feature 2 in slice 2 and feature 3 in slice 3 lie over each other and may be one object: "
        "give the outlines of each object one group (in Fiji: Properties > Group), or one name in "
        "QuPath"
    )
    named = write(tmp_path, box(0, 0, 4, 4, "a", z=1), box(1, 0, 4, 4, "b", z=2))
    assert read_annotations(named, (3, 10, 12)).max() == 2


# Where label files are read.


def test_label_images_are_read_as_before_and_one_number_may_be_background(tmp_path):
    labels = np.array([[0, 7, 255], [3, 0, 255]], np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, labels)
    assert (read_painted(path, (2, 3)) == labels).all()
    painted = read_painted(path, (9, 9), 255)
    assert painted.tolist() == [[0, 7, KNOWN_BACKGROUND], [3, 0, KNOWN_BACKGROUND]]


def test_minus_one_in_a_label_image_is_where_nobody_looked(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array([[0, -1, 5]], np.int16))
    assert read_painted(path, (1, 3)).tolist() == [[0, UNLABELED, 5]]


def test_numbers_of_outlines_are_no_background(tmp_path):
    path = write(tmp_path, box(0, 0, 2, 2), box(5, 5, 2, 2))
    painted = read_painted(path, (10, 12), 2)
    assert painted.dtype == np.int64
    assert np.unique(painted).tolist() == [0, 1, 2]


def test_outlines_pair_with_images_by_their_stem(tmp_path):
    files = {
        "images": ["a.ome.tif", "b.tif", "c.png", "d.1.tif", "e.tif"],
        "labels": ["a.zip", "b.tif.geojson", "c.ROI", "d.1.json", "e.ome.tif.geojson", "._b.roi"],
    }
    for folder, names in files.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    pairs = pair_files(tmp_path / "images", tmp_path / "labels")
    assert [label.name for _, label in pairs] == files["labels"][:5]
    assert stem_of(tmp_path / "b.zarr.zip") == "b.zarr"
    (tmp_path / "labels" / "a.tif").touch()
    with pytest.raises(ImageError) as error:
        pair_files(tmp_path / "images", tmp_path / "labels")
    assert str(error.value) == (
        f"{tmp_path / 'labels'}: holds both a.tif and a.zip: keep one file per name"
    )


def test_outlines_are_no_images(tmp_path):
    for folder, names in {"images": ["a.tif", "b.zip"], "labels": ["a.zip"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    ((image, label),) = pair_files(tmp_path / "images", tmp_path / "labels")
    assert (image.name, label.name) == ("a.tif", "a.zip")


def test_outlines_are_a_truth_to_score_against_but_for_what_they_ignore(tmp_path):
    found = np.zeros((10, 12), np.uint8)
    found[0:3, 0:3], found[5:8, 5:8] = 4, 9
    prediction = tmp_path / "a.tif"
    tifffile.imwrite(prediction, found)
    truth = [box(0, 0, 3, 3), box(0, 9, 5, 1, kind="background")]
    missed = evaluate(prediction, write(tmp_path, *truth)).scores[0]
    assert (missed.n_truth, missed.n_predicted) == (1, 2)
    ignored = evaluate(prediction, write(tmp_path, *truth, box(4, 4, 5, 5, kind="Ignore*")))
    assert ignored.scores[0].n_predicted == 1
    assert ignored.summary.ap50 == 1
