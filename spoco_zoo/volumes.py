"""Images larger than memory at the door: OME-Zarr and large TIFFs, of which boxes are read.

A volume is a sentence about where pixels are, not the pixels and no open file, so it is sent to
other processes as it is. A plate or a time series is several volumes. Nothing is written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spoco_zoo.tiling import Box


@dataclass(frozen=True)
class Volume:
    """One image `(c, *space)` in a store, at one level and one point in time."""

    url: str  # of the image group or TIFF
    name: str  # short, for file names and messages
    shape: tuple[int, ...]  # (c, *space)
    dtype: str
    scale_um: tuple[float, ...] | None  # of the level that is read, for each space axis
    chunks: tuple[int, ...]  # of the storage (shards, where there are), for each space axis
    level: int = 0
    time: int | None = None  # where there is a t axis

    def read(self, box: Box) -> np.ndarray:
        """Read a box of the space axes, `(c, *box)`, in the dtype of the file.

        A chunk that is not there is fill value, as the formats say.

        Raises:
            ImageError: A chunk cannot be decoded, or the store is gone.
        """
        raise NotImplementedError

    def read_around_damage(self, box: Box) -> tuple[np.ndarray, list[str]]:
        """Read a box with 0 in place of chunks that cannot be decoded, and a sentence for each.

        Raises:
            ImageError: The store is gone.
        """
        raise NotImplementedError


def is_volume(url: str | Path) -> bool:
    """Whether an input is an OME-Zarr store, by its name (`.zarr`, or an address with a scheme)."""
    raise NotImplementedError


def open_volumes(
    url: str | Path,
    n_axes: int,
    *,
    level: int = 0,
    channels: Sequence[int | str] | None = None,
) -> list[Volume]:
    """List the images of a store or a large TIFF: wells and fields of a plate, points in time.

    Args:
        url: An OME-Zarr image, plate, well or bioformats2raw layout, or a TIFF; a path or an
            address of fsspec such as s3://.
        n_axes: Number of space axes that the network takes.
        level: Resolution level, 0 being the finest.
        channels: Which channels, by index or by name; None takes all.

    Raises:
        ImageError: There is no image, or it has other axes, levels or channels than asked for.
        MissingExtraError: zarr, fsspec or the backend of the address is not installed.
    """
    raise NotImplementedError
