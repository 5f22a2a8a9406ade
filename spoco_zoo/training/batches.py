"""Batches on their way to the device: made by workers ahead of time, in the order of the steps."""

import signal
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spoco_zoo.training.samples import Batch, SparseSamples


def iterate_batches(
    crops: SparseSamples, start: int, device: torch.device
) -> Iterator[tuple[Batch, float]]:
    """Yield the batches from step `start` on, moved to the device, and seconds waited for each."""
    schedule = crops.schedule
    loader = DataLoader(
        crops,
        batch_size=None,
        sampler=range(start, schedule.steps),
        num_workers=schedule.workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if schedule.workers else None,
        worker_init_fn=_ignore_interrupts if schedule.workers else None,
    )
    began = time.monotonic()
    for batch in loader:
        waited = time.monotonic() - began
        tensors = (batch.view_f, batch.view_g, batch.labels)
        yield Batch(*(_move(tensor, device) for tensor in tensors)), waited
        began = time.monotonic()


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the main process, which saves and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
