"""Outlines to pixels: which of them lie inside a polygon or an ellipse.

Coordinates are (x, y) in pixels and count from the upper left corner of the first pixel, as in
ImageJ and QuPath: pixel (row r, column c) has its centre at (c + 0.5, r + 0.5). A pixel belongs
to an outline when its centre is inside. A centre on an edge belongs to the polygon to its left or
below it, so polygons that share an edge share no pixel and leave none out: this is ImageJ's rule
too, and the outline of a mask along the sides of its pixels gives back that mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Ring = Float[np.ndarray, "_ 2"]  # (x, y) of its corners; the last one is joined to the first
Box = tuple[slice, slice]  # rows and columns
Mask = Bool[np.ndarray, "h w"]

_AT_ONCE = 1 << 20  # crossings of rows and edges
_FARTHEST = 1e9  # pixels from the image's corner: beyond, something else was meant

Kind = Literal["instance", "background", "ignored"]


@dataclass(frozen=True, eq=False)
class Ellipse:
    """An upright ellipse by its bounding box."""

    corner: tuple[float, float]  # left and upper end (x, y)
    size: tuple[float, float]  # width and height


@dataclass(frozen=True, eq=False)
class Outline:
    """What somebody drew around something."""

    name: str  # what messages call it
    kind: Kind
    shape: Ellipse | tuple[tuple[Ring, ...], ...]  # or polygons, each of its rings
    z: int | None  # slice, from 0
    frame: int | None  # of a movie, from 0
    group: int | str | None  # outlines of one object in the slices of a volume share it


def kind_of(word: str) -> Kind | None:
    """What the class of an outline says, in any case; None passes the outline over.

    "Background" and "Ignore" speak for themselves, with an asterisk or without. Other names with
    an asterisk at the end are classes that QuPath leaves out, and all else is an instance.
    """
    match word.removesuffix("*").strip().casefold():
        case "background":
            return "background"
        case "ignore":
            return "ignored"
    return None if word.endswith("*") else "instance"


def find_impossible(coordinates: Float[np.ndarray, "*any"]) -> float | None:
    """Give the first coordinate that no image has: not a finite number, or very far away."""
    wrong = coordinates[~(np.abs(coordinates) <= _FARTHEST)]
    return float(wrong[0]) if len(wrong) else None


def fill(outline: Outline, shape: tuple[int, int]) -> tuple[Box, Mask]:
    """Find the pixels of an outline: those in any of its polygons, or in its ellipse.

    Args:
        outline: Of finite coordinates, which may lie beyond the image.
        shape: Rows and columns of the image.

    Returns:
        A part of the image, empty where the outline lies beside it, and a mask of that part.
    """
    if isinstance(outline.shape, Ellipse):
        return fill_ellipse(outline.shape, shape)
    parts = [fill_polygon(rings, shape) for rings in outline.shape]
    if len(parts) == 1:
        return parts[0]
    parts = [part for part in parts if part[1].size]
    if not parts:
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
    rows, columns = (
        slice(min(box[axis].start for box, _ in parts), max(box[axis].stop for box, _ in parts))
        for axis in (0, 1)
    )
    whole = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    for (down, right), mask in parts:
        top, left = down.start - rows.start, right.start - columns.start
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask
    return (rows, columns), whole


def fill_polygon(rings: Sequence[Ring], shape: tuple[int, int]) -> tuple[Box, Mask]:
    """Find the pixels inside an odd number of rings, which makes rings within rings holes.

    Args:
        rings: Outlines with finite coordinates, which may lie beyond the image; not all empty.
        shape: Rows and columns of the image.

    Returns:
        The part of the image that can hold the polygon, empty where that lies beside the image,
        and a mask of that part.
    """
    corners = np.concatenate([np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings])
    box = _box_of(corners, shape)
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    # each crossing of a row with an edge turns all pixels to its right inside out
    turns = np.zeros((height, width + 1), np.uint8)
    if width:
        for row, x in _crossings(_edges(rings), rows):
            column = np.clip(np.floor(x + 0.5), columns.start, columns.stop).astype(np.int64)
            place = (row - rows.start) * (width + 1) + column - columns.start
            np.add.at(turns.reshape(-1), place, np.uint8(1))
    # a count modulo 256 is as odd as the count
    np.cumsum(turns, axis=1, dtype=np.uint8, out=turns)
    return box, (turns[:, :width] & 1).astype(bool)


def fill_ellipse(ellipse: Ellipse, shape: tuple[int, int]) -> tuple[Box, Mask]:
    """Find the pixels whose centre is inside an ellipse or on its edge.

    Args:
        ellipse: Of finite coordinates.
        shape: Rows and columns of the image.

    Returns:
        As `fill_polygon`.
    """
    (x, y), (width, height) = ellipse.corner, ellipse.size
    box = _box_of(np.array([[x, y], [x + width, y + height]]), shape)
    row, column = (np.arange(part.start, part.stop) + 0.5 for part in box)
    if width <= 0 or height <= 0:
        return box, np.zeros((len(row), len(column)), bool)
    down = (2 * (row - y) / height - 1) ** 2
    right = (2 * (column - x) / width - 1) ** 2
    return box, down[:, None] + right <= 1


def _box_of(corners: Float[np.ndarray, "n 2"], shape: tuple[int, int]) -> Box:
    """Rows and columns that lie between the extremes of some corners, in part or wholly."""
    low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    rows, columns = (
        np.clip([low[axis], max(high[axis], low[axis] + 1)], 0, count).astype(int).tolist()
        for axis, count in ((1, shape[0]), (0, shape[1]))
    )
    return slice(*rows), slice(*columns)


def _edges(rings: Sequence[Ring]) -> Float[np.ndarray, "e 4"]:
    """All edges as (x, y) of their upper end and (x, y) of their lower end.

    Two polygons go along a shared edge in opposite directions: written from top to bottom it is
    the same edge, and its crossings are the same to the last bit.
    """
    edges = np.concatenate([np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in rings])
    is_upward = edges[:, 1] > edges[:, 3]
    edges[is_upward] = edges[is_upward][:, [2, 3, 0, 1]]
    return edges


def _crossings(
    edges: Float[np.ndarray, "e 4"], rows: slice
) -> Iterator[tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]]:
    """Row and x of each place where an edge crosses the centre line of a row, some at a time.

    An edge has its upper end and not its lower one, so it never counts twice at a corner.
    """
    first, after = (
        np.clip(np.ceil(edges[:, axis] - 0.5), rows.start, rows.stop).astype(np.int64)
        for axis in (1, 3)
    )
    is_crossing = after > first
    edges, first, count = edges[is_crossing], first[is_crossing], (after - first)[is_crossing]
    ends = np.cumsum(count)
    start = 0
    while start < len(edges):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _AT_ONCE, side="right")), start + 1)
        index = np.repeat(np.arange(start, stop), count[start:stop])
        row = first[index] + np.arange(len(index)) - (ends[index] - count[index] - done)
        x1, y1, x2, y2 = edges[index].T
        yield row, x1 + (row + 0.5 - y1) / (y2 - y1) * (x2 - x1)
        start = stop
