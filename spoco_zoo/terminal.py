"""What the commands write to a terminal: a bar for long work, tables, and errors as one line."""

import os
import signal
from types import FrameType
from typing import TYPE_CHECKING

import typer

from spoco_zoo.errors import SpocoZooError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def is_speaker() -> bool:
    """Whether this process writes: of those that `torchrun` starts, the first on a machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def progress_bar() -> "Progress":
    """A bar of what is done, how long it took and what is left; on stderr."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console(),
        disable=not is_speaker(),
    )


def console(*, stderr: bool = True) -> "Console":
    """The terminal; tables go to stdout, what is going on to stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def complain(error: SpocoZooError) -> None:
    """Write an error as one line."""
    say(f"Error: {error}", err=True)


def say(line: str, *, err: bool = False) -> None:
    """Write a line to stdout, or stderr, if this process is one that writes."""
    if is_speaker():
        typer.echo(line, err=err)


class Interrupt:
    """Turn the first Ctrl-C into a wish to stop, so that training can save."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this step; press Ctrl-C again to stop at once", err=True)
