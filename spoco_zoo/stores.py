"""Folders of small files on this machine or behind an address of fsspec, as zarr keeps arrays.

What the files mean is nobody's business here. zarr and fsspec are an extra and imported where a
store is opened.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from spoco_zoo.errors import ImageError, MissingExtraError, SettingError, SpocoZooError

T = TypeVar("T")

MARKS = (".zarray", "zarr.json")  # where one of them is, there may be an array
_CACHES = ("simplecache", "filecache", "blockcache", "cached")  # what has the place of the next


def clean_address(url: str | Path) -> str:
    """Write a path or an address in one way.

    A path is absolute, since other processes may work in another folder, `file://` is a path,
    and an address has no slash at its end.
    """
    text = str(url)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if not is_remote(text):
        return str(Path(text).absolute())
    before, link, last = join(text).rpartition("::")  # of a chain the last may be a path
    return before + link + (str(Path(last).absolute()) if before and "://" not in last else last)


def follow_link(url: str) -> str:
    """Where a link leads that is given as a place to write: it is kept, its goal replaced.

    Raises:
        SettingError: It leads to itself.
    """
    if is_remote(url) or not os.path.islink(url):
        return url
    goal = os.path.realpath(url)
    if os.path.islink(goal):
        raise SettingError(f"{url}: is a link that leads to itself: give another place")
    return goal


def is_remote(url: str) -> bool:
    """Whether a clean address is one of fsspec rather than a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", url, re.IGNORECASE) is not None or "::" in url


def join(url: str, *parts: str) -> str:
    """Put names behind an address; in a chain of them, behind the place within the archive."""
    before, scheme, place, behind = _cut(url)
    names = [part.strip("/") for part in parts if part]
    start = [place.rstrip("/")] if place else []
    return before + scheme + "/".join([*start, *names]) + behind


def place_in(url: str) -> str:
    """Where something is in the file system or archive that an address leads to."""
    return _cut(url)[2]


def name_of(url: str) -> str:
    """Last name of a path or address; of what is all of an archive, that of the archive."""
    own = place_in(url).strip("/") or re.sub(r"\.[^./]+$", "", url.split("::")[-1])
    return own.split("/")[-1]


def _cut(url: str) -> tuple[str, str, str, str]:
    """Cut an address into what comes before its place, its scheme, its place, and what follows.

    In zip://a.zarr::s3://bucket/b.zip the place is that in the zip.
    """
    links = url.split("::")
    own = 0
    while links[own] in _CACHES and own + 1 < len(links):
        own += 1
    before = "".join(f"{link}::" for link in links[:own])
    behind = "".join(f"::{link}" for link in links[own + 1 :])
    scheme, mark, place = links[own].rpartition("://")
    if behind and not mark:  # zip::b.zip is all of it
        return before, f"{place}://", "", behind
    return before, scheme + mark, place, behind


def open_store(url: str, *, read_only: bool = True) -> Any:  # noqa: ANN401 - zarr is an extra
    """Open a store of zarr, on this machine or through fsspec.

    Raises:
        MissingExtraError: zarr, fsspec or the backend of the address is not installed.
        ImageError: No backend knows such an address.
    """
    zarr = import_zarr()
    if not is_remote(url):
        return zarr.storage.LocalStore(url, read_only=read_only)
    return with_backend(url, lambda: zarr.storage.FsspecStore.from_url(url, read_only=read_only))


def with_backend(url: str, use: Callable[[], T]) -> T:
    """Do something that needs the backend of an address, and say so where it is missing.

    Raises:
        MissingExtraError: The backend is not installed.
        ImageError: There is no such backend.
    """
    try:
        return use()
    except ImportError as error:
        scheme = _find_fault(url)
        backends = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp requests"}
        backend = {**backends, "https": "aiohttp requests", "az": "adlfs"}.get(scheme)
        how = f"pip install {backend}" if backend else "install the one for it"
        raise MissingExtraError(
            f"{url}: {scheme}:// needs a backend of fsspec that is not installed: {how}"
        ) from error
    except ValueError as error:
        if "not known" not in str(error):  # as fsspec says it of the scheme
            raise
        scheme = _find_fault(url)
        raise ImageError(
            f"{url}: {scheme}:// is an unknown kind of address: expected a path, or s3://, "
            "gs://, https:// and others that fsspec knows"
        ) from error


def _find_fault(url: str) -> str:
    """Scheme of the link of an address that has no backend, the last of them."""
    from fsspec import get_filesystem_class

    schemes = [link.split("://")[0] for link in url.split("::") if "://" in link]
    for scheme in reversed(schemes):
        try:
            get_filesystem_class(scheme)
        except (ImportError, ValueError):
            return scheme
    return schemes[-1] if schemes else url


def import_zarr() -> Any:  # noqa: ANN401 - an extra
    """Import zarr with its stores.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import fsspec  # noqa: F401 - needed for addresses, and part of the same extra
        import zarr
        import zarr.storage
    except ImportError as error:
        raise MissingExtraError("OME-Zarr needs zarr: pip install 'spoco-zoo[volumes]'") from error
    return zarr


def get(url: str, key: str) -> bytes | None:
    """Read one file of a store; None where it is not there.

    Raises:
        OSError: The disk or backend refuses it.
    """
    if not is_remote(url):
        path = Path(url, key)
        return path.read_bytes() if path.is_file() else None
    try:
        return _ask(url, key, lambda files, place: bytes(files.cat_file(place)))
    except FileNotFoundError:
        return None


def find_stamp(url: str, keys: Sequence[str]) -> object | None:
    """Tell what is at a place from what was there before it; None where nothing is.

    Elsewhere than on this machine, all that is told is whether one of the files is there.
    """
    for key in keys:
        if is_remote(url):
            if get(url, key) is not None:
                return key
            continue
        with suppress(FileNotFoundError, NotADirectoryError):
            found = Path(url, key).stat()
            return key, found.st_ino, found.st_mtime_ns, found.st_size
    return None


def put(url: str, key: str, content: bytes) -> None:
    """Write one file of a store.

    Raises:
        OSError: The disk or backend refuses it.
    """
    if not is_remote(url):
        Path(url).mkdir(parents=True, exist_ok=True)
        Path(url, key).write_bytes(content)
        return
    _ask(url, key, lambda files, place: files.pipe_file(place, content))


def delete(url: str, key: str | None = None) -> None:
    """Delete one file of a store, or all of it, of a link only the link; or nothing is there.

    Raises:
        OSError: The disk or backend refuses it.
    """
    if not is_remote(url):
        if key is None and os.path.islink(url):
            os.unlink(url)
        elif key is None:
            shutil.rmtree(url, ignore_errors=True)
        else:
            Path(url, key).unlink(missing_ok=True)
        return

    def remove(files: Any, place: str) -> None:  # noqa: ANN401 - a backend
        if files.exists(place):
            files.rm(place, recursive=key is None)

    _ask(url, key or "", remove)


def has_group(url: str) -> bool:
    """Whether a place holds anything on this machine, or a group of zarr elsewhere."""
    if not is_remote(url):
        return Path(url).exists()
    return any(get(url, key) is not None for key in (".zgroup", "zarr.json"))


def _ask(url: str, key: str, use: Callable[[Any, str], T]) -> T:
    """Ask a backend for something at a place.

    Raises:
        OSError: It refuses, in whatever way.
    """
    import_zarr()
    from fsspec.core import url_to_fs

    try:
        files, place = with_backend(url, lambda: url_to_fs(join(url, key)))
        return use(files, str(place).rstrip("/"))
    except (OSError, SpocoZooError):
        raise
    except Exception as error:  # each backend has errors of its own
        raise OSError(str(error) or type(error).__name__) from error


def refuse_archive(url: str) -> None:
    """Refuse to write where nothing can be written.

    Raises:
        SettingError: The address is in an archive or behind a cache.
    """
    if "::" in url:
        raise SettingError(
            f"{url}: is in an archive or behind a cache, where labels cannot be written: give "
            "a path or an address of their own with -o"
        )
