"""OME-Zarr images as parts: the finest level, formats 0.4 and 0.5.

Chunks are read as they are needed. zarr is an extra and imported where an image is opened.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo.axes import kept_axes, order_axes
from spoco_zoo.datasets.parts import Scale
from spoco_zoo.datasets.source import Part
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.images import IN_UM, known_scale

_UNITS = {"micrometer": "um", "nanometer": "nm", "millimeter": "mm", "meter": "m"}


def image_part(path: Path, n_axes: int | None) -> tuple[Part, Scale]:
    """Look at the finest level of an image.

    Raises:
        ImageError: It is no OME-Zarr image, or has axes of another kind.
        MissingExtraError: zarr is not installed.
    """
    key, axes, scales = _read_metadata(path)
    array = _open_level(path, key)
    order = order_axes(path, array.shape, axes, n_axes)
    return _make_part(path, key, order, [scales.get(axis or 0, 0.0) for axis in order[1:]])


def label_part(path: Path) -> tuple[Part, Scale]:
    """Look at the finest level of a label image.

    Raises:
        ImageError: It is no OME-Zarr image, or has other axes than space.
        MissingExtraError: zarr is not installed.
    """
    key, axes, scales = _read_metadata(path)
    shape = _open_level(path, key).shape
    order, names = kept_axes(shape, axes)
    if names not in ("YX", "ZYX"):
        raise ImageError(
            f"{path}: label axes are {axes} of shape {shape}: expected (y, x) or (z, y, x) "
            "with one integer a pixel"
        )
    return _make_part(path, key, tuple(order), [scales.get(axis, 0.0) for axis in order])


def find_labels(path: Path) -> Path:
    """Find the label image that an image brings itself.

    Raises:
        ImageError: It brings none, or several.
        MissingExtraError: zarr is not installed.
    """
    names: list[str] = []
    if (path / "labels").is_dir():
        listed = _attributes(path / "labels").get("labels")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
    # a name that leads elsewhere is none
    if len(names) != 1 or "/" in names[0] or "\\" in names[0] or names[0] in ("", ".", ".."):
        told = f"the labels {', '.join(names)}" if names else "no labels"
        raise ImageError(
            f"{path}: holds {told}: expected one label image in it, or a labels folder "
            "beside the images folder"
        )
    return path / "labels" / names[0]


def _make_part(
    path: Path, key: str, order: tuple[int | None, ...], scale_um: list[float]
) -> tuple[Part, Scale]:
    array = _open_level(path, key)
    shape = tuple(1 if axis is None else array.shape[axis] for axis in order)
    kind = np.dtype(array.dtype)
    part = Part(str(path), shape, kind, open=partial(_open_level, path, key), order=order)
    return part, known_scale(scale_um, len(scale_um))


def _open_level(path: Path, key: str) -> Any:  # noqa: ANN401 - zarr is an extra
    try:
        return _zarr().open_array(store=str(path), path=key, mode="r")
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(
            f"{path}: its finest level, {key}, cannot be read: expected a Zarr array; copy it again"
        ) from error


def _attributes(path: Path) -> dict[str, Any]:
    try:
        attributes = dict(_zarr().open_group(store=str(path), mode="r").attrs)
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(
            f"{path}: cannot be read as OME-Zarr ({type(error).__name__}): "
            "expected a group with multiscales"
        ) from error
    inner = attributes.get("ome")  # where format 0.5 keeps them
    return inner if isinstance(inner, dict) else attributes


def _read_metadata(path: Path) -> tuple[str, str, dict[int, float]]:
    """Read the place of the finest level, its axes, and the pixel size in µm for each axis."""
    scales: list[float] = []
    try:
        image = _attributes(path)["multiscales"][0]
        level = image["datasets"][0]
        key = str(level["path"])
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image["axes"]]
        letters = "".join(str(axis["name"]).upper() for axis in axes)
        scales = [1.0] * len(axes)
        for holder in (level, image):
            for change in holder.get("coordinateTransformations", ()):
                if change["type"] == "scale":
                    scales = [a * float(b) for a, b in zip(scales, change["scale"], strict=True)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(
            f"{path}: has no complete multiscales metadata: expected OME-Zarr 0.4 or 0.5 "
            "with axes and a scale"
        ) from error
    units = [IN_UM.get(_UNITS.get(str(axis.get("unit")), "")) for axis in axes]
    known = zip(range(len(axes)), scales, units, strict=True)
    return key, letters, {n: scale * unit for n, scale, unit in known if unit is not None}


def _zarr() -> Any:  # noqa: ANN401 - an extra
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("OME-Zarr needs zarr: pip install 'spoco-zoo[data]'") from error
    return zarr
