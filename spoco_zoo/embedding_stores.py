"""Embeddings larger than memory as OME-Zarr on a disk, for people who want to look at them.

Axes are (c, z, y, x) or (c, y, x); one chunk holds all numbers of a window of the clustering, so
no two workers write one chunk. There is no pyramid: means of embeddings are nobody's embeddings.
"""

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spoco_zoo.errors import OutputError
from spoco_zoo.files import refuse_existing
from spoco_zoo.label_metadata import Described, write_group
from spoco_zoo.refusals import say_why
from spoco_zoo.stores import import_zarr, open_store
from spoco_zoo.tiling import Box

_LEVEL = "0"


def create_embeddings(
    place: Path,
    shape: Sequence[int],
    windows: Sequence[int],
    described: Described,
    version: str,
) -> None:
    """Make an image of embeddings in which nothing is written, in place of what may be there.

    Args:
        place: Where it is written, until `finish_embeddings` names it.
        shape: `(e, *space)`.
        windows: Pixels per space axis of a chunk.
        described: Axes of the image and where its pixels lie, as labels of it say.
        version: Of the format, 0.4 or 0.5.

    Raises:
        OutputError: The disk refuses it.
    """
    names = ("c", *(described.names[n] for n in described.space))
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    for n in described.space:
        unit = described.units[n]
        told_unit = {} if unit is None else {"unit": unit}
        axes.append({"name": described.names[n], "type": "space"} | told_unit)
    scale = [1.0, *(described.scale[n] for n in described.space)]
    offset = [0.0, *(described.translation[n] for n in described.space)]
    changes: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if any(offset):
        changes.append({"type": "translation", "translation": offset})
    dataset = {"path": _LEVEL, "coordinateTransformations": changes}
    image: dict[str, Any] = {"name": "embedding", "axes": axes, "datasets": [dataset]}
    told: dict[str, Any] = {"multiscales": [{"version": "0.4"} | image]}
    if version == "0.5":
        told = {"ome": {"version": "0.5", "multiscales": [image]}}
    is_new = version == "0.5"
    try:
        shutil.rmtree(place, ignore_errors=True)
        write_group(str(place), told, 3 if is_new else 2)
        import_zarr().create_array(
            store=open_store(str(place / _LEVEL), read_only=False),
            shape=tuple(shape),
            chunks=(shape[0], *map(min, windows, shape[1:])),
            dtype="float32",
            fill_value=0,
            chunk_key_encoding={"name": "default" if is_new else "v2", "separator": "/"},
            dimension_names=names if is_new else None,
            zarr_format=3 if is_new else 2,
        )
    except OSError as error:
        raise _refused(place, error) from error


def write_embeddings(place: Path, box: Box, embedding: Float[np.ndarray, "e *space"]) -> None:
    """Write a box that is made of whole windows.

    Raises:
        OutputError: The disk refuses it, or the store is gone.
    """
    try:
        _opened(str(place), os.getpid())[(slice(None), *box)] = embedding
    except (OSError, ValueError, KeyError) as error:
        raise _refused(place, error) from error


def finish_embeddings(place: Path, target: Path, *, overwrite: bool) -> None:
    """Give finished embeddings their name.

    Raises:
        OutputError: The name is taken and may not be replaced, or the disk refuses it.
    """
    refuse_existing(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    except OSError as error:
        raise _refused(target, error) from error


@lru_cache(maxsize=4)
def _opened(place: str, process: int) -> Any:  # noqa: ANN401 - zarr is an extra
    return import_zarr().open_array(
        store=open_store(place, read_only=False), path=_LEVEL, mode="r+"
    )


def _refused(place: Path, error: Exception) -> OutputError:
    return OutputError(
        f"{place}: cannot be written ({say_why(error)}): free space or choose another folder"
    )
