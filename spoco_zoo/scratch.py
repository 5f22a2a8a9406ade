"""Arrays that the steps of a long run leave for each other: whole, checked, read one by one.

A file is a zip of NPY members, as NumPy's own NPZ is: each with a checksum, slightly compressed
where it is of integers (labels shrink a lot, embeddings do not), named when it is complete. A
member is read without the others. The comment of the zip is a checksum of all that is before it.
Who finds a file damaged treats it as one that was never written.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spoco_zoo.files import write_whole

_SEAL = 8  # bytes
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError)


class DamagedFileError(Exception):
    """A file of arrays is not there, or not what was written; it has to be made again."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, lasts: bool = True) -> None:
    """Write arrays by name, in place of what may be there.

    Args:
        path: The file.
        arrays: What it is to hold.
        lasts: Wait until the file would survive a power cut; else it may be found damaged.

    Raises:
        OutputError: The disk refuses it.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                # a fixed date, so that equal arrays make equal files
                info = zipfile.ZipInfo(f"{name}.npy")
                is_float = np.asarray(array).dtype.kind == "f"
                info.compress_type = zipfile.ZIP_STORED if is_float else zipfile.ZIP_DEFLATED
                info._compresslevel = 1  # type: ignore[attr-defined]  # noqa: SLF001
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.comment = bytes(_SEAL)
        seal = _seal(file)
        file.seek(-_SEAL, os.SEEK_END)
        file.write(seal)

    write_whole(path, write, overwrite=True, lasts=lasts)


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
    """Whether a file is there and every byte is what was written."""
    try:
        with path.open("rb") as file:
            return _seal(file) == file.read()
    except OSError:
        return False


def _seal(file: BinaryIO) -> bytes:
    """Make the checksum of a file, and stop where it is to stand.

    The checksums of members do not tell of what is between them: a name could be gone.
    """
    left, seal = max(file.seek(0, os.SEEK_END) - _SEAL, 0), 0
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        seal = zlib.crc32(part, seal)
        left -= len(part)
    return b"%08x" % seal
