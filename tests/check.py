"""Run every check of the project, for people and CI alike: python tests/check.py [--quick].

Lint, format, types, import floors, then the tests: first those that count for the branch coverage
of the runtime rooms, then all others. Types and shapes are checked at every call by the first and
by those of training. Checking takes a third of the time of a test, so those of packaging, engines
and datasets do without.
`--quick` leaves the tests out.
"""

import os
import subprocess
import sys
import time
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
    "large_results cli_large installation providers doctor/*"
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
    """Run the checks in order; the exit code of the first that fails."""
    quick = "--quick" in sys.argv[1:]
    for command in CHECKS if quick else CHECKS + TESTS:
        start = time.monotonic()
        print(f"--- {' '.join(command)}", flush=True)
        code = subprocess.run(
            [str(BIN / command[0]), *command[1:]], cwd=ROOT, check=False, env=ONE_THREAD
        ).returncode
        print(f"--- {command[0]}: exit {code} after {time.monotonic() - start:.0f} s", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
