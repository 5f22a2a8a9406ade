"""Leaves of the CVPPP 2017 challenge: plantNNN_rgb.png beside plantNNN_label.png, or as HDF5.

    DIR/{train,val,test}/A1/plant001_rgb.png    split by hand, or
    DIR/training/A1/plant001_rgb.png            as it is handed out, or
    DIR/*_images.h5 and DIR/*_truth.h5          the same: /A1/plant001/{rgb, label, fg}

What is handed out as training is split here: every fifth plant of a folder, in the order of its
numbers, is for validation. A label is a palette picture whose index is the leaf; grey and colour
pictures are read too. A plant with `fg` and without `label` has known background, and leaves
that nobody labelled.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Integer

from spoco_zoo.datasets.hdf5 import import_h5py, open_file, open_set
from spoco_zoo.datasets.layouts import expect_subsets, join, told_subsets
from spoco_zoo.datasets.pictures import load_numbers, load_rgb, picture_size
from spoco_zoo.datasets.source import Part, Source
from spoco_zoo.errors import ImageError
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import DataSettings

_RGB = re.compile(r"plant(\d+)_rgb\.png", re.IGNORECASE)
_EVERY = 5

_Plant = TypeVar("_Plant")


def is_split(folder: Path) -> bool:
    """Whether a folder, or one in it, holds plants."""
    return folder.is_dir() and any(_list_plants(folder, None))


def is_hdf5(root: Path) -> bool:
    """Whether a folder holds the challenge as HDF5."""
    return any(root.glob("*_images.h5")) and any(root.glob("*_truth.h5"))


def find(root: Path, split: str, settings: DataSettings, n_axes: int | None) -> list[Source]:
    """List the plants of a split.

    Raises:
        ImageError: There are none, one has neither labels nor foreground, labels have no image,
            or a folder is named that there is not.
    """
    named = [name for name in settings.subsets or () if name != root.name]
    expect_subsets(root, named, _list_folders(root))
    folder, is_ours = root / split, False
    if not folder.is_dir() and split == "test":
        folder = root / "testing"
    elif not folder.is_dir():
        folder, is_ours = (root / "training" if (root / "training").is_dir() else root), True
    found = _list_plants(folder, settings.subsets)
    if not found:
        raise ImageError(
            f"{folder}: no plant found{told_subsets(settings.subsets)}: expected "
            "A1/plant001_rgb.png and A1/plant001_label.png"
        )
    _refuse_lonely(found)
    keys = sorted(found, key=_order)
    chosen = _part_of(split, keys, folder) if is_ours else keys
    return [_open(name, found[name], n_axes) for name in chosen]


def find_in_hdf5(
    root: Path, split: str, settings: DataSettings, n_axes: int | None
) -> list[Source]:
    """List the plants of a split of the HDF5 files.

    Raises:
        ImageError: There are none, one has neither labels nor foreground, labels have no image,
            or a folder is named that there is not.
        MissingExtraError: h5py is not installed.
    """
    import_h5py()

    word = "testing" if split == "test" else "training"
    images = sorted(root.glob(f"*{word}_images.h5"))
    if not images:
        raise ImageError(f"{root}: no file ends in {word}_images.h5: expected CVPPP 2017 as HDF5")
    expect_subsets(root, settings.subsets, _list_groups(root))
    truth = sorted(root.glob(f"*{word}_truth.h5"))
    held: dict[str, tuple[Path, str]] = {}
    plants: list[str] = []
    for path in (*images, *truth):
        with open_file(path) as file:
            for group in file:
                for plant in file[group]:
                    name = f"{group}/{plant}"
                    wanted = settings.subsets is None or group in settings.subsets
                    for kind in ("rgb", "label", "fg"):
                        if wanted and f"{name}/{kind}" in file:
                            held[f"{name}/{kind}"] = (path, f"/{name}/{kind}")
                            plants += [name] if kind == "rgb" else []
    for place in held:
        if place.endswith("/label") and f"{place.removesuffix('label')}rgb" not in held:
            path, key = held[place]
            raise _no_image(f"{path}:{key}", f"{key.removesuffix('label')}rgb")
    if not plants:
        where = told_subsets(settings.subsets)
        raise ImageError(
            f"{images[0]}: no plant found{where}: expected data sets like /A1/plant001/rgb"
        )
    keys = sorted(plants, key=_order)
    chosen = keys if split == "test" else _part_of(split, keys, root)
    return [_open_sets(name, held, n_axes) for name in chosen]


def _list_plants(folder: Path, subsets: Iterable[str] | None) -> dict[str, Path]:
    """Find pictures of plants in a folder and those in it; names are like A1/plant001."""
    if not folder.is_dir():
        return {}
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    if subsets is not None:
        folders = [path for path in folders if path.name in subsets]
    found = {}
    for place in folders:
        prefix = "" if place == folder else f"{place.name}/"
        for path in place.iterdir():
            if _RGB.fullmatch(path.name):
                found[prefix + path.name[: -len("_rgb.png")]] = path
    return found


def _list_folders(root: Path) -> list[str]:
    """Name all folders that may hold plants, of any split."""
    splits = [root / name for name in ("train", "val", "test", "training", "testing")]
    inner = [path for place in (root, *splits) if place.is_dir() for path in place.iterdir()]
    return [path.name for path in inner if path.is_dir() and path not in splits]


def _list_groups(root: Path) -> list[str]:
    """Name all groups of the HDF5 files that may hold plants, of any split."""
    groups: list[str] = []
    for path in sorted(root.glob("*_images.h5")):
        with open_file(path) as file:
            groups += list(file)
    return groups


def _refuse_lonely(found: dict[str, Path]) -> None:
    """Refuse labels without a picture, which may have been lost."""
    stems = {(path.parent, path.name[: -len("_rgb.png")]) for path in found.values()}
    for folder in sorted({folder for folder, _ in stems}):
        for path in sorted(folder.glob("plant*_label.png")):
            stem = path.name.removesuffix("_label.png")
            if (folder, stem) not in stems:
                raise _no_image(str(path), f"{stem}_rgb.png")


def _order(name: str) -> tuple[str, int]:
    """Sort by folder, then by number, of any count of digits."""
    folder, _, plant = name.rpartition("/")
    digits = re.search(r"\d+", plant)
    return folder, int(digits.group()) if digits else 0


def _part_of(split: str, names: Sequence[str], place: Path) -> list[str]:
    """Split what is handed out as training: every fifth plant of a folder is for validation."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    is_val = split == "val"
    chosen = [
        name
        for plants in folders.values()
        for number, name in enumerate(plants, start=1)
        if (number % _EVERY == 0) == is_val
    ]
    if not chosen:
        raise ImageError(
            f"{place}: of {len(names)} plants none is for {split}: expected 5 or more in a "
            "folder, of which every fifth is for validation; or split them into train and val"
        )
    return chosen


def _open(name: str, path: Path, n_axes: int | None) -> Source:
    stem = str(path)[: -len("_rgb.png")]
    label, foreground = Path(f"{stem}_label.png"), Path(f"{stem}_fg.png")
    image = Part(str(path), (3, *picture_size(path)), np.dtype(np.uint8), partial(load_rgb, path))
    for other, load in ((label, load_numbers), (foreground, _load_foreground)):
        if other.is_file():
            kind = np.dtype(np.uint32)
            labels = Part(str(other), picture_size(other), kind, partial(load, other))
            return join(name, image, labels, None, n_axes)
    raise _no_labels(path, label.name, foreground.name)


def _open_sets(name: str, held: dict[str, tuple[Path, str]], n_axes: int | None) -> Source:
    path, key = held[f"{name}/rgb"]
    rgb = open_set(path, key)
    height, width = rgb.shape[:2]
    image = Part(
        f"{path}:{key}",
        (3, height, width),
        rgb.dtype,
        open=partial(open_set, path, key),
        order=(2, 0, 1),
    )
    rgb.file.close()
    for kind, load in (("label", _load_set), ("fg", _load_foreground_set)):
        if f"{name}/{kind}" in held:
            path, key = held[f"{name}/{kind}"]
            stored = open_set(path, key)
            shape, numbers = stored.shape, stored.dtype
            stored.file.close()
            labels = Part(f"{path}:{key}", shape[:2], numbers, partial(load, path, key))
            return join(name, image, labels, None, n_axes)
    raise _no_labels(f"{path}:{key}", "label", "fg")


def _no_labels(path: Path | str, label: str, foreground: str) -> ImageError:
    return ImageError(f"{path}: has neither {label} nor {foreground} beside it: add one of them")


def _no_image(where: str, name: str) -> ImageError:
    return ImageError(
        f"{where}: has no image: expected {name}; copy it again, or delete the labels"
    )


def _load_foreground(path: Path) -> Integer[np.ndarray, "y x"]:
    """Turn foreground into leaves that nobody labelled, and the rest into background."""
    return np.where(load_numbers(path) > 0, UNLABELED, 0)


def _load_set(path: Path, key: str) -> Integer[np.ndarray, "y x"]:
    stored = open_set(path, key)
    values = np.asarray(stored[()])
    stored.file.close()
    return values


def _load_foreground_set(path: Path, key: str) -> Integer[np.ndarray, "y x"]:
    return np.where(_load_set(path, key) > 0, UNLABELED, 0)
