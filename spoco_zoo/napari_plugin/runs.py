"""One run of a package on an image, in a thread: progress, cancel, one sentence where it fails."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from napari.qt.threading import WorkerBase, WorkerBaseSignals
from qtpy.QtCore import Signal

from spoco_zoo.choices import Flags, plan_run
from spoco_zoo.errors import SpocoZooError
from spoco_zoo.napari_plugin.layers import Source
from spoco_zoo.napari_plugin.packages import Offer
from spoco_zoo.prediction import segment_foreign
from spoco_zoo.recipe import Recipe
from spoco_zoo.segmentation import segment
from spoco_zoo.session import NetworkSession


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done; nothing of it changes any more."""

    offer: Offer
    source: Source
    flags: Flags
    device: str


@dataclass(frozen=True, eq=False)
class Found:
    """Labels for a layer, and how they came about."""

    labels: np.ndarray
    count: int
    device: str
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Why a run did not come to its end, in one sentence."""

    sentence: str


class StoppedError(Exception):
    """Somebody asked to stop."""


def find_instances(job: Job, advance: Callable[[int, int], None]) -> Found | Refused:
    """Find the instances of a job.

    Args:
        job: Package, image and settings.
        advance: Called with tiles done and tiles in all; what it raises ends the run.
    """
    start = time.monotonic()
    try:
        settings, open_session = plan_run(
            job.offer.location, job.flags, None, job.device, "float32"
        )
        pixels = job.source.read()
        with open_session() as session:
            if isinstance(session, NetworkSession):
                labels = segment_foreign(pixels, session, settings, progress=advance)
            else:
                recipe = settings if isinstance(settings, Recipe) else None
                labels = segment(pixels, session, recipe=recipe, progress=advance)
            device = session.device
    except SpocoZooError as error:
        return Refused(str(error))
    except MemoryError:
        return Refused(
            f"{job.source.name} does not fit into memory: crop it, or use spoco-zoo run "
            "with a smaller --tile and --block"
        )
    count = int(labels.max(initial=0))
    return Found(job.source.arrange(labels), count, device, time.monotonic() - start)


class _Signals(WorkerBaseSignals):
    advanced = Signal(int, int)  # tiles done, tiles in all


class RunWorker(WorkerBase):
    """A job in a thread of napari; `quit` ends it with the tile that is under way."""

    def __init__(self, job: Job) -> None:
        super().__init__(SignalsClass=_Signals)
        self.job = job

    def work(self) -> Found | Refused | None:
        """Do the job; None if it was stopped."""
        try:
            return find_instances(self.job, self._advance)
        except StoppedError:
            return None

    def _advance(self, done: int, total: int) -> None:
        # napari asks all workers to quit when it is closed
        if self.abort_requested:
            raise StoppedError
        self.signals.advanced.emit(done, total)
