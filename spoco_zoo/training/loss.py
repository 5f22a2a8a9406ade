"""The SPOCO loss: six terms on embeddings, and one for the foreground head.

Labels come in three states: `UNLABELED` (-1: an instance or background, nobody said which),
`BACKGROUND` (0) and instance ids from 1. With E the embedding dimension, p pixels, and
mu_k the mean embedding of cluster k (its gradient flows):

    pull            a pixel within delta_var of its own mean costs nothing
    push            two means further than 2 delta_dist apart cost nothing
    norm            keeps the means near the origin
    unlabeled push  an unlabeled pixel stays delta_dist away from every instance mean
    instance        soft mask of each instance against its true mask, by Dice
    consistency     soft masks of f and g around the same unlabeled anchors, by Dice

Clusters of pull and push are the instances and, where it was labelled, the background; the
unlabeled pixels are no cluster (Wolny et al. 2022, eq. 1-6).

The foreground head learns from labelled background, or, where it is told which part of the
instances is labelled, from instances and unlabeled pixels (positive-unlabeled learning). In the
layers that it shares with the embedding its gradient is much shorter than that of the other terms,
hence its large weight in the settings.

Every function takes a batch and gives one number for each image. Clusters of all images are one
table, (b, n): unlabeled pixels, background, instance 1, instance 2 and so on, with a count of
zero where an image has none. What concerns a pixel and its own cluster are sums over segments
of pixels; what concerns all pairs of pixels and instances is in `pairs`, and takes pixels x E
of memory whatever the count of instances. The device is waited for once, in `find_clusters`,
and while anchors are drawn.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from spoco_zoo.labels import BACKGROUND, UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.anchors import draw_anchors
from spoco_zoo.training.net import NetOutput
from spoco_zoo.training.pairs import reach_of_soft_mask, sum_over_pairs, sum_over_twins

_TINY = 1e-6
_LEAST_EXPONENT = -40.0
_SURELY_DENSE = 256  # larger ids may have gaps, and every id below the largest costs time
_KNOWN = slice(1, None)  # columns of the clusters that pull and push act on
_INSTANCES = slice(2, None)
_BESIDE = 2  # pixels around a labelled instance: its blurred edge, no neighbours
_RATIO_BESIDE = 0.9  # what is foreground there is mostly the instance itself, and labelled


class LossTerms(NamedTuple):
    """The unweighted terms, each a scalar averaged over the batch, and their weighted sum."""

    pull: Tensor
    push: Tensor
    norm: Tensor
    unlabeled_push: Tensor
    instance: Tensor
    consistency: Tensor
    foreground: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class Clusters:
    """What the labels of a batch say of its embeddings.

    The columns of a table are UNLABELED, BACKGROUND, and the instances from 1 on.
    """

    embedding: Float[Tensor, "b p e"]
    index: Int[Tensor, "b p"]  # the cluster of each pixel, counted through the whole table
    squared: Float[Tensor, "b p"]  # squared distance of each pixel to the mean of its cluster
    counts: Float[Tensor, "b n"]  # pixels; 0 where an image has no such cluster
    means: Float[Tensor, "b n e"]
    largest: list[int]  # the last instance of each image, 0 without any
    unlabeled: list[int]  # unlabeled pixels of each image

    @property
    def exists(self) -> Bool[Tensor, "b n"]:
        """Which clusters have a pixel."""
        return self.counts > 0

    @property
    def is_unlabeled(self) -> Bool[Tensor, "b p"]:
        """Which pixels are UNLABELED."""
        return self.index % self.counts.shape[1] == 0

    def sum_over_each(self, values: Float[Tensor, "b p"]) -> Float[Tensor, "b n"]:
        """Sum a value of each pixel over the pixels of each cluster."""
        sums = values.new_zeros(self.counts.numel())
        return sums.index_add(0, self.index.flatten(), values.flatten()).view_as(self.counts)


def find_clusters(
    embedding: Float[Tensor, "b e *space"], labels: Int[Tensor, "b *space"]
) -> Clusters:
    """Collect the clusters of each image and their mean embeddings."""
    states = labels.flatten(1)
    facts = torch.stack([states.amax(dim=1), (states == UNLABELED).sum(dim=1)])
    largest, unlabeled = facts.tolist()
    if max(largest) > _SURELY_DENSE:
        ids = torch.unique(states[states > BACKGROUND])
        states = torch.where(states > BACKGROUND, torch.searchsorted(ids, states) + 1, states)
        largest = states.amax(dim=1).tolist()
    largest = [max(number, 0) for number in largest]
    pixels = embedding.flatten(2).transpose(1, 2).contiguous()
    b, n, e = len(states), 2 + max(largest), pixels.shape[2]
    index = states + 1 + n * torch.arange(b, device=states.device)[:, None]
    counts = pixels.new_zeros(b * n).index_add_(
        0, index.flatten(), torch.ones_like(index, dtype=pixels.dtype).flatten()
    )
    sums = pixels.new_zeros(b * n, e).index_add(0, index.flatten(), pixels.flatten(0, 1))
    means = sums / counts.clamp_min(1)[:, None]
    offsets = pixels.flatten(0, 1) - means.index_select(0, index.flatten())
    squared = offsets.square().sum(dim=1).view_as(index)
    shape = b, n, e
    return Clusters(
        pixels, index, squared, counts.view(b, n), means.view(shape), largest, unlabeled
    )


def pull(clusters: Clusters, delta_var: float) -> Float[Tensor, " b"]:
    """Mean over clusters of the hinged squared distance to the own mean (eq. 1)."""
    # at zero the root has no gradient, and the hinge needs none
    distance = clusters.squared.clamp_min(_TINY**2).sqrt()
    hinges = clusters.sum_over_each(torch.relu(distance - delta_var).square())
    means = hinges / clusters.counts.clamp_min(1)
    return _mean(means[:, _KNOWN], clusters.exists[:, _KNOWN])


def push(clusters: Clusters, delta_dist: float) -> Float[Tensor, " b"]:
    """Mean over ordered pairs of clusters of the hinged squared distance of means (eq. 2)."""
    means, known = clusters.means[:, _KNOWN], clusters.exists[:, _KNOWN]
    # by differences, not by a matrix product: few numbers, and their gradient at zero is zero
    distance = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    hinges = torch.relu(2 * delta_dist - distance).square()
    is_pair = known[:, :, None] & known[:, None, :]
    is_pair.diagonal(dim1=1, dim2=2).fill_(False)
    return _mean(hinges.flatten(1), is_pair.flatten(1))


def norm(clusters: Clusters) -> Float[Tensor, " b"]:
    """Mean length of all means, that of the unlabeled pixels too (eq. 3)."""
    return _mean(torch.linalg.vector_norm(clusters.means, dim=2), clusters.exists)


def sum_for_instances(
    clusters: Clusters, two_sigma_squared: float, delta_dist: float
) -> Float[Tensor, "2 b a"]:
    """Sum over the pixels of an image what `instance` and `unlabeled_push` need of each instance.

    On the CPU, pixels that are far from all instances but their own need no pairs.
    """
    b, p, e = clusters.embedding.shape
    pixels, lengths = clusters.embedding.view(b * p, e), [p] * b
    unlabeled = clusters.is_unlabeled.flatten()
    alone = torch.zeros_like(clusters.is_unlabeled)
    if pixels.device.type == "cpu":
        alone = _find_alone(clusters, two_sigma_squared)
        lengths = (p - alone.sum(dim=1)).tolist()
    if sum(lengths) < b * p:
        places = torch.nonzero(~alone.flatten())[:, 0]
        pixels, unlabeled = pixels.index_select(0, places), unlabeled[places]
    soft_squared, hinges = sum_over_pairs(
        (pixels, lengths),
        (clusters.means[:, _INSTANCES], clusters.largest),
        unlabeled if any(clusters.unlabeled) else None,
        two_sigma_squared,
        delta_dist,
    )
    own = clusters.sum_over_each(_soft_mask(clusters.squared, two_sigma_squared / 2) * alone)
    return torch.stack([soft_squared + own[:, _INSTANCES], hinges])


@torch.no_grad()
def _find_alone(clusters: Clusters, two_sigma_squared: float) -> Bool[Tensor, "b p"]:
    """Which labelled pixels are in reach of no instance but, maybe, their own.

    For a pixel x with mean m, another mean a is at least |a - m| - |x - m| away.
    """
    instances = clusters.means[:, _INSTANCES]
    gaps = torch.cdist(clusters.means, instances, compute_mode="donot_use_mm_for_euclid_dist")
    gaps.masked_fill_(~clusters.exists[:, None, _INSTANCES], math.inf)
    gaps.diagonal(offset=-2, dim1=1, dim2=2).fill_(math.inf)
    nearest = gaps.amin(dim=2) if gaps.shape[2] else torch.full_like(clusters.counts, math.inf)
    nearest[:, 0] = -math.inf  # unlabeled pixels have no mean of their own
    room = nearest.flatten()[clusters.index] - reach_of_soft_mask(two_sigma_squared)
    return clusters.squared.sqrt() < room


def unlabeled_push(clusters: Clusters, hinges: Float[Tensor, "b a"]) -> Float[Tensor, " b"]:
    """Mean hinged squared distance of unlabeled pixels to each instance mean (eq. 5)."""
    unlabeled = clusters.counts[:, :1].clamp_min(1)
    return _mean(hinges / unlabeled, clusters.exists[:, _INSTANCES])


def instance(
    clusters: Clusters,
    soft_squared: Float[Tensor, "b a"],
    two_sigma_squared: float,
    reduction: Literal["per_instance", "joint"] = "per_instance",
) -> Float[Tensor, " b"]:
    """Dice loss between the soft mask around each instance's mean and its true mask (eq. 4).

    `per_instance` is the mean of one Dice per instance, so that small ones count; `joint` is
    one Dice over all of them, as the published code computes it.
    """
    shared = clusters.sum_over_each(_soft_mask(clusters.squared, two_sigma_squared))
    counts, exists = clusters.counts[:, _INSTANCES], clusters.exists[:, _INSTANCES]
    return _dice_loss(shared[:, _INSTANCES], soft_squared + counts, exists, reduction)


def consistency(
    f: Float[Tensor, "b p e"],
    g: Float[Tensor, "b p e"],
    anchors: list[Tensor],
    settings: LossSettings,
) -> Float[Tensor, " b"]:
    """Dice loss between the soft masks of f and g around each image's anchors (eq. 6).

    No gradient reaches g.
    """
    shared, squared_f, squared_g = sum_over_twins(f, g, anchors, settings.two_sigma_squared)
    counts = torch.tensor([len(chosen) for chosen in anchors], device=f.device)
    is_drawn = torch.arange(shared.shape[1], device=f.device) < counts[:, None]
    return _dice_loss(shared, squared_f + squared_g, is_drawn, settings.dice)


def foreground(
    logit: Float[Tensor, "b 1 *space"], labels: Int[Tensor, "b *space"]
) -> Float[Tensor, " b"]:
    """Cross-entropy and Dice of the foreground head, on pixels whose state is known.

    Without labelled background every known pixel is an instance and the answer would be
    "everywhere": the term is then zero.
    """
    values, states = logit.flatten(1), labels.flatten(1)
    known = (states != UNLABELED).to(values.dtype)
    truth = (states > BACKGROUND).to(values.dtype)
    instances = truth.sum(dim=1)
    entropy = F.binary_cross_entropy_with_logits(values, truth, weight=known, reduction="none")
    probability = torch.sigmoid(values) * known
    shared = (probability * truth).sum(dim=1)
    dice = 1.0 - 2.0 * shared / (probability.square().sum(dim=1) + instances).clamp_min(_TINY)
    # an image without any instance has no Dice
    term = entropy.sum(dim=1) / known.sum(dim=1).clamp_min(1) + dice * (instances > 0)
    return term * (states == BACKGROUND).any(dim=1)


def foreground_from_some(
    logit: Float[Tensor, "b 1 *space"], labels: Int[Tensor, "b *space"], labelled_ratio: float
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of which pixels are labelled, where only some instances are.

    With p the probability of foreground at a pixel and r the part of the instances that is
    labelled, the pixel is in a labelled instance with probability r p, if instances were chosen
    without regard to their looks (Elkan and Noto 2008, "Learning classifiers from only positive
    and unlabeled data"). So what the labels say of p is

        -log p          at a labelled instance, but for a constant
        -log(1 - r p)   at an unlabeled pixel: an instance that was not labelled, or background
        -log(1 - p)     at known background

    which is least where p is the truth (the correction of a loss by known odds of a wrong label,
    Patrini et al. 2017), and is bounded below, so that nothing has to be cut off.

    On the outline of a labelled instance one does not know on looking whether a pixel is still its
    own. What is foreground in its first pixels is nearly always that instance, hence labelled: r is
    0.9 there, and with r alone outlines come out too wide. Further out r holds, or the neighbours
    of a labelled instance in a dense field would be taught to be background. Of a neighbour that
    touches, the rim is.

    Crops are aimed at labelled instances, so that more of their foreground is labelled than r says.
    A ratio that is too low makes some more foreground than there is, first where it is uncertain;
    one that is too high does more harm, since instances are lost. So r stays that of all images.

    Returns:
        For each image the sum over its pixels, by the sum of their weights: r of an unlabeled
        one, 1 of all others. With complete labels it is the mean cross-entropy.
    """
    values, states = logit.flatten(1), labels.flatten(1)
    positive, background, unlabeled = (
        mask.to(values.dtype)
        for mask in (states > BACKGROUND, states == BACKGROUND, states == UNLABELED)
    )
    as_background = F.softplus(values)
    beside = _grow(states.view(labels.shape) > BACKGROUND, _BESIDE).flatten(1)
    ratio = torch.full_like(values, labelled_ratio)
    ratio = ratio.masked_fill(beside, max(_RATIO_BESIDE, labelled_ratio))
    # 1 - r p = (1 + (1 - r) e^z) / (1 + e^z)
    as_unlabeled = as_background - F.softplus(values + torch.log1p(-ratio))
    costs = F.softplus(-values) * positive + as_background * background + as_unlabeled * unlabeled
    weights = positive + background + ratio * unlabeled
    return costs.sum(dim=1) / weights.sum(dim=1)


def _grow(mask: Bool[Tensor, "b *space"], reach: int) -> Bool[Tensor, "b *space"]:
    """Add the pixels at most so far from a mask, along y and x."""
    flat = mask.flatten(0, -3)[:, None].float()
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        flat = F.max_pool2d(flat, kernel, stride=1, padding=padding)
    return (flat > 0).view(mask.shape)


def spoco_loss(
    output: NetOutput,
    momentum_embedding: Float[Tensor, "b e *space"] | None,
    labels: Int[Tensor, "b *space"],
    settings: LossSettings,
    generators: Sequence[torch.Generator],
) -> LossTerms:
    """Evaluate all terms of a batch in float32; each is the mean over its images.

    Args:
        output: What f says of the first view.
        momentum_embedding: What g says of the second view; None leaves consistency out.
        labels: UNLABELED, BACKGROUND or an instance id, in the geometry of both views.
        settings: Margins and weights.
        generators: Draw the anchors of the consistency term, one for each image.
    """
    clusters = find_clusters(output.embedding.float(), labels)
    soft_squared, hinges = sum_for_instances(
        clusters, settings.two_sigma_squared, settings.delta_dist
    )
    nothing = clusters.squared.new_zeros(len(labels))
    rows = [
        pull(clusters, settings.delta_var),
        push(clusters, settings.delta_dist),
        norm(clusters),
        unlabeled_push(clusters, hinges),
        instance(clusters, soft_squared, settings.two_sigma_squared, settings.dice),
        nothing
        if momentum_embedding is None
        else _consistency_of_each(clusters, momentum_embedding, settings, generators),
        nothing
        if output.foreground is None
        else _foreground_of_each(output.foreground.float(), labels, clusters, settings),
    ]
    terms = torch.stack(rows).mean(dim=1)
    weighted = sum(w * term for w, term in zip(settings.weights, terms.unbind(), strict=True))
    return LossTerms._make([*terms.unbind(), weighted])


def _consistency_of_each(
    clusters: Clusters,
    momentum_embedding: Tensor,
    settings: LossSettings,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw the anchors of each image, and compare f and g around them."""
    f = clusters.embedding
    g = momentum_embedding.detach().float().flatten(2).transpose(1, 2).contiguous()
    anchors = [
        draw_anchors(one, twin, unlabeled, settings, generator)
        for one, twin, unlabeled, generator in zip(
            f.detach(), g, clusters.is_unlabeled, generators, strict=True
        )
    ]
    return consistency(f, g, anchors, settings)


def _foreground_of_each(
    logits: Tensor, labels: Tensor, clusters: Clusters, settings: LossSettings
) -> Tensor:
    """Evaluate the foreground term of each image."""
    terms = foreground(logits, labels)
    if settings.labelled_ratio is None:
        return terms
    from_some = foreground_from_some(logits, labels, settings.labelled_ratio)
    return torch.where(clusters.exists[:, 0], from_some, terms)


def _soft_mask(squared: Tensor, two_sigma_squared: float) -> Tensor:
    """exp(-d^2 / two_sigma_squared), but not so small that computing with it is slow."""
    return torch.exp((squared / -two_sigma_squared).clamp_min(_LEAST_EXPONENT))


def _mean(values: Tensor, which: Tensor) -> Tensor:  # (b, n), (b, n) -> (b)
    """Mean over the columns that count; zero where none does."""
    return (values * which).sum(dim=1) / which.sum(dim=1).clamp_min(1)


def _dice_loss(shared: Tensor, squared: Tensor, which: Tensor, reduction: str) -> Tensor:
    """1 - 2 sum(st) / (sum(s^2) + sum(t^2)) of each image, from these sums for each instance."""
    if reduction == "joint":
        shared, squared = ((v * which).sum(dim=1, keepdim=True) for v in (shared, squared))
        which = which.any(dim=1, keepdim=True)
    return _mean(1.0 - 2.0 * shared / squared.clamp_min(_TINY), which)


def iterate_terms(terms: LossTerms) -> Iterator[tuple[str, float]]:
    """Yield name and value of every term, for logs."""
    values = torch.stack([term.detach() for term in terms]).tolist()
    yield from zip(terms._fields, values, strict=True)
