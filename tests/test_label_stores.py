"""Labels written chunk by chunk as OME-Zarr, opened by the libraries that did not write them."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")
fsspec = pytest.importorskip("fsspec")
import tifffile

from spoco_zoo.errors import OutputError, SettingError
from spoco_zoo.figures import label_colors
from spoco_zoo.label_stores import LabelStore, create_labels, refuse_finished, reopen
from spoco_zoo.volumes import open_volumes

UNITS = {"z": 0.5, "y": 0.25, "x": 0.25}


def write_image(url, shape, axes, version="0.4", unit="micrometer"):
    """An image of nothing, with axes and scale, which is all that labels need."""
    zarr_format = 3 if version == "0.5" else 2
    text = str(url)
    store = text if "://" not in text else zarr.storage.FsspecStore.from_url(text)
    group = zarr.create_group(store=store, zarr_format=zarr_format)
    keys = {"name": "default" if zarr_format == 3 else "v2", "separator": "/"}
    group.create_array("0", shape=shape, dtype="uint8", chunks=shape, chunk_key_encoding=keys)
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in named:
        if unit is not None and axis["type"] == "space":
            axis["unit"] = unit
    scale = [UNITS.get(a, 1.0) for a in axes]
    changes = [
        {"type": "scale", "scale": scale},
        {"type": "translation", "translation": [3.0 if a in "zyx" else 0.0 for a in axes]},
    ]
    image = {
        "name": "image",
        "axes": named,
        "datasets": [{"path": "0", "coordinateTransformations": changes}],
    }
    if version == "0.5":
        group.attrs.put({"ome": {"version": "0.5", "multiscales": [image]}})
    else:
        group.attrs.put({"multiscales": [{"version": "0.4"} | image]})
    return str(url)


def some_labels(shape, highest=9):
    labels = np.random.default_rng(0).integers(0, highest + 1, shape).astype(np.uint32)
    labels[labels == 3] = 0
    labels[tuple(slice(0, n // 2) for n in shape)] = 0  # some chunks hold nothing
    return labels


def write_all(store, labels, order=None):
    """Write all chunks and levels in an order, as many workers would."""
    times = [None] if store.n_times is None else list(range(store.n_times))
    for n, level in enumerate(store.plan_pyramid()):
        tasks = [(time, box) for time in times for box in level.boxes()]
        if order is not None:
            order.shuffle(tasks)
        for time, box in tasks:
            if n == 0:
                part = labels[box] if time is None else labels[(time, *box)]
                store.write(box, np.ascontiguousarray(part), time)
            else:
                store.downsample(n, box, time)


def files_of(folder):
    folder = Path(folder)
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items())}


def attributes_of(url):
    found = dict(zarr.open_group(str(url), mode="r", use_consolidated=False).attrs)
    return found.get("ome", found)


def open_with_ome_zarr(url):
    """All that ome-zarr finds at a place: pixels of each level, and metadata."""
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(reader.Reader(parse_url(str(url)))())


def open_with_ngff_zarr(url):
    ngff_zarr = pytest.importorskip("ngff_zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ngff_zarr.from_ngff_zarr(str(url), validate=False)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("is_into", [True, False])
@pytest.mark.parametrize("axes", ["zyx", "yx", "tczyx", "cyx"])
def test_labels_open_in_ome_zarr_and_ngff_zarr(tmp_path, version, is_into, axes):
    sizes = {"t": 2, "c": 2, "z": 9, "y": 300, "x": 530}
    image = write_image(tmp_path / "a.ome.zarr", [sizes[a] for a in axes], axes, version)
    n_axes = 3 if "z" in axes else 2
    volumes = open_volumes(image, n_axes)
    target = None if is_into else tmp_path / "out.ome.zarr"
    chunks = (8, 128, 256)[-n_axes:]
    store = create_labels(target, volumes, chunks=chunks, name="nuclei", version=version)
    labels = some_labels([sizes[a] for a in axes if a != "c"])
    write_all(store, labels)
    store.finish(n_labels=9)
    where = Path(image, "labels", "nuclei") if is_into else target
    assert store.url == str(where)
    wanted = [labels]
    for level in store.plan_pyramid()[1:]:
        steps = (1,) * (labels.ndim - n_axes) + level.factors
        wanted.append(labels[tuple(slice(None, None, s) for s in steps)])
    assert len(wanted) == 3
    kept = axes.replace("c", "")
    scales = [
        [UNITS.get(a, 1.0) * (level.factors[kept.index(a) - len(kept)] if a != "t" else 1)
         for a in kept]
        for level in store.plan_pyramid()
    ]  # fmt: skip
    start = [0.0 if a == "t" else 3.0 for a in kept]

    node = next(n for n in open_with_ome_zarr(where) if n.metadata.get("color"))
    assert [a["name"] for a in node.metadata["axes"]] == list(kept)
    assert [a.get("unit") for a in node.metadata["axes"]] == [
        None if a == "t" else "micrometer" for a in kept
    ]
    for got, want in zip(node.data, wanted, strict=True):
        assert got.dtype == np.uint32
        assert np.array_equal(np.asarray(got), want)
    changes = node.metadata["coordinateTransformations"]
    assert [c[0]["scale"] for c in changes] == scales
    assert [c[1]["translation"] for c in changes] == [start] * 3
    colors = label_colors(9)
    assert sorted(node.metadata["color"]) == list(range(1, 10))
    assert np.allclose(np.array(node.metadata["color"][4][:3]) * 255, colors[4])

    multiscales = open_with_ngff_zarr(where)
    assert multiscales.metadata.name == "nuclei"
    for got, want, scale in zip(multiscales.images, wanted, scales, strict=True):
        assert list(got.dims) == list(kept)
        assert np.array_equal(np.asarray(got.data), want)
        assert [got.scale[a] for a in kept] == scale
        assert [got.translation[a] for a in kept] == start


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_found_from_their_image(tmp_path, version):
    image = write_image(tmp_path / "a.ome.zarr", (64, 64), "yx", version)
    store = create_labels(None, open_volumes(image, 2), chunks=(32, 32))
    assert store.version == version
    labels = some_labels((64, 64))
    write_all(store, labels)
    store.finish(9)
    nodes = open_with_ome_zarr(image)
    assert any(np.array_equal(np.asarray(n.data[0]), labels) for n in nodes if n.data)
    assert attributes_of(Path(image, "labels"))["labels"] == ["instances"]
    told = attributes_of(store.url)["image-label"]
    assert told["source"] == {"image": "../../"}


def test_a_store_of_its_own_says_which_image_it_is_of(tmp_path):
    image = write_image(tmp_path / "in/a.ome.zarr", (64, 64), "yx")
    store = create_labels(tmp_path / "out/a.ome.zarr", open_volumes(image, 2), chunks=(64, 64))
    assert store.version == "0.4"
    store.finish(0)
    told = attributes_of(store.url)["image-label"]
    assert told == {"version": "0.4", "colors": [], "source": {"image": "../../in/a.ome.zarr"}}
    both = open_with_ome_zarr(store.url)
    assert sorted(str(n.data[0].dtype) for n in both) == ["uint32", "uint8"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_bytes_do_not_depend_on_the_order_of_writing(tmp_path, version):
    image = write_image(tmp_path / "a.zarr", (9, 300, 530), "zyx", version)
    labels = some_labels((9, 300, 530), highest=70_000)
    found = []
    for n in range(2):
        store = create_labels(
            tmp_path / str(n), open_volumes(image, 3), chunks=(4, 128, 200), version=version
        )
        if n == 1:  # a chunk is written twice, and a worker is killed while it writes
            boxes = store.plan_pyramid()[0].boxes()
            store.write(boxes[-1], np.ones([b.stop - b.start for b in boxes[-1]], np.uint32))
            Path(store.part_url, "0/x.1234.partial").write_bytes(b"half")
        write_all(pickle.loads(pickle.dumps(store)), labels, random.Random(n))
        store.finish(70_000)
        found.append(files_of(tmp_path / str(n)))
    assert found[0] == found[1]
    key = "0/c/0/0/0" if version == "0.5" else "0/0/0/0"
    assert key not in found[0]  # nothing but 0


def test_nothing_is_visible_before_the_end(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    store = create_labels(tmp_path / "out.zarr", open_volumes(image, 2), chunks=(64, 64))
    write_all(store, some_labels((64, 64)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.zarr.part", "a.zarr"]
    assert store.is_unfinished()
    store.finish(9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "out.zarr"]
    before = files_of(tmp_path)
    store.finish(9)
    assert files_of(tmp_path) == before
    assert np.array_equal(store.read((slice(0, 64), slice(0, 64))), some_labels((64, 64)))
    assert not store.is_unfinished()


def test_other_labels_stay_as_they_are(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    group = zarr.create_group(store=f"{image}/labels", zarr_format=2)
    group.attrs.put({"labels": ["by-hand"], "note": "kept"})
    zarr.create_group(store=f"{image}/labels/by-hand", zarr_format=2)
    before = files_of(image)
    store = create_labels(None, open_volumes(image, 2), chunks=(64, 64), name="nuclei")
    unfinished = files_of(image)
    assert {k: v for k, v in unfinished.items() if ".nuclei.part" not in k} == before
    store.finish(0)
    after = files_of(image)
    assert attributes_of(f"{image}/labels") == {"labels": ["by-hand", "nuclei"], "note": "kept"}
    assert {k: after[k] for k in before if k != "labels/.zattrs"} == {
        k: v for k, v in before.items() if k != "labels/.zattrs"
    }


def test_labels_are_replaced_only_if_that_is_said_and_then_at_the_end(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    volumes = open_volumes(image, 2)
    first = create_labels(None, volumes, chunks=(64, 64))
    write_all(first, some_labels((64, 64)))
    first.finish(9)
    before = files_of(image)
    with pytest.raises(OutputError) as error:
        create_labels(None, volumes, chunks=(64, 64))
    assert str(error.value) == (
        f"{image}/labels/instances: exists already: choose another name or add --overwrite"
    )
    second = create_labels(None, volumes, chunks=(32, 32), overwrite=True)
    write_all(second, some_labels((64, 64)) * 2)
    assert {k: v for k, v in files_of(image).items() if ".part" not in k} == before
    second.finish(18)
    assert np.array_equal(
        zarr.open_array(f"{image}/labels/instances/0", mode="r")[...], some_labels((64, 64)) * 2
    )
    assert attributes_of(f"{image}/labels")["labels"] == ["instances"]
    assert sorted(os.listdir(f"{image}/labels")) == [".zattrs", ".zgroup", "instances"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    volumes = open_volumes(write_image(tmp_path / "a.zarr", (20, 30), "yx"), 2)
    goal, link = tmp_path / "disk" / "b.zarr", tmp_path / "b.zarr"
    link.symlink_to(goal)  # there is nothing yet
    for n, highest in enumerate((5, 9)):
        labels = some_labels((20, 30), highest)
        store = create_labels(link, volumes, chunks=(16, 16), overwrite=n > 0)
        assert reopen(link, volumes) == store
        write_all(store, labels)
        store.finish(highest)
        assert link.is_symlink()
        assert (zarr.open_group(str(link), mode="r")["0"][...] == labels).all()
        assert [path.name for path in goal.parent.iterdir()] == ["b.zarr"]
    with pytest.raises(OutputError) as error:
        create_labels(link, volumes, chunks=(16, 16))
    assert str(error.value) == (f"{goal}: exists already: choose another name or add --overwrite")


def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    volumes = open_volumes(write_image(tmp_path / "a.zarr", (20, 30), "yx"), 2)
    link = tmp_path / "b.zarr"
    link.symlink_to(link)
    with pytest.raises(SettingError) as error:
        create_labels(link, volumes, chunks=(16, 16))
    assert str(error.value) == f"{link}: is a link that leads to itself: give another place"


def test_a_link_within_a_store_gives_way_to_the_labels(tmp_path):
    url = write_image(tmp_path / "a.zarr", (20, 30), "yx")
    volumes = open_volumes(url, 2)
    place = Path(url) / "labels" / "instances"
    for goal in ("elsewhere", "nowhere"):
        shutil.rmtree(place.parent, ignore_errors=True)
        kept = tmp_path / "elsewhere"
        if goal == "elsewhere":
            store = create_labels(kept, volumes, chunks=(16, 16))
            write_all(store, some_labels((20, 30)))
            store.finish(9)
        place.parent.mkdir()
        place.symlink_to(tmp_path / goal)
        store = create_labels(None, volumes, chunks=(16, 16), overwrite=True)
        labels = some_labels((20, 30), 5)
        write_all(store, labels)
        store.finish(5)
        assert not place.is_symlink()
        assert (zarr.open_group(str(place), mode="r")["0"][...] == labels).all()
        assert sorted(p.name for p in place.parent.iterdir() if "old" in p.name) == []
        assert (kept / "0").is_dir()


def test_what_is_no_label_image_is_never_replaced(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    for target in ("a.zarr", "thesis"):
        with pytest.raises(OutputError) as error:
            create_labels(
                tmp_path / target, open_volumes(image, 2), chunks=(64, 64), overwrite=True
            )
        assert str(error.value) == (
            f"{tmp_path / target}: is no label image, which alone would be replaced: "
            "choose another name"
        )


def test_an_unfinished_store_is_found_again_continued_or_discarded(tmp_path):
    image = write_image(tmp_path / "a.zarr", (2, 64, 64), "tyx")
    volumes = open_volumes(image, 2)
    labels = some_labels((2, 64, 64))
    assert reopen(None, volumes) is None
    store = create_labels(None, volumes, chunks=(32, 32))
    write_all(store, labels)
    found = reopen(None, open_volumes(image, 2))
    assert found == store
    with pytest.raises(OutputError) as error:
        create_labels(None, volumes, chunks=(32, 32))
    assert str(error.value) == (
        f"{image}/labels/.instances.part: is an unfinished result: give its command again to "
        "go on, or add --overwrite to start anew"
    )
    found.discard()
    assert reopen(None, volumes) is None
    assert not Path(image, "labels").exists()
    found.discard()


def test_an_unfinished_store_of_another_image_is_refused(tmp_path):
    one = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    other = write_image(tmp_path / "b.zarr", (64, 65), "yx")
    create_labels(tmp_path / "out.zarr", open_volumes(one, 2), chunks=(32, 32))
    with pytest.raises(OutputError) as error:
        reopen(tmp_path / "out.zarr", open_volumes(other, 2))
    assert str(error.value) == (
        f"{tmp_path}/.out.zarr.part: is the unfinished result for another image or of another "
        "version: add --overwrite to start anew"
    )
    (tmp_path / ".out.zarr.part/spoco-zoo.json").write_text("{}")
    with pytest.raises(OutputError):
        reopen(tmp_path / "out.zarr", open_volumes(one, 2))


@pytest.mark.parametrize("moment", ["before renaming", "after renaming"])
def test_a_finish_that_was_killed_is_done_again(tmp_path, moment, monkeypatch):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    volumes = open_volumes(image, 2)
    store = create_labels(None, volumes, chunks=(32, 32))
    write_all(store, some_labels((64, 64)))
    real = Path.rename

    def killed(path, target):
        if moment == "after renaming":
            real(path, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.finish(9)
    monkeypatch.undo()
    found = reopen(None, volumes)
    assert found == store
    found.finish(9)
    assert reopen(None, volumes) is None
    assert attributes_of(f"{image}/labels")["labels"] == ["instances"]
    assert np.array_equal(
        zarr.open_array(f"{image}/labels/instances/0", mode="r")[...], some_labels((64, 64))
    )
    assert not Path(store.part_url).exists()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("is_into", [True, False])
def test_labels_behind_an_address_appear_with_their_metadata(version, is_into):
    files = fsspec.filesystem("memory")
    if files.exists("/labelling"):
        files.rm("/labelling", recursive=True)
    image = write_image("memory://labelling/a.zarr", (2, 64, 64), "tyx", version)
    volumes = open_volumes(image, 2)
    target = None if is_into else "memory://labelling/out.zarr"
    store = create_labels(target, volumes, chunks=(32, 32), version=version)
    labels = some_labels((2, 64, 64))
    write_all(store, labels, random.Random(0))
    reader = zarr.storage.FsspecStore.from_url(store.url, read_only=True)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(reader, mode="r")
    assert reopen(target, volumes) == store
    store.finish(9)
    store.finish(9)
    assert reopen(target, volumes) is None
    found = zarr.open_group(reader, mode="r")
    assert np.array_equal(found["0"][...], labels)
    assert np.array_equal(store.read((slice(0, 64), slice(0, 64)), time=1), labels[1])
    with pytest.raises(OutputError) as error:
        create_labels(target, volumes, chunks=(32, 32), version=version)
    assert str(error.value) == (
        f"{store.url}: exists already: choose another name or add --overwrite"
    )
    again = create_labels(target, volumes, chunks=(16, 16), version=version, overwrite=True)
    again.discard()
    assert not files.exists(store.url.removeprefix("memory:/"))


def test_an_anisotropic_volume_is_halved_in_the_plane_first(tmp_path):
    image = write_image(tmp_path / "a.zarr", (100, 2000, 1500), "zyx")
    (volume,) = open_volumes(image, 3)
    store = create_labels(tmp_path / "out.zarr", [volume], chunks=(64, 128, 128))
    assert [level.factors for level in store.plan_pyramid()] == [
        (1, 1, 1),
        (1, 2, 2),
        (2, 4, 4),
        (4, 8, 8),
    ]
    assert [level.shape for level in store.plan_pyramid()] == [
        (100, 2000, 1500),
        (100, 1000, 750),
        (50, 500, 375),
        (25, 250, 188),
    ]
    assert store.plan_pyramid()[3].chunks == (25, 128, 128)


def test_ids_beyond_ten_thousand_have_no_colours_in_the_metadata(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    for n, count in enumerate((10_000, 10_001)):
        store = create_labels(tmp_path / str(n), open_volumes(image, 2), chunks=(64, 64))
        store.finish(count)
        told = attributes_of(tmp_path / str(n))["image-label"]
        assert len(told.get("colors", ())) == (10_000 if n == 0 else 0)


def test_labels_of_a_tiff_have_its_axes_and_scale(tmp_path):
    pixels = np.zeros((3, 2, 40, 50), np.uint8)
    metadata = {"axes": "TZYX", "unit": "um", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata=metadata, resolution=(4, 4))
    volumes = open_volumes(tmp_path / "a.tif", 3)
    with pytest.raises(SettingError) as error:
        create_labels(None, volumes, chunks=(2, 16, 16))
    assert str(error.value) == (
        f"{tmp_path}/a.tif: is a TIFF, and labels can be put into an OME-Zarr only: "
        "give a store of their own with -o"
    )
    store = create_labels(tmp_path / "out.zarr", volumes, chunks=(2, 16, 16))
    labels = some_labels(pixels.shape)
    write_all(store, labels)
    store.finish(9)
    (image,) = attributes_of(tmp_path / "out.zarr")["multiscales"]
    assert [a["name"] for a in image["axes"]] == ["t", "z", "y", "x"]
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 2.0, 0.25, 0.25]}
    ]
    (opened,) = open_with_ngff_zarr(tmp_path / "out.zarr").images
    assert np.array_equal(np.asarray(opened.data), labels)


def test_axes_in_another_order_stay_in_it(tmp_path):
    image = write_image(tmp_path / "a.zarr", (5, 40, 30), "xzy")
    (volume,) = open_volumes(image, 3)
    store = create_labels(None, [volume], chunks=(16, 16, 4))
    labels = some_labels((40, 30, 5))
    write_all(store, labels)
    store.finish(9)
    (told,) = attributes_of(store.url)["multiscales"]
    assert [a["name"] for a in told["axes"]] == ["x", "z", "y"]
    stored = zarr.open_array(f"{store.url}/0", mode="r")
    assert stored.chunks == (4, 16, 16)
    assert np.array_equal(stored[...], labels.transpose(2, 0, 1))
    assert np.array_equal(store.read((slice(0, 40), slice(0, 30), slice(0, 5))), labels)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_lists_that_a_store_keeps_of_itself_are_made_anew(tmp_path, version):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx", version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(image)
    store = create_labels(None, open_volumes(image, 2), chunks=(64, 64))
    store.finish(0)
    found = zarr.open_group(image, mode="r", use_consolidated=True)
    assert found["labels"].attrs.get("labels", found["labels"].attrs.get("ome", {}))
    assert found["labels/instances/0"].shape == (64, 64)


def test_what_another_writer_may_touch_is_refused(tmp_path):
    image = write_image(tmp_path / "a.zarr", (2, 60, 64), "tyx")
    store = create_labels(tmp_path / "out.zarr", open_volumes(image, 2), chunks=(32, 32))
    store.write((slice(32, 60), slice(0, 64)), np.ones((28, 64), np.uint32), 0)
    with pytest.raises(SettingError) as error:
        store.write((slice(32, 59), slice(0, 64)), np.ones((27, 64), np.uint32), 0)
    assert str(error.value) == (
        "labels of shape (27, 64) cannot be written to 32 to 59, 0 to 64: expected whole chunks "
        "of (32, 32) in (60, 64)"
    )
    with pytest.raises(SettingError) as error:
        store.write((slice(0, 32), slice(0, 32)), np.ones((32, 32), np.uint32))
    assert str(error.value) == (
        f"{tmp_path}/out.zarr: time is None, and the labels are of 2 points in time: "
        "expected one of them"
    )
    for name in ("../a", "a b", ".a"):
        with pytest.raises(SettingError) as error:
            create_labels(None, open_volumes(image, 2), chunks=(32, 32), name=name)
        assert str(error.value) == (
            f"labels are to be called {name}: expected letters, digits, dots, dashes and "
            "underscores, such as nuclei"
        )
    with pytest.raises(SettingError) as error:
        create_labels(None, open_volumes(image, 2), chunks=(4, 32, 32))
    assert str(error.value) == ("chunks of labels are (4, 32, 32): expected 2 sizes of at least 1")


def test_a_store_that_is_gone_is_not_made_anew(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    store = create_labels(tmp_path / "out.zarr", open_volumes(image, 2), chunks=(64, 64))
    store.write((slice(0, 64), slice(0, 64)), np.ones((64, 64), np.uint32))
    shutil.move(store.part_url, tmp_path / "elsewhere")
    with pytest.raises(OutputError) as error:
        store.write((slice(0, 64), slice(0, 64)), np.ones((64, 64), np.uint32))
    assert str(error.value) == (
        f"{store.part_url}: was there and is gone: mount it again, then give the same command"
    )
    with pytest.raises(OutputError):
        store.read((slice(0, 64), slice(0, 64)))
    with pytest.raises(OutputError) as error:
        store.finish(1)
    assert str(error.value) == f"{store.part_url}: is gone: give the command anew"
    assert not Path(store.part_url).exists()


def test_the_handle_is_small(tmp_path):
    image = write_image(tmp_path / "a.zarr", (9, 300, 530), "zyx")
    store = create_labels(tmp_path / "out.zarr", open_volumes(image, 3), chunks=(8, 64, 64))
    assert len(pickle.dumps(store)) < 2000
    assert hash(pickle.loads(pickle.dumps(store))) == hash(store)
    assert json.loads(Path(store.part_url, "spoco-zoo.json").read_text())["name"] == "instances"


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    resource = pytest.importorskip("resource")
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    store = create_labels(tmp_path / "out.zarr", open_volumes(image, 2), chunks=(64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # no file may be longer
    try:
        with pytest.raises(OutputError) as error:
            store.write((slice(0, 64), slice(0, 64)), some_labels((64, 64)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(error.value) == (
        f"{store.part_url}: cannot be written (File too large): free space or choose another place"
    )
    assert np.all(store.read((slice(0, 64), slice(0, 64))) == 0)  # no half of a chunk


class Refusing(fsspec.AbstractFileSystem):
    """A server that lets nobody in, with an error of its own."""

    protocol = "refusing"

    def cat_file(self, path, *_, **__):
        raise LookupError("no credentials")


@pytest.mark.parametrize("ask", [refuse_finished, reopen, partial(create_labels, chunks=(64, 64))])
def test_a_server_that_refuses_is_told_in_one_sentence(tmp_path, ask):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    volumes = open_volumes(write_image(tmp_path / "a.zarr", (64, 64), "yx"), 2)
    with pytest.raises(OutputError) as error:
        ask("refusing://b.zarr", volumes)
    assert str(error.value) == (
        "refusing://b.zarr: cannot be looked at (no credentials): look at its disk or server, and "
        "at the credentials for it"
    )


NO_LOOK = (
    "memory://mended/b.zarr: cannot be looked at (no rights): look at its disk or server, and at "
    "the credentials for it"
)


@pytest.mark.parametrize(
    ("forbidden", "act", "sentence"),
    [
        ("cat_file", LabelStore.is_unfinished, NO_LOOK),
        ("cat_file", LabelStore.is_there, NO_LOOK),
        ("cat_file", LabelStore.discard, NO_LOOK),
        (
            "rm",
            LabelStore.discard,
            "memory://mended/b.zarr: cannot be written (no rights): free space or choose another "
            "place",
        ),
        (
            "pipe_file",
            lambda store: store.finish(1),
            "memory://mended/b.zarr: cannot be written (no rights): free space or choose another "
            "place",
        ),
    ],
)
def test_what_a_server_refuses_of_a_store_is_told_as_it_is(
    tmp_path, monkeypatch, forbidden, act, sentence
):
    from fsspec.implementations.memory import MemoryFileSystem

    volumes = open_volumes(write_image(tmp_path / "a.zarr", (64, 64), "yx"), 2)
    store = create_labels("memory://mended/b.zarr", volumes, chunks=(64, 64), overwrite=True)

    def refuse(*_, **__):
        raise LookupError("no rights")

    monkeypatch.setattr(MemoryFileSystem, forbidden, refuse)
    with pytest.raises(OutputError) as error:
        act(store)
    assert str(error.value) == sentence


def test_labels_are_not_written_into_an_archive(tmp_path):
    image = write_image(tmp_path / "a.zarr", (64, 64), "yx")
    shutil.make_archive(str(tmp_path / "b"), "zip", image)
    for target, source, place in (
        (f"zip://o.zarr::{tmp_path}/o.zip", image, f"zip://o.zarr::{tmp_path}/o.zip"),
        (None, f"zip::{tmp_path}/b.zip", f"zip://labels/instances::{tmp_path}/b.zip"),
    ):
        with pytest.raises(SettingError) as error:
            refuse_finished(target, open_volumes(source, 2))
        assert str(error.value) == (
            f"{place}: is in an archive or behind a cache, where labels cannot be written: give a "
            "path or an address of their own with -o"
        )


def test_the_rooms_are_imported_without_zarr():
    code = (
        "import sys; sys.modules['zarr'] = sys.modules['fsspec'] = None; "
        "import spoco_zoo.label_stores, spoco_zoo.volumes as v; "
        "from spoco_zoo.errors import MissingExtraError\n"
        "try: v.open_volumes('memory://a.zarr', 2)\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "OME-Zarr needs zarr: pip install 'spoco-zoo[volumes]'\n"
