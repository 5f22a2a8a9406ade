"""How a large image is cut into blocks that are found, stored and written one by one.

Blocks are made of whole windows of the clustering, so they change no instance, and of whole chunks
of the label image, so no two of them write one chunk. They are numbered in reading order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from spoco_zoo.errors import SettingError
from spoco_zoo.recipe import Recipe
from spoco_zoo.tiling import Box

_CHUNK = {2: 1024, 3: 128}  # pixels per axis of the label image, about


@dataclass(frozen=True)
class Layout:
    """A lattice of blocks over an image of `shape` pixels; those at the end may be smaller."""

    shape: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Blocks per axis."""
        return tuple(math.ceil(n / b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, number: int) -> Box:
        """The pixels of a block."""
        place = np.unravel_index(number, self.counts)
        starts = [int(p) * b for p, b in zip(place, self.block, strict=True)]
        return tuple(
            slice(a, min(a + b, n)) for a, b, n in zip(starts, self.block, self.shape, strict=True)
        )

    def boxes(self) -> list[Box]:
        """The pixels of every block."""
        return [self.box(number) for number in range(len(self))]

    def neighbor(self, number: int, offset: Sequence[int]) -> int | None:
        """The block some blocks away along each axis; None beyond the image."""
        place = [
            int(p) + o for p, o in zip(np.unravel_index(number, self.counts), offset, strict=True)
        ]
        if any(not 0 <= p < n for p, n in zip(place, self.counts, strict=True)):
            return None
        return int(np.ravel_multi_index(place, self.counts))

    def around(self, number: int) -> list[tuple[tuple[int, ...], int]]:
        """Offsets and numbers of all neighbours of a block, those at corners too."""
        offsets = (o for o in product((-1, 0, 1), repeat=len(self.shape)) if any(o))
        found = ((offset, self.neighbor(number, offset)) for offset in offsets)
        return [(offset, other) for offset, other in found if other is not None]


def plan_chunks(
    shape: Sequence[int], recipe: Recipe, block: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Chunks of a label image: whole windows of about 1024 pixels a side, 128 in volumes.

    Args:
        shape: Pixels of the image.
        recipe: Says the windows.
        block: Chunks are not to be larger than this, if windows are not.
    """
    windows = recipe.windows(len(shape))
    most = [min(_CHUNK[len(shape)], side) for side in block or shape]
    return tuple(
        window * max(round(side / window), 1) for window, side in zip(windows, most, strict=True)
    )


def plan_layout(
    shape: Sequence[int], recipe: Recipe, chunks: Sequence[int], block: Sequence[int]
) -> Layout:
    """Round a wish for the size of blocks to what may be.

    Args:
        shape: Pixels of the image.
        recipe: Says the windows, and how far instances may grow.
        chunks: Pixels per axis of a chunk (or shard) of the label image.
        block: The wish, in pixels per axis.

    Raises:
        SettingError: Chunks of the label image and windows have no common multiple that is near.
    """
    windows = recipe.windows(len(shape))
    sizes = []
    for n, wish, window, chunk in zip(shape, block, windows, chunks, strict=True):
        step = math.lcm(window, chunk)
        if step > n and step > 8 * max(window, chunk):
            raise SettingError(
                f"chunks of {chunk} pixels and windows of {window} first meet after {step}: "
                f"expected chunks that are a multiple of {window}"
            )
        # an instance grows into the next block, never through it
        least = max(math.ceil(recipe.fill_reach / step), 1)
        # what is to hold the whole axis is not rounded below it
        steps = math.ceil(n / step) if wish >= n else round(wish / step)
        sizes.append(step * max(steps, least))
    return Layout(tuple(shape), tuple(sizes))
