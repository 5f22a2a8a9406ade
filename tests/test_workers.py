"""Who does the work: steps are given away again, smaller, until they are done or hopeless."""

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

# ruff: noqa: E402 - without dask the file ends at the line that asks for it

distributed = pytest.importorskip("distributed")

from spoco_zoo import workers
from spoco_zoo.errors import DeviceError, ImageError
from spoco_zoo.scratch import DamagedFileError
from spoco_zoo.stages import Done
from spoco_zoo.workers import Cluster, Here, count_at_once, together

pytestmark = pytest.mark.uncounted

ELSEWHERE = "a worker failed (ZeroDivisionError: division by zero): look at its log"


@pytest.fixture(scope="module", params=["here", "cluster"])
def pool(request, tmp_path_factory):
    if request.param == "here":
        yield Here()
    else:
        with Cluster.start(1, 1_500_000_000, tmp_path_factory.mktemp("pool")) as pool:
            yield pool


def note(folder, number, attempt):
    (folder / f"{number}.{attempt}").touch()
    return Done(float(number))


def fail(error, until, folder, number, attempt):
    note(folder, number, attempt)
    if number == 1 and attempt < until:
        raise error
    return Done(0.0)


def die(until, folder, number, attempt):
    note(folder, number, attempt)
    if number == 1 and attempt < until:
        os.kill(os.getpid(), signal.SIGKILL)
    return Done(0.0)


def divide(number, attempt):
    return number / 0


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_every_number_is_done_once(pool, tmp_path):
    found = dict(pool.run(partial(note, tmp_path), range(20)))
    assert {number: done.seconds for number, done in found.items()} == {n: n for n in range(20)}
    assert names_in(tmp_path) == sorted(f"{n}.0" for n in range(20))
    assert list(pool.run(partial(note, tmp_path), [])) == []
    assert pool.count == 1


def test_what_does_not_fit_into_memory_is_told_how_often(pool, tmp_path):
    work = partial(fail, MemoryError(), 3, tmp_path)
    assert sorted(number for number, _ in pool.run(work, range(3))) == [0, 1, 2]
    assert names_in(tmp_path) == ["0.0", "1.0", "1.1", "1.2", "1.3", "2.0"]


def test_what_never_fits_ends_in_one_sentence(pool, tmp_path):
    with pytest.raises(DeviceError) as error:
        list(pool.run(partial(fail, MemoryError(), 9, tmp_path), range(3)))
    assert str(error.value) == (
        "block 1 failed 5 times, at last in small parts (it does not fit into memory): use fewer "
        "--workers or a smaller --memory, and give the same command again to go on"
    )


@pytest.mark.parametrize("kind", [ImageError, DamagedFileError])
def test_what_users_can_mend_comes_as_it_is(pool, tmp_path, kind):
    with pytest.raises(kind, match=r"^a\.zarr: is gone$"):
        list(pool.run(partial(fail, kind("a.zarr: is gone"), 9, tmp_path), range(3)))
    # others may still be under way
    assert [name for name in names_in(tmp_path) if name[0] == "1"] == ["1.0"]


def wait_for(others, folder, number, attempt):
    """End when so many steps are under way, or after a minute, and then say -1."""
    note(folder, number, attempt)
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < others and time.monotonic() < until:
        time.sleep(0.01)
    return Done(float(number) if len(list(folder.iterdir())) >= others else -1.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Cluster.start(2, 1_500_000_000, tmp_path_factory.mktemp("pair")) as pool:
        yield pool


def test_so_many_works_at_once_that_workers_are_busy(pair):
    assert pair.most == 2
    found = [count_at_once(2, 100, steps) for steps in (0, 1, 2, 3, 4, 1000)]
    assert found == [4, 4, 2, 2, 1, 1]
    assert count_at_once(2, 3, 1) == 3
    assert count_at_once(Here().most, 100, 1) == 1


def test_works_share_workers_and_each_has_its_own_end(pair, tmp_path):
    def work(number):
        # no step ends before one of the other work is under way
        step = partial(wait_for, 2, tmp_path)
        found = [done.seconds for _, done in pair.run(step, [number])]
        if number == 2:
            raise ImageError("b.zarr: is gone")
        return found

    with together([partial(work, number) for number in (1, 2)], pair, 2) as works:
        assert works[0]() == [1.0]
        with pytest.raises(ImageError, match=r"^b\.zarr: is gone$"):
            works[1]()


def test_works_end_when_nobody_waits_for_them(tmp_path_factory, tmp_path):
    ended = []

    def work(number):
        try:
            return list(pool.run(partial(wait_for, 99, tmp_path), [number]))
        finally:
            ended.append(number)

    def interrupt():
        with together([partial(work, number) for number in range(9)], pool, 2):
            while len(names_in(tmp_path)) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    with Cluster.start(2, 1_500_000_000, tmp_path_factory.mktemp("pool")) as pool:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert time.monotonic() - start < 30  # steps would wait for a minute
    assert sorted(ended) == [0, 1]


def test_workers_that_die_are_replaced(tmp_path_factory, tmp_path):
    with Cluster.start(1, 1_500_000_000, tmp_path_factory.mktemp("pool")) as pool:
        assert len(list(pool.run(partial(die, 1, tmp_path), range(3)))) == 3
        assert {"1.0", "1.1"} <= set(names_in(tmp_path))
        with pytest.raises(DeviceError) as error:
            list(pool.run(divide, [1]))
        assert str(error.value) == ELSEWHERE


def test_where_nobody_listens_is_told(tmp_path, monkeypatch):
    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda *a, timeout, **w: real(*a, timeout=1, **w))
    with pytest.raises(DeviceError) as error:
        Cluster.connect("tcp://127.0.0.1:9", tmp_path, tmp_path)
    assert str(error.value) == (
        "tcp://127.0.0.1:9: no Dask scheduler answers there: start it, or leave --scheduler out to "
        "use this machine"
    )
    with pytest.raises(DeviceError) as error:
        Cluster.connect("nowhere", tmp_path, tmp_path)
    assert str(error.value).startswith("nowhere: no Dask scheduler answers there")


@pytest.fixture
def scheduler(tmp_path):
    """A Dask scheduler of its own, as a core facility has it; its address and process."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += ["--scheduler-file", file, "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 100
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    yield file, process
    process.kill()
    process.wait()


def test_a_scheduler_that_ends_is_told(scheduler, tmp_path, monkeypatch):
    file, process = scheduler
    shared = tmp_path / "shared"
    shared.mkdir()
    workers_of_it = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file"]
    workers_of_it += [str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker = subprocess.Popen(
        workers_of_it, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        with Cluster.connect(str(file), shared, Path(__file__)) as pool:
            assert pool.count == 1
            done = pool.run(partial(wait, 0.2), range(30))
            next(done)
            process.kill()
            with pytest.raises(DeviceError) as error:
                list(done)
            assert str(error.value) == (
                f"the Dask scheduler ({file}) is gone: start it and give the same command again, "
                "which goes on where this ended"
            )
        # which would tell of it in pages: it has a level of its own
        assert not logging.getLogger("distributed.client").isEnabledFor(logging.CRITICAL)
    finally:
        worker.kill()
        worker.wait()


def wait(seconds, number, attempt):
    time.sleep(seconds)
    return Done(seconds)


def test_workers_that_all_leave_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_TICK_S", 0.2)
    monkeypatch.setattr(workers, "_PATIENCE_S", 1)
    words = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **words) as cluster:
        with Cluster.connect(cluster.scheduler_address, tmp_path, tmp_path) as pool:
            done = pool.run(partial(wait, 0.1), range(50))
            next(done)
            cluster.scale(0)
            with pytest.raises(DeviceError) as error:
                list(done)
    assert str(error.value) == (
        f"the workers of {cluster.scheduler_address} are gone and none came for 1 s: start some "
        "and give the same command again, which goes on where this ended"
    )


def test_what_workers_do_not_see_is_told(tmp_path):
    words = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **words) as cluster:
        (worker,) = cluster.scheduler_info["workers"]
        gone = tmp_path / "gone"
        with pytest.raises(DeviceError) as error:
            Cluster.connect(cluster.scheduler_address, tmp_path, gone)
    assert str(error.value) == (
        f"{gone}: is not seen by the worker {worker}: expected a folder that all machines share; "
        "put package and --scratch there"
    )
