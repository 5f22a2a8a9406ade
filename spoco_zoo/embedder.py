"""An image of which the embedding is made where and when it is needed.

    pixels ─ normalise ─ pad ─ tiles with halo ─ network ─ put together

The numbers of the normalisation are those of the whole image, tiles start on the pooling grid of
the network and carry a halo of at least its receptive field. So every pixel is computed from the
same numbers in the same order, whatever part of the image is asked for.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from spoco_zoo.device import DevicePixels
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Prototype, find_core, find_foreground
from spoco_zoo.normalization import Affine
from spoco_zoo.pixels import HostPixels, Pixels
from spoco_zoo.recipe import Recipe
from spoco_zoo.session import Embedded, EmbeddingSession
from spoco_zoo.tiling import Box, Tile, inner_box, intersect, plan_tiles

Progress = Callable[[int, int], None]

TILE = {2: 1024, 3: 96}  # pixels per axis at most, where the user says nothing


@runtime_checkable
class Readable(Protocol):
    """An image `(c, *space)` of which boxes can be read, in memory or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, and pixels per axis."""

    def __getitem__(self, box: tuple[slice, ...], /) -> np.ndarray:
        """The pixels of a box, one slice for each axis."""


@runtime_checkable
class Sharing(Protocol):
    """Numbers of boxes that somebody else computes, or needs."""

    def give(self, box: Box, outputs: Sequence[np.ndarray], /) -> None:
        """Take notice of a box that was embedded."""

    def take(self, box: Box, into: Sequence[np.ndarray], /) -> Box | None:
        """Fill in what is known of a box, and tell what is not."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A part of an image as clustering sees it; `known` is what of it came to the host."""

    known: Embedded
    f: Pixels
    g: Pixels | None
    lent: Sequence[np.ndarray] = ()  # what all this lies in, for the next part


class Embedder:
    """An image whose embedding is made where and when it is needed."""

    def __init__(
        self,
        pixels: Readable,
        session: EmbeddingSession,
        tile: Sequence[int] | int | None,
        affine: Affine,
    ) -> None:
        """Take an image and how its intensities are normalised, which nobody finds out of a part.

        Args:
            pixels: The image, or what reads it; not boolean, which NumPy does not subtract.
            session: The network.
            tile: Pixels that it sees at once, per axis or for all; what fits where left out.
            affine: The normalisation of the whole image.
        """
        self.pixels = pixels
        self.session = session
        self.tile = tile
        self.affine = affine
        self.network_s = 0.0  # time that the network took of all so far
        steps = session.package.config.multiple_of
        self.padded = [n + -n % step for n, step in zip(pixels.shape[1:], steps, strict=True)]

    def plan(self, box: Box) -> list[Tile]:
        """Tiles of a part of the image, its start moved back and its end on to the pooling grid."""
        config = self.session.package.config
        on_grid = tuple(
            slice(s.start - s.start % step, min(s.stop + -s.stop % step, n))
            for s, step, n in zip(box, config.multiple_of, self.padded, strict=True)
        )
        sizes = [s.stop - s.start for s in on_grid]
        write = _tile_size(self.tile, self.session, sizes)
        return list(
            plan_tiles(
                self.padded, write, config.halo, (0,) * len(box), config.multiple_of, on_grid
            )
        )

    def embed(
        self,
        box: Box,
        progress: Progress | None = None,
        into: Sequence[np.ndarray] | None = None,
    ) -> Embedded:
        """Embed a part of the image, the same numbers as in the whole.

        Args:
            box: The part.
            progress: Told of tiles done, and of how many.
            into: Arrays of the shape of the part to put outputs into, as `Package.numbers` says.
        """
        return self._embed(box, progress, into)[0]

    def _embed(
        self, box: Box, progress: Progress | None, into: Sequence[np.ndarray] | None = None
    ) -> tuple[Embedded, list[np.ndarray]]:
        package = self.session.package
        tiles = self.plan(box)
        parts = [] if into is None else list(into)
        lent: list[np.ndarray] = []
        for done, tile in enumerate(tiles, start=1):
            image = self._read(tile.read)
            began = time.monotonic()
            found = self.session.embed(image)
            self.network_s += time.monotonic() - began
            arrays = [a for a in (found.embedding, found.momentum_embedding) if a is not None]
            if found.probability is not None:
                arrays.append(found.probability[None])
            wanted = intersect(tile.write, box)
            inner = (slice(None), *inner_box(tile.read, wanted))
            if into is None and len(tiles) == 1:  # it is the part, and not copied
                parts = [a[inner] for a in arrays]
            else:
                if not parts:
                    shape = [s.stop - s.start for s in box]
                    parts = lent = [self._take((len(a), *shape)) for a in arrays]
                where = (slice(None), *inner_box(box, wanted))
                for whole, array in zip(parts, arrays, strict=True):
                    whole[where] = array[inner]
            if progress is not None:
                progress(done, len(tiles))
        embedded = Embedded(
            parts[0],
            parts[-1][0] if package.has_foreground_head else None,
            parts[1] if package.has_momentum else None,
        )
        return embedded, lent

    def _take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array that an earlier part has left, or a new one."""
        # new memory is slow to touch, in some virtual machines slower than the network
        spare = self.session.spare
        for number, array in enumerate(spare):
            if array.shape == shape:
                return spare.pop(number)
        return np.empty(shape, np.float32)

    def see(self, box: Box, recipe: Recipe, progress: Progress | None = None) -> Seen:
        """Embed a part of the image for clustering, on a GPU without taking it from there."""
        tiles = self.plan(box)
        # tiles are put together on the host, and so is the distance from a prototype taken
        if (
            self.session.device != "cuda"
            or len(tiles) > 1
            or isinstance(recipe.foreground, Prototype)
        ):
            known, lent = self._embed(box, progress)
            g = known.momentum_embedding
            g_pixels = None if g is None else HostPixels(g)
            return Seen(known, HostPixels(known.embedding), g_pixels, lent)
        outputs = self.session.embed_on_device(self._read(tiles[0].read))
        inner = inner_box(tiles[0].read, box)
        probability = outputs["foreground"].numpy()[0, 0] if "foreground" in outputs else None
        nothing = np.empty((0, *(s.stop - s.start for s in box)), np.float32)
        known = Embedded(nothing, None if probability is None else probability[inner], None)
        steps = self.session.dense_steps
        pixels = {name: DevicePixels(value, steps, inner) for name, value in outputs.items()}
        if progress is not None:
            progress(1, 1)
        return Seen(known, pixels["embedding"], pixels.get("momentum_embedding"))

    def _read(self, box: Box) -> Float[np.ndarray, "c *space"]:
        """Normalise a part of the padded image."""
        space = self.pixels.shape[1:]
        image = self.affine.apply(self.pixels[(slice(None), *box)])
        padding = [(0, max(s.stop - n, 0)) for s, n in zip(box, space, strict=True)]
        return np.pad(image, [(0, 0), *padding], mode="edge") if any(map(sum, padding)) else image


class Roll:
    """Embeds parts of an image one after the other, and keeps what the next part sees too.

    Parts overlap by the margins of their windows. Where the next one lies behind the last along
    the first axis, only what is new goes through the network. All parts lie in the same memory:
    what is seen of a part is gone with the next one.
    """

    def __init__(
        self,
        embedder: Embedder,
        recipe: Recipe,
        *,
        on_host: bool = False,
        sharing: Sharing | None = None,
    ) -> None:
        """Start with nothing kept.

        Args:
            embedder: The image.
            recipe: What parts are seen for.
            on_host: Take embeddings from a GPU, where they are wanted.
            sharing: Knows what need not be embedded.
        """
        self._embedder = embedder
        self._sharing = sharing
        self._on_host = on_host or embedder.session.device != "cuda"
        self._recipe = recipe
        self._box: Box | None = None
        self._arrays: list[np.ndarray] = []  # the last part, and room behind it

    def see(self, box: Box) -> Seen:
        """Embed a part of the image for clustering."""
        if not self._on_host:
            return self._embedder.see(box, self._recipe)
        overlap = self._overlap(box)
        self._move(box, overlap)
        length = box[0].stop - box[0].start
        new = (slice(box[0].start + overlap, box[0].stop), *box[1:])
        self._embed(new, [array[:, overlap:length] for array in self._arrays])
        self._box = box
        f, *others = (array[:, :length] for array in self._arrays)
        package = self._embedder.session.package
        g = others[0] if package.has_momentum else None
        known = Embedded(f, others[-1][0] if package.has_foreground_head else None, g)
        return Seen(known, HostPixels(f), None if g is None else HostPixels(g))

    def let_go(self) -> None:
        """Forget what is kept."""
        self._box, self._arrays = None, []

    def _embed(self, box: Box, into: list[np.ndarray]) -> None:
        """Embed what nobody knows of a box, and let others know."""
        left = box if self._sharing is None else self._sharing.take(box, into)
        if left is not None:
            inside = (slice(None), *inner_box(box, left))
            self._embedder.embed(left, into=[array[inside] for array in into])
        if self._sharing is not None:
            self._sharing.give(box, into)

    def _move(self, box: Box, overlap: int) -> None:
        """Move what the next part sees too to the start of the memory, and make that large enough.

        Memory that was written once is kept, since new memory is slow to touch.
        """
        shape = [s.stop - s.start for s in box]
        has_room = self._arrays and all(
            room >= size if axis == 0 else room == size
            for axis, (room, size) in enumerate(zip(self._arrays[0].shape[1:], shape, strict=True))
        )
        kept: list[np.ndarray] = []
        if overlap and self._box is not None:
            start = box[0].start - self._box[0].start
            for array in self._arrays:
                part = array[:, start : start + overlap]
                if has_room:
                    array[:, :overlap] = part
                else:
                    kept.append(part.copy())
        if not has_room:
            self._arrays = []  # before the new ones are there
            numbers = self._embedder.session.package.numbers
            self._arrays = [np.empty((n, *shape), np.float32) for n in numbers]
            for array, part in zip(self._arrays, kept, strict=bool(kept)):
                array[:, :overlap] = part

    def _overlap(self, box: Box) -> int:
        """How many planes of a part are kept from the last one."""
        last = self._box
        if last is None or last[1:] != box[1:]:
            return 0
        overlap = last[0].stop - box[0].start
        length = box[0].stop - box[0].start
        return overlap if last[0].start <= box[0].start and 0 < overlap < length else 0


def find_inside(
    embedded: Embedded, recipe: Recipe, mask: Bool[np.ndarray, "*space"] | None
) -> tuple[Bool[np.ndarray, "*space"], Bool[np.ndarray, "*space"]]:
    """Find where instances may lie, and the core in which they are told apart.

    Raises:
        SettingError: The recipe asks for what the network does not give, or for a mask.
    """
    rule, probability = recipe.foreground, embedded.probability
    foreground = find_foreground(embedded.embedding, rule, probability, mask)
    return foreground, find_core(foreground, rule, probability, mask)


def _tile_size(
    tile: Sequence[int] | int | None, session: EmbeddingSession, region: Sequence[int]
) -> tuple[int, ...]:
    """Cut a region into equal tiles no larger than the wish, rounded up to the pooling grid."""
    package = session.package
    steps = package.config.multiple_of
    if tile is None:
        tile = list(region) if session.device == "cuda" else TILE[package.n_axes]
    most = per_axis(tile, package.n_axes, "tile")
    sizes = [math.ceil(n / math.ceil(n / side)) for n, side in zip(region, most, strict=True)]
    return tuple(math.ceil(size / step) * step for size, step in zip(sizes, steps, strict=True))


def per_axis(wish: Sequence[int] | int, n_axes: int, name: str) -> list[int]:
    """Read a wish of one number of pixels, or of one per axis.

    Raises:
        SettingError: It has another count of numbers, or one below 1.
    """
    sizes: list[Any] = [wish] * n_axes if isinstance(wish, int) else list(wish)
    if len(sizes) == 1:
        sizes *= n_axes
    if len(sizes) != n_axes or min(sizes) < 1:
        raise SettingError(
            f"{name} is {wish}: expected one number of pixels, or {n_axes}, each at least 1"
        )
    return sizes
