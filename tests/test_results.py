"""All results of an image tell of the same instances."""

import csv
import json
import sys

import numpy as np
import pytest
import roifile
from PIL import Image

from spoco_zoo.annotations import read_annotations
from spoco_zoo.errors import MissingExtraError, OutputError, SettingError
from spoco_zoo.figures import label_colors, montage
from spoco_zoo.images import read_labels
from spoco_zoo.measurements import measure
from spoco_zoo.results import KINDS, Origin, name_files, read_kinds, write_objects, write_results


@pytest.fixture
def scene():
    """Three instances on an image of two channels."""
    labels = np.zeros((20, 24), np.uint32)
    labels[2:9, 3:10], labels[4:6, 5:7] = 1, 0
    labels[12:15, 2:8] = 2
    labels[15, 8] = 2
    labels[10:18, 12:22] = 3
    image = np.random.default_rng(0).integers(0, 4000, (2, 20, 24)).astype(np.uint16)
    return labels, image


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_ids_areas_and_colors_are_the_same_in_all(scene, tmp_path):
    labels, image = scene
    kinds = tuple(kind for kind in KINDS if kind != "parquet")
    files = name_files(tmp_path / "a.tif", kinds)
    write_results(files, labels, image, (0.5, 0.5))
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert written == ["a.tif", "geojson/a.geojson", "overlays/a.png", "rois/a.zip", "tables/a.csv"]
    assert (read_labels(files["labels"]) == labels).all()
    for kind in ("rois", "geojson"):
        assert (read_annotations(files[kind], labels.shape) == labels).all()
    rows = rows_of(files["table"])
    sizes = np.bincount(labels.ravel())[1:]
    assert [int(row["label"]) for row in rows] == [1, 2, 3]
    assert [int(row["area_px"]) for row in rows] == sizes.tolist()
    assert [float(row["area_um2"]) for row in rows] == (sizes / 4).tolist()
    assert all(0 < float(row["solidity"]) <= 1 for row in rows)
    features = json.loads(files["geojson"].read_text())["features"]
    colors = label_colors(3)[1:].tolist()
    for feature, row, color in zip(features, rows, colors, strict=True):
        properties = feature["properties"]
        assert (properties["name"], properties["color"]) == (row["label"], color)
        for name, value in properties["measurements"].items():
            assert value == float(row[name])
        assert {"area_um2", "mean_channel_2", "solidity"} <= set(properties["measurements"])
    rois = roifile.roiread(files["rois"])
    assert [list(roi.stroke_color[1:]) for roi in rois] == colors
    with Image.open(files["overlay"]) as picture:
        assert picture.size == (24, 20)


def test_a_volume_has_slices_and_a_montage(tmp_path):
    labels = np.zeros((6, 20, 24), np.uint32)
    labels[1:4, 2:9, 3:10], labels[2:, 12:18, 12:20] = 1, 2
    image = np.random.default_rng(0).normal(size=(1, 6, 20, 24))
    files = name_files(tmp_path / "a.tif", ("rois", "geojson", "table", "overlay"))
    write_results(files, labels, image, (2.0, 0.5, 0.5))
    assert not (tmp_path / "a.tif").exists()
    for kind in ("rois", "geojson"):
        assert (read_annotations(files[kind], labels.shape) == labels).all()
    rows = rows_of(files["table"])
    assert [float(row["volume_um3"]) for row in rows] == [147 / 2, 192 / 2]
    assert "solidity" not in rows[0]
    with Image.open(files["overlay"]) as picture:
        assert (np.asarray(picture) == montage(image, labels)).all()


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_an_image_without_instances_has_results_too(tmp_path, shape):
    files = name_files(tmp_path / "a.tif", ("labels", "rois", "geojson", "table", "overlay"))
    write_results(files, np.zeros(shape, np.uint32), np.zeros((1, *shape)))
    assert rows_of(files["table"]) == []
    assert json.loads(files["geojson"].read_text())["features"] == []
    assert files["rois"].stat().st_size > 0


@pytest.mark.parametrize("wanted", [("rois",), ("geojson",), ("rois", "geojson", "table")])
def test_labels_in_a_store_are_read_box_by_box(tmp_path, wanted):
    class Stored:
        shape = (3, 8, 9)

        def __getitem__(self, box):
            return labels[box]

    labels = np.zeros((3, 8, 9), np.uint32)
    labels[:2, 1:4, 1:4], labels[2, 5:, 5:] = 4, 9
    for name, stored in (("stored", Stored()), ("held", labels)):
        files = name_files(tmp_path / name / "a.tif", wanted)
        write_objects(files, stored, measure(labels), Origin(channels=2))
    for kind in wanted:
        one, other = (name_files(tmp_path / n / "a.tif", wanted)[kind] for n in ("stored", "held"))
        assert one.read_bytes() == other.read_bytes()


def test_what_is_there_is_kept_and_nothing_else_is_written(scene, tmp_path):
    files = name_files(tmp_path / "a.tif", ("labels", "rois", "table"))
    files["table"].parent.mkdir()
    files["table"].write_text("old")
    with pytest.raises(OutputError) as error:
        write_results(files, *scene)
    problem = f"{files['table']}: exists already: choose another name or add --overwrite"
    assert str(error.value) == problem
    assert sorted(tmp_path.rglob("*.*")) == [files["table"]]
    write_results(files, *scene, overwrite=True)
    assert len(rows_of(files["table"])) == 3


def test_parquet_tells_what_csv_tells(scene, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    files = name_files(tmp_path / "a.tif", read_kinds("parquet,table"))
    write_results(files, *scene)
    read = parquet.read_table(files["parquet"]).to_pydict()
    rows = rows_of(files["table"])
    assert list(read) == list(rows[0])
    assert read["area_px"] == [int(row["area_px"]) for row in rows]


def test_kinds_are_read_in_one_order():
    assert read_kinds("labels") == ("labels",)
    assert read_kinds(" overlay, rois,labels,rois") == ("labels", "rois", "overlay")


@pytest.mark.parametrize(("words", "wrong"), [("labels,roi", "roi"), ("", ""), (" , ", "")])
def test_kinds_that_are_none_are_told(words, wrong):
    with pytest.raises(SettingError) as error:
        read_kinds(words)
    assert str(error.value) == (
        f"--save names {wrong!r}: expected some of labels, rois, geojson, table, parquet, "
        "overlay, embeddings, separated by commas"
    )


def test_parquet_is_refused_at_once_where_it_cannot_be_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError):
        read_kinds("labels,parquet")
