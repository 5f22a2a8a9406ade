"""Compare a predicted label image with the truth, in numbers.

Every metric is read off one sparse table: for each pair of labels that meet anywhere, how many
pixels they share. Thousands of objects then cost little more than reading the image.

    metric                        counts       best  source
    sbd                           objects      1     Scharr et al. 2016
    count_difference, |DiC|       objects      0     Scharr et al. 2016
    ap, ap50, mean_ap             objects      1     TP / (TP + FP + FN), Data Science Bowl 2018
    adapted_rand_error            pixel pairs  0     Arganda-Carreras et al. 2015, SNEMI3D
    voi_split, voi_merge          bits         0     Meilă 2003 and 2007

Ids are names only: renaming objects changes nothing. In both images 0 is background; where the
truth means *unlabeled* by 0, `drop_unlabeled` comes first. For files see `evaluation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt
from jaxtyping import Integer

from spoco_zoo.errors import ImageError

# Quotients, not a sum of steps: an IoU of exactly 11/20 must compare equal to 0.55.
THRESHOLDS: tuple[float, ...] = tuple(n / 100 for n in range(50, 100, 5))


@dataclass(frozen=True)
class Scores:
    """How well one predicted label image agrees with its truth.

    Attributes:
        n_predicted: Predicted objects.
        n_truth: True objects.
        count_difference: |DiC|, `|n_predicted - n_truth|` in objects.
        sbd: Symmetric best Dice, 0 to 1: every object takes the Dice of its best partner; the
            lower of the mean over true and the mean over predicted objects.
        tp: Objects matched one to one at each of `THRESHOLDS`.
        fp: Predicted objects without a match, at each threshold.
        fn: True objects without a match, at each threshold.
        ap: Average precision TP / (TP + FP + FN) at each threshold.
        adapted_rand_error: 1 minus the F-score of pixel pairs that belong together, 0 to 1.
            Pixels on true background do not count, and predicted background counts as one
            more segment there: one missed object is free, thin rims of many small ones are dear.
        voi_split: H(prediction | truth) in bits, over all pixels with background as a segment:
            grows when true objects are cut up (over-segmentation).
        voi_merge: H(truth | prediction) in bits, likewise: grows when true objects are joined
            (under-segmentation).
    """

    n_predicted: int
    n_truth: int
    count_difference: int
    sbd: float
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    fn: tuple[int, ...]
    ap: tuple[float, ...]
    adapted_rand_error: float
    voi_split: float
    voi_merge: float

    @property
    def ap50(self) -> float:
        """Average precision at IoU 0.50."""
        return self.ap[0]

    @property
    def mean_ap(self) -> float:
        """Mean of the average precision over `THRESHOLDS`."""
        return fmean(self.ap)


@dataclass(frozen=True)
class Summary:
    """The scores of several images together, named as in `Scores`.

    `n_` and `tp`, `fp`, `fn` are sums over the images, and `pooled_ap` is the average precision
    that these sums give: an image weighs by its objects. Everything else is a mean over images,
    in which every image weighs the same.
    """

    n_images: int
    n_predicted: int
    n_truth: int
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    fn: tuple[int, ...]
    count_difference: float
    sbd: float
    ap: tuple[float, ...]
    pooled_ap: tuple[float, ...]
    adapted_rand_error: float
    voi_split: float
    voi_merge: float

    @property
    def ap50(self) -> float:
        """Mean over images at IoU 0.50."""
        return self.ap[0]

    @property
    def mean_ap(self) -> float:
        """Mean over images and `THRESHOLDS`."""
        return fmean(self.ap)


def score(
    prediction: Integer[np.ndarray, "*space"], truth: Integer[np.ndarray, "*space"]
) -> Scores:
    """Score one predicted label image against the truth of the same image.

    Where neither image has an object, all is right: `sbd` and `ap` are 1, the rest is 0. Where
    only one has, `sbd` and `ap` are 0. A truth without objects leaves no pixel for the adapted
    Rand error, which then is 0 if nothing was predicted and 1 otherwise.

    Raises:
        ImageError: The shapes differ, there is no pixel, or labels are not integers from 0 up.
    """
    _check(prediction, truth)
    table = _tabulate(prediction, truth)
    n_predicted, n_truth = len(table.predicted_pixels) - 1, len(table.true_pixels) - 1
    sbd, tp = _match_objects(table)
    fp, fn = tuple(n_predicted - n for n in tp), tuple(n_truth - n for n in tp)
    voi_split, voi_merge = _variation_of_information(table)
    return Scores(
        n_predicted=n_predicted,
        n_truth=n_truth,
        count_difference=abs(n_predicted - n_truth),
        sbd=sbd,
        tp=tp,
        fp=fp,
        fn=fn,
        ap=_average_precision(tp, fp, fn),
        adapted_rand_error=_adapted_rand_error(table),
        voi_split=voi_split,
        voi_merge=voi_merge,
    )


def mean_scores(scores: Sequence[Scores]) -> Summary:
    """Sum up the scores of several images, per image and with their objects pooled.

    Raises:
        ImageError: There are no scores.
    """
    if not scores:
        raise ImageError("there are no scores to average: score at least one image")
    tp = tuple(map(sum, zip(*(s.tp for s in scores), strict=True)))
    fp = tuple(map(sum, zip(*(s.fp for s in scores), strict=True)))
    fn = tuple(map(sum, zip(*(s.fn for s in scores), strict=True)))
    return Summary(
        n_images=len(scores),
        n_predicted=sum(s.n_predicted for s in scores),
        n_truth=sum(s.n_truth for s in scores),
        tp=tp,
        fp=fp,
        fn=fn,
        count_difference=fmean(s.count_difference for s in scores),
        sbd=fmean(s.sbd for s in scores),
        ap=tuple(map(fmean, zip(*(s.ap for s in scores), strict=True))),
        pooled_ap=_average_precision(tp, fp, fn),
        adapted_rand_error=fmean(s.adapted_rand_error for s in scores),
        voi_split=fmean(s.voi_split for s in scores),
        voi_merge=fmean(s.voi_merge for s in scores),
    )


def drop_unlabeled(
    prediction: Integer[np.ndarray, "*space"], truth: Integer[np.ndarray, "*space"]
) -> Integer[np.ndarray, "*space"]:
    """Return the prediction without objects that nobody may have labelled.

    For a truth in which 0 means *unlabeled*: a predicted object with more than half of its pixels
    there may well be right, and would count as wrong. The others keep their ids.

    Raises:
        ImageError: The shapes differ, there is no pixel, or labels are not integers from 0 up.
    """
    _check(prediction, truth)
    table = _tabulate(prediction, truth)
    outside = (table.truth == 0) & (2 * table.shared > table.predicted_pixels[table.predicted])
    kept = prediction.copy()
    kept[np.isin(prediction, table.predicted_ids[table.predicted[outside]])] = 0
    return kept


@dataclass(frozen=True)
class _Table:
    """Pixels shared by each pair of labels that meet, and the size of each label.

    Labels are replaced by their rank; rank 0 is background on both sides, present or not.
    """

    predicted: npt.NDArray[np.integer]  # per pair: rank of the predicted label
    truth: npt.NDArray[np.integer]  # per pair: rank of the true label
    shared: npt.NDArray[np.int64]  # per pair: pixels
    predicted_pixels: npt.NDArray[np.int64]  # per predicted rank
    true_pixels: npt.NDArray[np.int64]  # per true rank
    predicted_ids: npt.NDArray[np.integer]  # per predicted rank: its id in the image


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ImageError(
            f"prediction has shape {prediction.shape}, truth has shape {truth.shape}: "
            "both must be the label images of one image"
        )
    if not truth.size:
        raise ImageError(f"the images have shape {truth.shape}: at least one pixel is needed")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ImageError(f"{name} has dtype {labels.dtype}: labels are integers from 0 up")
        if labels.min() < 0:
            raise ImageError(f"{name} holds label {labels.min()}: labels are integers from 0 up")


def _tabulate(prediction: np.ndarray, truth: np.ndarray) -> _Table:
    predicted, true = prediction.ravel(), truth.ravel()
    # Labels come in runs along a line: sorting runs in place of pixels is several times faster.
    changes = (predicted[1:] != predicted[:-1]) | (true[1:] != true[:-1])
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    lengths = np.diff(starts, append=predicted.size)
    predicted_ids, predicted_ranks = _rank(predicted[starts])
    true_ids, true_ranks = _rank(true[starts])
    pairs, of_run = np.unique(predicted_ranks * len(true_ids) + true_ranks, return_inverse=True)
    return _Table(
        predicted=pairs // len(true_ids),
        truth=pairs % len(true_ids),
        shared=_sum_by(of_run, lengths, len(pairs)),
        predicted_pixels=_sum_by(predicted_ranks, lengths, len(predicted_ids)),
        true_pixels=_sum_by(true_ranks, lengths, len(true_ids)),
        predicted_ids=predicted_ids,
    )


def _rank(labels: np.ndarray) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.intp]]:
    """Return the sorted ids, background first even if absent, and each label's place in them."""
    background = np.zeros(1, labels.dtype)
    ids, ranks = np.unique(np.concatenate([background, labels]), return_inverse=True)
    return ids, ranks[1:]


def _sum_by(groups: np.ndarray, pixels: np.ndarray, n: int) -> npt.NDArray[np.int64]:
    # bincount adds in float64, which is exact up to 2^53 pixels.
    return np.bincount(groups, weights=pixels, minlength=n).astype(np.int64)


def _match_objects(table: _Table) -> tuple[float, tuple[int, ...]]:
    """Return the symmetric best Dice, and the number of matches at each threshold."""
    n_predicted, n_truth = len(table.predicted_pixels) - 1, len(table.true_pixels) - 1
    both = (table.predicted > 0) & (table.truth > 0)
    predicted, true, shared = table.predicted[both], table.truth[both], table.shared[both]
    sizes = table.predicted_pixels[predicted] + table.true_pixels[true]
    best_of_predicted, best_of_true = np.zeros(n_predicted), np.zeros(n_truth)
    np.maximum.at(best_of_predicted, predicted - 1, 2 * shared / sizes)
    np.maximum.at(best_of_true, true - 1, 2 * shared / sizes)
    if n_predicted and n_truth:
        sbd = float(min(best_of_predicted.mean(), best_of_true.mean()))
    else:
        sbd = float(n_predicted == n_truth)
    # Above 0.5 a pair is alone. At exactly 0.5 an object may reach it twice, when its partners
    # are its two halves; a half lies inside it and meets nobody else. So the pairs form single
    # edges and stars of two, each good for one match; a forest has vertices minus edges of them.
    reached = [shared / (sizes - shared) >= threshold for threshold in THRESHOLDS]
    tp = (len(np.unique(predicted[r])) + len(np.unique(true[r])) - int(r.sum()) for r in reached)
    return sbd, tuple(tp)


def _average_precision(*counts: tuple[int, ...]) -> tuple[float, ...]:
    """Return TP / (TP + FP + FN) at each threshold, and 1 where no object is."""
    at_thresholds = zip(*counts, strict=True)
    return tuple(tp / (tp + fp + fn) if tp + fp + fn else 1.0 for tp, fp, fn in at_thresholds)


def _adapted_rand_error(table: _Table) -> float:
    inside = table.truth > 0
    if not inside.any():
        return float(len(table.predicted_pixels) > 1)
    predicted_inside = _sum_by(table.predicted[inside], table.shared[inside], 0)
    together_in_both = _count_pairs(table.shared[inside])
    together_in_one = _count_pairs(predicted_inside) + _count_pairs(table.true_pixels[1:])
    # Objects of one pixel each, on both sides: no pair to get wrong.
    return 1 - 2 * together_in_both / together_in_one if together_in_one else 0.0


def _count_pairs(pixels: npt.NDArray[np.int64]) -> float:
    sizes = pixels.astype(np.float64)  # squares of a volume's sizes add up beyond int64
    return float((sizes * (sizes - 1)).sum())


def _variation_of_information(table: _Table) -> tuple[float, float]:
    """Return H(prediction | truth) and H(truth | prediction) in bits."""
    weights = table.shared / table.shared.sum()
    split = weights @ np.log2(table.true_pixels[table.truth] / table.shared)
    merge = weights @ np.log2(table.predicted_pixels[table.predicted] / table.shared)
    return float(split), float(merge)
