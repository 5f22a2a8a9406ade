"""How few labels are enough: a network for every share of labelled objects, and its baseline.

    OUT/
    ├── spec.yaml                        the recipe that all cells share
    ├── ratio-0.10-seed-1/               a run, as `loop` leaves it: SPOCO
    ├── baseline-ratio-0.10-seed-1/      the same labelled objects by the contrastive loss alone
    ├── ...
    ├── budget.json                      scores of every cell, and their medians over the seeds
    ├── budget.csv                       the cells as a table
    └── budget.png                       AP and SBD against labelled objects

The data must be labelled completely: the grid takes labels away, as if nobody had drawn them, so
that one end of the curve is full supervision. Objects are taken by ratio and seed as in any run
(`data.instance_ratio`, `data.instance_seed`), smaller ratios within larger ones; the seed is also
that of weights and crops. Validation images keep all their labels.

The baseline is the contrastive loss as it was before SPOCO: pull, push and norm (De Brabandere et
al. 2017). No term of any weight looks at unlabeled pixels; norm, at a thousandth, takes their mean
along. So below ratio 1, unless some background is labelled or learnt from boundaries
(`data.boundary_width`), its network has no foreground head either: the embedding must say what is
background.

The foreground head is no part of the published method, and learns from unlabeled pixels too. What
it brings by itself is told by a third network, if asked for: `head`, the baseline with that head.
It differs from SPOCO by the loss of the embedding alone.
"""

import csv
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch

from spoco_zoo.datasets import expect_alike, find_pairs
from spoco_zoo.errors import SettingError
from spoco_zoo.files import write_bytes
from spoco_zoo.fitting import main_scores, score_recipe
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.spec import LossSettings, Spec, change_spec, dump_spec, load_spec
from spoco_zoo.training.budget_figure import Point, draw_budget
from spoco_zoo.training.checkpoints import load_run, tell_change
from spoco_zoo.training.loop import train
from spoco_zoo.training.options import TrainOptions
from spoco_zoo.training.samples import read_samples
from spoco_zoo.training.schedule import pick_device
from spoco_zoo.training.validation import embed_all

Method = Literal["spoco", "baseline", "head"]
METHODS: tuple[Method, ...] = get_args(Method)  # in the order in which they are trained
Split = Literal["val", "test"]


@dataclass(frozen=True)
class Grid:
    """Which networks are trained: every ratio with every seed, by each of the methods."""

    ratios: tuple[float, ...]
    seeds: int = 3
    split: Split = "val"
    methods: tuple[Method, ...] = ("spoco", "baseline")

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise SettingError(
                f"ratios are {list(self.ratios)}: expected at least one number above 0 and up to 1"
            )
        if self.seeds < 1:
            raise SettingError(f"seeds is {self.seeds}: expected at least 1")
        if not self.methods:
            raise SettingError("methods is empty: expected at least one")

    @property
    def cells(self) -> list["Cell"]:
        """All cells, one seed after the other, so that a whole curve is there early.

        With all labels every network has a head that it learns from labelled background, so that
        `head` would be the baseline once more where both are asked for.
        """
        is_twice = "baseline" in self.methods
        return [
            Cell(method, ratio, seed)
            for seed in range(1, self.seeds + 1)
            for ratio in sorted(set(self.ratios))
            for method in METHODS
            if method in self.methods and not (is_twice and method == "head" and ratio == 1)
        ]


@dataclass(frozen=True)
class Cell:
    """One network of the grid."""

    method: Method
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        """That of its run folder."""
        short = f"{self.ratio:.2f}"
        ratio = short if float(short) == self.ratio else f"{self.ratio:g}"
        return (
            f"{'' if self.method == 'spoco' else f'{self.method}-'}ratio-{ratio}-seed-{self.seed}"
        )


@dataclass(frozen=True)
class CellScores:
    """What became of a cell: labels that it had, and scores as in `recipe.json` of a run."""

    method: Method
    ratio: float
    seed: int
    labelled_objects: int
    ap50: float
    mean_ap: float
    sbd: float
    count_difference: float
    best_step: int
    folder: str


@dataclass(frozen=True)
class Budget:
    """The finished cells of a grid, and how many it has."""

    folder: Path
    split: Split
    scores: tuple[CellScores, ...]
    n_cells: int
    has_head: bool = True  # whether all networks of SPOCO say foreground by themselves

    @property
    def is_finished(self) -> bool:
        """Whether every cell has its scores."""
        return len(self.scores) == self.n_cells


def run_budget(
    spec: Spec,
    data: Path,
    out: Path,
    grid: Grid,
    options: TrainOptions,
    on_cell: Callable[[int, Cell], None] = lambda number, cell: None,
) -> Budget:
    """Train and score the grid on `data/{train,val}/{images,labels}`.

    Finished cells are skipped and unfinished ones resumed, so the same call goes on after
    `options.should_stop` or `options.max_minutes`, which is the time of the whole grid. Files
    are written anew after every cell.

    Args:
        spec: The recipe of every cell, but for what `cell_spec` changes.
        data: Completely labelled images; a folder `test` too where the grid asks for its scores.
        out: Folder of the grid.
        grid: Ratios and seeds.
        options: Device and callbacks of the trainings; `resume` is not looked at.
        on_cell: Told the number of each cell, from 1, and the cell, before it starts.

    Raises:
        ImageError: Images or labels are missing or do not fit together.
        SettingError: `out` holds a grid of another spec, or a cell does not fit its folder.
        DeviceError: The device is not there.
    """
    deadline = math.inf
    if options.max_minutes is not None:
        deadline = time.monotonic() + 60 * options.max_minutes
    for cell in grid.cells:
        cell_spec(spec, cell)
    splits = dict.fromkeys(("train", "val", grid.split))
    # what is missing is said before hours are spent
    pairs = [find_pairs(data, split, spec.data, spec.net.dimensions) for split in splits]
    expect_alike([source for sources in pairs for source in sources])
    _claim(out, spec)
    for cell in grid.cells:
        _is_held(spec, out / cell.name, cell)
    for number, cell in enumerate(grid.cells, start=1):
        left = (deadline - time.monotonic()) / 60
        if options.should_stop() or left <= 0:
            break
        on_cell(number, cell)
        wishes = replace(options, max_minutes=None if math.isinf(left) else left)
        if not _finish_cell(spec, data, out / cell.name, cell, wishes):
            break
        if grid.split == "test":
            _score_test(data, out / cell.name, options.device)
        write_budget(collect(out, grid))
    return collect(out, grid)


def cell_spec(spec: Spec, cell: Cell) -> Spec:
    """Make the recipe of one cell out of that of the grid.

    Below ratio 1 label 0 means unlabeled, and the terms of SPOCO that act on unlabeled pixels
    have their usual weight where the recipe left them out, as one for complete labels does. At
    ratio 1 everything is known and consistency has nothing to say; where background is painted
    (`data.background_label`), 0 stays what it is.

    The foreground head is told which part of the objects is labelled, which is the ratio: who
    labels some objects knows about that much. The baseline has none where no background is known.

    Raises:
        SettingError: The method is `head`, and networks of this spec have none; or the spec is
            impossible with the labels of the cell.
    """
    if cell.method == "head" and not _wants_foreground(spec):
        raise SettingError(
            "methods holds head, and the spec wants no foreground head: leave head out, or set "
            "net.foreground_head to true"
        )
    usual, loss = LossSettings(), spec.loss
    # where background is painted, or in tissue without any, 0 is no object and may be unlabeled
    is_painted = spec.data.background_label is not None
    is_dense = spec.clustering.foreground == "everywhere" or spec.data.boundary_width > 0
    zero = spec.data.label_zero if is_painted or is_dense else "background"
    is_sparse = cell.ratio < 1
    changes: dict[str, dict[str, Any]] = {
        "data": {
            "label_zero": "unlabeled" if is_sparse else zero,
            "validation_label_zero": spec.data.validation_label_zero or zero,
            "instance_ratio": cell.ratio,
            "instance_seed": cell.seed,
        },
        "schedule": {"seed": cell.seed},
        "loss": {"consistency_weight": 0.0},
    }
    if is_sparse:
        changes["loss"] |= {
            "unlabeled_push_weight": loss.unlabeled_push_weight or usual.unlabeled_push_weight,
            "consistency_weight": loss.consistency_weight or usual.consistency_weight,
            "labelled_ratio": cell.ratio if _wants_foreground(spec) else None,
        }
    if cell.method != "spoco":
        names = ("unlabeled_push_weight", "instance_weight", "consistency_weight")
        changes["loss"] |= dict.fromkeys(names, 0.0)
    if cell.method == "baseline" and is_sparse:
        changes["loss"].pop("labelled_ratio")
        terms = spec.loss.model_copy(update={"labelled_ratio": None})
        spec = spec.model_copy(update={"loss": terms})
        if spec.data.background_label is None and not spec.data.boundary_width:
            changes["net"] = {"foreground_head": False}
            if spec.clustering.foreground == "head":
                changes["clustering"] = {"foreground": "auto"}
    if not is_sparse and (zero == "background" or spec.data.knows_background):
        # a head has background to learn from, and no labels are left to be guessed
        terms = spec.loss.model_copy(update={"labelled_ratio": None})
        spec = spec.model_copy(update={"loss": terms})
    return change_spec(spec, changes)


def collect(out: Path, grid: Grid) -> Budget:
    """Read the scores of the finished cells of a grid."""
    scores = []
    cells, heads = grid.cells, []
    for cell in cells:
        folder = out / cell.name
        source = folder / ("recipe.json" if grid.split == "val" else _TEST_SCORES)
        if not (folder / "recipe.json").is_file() or not source.is_file():
            continue
        fitted = _read_json(folder / "recipe.json")
        found = fitted["validation"] if grid.split == "val" else _read_json(source)
        if cell.method == "spoco":
            heads.append(load_spec(folder / "spec.yaml").has_foreground_head)
        scores.append(
            CellScores(
                method=cell.method,
                ratio=cell.ratio,
                seed=cell.seed,
                labelled_objects=_read_json(folder / "environment.json")["train_instances"],
                ap50=found["ap50"],
                mean_ap=found["mean_ap"],
                sbd=found["sbd"],
                count_difference=found["count_difference"],
                best_step=fitted["step"],
                folder=cell.name,
            )
        )
    return Budget(out, grid.split, tuple(scores), len(cells), all(heads))


def summarize(budget: Budget) -> list[Point]:
    """Bring the seeds of each method and ratio together, in the order of methods and ratios."""
    groups: dict[tuple[Method, float], list[CellScores]] = {}
    for scores in sorted(budget.scores, key=lambda s: (METHODS.index(s.method), s.ratio)):
        groups.setdefault((scores.method, scores.ratio), []).append(scores)
    return [
        Point(
            method,
            ratio,
            median(scores.labelled_objects for scores in group),
            tuple(scores.ap50 for scores in group),
            tuple(scores.sbd for scores in group),
        )
        for (method, ratio), group in groups.items()
    ]


def write_budget(budget: Budget) -> None:
    """Write `budget.json`, `budget.csv` and `budget.png` of what is finished; older ones go.

    Raises:
        OutputError: The disk refuses it.
        MissingExtraError: matplotlib is not installed.
    """
    points = summarize(budget)
    full = next((p.ap50 for p in points if p.method == "spoco" and p.ratio == 1), None)
    rows = [asdict(scores) for scores in budget.scores]
    content = {
        "split": budget.split,
        "finished": f"{len(rows)} of {budget.n_cells} cells",
        "summary": [_sum_up(point, full) for point in points],
        "cells": rows,
    }
    _write(budget.folder / "budget.json", json.dumps(content, indent=1))
    table = StringIO()
    writer = csv.DictWriter(table, list(CellScores.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(budget.folder / "budget.csv", table.getvalue())
    if points:
        draw_budget(points, budget.split, budget.folder / "budget.png", has_head=budget.has_head)


_TEST_SCORES = "test-scores.json"


def _claim(out: Path, spec: Spec) -> None:
    """Write down which recipe a grid is of, or refuse another."""
    if out.is_file():
        raise SettingError(f"{out}: is a file: expected a folder for the grid")
    path = out / "spec.yaml"
    if not path.is_file():
        _write(path, dump_spec(spec))
    elif (started := load_spec(path)) != spec:
        raise SettingError(
            f"{out}: holds a grid of another spec, {tell_change(started, spec)}: choose another "
            "folder, or go on with the spec and steps of its start"
        )


def _is_held(spec: Spec, folder: Path, cell: Cell) -> bool:
    """Whether a cell is finished; one of other settings is refused."""
    wanted = cell_spec(spec, cell)
    if (folder / "recipe.json").is_file():
        held = load_spec(folder / "spec.yaml")
        channels = wanted.net.in_channels or held.net.in_channels  # a run writes down what it read
        asked = change_spec(wanted, {"net": {"in_channels": channels}})
        if held != asked:
            raise SettingError(
                f"{folder}: holds a network of other settings than the grid asks for, "
                f"{tell_change(held, asked)}: delete it, or choose another folder for the grid"
            )
        return True
    return False


def _finish_cell(spec: Spec, data: Path, folder: Path, cell: Cell, options: TrainOptions) -> bool:
    """Train a cell, or what is left of it; tell whether it came to its end."""
    if _is_held(spec, folder, cell):
        return True
    resume = (folder / "last.pt").is_file()
    wanted = cell_spec(spec, cell)
    return train(wanted, data, folder, replace(options, resume=resume)).finished


def _wants_foreground(spec: Spec) -> bool:
    """Whether networks of a grid are to learn foreground."""
    head = spec.net.foreground_head
    return spec.clustering.foreground in ("auto", "head") if head is None else head


@torch.no_grad()
def _score_test(data: Path, folder: Path, device: str) -> None:
    """Score a finished cell on the test images, once, with the recipe that validation chose."""
    if (folder / _TEST_SCORES).is_file():
        return
    spec, pair, fitted = load_run(folder)
    recipe = Recipe.model_validate(fitted["recipe"])
    pair = pair.to(pick_device(device))
    samples = read_samples(data / "test", spec.data, spec.net.dimensions, thin=False)
    twin = pair.momentum_net if isinstance(recipe.clustering, Consistency) else None
    embedded = embed_all(pair.embedding_net, samples, pick_device(device), twin)
    scores = main_scores(score_recipe(recipe, embedded))
    _write(folder / _TEST_SCORES, json.dumps(scores, indent=1))


def _sum_up(point: Point, full: Sequence[float] | None) -> dict[str, Any]:
    """Say of one ratio what its seeds reached, and which part that is of SPOCO on all labels."""
    part = None
    if full is not None and median(full) > 0:
        part = round(median(point.ap50) / median(full), 3)
    return {
        "method": point.method,
        "ratio": point.ratio,
        "labelled_objects": point.labelled_objects,
        "ap50": _spread(point.ap50),
        "sbd": _spread(point.sbd),
        "part_of_full_ap50": part,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 4), "lowest": min(values), "highest": max(values)}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file that a run left.

    Raises:
        SettingError: It is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{path}: is missing or damaged: expected what a training leaves; delete its folder "
            "and run the grid again"
        ) from error
    return content


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode(), overwrite=True)
