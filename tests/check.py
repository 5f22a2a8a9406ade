"""Run every check of the project, for people and CI alike: python tests/check.py [--quick].

Lint, format, types and import floors, all at once; while they run, the tests: first those that
count for the branch coverage of the runtime rooms, then all others. Types and shapes are checked
at every call by the first and by those of training. Checking takes a third of the time of a test,
so those of packaging, engines and datasets do without.
`--quick` leaves the tests out.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
RUNTIME_ROOMS = (
    "errors intensities embedder files archive machine onnx_header tiling labels normalization "
    "operations boundaries "
    "foreground recipe modes fragments clustering metrics images package rdf foreign spec figures "
    "curves fitting session segmentation prediction evaluation simulation choices lint/* cli "
    "mistakes examples report/* cli_runs outlines measurements roi_zip qupath_objects results jobs "
    "stores ngff large_tiffs volumes pyramids label_metadata label_stores embedding_stores "
    "scratch layout margins blocks joining block_plan block_jobs large_inputs large_jobs "
    "large_results cli_large installation providers words doctor/*"
)
CHECKS = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["lint-imports"],
]
PYTEST = [
    *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal"),
]
TYPED = "--jaxtyping-packages=spoco_zoo,beartype.beartype"
TESTS = [
    ["coverage", "run", *PYTEST, TYPED, "-m", "not uncounted"],
    ["coverage", "combine", "-q"],
    [
        *("coverage", "report", "--fail-under=95", "--skip-covered"),
        "--include=" + ",".join(f"spoco_zoo/{room}.py" for room in RUNTIME_ROOMS.split()),
    ],
    ["python", *PYTEST, TYPED, "-m", "uncounted", "tests/training"],
    ["python", *PYTEST, "-m", "uncounted", "--ignore=tests/training"],
]


# as many tests as cores run at a time, and threads of theirs would only wait for each other
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | dict(os.environ)


def main() -> int:
    """Run the checks; a failed one is told at once, and ends the run after the tests under way."""
    quick = "--quick" in sys.argv[1:]
    with ThreadPoolExecutor(len(CHECKS)) as pool:  # they take one core, and tests not always both
        checks = [pool.submit(run, command, is_apart=True) for command in CHECKS]
        for command in () if quick else TESTS:
            code = run(command) or next((c.result() for c in checks if c.done() and c.result()), 0)
            if code:
                return code
        return next((code for code in (check.result() for check in checks) if code), 0)


def run(command: list[str], *, is_apart: bool = False) -> int:
    """Run one command; what it says stays together, at its end, where others run beside it."""
    start = time.monotonic()
    title = f"--- {' '.join(command)}"
    if not is_apart:
        print(title, flush=True)
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        check=False,
        env=ONE_THREAD,
        stdout=subprocess.PIPE if is_apart else None,
        stderr=subprocess.STDOUT if is_apart else None,
        text=True,
    )
    said = f"{title}\n{done.stdout}" if is_apart else ""
    end = f"--- {command[0]}: exit {done.returncode} after {time.monotonic() - start:.0f} s"
    print(f"{said}{end}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
