"""What is true of label images: whole ids, consecutive ones, connected instances, no specks.

A label image holds one integer a pixel, 0 where there is no instance. Every function returns a
new array and leaves its argument alone, unless it says so. Stitching of neighbouring blocks is not
here. What is done pixel by pixel is done in parts: NumPy turns ids into 64-bit positions first,
and of all pixels that would be twice the image.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped, UInt32

from spoco_zoo.errors import ImageError

Labels = UInt32[np.ndarray, "*space"]

BACKGROUND = 0
UNLABELED = -1  # where it is not known whether there is an instance
KNOWN_BACKGROUND = -2  # painted as background, in labels whose 0 may mean something else

_AT_ONCE = 1 << 18  # pixels
_RUNS_AT_ONCE = 1 << 22  # pixels


def load_libraries() -> None:
    """Import what clustering will need, which takes a while, while there is time."""
    import cc3d  # noqa: F401
    import scipy.ndimage
    import scipy.sparse.csgraph  # noqa: F401


def check_labels(values: np.ndarray, name: str) -> UInt32[np.ndarray, "*space"]:
    """Return labels as uint32, or refuse them.

    Raises:
        ImageError: Labels are not integers, negative, or above the range of uint32.
    """
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise ImageError(
            f"{name}: labels are {values.dtype}: expected integers, 0 for no instance; "
            "save them as 16 or 32 bit integers"
        )
    if values.size and values.dtype.kind == "i" and values.min() < 0:
        raise ImageError(
            f"{name}: the lowest label is {values.min()}: expected 0 or more; "
            "renumber the labels from 0"
        )
    if values.size and values.max() > np.iinfo(np.uint32).max:
        raise ImageError(
            f"{name}: the highest label is {values.max()}: expected at most "
            f"{np.iinfo(np.uint32).max}; renumber the labels from 0"
        )
    return values.astype(np.uint32)


def check_label_states(values: np.ndarray, name: str) -> Integer[np.ndarray, "*space"]:
    """Check labels in which -1 may stand for pixels that nobody looked at.

    Raises:
        ImageError: As `check_labels`, but for -1.
    """
    if values.dtype.kind == "i" and values.size and values.min() == UNLABELED:
        is_unknown = values == UNLABELED
        ids = check_labels(np.where(is_unknown, 0, values), name)
        return np.where(is_unknown, UNLABELED, ids.astype(np.int64))
    return check_labels(values, name)


def relabel(labels: Integer[np.ndarray, "*space"]) -> Labels:
    """Renumber the instances 1..n in the order in which they are met, 0 stays 0.

    The order is that of the first pixel of each instance, so two label images with the same
    partition become equal.
    """
    return remove_small(labels, 1)


def remove_small(labels: Integer[np.ndarray, "*space"], min_size: int) -> Labels:
    """Set instances of fewer than `min_size` pixels to 0 and renumber the others as `relabel`."""
    ids = _small_ids(labels)
    return np.asarray(look_up(_new_ids(count_ids(ids), min_size), ids))


def split_disconnected(labels: Integer[np.ndarray, "*space"], min_size: int = 1) -> Labels:
    """Give every connected piece of an instance an id of its own, and drop those too small.

    Two pixels are connected when they share a side (4 neighbours in an image, 6 in a volume).
    """
    pieces = _components(labels)
    table = _new_ids(count_ids(pieces), min_size)
    if (table == np.arange(len(table))).all():
        return pieces
    return np.asarray(look_up(table, pieces, out=pieces))


class Counted(NamedTuple):
    """What is known of the ids 0..k of a label image."""

    firsts: Int[np.ndarray, " {k}+1"]  # place of the first pixel in the flat array
    sizes: Int[np.ndarray, " {k}+1"]  # pixels; those of 0 are not counted


def count_ids(labels: Integer[np.ndarray, "*space"], highest: int | None = None) -> Counted:
    """Find the first pixel and the size of each id.

    Args:
        labels: Ids, none below 0.
        highest: The highest id to tell of; that of the labels where left out.

    Returns:
        First places, `labels.size` for ids that are not there, and sizes; of 0 nothing is told.
    """
    count = (int(labels.max(initial=0)) if highest is None else highest) + 1
    firsts, sizes = np.full(count, labels.size), np.zeros(count, np.int64)
    for ids, starts, lengths in _runs(labels):
        # of several values for one position the last is kept, here the first pixel
        firsts[ids[::-1]] = np.minimum(firsts[ids[::-1]], starts[::-1])
        sizes += np.bincount(ids, lengths, count).astype(np.int64)
    return Counted(firsts, sizes)


def find_ids(labels: Integer[np.ndarray, "*space"], highest: int) -> Bool[np.ndarray, " k"]:
    """Tell which of the ids 0..highest are in a label image; 0 is never."""
    found = np.zeros(highest + 1, dtype=bool)
    for ids, _, _ in _runs(labels):
        found[ids] = True
    return found


def look_up(
    table: Shaped[np.ndarray, " k"],
    ids: Integer[np.ndarray, "*space"],
    out: Shaped[np.ndarray, "*space"] | None = None,
) -> Shaped[np.ndarray, "*space"]:
    """Replace every id by its entry in a table.

    Args:
        table: An entry for each id from 0 on.
        ids: What to replace.
        out: Where the answer goes, the ids themselves for example; a new array where left out.
    """
    found = np.empty(ids.shape, table.dtype) if out is None else out
    rows = max(_AT_ONCE * len(ids) // max(ids.size, 1), 1)
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        found[part] = table[ids[part]]
    return found


def find_groups(count: int, pairs: Integer[np.ndarray, "l 2"]) -> UInt32[np.ndarray, " {count}"]:
    """Number the groups of 0..count-1 that pairs join, by their lowest members; 0 keeps 0."""
    from scipy import sparse

    edges = sparse.coo_array((np.ones(len(pairs), np.int8), pairs.T), shape=(count, count))
    _, groups = sparse.csgraph.connected_components(edges, directed=False)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.uint32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.uint32)
    return rank[inverse]


def find_pieces(foreground: Bool[np.ndarray, "*space"]) -> Labels:
    """Number the connected pieces of the foreground, corners connecting too (8 or 26)."""
    return _components(foreground, corners=True)


def fill_from_neighbors(
    labels: Integer[np.ndarray, "*space"], foreground: Bool[np.ndarray, "*space"], reach: int
) -> Labels:
    """Give foreground pixels without an instance that of a neighbour, `reach` steps far.

    Instances grow one pixel a step and only through the foreground, so an id never jumps over
    a gap. Where two instances arrive in the same step, the one with the lower id stays.
    """
    grown = np.pad(np.asarray(labels, dtype=np.uint32), 1)
    inside = grown[(slice(1, -1),) * grown.ndim]
    grow(grown, foreground & (inside == 0), reach)
    return inside.copy()


def grow(framed: Labels, is_undecided: Bool[np.ndarray, "*inside"], reach: int) -> None:
    """Do what `fill_from_neighbors` says to an array with a frame of 0, one pixel wide.

    Args:
        framed: Ids, changed in place.
        is_undecided: Pixels inside the frame that have no instance and may take one.
        reach: Steps at most.
    """
    # thanks to the frame a neighbour is a fixed distance away in the flat array
    flat = framed.reshape(-1)
    undecided = np.flatnonzero(np.pad(is_undecided, 1))
    strides = [stride // framed.itemsize for stride in framed.strides]
    nobody = np.uint32(np.iinfo(np.uint32).max)
    for _ in range(reach):
        lowest = np.full(len(undecided), nobody)
        for start in range(0, len(undecided), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            places, found = undecided[part], lowest[part]
            for stride in (*strides, *(-stride for stride in strides)):
                # less one, 0 turns into the highest number, and no id, the highest included,
                # equals it
                np.minimum(found, flat[places + stride] - np.uint32(1), out=found)
        is_new = lowest != nobody
        if not is_new.any():
            break
        flat[undecided[is_new]] = lowest[is_new] + np.uint32(1)
        undecided = undecided[~is_new]


def _runs(
    labels: Integer[np.ndarray, "*space"],
) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
    """Runs of one id other than 0 in the flat array, in order: id, start, and length.

    There are far fewer of them than pixels. A long run may come in several.
    """
    flat = labels.reshape(-1)
    for begin in range(0, len(flat), _RUNS_AT_ONCE):
        part = flat[begin : begin + _RUNS_AT_ONCE]
        starts = np.append(0, np.flatnonzero(part[1:] != part[:-1]) + 1)
        lengths = np.diff(starts, append=len(part))
        ids = part[starts]
        taken = np.flatnonzero(ids)
        yield ids[taken].astype(np.intp), starts[taken] + begin, lengths[taken]


def _new_ids(counted: Counted, min_size: int) -> UInt32[np.ndarray, " k"]:
    """Number ids in the order of their first pixels, those too small 0."""
    firsts, sizes = counted
    kept = np.flatnonzero(sizes >= max(min_size, 1))
    table = np.zeros(len(firsts), np.uint32)
    table[kept[np.argsort(firsts[kept])]] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return table


def _small_ids(labels: Integer[np.ndarray, "*space"]) -> Integer[np.ndarray, "*space"]:
    """Ids that may number the entries of a table: those of the argument, or their ranks."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest >= 0 and highest <= max(4 * labels.size, 255):
        return labels
    ids, inverse = np.unique(labels, return_inverse=True)
    numbers = np.cumsum(ids != 0) * (ids != 0)
    return np.asarray(numbers[inverse].reshape(labels.shape))


def _components(values: np.ndarray, *, corners: bool = False) -> Labels:
    import cc3d

    neighbors: dict[tuple[int, bool], Literal[4, 6, 8, 26]]
    neighbors = {(2, False): 4, (2, True): 8, (3, False): 6, (3, True): 26}
    kind = f"u{max(values.dtype.itemsize, 4)}"
    if values.dtype == bool:  # its bytes are 0 and 1 already
        values, kind = np.ascontiguousarray(values).view(np.uint8), "u1"
    pieces = cc3d.connected_components(
        np.require(values, kind, ["C", "W"]),  # it takes no read-only array
        connectivity=neighbors[values.ndim, corners],
        out_dtype=np.uint32,
    )
    return np.asarray(pieces, dtype=np.uint32)
