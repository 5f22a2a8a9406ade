"""An image and its labels in files, of which boxes can be read without the rest.

A part is one of the two. It knows its shape before its pixels are read, and how to read them:
all at once (`load`), or out of an array that stays in the file (`open`), as uncompressed TIFF,
NPY, HDF5 and OME-Zarr have one. Sources are sent to other processes, so nothing stays open in
them: each process opens what it reads and keeps the last few.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Integer

from spoco_zoo.errors import ImageError
from spoco_zoo.images import check_finite
from spoco_zoo.labels import KNOWN_BACKGROUND, check_label_states

Box = tuple[slice, ...]

_SLAB = 1 << 22  # pixels


@dataclass(frozen=True, eq=False)
class Part:
    """An image `(c, *space)`, or labels `*space`, in a file."""

    where: str  # the file, and what in it
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] | None = None  # all of it, where that has a way of its own
    open: Callable[[], Any] | None = None  # the array in the file, with axes as they are stored
    order: tuple[int | None, ...] = ()  # the stored axis of each axis; None where there is none
    is_painted: bool = False  # labels in states already, out of outlines

    @property
    def is_mapped(self) -> bool:
        """Whether a box is read without the rest."""
        return self.open is not None

    def read_all(self) -> np.ndarray:
        """Read everything, in the dtype of the file."""
        if self.load is None:
            return self.read(tuple(slice(0, n) for n in self.shape))
        return self.load()

    def read(self, box: Box) -> np.ndarray:
        """Read a box, one slice for each axis, in the dtype of the file."""
        if self.open is None:
            return np.asarray(_loaded(self)[box])
        stored = _opened(self, os.getpid())
        place: list[slice | int] = [0] * len(stored.shape)
        for part, axis, size in zip(box, self.order, self.shape, strict=True):
            if axis is not None:
                # the file may hold more channels than are wanted, such as alpha
                place[axis] = slice(*part.indices(size))
        pixels = np.asarray(stored[tuple(place)])
        there = [axis for axis in self.order if axis is not None]
        pixels = pixels.transpose([sorted(there).index(axis) for axis in there])
        missing = [n for n, axis in enumerate(self.order) if axis is None]
        return np.expand_dims(pixels, missing).astype(pixels.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True, eq=False)
class Source:
    """An image with its labels, and the size of a pixel in micrometres where a file says it."""

    name: str
    image: Part
    labels: Part
    scale_um: tuple[float, ...] | None = None
    background_label: int | None = None  # this number is known background, but in outlines

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return self.image.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        """Size in pixels, without the channels."""
        return self.image.shape[1:]

    @property
    def is_mapped(self) -> bool:
        """Whether boxes of both image and labels are read without the rest."""
        return self.image.is_mapped and self.labels.is_mapped

    def read(self, box: Box | None = None) -> tuple[np.ndarray, Integer[np.ndarray, "*space"]]:
        """Read pixels `(c, *space)` and labels `*space` of a box, or of the whole image.

        Labels are UNLABELED where nobody knows, KNOWN_BACKGROUND where that was painted, else
        as in the file.

        Raises:
            ImageError: Pixels are not finite numbers, or labels are no ids.
        """
        if box is None:
            return (
                _check_pixels(self.image.read_all(), self.image.where),
                self._check_labels(self.labels.read_all()),
            )
        pixels = self.image.read((slice(None), *box))
        return _check_pixels(pixels, self.image.where), self.read_labels(box)

    def read_labels(self, box: Box) -> Integer[np.ndarray, "*space"]:
        """Read the labels of a box alone."""
        return self._check_labels(self.labels.read(box))

    def _check_labels(self, labels: np.ndarray) -> Integer[np.ndarray, "*space"]:
        if self.labels.is_painted:
            return labels
        labels = check_label_states(labels, self.labels.where)
        if self.background_label is None:
            return labels
        return np.where(labels == self.background_label, KNOWN_BACKGROUND, labels.astype(np.int64))

    def slabs(self) -> Iterator[Box]:
        """Cut the image along its first axis into boxes that are small in memory."""
        first, *rest = self.space
        step = max(_SLAB // math.prod(rest), 1)
        for start in range(0, first, step):
            yield (slice(start, min(start + step, first)), *(slice(0, n) for n in rest))


def _check_pixels(pixels: np.ndarray, where: str) -> np.ndarray:
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif":
        raise ImageError(f"{where}: pixels are {pixels.dtype}: expected integers or floats")
    check_finite(pixels, where)
    return pixels


@lru_cache(maxsize=4)
def _loaded(part: Part) -> np.ndarray:
    return part.read_all()


@lru_cache(maxsize=64)
def _opened(part: Part, process: int) -> Any:  # noqa: ANN401 - any array that can be sliced
    # by process, since a file opened before a fork must not be read after it
    assert part.open is not None
    return part.open()
