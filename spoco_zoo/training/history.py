"""The history of a run: the terms of the loss over the steps, as `history.csv` holds them."""

import csv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spoco_zoo.training.loss import LossTerms

LOG_EVERY = 10
_TERMS = LossTerms._fields[:-1]
_COLUMNS = ("step", "total", *_TERMS, "learning_rate", "seconds_per_step", "score")


@dataclass
class History:
    """The rows so far, and the terms and seconds of the steps since the last of them."""

    rows: list[list[Any]] = field(default_factory=list)
    recent: list[tuple[dict[str, float], float]] = field(default_factory=list)

    def note(self, terms: Mapping[str, float], seconds: float) -> None:
        """Keep what one step gave and how long it took."""
        self.recent.append((dict(terms), seconds))

    def add_row(self, step: int, rate: float) -> dict[str, float]:
        """Sum up the steps since the last row by their means, which are returned."""
        names = self.recent[0][0].keys()
        means = {n: sum(t[n] for t, _ in self.recent) / len(self.recent) for n in names}
        seconds = sum(s for _, s in self.recent) / len(self.recent)
        terms = [means[n] for n in ("total", *_TERMS)]
        self.rows.append([step, *(_short(value) for value in (*terms, rate, seconds)), ""])
        self.recent.clear()
        return means

    def add_score(self, step: int, score: float) -> None:
        """Write the score of a validation into the row of its step."""
        if self.rows and self.rows[-1][0] == step:
            self.rows[-1][-1] = _short(score)

    def last(self) -> tuple[dict[str, float], float]:
        """Terms and seconds a step of the last row, to be shown."""
        if not self.rows:
            return {}, 0.0
        row = self.rows[-1]
        return dict(zip(("total", *_TERMS), row[1:9], strict=True)), row[10]

    def to_text(self) -> str:
        """Write all rows as comma separated values."""
        return "".join(",".join(map(str, row)) + "\n" for row in [_COLUMNS, *self.rows])

    def read_rows(self, path: Path, step: int) -> None:
        """Take the rows of a file up to a step; later ones are of steps that were lost."""
        rows: list[list[Any]] = []
        with suppress(FileNotFoundError), path.open(newline="") as file:
            rows = [[_number(v) for v in row] for row in list(csv.reader(file))[1:]]
        self.rows = [row for row in rows if row[0] <= step]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _number(text: str) -> Any:  # noqa: ANN401 - a cell of a table
    if not text:
        return text
    return int(text) if text.isdigit() else float(text)
