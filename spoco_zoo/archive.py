"""Files out of a folder or a zip that nobody vouches for, and the description that is one of them.

Nothing is unpacked and nothing outside of the folder or zip is ever opened. A zip is looked over
as a whole before a file is read from it: links, names that leave it, names that no system or not
every system can hold, sizes that only a bomb has.
"""

import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from spoco_zoo.errors import PackageError

RDF_NAME = "rdf.yaml"
RDF_NAMES = (RDF_NAME, "bioimageio.yaml")  # the second is that of newer tools
_MOST_BITS = 4096
_MOST_RDF_BYTES = 4_000_000
_MOST_FILE_BYTES = 4_000_000_000
_MOST_BYTES = 16_000_000_000  # of all files of a zip
_MOST_RATIO = 500  # of the size of a zip's files to their compressed size
_LARGE = 100_000_000  # bytes from which the ratio counts for one file, too
_MOST_FILES = 10_000
_MOST_DEPTH = 50  # of lists and mappings within each other
_MOST_VALUES = 200_000

# devices of Windows, which stand in every folder there, whatever comes after a dot
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_IMPOSSIBLE = re.compile(r'[\x00-\x1f<>:"|?*\\]')


def check_names(location: Path, names: Iterable[str]) -> None:
    """Refuse names of files that leave the package, or are not one file on every system.

    Raises:
        PackageError: There is such a name, or two that differ in case alone.
    """
    known: dict[str, str] = {}
    for name in names:
        _check_name(location, name)
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise PackageError(
                f"{location}: holds the files {other!r} and {name!r}, which are one file on some "
                "systems: rename one of them"
            )


def check_zip(location: Path) -> None:
    """Look a zip over as a whole, before anything is read from it; a folder passes.

    Raises:
        PackageError: It is no zip, or holds what no package needs.
    """
    if location.is_dir():
        return
    try:
        with zipfile.ZipFile(location) as archive:
            infos = archive.infolist()
            length = location.stat().st_size
    except _ZIP_ERRORS as error:
        raise _no_zip(location, error) from error
    if len(infos) > _MOST_FILES:
        raise PackageError(
            f"{location}: holds {len(infos)} files: expected at most {_MOST_FILES}; "
            "this is no model package"
        )
    names = [info.filename.removesuffix("/") for info in infos]
    check_names(location, names)
    for name, count in Counter(names).items():
        if count > 1:
            raise _not_one(location, name, count)
    for info in infos:
        _check_info(location, info)
    size, packed = sum(i.file_size for i in infos), sum(i.compress_size for i in infos)
    if size > _MOST_BYTES or size > _MOST_RATIO * max(packed, 1) or packed > length:
        raise PackageError(
            f"{location}: unpacks to {size} bytes from {packed} in a file of {length}: "
            "refused as a zip bomb"
        )


def _check_info(location: Path, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageError(
            f"{location}: {info.filename!r} is a link or a device: expected plain files; "
            "zip the files themselves"
        )
    if info.file_size > max(_LARGE, _MOST_RATIO * info.compress_size):
        raise _bomb(location, info)


def find_description(location: Path) -> str:
    """Find the name of the description: `rdf.yaml`, or that which newer tools give it.

    Raises:
        PackageError: It is no folder and no zip.
    """
    try:
        if location.is_dir():
            names = {path.name for path in location.iterdir()}
        else:
            with zipfile.ZipFile(location) as archive:
                names = set(archive.namelist())
    except _ZIP_ERRORS as error:
        raise _no_zip(location, error) from error
    return next((name for name in RDF_NAMES if name in names), RDF_NAME)


def read_description(location: Path, name: str | None = None) -> dict[str, Any]:
    """Read the words of a description as data: no tags, no aliases, no word twice.

    The name of the file is found where it is left out.

    Raises:
        PackageError: There is none, or it is no such YAML.
    """
    name = name or find_description(location)
    content = read_member(location, name)
    place = location / name
    if len(content) > _MOST_RDF_BYTES:
        raise PackageError(
            f"{place}: has {len(content)} bytes: expected at most {_MOST_RDF_BYTES}; "
            "this is no model description"
        )
    try:
        words = yaml.load(content.decode("utf-8"), Loader=_PlainLoader)
    except UnicodeDecodeError as error:
        raise PackageError(f"{place}: is not UTF-8 text: the file is damaged") from error
    except Exception as error:  # a tag on a wrong value makes PyYAML raise anything
        reason = str(getattr(error, "problem", None) or type(error).__name__)
        raise PackageError(f"{place}: is not plain YAML ({reason}): the file is damaged") from error
    if not isinstance(words, dict):
        raise PackageError(f"{place}: holds a {type(words).__name__}: expected words and values")
    return words


class _PlainLoader(yaml.SafeLoader):
    """YAML without what a description does not need and bombs and riddles are made of."""

    _depth = 0
    _values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - as in PyYAML
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias")
        self._values += 1
        if self._depth >= _MOST_DEPTH or self._values > _MOST_VALUES:
            raise yaml.MarkedYAMLError(problem="very many values, or deep ones")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_yaml_int(self, node: Any) -> int:  # noqa: ANN401
        number = int(super().construct_yaml_int(node))
        if number.bit_length() > _MOST_BITS:  # no error could name it
            raise yaml.MarkedYAMLError(problem="a number beyond all counts")
        return number

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: ANN401
        if isinstance(node, yaml.MappingNode):
            words = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(words)) < len(words):
                twice = next(word for word in words if words.count(word) > 1)
                raise yaml.MarkedYAMLError(problem=f"the word {twice!r} twice")
        return super().construct_mapping(node, deep)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def verify(location: Path, name: str, content: bytes, expected: str) -> None:
    """Compare the sha256 of a file with the one that is stated.

    Raises:
        PackageError: They differ.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PackageError(
            f"{location / name}: sha256 is {found[:8]}…, rdf.yaml says {expected[:8]}…: "
            "the file was changed after export; export again"
        )


def read_member(location: Path, name: str) -> bytes:
    """Read one file out of a folder or zip, never from outside of it.

    Raises:
        PackageError: The name leads elsewhere, or there is no such plain file.
    """
    _check_name(location, name)
    if location.is_dir():
        return _read_from_folder(location, name)
    return _read_from_zip(location, name)


def _check_name(location: Path, name: str) -> None:
    parts = name.split("/")
    if not name or ".." in parts or "." in parts or "" in parts or _IMPOSSIBLE.search(name):
        raise PackageError(
            f"{location}: names the file {name!r}: expected a path inside the package"
        )
    for part in parts:
        if _RESERVED.match(part) or part[-1] in ". ":
            raise PackageError(
                f"{location}: names the file {name!r}, which Windows cannot hold: rename it"
            )


def _read_from_folder(location: Path, name: str) -> bytes:
    path = location / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(location)):
        raise PackageError(
            f"{location}: the file {name!r} is a link that leaves the package: copy it inside"
        )
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for
            raise PackageError(f"{path}: is no plain file: copy or export the package again")
        if info.st_size > _MOST_FILE_BYTES:
            raise PackageError(f"{path}: is larger than {_MOST_FILE_BYTES} bytes: not read")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(
            f"{path}: cannot be read ({error.strerror}): the package is incomplete; "
            "copy or export it again"
        ) from error


def _read_from_zip(location: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(location) as archive:
            matches = [info for info in archive.infolist() if info.filename == name]
            if len(matches) != 1:
                raise _not_one(location, name, len(matches))
            info = matches[0]
            ratio = info.file_size / max(info.compress_size, 1)
            if info.file_size > _MOST_FILE_BYTES or ratio > _MOST_RATIO:
                raise _bomb(location, info)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise PackageError(
                    f"{location}: {name!r} is compressed by method {info.compress_type}: "
                    "expected deflate; zip it again"
                )
            with archive.open(info) as file:
                return file.read(info.file_size)  # no more than it says, whatever it holds
    except _ZIP_ERRORS as error:
        raise _no_zip(location, error) from error


_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, ValueError, EOFError)


def _bomb(location: Path, info: zipfile.ZipInfo) -> PackageError:
    return PackageError(
        f"{location}: {info.filename!r} unpacks to {info.file_size} bytes from "
        f"{info.compress_size}: refused as a zip bomb"
    )


def _not_one(location: Path, name: str, count: int) -> PackageError:
    return PackageError(
        f"{location}: holds {count} files {name!r}: expected exactly one, "
        "at the top of the zip; export the package again"
    )


def _no_zip(location: Path, error: Exception) -> PackageError:
    return PackageError(
        f"{location}: cannot be read as a zip ({error}): download or export it again"
    )
