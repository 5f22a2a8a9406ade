"""What is true of label images: consecutive ids, connected instances, no specks.

A label image holds one integer a pixel, 0 where there is no instance. Every function returns a
new array and leaves its argument alone. Stitching of neighbouring blocks is not here.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer, UInt32

Labels = UInt32[np.ndarray, "*space"]


def relabel(labels: Integer[np.ndarray, "*space"]) -> Labels:
    """Renumber the instances 1..n in the order in which they are met, 0 stays 0.

    The order is that of the first pixel of each instance, so two label images with the same
    partition become equal.
    """
    ids, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(ids), np.uint32)
    first = np.where(ids == 0, -1, first)
    rank[np.argsort(first)] = np.arange(len(ids), dtype=np.uint32)
    if not (ids == 0).any():
        rank += 1
    return rank[inverse].reshape(labels.shape)


def remove_small(labels: Integer[np.ndarray, "*space"], min_size: int) -> Labels:
    """Set instances of fewer than `min_size` pixels to 0 and close the gaps in the ids."""
    ids, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.where(sizes >= min_size, ids, 0)
    return relabel(kept[inverse].reshape(labels.shape))


def split_disconnected(labels: Integer[np.ndarray, "*space"]) -> Labels:
    """Give every connected piece of an instance an id of its own.

    Two pixels are connected when they share a side (4 neighbours in an image, 6 in a volume).
    """
    return relabel(_components(labels))


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
    from scipy import ndimage

    grown = np.asarray(labels, dtype=np.uint32).copy()
    cross = ndimage.generate_binary_structure(labels.ndim, 1)
    nobody = np.iinfo(np.uint32).max
    for _ in range(reach):
        open_pixels = foreground & (grown == 0)
        if not open_pixels.any():
            break
        # less one, 0 turns into the highest number, and no id, the highest included, equals it
        lowest = ndimage.minimum_filter(
            grown - np.uint32(1), footprint=cross, mode="constant", cval=nobody
        )
        new = open_pixels & (lowest != nobody)
        if not new.any():
            break
        grown[new] = lowest[new] + np.uint32(1)
    return grown


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
