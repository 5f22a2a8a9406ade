"""What this machine gives to this process."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits


def count_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
