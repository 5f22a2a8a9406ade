"""A run learns, can be stopped anywhere without a trace, and leaves a folder one can trust."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import csv
import errno
import json
import math
import os
import pickle
import shutil
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile

from spoco_zoo.errors import DeviceError, ImageError, OutputError, SettingError
from spoco_zoo.spec import dump_spec, load_spec, parse_spec
from spoco_zoo.training import TrainOptions, train
from spoco_zoo.training.checkpoints import build_net, build_pair, load_checkpoint, load_run
from spoco_zoo.training.loop import is_best
from spoco_zoo.training.samples import read_samples
from spoco_zoo.training.schedule import learning_rate
from spoco_zoo.training.validation import embed_all, fit_recipe, goal, score_recipe

torch.set_num_threads(1)  # on tiny images threads wait for each other

COLUMNS = [
    "step",
    "total",
    "pull",
    "push",
    "norm",
    "unlabeled_push",
    "instance",
    "consistency",
    "foreground",
    "learning_rate",
    "seconds_per_step",
    "data_seconds",
    "score",
]


def paint(folder, seeds, shape):
    """Write images of three bright balls apart from each other, with noise, and their labels."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in seeds:
        random = np.random.default_rng(seed)
        labels = np.zeros(shape, np.uint16)
        while labels.max() < 3:
            center = [random.uniform(3, n - 3) for n in shape]
            squared = [(a - c) ** 2 for a, c in zip(axes, center, strict=True)]
            grown, ball = (sum(squared) < r**2 for r in (8, 6))
            if not labels[grown].any():
                labels[ball] = labels.max() + 1
        image = 100 * (labels > 0) + random.normal(50, 10, shape)
        tifffile.imwrite(folder / "images" / f"{seed}.tif", image.astype(np.float32))
        tifffile.imwrite(folder / "labels" / f"{seed}.tif", labels)


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    data = tmp_path_factory.mktemp("discs")
    paint(data / "train", range(4), (40, 40))
    paint(data / "val", range(10, 12), (37, 41))
    return data


def make_spec(**sections):
    """Few labels, consistency at work, a validation that falls between two rows of history."""
    words = {
        "name": "tiny",
        "data": {
            "label_zero": "unlabeled",
            "validation_label_zero": "background",
            "instance_ratio": 0.7,
        },
        "net": {"widths": [4, 8], "embedding_dim": 4},
        "schedule": {
            "crop": [24, 24],
            "batch_size": 2,
            "steps": 14,
            "warmup_steps": 5,
            "validate_every": 6,
            "precision": "float32",
            "workers": 0,
        },
        "clustering": {"min_size": 5},
    }
    for section, values in sections.items():
        words[section] = {**words[section], **values} if section in words else values
    return parse_spec(words, "test")


def run(spec, data, folder, **options):
    return train(spec, data, folder, TrainOptions(device="cpu", **options))


def stop_at(step):
    """Stop after so many steps; count them as a progress bar does."""
    seen = []
    return {"on_step": lambda report: seen.append(report), "should_stop": lambda: len(seen) >= step}


def history_of(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def facts_of(folder):
    """Read all that a run leaves, but for the time that it took."""
    checkpoints = [load_checkpoint(folder / name) for name in ("last.pt", "best.pt")]
    for state in checkpoints:
        state["recent"] = [terms for terms, _ in state["recent"]]
    rows = [{n: v for n, v in row.items() if "seconds" not in n} for row in history_of(folder)]
    texts = ("spec.yaml", "instances.json", "environment.json", "recipe.json")
    return checkpoints, rows, [(folder / name).read_text() for name in texts]


def same(first, second):
    """Compare nested values, tensors to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(scope="module")
def whole(discs, tmp_path_factory):
    """Train once without stopping."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    reports = []
    result = run(make_spec(), discs, folder, on_step=reports.append)
    return folder, result, reports


def refuse(error_class, action, *arguments, **options):
    with pytest.raises(error_class) as error:
        action(*arguments, **options)
    return str(error.value)


# Learning.


CALM = {"rotation_degrees": 0, "elastic_ratio": 0, "scaling": [1, 1], "intensity_ratio": 0}


@pytest.mark.parametrize(("zero", "least"), [("background", 0.6), ("unlabeled", 0.15)])
def test_a_small_run_learns_discs(discs, tmp_path, zero, least):
    spec = make_spec(
        data={"label_zero": zero, "instance_ratio": 1.0},
        net={"widths": [8, 16, 32], "in_channels": 1},
        augmentation=CALM,
        schedule={
            "steps": 100,
            "batch_size": 2,
            "learning_rate": 5e-3,
            "validate_every": 50,
            "warmup_steps": 10,
        },
    )
    torch.manual_seed(spec.schedule.seed)
    validation = read_samples(discs / "val", spec.data, 2, thin=False)
    untrained = embed_all(build_net(spec).eval(), validation, torch.device("cpu"))
    before = fit_recipe(spec, untrained).scores
    result = run(spec, discs, tmp_path / "run")
    after = result.fitted.scores
    assert result.finished
    assert before["mean_ap"] < 0.05
    assert after["mean_ap"] > least
    assert after["ap50"] > 0.4
    first, last = (float(history_of(tmp_path / "run")[n]["total"]) for n in (0, -1))
    assert last < first / 2


def test_the_momentum_net_follows_once_a_step(discs, tmp_path):
    """After one step it has moved by the ratio of the start, (1 + 1) / (10 + 1)."""
    torch.manual_seed(0)
    start = build_pair(make_spec(net={"in_channels": 1})).momentum_net.state_dict()
    run(make_spec(), discs, tmp_path / "run", **stop_at(1))
    pair = load_checkpoint(tmp_path / "run" / "last.pt")["pair"]
    for name, value in start.items():
        f, g = (pair[f"{net}.{name}"] for net in ("embedding_net", "momentum_net"))
        if value.is_floating_point():
            assert torch.allclose(g, 2 / 11 * value + 9 / 11 * f, atol=1e-6)
    moved = [n for n, v in start.items() if not torch.equal(v, pair[f"embedding_net.{n}"])]
    assert {"head.weight", "encoders.0.0.weight"} <= set(moved)


def test_a_tiny_volume_is_learned_too(tmp_path):
    for part, seeds in (("train", (0, 1)), ("val", (2,))):
        paint(tmp_path / part, seeds, (9, 32, 33))
    spec = make_spec(
        net={"dimensions": 3, "pooling": [[1, 2, 2]]},
        schedule={"crop": [8, 16, 16], "steps": 4, "validate_every": 4, "warmup_steps": 1},
    )
    result = run(spec, tmp_path, tmp_path / "run")
    assert result.finished
    net = build_net(load_spec(tmp_path / "run" / "spec.yaml"))
    assert net.multiple_of == (1, 2, 2)
    last = load_checkpoint(tmp_path / "run" / "last.pt")["pair"]
    assert last["embedding_net.head.weight"].shape == (4, 4, 1, 1, 1)
    assert all(math.isfinite(float(history_of(tmp_path / "run")[0][n])) for n in COLUMNS[1:-1])


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_other_precisions_train_too_and_keep_their_weights_in_float32(discs, tmp_path, precision):
    spec = make_spec(schedule={"steps": 2, "precision": precision}, clustering={"fit": False})
    assert run(spec, discs, tmp_path / "run").finished
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (
        facts["precision"] in {"bfloat16": ["bfloat16"], "auto": ["bfloat16", "float32"]}[precision]
    )
    (row,) = history_of(tmp_path / "run")
    assert all(math.isfinite(float(row[name])) for name in COLUMNS[1:-1])
    weights = load_checkpoint(tmp_path / "run" / "last.pt")["pair"].values()
    assert {w.dtype for w in weights} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "method", [{"method": "consistency"}, {"method": "hdbscan"}, {"method": "mean_shift"}]
)
def test_every_clustering_method_can_validate_a_run(discs, tmp_path, method):
    spec = make_spec(
        schedule={"steps": 2, "validate_every": 1}, clustering={"method": method, "fit": False}
    )
    result = run(spec, discs, tmp_path / "run")
    assert result.finished
    assert result.fitted.recipe.clustering.method == method["method"]


# Stopping and going on.


@pytest.mark.parametrize("step", [1, 6, 14])
def test_resuming_equals_not_stopping(discs, whole, tmp_path, step):
    folder = tmp_path / "run"
    stopped = run(make_spec(), discs, folder, **stop_at(step))
    assert (stopped.step, stopped.finished, stopped.fitted) == (step, False, None)
    assert not (folder / "recipe.json").exists()
    resumed = run(make_spec(), discs, folder, resume=True)
    assert (resumed.step, resumed.finished) == (14, True)
    assert resumed.fitted == whole[1].fitted
    assert same(facts_of(folder), facts_of(whole[0]))


def test_stopping_again_and_again_changes_nothing(discs, whole, tmp_path):
    folder = tmp_path / "run"
    run(make_spec(), discs, folder, **stop_at(3))
    while not (folder / "recipe.json").exists():
        run(make_spec(), discs, folder, resume=True, **stop_at(6))
    assert same(facts_of(folder), facts_of(whole[0]))


def test_a_killed_run_goes_on_from_its_last_checkpoint(discs, whole, tmp_path):
    def kill(report):
        if report.step == 8:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(make_spec(), discs, folder, on_step=kill)
    assert load_checkpoint(folder / "last.pt")["step"] == 6
    run(make_spec(), discs, folder, resume=True)
    assert same(facts_of(folder), facts_of(whole[0]))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forks
def test_workers_that_prepare_batches_change_nothing(discs, whole, tmp_path):
    run(make_spec(schedule={"workers": 1}), discs, tmp_path / "run")
    (last, best), rows, _ = facts_of(tmp_path / "run")
    (true_last, true_best), true_rows, _ = facts_of(whole[0])
    assert same(
        [last["pair"], best["pair"], rows], [true_last["pair"], true_best["pair"], true_rows]
    )


def test_consistency_is_at_work_in_the_runs_above(whole):
    assert all(float(row["consistency"]) > 0 for row in history_of(whole[0]))
    assert all(float(row["foreground"]) == 0 for row in history_of(whole[0]))


def test_no_time_at_all_is_one_step_that_can_be_resumed(discs, whole, tmp_path):
    folder = tmp_path / "run"
    result = run(make_spec(), discs, folder, max_minutes=0.0)
    assert (result.step, result.finished) == (1, False)
    assert load_checkpoint(folder / "last.pt")["step"] == 1
    assert run(make_spec(), discs, folder, resume=True).finished
    assert same(facts_of(folder), facts_of(whole[0]))


def test_a_run_whose_time_ends_with_its_last_step_is_finished(discs, tmp_path):
    spec = make_spec(schedule={"steps": 1, "validate_every": 1})
    assert run(spec, discs, tmp_path / "run", max_minutes=0.0).finished


# The run folder.


def test_the_run_folder_holds_what_it_promises(discs, whole):
    folder, result, _ = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        *("augmented.png", "best.pt", "curves.png", "environment.json", "examples"),
        "history.csv",
        *("instances.json", "last.pt", "recipe.json", "spec.yaml", "tensorboard"),
    ]
    assert (result.run_folder, result.step, result.finished) == (folder, 14, True)
    spec = load_spec(folder / "spec.yaml")
    assert spec == make_spec(net={"in_channels": 1})
    assert (folder / "spec.yaml").read_text() == dump_spec(spec)
    chosen = json.loads((folder / "instances.json").read_text())
    assert [len(ids) for ids in chosen["train"].values()] == [2] * 4
    assert chosen["val"] == {"10": [1, 2, 3], "11": [1, 2, 3]}
    facts = json.loads((folder / "environment.json").read_text())
    assert facts == {
        "torch": torch.__version__,
        "device": "cpu",
        "processes": 1,
        "precision": "float32",
        "parameters": sum(p.numel() for p in build_net(spec).parameters()),
        "train_images": 4,
        "train_instances": 8,
        "val_images": 2,
    }
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_the_history_has_a_row_every_ten_steps_and_one_at_the_end(whole):
    folder, _, reports = whole
    with (folder / "history.csv").open(newline="") as file:
        assert next(csv.reader(file)) == COLUMNS
    rows = history_of(folder)
    steps = [int(row["step"]) for row in rows]
    assert {10, 14} <= set(steps) <= {6, 10, 12, 14}
    assert steps == sorted(steps)
    weights = dict(zip(COLUMNS[2:9], make_spec().loss.weights, strict=True))
    for row in rows:
        total = sum(weight * float(row[name]) for name, weight in weights.items())
        assert float(row["total"]) == pytest.approx(total, rel=1e-3)
        assert float(row["seconds_per_step"]) > 0
        assert float(row["data_seconds"]) > 0
        rate = learning_rate(make_spec(), int(row["step"]) - 1)
        assert float(row["learning_rate"]) == pytest.approx(rate, rel=1e-5)
    assert [report.step for report in reports] == list(range(1, 15))
    assert {report.steps for report in reports} == {14}
    assert reports[0].terms == {}
    last = {name: float(rows[-1][name]) for name in COLUMNS[1:9]}
    assert reports[-1].terms == last


def test_a_history_from_before_data_seconds_were_kept_is_gone_on_with(discs, tmp_path):
    spec = make_spec(schedule={"steps": 11, "validate_every": 11}, clustering={"fit": False})
    run(spec, discs, tmp_path / "run", **stop_at(10))
    (row,) = history_of(tmp_path / "run")
    del row["data_seconds"]
    lines = [",".join(row), ",".join(row.values())]
    (tmp_path / "run" / "history.csv").write_text("\n".join(lines) + "\n")
    run(spec, discs, tmp_path / "run", resume=True)
    before, after = history_of(tmp_path / "run")
    assert before == {**row, "data_seconds": ""}
    assert list(after) == COLUMNS
    assert float(after["data_seconds"]) > 0


def test_the_score_of_a_validation_stands_in_the_history(whole):
    """Whatever the rhythm of both, no score is lost."""
    folder, _, reports = whole
    scores = {r.step: r.score for r in reports if r.score is not None}
    assert list(scores) == [6, 12, 14]
    written = [float(row["score"]) for row in history_of(folder) if row["score"]]
    assert written == pytest.approx(list(scores.values()), rel=1e-5)


def test_the_best_checkpoint_is_the_first_with_the_best_score_or_the_last_if_that_is_zero(whole):
    folder, _, reports = whole
    scores = {r.step: r.score for r in reports if r.score is not None}
    best = load_checkpoint(folder / "best.pt")
    assert best["best_score"] == max(scores.values())
    later = 1 if best["best_score"] == 0 else -1
    assert best["step"] == max(scores, key=lambda step: (scores[step], later * step))
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["step"] == best["step"]
    assert recipe["validation_images"] == 2


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.0, 0.0], 1),
        ([0.0, 0.2, 0.2], 1),
        ([0.3, 0.1], 0),
        ([0.1, 0.3, 0.3, 0.2], 1),
        ([0.2, 0.0, 0.0], 0),
    ],
)
def test_the_first_of_the_best_scores_is_kept_and_the_last_where_all_are_zero(scores, kept):
    best, number = -1.0, None
    for n, score in enumerate(scores):
        if is_best(score, best):
            best, number = score, n
    assert number == kept


@pytest.mark.parametrize("good", ["best.pt", "last.pt"])
def test_of_the_best_and_the_last_network_the_one_that_fits_better_is_kept(
    discs, whole, tmp_path, good
):
    """What scored best in training, with the recipe of the spec, may be the worse one."""
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "examples")
    (tmp_path / "run" / "recipe.json").unlink()
    trained = load_checkpoint(tmp_path / "run" / "last.pt")
    empty = {name: torch.zeros_like(value) for name, value in trained["pair"].items()}
    for name, step in (("best.pt", 6), ("last.pt", 14)):
        pair = trained["pair"] if name == good else empty
        torch.save({**trained, "step": step, "pair": pair}, tmp_path / "run" / name)
    result = run(make_spec(), discs, tmp_path / "run", resume=True)
    assert result.fitted.scores == whole[1].fitted.scores
    kept = load_checkpoint(tmp_path / "run" / "best.pt")
    assert kept["step"] == {"best.pt": 6, "last.pt": 14}[good]
    assert same(kept["pair"], trained["pair"])
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["step"] == kept["step"]
    assert (tmp_path / "run" / "examples" / "examples.json").is_file()


def test_a_finished_run_is_read_back(discs, whole):
    folder, result, _ = whole
    spec, pair, fitted = load_run(folder)
    best = load_checkpoint(folder / "best.pt")["pair"]
    assert spec == load_spec(folder / "spec.yaml")
    assert same(dict(pair.state_dict()), dict(best))
    assert not pair.training
    assert fitted["recipe"] == result.fitted.recipe.model_dump(mode="json")
    assert fitted["validation"] == result.fitted.scores
    # and what was read back scores what was written
    validation = read_samples(discs / "val", spec.data, 2, thin=False)
    cpu = torch.device("cpu")
    with torch.no_grad():
        embedded = embed_all(pair.embedding_net, validation, cpu, pair.momentum_net)
    score = goal(score_recipe(result.fitted.recipe, embedded))
    assert score == pytest.approx(fitted["validation"]["mean_ap"], abs=1e-4)


def test_only_the_first_validation_images_are_used(discs, tmp_path):
    spec = make_spec(schedule={"steps": 1, "validation_images": 1})
    run(spec, discs, tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "instances.json").read_text())
    assert list(chosen["val"]) == ["10"]
    assert len(chosen["train"]) == 4


# Refusals.


def test_a_folder_that_holds_a_run_is_not_written_over(discs, whole):
    folder = whole[0]
    before = (folder / "last.pt").read_bytes()
    assert refuse(SettingError, run, make_spec(), discs, folder) == (
        f"{folder}: holds a run already: choose another name, or --resume to go on"
    )
    assert (folder / "last.pt").read_bytes() == before


def test_boundaries_that_leave_no_instance_are_refused_before_the_start(discs, tmp_path):
    data = {"label_zero": "unlabeled", "boundary_width": 6}
    told = []
    assert refuse(SettingError, run, make_spec(data=data), discs, tmp_path / "run") == (
        "data.boundary_width is 6: boundaries of that width leave nothing of the 8 labelled "
        "instances: expected less than half of their width; lower it"
    )
    assert not (tmp_path / "run").exists()
    spec = make_spec(data=data | {"boundary_width": 1})
    run(spec, discs, tmp_path / "run", on_note=told.append, **stop_at(1))
    assert told == ["data.boundary_width is 1: of 8 labelled instances 8 are left"]


def test_resuming_with_another_spec_is_refused(discs, whole):
    spec = make_spec(schedule={"steps": 15})
    assert refuse(SettingError, run, spec, discs, whole[0], resume=True) == (
        f"{whole[0]}: was started with other settings, schedule.steps was 14 and is 15: "
        "resume with the spec and flags of its start"
    )
    words = {"schedule": {"steps": 15, "clip_norm": 1.5}, "loss": {"labelled_ratio": 0.5}}
    assert refuse(SettingError, run, make_spec(**words), discs, whole[0], resume=True) == (
        f"{whole[0]}: was started with other settings, loss.labelled_ratio was left out and is "
        "0.5 (and 2 more): resume with the spec and flags of its start"
    )


def test_validation_images_of_other_channels_are_refused_before_training(discs, tmp_path):
    data = shutil.copytree(discs, tmp_path / "data")
    for path in (data / "val" / "images").iterdir():
        pixels = tifffile.imread(path)
        tifffile.imwrite(path, np.stack([pixels, pixels]), photometric="minisblack")
    path = data / "val" / "images" / "10.tif"
    assert refuse(ImageError, run, make_spec(), data, tmp_path / "run") == (
        f"{path}: image has 2 channels, 0 has 1: all images must have as many"
    )
    assert not (tmp_path / "run").exists()


def test_validation_without_any_instance_is_refused(discs, tmp_path):
    data = shutil.copytree(discs, tmp_path / "data")
    for path in (data / "val" / "labels").iterdir():
        tifffile.imwrite(path, np.zeros((37, 41), np.uint8))
    assert refuse(ImageError, run, make_spec(), data, tmp_path / "run") == (
        f"{data / 'val'}: the 2 images for validation hold no labelled instance: label some there, "
        "or move images with labels from train"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_time_that_is_none_is_refused(minutes):
    assert refuse(SettingError, TrainOptions, max_minutes=minutes) == (
        f"max_minutes is {minutes:g}: expected 0 or more"
    )


def test_a_damaged_list_of_instances_is_told(discs, tmp_path):
    folder = tmp_path / "run"
    run(make_spec(), discs, folder, **stop_at(1))
    path = folder / "instances.json"
    for damage in (lambda: path.write_text("{"), path.unlink):
        damage()
        assert refuse(SettingError, run, make_spec(), discs, folder, resume=True) == (
            f"{path}: is missing or damaged: put it back, or start anew in another folder"
        )


def test_weights_to_start_from_are_passed_over_in_resuming_and_that_is_said(whole, discs, tmp_path):
    folder, notes = tmp_path / "run", []
    run(make_spec(), discs, folder, **stop_at(1))
    words = {"resume": True, "start": whole[0], "on_note": notes.append, **stop_at(1)}
    assert run(make_spec(), discs, folder, **words).step == 2
    assert notes == [f"{whole[0]} is passed over: the run goes on where it stopped"]


def test_resuming_with_other_data_is_refused(discs, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "data"
    run(make_spec(), discs, folder, **stop_at(1))
    before = (folder / "last.pt").read_bytes()
    for part, seeds in (("train", range(5)), ("val", (10, 11))):
        paint(other / part, seeds, (40, 40))
    assert refuse(SettingError, run, make_spec(), other, folder, resume=True) == (
        f"{folder / 'instances.json'}: lists other images or instances than the data now: "
        "resume with the folder of its start"
    )
    assert before == (folder / "last.pt").read_bytes()


def test_resuming_what_never_started_is_refused(discs, tmp_path):
    folder = tmp_path / "run"
    assert refuse(SettingError, run, make_spec(), discs, folder, resume=True) == (
        f"{folder / 'last.pt'}: no such checkpoint to resume from: start without --resume"
    )
    assert not folder.exists()


def what_torch_says_of(path):
    """Name the error; each version of torch has another for the same damage."""
    try:
        torch.load(path, weights_only=True)
    except Exception as error:  # noqa: BLE001 - and whichever it is
        return type(error).__name__
    return "nothing"


def test_a_damaged_checkpoint_is_refused(discs, whole, tmp_path):
    folder = tmp_path / "run"
    run(make_spec(), discs, folder, **stop_at(1))
    path = folder / "last.pt"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no checkpoint at all"):
        path.write_bytes(damaged)
        sentence = f"{path}: is not a readable checkpoint ({what_torch_says_of(path)}): train again"
        assert refuse(SettingError, run, make_spec(), discs, folder, resume=True) == sentence
        assert refuse(SettingError, load_checkpoint, path) == sentence


def test_a_missing_checkpoint_is_refused(tmp_path):
    path = tmp_path / "best.pt"
    assert refuse(SettingError, load_checkpoint, path) == (
        f"{path}: no such checkpoint: train first"
    )


@pytest.mark.parametrize("content", [{"version": 2}, {"step": 1}, [1, 2]])
def test_a_checkpoint_of_another_version_is_refused(tmp_path, content):
    path = tmp_path / "best.pt"
    torch.save(content, path)
    assert refuse(SettingError, load_checkpoint, path) == (
        f"{path}: is no checkpoint of version 1: train again"
    )


class _Trap:
    """What a checkpoint of bad intent holds: a call that runs when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("save", [torch.save, lambda v, path: path.write_bytes(pickle.dumps(v, 2))])
def test_a_checkpoint_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path, save):
    path, target = tmp_path / "last.pt", tmp_path / "sprung"
    save({"version": 1, "step": _Trap(target)}, path)
    assert refuse(SettingError, load_checkpoint, path) == (
        f"{path}: is not a readable checkpoint (UnpicklingError): train again"
    )
    assert not target.exists()
    with suppress(RuntimeError):  # and this is how it would have gone
        torch.load(path, weights_only=False)
    assert target.is_dir()


def test_a_folder_without_a_finished_run_is_refused(discs, tmp_path):
    folder = tmp_path / "run"
    run(make_spec(), discs, folder, **stop_at(1))
    assert refuse(SettingError, load_run, folder) == (
        f"{folder}: no recipe.json: expected the folder of a finished run; "
        "finish it with train --resume"
    )


def test_images_with_other_channels_than_the_spec_says_are_refused(discs, tmp_path):
    spec = make_spec(net={"in_channels": 3})
    assert refuse(SettingError, run, spec, discs, tmp_path / "run") == (
        "net.in_channels is 3: the images have 1; leave it out"
    )
    assert not (tmp_path / "run").exists()


def test_a_network_of_unknown_channels_is_refused():
    assert refuse(SettingError, build_net, make_spec()) == (
        "net.in_channels is not set: give the channels of the images"
    )


def test_cuda_that_is_not_there_is_refused(discs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = TrainOptions(device="cuda")
    assert refuse(DeviceError, train, make_spec(), discs, tmp_path / "run", options) == (
        "cuda was asked for, but torch finds none: use --device cpu, "
        "or install a CUDA build of torch"
    )


def test_an_unknown_device_is_refused(discs, tmp_path):
    options = TrainOptions(device="tpu")
    assert refuse(DeviceError, train, make_spec(), discs, tmp_path / "run", options) == (
        "device is tpu: expected auto, cpu or cuda"
    )


# A disk that is full.


@contextmanager
def files_of_at_most(size):
    """Let the system refuse larger files, as a full disk would."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def disk_full_at_the_end():
    """Fail when the last bytes are on their way, which is when some file systems find out."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield "No space left on device"


@pytest.mark.parametrize("part", [0.01, 0.5, 1.0])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_part_of_the_new(discs, whole, tmp_path, part):
    folder = tmp_path / "run"
    run(make_spec(), discs, folder, **stop_at(3))
    before = (folder / "last.pt").read_bytes()
    full = disk_full_at_the_end() if part == 1.0 else files_of_at_most(int(part * len(before)))
    with full as reason:
        sentence = refuse(OutputError, run, make_spec(), discs, folder, resume=True, **stop_at(2))
    name = "history.csv" if part == 1.0 else "last.pt"  # the one is short and comes first
    assert sentence == (
        f"{folder / name}: cannot be written ({reason}): free space or choose another folder"
    )
    assert (folder / "last.pt").read_bytes() == before
    assert load_checkpoint(folder / "last.pt")["step"] == 3
    assert not list(folder.glob(".*"))
    assert not list(folder.rglob("*.part"))
    run(make_spec(), discs, folder, resume=True)
    assert same(facts_of(folder), facts_of(whole[0]))


def test_a_run_that_could_not_start_can_be_started_again(discs, whole, tmp_path):
    """The disk had room for the spec and none for the first checkpoint; now it has."""
    folder = tmp_path / "run"
    with files_of_at_most(4000) as reason:
        sentence = refuse(OutputError, run, make_spec(), discs, folder)
    assert sentence == (
        f"{folder / 'last.pt'}: cannot be written ({reason}): free space or choose another folder"
    )
    run(make_spec(), discs, folder)
    assert same(facts_of(folder), facts_of(whole[0]))


# Learning rate.


def test_the_learning_rate_warms_up_and_ends_in_a_half_cosine():
    spec = make_spec(schedule={"steps": 110, "warmup_steps": 10, "learning_rate": 0.2})
    rates = [learning_rate(spec, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.02 * n for n in range(1, 11)])
    assert rates[10] == max(rates) == 0.2
    assert rates[35] == pytest.approx(0.2 * (2 + math.sqrt(2)) / 4)
    assert rates[60] == pytest.approx(0.1)
    assert rates[109] == pytest.approx(0, abs=1e-4)
    assert rates[110] == 0.0
    assert all(a > b > 0 for a, b in pairwise(rates[10:110]))


def test_every_restart_is_a_schedule_of_its_own():
    words = {"warmup_steps": 5, "learning_rate": 0.2}
    whole = make_spec(schedule={"steps": 90, "restarts": [20, 60], **words})
    parts = [make_spec(schedule={"steps": steps, **words}) for steps in (20, 40, 30)]
    expected = [learning_rate(part, n) for part in parts for n in range(part.schedule.steps)]
    assert [learning_rate(whole, n) for n in range(90)] == pytest.approx(expected)
    assert learning_rate(whole, 90) == 0.0


def test_a_run_shorter_than_its_warm_up_has_learning_rates_too():
    spec = make_spec(schedule={"steps": 3, "warmup_steps": 10, "learning_rate": 0.2})
    assert [learning_rate(spec, n) for n in range(3)] == pytest.approx([0.02, 0.04, 0.06])
    spec = make_spec(schedule={"steps": 1, "warmup_steps": 0, "learning_rate": 0.2})
    assert learning_rate(spec, 0) == 0.2
