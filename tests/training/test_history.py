"""The history can be watched while it grows, and a kill at any time costs no checkpoint."""

import errno
from pathlib import Path

import pytest

pytest.importorskip("torch")

from spoco_zoo.curves import read_history
from spoco_zoo.spec import load_spec
from spoco_zoo.training import TrainOptions, train
from spoco_zoo.training.history import COLUMNS, TERMS, History

MEANS = {"total": 3.0, **dict.fromkeys(TERMS, 0.123456789)}


def make(path, *steps):
    history = History(path)
    history.write()
    for step in steps:
        history.add(step, MEANS, 0.001, 0.5)
    return history


def test_rows_are_on_disk_as_they_come(tmp_path):
    path = tmp_path / "history.csv"
    history = make(path, 10, 20)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert read_history(path)["step"].tolist() == [10, 20]
    history.set_score(20, 0.25)
    history.set_score(10, 0.75)  # no longer the last row
    history.write()
    assert read_history(path)["score"][1] == 0.25
    assert history.last["score"] == 0.25
    assert history.last["pull"] == 0.123457
    assert History(path).last == {}


def test_rows_later_than_the_checkpoint_and_half_a_row_are_taken_out(tmp_path):
    path = tmp_path / "history.csv"
    whole = make(path, 10, 20).path.read_text()
    with path.open("a") as file:
        file.write("30,1,2\n40,3.0,0.12")
    resumed = History(path)
    resumed.load(20)
    assert [row[0] for row in resumed.rows] == [10, 20]
    assert path.read_text() == whole
    resumed.load(10)
    assert [row[0] for row in resumed.rows] == [10]
    assert read_history(path)["step"].tolist() == [10]
    resumed.add(20, MEANS, 0.001, 0.5)
    assert path.read_text() == whole


def test_a_history_that_is_not_there_has_no_rows(tmp_path):
    history = History(tmp_path / "history.csv")
    history.load(5)
    assert history.rows == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_stop_a_row_but_the_checkpoint_after_it(tmp_path, monkeypatch):
    history = make(tmp_path / "history.csv", 10)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        history.add(20, MEANS, 0.001, 0.5)
    history.write()
    assert read_history(history.path)["step"].tolist() == [10, 20]


class KillError(Exception):
    """Stands for a kill: nothing is saved on the way out."""


def test_a_killed_run_shows_its_rows_and_goes_on_as_if_nothing_was(
    nuclei_data, tiny_spec, tiny_run, tmp_path
):
    folder, spec = tmp_path / "run", load_spec(tiny_spec)

    def kill(report):
        if report.step == 15:
            raise KillError

    with pytest.raises(KillError):
        train(spec, nuclei_data, folder, TrainOptions(device="cpu", on_step=kill))
    assert read_history(folder / "history.csv")["step"].tolist() == [10]
    train(spec, nuclei_data, folder, TrainOptions(device="cpu", resume=True))
    here, there = (read_history(path / "history.csv") for path in (folder, tiny_run))
    for name in set(COLUMNS) - {"seconds_per_step"}:
        assert here[name].tolist() == pytest.approx(there[name].tolist(), nan_ok=True), name
