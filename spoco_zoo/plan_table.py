"""What a run of large images will take, in words for people, by the block that was tried."""

import math
from collections.abc import Sequence

import numpy as np

from spoco_zoo.distributed import Measured
from spoco_zoo.large_jobs import LargeRun
from spoco_zoo.margins import count_embedded, count_shared, plan_order
from spoco_zoo.workers import count_at_once


def tell_plan(run: LargeRun, measured: Measured, workers: int) -> list[tuple[str, str]]:
    """Say what a run by so many workers will take, by the block that was tried."""
    job, first = measured.job, measured.job.volume
    volumes = [volume for image in run.jobs for volume in image.volumes]
    counts = [
        math.prod(math.ceil(n / b) for n, b in zip(v.space, job.layout.block, strict=True))
        for v in volumes
    ]
    at_once = count_at_once(workers, len(volumes), sum(counts) // len(counts))
    # workers wait for each other at the end of each point in time, unless others are done meanwhile
    ends = [sum(counts)] if at_once > 1 else counts
    turns = sum(math.ceil(count / workers) for count in ends) / sum(counts)
    tried = job.layout.box(_middle(job.layout.counts))
    more = sum(math.prod(v.space) for v in volumes) / math.prod(s.stop - s.start for s in tried)
    raw = sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in volumes)
    # what is found is kept until the end, then filled, then written
    times = "" if len(volumes) == len(run.jobs) else f" at {len(volumes)} points in time"
    disk = 3 * measured.disk_bytes * more
    margins = job.recipe.margins(len(job.layout.shape))
    order = plan_order(job.layout, workers)
    shared = measured.shared_bytes * count_shared(job.layout, margins, order) * at_once
    # the block that was tried had neighbours that left nothing
    alone = count_embedded(job.layout, margins, _middle(job.layout.counts), shares=False)
    mean = sum(
        count_embedded(job.layout, margins, number, shares=measured.shared_bytes > 0)
        for number in order
    ) / len(order)
    network_s = measured.network_s * min(mean / alone, 1.0)
    seconds = measured.seconds - measured.network_s + network_s
    gpu = "not told by its driver" if measured.gpu_bytes is None else _size(measured.gpu_bytes)
    return [
        ("image", first.url if len(run.jobs) == 1 else f"{first.url} and {len(run.jobs) - 1} more"),
        ("pixels", f"{_sides(first.space)}, {first.dtype}; {_size(raw)}{times}"),
        ("blocks", f"{sum(counts)} of {_sides(job.layout.block)}"),
        ("clustered at once", _sides(job.inner)),
        ("in the network at once", _sides(job.tile or job.inner)),
        ("workers", f"{workers} on {run.device}, threads in each: {job.threads}"),
        (
            "memory",
            f"{_size(measured.peak_bytes)} at most in each worker, by one block that was tried",
        ),
        *([("GPU memory", f"{gpu} for each worker")] if run.device == "cuda" else []),
        ("disk", f"about {_size(disk + shared)} while it works, {_size(disk / 3)} at the end"),
        (
            "time",
            f"about {_clock(seconds * more * turns)}, of which the network takes "
            f"{network_s / max(seconds, 1e-9):.0%}",
        ),
    ]


def _sides(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _size(count: int | float) -> str:
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _middle(counts: Sequence[int]) -> int:
    return int(np.ravel_multi_index([count // 2 for count in counts], counts))


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
