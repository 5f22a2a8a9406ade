"""DIR/{train,val}/{images,labels}: one file of labels for each image, of equal names.

Either may be TIFF, PNG, NPY or OME-Zarr; an OME-Zarr image may bring its labels itself, and
labels may be outlines of Fiji or QuPath.
"""

from functools import partial
from pathlib import Path

import numpy as np

from spoco_zoo.annotations import read_annotations
from spoco_zoo.datasets import ome_zarr
from spoco_zoo.datasets.layouts import join
from spoco_zoo.datasets.parts import Scale, image_part, label_part
from spoco_zoo.datasets.source import Part, Source
from spoco_zoo.errors import ImageError
from spoco_zoo.images import (
    OUTLINE_SUFFIXES,
    SUFFIXES,
    find_images,
    is_image,
    pair_by_stem,
    stem_of,
)

_LABEL_SUFFIXES = (*SUFFIXES, *OUTLINE_SUFFIXES)


def find(folder: Path, n_axes: int | None) -> list[Source]:
    """Pair `folder/images` with `folder/labels`.

    Raises:
        ImageError: Files are missing, unreadable, without partner or of different shape.
        MissingExtraError: There are OME-Zarr images, and zarr is not installed.
    """
    images, labels = folder / "images", folder / "labels"
    _expect_folder(images)
    found = _list(images)
    if not labels.is_dir() and all(map(_is_zarr, found)):
        pairs = [(path, ome_zarr.find_labels(path)) for path in found]
    else:
        _expect_folder(labels)
        pairs = pair_by_stem(images, labels, found, _list(labels, _LABEL_SUFFIXES))
    return [_open(image, label, n_axes) for image, label in pairs]


def list_unread(folder: Path) -> list[str]:
    """Name what is passed over in `folder/images` and `folder/labels`, but for hidden files.

    Args:
        folder: A split.
    """
    names = []
    for place, suffixes in (("images", SUFFIXES), ("labels", _LABEL_SUFFIXES)):
        if (folder / place).is_dir():
            names += [
                f"{place}/{path.name}"
                for path in sorted((folder / place).iterdir())
                if not (is_image(path, suffixes) or _is_zarr(path) or path.name.startswith("."))
            ]
    return names


def _open(image_path: Path, label_path: Path, n_axes: int | None) -> Source:
    is_painted = label_path.suffix.lower() in OUTLINE_SUFFIXES
    labels, other_scale = (None, None) if is_painted else _look(label_path)
    n_expected = n_axes or (None if labels is None else len(labels.shape))
    if _is_zarr(image_path):
        image, scale_um = ome_zarr.image_part(image_path, n_expected)
    else:
        image, scale_um = image_part(image_path, n_expected)
    if labels is None:
        # an outline belongs to one slice: what is painted has the shape of the image
        load = partial(read_annotations, label_path, image.shape[1:])
        kind = np.dtype(np.int32)
        labels = Part(str(label_path), image.shape[1:], kind, load, is_painted=True)
    return join(stem_of(image_path), image, labels, scale_um or other_scale, n_axes)


def _look(label_path: Path) -> tuple[Part, Scale]:
    if label_path.is_dir():
        return ome_zarr.label_part(label_path)
    return label_part(label_path)


def _expect_folder(folder: Path) -> None:
    if not folder.is_dir():
        split = folder.parent.name
        raise ImageError(
            f"{folder}: no such folder: expected {split}/images and {split}/labels "
            "with files of equal names"
        )


def _list(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if is_image(path, suffixes) or _is_zarr(path))
    return found or find_images([folder])  # which says what is expected


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and path.is_dir() and not path.name.startswith(".")
