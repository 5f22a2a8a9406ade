"""The clusters of one block of an image, not yet joined to those of its neighbours.

Why pieces, windows and slopes, stands in `clustering`. What is found here depends on the pixels
of a window and its margin alone, never on the block that the window happens to lie in.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from threadpoolctl import threadpool_limits

from spoco_zoo.errors import SettingError
from spoco_zoo.labels import find_pieces
from spoco_zoo.machine import count_cores
from spoco_zoo.modes import (
    find_means,
    hdbscan,
    mean_shift,
    merge_near,
    nearest_center,
    squared_distances,
)
from spoco_zoo.pixels import Pixels
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.tiling import Box, Tile, inner_box

Labels = UInt32[np.ndarray, "*space"]
Mask = Bool[np.ndarray, "*space"]

_MOST_POINTS = 4_000  # of a piece in a window, among which centres are sought
_MOST_DENSITY_POINTS = 2_000  # the same for HDBSCAN, whose time grows with their square
_MOST_BALL_POINTS = 8_000  # of a window, on which the balls of consistency are compared
_SAMPLES_OF_PIECE = 64  # of a compact piece, on which its mean is taken
_SAMPLES_OF_SMALLEST = 8  # by which the smallest instance is told from noise
_RATIOS = {2: (0.6180, 0.0), 3: (0.7549, 0.5698, 0.0)}  # of lattices that spread evenly
_NO_LINKS = np.zeros((0, 2), np.intp)


class Fragments(NamedTuple):
    """What was found in a block: `labels` number its clusters 1..k, the rest says what they are."""

    labels: Labels
    centers: Float[np.ndarray, "k e"]
    reach: Float[np.ndarray, " k"]  # farthest a point may be from the centre
    links: Int[np.ndarray, "l 2"]  # labels that are one instance although not one cluster
    agreement: Float[np.ndarray, "k a"]  # of f and g, by anchors; without columns if not asked


def cluster_block(
    embedding: Pixels,
    core: Mask,
    tile: Tile,
    recipe: Recipe,
    momentum_embedding: Pixels | None = None,
    threads: int | None = None,
) -> Fragments:
    """Find the clusters of a block.

    Args:
        embedding: The embedding of f in `tile.keep`, the block and its margin.
        core: Where instances are told apart, in `tile.keep`.
        tile: Where the block lies in the image; `write` is made of whole windows.
        recipe: How clusters are found.
        momentum_embedding: The embedding of g; needed by `Consistency` alone.
        threads: Windows worked on at once, as many as there are cores where left out; does not
            change the result.

    Returns:
        The clusters, with labels of `tile.write`.

    Raises:
        SettingError: Consistency clustering without the embedding of the momentum net, or an
            embedding that is not finite.
    """
    if isinstance(recipe.clustering, Consistency) and momentum_embedding is None:
        raise SettingError(
            "consistency clustering needs the embedding of the momentum net, "
            "this package has none: use mean_shift or hdbscan"
        )
    for given in (embedding, momentum_embedding):
        if given is not None and not given.is_finite():
            raise SettingError(
                "the embedding holds NaN or infinity: expected finite numbers; "
                "the image or the network is damaged"
            )
    found, rest = _compact_pieces(embedding, core, inner_box(tile.keep, tile.write), recipe)
    windows = [w for w in _plan_windows(tile, recipe) if rest[inner_box(tile.keep, w.write)].any()]

    def work(window: Tile) -> Fragments:
        seen = inner_box(tile.keep, window.keep)
        g = None if momentum_embedding is None else momentum_embedding.crop(seen)
        return _cluster_window(embedding.crop(seen), rest[seen], window, recipe, g)

    parts = [found]
    offset = len(found.centers)
    # with threads of its own, BLAS would share out the sums of small products between them
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or count_cores()) as pool:
        for window, part in zip(windows, pool.map(work, windows), strict=True):
            labels = found.labels[inner_box(tile.write, window.write)]
            labels += part.labels + np.uint32(offset) * (part.labels > 0)
            parts.append(part._replace(links=part.links + offset))
            offset += len(part.centers)
    _, *columns = zip(*parts, strict=True)
    return Fragments(found.labels, *map(np.concatenate, columns))


def _plan_windows(tile: Tile, recipe: Recipe) -> Iterator[Tile]:
    """Cut a block into its windows, each kept with a margin around it."""
    n_axes = len(tile.write)
    sizes, margins = recipe.windows(n_axes), recipe.margins(n_axes)
    starts = (range(box.start, box.stop, size) for box, size in zip(tile.write, sizes, strict=True))
    for start in product(*starts):
        write = tuple(
            slice(a, min(a + size, box.stop))
            for a, size, box in zip(start, sizes, tile.write, strict=True)
        )
        keep = tuple(
            slice(max(s.start - margin, box.start), min(s.stop + margin, box.stop))
            for s, margin, box in zip(write, margins, tile.keep, strict=True)
        )
        yield Tile(write, keep, keep)


def _compact_pieces(
    pixels: Pixels, core: Mask, inner: Box, recipe: Recipe
) -> tuple[Fragments, Mask]:
    """Take every small piece of the core whose embeddings lie around their mean as one cluster.

    Returns:
        These clusters, and the part of the core that is still to be clustered.
    """
    from scipy import ndimage

    settings = recipe.clustering
    nothing = np.zeros(tuple(s.stop - s.start for s in inner), np.uint32)
    columns = settings.anchors if isinstance(settings, Consistency) else 0
    none = _fragments(nothing, np.zeros((0, pixels.dim), np.float32), 0.0, columns)
    reach = settings.epsilon if isinstance(settings, Hdbscan) else settings.bandwidth
    if isinstance(settings, Consistency) or not core.any():
        return none, core
    pieces = find_pieces(core)
    margins = recipe.margins(core.ndim)
    # a piece that fits into the margin is seen as a whole from every block that holds part of it
    fits = [
        all(s.stop - s.start <= margin for s, margin in zip(box, margins, strict=True))
        for box in ndimage.find_objects(pieces)
    ]
    is_compact = np.array([False, *fits])
    place = np.flatnonzero(is_compact[pieces])
    if not len(place):
        return none, core
    piece = pieces.ravel()[place].astype(np.intp)
    means = _piece_means(pixels, place, piece, len(is_compact))
    squares = pixels.squares(place, piece, means)
    is_compact[piece[squares > np.float32(reach) ** 2]] = False
    owned = is_compact & (np.bincount(pieces[inner].ravel(), minlength=len(is_compact)) > 0)
    numbers = np.where(owned, np.cumsum(owned), 0).astype(np.uint32)
    found = _fragments(numbers[pieces[inner]], means[owned], reach)
    return found, core & ~is_compact[pieces]


def _piece_means(
    pixels: Pixels,
    place: Int[np.ndarray, " n"],
    piece: Int[np.ndarray, " n"],
    count: int,
) -> Float[np.ndarray, "{count} e"]:
    """Mean of an even sample of each piece; the same from whatever block it is seen."""
    order = np.argsort(piece, kind="stable")
    sizes = np.bincount(piece, minlength=count)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(piece)) - starts[piece[order]]
    size = sizes[piece[order]]
    taken = np.minimum(size, _SAMPLES_OF_PIECE)
    is_sample = (rank + 1) * taken // size > rank * taken // size
    sample = order[is_sample]
    columns = pixels.points(place[sample]).T
    counts = np.maximum(np.bincount(piece[sample], minlength=count), 1)
    sums = [np.bincount(piece[sample], column, count) for column in columns]
    return np.stack([total / counts for total in sums], axis=1).astype(np.float32)


def _cluster_window(
    pixels: Pixels, core: Mask, window: Tile, recipe: Recipe, g: Pixels | None
) -> Fragments:
    """Find the clusters of a window; all arrays are those of `window.keep`."""
    from scipy import ndimage

    settings = recipe.clustering
    inner = inner_box(window.keep, window.write)
    pieces = find_pieces(core)
    is_own = np.zeros(int(pieces.max()) + 1, dtype=bool)
    is_own[pieces[inner]] = True
    is_own[0] = False
    place, where = _find_places(is_own[pieces], window)
    is_inner = _is_inside(where, window.write)
    steps = np.zeros(core.shape, np.float32)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        if is_own[number]:
            here = pieces[box] == number
            steps[box][here] = pixels.crop(box).steps(here)[here]
    seen = _Seen(pixels, place, where, steps.ravel()[place])

    numbers = np.full(len(place), -1)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    count = 0
    groups = [np.arange(len(place))]
    if not isinstance(settings, Hdbscan):
        piece = pieces.ravel()[place]
        order = np.argsort(piece, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(piece[order])) + 1)
    for members in groups:
        if len(members) < recipe.min_size:
            continue
        centers, reach, links = _find_centers(seen, members, recipe)
        # the balls of consistency are compared with whole clusters
        wanted = members if g is not None else members[is_inner[members]]
        nearest = pixels.nearest(place[wanted], centers, reach)
        numbers[wanted] = np.where(nearest >= 0, nearest + count, -1)
        parts.append((centers, reach, links + count))
        count += len(centers)
    labels = np.zeros(core.shape, np.uint32)
    labels.ravel()[place] = numbers + 1
    agreement = np.zeros((count, 0), np.float32)
    if g is not None and isinstance(settings, Consistency):
        agreement = _measure_agreement(labels, pieces, g, window, count, settings)
    none = (np.zeros((0, pixels.dim), np.float32), np.zeros(0, np.float32), _NO_LINKS)
    centers, reach, links = map(np.concatenate, zip(none, *parts, strict=True))
    return Fragments(labels[inner], centers, reach, links + 1, agreement)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The pixels of a window and its margin that are to be clustered."""

    pixels: Pixels
    place: Int[np.ndarray, " n"]  # in the flat array
    where: Int[np.ndarray, "d n"]  # in the image
    steps: Float[np.ndarray, " n"]  # to neighbours


def _find_centers(
    seen: _Seen, members: Int[np.ndarray, " k"], recipe: Recipe
) -> tuple[Float[np.ndarray, "m e"], Float[np.ndarray, " m"], Int[np.ndarray, "l 2"]]:
    """Find centres of clusters among points off the slopes, thinned evenly in the image."""
    settings = recipe.clustering
    radius = settings.epsilon if isinstance(settings, Hdbscan) else settings.bandwidth
    flat = members[_is_flat(seen.steps[members], radius)]
    if isinstance(settings, Hdbscan):
        sample, thinning = _thin(flat, seen.where, _MOST_DENSITY_POINTS, recipe.min_size)
        points = seen.pixels.points(seen.place[sample])
        smallest = max(recipe.min_size // thinning, 2)
        found = hdbscan(points, settings.epsilon, settings.min_samples, smallest)
        means, reach = find_means(points, found)
        return means, np.maximum(reach, np.float32(settings.epsilon)), _NO_LINKS
    modes, crowds = np.zeros((0, seen.pixels.dim), np.float32), np.zeros(0, np.intp)
    reach = np.zeros(0, np.float32)
    left = flat
    while len(left) >= max(recipe.min_size, 1):
        sample, thinning = _thin(left, seen.where, _MOST_POINTS, recipe.min_size)
        found_modes, found_crowds = mean_shift(
            seen.pixels.points(seen.place[sample]), settings.bandwidth
        )
        is_new = found_crowds * thinning >= recipe.min_size
        is_new[0] |= not is_new.any() and not len(modes)
        is_new &= nearest_center(found_modes, modes, reach) < 0
        modes = np.concatenate([modes, found_modes[is_new]])
        crowds = np.concatenate([crowds, found_crowds[is_new] * thinning])
        reach = np.full(len(modes), settings.bandwidth, np.float32)
        if 2 * thinning <= max(recipe.min_size, 2) or not is_new.any():
            break
        # the smallest instances may have fallen through the lattice
        left = left[seen.pixels.nearest(seen.place[left], modes, reach) < 0]
    links = _NO_LINKS
    if isinstance(settings, MeanShift) and settings.merge_distance:
        joined = merge_near(modes, crowds, settings.merge_distance)
        links = np.stack([np.arange(len(modes)), joined], axis=1)
    return modes, reach, links


def _is_flat(steps: Float[np.ndarray, " n"], radius: float) -> Bool[np.ndarray, " n"]:
    """Tell which points are off the slopes between instances."""
    # a noisy embedding has its steps everywhere: what counts is to stand out of them
    typical = float(np.median(steps))
    if typical > radius:
        return np.ones(len(steps), dtype=bool)
    return np.asarray(steps <= np.clip(2 * typical, radius / 2, radius))


def _thin(
    members: Int[np.ndarray, " k"], where: Int[np.ndarray, "d n"], most: int, min_size: int
) -> tuple[Int[np.ndarray, " s"], int]:
    """Keep one pixel of some, spread evenly: those on a rank-1 lattice of the image.

    Every n-th pixel in reading order would be columns wherever n divides the width.

    Args:
        members: Pixels to choose from.
        where: Positions in the image of all pixels.
        most: How many may stay, about. A quarter of them is enough where even the smallest
            instance is still seen.
        min_size: Pixels of the smallest instance.

    Returns:
        The pixels that stay, and one of how many they are.
    """
    enough = min(-(-4 * len(members) // most), max(min_size // _SAMPLES_OF_SMALLEST, 1))
    thinning = max(-(-len(members) // most), enough)
    if thinning <= 1:
        return members, 1
    shift = np.zeros(len(members), np.intp)
    for ratio, coordinate in zip(_RATIOS[len(where)], where, strict=True):
        step = max(round(ratio * thinning), 1)
        while math.gcd(step, thinning) > 1:
            step += 1
        shift += step * coordinate[members]
    kept = members[shift % thinning == 0]
    return (kept if len(kept) else members[::thinning]), thinning


def _measure_agreement(
    labels: Labels, pieces: Labels, g: Pixels, window: Tile, count: int, settings: Consistency
) -> Float[np.ndarray, "k a"]:
    """Compare each cluster with balls of g around some of its pixels, by intersection over union.

    The balls are taken in the cluster's piece of the core, in the window and its margin: other
    pixels may share the embedding without being rivals. Clusters without a pixel in the window
    itself agree with nothing.
    """
    random = np.random.default_rng([settings.seed, *(s.start for s in window.write)])
    place, where = _find_places(pieces > 0, window)
    sample = _thin(np.arange(len(place)), where, _MOST_BALL_POINTS, 0)[0]
    place, is_inner = place[sample], _is_inside(where[:, sample], window.write)
    points = g.points(place)
    points = np.ascontiguousarray(points - points.mean(axis=0))
    lengths = (points * points).sum(axis=1)
    numbers, piece = labels.ravel()[place], pieces.ravel()[place]
    agreement = np.zeros((count, settings.anchors), np.float32)
    for number in range(1, count + 1):
        candidates = np.flatnonzero((numbers == number) & is_inner)
        if not len(candidates):
            continue
        anchors = points[random.choice(candidates, settings.anchors)]
        rivals = np.flatnonzero(piece == piece[candidates[0]])
        near = squared_distances(anchors, points[rivals], lengths[rivals])
        near = near < settings.bandwidth**2
        inside = numbers[rivals] == number
        shared, ball = near[:, inside].sum(axis=1), near.sum(axis=1)
        agreement[number - 1] = shared / (ball + inside.sum() - shared)
    return agreement


def _find_places(mask: Mask, window: Tile) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "d n"]]:
    """Where the pixels of a mask lie: in the flat array, and in the image."""
    place = np.flatnonzero(mask)
    where = np.stack(np.unravel_index(place, mask.shape))
    return place, where + np.array([[s.start] for s in window.keep])


def _is_inside(where: Int[np.ndarray, "d n"], box: Box) -> Bool[np.ndarray, " n"]:
    starts, stops = np.array([[(s.start, s.stop)] for s in box]).T
    return np.asarray(((where >= starts.T) & (where < stops.T)).all(axis=0))


def _fragments(
    labels: Labels, centers: Float[np.ndarray, "k e"], reach: float, columns: int = 0
) -> Fragments:
    n = len(centers)
    reaches = np.full(n, reach, np.float32)
    return Fragments(labels, centers, reaches, _NO_LINKS, np.zeros((n, columns), np.float32))
