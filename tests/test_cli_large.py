"""`run` and `plan` on what is larger than memory: what is told, what is written, what is left."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from shapely.geometry import shape as to_shape

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo import cli
from spoco_zoo.package import load_package
from spoco_zoo.segmentation import segment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line as its script does; exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["spoco-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def small(copy_tiny, edit_rdf):
    """A package with small windows, so that small images have many blocks."""

    def make(kind, **recipe):
        folder = copy_tiny(kind)
        window = [8, 16, 16] if kind == "volume" else [16, 16]

        def change(words):
            words["config"]["spoco_zoo"]["recipe"].update({"window": window} | recipe)

        edit_rdf(folder, change)
        return folder

    return make


@pytest.fixture
def image(tmp_path, crowd, write_ngff):
    """An image of many discs as OME-Zarr."""
    return write_ngff(tmp_path / "image.ome.zarr", crowd(40, 55), "yx")


@pytest.fixture
def run_small(call, small):
    """Run in this process, in blocks of one window; the package is made once."""
    made = {}

    def run(image, out, *flags, kind="package"):
        if kind not in made:
            made[kind] = small(kind)
        place = () if out is None else ("-o", out)
        return call("run", made[kind], image, *place, "--workers", 1, "--block", 16, *flags)

    run.package = lambda kind="package": load_package(made[kind])
    return run


def read(path, level=0):
    return zarr.open_group(str(path), mode="r")[str(level)][...]


def judge(run, pixels, kind="package", **words):
    return segment(pixels, run.package(kind), device="cpu", **words)


def assert_is_error(result, *sentences):
    """These lines on stderr beside what the run says of itself, and exit code 1."""
    assert result.code == 1, result
    told = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert told == [f"Error: {sentence}" for sentence in sentences]
    assert "Traceback" not in result.err


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_labels_of_an_image_are_those_of_memory(run_small, image, crowd, tmp_path):
    out = tmp_path / "out" / "cells.ome.zarr"
    result = run_small(image, out)
    assert result.code == 0
    found = read(out)
    assert (found == judge(run_small, crowd(40, 55))).all()
    assert f"{out}: {found.max()} instances" in result.err
    assert result.out == "1 of 1 images done\n"
    assert names_in(out.parent) == ["cells.ome.zarr"]


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_a_tiff_is_run_in_blocks_where_ome_zarr_is_asked_for(run_small, crowd, tmp_path, kind):
    pixels = crowd(14, 30, 40) if kind == "volume" else crowd(40, 55)
    axes = "ZYX" if kind == "volume" else "YX"
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata={"axes": axes}, tile=(16, 16))
    assert run_small(tmp_path / "a.tif", tmp_path / "b.ome.zarr", kind=kind).code == 0
    found = read(tmp_path / "b.ome.zarr")
    assert found.max() > 5
    assert (found == judge(run_small, pixels, kind)).all()


def test_a_folder_gets_a_store_for_each_image(run_small, crowd, write_ngff, tmp_path):
    images = [
        write_ngff(tmp_path / f"{name}.ome.zarr", crowd(30, 40, seed=n), "yx")
        for n, name in enumerate("ab")
    ]
    first, *rest = images
    result = run_small(first, tmp_path / "out", *rest)
    assert result.out == "2 of 2 images done\n"
    for n, name in enumerate("ab"):
        found = read(tmp_path / "out" / f"{name}.ome.zarr")
        assert (found == judge(run_small, crowd(30, 40, seed=n))).all()
    assert names_in(tmp_path / "out") == ["a.ome.zarr", "b.ome.zarr"]


# one after the other in small blocks, and all at once, each being one block
ONE_OR_ALL = pytest.mark.parametrize("flags", [(), ("--workers", 2, "--block", 64)])


@ONE_OR_ALL
def test_all_points_in_time_are_in_one_label_image(run_small, crowd, write_ngff, tmp_path, flags):
    movie = np.stack([crowd(30, 40, seed=n) for n in range(3)])
    image = write_ngff(tmp_path / "a.ome.zarr", movie, "tyx")
    assert run_small(image, None, "--into", "--name", "cells", *flags).code == 0
    found = read(image / "labels" / "cells")
    assert found.shape == movie.shape
    for plane, pixels in zip(found, movie, strict=True):
        assert (plane == judge(run_small, pixels)).all()
    assert not list(tmp_path.glob(".*"))


@ONE_OR_ALL
def test_each_field_of_a_plate_gets_its_labels(run_small, crowd, write_ngff, tmp_path, flags):
    plate = zarr.create_group(store=str(tmp_path / "p.zarr"), zarr_format=2)
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
    wells += [{"path": "B/1", "rowIndex": 1, "columnIndex": 0}]
    rows, columns = [{"name": "A"}, {"name": "B"}], [{"name": "1"}]
    plate.attrs.put({"plate": {"version": "0.4", "rows": rows, "columns": columns, "wells": wells}})
    fields = {"A/1/0": 0, "A/1/1": 1, "B/1/0": 2}
    for well in ("A/1", "B/1"):
        mine = [{"path": name[-1]} for name in fields if name.startswith(well)]
        plate.create_group(well).attrs.put({"well": {"version": "0.4", "images": mine}})
    for name, seed in fields.items():
        write_ngff(None, crowd(30, 40, seed=seed), "yx", group=plate.create_group(name))
    zarr.consolidate_metadata(plate.store)
    result = run_small(tmp_path / "p.zarr", None, "--into", *flags)
    assert result.out == "3 of 3 images done\n"
    told = [line.split(": ")[0] for line in result.err.splitlines() if "instances (" in line]
    assert told == [str(tmp_path / "p.zarr" / name / "labels" / "instances") for name in fields]
    for name, seed in fields.items():
        found = read(tmp_path / "p.zarr" / name / "labels" / "instances")
        assert (found == judge(run_small, crowd(30, 40, seed=seed))).all()
    believed = zarr.open_consolidated(store=str(tmp_path / "p.zarr"), zarr_format=2)
    for name in fields:
        assert believed[f"{name}/labels/instances/0"].shape == (30, 40)
    assert not [p for p in (tmp_path / "p.zarr").rglob(".*") if ".work" in p.name]


def test_a_field_that_is_missing_does_not_stop_the_others(
    run_small, call, crowd, write_ngff, tmp_path
):
    plate = zarr.create_group(store=str(tmp_path / "p.zarr"), zarr_format=2)
    wells = [{"path": well} for well in ("A/1", "A/2", "A/3")]
    plate.attrs.put({"plate": {"wells": wells}})
    for well in ("A/1", "A/2"):
        mine = [{"path": "0"}, {"path": "1"}]
        plate.create_group(well).attrs.put({"well": {"images": mine}})
    for name in ("A/1/0", "A/1/1", "A/2/0"):
        write_ngff(None, crowd(30, 40), "yx", group=plate.create_group(name))
    shutil.rmtree(tmp_path / "p.zarr" / "A" / "1" / "1" / "0")
    image = write_ngff(tmp_path / "b.zarr", crowd(30, 40), "yx")
    folder, out = tmp_path / "p.zarr", tmp_path / "out"
    package = run_small.package  # made by the run
    result = run_small(folder, out)
    gone = "cannot be read as OME-Zarr ({}): expected a group with multiscales"
    told = (
        f"{folder}/A/3: {gone.format('FileNotFoundError')}",
        f"{folder}/A/1/1: its level 0 cannot be read: expected a Zarr array; copy it again",
        f"{folder}/A/2/1: {gone.format('FileNotFoundError')}",
    )
    assert_is_error(result, *told)
    assert result.err.splitlines()[-1] == "2 of 5 images done"
    assert names_in(out) == ["A-1-0.ome.zarr", "A-2-0.ome.zarr"]
    both = call("run", package().location, image, tmp_path / "no.zarr", "-o", out, "--workers", 1)
    assert_is_error(both, f"{tmp_path}/no.zarr: no such file or folder: check the path")
    assert "b.ome.zarr" in names_in(out)
    assert call("plan", package().location, folder, "--workers", 1).code == 1
    # where none is left, what is wrong with many of them is said once
    level = "has no level 3: its levels are 0 of shape (30, 40)"
    assert_is_error(
        run_small(folder, tmp_path / "other", "--level", 3),
        told[0],
        f"{folder}/A/1/0: {level}",
        told[1],
    )


def test_what_is_wrong_with_each_input_is_told_where_none_can_be_run(run_small, image, tmp_path):
    place = f"{tmp_path}/no.zarr"
    result = run_small(place, tmp_path / "out", image, "--level", 1)
    assert_is_error(
        result,
        f"{place}: no such file or folder: check the path",
        f"{image}: has no level 1: its levels are 0 of shape (40, 55)",
    )


def test_a_folder_of_several_kinds_is_told_before_anything_is_run(run_small, image, tmp_path):
    (tmp_path / "overview.png").touch()
    assert_is_error(
        run_small(tmp_path, tmp_path / "out"),
        f"{tmp_path}: holds OME-Zarr and other images: give a pattern for those that are meant, "
        f"such as '{tmp_path}/*.zarr'",
    )


def test_labels_do_not_go_into_an_archive(run_small, image, tmp_path):
    shutil.make_archive(str(tmp_path / "a"), "zip", image)
    sentence = (
        "is in an archive or behind a cache, where labels cannot be written: give a path or an "
        "address of their own with -o"
    )
    place = f"zip://labels/instances::{tmp_path}/a.zip"
    for flags in ((), ("--scratch", tmp_path / "work")):
        result = run_small(f"zip::{tmp_path}/a.zip", None, "--into", *flags)
        assert_is_error(result, f"{place}: {sentence}")
    out = f"simplecache::file://{tmp_path}/b.zarr"
    assert_is_error(run_small(image, out), f"{out}: {sentence}")
    assert names_in(tmp_path) == ["a.zip", image.name, "tiny_package"]


def test_a_level_and_a_channel_are_chosen(run_small, crowd, write_ngff, tmp_path):
    pixels = np.stack([crowd(60, 80, seed=n) for n in range(3)])
    image = write_ngff(tmp_path / "a.ome.zarr", pixels, "cyx", levels=2)
    for channel in ("GFP", "1", " GFP "):
        out = tmp_path / f"{channel}.ome.zarr"
        assert run_small(image, out, "--level", 1, "--channels", channel).code == 0
        assert (read(out) == judge(run_small, pixels[1, ::2, ::2])).all()
    assert_is_error(
        run_small(image, tmp_path / "b.ome.zarr"),
        f"{image}: has 3 channels: Tiny was trained on 1; select with --channels",
    )


@pytest.mark.parametrize("kind", ["package", "volume"])
def test_outlines_of_a_level_lie_on_the_finest_one_in_qupath(
    run_small, crowd, write_ngff, tmp_path, kind
):
    pixels = crowd(13, 30, 40) if kind == "volume" else crowd(61, 80)
    image = write_ngff(tmp_path / "a.zarr", pixels, "zyx"[-pixels.ndim :], levels=2)
    out, flags = tmp_path / "b.ome.zarr", ("--level", 1, "--save", "labels,geojson")
    assert run_small(image, out, *flags, kind=kind).code == 0
    coarse = read(out)
    fine = np.kron(coarse, np.ones((2,) * pixels.ndim, np.uint32))
    features = json.loads((tmp_path / "geojson" / "b.geojson").read_text())["features"]
    told = {(f["geometry"].get("plane", {}).get("z"), f["properties"]["name"]) for f in features}
    planes = dict(enumerate(fine[: len(pixels)])) if kind == "volume" else {None: fine}
    wanted = {(z, str(n)) for z, plane in planes.items() for n in np.unique(plane) if n}
    assert told == wanted
    assert len(features) == len(told)
    for feature in features:
        plane = fine[feature["geometry"].pop("plane")["z"]] if kind == "volume" else fine
        outline = to_shape(feature["geometry"])
        mask = plane == int(feature["properties"]["name"])
        assert outline.area == mask.sum()
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert outline.bounds == box


def test_a_mask_says_what_is_foreground(run_small, image, crowd, write_ngff, tmp_path):
    mask = np.zeros((40, 55), np.uint8)
    mask[5:30, 8:50] = 255
    place = write_ngff(tmp_path / "mask.ome.zarr", mask, "yx")
    assert run_small(image, tmp_path / "b.ome.zarr", "--mask", place).code == 0
    found = read(tmp_path / "b.ome.zarr")
    assert (found == judge(run_small, crowd(40, 55), mask=mask != 0)).all()
    assert not found[mask == 0].any()
    wrong = write_ngff(tmp_path / "wrong.ome.zarr", mask[1:], "yx")
    assert_is_error(
        run_small(image, tmp_path / "c.ome.zarr", "--mask", wrong),
        f"{wrong}: has shape (39, 55): expected one mask of the shape of the image, (40, 55)",
    )
    many = write_ngff(tmp_path / "many.ome.zarr", np.stack([mask] * 2), "cyx")
    assert_is_error(
        run_small(image, tmp_path / "c.ome.zarr", "--mask", many),
        f"{many}: has 2 channels: expected a mask of one channel, which is foreground where it is "
        "not 0",
    )
    shutil.copytree(place, tmp_path / "server" / "mask.ome.zarr")
    address = f"local://{tmp_path}/server/mask.ome.zarr"  # two slashes, as a path has not
    assert run_small(image, tmp_path / "d.ome.zarr", "--mask", address).code == 0
    assert (read(tmp_path / "d.ome.zarr") == found).all()


@pytest.mark.parametrize("kind", ["package", "volume"])
def test_an_image_of_one_value_has_no_instances(run_small, write_ngff, tmp_path, kind):
    shape = (9, 20, 30) if kind == "volume" else (30, 40)
    image = write_ngff(tmp_path / "a.zarr", np.full(shape, 200, np.uint8), "zyx"[-len(shape) :])
    result = run_small(image, tmp_path / "b.ome.zarr", kind=kind)
    assert result.code == 0
    assert f"{tmp_path / 'b.ome.zarr'}: 0 instances" in result.err
    assert not read(tmp_path / "b.ome.zarr").any()


@pytest.mark.parametrize("kind", ["package", "volume"])
def test_results_for_other_programs_are_those_of_memory(call, run_small, crowd, tmp_path, kind):
    pixels = crowd(14, 30, 40) if kind == "volume" else crowd(40, 55)
    axes = "ZYX" if kind == "volume" else "YX"
    words = {"axes": axes, "unit": "um"} | ({"spacing": 0.5} if kind == "volume" else {})
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata=words, resolution=(2.0, 2.0))
    kinds = ("--save", "labels,table,rois,geojson,overlay")
    assert (
        run_small(tmp_path / "a.tif", tmp_path / "big" / "a.ome.zarr", *kinds, kind=kind).code == 0
    )
    package = run_small.package(kind).location
    assert call("run", package, tmp_path / "a.tif", "-o", tmp_path / "whole", *kinds).code == 0
    for name in ("tables/a.csv", "geojson/a.geojson", "rois/a.zip", "overlays/a.png"):
        assert (tmp_path / "big" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert names_in(tmp_path / "big") == ["a.ome.zarr", "geojson", "overlays", "rois", "tables"]
    with (tmp_path / "big" / "tables" / "a.csv").open() as file:
        assert len(list(csv.DictReader(file))) == read(tmp_path / "big" / "a.ome.zarr").max()


# --- what goes wrong, and goes on


def test_a_result_that_is_there_is_kept(run_small, image, tmp_path):
    out = tmp_path / "b.ome.zarr"
    assert run_small(image, out).code == 0
    before = out.stat().st_mtime_ns
    assert_is_error(
        run_small(image, out), f"{out}: exists already: choose another name or add --overwrite"
    )
    assert out.stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".*"))
    assert run_small(image, out, "--overwrite", "--threshold", 0.99).code == 0
    assert out.stat().st_mtime_ns != before


def stop_after(monkeypatch, count, error):
    """Let a run end by an error when so many files of work are written."""
    from spoco_zoo import scratch

    real, written = scratch.write_whole, []

    def stop(path, *words, **flags):
        written.extend([path] if flags.get("lasts", True) else [])  # or it is what blocks share
        if len(written) > count:
            raise error
        real(path, *words, **flags)

    monkeypatch.setattr(scratch, "write_whole", stop)
    return lambda: monkeypatch.setattr(scratch, "write_whole", real)


@pytest.mark.parametrize("steps", [0, 5, 14, 25, 38, 51])
def test_control_c_is_gone_on_with_by_the_same_command(
    run_small, image, crowd, tmp_path, monkeypatch, steps
):
    out = tmp_path / "b.ome.zarr"
    go_on = stop_after(monkeypatch, steps, KeyboardInterrupt())
    result = run_small(image, out)
    assert result.code == 130
    assert result.err.endswith("stopped: what is done is kept, and the same command goes on\n")
    assert "Traceback" not in result.err
    assert not out.exists()
    go_on()
    known = {p: p.stat().st_mtime_ns for p in tmp_path.glob(".b.ome.zarr.work/steps/*/*.zip")}
    again = stop_after(monkeypatch, 60, KeyboardInterrupt())
    assert run_small(image, out).code in (0, 130)
    for path, changed in known.items():  # what was done is not done again
        assert not path.exists() or path.stat().st_mtime_ns == changed
    again()
    if not out.exists():
        assert run_small(image, out).code == 0
    assert (read(out) == judge(run_small, crowd(40, 55))).all()
    assert not list(tmp_path.glob(".*"))


def test_work_of_other_settings_is_not_mixed_up(run_small, image, crowd, tmp_path, monkeypatch):
    out = tmp_path / "b.ome.zarr"
    go_on = stop_after(monkeypatch, 20, KeyboardInterrupt())
    run_small(image, out)
    go_on()
    sentence = (
        f"{tmp_path}/.b.ome.zarr.work: holds unfinished work of a command with other settings: "
        "give that command again to go on, or add --overwrite to start anew"
    )
    assert_is_error(run_small(image, out, "--threshold", 0.9), sentence)
    assert_is_error(run_small(image, out, "--block", 32), sentence)
    assert run_small(image, out, "--bandwidth", 0.6, "--overwrite").code == 0
    recipe = run_small.package().config.recipe
    method = recipe.clustering.model_copy(update={"bandwidth": 0.6})
    wanted = judge(
        run_small, crowd(40, 55), recipe=recipe.model_copy(update={"clustering": method})
    )
    assert (read(out) == wanted).all()


def test_overwrite_goes_on_with_work_of_its_own(run_small, image, tmp_path, monkeypatch):
    out = tmp_path / "b.ome.zarr"
    assert run_small(image, out, "--bandwidth", 3.0).code == 0
    old = read(out)
    go_on = stop_after(monkeypatch, 45, KeyboardInterrupt())
    run_small(image, out, "--overwrite")
    assert (read(out) == old).all()  # until the new one is complete
    go_on()
    stop_after(monkeypatch, 25, AssertionError("is done again"))
    assert run_small(image, out, "--overwrite").code == 0
    assert (read(out) != old).any()


def test_a_full_disk_is_told_and_gone_on_with(run_small, image, crowd, tmp_path, monkeypatch):
    out = tmp_path / "b.ome.zarr"
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    result = run_small(image, out)
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert line.endswith(
        "cannot be written (No space left on device): free space or choose another folder"
    )
    assert "Traceback" not in result.err
    monkeypatch.setattr(os, "fsync", real)
    assert run_small(image, out).code == 0
    assert (read(out) == judge(run_small, crowd(40, 55))).all()


def test_a_damaged_chunk_is_named_or_skipped(run_small, image, crowd, tmp_path, monkeypatch):
    out = tmp_path / "b.ome.zarr"
    (image / "0" / "1" / "2").write_bytes(b"damaged")
    result = run_small(image, out)
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert line.startswith(
        f"Error: {image}/0/1/2: chunk (1, 2), of pixels (16, 32) to (32, 48), cannot be decoded ("
    )
    assert line.endswith("): copy it again, or skip such chunks with --skip-damaged")
    # the block that is tried is the one with the damage
    assert run_small(image, tmp_path / "no.ome.zarr", "--dry-run").code == 1
    assert run_small(image, tmp_path / "no.ome.zarr", "--dry-run", "--skip-damaged").code == 0
    skipped = tmp_path / "c.ome.zarr"
    go_on = stop_after(monkeypatch, 40, KeyboardInterrupt())
    run_small(image, skipped, "--skip-damaged")
    go_on()
    result = run_small(image, skipped, "--skip-damaged")
    assert result.code == 0
    # what is skipped is told by the command that ends, whoever came across it
    (line,) = [line for line in result.err.splitlines() if line.startswith("skipped")]
    assert f"{image}/0/1/2: chunk (1, 2)" in line
    pixels = crowd(40, 55).copy()
    pixels[16:32, 32:48] = 0
    assert (read(skipped) == judge(run_small, pixels)).all()


def test_pixels_that_are_no_numbers_are_told(run_small, crowd, write_ngff, tmp_path):
    pixels = crowd(40, 55).astype(np.float32)
    pixels[33, 20] = np.nan
    image = write_ngff(tmp_path / "a.zarr", pixels, "yx")
    result = run_small(image, tmp_path / "b.ome.zarr")
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("Error")]
    assert line.startswith(f"Error: {image}, at (0, 0)")
    assert "Traceback" not in result.err


def test_an_image_that_vanishes_is_told_and_gone_on_with(
    run_small, image, crowd, tmp_path, monkeypatch
):
    out = tmp_path / "b.ome.zarr"
    go_on = stop_after(monkeypatch, 6, KeyboardInterrupt())
    run_small(image, out)
    go_on()
    from spoco_zoo import stages

    real = stages.survey, stages.find
    away = tmp_path / "away"

    def vanish(job, number, attempt):
        if number == 7:
            image.rename(away)
        return real[1](job, number, attempt)

    monkeypatch.setattr(stages, "find", vanish)
    assert_is_error(
        run_small(image, out),
        f"{image}: was there and cannot be opened any more: mount or copy it again, "
        "then give the same command",
    )
    monkeypatch.setattr(stages, "find", real[1])
    away.rename(image)
    assert run_small(image, out).code == 0
    assert (read(out) == judge(run_small, crowd(40, 55))).all()


def test_too_little_memory_is_told_before_work_is_done(call, small, image, tmp_path):
    result = call("run", small("package"), image, "-o", tmp_path / "b.ome.zarr", "--memory", "10MB")
    assert result.code == 1
    assert result.err == (
        "Error: a worker has 0.01 GB of memory: expected at least 0.30 GB for a block of [32, 48] "
        "pixels; give it more with --memory, or ask for fewer --workers\n"
    )
    assert not list(tmp_path.glob("*b.ome*"))


def test_damaged_work_is_done_again(run_small, image, crowd, tmp_path, monkeypatch):
    out = tmp_path / "b.ome.zarr"
    go_on = stop_after(monkeypatch, 50, KeyboardInterrupt())
    run_small(image, out)
    go_on()
    work = tmp_path / ".b.ome.zarr.work" / "steps"
    dice = np.random.default_rng(0)
    files = sorted(p for p in work.rglob("*") if p.is_file())
    assert len(files) > 40
    for path in files:
        content = bytearray(path.read_bytes())
        if content:
            content[dice.integers(len(content))] ^= 0xFF
        path.write_bytes(content)
    assert run_small(image, out).code == 0
    assert (read(out) == judge(run_small, crowd(40, 55))).all()


@pytest.mark.parametrize("lost", ["table", "rois", "found", "filled", "firsts"])
def test_results_are_gone_on_with(run_small, image, crowd, tmp_path, monkeypatch, lost):
    """A run that ends between its results finds its own, and does not take them for others'."""
    from spoco_zoo import results

    out = tmp_path / "b.ome.zarr"
    flags = ("--save", "labels,table,rois,geojson")
    real = results.write_bytes

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_bytes", stop)
    assert run_small(image, out, *flags).code == 130
    monkeypatch.setattr(results, "write_bytes", real)
    assert names_in(tmp_path / "rois") == ["b.zip"]
    work = tmp_path / ".b.ome.zarr.work"
    if lost in ("found", "filled"):
        for path in (work / "steps" / lost).glob("*"):
            path.unlink()
        shutil.rmtree(work / "steps" / "measured")
    elif lost == "firsts":
        (work / "steps" / "firsts.part").write_bytes(b"")
    result = run_small(image, out, *flags)
    assert result.code == 0, result.err
    assert not list(tmp_path.glob(".*"))
    assert (read(out) == judge(run_small, crowd(40, 55))).all()
    with (tmp_path / "tables" / "b.csv").open() as file:
        assert len(list(csv.DictReader(file))) == read(out).max()


# --- what is told before


def test_only_embeddings_of_ours_are_joined_across_blocks(call, make_foreign, image, tmp_path):
    package = make_foreign("foreign/labels.onnx", {"labels": ("bcyx", ("labels",), {})})
    for words in (("run", package, image, "-o", tmp_path / "b.zarr"), ("plan", package, image)):
        assert_is_error(
            call(*words),
            f"{package}: has no embedding with a recipe of spoco-zoo, which alone is joined across "
            "blocks: take a package of the flavour embeddings, or give images that fit into "
            "memory, as TIFF",
        )


def test_a_plan_is_told_and_nothing_is_left(call, small, image, tmp_path):
    package, scratch = small("package"), tmp_path / "scratch"
    scratch.mkdir()
    before = sorted(tmp_path.rglob("*"))
    planned = call("plan", package, image, "--workers", 2)
    dry = call(
        "run", package, image, "-o", tmp_path / "b.ome.zarr", "--dry-run", "--workers", 2,
        "--scratch", scratch,
    )  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before
    for result in (planned, dry):
        assert result.code == 0
        for word in ("image", "pixels", "blocks", "workers", "memory", "disk", "time"):
            assert f"│ {word} " in result.out


def test_wishes_of_large_images_are_refused_for_small_ones(call, small, crowd, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", crowd(40, 55))
    result = call("run", small("package"), tmp_path / "a.tif", "-o", tmp_path, "--workers", 2)
    assert result.code == 1
    assert result.err == (
        "Error: --workers is for images that are run in blocks: give --out NAME.ome.zarr for that, "
        "or leave it out\n"
    )
