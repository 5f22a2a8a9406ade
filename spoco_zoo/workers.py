"""Who does the work on blocks: this process, or Dask workers here or on a cluster.

A worker may die at any point (killed, out of memory, its machine gone). Its step is then given to
another one and told how often that happened, so that it can be done in smaller parts. Steps leave
files that are whole or not there, so it does no harm if a step is done twice.

Dask is imported where a cluster is made.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spoco_zoo.errors import DeviceError, MissingExtraError, SpocoZooError
from spoco_zoo.scratch import DamagedFileError
from spoco_zoo.stages import Done

Work = Callable[[int, int], Done]  # the number of a block, and how often it failed before

_MOST_ATTEMPTS = 5
_AHEAD = 3  # steps that wait at a worker, so that none waits for its next one


@runtime_checkable
class Pool(Protocol):
    """Workers."""

    @property
    def count(self) -> int:
        """How many there are."""

    def run(self, work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do some work for every number, in any order, until all is done.

        Raises:
            SpocoZooError: What the work raised; or a step failed too often, or nobody is left.
        """


class Here:
    """This process, one step after the other."""

    count = 1

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


class Cluster:
    """Dask workers. Use it in a `with`, to end those that were started here."""

    def __init__(self, client: Any, address: str | None) -> None:  # noqa: ANN401 - dask is an extra
        """Take a connected client, and the address of its scheduler if that is somebody's."""
        self._client = client
        self._address = address
        self._stack = ExitStack()

    @classmethod
    def start(cls, count: int, memory_bytes: int, folder: Path) -> "Cluster":
        """Start workers on this machine, one thread each.

        Args:
            count: How many.
            memory_bytes: What each may take, before it is ended and its block tried smaller.
            folder: For their temporary files.

        Raises:
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
        }
        stack.enter_context(dask.config.set(words))
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                memory_limit=memory_bytes,
                dashboard_address="127.0.0.1:0",  # any port that is free
                local_directory=str(folder),
                silence_logs=logging.CRITICAL + 1,
            )
        )
        pool = cls(stack.enter_context(distributed.Client(cluster)), None)
        pool._stack = stack
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

    def run(self, work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do some work for every number, smaller where a worker did not survive it."""
        as_completed: Any = _import_distributed().as_completed

        waiting = deque((number, 0) for number in numbers)
        under_way: dict[Any, tuple[int, int]] = {}
        futures = as_completed()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < _AHEAD * max(self.count, 1):
                    number, attempt = waiting.popleft()
                    future = self._client.submit(work, number, attempt, pure=False)
                    under_way[future] = number, attempt
                    futures.add(future)
                future = next(futures)
                number, attempt = under_way.pop(future)
                error = self._why_failed(future)
                if error is None:
                    yield number, future.result()
                elif attempt + 1 == _MOST_ATTEMPTS:
                    raise _too_often(number, error)
                else:
                    waiting.appendleft((number, attempt + 1))
        finally:
            with suppress(Exception):
                self._client.cancel(list(under_way), force=True)

    def _why_failed(self, future: Any) -> str | None:  # noqa: ANN401
        """Say why a step may be tried again; None where it is done."""
        from distributed import KilledWorker

        if future.status == "finished":
            return None
        if future.status in ("cancelled", "lost"):
            where = self._address or "here"
            raise DeviceError(
                f"the Dask scheduler ({where}) is gone: start it and give the same command again, "
                "which goes on where this ended"
            )
        error = future.exception()
        match error:
            case KilledWorker():
                return "its worker was ended each time"
            case MemoryError():
                return "it does not fit into memory"
            case SpocoZooError() | DamagedFileError():
                raise error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(
            f"a worker failed ({type(error).__name__}: {reason}): look at its log"
        ) from error


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
    for name in ("distributed", "distributed.nanny", "distributed.scheduler", "distributed.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
