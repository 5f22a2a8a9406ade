"""The course of a training: its history read, and drawn as curves."""

import csv
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from spoco_zoo.errors import MissingExtraError, SettingError
from spoco_zoo.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TERMS = ("pull", "push", "norm", "unlabeled_push", "instance", "consistency", "foreground")
_COLUMNS = ("step", "total", *_TERMS, "learning_rate", "seconds_per_step", "score")


def read_history(path: Path) -> dict[str, Float[np.ndarray, " n"]]:
    """Read the columns of a history; an empty cell is not a number.

    A last line that is not complete, of a training that writes it just now or was killed, is
    left out.

    Raises:
        SettingError: The file is missing, damaged or has no step yet.
    """
    if not path.is_file():
        raise SettingError(f"{path} does not exist: give the history.csv of a run folder")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise SettingError(
            f"{path} has no column {missing[0]}: give the history.csv of a run folder"
        )
    rows = list(reader)
    if not rows:
        raise SettingError(f"{path} has no steps yet: train first")
    try:
        history = {name: np.array([float(row[name] or "nan") for row in rows]) for name in _COLUMNS}
        if not all(np.isfinite(history[name]).all() for name in ("step", "learning_rate")):
            raise ValueError("a step or a learning rate is no number")
        return history
    except ValueError as error:
        raise SettingError(f"{path} is damaged: {error}; train again") from error


def training_curves(history_csv: Path, target: Path) -> None:
    """Draw the loss terms and the validation score over the steps of a training, as PNG.

    An older picture is replaced, so that it can be drawn again while training goes on.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingError: the history is not one that training writes, or has no step yet.
        ImageError: the folder of `target` does not exist.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "figures of training need matplotlib: pip install 'spoco-zoo[train]'"
        ) from error
    history = read_history(history_csv)
    steps = history["step"]
    is_scored = np.isfinite(history["score"])
    figure = Figure(figsize=(8, 7 if is_scored.any() else 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2, 1] if is_scored.any() else [1]
    rows = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(rows[0], history)
    if is_scored.any():
        best = int(np.nanargmax(history["score"]))
        rows[1].plot(steps[is_scored], history["score"][is_scored], "o-", color="black", ms=3)
        best_is = f"best score {history['score'][best]:.3f} at step {steps[best]:.0f}"
        rows[1].set(title=best_is, ylabel="validation score")
    rows[-1].set_xlabel("step")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(target, buffer.getvalue(), overwrite=True)


def _draw_losses(axes: "Axes", history: dict[str, Float[np.ndarray, " n"]]) -> None:
    """Draw every loss term in use: each step faintly, the running mean in full colour."""
    steps = history["step"]
    window = max(1, len(steps) // 100)
    names = [name for name in ("total", *_TERMS) if np.nan_to_num(history[name]).any()]
    for name in names:
        values = history[name]
        mean = np.convolve(values, np.ones(window) / window, "valid")
        color = "black" if name == "total" else f"C{_TERMS.index(name)}"
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        label = name.replace("_", " ")
        axes.plot(steps[window // 2 :][: len(mean)], mean, color=color, linewidth=1.5, label=label)
    if names:
        axes.legend(ncols=4, fontsize=8, loc="upper right")
        if all(np.nanmin(history[name]) >= 0 for name in names):
            axes.set_yscale("log")
    axes.set_ylabel("loss")
