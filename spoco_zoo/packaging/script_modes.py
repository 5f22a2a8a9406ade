"""Mean-shift as TorchScript: what `spoco_zoo.modes` does, inside a graph.

The first half of the script of `instances`; `script_windows` is the second and says more.
"""

# ruff: noqa: PLR0913, PLR0917

import torch
from torch import Tensor


def first_of_runs(keys: Tensor) -> Tensor:
    """Mask of the first of equal neighbours in a sorted list."""
    before = torch.cat([keys[:1] - 1, keys[:-1]])
    return keys != before


def sort_by(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort by two keys, the second below `count`; both sorted."""
    keys = torch.sort(first * count + second)[0]
    sorted_first = torch.div(keys, count, rounding_mode="trunc")
    return sorted_first, keys - sorted_first * count


def lowest_of(index: Tensor, value: Tensor, start: Tensor, count: int) -> Tensor:
    """Write the lowest value, below `count`, of every index into `start`."""
    places, values = sort_by(index, value, count)
    is_first = first_of_runs(places)
    return start.scatter(0, places[is_first], values[is_first])


def squared_distances(centers: Tensor, points: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances (m, n), given the squared lengths of the points."""
    products = torch.matmul(centers, points.permute(1, 0))
    return products * -2 + lengths.unsqueeze(0) + (centers * centers).sum(1).unsqueeze(1)


def keep_apart(near: Tensor) -> Tensor:
    """Go through items in order and keep each that is not near one kept before; a mask."""
    n = near.size(0)
    own = torch.arange(n, device=near.device)
    earlier = (near & (own.unsqueeze(1) < own.unsqueeze(0))).to(torch.int64)
    kept = torch.zeros([n], dtype=torch.int64, device=near.device)
    dropped = torch.zeros([n], dtype=torch.int64, device=near.device)
    going = n > 0
    while going:
        threats = (earlier * (1 - dropped).unsqueeze(1)).sum(0)
        kept = torch.where((threats == 0) & (dropped == 0), torch.ones_like(kept), kept)
        hits = (earlier * kept.unsqueeze(1)).sum(0)
        dropped = torch.where(hits > 0, torch.ones_like(dropped), dropped)
        going = bool((kept + dropped == 0).sum() > 0)
    return kept > 0


def cover(points: Tensor, lengths: Tensor, squared: float) -> Tensor:
    """Choose points that are apart from each other and have every other one in reach."""
    uncovered = torch.arange(points.size(0), device=points.device)
    chosen = uncovered[:0]
    going = points.size(0) > 0
    while going:
        n = uncovered.size(0)
        step = (n + 31) // 32
        tried = torch.arange(0, n, step, device=points.device)
        left = points.index_select(0, uncovered)
        near = squared_distances(
            left.index_select(0, tried), left, lengths.index_select(0, uncovered)
        )
        near = near <= squared
        kept = keep_apart(near.index_select(1, tried))
        chosen = torch.cat([chosen, uncovered.index_select(0, tried[kept])])
        covered = near[kept].to(torch.int64).sum(0)
        covered = covered.scatter(0, tried, torch.ones_like(tried, dtype=torch.int64))
        uncovered = uncovered[covered == 0]
        going = uncovered.size(0) > 0
    return chosen


def climb(seeds: Tensor, points: Tensor, lengths: Tensor, squared: float) -> tuple[Tensor, Tensor]:
    """Shift seeds to the mean of the points within the bandwidth until they rest."""
    here = seeds
    crowd = torch.ones([seeds.size(0)], dtype=torch.int64, device=seeds.device)
    moving = torch.arange(seeds.size(0), device=seeds.device)
    steps = 0
    going = seeds.size(0) > 0
    while going:
        start = here.index_select(0, moving)
        inside = (squared_distances(start, points, lengths) <= squared).to(points.dtype)
        counts = inside.sum(1)
        crowd = crowd.scatter(0, moving, counts.to(torch.int64))
        means = torch.matmul(inside, points) / torch.clamp(counts, min=1.0).unsqueeze(1)
        there = torch.where((counts > 0).unsqueeze(1), means, start)
        moved = there - start
        is_far = (moved * moved).sum(1) > squared * 0.0001
        here = here.scatter(0, moving.unsqueeze(1).expand(-1, here.size(1)), there)
        moving = moving[is_far]
        steps += 1
        going = steps < 50 and moving.size(0) > 0
    return here, crowd


def merge_modes(modes: Tensor, crowds: Tensor, squared: float) -> tuple[Tensor, Tensor]:
    """Keep the most crowded of all modes that lie within one bandwidth."""
    n = modes.size(0)
    left = sort_by(crowds.max() - crowds, torch.arange(n, device=modes.device), n)[1]
    kept = left[:0]
    going = n > 0
    while going:  # one by one, since all pairs of some thousands are a gigabyte
        first = left[:1]
        kept = torch.cat([kept, first])
        offset = modes.index_select(0, left) - modes.index_select(0, first)
        is_left = (offset * offset).sum(1) >= squared
        is_left = is_left & (left != first)
        left = left[is_left]
        going = left.size(0) > 0
    return modes.index_select(0, kept), crowds.index_select(0, kept)


def mean_shift(points: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Modes of a flat kernel, the most crowded first, and the points within reach of each."""
    squared = bandwidth * bandwidth
    origin = points.to(torch.float64).mean(0).to(points.dtype)
    points = points - origin
    lengths = (points * points).sum(1)
    modes = torch.zeros([1, points.size(1)], dtype=points.dtype, device=points.device)
    crowds = torch.full([1], points.size(0), dtype=torch.int64, device=points.device)
    if bool(lengths.max() > squared):
        modes, crowds = modes[:0], crowds[:0]
        left = torch.arange(points.size(0), device=points.device)
        rounds = 0
        going = True
        while going:
            seeds = left.index_select(
                0, cover(points.index_select(0, left), lengths.index_select(0, left), squared)
            )
            climbed, found = climb(points.index_select(0, seeds), points, lengths, squared)
            modes, crowds = merge_modes(
                torch.cat([modes, climbed]), torch.cat([crowds, found]), squared
            )
            near = squared_distances(
                modes, points.index_select(0, left), lengths.index_select(0, left)
            )
            is_left = torch.ones([points.size(0)], dtype=torch.int64, device=points.device)
            is_left = is_left.scatter(0, seeds, torch.zeros_like(seeds, dtype=torch.int64))
            lost = (near <= squared).to(torch.int64).sum(0) == 0
            left = left[lost & (is_left.index_select(0, left) > 0)]
            rounds += 1
            going = rounds < 2 and left.size(0) > 0
    return modes + origin, crowds


def nearest_center(points: Tensor, centers: Tensor, reach: float) -> Tensor:
    """Nearest centre of each point, -1 where it is out of reach."""
    nearest = torch.full([points.size(0)], -1, dtype=torch.int64, device=points.device)
    if centers.size(0) > 0:
        origin = centers.mean(0)
        centers = centers - origin
        points = points - origin
        within = reach * reach + 8 * 1.1920929e-07 * (centers * centers).sum(1).max()
        distances = squared_distances(centers, points, (points * points).sum(1))
        best = torch.argmin(distances, 0)
        nearest = torch.where(torch.amin(distances, 0) <= within, best, nearest)
    return nearest


def thin(members: Tensor, where: Tensor, lattice: Tensor, min_size: int) -> tuple[Tensor, int]:
    """Keep pixels on a rank-1 lattice of the image, 1000 or more; one of how many they are."""
    n = members.size(0)
    enough = min((4 * n + 3999) // 4000, max(min_size // 8, 1))
    thinning = max((n + 3999) // 4000, enough)
    kept = members
    if thinning > 1:
        steps = lattice[thinning].unsqueeze(1)
        shift = (where.index_select(1, members) * steps).sum(0)
        on = members[torch.remainder(shift, thinning) == 0]
        spread = torch.arange(0, n, thinning, device=members.device)
        kept = on if on.size(0) > 0 else members.index_select(0, spread)
    return kept, thinning


def find_flat(steps: Tensor, radius: float) -> Tensor:
    """Tell which points are off the slopes between instances."""
    n = steps.size(0)
    ordered = torch.sort(steps)[0]
    typical = float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)
    limit = min(max(2 * typical, radius / 2), radius)
    return (steps <= limit) | (steps * 0 + typical > radius)


def find_centers(
    points: Tensor,
    where: Tensor,
    steps: Tensor,
    members: Tensor,
    lattice: Tensor,
    bandwidth: float,
    min_size: int,
) -> Tensor:
    """Centres of clusters among the members off the slopes, thinned evenly in the image."""
    centers = points[:0]
    left = members[find_flat(steps.index_select(0, members), bandwidth)]
    looks = 0
    going = left.size(0) > 0
    while going:
        sample, thinning = thin(left, where, lattice, min_size)
        modes, crowds = mean_shift(points.index_select(0, sample), bandwidth)
        is_crowd = 2 * crowds >= min_size // thinning
        if centers.size(0) == 0 and bool(is_crowd.to(torch.int64).sum() == 0):
            is_crowd = torch.arange(modes.size(0), device=modes.device) == 0
        modes = modes[is_crowd]
        is_new = nearest_center(modes, centers, bandwidth) < 0
        found = modes[is_new]
        centers = torch.cat([centers, found])
        looks += 1
        going = looks < 8 and found.size(0) > 0 and 2 * thinning > max(min_size, 2)
        if going:
            near = nearest_center(points.index_select(0, left), centers, bandwidth)
            left = left[near < 0]
            going = left.size(0) >= max(min_size, 1)
    return centers
