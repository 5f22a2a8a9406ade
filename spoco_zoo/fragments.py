"""The clusters of one block of an image, not yet joined to those of its neighbours.

Why pieces, windows and slopes, stands in `clustering`. What is found here depends on the pixels
of a window and its margin alone, never on the block that the window happens to lie in.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from spoco_zoo.errors import SettingError
from spoco_zoo.labels import find_ids, find_pieces, look_up
from spoco_zoo.machine import count_cores, one_blas_thread
from spoco_zoo.modes import (
    find_means,
    hdbscan,
    mean_shift,
    merge_near,
    nearest_center,
    square_lengths,
    squared_distances,
)
from spoco_zoo.pixels import Pixels
from spoco_zoo.recipe import Clustering, Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.tiling import Box, Tile, inner_box

Labels = UInt32[np.ndarray, "*space"]
Mask = Bool[np.ndarray, "*space"]

_MOST_POINTS = 4_000  # of a piece in a window, among which centres are sought
_MOST_DENSITY_POINTS = 2_000  # the same for HDBSCAN, whose time grows with their square
_MOST_BALL_POINTS = 8_000  # of a window, on which the balls of consistency are compared
_SAMPLES_OF_PIECE = 64  # of a compact piece, on which its mean is taken
_SAMPLES_OF_SMALLEST = 8  # by which the smallest instance is told from noise
_MOST_STEPS_TRIED = 64  # thinnings up to here are given the best lattice of all
_MOST_THREADS = 8  # every window at work takes some tens of megabytes
_WORTH_A_THREAD = 2_000  # pixels of a piece
_MOST_LOOKS = 8  # at what is left of a piece in a window
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
        threads: Windows worked on at once, as many as pay (one per core, 8 at most) where left
            out; does not change the result.

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
    found, rest, pieces = _compact_pieces(embedding, core, inner_box(tile.keep, tile.write), recipe)
    windows = [w for w in _plan_windows(tile, recipe) if rest[inner_box(tile.keep, w.write)].any()]

    def work(window: Tile) -> Fragments:
        seen = inner_box(tile.keep, window.keep)
        g = None if momentum_embedding is None else momentum_embedding.crop(seen)
        return _cluster_window(embedding.crop(seen), rest[seen], window, recipe, g)

    parts = [found]
    offset = len(found.centers)
    # small pieces are all interpreter, which works for one thread at a time
    worth = min(count_cores(), _MOST_THREADS) if rest.sum() > pieces * _WORTH_A_THREAD else 1
    threads = threads or worth
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
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
) -> tuple[Fragments, Mask, int]:
    """Take every small piece of the core whose embeddings lie around their mean as one cluster.

    Returns:
        These clusters, the part of the core that is still to be clustered, and its pieces.
    """
    from scipy import ndimage

    settings = recipe.clustering
    nothing = np.zeros(tuple(s.stop - s.start for s in inner), np.uint32)
    columns = settings.anchors if isinstance(settings, Consistency) else 0
    none = _fragments(nothing, np.zeros((0, pixels.dim), np.float32), 0.0, columns)
    reach = settings.epsilon if isinstance(settings, Hdbscan) else settings.bandwidth
    if isinstance(settings, Consistency) or not core.any():
        return none, core, 0
    pieces = find_pieces(core)
    margins = recipe.margins(core.ndim)
    # a piece that fits into the margin is seen as a whole from every block that holds part of it
    fits = [
        all(s.stop - s.start <= margin for s, margin in zip(box, margins, strict=True))
        for box in ndimage.find_objects(pieces)
    ]
    is_compact = np.array([False, *fits])
    place = np.flatnonzero(look_up(is_compact, pieces))
    if not len(place):
        return none, core, len(fits)
    piece = pieces.ravel()[place].astype(np.intp)
    means = _piece_means(pixels, place, piece, len(is_compact))
    squares = pixels.squares(place, piece, means)
    is_compact[piece[squares > np.float32(reach) ** 2]] = False
    owned = is_compact & find_ids(pieces[inner], len(fits))
    numbers = np.where(owned, np.cumsum(owned), 0).astype(np.uint32)
    found = _fragments(look_up(numbers, pieces[inner]), means[owned], reach)
    return found, core & look_up(~is_compact, pieces), int((~is_compact[1:]).sum())


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
    most = _MOST_DENSITY_POINTS if isinstance(settings, Hdbscan) else _MOST_POINTS
    centers, reach = np.zeros((0, seen.pixels.dim), np.float32), np.zeros(0, np.float32)
    crowds = np.zeros(0, np.intp)
    left = members[_is_flat(seen.steps[members], radius)]
    for _ in range(_MOST_LOOKS if len(left) else 0):
        sample, thinning = _thin(left, seen.where, most, recipe.min_size)
        points = seen.pixels.points(seen.place[sample])
        found = _cluster_points(
            points, settings, recipe.min_size // thinning, may_be_none=len(centers) > 0
        )
        is_new = nearest_center(found.centers, centers, reach) < 0
        centers = np.concatenate([centers, found.centers[is_new]])
        reach = np.concatenate([reach, found.reach[is_new]])
        crowds = np.concatenate([crowds, found.crowds[is_new] * thinning])
        if 2 * thinning <= max(recipe.min_size, 2) or not is_new.any():
            break
        # the smallest instances may have fallen through the lattice
        left = left[seen.pixels.nearest(seen.place[left], centers, reach) < 0]
        if len(left) < max(recipe.min_size, 1):
            break
    links = _NO_LINKS
    if isinstance(settings, MeanShift) and settings.merge_distance:
        joined = merge_near(centers, crowds, settings.merge_distance)
        links = np.stack([np.arange(len(centers)), joined], axis=1)
    return centers, reach, links


class _Clusters(NamedTuple):
    centers: Float[np.ndarray, "m e"]
    reach: Float[np.ndarray, " m"]
    crowds: Int[np.ndarray, " m"]


def _cluster_points(
    points: Float[np.ndarray, "n e"], settings: Clustering, min_crowd: int, *, may_be_none: bool
) -> _Clusters:
    """Cluster some points by the method of the recipe, without clusters of too few.

    Mean-shift gives one cluster at least, unless there may be none.
    """
    if isinstance(settings, Hdbscan):
        found = hdbscan(points, settings.epsilon, settings.min_samples, max(min_crowd, 2))
        means, reach = find_means(points, found)
        crowds = np.bincount(found[found >= 0], minlength=len(means))
        return _Clusters(means, np.maximum(reach, np.float32(settings.epsilon)), crowds)
    modes, crowds = mean_shift(points, settings.bandwidth)
    # half of a small instance may lie on slopes; what is too small is dropped at the end
    is_crowd = 2 * crowds >= min_crowd
    is_crowd[0] |= not (may_be_none or is_crowd.any())
    reach = np.full(int(is_crowd.sum()), settings.bandwidth, np.float32)
    return _Clusters(modes[is_crowd], reach, crowds[is_crowd])


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
    for step, coordinate in zip(lattice_steps(thinning, len(where)), where, strict=True):
        shift += step * coordinate[members]
    kept = members[shift % thinning == 0]
    return (kept if len(kept) else members[::thinning]), thinning


def most_thinning(pixels: int) -> int:
    """The sparsest thinning of a window of so many pixels, its margin included."""
    return max(-(-4 * pixels // _MOST_POINTS), 1)


@cache
def lattice_steps(thinning: int, n_axes: int) -> tuple[int, ...]:
    """Steps per axis of the rank-1 lattice whose points are farthest apart.

    The points are those where the steps times the coordinates sum up to a multiple of `thinning`;
    the last step is 1.
    """
    reach = math.ceil(2 * thinning ** (1 / n_axes))
    others = np.indices((2 * reach + 1,) * (n_axes - 1)).reshape(n_axes - 1, -1) - reach
    lengths = (others * others).sum(axis=0)
    coprime = [step for step in range(1, thinning) if math.gcd(step, thinning) == 1]
    tried: Iterable[Sequence[int]]
    if thinning <= _MOST_STEPS_TRIED:
        tried = product(coprime, repeat=n_axes - 1)
    else:  # one number and its powers are nearly as good (Korobov 1959)
        tried = ([pow(step, k, thinning) for k in range(n_axes - 1, 0, -1)] for step in coprime)
    best, farthest = (1,) * n_axes, -1
    for steps in tried:
        along = -np.array(steps) @ others % thinning
        squares = lengths + np.minimum(along, thinning - along) ** 2
        shortest = int(np.where(squares == 0, thinning**2, squares).min())
        if shortest > farthest:
            best, farthest = (*steps, 1), shortest
    return best


def _measure_agreement(
    labels: Labels, pieces: Labels, g: Pixels, window: Tile, count: int, settings: Consistency
) -> Float[np.ndarray, "k a"]:
    """Compare each cluster with balls of g around some of its pixels, by intersection over union.

    The balls are taken in the cluster's piece of the core, in the window and its margin: other
    pixels may share the embedding without being rivals. Of clusters without a pixel among those
    compared nothing is known (NaN).
    """
    random = np.random.default_rng([settings.seed, *(s.start for s in window.write)])
    place, where = _find_places(pieces > 0, window)
    sample = _thin(np.arange(len(place)), where, _MOST_BALL_POINTS, 0)[0]
    place, is_inner = place[sample], _is_inside(where[:, sample], window.write)
    points = g.points(place)
    points = np.ascontiguousarray(points - points.mean(axis=0))
    lengths = square_lengths(points)
    numbers, piece = labels.ravel()[place], pieces.ravel()[place]
    agreement = np.full((count, settings.anchors), np.nan, np.float32)
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
