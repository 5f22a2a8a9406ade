"""Clustering as TorchScript: what `spoco_zoo.clustering` does with mean-shift, inside a graph.

This file is not called from Python. `instances` gives its functions to the TorchScript compiler,
which is why types are spelled as that compiler knows them, why nothing is imported but torch, and
why only operators occur that ONNX has at opset 17 and libtorch since 2.0. The laws are those of
`clustering` and `fragments`, step by step and in their order; the tests hold both against each
other.

An image is a volume of one slice. Pixels that matter are kept as lists: `place` is their position
in the flat volume, ascending. Where several values go to one position by `scatter`, the order in which
they are written makes no difference to what comes out in the end.
"""

# ruff: noqa: UP006, UP035, N803
from typing import List, Tuple

import torch
from torch import Tensor


def first_of_runs(keys: Tensor) -> Tensor:
    """Mask of the first of equal neighbours in a sorted list."""
    before = torch.cat([keys[:1] - 1, keys[:-1]])
    return keys != before


def sort_by(first: Tensor, second: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """Sort by two keys, the second below `count`; both sorted."""
    keys = torch.sort(first * count + second)[0]
    sorted_first = torch.div(keys, count, rounding_mode="trunc")
    return sorted_first, keys - sorted_first * count


def lowest_of(index: Tensor, value: Tensor, start: Tensor, count: int) -> Tensor:
    """Write the lowest value, below `count`, of every index into `start`."""
    places, values = sort_by(index, value, count)
    is_first = first_of_runs(places)
    return start.scatter(0, places[is_first], values[is_first])


def find_neighbors(place: Tensor, shape: Tensor, offsets: Tensor) -> Tensor:
    """Positions in the list, not empty, of every pixel's neighbours (k, n); its own for none."""
    n = place.size(0)
    own = torch.arange(n, device=place.device)
    frame = shape + 2
    z = torch.div(place, shape[1] * shape[2], rounding_mode="trunc")
    y = torch.div(place, shape[2], rounding_mode="trunc") - z * shape[1]
    x = place - (z * shape[1] + y) * shape[2]
    framed = ((z + 1) * frame[1] + y + 1) * frame[2] + x + 1
    total = int(frame[0] * frame[1] * frame[2])
    rank = torch.zeros([total], dtype=torch.int64, device=place.device)
    rank = rank.scatter(0, framed, own + 1)
    shift = (offsets[:, 0] * frame[1] + offsets[:, 1]) * frame[2] + offsets[:, 2]
    around = (framed.unsqueeze(0) + shift.unsqueeze(1)).reshape(-1)
    found = rank.index_select(0, around).reshape(offsets.size(0), n) - 1
    return torch.where(found < 0, own.unsqueeze(0), found)


def find_roots(neighbors: Tensor) -> Tensor:
    """The first pixel of every pixel's connected piece."""
    n = neighbors.size(1)
    root = torch.arange(n, device=neighbors.device)
    flat = neighbors.reshape(-1)
    going = n > 0
    while going:
        lowest = torch.amin(root.index_select(0, flat).reshape(neighbors.size(0), n), 0)
        is_lower = lowest < root
        lowest = torch.minimum(lowest, root)
        # a root that several pixels want lower takes any of them: all lead to the first pixel
        hooked = lowest.scatter(0, root[is_lower], lowest[is_lower])
        hooked = torch.minimum(hooked, lowest)
        hooked = hooked.index_select(0, hooked)
        root = hooked.index_select(0, hooked)
        going = bool(is_lower.to(torch.int64).sum() > 0)
    return root


def number_roots(root: Tensor) -> Tuple[Tensor, int]:
    """Number pieces 0, 1, ... in the order of their first pixels; how many there are."""
    own = torch.arange(root.size(0), device=root.device)
    is_root = (root == own).to(torch.int64)
    number = torch.cumsum(is_root, 0) - 1
    return number.index_select(0, root), int(is_root.sum())


def find_coordinates(place: Tensor, shape: Tensor) -> Tensor:
    """Coordinates (3, n) of places."""
    z = torch.div(place, shape[1] * shape[2], rounding_mode="trunc")
    y = torch.div(place, shape[2], rounding_mode="trunc") - z * shape[1]
    x = place - (z * shape[1] + y) * shape[2]
    return torch.stack([z, y, x])


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


def climb(seeds: Tensor, points: Tensor, lengths: Tensor, squared: float) -> Tuple[Tensor, Tensor]:
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


def merge_modes(modes: Tensor, crowds: Tensor, squared: float) -> Tuple[Tensor, Tensor]:
    """Keep the most crowded of all modes that lie within one bandwidth."""
    n = modes.size(0)
    order = sort_by(crowds.max() - crowds, torch.arange(n, device=modes.device), n)[1]
    modes, crowds = modes.index_select(0, order), crowds.index_select(0, order)
    offset = modes.unsqueeze(0) - modes.unsqueeze(1)
    kept = keep_apart((offset * offset).sum(2) < squared)
    return modes[kept], crowds[kept]


def mean_shift(points: Tensor, bandwidth: float) -> Tuple[Tensor, Tensor]:
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


def thin(members: Tensor, where: Tensor, lattice: Tensor, min_size: int) -> Tuple[Tensor, int]:
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


def measure_steps(points: Tensor, neighbors: Tensor) -> Tensor:
    """Distance of each pixel from its nearer neighbour, on the worst axis.

    Neighbours are those before and after along each axis.
    """
    own = torch.arange(points.size(0), device=points.device)
    worst = torch.zeros([points.size(0)], dtype=points.dtype, device=points.device)
    axis = 0
    while 2 * axis < neighbors.size(0):
        before, after = neighbors[2 * axis], neighbors[2 * axis + 1]
        back = points - points.index_select(0, before)
        ahead = points - points.index_select(0, after)
        far = torch.sqrt((back * back).sum(1))
        near = torch.sqrt((ahead * ahead).sum(1))
        nearer = torch.where(
            before == own, near, torch.where(after == own, far, torch.minimum(far, near))
        )
        worst = torch.maximum(worst, nearer)
        axis += 1
    return worst


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


def find_compact(
    points: Tensor, coordinates: Tensor, root: Tensor, margin: Tensor, bandwidth: float
) -> Tensor:
    """Number the small pieces whose embeddings lie around their mean 1, 2, ...; 0 elsewhere."""
    n = points.size(0)
    piece, count = number_roots(root)
    ones = torch.ones([count], dtype=torch.int64, device=points.device)
    none = torch.zeros_like(ones)
    offset = coordinates - coordinates.index_select(1, root)
    is_far = (torch.abs(offset) >= margin.unsqueeze(1)).to(torch.int64).sum(0) > 0
    far = piece[is_far]
    fits = ones.scatter(0, far, torch.zeros_like(far))
    # a piece is connected, so it has as many different coordinates as it is long
    near = torch.arange(n, device=points.device)[fits.index_select(0, piece) > 0]
    axis = 0
    while axis < 3:
        width = int(2 * margin[axis] - 1)
        key = piece.index_select(0, near) * width + offset[axis].index_select(0, near)
        key = key + margin[axis] - 1
        seen = torch.zeros([count * width], dtype=torch.int64, device=points.device)
        seen = seen.scatter(0, key, torch.ones_like(key))
        length = seen.reshape(-1, width).sum(1)
        fits = torch.where(length <= margin[axis], fits, none)
        axis += 1
    candidates = torch.arange(n, device=points.device)[fits.index_select(0, piece) > 0]
    pieces, candidates = sort_by(piece.index_select(0, candidates), candidates, n)
    sizes = none.scatter_add(0, pieces, torch.ones_like(pieces))
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.arange(pieces.size(0), device=points.device) - starts.index_select(0, pieces)
    size = sizes.index_select(0, pieces)
    taken = torch.clamp(size, max=64)
    passed = torch.div((rank + 1) * taken, size, rounding_mode="trunc")
    is_sample = passed > torch.div(rank * taken, size, rounding_mode="trunc")
    sample = points.index_select(0, candidates[is_sample]).to(torch.float64)
    index = pieces[is_sample].unsqueeze(1).expand(-1, points.size(1))
    sums = torch.zeros([count, points.size(1)], dtype=torch.float64, device=points.device)
    sums = sums.scatter_add(0, index, sample)
    counts = torch.clamp(sizes, min=1, max=64).to(torch.float64)
    means = (sums / counts.unsqueeze(1)).to(points.dtype)
    away = points.index_select(0, candidates) - means.index_select(0, pieces)
    spread = pieces[(away * away).sum(1) > bandwidth * bandwidth]
    compact = fits.scatter(0, spread, torch.zeros_like(spread))
    numbers = torch.cumsum(compact, 0) * compact
    return numbers.index_select(0, piece)


def cluster_window(
    points: Tensor,
    place: Tensor,
    shape: Tensor,
    corner: Tensor,
    inner: Tensor,
    around: Tensor,
    sides: int,
    lattice: Tensor,
    bandwidth: float,
    min_size: int,
) -> Tuple[Tensor, Tensor]:
    """Clusters of a window: their centres, and which of them each pixel belongs to, -1 for none.

    Pixels are those of the window and its margin; `place` is in this box of `shape`, `corner`
    where it lies in the image, `inner` the first and the last place of the window in it.
    """
    n = points.size(0)
    neighbors = find_neighbors(place, shape, around)
    piece, count = number_roots(find_roots(neighbors))
    steps = measure_steps(points, neighbors[:sides])
    coordinates = find_coordinates(place, shape)
    within = (coordinates >= inner[:, :1]) & (coordinates <= inner[:, 1:])
    is_inner = within.to(torch.int64).sum(0) == 3
    own = torch.zeros([count], dtype=torch.int64, device=points.device)
    here = piece[is_inner]
    own = own.scatter(0, here, torch.ones_like(here))
    wanted = torch.arange(count, device=points.device)[own > 0]
    where = coordinates + corner.unsqueeze(1)
    centers = points[:0]
    labels = torch.full([n], -1, dtype=torch.int64, device=points.device)
    every = torch.arange(n, device=points.device)
    number = 0
    while number < wanted.size(0):
        members = every[piece == wanted[number]]
        found = find_centers(points, where, steps, members, lattice, bandwidth, min_size)
        inside = members[is_inner.index_select(0, members)]
        nearest = nearest_center(points.index_select(0, inside), found, bandwidth)
        nearest = torch.where(nearest >= 0, nearest + centers.size(0), nearest)
        labels = labels.scatter(0, inside, nearest)
        centers = torch.cat([centers, found])
        number += 1
    return centers, labels


def find_touching(planes: Tensor, window: int, first: int) -> Tensor:
    """Pairs (2, l) of numbers from `first` on, less that, beside a face across the first axis."""
    faces = torch.arange(0, planes.size(0), window, device=planes.device)[1:]
    before = planes.index_select(0, faces - 1).reshape(-1)
    after = planes.index_select(0, faces).reshape(-1)
    both = (before >= first) & (after >= first) & (before != after)
    return torch.stack([before[both], after[both]]) - first


def find_links(labels: Tensor, centers: Tensor, window: Tensor, first: int, reach: float) -> Tensor:
    """Pairs (2, l) of clusters that touch across a face of windows and are one cluster.

    `labels` (d, h, w) is 0 for none; numbers below `first` are compact pieces, the others those
    of `centers`, by their order.
    """
    count = centers.size(0)
    pairs = torch.cat(
        [
            find_touching(labels, int(window[0]), first),
            find_touching(labels.permute(1, 0, 2), int(window[1]), first),
            find_touching(labels.permute(2, 0, 1), int(window[2]), first),
        ],
        1,
    )
    one, two = sort_by(pairs[0], pairs[1], count + 1)
    single = first_of_runs(one * (count + 1) + two)
    one, two = one[single], two[single]
    n = one.size(0)
    if n > 0:
        offset = centers.index_select(0, one) - centers.index_select(0, two)
        gaps = torch.sqrt((offset * offset).sum(1))
        ordered, order = torch.sort(gaps)
        rank = torch.zeros_like(order).scatter(0, order, torch.arange(n, device=labels.device))
        none = torch.full([count], n - 1, dtype=torch.int64, device=labels.device)
        nearest_one = ordered.index_select(0, lowest_of(one, rank, none, n))
        nearest_two = ordered.index_select(0, lowest_of(two, rank, none, n))
        is_mutual = (gaps == nearest_one.index_select(0, one)) & (
            gaps == nearest_two.index_select(0, two)
        )
        is_same = (gaps <= reach / 2) | (is_mutual & (gaps <= reach))
        one, two = one[is_same], two[is_same]
    return torch.stack([one, two])


def find_groups(count: int, links: Tensor) -> Tensor:
    """The lowest member of the group of every cluster, joined by links (2, l)."""
    group = torch.arange(count, device=links.device)
    index = torch.cat([links[0], links[1]])
    going = links.size(1) > 0
    while going:
        low = torch.minimum(group.index_select(0, links[0]), group.index_select(0, links[1]))
        lowest = lowest_of(index, torch.cat([low, low]), group, count)
        lowest = lowest.index_select(0, lowest)
        going = bool((lowest != group).sum() > 0)
        group = lowest
    return group


def fill(labels: Tensor, foreground: Tensor, shape: Tensor, offsets: Tensor, reach: int) -> Tensor:
    """Give foreground pixels without an instance that of a neighbour, `reach` steps far.

    Both are flat. Where two instances arrive in the same step, the one with the lower id stays.
    """
    place = torch.nonzero(foreground).reshape(-1)
    neighbors = find_neighbors(place, shape, offsets)
    numbers = labels.index_select(0, place)
    nobody = numbers.size(0) + 1
    step = 0
    going = place.size(0) > 0
    while going and step < reach:
        rivals = torch.where(numbers > 0, numbers, torch.full_like(numbers, nobody))
        around = rivals.index_select(0, neighbors.reshape(-1))
        lowest = torch.amin(around.reshape(neighbors.size(0), place.size(0)), 0)
        is_new = (numbers == 0) & (lowest < nobody)
        numbers = torch.where(is_new, lowest, numbers)
        going = bool(is_new.sum() > 0)
        step += 1
    return labels.scatter(0, place, numbers)


def number_places(
    points: Tensor,
    place: Tensor,
    neighbors: Tensor,
    shape: Tensor,
    window: Tensor,
    margin: Tensor,
    around: Tensor,
    sides: int,
    lattice: Tensor,
    bandwidth: float,
    min_size: int,
) -> Tensor:
    """Number of the cluster of every core pixel, 0 for none: compact pieces, then windows."""
    n, device = points.size(0), points.device
    depth, height, width = int(shape[0]), int(shape[1]), int(shape[2])
    coordinates = find_coordinates(place, shape)
    numbers = find_compact(points, coordinates, find_roots(neighbors), margin, bandwidth)
    first = int(numbers.max()) + 1
    centers = points[:0]
    rest = torch.arange(n, device=device)[numbers == 0]
    index = torch.zeros([depth * height * width], dtype=torch.int64, device=device)
    index = index.scatter(0, place.index_select(0, rest), rest + 1)
    index = index.reshape(depth, height, width)
    z = 0
    going = rest.size(0) > 0
    while going and z < depth:
        y = 0
        while y < height:
            x = 0
            while x < width:
                start = torch.stack([torch.tensor(z), torch.tensor(y), torch.tensor(x)]).to(device)
                stop = torch.minimum(start + window, shape)
                low = torch.clamp(start - margin, min=0)
                high = torch.minimum(stop + margin, shape)
                box = index[
                    int(low[0]) : int(high[0]),
                    int(low[1]) : int(high[1]),
                    int(low[2]) : int(high[2]),
                ].reshape(-1)
                local = torch.nonzero(box).reshape(-1)
                if local.size(0) > 0:
                    who = box.index_select(0, local) - 1
                    inner = torch.stack([start - low, stop - low - 1], 1)
                    found, labels = cluster_window(
                        points.index_select(0, who),
                        local,
                        high - low,
                        low,
                        inner,
                        around,
                        sides,
                        lattice,
                        bandwidth,
                        min_size,
                    )
                    is_in = labels >= 0
                    taken = labels[is_in] + first + centers.size(0)
                    numbers = numbers.scatter(0, who[is_in], taken)
                    centers = torch.cat([centers, found])
                x += int(window[2])
            y += int(window[1])
        z += int(window[0])
    if going:
        volume = torch.zeros([depth * height * width], dtype=torch.int64, device=device)
        volume = volume.scatter(0, place, numbers).reshape(depth, height, width)
        links = find_links(volume, centers, window, first, bandwidth)
        group = find_groups(centers.size(0), links)
        own = torch.arange(first, device=device)
        numbers = torch.cat([own, group + first]).index_select(0, numbers)
    return numbers


def split_small(numbers: Tensor, neighbors: Tensor, min_size: int) -> Tensor:
    """Number the connected parts of every number anew, 0 for those that are too small."""
    n = numbers.size(0)
    alike = numbers.index_select(0, neighbors.reshape(-1)).reshape(neighbors.size(0), n)
    own = torch.arange(n, device=numbers.device).unsqueeze(0)
    connected = torch.where(alike == numbers.unsqueeze(0), neighbors, own)
    part, count = number_roots(find_roots(connected))
    sizes = torch.zeros([count], dtype=torch.int64, device=numbers.device)
    sizes = sizes.scatter_add(0, part, (numbers > 0).to(torch.int64))
    is_kept = (sizes >= max(min_size, 1)).to(torch.int64)
    ids = torch.cumsum(is_kept, 0) * is_kept
    return ids.index_select(0, part)


def cluster(
    embedding: Tensor,
    foreground: Tensor,
    core: Tensor,
    window: Tensor,
    margin: Tensor,
    around: Tensor,
    sides: int,
    lattice: Tensor,
    bandwidth: float,
    min_size: int,
    fill_reach: int,
) -> Tensor:
    """Instances (d, h, w) of one image, numbered 1..n, 0 for none.

    `embedding` is (e, d, h, w), `foreground` and `core` (d, h, w); `window` and `margin` are
    those of the recipe, `around` the offsets of all neighbours, of which the first ones, `sides`
    many, share a side: before and after along each axis.
    """
    depth, height, width = embedding.size(1), embedding.size(2), embedding.size(3)
    place = torch.nonzero(core.reshape(-1)).reshape(-1)
    result = torch.zeros([depth * height * width], dtype=torch.int64, device=embedding.device)
    if place.size(0) > 0:
        shape = torch.tensor([depth, height, width], device=embedding.device)
        flat = embedding.reshape(embedding.size(0), -1)
        points = flat.index_select(1, place).permute(1, 0).contiguous()
        neighbors = find_neighbors(place, shape, around)
        numbers = number_places(
            points,
            place,
            neighbors,
            shape,
            window,
            margin,
            around,
            sides,
            lattice,
            bandwidth,
            min_size,
        )
        parts = split_small(numbers, neighbors[:sides], min_size)
        result = result.scatter(0, place, parts)
        result = fill(result, foreground.reshape(-1), shape, around[:sides], fill_reach)
    return result.reshape(depth, height, width)
