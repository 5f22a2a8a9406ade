"""Write files whole or not at all.

A file is written under a hidden name beside its own and renamed when it is complete, so a full
disk, a crash or Ctrl-C leaves what was there before. What the bytes mean is nobody's business
here.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from spoco_zoo.errors import OutputError

_UMASK = threading.Lock()


def write_whole(
    path: Path, write: Callable[[BinaryIO], None], *, overwrite: bool = False, lasts: bool = True
) -> None:
    """Write a file by a function that is given it open, and name it when it is complete.

    Args:
        path: Its name.
        write: Writes it.
        overwrite: Whether it may be there already.
        lasts: Wait until it would survive a power cut.

    Raises:
        OutputError: The file exists and may not be overwritten, or the disk refuses it.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        with temporary.open("w+b") as file:  # by its name, which tifffile asks for
            write(file)
            file.flush()
            if lasts:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise refused(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, or find it there.

    Raises:
        OutputError: The disk refuses it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(path, error) from error


def write_bytes(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write bytes whole or not at all.

    Raises:
        OutputError: The file exists and may not be overwritten, or the disk refuses it.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_whole(path, write, overwrite=overwrite)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Stop before work is done for a file that may not be written.

    Raises:
        OutputError: The file exists and may not be overwritten.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already: choose another name or add --overwrite")


def refused(path: Path, error: OSError) -> OutputError:
    """Say in one way that the disk refuses to write."""
    reason = error.strerror or error
    return OutputError(f"{path}: cannot be written ({reason}): free space or choose another folder")


def _umask() -> int:
    # it can only be read by setting it, for the whole process: one thread at a time
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
