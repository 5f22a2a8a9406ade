"""Instances across the faces of blocks: one instance is one, whatever the blocks.

Blocks are looked at once to join what lies on their faces (`Joining`), and once to number all
instances (`Numbering`). Memory for joining grows with the objects on faces; numbering keeps eight
bytes for each instance, in a file.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt32

from spoco_zoo.blocks import NOTHING, OPEN, Meeting
from spoco_zoo.clustering import find_consistent
from spoco_zoo.files import write_whole
from spoco_zoo.labels import find_groups
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.scratch import DamagedFileError, read_arrays, write_arrays

BOUND = ("groups", "bound_group", "bound_size", "bound_first", "touching")
_KEYS, _KEYS_TABLE = "keys.part", "keys.zip"
AGREEMENT = ("agreement", "agreement_group", "agreement_size")


class Joining:
    """Takes what blocks say of their faces, and tells which of it is one."""

    def __init__(self, recipe: Recipe) -> None:
        """Start with nothing known."""
        self._recipe = recipe
        self._group_starts: list[int] = [0]
        self._piece_starts: list[int] = [0]
        self._columns: dict[str, list[np.ndarray]] = {}
        self._links: list[np.ndarray] = []
        self._contacts: list[np.ndarray] = []

    def add_block(self, found: Mapping[str, np.ndarray]) -> None:
        """Take the bound pieces of the next block; blocks come in the order of their numbers."""
        groups, pieces = self._group_starts[-1], self._piece_starts[-1]
        take = {
            "group": found["bound_group"] + groups,
            "size": found["bound_size"],
            "first": found["bound_first"],
        }
        if isinstance(self._recipe.clustering, Consistency):
            take |= {name: found[name] for name in AGREEMENT}
            take["agreement_group"] = take["agreement_group"] + groups
        for name, column in take.items():
            self._columns.setdefault(name, []).append(column)
        self._contacts.append(found["touching"].astype(np.int64) + pieces)
        self._group_starts.append(groups + int(found["groups"]))
        self._piece_starts.append(pieces + len(found["bound_size"]))

    def add_meeting(self, number: int, other: int, meeting: Meeting) -> None:
        """Take what two blocks, both added before, are to each other."""
        starts = np.array([number, other])
        self._links.append(meeting.links + np.array(self._group_starts)[starts])
        self._contacts.append(meeting.contacts + np.array(self._piece_starts)[starts])

    def finish(self) -> Iterator[Int[np.ndarray, " n"]]:
        """Yield the keys of the bound pieces of each block."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        links = np.concatenate([np.zeros((0, 2), np.int64), *self._links])
        # groups that find_groups numbers from 1, since 0 is nobody
        groups = find_groups(self._group_starts[-1] + 1, links + 1)
        kept = np.ones(int(groups.max()) + 1, dtype=bool)
        settings = self._recipe.clustering
        if isinstance(settings, Consistency) and len(columns["agreement"]):
            mine = groups[columns["agreement_group"] + 1]
            good = find_consistent(columns["agreement"], columns["agreement_size"], mine, settings)
            kept[: len(good)] = good
        group = groups[columns["group"] + 1]
        contacts = np.concatenate([np.zeros((0, 2), np.int64), *self._contacts])
        contacts = contacts[group[contacts[:, 0]] == group[contacts[:, 1]]]
        whole = find_groups(len(group) + 1, contacts + 1)[1:]
        sizes = np.zeros(int(whole.max(initial=0)) + 1, np.int64)
        np.add.at(sizes, whole, columns["size"])
        firsts = np.full(len(sizes), np.iinfo(np.int64).max)
        np.minimum.at(firsts, whole, columns["first"])
        keys = np.where(sizes >= self._recipe.min_size, firsts, OPEN)[whole]
        keys = np.where(kept[group], keys, NOTHING)
        for start, stop in zip(self._piece_starts[:-1], self._piece_starts[1:], strict=True):
            yield keys[start:stop]


class Keys(NamedTuple):
    """Keys of the bound pieces of all blocks, one after the other in a file."""

    path: Path
    starts: Int[np.ndarray, " b"]  # of each block in the file, and the end of the last
    is_constant: bool  # the image has one value, and no instances
    checksum: int  # of the file

    def of_block(self, number: int) -> Int[np.ndarray, " n"]:
        """The keys of one block."""
        start, stop = self.starts[number : number + 2].tolist()
        return np.fromfile(self.path, np.int64, stop - start, offset=8 * start)


def write_keys(folder: Path, keys: Iterable[Int[np.ndarray, " n"]], *, is_constant: bool) -> None:
    """Write what `Joining.finish` yields.

    Raises:
        OutputError: The disk refuses it.
    """
    starts = [0]

    def write(file: BinaryIO) -> None:
        for part in keys:
            file.write(np.ascontiguousarray(part, np.int64).tobytes())
            starts.append(starts[-1] + len(part))

    path = folder / _KEYS
    write_whole(path, write, overwrite=True)
    words = {
        "starts": np.array(starts),
        "is_constant": np.array(is_constant),
        "checksum": np.array(sum_up(path)),
    }
    write_arrays(folder / _KEYS_TABLE, words)


def read_keys(folder: Path) -> Keys:
    """Read where the keys of each block are; each process does so once.

    Raises:
        DamagedFileError: They have to be found again.
    """
    path = folder / _KEYS_TABLE
    try:
        return _read_keys(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DamagedFileError(f"{path}: {error}") from error


def has_keys(folder: Path) -> bool:
    """Whether the keys are what was written."""
    try:
        found = read_keys(folder)
    except DamagedFileError:
        return False
    return found.path.exists() and sum_up(found.path) == found.checksum


@lru_cache(maxsize=2)
def _read_keys(path: Path, changed: int) -> Keys:
    starts, is_constant, checksum = read_arrays(path, "starts", "is_constant", "checksum")
    return Keys(path.with_name(_KEYS), starts, bool(is_constant), int(checksum))


def sum_up(path: Path) -> int:
    """Checksum of a file."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            checksum = zlib.crc32(part, checksum)
    return checksum


class Numbering:
    """Numbers instances 1..n in the order of their first pixels in the image."""

    def __init__(self, folder: Path) -> None:
        """Keep the first pixels of all instances in a folder."""
        self._path = folder / "firsts.part"
        self._file = self._path.open("wb")
        self._keys: list[np.ndarray] = []
        self._firsts: list[np.ndarray] = []

    def add_block(self, found: Mapping[str, np.ndarray]) -> None:
        """Take where the instances of a block begin, as `fill` left it."""
        shared = found["is_shared"]
        self._file.write(found["firsts"][~shared].tobytes())
        self._keys.append(found["keys"][shared])
        self._firsts.append(found["firsts"][shared])

    def finish(self) -> "Numbers":
        """Sort; where in memory only what several blocks share is kept."""
        keys = np.concatenate([np.zeros(0, np.int64), *self._keys])
        known, index = np.unique(keys, return_inverse=True)
        firsts = np.full(len(known), np.iinfo(np.int64).max)
        np.minimum.at(firsts, index, np.concatenate([np.zeros(0, np.int64), *self._firsts]))
        self._file.write(firsts.tobytes())
        self._file.close()
        count, checksum = self._path.stat().st_size // 8, 0
        if count:
            everything = np.memmap(self._path, np.int64, "r+", shape=(count,))
            everything.sort()
            everything.flush()
            checksum = sum_up(self._path)
        return Numbers(self._path, count, known, firsts, checksum)


class Numbers(NamedTuple):
    """Where all instances begin, sorted, in a file; and of those in several blocks, their keys."""

    path: Path
    total: int
    keys: Int[np.ndarray, " s"]
    firsts: Int[np.ndarray, " s"]
    checksum: int  # of the file

    def is_whole(self) -> bool:
        """Whether the file is what was written."""
        return self.path.exists() and sum_up(self.path) == self.checksum

    def of_block(self, found: Mapping[str, np.ndarray]) -> UInt32[np.ndarray, " k"]:
        """Number of each label of a block, 0 first, as `fill` left it."""
        firsts = found["firsts"].copy()
        shared = found["is_shared"]
        firsts[shared] = self.firsts[np.searchsorted(self.keys, found["keys"][shared])]
        if not self.total:
            return np.zeros(len(firsts) + 1, np.uint32)
        everything = np.memmap(self.path, np.int64, "r", shape=(self.total,))
        return np.append(0, np.searchsorted(everything, firsts) + 1).astype(np.uint32)
