"""Embeddings at the faces of blocks, which two blocks see and one computes.

Blocks overlap by the margins of their windows. As on a chessboard, every block of one colour has
neighbours of the other alone. Blocks of the first colour embed their margins and leave in files
what the neighbours across their faces will see too; those of the second colour read it, and embed
only what is left in the middle. So little of an image goes through the network twice.

Nothing depends on these files but time: they hold the very numbers that a block would compute, and
what is not there, or damaged, is computed.
"""

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from spoco_zoo.layout import Layout
from spoco_zoo.scratch import DamagedFileError, is_whole, read_arrays, write_arrays
from spoco_zoo.tiling import Box, inner_box, intersect, widen

Outputs = Sequence[np.ndarray]  # what a network gives for a box, each (n, *space)


class SharedMargins:
    """What one block shares with its neighbours."""

    def __init__(self, folder: Path, layout: Layout, margins: Sequence[int], number: int) -> None:
        """Share with the neighbours of a block.

        Args:
            folder: Where all blocks of the image leave what they share.
            layout: The lattice of blocks.
            margins: Pixels per axis that a block sees around itself.
            number: The block.
        """
        self._gives = gives(layout, number)
        own = _wide(layout, margins, number)
        self._shared = [
            (
                folder / (f"{number}-{other}" if self._gives else f"{other}-{number}"),
                intersect(own, _wide(layout, margins, other)),
            )
            for other in across_faces(layout, number)
        ]

    def give(self, box: Box, outputs: Outputs) -> None:
        """Leave for the neighbours what they see too of a box that was embedded.

        Raises:
            OutputError: The disk refuses it.
        """
        if not self._gives:
            return
        for folder, shared in self._shared:
            part = intersect(box, shared)
            # a block that is tried again in small parts keeps them to itself
            if _is_empty(part) or part[1:] != shared[1:]:
                continue
            inside = (slice(None), *inner_box(box, part))
            sides = [n for side in part for n in (side.start, side.stop)]
            arrays = {str(n): output[inside] for n, output in enumerate(outputs)}
            path = folder / f"{part[0].start}.zip"
            write_arrays(path, {**arrays, "box": np.array(sides)}, lasts=False)

    def take(self, box: Box, into: Outputs) -> Box | None:
        """Read what neighbours have left of a box, and tell what of it is still to be embedded.

        Args:
            box: What is wanted.
            into: Arrays of its shape, one for each output.

        Returns:
            The part of the box that nobody has left, which is not empty; None where all is there.
        """
        left = box
        if self._gives:
            return left
        for folder, shared in self._shared:
            part = intersect(box, shared)
            rest = left if _is_empty(part) else _without(left, part)
            if rest is not left and _read(folder, part, box, into):
                left = rest
                if _is_empty(left):
                    return None
        return left

    def forget(self) -> None:
        """Delete what was left for this block, which is found."""
        if self._gives:
            return
        # folders stay, and what is not named yet: a neighbour may be writing there
        for folder, _ in self._shared:
            with suppress(OSError):  # it goes with the folder of work at last
                for path in list(folder.glob("*.zip")):
                    path.unlink(missing_ok=True)


def gives(layout: Layout, number: int) -> bool:
    """Whether a block computes what it shares; its neighbours across faces then do not."""
    return sum(map(int, np.unravel_index(number, layout.counts))) % 2 == 0


def across_faces(layout: Layout, number: int) -> list[int]:
    """The blocks with which a block has a face in common."""
    n_axes = len(layout.shape)
    offsets = [
        [step * (a == axis) for a in range(n_axes)] for axis in range(n_axes) for step in (-1, 1)
    ]
    found = [layout.neighbor(number, offset) for offset in offsets]
    return [other for other in found if other is not None]


def plan_order(layout: Layout, workers: int) -> list[int]:
    """Put blocks into an order in which what they take was mostly left before, and not for long.

    Args:
        layout: The lattice of blocks.
        workers: How many blocks are under way at a time.
    """
    every = range(len(layout))
    takers = [number for number in every if not gives(layout, number)]
    last = {number: max(across_faces(layout, number)) for number in takers}
    waiting = deque(sorted(takers, key=lambda number: (last[number], number)))
    order: list[int] = []
    places: dict[int, int] = {}
    for number in (number for number in every if gives(layout, number)):
        places[number] = len(order)
        order.append(number)
        while waiting and places.get(last[waiting[0]], len(order)) <= len(order) - 1 - workers:
            order.append(waiting.popleft())
    return [*order, *waiting]


def count_embedded(
    layout: Layout, margins: Sequence[int], number: int, *, shares: bool = True
) -> int:
    """Pixels of a block that are embedded in it, with or without what its neighbours leave."""
    if not shares or gives(layout, number):
        return math.prod(s.stop - s.start for s in _wide(layout, margins, number))
    return math.prod(
        max(s.stop - (m if s.stop < n else 0) - s.start - (m if s.start > 0 else 0), 0)
        for s, m, n in zip(layout.box(number), margins, layout.shape, strict=True)
    )


def count_shared(layout: Layout, margins: Sequence[int], order: Sequence[int]) -> int:
    """Pixels that lie in files at a time, at most, where blocks are found in an order."""
    held = most = 0
    left: dict[int, int] = {}  # for each block that takes, what is there for it
    for number in order:
        if gives(layout, number):
            wide = _wide(layout, margins, number)
            for other in across_faces(layout, number):
                part = intersect(wide, _wide(layout, margins, other))
                pixels = math.prod(s.stop - s.start for s in part)
                left[other] = left.get(other, 0) + pixels
                held += pixels
        most = max(most, held)
        held -= left.pop(number, 0)
    return most


def _wide(layout: Layout, margins: Sequence[int], number: int) -> Box:
    """A block with its margins, as far as there is image."""
    return widen(layout.box(number), margins, layout.shape)


def _is_empty(box: Box) -> bool:
    return any(s.stop <= s.start for s in box)


def _without(box: Box, part: Box) -> Box:
    """Cut a part off a box at one of its ends; the box itself where it is no such part."""
    cut = [
        axis
        for axis, (s, t) in enumerate(zip(box, part, strict=True))
        if t.start > s.start or t.stop < s.stop
    ]
    if not cut:
        return tuple(slice(s.start, s.start) for s in box)
    if len(cut) > 1:
        return box
    (axis,) = cut
    own, gone = box[axis], part[axis]
    if gone.stop <= own.start or gone.start >= own.stop:
        return box
    if gone.start <= own.start:
        rest = slice(gone.stop, own.stop)
    elif gone.stop >= own.stop:
        rest = slice(own.start, gone.start)
    else:
        return box
    return (*box[:axis], rest, *box[axis + 1 :])


def _read(folder: Path, part: Box, box: Box, into: Outputs) -> bool:
    """Read a part of a box, if it is all there; files are ranges along the first axis."""
    done = part[0].start
    with suppress(OSError, DamagedFileError, ValueError):
        for start in sorted(int(path.stem) for path in folder.glob("*.zip")):
            # what is damaged makes NumPy raise anything, so it is looked at as bytes first
            if start > done or done == part[0].stop or not is_whole(folder / f"{start}.zip"):
                break
            names = [str(n) for n in range(len(into))]
            sides, *arrays = read_arrays(folder / f"{start}.zip", "box", *names)
            there = tuple(slice(int(a), int(b)) for a, b in sides.reshape(-1, 2))
            here = (slice(done, min(there[0].stop, part[0].stop)), *part[1:])
            if _is_empty(here) or intersect(here, there) != here:
                continue
            for output, array in zip(into, arrays, strict=True):
                found = array[(slice(None), *inner_box(there, here))]
                output[(slice(None), *inner_box(box, here))] = found
            done = here[0].stop
    return bool(done == part[0].stop)
