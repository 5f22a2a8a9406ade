"""Outlines into GeoJSON for QuPath: a feature for each object, or for each slice of one.

Objects are detections, of which QuPath takes many thousands, called by their ids; their numbers
come with them as measurements. Corners are in pixels of the full resolution. The outer ring of a
polygon comes first and runs as RFC 7946 asks for, holes the other way.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spoco_zoo.files import write_whole
from spoco_zoo.outlines import Corners, Traced

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where pixels of labels lie in an image as QuPath shows it."""

    factors: tuple[float, ...] = ()  # its pixels in one of the labels, along each axis
    time: int | None = None  # in a time series


_TIGHT = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def write_qupath_objects(
    path: Path,
    objects: Iterable[Traced],
    colors: Mapping[int, Color],
    *,
    measurements: Mapping[int, Mapping[str, int | float]] | None = None,
    place: Place = Place(),
    overwrite: bool = False,
) -> None:
    """Write outlines, whole or not at all, in their order.

    Args:
        path: The file.
        objects: Outlines by `trace_objects`.
        colors: Red, green and blue by id, of all objects.
        measurements: Finite numbers by name, by id.
        place: Where they lie in the image.
        overwrite: Whether a file may be replaced.

    Raises:
        OutputError: The file exists and may not be overwritten, or the disk refuses it.
    """
    known = measurements or {}

    def write(file: BinaryIO) -> None:
        file.write(b'{"type":"FeatureCollection","features":[')
        comma = b"\n"
        for traced in objects:
            feature = _feature(traced, colors[traced.label], place, known.get(traced.label))
            file.write(comma + _TIGHT(feature).encode())
            comma = b",\n"
        file.write(b"\n]}\n")

    write_whole(path, write, overwrite=overwrite)


def _feature(
    traced: Traced,
    color: Color,
    place: Place,
    measurements: Mapping[str, int | float] | None,
) -> dict[str, Any]:
    whole = [int(n) if float(n).is_integer() else float(n) for n in place.factors or (1, 1)]
    factors = (whole[-1], whole[-2])
    polygons = [[_closed(ring, factors) for ring in polygon] for polygon in traced.polygons]
    geometry: dict[str, Any]
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    else:
        geometry = {"type": "MultiPolygon", "coordinates": polygons}
    if traced.z is not None or place.time is not None:
        deep = whole[0] if len(whole) == 3 else 1
        geometry["plane"] = {"c": -1, "z": int((traced.z or 0) * deep), "t": place.time or 0}
    properties: dict[str, Any] = {"objectType": "detection", "name": str(traced.label)}
    properties["color"] = color
    if measurements:
        properties["measurements"] = measurements
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _closed(ring: Corners, factors: tuple[int | float, ...]) -> list[list[int | float]]:
    corners: list[list[int | float]] = (ring if factors == (1, 1) else ring * factors).tolist()
    return [*corners, corners[0]]
