"""Clustering as TorchScript: what `spoco_zoo.clustering` does with mean-shift, inside a graph.

This file and `script_modes` are not called from Python. `instances` gives their functions to the
TorchScript compiler, which is why types are spelled as that compiler knows them, why nothing is
imported but torch, and why only operators occur that ONNX has at opset 17 and libtorch since 2.0.
The laws are those of `clustering` and `fragments`, step by step and in their order; the tests hold
both against each other.

An image is a volume of one slice. Pixels that matter are kept as lists: `place` is their position
in the flat volume, ascending. Where several values go to one position by `scatter`, the order in
which they are written makes no difference to what comes out in the end.
"""

# ruff: noqa: PLR0913, PLR0917

import torch
from torch import Tensor

from spoco_zoo.packaging.script_modes import (
    find_centers,
    first_of_runs,
    lowest_of,
    nearest_center,
    sort_by,
)


def find_coordinates(place: Tensor, shape: Tensor) -> Tensor:
    """Coordinates (3, n) of places."""
    z = torch.div(place, shape[1] * shape[2], rounding_mode="trunc")
    y = torch.div(place, shape[2], rounding_mode="trunc") - z * shape[1]
    x = place - (z * shape[1] + y) * shape[2]
    return torch.stack([z, y, x])


def find_neighbors(place: Tensor, shape: Tensor, offsets: Tensor) -> Tensor:
    """Positions in the list, not empty, of every pixel's neighbours (k, n); its own for none."""
    n = place.size(0)
    own = torch.arange(n, device=place.device)
    frame = shape + 2
    at = find_coordinates(place, shape) + 1
    framed = (at[0] * frame[1] + at[1]) * frame[2] + at[2]
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


def number_roots(root: Tensor) -> tuple[Tensor, int]:
    """Number pieces 0, 1, ... in the order of their first pixels; how many there are."""
    own = torch.arange(root.size(0), device=root.device)
    is_root = (root == own).to(torch.int64)
    number = torch.cumsum(is_root, 0) - 1
    return number.index_select(0, root), int(is_root.sum())


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
) -> tuple[Tensor, Tensor]:
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


def keep_same(pairs: Tensor, centers: Tensor, reach: float) -> Tensor:
    """Those of the pairs (2, l), which touch across one axis, whose clusters are one cluster."""
    count = centers.size(0)
    one, two = sort_by(pairs[0], pairs[1], count + 1)
    single = first_of_runs(one * (count + 1) + two)
    one, two = one[single], two[single]
    n = one.size(0)
    if n > 0:
        offset = centers.index_select(0, one) - centers.index_select(0, two)
        gaps = torch.sqrt((offset * offset).sum(1))
        ordered, order = torch.sort(gaps)
        rank = torch.zeros_like(order).scatter(0, order, torch.arange(n, device=pairs.device))
        none = torch.full([count], n - 1, dtype=torch.int64, device=pairs.device)
        nearest_one = ordered.index_select(0, lowest_of(one, rank, none, n))
        nearest_two = ordered.index_select(0, lowest_of(two, rank, none, n))
        is_mutual = (gaps == nearest_one.index_select(0, one)) & (
            gaps == nearest_two.index_select(0, two)
        )
        is_same = (gaps <= reach / 2) | (is_mutual & (gaps <= reach))
        one, two = one[is_same], two[is_same]
    return torch.stack([one, two])


def find_links(labels: Tensor, centers: Tensor, window: Tensor, first: int, reach: float) -> Tensor:
    """Pairs (2, l) of clusters that touch across a face of windows and are one cluster.

    `labels` (d, h, w) is 0 for none; numbers below `first` are compact pieces, the others those
    of `centers`, by their order. A cluster may be one with a neighbour on every side, so what is
    nearest is asked axis by axis.
    """
    along_z = find_touching(labels, int(window[0]), first)
    along_y = find_touching(labels.permute(1, 0, 2), int(window[1]), first)
    along_x = find_touching(labels.permute(2, 0, 1), int(window[2]), first)
    return torch.cat(
        [
            keep_same(along_z, centers, reach),
            keep_same(along_y, centers, reach),
            keep_same(along_x, centers, reach),
        ],
        1,
    )


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
    counts = torch.div(shape + window - 1, window, rounding_mode="trunc")
    windows = int(counts[0] * counts[1] * counts[2])
    number = 0
    going = rest.size(0) > 0
    while going and number < windows:
        at = torch.arange(number, number + 1, device=device)
        start = find_coordinates(at, counts).reshape(-1) * window
        stop = torch.minimum(start + window, shape)
        low = torch.clamp(start - margin, min=0)
        high = torch.minimum(stop + margin, shape)
        box = index[
            int(low[0]) : int(high[0]), int(low[1]) : int(high[1]), int(low[2]) : int(high[2])
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
        number += 1
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
