"""The rows of `history.csv`: losses, learning rate, time and scores over the steps of a run.

Rows are appended as they come, so that one can watch. A checkpoint writes all of them anew, which
adds the scores; resuming leaves out those that are later than the checkpoint. A kill at any time
leaves a file that can be read, but for its last line.
"""

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from spoco_zoo.files import write_bytes
from spoco_zoo.training.loss import LossTerms

TERMS = LossTerms._fields[:-1]
COLUMNS = ("step", "total", *TERMS, "learning_rate", "seconds_per_step", "score")


class History:
    """The rows of a run, and the file that they stand in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[list[Any]] = []

    def add(self, step: int, means: dict[str, float], rate: float, seconds: float) -> None:
        """Append the mean terms of the steps since the last row, and seconds a step."""
        row: list[Any] = [step, means["total"], *(means[name] for name in TERMS), rate, seconds, ""]
        self.rows.append([_short(value) for value in row])
        # the next checkpoint writes all rows, or says why it cannot
        with suppress(OSError), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_join(self.rows[-1]))

    def set_score(self, step: int, score: float) -> None:
        """Note the validation score of a step that has a row; it is written by `write`."""
        if self.rows and self.rows[-1][0] == step:
            self.rows[-1][-1] = _short(score)

    @property
    def last(self) -> dict[str, Any]:
        """The last row by the names of its columns; empty before the first."""
        return dict(zip(COLUMNS, self.rows[-1], strict=True)) if self.rows else {}

    def write(self) -> None:
        """Write all rows, whole or not at all.

        Raises:
            OutputError: The disk refuses the file.
        """
        text = "".join(map(_join, [list(COLUMNS), *self.rows]))
        write_bytes(self.path, text.encode(), overwrite=True)

    def load(self, step: int) -> None:
        """Read the rows up to a step, and take later ones out of the file.

        Raises:
            OutputError: The disk refuses the shorter file.
        """
        lines: list[str] = []
        with suppress(FileNotFoundError), self.path.open(encoding="utf-8", newline="") as file:
            lines = list(file)
        whole = [line for line in lines[1:] if line.endswith("\n")]  # a kill may cut the last
        rows = [[_number(cell) for cell in row] for row in csv.reader(whole)]
        self.rows = [row for row in rows if len(row) == len(COLUMNS) and row[0] <= step]
        if len(self.rows) < len(lines) - 1:
            self.write()


def _join(row: list[Any]) -> str:
    return ",".join(map(str, row)) + "\n"


def _short(value: float | int | str) -> float | int | str:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _number(text: str) -> Any:  # noqa: ANN401 - a cell of a table
    if not text:
        return text
    return int(text) if text.isdigit() else float(text)
