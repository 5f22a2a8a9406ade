"""What is said of this machine is true of this process."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from spoco_zoo.machine import (
    Disk,
    Gpu,
    Memory,
    choose_gpu,
    count_cores,
    count_threads,
    one_blas_thread,
    read_disk,
    read_gpus,
    read_memory,
    run_briefly,
    say_size,
)

MEMINFO = "MemTotal:       1000 kB\nMemFree:        1 kB\nMemAvailable:    600 kB\n\nodd\n"
IS_POSIX = pytest.mark.skipif(os.name != "posix", reason="the tool is a script of a shell")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a process")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert count_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_machine_that_does_not_say_what_is_allowed_counts_them_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, counted in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert count_cores() == counted


@pytest.mark.parametrize(
    ("said", "counted"),
    [(None, 6), ("1", 1), ("4", 4), ("6", 6), ("64", 6), ("0", 6), ("", 6), ("-2", 6), ("2,1", 2)],
)
def test_a_network_has_as_many_threads_as_the_variable_allows(monkeypatch, said, counted):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert count_threads(Path("/nowhere")) == counted
    assert count_cores(Path("/nowhere")) == 6


def test_one_thread_of_blas_lasts_until_the_last_user_leaves():
    def threads():
        return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

    np.zeros((2, 2)) @ np.zeros((2, 2))
    with threadpool_limits(2, "blas"):
        before = threads()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert threads() == {1}
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == before


@pytest.mark.parametrize(
    ("worker", "count", "visible", "chosen"),
    [
        (0, 2, None, "0"),  # as workers that are started here are called
        (3, 2, None, "1"),
        ("gpu-3", 4, None, "3"),  # dask worker --name gpu --nworkers 4
        ("SLURMCluster-7-1", 0, "2,5", "5"),
        ("gpu-1", 4, "GPU-aa,GPU-bb", "GPU-bb"),
        ("SLURMCluster-7", 4, "2", None),  # there is one
        ("gpu-1", 4, "", None),
        ("gpu-1", 1, None, None),
        ("gpu-1", 0, None, None),
        ("tcp://10.0.0.2:38291", 4, None, None),  # a port is no number of a worker
        ("alice", 4, None, None),
    ],
)
def test_workers_of_a_machine_take_gpus_in_turn(worker, count, visible, chosen):
    assert choose_gpu(worker, count, visible) == chosen


@pytest.fixture
def system(tmp_path):
    """Write a Linux of which only these files are seen."""

    def write(files, meminfo=MEMINFO):
        for name, text in {"proc/meminfo": meminfo, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_without_a_limit_memory_is_that_of_the_machine(system):
    assert read_memory(system({})) == Memory(1024000, 614400)


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", ""])
def test_a_limit_that_is_none_limits_nothing(system, text):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": text}
    assert read_memory(system(files)) == Memory(1024000, 614400)


def test_the_least_limit_of_all_groups_above_counts(system):
    top = "sys/fs/cgroup"
    files = {
        "proc/self/cgroup": "0::/slice/job\n",
        f"{top}/slice/job/memory.max": "max\n",
        f"{top}/slice/memory.max": "300000\n",
        f"{top}/slice/memory.current": "250000\n",
        f"{top}/slice/memory.stat": "anon 150000\ninactive_file 100000\n",
        f"{top}/memory.max": "500000\n",
    }
    # files that are only kept in memory are let go of, so 150000 bytes are taken
    assert read_memory(system(files)) == Memory(300000, 150000, "container")


def test_limits_of_the_older_control_groups_count_where_only_their_top_is_seen(system):
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/outside\n5:memory:/outside/id\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    root = system(files)
    assert read_memory(root) == Memory(200000, 150000, "container")
    assert count_cores(root) == 1


def test_a_limit_above_what_is_free_takes_nothing_away(system):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "900000\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    assert read_memory(system(files)) == Memory(900000, 614400, "container")


@pytest.mark.parametrize(("text", "cores"), [("50000 100000", 1), ("max 100000", 64), ("odd", 64)])
def test_the_time_that_a_container_gets_is_cores(system, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    files = {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": text}
    assert count_cores(system(files)) == cores


def test_a_part_of_a_core_is_one_more(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000"}
    assert count_cores(system(files)) == 3


def test_this_machine_has_memory_and_more_than_is_free():
    memory = read_memory()
    assert memory.total_bytes > 1e8
    assert memory.free_bytes is None or 0 < memory.free_bytes <= memory.total_bytes


def test_a_folder_that_is_not_there_is_on_the_disk_of_one_above(tmp_path, monkeypatch):
    disk = read_disk(tmp_path / "a" / "b")
    assert disk.folder == tmp_path / "a" / "b"
    assert disk.free_bytes > 0

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", fail)
    assert read_disk(tmp_path) == Disk(tmp_path, None)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Put a script called nvidia-smi on the path, and nothing else but the shell's own."""

    def put(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


@IS_POSIX
def test_gpus_are_those_that_the_tool_names_and_what_it_leaves_out_is_none(tool):
    tool("echo 'NVIDIA A1, 2048, 1024, 550.54.15'; echo 'GB10, [N/A], [N/A], [N/A]'; echo odd")
    known = Gpu("NVIDIA A1", 2048 << 20, 1024 << 20, "550.54.15")
    assert read_gpus() == ((known, Gpu("GB10", None, None, None)), None)


def test_without_the_tool_no_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus() == ((), None)


@IS_POSIX
def test_a_tool_that_fails_is_told(tool):
    tool("echo; echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    reason = "Failed to initialize NVML: Driver/library version mismatch"
    assert read_gpus() == ((), f"nvidia-smi ended with code 18 ({reason})")
    tool("exit 9")
    assert read_gpus() == ((), "nvidia-smi ended with code 9")


@IS_POSIX
def test_a_tool_that_hangs_is_not_waited_for_nor_what_it_started(tool):
    tool("sleep 30 & sleep 30")
    start = time.monotonic()
    assert read_gpus(0.2) == ((), "nvidia-smi does not answer within 0.2 s")
    assert time.monotonic() - start < 5


def test_a_program_that_cannot_be_started_is_told(tmp_path):
    code, said = run_briefly([str(tmp_path / "none")], 5.0)
    assert (code, bool(said)) == (127, True)
    code, said = run_briefly([sys.executable, "-c", "print(7)"], 60.0)
    assert (code, said.strip()) == (0, "7")


def test_sizes_are_for_people():
    assert say_size(25_276_510_208) == "25.3 GB"
