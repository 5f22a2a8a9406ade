"""What the labels of a batch say of its embedding: means, and sums over the pixels around them.

Of a pixel x and the mean m of its own cluster, and of x and every instance mean a of its image,
the loss needs

    pull hinges     max(|x - m| - delta_var, 0)^2
    shared          exp(-|x - m|^2 / w)
    soft squares    exp(-|x - a|^2 / w)^2
    push hinges     max(delta_dist - |x - a|, 0)^2, of unlabeled pixels

summed over pixels. All of it is one function of the embedding, its gradient written by hand and
evaluated block by block: what a block of pixels needs stays in the cache, nothing of the size
pixels x instances outlives it, and the backward pass computes it again. The gradients of the
sums over pairs by a mean are found with the sums themselves, but for one factor each.

On the CPU, pairs that are too far apart to make a difference are left out; a GPU would have to
wait for the answer. It is waited for once, to learn how many clusters there are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from spoco_zoo.labels import BACKGROUND, UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.pairs import (
    Anchors,
    exp2_,
    find_near,
    iterate_blocks,
    lean_of_anchors,
    lean_of_pixels,
    leaves_out,
    reach_of_soft_mask,
    squares_of_rows,
)

_TINY = 1e-6
_PER_PIXEL = 32  # numbers of a pixel that are computed with at once
_SURELY_DENSE = 256  # larger ids may have gaps, and every id below the largest costs time
INSTANCES = slice(2, None)  # columns of a table of clusters


@dataclass(frozen=True, eq=False)
class Clusters:
    """Sums over the pixels of each cluster.

    The columns of a table (b, n) are UNLABELED, BACKGROUND, and the instances from 1 on; those
    of a table (b, a) the instances alone.
    """

    embedding: Float[Tensor, "b p e"]
    is_unlabeled: Bool[Tensor, "b p"]
    counts: Float[Tensor, "b n"]  # pixels; 0 where an image has no such cluster
    means: Float[Tensor, "b n e"]
    pull_hinges: Float[Tensor, "b n"]
    shared: Float[Tensor, "b n"]
    soft_squares: Float[Tensor, "b a"]
    push_hinges: Float[Tensor, "b a"]

    @property
    def exists(self) -> Bool[Tensor, "b n"]:
        """Which clusters have a pixel."""
        return self.counts > 0


def find_clusters(
    embedding: Float[Tensor, "b e *space"], labels: Int[Tensor, "b *space"], settings: LossSettings
) -> Clusters:
    """Collect the clusters of each image, and the sums that the loss needs of them.

    Margins and the width of the soft masks are those of the settings.
    """
    states = labels.flatten(1)
    facts = torch.stack([states.amax(dim=1), (states == UNLABELED).sum(dim=1)])
    largest, unlabeled = facts.tolist()
    if max(largest) > _SURELY_DENSE:
        ids = torch.unique(states[states > BACKGROUND])
        states = torch.where(states > BACKGROUND, torch.searchsorted(ids, states) + 1, states)
        largest = states.amax(dim=1).tolist()
    instances = [max(number, 0) for number in largest]
    pixels = embedding.flatten(2).transpose(1, 2).contiguous()
    own = states + 1
    ones = torch.ones_like(own, dtype=pixels.dtype)
    counts = pixels.new_zeros(len(own), 2 + max(instances)).scatter_add_(1, own, ones)
    words = _Words(
        instances,
        [count > 0 for count in unlabeled],
        settings.delta_var,
        settings.delta_dist,
        settings.two_sigma_squared,
    )
    sums = _ClusterSums.apply(pixels, own, counts, words)  # type: ignore[no-untyped-call]
    means, pull_hinges, shared, soft_squares, push_hinges = sums
    return Clusters(pixels, own == 0, counts, means, pull_hinges, shared, soft_squares, push_hinges)


class _Words(NamedTuple):
    """What is no tensor of `_ClusterSums`."""

    instances: list[int]  # the last of each image, 0 without any
    has_unlabeled: list[bool]
    delta_var: float
    delta_dist: float
    two_sigma_squared: float


class _Own(NamedTuple):
    """Pixels, and their own clusters."""

    offset: Tensor  # (p, e) to the mean
    distance: Tensor  # (p)
    hinge: Tensor  # (p) max(|x - m| - delta_var, 0)
    shared: Tensor  # (p) exp(-|x - m|^2 / w)


class _Chosen(NamedTuple):
    """Which pixels of a part need pairs with the instances of their image."""

    places: Tensor | None  # their numbers, unlabeled ones first; None for all, in their order
    unlabeled: int  # how many of them are unlabeled, or may be
    is_alone: Tensor | None  # (p) 1 where no instance but, maybe, their own is in reach


class _Pairs(NamedTuple):
    """A block of pixels, and all instances of their image or those that are near."""

    places: Tensor | slice  # of the pixels in their part
    anchors: Anchors
    rows: Tensor  # (p, e + 2)
    soft: Tensor  # (p, a) exp(-|x - a|^2 / w)^2
    hinge: Tensor  # (u, a) max(delta_dist - |x - a|, 0) of unlabeled pixels, which come first
    slope: Tensor  # (u, a) the hinge by |x - a|


class _Image:
    """The clusters and instances of one image."""

    def __init__(self, number: int, saved: Sequence[Tensor], words: _Words) -> None:
        self.pixels, self.own, counts, self.means = (tensor[number] for tensor in saved)
        self.words, self.count = words, words.instances[number]
        self.has_unlabeled, self.used = words.has_unlabeled[number], slice(self.count)
        self.selects = self.count > 0 and leaves_out(self.pixels.device)
        self.sizes = counts.clamp_min(1)[:, None]
        if self.count:
            points = self.means[INSTANCES][self.used]
            self.anchors = Anchors.of(points, words.two_sigma_squared / 2)
        if self.selects:
            reach = reach_of_soft_mask(words.two_sigma_squared)
            radius = self.anchors.places.square().sum(dim=1).amax().sqrt()
            self.room = _distances_to_others(self.means, counts) - reach
            self.far = radius + max(reach, words.delta_dist)

    def parts(self) -> Iterator["_Part"]:
        """Part the pixels, so that what is computed of a part stays in the cache."""
        for part in iterate_blocks(len(self.pixels), _PER_PIXEL, self.pixels.device):
            yield _Part(self, part)


class _Part:
    """Some pixels of an image."""

    def __init__(self, image: _Image, part: slice) -> None:
        self.image, self.pixels, self.own = image, image.pixels[part], image.own[part]
        self.slice = part

    def find_own(self) -> _Own:
        """Compare pixels with the means of their own clusters."""
        words = self.image.words
        offset = self.pixels - self.image.means.index_select(0, self.own)
        squared = squares_of_rows(offset)
        shared = exp2_(squared * (-1 / (words.two_sigma_squared * math.log(2.0))))
        # at zero the root has no gradient, and the hinge needs none
        distance = squared.clamp_min_(_TINY**2).sqrt_()
        return _Own(offset, distance, (distance - words.delta_var).clamp_min_(0.0), shared)

    def choose(self, distance: Tensor) -> _Chosen:
        """Choose the pixels that need pairs, from their distance to their own means."""
        image, p = self.image, len(self.own)
        if not image.selects:
            return _Chosen(None, p if image.has_unlabeled else 0, None)
        # with |x - m| to its own mean, another one is at least |a - m| - |x - m| away
        is_alone = distance < image.room.index_select(0, self.own)
        centred = squares_of_rows(self.pixels - image.anchors.centre)
        needs_pairs = (centred < image.far**2).logical_and_(~is_alone)
        if not image.has_unlabeled:
            places = torch.nonzero(needs_pairs)[:, 0]
            return _Chosen(None if len(places) == p else places, 0, is_alone)
        is_unlabeled = self.own == 0
        first = torch.nonzero(needs_pairs & is_unlabeled)[:, 0]
        rest = torch.nonzero(needs_pairs.logical_and_(~is_unlabeled))[:, 0]
        return _Chosen(torch.cat([first, rest]), len(first), is_alone)

    def blocks(self, chosen: _Chosen) -> Iterator[slice]:
        """Part the chosen pixels once more, by their pairs."""
        if self.image.count:
            length = len(self.own) if chosen.places is None else len(chosen.places)
            yield from iterate_blocks(length, self.image.count, self.own.device)

    def find_pairs(self, chosen: _Chosen, block: slice, near: Tensor | slice) -> _Pairs:
        """Compare a block of the chosen pixels with instances."""
        image = self.image
        places = block if chosen.places is None else chosen.places[block]
        pixels = self.pixels[places]
        anchors = image.anchors.only(near)
        rows = anchors.rows(pixels)
        logs = anchors.log_soft(rows)
        unlabeled = max(chosen.unlabeled - block.start, 0)
        distance, hinge = anchors.hinges(logs[:unlabeled], image.words.delta_dist)
        if chosen.places is None and unlabeled:
            hinge.mul_(self.own[block, None] == 0)
        return _Pairs(places, anchors, rows, exp2_(logs), hinge, hinge / distance)


class _ClusterSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        pixels: Tensor,
        own: Tensor,
        counts: Tensor,
        words: _Words,
    ) -> tuple[Tensor, ...]:
        means = _find_means(pixels, own, counts)
        of_own = pixels.new_zeros(*counts.shape, 3)  # the third: squares of those that are alone
        of_pairs = pixels.new_zeros(2, len(counts), counts.shape[1] - 2)
        leans = pixels.new_zeros(*of_pairs.shape, pixels.shape[2])
        ctx.words, ctx.chosen, ctx.near = words, [], []
        for number in range(len(pixels)):
            image = _Image(number, (pixels, own, counts, means), words)
            for part in image.parts():
                x = part.find_own()
                chosen = part.choose(x.distance)
                alone = torch.zeros_like(x.shared)
                if chosen.is_alone is not None:
                    torch.mul(x.shared.square(), chosen.is_alone, out=alone)
                values = torch.stack([x.hinge.square(), x.shared, alone], dim=1)
                of_own[number] += _sum_each(values, part.own, counts.shape[1])
                ctx.chosen.append(chosen)
                for block in part.blocks(chosen):
                    sums, leaning = _sum_pairs(part.find_pairs(chosen, block, slice(None)))
                    of_pairs[:, number, image.used] += sums
                    leans[:, number, image.used] += leaning
                    ctx.near.append(find_near(sums.amax(dim=0)))
        ctx.save_for_backward(pixels, own, counts, means, leans)
        pull_hinges, shared, alone = of_own.unbind(dim=2)
        return means, pull_hinges, shared, of_pairs[0] + alone[:, INSTANCES], of_pairs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *saved, leans = ctx.saved_tensors
        words: _Words = ctx.words
        for_means, by_pull, by_shared, by_soft, by_push = by
        # by a squared distance, a hinge changes as h / d and a soft mask as itself, times these
        width = words.two_sigma_squared
        by_alone = torch.nn.functional.pad(by_soft, (2, 0))
        by_own = torch.stack([by_pull, by_shared / -width, by_alone * (-2 / width)], dim=2)
        by_pairs = torch.stack([by_soft * (4 / width), by_push * 2])
        for_means = for_means.clone()
        for_means[:, INSTANCES] += (leans * by_pairs[..., None]).sum(dim=0)
        for_pixels = torch.empty_like(saved[0])
        choices, nears = iter(ctx.chosen), iter(ctx.near)
        for number, gradients in enumerate(for_pixels):
            image, of_offsets = _Image(number, saved, words), torch.zeros_like(for_means[number])
            for part in image.parts():
                chosen, gradient = next(choices), gradients[part.slice]
                x, slopes = part.find_own(), by_own[number].index_select(0, part.own)
                torch.mul(x.offset, _weigh(x, chosen.is_alone, slopes)[:, None], out=gradient)
                of_offsets.index_add_(0, part.own, gradient)  # with alpha=-1 it is slow
                for block in part.blocks(chosen):
                    near = next(nears)
                    pairs = part.find_pairs(chosen, block, near)
                    leaning = _lean_on_pairs(pairs, by_pairs[:, number, image.used][:, near])
                    if isinstance(pairs.places, slice):
                        gradient[pairs.places] += leaning
                    else:
                        gradient.index_add_(0, pairs.places, leaning)
            by_mean = (for_means[number] - of_offsets) / image.sizes
            for part in image.parts():
                gradients[part.slice] += by_mean.index_select(0, part.own)
        return for_pixels, None, None, None


def _find_means(pixels: Tensor, own: Tensor, counts: Tensor) -> Tensor:
    """Find the mean of each cluster of each image, (b, n, e)."""
    sums = pixels.new_zeros(*counts.shape, pixels.shape[2])
    for image, clusters, total in zip(pixels, own, sums, strict=True):
        for part in iterate_blocks(len(image), _PER_PIXEL, image.device):
            total += _sum_each(image[part], clusters[part], len(total))
    return sums / counts.clamp_min(1)[..., None]


def _sum_each(values: Tensor, own: Tensor, count: int) -> Tensor:
    """Sum values (p, k) of a part over the pixels of each cluster, (n, k).

    Part by part, since a sum of a million float32, one added after the other, has few digits.
    """
    return values.new_zeros(count, values.shape[1]).index_add_(0, own, values)


def _sum_pairs(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Sum soft squares and push hinges over pixels, (2, a), and W (x - a) of both, (2, a, e).

    The second is the gradient by a but for a factor: 4 / w, and 2.
    """
    hinged = pairs.rows[: len(pairs.hinge)]
    sums = pairs.soft.sum(dim=0), pairs.hinge.square().sum(dim=0)
    to_soft = lean_of_anchors(pairs.soft, pairs.rows, pairs.anchors)
    return torch.stack(sums), torch.stack(
        [to_soft, lean_of_anchors(pairs.slope, hinged, pairs.anchors)]
    )


def _weigh(x: _Own, is_alone: Tensor | None, slopes: Tensor) -> Tensor:
    """Weigh the offsets of pixels to their own means, from the slopes (p, 3) of the sums."""
    by_pull, by_shared, by_alone = slopes.unbind(dim=1)
    weights = by_pull * x.hinge / x.distance + by_shared * x.shared
    if is_alone is not None:
        weights += by_alone * x.shared.square() * is_alone
    return weights.mul_(2.0)


def _lean_on_pairs(pairs: _Pairs, slopes: Tensor) -> Tensor:
    """Gradient of pixels by what pairs sum, from the slopes (2, a) of these."""
    hinged = pairs.rows[: len(pairs.hinge)]
    lean = lean_of_pixels(pairs.soft, slopes[0], pairs.rows, pairs.anchors)
    lean[: len(hinged)] += lean_of_pixels(pairs.slope, slopes[1], hinged, pairs.anchors)
    return lean


def _distances_to_others(means: Tensor, counts: Tensor) -> Tensor:
    """How far the mean of each cluster is from the nearest instance that is another one."""
    instances = means[INSTANCES]
    # by differences, not by a matrix product, which would lose digits
    gaps = torch.cdist(means, instances, compute_mode="donot_use_mm_for_euclid_dist")
    gaps.masked_fill_(counts[INSTANCES] == 0, math.inf)
    gaps.diagonal(offset=-2).fill_(math.inf)
    nearest = gaps.amin(dim=1)
    nearest[0] = -math.inf  # unlabeled pixels have no mean of their own
    return nearest
