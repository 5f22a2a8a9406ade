"""Programs run as children: what they print, and how they can end.

A runner prints one line of JSON for each thing it has done. Everything else that it or its
libraries print is passed over, and whatever ends it is a word here and never our end.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REASON_LENGTH = 300


@dataclass(frozen=True)
class Ending:
    """How a child ended: the JSON lines it printed, and what was wrong, if anything."""

    lines: tuple[dict[str, Any], ...]
    trouble: str | None


def run_child(
    words: Sequence[str | Path],
    folder: Path,
    *,
    timeout: float,
    variables: Mapping[str, str] | None = None,
) -> Ending:
    """Run a program to its end, or end it after `timeout` seconds.

    Args:
        words: The program and its arguments.
        folder: Where it works.
        timeout: In seconds.
        variables: Of the environment, over those of this process.
    """
    try:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder,
            env=os.environ | dict(variables or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Ending(_read_lines(late.stdout or b""), f"it did not end within {timeout:g} s")
    except OSError as error:
        return Ending((), f"{words[0]} cannot be started: {error.strerror or error}")
    trouble = None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        trouble = f"it was ended by {name}, perhaps for want of memory"
    elif done.returncode:
        said = _first_reason(done.stderr.decode(errors="replace"))
        trouble = said or f"it ended with code {done.returncode} and no word"
    return Ending(_read_lines(done.stdout), trouble)


def first_line(text: str) -> str:
    """The first line that says something, its middle left out where it is too long to read.

    ONNX Runtime begins with where it is in its own source, and ends with what is wrong.
    """
    lines = (line.strip() for line in text.splitlines())
    line = next((line for line in lines if line), "").rstrip(" .:")
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[: REASON_LENGTH // 3]} ... {line[len(line) - REASON_LENGTH // 2 :]}"


def _first_reason(stderr: str) -> str:
    """The first line about an error; the last line of a traceback or of anything else."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if line.lower().startswith(("error", "npm error"))]
    return first_line(wrong[0] if wrong else lines[-1]) if lines else ""


def _read_lines(stdout: bytes) -> tuple[dict[str, Any], ...]:
    found = []
    for line in stdout.decode(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return tuple(found)
