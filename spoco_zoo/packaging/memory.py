"""How much memory a package needs, measured in a process of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spoco_zoo.engines import Engine, measure_peak

_MEGA = 1e6
SIZES = {2: ((512, 512), (1024, 1024)), 3: ((16, 128, 128), (64, 128, 128))}


@dataclass(frozen=True)
class Memory:
    """Peak memory on the CPU: what it takes at all, and what every million pixels adds."""

    engine: str
    base_mb: float
    mb_per_megapixel: float
    sizes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        """One sentence for people."""
        shapes = " and ".join(" x ".join(map(str, size)) for size in self.sizes)
        unit = "megapixel" if len(self.sizes[0]) == 2 else "million voxels"
        return (
            f"about {self.mb_per_megapixel:.0f} MB for every {unit} that is computed in one piece, "
            f"and {self.base_mb:.0f} MB besides, on the CPU in {self.engine}, measured on "
            f"simulated images of {shapes}"
        )


def measure_memory(
    engine: Engine, weights: Path, n_axes: int, make: Callable[[tuple[int, ...]], np.ndarray]
) -> Memory | None:
    """Measure the peak memory of an engine on images of two sizes.

    Args:
        engine: One of the installed engines.
        weights: The file that it opens.
        n_axes: Space axes of the images.
        make: Makes an image `(1, c, *space)` of a size, as the weights are given it.

    Returns:
        None where the system does not tell.

    Raises:
        PackageError: The engine cannot run it.
    """
    sizes: Sequence[tuple[int, ...]] = SIZES[n_axes]
    peaks = [measure_peak(engine, weights, make(size)) for size in sizes]
    if peaks[0] is None or peaks[1] is None:
        return None
    small, large = (math.prod(size) / _MEGA for size in sizes)
    slope = max((peaks[1] - peaks[0]) / (large - small), 0.0)
    base = max(peaks[0] - slope * small, 0.0)
    return Memory(engine.name, base / _MEGA, slope / _MEGA, tuple(sizes))
