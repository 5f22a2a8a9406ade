"""Packages of others, run: prepare the image as a whole, see it tile by tile, make instances.

    image ─ operations ─ pad ─ tiles ─ network ─ put together ─ operations ─ instances

Tiles follow what the package says: sizes that the network takes, on its pooling grid, with the
halo that it declares as context and crops. Where it declares none, the image is one tile.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import UInt32

from spoco_zoo.boundaries import Watershed, grow_instances
from spoco_zoo.errors import ImageError, PackageError, SettingError
from spoco_zoo.foreign import (
    Boundaries,
    Embeddings,
    ForeignPackage,
    LabelImage,
    Plane,
    Side,
    arrange,
    restore,
)
from spoco_zoo.images import check_finite
from spoco_zoo.labels import relabel
from spoco_zoo.operations import apply_operations
from spoco_zoo.rdf import Tensor
from spoco_zoo.recipe import Recipe
from spoco_zoo.segmentation import make_instances
from spoco_zoo.session import Embedded, NetworkSession

Progress = Callable[[int, int], None]
Settings = Recipe | Watershed | None

_log = logging.getLogger(__name__)
_TILE = {2: 1024, 3: 96}  # pixels per axis at most, where the user says nothing


@dataclass(frozen=True)
class Strip:
    """The tiles along one axis, all of one size.

    Tile number k reads `size` pixels from `k * stride - halo` on, and writes `stride` pixels from
    `k * stride` on, in pixels of the image; beyond it, it reads what the image is padded with.
    """

    count: int
    size: int
    stride: int
    halo: int


def plan_strip(length: int, side: Side, wish: int | None, most: int | None) -> Strip:
    """Cut an axis of an image into tiles of a size that the network takes.

    Args:
        length: Pixels of the image.
        side: What the network takes.
        wish: Pixels that a tile shall write, about; what fits where left out.
        most: Pixels beyond which an axis is cut without a wish; None for never.

    Raises:
        SettingError: A wish cannot be met.
    """
    if side.step == 0:
        if wish is not None and wish != side.least:
            raise SettingError(
                f"tile is {wish}: this package takes {side.least} pixels at once and no other "
                "size; leave it out"
            )
        stride = side.least - 2 * side.halo
        return Strip(-(-length // stride), side.least, stride, side.halo)
    parts = 1 if most is None else -(-length // most)
    goal = -(-length // parts) if wish is None else wish
    whole = _valid(length + 2 * side.halo, side)
    size = _valid(goal + 2 * side.halo, side)
    if goal >= length or size >= whole:
        return Strip(1, whole, length, side.halo)
    stride = size - 2 * side.halo
    stride -= stride % side.step  # the next tile must start on the pooling grid
    if stride < 1:
        size, stride = size + side.step, side.step
    return Strip(-(-length // stride), size, stride, side.halo)


def _valid(size: int, side: Side) -> int:
    """Least size that the network takes and that is not below this one."""
    return side.least + max(0, -(-(size - side.least) // side.step)) * side.step


def predict(
    pixels: np.ndarray,
    session: NetworkSession,
    tile: Sequence[int] | int | None = None,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Run a network on an image `(c, *space)` of any size.

    Returns:
        Each output that the package uses, as `(c, *space)`, after its operations.

    Raises:
        ImageError: The image does not fit the package, or is not finite.
        PackageError: The network fails, or gives another shape than the package says.
        SettingError: The tile size is impossible.
    """
    package = session.package
    _check_image(pixels, package)
    strips = _plan(pixels.shape[1:], package, tile)
    image, space = package.image, package.space
    prepared = apply_operations(arrange(pixels, image, space), image.axis_names, image.operations)
    padded = _pad(restore(prepared, image, space), strips, image)
    found: dict[str, np.ndarray] = {}
    places = list(product(*(range(strip.count) for strip in strips)))
    for done, place in enumerate(places, start=1):
        starts = [k * strip.stride for k, strip in zip(place, strips, strict=True)]
        read = [slice(a, a + s.size) for a, s in zip(starts, strips, strict=True)]
        outputs = session.run(arrange(padded[(slice(None), *read)], image, space))
        for tensor in package.outputs:
            values = _check_shape(outputs[tensor.name], tensor, strips, package)
            whole = found.get(tensor.name)
            if whole is None:
                whole = np.empty((len(values), *pixels.shape[1:]), values.dtype)
                found[tensor.name] = whole
            write = [
                slice(a, min(a + s.stride, n))
                for a, s, n in zip(starts, strips, pixels.shape[1:], strict=True)
            ]
            inner = [
                slice(s.halo, s.halo + w.stop - w.start) for s, w in zip(strips, write, strict=True)
            ]
            whole[(slice(None), *write)] = values[(slice(None), *inner)]
        if progress is not None:
            progress(done, len(places))
    return {t.name: _finish(found[t.name], t, package) for t in package.outputs}


def segment_foreign(
    pixels: np.ndarray,
    session: NetworkSession,
    settings: Settings,
    *,
    mask: np.ndarray | None = None,
    tile: Sequence[int] | int | None = None,
    progress: Progress | None = None,
) -> UInt32[np.ndarray, "*space"]:
    """Find the instances of an image `(c, *space)` by a package of others.

    Args:
        pixels: The image, as it comes from the microscope.
        session: The package, open.
        settings: How instances are made: a recipe for embeddings, the numbers of a watershed for
            boundaries, None for labels.
        mask: Foreground where it is not 0, of the shape of the image without channels.
        tile: Size in pixels of what a tile writes, about, per axis or for all.
        progress: Called with tiles done and tiles in all.

    Returns:
        Instances 1..n, 0 for background.

    Raises:
        ImageError: The image or the mask does not fit the package, or is not finite.
        PackageError: The network fails, or gives what the package does not say.
        SettingError: The tile or the recipe is impossible, or of another kind than the package.
    """
    space = pixels.shape[1:]
    if mask is not None and mask.shape != space:
        raise ImageError(
            f"mask has shape {mask.shape}: expected that of the image, {space}, without channels"
        )
    inside = None if mask is None else np.asarray(mask != 0)
    package = session.package
    with session.turn:  # one image at a time is in the network
        found = predict(pixels, session, tile, progress)
    match package.meaning, settings:
        case Embeddings(), Recipe() as recipe:
            return make_instances(embedding_of(package, found), recipe, inside)
        case Boundaries() as meaning, Watershed() as numbers:
            boundary = _probability(found, meaning.boundary, package)
            plane = meaning.interior
            interior = None if plane is None else _probability(found, plane, package)
            return grow_instances(boundary, numbers, interior, inside, excludes=meaning.excludes)
        case LabelImage(output=output), None:
            ids = np.rint(found[output][0]).astype(np.int64)
            return relabel(
                np.where(ids > 0, ids, 0) if inside is None else ids * (inside & (ids > 0))
            )
        case meaning, _:
            raise SettingError(
                f"{package.name} gives {type(meaning).__name__}, for which the settings are "
                f"{type(settings).__name__}: expected those of its kind"
            )


def embedding_of(package: ForeignPackage, found: dict[str, np.ndarray]) -> Embedded:
    """Take the embedding, and foreground if there is one, out of the outputs of a package.

    Raises:
        PackageError: Foreground is no probability.
        SettingError: The package gives no embedding.
    """
    meaning = package.meaning
    if not isinstance(meaning, Embeddings):
        raise SettingError(
            f"{package.name} gives {type(meaning).__name__}: expected a package of embeddings"
        )
    embedding = np.asarray(found[meaning.output], np.float32)
    plane = meaning.foreground
    probability = None if plane is None else _probability(found, plane, package)
    return Embedded(embedding, probability, None)


def _probability(found: dict[str, np.ndarray], plane: Plane, package: ForeignPackage) -> np.ndarray:
    values = np.asarray(found[plane.output][plane.channel], np.float32)
    least, most = float(values.min()), float(values.max())
    if least < -1e-3 or most > 1 + 1e-3:
        raise PackageError(
            f"{package.location}: output {plane.output} goes from {least:g} to {most:g}: expected "
            "probabilities in 0..1; ask the authors for a sigmoid in its postprocessing"
        )
    return values


def _check_image(pixels: np.ndarray, package: ForeignPackage) -> None:
    if pixels.dtype.kind not in "uifb" or pixels.ndim != package.n_axes + 1 or not pixels.size:
        raise ImageError(
            f"image is {pixels.dtype} of shape {pixels.shape}: {package.name} takes integers or "
            f"floats, channels before {package.n_axes} axes of space, at least one pixel each"
        )
    if len(pixels) != package.channels:
        raise ImageError(
            f"image has {len(pixels)} channels: {package.name} was trained on "
            f"{package.channels}; select or convert channels first"
        )
    check_finite(pixels, "image")


def _plan(
    space: Sequence[int], package: ForeignPackage, tile: Sequence[int] | int | None
) -> list[Strip]:
    wishes = [tile] * len(space) if tile is None or isinstance(tile, int) else list(tile)
    if len(wishes) != len(space) or any(wish is not None and wish < 1 for wish in wishes):
        raise SettingError(
            f"tile is {tile}: expected one number of pixels, or {len(space)}, each at least 1"
        )
    # without a halo every edge of a tile would show
    most = _TILE[len(space)] if package.has_halo else None
    if isinstance(package.meaning, LabelImage):
        most = None
    strips = [
        plan_strip(length, side, wish, most)
        for length, side, wish in zip(space, package.sides, wishes, strict=True)
    ]
    count = math.prod(strip.count for strip in strips)
    if count > 1 and isinstance(package.meaning, LabelImage):
        sizes = " x ".join(str(strip.stride) for strip in strips)
        raise ImageError(
            f"image needs {count} tiles of {sizes} pixels: {package.name} numbers its labels anew "
            "in each, and they cannot be told apart; give an image of one tile and no --tile"
        )
    if count > 1 and not package.has_halo:
        _log.warning("%s: %d tiles without halo: their seams may show", package.name, count)
    return strips


def _pad(pixels: np.ndarray, strips: Sequence[Strip], image: Tensor) -> np.ndarray:
    """Pad an image so far as its tiles reach."""
    widths = [(0, 0)]
    for length, strip in zip(pixels.shape[1:], strips, strict=True):
        end = (strip.count - 1) * strip.stride + strip.size - strip.halo
        widths.append((strip.halo, max(0, end - length)))
    if not any(map(sum, widths)):
        return pixels
    if image.pad == "constant":
        return np.pad(pixels, widths, mode="constant", constant_values=image.pad_value)
    return np.pad(pixels, widths, mode=image.pad)


def _check_shape(
    values: np.ndarray, tensor: Tensor, strips: Sequence[Strip], package: ForeignPackage
) -> np.ndarray:
    """Bring an output to `(c, *space)`, if it is as large as the package says."""
    sizes = {name: strip.size for name, strip in zip(package.space, strips, strict=True)}
    for axis in tensor.find("channel"):
        sizes[axis.name] = len(axis.channel_names)
    expected = tuple(sizes.get(name, 1) for name in tensor.axis_names)
    if values.shape != expected:
        raise PackageError(
            f"{package.location}: output {tensor.name} has shape {values.shape}: expected "
            f"{expected}, as its description says; ask the authors of the package"
        )
    return restore(values, tensor, package.space)


def _finish(values: np.ndarray, tensor: Tensor, package: ForeignPackage) -> np.ndarray:
    """Do the operations of an output, on all of it."""
    ordered = arrange(values, tensor, package.space)
    done = restore(
        apply_operations(ordered, tensor.axis_names, tensor.operations), tensor, package.space
    )
    if done.dtype.kind == "f" and not np.isfinite(done).all():
        raise PackageError(
            f"{package.location}: output {tensor.name} is not finite: the network or its "
            "description is wrong; ask the authors of the package"
        )
    return done
