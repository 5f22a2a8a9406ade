"""Labels as people paint them: outlines of ImageJ, Fiji and QuPath to one label image.

An object that was outlined gets a number, what nobody painted stays 0, and two more states have
numbers of their own: `KNOWN_BACKGROUND` and `UNLABELED`. Objects lie over known background and
over what is to be ignored, in whatever order they were drawn. What cannot be meant is refused:
objects beside the image, over each other, or of several slices where there is one.

In a volume an outline belongs to one slice. The outlines of one object are those of one ROI group
(in Fiji: Properties > Group), or of one name in GeoJSON.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from spoco_zoo.errors import ImageError
from spoco_zoo.geojson import read_geojson
from spoco_zoo.imagej_rois import read_rois
from spoco_zoo.images import OUTLINE_SUFFIXES, read_label_states
from spoco_zoo.labels import KNOWN_BACKGROUND, UNLABELED
from spoco_zoo.polygons import Box, Mask, Outline, fill

_MOST_OUTLINES = 100_000
_MOST_SHARED = 0.1  # of an object: rims that meet when neighbours are drawn by hand
_MOST_STACKED = 0.5  # of the smaller of two outlines in neighbouring slices


def read_painted(
    path: Path, shape: tuple[int, ...], background_label: int | None = None
) -> Int64[np.ndarray, "*space"]:
    """Read labels as somebody painted them: a label image, or outlines.

    Args:
        path: What `read_label_states` or `read_annotations` takes.
        shape: Of the image, which outlines are painted into; a label image keeps its own.
        background_label: The number that means known background in a label image.

    Returns:
        Instances above 0; 0 where nothing was painted; KNOWN_BACKGROUND; UNLABELED where
        outlines say to ignore, or a label image holds -1.

    Raises:
        ImageError: As `read_label_states` and `read_annotations`.
        MissingExtraError: As `read_annotations`.
    """
    if path.suffix.lower() in OUTLINE_SUFFIXES:
        return read_annotations(path, shape).astype(np.int64)
    labels = read_label_states(path).astype(np.int64)
    if background_label is not None:
        labels[labels == background_label] = KNOWN_BACKGROUND
    return labels


def read_annotations(path: Path, shape: tuple[int, ...]) -> Int32[np.ndarray, "*space"]:
    """Paint the outlines of a file into an image of labels.

    Args:
        path: ImageJ ROIs (`.roi`, `.zip`) or GeoJSON (`.geojson`, `.json`).
        shape: (y, x) or (z, y, x) of the image, in pixels.

    Returns:
        Labels of that shape: 1 to n for the objects in the order of the file, 0 where nothing was
        painted, KNOWN_BACKGROUND, and UNLABELED where something is to be ignored. Where two
        outlines share a rim, the first keeps it.

    Raises:
        ImageError: The file is missing, damaged or too large, or holds outlines that do not fit
            the image or each other.
        MissingExtraError: A ROI file is given and `roifile` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: no such file: check the path")
    read = read_rois if path.suffix.lower() in (".roi", ".zip") else read_geojson
    outlines = read(path, _MOST_OUTLINES)
    if not outlines:
        raise ImageError(f"{path}: holds no outline: expected at least one; draw some and save")
    _check_planes(path, outlines, shape)
    labels = np.zeros(shape, np.int32)
    objects = [outline for outline in outlines if outline.kind == "instance"]
    _paint_objects(path, objects, labels)
    # what is to be ignored lies over background: nothing is the safer thing to learn
    for kind, state in (("background", KNOWN_BACKGROUND), ("ignored", UNLABELED)):
        for outline in outlines:
            if outline.kind == kind:
                box, mask = _fill(path, outline, shape)
                part = _slice_of(labels, outline)[box]
                part[mask & (part <= 0)] = state
    return labels


def _check_planes(path: Path, outlines: Sequence[Outline], shape: tuple[int, ...]) -> None:
    """Refuse outlines of slices that the image does not have, and of several frames."""
    frames = {outline.frame for outline in outlines} - {None}
    slices = {outline.z for outline in outlines} - {None}
    for word, found in (("frames", frames), ("slices", slices if len(shape) == 2 else set())):
        if len(found) > 1:
            numbers = sorted(n + 1 for n in found if n is not None)
            raise ImageError(
                f"{path}: its outlines are in {word} {numbers[0]} to {numbers[-1]}, and the image "
                "is one of these: save the outlines of each to a file of its own"
            )
    for outline in outlines if len(shape) == 3 else ():
        if outline.z is None:
            raise ImageError(
                f"{path}: {outline.name} is in no slice of the volume: set its Z position "
                "(in Fiji: Properties > Position)"
            )
        if outline.z >= shape[0]:
            raise ImageError(
                f"{path}: {outline.name} is in slice {outline.z + 1}: the volume has {shape[0]}; "
                "is it the file of another image?"
            )


def _paint_objects(path: Path, objects: Sequence[Outline], labels: np.ndarray) -> None:
    """Number the objects and paint them, or say which two overlap."""
    numbers = _number(objects, labels.ndim)
    names: dict[int, str] = {}
    sizes = np.zeros(max(numbers, default=0) + 1, np.int64)
    for outline, number in zip(objects, numbers, strict=True):
        box, mask = _fill(path, outline, labels.shape)
        part = _slice_of(labels, outline)[box]
        size = int(mask.sum())
        others, shared = np.unique(part[mask & (part > 0) & (part != number)], return_counts=True)
        is_much = shared > _MOST_SHARED * sizes[others]
        if is_much.any() or shared.sum() > _MOST_SHARED * size:
            worst = int(np.argmax(np.where(is_much, shared, 0) if is_much.any() else shared))
            smaller = min(size, int(sizes[others[worst]]))
            raise ImageError(
                f"{path}: {names[int(others[worst])]} and {outline.name} share "
                f"{shared[worst]} pixels, and the smaller has {smaller}: expected objects beside "
                "each other; delete one, or draw it anew"
            )
        part[mask & (part == 0)] = number
        sizes[number] += size
        names.setdefault(number, outline.name)
    if labels.ndim == 3:
        _check_stacked(path, objects, numbers, labels)


def _number(objects: Sequence[Outline], n_axes: int) -> list[int]:
    """Number objects from 1 in the order of the file; in a volume a group is one object."""
    known: dict[object, int] = {}
    numbers = []
    for place, outline in enumerate(objects):
        is_alone = n_axes == 2 or outline.group is None
        key = (place,) if is_alone else outline.group
        numbers.append(known.setdefault(key, len(known) + 1))
    return numbers


def _check_stacked(
    path: Path, objects: Sequence[Outline], numbers: Sequence[int], labels: np.ndarray
) -> None:
    """Refuse outlines without a group that lie over each other: they may be one object."""
    loose = {n: o for n, o in zip(numbers, objects, strict=True) if o.group is None}
    is_loose = np.isin(np.arange(max(numbers, default=0) + 1), list(loose))
    planes = {outline.z for outline in loose.values() if outline.z is not None}
    for z in sorted(planes):
        if z + 1 not in planes:
            continue
        upper, lower = (np.where(is_loose[labels[i]], labels[i], 0) for i in (z, z + 1))
        is_both = (upper > 0) & (lower > 0)
        pairs = np.stack([upper[is_both], lower[is_both]], axis=1)
        for (above, below), shared in zip(
            *np.unique(pairs, axis=0, return_counts=True), strict=True
        ):
            smaller = min(int((upper == above).sum()), int((lower == below).sum()))
            if shared > _MOST_STACKED * smaller:
                raise ImageError(
                    f"{path}: {loose[int(above)].name} in slice {z + 1} and "
                    f"{loose[int(below)].name} in slice {z + 2} lie over each other and may be one "
                    "object: give the outlines of each object one group (in Fiji: Properties > "
                    "Group), or one name in QuPath"
                )


def _fill(path: Path, outline: Outline, shape: tuple[int, ...]) -> tuple[Box, Mask]:
    """Find the pixels of an outline, which must have some."""
    box, mask = fill(outline, (shape[-2], shape[-1]))
    if not mask.size:
        raise ImageError(
            f"{path}: {outline.name} lies outside of the image of {shape[-2]} x {shape[-1]} "
            "pixels: is it the file of another image, or of a larger version of it?"
        )
    if not mask.any():
        raise ImageError(
            f"{path}: {outline.name} holds the centre of no pixel: draw it larger or delete it"
        )
    return box, mask


def _slice_of(labels: np.ndarray, outline: Outline) -> np.ndarray:
    """The plane that an outline lies in, to paint on."""
    return np.asarray(labels if labels.ndim == 2 else labels[outline.z])
