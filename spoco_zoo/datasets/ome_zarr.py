"""OME-Zarr images as parts: the finest level, formats 0.4 and 0.5.

Chunks are read as they are needed. What the metadata mean is told by `ngff`.
"""

from functools import partial
from pathlib import Path

import numpy as np

from spoco_zoo.axes import kept_axes, order_axes
from spoco_zoo.datasets.parts import Scale
from spoco_zoo.datasets.source import Part
from spoco_zoo.errors import ImageError
from spoco_zoo.images import known_scale
from spoco_zoo.ngff import Multiscales, open_array, read_attributes, read_multiscales


def image_part(path: Path, n_axes: int | None) -> tuple[Part, Scale]:
    """Look at the finest level of an image.

    Raises:
        ImageError: It is no OME-Zarr image, or has axes of another kind.
        MissingExtraError: zarr is not installed.
    """
    image = read_multiscales(str(path))
    shape = _finest(path, image)
    order = order_axes(path, shape, image.axes, n_axes)
    return _make_part(path, image, order, order[1:])


def label_part(path: Path) -> tuple[Part, Scale]:
    """Look at the finest level of a label image.

    Raises:
        ImageError: It is no OME-Zarr image, or has other axes than space.
        MissingExtraError: zarr is not installed.
    """
    image = read_multiscales(str(path))
    shape = _finest(path, image)
    order, names = kept_axes(shape, image.axes)
    if names not in ("YX", "ZYX"):
        raise ImageError(
            f"{path}: label axes are {image.axes} of shape {shape}: expected (y, x) or (z, y, x) "
            "with one integer a pixel"
        )
    return _make_part(path, image, tuple(order), tuple(order))


def find_labels(path: Path) -> Path:
    """Find the label image that an image brings itself.

    Raises:
        ImageError: It brings none, or several.
        MissingExtraError: zarr is not installed.
    """
    names: list[str] = []
    if (path / "labels").is_dir():
        listed = read_attributes(str(path / "labels"))[0].get("labels")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
    # a name that leads elsewhere is none
    if len(names) != 1 or "/" in names[0] or "\\" in names[0] or names[0] in ("", ".", ".."):
        told = f"the labels {', '.join(names)}" if names else "no labels"
        raise ImageError(
            f"{path}: holds {told}: expected one label image in it, or a labels folder "
            "beside the images folder"
        )
    return path / "labels" / names[0]


def _finest(path: Path, image: Multiscales) -> tuple[int, ...]:
    return tuple(open_array(str(path), image.levels[0].path).shape)


def _make_part(
    path: Path, image: Multiscales, order: tuple[int | None, ...], space: tuple[int | None, ...]
) -> tuple[Part, Scale]:
    key = image.levels[0].path
    array = open_array(str(path), key)
    shape = tuple(1 if axis is None else array.shape[axis] for axis in order)
    opener = partial(open_array, str(path), key)
    part = Part(str(path), shape, np.dtype(array.dtype), open=opener, order=order)
    sizes = image.sizes_um(0)
    scale_um = [0.0 if axis is None else sizes.get(axis, 0.0) for axis in space]
    return part, known_scale(scale_um, len(scale_um))
