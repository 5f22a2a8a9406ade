"""From embeddings to instances: mean-shift, HDBSCAN, consistency clustering.

The push term of the loss acts within one training crop, so two instances far apart may share
an embedding, and in a large image nearly every place in embedding space is taken by someone.
Clustering is therefore local wherever the foreground allows: mean-shift and consistency see
one connected piece of the foreground at a time. Instances of different pieces cannot be the
same one, so nothing is lost; modes of far instances cannot disturb each other, and the cost
grows with the area, not with its square.

What a method leaves open is closed in space. An embedding changes over a few pixels between
two instances; pixels on that slope are near no mode, or near the mode of a third instance,
and along a straight border many of them agree. So modes are sought among pixels off the
slopes; only pixels within the bandwidth of a mode take it; disconnected parts and specks are
cut off; and foreground pixels then still without an instance take that of a neighbour.

Nothing here knows of tiles or files, and nothing is random but the anchors of the consistency
test, which are drawn from a seed.
"""

from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from pydantic import BaseModel, ConfigDict, Field

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Foreground
from spoco_zoo.labels import (
    fill_from_neighbors,
    find_pieces,
    relabel,
    remove_small,
    split_disconnected,
)

Labels = UInt32[np.ndarray, "*space"]
Points = Float[np.ndarray, "n e"]
Modes = Float[np.ndarray, "m e"]

_MOST_POINTS = 20_000  # HDBSCAN is exact up to here; beyond, it sees an even sample
_MOST_MODE_POINTS = 4_000  # mean-shift seeks modes among at most so many
_MOST_STEPS = 50
_POINTS_AT_ONCE = 16_384
_SEEDS_AT_ONCE = 32


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class MeanShift(_Settings):
    """Flat-kernel mean-shift (Comaniciu and Meer 2002) on the embeddings."""

    method: Literal["mean_shift"] = "mean_shift"
    bandwidth: float = Field(0.5, gt=0, description="radius of a cluster, in embedding units")


class Hdbscan(_Settings):
    """HDBSCAN (McInnes et al. 2017): clusters of any density, the rest is noise."""

    method: Literal["hdbscan"] = "hdbscan"
    epsilon: float = Field(0.5, ge=0, description="clusters nearer than this are not split")
    min_samples: int | None = Field(None, ge=1, description="density smoothing, in pixels")


class Consistency(_Settings):
    """Mean-shift on f, keeping the clusters that g finds again (Wolny et al. 2022, sec. 3.4)."""

    method: Literal["consistency"] = "consistency"
    bandwidth: float = Field(0.5, gt=0, description="radius of a cluster, in embedding units")
    iou_threshold: float = Field(0.6, ge=0, le=1, description="least median agreement of f and g")
    anchors: int = Field(100, ge=1, description="pixels tried per cluster")
    seed: int = Field(0, ge=0, description="of the draw of anchors")


Clustering = Annotated[MeanShift | Hdbscan | Consistency, Field(discriminator="method")]


class Recipe(_Settings):
    """How an embedding becomes instances: all numbers that decide, kept in every package."""

    clustering: Clustering = MeanShift()
    foreground: Foreground = Everywhere()
    min_size: int = Field(10, ge=0, description="smaller instances are dropped, in pixels")
    fill_reach: int = Field(5, ge=0, description="how far undecided pixels may take a neighbour")


def cluster(
    embedding: Float[np.ndarray, "e *space"],
    foreground: Bool[np.ndarray, "*space"],
    recipe: Recipe,
    momentum_embedding: Float[np.ndarray, "e *space"] | None = None,
    core: Bool[np.ndarray, "*space"] | None = None,
) -> Labels:
    """Group the foreground pixels of one image into instances; 0 elsewhere.

    Args:
        embedding: The embedding of f.
        foreground: Where instances may lie.
        recipe: How they are made.
        momentum_embedding: The embedding of g; needed by `Consistency` alone.
        core: Where instances are told apart; they then grow through the foreground by at most
            `fill_reach` pixels. All foreground where left out.

    Raises:
        SettingError: Consistency clustering without the embedding of the momentum net, or an
            embedding that is not finite.
    """
    given = (embedding,) if momentum_embedding is None else (embedding, momentum_embedding)
    if not all(np.isfinite(e).all() for e in given):
        raise SettingError(
            "the embedding holds NaN or infinity: expected finite numbers; "
            "the image or the network is damaged"
        )
    core = foreground if core is None else core & foreground
    match recipe.clustering:
        case MeanShift(bandwidth=bandwidth):
            found = _per_piece(embedding, core, recipe.min_size, bandwidth)
        case Hdbscan() as settings:
            found = _hdbscan(embedding, core, settings, recipe.min_size)
        case Consistency() as settings:
            if momentum_embedding is None:
                raise SettingError(
                    "consistency clustering needs the embedding of the momentum net, "
                    "this package has none: use mean_shift or hdbscan"
                )
            found = _per_piece(embedding, core, recipe.min_size, settings.bandwidth)
            found = _keep_consistent(found, core, momentum_embedding, settings)
            # what f and g disagree on is dropped for good: it is nobody's neighbour
            foreground = foreground & ((found > 0) | ~core)
    found = remove_small(split_disconnected(found), recipe.min_size)
    return relabel(fill_from_neighbors(found, foreground, recipe.fill_reach))


def mean_shift(
    points: Points,
    bandwidth: float,
    min_crowd: int = 1,
    is_flat: Bool[np.ndarray, " n"] | None = None,
) -> tuple[Modes, Int[np.ndarray, " n"]]:
    """Find the modes of a flat kernel and the nearest one within the bandwidth of each point.

    Modes are sought among every `step`-th point, so that at most some thousand take part; each
    of these is a seed unless an earlier seed or mode covers it. Seeds thus reach every part of
    space, and the result depends on nothing but the points and their order. Climbing is a
    matrix product of seeds and points per step.

    Args:
        points: The embeddings.
        bandwidth: Radius of the kernel.
        min_crowd: Modes with fewer points within the bandwidth are dropped.
        is_flat: The points among which modes are sought, at least one; all where left out.

    Returns:
        The modes, the most crowded first, and the mode of every point, -1 for none.
    """
    squared = np.float32(bandwidth * bandwidth)
    flat = points if is_flat is None else points[is_flat]
    # far from 0, distances lose digits
    centre = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
    points = points.astype(np.float32, copy=False) - centre
    flat = points if is_flat is None else points[is_flat]
    if (flat * flat).sum(axis=1).max() <= squared:
        modes = np.zeros((1, flat.shape[1]), np.float32)
    else:
        step = -(-len(flat) // _MOST_MODE_POINTS)
        modes = _find_modes(np.ascontiguousarray(flat[::step]), squared)
    nearest, crowds = _nearest_mode(points, modes, squared)
    crowded = crowds >= min_crowd
    if not crowded.all():
        modes = modes[crowded] if crowded.any() else modes[:1]
        nearest, _ = _nearest_mode(points, modes, squared)
    return modes + centre, nearest


def _find_modes(points: Points, squared: np.float32) -> Modes:
    lengths = (points * points).sum(axis=1)
    uncovered = np.ones(len(points), dtype=bool)
    modes, crowds = np.empty((0, points.shape[1]), np.float32), np.empty(0, np.intp)
    while uncovered.any():
        candidates = np.flatnonzero(uncovered)
        seeds = candidates[:: -(-len(candidates) // _SEEDS_AT_ONCE)]
        climbed, found = _climb(points[seeds], points, lengths, squared)
        modes, crowds = _merge_modes(
            np.concatenate([modes, climbed]), np.concatenate([crowds, found]), squared
        )
        uncovered[seeds] = False
        near = _squared_distances(climbed, points[candidates], lengths[candidates]) <= squared
        uncovered[candidates[near.any(axis=0)]] = False
    return modes


def _nearest_mode(
    points: Points, modes: Modes, squared: np.float32
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Nearest mode of each point, -1 for none within the bandwidth; and points near each mode."""
    nearest, crowds = np.empty(len(points), np.intp), np.zeros(len(modes), np.intp)
    for start in range(0, len(points), _POINTS_AT_ONCE):
        part = points[start : start + _POINTS_AT_ONCE]
        distances = _squared_distances(modes, part, (part * part).sum(axis=1))
        best = distances.argmin(axis=0)
        reached = distances[best, np.arange(len(part))] <= squared
        nearest[start : start + len(part)] = np.where(reached, best, -1)
        crowds += (distances <= squared).sum(axis=1)
    return nearest, crowds


def _climb(
    seeds: Modes, points: Points, lengths: Float[np.ndarray, " n"], squared: np.float32
) -> tuple[Modes, Int[np.ndarray, " m"]]:
    """Shift seeds to the mean of the points within the bandwidth until they rest."""
    here = seeds.copy()
    crowd = np.ones(len(seeds), np.intp)
    moving = np.ones(len(seeds), dtype=bool)
    for _ in range(_MOST_STEPS):
        inside = _squared_distances(here[moving], points, lengths) <= squared
        counts = inside.sum(axis=1)
        crowd[moving] = counts
        # a seed that drifted off every point stays where it is
        there = np.where(
            counts[:, None] > 0,
            inside.astype(np.float32) @ points / np.maximum(counts, 1)[:, None],
            here[moving],
        )
        far = ((there - here[moving]) ** 2).sum(axis=1) > squared * 1e-6
        here[moving] = there
        moving[np.flatnonzero(moving)[~far]] = False
        if not moving.any():
            break
    return here, crowd


def _merge_modes(
    modes: Modes, crowds: Int[np.ndarray, " m"], squared: np.float32
) -> tuple[Float[np.ndarray, "k e"], Int[np.ndarray, " k"]]:
    """Keep the most crowded of all modes that lie within one bandwidth."""
    order = np.argsort(-crowds, kind="stable")
    kept: list[int] = []
    for number in order:
        if kept:
            gap = ((modes[kept] - modes[number]) ** 2).sum(axis=1).min()
            if gap < squared:
                continue
        kept.append(int(number))
    return modes[kept], crowds[kept]


def _squared_distances(
    centers: Modes, points: Points, lengths: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "m n"]:
    distances: np.ndarray = centers @ points.T
    distances *= -2
    distances += lengths
    distances += (centers * centers).sum(axis=1)[:, None]
    return distances


def _per_piece(
    embedding: Float[np.ndarray, "e *space"],
    foreground: Bool[np.ndarray, "*space"],
    min_size: int,
    bandwidth: float,
) -> Labels:
    """Run mean-shift on each connected piece of the foreground, seeking modes off the slopes."""
    pieces = find_pieces(foreground)
    steps = _steps_to_neighbors(embedding, pieces).ravel()
    pieces = pieces.ravel()
    labels = np.zeros(pieces.shape, np.uint32)
    flat = embedding.reshape(len(embedding), -1)
    order = np.argsort(pieces, kind="stable")
    ends = np.cumsum(np.bincount(pieces))
    highest = 0
    for start, stop in pairwise(ends):
        pixels = order[start:stop]
        if len(pixels) < min_size:
            continue
        points = np.ascontiguousarray(flat[:, pixels].T)
        # a noisy embedding has its steps everywhere: what counts is to stand out of them
        typical = np.median(steps[pixels])
        steep = np.clip(2 * typical, bandwidth / 2, bandwidth)
        is_flat = steps[pixels] <= (steep if typical <= bandwidth else np.inf)
        _, nearest = mean_shift(points, bandwidth, min_size, is_flat)
        labels[pixels] = np.where(nearest >= 0, nearest + 1 + highest, 0)
        highest += int(nearest.max()) + 1
    return labels.reshape(foreground.shape)


def _steps_to_neighbors(
    embedding: Float[np.ndarray, "e *space"], pieces: Labels
) -> Float[np.ndarray, "*space"]:
    """Distance of each pixel's embedding from that of its nearer neighbour, on the worst axis.

    Beside a sharp border the nearer neighbour is that of the same instance, so the distance is
    small; on a slope both are far. Neighbours in another piece do not count.
    """
    worst = np.zeros(pieces.shape, np.float32)
    for axis in range(pieces.ndim):
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        step = np.linalg.norm(np.diff(embedding, axis=axis + 1), axis=0)
        step = np.where(pieces[before] == pieces[after], step, np.inf)
        nearer = np.full(pieces.shape, np.inf, np.float32)
        nearer[before] = step
        nearer[after] = np.minimum(nearer[after], step)
        worst = np.maximum(worst, np.where(np.isinf(nearer), 0, nearer))
    return worst


def _hdbscan(
    embedding: Float[np.ndarray, "e *space"],
    foreground: Bool[np.ndarray, "*space"],
    settings: Hdbscan,
    min_size: int,
) -> Labels:
    """Run HDBSCAN on all foreground pixels, or an even sample and the nearest cluster mean."""
    import hdbscan

    labels = np.zeros(foreground.shape, np.uint32)
    points = embedding[:, foreground].T.astype(np.float64)
    if not len(points):
        return labels
    step = -(-len(points) // _MOST_POINTS)
    sample = points[::step]
    smallest = max(min_size // step, 2)
    # one compact cloud is one instance; HDBSCAN by itself would call it noise
    if np.linalg.norm(sample - sample.mean(axis=0), axis=1).max() <= settings.epsilon:
        found = np.zeros(len(sample), np.intp)
    elif len(sample) <= smallest:
        found = np.full(len(sample), -1)
    else:
        found = hdbscan.HDBSCAN(
            min_cluster_size=smallest,
            min_samples=settings.min_samples,
            cluster_selection_epsilon=settings.epsilon,
            core_dist_n_jobs=1,
        ).fit_predict(sample)
    if step > 1:
        found = _nearest_mean(points, sample, found)
    labels[foreground] = found + 1
    return labels


def _nearest_mean(points: np.ndarray, sample: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Assign points to the nearest mean of the sample's clusters, within its farthest member."""
    count = found.max() + 1
    if not count:
        return np.full(len(points), -1)
    means = np.stack([sample[found == k].mean(axis=0) for k in range(count)])
    reach = np.array(
        [np.linalg.norm(sample[found == k] - means[k], axis=1).max() for k in range(count)]
    )
    assigned = np.empty(len(points), np.intp)
    for start in range(0, len(points), _POINTS_AT_ONCE):
        part = points[start : start + _POINTS_AT_ONCE]
        squares = _squared_distances(means, part, (part * part).sum(axis=1))
        nearest = squares.argmin(axis=0)
        distance = np.sqrt(np.maximum(squares[nearest, np.arange(len(part))], 0))
        assigned[start : start + len(part)] = np.where(distance <= reach[nearest], nearest, -1)
    return assigned


def _keep_consistent(
    labels: Labels,
    foreground: Bool[np.ndarray, "*space"],
    momentum_embedding: Float[np.ndarray, "e *space"],
    settings: Consistency,
) -> Labels:
    """Drop clusters that the momentum net does not find again around their own pixels.

    For each cluster, balls of g around some of its pixels are compared with it; it stays if
    their median intersection over union reaches the threshold. The ball is taken in the
    piece of foreground and the bounding box of the cluster, grown by its own size: farther
    pixels may share the embedding without being rivals.
    """
    from scipy import ndimage

    random = np.random.default_rng(settings.seed)
    pieces = split_disconnected(labels)
    regions = find_pieces(foreground)
    kept = labels.copy()
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        grown = tuple(
            slice(max(0, s.start - (s.stop - s.start)), s.stop + (s.stop - s.start)) for s in box
        )
        inside = pieces[grown] == number
        rivals = regions[grown] == regions[grown][inside][0]
        g = momentum_embedding[(slice(None), *grown)][:, rivals].T
        g = g - g.mean(axis=0)
        ious = _ball_ious(g, inside[rivals], settings, random)
        if np.median(ious) < settings.iou_threshold:
            kept[grown][inside] = 0
    return kept


def _ball_ious(
    points: Points,
    inside: Bool[np.ndarray, " n"],
    settings: Consistency,
    random: np.random.Generator,
) -> Float[np.ndarray, " a"]:
    """Intersection over union of a cluster and the balls around some of its points."""
    anchors = points[random.choice(np.flatnonzero(inside), settings.anchors)]
    shared, sizes = np.zeros((2, len(anchors)))
    for start in range(0, len(points), _POINTS_AT_ONCE):
        part = points[start : start + _POINTS_AT_ONCE]
        balls = _squared_distances(anchors, part, (part * part).sum(axis=1))
        balls = balls < settings.bandwidth**2
        sizes += balls.sum(axis=1)
        shared += balls[:, inside[start : start + _POINTS_AT_ONCE]].sum(axis=1)
    return np.asarray(shared / (sizes + inside.sum() - shared))
