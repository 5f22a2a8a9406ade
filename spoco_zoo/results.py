"""What people open: labels, ROIs, GeoJSON, tables and pictures of one image, beside each other.

    OUT/
    ├── NAME.tif                 labels
    ├── rois/NAME.zip            rois: for the ROI Manager of ImageJ and Fiji
    ├── geojson/NAME.geojson     geojson: for QuPath
    ├── tables/NAME.csv          table: a line for each instance
    ├── tables/NAME.parquet      parquet: the same
    ├── overlays/NAME.png        overlay: instances over the image, or over slices of a volume
    └── embeddings/NAME.ome.zarr embeddings: of runs in blocks, which write them on their way

An instance has one id and one colour in all of them. It is measured and outlined once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Shaped

from spoco_zoo.errors import SettingError
from spoco_zoo.figures import colors_of, montage, write_png
from spoco_zoo.files import refuse_existing, write_bytes
from spoco_zoo.images import write_labels
from spoco_zoo.measurements import (
    Measurements,
    Table,
    check_parquet,
    measure,
    round_column,
    to_csv,
    to_parquet,
    to_table,
)
from spoco_zoo.outlines import Traced, trace_objects
from spoco_zoo.qupath_objects import Place, write_qupath_objects
from spoco_zoo.roi_zip import write_roi_zip

_PLACES = {
    "rois": ("rois", ".zip"),
    "geojson": ("geojson", ".geojson"),
    "table": ("tables", ".csv"),
    "parquet": ("tables", ".parquet"),
    "overlay": ("overlays", ".png"),
    "embeddings": ("embeddings", ".ome.zarr"),
}
KINDS = ("labels", *_PLACES)
_TELL_NUMBERS = {"geojson", "table", "parquet"}
_NO_MEASUREMENTS = ("label", "box_", "centroid_")  # QuPath knows where its objects are


@dataclass(frozen=True)
class Origin:
    """What is known of the image that labels are of, besides its pixels."""

    scale_um: Sequence[float] | None = None  # of a pixel of the labels, along each axis
    channels: int = 1  # of the image, read or not, which decide how ImageJ counts slices
    place: Place = field(default_factory=Place)


def read_kinds(words: str) -> tuple[str, ...]:
    """Read which results are wanted, separated by commas, into the order of `KINDS`.

    Raises:
        SettingError: A word is none of them, or there is no word.
        MissingExtraError: Parquet is wanted, and cannot be written.
    """
    wanted = {word.strip() for word in words.split(",")} - {""}
    unknown = sorted(wanted - set(KINDS))
    if unknown or not wanted:
        word = unknown[0] if unknown else ""
        raise SettingError(
            f"--save names {word!r}: expected some of {', '.join(KINDS)}, separated by commas"
        )
    if "parquet" in wanted:
        check_parquet()
    return tuple(kind for kind in KINDS if kind in wanted)


def name_files(target: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """Say where the results of an image go, by their kinds.

    Args:
        target: The label image, written or not.
        kinds: Some of `KINDS`.
    """
    files = {"labels": target}
    for kind, (folder, suffix) in _PLACES.items():
        files[kind] = target.parent / folder / f"{target.stem}{suffix}"
    return {kind: files[kind] for kind in kinds}


def write_results(
    files: Mapping[str, Path],
    labels: Integer[np.ndarray, "..."],
    image: Shaped[np.ndarray, "c *space"],
    scale_um: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write results of an image, labels last: where they are, everything is.

    Args:
        files: Where each kind that is wanted goes, as `name_files` says.
        labels: Of the same space as the image.
        image: What was segmented.
        scale_um: Size of a pixel along each axis, if it is known.
        overwrite: Whether files may be replaced.

    Raises:
        ImageError: Labels and image differ in shape, or are neither 2D nor 3D.
        OutputError: A file exists and may not be overwritten, or the disk refuses it.
    """
    for path in files.values():
        refuse_existing(path, overwrite=overwrite)
    if files.keys() - {"labels", "overlay"}:
        found = measure(labels, image if files.keys() & _TELL_NUMBERS else None)
        write_objects(files, labels, found, Origin(scale_um, len(image)), overwrite=overwrite)
    if "overlay" in files:
        write_png(files["overlay"], montage(image, labels), overwrite=overwrite)
    if "labels" in files:
        write_labels(files["labels"], labels, scale_um, overwrite=overwrite)


def write_objects(
    files: Mapping[str, Path],
    labels: Any,  # noqa: ANN401 - an array, or what is cut like one
    found: Measurements,
    origin: Origin,
    *,
    overwrite: bool = False,
) -> None:
    """Write what is told of each instance alone: rois, geojson, table, parquet.

    Labels may be larger than memory: they are read box by box. Outlines of a volume are held in
    memory only where both rois and geojson are wanted, those of an image always.

    Args:
        files: Where each kind that is wanted goes; labels and overlay are left to others.
        labels: (y, x) or (z, y, x).
        found: What was measured of them.
        origin: What their image is.
        overwrite: Whether files may be replaced.

    Raises:
        OutputError: A file exists and may not be overwritten, or the disk refuses it.
        MissingExtraError: Parquet is wanted, and cannot be written.
    """
    rgb = map(tuple, colors_of(found.ids).tolist())
    colors = dict(zip(found.ids.tolist(), rgb, strict=True))
    objects: Iterable[Traced] = trace_objects(labels, found.boxes())
    rims = {}
    if len(labels.shape) == 2:
        objects = list(objects)
        rims = {traced.label: (traced.perimeter, traced.hull_area) for traced in objects}
    elif {"rois", "geojson"} <= files.keys():
        objects = list(objects)
    table = to_table(found, origin.scale_um, rims)
    if "rois" in files:
        write_roi_zip(
            files["rois"],
            objects,
            colors,
            channels=origin.channels,
            time=origin.place.time,
            overwrite=overwrite,
        )
    if "geojson" in files:
        numbers = measurements_of(table)
        write_qupath_objects(
            files["geojson"],
            objects,
            colors,
            measurements=numbers,
            place=origin.place,
            overwrite=overwrite,
        )
    for kind, encode in (("table", to_csv), ("parquet", to_parquet)):
        if kind in files:
            write_bytes(files[kind], encode(table), overwrite=overwrite)


def measurements_of(table: Table) -> dict[int, dict[str, int | float]]:
    """Numbers of each instance by id, without places and what is not known, for QuPath."""
    names = [name for name in table if not name.startswith(_NO_MEASUREMENTS)]
    rows = zip(*(round_column(table[name]) for name in names), strict=True)
    return {
        label: {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for label, row in zip(table["label"].tolist(), rows, strict=True)
    }
