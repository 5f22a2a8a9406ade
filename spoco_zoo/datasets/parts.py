"""TIFF, PNG and NPY files as parts: what they say before their pixels are read.

Uncompressed TIFF and NPY are mapped into memory where boxes are asked for; all others are read
whole. Whatever cannot be told from the head of a file is found out by reading it, which also
says what is wrong with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from spoco_zoo.axes import kept_axes, order_axes
from spoco_zoo.datasets.source import Part
from spoco_zoo.images import check_tiff, known_scale, read_image, read_label_states, tiff_scale

Scale = tuple[float, ...] | None


@dataclass(frozen=True)
class _Head:
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str | None
    scale_um: Scale
    is_plain: bool  # neither compressed nor scattered


def image_part(path: Path, n_axes: int | None) -> tuple[Part, Scale]:
    """Look at an image file; `n_axes` as in `read_image`.

    Raises:
        ImageError: It is missing, unreadable, or no image.
    """
    load = partial(_load_image, path, n_axes)
    head = _look(path, as_labels=False)
    if head is None or 0 in head.shape:
        image = read_image(path, n_axes)
        return Part(str(path), image.pixels.shape, image.pixels.dtype, load), image.scale_um
    order = order_axes(path, head.shape, head.axes, n_axes)
    shape = _sizes(head.shape, order)
    opener = partial(_open_plain, path) if head.is_plain else None
    part = Part(str(path), shape, head.dtype, load, opener, order)
    return part, known_scale(head.scale_um, len(shape) - 1)


def label_part(path: Path) -> tuple[Part, Scale]:
    """Look at a label file.

    Raises:
        ImageError: It is missing, unreadable, or holds no labels.
    """
    load = partial(read_label_states, path)
    head = _look(path, as_labels=True)
    order, names = kept_axes(head.shape, head.axes) if head else ([], None)
    if head is None or len(order) not in (2, 3) or (names is not None and "S" in names):
        labels = load()
        return Part(str(path), labels.shape, labels.dtype, load), None
    shape = _sizes(head.shape, order)
    opener = partial(_open_plain, path) if head.is_plain else None
    part = Part(str(path), shape, head.dtype, load, opener, tuple(order))
    return part, known_scale(head.scale_um, len(shape))


def _sizes(shape: Sequence[int], order: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(1 if axis is None else shape[axis] for axis in order)


def _load_image(path: Path, n_axes: int | None) -> np.ndarray:
    return read_image(path, n_axes).pixels


def _open_plain(path: Path) -> np.ndarray:
    import tifffile

    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return np.asarray(tifffile.memmap(path, mode="r"))


def _look(path: Path, *, as_labels: bool) -> _Head | None:
    """Read the head of a file; None where that is not enough or not possible."""
    try:
        match path.suffix.lower():
            case ".tif" | ".tiff":
                return _look_at_tiff(path, as_labels=as_labels)
            case ".png":
                return _look_at_png(path, as_labels=as_labels)
            case ".npy":
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                return _Head(array.shape, array.dtype, None, None, is_plain=array.ndim > 0)
    except Exception:  # noqa: BLE001 - a decoder may raise anything; reading it tells what
        return None
    return None


def _look_at_tiff(path: Path, *, as_labels: bool) -> _Head:
    import tifffile

    with tifffile.TiffFile(path) as file:
        check_tiff(path, file, as_labels=as_labels)
        series = file.series[0]
        is_plain = series.dataoffset is not None
        return _Head(tuple(series.shape), series.dtype, series.axes, tiff_scale(file), is_plain)


def _look_at_png(path: Path, *, as_labels: bool) -> _Head | None:
    from PIL import Image

    with Image.open(path) as picture:
        width, height = picture.size
        colors = {"RGB": 3, "RGBA": 4}.get(picture.mode, 0)
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(picture.mode, np.uint8)
        if picture.mode in ("P", "PA") and not as_labels:
            return None
    shape = (height, width, *((colors,) if colors else ()))
    return _Head(shape, np.dtype(kind), "YXS"[: len(shape)], None, is_plain=False)
