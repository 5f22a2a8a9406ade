"""From an image to its instances: the story of `run` on one page.

    image ─ normalise (as a whole) ─ pad ─ tiles ─ embed ─ foreground ─ cluster ─ labels

A tile is a matter of memory and does not change the answer: tiles start on the pooling grid of
the network and carry a halo of at least its receptive field, so every pixel is computed from
the same numbers in the same order as in the whole image.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import UInt32

from spoco_zoo.clustering import cluster
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.foreground import find_core, find_foreground
from spoco_zoo.images import check_finite
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe
from spoco_zoo.session import Embedded, EmbeddingSession
from spoco_zoo.tiling import inner_box, plan_tiles

if TYPE_CHECKING:
    import xarray

Progress = Callable[[int, int], None]
Array = TypeVar("Array", np.ndarray, "xarray.DataArray")

_TILE = {2: 1024, 3: 96}  # pixels per axis where the user says nothing


def segment(
    image: Array,
    package: Package | EmbeddingSession,
    *,
    recipe: Recipe | None = None,
    tile: Sequence[int] | int | None = None,
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
        tile: Size in pixels, per axis or for all; does not change the result.
        device: `cpu`, `cuda` or `auto`, where no session is given.
        progress: Called with tiles done and tiles in all.

    Returns:
        Labels of the same kind: uint32, 0 for background, instances 1..n, without the channel
        axis. A DataArray keeps its space dimensions, coordinates and attributes.

    Raises:
        ImageError: The image does not fit the package, or is not finite.
        SettingError: The tile or the recipe is impossible.
        DeviceError: The device is not there.
    """
    if isinstance(package, Package):
        with EmbeddingSession(package, device) as session:
            return segment(image, session, recipe=recipe, tile=tile, progress=progress)
    if not isinstance(image, np.ndarray) and not hasattr(image, "dims"):
        raise ImageError(
            f"image is a {type(image).__name__}: expected a NumPy array or an xarray.DataArray"
        )
    if isinstance(image, np.ndarray):
        pixels = _with_channels(image, package.package)
        return _segment(pixels, package, recipe, tile, progress)
    return _segment_labelled_axes(image, package, recipe, tile, progress)


def embed(
    pixels: np.ndarray,
    session: EmbeddingSession,
    tile: Sequence[int] | int | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Normalise and embed an image `(c, *space)` of any size, tile by tile.

    Raises:
        ImageError: The image does not fit the package, or is not finite.
        SettingError: The tile size is impossible.
    """
    package = session.package
    _check_image(pixels, package)
    config = package.config
    if pixels.dtype == bool:  # which NumPy does not subtract
        pixels = pixels.astype(np.uint8)
    image = fit_affine(pixels, package.normalization).apply(pixels)
    space = image.shape[1:]
    padding = [(0, -n % step) for n, step in zip(space, config.multiple_of, strict=True)]
    image = np.pad(image, [(0, 0), *padding], mode="edge")
    write = _tile_size(tile, package)
    no_overlap = (0,) * len(space)
    tiles = list(plan_tiles(image.shape[1:], write, config.halo, no_overlap, config.multiple_of))
    parts: list[np.ndarray] = []
    for done, piece in enumerate(tiles, start=1):
        found = session.embed(image[(slice(None), *piece.read)])
        inner = (slice(None), *inner_box(piece.read, piece.write))
        arrays = [a for a in (found.embedding, found.momentum_embedding) if a is not None]
        if found.probability is not None:
            arrays.append(found.probability[None])
        if not parts:
            parts = [np.empty((len(a), *image.shape[1:]), np.float32) for a in arrays]
        for whole, array in zip(parts, arrays, strict=True):
            whole[(slice(None), *piece.write)] = array[inner]
        if progress is not None:
            progress(done, len(tiles))
    box = (slice(None), *(slice(n) for n in space))
    cut = [part[box] for part in parts]
    return Embedded(
        cut[0],
        cut[-1][0] if package.has_foreground_head else None,
        cut[1] if package.has_momentum else None,
    )


def make_instances(embedded: Embedded, recipe: Recipe) -> UInt32[np.ndarray, "*space"]:
    """Decide foreground and cluster it.

    Raises:
        SettingError: The recipe asks for what the network does not give.
    """
    foreground = find_foreground(embedded.embedding, recipe.foreground, embedded.probability)
    core = find_core(foreground, recipe.foreground, embedded.probability)
    return cluster(embedded.embedding, foreground, recipe, embedded.momentum_embedding, core)


def _segment(
    pixels: np.ndarray,
    session: EmbeddingSession,
    recipe: Recipe | None,
    tile: Sequence[int] | int | None,
    progress: Progress | None,
) -> UInt32[np.ndarray, "*space"]:
    _check_image(pixels, session.package)
    flat = pixels.reshape(len(pixels), -1)
    if (flat == flat[:, :1]).all():  # every channel is constant: nothing is there to be seen
        return np.zeros(pixels.shape[1:], np.uint32)
    embedded = embed(pixels, session, tile, progress)
    return make_instances(embedded, recipe or session.package.config.recipe)


def _segment_labelled_axes(
    image: "xarray.DataArray",
    session: EmbeddingSession,
    recipe: Recipe | None,
    tile: Sequence[int] | int | None,
    progress: Progress | None,
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
    labels = _segment(pixels, session, recipe, tile, progress)
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


def _tile_size(tile: Sequence[int] | int | None, package: Package) -> tuple[int, ...]:
    """Round the wish up to the pooling grid."""
    n_axes = package.n_axes
    if tile is None:
        tile = _TILE[n_axes]
    sizes: list[Any] = [tile] * n_axes if isinstance(tile, int) else list(tile)
    if len(sizes) == 1:
        sizes *= n_axes
    if len(sizes) != n_axes or min(sizes) < 1:
        raise SettingError(
            f"tile is {tile}: expected one number of pixels, or {n_axes}, each at least 1"
        )
    steps = package.config.multiple_of
    return tuple(math.ceil(size / step) * step for size, step in zip(sizes, steps, strict=True))
