"""Outlines out of ImageJ and Fiji: `.roi` files and the zip that the ROI Manager saves.

`roifile` takes the bytes apart. Nothing is unpacked: members of a zip are read in memory, within
limits, and their names are only names. A ROI called "background" (Fiji adds "-1", "-2" to the
next ones) is known background, one called "ignore" is where nothing is said. In a volume the
outlines of an object share a group; where there is none, its property `label`, which `roi_zip`
writes, says the same.
"""

import lzma
import re
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.polygons import Ellipse, Outline, Ring, find_impossible, kind_of

if TYPE_CHECKING:
    from roifile import ImagejRoi

_MOST_BYTES = 256_000_000
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(OSError, RuntimeError, ValueError, EOFError),
)
_HOW_TO = "expected an outline of an object (rectangle, oval, polygon, freehand, traced, composite)"
_CURVE = np.linspace(0, 1, 17)[1:, None]  # of the way along a curve, where it gets corners
_STEPS = {0: 3, 1: 3, 2: 5, 3: 7, 4: 1}  # numbers of each step of a path: its kind and its points


def read_rois(path: Path, most: int) -> list[Outline]:
    """Read a `.roi` file, or a zip of them in the order of the zip.

    Args:
        path: The file.
        most: The count of ROIs from which on a file is refused.

    Raises:
        ImageError: The file is damaged or too large, or a ROI is no outline.
        MissingExtraError: `roifile` is not installed.
    """
    members = _read_zip(path, most) if path.suffix.lower() == ".zip" else _read_one(path)
    outlines = []
    for name, content in members:
        roi = _parse(path, name, content)
        outline = _to_outline(path, roi.name or name, roi)
        if outline is not None:
            outlines.append(outline)
    return outlines


def _read_one(path: Path) -> list[tuple[str, bytes]]:
    try:
        _check_size(path, path.stat().st_size)
        return [(path.stem, path.read_bytes())]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}): check the file") from error


def _read_zip(path: Path, most: int) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not _is_clutter(info)]
            if len(infos) > most:
                raise ImageError(f"{path}: holds {len(infos)} ROIs: expected at most {most}")
            for info in infos:
                name = PurePosixPath(info.filename)
                if name.suffix.lower() != ".roi" or name.is_absolute() or ".." in name.parts:
                    raise ImageError(
                        f"{path}: holds {info.filename!r}: expected ROIs alone; "
                        "save them with Fiji's ROI Manager"
                    )
            _check_size(path, sum(info.file_size for info in infos))
            # never more than a member says of itself, whatever it unpacks to
            members = []
            for info in infos:
                with archive.open(info) as file:
                    members.append((PurePosixPath(info.filename).stem, file.read(info.file_size)))
            return members
    except _ZIP_ERRORS as error:
        raise ImageError(
            f"{path}: cannot be read as a zip of ROIs ({error}): save it again in Fiji"
        ) from error


def _is_clutter(info: zipfile.ZipInfo) -> bool:
    """Whether it is a folder, or what macOS adds to a zip."""
    return info.is_dir() or PurePosixPath(info.filename).name.startswith(".")


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise ImageError(f"{path}: its ROIs have {size} bytes: expected at most {_MOST_BYTES}")


def _parse(path: Path, name: str, content: bytes) -> "ImagejRoi":
    try:
        from roifile import ImagejRoi
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: ROIs of ImageJ need roifile: pip install 'spoco-zoo[train]'"
        ) from error
    try:
        return ImagejRoi.frombytes(content)
    except Exception as error:  # a damaged file can make the decoder raise anything
        raise _damaged(path, name) from error


def _to_outline(path: Path, name: str, roi: "ImagejRoi") -> Outline | None:
    """What a ROI outlines; None where it is to be passed over."""
    kind = kind_of(re.sub(r"-\d+$", "", name))
    if kind is None:
        return None
    # positions count from 1, and 0 is none; a stack that is no hyperstack has one for all axes
    z = roi.z_position or roi.position
    return Outline(
        name=f"ROI {name!r}",
        kind=kind,
        shape=_shape_of(path, name, roi),
        z=z - 1 if z else None,
        frame=roi.t_position - 1 if roi.t_position else None,
        group=roi.group or _label_of(roi.props),
    )


def _label_of(properties: str) -> int | None:
    found = re.search(r"^label: *(\d+) *$", properties, re.MULTILINE)
    return int(found.group(1)) if found else None


def _shape_of(path: Path, name: str, roi: "ImagejRoi") -> Ellipse | tuple[tuple[Ring, ...], ...]:
    from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE

    what = roi.roitype.name.lower()
    if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.IMAGE, ROI_SUBTYPE.ARROW):
        what = roi.subtype.name.lower()
    elif roi.rounded_rect_arc_size and roi.roitype == ROI_TYPE.RECT:
        what = "rectangle with round corners"
    elif roi.options & ROI_OPTIONS.SPLINE_FIT:
        what = "spline, whose curve is not in the file"
    elif roi.roitype == ROI_TYPE.RECT and roi.composite:
        return (_path_of(path, name, roi),)
    elif roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        return _box_of(path, name, roi)
    elif roi.roitype in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        ring = np.asarray(roi.coordinates(), np.float64)
        if not len(ring):
            raise _damaged(path, name)
        _check_numbers(path, name, ring)
        return ((ring,),)
    raise ImageError(
        f"{path}: ROI {name!r} is a {what}: {_HOW_TO}; delete it or draw around the object"
    )


def _box_of(path: Path, name: str, roi: "ImagejRoi") -> Ellipse | tuple[tuple[Ring, ...], ...]:
    from roifile import ROI_TYPE

    if roi.subpixelrect:
        box = [roi.xd, roi.yd, roi.widthd, roi.heightd]
    else:
        box = [roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top]
    numbers = np.array(box, np.float64)
    _check_numbers(path, name, numbers)
    x, y, width, height = numbers.tolist()
    if roi.roitype == ROI_TYPE.OVAL:
        return Ellipse((x, y), (width, height))
    right, bottom = x + width, y + height
    return ((np.array([[x, y], [right, y], [right, bottom], [x, bottom]], np.float64),),)


def _path_of(path: Path, name: str, roi: "ImagejRoi") -> tuple[Ring, ...]:
    """Rings of a composite: steps that move, draw lines and curves, or close a ring.

    Curves come from ovals that were combined; each gets 16 corners.
    """
    numbers = np.asarray(roi.multi_coordinates, np.float64)
    _check_numbers(path, name, numbers)
    rings: list[list[np.ndarray]] = []
    at = 0
    while at < len(numbers):
        step = numbers[at]
        length = _STEPS.get(int(step), 0)
        if not length or at + length > len(numbers) or (step != 0 and not rings):
            raise _damaged(path, name)
        points = numbers[at + 1 : at + length].reshape(-1, 2)
        match int(step):
            case 0:
                rings.append([points])
            case 1:
                rings[-1].append(points)
            case 2 | 3:
                rings[-1].append(_bend(np.vstack([rings[-1][-1][-1:], points])))
        at += length
    return tuple(np.concatenate(ring) for ring in rings)


def _bend(controls: np.ndarray) -> np.ndarray:
    """Corners along a Bézier curve after its start, by de Casteljau's rule."""
    levels = [np.broadcast_to(point, (len(_CURVE), 2)) for point in controls]
    while len(levels) > 1:
        levels = [a + _CURVE * (b - a) for a, b in pairwise(levels)]
    return np.asarray(levels[0])


def _check_numbers(path: Path, name: str, numbers: np.ndarray) -> None:
    wrong = find_impossible(numbers)
    if wrong is not None:
        raise ImageError(
            f"{path}: ROI {name!r} has the coordinate {wrong:g}: expected finite numbers of "
            "pixels; draw it again"
        )


def _damaged(path: Path, name: str) -> ImageError:
    return ImageError(f"{path}: ROI {name!r} is damaged: draw it again and save the set in Fiji")
