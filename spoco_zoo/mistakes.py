"""What became of each true instance, and of each that was found: not how many, but which.

    right      a true and a found instance share at least half of their union, one to one
    split      a true instance lies in pieces: over half of several found ones is inside it
    merged     a found instance holds several true ones: over half of each
    inexact    a true and a found instance mean each other, but share less: the outline is off
    missed     a true instance that is none of these
    false      a found instance that is none of these

An instance gets the first kind that fits, in this order, but that a true instance is called
merged before split. What is *right* is what `metrics.score` counts as `tp` at IoU 0.50.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Integer

from spoco_zoo.errors import ImageError

Kind = Literal["right", "inexact", "split", "merged", "missed", "false"]

KINDS: tuple[Kind, ...] = ("right", "inexact", "split", "merged", "missed", "false")

_RIGHT, _INEXACT = 0.5, 0.1  # least IoU


@dataclass(frozen=True)
class Verdicts:
    """The kind of every instance by its id: of the truth, and of what was found."""

    truth: dict[int, Kind]
    found: dict[int, Kind]

    def count(self) -> dict[Kind, int]:
        """Count the true instances of every kind, and the found ones that are false."""
        counts = Counter(self.truth.values())
        counts["false"] = sum(kind == "false" for kind in self.found.values())
        return {kind: counts[kind] for kind in KINDS}


@dataclass(frozen=True)
class _Pair:
    """A true and a found instance that meet."""

    true: int
    found: int
    iou: float
    holds_true: bool  # over half of the true instance is inside the found one
    holds_found: bool  # over half of the found instance is inside the true one


def judge(found: Integer[np.ndarray, "..."], truth: Integer[np.ndarray, "..."]) -> Verdicts:
    """Say of every instance of two label images of one image what became of it.

    Raises:
        ImageError: The shapes differ.
    """
    if found.shape != truth.shape:
        raise ImageError(
            f"the instances found have shape {found.shape}, the truth has shape {truth.shape}: "
            "both must be the label images of one image"
        )
    pairs = _meet(found, truth)
    of_truth: dict[int, Kind] = {}
    of_found: dict[int, Kind] = {}
    for pair in _one_to_one(pairs, _RIGHT):
        of_truth[pair.true] = of_found[pair.found] = "right"
    pieces = Counter(pair.true for pair in pairs if pair.holds_found)
    parts = Counter(pair.found for pair in pairs if pair.holds_true)
    for pair in pairs:
        if pair.holds_true and parts[pair.found] > 1:
            of_truth.setdefault(pair.true, "merged")
            of_found.setdefault(pair.found, "merged")
    for true, count in pieces.items():
        if count > 1:
            of_truth.setdefault(true, "split")
    for pair in pairs:
        if pair.holds_found and pair.true in of_truth:
            of_found.setdefault(pair.found, "split")
    left = [pair for pair in pairs if pair.true not in of_truth and pair.found not in of_found]
    for pair in _one_to_one(left, _INEXACT):
        of_truth[pair.true] = of_found[pair.found] = "inexact"
    return Verdicts(
        {true: of_truth.get(true, "missed") for true in _count_pixels(truth)},
        {one: of_found.get(one, "false") for one in _count_pixels(found)},
    )


def _meet(found: np.ndarray, truth: np.ndarray) -> list[_Pair]:
    """List the pairs that share a pixel, the most alike first."""
    true_pixels, found_pixels = _count_pixels(truth), _count_pixels(found)
    both = (truth > 0) & (found > 0)
    factor = max(found_pixels, default=0) + 1
    keys = truth[both].astype(np.int64) * factor + found[both]
    pairs = []
    for key, shared in zip(*np.unique(keys, return_counts=True), strict=True):
        true, one = divmod(int(key), factor)
        of_true, of_found = true_pixels[true], found_pixels[one]
        iou = float(shared / (of_true + of_found - shared))
        pairs.append(_Pair(true, one, iou, bool(2 * shared > of_true), bool(2 * shared > of_found)))
    return sorted(pairs, key=lambda pair: (-pair.iou, pair.true, pair.found))


def _count_pixels(labels: np.ndarray) -> dict[int, int]:
    ids, pixels = np.unique(labels[labels > 0], return_counts=True)
    return dict(zip(ids.tolist(), pixels.tolist(), strict=True))


def _one_to_one(pairs: list[_Pair], least_iou: float) -> list[_Pair]:
    """Take pairs, the most alike first, each instance once."""
    true, found, taken = set(), set(), []
    for pair in pairs:
        if pair.iou >= least_iou and pair.true not in true and pair.found not in found:
            true.add(pair.true)
            found.add(pair.found)
            taken.append(pair)
    return taken
