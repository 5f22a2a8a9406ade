"""TIFFs of any size as arrays in their file: BigTIFF, OME, ImageJ, pyramids, tiles, compression.

Where pixels lie in the file one after another, it is mapped into memory; else a tile or strip is
decoded at a time, through the view of zarr that `tifffile` gives. Small files are read as a whole
in `images`.
"""

import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.images import check_tiff, tiff_scale
from spoco_zoo.stores import import_zarr, is_remote, with_backend

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")


@dataclass(frozen=True)
class Head:
    """What a TIFF says of itself, the finest level first."""

    axes: str
    shapes: tuple[tuple[int, ...], ...]  # of the levels
    scale_um: tuple[float, ...] | None  # of the finest, for (z, y, x) or (y, x)
    channel_names: tuple[str, ...]


def read_head(url: str) -> Head:
    """Read what a TIFF says of its axes and levels.

    Raises:
        ImageError: It is not there, not readable, several images, or no intensities.
        MissingExtraError: The backend of its address is not installed.
    """
    try:
        with _open_file(url) as file:
            check_tiff(Path(url), file, as_labels=False)
            series = file.series[0]
            text = file.ome_metadata if file.is_ome else ""
            return Head(
                series.axes,
                tuple(tuple(level.shape) for level in series.levels),
                tiff_scale(file),
                tuple(re.findall(r'<(?:\w+:)?Channel\b[^>]*\bName="([^"]*)"', text)),
            )
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise _unreadable(url, error) from error


def open_tiff(url: str, level: int) -> Any:  # noqa: ANN401 - mapped into memory, or of zarr
    """Open the pixels of a level, to be read box by box.

    Raises:
        ImageError: It is not there or not readable.
        MissingExtraError: It cannot be mapped into memory, and zarr is not installed.
    """
    try:
        file = _open_file(url)
        series = file.series[0]
        if level == 0 and not is_remote(url) and series.dataoffset is not None:
            import tifffile

            file.close()
            return tifffile.memmap(url, mode="r")
        zarr, view = import_zarr(), series.aszarr(level=level)
        # a view of a file that could be written refuses to be opened for reading
        array = zarr.open_array(store=view, mode="r" if view.read_only else "r+")
        weakref.finalize(array, file.close)  # which the view reads from
        return array
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:
        raise _unreadable(url, error) from error


def _open_file(url: str) -> Any:  # noqa: ANN401 - tifffile is untyped
    import tifffile

    if not is_remote(url):
        if not Path(url).is_file():
            raise ImageError(f"{url}: no such file: check the path")
        return tifffile.TiffFile(url)
    import_zarr()  # its extra brings fsspec
    import fsspec

    # not opened here: what is in an archive can be read while that is kept
    return tifffile.TiffFile(with_backend(url, lambda: fsspec.open(url, "rb")))


def _unreadable(url: str, error: Exception) -> ImageError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ImageError(
        f"{url}: cannot be read as TIFF ({reason}): copy it again, or open it in Fiji and save it"
    )
