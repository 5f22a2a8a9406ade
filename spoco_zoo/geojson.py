"""Outlines out of GeoJSON, as QuPath exports its annotations, detections and cells.

A feature of the class "Background" is known background, one of "Ignore*" is where nothing is
said, and other classes that end with an asterisk, which QuPath leaves out of its counts (such as
"Region*"), are passed over here too. Of a cell the boundary counts, not the nucleus.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo.errors import ImageError
from spoco_zoo.polygons import Ellipse, Outline, Ring, find_impossible, kind_of

_MOST_BYTES = 256_000_000
# tiles divide an image, and the others hold objects; QuPath 0.2 wrote the second names
_NO_OBJECTS = {"tile", "tmaCore", "root", "PathTileObject", "TMACoreObject", "PathRootObject"}
_CURE = "export the annotations from QuPath as GeoJSON"


def read_geojson(path: Path, most: int) -> list[Outline]:
    """Read the features of a FeatureCollection, of a list, or one Feature.

    Args:
        path: The file.
        most: The count of features from which on a file is refused.

    Raises:
        ImageError: The file is no GeoJSON or too large, or a feature is no area.
    """
    features = _features_of(path, _read_json(path))
    if len(features) > most:
        raise ImageError(f"{path}: holds {len(features)} features: expected at most {most}")
    found = (_to_outline(path, number, f) for number, f in enumerate(features, start=1))
    return [outline for outline in found if outline is not None]


def _read_json(path: Path) -> object:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ImageError(f"{path}: has {size} bytes: expected at most {_MOST_BYTES}")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}): check the file") from error
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{path}: is not valid JSON: {_CURE}") from error


def _features_of(path: Path, words: object) -> list[dict[str, Any]]:
    features = words
    if isinstance(words, dict):
        features = words.get("features") if words.get("type") == "FeatureCollection" else [words]
    if not isinstance(features, list) or not all(_is_feature(feature) for feature in features):
        raise ImageError(
            f"{path}: is not GeoJSON: expected a FeatureCollection, a Feature or a list of "
            f"Features; {_CURE}"
        )
    return features


def _is_feature(words: object) -> bool:
    return isinstance(words, dict) and words.get("type") == "Feature"


def _to_outline(path: Path, number: int, feature: dict[str, Any]) -> Outline | None:
    """What a feature outlines; None where it is to be passed over."""
    properties = _mapping(feature.get("properties"))
    of_what = properties.get("objectType", properties.get("object_type", feature.get("id")))
    kind = kind_of(_class_of(properties))
    if kind is None or (isinstance(of_what, str) and of_what in _NO_OBJECTS):
        return None
    title = properties.get("name")
    name = f"feature {number}" + (f" {title!r}" if title else "")
    geometry = _mapping(feature.get("geometry"))
    plane = _mapping(geometry.get("plane"))
    return Outline(
        name=name,
        kind=kind,
        shape=_shape_of(path, name, geometry),
        z=_index(path, name, plane, "z"),
        frame=_index(path, name, plane, "t"),
        group=title if isinstance(title, str) and title else None,
    )


def _class_of(properties: dict[str, Any]) -> str:
    """Name of the class of a feature, empty where it has none."""
    word = properties.get("classification")
    if isinstance(word, dict):
        word = word.get("name", word.get("names"))
    if isinstance(word, list):  # of a class within a class
        word = ": ".join(str(part) for part in word)
    return word if isinstance(word, str) else ""


def _shape_of(
    path: Path, name: str, geometry: dict[str, Any]
) -> Ellipse | tuple[tuple[Ring, ...], ...]:
    match geometry.get("type"):
        case "Polygon":
            parts = [geometry.get("coordinates")]
        case "MultiPolygon":
            parts = _list(path, name, geometry.get("coordinates"))
        case other:
            what = f"is a {other}" if other else "has no geometry"
            raise ImageError(
                f"{path}: {name} {what}: expected a Polygon or MultiPolygon around an "
                "object; delete it or draw around the object"
            )
    polygons = tuple(
        tuple(_ring(path, name, ring) for ring in _list(path, name, part)) for part in parts
    )
    if not all(polygons) or not polygons:
        raise _damaged(path, name)
    if geometry.get("isEllipse") is True:  # its corners are QuPath's approximation
        corners = polygons[0][0]
        (x, y), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return Ellipse((x, y), (right - x, bottom - y))
    return polygons


def _ring(path: Path, name: str, corners: object) -> Ring:
    try:
        # a third number of a corner is a height, which no image has
        ring = np.array([corner[:2] for corner in _list(path, name, corners)])
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, name) from error
    if ring.ndim != 2 or ring.shape[1] != 2 or ring.dtype.kind not in "if":
        raise _damaged(path, name)
    ring = ring.astype(np.float64)
    wrong = find_impossible(ring)
    if wrong is not None:
        raise ImageError(
            f"{path}: {name} has the coordinate {wrong:g}: expected finite numbers of pixels; "
            "draw it again"
        )
    return ring


def _list(path: Path, name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _damaged(path, name)
    return value


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _index(path: Path, name: str, plane: dict[str, Any], axis: str) -> int:
    """Slice or frame of a feature; QuPath leaves out the plane where both are 0."""
    value = plane.get(axis, 0)
    if not isinstance(value, int) or value < 0:
        raise ImageError(
            f"{path}: {name} is in the plane {axis} {value!r}: expected a number from 0; {_CURE}"
        )
    return value


def _damaged(path: Path, name: str) -> ImageError:
    return ImageError(
        f"{path}: {name} has no coordinates of a polygon: expected lists of [x, y]; {_CURE}"
    )
