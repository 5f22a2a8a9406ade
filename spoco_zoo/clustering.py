"""From embeddings to instances: mean-shift, HDBSCAN, consistency clustering.

The push term of the loss acts within one training crop: two instances farther apart may share
an embedding, and in a large image nearly every place in embedding space is taken by someone.
Clustering is therefore local, in two ways.

*Pieces.* Instances on different connected pieces of the foreground cannot be the same one. A
piece whose embeddings all lie around their mean is an instance, and most pieces are.

*Windows.* All other pieces are clustered window by window. Windows lie on a lattice that starts
at the image's first pixel and whose side is a setting (about one training crop), never a matter
of memory. Each sees its surroundings too, by a margin of a quarter of its side, finds clusters
there, and gives them to its own pixels alone. Two windows that see the same surroundings find
nearly the same centres; across a face, clusters that touch are joined where their centres are
mutually nearest and within reach, or nearer than half of it.

So a pixel's cluster depends on what lies within a margin of its window and on nothing else, and
joins depend on clusters that touch: an image may be cut into any blocks of whole windows, each
block with a margin around it, in any order, and the partition is the same. The time per pixel
does not grow with the image. (Cutting the pixel grid where embeddings change across two pixels
would need no windows. On the validation images of the shipped network it is as good at its best
threshold, worse at others, and one leaking pixel joins two instances; see `benchmarks/grid.py`.
Matching clusters of overlapping windows by their pixels would need every label twice.)

What a method leaves open is closed in space. An embedding changes over a few pixels between
two instances; pixels on that slope are near no mode, or near the mode of a third instance,
and along a straight border many of them agree. So centres are sought among pixels off the
slopes; only pixels within reach of a centre take it; disconnected parts and specks are cut off;
and foreground pixels then still without an instance take that of a neighbour.

Nothing here knows of files or tiles, and nothing is random but the anchors of the consistency
test, which are drawn from a seed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from spoco_zoo.errors import SettingError
from spoco_zoo.fragments import Fragments, cluster_block
from spoco_zoo.labels import (
    fill_from_neighbors,
    find_groups,
    look_up,
    relabel,
    split_disconnected,
)
from spoco_zoo.pixels import HostPixels
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.tiling import Tile, plan_tiles

Labels = UInt32[np.ndarray, "*space"]
Mask = Bool[np.ndarray, "*space"]
Embedding = Float[np.ndarray, "e *space"]

_BLOCK_PIXELS = 1 << 20  # clustered at once where the caller does not choose


def cluster(
    embedding: Embedding,
    foreground: Mask,
    recipe: Recipe,
    momentum_embedding: Embedding | None = None,
    core: Mask | None = None,
    block: Sequence[int] | None = None,
) -> Labels:
    """Group the foreground pixels of one image into instances; 0 elsewhere.

    Args:
        embedding: The embedding of f.
        foreground: Where instances may lie.
        recipe: How they are made.
        momentum_embedding: The embedding of g; needed by `Consistency` alone.
        core: Where instances are told apart; they then grow through the foreground by at most
            `fill_reach` pixels. All foreground where left out.
        block: Pixels per axis that are clustered at once, rounded up to whole windows; does
            not change the result.

    Raises:
        SettingError: Consistency clustering without the embedding of the momentum net, or an
            embedding that is not finite.
    """
    core = foreground if core is None else core & foreground
    canvas = Canvas(foreground.shape, recipe)
    for tile in plan_blocks(foreground.shape, recipe, block):
        region = (slice(None), *tile.keep)
        f = HostPixels(embedding[region])
        g = None if momentum_embedding is None else HostPixels(momentum_embedding[region])
        canvas.add(tile, cluster_block(f, core[tile.keep], tile, recipe, g))
    return canvas.finish(foreground)


def plan_blocks(
    shape: Sequence[int], recipe: Recipe, block: Sequence[int] | None = None
) -> Iterator[Tile]:
    """Cut an image into blocks of whole windows, each kept with a margin around it.

    Raises:
        SettingError: The block or the window of the recipe has another number of axes.
    """
    n_axes = len(shape)
    windows = recipe.windows(n_axes)
    if block is None:
        block = (round(_BLOCK_PIXELS ** (1 / n_axes)),) * n_axes
    if len(block) != n_axes or min(block) < 1:
        raise SettingError(
            f"block is {list(block)}: expected one number of pixels, or {n_axes}, each at least 1"
        )
    write = [-(-size // window) * window for size, window in zip(block, windows, strict=True)]
    return plan_tiles(shape, write, (0,) * n_axes, recipe.margins(n_axes), (1,) * n_axes)


class Canvas:
    """The clusters of an image, put together block by block and joined at the end."""

    def __init__(self, shape: Sequence[int], recipe: Recipe) -> None:
        """Start with nothing found."""
        self._recipe = recipe
        self._labels = np.zeros(tuple(shape), np.uint32)
        self._parts: list[Fragments] = []
        self._count = 0

    def add(self, tile: Tile, found: Fragments) -> None:
        """Take what `cluster_block` found; the order of blocks does not matter."""
        numbers = found.labels + np.uint32(self._count) * (found.labels > 0)
        self._labels[tile.write] = numbers
        nothing = np.zeros(0, np.uint32)
        self._parts.append(found._replace(labels=nothing, links=found.links + self._count))
        self._count += len(found.centers)

    def collect(self) -> Fragments:
        """The clusters of all blocks as if they were one's, linked across faces of windows too."""
        centers = np.concatenate([part.centers for part in self._parts])
        reach = np.concatenate([part.reach for part in self._parts])
        agreement = np.concatenate([part.agreement for part in self._parts])
        links = [part.links for part in self._parts]
        windows = self._recipe.windows(self._labels.ndim)
        for axis, size in enumerate(windows):
            planes = np.moveaxis(self._labels, axis, 0)
            for face in range(size, len(planes), size):
                pairs = find_contacts(planes[face - 1], planes[face])
                links.append(pairs[is_same(pairs - 1, centers, reach)])
        return Fragments(self._labels, centers, reach, np.concatenate(links), agreement)

    def finish(self, foreground: Mask) -> Labels:
        """Join, drop and fill: the instances of the whole image, numbered 1..n."""
        recipe, labels = self._recipe, self._labels
        if self._count:
            found = self.collect()
            groups = find_groups(self._count + 1, found.links)
            if isinstance(recipe.clustering, Consistency):
                sizes = np.bincount(labels.ravel(), minlength=self._count + 1)[1:]
                is_good = find_consistent(found.agreement, sizes, groups[1:], recipe.clustering)
                kept = np.array([True, *is_good[groups[1:]]])
                # what f and g disagree on is dropped for good: it is nobody's neighbour
                foreground = foreground & ((labels == 0) | kept[labels])
                groups = np.where(kept, groups, np.uint32(0))
            labels = look_up(groups, labels)
        labels = split_disconnected(labels, recipe.min_size)
        return relabel(fill_from_neighbors(labels, foreground, recipe.fill_reach))


def find_contacts(
    before: UInt32[np.ndarray, "*plane"], after: UInt32[np.ndarray, "*plane"]
) -> Int[np.ndarray, "l 2"]:
    """Pairs of different labels that face each other across two neighbouring planes, each once."""
    place = np.flatnonzero((before > 0) & (after > 0) & (before != after))
    pairs = np.stack([before.ravel()[place], after.ravel()[place]], axis=1)
    return np.unique(pairs.astype(np.intp), axis=0)


def find_consistent(
    agreement: Float[np.ndarray, "k a"],
    sizes: Int[np.ndarray, " k"],
    groups: UInt32[np.ndarray, " k"],
    settings: Consistency,
) -> Bool[np.ndarray, " g"]:
    """Tell of each group of clusters whether f and g do not disagree on it.

    Args:
        agreement: Of f and g on each cluster, by anchors.
        sizes: Pixels of each cluster.
        groups: The group that each cluster belongs to.
        settings: How much agreement is asked for.

    Returns:
        One answer for each number from 0 to that of the last group.
    """
    medians = _weighted_medians(agreement, sizes, groups)
    return np.asarray(~(medians < settings.iou_threshold))


def is_same(
    pairs: Int[np.ndarray, "l 2"], centers: Float[np.ndarray, "k e"], reach: Float[np.ndarray, " k"]
) -> Bool[np.ndarray, " l"]:
    """Tell which pairs that touch across a face are one cluster that two windows have found.

    Both windows see the pixels on both sides, so the centres of one instance are nearly equal.
    Where the instance is large and changes, they are still each other's nearest.
    """
    first, second = pairs.T
    gaps = np.linalg.norm(centers[first] - centers[second], axis=1)
    within = np.minimum(reach[first], reach[second])
    nearest = np.full((2, len(centers)), np.inf)
    np.minimum.at(nearest[0], first, gaps)
    np.minimum.at(nearest[1], second, gaps)
    is_mutual = (gaps == nearest[0][first]) & (gaps == nearest[1][second])
    return np.asarray((gaps <= within / 2) | (is_mutual & (gaps <= within)))


def _weighted_medians(
    values: Float[np.ndarray, "k a"],
    weights: Int[np.ndarray, " k"],
    groups: UInt32[np.ndarray, " k"],
) -> Float[np.ndarray, " g"]:
    """Median of the rows of each group, every value with the weight of its row.

    Rows that nothing is known of (NaN) do not count; where that is all, so is the median.
    """
    medians = np.full(int(groups.max(initial=0)) + 1, np.nan)
    known = np.flatnonzero(~np.isnan(values).any(axis=1) & (weights > 0))
    known = known[np.argsort(groups[known], kind="stable")]
    found, starts = np.unique(groups[known], return_index=True)
    for group, rows in zip(found, np.split(known, starts)[1:], strict=True):
        flat = values[rows].ravel()
        order = np.argsort(flat)
        share = np.cumsum(np.repeat(weights[rows], values.shape[1])[order])
        medians[group] = flat[order[np.searchsorted(share, share[-1] / 2)]]
    return medians
