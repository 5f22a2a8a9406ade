"""What labels say of themselves as OME-Zarr 0.4 or 0.5: axes, scale, colours, their image.

The attributes are written here as the two formats state them, since neither `ome-zarr` nor
`ngff-zarr` writes them without the pixels. The tests open what comes of it with both.
"""

import json
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoco_zoo.figures import label_colors
from spoco_zoo.ngff import read_multiscales
from spoco_zoo.stores import get, import_zarr, is_remote, open_store
from spoco_zoo.volumes import Volume

_LISTING = threading.Lock()
_COLORS = 10_000  # ids: more would make metadata of megabytes, which readers load at once


@dataclass(frozen=True)
class Described:
    """What the metadata will say, for each stored axis: t where there is one, then space."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]  # time or space
    units: tuple[str | None, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    space: tuple[int, ...]  # the stored axis of each axis that is written
    source: str | None  # the image, as seen from the labels

    def attributes(
        self, name: str, version: str, factors: Sequence[Sequence[int]], n_labels: int
    ) -> dict[str, Any]:
        """Write the attributes of a label image, `factors` for each level and space axis."""
        axes = [
            {"name": axis, "type": kind} | ({} if unit is None else {"unit": unit})
            for axis, kind, unit in zip(self.names, self.kinds, self.units, strict=True)
        ]
        datasets = []
        for n, steps in enumerate(factors):
            scale = list(self.scale)
            for axis, step in zip(self.space, steps, strict=True):
                scale[axis] *= step
            changes: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
            if any(self.translation):
                changes.append({"type": "translation", "translation": list(self.translation)})
            datasets.append({"path": str(n), "coordinateTransformations": changes})
        image = {"name": name, "axes": axes, "datasets": datasets, "type": "nearest"}
        label: dict[str, Any] = {}
        if n_labels <= _COLORS:
            colors = label_colors(n_labels)[1:]
            label["colors"] = [
                {"label-value": n, "rgba": [*map(int, rgb), 255]} for n, rgb in enumerate(colors, 1)
            ]
        if self.source is not None:
            label["source"] = {"image": self.source}
        if version == "0.5":
            return {"ome": {"version": "0.5", "multiscales": [image], "image-label": label}}
        stated = {"version": "0.4"}
        return {"multiscales": [stated | image], "image-label": stated | label}


def describe(volume: Volume, url: str, home: str | None) -> Described:
    """Take axes, units and place from the image: those of space and time, time first."""
    stored = volume.stored
    if stored.kind == "tiff":
        letters = ("T" if stored.time_axis is not None else "") + "ZYX"[-len(stored.space) :]
        n_space = len(stored.space)
        has_scale = volume.scale_um is not None
        start = len(letters) - n_space
        return Described(
            tuple(letters.lower()),
            ("time",) * start + ("space",) * n_space,
            (None,) * start + ("micrometer" if has_scale else None,) * n_space,
            (1.0,) * start + (volume.scale_um or (1.0,) * n_space),
            (0.0,) * len(letters),
            tuple(range(start, len(letters))),
            None,  # which the format knows for OME-Zarr only
        )
    image = read_multiscales(volume.url)
    level = image.levels[volume.level]
    kept = [n for n, axis in enumerate(image.axes) if axis in "TZYX"]
    kept.sort(key=lambda n: image.axes[n] != "T")
    source = "../../"
    if home is None:
        both_here = not is_remote(volume.url) and not is_remote(url)
        source = Path(os.path.relpath(volume.url, url)).as_posix() if both_here else volume.url
    return Described(
        tuple(image.names[n] for n in kept),
        tuple("time" if image.axes[n] == "T" else "space" for n in kept),
        tuple(image.units[n] for n in kept),
        tuple(level.scale[n] for n in kept),
        tuple(level.translation[n] for n in kept),
        tuple(kept.index(axis) for axis in stored.space),
        source,
    )


def create_array(
    url: str, shape: Sequence[int], chunks: Sequence[int], version: str, names: tuple[str, ...]
) -> None:
    """Make an array of labels in which nothing is written."""
    zarr = import_zarr()
    if version == "0.5":
        compressor = zarr.codecs.BloscCodec(typesize=4, cname="zstd", clevel=5, shuffle="shuffle")
    else:
        import numcodecs

        compressor = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
    zarr.create_array(
        store=open_store(url, read_only=False),
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype="uint32",
        fill_value=0,
        compressors=[compressor],
        chunk_key_encoding={"name": "default" if version == "0.5" else "v2", "separator": "/"},
        dimension_names=names if version == "0.5" else None,
        zarr_format=3 if version == "0.5" else 2,
        config={"write_empty_chunks": False},
        overwrite=True,
    )


def write_group(url: str, attributes: dict[str, Any], zarr_format: int) -> None:
    """Make a group of what is at a place, or write its attributes anew."""
    # to create a group where one is deletes what is in it
    group = import_zarr().open_group(
        store=open_store(url, read_only=False),
        mode="a",
        zarr_format=zarr_format,
        use_consolidated=False,
    )
    group.attrs.put(attributes)


def register(home: str, name: str, zarr_format: int, version: str) -> None:
    """List labels in the image that they are of; other lists that a store keeps are made anew."""
    zarr = import_zarr()
    store = open_store(home, read_only=False)
    group = zarr.open_group(
        store=store, path="labels", mode="a", zarr_format=zarr_format, use_consolidated=False
    )
    attributes = dict(group.attrs)
    inner = dict(attributes.get("ome", {"version": version})) if version == "0.5" else attributes
    listed = inner.get("labels")
    names = list(listed) if isinstance(listed, list) else []
    if name not in names:
        inner["labels"] = [*names, name]
        group.attrs.put(attributes | {"ome": inner} if version == "0.5" else inner)
    place = home
    # fields of a plate may be at it at the same time, and the last one has to see the others
    with _LISTING:
        for _ in range(4):  # field, well, row, plate
            if _is_consolidated(place):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that format 3 does not know of it yet
                    target = open_store(place, read_only=False)
                    zarr.consolidate_metadata(target, zarr_format=zarr_format)
            place = place.rpartition("/")[0]


def _is_consolidated(url: str) -> bool:
    """Whether a group keeps the metadata of what is in it, which readers then believe."""
    if get(url, ".zmetadata") is not None:
        return True
    own = get(url, "zarr.json")
    try:
        return own is not None and json.loads(own).get("consolidated_metadata") is not None
    except ValueError:
        return False
