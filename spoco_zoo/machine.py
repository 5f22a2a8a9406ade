"""What this machine gives to this process."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits


def count_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_bytes() -> int:
    """Most memory that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)


def free_bytes() -> int:
    """Memory that this process may still take: of the machine, or of its container."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        words = Path("/proc/meminfo").read_text(encoding="ascii").split()
        limits = [int(words[words.index("MemAvailable:") + 1]) * 1024]
    with suppress(OSError, ValueError):
        most = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        limits.append(max(most - used, 0))
    return min(limits, default=4 << 30)


class _Blas:
    """Who asked for one thread of BLAS, and how it was before."""

    lock = threading.Lock()
    users = 0
    limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread; that is a state of the process, so it lasts until the last leaves.

    With threads of its own, BLAS may share out the sums of a product between them.
    """
    with _Blas.lock:
        if not _Blas.users:
            _Blas.limits = threadpool_limits(1, "blas")
        _Blas.users += 1
    try:
        yield
    finally:
        with _Blas.lock:
            _Blas.users -= 1
            if not _Blas.users:
                _Blas.limits.restore_original_limits()
