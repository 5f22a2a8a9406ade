"""The grid of an annotation budget: what each cell is, that it goes on, and what it adds up to."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from PIL import Image

from spoco_zoo import cli
from spoco_zoo.errors import MissingExtraError, SettingError
from spoco_zoo.spec import LossSettings, load_spec, parse_spec
from spoco_zoo.training import TrainOptions
from spoco_zoo.training.budget import (
    Budget,
    Cell,
    CellScores,
    Grid,
    cell_spec,
    collect,
    run_budget,
    summarize,
    write_budget,
)
from spoco_zoo.training.budget_figure import draw_budget

torch.set_num_threads(1)  # on tiny images threads wait for each other

GRID = Grid((1.0, 0.5), seeds=1)
CPU = TrainOptions(device="cpu")


@pytest.fixture(scope="module")
def spec(tiny_spec):
    return load_spec(tiny_spec)


@pytest.fixture(scope="module")
def data(nuclei_data, tmp_path_factory):
    """The simulated nuclei, with a split for the test."""
    folder = tmp_path_factory.mktemp("budget") / "data"
    shutil.copytree(nuclei_data, folder)
    shutil.copytree(folder / "val", folder / "test")
    return folder


def stop_after(steps):
    """Count steps over all cells, and ask to stop after so many."""
    seen = []
    return replace(CPU, on_step=seen.append, should_stop=lambda: len(seen) >= steps), seen


@pytest.fixture(scope="module")
def grid_run(spec, data, tmp_path_factory):
    """A grid that was stopped in its second cell and went on: folder, both results, steps taken."""
    out = tmp_path_factory.mktemp("grids") / "grid"
    options, _ = stop_after(26)
    first = run_budget(spec, data, out, GRID, options)
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "ratio-0.50-seed-1").iterdir()}
    options, seen = stop_after(1000)
    cells = []
    second = run_budget(spec, data, out, GRID, options, lambda *cell: cells.append(cell))
    again = {p.name: p.stat().st_mtime_ns for p in (out / "ratio-0.50-seed-1").iterdir()}
    return SimpleNamespace(
        out=out, first=first, second=second, seen=seen, cells=cells, untouched=kept == again
    )


# --- cells


def test_a_grid_goes_through_whole_curves_one_seed_after_the_other():
    cells = Grid((1.0, 0.1, 0.1), seeds=2).cells
    assert [cell.name for cell in cells] == [
        f"{kind}ratio-{ratio}-seed-{seed}"
        for seed in (1, 2)
        for ratio in ("0.10", "1.00")
        for kind in ("", "baseline-")
    ]


def test_the_baseline_with_a_head_is_asked_for_and_is_another_one_only_where_labels_are_missing():
    cells = Grid((0.1, 1.0), seeds=1, methods=("spoco", "baseline", "head")).cells
    assert [cell.name for cell in cells] == [
        "ratio-0.10-seed-1",
        "baseline-ratio-0.10-seed-1",
        "head-ratio-0.10-seed-1",
        "ratio-1.00-seed-1",
        "baseline-ratio-1.00-seed-1",
    ]


def test_the_baseline_with_a_head_has_all_labels_where_no_other_has_them():
    assert [c.name for c in Grid((1.0,), seeds=1, methods=("head",)).cells] == [
        "head-ratio-1.00-seed-1"
    ]


def test_a_head_is_asked_for_only_where_networks_have_one(spec):
    net = spec.net.model_copy(update={"foreground_head": False})
    with pytest.raises(SettingError) as error:
        cell_spec(spec.model_copy(update={"net": net}), Cell("head", 0.1, 1))
    assert str(error.value) == (
        "methods holds head, and the spec wants no foreground head: leave head out, or set "
        "net.foreground_head to true"
    )


def test_ratios_that_two_digits_do_not_tell_apart_have_folders_of_their_own():
    names = {Cell("spoco", ratio, 1).name for ratio in (0.01, 0.012, 0.0125)}
    assert names == {"ratio-0.01-seed-1", "ratio-0.012-seed-1", "ratio-0.0125-seed-1"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            {"ratios": (0.1, 1.5)},
            "ratios are [0.1, 1.5]: expected at least one number above 0 and up to 1",
        ),
        ({"ratios": ()}, "ratios are []: expected at least one number above 0 and up to 1"),
        ({"ratios": (1.0,), "seeds": 0}, "seeds is 0: expected at least 1"),
        ({"ratios": (1.0,), "methods": ()}, "methods is empty: expected at least one"),
    ],
)
def test_an_impossible_grid_is_refused(words, sentence):
    with pytest.raises(SettingError) as error:
        Grid(**words)
    assert str(error.value) == sentence


def test_below_ratio_one_nothing_is_known_of_the_rest_and_the_terms_of_spoco_are_on(spec):
    assert (spec.data.label_zero, spec.loss.consistency_weight) == ("background", 0.0)
    sparse = cell_spec(spec, Cell("spoco", 0.1, 3))
    assert sparse.data.label_zero == "unlabeled"
    assert sparse.data.validation_label_zero == "background"
    assert (sparse.data.instance_ratio, sparse.data.instance_seed) == (0.1, 3)
    assert sparse.schedule.seed == 3
    head = spec.loss.foreground_weight
    assert sparse.loss.weights == LossSettings(foreground_weight=head).weights
    assert sparse.loss.labelled_ratio == 0.1
    assert sparse.has_foreground_head


def test_weights_of_the_spec_stay_where_it_has_some(spec):
    words = spec.model_dump(mode="json")
    words["loss"] |= {"consistency_weight": 0.3, "unlabeled_push_weight": 2.0}
    words["loss"] |= {"instance_weight": 0.5, "foreground_weight": 4.0}
    sparse = cell_spec(parse_spec(words, "test"), Cell("spoco", 0.1, 1))
    assert sparse.loss.weights == (1.0, 1.0, 0.001, 2.0, 0.5, 0.3, 4.0)


def test_at_ratio_one_everything_is_known(spec):
    full = cell_spec(spec, Cell("spoco", 1.0, 1))
    assert full.data.label_zero == full.data.validation_label_zero == "background"
    assert full.loss.consistency_weight == 0.0
    assert full.loss.instance_weight == 1.0
    assert full.loss.labelled_ratio is None


def test_the_labelled_part_is_that_of_the_cell_whatever_the_spec_says(spec):
    words = spec.model_dump(mode="json")
    words["data"]["label_zero"] = "unlabeled"
    words["loss"]["labelled_ratio"] = 0.4
    other = parse_spec(words, "test")
    ratios = {r: cell_spec(other, Cell("spoco", r, 1)).loss.labelled_ratio for r in (0.1, 0.5, 1.0)}
    assert ratios == {0.1: 0.1, 0.5: 0.5, 1.0: None}


@pytest.mark.parametrize("validation", [None, "background"])
@pytest.mark.parametrize("method", ["spoco", "baseline", "head"])
def test_background_that_is_painted_stays_background_at_every_ratio(spec, method, validation):
    words = spec.model_dump(mode="json")
    words["data"] |= {"label_zero": "unlabeled", "background_label": 255}
    words["data"]["validation_label_zero"] = validation
    words["loss"]["labelled_ratio"] = 0.4
    for ratio in (0.1, 1.0):
        found = cell_spec(parse_spec(words, "test"), Cell(method, ratio, 1))
        assert (found.data.label_zero, found.data.background_label) == ("unlabeled", 255)
        assert found.data.validation_label_zero == (validation or "unlabeled")
        assert found.has_foreground_head
    assert found.loss.labelled_ratio is None


def without_terms_of_spoco(spec):
    names = ("unlabeled_push_weight", "instance_weight", "consistency_weight")
    return spec.model_copy(update={"loss": spec.loss.model_copy(update=dict.fromkeys(names, 0.0))})


@pytest.mark.parametrize(("method", "ratio"), [("head", 0.1), ("baseline", 1.0)])
def test_a_baseline_with_a_head_differs_by_the_terms_of_spoco_alone(spec, method, ratio):
    ours = cell_spec(spec, Cell("spoco", ratio, 2))
    plain = cell_spec(spec, Cell(method, ratio, 2))
    head = spec.loss.foreground_weight
    assert plain.loss.weights == (1.0, 1.0, 0.001, 0.0, 0.0, 0.0, head)
    assert plain == without_terms_of_spoco(ours)


@pytest.mark.parametrize("rule", ["auto", "head"])
def test_the_baseline_learns_nothing_from_what_is_not_labelled(spec, rule):
    rules = spec.clustering.model_copy(update={"foreground": rule})
    spec = spec.model_copy(update={"clustering": rules})
    ours = cell_spec(spec, Cell("spoco", 0.1, 2))
    plain = cell_spec(spec, Cell("baseline", 0.1, 2))
    assert (ours.has_foreground_head, plain.has_foreground_head) == (True, False)
    assert plain.loss.labelled_ratio is None
    assert plain.clustering.foreground == "auto"
    assert (plain.data, plain.schedule) == (ours.data, ours.schedule)
    assert plain.loss.weights[:-1] == without_terms_of_spoco(ours).loss.weights[:-1]


def test_background_that_is_labelled_teaches_the_baseline_too(spec):
    words = spec.model_dump(mode="json")
    words["data"] |= {"label_zero": "unlabeled", "background_label": 255}
    words["loss"]["labelled_ratio"] = 0.4
    spec = parse_spec(words, "test")
    ours = cell_spec(spec, Cell("spoco", 0.1, 2))
    plain = cell_spec(spec, Cell("baseline", 0.1, 2))
    assert plain.has_foreground_head
    assert plain.loss.labelled_ratio is None
    assert plain.data == ours.data


@pytest.mark.parametrize("ratio", [0.1, 1.0])
@pytest.mark.parametrize("method", ["spoco", "baseline", "head"])
def test_boundaries_teach_every_method_and_leave_zero_what_it_is(method, ratio):
    words = {"data": {"label_zero": "unlabeled", "boundary_width": 1}}
    found = cell_spec(parse_spec(words, "test"), Cell(method, ratio, 1))
    assert found.has_foreground_head
    assert found.data.label_zero == found.data.validation_label_zero == "unlabeled"
    assert found.data.boundary_width == 1


def test_tissue_without_background_keeps_what_zero_means_in_its_spec():
    words = {"data": {"label_zero": "unlabeled"}, "clustering": {"foreground": "everywhere"}}
    full = cell_spec(parse_spec(words, "test"), Cell("spoco", 1.0, 1))
    assert full.data.label_zero == full.data.validation_label_zero == "unlabeled"


def test_only_networks_that_want_foreground_are_told_which_part_is_labelled(spec):
    for head, rule, expected in [
        (None, "auto", 0.1),
        (None, "everywhere", None),
        (False, "auto", None),
        (True, "head", 0.1),
    ]:
        net = spec.net.model_copy(update={"foreground_head": head})
        rules = spec.clustering.model_copy(update={"foreground": rule})
        changed = spec.model_copy(update={"net": net, "clustering": rules})
        assert cell_spec(changed, Cell("spoco", 0.1, 1)).loss.labelled_ratio == expected


def test_the_sparse_recipe_of_the_zoo_is_a_cell_of_the_grid_of_the_benchmarks():
    root = Path(__file__).parents[2]
    cell = cell_spec(
        load_spec(root / "benchmarks/budget-nuclei-2d/grid.yaml"), Cell("spoco", 0.1, 1)
    )
    recipe = load_spec(root / "specs/nuclei-2d-sparse.yaml")
    assert recipe == cell.model_copy(update={"name": recipe.name, "card": recipe.card})


# --- the grid


def test_a_stopped_grid_has_what_was_finished(grid_run):
    assert (len(grid_run.first.scores), grid_run.first.n_cells) == (1, 4)
    assert not grid_run.first.is_finished
    assert grid_run.second.is_finished


def test_a_grid_goes_on_where_it_was_stopped(grid_run):
    # of the second cell 6 steps of 20 were done
    assert len(grid_run.seen) == 14 + 20 + 20
    assert grid_run.seen[0].step == 7
    assert grid_run.untouched
    assert [(number, cell.name) for number, cell in grid_run.cells] == [
        (1, "ratio-0.50-seed-1"),
        (2, "baseline-ratio-0.50-seed-1"),
        (3, "ratio-1.00-seed-1"),
        (4, "baseline-ratio-1.00-seed-1"),
    ]


def test_both_methods_of_a_ratio_have_the_same_labels(grid_run):
    ours, plain = (grid_run.out / f"{kind}ratio-0.50-seed-1" for kind in ("", "baseline-"))
    assert (ours / "instances.json").read_text() == (plain / "instances.json").read_text()
    told = [load_spec(cell / "spec.yaml").loss.labelled_ratio for cell in (ours, plain)]
    assert told == [0.5, None]


def test_the_scores_are_those_of_the_runs(grid_run):
    told = json.loads((grid_run.out / "budget.json").read_text())
    assert (told["split"], told["finished"]) == ("val", "4 of 4 cells")
    for cell in told["cells"]:
        folder = grid_run.out / cell["folder"]
        fitted = json.loads((folder / "recipe.json").read_text())
        kept = json.loads((folder / "instances.json").read_text())["train"]
        assert cell["labelled_objects"] == sum(map(len, kept.values()))
        assert {name: cell[name] for name in fitted["validation"]} == fitted["validation"]
        assert cell["best_step"] == fitted["step"]
    half, whole = (told["cells"][n]["labelled_objects"] for n in (0, 2))
    assert half == pytest.approx(whole / 2, abs=2)
    with (grid_run.out / "budget.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in cell.items()} for cell in told["cells"]] == rows
    with Image.open(grid_run.out / "budget.png") as picture:
        assert picture.size == (1140, 552)


def test_a_grid_is_of_one_spec(grid_run, spec, data):
    words = spec.model_dump(mode="json")
    words["schedule"]["steps"] = 21
    with pytest.raises(SettingError) as error:
        run_budget(parse_spec(words, "test"), data, grid_run.out, GRID, CPU)
    assert str(error.value) == (
        f"{grid_run.out}: holds a grid of another spec, schedule.steps was 20 and is 21: choose "
        "another folder, or go on with the spec and steps of its start"
    )


def test_a_finished_network_of_other_settings_is_not_taken_for_one_of_the_grid(
    grid_run, spec, data, tmp_path
):
    out = shutil.copytree(grid_run.out, tmp_path / "grid")
    folder = out / "ratio-0.50-seed-1"
    shutil.copy(out / "baseline-ratio-0.50-seed-1" / "spec.yaml", folder)
    with pytest.raises(SettingError) as error:
        run_budget(spec, data, out, GRID, CPU)
    assert str(error.value) == (
        f"{folder}: holds a network of other settings than the grid asks for, "
        "net.foreground_head was False and is left out (and 4 more): delete it, or choose another "
        "folder for the grid"
    )


def test_a_finished_network_of_other_settings_is_found_before_hours_are_spent(
    grid_run, spec, data, tmp_path
):
    out = shutil.copytree(grid_run.out, tmp_path / "grid")
    shutil.rmtree(out / "ratio-0.50-seed-1")  # the first cell is not done yet
    folder = out / "baseline-ratio-1.00-seed-1"
    shutil.copy(out / "ratio-1.00-seed-1" / "spec.yaml", folder)
    options, seen = stop_after(1)
    with pytest.raises(SettingError) as error:
        run_budget(spec, data, out, GRID, options)
    assert str(error.value).startswith(f"{folder}: holds a network of other settings than the grid")
    assert seen == []


def test_a_grid_needs_a_folder(spec, data, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(SettingError) as error:
        run_budget(spec, data, path, GRID, CPU)
    assert str(error.value) == f"{path}: is a file: expected a folder for the grid"


def test_time_is_that_of_the_whole_grid(spec, data, tmp_path):
    result = run_budget(spec, data, tmp_path / "grid", GRID, replace(CPU, max_minutes=0.0))
    assert result.scores == ()
    assert [p.name for p in (tmp_path / "grid").iterdir()] == ["spec.yaml"]


def test_more_cells_join_a_grid_and_test_scores_are_taken_once(grid_run, spec, data, tmp_path):
    out = shutil.copytree(grid_run.out, tmp_path / "grid")
    grid = Grid((0.5,), seeds=1, split="test")
    assert collect(out, grid).scores == ()
    options, seen = stop_after(1000)
    result = run_budget(spec, data, out, grid, options)
    assert seen == []
    assert result.is_finished
    # the test images of this folder are those of validation
    assert [s.ap50 for s in result.scores] == [s.ap50 for s in grid_run.second.scores[:2]]
    assert [s.sbd for s in result.scores] == [s.sbd for s in grid_run.second.scores[:2]]
    assert json.loads((out / "budget.json").read_text())["split"] == "test"
    path = out / "ratio-0.50-seed-1" / "test-scores.json"
    path.write_text(path.read_text().replace('"sbd": ', '"sbd": 1'))
    result = run_budget(spec, data, out, grid, CPU)
    assert result.scores[0].sbd > 1


def test_a_damaged_cell_is_told(grid_run, tmp_path):
    out = shutil.copytree(grid_run.out, tmp_path / "grid")
    path = out / "ratio-0.50-seed-1" / "environment.json"
    path.write_text("{")
    with pytest.raises(SettingError) as error:
        collect(out, GRID)
    assert str(error.value) == (
        f"{path}: is missing or damaged: expected what a training leaves; delete its folder "
        "and run the grid again"
    )


# --- what it adds up to


def scores_of(method, ratio, ap50):
    return [
        CellScores(method, ratio, seed, 10 * seed, ap, ap / 2, 0.9, 1.0, 5, "folder")
        for seed, ap in enumerate(ap50, start=1)
    ]


def test_the_summary_is_the_median_of_the_seeds_and_their_part_of_full_supervision(tmp_path):
    found = [
        *scores_of("baseline", 1.0, [0.5]),
        *scores_of("spoco", 1.0, [0.8, 0.75, 0.9]),
        *scores_of("spoco", 0.1, [0.2, 0.7, 0.6]),
    ]
    budget = Budget(tmp_path, "val", tuple(found), 9)
    points = summarize(budget)
    assert [(p.method, p.ratio) for p in points] == [
        ("spoco", 0.1),
        ("spoco", 1.0),
        ("baseline", 1.0),
    ]
    write_budget(budget)
    told = json.loads((tmp_path / "budget.json").read_text())
    assert told["summary"][0] == {
        "method": "spoco",
        "ratio": 0.1,
        "labelled_objects": 20,
        "ap50": {"median": 0.6, "lowest": 0.2, "highest": 0.7},
        "sbd": {"median": 0.9, "lowest": 0.9, "highest": 0.9},
        "part_of_full_ap50": 0.75,
    }
    assert told["finished"] == "7 of 9 cells"


def test_without_full_supervision_nothing_is_a_part_of_it(tmp_path):
    write_budget(Budget(tmp_path, "val", tuple(scores_of("spoco", 0.1, [0.6])), 2))
    told = json.loads((tmp_path / "budget.json").read_text())
    assert told["summary"][0]["part_of_full_ap50"] is None


def test_the_figure_shows_every_method(tmp_path):
    found = [*scores_of("spoco", 0.1, [0.2, 0.4]), *scores_of("spoco", 1.0, [0.8])]
    plain = [*scores_of("baseline", 0.1, [0.1]), *scores_of("head", 0.1, [0.3])]

    def colors(scores):
        path = tmp_path / "figure.png"
        draw_budget(summarize(Budget(tmp_path, "val", tuple(scores), 3)), "val", path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()
        return [list(bytes.fromhex(color)) in pixels for color in ("0072B2", "D55E00", "009E73")]

    assert colors(found) == [True, False, False]
    assert colors([*found, *plain]) == [True, True, True]


@pytest.mark.parametrize(
    ("head", "label"), [(None, "SPOCO with the foreground head"), (False, "SPOCO")]
)
def test_the_legend_says_of_spoco_what_its_networks_are(
    grid_run, tmp_path, monkeypatch, head, label
):
    from matplotlib.figure import Figure

    legends = []
    monkeypatch.setattr(Figure, "legend", lambda _, handles, labels, **__: legends.append(labels))
    out = shutil.copytree(grid_run.out, tmp_path / "grid")
    for path in out.glob("ratio-*/spec.yaml"):
        words = load_spec(path).model_dump(mode="json")
        words["net"]["foreground_head"] = head
        words["loss"]["labelled_ratio"] = None
        words["data"]["label_zero"] = "background"
        path.write_text(json.dumps(words))
    write_budget(collect(out, GRID))
    assert legends == [[label, "baseline: pull, push and norm"]]


def test_without_matplotlib_the_figure_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    points = summarize(Budget(tmp_path, "val", tuple(scores_of("spoco", 0.1, [0.6])), 2))
    with pytest.raises(MissingExtraError) as error:
        draw_budget(points, "val", tmp_path / "budget.png")
    assert str(error.value) == (
        "figures of training need matplotlib: pip install 'spoco-zoo[train]'"
    )


# --- the command


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


def test_the_command_goes_on_with_the_spec_of_its_folder(call, grid_run, data, tiny_spec):
    flags = ("-o", grid_run.out, "--seeds", 1, "--device", "cpu")
    result = call("budget", data, *flags, "--ratios", "0.5,1")
    assert result.code == 0, result.err
    assert result.out == (
        f"{grid_run.out}: 4 of 4 networks are finished\n"
        f"{grid_run.out / 'budget.png'}: AP and SBD against labelled objects\n"
    )
    late = (*flags, "--ratios", "0.25,0.5", "--max-minutes", 0, "--spec", tiny_spec)
    result = call("budget", data, *late)
    assert (result.code, result.out) == (
        0,
        f"{grid_run.out}: 2 of 4 networks are finished\n"
        "the same command goes on where this one stopped\n",
    )


def test_the_command_says_what_is_wrong(call, data, tiny_spec, tmp_path):
    result = call("budget", tiny_spec, "-o", tmp_path / "grid")
    assert (result.code, result.out, result.err) == (
        1,
        "",
        f"Error: {tiny_spec}: is a spec, which does not say where images are: give the folder of "
        f"the images first, and --spec {tiny_spec}\n",
    )
    result = call("budget", data, "-o", tmp_path / "grid", "--ratios", "0.1;1")
    assert result.err == (
        "Error: --ratios is 0.1;1: expected numbers above 0 and up to 1, separated by commas\n"
    )
    assert not (tmp_path / "grid").exists()


def test_methods_are_named_on_the_command_line(call, grid_run, data):
    flags = ("-o", grid_run.out, "--seeds", 1, "--device", "cpu", "--ratios", "0.5,1")
    result = call("budget", data, *flags, "--methods", "baseline, spoco")
    assert result.out.startswith(f"{grid_run.out}: 4 of 4 networks are finished\n"), result.err
    result = call("budget", data, *flags, "--methods", "spoco,head", "--max-minutes", 0)
    assert result.out.startswith(f"{grid_run.out}: 2 of 4 networks are finished\n"), result.err
    result = call("budget", data, *flags, "--methods", "spoco,contrastive")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "Error: --methods is spoco,contrastive: expected some of spoco, baseline, head, "
        "separated by commas\n"
    )
