"""The instances of a large image, block by block, as `segment` would find them in memory.

    find     embed and cluster a block; cut its clusters into connected pieces; keep what
             neighbours must know of it: its faces, and what lies on them
    meet     across one face: which clusters are one, and which pieces touch
    join     (in `joining`) which groups of clusters and which pieces are one, of faces alone
    fill     give undecided foreground to a neighbour, seeing a little of the blocks around
    number   (in `joining`) instances in the order of their first pixels, 1..n in the whole image

A piece is known by its first pixel in the image, its *key*. Keys do not depend on blocks, and the
lower key stands for the lower number, which decides where two instances meet. So every step does
to a block what `clustering.Canvas` does to the whole, and the labels are equal to the last pixel.

What a step leaves is a dictionary of arrays (`Arrays`), to be stored; nothing of the embedding
is. Nothing here knows of files or of other machines.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt32

from spoco_zoo.clustering import Canvas, find_consistent, find_contacts, is_same
from spoco_zoo.embedder import Readable, Seen, find_inside
from spoco_zoo.fragments import Fragments, cluster_block
from spoco_zoo.labels import (
    count_ids,
    find_groups,
    find_ids,
    grow,
    look_up,
    split_disconnected,
)
from spoco_zoo.layout import Layout
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.tiling import Box, Tile, inner_box, intersect, plan_tiles, widen

Arrays = dict[str, np.ndarray]
Labels = UInt32[np.ndarray, "*space"]
Load = Callable[..., list[np.ndarray]]  # the number of a block and names: what `find` left

OPEN = -1  # the key of foreground that has no instance: a neighbour may take it
NOTHING = -2  # the key of what is nobody's

_AT_ONCE = 1 << 21  # pixels that are compared with their neighbours


class Meeting(NamedTuple):
    """What two blocks are to each other across a face, in numbers of `Bound`."""

    links: Int[np.ndarray, "l 2"]  # groups that are one
    contacts: Int[np.ndarray, "m 2"]  # pieces that touch


def find_block(  # noqa: PLR0913 each is a matter of its own
    see: Callable[[Box], Seen],
    recipe: Recipe,
    layout: Layout,
    number: int,
    inner: Sequence[int],
    *,
    mask: Readable | None = None,
    threads: int | None = None,
    note: Callable[[Tile, Seen], None] = lambda *_: None,
    let_go: Callable[[], None] = lambda: None,
) -> Arrays:
    """Find the pieces of a block, and what its neighbours must know.

    Args:
        see: Embeds a part of the image; parts come along the first axis.
        recipe: How instances are made.
        layout: The lattice of blocks.
        number: The block.
        inner: Pixels per axis that are embedded and clustered at once; does not change the result.
        mask: Foreground where it is not 0, `(1, *space)`; instead of the rule of the recipe.
        threads: Windows that are clustered at once; does not change the result.
        note: Shown every part and its embedding.
        let_go: Called when `see` is not asked any more, so that what it holds makes room.

    Raises:
        SettingError: The recipe asks for what the network does not give.
        ImageError: The image cannot be read.
    """
    box = layout.box(number)
    n_axes = len(box)
    found, foreground = _cluster(
        see, recipe, layout, number, inner, mask=mask, threads=threads, note=note
    )
    let_go()
    labels = found.labels  # becomes that of groups, and of the groups that are kept
    groups = find_groups(len(found.centers) + 1, found.links)
    faces = _find_faces(layout, number)
    on_face = np.zeros(0, np.intp)
    if faces:
        seen = (find_ids(labels[_plane(n_axes, *face)], len(groups) - 1) for face in faces)
        on_face = np.flatnonzero(np.logical_or.reduce(list(seen)))
    is_bound = np.zeros(int(groups.max()) + 1, dtype=bool)  # group that reaches a face
    is_bound[groups[on_face]] = True

    kept = np.ones(len(is_bound), dtype=bool)
    consistency: Arrays = {}
    if isinstance(recipe.clustering, Consistency):
        sizes = count_ids(labels, len(groups) - 1).sizes[1:]
        kept = find_consistent(found.agreement, sizes, groups[1:], recipe.clustering)
        kept |= is_bound  # of these, others know more
        mine = is_bound[groups[1:]]
        consistency = {
            "agreement": found.agreement[mine],
            "agreement_group": _rank(is_bound)[groups[1:][mine]],
            "agreement_size": sizes[mine],
        }
    ranks = np.zeros(len(groups), np.uint32)
    ranks[on_face] = np.arange(1, len(on_face) + 1)
    planes = {
        f"clusters_{axis}{side}": look_up(ranks, labels[_plane(n_axes, axis, side)])
        for axis, side in faces
    }
    look_up(groups, labels, out=labels)
    if not kept.all():  # what f and g disagree on is nobody's neighbour
        kept[0] = True
        foreground &= look_up(kept, labels)
        look_up(np.where(kept, np.arange(len(kept)), 0).astype(np.uint32), labels, out=labels)
    pieces, table = _cut(labels, layout, box)
    found = found._replace(labels=np.zeros(0, np.uint32))
    del labels
    bound = np.flatnonzero(is_bound[table["piece_group"]])
    touching = _find_touching(pieces, is_bound[np.append(0, table["piece_group"])])
    count = len(table["piece_size"])
    foreground &= pieces == 0
    np.putmask(pieces, foreground, np.uint32(count + 1))
    thickness = max(recipe.fill_reach, 1)
    slabs = {
        f"slab_{axis}{side}": pieces[_slab(pieces.shape, axis, side, thickness)]
        for axis, side in faces
    }
    return {
        "pieces": pieces,
        **slabs,
        **planes,
        "centers": found.centers[on_face - 1],
        "reach": found.reach[on_face - 1],
        "cluster_group": _rank(is_bound)[groups[on_face]],
        "groups": np.array(int(is_bound.sum())),
        **table,
        "bound": bound + 1,
        "bound_group": _rank(is_bound)[table["piece_group"][bound]],
        "bound_size": table["piece_size"][bound],
        "bound_first": table["piece_first"][bound],
        "touching": np.searchsorted(bound + 1, touching),
        **consistency,
    }


def meet(load: Load, number: int, axis: int, other: int) -> Meeting:
    """Look at the face between a block and the next one along an axis."""
    names = ("centers", "reach", "cluster_group", "bound")
    high, slab, centers, reach, group, bound = load(
        number, f"clusters_{axis}1", f"slab_{axis}1", *names
    )
    low, next_slab, next_centers, next_reach, next_group, next_bound = load(
        other, f"clusters_{axis}0", f"slab_{axis}0", *names
    )
    offset = np.uint32(len(centers))
    shifted = low + offset * (low > 0)
    pairs = find_contacts(high, shifted) - 1
    same = is_same(
        pairs, np.concatenate([centers, next_centers]), np.concatenate([reach, next_reach])
    )
    first, second = pairs[same].T
    links = np.stack([group[first], next_group[second - int(offset)]], axis=1)
    before = np.moveaxis(slab, axis, 0)[-1].astype(np.int64)
    after = np.moveaxis(next_slab, axis, 0)[0].astype(np.int64)
    contacts = _pair_up(_bound_rank(before, bound), _bound_rank(after, next_bound))
    return Meeting(np.unique(links.astype(np.int64), axis=0), contacts)


def fill(
    load: Load, load_keys: Callable[[int], np.ndarray], recipe: Recipe, layout: Layout, number: int
) -> Arrays:
    """Give undecided pixels of a block to a neighbour, and say where its instances begin.

    Args:
        load: Reads what `find_block` left of a block.
        load_keys: Gives the keys of the bound pieces of a block, as `joining` found them.
        recipe: Says how far instances grow, and which are too small.
        layout: The lattice of blocks.
        number: The block.

    Returns:
        `labels`, numbered 1..k in the order of `keys`; `firsts`, where in the image each instance
        has its first pixel in this block; and `is_shared`, whether it may lie in others too.
    """
    box = layout.box(number)
    wide = widen(box, [recipe.fill_reach] * len(box), layout.shape)
    seen = _look_around(load, load_keys, recipe, layout, number, wide)
    used = [keys[find_ids(pieces, len(keys) - 1)] for _, pieces, keys in seen]
    known = np.unique(np.concatenate(used))
    known = known[known >= 0]
    framed = np.zeros([s.stop - s.start + 2 for s in wide], np.uint32)
    inside = framed[(slice(1, -1),) * framed.ndim]
    is_open = np.zeros(inside.shape, dtype=bool)
    while seen:
        where, pieces, keys = seen.pop()
        here = inner_box(wide, where)
        numbers = np.where(keys >= 0, np.searchsorted(known, keys) + 1, 0)
        look_up(numbers.astype(np.uint32), pieces, out=inside[here])
        look_up(keys == OPEN, pieces, out=is_open[here])
        del pieces
    grow(framed, is_open, recipe.fill_reach)
    labels = inside[inner_box(wide, box)].copy()
    del framed, inside, is_open
    firsts = count_ids(labels, len(known)).firsts[1:]
    is_here = firsts < labels.size
    numbers = np.where(is_here, np.cumsum(is_here), 0)
    look_up(np.append(0, numbers).astype(np.uint32), labels, out=labels)
    faces = [labels[_plane(labels.ndim, *face)] for face in _find_faces(layout, number)]
    is_shared = np.zeros(int(is_here.sum()) + 1, dtype=bool)
    for face in faces:
        is_shared |= find_ids(face, len(is_shared) - 1)
    return {
        "labels": labels,
        "keys": known[is_here],
        "firsts": _to_image(firsts[is_here], layout, box),
        "is_shared": is_shared[1:],
    }


def _look_around(
    load: Load,
    load_keys: Callable[[int], np.ndarray],
    recipe: Recipe,
    layout: Layout,
    number: int,
    wide: Box,
) -> list[tuple[Box, Labels, Int[np.ndarray, " k"]]]:
    """What lies in a block and a little around it: boxes, pieces, and the keys of their numbers."""
    (pieces,) = load(number, "pieces")
    seen = [(layout.box(number), pieces, _keys_of(load, load_keys, recipe, number))]
    for offset, other in layout.around(number) if recipe.fill_reach else ():
        lies, slab = _read_slab(load, layout, offset, other)
        shared = intersect(lies, wide)
        keys = _keys_of(load, load_keys, recipe, other)
        seen.append((shared, slab[inner_box(lies, shared)].copy(), keys))
    return seen


def _cluster(  # noqa: PLR0913 as of find_block
    see: Callable[[Box], Seen],
    recipe: Recipe,
    layout: Layout,
    number: int,
    inner: Sequence[int],
    *,
    mask: Readable | None,
    threads: int | None,
    note: Callable[[Tile, Seen], None],
) -> tuple[Fragments, Bool[np.ndarray, "*space"]]:
    """Find the clusters of a block, part by part, and its foreground."""
    box = layout.box(number)
    n_axes = len(box)
    shape = tuple(s.stop - s.start for s in box)
    windows = recipe.windows(n_axes)
    write = [-(-size // window) * window for size, window in zip(inner, windows, strict=True)]
    parts = plan_tiles(
        layout.shape, write, (0,) * n_axes, recipe.margins(n_axes), (1,) * n_axes, box
    )
    canvas = Canvas(shape, recipe)
    foreground = np.zeros(shape, dtype=bool)
    for tile in sorted(parts, key=_along_first):
        seen = see(tile.keep)
        note(tile, seen)
        given = None if mask is None else mask[(slice(0, 1), *tile.keep)][0] != 0
        inside, core = find_inside(seen.known, recipe, given)
        here = inner_box(box, tile.write)
        foreground[here] = inside[inner_box(tile.keep, tile.write)]
        found = cluster_block(seen.f, core, tile, recipe, seen.g, threads)
        canvas.add(Tile(here, here, here), found)
    return _in_reading_order(canvas.collect()), foreground


def _in_reading_order(found: Fragments) -> Fragments:
    """Number clusters by their first pixels, whatever the parts in which they were found.

    So a block that is found anew, in smaller parts, still fits what its neighbours know of it.
    """
    order = np.argsort(count_ids(found.labels, len(found.centers)).firsts[1:], kind="stable")
    rank = np.zeros(len(order) + 1, np.uint32)
    rank[order + 1] = np.arange(1, len(order) + 1)
    return Fragments(
        look_up(rank, found.labels, out=found.labels),
        found.centers[order],
        found.reach[order],
        rank[found.links].astype(np.int64),
        found.agreement[order],
    )


def _along_first(tile: Tile) -> list[int]:
    """Sort parts so that the next one mostly lies behind the last along the first axis."""
    return [s.start for s in (*tile.write[1:], tile.write[0])]


def _cut(groups: Labels, layout: Layout, box: Box) -> tuple[Labels, Arrays]:
    """Cut groups of clusters into connected pieces, and tell what these are."""
    pieces = split_disconnected(groups)
    counted = count_ids(pieces)
    firsts = counted.firsts[1:]
    table = {
        "piece_group": groups.ravel()[firsts].astype(np.int64),
        "piece_size": counted.sizes[1:],
        "piece_first": _to_image(firsts, layout, box),
    }
    return pieces, table


def _to_image(places: Int[np.ndarray, " n"], layout: Layout, box: Box) -> Int[np.ndarray, " n"]:
    """Turn places in the flat array of a block into those of the flat image."""
    shape = [s.stop - s.start for s in box]
    where = np.unravel_index(places, shape)
    moved = [axis + s.start for axis, s in zip(where, box, strict=True)]
    return np.asarray(np.ravel_multi_index(moved, layout.shape), np.int64)


def _find_touching(pieces: Labels, is_bound: Bool[np.ndarray, " k"]) -> Int[np.ndarray, "l 2"]:
    """Pairs of pieces that touch and whose groups may turn out to be one."""
    flat, count = pieces.reshape(-1), len(is_bound)
    pairs = [np.zeros(0, np.int64)]
    for axis, side in enumerate(pieces.shape):
        stride = math.prod(pieces.shape[axis + 1 :])
        for start in range(0, flat.size - stride, _AT_ONCE):
            before = flat[start : min(start + _AT_ONCE, flat.size - stride)]
            after = flat[start + stride : start + stride + len(before)]
            place = np.flatnonzero(before != after)
            # behind the last pixel of a row comes the first of the next one
            place = place[(place + start) // stride % side < side - 1]
            first, second = before[place].astype(np.int64), after[place]
            both = is_bound[first] & is_bound[second]
            pairs.append(np.unique(first[both] * count + second[both]))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), count), axis=1)


def _read_slab(
    load: Load, layout: Layout, offset: Sequence[int], number: int
) -> tuple[Box, Labels]:
    """What a neighbour has along the face that looks here, and where that lies in the image."""
    there = layout.box(number)
    axis = next(n for n, step in enumerate(offset) if step)
    side = 0 if offset[axis] > 0 else 1
    (slab,) = load(number, f"slab_{axis}{side}")
    start = there[axis].start if side == 0 else there[axis].stop - slab.shape[axis]
    part = slice(start, start + slab.shape[axis])
    return (*there[:axis], part, *there[axis + 1 :]), slab


def _keys_of(
    load: Load, load_keys: Callable[[int], np.ndarray], recipe: Recipe, number: int
) -> Int[np.ndarray, " k"]:
    """Key of each number that may stand in the pieces of a block."""
    sizes, firsts, bound = load(number, "piece_size", "piece_first", "bound")
    keys = np.where(sizes >= recipe.min_size, firsts, OPEN)
    keys[bound - 1] = load_keys(number)
    return np.concatenate([[NOTHING], keys, [OPEN]])


def _find_faces(layout: Layout, number: int) -> list[tuple[int, int]]:
    """Axis and side (0 low, 1 high) of the faces behind which there is another block."""
    n_axes = len(layout.shape)
    faces = []
    for axis in range(n_axes):
        for side, step in ((0, -1), (1, 1)):
            offset = [0] * n_axes
            offset[axis] = step
            if layout.neighbor(number, offset) is not None:
                faces.append((axis, side))
    return faces


def _plane(n_axes: int, axis: int, side: int) -> tuple[slice | int, ...]:
    return tuple(-side if n == axis else slice(None) for n in range(n_axes))


def _slab(shape: Sequence[int], axis: int, side: int, thickness: int) -> Box:
    n = shape[axis]
    part = slice(0, min(thickness, n)) if side == 0 else slice(max(n - thickness, 0), n)
    return tuple(part if a == axis else slice(0, size) for a, size in enumerate(shape))


def _rank(mask: Bool[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Number the true ones 0, 1, ...; -1 elsewhere."""
    return np.asarray(np.where(mask, np.cumsum(mask) - 1, -1))


def _bound_rank(pieces: np.ndarray, bound: Int[np.ndarray, " n"]) -> np.ndarray:
    """Place of pieces among the bound ones; -1 where there is none."""
    if not len(bound):
        return np.full(pieces.shape, -1)
    place = np.minimum(np.searchsorted(bound, pieces), len(bound) - 1)
    return np.where(bound[place] == pieces, place, -1)


def _pair_up(before: np.ndarray, after: np.ndarray) -> Int[np.ndarray, "m 2"]:
    both = (before >= 0) & (after >= 0)
    return np.unique(np.stack([before[both], after[both]], axis=1), axis=0)
