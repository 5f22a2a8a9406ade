"""What this machine gives to this process: cores, memory, disk and GPUs.

In a container, or under a batch system, a process may use less than the machine has: control
groups and limits say how much. Nothing is guessed: what the system does not tell is None.
"""

import ctypes
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path("/")  # where `proc` and `sys` are
_MEGA = 1 << 20  # nvidia-smi counts in MiB
_GPU_FIELDS = "name,memory.total,memory.free,driver_version"


@dataclass(frozen=True)
class Memory:
    """Memory that this process may use; `limited_by` is what leaves less than the machine has."""

    total_bytes: int
    free_bytes: int | None
    limited_by: str | None = None


@dataclass(frozen=True)
class Disk:
    """Free space where a folder is, or would be made."""

    folder: Path
    free_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver's own tool tells of it."""

    name: str
    total_bytes: int | None
    free_bytes: int | None
    driver: str | None


def count_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return math.ceil(min(allowed, _read_quota(root)))


def count_threads(root: Path = ROOT) -> int:
    """Threads that a network may compute with: as OMP_NUM_THREADS says, or one for each core.

    BLAS and PyTorch obey that variable by themselves; who starts several programs at once sets it.
    ONNX Runtime does not, and its threads, which wait by spinning, would take the cores of others.
    """
    said, *_ = os.environ.get("OMP_NUM_THREADS", "").split(",")  # others are for loops within loops
    cores = count_cores(root)
    return min(int(said), cores) if said.isdecimal() and int(said) else cores


def read_memory(root: Path = ROOT) -> Memory | None:
    """Memory that this process may use; None where the system does not tell."""
    total, free = _read_machine_memory(root)
    if total is None:
        return None
    limited_by = None
    for name, (limit, used) in _read_limits(root).items():
        if limit < total:
            total, limited_by = limit, name
        if used is not None:
            left = max(limit - used, 0)
            free = left if free is None else min(free, left)
    if free is not None:
        free = min(free, total)
    return Memory(total, free, limited_by)


def count_gpus() -> int:
    """Count the GPUs that an NVIDIA driver shows to this process, without loading CUDA."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int()
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if ready else 0


def choose_gpu(worker: str | int, count: int, visible: str | None) -> str | None:
    """Say which GPU a worker takes, so that those of one machine share them out.

    Args:
        worker: Its name, that ends in its number on this machine: 3, or gpu-3.
        count: GPUs of this machine.
        visible: CUDA_VISIBLE_DEVICES, where it is set.

    Returns:
        What CUDA_VISIBLE_DEVICES has to be for it; None where there is nothing to choose, or no
        number to choose by, as in the address that a worker without a name is called by.
    """
    gpus = [str(n) for n in range(count)] if visible is None else visible.split(",")
    number = re.search(r"\d+$", str(worker))
    if number is None or ":" in str(worker) or len(gpus) < 2:
        return None
    return gpus[int(number[0]) % len(gpus)]


def peak_bytes() -> int:
    """Most memory that this process has held so far; 0 where the system does not tell."""
    with suppress(OSError, ValueError):  # on Linux, where getrusage may tell of the parent
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)


def read_disk(folder: Path) -> Disk:
    """Free space at a folder, or at the nearest folder above it that is there."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return Disk(folder, shutil.disk_usage(place).free)
    except OSError:
        return Disk(folder, None)


def read_gpus(timeout_s: float = 5.0) -> tuple[tuple[Gpu, ...], str | None]:
    """Ask the tool of NVIDIA's driver for the GPUs.

    Args:
        timeout_s: A driver in trouble may never answer; after so long it is not waited for.

    Returns:
        The GPUs, and what was wrong with asking; nothing is wrong where there is no such tool.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), None
    words = [tool, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]
    code, said = run_briefly(words, timeout_s)
    if code is None:
        return (), f"nvidia-smi does not answer within {timeout_s:g} s"
    if code:
        reason = next((line.strip() for line in said.splitlines() if line.strip()), "")
        return (), f"nvidia-smi ended with code {code}" + (f" ({reason})" if reason else "")
    gpus = (_read_gpu(line) for line in said.splitlines())
    return tuple(gpu for gpu in gpus if gpu is not None), None


def say_size(count: int) -> str:
    """A count of bytes for people."""
    return f"{count / 1e9:.1f} GB"


def run_briefly(
    words: Sequence[str], timeout_s: float, variables: Mapping[str, str] | None = None
) -> tuple[int | None, str]:
    """Run a program; after `timeout_s` seconds it is killed, and not waited for.

    A process that hangs within a driver cannot even be killed, so what it wrote is read from a
    file, which does not close with it.

    Returns:
        Its exit code, None where it was too late, 127 where it cannot be started; and what it
        wrote to stdout.
    """
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                env=os.environ | dict(variables or {}),
            )
        except OSError as error:
            return 127, error.strerror or str(error)
        code: int | None
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
            code = None
            child.returncode = -9  # if it lives on, nobody is to warn of it
        out.seek(0)
        return code, out.read().decode(errors="replace")


def _read_gpu(line: str) -> Gpu | None:
    words = [word.strip() for word in line.split(",")]
    if len(words) != len(_GPU_FIELDS.split(",")):
        return None
    name, total, free, driver = words
    # what a card does not tell stands there in brackets, such as [N/A]
    size = {word: int(word) * _MEGA if word.isdecimal() else None for word in (total, free)}
    return Gpu(name, size[total], size[free], driver if driver[:1].isdecimal() else None)


def _read_machine_memory(root: Path) -> tuple[int | None, int | None]:
    """Memory of the whole machine: all, and what is free."""
    lines = _read_text(root / "proc/meminfo").splitlines()
    told = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    if "MemTotal" in told:
        free = told.get("MemAvailable")
        return 1024 * int(told["MemTotal"]), None if free is None else 1024 * int(free)
    if sys.platform == "win32":
        return _read_windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (ValueError, OSError):
        return None, None


def _read_windows_memory() -> tuple[int | None, int | None]:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
        return None, None
    return int(status.total), int(status.free)


def _read_limits(root: Path) -> dict[str, tuple[int, int | None]]:
    """Limits on memory in bytes, and what is used of them where that is told."""
    found: dict[str, tuple[int, int | None]] = {}
    for folder in _control_groups(root, "memory"):
        for limit_name, used_name, spare in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read_number(folder / limit_name)
            if limit is not None and limit < found.get("container", (limit + 1, None))[0]:
                used = _read_number(folder / used_name)
                if used is not None:  # files in memory are let go of when it is wanted
                    used -= min(_read_stat(folder / "memory.stat", spare), used)
                found["container"] = limit, used
    if root == ROOT and sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found["ulimit"] = limit, None
    return found


@cache
def _read_quota(root: Path) -> float:
    """Cores whose time the control groups of this process may use; infinite without a limit."""
    quota = math.inf
    for folder in _control_groups(root, "cpu"):
        pair = _read_text(folder / "cpu.max").split()
        if not pair:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            pair = [_read_text(folder / name).strip() for name in names]
        if len(pair) == 2 and all(word.isdecimal() and int(word) for word in pair):
            quota = min(quota, int(pair[0]) / int(pair[1]))
    return quota


def _control_groups(root: Path, kind: str) -> Iterator[Path]:
    """Folders of the control groups of this process, of version 1 and 2, and of those above.

    Within a container the path may be that of the machine outside, of which only the top is seen.
    """
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and kind not in kinds.split(","):
            continue
        mounts = (kinds, kind) if kinds else ("", "unified")
        for mount in dict.fromkeys(mounts):
            top = root / "sys/fs/cgroup" / mount
            place = Path(path.strip("/"))
            for part in (place, *place.parents):
                if (top / part).is_dir() and ".." not in part.parts:
                    yield top / part


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    """The number in a file; None where there is none, such as `max`."""
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _read_stat(path: Path, name: str) -> int:
    pairs = (line.split() for line in _read_text(path).splitlines())
    return next((int(p[1]) for p in pairs if len(p) == 2 and p[0] == name), 0)


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
    from threadpoolctl import threadpool_limits

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
