"""Who does the work on blocks: this process, or Dask workers here or on a cluster.

A worker may die at any point (killed, out of memory, its machine gone). Its step is then given to
another one and told how often that happened, so that it can be done in smaller parts. Steps leave
files that are whole or not there, so it does no harm if a step is done twice.

Dask is imported where a cluster is made.
"""

import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypeVar, runtime_checkable

from spoco_zoo.errors import DeviceError, MissingExtraError, SpocoZooError
from spoco_zoo.scratch import DamagedFileError
from spoco_zoo.stages import Done

Work = Callable[[int, int], Done]  # the number of a block, and how often it failed before
T = TypeVar("T")

_MOST_ATTEMPTS = 5
_AHEAD = 3  # steps that wait at a worker, so that none waits for its next one
_ENDED = "its worker was ended each time"
_MOST_AT_ONCE = 128  # images, each a thread here
_LIKELY = 32  # workers on a scheduler of others, where more may come than are there at first
_WAIT_S = 0.5
_TICK_S = 5
_PATIENCE_S = 300  # until it is said that no worker is left


@runtime_checkable
class Pool(Protocol):
    """Workers."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def most(self) -> int:
        """How many there may be before all is done."""

    def run(self, work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do some work for every number, in any order, until all is done.

        Raises:
            SpocoZooError: What the work raised; or a step failed too often, or nobody is left.
        """

    def stop(self) -> None:
        """Let all that is run for other threads end, for nobody waits for it any more."""


def count_at_once(workers: int, works: int, steps: int) -> int:
    """Say how many works of so many steps keep all workers busy.

    Args:
        workers: How many there may be.
        works: How many works there are: images, or points in time.
        steps: How many steps each has for workers to do at a time.
    """
    # twice as many as there are workers, since a work waits for its last step again and again
    wanted = math.ceil(2 * workers / max(steps, 1)) if workers > 1 else 1
    return min(works, wanted, _MOST_AT_ONCE)


@contextmanager
def together(
    works: Sequence[Callable[[], T]], pool: Pool, at_once: int
) -> Iterator[list[Callable[[], T]]]:
    """Do works that share a pool, several at once; one at once is done when it is asked for.

    Yields:
        For each work what gives its result, or raises what it raised.
    """
    if at_once <= 1:
        yield list(works)
        return
    with ThreadPoolExecutor(at_once) as threads:
        futures = [threads.submit(work) for work in works]
        try:
            with _stopping(pool):
                yield [partial(_result_of, future) for future in futures]
        finally:
            # after an error of one, those that have begun are ended well
            with _stopping(pool):
                for future in futures:
                    future.cancel()
                while wait(futures, timeout=_WAIT_S).not_done:
                    pass


@contextmanager
def _stopping(pool: Pool) -> Iterator[None]:
    """Let a pool end what is run for other threads, if the user ends this one."""
    try:
        yield
    except KeyboardInterrupt:
        pool.stop()
        raise


def _result_of(future: "Future[T]") -> T:
    while not future.done():  # Windows hears no Ctrl-C while it waits without an end
        wait([future], timeout=_WAIT_S)
    return future.result()


class Here:
    """This process, one step after the other."""

    count = most = 1

    def run(self, work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do some work for every number, smaller where it does not fit into memory."""
        for number in numbers:
            for attempt in range(_MOST_ATTEMPTS):
                try:
                    done = work(number, attempt)
                except MemoryError:
                    continue
                yield number, done
                break
            else:
                raise _too_often(number, "it does not fit into memory")

    def stop(self) -> None:
        """Nothing is run here for other threads."""


class _StoppedError(Exception):
    """Nobody waits for this any more."""


class Cluster:
    """Dask workers. Use it in a `with`, to end those that were started here."""

    def __init__(self, client: Any, address: str | None) -> None:  # noqa: ANN401 - dask is an extra
        """Take a connected client, and the address of its scheduler if that is somebody's."""
        self._client = client
        self._address = address
        self._cluster: Any = None  # of ours
        self._wanted = self._known = 0
        self._stopped = Event()
        self._stack = ExitStack()

    @classmethod
    def start(cls, count: int, memory_bytes: int, folder: Path) -> "Cluster":
        """Start workers on this machine, one thread each.

        Args:
            count: How many.
            memory_bytes: What each may take, before it is ended and its block tried smaller.
            folder: For their temporary files.

        Raises:
            DeviceError: They end while they start.
            MissingExtraError: distributed is not installed.
        """
        distributed = _import_distributed()
        import dask

        _hush()
        stack = ExitStack()
        stack.enter_context(_hushed_tracker())
        # a step whose worker died is given away here, where it is known to be tried smaller
        words = {
            "distributed.scheduler.allowed-failures": 0,
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.profile.enabled": False,  # it looks at every stack 100 times a s
            "distributed.admin.system-monitor.interval": "5s",
            "temporary-directory": str(folder),  # of the scheduler, which is here
            # by default Dask makes workers give all memory back at once, and the system must clear
            # it again for every window: half of the time of clustering
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 28,
            "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 25,
            "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
        }
        stack.enter_context(dask.config.set(words))
        cluster = stack.enter_context(_start_here(count, memory_bytes, folder))
        pool = cls(stack.enter_context(distributed.Client(cluster)), None)
        pool._stack, pool._cluster, pool._wanted = stack, cluster, count
        return pool

    @classmethod
    def connect(cls, address: str, folder: Path, package: Path) -> "Cluster":
        """Use the workers of a scheduler that is running.

        Args:
            address: Such as tcp://10.0.0.1:8786, or a scheduler file that Dask has written.
            folder: Where steps leave their files; every worker must see it.
            package: What they run; every worker must see that too.

        Raises:
            DeviceError: Nobody answers, or the workers do not see the folder.
            MissingExtraError: distributed is not installed.
        """
        distributed = _import_distributed()
        _hush()
        is_file = "://" not in address and Path(address).is_file()
        try:
            client = (
                distributed.Client(scheduler_file=address, timeout=20)
                if is_file
                else distributed.Client(address, timeout=20)
            )
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"{address}: no Dask scheduler answers there: start it, or leave --scheduler out "
                "to use this machine"
            ) from error
        pool = cls(client, address)
        pool._stack.enter_context(client)
        with suppress(Exception):
            client.wait_for_workers(1, timeout=60)
        if not pool.count:
            pool._stack.close()
            raise DeviceError(
                f"{address}: has no workers after a minute: start some (dask worker {address})"
            )
        for place in (folder, package):
            seen = client.run(os.path.exists, str(place))
            blind = [worker for worker, is_seen in seen.items() if not is_seen]
            if blind:
                pool._stack.close()
                raise DeviceError(
                    f"{place}: is not seen by the worker {blind[0]}: expected a folder that all "
                    "machines share; put package and --scratch there"
                )
        return pool

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        # workers that were killed may be gone without a word
        with suppress(Exception):
            self._stack.close()

    @property
    def count(self) -> int:
        """How many workers there are, those that come later not yet."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    @property
    def most(self) -> int:
        """How many there may be before all is done: to those of others some may come."""
        return self.count if self._address is None else max(self.count, _LIKELY)

    def run(self, work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do some work for every number, smaller where a worker did not survive it."""
        waiting = deque((number, 0) for number in numbers)
        under_way: dict[Any, tuple[int, int]] = {}
        looked_s, seen_s = -math.inf, time.monotonic()
        try:
            while waiting or under_way:
                if self._stopped.is_set():
                    raise _StoppedError
                if time.monotonic() >= looked_s + _TICK_S:
                    looked_s = time.monotonic()
                    seen_s = self._tend(looked_s, seen_s)
                while waiting and len(under_way) < _AHEAD * max(self._known, 1):
                    number, attempt = waiting.popleft()
                    future = self._client.submit(work, number, attempt, pure=False)
                    under_way[future] = number, attempt
                for future in _wait_for_some(self._client, list(under_way)):
                    number, attempt = under_way.pop(future)
                    done = self._result_of(future)
                    if isinstance(done, Done):
                        yield number, done
                    elif attempt + 1 == _MOST_ATTEMPTS:
                        raise _too_often(number, done)
                    else:
                        waiting.appendleft((number, attempt + 1))
        finally:
            with suppress(Exception):
                self._client.cancel(list(under_way), force=True)

    def stop(self) -> None:
        """Let all that is run for other threads end, within a moment."""
        self._stopped.set()

    def _tend(self, now: float, seen_s: float) -> float:
        """Look who is there, and say when somebody was; workers of ours are started again.

        Dask starts a worker again whose process ends, but not one that ends while it starts.

        Raises:
            DeviceError: Nobody is there, and has not been for long.
        """
        with suppress(Exception):  # where the scheduler is gone, its steps tell of it
            self._known = self.count
            if self._cluster is not None:
                self._cluster.scale(self._wanted)
        if self._known:
            return now
        if now > seen_s + _PATIENCE_S:
            who = "of this machine" if self._address is None else f"of {self._address}"
            raise DeviceError(
                f"the workers {who} are gone and none came for {_PATIENCE_S} s: start some and "
                "give the same command again, which goes on where this ended"
            )
        return seen_s

    def _result_of(self, future: Any) -> Done | str:  # noqa: ANN401
        """What a step told, or why it may be tried again."""
        from distributed import CancelledError, KilledWorker

        if future.status == "lost":  # the step was done, and what it told went with its worker
            return _ENDED
        try:
            told: Done = future.result(timeout=_PATIENCE_S)
        except (KilledWorker, TimeoutError):
            return _ENDED
        except MemoryError:
            return "it does not fit into memory"
        except (SpocoZooError, DamagedFileError):
            raise
        except CancelledError as error:
            where = self._address or "here"
            raise DeviceError(
                f"the Dask scheduler ({where}) is gone: start it and give the same command again, "
                "which goes on where this ended"
            ) from error
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DeviceError(
                f"a worker failed ({type(error).__name__}: {reason}): look at its log"
            ) from error
        return told


def _start_here(count: int, memory_bytes: int, folder: Path) -> Any:  # noqa: ANN401
    """Start a scheduler and its workers, again where a worker ends while it starts."""
    from distributed import LocalCluster

    for _ in range(_MOST_ATTEMPTS):
        try:
            with _deaf():
                return LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=count,
                    threads_per_worker=1,
                    memory_limit=memory_bytes,
                    dashboard_address="127.0.0.1:0",  # any port that is free
                    local_directory=str(folder),
                    silence_logs=logging.CRITICAL + 1,
                )
        except RuntimeError as error:
            last = error
    raise DeviceError(
        f"{count} workers cannot be started on this machine, tried {_MOST_ATTEMPTS} times "
        f"({last.__cause__ or last}): use fewer --workers, or free memory and processes"
    ) from last


@contextmanager
def _deaf() -> Iterator[None]:
    """Start threads and processes that do not hear Ctrl-C: the driver does, and ends them.

    A terminal sends it to all, and each worker would write a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # or it is started by a thread that then hears again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_some(client: Any, futures: list[Any]) -> list[Any]:  # noqa: ANN401
    """Wait until some are done, well or not, or for a while."""
    from distributed import CancelledError, wait

    # or it would wait in the loop of another client of this process, which is not woken
    with client.as_current(), suppress(CancelledError, TimeoutError):
        wait(futures, timeout=_WAIT_S, return_when="FIRST_COMPLETED")  # type: ignore[no-untyped-call]
    return [future for future in futures if future.status != "pending"]


def _too_often(number: int, reason: str) -> DeviceError:
    return DeviceError(
        f"block {number} failed {_MOST_ATTEMPTS} times, at last in small parts ({reason}): use "
        "fewer --workers or a smaller --memory, and give the same command again to go on"
    )


def _import_distributed() -> Any:  # noqa: ANN401 - an extra
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(
            "large images need dask and zarr: pip install 'spoco-zoo[volumes]'"
        ) from error
    return distributed


@contextmanager
def _hushed_tracker() -> Iterator[None]:
    """Let Python's own process that cleans up after workers do so without a warning."""
    before = os.environ.get("PYTHONWARNINGS")
    told = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = told if before is None else f"{before},{told}"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONWARNINGS", None)
        else:
            os.environ["PYTHONWARNINGS"] = before


def _hush() -> None:
    """Workers that die are told of by us, in a sentence; Dask would write pages."""
    # some have a level of their own by Dask's configuration, which is the user's to change
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
