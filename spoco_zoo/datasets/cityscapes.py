"""Cityscapes: DIR/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png with DIR/gtFine/.../*_instanceIds.png.

A pixel of an instance holds class * 1000 + number. Below 1000 it holds a class alone: one that
is not counted, such as road, which is background here; or a group of a counted class that could
not be told apart, which is left unlabelled, since it is neither background nor an instance.
Instances of classes that are not asked for are background.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from spoco_zoo.datasets.layouts import expect_subsets, join, told_subsets
from spoco_zoo.datasets.pictures import load_numbers, load_rgb, picture_size
from spoco_zoo.datasets.source import Part, Source
from spoco_zoo.errors import ImageError
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import DataSettings

EVALUATED = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
_CLASSES = EVALUATED | {"caravan": 29, "trailer": 30}
_FACTOR = 1000
_IMAGE, _TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"


def find(root: Path, split: str, settings: DataSettings, n_axes: int | None) -> list[Source]:
    """List the images of a split, by city and name.

    Raises:
        ImageError: There are none, one has no ground truth, or a city is named that there
            is not.
    """
    folder = root / "leftImg8bit" / split
    cities = (path.name for path in (root / "leftImg8bit").glob("*/*") if path.is_dir())
    expect_subsets(root, settings.subsets, cities)
    found = sorted(path for path in folder.glob(f"*/*{_IMAGE}") if _is_wanted(path, settings))
    if not found:
        where = told_subsets(settings.subsets)
        raise ImageError(f"{folder}: no image found{where}: expected CITY/*{_IMAGE}")
    classes = tuple(_CLASSES[name] for name in settings.classes or EVALUATED)
    return [_open(root, split, path, classes, n_axes) for path in found]


def to_instances(
    ids: Integer[np.ndarray, "*space"], classes: Sequence[int]
) -> Integer[np.ndarray, "*space"]:
    """Keep the instances of some classes; their groups become -1, all else 0."""
    ids = ids.astype(np.int64)
    kind = np.where(ids < _FACTOR, ids, ids // _FACTOR)
    is_wanted = np.isin(kind, classes)
    return np.where(is_wanted, np.where(ids < _FACTOR, UNLABELED, ids), 0)


def _is_wanted(path: Path, settings: DataSettings) -> bool:
    subsets: Iterable[str] | None = settings.subsets
    return subsets is None or path.parent.name in subsets


def _open(
    root: Path, split: str, path: Path, classes: tuple[int, ...], n_axes: int | None
) -> Source:
    name = path.name.removesuffix(_IMAGE)
    truth = root / "gtFine" / split / path.parent.name / f"{name}{_TRUTH}"
    if not truth.is_file():
        raise ImageError(f"{path}: has no ground truth: expected {truth}")
    image = Part(str(path), (3, *picture_size(path)), np.dtype(np.uint8), partial(load_rgb, path))
    load = partial(_load, truth, classes)
    labels = Part(str(truth), picture_size(truth), np.dtype(np.int64), load)
    return join(name, image, labels, None, n_axes)


def _load(path: Path, classes: Sequence[int]) -> Integer[np.ndarray, "*space"]:
    return to_instances(load_numbers(path), classes)
