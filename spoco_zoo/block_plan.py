"""How large blocks and tiles may be, so that a worker keeps within its memory.

What a worker holds follows from sizes but for the network, of which only a trial tells; so these
are bounds from above to choose by, and `distributed.measure_block` is what is told to people.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spoco_zoo.embedder import TILE
from spoco_zoo.errors import SettingError
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe

_BASE = 350 << 20  # bytes of a worker with its libraries, a network and no image
_PER_NETWORK_PIXEL = {2: 900, 3: 520}  # bytes for a pixel that the network sees, about
_PER_PIXEL = 27  # bytes for a pixel of a block: labels, pieces, and what finds them
_LARGEST = {2: (16384, 16384), 3: (512, 1024, 1024)}


@dataclass(frozen=True)
class Sizes:
    """Pixels per axis of a block, of what is clustered in it at once, and of a tile."""

    block: tuple[int, ...]
    inner: tuple[int, ...]
    tile: tuple[int, ...]
    peak_bytes: int  # estimated


def choose_sizes(
    package: Package,
    recipe: Recipe,
    shape: Sequence[int],
    memory_bytes: int,
    block: Sequence[int] | None = None,
) -> Sizes:
    """Choose the largest blocks that fit: every block computes a margin anew.

    Args:
        package: Says how many numbers a pixel gets, and the halo of a tile.
        recipe: Says windows and margins.
        shape: Pixels of the image.
        memory_bytes: What a worker may take.
        block: A wish for the block; its parts and tiles are chosen all the same.

    Raises:
        SettingError: Not even the smallest block fits.
    """
    n_axes = len(shape)
    windows = recipe.windows(n_axes)
    largest = tuple(
        min(most, math.ceil(n / window) * window)
        for most, n, window in zip(block or _LARGEST[n_axes], shape, windows, strict=True)
    )
    while True:
        for share in (1.0, 0.7, 0.5):  # of the largest tile
            sizes = _fill_in(package, recipe, largest, share)
            if sizes.peak_bytes <= memory_bytes:
                return sizes
        longest = max(range(n_axes), key=lambda axis: largest[axis] / windows[axis])
        if block is not None or largest[longest] <= windows[longest]:
            if block is not None:
                return sizes  # what was asked for; the trial tells whether it fits
            raise SettingError(
                f"--memory is {memory_bytes / 1e9:.1f} GB: expected at least "
                f"{sizes.peak_bytes / 1e9:.1f} GB for a block of {list(largest)} pixels"
            )
        half = math.ceil(largest[longest] / windows[longest] / 2) * windows[longest]
        largest = tuple(half if n == longest else side for n, side in enumerate(largest))


def _fill_in(package: Package, recipe: Recipe, block: tuple[int, ...], share: float) -> Sizes:
    n_axes = len(block)
    windows, margins = recipe.windows(n_axes), recipe.margins(n_axes)
    steps, halo = package.config.multiple_of, package.config.halo
    rows = max(round(TILE[n_axes] / windows[0] / 2), 1) * windows[0]
    inner = (min(rows, block[0]), *block[1:])
    most = [round(1.5 * share * TILE[n_axes])] * n_axes
    wide = [
        inner[0],
        *(side + 2 * margin for side, margin in zip(block[1:], margins[1:], strict=True)),
    ]
    tile = tuple(
        math.ceil(side / math.ceil(side / limit) / step) * step
        for side, limit, step in zip(wide, most, steps, strict=True)
    )
    seen = math.prod(side + 2 * h for side, h in zip(tile, halo, strict=True))
    numbers = package.embedding_dim * (1 + package.has_momentum) + package.has_foreground_head
    embedded = math.prod(i + 2 * m for i, m in zip(inner, margins, strict=True)) * numbers * 4
    pixels = math.prod(block)
    peak = (
        _BASE
        + seen * _PER_NETWORK_PIXEL[n_axes]
        + max(2 * embedded + 5 * pixels, _PER_PIXEL * pixels)
    )
    return Sizes(block, inner, tile, peak)
