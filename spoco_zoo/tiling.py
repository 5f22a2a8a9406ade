"""Cut an array into tiles that can be processed alone and put back without a seam.

A tile is three nested boxes, in pixels of the whole array:

    |<------------------ read ------------------>|   what the network sees
    |  halo |<------------ keep ---------->| halo |   where its embedding is valid
    |       | overlap |<-- write -->| overlap |   |   what this tile alone may write

The write boxes partition the array. `halo` is context, computed and thrown away;
`overlap` is kept by both neighbours, so that their instances can be matched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from spoco_zoo.errors import SettingError

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """Three nested boxes: `write` inside `keep` inside `read`."""

    write: Box
    keep: Box
    read: Box


def plan_tiles(
    shape: Sequence[int],
    write: Sequence[int],
    halo: Sequence[int],
    overlap: Sequence[int],
    multiple_of: Sequence[int],
    box: Box | None = None,
) -> Iterator[Tile]:
    """Yield the tiles of an array, or of a box of it, last axis fastest.

    Every read box starts on a multiple of `multiple_of`, the pooling grid of the network:
    a shifted grid changes the embedding even under a generous halo. A box must start there too.

    Raises:
        SettingError: `write` is not a multiple of `multiple_of` on some axis.
    """
    box = box or tuple(slice(0, n) for n in shape)
    for axis, (size, step) in enumerate(zip(write, multiple_of, strict=True)):
        if size < 1 or size % step:
            below = max(size, 0) // step * step
            ways = f"{below} or {below + step}" if below else f"{step}"
            raise SettingError(
                f"write size {size} on axis {axis} is not a multiple of {step}: use {ways}"
            )
    margin = [_round_up(h + o, m) for h, o, m in zip(halo, overlap, multiple_of, strict=True)]
    for start in product(*(range(b.start, b.stop, w) for b, w in zip(box, write, strict=True))):
        stop = [min(a + w, b.stop) for a, w, b in zip(start, write, box, strict=True)]
        inside = tuple(slice(a, min(b, n)) for a, b, n in zip(start, stop, shape, strict=True))
        keep, read = widen(inside, overlap, shape), widen(inside, margin, shape)
        yield Tile(write=inside, keep=keep, read=read)


def inner_box(outer: Box, inner: Box) -> Box:
    """Express a box in the pixels of the box around it."""
    return tuple(
        slice(i.start - o.start, i.stop - o.start) for o, i in zip(outer, inner, strict=True)
    )


def intersect(a: Box, b: Box) -> Box:
    """The pixels that two boxes share; they must share some."""
    return tuple(
        slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True)
    )


def widen(box: Box, by: Sequence[int], shape: Sequence[int]) -> Box:
    """Widen a box by some pixels on both sides of each axis, as far as the array reaches."""
    sides = zip(box, by, shape, strict=True)
    return tuple(slice(max(s.start - more, 0), min(s.stop + more, n)) for s, more, n in sides)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
