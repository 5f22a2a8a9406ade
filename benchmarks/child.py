"""One side of a comparison in a process of its own: with a time limit, and its peak memory."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path


def run(script, *words, limit=None):
    """Run a script of this folder with these words.

    Returns:
        Seconds until it ended, or None where the time limit ended it.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, str(script), *map(str, words)]
    start = time.perf_counter()
    # a session of its own, so that what it starts ends with it
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return time.perf_counter() - start


def resident_bytes():
    """Memory that this process holds (resident set size)."""
    return _memory("VmRSS")


def peak_bytes():
    """Most memory that this process has held so far (resident set size)."""
    return _memory("VmHWM")


def _memory(name):
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux may be that of the parent
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit  # the peak only


def append(path, **record):
    """Add one line to a file of records."""
    with Path(path).open("a") as file:
        file.write(json.dumps(record) + "\n")


def records(path):
    """Read what `append` wrote; a line cut off by a time limit does not count."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
