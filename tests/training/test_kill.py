"""A run that is killed, whenever it is, loses steps and nothing else."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import csv
import random
import signal
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile

from spoco_zoo import files
from spoco_zoo.spec import dump_spec, parse_spec
from spoco_zoo.training import TrainOptions, train
from spoco_zoo.training.checkpoints import load_checkpoint

torch.set_num_threads(1)

SPEC = parse_spec(
    {
        "data": {"label_zero": "unlabeled", "instance_ratio": 0.5},
        "net": {"widths": [4, 8], "embedding_dim": 4},
        "schedule": {
            "crop": [24, 24],
            "batch_size": 2,
            "steps": 7,
            "warmup_steps": 2,
            "validate_every": 3,
            "checkpoint_every": 2,
            "precision": "float32",
            "workers": 0,
        },
        "clustering": {"min_size": 5, "fit": False},
    },
    "test",
)

# what a user's shell would start again: goes on if there is a checkpoint, and takes its time
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from spoco_zoo.spec import load_spec
from spoco_zoo.training import TrainOptions, train
torch.set_num_threads(1)
spec, data, folder = map(Path, sys.argv[1:])
options = TrainOptions(
    device="cpu", resume=(folder / "last.pt").exists(), on_step=lambda report: time.sleep(0.1)
)
print("ready", flush=True)
train(load_spec(spec), data, folder, options)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for part, seed in (("train", 0), ("val", 1)):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        labels = np.zeros((32, 36), np.uint16)
        labels[4:14, 5:15], labels[18:28, 16:27] = 1, 2
        image = 100 * (labels > 0) + np.random.default_rng(seed).normal(50, 10, labels.shape)
        tifffile.imwrite(folder / part / "images" / "a.tif", image.astype(np.float32))
        tifffile.imwrite(folder / part / "labels" / "a.tif", labels)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(SPEC, data, folder, TrainOptions(device="cpu"))
    return folder


def facts_of(folder):
    """Read what a run leaves, but for the time that it took."""
    states = [load_checkpoint(folder / name) for name in ("last.pt", "best.pt")]
    for state in states:
        state["recent"] = [terms for terms, _ in state["recent"]]
    with (folder / "history.csv").open(newline="") as file:
        rows = [
            {
                name: value
                for name, value in row.items()
                if name not in ("seconds_per_step", "data_seconds")
            }
            for row in csv.DictReader(file)
        ]
    return states, rows, (folder / "recipe.json").read_text()


def same(first, second):
    """Compare nested values, tensors to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


class _Killed(BaseException):
    """No code of the project expects it, as none can expect a kill."""


def kill_at(monkeypatch, place):
    """End everything before the write of this number; return the names of files written."""
    written, write_whole = [], files.write_whole

    def write(path, content, *, overwrite=False):
        if len(written) == place:
            raise _Killed
        written.append(path.name)
        write_whole(path, content, overwrite=overwrite)

    monkeypatch.setattr(files, "write_whole", write)
    return written


def test_killed_before_any_of_its_writes_a_run_ends_as_undisturbed(
    data, undisturbed, tmp_path, monkeypatch
):
    """Between history and checkpoint, best and last, and at the first and last of its files."""
    with monkeypatch.context() as patch:
        written = kill_at(patch, None)
        train(SPEC, data, tmp_path / "counted", TrainOptions(device="cpu"))
    assert written.count("last.pt") == 1 + 5  # at the start, and after 2, 3, 4, 6 and 7 steps
    best = written.index("best.pt")
    assert written[best - 1 : best + 3] == ["history.csv", "best.pt", "history.csv", "last.pt"]
    for place in (0, written.index("last.pt"), *range(best - 1, best + 4), len(written) - 1):
        folder = tmp_path / f"run{place}"
        with monkeypatch.context() as patch:
            kill_at(patch, place)
            with pytest.raises(_Killed):
                train(SPEC, data, folder, TrainOptions(device="cpu"))
        resume = (folder / "last.pt").exists()
        assert resume == ("last.pt" in written[:place])
        train(SPEC, data, folder, TrainOptions(device="cpu", resume=resume))
        assert same(facts_of(folder), facts_of(undisturbed)), written[place]


def test_sigkill_at_any_moment_costs_steps_and_nothing_else(data, undisturbed, tmp_path):
    folder, chance = tmp_path / "run", random.Random(0)
    (tmp_path / "spec.yaml").write_text(dump_spec(SPEC))
    words = [str(tmp_path / "spec.yaml"), str(data), str(folder)]
    reached = [0]
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        while reached[-1] + 2 > step_of(folder) and time.monotonic() - began < 120:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(step_of(folder))
        (folder / ".last.pt.x.part").write_bytes(b"what it was writing")
    assert reached == sorted(set(reached))  # each time some steps were kept
    train(SPEC, data, folder, TrainOptions(device="cpu", resume=True))
    assert same(facts_of(folder), facts_of(undisturbed))
    assert not list(folder.glob(".*"))


def step_of(folder):
    """Read the step of the last checkpoint, which can be read at any moment."""
    path = folder / "last.pt"
    return load_checkpoint(path)["step"] if path.exists() else 0
