"""What people open of labels that are larger than memory: all but the labels themselves.

`results` does the same for an image in memory, and says where files lie.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo.figures import choose_slices, overlay, paint_slices, write_png
from spoco_zoo.label_stores import LabelStore
from spoco_zoo.measurements import Measurements
from spoco_zoo.qupath_objects import Place
from spoco_zoo.results import Origin, write_objects
from spoco_zoo.volumes import Volume

_MOST_SIDE = 2048  # pixels of the longest side of an overlay
_MOST_PIXELS = 1 << 22  # of the image that are read at once for it


def write_large_results(
    files: Mapping[str, Path],
    volume: Volume,
    store: LabelStore,
    found: Measurements | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write results of an image, reading its labels box by box.

    Args:
        files: Where each kind that is wanted goes, as `results.name_files` says.
        volume: The image, at one point in time.
        store: Its labels, finished.
        found: What was measured of them; None where only an overlay is wanted.
        overwrite: Whether files may be replaced.

    Raises:
        ImageError: The image cannot be read.
        OutputError: A file exists and may not be overwritten, or the disk refuses it.
    """
    labels = StoredLabels(store, volume.time)
    if found is not None:
        write_objects(
            files,
            labels,
            found,
            Origin(
                volume.scale_um,
                volume.stored.n_channels,
                Place(volume.downsampling, volume.finest, volume.time),
            ),
            overwrite=overwrite,
        )
    if "overlay" in files:
        write_png(files["overlay"], _draw(volume, labels), overwrite=overwrite)


class StoredLabels:
    """Labels of a store, cut like an array."""

    def __init__(self, store: LabelStore, time: int | None) -> None:
        """Take a finished label image, and a point in time where it has some."""
        self.shape = store.shape
        self.ndim = len(store.shape)
        self.chunks = store.chunks
        self.dtype = np.dtype(np.uint32)
        self._store = store
        self._time = time

    def __getitem__(self, place: Any) -> np.ndarray:  # noqa: ANN401 - what an array takes
        given = place if isinstance(place, tuple) else (place,)
        given = (*given, *(slice(None),) * (len(self.shape) - len(given)))
        box, single = [], []
        for axis, (part, size) in enumerate(zip(given, self.shape, strict=True)):
            if isinstance(part, slice):
                box.append(slice(*part.indices(size)))
            else:
                box.append(slice(int(part), int(part) + 1))
                single.append(axis)
        found = self._store.read(tuple(box), self._time)
        return np.asarray(found.squeeze(tuple(single)) if single else found)


def _draw(volume: Volume, labels: StoredLabels) -> np.ndarray:
    """Draw instances over an image, or over slices of a volume, coarsely where it is large."""
    *depth, height, width = volume.space
    step = max(math.ceil(max(height, width) / _MOST_SIDE), 1)
    planes = choose_slices(depth[0]) if depth else [None]
    pictures = [_thin_slice(volume, labels, z, step) for z in planes]
    images, ids = zip(*pictures, strict=True)
    if not depth:
        return overlay(images[0], ids[0])
    chosen = [z for z in planes if z is not None]
    return paint_slices(np.concatenate(images, axis=1), np.concatenate(ids), chosen)


def _thin_slice(
    volume: Volume, labels: StoredLabels, z: int | None, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read every so many pixels of an image or of a slice, so many rows at a time as fit."""
    *_, height, width = volume.space
    place = () if z is None else (slice(z, z + 1),)
    rows = max(_MOST_PIXELS // (width * step), 1) * step
    image, ids = [], []
    for row in range(0, height, rows):
        box = (*place, slice(row, min(row + rows, height)), slice(0, width))
        image.append(volume.read(box)[..., ::step, ::step])
        ids.append(labels[box][..., ::step, ::step])
    return np.concatenate(image, axis=-2), np.concatenate(ids, axis=-2)
