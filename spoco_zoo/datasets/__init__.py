"""One door to labelled images of every kind: what is in a folder, read box by box.

    DIR/{train,val}/{images,labels}       folders: TIFF, PNG, NPY, OME-Zarr of equal names
    DIR/{train,val}/*.h5                  hdf5: image and labels in one file
    DIR/{train,val}/A1/plant001_rgb.png   cvppp: leaves, also DIR/training
    DIR/*_images.h5, DIR/*_truth.h5       cvppp_hdf5: the same as HDF5
    DIR/leftImg8bit, DIR/gtFine           cityscapes: streets

The layout is told from what is there, or named in the spec. Not here: what labels mean to the
loss (`training.samples`), and what is told about them to people (`inspection`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from spoco_zoo.datasets import cityscapes, cvppp, folders, hdf5
from spoco_zoo.datasets.source import Box, Part, Source
from spoco_zoo.errors import ImageError
from spoco_zoo.spec import DataSettings, Layout

__all__ = ["Box", "Part", "Source", "expect_alike", "find_pairs", "recognize"]

_RATIO = 2.0  # crops are scaled by 0.7 to 1.4 in training, which spans a factor of 2


def find_pairs(
    root: Path, split: str, settings: DataSettings, n_axes: int | None = None
) -> list[Source]:
    """List the labelled images of a split; pixels are read later.

    Args:
        root: The data, such as DIR with DIR/train in it.
        split: train, val or test.
        settings: What the files mean, and the layout where it is not told from the folder.
        n_axes: Space axes of the network; as in the labels where None.

    Raises:
        ImageError: Files are missing, unreadable or do not fit together; the images of the
            split differ in channels, or in pixel size by more than a factor of 2.
        MissingExtraError: h5py or zarr is needed and not installed.
    """
    layout = settings.layout or recognize(root, split)
    match layout:
        case "folders":
            sources = folders.find(root / split, n_axes)
        case "hdf5":
            sources = hdf5.find(root / split, settings, n_axes)
        case "cvppp":
            sources = cvppp.find(root, split, settings, n_axes)
        case "cvppp_hdf5":
            sources = cvppp.find_in_hdf5(root, split, settings, n_axes)
        case "cityscapes":
            sources = cityscapes.find(root, split, settings, n_axes)
    expect_alike(sources)
    return sources


def recognize(root: Path, split: str) -> Layout:
    """Tell the layout of a split from what is there.

    Raises:
        ImageError: Nothing is there that could be read.
    """
    if not root.is_dir():
        return "folders"  # which says what is missing
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    for name in (split, "train", "val", "test"):
        if any((root / name / part).is_dir() for part in ("images", "labels")):
            return "folders"
        if hdf5.list_files(root / name):
            return "hdf5"
    if any(map(cvppp.is_split, (root / split, root / "training", root))):
        return "cvppp"
    if cvppp.is_hdf5(root):
        return "cvppp_hdf5"
    if any((root / part).is_dir() for part in ("images", "labels")):
        raise ImageError(
            f"{root}: holds images and labels of no split: expected train/images and train/labels; "
            "move most of them into train and the others, labelled as well as you can, into val"
        )
    raise ImageError(
        f"{root}: holds no images that are understood: expected {split}/images and "
        f"{split}/labels, HDF5 files in {split}, or the layout of {', '.join(_OTHERS)}"
    )


_OTHERS = [name for name in get_args(Layout) if name not in ("folders", "hdf5")]


def expect_alike(sources: Sequence[Source]) -> None:
    """Refuse images that one network cannot learn from together.

    Raises:
        ImageError: They differ in channels or axes, or in pixel size by more than a factor of 2.
    """
    first = sources[0]
    sized = next((source for source in sources if source.scale_um is not None), first)
    for source in sources:
        if source.channels != first.channels:
            raise ImageError(
                f"{source.image.where}: image has {source.channels} channels, "
                f"{first.name} has {first.channels}: all images must have as many"
            )
        if len(source.space) != len(first.space):
            raise ImageError(
                f"{source.image.where}: image has {len(source.space)} space axes, "
                f"{first.name} has {len(first.space)}: all images must have as many"
            )
        if source.scale_um is None or sized.scale_um is None:
            continue
        ratio = np.divide(source.scale_um, sized.scale_um)
        if max(*ratio, *(1 / ratio)) > _RATIO:
            raise ImageError(
                f"{source.image.where}: a pixel is {_um(source.scale_um)}, in {sized.name} "
                f"{_um(sized.scale_um)}: expected sizes within a factor of {_RATIO:g}; "
                "resample the images to one size"
            )


def _um(scale_um: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.4g}" for size in scale_um) + " µm"
