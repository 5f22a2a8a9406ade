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

Every function takes a batch and gives one number for each image. What concerns pixels is summed
in `clusters`, for the clusters of all images in one table, (b, n): unlabeled pixels, background,
instance 1, instance 2 and so on, with a count of zero where an image has none. The device is
waited for once, in `find_clusters`, and while anchors are drawn.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from spoco_zoo.labels import BACKGROUND, UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.anchors import draw_anchors
from spoco_zoo.training.clusters import INSTANCES, Clusters, find_clusters
from spoco_zoo.training.net import NetOutput
from spoco_zoo.training.pairs import sum_over_twins

_TINY = 1e-6
_KNOWN = slice(1, None)  # columns of the clusters that pull and push act on
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


def pull(clusters: Clusters) -> Float[Tensor, " b"]:
    """Mean over clusters of the hinged squared distance to the own mean (eq. 1)."""
    means = clusters.pull_hinges / clusters.counts.clamp_min(1)
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


def unlabeled_push(clusters: Clusters) -> Float[Tensor, " b"]:
    """Mean hinged squared distance of unlabeled pixels to each instance mean (eq. 5)."""
    unlabeled = clusters.counts[:, :1].clamp_min(1)
    return _mean(clusters.push_hinges / unlabeled, clusters.exists[:, INSTANCES])


def instance(
    clusters: Clusters, reduction: Literal["per_instance", "joint"] = "per_instance"
) -> Float[Tensor, " b"]:
    """Dice loss between the soft mask around each instance's mean and its true mask (eq. 4).

    `per_instance` is the mean of one Dice per instance, so that small ones count; `joint` is
    one Dice over all of them, as the published code computes it.
    """
    shared, counts, exists = (
        table[:, INSTANCES] for table in (clusters.shared, clusters.counts, clusters.exists)
    )
    return _dice_loss(shared, clusters.soft_squares + counts, exists, reduction)


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
    clusters = find_clusters(output.embedding.float(), labels, settings)
    nothing = clusters.counts.new_zeros(len(labels))
    rows = [
        pull(clusters),
        push(clusters, settings.delta_dist),
        norm(clusters),
        unlabeled_push(clusters),
        instance(clusters, settings.dice),
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
