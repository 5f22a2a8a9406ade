"""What no learning at all gives: a threshold, and the pieces that it leaves.

    python benchmarks/floor.py DATA

A little blur, Otsu's threshold of each image, objects bright or dark, holes filled, touching ones
parted by a watershed on the distance to the outline, small ones dropped; which of these is best is
found on DATA/val, and the scores are those of DATA/test. All by scikit-image.
"""

import argparse
import itertools
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from spoco_zoo.images import pair_files, read_image, read_labels
from spoco_zoo.metrics import mean_scores, score

SIGNS = {"bright": 1, "dark": -1}
BLURS = (0.0, 1.0, 2.0)
LEAST = (10, 50, 200)
APART = (0, 4, 8)  # pixels between two seeds, 0 for no watershed


def read_split(folder):
    """Grey images and labels of a split."""
    for image, labels in pair_files(folder / "images", folder / "labels"):
        truth = read_labels(labels)
        yield read_image(image, truth.ndim).pixels.mean(axis=0), truth


def find(image, sign, blur, least, apart):
    """Instances of one image."""
    grey = ndimage.gaussian_filter(SIGNS[sign] * image.astype(np.float32), blur)
    inside = ndimage.binary_fill_holes(grey > threshold_otsu(grey))
    labels, _ = ndimage.label(inside)
    if apart:
        depth = ndimage.distance_transform_edt(inside)
        peaks = peak_local_max(depth, min_distance=apart, labels=labels)
        seeds = np.zeros(image.shape, np.int32)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        labels = watershed(-depth, seeds, mask=inside)
    return remove_small_objects(labels, max_size=least - 1).astype(np.uint32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with val/ and test/")
    options = parser.parse_args()
    val = list(read_split(options.data / "val"))
    best = max(
        itertools.product(SIGNS, BLURS, LEAST, APART),
        key=lambda way: mean_scores([score(find(i, *way), t) for i, t in val]).pooled_ap[0],
    )
    found = [score(find(i, *best), t) for i, t in read_split(options.data / "test")]
    summary = mean_scores(found)
    print("best on val: {} objects, blur {}, at least {} pixels, seeds {} apart".format(*best))
    print(
        f"test: AP50 {summary.pooled_ap[0]:.3f}, AP50:95 {fmean(summary.pooled_ap):.3f} (pooled), "
        f"SBD {summary.sbd:.3f}"
    )


if __name__ == "__main__":
    main()
