"""Arrays that the steps of a long run leave for each other: whole, checked, read one by one.

A file is a zip of NPY members, as NumPy's own NPZ is: each with a checksum, slightly compressed
(labels shrink a lot), named when it is complete. A member is read without the others. Who finds
a file damaged treats it as one that was never written.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spoco_zoo.files import write_whole

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError)


class DamagedFileError(Exception):
    """A file of arrays is not there, or not what was written; it has to be made again."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, in place of what may be there.

    Raises:
        OutputError: The disk refuses it.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                # a fixed date, so that equal arrays make equal files
                info = zipfile.ZipInfo(f"{name}.npy")
                info.compress_type = zipfile.ZIP_DEFLATED
                info._compresslevel = 1  # type: ignore[attr-defined]  # noqa: SLF001
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    write_whole(path, write, overwrite=True)


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Read some arrays, each checked against its checksum.

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = []
            for name in names:
                with archive.open(f"{name}.npy") as member:
                    found.append(np.lib.format.read_array(member, allow_pickle=False))
                    member.read()  # the checksum is looked at when all is read
            return found
    except (*_DAMAGED, OSError) as error:
        raise DamagedFileError(f"{path}: {error}") from error


def is_whole(path: Path) -> bool:
    """Whether a file is there and every member is what was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (*_DAMAGED, OSError):
        return False
