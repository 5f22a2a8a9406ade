"""Label images larger than memory, written chunk by chunk as OME-Zarr labels with a pyramid.

A store is made under a hidden name, written by whoever holds the handle (no two writers share a
chunk, so there are no locks), and made visible when it is complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt32

from spoco_zoo.tiling import Box
from spoco_zoo.volumes import Volume


@dataclass(frozen=True)
class LabelLevel:
    """One resolution of a label image, in space axes."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    factors: tuple[int, ...]  # how many pixels of level 0 one pixel stands for, on each axis

    def boxes(self) -> list[Box]:
        """List its chunks as boxes, last axis fastest."""
        raise NotImplementedError


@dataclass(frozen=True)
class LabelStore:
    """A label image that is being written; the handle is small and goes to other processes."""

    url: str  # where it will be when it is finished
    part_url: str  # where it is written
    shape: tuple[int, ...]  # space axes
    chunks: tuple[int, ...]  # space axes
    n_times: int | None = None  # length of the t axis, where there is one

    def write(
        self, box: Box, labels: UInt32[np.ndarray, "*space"], time: int | None = None
    ) -> None:
        """Write whole chunks of level 0.

        Raises:
            OutputError: The disk refuses it, or the store is gone.
            SettingError: The box is not made of whole chunks.
        """
        raise NotImplementedError

    def read(
        self, box: Box, time: int | None = None, level: int = 0
    ) -> UInt32[np.ndarray, "*space"]:
        """Read a box of a level; what was not written is 0."""
        raise NotImplementedError

    def plan_pyramid(self) -> tuple[LabelLevel, ...]:
        """List the levels, the finest first."""
        raise NotImplementedError

    def downsample(self, level: int, box: Box, time: int | None = None) -> None:
        """Compute whole chunks of a level out of the level above it."""
        raise NotImplementedError

    def finish(self, n_labels: int) -> None:
        """Make it visible: all of it, or nothing. Finishing twice changes nothing."""
        raise NotImplementedError

    def discard(self) -> None:
        """Delete what was written and not finished."""
        raise NotImplementedError


def create_labels(
    target: str | Path | None,
    volumes: Sequence[Volume],
    *,
    name: str = "instances",
    chunks: tuple[int, ...],
    version: Literal["0.4", "0.5"] | None = None,
    overwrite: bool = False,
) -> LabelStore:
    """Make an unfinished label image for one image, all points in time.

    Args:
        target: The new store; None puts it into the store of the image, as labels/NAME.
        volumes: One image: its points in time, or the one volume.
        name: Of the labels.
        chunks: Size for each space axis; cut to the image.
        version: Of the format, for a new store; into a store that of the store is taken.
        overwrite: Whether labels of that name, or that store, may be replaced.

    Raises:
        OutputError: It exists already, or cannot be written.
        SettingError: Labels cannot go into this input.
        MissingExtraError: zarr or fsspec is not installed.
    """
    raise NotImplementedError


def reopen(
    target: str | Path | None, volumes: Sequence[Volume], *, name: str = "instances"
) -> LabelStore | None:
    """Find the unfinished label image of an earlier run; None where there is none.

    Raises:
        OutputError: What is there was made for another image.
    """
    raise NotImplementedError
