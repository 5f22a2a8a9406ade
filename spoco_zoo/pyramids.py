"""Which coarser levels a large label image has, and how coarse those of an image are.

Each level halves the axes along which pixels are short, until a pixel is about as long as wide and
deep, and then all, so that a thin stack keeps its slices in the first of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from spoco_zoo.errors import SettingError
from spoco_zoo.tiling import Box

_SMALLEST = 256  # pixels: a level whose axes are all at most so long needs no coarser one


@dataclass(frozen=True)
class LabelLevel:
    """One resolution of a label image, in space axes."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    factors: tuple[int, ...]  # how many pixels of level 0 one pixel stands for, on each axis

    def boxes(self) -> list[Box]:
        """List its chunks as boxes, last axis fastest."""
        starts = (range(0, n, c) for n, c in zip(self.shape, self.chunks, strict=True))
        sides = tuple(zip(self.chunks, self.shape, strict=True))
        return [
            tuple(slice(a, min(a + c, n)) for a, (c, n) in zip(start, sides, strict=True))
            for start in product(*starts)
        ]


def check_box(level: LabelLevel, box: Box, shape: tuple[int, ...]) -> None:
    """Refuse a box that another writer may touch too, and labels of another size.

    Raises:
        SettingError: It is such a box.
    """
    is_whole = all(
        0 <= b.start < b.stop <= n and b.start % c == 0 and (b.stop % c == 0 or b.stop == n)
        for b, c, n in zip(box, level.chunks, level.shape, strict=True)
    )
    if not is_whole or shape != tuple(b.stop - b.start for b in box):
        sides = ", ".join(f"{b.start} to {b.stop}" for b in box)
        raise SettingError(
            f"labels of shape {shape} cannot be written to {sides}: expected whole chunks of "
            f"{level.chunks} in {level.shape}"
        )


def plan_levels(
    shape: tuple[int, ...], chunks: tuple[int, ...], scale_um: Sequence[float] | None
) -> tuple[LabelLevel, ...]:
    """List the levels of a label image, the finest first; chunks stay of one size."""
    size = np.array(scale_um or (1.0,) * len(shape))
    levels = [LabelLevel(shape, chunks, (1,) * len(shape))]
    while max(levels[-1].shape) > _SMALLEST:
        above = levels[-1]
        length = size * above.factors
        can = np.array(above.shape) > 1
        halved = can & (length < length[can].min() * 2**0.5)
        step = [2 if is_halved else 1 for is_halved in halved]
        coarse = tuple(-(-n // s) for n, s in zip(above.shape, step, strict=True))
        levels.append(
            LabelLevel(
                coarse,
                tuple(min(c, n) for c, n in zip(chunks, coarse, strict=True)),
                tuple(f * s for f, s in zip(above.factors, step, strict=True)),
            )
        )
    return tuple(levels)


def guess_downsampling(finest: Sequence[int], coarse: Sequence[int]) -> tuple[float, ...]:
    """By how much each axis was divided, told from sizes alone.

    Where the rest may make no whole pixel, that is a whole number, which y and x have in common;
    of several that fit it is a power of two, as halving gives, or else the nearest one.
    """
    axes = list(zip(finest, coarse, strict=True))
    groups = [[axis] for axis in axes[:-2]] + [axes[-2:]]
    return tuple(by for group in groups for by in _divide(group))


def _divide(axes: Sequence[tuple[int, int]]) -> list[float]:
    ratio = max(axes)[0] / max(axes)[1]  # of the longest axis, which tells most
    fits = [
        whole
        for whole in range(1, 2 * math.ceil(ratio) + 1)
        if all(few in (many // whole, -(-many // whole)) for many, few in axes)
    ]
    if not fits:
        return [many / few for many, few in axes]
    best = min(fits, key=lambda whole: (whole.bit_count() > 1, abs(whole - ratio)))
    return [float(best)] * len(axes)
