"""Every command from its flags to its files: what it writes, what it says, how it ends."""

import csv
import errno
import json
import os
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.main import get_command

from spoco_zoo import cli
from spoco_zoo.annotations import read_annotations
from spoco_zoo.choices import Flags, change_recipe
from spoco_zoo.errors import ImageError
from spoco_zoo.evaluation import evaluate, rows
from spoco_zoo.figures import overlay
from spoco_zoo.images import read_image, read_labels
from spoco_zoo.package import load_package
from spoco_zoo.session import find_gpu

TINY = Path(__file__).parent / "data" / "tiny_package"
HEAVY = ("numpy", "torch", "sklearn", "onnxruntime", "scipy", "pydantic", "xarray", "rich", "PIL")


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


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def truth_of(paint, name):
    return paint(size={"a": 72, "b": 75, "c": 80}[name])[1]


def assert_is_error(result, sentence):
    """One line on stderr, nothing else anywhere, exit code 1."""
    assert result.err == f"Error: {sentence}\n"
    assert result.out == ""
    assert result.code == 1


# --- usage


def test_help_names_every_command(call):
    result = call("--help")
    assert result.code == 0
    commands = "train budget suggest export run fit evaluate validate test engines doctor"
    for command in commands.split():
        assert f"\n  {command} " in result.out


def test_without_a_command_the_help_is_shown(call):
    result = call()
    assert result.code == 2
    assert "spoco-zoo [OPTIONS] COMMAND [ARGS]..." in result.out + result.err


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "budget",
        "suggest",
        "export",
        "run",
        "fit",
        "evaluate",
        "validate",
        "engines",
        "inspect",
    ],
)
def test_every_word_of_every_command_is_explained(call, command):
    assert call(command, "--help").code == 0
    words = get_command(cli.app).commands[command].params
    assert [word.name for word in words if not (word.help or "").endswith(".")] == []
    assert words


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], ["fly"]),
        (["run"], ["package"]),
        (["run", "p", "i"], ["--out"]),
        (["run", "p", "i", "-o", "x", "--gpu"], ["--gpu"]),
        (["run", "p", "i", "-o", "x", "--device", "tpu"], ["--device", "tpu", "auto", "cuda"]),
        (["run", "p", "i", "-o", "x", "--method", "watershed"], ["--method", "mean-shift"]),
        (["run", "p", "i", "-o", "x", "--tile", "big"], ["--tile", "integer"]),
        (["train", "d", "-o", "x", "--label-zero", "none"], ["--label-zero", "unlabeled"]),
        (["train", "d", "-o", "x", "--steps", "1.5"], ["--steps", "integer"]),
        (["evaluate", "p"], ["truth"]),
        (["validate", "p", "--for", "Fiji"], ["--for", "JDLL"]),
        (["export", "r"], ["target"]),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(call, arguments, told):
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: ")
    problem = result.err.split("\n\nError: ")[1]
    assert all(word.lower() in problem.lower() for word in told)


def test_the_version_is_that_of_the_distribution(call):
    try:
        expected = version("spoco-zoo")
    except PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    result = call("--version")
    assert (result.code, result.out) == (0, f"{expected}\n")


def test_help_loads_nothing_heavy_and_is_quick(start_python, monkeypatch):
    resource = pytest.importorskip("resource")
    for name in list(os.environ):
        if name.startswith("COVERAGE"):  # it would be loaded, and timed, too
            monkeypatch.delenv(name)
    code = (
        "import sys\n"
        "from spoco_zoo.cli import main\n"
        "sys.argv = ['spoco-zoo', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print('ended', end.code, loaded)\n"
    )
    seconds = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out, err = start_python("-c", code).communicate(timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert out.splitlines()[-1] in ("ended 0 []", "ended None []"), err
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "data", "-o", "out"], "training needs torch: pip install 'spoco-zoo[train]'"),
        (["export", "run", "out"], "export needs torch: pip install 'spoco-zoo[train]'"),
        (["test", "package", "--trust"], "export needs torch: pip install 'spoco-zoo[train]'"),
    ],
)
def test_without_torch_the_extra_is_named(start_python, tmp_path, arguments, sentence):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['spoco-zoo', *{arguments!r}]\n"
        "from spoco_zoo.cli import main\n"
        "main()\n"
    )
    process = start_python("-c", code, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", f"Error: {sentence}\n")
    assert names_in(tmp_path) == []


# --- run


def test_one_image_into_a_folder(call, image_folder, paint, tmp_path):
    out = tmp_path / "new" / "labels"
    result = call("run", TINY, image_folder / "a.tif", "-o", out, "--device", "cpu")
    assert result.code == 0
    assert result.out == "1 of 1 images done\n"
    assert f"{out / 'a.tif'}: 5 instances\n" in result.err
    assert "Tiny on cpu" in result.err
    assert names_in(out) == ["a.tif"]
    labels = tifffile.imread(out / "a.tif")
    assert labels.dtype == np.uint16
    assert (labels == truth_of(paint, "a")).all()
    assert read_image(out / "a.tif").scale_um == (0.25, 0.25)


@pytest.mark.parametrize("name", ["found.tif", "found.TIFF", "deep/found.tif"])
def test_one_image_into_a_named_file(call, image_folder, paint, tmp_path, name):
    result = call("run", TINY, image_folder / "b.tif", "-o", tmp_path / name)
    assert result.code == 0
    assert (read_labels(tmp_path / name) == truth_of(paint, "b")).all()


@pytest.mark.parametrize("way", ["folder", "pattern", "files", "twice"])
def test_many_images_by_any_name(call, image_folder, paint, tmp_path, way):
    inputs = {
        "folder": [image_folder],
        "pattern": [image_folder / "*.tif"],
        "files": [image_folder / f"{name}.tif" for name in "abc"],
        "twice": [image_folder, image_folder / "[ab].tif"],
    }[way]
    out = tmp_path / "labels"
    result = call("run", TINY, *inputs, "-o", out)
    assert (result.code, result.out) == (0, "3 of 3 images done\n")
    assert names_in(out) == ["a.tif", "b.tif", "c.tif"]
    for name in "abc":
        assert (read_labels(out / f"{name}.tif") == truth_of(paint, name)).all()


def test_other_formats_and_packages_in_a_zip(call, paint, zip_folder, tiny_package, tmp_path):
    image, truth = paint()
    np.save(tmp_path / "n.npy", image.astype(np.float64) / 7)
    Image.fromarray(image).save(tmp_path / "p.png")
    tifffile.imwrite(tmp_path / "t.ome.tif", image, metadata={"axes": "YX"})
    packed = zip_folder(tiny_package, tmp_path / "packed.zip")
    out = tmp_path / "labels"
    result = call(
        "run", packed, *(tmp_path / n for n in ("n.npy", "p.png", "t.ome.tif")), "-o", out
    )
    assert result.code == 0
    assert names_in(out) == ["n.tif", "p.tif", "t.tif"]
    for name in names_in(out):
        assert (read_labels(out / name) == truth).all()
        assert read_image(out / name).scale_um is None


def test_volumes_keep_their_step_along_z(call, paint, tmp_path):
    volume, truth = paint(3)
    tifffile.imwrite(
        tmp_path / "v.tif",
        volume,
        imagej=True,
        resolution=(4, 4),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 1.5},
    )
    result = call("run", TINY.parent / "tiny_volume", tmp_path / "v.tif", "-o", tmp_path / "o.tif")
    assert result.code == 0
    assert (read_labels(tmp_path / "o.tif") == truth).all()
    assert read_image(tmp_path / "o.tif", 3).scale_um == (1.5, 0.25, 0.25)


def test_an_image_without_instances_is_done_too(call, tmp_path):
    np.save(tmp_path / "flat.npy", np.full((8, 9), 3))
    result = call("run", TINY, tmp_path / "flat.npy", "-o", tmp_path / "o.tif")
    assert result.code == 0
    assert f"{tmp_path / 'o.tif'}: 0 instances\n" in result.err
    assert not read_labels(tmp_path / "o.tif").any()


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--method", "hdbscan"], 5),
        (["--method", "mean-shift"], 5),
        (["--bandwidth", "20"], 4),
        (["--method", "hdbscan", "--bandwidth", "20"], 4),
        (["--min-size", "300"], 4),
        (["--min-size", "100000"], 0),
        (["--tile", "10"], 5),
    ],
)
def test_flags_change_the_recipe(call, image_folder, tmp_path, flags, count):
    target = tmp_path / "o.tif"
    result = call("run", TINY, image_folder / "a.tif", "-o", target, *flags)
    assert result.code == 0
    assert read_labels(target).max(initial=0) == count


def test_tiles_write_the_same_bytes(call, image_folder, tmp_path):
    call("run", TINY, image_folder, "-o", tmp_path / "whole")
    call("run", TINY, image_folder, "-o", tmp_path / "tiled", "--tile", "9")
    for name in ("a.tif", "b.tif", "c.tif"):
        assert (
            read_labels(tmp_path / "whole" / name) == read_labels(tmp_path / "tiled" / name)
        ).all()


def test_the_method_of_the_package_is_kept_where_no_flag_is_given(call, image_folder, tmp_path):
    package = TINY.parent / "tiny_momentum"
    call("run", package, image_folder / "a.tif", "-o", tmp_path / "o.tif", "--bandwidth", "0.4")
    kept = change_recipe(load_package(package), Flags(bandwidth=0.4))
    assert kept.clustering.method == "consistency"
    assert kept.clustering.bandwidth == 0.4
    # 250 and 200 of 250 are above one half, and lie apart: each is found again
    assert read_labels(tmp_path / "o.tif").max() == 5


def test_an_overlay_shows_the_image_with_its_instances(call, image_folder, paint, tmp_path):
    out = tmp_path / "labels"
    result = call("run", TINY, image_folder, "-o", out, "--overlay")
    assert result.code == 0
    assert names_in(out) == [
        *("a.tif", "b.tif", "c.tif"),
        *("overlays/a.png", "overlays/b.png", "overlays/c.png"),
    ]
    image, truth = paint(size=75)
    with Image.open(out / "overlays" / "b.png") as picture:
        assert (np.asarray(picture) == overlay(image[None], truth)).all()


def test_results_for_other_programs_lie_beside_the_labels(call, image_folder, paint, tmp_path):
    out = tmp_path / "labels"
    result = call(
        *("run", TINY, image_folder / "a.tif", image_folder / "b.tif", "-o", out),
        *("--save", "table,rois,geojson,labels", "--overlay"),
    )
    assert result.code == 0
    folders = {"rois": "zip", "geojson": "geojson", "tables": "csv", "overlays": "png"}
    expected = [f"{folder}/{name}.{end}" for folder, end in folders.items() for name in "ab"]
    assert names_in(out) == sorted(["a.tif", "b.tif", *expected])
    for name in "ab":
        truth = truth_of(paint, name)
        for path in (out / "rois" / f"{name}.zip", out / "geojson" / f"{name}.geojson"):
            assert (read_annotations(path, truth.shape) == truth).all()
        lines = (out / "tables" / f"{name}.csv").read_text().splitlines()
        assert len(lines) == 1 + truth.max()


def test_results_without_labels_are_named_in_the_log(call, image_folder, tmp_path):
    result = call("run", TINY, image_folder / "a.tif", "-o", tmp_path / "x.tif", "--save", "rois")
    assert result.code == 0
    assert names_in(tmp_path / "rois") == ["x.zip"]
    assert not (tmp_path / "x.tif").exists()
    assert f"{tmp_path / 'rois' / 'x.zip'}: 5 instances" in result.err
    wrong = call("run", TINY, image_folder / "a.tif", "-o", tmp_path / "y", "--save", "masks")
    assert wrong.code == 1
    assert wrong.err == (
        "Error: --save names 'masks': expected some of labels, rois, geojson, table, parquet, "
        "overlay, embeddings, separated by commas\n"
    )
    assert not (tmp_path / "y").exists()


def test_a_mask_says_what_is_foreground(call, image_folder, tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "labels"
    masks.mkdir()
    for name in "abc":
        shape = read_image(image_folder / f"{name}.tif").pixels.shape[1:]
        half = np.zeros(shape, np.uint8)
        half[: shape[0] // 2] = 255
        tifffile.imwrite(masks / f"{name}.tif", half)
    assert call("run", TINY, image_folder, "-o", out, "--mask", masks).code == 0
    for name in "abc":
        labels = read_labels(out / f"{name}.tif")
        middle = len(labels) // 2
        assert (labels[:middle] > 0).all()  # background is an instance too where the mask says so
        assert not labels[middle:].any()
    one = call(
        *("run", TINY, image_folder / "b.tif", "-o", tmp_path / "b.tif"),
        *("--mask", masks / "b.tif"),
    )
    assert one.code == 0
    assert (read_labels(tmp_path / "b.tif") == read_labels(out / "b.tif")).all()


def test_masks_that_are_missing_or_in_the_way_are_told(call, image_folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    tifffile.imwrite(masks / "a.tif", np.ones((75, 75), np.uint8))
    command = ("run", TINY, image_folder, "-o", tmp_path / "labels")
    result = call(*command, "--mask", masks)
    assert result.code == 1
    assert f"which has no mask for {image_folder / 'b.tif'}" in result.err
    result = call(*command, "--mask", masks / "a.tif")
    assert result.code == 1
    assert "for 3 images: expected a folder of masks" in result.err
    result = call(*command, "--mask", masks / "a.tif", "--threshold", "0.5")
    assert result.code == 1
    assert "give one of them only" in result.err
    assert not (tmp_path / "labels").exists()


def test_the_threshold_of_foreground_can_be_changed(call, image_folder, tmp_path):
    areas = []
    for threshold in ("0.2", "0.8"):
        out = tmp_path / f"{threshold}.tif"
        result = call("run", TINY, image_folder / "b.tif", "-o", out, "--threshold", threshold)
        assert result.code == 0
        areas.append((read_labels(out) > 0).sum())
    assert areas[0] >= areas[1] > 0
    result = call("run", TINY, image_folder / "b.tif", "-o", tmp_path / "x.tif", "--threshold", "2")
    assert result.code == 1
    assert "threshold is 2.0" in result.err


def test_a_smaller_block_changes_nothing(call, image_folder, tmp_path):
    image = image_folder / "c.tif"
    call("run", TINY, image, "-o", tmp_path / "whole.tif")
    result = call("run", TINY, image, "-o", tmp_path / "cut.tif", "--block", "24", "--tile", "16")
    assert result.code == 0
    assert (read_labels(tmp_path / "cut.tif") == read_labels(tmp_path / "whole.tif")).all()


def test_half_precision_on_a_cpu_is_refused(call, image_folder, tmp_path):
    result = call(
        *("run", TINY, image_folder, "-o", tmp_path / "labels"),
        *("--device", "cpu", "--precision", "float16"),
    )
    assert result.code == 1
    assert result.err.startswith("Error: precision is float16 on the device cpu")
    assert result.err.count("\n") == 1


# --- run refuses


@pytest.mark.parametrize("flags", [[], ["--overlay"]])
def test_labels_that_are_there_are_kept(call, image_folder, tmp_path, flags):
    out = tmp_path / "labels"
    out.mkdir()
    (out / "b.tif").write_bytes(b"old")
    result = call("run", TINY, image_folder, "-o", out, *flags)
    assert result.code == 1
    problem = f"{out / 'b.tif'}: exists already: choose another name or add --overwrite"
    assert f"Error: {problem}\n" in result.err
    assert result.err.endswith("2 of 3 images done\n")
    assert (out / "b.tif").read_bytes() == b"old"
    assert not (out / "overlays" / "b.png").exists()


def test_an_overlay_that_is_there_is_kept_and_no_labels_are_made(call, image_folder, tmp_path):
    out = tmp_path / "labels"
    (out / "overlays").mkdir(parents=True)
    picture = out / "overlays" / "a.png"
    picture.write_bytes(b"old")
    result = call("run", TINY, image_folder / "a.tif", "-o", out, "--overlay")
    assert result.code == 1
    problem = f"{picture}: exists already: choose another name or add --overwrite"
    assert f"Error: {problem}\n" in result.err
    assert names_in(out) == ["overlays/a.png"]


def test_overwrite_replaces(call, image_folder, paint, tmp_path):
    out = tmp_path / "labels"
    (out / "overlays").mkdir(parents=True)
    (out / "a.tif").write_bytes(b"old")
    (out / "overlays" / "a.png").write_bytes(b"old")
    result = call("run", TINY, image_folder / "a.tif", "-o", out, "--overwrite", "--overlay")
    assert result.code == 0
    assert (read_labels(out / "a.tif") == truth_of(paint, "a")).all()
    with Image.open(out / "overlays" / "a.png") as picture:
        assert picture.size == (72, 62)


def test_one_bad_image_does_not_stop_the_others(call, image_folder, paint, tmp_path):
    bad = image_folder / "b.tif"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ImageError) as reason:
        read_image(bad)
    out = tmp_path / "labels"
    result = call("run", TINY, image_folder, "-o", out)
    assert (result.code, result.out) == (1, "")
    assert f"Error: {reason.value}\n" in result.err
    assert result.err.endswith("2 of 3 images done\n")
    assert "Traceback" not in result.err
    assert names_in(out) == ["a.tif", "c.tif"]
    assert (read_labels(out / "c.tif") == truth_of(paint, "c")).all()


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (
            np.full((6, 7), np.nan),
            "{path}: 42 of 42 pixels are NaN or infinite: replace them by finite values",
        ),
        (
            np.arange(3 * 60 * 70).reshape(3, 60, 70),
            "{path}: image has 3 channels: Tiny was trained on 1; select or convert channels first",
        ),
        (np.array("words"), None),
        (None, "{path}: no such file: check the path"),
    ],
)
def test_an_image_that_does_not_fit_is_named(call, tmp_path, pixels, problem):
    path = tmp_path / "bad.npy"
    if pixels is not None:
        np.save(path, pixels)
    if problem is None:
        problem = f"{path}: pixels are {pixels.dtype}: expected integers or floats"
    result = call("run", TINY, path, "-o", tmp_path / "labels")
    assert result.code == 1
    assert f"Error: {problem.format(path=path)}\n" in result.err
    assert result.err.endswith("0 of 1 images done\n")
    assert not (tmp_path / "labels").exists()


def test_two_images_of_one_name_are_refused_before_work_is_done(
    call, image_folder, paint, tmp_path
):
    np.save(image_folder / "b.npy", paint()[0])
    out = tmp_path / "labels"
    assert_is_error(
        call("run", TINY, image_folder, "-o", out),
        f"{image_folder / 'b.npy'} and {image_folder / 'b.tif'} would both be written to "
        f"{out / 'b.tif'}: run them into separate folders",
    )
    assert not out.exists()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_no_image_is_replaced_by_its_labels(call, image_folder, flags):
    before = (image_folder / "a.tif").read_bytes()
    assert_is_error(
        call("run", TINY, image_folder, "-o", image_folder, *flags),
        f"--out would replace the image {image_folder / 'a.tif'}: choose another folder",
    )
    assert_is_error(
        call("run", TINY, image_folder / "a.tif", "-o", image_folder / "a.tif", *flags),
        f"--out would replace the image {image_folder / 'a.tif'}: choose another folder",
    )
    assert (image_folder / "a.tif").read_bytes() == before


def test_no_image_is_replaced_by_an_overlay(call, paint, tmp_path):
    (tmp_path / "overlays").mkdir()
    path = tmp_path / "overlays" / "a.png"
    Image.fromarray(paint()[0]).save(path)
    before = path.read_bytes()
    assert_is_error(
        call("run", TINY, path, "-o", tmp_path, "--overlay", "--overwrite"),
        f"--out would replace the image {path}: choose another folder",
    )
    assert path.read_bytes() == before


def test_many_images_do_not_go_into_one_file(call, image_folder, tmp_path):
    assert_is_error(
        call("run", TINY, image_folder, "-o", tmp_path / "o.tif"),
        f"--out is {tmp_path / 'o.tif'} for 3 images: expected a folder for their labels",
    )


def test_a_file_is_no_folder(call, image_folder, tmp_path):
    (tmp_path / "taken").write_bytes(b"old")
    assert_is_error(
        call("run", TINY, image_folder / "a.tif", "-o", tmp_path / "taken"),
        f"--out is {tmp_path / 'taken'} for 1 images: expected a folder for their labels",
    )


def test_overlays_that_are_a_file_are_told(call, image_folder, tmp_path):
    out = tmp_path / "labels"
    out.mkdir()
    (out / "overlays").write_bytes(b"old")
    result = call("run", TINY, image_folder / "a.tif", "-o", out, "--overlay")
    assert result.code == 1
    assert (
        f"Error: {out / 'overlays' / 'a.png'}: cannot be written ({os.strerror(errno.EEXIST)}): "
        "free space or choose another folder\n"
    ) in result.err
    assert names_in(out) == ["overlays"]


def test_an_empty_folder_is_told(call, tmp_path):
    assert_is_error(
        call("run", TINY, tmp_path, "-o", tmp_path / "labels"),
        f"{tmp_path}: no image found: expected files ending in .tif, .tiff, .png, .npy",
    )


def test_a_package_that_is_none_is_told(call, image_folder, tmp_path):
    assert_is_error(
        call("run", tmp_path / "none", image_folder, "-o", tmp_path / "labels"),
        f"{tmp_path / 'none'}: no such package: expected a folder or a zip",
    )


def test_a_damaged_package_runs_nothing(call, tiny_package, image_folder, tmp_path):
    with (tiny_package / "weights.onnx").open("ab") as file:
        file.write(b" ")
    result = call("run", tiny_package, image_folder, "-o", tmp_path / "labels")
    assert result.code == 1
    assert result.err.startswith(f"Error: {tiny_package / 'weights.onnx'}: sha256 is ")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--bandwidth", "0"], "clustering.bandwidth is 0.0: input should be greater than 0"),
        (
            ["--min-size", "-1"],
            "min_size is -1: input should be greater than or equal to 0",
        ),
        (
            ["--method", "hdbscan", "--bandwidth", "-1"],
            "clustering.epsilon is -1.0: input should be greater than or equal to 0",
        ),
    ],
)
def test_an_impossible_flag_is_refused(call, image_folder, tmp_path, flags, sentence):
    assert_is_error(call("run", TINY, image_folder, "-o", tmp_path / "labels", *flags), sentence)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tile", "0"], "tile is 0: expected one number of pixels, or 2, each at least 1"),
        (
            ["--method", "consistency"],
            "consistency clustering needs the embedding of the momentum net, "
            "this package has none: use mean_shift or hdbscan",
        ),
    ],
)
def test_a_wish_that_no_image_can_meet_ends_the_run(call, image_folder, tmp_path, flags, sentence):
    result = call("run", TINY, image_folder, "-o", tmp_path / "labels", *flags)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(f"Error: {sentence}\n")
    assert not (tmp_path / "labels").exists()


@pytest.mark.skipif(find_gpu(), reason="there is one here")
def test_a_gpu_that_is_not_there_is_told(call, image_folder, tmp_path):
    result = call("run", TINY, image_folder, "-o", tmp_path / "labels", "--device", "cuda")
    assert result.code == 1
    assert result.err.startswith("Error: cuda was asked for, but ")
    assert result.err.count("\n") == 1


def test_a_full_disk_is_told_for_every_image_and_leaves_nothing(
    call, image_folder, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "labels"
    result = call("run", TINY, image_folder, "-o", out, "--overlay")
    assert (result.code, result.out) == (1, "")
    for name in "abc":
        assert (
            f"Error: {out / 'overlays' / name}.png: cannot be written (No space left on device): "
            "free space or choose another folder\n"
        ) in result.err
    assert result.err.endswith("0 of 3 images done\n")
    assert names_in(out) == []


def test_control_c_ends_with_130_and_leaves_no_part_of_a_file(
    call, image_folder, tmp_path, monkeypatch
):
    real, calls = os.fsync, []

    def interrupt(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(handle)

    monkeypatch.setattr(os, "fsync", interrupt)
    out = tmp_path / "labels"
    result = call("run", TINY, image_folder, "-o", out)
    assert result.code == 130
    assert "Traceback" not in result.err
    # two images are under way at a time; what is there is whole
    assert set(names_in(out)) < {"a.tif", "b.tif", "c.tif"}
    for name in names_in(out):
        assert read_labels(out / name).max() > 0


# --- evaluate


@pytest.fixture
def scored(paint, tmp_path):
    """Predictions, one without its first instance, and their truth."""
    folders = tmp_path / "predictions", tmp_path / "truth"
    for folder in folders:
        folder.mkdir()
    for name in "ab":
        truth = truth_of(paint, name).astype(np.uint16)
        tifffile.imwrite(folders[1] / f"{name}.tif", truth)
        tifffile.imwrite(
            folders[0] / f"{name}.tif", np.where(truth == 1, 0, truth) if name == "b" else truth
        )
    return folders


def test_scores_of_folders_are_told_as_a_table_and_as_json(call, scored, tmp_path):
    target = tmp_path / "scores" / "test.json"
    result = call("evaluate", *scored, "--json", target)
    assert result.code == 0
    evaluation = evaluate(*scored)
    for name, value in rows(evaluation):
        line = next(line for line in result.out.splitlines() if f" {name} " in line)
        assert value in line
    assert json.loads(target.read_text()) == evaluation.to_json()
    assert evaluation.summary.n_truth == 10
    assert evaluation.summary.n_predicted == 9


def test_two_files_are_scored(call, scored):
    result = call("evaluate", scored[0] / "a.tif", scored[1] / "a.tif")
    assert result.code == 0
    line = next(line for line in result.out.splitlines() if "AP50, all objects" in line)
    assert "1.0000" in line


def test_scores_that_are_there_are_kept_before_work_is_done(call, scored, tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    assert_is_error(
        call("evaluate", tmp_path / "none", tmp_path / "none", "--json", target),
        f"{target}: exists already: choose another name or add --overwrite",
    )
    assert target.read_text() == "old"
    assert call("evaluate", *scored, "--json", target, "--overwrite").code == 0
    assert json.loads(target.read_text())["summary"]["n_images"] == 2


def test_a_prediction_without_truth_is_told(call, scored):
    (scored[1] / "b.tif").unlink()
    result = call("evaluate", *scored)
    assert result.code == 1
    assert result.err.endswith(
        f"Error: {scored[0] / 'b.tif'}: no partner in {scored[1]}: "
        "expected a file of the same name in both folders\n"
    )
    assert result.out == ""


# --- validate


def test_a_package_that_opens_everywhere_it_is_for_ends_with_0(call):
    package = Path(__file__).parent.parent / "weights" / "nuclei-2d"
    result = call("validate", package)
    assert result.code == 0
    assert "results differ from the test tensor" in result.out
    last = result.out.splitlines()[-1]
    assert last == f"{package}: errors: 0, warnings: 1, for JDLL, bioimageio.core"


def test_findings_are_told_as_a_table_and_as_json(call, tiny_package, tmp_path):
    target = tmp_path / "findings.json"
    flags = ["--for", "jdll", "--for", "ILASTIK", "--json", target]
    result = call("validate", tiny_package, *flags)
    assert (result.code, result.err) == (1, "")
    assert "id is missing beside a config, which ends in an error: write an id" in result.out
    words = json.loads(target.read_text())
    assert words["consumers"] == ["JDLL", "ilastik"]
    assert {finding["consumer"] for finding in words["findings"]} == {"format", *words["consumers"]}
    count = len(words["findings"]) - words["errors"]
    assert result.out.endswith(f"errors: {words['errors']}, warnings: {count}, for JDLL, ilastik\n")


def test_findings_that_are_there_are_kept_before_work_is_done(call, tiny_package, tmp_path):
    target = tmp_path / "findings.json"
    target.write_text("mine")
    assert_is_error(
        call("validate", tmp_path / "none", "--json", target),
        f"{target}: exists already: choose another name or add --overwrite",
    )
    assert target.read_text() == "mine"
    assert call("validate", tiny_package, "--json", target, "--overwrite").code == 1
    assert json.loads(target.read_text())["errors"] > 0


def test_a_damaged_package_is_told_instead_of_findings(call, tiny_package):
    (tiny_package / "weights.onnx").write_bytes(b"no")
    result = call("validate", tiny_package)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"Error: {tiny_package / 'weights.onnx'}: sha256 is ")


# --- train, export, run, evaluate


@pytest.mark.uncounted
def test_from_images_to_scores(call, nuclei_data, tiny_spec, tmp_path, monkeypatch):
    """The four commands one after the other; the judge of the format is asked in test_export."""
    pytest.importorskip("torch")
    core = pytest.importorskip("bioimageio.core")
    passed = SimpleNamespace(status="passed")
    monkeypatch.setattr(core, "test_description", lambda *_, **__: passed)
    run, package = tmp_path / "run", tmp_path / "package"
    result = call(
        *("train", nuclei_data, "-o", run, "--spec", tiny_spec, "--device", "cpu"),
        *("--seed", 5, "--steps", 24),
    )
    assert result.code == 0, result.err
    assert result.out.startswith(f"{run}: done after 24 steps; validation: ")
    assert result.out.count("\n") == 1
    assert "step 20: validation AP " in result.err
    with (run / "history.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["10", "20", "24"]
    assert "seed: 5\n" in (run / "spec.yaml").read_text()

    result = call("export", run, package, "--engines", "installed")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        f"{package}: embeddings, proven",
        "to share on bioimage.io:",
        "  1. open the package in the program that it is for, once",
        "  2. make it a zip, with rdf.yaml at its top (a target NAME.zip is one already)",
        "  3. choose Upload on https://bioimage.io, log in, and give it the zip",
        "  4. its tests take some minutes; then a reviewer looks at it, and may ask you there",
    ]
    assert load_package(package).config.multiple_of == (2, 2)

    images, truth = nuclei_data / "val" / "images", nuclei_data / "val" / "labels"
    result = call("run", package, images, "-o", tmp_path / "labels")
    assert (result.code, result.out) == (0, "2 of 2 images done\n")

    result = call("evaluate", tmp_path / "labels", truth, "--json", tmp_path / "scores.json")
    assert result.code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [image["name"] for image in scores["images"]] == ["3.tif", "4.tif"]
    assert scores["summary"]["pooled_ap50"] > 0

    again = call("train", nuclei_data, "-o", run, "--spec", tiny_spec)
    assert (again.code, again.out) == (1, "")
    assert again.err.endswith(
        f"Error: {run}: holds a run already: choose another name, or --resume to go on\n"
    )
    other = call("train", nuclei_data, "-o", run, "--resume", "--seed", 6)
    assert (other.code, other.out) == (1, "")
    assert other.err.endswith(
        f"Error: {run}: was started with other settings, schedule.seed was 5 and is 6: "
        "resume with the spec and flags of its start\n"
    )


@pytest.mark.uncounted
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_training_can_be_stopped_and_resumed(
    call, start_python, nuclei_data, tiny_spec, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    run = tmp_path / "run"
    arguments = ["train", nuclei_data, "-o", run, "--device", "cpu"]
    fresh = [*arguments, "--spec", tiny_spec, "--steps", "60"]
    code = "import sys; from spoco_zoo.cli import main; main()"
    process = start_python("-c", code, *fresh)
    began = time.monotonic()
    while not (run / "last.pt").exists() and process.poll() is None:
        assert time.monotonic() - began < 100
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "stopping after this step; press Ctrl-C again to stop at once\n" in err
    assert "Traceback" not in err
    step = int(out.removeprefix(f"{run}: saved at step ").removesuffix("; go on with --resume\n"))
    assert 1 <= step < 60
    assert not (run / "recipe.json").exists()

    assert_is_error(
        call("export", run, tmp_path / "package"),
        f"{run}: no recipe.json: expected the folder of a finished run; "
        "finish it with train --resume",
    )
    result = call(*arguments, "--resume")
    assert result.code == 0
    assert result.out.startswith(f"{run}: done after 60 steps; validation: ")
    assert (run / "recipe.json").exists()


def test_training_that_runs_out_of_time_ends_well(call, nuclei_data, tiny_spec, tmp_path):
    pytest.importorskip("torch")
    run = tmp_path / "run"
    result = call(
        *("train", nuclei_data, "-o", run, "--spec", tiny_spec, "--max-minutes", 0),
        *("--instance-ratio", 0.5, "--label-zero", "background", "--device", "cpu"),
    )
    assert (result.code, result.out) == (0, f"{run}: saved at step 1; go on with --resume\n")
    spec = (run / "spec.yaml").read_text()
    assert "instance_ratio: 0.5\n" in spec


def test_the_labelled_part_of_all_instances_lets_sparse_labels_learn_foreground(
    call, nuclei_data, tiny_spec, tmp_path
):
    pytest.importorskip("torch")
    run = tmp_path / "run"
    words = ["train", nuclei_data, "-o", run, "--spec", tiny_spec, "--device", "cpu"]
    words += ["--max-minutes", 0, "--labelled-ratio", 0.3]
    assert_is_error(
        call(*words),
        "settings: loss.labelled_ratio is 0.3 while data.label_zero is background, which says that "
        "everything is labelled: make label_zero unlabeled, or leave the ratio out",
    )
    result = call(*words, "--label-zero", "unlabeled")
    assert (result.code, result.out) == (0, f"{run}: saved at step 1; go on with --resume\n")
    assert "labelled_ratio: 0.3\n" in (run / "spec.yaml").read_text()


def test_training_starts_from_another_run_and_its_network(call, nuclei_data, tiny_run, tmp_path):
    pytest.importorskip("torch")
    run = tmp_path / "run"
    result = call(
        *("train", nuclei_data, "-o", run, "--from", tiny_run, "--max-minutes", 0),
        *("--label-zero", "unlabeled", "--device", "cpu"),
    )
    assert (result.code, result.out) == (0, f"{run}: saved at step 1; go on with --resume\n")
    assert "the foreground head of the start is left out\n" in result.err
    assert "widths:\n  - 4\n  - 8\n" in (run / "spec.yaml").read_text()
    facts = json.loads((run / "environment.json").read_text())
    assert facts["started_from"]["source"] == str(tiny_run)
    nowhere = call("train", nuclei_data, "-o", run, "--from", tmp_path / "nowhere")
    assert_is_error(
        nowhere,
        f"{tmp_path / 'nowhere'}: no such run or package: expected a run folder, or a package as "
        "folder or zip",
    )


def test_only_the_first_process_of_a_machine_speaks(call, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = call("evaluate", tmp_path / "none", tmp_path / "none")
    assert (result.code, result.out, result.err) == (1, "", "")


def test_training_says_what_is_wrong(call, nuclei_data, tiny_spec, tmp_path):
    pytest.importorskip("torch")
    assert_is_error(
        call("train", nuclei_data, "-o", tmp_path / "run", "--steps", 0),
        "settings: schedule.steps is 0: input should be greater than or equal to 1",
    )
    assert_is_error(
        call("train", nuclei_data, "-o", tmp_path / "run", "--spec", tmp_path / "none.yaml"),
        f"{tmp_path / 'none.yaml'}: cannot be read (No such file or directory): "
        "expected a spec in YAML",
    )
    assert_is_error(
        call("train", nuclei_data, "-o", tiny_spec, "--spec", tiny_spec),
        f"--out is {tiny_spec}, which is a file: expected a folder for the run",
    )
    result = call("train", nuclei_data, "-o", tmp_path / "run", "--spec", tiny_spec, "--resume")
    assert result.code == 1
    assert result.err.endswith(
        f"Error: {tmp_path / 'run' / 'last.pt'}: no such checkpoint to resume from: "
        "start without --resume\n"
    )
    assert not (tmp_path / "run").exists()


def test_export_keeps_what_is_there(call, tmp_path):
    pytest.importorskip("torch")
    result = call("export", tmp_path / "run", tmp_path)
    assert result.code == 1
    assert result.err.endswith(
        f"Error: {tmp_path}: exists already: choose another name or add --overwrite\n"
    )


def test_names_that_look_like_markup_are_printed_as_they_are(call, tiny_package, tmp_path):
    image = np.zeros((12, 12), np.uint8)
    image[3:9, 3:9] = 200
    path = tmp_path / "scan[day 1][-y].tif"
    tifffile.imwrite(path, image)
    result = call("run", tiny_package, path, "-o", tmp_path / "out")
    assert "scan[day 1][-y].tif: " in result.err


# --- packages of others


def test_a_package_of_others_runs_with_flags(call, make_stranger, image_folder, paint, tmp_path):
    out = tmp_path / "labels"
    flags = ("--bandwidth", "0.5", "--min-size", "4", "--overlay")
    result = call("run", make_stranger(), image_folder, "-o", out, *flags)
    assert result.code == 0
    assert result.out == "3 of 3 images done\n"
    for name in "abc":
        assert (read_labels(out / f"{name}.tif") == truth_of(paint, name)).all()
        assert (out / "overlays" / f"{name}.png").exists()


def test_a_package_of_others_asks_for_what_it_does_not_say(
    call, make_stranger, image_folder, tmp_path
):
    result = call("run", make_stranger(), image_folder, "-o", tmp_path / "labels")
    assert_is_error(
        result,
        "Stranger gives embeddings and no recipe for instances: give --bandwidth, or fit a recipe "
        "on a labelled image (spoco-zoo fit) and give it with --recipe",
    )
    assert not (tmp_path / "labels").exists()


def test_a_recipe_is_fitted_and_then_used(call, make_stranger, image_folder, paint, tmp_path):
    package, recipe = make_stranger(), tmp_path / "recipe.json"
    labels = tmp_path / "truth.tif"
    tifffile.imwrite(labels, truth_of(paint, "a"))
    told = call("fit", package, image_folder / "a.tif", labels, "-o", recipe)
    assert told.code == 0
    assert told.out.startswith(f"{recipe}: the best of ")
    assert "; on this image: ap50 1.000, " in told.out
    again = call("fit", package, image_folder / "a.tif", labels, "-o", recipe)
    assert_is_error(again, f"{recipe}: exists already: choose another name or add --overwrite")
    result = call("run", package, image_folder, "-o", tmp_path / "out", "--recipe", recipe)
    assert result.code == 0
    for name in "abc":
        found = read_labels(tmp_path / "out" / f"{name}.tif")
        assert found.max() == truth_of(paint, name).max()


def test_boundaries_and_labels_of_others_run_too(call, make_foreign, image_folder, tmp_path):
    maps = {"maps": ("bcyx", ["foreground", "boundary"], {})}
    package = make_foreign("foreign/boundaries.onnx", maps, halo=2)
    result = call("run", package, image_folder / "a.tif", "-o", tmp_path / "a.tif")
    assert f"{tmp_path / 'a.tif'}: " in result.err
    assert read_labels(tmp_path / "a.tif").max() >= 4
    ids = {"labels": ("bcyx", "l", {"data": {"type": "int32"}})}
    package = make_foreign("foreign/labels.onnx", ids)
    call("run", package, image_folder / "a.tif", "-o", tmp_path / "b.tif")
    assert read_labels(tmp_path / "b.tif").max() == 5


def test_an_image_that_does_not_fit_a_package_of_others_is_named(
    call, make_stranger, image_folder, tmp_path
):
    np.save(tmp_path / "wide.npy", np.zeros((8, 8, 3), np.uint8))
    result = call(
        "run", make_stranger(), tmp_path / "wide.npy", "-o", tmp_path / "o", "--bandwidth", "1"
    )
    assert result.code == 1
    assert (
        f"Error: {tmp_path / 'wide.npy'}: image has 3 channels: Stranger was trained on 1; "
        "select or convert channels first"
    ) in result.err
