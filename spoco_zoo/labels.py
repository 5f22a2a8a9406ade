"""What is true of label images: consecutive ids, connected instances, no specks.

A label image holds one integer a pixel, 0 where there is no instance. Every function returns a
new array and leaves its argument alone. Stitching of neighbouring blocks is not here.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt32

Labels = UInt32[np.ndarray, "*space"]

BACKGROUND = 0
UNLABELED = -1  # where it is not known whether there is an instance
KNOWN_BACKGROUND = -2  # painted as background, in labels whose 0 may mean something else

_AT_ONCE = 1 << 18  # pixels


def load_libraries() -> None:
    """Import what clustering will need, which takes a while, while there is time."""
    import cc3d  # noqa: F401
    import scipy.ndimage
    import scipy.sparse.csgraph  # noqa: F401


def relabel(labels: Integer[np.ndarray, "*space"]) -> Labels:
    """Renumber the instances 1..n in the order in which they are met, 0 stays 0.

    The order is that of the first pixel of each instance, so two label images with the same
    partition become equal.
    """
    return remove_small(labels, 1)


def remove_small(labels: Integer[np.ndarray, "*space"], min_size: int) -> Labels:
    """Set instances of fewer than `min_size` pixels to 0 and renumber the others as `relabel`."""
    ids = _small_ids(labels)
    place = np.flatnonzero(ids)
    numbers = ids.ravel().take(place)
    first = np.full(int(numbers.max(initial=0)) + 1, ids.size)
    # of several values for one position the last is kept, here the first pixel
    first[numbers[::-1]] = place[::-1]
    is_kept = first < ids.size
    if min_size > 1:
        is_kept &= np.bincount(numbers, minlength=len(first)) >= min_size
    kept = np.flatnonzero(is_kept)
    rank = np.zeros(len(first), np.uint32)
    rank[kept[np.argsort(first[kept])]] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return look_up(rank, ids)


def split_disconnected(labels: Integer[np.ndarray, "*space"], min_size: int = 1) -> Labels:
    """Give every connected piece of an instance an id of its own, and drop those too small.

    Two pixels are connected when they share a side (4 neighbours in an image, 6 in a volume).
    """
    return remove_small(_components(labels), min_size)


def look_up(table: UInt32[np.ndarray, " k"], ids: Integer[np.ndarray, "*space"]) -> Labels:
    """Replace every id by its entry in a table."""
    flat = np.ascontiguousarray(ids).reshape(-1)
    found = np.empty(flat.shape, np.uint32)
    # NumPy turns ids into 64-bit positions first: of all pixels, that is an image of its own
    for start in range(0, len(flat), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = table[flat[part]]
    return found.reshape(ids.shape)


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
    # with a frame of nobody, a neighbour is a fixed distance away in the flat array
    grown = np.pad(np.asarray(labels, dtype=np.uint32), 1)
    flat = grown.reshape(-1)
    undecided = np.flatnonzero(np.pad(foreground, 1).ravel() & (flat == 0))
    strides = [stride // grown.itemsize for stride in grown.strides]
    nobody = np.uint32(np.iinfo(np.uint32).max)
    for _ in range(reach):
        lowest = np.full(len(undecided), nobody)
        for stride in (*strides, *(-stride for stride in strides)):
            # less one, 0 turns into the highest number, and no id, the highest included, equals it
            np.minimum(lowest, flat[undecided + stride] - np.uint32(1), out=lowest)
        is_new = lowest != nobody
        if not is_new.any():
            break
        flat[undecided[is_new]] = lowest[is_new] + np.uint32(1)
        undecided = undecided[~is_new]
    return grown[(slice(1, -1),) * grown.ndim].copy()


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
    kind = np.uint8 if values.dtype == bool else f"u{max(values.dtype.itemsize, 4)}"
    pieces = cc3d.connected_components(
        np.require(values, kind, ["C", "W"]),  # it takes no read-only array
        connectivity=neighbors[values.ndim, corners],
        out_dtype=np.uint32,
    )
    return np.asarray(pieces, dtype=np.uint32)
