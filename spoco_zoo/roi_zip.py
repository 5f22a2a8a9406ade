"""Outlines into a zip for the ROI Manager of ImageJ and Fiji.

A ROI is called by the id of its object. What is one ring is a traced selection; holes and several
pieces make a composite one. In a volume there is one ROI a slice, and the outlines of an object
say so twice: by their property `label`, and where no id is above 255, the most that ImageJ has,
by their group, to which ImageJ gives a colour of its own.

ImageJ keeps places in 16 bits up to 60535 pixels from the corner of an image, and farther ones as
floats of 32 bits, which hold every whole number up to 16777216; beyond, nothing is written. The
bytes are put together here, since a library that makes an object of each ROI takes longer than
all the rest.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from struct import Struct, pack
from typing import BinaryIO

import numpy as np

from spoco_zoo.errors import OutputError
from spoco_zoo.files import write_whole
from spoco_zoo.outlines import Traced

Color = tuple[int, int, int]

_SHORT = 60535  # ImageJ takes a greater number of 16 bits for one below 0
_FAR = 1 << 24
_MOST_CORNERS = 65535  # of a selection that is not composite
_MOST_GROUP = 255
_VERSION = 228  # of the format: the first one with groups
_COMPOSITE, _TRACED = 1, 8  # kinds of selections; a composite one says that it is a rectangle
_SUBPIXEL = 128
_CLOSE = pack(">f", 4)

# magic word, version, kind, box (top, left, bottom, right), corners, unused, width of the line,
# numbers of a composite, colours of line and filling, subtype, options, unused, slice, and where
# the second header starts
_HEADER = Struct(">4sHBxHHHHH16xHI4s4xHH4xII")
# channel, slice, frame, where the name is and its length, unused, group, unused, where the
# properties are and their length, unused
_SECOND = Struct(">4xIIIII4xHBxIfII16x")


def write_roi_zip(
    path: Path,
    objects: Iterable[Traced],
    colors: Mapping[int, Color],
    *,
    channels: int = 1,
    time: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write outlines, whole or not at all, in their order.

    Args:
        path: The zip.
        objects: Outlines by `trace_objects`.
        colors: Red, green and blue by id, of all objects.
        channels: Of the image, also those that were not looked at. Slices of one with several are
            counted as those of a hyperstack.
        time: Point in time of the image, if it has several.
        overwrite: Whether a file may be replaced.

    Raises:
        OutputError: The file exists and may not be overwritten, the disk refuses it, or an
            outline is too far from the corner of the image.
    """
    has_groups = max(colors, default=0) <= _MOST_GROUP

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for traced in objects:
                name = str(traced.label) + ("" if traced.z is None else f"-z{traced.z + 1}")
                at = _place(traced.z, time, channels)
                content = _encode(path, traced, colors[traced.label], at, has_groups)
                # without a date of today, equal outlines are equal files
                info = zipfile.ZipInfo(f"{name}.roi")
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content, compresslevel=1)

    write_whole(path, write, overwrite=overwrite)


def _place(z: int | None, time: int | None, channels: int) -> tuple[int, int, int]:
    """Say where ImageJ shows an outline: plane of a stack, slice and frame of a hyperstack.

    A stack is what has one axis besides y and x. 0 is everywhere.
    """
    if channels == 1 and (z is None or time is None):
        return (0 if z is None else z + 1) or (0 if time is None else time + 1), 0, 0
    return 0, 0 if z is None else z + 1, 0 if time is None else time + 1


def _encode(
    path: Path, traced: Traced, color: Color, at: tuple[int, int, int], has_groups: bool
) -> bytes:
    rings = [ring for polygon in traced.polygons for ring in polygon]
    outer = np.concatenate([polygon[0] for polygon in traced.polygons])
    (left, top), (right, bottom) = outer.min(axis=0).tolist(), outer.max(axis=0).tolist()
    farthest = max(right, bottom)
    if farthest > _FAR:
        raise OutputError(
            f"{path}: object {traced.label} is {farthest} pixels from the corner of the image: "
            f"ROIs of ImageJ reach {_FAR}; save GeoJSON instead"
        )
    is_composite = len(rings) > 1 or len(rings[0]) > _MOST_CORNERS
    is_far = farthest > _SHORT
    if is_composite:
        corners = b"".join(map(_path, rings))
    else:
        corners = ((rings[0] - [left, top]) & 0xFFFF).astype(">u2").tobytes("F")
        if is_far:
            corners += rings[0].astype(">f4").tobytes("F")
    is_slice = traced.z is not None
    plane, slice_number, frame = at
    name = str(traced.label).encode("utf-16-be")
    properties = f"label: {traced.label}\n".encode("utf-16-be") if is_slice else b""
    second = _HEADER.size + len(corners)
    words = second + _SECOND.size
    header = _HEADER.pack(
        b"Iout",
        _VERSION,
        _COMPOSITE if is_composite else _TRACED,
        *(number & 0xFFFF for number in (top, left, bottom, right)),
        0 if is_composite else len(rings[0]),
        0,
        len(corners) // 4 if is_composite else 0,
        bytes([255, *color]),
        0,
        _SUBPIXEL if is_far and not is_composite else 0,
        plane,
        second,
    )
    more = _SECOND.pack(
        0,
        slice_number,
        frame,
        words,
        len(name) // 2,
        0,
        traced.label if is_slice and has_groups else 0,
        0,
        0.0,
        words + len(name) if properties else 0,
        len(properties) // 2,
    )
    return header + corners + more + name + properties


def _path(ring: np.ndarray) -> bytes:
    """A ring as steps: move to its first corner, draw lines, close it."""
    steps = np.ones((len(ring), 3), ">f4")
    steps[0, 0] = 0
    steps[:, 1:] = ring
    return steps.tobytes() + _CLOSE
