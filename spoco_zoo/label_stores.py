"""Label images larger than memory, written chunk by chunk as OME-Zarr labels with a pyramid.

Whoever holds the handle writes; no two writers share a chunk, so there are no locks. On a disk a
label image grows under a hidden name and is renamed when it is complete. Elsewhere nothing is
renamed: there it becomes one when its metadata are written, last.

A label image goes into the store of its image, as `labels/NAME` in the format of that store, or
makes a store of its own with the pyramid at its root: there napari, ome-zarr, ngff-zarr and
Bio-Formats find it, while a store that has nothing but a `labels` group is empty to most of them.
Such a store has format 0.4 unless 0.5 is asked for: 0.4 is read by all of them, whereas
Bio-Formats (so QuPath) and ilastik do not read 0.5 yet (qupath pull request 2195, ilastik 2939).
Chunks are compressed with Blosc for the same reason: JZarr, which Bio-Formats reads with, knows
no other Zstandard.

A coarser level takes every second pixel and so keeps the ids, and the centre of the first pixel.
Where all pixels are 0 no chunk is written.
"""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt32

from spoco_zoo.errors import ImageError, OutputError, SettingError, SpocoZooError
from spoco_zoo.label_metadata import Described, create_array, describe, register, write_group
from spoco_zoo.ngff import read_attributes, read_multiscales
from spoco_zoo.pyramids import LabelLevel, check_box, plan_levels
from spoco_zoo.refusals import looking_at, refused, say_why
from spoco_zoo.stores import (
    MARKS,
    clean_address,
    delete,
    find_stamp,
    follow_link,
    get,
    has_group,
    import_zarr,
    is_remote,
    join,
    open_store,
    put,
    refuse_archive,
)
from spoco_zoo.tiling import Box
from spoco_zoo.volumes import Volume

Version = Literal["0.4", "0.5"]

_PLAN = "spoco-zoo.json"  # in an unfinished store: its handle


@dataclass(frozen=True)
class LabelStore:
    """A label image that is being written; the handle is small and goes to other processes."""

    url: str  # where it will be when it is finished
    part_url: str  # where it is written
    name: str
    shape: tuple[int, ...]  # space axes
    chunks: tuple[int, ...]  # space axes
    n_times: int | None  # length of the t axis, where there is one
    scale_um: tuple[float, ...] | None
    version: str  # of the format
    home: str | None  # the image into whose store it goes
    replaces: bool  # whether labels of that name, or that store, may be replaced
    described: Described

    def write(
        self, box: Box, labels: UInt32[np.ndarray, "*space"], time: int | None = None
    ) -> None:
        """Write whole chunks of level 0.

        Raises:
            OutputError: The disk refuses it, or the store is gone.
            SettingError: The box is not made of whole chunks, or is none of the labels'.
        """
        self._write(0, box, labels, time)

    def read(
        self, box: Box, time: int | None = None, level: int = 0
    ) -> UInt32[np.ndarray, "*space"]:
        """Read a box of a level; what was not written is 0.

        Raises:
            OutputError: The store is gone or damaged.
        """
        try:
            place = self._place()
            array = _opened(place, level, self._stamp(place, level), os.getpid())
            stored = np.asarray(array[self._select(box, time)])
            self._stamp(place, level)  # what is gone by now was read as 0
        except (OutputError, SettingError):
            raise
        except Exception as error:  # a backend may raise anything
            raise OutputError(
                f"{self.part_url}: level {level} cannot be read ({say_why(error)}): look at its "
                "disk, or add --overwrite to start anew"
            ) from error
        axes = self.described.space
        return np.ascontiguousarray(stored.transpose([sorted(axes).index(a) for a in axes]))

    def plan_pyramid(self) -> tuple[LabelLevel, ...]:
        """List the levels, the finest first."""
        return plan_levels(self.shape, self.chunks, self.scale_um)

    def downsample(self, level: int, box: Box, time: int | None = None) -> None:
        """Compute whole chunks of a level, from 1 on, out of the level above it.

        Raises:
            OutputError: The disk refuses it, or the store is gone.
            SettingError: The box is not made of whole chunks.
        """
        above, here = self.plan_pyramid()[level - 1 : level + 1]
        step = [h // a for h, a in zip(here.factors, above.factors, strict=True)]
        wide = tuple(
            slice(b.start * s, min(b.stop * s, n))
            for b, s, n in zip(box, step, above.shape, strict=True)
        )
        fine = self.read(wide, time, level - 1)
        coarse = fine[tuple(slice(None, None, s) for s in step)]
        self._write(level, box, np.ascontiguousarray(coarse), time)

    def finish(self, n_labels: int) -> None:
        """Make it visible: all of it, or nothing. Doing it again changes nothing.

        Args:
            n_labels: The highest id. Up to 10,000 ids get colours in the metadata; more would
                make metadata of megabytes, and viewers have colours of their own.

        Raises:
            OutputError: The disk refuses it, or the store is gone.
        """
        try:
            if get(self.part_url, _PLAN) is not None:
                factors = [level.factors for level in self.plan_pyramid()]
                told = self.described.attributes(self.name, self.version, factors, n_labels)
                write_group(self.part_url, told, self.zarr_format)
                if not is_remote(self.url):
                    self._rename()
            elif not has_group(self.url):
                raise OutputError(f"{self.part_url}: is gone: give the command anew")
            if self.home is not None:
                register(self.home, self.name, self.zarr_format, self.version)
            delete(self.url, _PLAN)  # as long as that is there, the same command goes on
        except SpocoZooError:
            raise
        except Exception as error:  # a backend may raise anything
            raise refused(self.url, error) from error

    def discard(self) -> None:
        """Delete what was written and not finished.

        Raises:
            OutputError: The disk or backend refuses to look or to delete.
        """
        for place in self._find_unfinished():
            try:
                delete(place)
            except OSError as error:
                raise refused(place, error) from error
        with suppress(OSError):
            if self.home is not None and not is_remote(self.home):
                Path(self.part_url).parent.rmdir()  # where nothing else is in it

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Which zarr the format is built on."""
        return 3 if self.version == "0.5" else 2

    def is_unfinished(self) -> bool:
        """Whether it is being written.

        Raises:
            OutputError: The disk or backend refuses to look.
        """
        return bool(self._find_unfinished())

    def is_there(self) -> bool:
        """Whether it is being written, or finished; raises what `is_unfinished` does."""
        with looking_at(self.url):
            return self.is_unfinished() or has_group(self.url)

    def _find_unfinished(self) -> list[str]:
        with looking_at(self.url):
            places = {self.part_url, self.url}  # one on a server, where nothing is renamed
            return [place for place in places if get(place, _PLAN) is not None]

    def _place(self) -> str:
        is_done = os.path.isdir(self.url) and not os.path.isdir(self.part_url)
        return self.url if is_done else self.part_url

    def _select(self, box: Box, time: int | None) -> tuple[slice | int, ...]:
        if (time is None) != (self.n_times is None):
            raise SettingError(
                f"{self.url}: time is {time}, and the labels are of {self.n_times or 'no'} points "
                "in time: expected one of them"
            )
        place: list[slice | int] = [0] * len(self.described.names)
        if time is not None:
            place[0] = time
        for axis, part in zip(self.described.space, box, strict=True):
            place[axis] = part
        return tuple(place)

    def _write(
        self, level: int, box: Box, labels: UInt32[np.ndarray, "*space"], time: int | None
    ) -> None:
        plan = self.plan_pyramid()[level]
        check_box(plan, box, labels.shape)
        axes = self.described.space
        stored = labels.transpose([axes.index(axis) for axis in sorted(axes)])
        try:
            # where it is gone, what is written would make a folder that nobody knows
            stamp = self._stamp(self.part_url, level)
            _opened(self.part_url, level, stamp, os.getpid())[self._select(box, time)] = stored
        except (OutputError, SettingError):
            raise
        except Exception as error:  # a backend may raise anything
            raise refused(self.part_url, error) from error

    def _stamp(self, place: str, level: int) -> object:
        """Tell one store from a later one of the same name, and refuse one that is gone."""
        stamp = find_stamp(join(place, str(level)), MARKS)
        if stamp is None:
            raise OutputError(
                f"{place}: was there and is gone: mount it again, then give the same command"
            )
        return stamp

    def _rename(self) -> None:
        """Give a finished store on a disk its name, in place of an older one."""
        part, target = Path(self.part_url), Path(self.url)
        for left in part.rglob("*.partial"):  # what a killed worker was writing
            left.unlink(missing_ok=True)
        old = target.with_name(f".{target.name}.old")
        delete(str(old))
        if os.path.lexists(target):  # a link within a store may lead nowhere
            target.rename(old)
        part.rename(target)
        delete(str(old))


def create_labels(
    target: str | Path | None,
    volumes: Sequence[Volume],
    *,
    chunks: tuple[int, ...],
    name: str = "instances",
    version: Version | None = None,
    overwrite: bool = False,
) -> LabelStore:
    """Make an unfinished label image for one image, all points in time.

    Args:
        target: The new store; None puts it into the store of the image, as labels/NAME.
        volumes: One image: its points in time, or the one volume.
        chunks: Size for each space axis; cut to the image.
        name: Of the labels.
        version: Of the format of a new store; 0.4 where left out. Into a store that of the
            store is taken.
        overwrite: Whether labels of that name, or that store, may be replaced. On a disk the
            old ones stay until the new ones are finished.

    Raises:
        OutputError: It exists already, or cannot be written.
        SettingError: Labels cannot go into this input, or have no such name or chunks.
        MissingExtraError: zarr or fsspec is not installed.
    """
    store = _plan(target, volumes, chunks, name, version)
    store = LabelStore(**(vars(store) | {"replaces": overwrite}))
    with looking_at(store.url):
        _refuse_existing(store)
    store.discard()
    try:
        if is_remote(store.url) and overwrite:
            delete(store.url)
        put(store.part_url, _PLAN, dump_store(store))
        for n, level in enumerate(store.plan_pyramid()):
            _create_level(store, n, level)
    except Exception as error:  # a backend may raise anything
        raise refused(store.part_url, error) from error
    return store


def reopen(
    target: str | Path | None, volumes: Sequence[Volume], *, name: str = "instances"
) -> LabelStore | None:
    """Find the unfinished label image of an earlier run; None where there is none.

    Raises:
        OutputError: What is there was begun for another image.
    """
    fresh = _plan(target, volumes, volumes[0].space, name, None)
    places = (fresh.part_url, fresh.url)  # the second where it was killed at the very end
    with looking_at(fresh.url):
        written = next((plan for place in places if (plan := get(place, _PLAN)) is not None), None)
    if written is None:
        return None
    try:
        found = load_store(written)
        version: Any = found.version
        again = _plan(target, volumes, found.chunks, name, version)
    except (ValueError, TypeError, KeyError) as error:
        raise _not_ours(fresh) from error
    if LabelStore(**(vars(again) | {"replaces": found.replaces})) != found:
        raise _not_ours(fresh)
    return found


def refuse_finished(
    target: str | Path | None,
    volumes: Sequence[Volume],
    *,
    name: str = "instances",
    overwrite: bool = False,
) -> None:
    """Refuse now what `create_labels` would refuse, but for what is unfinished.

    Raises:
        OutputError: It exists already.
        SettingError: Labels cannot go into this input, or have no such name.
    """
    store = _plan(target, volumes, volumes[0].space, name, None)
    with looking_at(store.url):
        if not store.is_unfinished():
            _refuse_existing(LabelStore(**(vars(store) | {"replaces": overwrite})))


def dump_store(store: LabelStore) -> bytes:
    """Write a handle as JSON."""
    return json.dumps(asdict(store), indent=1, ensure_ascii=False).encode()


def load_store(content: bytes) -> LabelStore:
    """Read a handle that `dump_store` wrote."""
    values = json.loads(content, object_hook=_tuples)
    return LabelStore(**(values | {"described": Described(**values["described"])}))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _not_ours(store: LabelStore) -> OutputError:
    return OutputError(
        f"{store.part_url}: is the unfinished result for another image or of another version: "
        "add --overwrite to start anew"
    )


def _plan(
    target: str | Path | None,
    volumes: Sequence[Volume],
    chunks: tuple[int, ...],
    name: str,
    version: Version | None,
) -> LabelStore:
    """Say where labels go and what will be told of them, without writing anything."""
    first = volumes[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingError(
            f"labels are to be called {name}: expected letters, digits, dots, dashes and "
            "underscores, such as nuclei"
        )
    if len(chunks) != len(first.space) or min(chunks) < 1:
        raise SettingError(
            f"chunks of labels are {chunks}: expected {len(first.space)} sizes of at least 1"
        )
    home = None
    if target is None:
        if first.stored.kind == "tiff":
            raise SettingError(
                f"{first.url}: is a TIFF, and labels can be put into an OME-Zarr only: "
                "give a store of their own with -o"
            )
        home = first.url
        version = "0.5" if read_multiscales(home).zarr_format == 3 else "0.4"
        url = join(home, "labels", name)
    else:
        url = follow_link(clean_address(target))
    refuse_archive(url)
    folder, _, last = url.rpartition("/")
    part = url if is_remote(url) else join(folder, f".{last}.part")
    n_times = None if first.stored.time_axis is None else len(volumes)
    return LabelStore(
        url=url,
        part_url=part,
        name=name,
        shape=first.space,
        chunks=tuple(min(c, n) for c, n in zip(chunks, first.space, strict=True)),
        n_times=n_times,
        scale_um=first.scale_um,
        version=version or "0.4",
        home=home,
        replaces=False,
        described=describe(first, url, home),
    )


def _refuse_existing(store: LabelStore) -> None:
    """Stop before work is done for a store that may not be written.

    Raises:
        OutputError: Something is there that may not be replaced.
    """
    if has_group(store.url) and get(store.url, _PLAN) is None:
        if not store.replaces:
            raise OutputError(
                f"{store.url}: exists already: choose another name or add --overwrite"
            )
        try:
            is_label = "image-label" in read_attributes(store.url)[0]
        except ImageError:
            is_label = False
        if not is_label:
            raise OutputError(
                f"{store.url}: is no label image, which alone would be replaced: "
                "choose another name"
            )
    elif store.is_unfinished() and not store.replaces:
        raise OutputError(
            f"{store.part_url}: is an unfinished result: give its command again to go on, "
            "or add --overwrite to start anew"
        )


def _create_level(store: LabelStore, n: int, level: LabelLevel) -> None:
    shape = [1] * len(store.described.names)
    chunks = list(shape)
    if store.n_times is not None:
        shape[0] = store.n_times
    for axis, size, chunk in zip(store.described.space, level.shape, level.chunks, strict=True):
        shape[axis], chunks[axis] = size, chunk
    place = join(store.part_url, str(n))
    create_array(place, shape, chunks, store.version, store.described.names)


@lru_cache(maxsize=16)
def _opened(url: str, level: int, stamp: object, process: int) -> Any:  # noqa: ANN401 - zarr is an extra
    store = open_store(url, read_only=False)
    return import_zarr().open_array(store=store, path=str(level), mode="r+")
