"""The door in Python for large images, and what is true of a run from its first look to its end."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr and dask the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")

import spoco_zoo
from spoco_zoo import stages
from spoco_zoo.errors import ImageError, OutputError, SettingError

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny_package"


@pytest.fixture
def pixels():
    """Three bright squares of different grey."""
    image = np.zeros((96, 96), np.uint8)
    for value, (y, x) in zip((90, 150, 220), ((4, 4), (30, 40), (70, 10)), strict=True):
        image[y : y + 20, x : x + 20] = value
    return image


def labels_in(url):
    return zarr.open_array(str(url), path="0", mode="r")[:]


def hidden_in(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def test_labels_are_those_of_the_image_in_memory(write_ngff, pixels, tmp_path):
    image = write_ngff(tmp_path / "a.ome.zarr", np.stack([255 - pixels, pixels]), "cyx")
    told = []
    (done,) = spoco_zoo.segment_volume(
        image,
        TINY,
        tmp_path / "out.ome.zarr",
        channels=[1],
        save=["labels", "table"],
        progress=lambda *step: told.append(step),
    )
    truth = spoco_zoo.segment(pixels, spoco_zoo.load_package(TINY))
    assert truth.max() == 3
    assert done.totals == (3,)
    assert done.url == str(tmp_path / "out.ome.zarr")
    assert (labels_in(done.url) == truth).all()
    assert len((tmp_path / "tables" / "out.csv").read_text().splitlines()) == 4
    assert hidden_in(tmp_path) == []
    titles = list(dict.fromkeys(title for title, _, _ in told))
    assert titles[:3] == ["looking at intensities", "finding instances", "looking at faces"]
    assert all(a <= b for (t, a, _), (u, b, _) in pairwise(told) if t == u and b)


def test_a_time_series_leaves_nothing_but_its_results(write_ngff, pixels, tmp_path):
    movie = write_ngff(tmp_path / "a.ome.zarr", np.stack([pixels, pixels[::-1]]), "tyx")
    package = spoco_zoo.load_package(TINY)
    (done,) = spoco_zoo.segment_volume(movie, package, tmp_path / "out")
    assert done.totals == (3, 3)
    assert os.listdir(tmp_path / "out") == ["a.ome.zarr"]
    assert (labels_in(done.url)[1] == spoco_zoo.segment(pixels[::-1].copy(), package)).all()


def test_without_out_labels_go_into_the_store_and_are_not_replaced(write_ngff, pixels, tmp_path):
    image = write_ngff(tmp_path / "a.ome.zarr", pixels, "yx", chunk=32)
    (done,) = spoco_zoo.segment_volume(image, TINY, None)
    assert done.url == f"{image}/labels/instances"
    with pytest.raises(OutputError) as error:
        spoco_zoo.segment_volume(image, TINY, None)
    assert str(error.value) == (
        f"{image}/labels/instances: exists already: choose another name or add --overwrite"
    )
    assert hidden_in(tmp_path) == []  # nothing was begun for what is refused
    spoco_zoo.segment_volume(image, TINY, None, overwrite=True)


def test_a_result_that_is_no_ome_zarr_is_refused(write_ngff, pixels, tmp_path):
    image = write_ngff(tmp_path / "a.ome.zarr", pixels, "yx", chunk=32)
    with pytest.raises(SettingError) as error:
        spoco_zoo.segment_volume(image, TINY, tmp_path / "out.tif")
    assert str(error.value) == (
        f"--out is {tmp_path}/out.tif, and labels of what is run in blocks are OME-Zarr: expected "
        "NAME.ome.zarr, a folder, or --into"
    )


def test_a_run_that_met_damage_goes_on_when_it_may_skip(write_ngff, pixels, tmp_path):
    image = write_ngff(tmp_path / "a.ome.zarr", pixels, "yx", chunk=32)
    (image / "0" / "2" / "0").write_bytes(b"damaged")
    out = tmp_path / "out.ome.zarr"
    with pytest.raises(ImageError):
        spoco_zoo.segment_volume(image, TINY, out)
    assert hidden_in(tmp_path) != []
    (done,) = spoco_zoo.segment_volume(image, TINY, out, skip_damaged=True)
    assert done.totals == (2,)
    (sentence,) = done.told
    assert sentence.startswith(
        f"{image}/0/2/0: chunk (2, 0), of pixels (64, 0) to (96, 32), cannot"
    )
    assert hidden_in(tmp_path) == []


def test_what_was_skipped_is_not_taken_for_seen(write_ngff, pixels, tmp_path):
    image = write_ngff(tmp_path / "a.ome.zarr", pixels, "yx", chunk=32)
    (image / "0" / "2" / "0").write_bytes(b"damaged")
    out = tmp_path / "out.ome.zarr"

    def stop(title, done, total):
        if title == "finding instances" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoco_zoo.segment_volume(image, TINY, out, skip_damaged=True, progress=stop)
    with pytest.raises(OutputError) as error:
        spoco_zoo.segment_volume(image, TINY, out)
    assert str(error.value) == (
        f"{tmp_path}/.out.ome.zarr.work: holds unfinished work of a command with other settings: "
        "give that command again to go on, or add --overwrite to start anew"
    )


@pytest.mark.parametrize(("visible", "chosen"), [("7,8", {"7", "8"}), ("7", {"7"})])
def test_workers_take_a_gpu_each(monkeypatch, visible, chosen):
    def take():
        # workers of this test share a process, so each starts anew
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
        stages._take_gpu()
        return os.environ["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    stages._take_gpu()  # no worker
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    words = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(n_workers=2, processes=False, **words) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = client.scheduler_info(n_workers=-1)["workers"]
        taken = [client.submit(take, workers=[w], pure=False).result() for w in workers]
    assert set(taken) == chosen
