"""Outlines into GeoJSON for QuPath: a feature for each object, or for each slice of one.

Objects are detections, of which QuPath takes many thousands, called by their ids; their numbers
come with them as measurements. Corners are in pixels of the full resolution, and a slice of labels
of a coarser level is told once for each slice of the image that it covers. The outer ring of a
polygon comes first and runs as RFC 7946 asks for, holes the other way.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spoco_zoo.files import write_whole
from spoco_zoo.outlines import Corners, Traced

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where pixels of labels lie in an image as QuPath shows it."""

    downsampling: tuple[float, ...] = ()  # its pixels in one of the labels, along each axis
    finest: tuple[int, ...] = ()  # its size in pixels, where labels may cover more
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
            for z in _planes(traced.z, place):
                if z is not None:
                    feature["geometry"]["plane"] = {"c": -1, "z": z, "t": place.time or 0}
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
    by = [int(n) if float(n).is_integer() else float(n) for n in place.downsampling or (1, 1)]
    polygons = [[_closed(ring, (by[-1], by[-2])) for ring in p] for p in traced.polygons]
    geometry: dict[str, Any]
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    else:
        geometry = {"type": "MultiPolygon", "coordinates": polygons}
    properties: dict[str, Any] = {"objectType": "detection", "name": str(traced.label)}
    properties["color"] = color
    if measurements:
        properties["measurements"] = measurements
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _planes(z: int | None, place: Place) -> Sequence[int | None]:
    """List the slices of the image that have their middle in a slice of the labels."""
    if z is None:
        return [None if place.time is None else 0]
    deep = place.downsampling[0] if len(place.downsampling) == 3 else 1.0
    first, end = (math.ceil(edge * deep - 0.5) for edge in (z, z + 1))
    return range(first, min(end, place.finest[0]) if len(place.finest) == 3 else end)


def _closed(ring: Corners, by: tuple[int | float, ...]) -> list[list[int | float]]:
    corners: list[list[int | float]] = (ring if by == (1, 1) else ring * by).tolist()
    return [*corners, corners[0]]
