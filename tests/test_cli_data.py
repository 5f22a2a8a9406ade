"""The command that looks at data: what it prints, draws and refuses."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from spoco_zoo import cli
from spoco_zoo.figures import label_colors

TABLE = """\
images                │ 2
size (y, x)           │ 40 x 60
channels              │ 1
pixels                │ uint8
labels                │ uint16
pixel size, µm        │ not known
instances             │ 2
per image, median     │ 1 (0 to 2)
pixels of one, median │ 60 (20 to 100)
µm² of one, median    │ not known
label 0 (-1)          │ 97.5% (0.0%)
"""


@pytest.fixture
def call(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["spoco-zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def data(tmp_path):
    labels = np.zeros((40, 60), np.uint16)
    labels[:10, :10], labels[20:24, 30:35] = 1, 2
    for name, values in (("a", labels), ("b", labels * 0)):
        for part, pixels in (("images", (values * 90).astype(np.uint8)), ("labels", values)):
            (tmp_path / "data/train" / part).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(tmp_path / "data/train" / part / f"{name}.tif", pixels)
    return tmp_path / "data"


def test_it_prints_what_would_be_read(call, data):
    result = call("inspect", data)
    assert result.code == 0
    lines = [line.strip("│┃ ") for line in result.out.splitlines()]
    assert lines[0] == f"{data}: layout folders"
    assert [line for line in lines if " │ " in line] == [
        line.rstrip() for line in TABLE.splitlines()
    ]
    end = lines.index("Warning: train: 1 of 2 images have the same value in every pixel (b)")
    assert lines[end:] == [
        "Warning: train: 1 of 2 images have the same value in every pixel (b)",
        "Warning: train: 1 of 2 images have no instance (b)",
        "Warning: train: 2 of 2 images have fewer pixels than the crop [128, 128], so are "
        "mirrored (a, b)",
        "Warning: val is missing: training needs some labelled images there",
        "For the spec:",
        "net.dimensions: 2",
        "schedule.crop: [40, 56]",
    ]


def test_the_spec_says_what_is_expected(call, data, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("net: {dimensions: 3}\nschedule: {crop: [8, 16, 16]}\n")
    result = call("inspect", data, "--spec", spec)
    assert (result.code, result.out) == (1, "")
    path = data / "train/images/a.tif"
    assert result.err.splitlines()[-1] == (
        f"Error: {path}: image has 2 space axes: expected 3; set net.dimensions in the spec"
    )


def test_a_sheet_is_drawn_and_not_written_over(call, data, tmp_path):
    sheet = tmp_path / "sheet.png"
    result = call("inspect", data, "-o", sheet)
    assert result.out.splitlines()[-1] == f"{sheet}: written"
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture)
    # two pictures of 240 x 160 beside each other, with their names under them
    assert pixels.shape == (160 + 20 + 2 * 12, 2 * 240 + 3 * 12, 3)
    colors = {tuple(color) for color in pixels.reshape(-1, 3).tolist()}
    assert {tuple(color) for color in label_colors(2)[1:].tolist()} <= colors
    before = sheet.read_bytes()
    result = call("inspect", data, "-o", sheet)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"Error: {sheet}: exists already: choose another name or add --overwrite\n"
    )
    assert sheet.read_bytes() == before
    result = call("inspect", data, "-o", tmp_path / "sheet.tif")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"Error: --out is {tmp_path / 'sheet.tif'}: expected a name that ends in .png\n"
    )
    assert call("inspect", data, "-o", sheet, "--overwrite").code == 0


def test_a_volume_is_drawn_too(call, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
        np.save(tmp_path / "train" / part / "deep.npy", np.ones((5, 30, 20), np.uint8))
    assert call("inspect", tmp_path, "-o", tmp_path / "sheet.png").code == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (160 + 24, 240 + 20 + 24)
