"""Work on a large image as it is begun: where it lies, and who may go on with it."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo.block_jobs import BlockWishes, alone, begin, plan_job, work_folder
from spoco_zoo.errors import OutputError, SettingError
from spoco_zoo.recipe import Recipe
from spoco_zoo.volumes import open_volumes

RECIPE = Recipe(window=(16, 16))
WISHES = BlockWishes(RECIPE, 2_000_000_000)


@pytest.fixture
def volume(crowd, write_ngff, tmp_path):
    (volume,) = open_volumes(write_ngff(tmp_path / "a.ome.zarr", crowd(70, 90), "yx"), 2)
    return volume


def test_work_lies_beside_its_result(volume, tmp_path):
    out = tmp_path / "out" / "b.ome.zarr"
    assert work_folder(volume, out, WISHES) == tmp_path / "out" / ".b.ome.zarr.work"
    assert work_folder(volume, f"{out}/", WISHES) == tmp_path / "out" / ".b.ome.zarr.work"
    assert work_folder(volume, None, WISHES) == tmp_path / ".a.instances.work"
    named = replace(WISHES, scratch=tmp_path / "fast", name="cells")
    places = [work_folder(volume, out, named) for out in (None, "s3://x/b.zarr", "s3://y/b.zarr")]
    assert {place.parent for place in places} == {tmp_path / "fast"}
    assert len(set(places)) == 3  # of one name, at different addresses
    assert places[0].name.startswith(".a.cells-")
    assert places[0].name.endswith(".work")


def test_work_for_a_server_needs_a_folder_here(volume):
    with pytest.raises(SettingError) as error:
        work_folder(volume, "s3://x/b.zarr", WISHES)
    assert str(error.value) == (
        "s3://x/b.zarr: is on a server, where work in progress is not kept: name a folder for it "
        "with --scratch"
    )


def plan(volume, load_tiny, folder, **changes):
    wishes = replace(WISHES, **changes)
    _, job = plan_job(volume, load_tiny("package"), folder / "steps", wishes)
    return job, wishes


def test_what_does_not_decide_a_result_may_change(volume, load_tiny, tmp_path):
    folder, out = tmp_path / "work", {"target": "b.zarr"}
    job, wishes = plan(volume, load_tiny, folder, block=(32, 48))
    (begun,) = begin([job], folder, out, wishes)
    assert begun == job
    (folder / "steps").mkdir()
    (folder / "steps" / "done").touch()
    for changes in (
        {"memory_bytes": 1_000_000_000, "block": (32, 48)},
        {"block": None, "device": "cuda", "threads": 3},
        {"overwrite": True, "keeps_work": True},
        {"skips_damage": True},  # what was done before has seen no damage
    ):
        job, wishes = plan(volume, load_tiny, folder, **changes)
        (again,) = begin([job], folder, out, wishes)
        assert again.layout == begun.layout  # blocks are those that were begun
        assert all(i <= b for i, b in zip(again.inner, again.layout.block, strict=True))
        assert (folder / "steps" / "done").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"block": (32, 32)},
        {"recipe": RECIPE.model_copy(update={"min_size": 3})},
        {"precision": "float16"},
        {"target": "c.zarr"},
        {"name": "cells"},
        {"embeddings": (Path("e.zarr"),)},
        {"results": (Path("a.csv"),)},
    ],
    ids=str,
)
def test_what_decides_a_result_may_not(volume, load_tiny, tmp_path, changes):
    folder = tmp_path / "work"
    job, wishes = plan(volume, load_tiny, folder, block=(48, 48))
    begin([job], folder, {"target": "b.zarr"}, wishes)
    (folder / "mine").touch()
    words = {"block": (48, 48)} | changes
    out = {"target": words.pop("target", "b.zarr")}
    job, wishes = plan(volume, load_tiny, folder, **words)
    with pytest.raises(OutputError) as error:
        begin([job], folder, out, wishes)
    assert str(error.value) == (
        f"{folder}: holds unfinished work of a command with other settings: give that command "
        "again to go on, or add --overwrite to start anew"
    )
    assert (folder / "mine").exists()
    assert begin([job], folder, out, replace(wishes, overwrite=True)) == [job]
    assert not (folder / "mine").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '[{"block": 3}]', "null"])
def test_what_cannot_be_read_is_work_of_others(volume, load_tiny, tmp_path, content):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.json").write_text(content)
    job, wishes = plan(volume, load_tiny, folder)
    with pytest.raises(OutputError):
        begin([job], folder, {}, wishes)


def test_a_folder_that_says_nothing_is_cleared(volume, load_tiny, tmp_path):
    folder = tmp_path / "work"
    (folder / "steps").mkdir(parents=True)
    job, wishes = plan(volume, load_tiny, folder)
    assert begin([job], folder, {}, wishes) == [job]
    assert [p.name for p in Path(folder).iterdir()] == ["job.json"]
    told = json.loads((folder / "job.json").read_text())
    assert [words["url"] for words in told["volumes"]] == [volume.url]


def test_another_image_of_that_name_is_told_apart(volume, crowd, write_ngff, load_tiny, tmp_path):
    folder = tmp_path / "work"
    job, wishes = plan(volume, load_tiny, folder)
    begin([job], folder, {}, wishes)
    shutil.rmtree(tmp_path / "a.ome.zarr")
    write_ngff(tmp_path / "a.ome.zarr", crowd(70, 90), "yx")
    with pytest.raises(OutputError):
        begin([job], folder, {}, wishes)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    for place, reason in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "out", "Not a directory"),
        *([(Path("/proc"), "No such file or directory")] if sys.platform == "linux" else []),
    ):
        with pytest.raises(OutputError) as error, alone(place / ".b.work"):
            pass
        assert str(error.value) == (
            f"{place}: cannot be written ({reason}): free space or choose another folder"
        )


def test_two_runs_do_not_work_on_one_result(tmp_path):
    folder = tmp_path / "deep" / ".b.work"
    with alone(folder):
        with pytest.raises(OutputError) as error, alone(folder):
            pass
        assert str(error.value) == (
            f"{folder}: another run is working on this result: wait until it has ended"
        )
    with alone(folder):
        pass
    assert list(folder.parent.iterdir()) == []
