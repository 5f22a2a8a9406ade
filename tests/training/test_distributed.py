"""Two processes train what one would: the same losses, weights and files, but for rounding."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no processes to share", allow_module_level=True)

import numpy as np
import tifffile
from torch import nn

from spoco_zoo.errors import DeviceError, SettingError
from spoco_zoo.spec import dump_spec, parse_spec
from spoco_zoo.training import TrainOptions, train
from spoco_zoo.training.checkpoints import load_checkpoint
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.ranks import Ranks, join_ranks

torch.set_num_threads(1)

TERMS = ["pull", "push", "norm", "unlabeled_push", "instance", "consistency", "foreground", "total"]


def paint(folder, seeds):
    """Write images of four bright squares with noise, and their labels."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in seeds:
        random = np.random.default_rng(seed)
        labels = np.zeros((40, 44), np.uint16)
        for number, corner in enumerate([(3, 4), (5, 25), (22, 6), (24, 27)], start=1):
            y, x = np.array(corner) + random.integers(0, 4, 2)
            labels[y : y + 10, x : x + 11] = number
        image = 100 * (labels > 0) + random.normal(50, 10, labels.shape)
        tifffile.imwrite(folder / "images" / f"{seed}.tif", image.astype(np.float32))
        tifffile.imwrite(folder / "labels" / f"{seed}.tif", labels)


def make_spec(ratio=0.4, **schedule):
    """All terms at work: unlabeled pixels, foreground from some instances, consistency."""
    return parse_spec(
        {
            "data": {
                "label_zero": "unlabeled",
                "validation_label_zero": "background",
                "instance_ratio": 0.5,
            },
            "net": {"widths": [4, 8], "embedding_dim": 4},
            "loss": {"labelled_ratio": ratio},
            "schedule": {
                "crop": [24, 24],
                "batch_size": 4,
                "steps": 4,
                "warmup_steps": 2,
                "learning_rate": 1e-4,  # Adam makes whole steps of what is rounding alone
                "validate_every": 1,
                "precision": "float32",
                "workers": 0,
                **schedule,
            },
            "clustering": {"min_size": 5, "fit": False},
        },
        "test",
    )


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    data = tmp_path_factory.mktemp("squares")
    paint(data / "train", range(3))
    paint(data / "val", [10])
    return data


def environment(rank, port):
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def outcomes(squares, tmp_path_factory):
    """Play all scenes in two processes; return how each ended, and where their folders are."""
    out = tmp_path_factory.mktemp("many")
    other = out / "other"
    paint(other / "train", range(2))
    paint(other / "val", [10])
    specs = {
        "plain": make_spec(),
        "parts": make_spec(accumulate=2),
        "odd": make_spec(batch_size=3),
    }
    for name, spec in specs.items():
        (out / f"{name}.yaml").write_text(dump_spec(spec))

    def scene(name, spec="plain", data=(squares,), **options):
        words = {"name": name, "run": name, "spec": str(out / f"{spec}.yaml")}
        return words | {"data": [str(d) for d in data]} | options

    scenes = [
        scene("plain"),
        scene("parts", "parts"),
        scene("stopped", stop_at=2),
        scene("resumed", run="stopped", resume=True),
        scene("odd", "odd"),
        scene("taken", run="plain"),
        scene("other data", data=(squares, other)),
        scene("no data", data=(squares, out / "nothing")),
        scene("never started", resume=True),
    ]
    (out / "scenes.json").write_text(json.dumps(scenes))
    script, port = Path(__file__).with_name("one_of_many.py"), free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(out / "scenes.json"), str(rank), str(out)],
            env=environment(rank, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    for process, error in zip(started, errors, strict=True):
        assert process.returncode == 0, error[-3000:]
    ended = [json.loads((out / f"outcomes{rank}.json").read_text()) for rank in range(2)]
    return out, ended


@pytest.fixture(scope="module")
def alone(squares, tmp_path_factory):
    """Train by one process, with the same batches."""
    folder = tmp_path_factory.mktemp("alone")
    for name, spec in {"plain": make_spec(), "parts": make_spec(accumulate=2)}.items():
        train(spec, squares, folder / name, TrainOptions(device="cpu"))
    return folder


def history_of(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_runs(found, expected):
    rows, true_rows = history_of(found), history_of(expected)
    assert [row["step"] for row in rows] == [row["step"] for row in true_rows]
    for row, true in zip(rows, true_rows, strict=True):
        for name in TERMS:
            assert float(row[name]) == pytest.approx(float(true[name]), abs=1e-5, rel=1e-5)
    state, true_state = (load_checkpoint(f / "last.pt") for f in (found, expected))
    weights, true_weights = state["pair"], true_state["pair"]
    assert weights.keys() == true_weights.keys()
    for name, value in true_weights.items():
        assert torch.allclose(weights[name].double(), value.double(), atol=1e-5), name
    # the mean of the gradients, since the steps of Adam do not tell their length
    gradients, true_gradients = (s["optimizer"]["state"] for s in (state, true_state))
    for number, value in true_gradients.items():
        assert torch.allclose(gradients[number]["exp_avg"], value["exp_avg"], atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "parts"])
def test_two_processes_train_what_one_would(outcomes, alone, name):
    """Losses, weights and the statistics of batch norm, of f and of g."""
    out, ended = outcomes
    assert_equal_runs(out / "rank0" / name, alone / name)
    rows = history_of(alone / name)
    assert all(any(float(row[term]) > 0 for row in rows) for term in TERMS)
    expected = {"step": 4, "finished": True}
    for end in ended:
        assert {key: end[name][key] for key in expected} == expected
    assert ended[0][name]["fitted"] == ended[1][name]["fitted"]


def test_parts_are_not_the_whole_batch_where_statistics_are_those_of_a_part(alone):
    """Otherwise the test above would hold for any count of parts."""
    first, other = (history_of(alone / name)[0] for name in ("plain", "parts"))
    assert float(first["total"]) != pytest.approx(float(other["total"]), abs=1e-4)


def test_only_the_first_process_writes_and_reports(outcomes):
    out, ended = outcomes
    assert (out / "rank0" / "plain" / "recipe.json").is_file()
    assert not (out / "rank1").exists()
    assert ended[0]["plain"]["reports"] == [1, 2, 3, 4]
    assert ended[0]["plain"]["stages"] == ["reading images", "training", "fitting the recipe"]
    assert ended[1]["plain"]["reports"] == ended[1]["plain"]["stages"] == []
    facts = json.loads((out / "rank0" / "plain" / "environment.json").read_text())
    assert (facts["processes"], facts["train_instances"]) == (2, 6)


def test_the_first_process_decides_to_stop_and_all_stop_at_the_same_step(outcomes, alone):
    out, ended = outcomes
    for end in ended:
        stopped = end["stopped"]
        assert (stopped["step"], stopped["finished"], stopped["fitted"]) == (2, False, None)
        assert (end["resumed"]["step"], end["resumed"]["finished"]) == (4, True)
    assert_equal_runs(out / "rank0" / "stopped", alone / "plain")


def test_one_process_goes_on_with_what_two_started(outcomes, squares, alone, tmp_path):
    """The count of processes is of the day, not of the run."""
    assert Ranks(0, 2).share(6, 1) == range(0, 6, 2)
    folder = tmp_path / "run"
    train(make_spec(), squares, folder, TrainOptions(device="cpu", max_minutes=0.0))
    train(make_spec(), squares, folder, TrainOptions(device="cpu", resume=True))
    assert_equal_runs(folder, alone / "plain")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "odd",
            "SettingError: schedule.batch_size is 3 and schedule.accumulate 1 for 2 processes: "
            "expected a multiple of 2 images; change one of the three",
        ),
        (
            "taken",
            "SettingError: {run}: holds a run already: choose another name, or --resume to go on",
        ),
        (
            "other data",
            "SettingError: the processes found different images or instances: "
            "give the same data to all",
        ),
        (
            "no data",
            "ImageError: {out}/nothing/train/images: no such folder: expected "
            "train/images and train/labels with files of equal names",
        ),
        (
            "never started",
            "SettingError: {out}/rank0/never started/last.pt: no such checkpoint to resume from: "
            "start without --resume",
        ),
    ],
)
def test_what_is_wrong_in_any_process_is_told_by_the_first_and_ends_all(outcomes, name, sentence):
    out, ended = outcomes
    told = sentence.format(out=out, run=out / "rank0" / "plain")
    assert ended[0][name] == {"error": told}
    assert ended[1][name] == {"exit": 1}


# In parts, one after the other.


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(squares, tmp_path, monkeypatch, count):
    """With batch norm left out, which looks at a part at a time."""
    monkeypatch.setattr(MomentumPair, "train", lambda pair, mode=True: nn.Module.train(pair, False))
    for accumulate in (1, count):
        spec = make_spec(steps=3, accumulate=accumulate)
        train(spec, squares, tmp_path / str(accumulate), TrainOptions(device="cpu"))
    assert_equal_runs(tmp_path / str(count), tmp_path / "1")


# Under torchrun, as a user starts it.


def test_torchrun_starts_a_run_that_speaks_once(squares, alone, tmp_path):
    (tmp_path / "spec.yaml").write_text(dump_spec(make_spec()))
    run = tmp_path / "run"
    words = ["train", str(squares), "--out", str(run), "--spec", str(tmp_path / "spec.yaml")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "spoco_zoo", *words, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done after 4 steps") == 1
    assert done.stderr.count("step 3: validation") == 1
    assert_equal_runs(run, alone / "plain")
    again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 1
    sentence = f"Error: {run}: holds a run already: choose another name, or --resume to go on"
    assert again.stderr.count(sentence) == 1
    assert "RuntimeError" not in again.stderr


# What one process sees of it.


def test_a_single_process_meets_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    net = nn.Linear(2, 2)
    with join_ranks(torch.device("cpu")) as (ranks, device):
        assert (ranks, device) == (Ranks(0, 1), torch.device("cpu"))
        assert not torch.distributed.is_initialized()
        assert ranks.join(net, net, device) is net
        assert ranks.any(True)
        assert not ranks.any(False)


def test_a_batch_that_cannot_be_shared_is_refused():
    assert list(Ranks(1, 2).share(8, 2)) == [1, 3, 5, 7]
    with pytest.raises(SettingError) as error:
        Ranks(0, 2).share(6, 2)
    assert str(error.value) == (
        "schedule.batch_size is 6 and schedule.accumulate 2 for 2 processes: "
        "expected a multiple of 4 images; change one of the three"
    )


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in environment(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError) as error, join_ranks(torch.device("cuda")):
        pass
    assert str(error.value) == (
        "2 processes share 1 GPUs: expected a GPU for each; "
        "lower --nproc-per-node or use --device cpu"
    )
