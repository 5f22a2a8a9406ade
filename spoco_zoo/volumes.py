"""Images larger than memory at the door: OME-Zarr and large TIFFs, of which boxes are read.

A volume is a sentence about where pixels are, not the pixels and no open file, so it is sent to
other processes as it is. A plate or a time series is several volumes.

A chunk that is not in a store is fill value, as zarr says, so a store that is gone would look
empty: it is looked for anew after each box. Not here: whether pixels are finite numbers, which
takes a pass over all of them, and label images to write (`label_stores`).
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from spoco_zoo.axes import order_axes
from spoco_zoo.errors import ImageError
from spoco_zoo.images import known_scale, stem_of
from spoco_zoo.large_tiffs import SUFFIXES as TIFF_SUFFIXES
from spoco_zoo.large_tiffs import open_tiff, read_head
from spoco_zoo.ngff import list_images, open_array, read_multiscales
from spoco_zoo.pyramids import guess_downsampling
from spoco_zoo.refusals import say_why
from spoco_zoo.stores import MARKS, clean_address, find_stamp, is_remote, join, name_of, place_in
from spoco_zoo.tiling import Box, inner_box


@dataclass(frozen=True)
class Stored:
    """Where the axes of a volume are in the array that holds it."""

    kind: Literal["zarr", "tiff"]
    key: str  # of the array in its group; the level, in a TIFF
    axes: str  # letters of all axes, as they are stored
    space: tuple[int, ...]  # which of them are (y, x) or (z, y, x)
    channel_axis: int | None
    channels: tuple[int, ...]  # that are read
    n_channels: int  # of the image

    @property
    def time_axis(self) -> int | None:
        """Which stored axis is time."""
        return self.axes.index("T") if "T" in self.axes else None


@dataclass(frozen=True)
class Volume:
    """One image `(c, *space)` in a store, at one level and one point in time."""

    url: str  # of the image group or TIFF
    name: str  # short, for file names and messages
    shape: tuple[int, ...]  # (c, *space)
    dtype: str  # that is read
    scale_um: tuple[float, ...] | None  # of the level that is read, for each space axis
    chunks: tuple[int, ...]  # of the storage (shards, where there are), for each space axis
    stored: Stored
    level: int = 0
    time: int | None = None  # where there is a t axis
    finest: tuple[int, ...] = ()  # pixels of the finest level, for each space axis
    downsampling: tuple[float, ...] = ()  # pixels of the finest level in one that is read

    @property
    def space(self) -> tuple[int, ...]:
        """Size in pixels, without the channels."""
        return self.shape[1:]

    def read(self, box: Box) -> Shaped[np.ndarray, "c *space"]:
        """Read a box of the space axes, in the dtype of the file, the bytes as this machine's.

        Raises:
            ImageError: A chunk cannot be decoded, or the store is gone.
            MissingExtraError: What reads the store is not installed here.
        """
        array = self._open()
        try:
            pixels = self._take(array, box, self.stored.channels)
        except Exception as error:  # a decoder or backend may raise anything
            self._stamp()
            raise ImageError(self._name_damage(array, box) or self._unreadable(error)) from error
        self._stamp()
        return pixels

    def read_around_damage(self, box: Box) -> tuple[Shaped[np.ndarray, "c *space"], list[str]]:
        """Read a box with 0 in place of chunks that cannot be decoded, and a sentence for each.

        Raises:
            ImageError: The store is gone.
            MissingExtraError: What reads the store is not installed here.
        """
        array = self._open()
        pixels = np.zeros((self.shape[0], *(b.stop - b.start for b in box)), self.dtype)
        told = []
        for piece in self._pieces(array, box):
            place: tuple[int | slice, ...] = inner_box(box, piece.box)
            try:
                part = self._take(array, piece.box, piece.channels)
            except Exception as error:  # noqa: BLE001 - it is told, chunk by chunk
                told.append(self._tell(array, piece, error))
                continue
            for n, channel in enumerate(self.stored.channels):
                if channel in piece.channels:
                    pixels[(n, *place)] = part[piece.channels.index(channel)]
        self._stamp()
        return pixels, told

    def _open(self) -> Any:  # noqa: ANN401 - any array that can be sliced
        return _opened(self.url, self.stored.kind, self.stored.key, self._stamp(), os.getpid())

    def _take(self, array: Any, box: Box, channels: Sequence[int]) -> np.ndarray:  # noqa: ANN401
        """Read some channels of a box, `(c, *box)`."""
        if list(channels) != list(range(channels[0], channels[-1] + 1)):
            return np.concatenate([self._take(array, box, (c,)) for c in channels])
        place: list[slice | int] = [0] * len(array.shape)
        if self.stored.time_axis is not None:
            place[self.stored.time_axis] = self.time or 0
        axes = list(self.stored.space)
        if self.stored.channel_axis is not None:
            place[self.stored.channel_axis] = slice(channels[0], channels[-1] + 1)
            axes.insert(0, self.stored.channel_axis)
        for axis, part in zip(self.stored.space, box, strict=True):
            place[axis] = part
        pixels = np.asarray(array[tuple(place)])
        pixels = pixels.transpose([sorted(axes).index(axis) for axis in axes])
        pixels = pixels[None] if self.stored.channel_axis is None else pixels
        return np.ascontiguousarray(pixels, self.dtype)

    def _pieces(self, array: Any, box: Box) -> Iterator["_Piece"]:  # noqa: ANN401
        """Cut a box where the chunks of its array end."""
        sizes = getattr(array, "chunks", array.shape)
        grid: list[Sequence[int]] = [(0,)] * len(sizes)
        if self.stored.time_axis is not None:
            grid[self.stored.time_axis] = [(self.time or 0) // sizes[self.stored.time_axis]]
        by_chunk = {0: list(self.stored.channels)}
        channel_axis = self.stored.channel_axis
        if channel_axis is not None:
            by_chunk = {}
            for channel in self.stored.channels:
                by_chunk.setdefault(channel // sizes[channel_axis], []).append(channel)
            grid[channel_axis] = list(by_chunk)
        for axis, part in zip(self.stored.space, box, strict=True):
            grid[axis] = range(part.start // sizes[axis], -(-part.stop // sizes[axis]))
        for chunk in product(*grid):
            inner = tuple(
                slice(max(b.start, chunk[a] * sizes[a]), min(b.stop, (chunk[a] + 1) * sizes[a]))
                for a, b in zip(self.stored.space, box, strict=True)
            )
            channels = by_chunk[0 if channel_axis is None else chunk[channel_axis]]
            yield _Piece(chunk, inner, tuple(channels))

    def _name_damage(self, array: Any, box: Box) -> str | None:  # noqa: ANN401
        """Find the first chunk of a box that cannot be decoded, and say which it is."""
        for piece in self._pieces(array, box):
            try:
                self._take(array, piece.box, piece.channels)
            except Exception as error:  # noqa: BLE001 - a decoder may raise anything
                return self._tell(array, piece, error)
        return None

    def _tell(self, array: Any, piece: "_Piece", error: Exception) -> str:  # noqa: ANN401
        # all of the chunk, so that whoever comes across it says the same
        sizes = getattr(array, "chunks", array.shape)
        start = [piece.chunk[a] * sizes[a] for a in self.stored.space]
        ends = zip(start, self.stored.space, strict=True)
        stop = [min(first + sizes[a], array.shape[a]) for first, a in ends]
        file = self.url
        if self.stored.kind == "zarr":
            grid = getattr(array, "shards", None) or array.chunks
            at = [n * c // g for n, c, g in zip(piece.chunk, array.chunks, grid, strict=True)]
            file = join(self.url, self.stored.key, array.metadata.encode_chunk_key(tuple(at)))
        return (
            f"{file}: chunk {piece.chunk}, of pixels {tuple(start)} to {tuple(stop)}, cannot be "
            f"decoded ({say_why(error)}): copy it again, or skip such chunks with --skip-damaged"
        )

    def _stamp(self) -> object:
        """Tell a store from a later one of the same name, and refuse one that is gone."""
        stamp: object = None
        with suppress(Exception):  # a backend may raise anything
            if self.stored.kind == "zarr":
                stamp = find_stamp(join(self.url, self.stored.key), MARKS)
            else:
                folder, _, file = self.url.rpartition("/")
                stamp = find_stamp(folder, [file]) if not is_remote(self.url) else "there"
        if stamp is None:
            raise ImageError(
                f"{self.url}: was there and cannot be opened any more: mount or copy it again, "
                "then give the same command"
            )
        return stamp

    def _unreadable(self, error: Exception) -> str:
        return f"{self.url}: cannot be read ({say_why(error)}): look at its disk or server"


@dataclass(frozen=True)
class _Piece:
    """What one chunk holds of a box."""

    chunk: tuple[int, ...]  # its place in the grid of chunks, all stored axes
    box: Box
    channels: tuple[int, ...]


def is_volume(url: str | Path) -> bool:
    """Whether an input is an OME-Zarr or an address, by its name and what lies in it."""
    address = clean_address(url)
    if is_remote(address) or address.lower().endswith(".zarr"):
        return True
    marks = (".zgroup", ".zattrs", "zarr.json")
    return any((Path(address) / mark).is_file() for mark in marks)


def open_volumes(
    url: str | Path,
    n_axes: int,
    *,
    level: int = 0,
    channels: Sequence[int | str] | None = None,
) -> list[Volume]:
    """List the images of a store or a large TIFF; the first that cannot be opened is refused.

    As `find_volumes`, which opens the others.
    """
    found, errors = find_volumes(url, n_axes, level=level, channels=channels)
    if errors:
        raise errors[0]
    return found


def find_volumes(
    url: str | Path,
    n_axes: int,
    *,
    level: int = 0,
    channels: Sequence[int | str] | None = None,
) -> tuple[list[Volume], list[ImageError]]:
    """List the images of a store or a large TIFF: wells and fields of a plate, points in time.

    Args:
        url: An OME-Zarr image, plate, well or bioformats2raw layout, or a TIFF; a path or an
            address of fsspec such as s3://.
        n_axes: Number of space axes that the network takes.
        level: Resolution level, 0 being the finest.
        channels: Which channels, by index or by name; None takes all.

    Returns:
        The images, and why others of a plate or series cannot be opened or have other axes, levels
        or channels than asked for.

    Raises:
        ImageError: The store or TIFF cannot be opened, or is none.
        MissingExtraError: zarr, fsspec or the backend of the address is not installed.
    """
    address = clean_address(url)
    wish = _Wish(n_axes, level, channels)
    if place_in(address).lower().endswith(TIFF_SUFFIXES):
        return _tiff_volumes(address, wish), []
    if not is_remote(address) and not os.path.exists(address):
        raise ImageError(f"{address}: no such file or folder: check the path")
    found: list[Volume] = []
    images, errors = list_images(address)
    for image, name in images:
        try:
            found += _zarr_volumes(image, name, wish)
        except ImageError as error:
            errors.append(error)
    if not found:  # what is wrong with many of them is said once
        firsts = {str(error).split(": ", 1)[-1]: error for error in reversed(errors)}
        errors = [error for error in errors if error in firsts.values()]
    return found, errors


def group_images(volumes: Sequence[Volume]) -> list[list[Volume]]:
    """Put the points in time of an image together.

    Raises:
        ImageError: An image is there twice, as where it is given beside its plate.
    """
    counts = Counter((volume.url, volume.time) for volume in volumes)
    for (url, _), count in counts.items():
        if count > 1:
            raise ImageError(f"{url}: is among the inputs {count} times: expected each image once")
    return [list(group) for _, group in groupby(volumes, key=lambda volume: volume.url)]


@dataclass(frozen=True)
class _Wish:
    n_axes: int
    level: int
    channels: Sequence[int | str] | None


def _zarr_volumes(url: str, name: str, wish: _Wish) -> list[Volume]:
    image = read_multiscales(url)
    if not 0 <= wish.level < len(image.levels):
        shapes = [tuple(open_array(url, known.path).shape) for known in image.levels]
        raise _no_level(url, wish.level, shapes)
    key = image.levels[wish.level].path
    array = open_array(url, key)
    shape = tuple(array.shape)
    if len(shape) != len(image.axes):
        raise ImageError(
            f"{url}: its level {key} has {len(shape)} axes and its metadata name "
            f"{len(image.axes)}: expected as many; write it again"
        )
    space, channel_axis = _place_axes(url, shape, image.axes, wish.n_axes)
    n_channels = 1 if channel_axis is None else shape[channel_axis]
    chosen = _choose(url, wish.channels, n_channels, image.channel_names)
    stored = Stored("zarr", key, image.axes, space, channel_axis, chosen, n_channels)
    sizes = image.sizes_um(wish.level)
    scale_um = [sizes.get(axis, 0.0) for axis in space]
    whole = shape if wish.level == 0 else tuple(open_array(url, image.levels[0].path).shape)
    finest = tuple(int(whole[axis]) for axis in space)
    stated = image.downsampling(wish.level)
    if stated is None:
        downsampling = guess_downsampling(finest, [shape[axis] for axis in space])
    else:
        downsampling = tuple(stated[axis] for axis in space)
    found = _over_time(url, name, array, stored, scale_um, wish)
    return [replace(v, finest=finest, downsampling=downsampling) for v in found]


def _tiff_volumes(url: str, wish: _Wish) -> list[Volume]:
    head = read_head(url)
    if not 0 <= wish.level < len(head.shapes):
        raise _no_level(url, wish.level, head.shapes)
    array, shape, axes = open_tiff(url, wish.level), head.shapes[wish.level], head.axes
    if "T" in axes:
        is_stack = wish.n_axes == 3 and "Z" not in axes  # ImageJ calls many a z stack a movie
        is_alone = shape[axes.index("T")] == 1
        axes = axes.replace("T", "Z" if is_stack else "U" if is_alone else "T")
    space, channel_axis = _place_axes(url, shape, axes, wish.n_axes)
    n_channels = 1 if channel_axis is None else shape[channel_axis]
    chosen = _choose(url, wish.channels, n_channels, head.channel_names)
    stored = Stored("tiff", str(wish.level), axes, space, channel_axis, chosen, n_channels)
    finest = tuple(head.shapes[0][axis] for axis in space)
    downsampling = guess_downsampling(finest, [shape[axis] for axis in space])
    sizes = (head.scale_um or ())[-len(space) :]
    scale_um = [size * by for size, by in zip(sizes, downsampling, strict=False)]
    found = _over_time(url, stem_of(Path(name_of(url))), array, stored, scale_um, wish)
    return [replace(v, finest=finest, downsampling=downsampling) for v in found]


def _place_axes(
    url: str, shape: tuple[int, ...], axes: str, n_axes: int
) -> tuple[tuple[int, ...], int | None]:
    """Say which stored axes are space and which is channels; t is left out before."""
    if 0 in shape:
        raise ImageError(f"{url}: shape is {shape}: expected at least one pixel per axis")
    rest = [n for n, axis in enumerate(axes) if axis != "T"]
    letters = "".join(axes[n] for n in rest)
    order = order_axes(url, [shape[n] for n in rest], letters, n_axes)
    space = tuple(rest[axis] for axis in order[1:] if axis is not None)
    if len(space) > n_axes:
        raise ImageError(
            f"{url}: is a volume of {shape[space[0]]} slices: the network takes images (y, x); "
            "choose a package for volumes"
        )
    if len(space) < n_axes:
        raise ImageError(
            f"{url}: is an image (y, x): the network takes volumes (z, y, x); "
            "choose a package for images"
        )
    return space, None if order[0] is None else rest[order[0]]


def _choose(
    url: str, wanted: Sequence[int | str] | None, count: int, names: Sequence[str]
) -> tuple[int, ...]:
    """Find channels by index or name.

    Raises:
        ImageError: A channel is not there.
    """
    if wanted is None:
        return tuple(range(count))
    known = list(names) if len(names) == count else [str(n) for n in range(count)]
    chosen = []
    for channel in wanted:
        text = str(channel)
        if channel in known:
            chosen.append(known.index(text))
        elif text.isdecimal() and int(text) < count:
            chosen.append(int(text))
        else:
            listed = ", ".join(f"{n} ({name})" for n, name in enumerate(known))
            raise ImageError(
                f"{url}: has no channel {channel}: its channels are "
                f"{listed if len(names) == count else ', '.join(known)}"
            )
    return tuple(chosen)


def _no_level(url: str, level: int, shapes: Sequence[tuple[int, ...]]) -> ImageError:
    listed = ", ".join(f"{n} of shape {shape}" for n, shape in enumerate(shapes))
    return ImageError(f"{url}: has no level {level}: its levels are {listed}")


def _over_time(
    url: str,
    name: str,
    array: Any,  # noqa: ANN401 - any array that can be sliced
    stored: Stored,
    scale_um: Sequence[float],
    wish: _Wish,
) -> list[Volume]:
    """Make one volume for each point in time."""
    kind = np.dtype(np.uint8 if array.dtype == bool else array.dtype).newbyteorder("=")
    if kind.kind not in "uif":
        raise ImageError(f"{url}: pixels are {array.dtype}: expected integers or floats")
    grid = getattr(array, "shards", None) or getattr(array, "chunks", array.shape)
    sizes = tuple(int(array.shape[axis]) for axis in stored.space)
    volume = Volume(
        url,
        name,
        (len(stored.channels), *sizes),
        kind.name,
        known_scale(scale_um, len(stored.space)),
        tuple(min(int(grid[a]), n) for a, n in zip(stored.space, sizes, strict=True)),
        stored,
        wish.level,
    )
    if stored.time_axis is None:
        return [volume]
    return [replace(volume, time=t) for t in range(array.shape[stored.time_axis])]


@lru_cache(maxsize=16)
def _opened(url: str, kind: str, key: str, stamp: object, process: int) -> Any:  # noqa: ANN401
    # by process, since a file opened before a fork must not be read after it
    return open_array(url, key) if kind == "zarr" else open_tiff(url, int(key))
