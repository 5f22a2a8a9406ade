"""Label images to outlines: rings along the sides of pixels, with corners only where they turn.

Coordinates are (x, y) in pixels and count from the upper left corner of the first pixel, as in
`polygons`, so the area of an outline is the count of its pixels and filling it gives them back.
A polygon is one connected piece of an object (pixels that share a side): its outer ring, then its
holes. The object lies to the right of a ring on the way along it: an outer ring runs clockwise on
the screen, which GeoJSON calls counterclockwise since its y points up. No ring meets itself;
where an object touches itself at a corner of a pixel, two rings do.

Many objects are traced at once: their masks are laid out on one canvas, with a gap between them.
Label images may be anything that is cut like an array; no more is read than the boxes hold.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

Corners = Int64[np.ndarray, "_ 2"]  # (x, y); the last one is joined to the first
Indices = Int64[np.ndarray, " _"]
Box = tuple[slice, ...]  # of an object, an axis each, with start and stop

_CANVAS = 1 << 22  # pixels that are traced at once, unless one mask is larger
_READ = 1 << 26  # pixels that are read at once where several boxes lie close together

# of the four pixels around a corner of pixels, upper left, upper right, lower left, lower right,
# those in the object as the bits 1, 2, 4, 8: which of them is alone, in the object or out of it
_ALONE = {1: 0, 2: 1, 4: 2, 8: 3, 14: 0, 13: 1, 11: 2, 7: 3}
_ACROSS = {6: (1, 2), 9: (0, 3)}  # two that touch at the corner alone
_OUTWARD = (7, 11, 13, 14)
_TURNS = np.isin(np.arange(16), [*_ALONE, *_ACROSS])
_FIRST = np.array([_ALONE.get(code, _ACROSS.get(code, (0,))[0]) for code in range(16)])
_SECOND = np.array([_ACROSS.get(code, (0, 0))[1] for code in range(16)])
_IS_ACROSS = np.isin(np.arange(16), list(_ACROSS))
_IS_OUTWARD = np.isin(np.arange(16), _OUTWARD)

# how much of the perimeter a pixel at the rim stands for, by 1 + 2 * neighbours at its sides +
# 10 * neighbours at its corners that are at the rim too: Benkrid and Crookes 2000
_STEPS = np.zeros(50)
_STEPS[[5, 7, 15, 17, 25, 27]] = 1
_STEPS[[21, 33]] = 2**0.5
_STEPS[[13, 23]] = (1 + 2**0.5) / 2


@dataclass(frozen=True, eq=False)
class Traced:
    """An object in an image, or in one slice of a volume."""

    label: int
    z: int | None  # slice, from 0
    polygons: tuple[tuple[Corners, ...], ...]  # of each piece the outer ring, then its holes
    area: int  # in pixels, of its pixels and of the polygons alike
    perimeter: float  # in pixels, as if the rim were smooth (not the length of the rings)
    hull_area: float  # in pixels, of the convex hull of all rings


class _Piece(NamedTuple):
    """The mask of an object in a plane."""

    label: int
    z: int | None
    box: Box
    shape: tuple[int, int]


class _Canvas(NamedTuple):
    """Masks laid out in rows, a pixel apart."""

    pixels: Bool[np.ndarray, "h w"]
    tops: Indices  # of each mask
    lefts: Indices
    shelves: Indices  # the row in which each mask lies
    shelf_tops: Indices

    def piece_at(self, rows: Indices, columns: Indices) -> Indices:
        """Which mask some pixels belong to."""
        shelf = np.searchsorted(self.shelf_tops, rows, side="right") - 1
        width = self.pixels.shape[1]
        places = self.shelves * width + self.lefts
        return np.asarray(np.searchsorted(places, shelf * width + columns, side="right") - 1)


class _Rings(NamedTuple):
    """Rings one after the other, each with its piece of the object."""

    corners: Corners
    starts: Indices  # of each ring, and the end of the last
    pieces: Indices  # of each ring, connected pieces from 1


def trace_objects(labels: Any, boxes: Iterable[tuple[int, Box]]) -> Iterator[Traced]:  # noqa: ANN401 - an array, or what is cut like one
    """Trace objects in the order in which they are given, slice by slice in a volume.

    Args:
        labels: (y, x) or (z, y, x).
        boxes: Of each object its id and the box that holds all of it; in a volume its slices are
            traced one by one, and those without a pixel of it are left out.

    Yields:
        An object, or one slice of it, at a time.
    """
    batch: list[_Piece] = []
    pixels = 0
    for label, box in boxes:
        for piece in _slices_of(label, box):
            size = (piece.shape[0] + 1) * (piece.shape[1] + 1)
            if batch and pixels + size > _CANVAS:
                yield from _trace_batch(labels, batch)
                batch, pixels = [], 0
            batch.append(piece)
            pixels += size
    if batch:
        yield from _trace_batch(labels, batch)


def _slices_of(label: int, box: Box) -> Iterator[_Piece]:
    *deep, rows, columns = box
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    if not deep:
        yield _Piece(label, None, box, shape)
        return
    for z in range(deep[0].start, deep[0].stop):
        yield _Piece(label, z, (slice(z, z + 1), rows, columns), shape)


def _trace_batch(labels: Any, pieces: Sequence[_Piece]) -> Iterator[Traced]:  # noqa: ANN401
    import cc3d

    canvas = _lay_out(labels, pieces)
    connected = np.asarray(cc3d.connected_components(canvas.pixels.view(np.uint8), connectivity=4))
    rings = _find_rings(canvas.pixels, connected)
    if not len(rings.pieces):
        return
    first = rings.starts[:-1]
    owner = _owners(canvas, connected)
    mask_of_ring = owner[rings.pieces]
    areas = _signed_areas(rings)
    perimeters = _perimeters(canvas, connected, owner)
    corner_mask = np.repeat(mask_of_ring, np.diff(rings.starts))
    hulls = _hull_areas(rings.corners, corner_mask, len(pieces))
    offsets = np.array([[p.box[-1].start, p.box[-2].start] for p in pieces], np.int64)
    offsets -= np.stack([canvas.lefts, canvas.tops], axis=1)
    corners = rings.corners + offsets[corner_mask]
    order = np.lexsort((areas < 0, rings.pieces, mask_of_ring))
    where = np.searchsorted(mask_of_ring[order], np.arange(len(pieces) + 1)).tolist()
    is_outer = (areas[order] > 0).tolist()
    begins, ends = first[order].tolist(), rings.starts[1:][order].tolist()
    sizes = np.bincount(mask_of_ring, areas, len(pieces)).astype(np.int64).tolist()
    for number, piece in enumerate(pieces):
        polygons: list[list[Corners]] = []
        for ring in range(where[number], where[number + 1]):
            if is_outer[ring]:
                polygons.append([])
            polygons[-1].append(corners[begins[ring] : ends[ring]])
        if polygons:
            yield Traced(
                label=piece.label,
                z=piece.z,
                polygons=tuple(map(tuple, polygons)),
                area=sizes[number],
                perimeter=float(perimeters[number]),
                hull_area=float(hulls[number]),
            )


def _lay_out(labels: Any, pieces: Sequence[_Piece]) -> _Canvas:  # noqa: ANN401
    """Draw the masks of objects in rows, with a frame and gaps of nothing."""
    read = _reader(labels, [piece.box for piece in pieces])
    area = sum((p.shape[0] + 1) * (p.shape[1] + 1) for p in pieces)
    width = max(round(area**0.5), *(p.shape[1] + 2 for p in pieces), 0)
    tops, lefts, shelves, shelf_tops = [], [], [], [1]
    left, height = 1, 0
    for piece in pieces:
        if left + piece.shape[1] + 1 > width:
            shelf_tops.append(shelf_tops[-1] + height + 1)
            left, height = 1, 0
        tops.append(shelf_tops[-1])
        lefts.append(left)
        shelves.append(len(shelf_tops) - 1)
        left += piece.shape[1] + 1
        height = max(height, piece.shape[0])
    pixels = np.zeros((shelf_tops[-1] + height + 1, width), bool)
    for piece, top, left in zip(pieces, tops, lefts, strict=True):
        rows, columns = piece.shape
        np.equal(
            read(piece.box).reshape(piece.shape),
            piece.label,
            out=pixels[top : top + rows, left : left + columns],
        )
    places = (np.array(numbers, np.int64) for numbers in (tops, lefts, shelves, shelf_tops))
    return _Canvas(pixels, *places)


def _reader(labels: Any, boxes: Sequence[Box]) -> Callable[[Box], np.ndarray]:  # noqa: ANN401
    """How to read boxes: from memory, from one part that holds them all, or each by itself."""
    if isinstance(labels, np.ndarray):
        return labels.__getitem__
    starts = np.array([[part.start for part in box] for box in boxes]).min(axis=0)
    stops = np.array([[part.stop for part in box] for box in boxes]).max(axis=0)
    if np.prod((stops - starts).astype(float)) > _READ:
        return lambda box: np.asarray(labels[box])
    low = starts.tolist()
    held = np.asarray(labels[tuple(map(slice, low, stops.tolist()))])
    return lambda box: held[
        tuple(slice(p.start - n, p.stop - n) for p, n in zip(box, low, strict=True))
    ]


def _owners(canvas: _Canvas, connected: Integer[np.ndarray, "h w"]) -> Indices:
    """Which mask each connected piece belongs to; 0 for 0, which is none."""
    flat = connected.ravel()
    places = np.flatnonzero(flat)
    some = np.zeros(int(flat.max(initial=0)) + 1, np.int64)
    some[flat[places]] = places
    owner = canvas.piece_at(*np.divmod(some, connected.shape[1]))
    owner[0] = 0
    return owner


def _find_rings(pixels: Bool[np.ndarray, "h w"], connected: Integer[np.ndarray, "h w"]) -> _Rings:
    """Find the places where outlines turn, and walk from each to the next.

    On a line between pixels, the corners of one piece come in pairs: one where its rim begins and
    the next one where it ends. At the end of a horizontal side begins a vertical one.
    """
    height, width = pixels.shape
    bits = pixels.view(np.uint8)
    code = bits[:-1, :-1] | bits[:-1, 1:] << 1 | bits[1:, :-1] << 2 | bits[1:, 1:] << 3
    place = np.flatnonzero(_TURNS[code])
    kind = code.ravel()[place]
    twice = np.flatnonzero(_IS_ACROSS[kind])
    quadrant = np.concatenate([_FIRST[kind], _SECOND[kind[twice]]])
    is_outward = np.concatenate([_IS_OUTWARD[kind], np.zeros(len(twice), bool)])
    row, column = np.divmod(np.concatenate([place, place[twice]]), width - 1)
    inside = np.where(is_outward, 3 - quadrant, quadrant)
    piece = connected[row + (inside >> 1), column + (inside & 1)].astype(np.int64)
    row, column = row + 1, column + 1
    beside = _pair((piece * height + row) * 2 * width + 2 * column + (quadrant & 1))
    below = _pair((piece * width + column) * 2 * height + 2 * row + (quadrant >> 1))
    goes_along = ((quadrant == 0) | (quadrant == 3)) ^ is_outward
    order, starts = _walk(np.flatnonzero(goes_along), beside, below)
    if len(twice):
        ring_of = np.empty(len(order), np.int64)
        ring_of[order] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        touches = ring_of[twice] == ring_of[np.arange(len(place), len(order))]
        order, starts = _split(order, starts, row * width + column, ring_of[twice[touches]])
    corners = np.stack([column, row], axis=1)[order]
    return _Rings(corners, starts, piece[order[starts[:-1]]])


def _pair(keys: Indices) -> Indices:
    """Join first and second, third and fourth, in the order of some keys."""
    order = np.argsort(keys)
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def _walk(begins: Indices, beside: Indices, below: Indices) -> tuple[Indices, Indices]:
    """Go round all rings: corners in the order of the walk, and where each ring starts.

    Args:
        begins: The corners from which a horizontal side leads on.
        beside: Where horizontal sides lead.
        below: Where vertical sides lead.
    """
    number = np.empty(len(beside), np.int64)
    number[begins] = np.arange(len(begins))
    ahead = number[below[beside[begins]]].tolist()
    walk: list[int] = []
    starts = []
    for begin in range(len(ahead)):
        if ahead[begin] < 0:
            continue
        starts.append(2 * len(walk))
        at = begin
        while (after := ahead[at]) >= 0:
            walk.append(at)
            ahead[at] = -1
            at = after
    starts.append(2 * len(walk))
    along = begins[np.array(walk, np.int64)]
    order = np.stack([along, beside[along]], axis=1).ravel()
    return order, np.array(starts, np.int64)


def _split(
    order: Indices, starts: Indices, place: Indices, rings: Indices
) -> tuple[Indices, Indices]:
    """Cut rings that meet themselves into rings that do not."""
    is_cut = np.zeros(len(starts) - 1, bool)
    is_cut[rings] = True
    kept = np.repeat(~is_cut, np.diff(starts))
    parts = [order[kept]]
    lengths = [np.diff(starts)[~is_cut]]
    for ring in np.flatnonzero(is_cut):
        corners = order[starts[ring] : starts[ring + 1]]
        loops = _loops(place[corners].tolist())
        parts.extend(corners[loop] for loop in loops)
        lengths.append(np.array([len(loop) for loop in loops]))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])


def _loops(places: list[int]) -> list[list[int]]:
    """Cut a walk wherever it comes back to a place: indices of the loops."""
    loops = []
    path: list[int] = []
    met: dict[int, int] = {}
    for index, place in enumerate(places):
        if place not in met:
            met[place] = len(path)
            path.append(index)
            continue
        cut = met[place]
        loops.append(path[cut:])
        for old in path[cut + 1 :]:
            del met[places[old]]
        del path[cut:]
        path.append(index)
    return [*loops, path]


def _signed_areas(rings: _Rings) -> Indices:
    """Areas of rings in pixels, those of holes below 0."""
    ahead = np.arange(1, len(rings.corners) + 1)
    ahead[rings.starts[1:] - 1] = rings.starts[:-1]
    x, y = rings.corners.T
    return np.asarray(np.add.reduceat(x * y[ahead] - x[ahead] * y, rings.starts[:-1]) // 2)


def _perimeters(
    canvas: _Canvas, connected: Integer[np.ndarray, "h w"], owner: Indices
) -> Float[np.ndarray, " _"]:
    """Perimeters of masks, estimated from how the pixels at their rims follow each other."""
    rim = canvas.pixels.copy()
    middle = rim[1:-1, 1:-1]
    full = canvas.pixels
    middle &= ~(full[:-2, 1:-1] & full[2:, 1:-1] & full[1:-1, :-2] & full[1:-1, 2:])
    flat, width = rim.view(np.uint8).ravel(), rim.shape[1]
    places = np.flatnonzero(rim)
    sides = sum(flat[places + step] for step in (-1, 1, -width, width))
    corners = sum(flat[places + step] for step in (-width - 1, 1 - width, width - 1, width + 1))
    steps = _STEPS[1 + 2 * sides + 10 * corners]
    return np.bincount(owner[connected.ravel()[places]], steps, len(canvas.tops))


def _hull_areas(corners: Corners, mask: Indices, count: int) -> Float[np.ndarray, " _"]:
    """Areas of the convex hulls of the corners of each mask.

    The hull lies between the leftmost and the rightmost corner of every line; of these, what is
    not beyond the straight way from its upper to its lower neighbour is dropped until nothing is.
    """
    x, y = corners.T
    order = np.lexsort((y, mask))
    mask, x, y = mask[order], x[order], y[order]
    starts = np.flatnonzero(np.r_[True, (mask[1:] != mask[:-1]) | (y[1:] != y[:-1])])
    chain, y = mask[starts], y[starts]
    areas = np.zeros(count)
    for sign, extreme in ((1, np.maximum), (-1, np.minimum)):
        out = sign * extreme.reduceat(x, starts)
        areas += _chain_areas(chain, y, out, count)
    return areas


def _chain_areas(chain: Indices, y: Indices, out: Indices, count: int) -> Float[np.ndarray, " _"]:
    """Areas between the line x = 0 and the hulls of chains, of which the last coordinate is x."""
    while True:
        inner = np.flatnonzero(chain[2:] == chain[:-2]) + 1
        up, down = inner - 1, inner + 1
        turn = (out[inner] - out[up]) * (y[down] - y[up])
        dull = inner[turn <= (out[down] - out[up]) * (y[inner] - y[up])]
        if not len(dull):
            break
        chain, y, out = (np.delete(numbers, dull) for numbers in (chain, y, out))
    same = np.flatnonzero(chain[1:] == chain[:-1])
    strips = (y[same + 1] - y[same]) * (out[same + 1] + out[same]) / 2
    return np.bincount(chain[same], strips, count)
