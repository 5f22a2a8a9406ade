"""Score predicted label files against true ones: files in, numbers out.

Files are paired by name and read one pair at a time, so a folder costs the memory of one pair.
What the numbers mean stands in `metrics`; the table itself is drawn by the CLI.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from spoco_zoo.annotations import read_painted
from spoco_zoo.errors import ImageError
from spoco_zoo.images import pair_files, read_labels
from spoco_zoo.labels import UNLABELED
from spoco_zoo.metrics import THRESHOLDS, Scores, Summary, mean_scores, score


@dataclass(frozen=True)
class Evaluation:
    """The scores of every pair of files, by the name of the predicted file, and of all of them."""

    names: tuple[str, ...]
    scores: tuple[Scores, ...]
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, lists and strings.

        `thresholds` are the IoU at which each list of `tp`, `fp`, `fn` and precisions is taken;
        `images` holds the scores of each pair, `summary` those of all.
        """
        summary = _to_plain(self.summary) | {
            "pooled_ap50": self.summary.pooled_ap[0],
            "pooled_mean_ap": fmean(self.summary.pooled_ap),
        }
        images = zip(self.names, self.scores, strict=True)
        return {
            "thresholds": list(THRESHOLDS),
            "images": [{"name": name} | _to_plain(scores) for name, scores in images],
            "summary": summary,
        }


def evaluate(
    predictions: Path, truth: Path, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Score a predicted label file against the truth, or a folder of them against a folder.

    Args:
        predictions: A label file, or a folder of them.
        truth: A label file, or a folder with one of the same name for each prediction; outlines
            of Fiji or QuPath count as label files. What they say to ignore is not scored.
        progress: Called with pairs done and pairs in all, after each pair.

    Raises:
        ImageError: A file is missing, has no partner, holds no labels, or differs in shape from
            its partner.
    """
    pairs = pair_files(predictions, truth)
    scores = []
    for done, (prediction_file, truth_file) in enumerate(pairs, start=1):
        scores.append(_score_files(prediction_file, truth_file))
        if progress is not None:
            progress(done, len(pairs))
    names = tuple(prediction_file.name for prediction_file, _ in pairs)
    return Evaluation(names, tuple(scores), mean_scores(scores))


def rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return name and formatted value of each metric of the summary, in reading order."""
    summary = evaluation.summary
    return [
        ("images", str(summary.n_images)),
        ("objects in the truth", str(summary.n_truth)),
        ("objects predicted", str(summary.n_predicted)),
        ("|DiC|, mean of images", f"{summary.count_difference:.2f}"),
        ("SBD, mean of images", f"{summary.sbd:.4f}"),
        ("AP50, mean of images", f"{summary.ap50:.4f}"),
        ("AP50, all objects", f"{summary.pooled_ap[0]:.4f}"),
        ("AP50:95, mean of images", f"{summary.mean_ap:.4f}"),
        ("AP50:95, all objects", f"{fmean(summary.pooled_ap):.4f}"),
        ("adapted Rand error, mean of images", f"{summary.adapted_rand_error:.4f}"),
        ("VOI split, mean of images, bits", f"{summary.voi_split:.4f}"),
        ("VOI merge, mean of images, bits", f"{summary.voi_merge:.4f}"),
    ]


def _score_files(prediction_file: Path, truth_file: Path) -> Scores:
    prediction = read_labels(prediction_file)
    truth = read_painted(truth_file, prediction.shape)
    # `score` checks this too, but cannot name the files.
    if prediction.shape != truth.shape:
        raise ImageError(
            f"{prediction_file} has shape {prediction.shape}, {truth_file} has shape "
            f"{truth.shape}: both must be the label images of one image"
        )
    prediction[truth == UNLABELED] = 0
    return score(prediction, np.maximum(truth, 0))


def _to_plain(scores: Scores | Summary) -> dict[str, Any]:
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(scores).items()
    }
    return fields | {"ap50": scores.ap50, "mean_ap": scores.mean_ap}
