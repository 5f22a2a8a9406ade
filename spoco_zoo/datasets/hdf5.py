"""DIR/{train,val}/*.h5: a file holds an image and its labels, as PlantSeg and pytorch-3dunet write.

Volumes are (Z, Y, X) or (C, Z, Y, X); images are (Y, X), (1, Y, X), (C, Y, X) or (C, 1, Y, X).
The attribute `element_size_um` (z, y, x) is the voxel size. h5py is an extra and imported where
a file is opened; boxes are read chunk by chunk.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo.datasets.layouts import join
from spoco_zoo.datasets.source import Part, Source
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.images import known_scale
from spoco_zoo.spec import DataSettings

SUFFIXES = (".h5", ".hdf5", ".hdf", ".hd5")


def list_files(folder: Path) -> list[Path]:
    """List the HDF5 files of a folder by name."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def list_unread(folder: Path) -> list[str]:
    """Name what lies beside the HDF5 files of a folder, but for hidden files."""
    known = set(list_files(folder))
    return sorted(
        path.name
        for path in folder.iterdir()
        if path not in known and not path.name.startswith(".")
    )


def find(folder: Path, settings: DataSettings, n_axes: int | None) -> list[Source]:
    """Open every HDF5 file of a folder as one source.

    Raises:
        ImageError: A file is unreadable, lacks one of the two, or they do not fit together.
        MissingExtraError: h5py is not installed.
    """
    files = list_files(folder)
    if not files:
        raise ImageError(
            f"{folder}: no HDF5 file found: expected files ending in {', '.join(SUFFIXES)}"
        )
    return [_open(path, settings, n_axes) for path in files]


def open_file(path: Path) -> Any:  # noqa: ANN401 - h5py is an extra
    """Open a file for reading.

    Raises:
        ImageError: It cannot be read.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be read as HDF5: expected a whole file; write it again"
        ) from error


def open_set(path: Path, key: str) -> Any:  # noqa: ANN401 - h5py is an extra
    """Open a data set of a file.

    Raises:
        ImageError: The file cannot be read, or has no such data set.
        MissingExtraError: h5py is not installed.
    """
    import_h5py()
    import h5py

    file = open_file(path)
    if key not in file or not isinstance(file[key], h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, item: _note(names, name, item))
        file.close()
        held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ImageError(
            f"{path}: holds no data set {key}, only {held or 'nothing'}: "
            "set data.hdf5_raw and data.hdf5_label in the spec"
        )
    return file[key]


def import_h5py() -> None:
    """Say what is missing where HDF5 cannot be read.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("HDF5 needs h5py: pip install 'spoco-zoo[data]'") from error


def _note(names: list[str], name: str, item: object) -> None:
    if hasattr(item, "shape"):
        names.append(name)


def _open(path: Path, settings: DataSettings, n_axes: int | None) -> Source:
    raw = open_set(path, settings.hdf5_raw)
    label = open_set(path, settings.hdf5_label)
    where = [f"{path}:{key}" for key in (settings.hdf5_raw, settings.hdf5_label)]
    label_order = _order_labels(label.shape, n_axes, where[1])
    space = tuple(label.shape[axis] for axis in label_order)
    if raw.shape[:-1] == space and raw.shape[-len(space) :] != space:
        raise ImageError(
            f"{where[0]}: shape is {raw.shape}, with channels last: expected them first; move that "
            "axis and write the file again"
        )
    order = _order_image(raw.shape, len(space), where[0])
    image, labels = (
        Part(
            name,
            tuple(1 if axis is None else stored.shape[axis] for axis in axes),
            stored.dtype,
            open=partial(open_set, path, key),
            order=axes,
        )
        for name, stored, axes, key in (
            (where[0], raw, order, settings.hdf5_raw),
            (where[1], label, label_order, settings.hdf5_label),
        )
    )
    scale_um = _scale(raw, len(label_order)) or _scale(label, len(label_order))
    for stored in (raw, label):
        stored.file.close()
    return join(path.stem, image, labels, scale_um, n_axes)


def _order_labels(shape: Sequence[int], n_axes: int | None, where: str) -> tuple[int, ...]:
    """Say which stored axes are space: the last two or three, all before them being single."""
    n_space = 2 if len(shape) == 2 or (n_axes != 3 and shape[-3:-2] == (1,)) else 3
    if len(shape) < 2 or any(size != 1 for size in shape[:-n_space]):
        raise ImageError(
            f"{where}: label shape is {tuple(shape)}: expected (y, x) or (z, y, x) with one "
            "integer a pixel"
        )
    return tuple(range(len(shape) - n_space, len(shape)))


def _order_image(shape: Sequence[int], n_space: int, where: str) -> tuple[int | None, ...]:
    """Say which stored axes are `(c, *space)`: channels come first, single axes are none."""
    first = len(shape) - n_space
    wide = [axis for axis in range(first) if shape[axis] != 1]
    if first < 0 or len(wide) > 1:
        raise ImageError(
            f"{where}: shape is {tuple(shape)}: expected (y, x) or (z, y, x), "
            "with channels before them if there are any"
        )
    return (wide[0] if wide else None, *range(first, len(shape)))


def _scale(stored: Any, n_space: int) -> tuple[float, ...] | None:  # noqa: ANN401 - untyped
    sizes = np.ravel(stored.attrs.get("element_size_um", ()))
    if sizes.dtype.kind not in "uif" or len(sizes) < n_space:
        return None
    return known_scale([float(size) for size in sizes[-n_space:]], n_space)
