"""Clusters of points in embedding space: mean-shift, HDBSCAN, and the nearest centre.

Points are rows, of any number of dimensions; where they lie in the image is not known here.
Distances come from matrix products of some centres and some thousand points at a time, so BLAS
does the work and memory stays small.
"""

import numpy as np
from jaxtyping import Float, Int

Points = Float[np.ndarray, "n e"]
Centers = Float[np.ndarray, "m e"]

_MOST_STEPS = 50
_AT_REST = 0.01  # of the bandwidth: a seed that moves less has arrived
_POINTS_AT_ONCE = 16_384
_SEEDS_AT_ONCE = 32
_MOST_ROUNDS = 2  # of seeding; what is out of reach then is on its way between modes


def mean_shift(points: Points, bandwidth: float) -> tuple[Centers, Int[np.ndarray, " m"]]:
    """Find the modes of a flat kernel (Comaniciu and Meer 2002).

    Seeds are chosen so that every point lies within the bandwidth of one; they climb to modes.
    Points that no mode reaches are seeded again. So seeds reach every part of space, and the
    result depends on nothing but the points and their order. Of modes within one bandwidth only
    the most crowded stays.

    Args:
        points: The embeddings, at least one.
        bandwidth: Radius of the kernel.

    Returns:
        The modes, the most crowded first, and the points within the bandwidth of each.
    """
    squared = np.float32(bandwidth * bandwidth)
    # far from 0, distances lose digits
    origin = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    points = points.astype(np.float32, copy=False) - origin
    lengths = square_lengths(points)
    if lengths.max() <= squared:
        return origin[None], np.array([len(points)])
    is_left = np.ones(len(points), dtype=bool)
    modes, crowds = np.empty((0, points.shape[1]), np.float32), np.empty(0, np.intp)
    for _ in range(_MOST_ROUNDS):
        left = np.flatnonzero(is_left)
        seeds = left[_cover(points[left], lengths[left], squared)]
        climbed, found = _climb(points[seeds], points, lengths, squared)
        modes, crowds = _merge_modes(
            np.concatenate([modes, climbed]), np.concatenate([crowds, found]), squared
        )
        near = squared_distances(modes, points[left], lengths[left]) <= squared
        is_left[seeds] = False
        is_left[left[near.any(axis=0)]] = False
        if not is_left.any():
            break
    return modes + origin, crowds


def _cover(
    points: Points, lengths: Float[np.ndarray, " n"], squared: np.float32
) -> Int[np.ndarray, " m"]:
    """Choose points that are apart from each other and have every other one in reach."""
    uncovered = np.arange(len(points))
    chosen: list[int] = []
    while len(uncovered):
        step = -(-len(uncovered) // _SEEDS_AT_ONCE)
        tried = uncovered[::step]
        near = squared_distances(points[tried], points[uncovered], lengths[uncovered]) <= squared
        mutual = near[:, ::step]
        kept: list[int] = []
        is_near = np.zeros(len(tried), dtype=bool)
        for number in range(len(tried)):
            if not is_near[number]:
                kept.append(number)
                is_near |= mutual[number]
        chosen.extend(tried[kept].tolist())
        is_covered = np.asarray(near[kept].any(axis=0))
        is_covered[::step] = True  # rounding may leave a point out of its own reach
        uncovered = uncovered[~is_covered]
    return np.array(chosen)


def hdbscan(
    points: Points, epsilon: float, min_samples: int | None, min_size: int
) -> Int[np.ndarray, " n"]:
    """Cluster points of any density (McInnes et al. 2017): a number from 0 for each, -1 for noise.

    HDBSCAN by itself never chooses the only cluster there is and calls all of it noise. So a
    compact cloud is one cluster, and where all would be noise, so are the points within epsilon
    of the median if they are most.

    Args:
        points: The embeddings, at least one.
        epsilon: Clusters nearer than this are not split.
        min_samples: Density smoothing, in points; `min_size` where left out.
        min_size: Least points of a cluster.
    """
    from hdbscan import HDBSCAN

    points = points.astype(np.float64)
    if np.linalg.norm(points - points.mean(axis=0), axis=1).max() <= epsilon:
        return np.zeros(len(points), np.intp)
    if len(points) <= min_size:
        return np.full(len(points), -1)
    fitted = HDBSCAN(
        min_cluster_size=max(min_size, 2),
        min_samples=min_samples,
        cluster_selection_epsilon=epsilon,
        core_dist_n_jobs=1,
    ).fit_predict(points)
    found = np.asarray(fitted, np.intp)
    if (found < 0).all():
        is_near = np.linalg.norm(points - np.median(points, axis=0), axis=1) <= epsilon
        if is_near.sum() >= max(min_size, len(points) / 2):
            return np.where(is_near, 0, -1)
    return found


def find_means(
    points: Points, clusters: Int[np.ndarray, " n"]
) -> tuple[Centers, Float[np.ndarray, " m"]]:
    """Mean of each cluster 0, 1, ..., and the distance of its farthest member."""
    count = int(clusters.max(initial=-1)) + 1
    inside = clusters >= 0
    points, clusters = points[inside], clusters[inside]
    sizes = np.bincount(clusters, minlength=count)[:, None]
    sums = [np.bincount(clusters, column, minlength=count) for column in points.T]
    means = (np.stack(sums, axis=1) / sizes).astype(np.float32)
    distances = np.linalg.norm(points - means[clusters], axis=1)
    reach = np.zeros(count, np.float32)
    np.maximum.at(reach, clusters, distances.astype(np.float32))
    return means, reach


def nearest_center(
    points: Points, centers: Centers, reach: Float[np.ndarray, " m"] | float
) -> Int[np.ndarray, " n"]:
    """Nearest centre of each point, -1 where that centre does not reach it."""
    if not len(centers):
        return np.full(len(points), -1)
    nearest = np.empty(len(points), np.intp)
    origin = centers.mean(axis=0)
    centers = centers - origin
    squared = np.broadcast_to(np.square(np.float32(reach)), len(centers))
    # rounding must not cut off the member that a reach was measured on
    squared = squared + 8 * np.finfo(np.float32).eps * square_lengths(centers).max()
    for start in range(0, len(points), _POINTS_AT_ONCE):
        part = points[start : start + _POINTS_AT_ONCE] - origin
        distances = squared_distances(centers, part, square_lengths(part))
        # row by row: argmin over the first axis reads memory across its grain
        best, shortest = np.zeros(len(part), np.intp), distances[0].copy()
        for number, row in enumerate(distances[1:], start=1):
            is_nearer = row < shortest
            np.copyto(shortest, row, where=is_nearer)
            np.copyto(best, number, where=is_nearer)
        reached = shortest <= squared[best]
        nearest[start : start + len(part)] = np.where(reached, best, -1)
    return nearest


def merge_near(
    centers: Centers, sizes: Int[np.ndarray, " m"], distance: float
) -> Int[np.ndarray, " m"]:
    """Join each centre to the nearest larger one that stands and is nearer than `distance`.

    Centres stand or are joined in the order of their sizes, the largest first (the variant of
    mean-shift clustering that the SPOCO authors' code merges by delta_dist).

    Returns:
        For every centre, the position of the one that it is joined to, its own if it stands.
    """
    joined = np.arange(len(centers))
    standing: list[int] = []
    for number in np.argsort(-sizes, kind="stable"):
        if standing:
            gaps = np.linalg.norm(centers[standing] - centers[number], axis=1)
            if gaps.min() < distance:
                joined[number] = standing[int(gaps.argmin())]
                continue
        standing.append(int(number))
    return joined


def squared_distances(
    centers: Centers, points: Points, lengths: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "m n"]:
    """Squared distances, given the squared lengths of the points."""
    distances: np.ndarray = centers @ points.T
    distances *= -2
    distances += lengths
    distances += square_lengths(centers)[:, None]
    return distances


def square_lengths(points: Points) -> Float[np.ndarray, " n"]:
    """Squared length of each point."""
    lengths: np.ndarray = np.einsum("ne,ne->n", points, points)
    return lengths


def _climb(
    seeds: Centers, points: Points, lengths: Float[np.ndarray, " n"], squared: np.float32
) -> tuple[Centers, Int[np.ndarray, " m"]]:
    """Shift seeds to the mean of the points within the bandwidth until they rest."""
    here = seeds.copy()
    crowd = np.ones(len(seeds), np.intp)
    moving = np.arange(len(seeds))
    for _ in range(_MOST_STEPS):
        inside = squared_distances(here[moving], points, lengths) <= squared
        counts = np.count_nonzero(inside, axis=1)
        crowd[moving] = counts
        # a seed that drifted off every point stays where it is
        there = np.where(
            counts[:, None] > 0,
            inside.astype(np.float32) @ points / np.maximum(counts, 1)[:, None],
            here[moving],
        )
        is_far = square_lengths(there - here[moving]) > squared * _AT_REST**2
        here[moving] = there
        moving = moving[is_far]
        if not len(moving):
            break
    return here, crowd


def _merge_modes(
    modes: Centers, crowds: Int[np.ndarray, " m"], squared: np.float32
) -> tuple[Float[np.ndarray, "k e"], Int[np.ndarray, " k"]]:
    """Keep the most crowded of all modes that lie within one bandwidth."""
    order = np.argsort(-crowds, kind="stable")
    kept: list[int] = []
    for number in order:
        if kept:
            gap = square_lengths(modes[kept] - modes[number]).min()
            if gap < squared:
                continue
        kept.append(int(number))
    return modes[kept], crowds[kept]
