"""From an image to its instances: the story of `run` on one page.

    image ─ normalise (as a whole) ─ blocks ─ tiles ─ embed ─ foreground ─ cluster ─ join ─ labels

A tile is what the network sees at once, a block what is clustered at once; both are matters of
memory and do not change the answer. Tiles start on the pooling grid of the network and carry a
halo of at least its receptive field, so every pixel is computed from the same numbers in the same
order as in the whole image. Blocks are made of whole windows, of which `clustering` tells.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Bool, UInt32

from spoco_zoo.clustering import Canvas, cluster, plan_blocks
from spoco_zoo.embedder import TILE, Embedder, Progress, find_inside, per_axis
from spoco_zoo.errors import ImageError
from spoco_zoo.fragments import cluster_block
from spoco_zoo.images import check_finite
from spoco_zoo.labels import load_libraries
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe
from spoco_zoo.session import Embedded, EmbeddingSession
from spoco_zoo.tiling import inner_box

if TYPE_CHECKING:
    import xarray

Array = TypeVar("Array", np.ndarray, "xarray.DataArray")

_BLOCK_BYTES = 1 << 28  # of embeddings, where the user says nothing


@dataclass(frozen=True, eq=False)
class _Wishes:
    """What a user of `segment` may ask for beside the package."""

    recipe: Recipe | None
    mask: np.ndarray | None
    tile: Sequence[int] | int | None
    block: Sequence[int] | int | None
    progress: Progress | None


def segment(  # noqa: PLR0913 the door has one keyword for each wish
    image: Array,
    package: Package | EmbeddingSession,
    *,
    recipe: Recipe | None = None,
    mask: np.ndarray | None = None,
    tile: Sequence[int] | int | None = None,
    block: Sequence[int] | int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Array:
    """Find the instances of one image.

    Args:
        image: A NumPy array `(y, x)` or `(c, y, x)`, with z before y for volumes, or an
            `xarray.DataArray` with these dimensions in any order. Any integer or float dtype;
            intensities as they come from the microscope.
        package: A package, or a session that holds one open for many images.
        recipe: How instances are made; that of the package where left out.
        mask: Foreground where it is not 0, `(y, x)` or `(z, y, x)`; instead of the rule of the
            recipe.
        tile: Size in pixels of what the network sees at once, per axis or for all; does not
            change the result.
        block: Size in pixels of what is clustered at once, rounded up to whole windows; does not
            change the result. Memory for embeddings grows with it, not with the image.
        device: `cpu`, `cuda` or `auto`, where no session is given.
        progress: Called with tiles done and tiles in all.

    Returns:
        Labels of the same kind: uint32, 0 for background, instances 1..n, without the channel
        axis. A DataArray keeps its space dimensions, coordinates and attributes.

    Raises:
        ImageError: The image or the mask does not fit the package, or is not finite.
        SettingError: The tile, the block or the recipe is impossible.
        DeviceError: The device is not there.
    """
    wishes = _Wishes(recipe, mask, tile, block, progress)
    if not isinstance(image, np.ndarray) and not hasattr(image, "dims"):
        raise ImageError(
            f"image is a {type(image).__name__}: expected a NumPy array or an xarray.DataArray"
        )
    with ExitStack() as stack:
        if isinstance(package, Package):
            package = stack.enter_context(EmbeddingSession(package, device))
        if isinstance(image, np.ndarray):
            return _segment(_with_channels(image, package.package), package, wishes)
        return _segment_labelled_axes(image, package, wishes)


def embed(
    pixels: np.ndarray,
    session: EmbeddingSession,
    tile: Sequence[int] | int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Normalise and embed an image `(c, *space)` of any size as a whole, tile by tile.

    Raises:
        ImageError: The image does not fit the package, or is not finite.
        SettingError: The tile size is impossible.
    """
    _check_image(pixels, session.package)
    whole = tuple(slice(0, n) for n in pixels.shape[1:])
    return _open(pixels, session, tile).embed(whole, progress)


def make_instances(
    embedded: Embedded, recipe: Recipe, mask: Bool[np.ndarray, "*space"] | None = None
) -> UInt32[np.ndarray, "*space"]:
    """Decide foreground and cluster it.

    Raises:
        SettingError: The recipe asks for what the network does not give.
    """
    foreground, core = find_inside(embedded, recipe, mask)
    return cluster(embedded.embedding, foreground, recipe, embedded.momentum_embedding, core)


def _segment(
    pixels: np.ndarray, session: EmbeddingSession, wishes: _Wishes
) -> UInt32[np.ndarray, "*space"]:
    _check_image(pixels, session.package)
    space = pixels.shape[1:]
    recipe = wishes.recipe or session.package.config.recipe
    mask = _check_mask(wishes.mask, space)
    source = _open(pixels, session, wishes.tile)
    blocks = list(plan_blocks(space, recipe, _block_size(wishes.block, session)))
    if _is_constant(pixels):  # nothing is there to be seen
        return np.zeros(space, np.uint32)
    canvas = Canvas(space, recipe)
    foreground = np.zeros(space, dtype=bool)
    count = sum(len(source.plan(block.keep)) for block in blocks)
    done = 0

    def tick(*_: int) -> None:
        nonlocal done
        done += 1
        if wishes.progress is not None:
            wishes.progress(done, count)

    Thread(target=load_libraries, daemon=True).start()
    for block in blocks:
        # one image at a time is in the network: of others, tiles would only wait in memory
        with session.turn:
            seen = source.see(block.keep, recipe, tick)
        part = None if mask is None else mask[block.keep]
        inside, core = find_inside(seen.known, recipe, part)
        foreground[block.write] = inside[inner_box(block.keep, block.write)]
        canvas.add(block, cluster_block(seen.f, core, block, recipe, seen.g))
        session.spare = list(seen.lent) or session.spare  # of one part: sizes may differ
    return canvas.finish(foreground)


def _open(
    pixels: np.ndarray, session: EmbeddingSession, tile: Sequence[int] | int | None
) -> Embedder:
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return Embedder(pixels, session, tile, fit_affine(pixels, session.package.normalization))


def _segment_labelled_axes(
    image: "xarray.DataArray",
    session: EmbeddingSession,
    wishes: _Wishes,
) -> "xarray.DataArray":
    space = tuple("zyx"[-session.package.n_axes :])
    names = {str(name).lower(): name for name in image.dims}
    channel = next((names[n] for n in ("c", "channel") if n in names), None)
    missing = [axis for axis in space if axis not in names]
    if missing or image.ndim != len(space) + (channel is not None):
        raise ImageError(
            f"image has dimensions {', '.join(map(str, image.dims))}: expected "
            f"{', '.join(space)} and at most c; rename or select them"
        )
    order = [names[axis] for axis in space]
    ordered = image.transpose(*([channel] if channel is not None else []), *order)
    pixels = np.asarray(ordered.values)
    pixels = pixels if channel is not None else pixels[None]
    labels = _segment(pixels, session, wishes)
    plain = ordered if channel is None else ordered.isel({channel: 0}, drop=True)
    return plain.copy(data=labels).rename("labels")


def _with_channels(image: np.ndarray, package: Package) -> np.ndarray:
    if image.ndim == package.n_axes:
        return image[None]
    if image.ndim != package.n_axes + 1:
        raise ImageError(
            f"image has shape {image.shape}: expected {package.n_axes} space axes, "
            "with at most one channel axis before them"
        )
    return image


def _check_image(pixels: np.ndarray, package: Package) -> None:
    if pixels.dtype.kind not in "uifb":
        raise ImageError(f"image is {pixels.dtype}: expected integers or floats")
    if pixels.ndim != package.n_axes + 1:
        raise ImageError(
            f"image has {pixels.ndim - 1} space axes: {package.name} was trained on "
            f"{package.n_axes}; choose a package of as many"
        )
    if len(pixels) != package.channels:
        raise ImageError(
            f"image has {len(pixels)} channels: {package.name} was trained on "
            f"{package.channels}; select or convert channels first"
        )
    if pixels.size == 0:
        raise ImageError(f"image has shape {pixels.shape}: expected at least one pixel per axis")
    check_finite(pixels, "image")


def _check_mask(
    mask: np.ndarray | None, space: tuple[int, ...]
) -> Bool[np.ndarray, "*space"] | None:
    if mask is None:
        return None
    if mask.shape != space:
        raise ImageError(
            f"mask has shape {mask.shape}: expected that of the image, {space}, without channels"
        )
    return np.asarray(mask != 0)


def _is_constant(pixels: np.ndarray) -> bool:
    """Tell whether every channel holds one value only."""
    # most images say no in their first line
    first = pixels[(slice(None), *(slice(0, 1),) * (pixels.ndim - 1))]
    return bool((pixels[..., :1, :] == first).all()) and bool((pixels == first).all())


def _block_size(block: Sequence[int] | int | None, session: EmbeddingSession) -> list[int]:
    """Side of a block: the wish, or what keeps its embedding within some hundred megabytes.

    On a GPU a block goes through the network as one tile, so that its embedding may stay there.
    """
    package = session.package
    if block is None and session.device == "cuda":
        return [TILE[package.n_axes]] * package.n_axes
    if block is not None:
        return per_axis(block, package.n_axes, "block")
    side = (_BLOCK_BYTES / (4 * sum(package.numbers))) ** (1 / package.n_axes)
    return [math.ceil(side)] * package.n_axes
