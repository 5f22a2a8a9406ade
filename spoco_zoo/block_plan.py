"""How large blocks and tiles may be, so that a worker keeps within its memory.

Everything but the network follows from sizes; what the network takes, a trial tells. So these are
bounds from above to choose by, and `distributed.measure_block` is what is told to people.

Memory can go into tiles, whose halos are computed and thrown away, or into blocks, whose margins
are computed by two of them, or shared. Of all sizes that fit, those are chosen that make the
network compute the fewest pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from spoco_zoo.embedder import TILE
from spoco_zoo.errors import SettingError
from spoco_zoo.layout import plan_chunks
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe

# measured on one thread, with benchmarks/blocks.py --measure
_BASE = 280 << 20  # bytes of a worker with its libraries, an open network and no image
_PER_NETWORK_PIXEL = {2: 800, 3: 520}  # for a pixel that the network sees, while below 2 GB
_MOST_OF_NETWORK = 2_000_000_000  # bytes; beyond, ONNX Runtime needs half as much again
_PER_SEEN_PIXEL = 16  # for a pixel of a part that is clustered, besides its embedding
_PER_FOUND_PIXEL = 5  # for a pixel of a block while its parts are clustered
_PER_CUT_PIXEL = 11  # for a pixel of a block when its pieces are cut
_LARGEST = {2: (16384, 16384), 3: (1024, 1024, 1024)}
_ENOUGH = 4 << 20  # pixels of a block; a smaller one is not easier to share
_SHARES = (1.5, 1.3, 1.1, 1.0, 0.9, 0.75, 0.6, 0.5)  # of the usual tile, in pixels a side


@dataclass(frozen=True)
class Sizes:
    """Pixels per axis of a block, of what is clustered in it at once, and of a tile."""

    block: tuple[int, ...]
    inner: tuple[int, ...]
    tile: tuple[int, ...]
    peak_bytes: int  # estimated
    work: float = 1.0  # pixels that the network sees for one of the result


def choose_sizes(
    package: Package,
    recipe: Recipe,
    shape: Sequence[int],
    memory_bytes: int,
    block: Sequence[int] | None = None,
    *,
    shares: bool = True,
) -> Sizes:
    """Choose sizes that fit, and with which the network has the least to do.

    Args:
        package: Says how many numbers a pixel gets, and the halo of a tile.
        recipe: Says windows and margins.
        shape: Pixels of the image.
        memory_bytes: What a worker may take.
        block: A wish for the block; its parts and tiles are chosen all the same.
        shares: Whether blocks share their margins, see `margins`.

    Raises:
        SettingError: Not even the smallest block fits.
    """
    every = [
        _fill_in(package, recipe, shape, sides, share, shares=shares)
        for sides in _list_blocks(recipe, shape, block)
        for share in _SHARES
    ]
    fitting = [sizes for sizes in every if sizes.peak_bytes <= memory_bytes]
    if fitting:
        # among nearly equal ones, small blocks are easier to share, until they are many
        least = min(sizes.work for sizes in fitting)
        near = [sizes for sizes in fitting if sizes.work <= 1.03 * least]
        return min(near, key=lambda sizes: (max(math.prod(sizes.block), _ENOUGH), sizes.work))
    smallest = min(every, key=lambda sizes: sizes.peak_bytes)
    if block is None:
        raise SettingError(
            f"a worker has {memory_bytes / 1e9:.2f} GB of memory: expected at least "
            f"{smallest.peak_bytes / 1e9:.2f} GB for a block of {list(smallest.block)} pixels; "
            "give it more with --memory, or ask for fewer --workers"
        )
    return smallest  # what was asked for; the trial tells whether it fits


def read_block(text: str | None, n_axes: int) -> tuple[int, ...] | None:
    """Read one number of pixels, or one per axis with commas.

    Raises:
        SettingError: It is none of these.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words) or len(words) not in (1, n_axes):
        raise SettingError(
            f"--block is {text}: expected one number of pixels, or {n_axes} with commas"
        )
    sizes = [int(word) for word in words]
    return tuple(sizes * n_axes if len(sizes) == 1 else sizes)


def read_side(text: str | None) -> int | None:
    """Read a block of an image that is run as a whole: one number of pixels.

    Raises:
        SettingError: It is no such number.
    """
    if text is None:
        return None
    if not text.strip().isdecimal() or not int(text):
        raise SettingError(f"--block is {text}: expected one number of pixels, at least 1")
    return int(text)


def _list_blocks(
    recipe: Recipe, shape: Sequence[int], block: Sequence[int] | None
) -> Iterator[tuple[int, ...]]:
    """Blocks that may be: 1, 2, 3... of whole chunks along each axis, or the one that is wished."""
    if block is not None:
        windows = recipe.windows(len(shape))
        whole = [math.ceil(n / window) * window for n, window in zip(shape, windows, strict=True)]
        return iter([tuple(map(min, block, whole))])
    sides = []
    for n, chunk, most in zip(shape, plan_chunks(shape, recipe), _LARGEST[len(shape)], strict=True):
        chunks = math.ceil(n / chunk)
        equal = {math.ceil(chunks / count) * chunk for count in range(1, chunks + 1)}
        sides.append(sorted(side for side in equal if side <= max(most, chunk)))
    return product(*sides)


def _fill_in(
    package: Package,
    recipe: Recipe,
    shape: Sequence[int],
    block: tuple[int, ...],
    share: float,
    *,
    shares: bool,
) -> Sizes:
    n_axes = len(block)
    windows, margins = recipe.windows(n_axes), recipe.margins(n_axes)
    steps, halo = package.config.multiple_of, package.config.halo
    rows = max(round(TILE[n_axes] / windows[0] / 2), 1) * windows[0]
    inner = (min(rows, block[0]), *block[1:])
    # where a block spans the image, there is nothing around it
    wide, deep = _grow(inner, margins, shape), _grow(block, margins, shape)
    # along the first axis, what the last part has seen is not computed again
    new = [min(inner[0], shape[0]), *wide[1:]]
    counts = [math.ceil(side / (share * TILE[n_axes])) for side in new]
    tile = tuple(
        math.ceil(side / count / step) * step
        for side, count, step in zip(new, counts, steps, strict=True)
    )
    sees = _grow(tile, halo, shape)
    network = math.prod(sees) * _PER_NETWORK_PIXEL[n_axes]
    if network > _MOST_OF_NETWORK:
        network = network * 3 // 2
    image = math.prod(_grow(deep, halo, shape)) * 2 * (package.channels or 1)  # of 16 bits
    pixels = math.prod(map(min, block, shape))
    seen = math.prod(wide) * (4 * sum(package.numbers) + _PER_SEEN_PIXEL)
    clustering = seen + image + _PER_FOUND_PIXEL * pixels
    peak = _BASE + network + max(clustering, _PER_CUT_PIXEL * pixels)
    sizes = Sizes(block, inner, tile, peak)
    return replace(sizes, work=_count_work(package, recipe, shape, sizes, shares=shares))


def _count_work(
    package: Package, recipe: Recipe, shape: Sequence[int], sizes: Sizes, *, shares: bool
) -> float:
    """Pixels that the network sees for one of the result, in the mean of blocks.

    Where blocks share, every second one embeds its margins and what its neighbours need of it, and
    the others what is left in their middle; as long as there are more blocks than workers, for
    neighbours that are found at the same time have nothing of each other.
    """
    margins, halo = recipe.margins(len(shape)), package.config.halo
    own = [n / math.ceil(n / side) for n, side in zip(shape, sizes.block, strict=True)]
    shared = [_around(o, m, n) for o, m, n in zip(own, margins, shape, strict=True)]
    rows, tile = sizes.inner[0], sizes.tile
    ahead = margins[0] if own[0] > rows else 0  # what the first part of a block sees of the next
    seen = []
    for sign in (1, -1) if shares else (1,):
        sides = [max(o + sign * s, 0.0) for o, s in zip(own, shared, strict=True)]
        first = min(rows + ahead + sign * shared[0] / 2, sides[0])
        counts = [math.ceil(side / t) for side, t in zip(sides, tile, strict=True)]
        counts[0] = math.ceil(first / tile[0])
        counts[0] += math.ceil((sides[0] - first) / rows) * math.ceil(rows / tile[0])
        seen.append(
            math.prod(
                side + count * _around(side / max(count, 1), h, n)
                for side, count, h, n in zip(sides, counts, halo, shape, strict=True)
            )
        )
    return sum(seen) / len(seen) / math.prod(own)


def _around(side: float, by: int, n: int) -> float:
    """Pixels around one of the parts of an axis, in the mean: there are none beyond its ends."""
    return 2 * by * (1 - side / n)


def _grow(sides: Sequence[int], by: Sequence[int], shape: Sequence[int]) -> list[int]:
    return [min(side + 2 * b, n) for side, b, n in zip(sides, by, shape, strict=True)]
