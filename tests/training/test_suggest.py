"""What to label next: disagreement counts, and nothing that is the same for both networks."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import csv
import json
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import roifile
import tifffile
from PIL import Image

from spoco_zoo import cli
from spoco_zoo.errors import ImageError, MissingExtraError, OutputError, SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.polygons import kind_of
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import LossSettings, parse_spec
from spoco_zoo.training import suggest
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import NetOutput, UNet
from spoco_zoo.training.suggest import (
    Region,
    Suggester,
    disagreement,
    plan_regions,
    rank_images,
    rank_regions,
)
from spoco_zoo.training.suggestion_files import check_target, contact_sheet, write_suggestions

torch.set_num_threads(1)

KNOWN, UNKNOWN, FAINT = 1.0, 2.0, 3.0


class HandMade(UNet):
    """Embeds by brightness: each known object as one; of unknown ones g tells halves apart.

    g is turned by a right angle and moved. The head is sure of known objects and doubts others.
    """

    def __init__(self, has_head):
        super().__init__(1, 2, (1, 1), ((2, 2),), foreground_head=has_head)
        self.is_g = False

    def embed(self, image):
        grey = image[0, 0]
        split = (grey == UNKNOWN) & (torch.arange(grey.shape[1]) % 2 == 0) & self.is_g
        f = torch.stack([10 * grey, 5.0 * split])
        embedding = torch.stack([7 - f[1], f[0] - 3]) if self.is_g else f
        logit = None
        if self.has_foreground_head:
            sure = torch.where(grey >= UNKNOWN, 0.0, 8.0)
            logit = torch.where(grey == 0, -8.0, sure)[None, None]
        return NetOutput(embedding[None], logit)


def make_suggester(rule, crop=(16, 16), min_size=10, **net):
    words = {
        "data": {"normalization": {"id": "fixed_zero_mean_unit_variance", "mean": [0], "std": [1]}},
        "net": {"in_channels": 1, "widths": [4, 8], "embedding_dim": 2, **net},
        "schedule": {"crop": list(crop)},
    }
    spec = parse_spec(words, "test")
    pair = MomentumPair(HandMade(isinstance(rule, Head)))
    pair.momentum_net.is_g = True
    recipe = Recipe(foreground=rule, min_size=min_size)
    return Suggester(spec, pair, recipe, torch.device("cpu"))


BACKGROUND = Prototype(center=(0.0, 0.0), radius=1.0)


@pytest.fixture
def scene(tmp_path):
    """Four regions of 16 pixels: known objects, unknown ones, nothing, a speck."""
    image = np.zeros((16, 64), np.float32)
    image[2:8, 2:8] = image[9:15, 18:24] = KNOWN
    image[2:8, 18:24] = image[2:8, 25:31] = UNKNOWN
    image[4:6, 52:54] = UNKNOWN
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, image)
    return path


# --- what counts


@pytest.mark.parametrize("rule", [BACKGROUND, Head()])
def test_objects_of_a_kind_never_seen_come_first(scene, rule):
    regions = make_suggester(rule).look(scene)
    assert [r.start for r in regions] == [(0, 0), (0, 16), (0, 32), (0, 48)]
    known, unknown, nothing, speck = regions
    assert rank_regions(regions)[0] is unknown
    assert known.disagreement == pytest.approx(0.0, abs=1e-5)
    # halves against a whole, 2/3 of Dice, around anchors that know two of three objects not
    assert 0.1 < unknown.disagreement < 1 / 3
    assert nothing.score == speck.score == 0.0
    assert (known.coverage, speck.coverage) == (36 / 256, 0.0)
    if isinstance(rule, Head):
        assert known.uncertainty == pytest.approx(0.0, abs=0.01)
        # 72 pixels at even odds and 36 that are sure
        assert unknown.uncertainty == pytest.approx(2 / 3, abs=0.01)
        assert nothing.uncertainty == 0.0
    else:
        assert {r.uncertainty for r in regions} == {None}


def test_anchors_may_lie_anywhere_where_no_rule_says_otherwise(scene):
    for rule in (Everywhere(), External()):
        regions = make_suggester(rule).look(scene)
        assert {r.coverage for r in regions} == {1.0}
        known, unknown, nothing, speck = (r.disagreement for r in regions)
        assert known == pytest.approx(nothing, abs=1e-5)
        assert min(unknown, speck) > 0.05


@pytest.fixture
def embedding():
    """Blurred blobs far from each other, on 12 x 12 pixels."""
    random = np.random.default_rng(0)
    centers = random.normal(0, 5, (4, 3))
    index = np.kron(np.arange(4).reshape(2, 2), np.ones((6, 6), int))
    pixels = centers[index] + random.normal(0, 0.2, (12, 12, 3))
    return torch.from_numpy(np.moveaxis(pixels, -1, 0)).float()


def test_turning_and_moving_one_embedding_changes_nothing(embedding):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    moved = torch.einsum("ij,jyx->iyx", turn, embedding) + 11.0
    everywhere = np.ones((12, 12), bool)
    assert disagreement((embedding, moved), everywhere, LossSettings()) == pytest.approx(
        0, abs=1e-4
    )
    other = embedding.clone()
    other[:, :6, :3] += 5.0
    assert disagreement((embedding, other), everywhere, LossSettings()) > 0.05


def test_disagreement_counts_where_instances_may_lie(embedding):
    other = embedding.clone()
    other[:, :6, :3] += 5.0
    place = np.zeros((12, 12), bool)
    assert disagreement((embedding, other), place, LossSettings()) == 0.0
    place[6:, 6:] = True
    assert disagreement((embedding, other), place, LossSettings()) == pytest.approx(0, abs=1e-5)
    place[:6, :6] = True
    assert disagreement((embedding, other), place, LossSettings()) > 0.1


def test_the_score_asks_for_both_doubts_and_for_something_to_label():
    def score(*found):
        return Region(Path("a"), (0, 0), (8, 8), *found).score

    assert score(0.16, None, 0.02) == pytest.approx(0.08)
    assert score(0.16, 0.64, 0.02) == pytest.approx(0.16)
    assert score(0.16, 0.64, 0.5) == pytest.approx(0.32 * 25 / 26)
    assert score(0.16, 0.0, 0.5) == score(0.0, None, 0.0) == 0.0


# --- regions


@pytest.mark.parametrize(
    ("n", "starts"),
    [
        (10, [0]),
        (16, [0]),
        (20, [2]),
        (21, [0, 5]),
        (32, [0, 16]),
        (36, [0, 20]),
        (37, [0, 10, 21]),
        (64, [0, 16, 32, 48]),
    ],
)
def test_regions_are_spread_evenly(n, starts):
    boxes = list(plan_regions((8, n), (8, 16)))
    assert boxes == [(slice(0, 8), slice(a, a + min(n, 16))) for a in starts]


def test_regions_of_a_volume_go_along_every_axis():
    boxes = list(plan_regions((8, 16, 16), (4, 8, 8)))
    assert len(boxes) == 8
    assert boxes[1] == (slice(0, 4), slice(0, 8), slice(8, 16))


def test_images_are_ordered_by_their_mean():
    def region(name, score):
        return Region(Path(name), (0, 0), (8, 8), score, None, 1.0)

    found = [region("a", 0.2), region("a", 0.9), region("b", 0.6), region("b", 0.6)]
    ranked = rank_images(found)
    assert [path.name for path, _, _ in ranked] == ["b", "a"]
    assert ranked[1][2] == found[1].score
    assert [r.image.name for r in rank_regions(found)] == ["a", "b", "b", "a"]


def test_a_large_image_is_embedded_in_parts_that_see_the_same(make_run, tmp_path, monkeypatch):
    words = {
        "net": {"in_channels": 1, "widths": [4, 6, 8], "embedding_dim": 3},
        "schedule": {"crop": [20, 24]},
    }
    run = make_run(words, {"foreground": {"rule": "everywhere"}})
    image = np.random.default_rng(0).normal(0, 1, (90, 103)).astype(np.float32)
    tifffile.imwrite(tmp_path / "noise.tif", image)
    suggester = Suggester.open(run, "cpu")
    with torch.no_grad():
        for parameter in suggester.pair.momentum_net.parameters():
            parameter.mul_(1.2)
    whole = suggester.look(tmp_path / "noise.tif")
    monkeypatch.setattr(suggest, "_WHOLE", 0)
    parts = suggester.look(tmp_path / "noise.tif")
    assert len(whole) == 25
    assert max(r.score for r in whole) > 0
    assert [r.start for r in parts] == [r.start for r in whole]
    for part, same in zip(parts, whole, strict=True):
        assert part.score == pytest.approx(same.score, abs=1e-5)


def test_an_image_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "colour.tif"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    with pytest.raises(ImageError) as error:
        make_suggester(BACKGROUND).look(path)
    assert str(error.value) == (
        f"{path}: image has 2 space axes and 3 channels: expected 2 and 1, as in the training; "
        "choose images of the same kind"
    )


# --- files


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_lead_to_the_regions(scene, tmp_path):
    regions = make_suggester(Head()).look(scene)
    out = tmp_path / "out"
    write_suggestions(regions, out, 2, 2)
    rows = read_csv(out / "regions.csv")
    first = rank_regions(regions)[0]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0] == {
        "rank": "1",
        "image": str(scene),
        "y": "0",
        "x": "16",
        "size_y": "16",
        "size_x": "16",
        "disagreement": f"{first.disagreement:.4f}",
        "uncertainty": f"{first.uncertainty:.4f}",
        "coverage": "0.4219",
        "score": f"{first.score:.4f}",
    }
    (image,) = read_csv(out / "images.csv")
    assert image["image"] == str(scene)
    assert image["highest_score"] == f"{first.score:.4f}"
    with ZipFile(out / "rois" / "scene.zip") as archive:
        rois = [roifile.ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert [roi.name[:9] for roi in rois] == ["01 score ", "02 score "]
    assert rois[0].roitype == roifile.ROI_TYPE.RECT
    assert (rois[0].top, rois[0].left, rois[0].bottom, rois[0].right) == (0, 16, 16, 32)
    assert rois[0].position == 0
    told = json.loads((out / "geojson" / "scene.geojson").read_text())
    assert told["type"] == "FeatureCollection"
    feature = told["features"][0]
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[16, 0], [32, 0], [32, 16], [16, 16], [16, 0]]],
    }
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": rois[0].name.removesuffix(" region*"),
        "classification": {"name": "region*"},
        "rank": 1,
        "score": round(first.score, 4),
    }
    assert len(told["features"]) == 2
    # saved beside labels they are no instances
    assert {kind_of(roi.name) for roi in rois} == {None}
    assert kind_of(feature["properties"]["classification"]["name"]) is None
    with Image.open(out / "regions.png") as sheet:
        assert sheet.size == (2 * 202 + 10, 238 + 10)
    before = [(p, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()]
    write_suggestions(regions, out, 2, 2)
    assert before == [(p, p.read_bytes()) for p in sorted(out.rglob("*")) if p.is_file()]


def test_of_a_volume_the_middle_plane_is_marked_and_shown(tmp_path):
    volume = np.zeros((6, 8, 8), np.uint8)
    volume[4, 2:6, 2:6] = 200
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, volume, metadata={"axes": "ZYX"}, imagej=True)
    region = Region(path, (2, 0, 0), (4, 8, 8), 0.5, None, 1.0)
    write_suggestions([region], tmp_path / "out", 5, 3)
    (row,) = read_csv(tmp_path / "out" / "regions.csv")
    assert [row[n] for n in ("z", "y", "x", "size_z", "size_y", "size_x")] == list("200488")
    assert row["uncertainty"] == ""
    with ZipFile(tmp_path / "out" / "rois" / "deep.zip") as archive:
        roi = roifile.ImagejRoi.frombytes(archive.read(archive.namelist()[0]))
    assert roi.position == 5  # ImageJ counts from 1
    told = json.loads((tmp_path / "out" / "geojson" / "deep.geojson").read_text())
    assert told["features"][0]["geometry"]["plane"] == {"c": -1, "z": 4, "t": 0}
    sheet = contact_sheet([(1, region)])
    assert sheet[10 + 96, 10 + 96].tolist() == [255, 255, 255]
    assert sheet[12, 12].tolist() == [0, 0, 0]


def test_a_rectangle_that_imagej_cannot_hold_is_in_the_geojson_alone(tmp_path):
    path = tmp_path / "wide.tif"
    tifffile.imwrite(path, np.zeros((8, 32780), np.uint8))
    far, near = (Region(path, (0, x), (8, 8), 0.5, None, 1.0) for x in (32760, 32750))
    write_suggestions([far], tmp_path / "out", 5, 2)
    assert not (tmp_path / "out" / "rois").exists()
    assert (tmp_path / "out" / "geojson" / "wide.geojson").exists()
    write_suggestions([far, near], tmp_path / "out", 5, 2)
    with ZipFile(BytesIO((tmp_path / "out" / "rois" / "wide.zip").read_bytes())) as archive:
        assert archive.namelist() == ["01 score 0.490.roi"]


def test_rows_of_the_sheet_hold_five_pictures_and_long_names_are_cut(tmp_path):
    path = tmp_path / f"{'long' * 20}.tif"
    tifffile.imwrite(path, np.arange(64, dtype=np.uint8).reshape(8, 8))
    region = Region(path, (0, 0), (8, 4), 0.5, None, 1.0)
    sheet = contact_sheet([(rank, region) for rank in range(1, 8)])
    assert sheet.shape == (2 * 238 + 10, 5 * 202 + 10, 3)
    assert (sheet[:, :10] == 255).all()
    assert (sheet[:248, 10 + 192 : 10 + 202] == 255).all()  # no caption runs into the next


# --- what is wrong


def refuse(error_class, *arguments, **options):
    with pytest.raises(error_class) as error:
        check_target(*arguments, **options)
    return str(error.value)


def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "regions.csv").write_text("")
    images, out = [Path("a/1.tif"), Path("b/1.png")], tmp_path / "out"
    assert refuse(SettingError, [], out, 0, overwrite=True) == (
        "--count is 0: expected at least 1 region"
    )
    assert refuse(SettingError, [], out / "regions.csv", 1, overwrite=True) == (
        f"--out is {out / 'regions.csv'}, which is a file: expected a folder"
    )
    assert refuse(ImageError, images, out, 1, overwrite=True) == (
        f"{Path('a/1.tif')} and {Path('b/1.png')}: have the same name, and files are named after "
        "them: rename one of them"
    )
    assert refuse(OutputError, images[:1], out, 1, overwrite=False) == (
        f"{out / 'regions.csv'}: exists already: choose another name or add --overwrite"
    )
    check_target(images[:1], out, 1, overwrite=True)
    monkeypatch.setitem(sys.modules, "roifile", None)
    assert refuse(MissingExtraError, images[:1], out, 1, overwrite=True) == (
        "suggestions for Fiji need roifile: pip install 'spoco-zoo[train]'"
    )


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


def test_the_command_ranks_and_an_unreadable_image_stops_no_other(call, make_run, tmp_path):
    words = {"net": {"in_channels": 1, "widths": [4, 8]}, "schedule": {"crop": [16, 16]}}
    run = make_run(words, {"foreground": {"rule": "head"}})
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        tifffile.imwrite(images / f"{name}.tif", random.normal(0, 1, (32, 40)).astype(np.float32))
    flags = ("-o", tmp_path / "out", "--device", "cpu")
    result = call("suggest", run, images, *flags)
    assert (result.code, result.out) == (
        0,
        f"{tmp_path / 'out'}: the first 12 of 12 regions are in regions.png\n",
    )
    assert len(read_csv(tmp_path / "out" / "images.csv")) == 2
    (images / "b.tif").write_bytes(b"II")
    result = call("suggest", run, images, *flags, "--overwrite", "--count", 2)
    assert result.code == 1
    assert result.out == f"{tmp_path / 'out'}: the first 2 of 6 regions are in regions.png\n"
    assert result.err.endswith("1 of 2 images done\n")
    assert f"Error: {images / 'b.tif'}: cannot be read as TIF (" in result.err
    result = call("suggest", tmp_path, images, *flags, "--overwrite")
    assert result.err.endswith(
        f"Error: {tmp_path}: no recipe.json: expected the folder of a finished run; "
        "finish it with train --resume\n"
    )
