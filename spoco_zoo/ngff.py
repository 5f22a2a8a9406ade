"""OME-Zarr as it describes itself: stores, axes, levels, plates; formats 0.4 and 0.5.

Whoever reads or writes OME-Zarr asks here what the metadata say, so that it is understood in one
way. Pixels are not read here. zarr is an extra and imported where a store is opened.

The libraries of the format are not used at run time: to import `ome-zarr` takes four times as
long as zarr alone and brings Dask and an S3 client, and neither it nor `ngff-zarr` writes
attributes without arrays. The tests open what is written with both.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.stores import import_zarr, join, name_of, open_store

_IN_UM = {  # those of the format by their names, and what is often written instead
    **{"angstrom": 1e-4, "picometer": 1e-6, "nanometer": 1e-3, "micrometer": 1.0},
    **{"millimeter": 1e3, "centimeter": 1e4, "decimeter": 1e5, "meter": 1e6, "inch": 25400.0},
    **{"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "mm": 1e3},
}
_ROLES = {"time": "T", "channel": "C"}
_FEW_DIGITS = 1e-3  # relative error of the ratio of scales that are written with four digits


@dataclass(frozen=True)
class Level:
    """One resolution: where its array is, and where its pixels are, for each stored axis."""

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]  # of the centre of the first pixel


@dataclass(frozen=True)
class Multiscales:
    """What an image says of itself. Axes are in the order in which they are stored."""

    axes: str  # letters, such as TCZYX
    names: tuple[str, ...]  # as they are written
    units: tuple[str | None, ...]
    levels: tuple[Level, ...]  # the finest first
    channel_names: tuple[str, ...]
    zarr_format: int

    def sizes_um(self, level: int) -> dict[int, float]:
        """Give the size of a pixel along each axis whose unit is a known length."""
        factors = [_IN_UM.get(str(unit)) for unit in self.units]
        scale = self.levels[level].scale
        return {n: s * f for n, (s, f) in enumerate(zip(scale, factors, strict=True)) if f}

    def downsampling(self, level: int) -> tuple[float, ...] | None:
        """Pixels of the finest level in one of another, along each axis; None if it is not told."""
        here, finest = self.levels[level].scale, self.levels[0].scale
        is_told = level == 0 or here != finest
        if not is_told or not all(0 < size < math.inf for size in (*here, *finest)):
            return None
        return tuple(_round(a / b) for a, b in zip(here, finest, strict=True))


def read_attributes(url: str) -> tuple[dict[str, Any], int]:
    """Read the attributes of a group as both formats mean them, and the format of the zarr.

    Raises:
        ImageError: It is no group.
    """
    try:
        store = open_store(url)
        group = import_zarr().open_group(store=store, mode="r", use_consolidated=False)
        attributes = dict(group.attrs)
    except (MissingExtraError, ImageError):
        raise
    except Exception as error:  # a backend may raise anything
        raise ImageError(
            f"{url}: cannot be read as OME-Zarr ({type(error).__name__}): "
            "expected a group with multiscales"
        ) from error
    inner = attributes.get("ome")  # where format 0.5 keeps them
    return inner if isinstance(inner, dict) else attributes, int(group.metadata.zarr_format)


def open_array(url: str, key: str) -> Any:  # noqa: ANN401 - zarr is an extra
    """Open the array of a level, to be read.

    Raises:
        ImageError: It is not there or no array.
    """
    try:
        return import_zarr().open_array(store=open_store(url), path=key, mode="r")
    except (MissingExtraError, ImageError):
        raise
    except Exception as error:  # a backend may raise anything
        raise ImageError(
            f"{url}: its level {key} cannot be read: expected a Zarr array; copy it again"
        ) from error


def read_multiscales(url: str) -> Multiscales:
    """Read what an image says of its axes and levels.

    Raises:
        ImageError: It is no OME-Zarr image.
        MissingExtraError: zarr is not installed.
    """
    attributes, zarr_format = read_attributes(url)
    try:
        image = attributes["multiscales"][0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image["axes"]]
        names = tuple(str(axis["name"]) for axis in axes)
        letters = [_ROLES.get(str(axis.get("type")), str(axis["name"])) for axis in axes]
        return Multiscales(
            "".join(letter.upper()[:1] for letter in letters),
            names,
            tuple(None if axis.get("unit") is None else str(axis["unit"]) for axis in axes),
            tuple(_read_level(level, image, len(axes)) for level in image["datasets"]),
            tuple(_channel_names(attributes)),
            zarr_format,
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(
            f"{url}: has no complete multiscales metadata: expected OME-Zarr 0.4 or 0.5 "
            "with axes and a scale"
        ) from error


def _round(ratio: float) -> float:
    """Undo what few digits of two scales make of a whole number."""
    return float(round(ratio)) if abs(ratio - round(ratio)) < _FEW_DIGITS * ratio else ratio


def _read_level(level: dict[str, Any], image: dict[str, Any], n: int) -> Level:
    scale, translation = [1.0] * n, [0.0] * n
    for holder in (level, image):
        for change in holder.get("coordinateTransformations", ()):
            if change["type"] == "scale":
                by = [float(value) for value in change["scale"]]
                scale = [a * b for a, b in zip(scale, by, strict=True)]
                translation = [a * b for a, b in zip(translation, by, strict=True)]
            elif change["type"] == "translation":
                by = [float(value) for value in change["translation"]]
                translation = [a + b for a, b in zip(translation, by, strict=True)]
    return Level(_clean_key(level["path"]), tuple(scale), tuple(translation))


def _clean_key(path: object) -> str:
    """Refuse a name that leads out of the store; files of strangers are read here."""
    key = str(path).strip("/")
    if not key or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{path} is no place in a store")
    return key


def _channel_names(attributes: dict[str, Any]) -> Iterator[str]:
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    for n, channel in enumerate(channels if isinstance(channels, list) else []):
        yield str(channel.get("label", n) if isinstance(channel, dict) else n)


def list_images(url: str) -> tuple[list[tuple[str, str]], list[ImageError]]:
    """List the images of a store by address and short name: fields, series, or the one there is.

    Returns:
        The images, and why wells of a plate cannot be read, which are left out.

    Raises:
        ImageError: There is none, or a list of them that leads nowhere.
    """
    attributes, _ = read_attributes(url)
    short = re.sub(r"(\.ome)?\.zarr$", "", name_of(url), flags=re.IGNORECASE)
    if "multiscales" in attributes:
        return [(url, short)], []
    errors: list[ImageError] = []
    try:
        if "plate" in attributes:
            wells = [_clean_key(well["path"]) for well in attributes["plate"]["wells"]]
            keys = []
            for well in wells:
                try:
                    keys += [join(well, key) for key in _fields(join(url, well))]
                except ImageError as error:
                    errors.append(error)
        elif "well" in attributes:
            keys = _fields(url)
        else:
            keys = _series(url, attributes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _not_understood(url) from error
    if not keys and not errors:
        raise ImageError(
            f"{url}: has no complete multiscales metadata: expected OME-Zarr 0.4 or 0.5 "
            "with axes and a scale"
        )
    return [(join(url, key), key.replace("/", "-")) for key in keys], errors


def _fields(well: str) -> list[str]:
    attributes, _ = read_attributes(well)
    try:
        return [_clean_key(image["path"]) for image in attributes["well"]["images"]]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _not_understood(well) from error


def _not_understood(url: str) -> ImageError:
    return ImageError(
        f"{url}: its list of images cannot be understood: expected a plate, well or series "
        "of OME-Zarr 0.4 or 0.5"
    )


def _series(url: str, attributes: dict[str, Any]) -> list[str]:
    """List the images of a layout of bioformats2raw: as it says, else by number."""
    if "bioformats2raw.layout" not in attributes:
        return []
    try:
        listed = read_attributes(join(url, "OME"))[0].get("series")
    except ImageError:
        listed = None
    if isinstance(listed, list):
        return [_clean_key(key) for key in listed]
    keys: list[str] = []
    while True:
        try:
            is_image = "multiscales" in read_attributes(join(url, str(len(keys))))[0]
        except ImageError:
            is_image = False
        if not is_image:
            return keys
        keys.append(str(len(keys)))
