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

The foreground head learns from labelled background, or, where a foreground prior is given, from
instances and unlabeled pixels (positive-unlabeled learning).

Memory: means are index-adds, distances come from one matrix product, and instances are taken
in chunks that are computed again in the backward pass, so nothing of the size
pixels x instances x E ever exists and at most pixels x chunk is alive at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spoco_zoo.labels import BACKGROUND, UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.net import NetOutput

_CHUNK = 32  # instances whose soft masks are alive at once
_TINY = 1e-6

Total = Callable[[Tensor], Tensor]  # a sum over the processes that share a batch


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


@dataclass(frozen=True)
class Clusters:
    """What one labelled image says of its embedding, with the pixels on one axis.

    `index` numbers every pixel's cluster in the order of `ids`, which are the sorted labels
    that occur, UNLABELED and BACKGROUND among them.
    """

    embedding: Tensor  # (p, e)
    ids: Tensor  # (k)
    index: Tensor  # (p)
    counts: Tensor  # (k)
    means: Tensor  # (k, e)

    @property
    def known(self) -> Tensor:
        """Positions in `ids` that pull and push act on."""
        return torch.nonzero(self.ids != UNLABELED)[:, 0]

    @property
    def instances(self) -> Tensor:
        """Positions in `ids` of instances."""
        return torch.nonzero(self.ids > BACKGROUND)[:, 0]


def find_clusters(embedding: Float[Tensor, "e *space"], labels: Int[Tensor, "*space"]) -> Clusters:
    """Collect the clusters of one image and their mean embeddings."""
    pixels = embedding.flatten(1).T
    ids, index, counts = torch.unique(labels.flatten(), return_inverse=True, return_counts=True)
    sums = pixels.new_zeros(len(ids), pixels.shape[1]).index_add(0, index, pixels)
    return Clusters(pixels, ids, index, counts, sums / counts[:, None])


def pull(clusters: Clusters, delta_var: float) -> Tensor:
    """Mean over clusters of the hinged squared distance to the own mean (eq. 1)."""
    known = clusters.known
    if not len(known):
        return clusters.embedding.sum() * 0.0
    offset = clusters.embedding - clusters.means[clusters.index]
    # the gradient of vector_norm at zero is zero, that of a square root is not
    hinge = torch.relu(torch.linalg.vector_norm(offset, dim=1) - delta_var).square()
    per_cluster = torch.zeros_like(clusters.means[:, 0]).index_add(0, clusters.index, hinge)
    return (per_cluster / clusters.counts)[known].mean()


def push(clusters: Clusters, delta_dist: float) -> Tensor:
    """Mean over ordered pairs of clusters of the hinged squared distance of means (eq. 2)."""
    means = clusters.means[clusters.known]
    if len(means) < 2:
        return clusters.embedding.sum() * 0.0
    first, second = torch.triu_indices(len(means), len(means), 1, device=means.device)
    distance: Tensor = torch.linalg.vector_norm(means[first] - means[second], dim=1)
    return torch.relu(2 * delta_dist - distance).square().mean()


def norm(clusters: Clusters) -> Tensor:
    """Mean length of all means, that of the unlabeled pixels too (eq. 3)."""
    length: Tensor = torch.linalg.vector_norm(clusters.means, dim=1)
    return length.mean()


def unlabeled_push(clusters: Clusters, delta_dist: float) -> Tensor:
    """Mean hinged squared distance of unlabeled pixels to each instance mean (eq. 5)."""
    unlabeled = clusters.embedding[clusters.ids[clusters.index] == UNLABELED]
    anchors = clusters.means[clusters.instances]
    if not len(unlabeled) or not len(anchors):
        return clusters.embedding.sum() * 0.0

    def hinges(pixels: Tensor, chunk: Tensor) -> Tensor:
        distance = _squared_distances(chunk, pixels).clamp_min(_TINY**2).sqrt()
        return torch.relu(delta_dist - distance).square().mean(dim=1)

    return torch.cat(
        [_recomputed(hinges, unlabeled, c) for c in torch.split(anchors, _CHUNK)]
    ).mean()


def instance(
    clusters: Clusters,
    two_sigma_squared: float,
    reduction: Literal["per_instance", "joint"] = "per_instance",
) -> Tensor:
    """Dice loss between the soft mask around each instance's mean and its true mask (eq. 4).

    `per_instance` is the mean of one Dice per instance, so that small ones count; `joint` is
    one Dice over all of them, as the published code computes it.
    """
    positions = clusters.instances
    if not len(positions):
        return clusters.embedding.sum() * 0.0

    def sums(pixels: Tensor, anchors: Tensor, chunk: Tensor) -> Tensor:
        soft = torch.exp(-_squared_distances(anchors, pixels) / two_sigma_squared)
        inside = clusters.index == chunk[:, None]
        return torch.stack([(soft * inside).sum(dim=1), soft.square().sum(dim=1)])

    anchors = clusters.means[positions]
    parts = [
        _recomputed(sums, clusters.embedding, a, p)
        for a, p in zip(torch.split(anchors, _CHUNK), torch.split(positions, _CHUNK), strict=True)
    ]
    shared, soft_squared = torch.cat(parts, dim=1)
    return _dice_loss(shared, soft_squared, clusters.counts[positions], reduction)


def consistency(
    pair: tuple[Float[Tensor, "e *space"], Float[Tensor, "e *space"]],
    labels: Int[Tensor, "*space"],
    settings: LossSettings,
    generator: torch.Generator,
) -> Tensor:
    """Dice loss between the soft masks of f and g around unlabeled anchors (eq. 6).

    Anchors are drawn from the unlabeled pixels that no earlier anchor covers in either space,
    until these are fewer than `volume_ratio` of the image or `max_anchors` are drawn.
    No gradient reaches g.
    """
    f, g = pair[0].flatten(1).T, pair[1].detach().flatten(1).T
    chosen = _draw_anchors(f.detach(), g, labels.flatten() == UNLABELED, settings, generator)
    if not len(chosen):
        return f.sum() * 0.0
    width = settings.two_sigma_squared

    def sums(pixels: Tensor, anchors_f: Tensor, anchors_g: Tensor) -> Tensor:
        soft_f = torch.exp(-_squared_distances(anchors_f, pixels) / width)
        soft_g = torch.exp(-_squared_distances(anchors_g, g) / width)
        return torch.stack(
            [(soft_f * soft_g).sum(1), soft_f.square().sum(1), soft_g.square().sum(1)]
        )

    parts = [_recomputed(sums, f, f[part], g[part]) for part in torch.split(chosen, _CHUNK)]
    shared, squared_f, squared_g = torch.cat(parts, dim=1)
    return _dice_loss(shared, squared_f, squared_g, settings.dice)


def foreground(logit: Float[Tensor, "1 *space"], labels: Int[Tensor, "*space"]) -> Tensor:
    """Cross-entropy and Dice of the foreground head, on pixels whose state is known.

    Without labelled background every known pixel is an instance and the answer would be
    "everywhere": the term is then zero.
    """
    known = labels != UNLABELED
    truth = (labels > BACKGROUND)[known].to(logit.dtype)
    if not known.any() or bool((labels[known] != BACKGROUND).all()):
        return logit.sum() * 0.0
    values = logit[0][known]
    probability = torch.sigmoid(values)
    dice = _dice_loss(
        (probability * truth).sum()[None],
        probability.square().sum()[None],
        truth.sum()[None],
        "joint",
    )
    # an image without any instance has no Dice
    return F.binary_cross_entropy_with_logits(values, truth) + dice * truth.any()


def positive_unlabeled_risk(
    logit: Float[Tensor, "b 1 *space"],
    labels: Int[Tensor, "b *space"],
    prior: float,
    total: Total = lambda sums: sums,
) -> Tensor:
    """Non-negative risk of the foreground head, from positives and unlabeled pixels.

    Labelled, unlabeled and known background pixels are one sample: an unlabeled pixel is one
    whose label was left out, so the labelled positives are missing among the unlabeled. With n
    pixels, of which P are labelled positives, U unlabeled and B known background, c = |P| / n,
    pi the part that is foreground, and l+ and l- the loss of a pixel as foreground and as
    background, the positives among the unlabeled are the part pi - c of all pixels, and

        risk = pi mean_P(l+) + sum_B(l-) / n + max(0, sum_U(l-) / n - (pi - c) mean_P(l-))

    Without the maximum its expectation is the risk of complete labels, if labelled positives
    look like the others: whole instances must have been chosen without regard to their looks.
    It is eq. 6 of Kiryo et al. 2017 ("Positive-Unlabeled Learning with Non-Negative Risk
    Estimator"), where the unlabeled are a second sample of which the part pi is positive,
    brought to one sample as by Mielniczuk and Wawrzeńczyk 2025 ("Single-sample versus
    case-control sampling scheme for Positive Unlabeled data"). The maximum is taken of the
    unlabeled negatives alone, whose loss cannot be below zero; where it acts they give no
    gradient. The ascent of algorithm 1 is left out: it made no difference on simulated nuclei.

    The loss of a pixel is the sigmoid loss of Kiryo et al.: it is bounded, so that few labelled
    instances cannot outweigh the rest. The images are one sample, since pi holds for their mean
    and not for each: a maximum per image would count those with more foreground as background.

    Args:
        logit: Of belonging to any instance.
        labels: UNLABELED, BACKGROUND or an instance id.
        prior: pi, the part of all these pixels that is foreground. The labels bound it: it is
            at least c, and at most 1 without the part of known background.
        total: Sums over all processes whose images are part of the sample.

    Returns:
        A scalar from 0 to 2. Without any positive pixel nothing tells what the unlabeled are,
        and it is the part of the known background alone, zero if there is none.
    """
    values, states = logit.flatten(), labels.flatten()
    positive, background = states > BACKGROUND, states == BACKGROUND
    as_foreground, as_background = torch.sigmoid(-values), torch.sigmoid(values)
    # float64: counts of pixels are then exact
    counts = total(
        torch.stack([positive.sum(), background.sum(), torch.ones_like(states).sum()]).double()
    )
    sums = total(
        torch.stack(
            [
                as_foreground[positive].sum(),
                as_background[positive].sum(),
                as_background[background].sum(),
                as_background[states == UNLABELED].sum(),
            ]
        )
    )
    numbers: list[float] = counts.tolist()
    positives, backgrounds, n = numbers[0], numbers[1], max(numbers[2], 1.0)
    known_negatives = sums[2] / n
    if not positives:
        return known_negatives
    labelled = positives / n
    foreground_part = min(max(prior, labelled), 1.0 - backgrounds / n)
    hidden = (foreground_part - labelled) * sums[1] / positives
    unlabeled_negatives = sums[3] / n - hidden
    risk = foreground_part * sums[0] / positives + known_negatives
    return risk + unlabeled_negatives.clamp_min(0.0)


def spoco_loss(
    output: NetOutput,
    momentum_embedding: Float[Tensor, "b e *space"] | None,
    labels: Int[Tensor, "b *space"],
    settings: LossSettings,
    generators: Sequence[torch.Generator],
    total: Total = lambda sums: sums,
) -> LossTerms:
    """Evaluate all terms of a batch in float32; each is the mean over its images.

    With a foreground prior, the images that have unlabeled pixels share one foreground term.

    Args:
        output: What f says of the first view.
        momentum_embedding: What g says of the second view; None leaves consistency out.
        labels: UNLABELED, BACKGROUND or an instance id, in the geometry of both views.
        settings: Margins and weights.
        generators: Draw the anchors of the consistency term, one for each image.
        total: Sums over all processes that share the batch; it is called as often in each.
    """
    embedding = output.embedding.float()
    foreground_terms = _foreground_of_each(
        output.foreground, labels, settings.foreground_prior, total
    )
    rows = []
    for number, image_labels in enumerate(labels):
        clusters = find_clusters(embedding[number], image_labels)
        nothing = embedding.new_zeros(())
        rows.append(
            [
                pull(clusters, settings.delta_var),
                push(clusters, settings.delta_dist),
                norm(clusters),
                unlabeled_push(clusters, settings.delta_dist),
                instance(clusters, settings.two_sigma_squared, settings.dice),
                nothing
                if momentum_embedding is None
                else consistency(
                    (embedding[number], momentum_embedding[number].float()),
                    image_labels,
                    settings,
                    generators[number],
                ),
                nothing if foreground_terms is None else foreground_terms[number],
            ]
        )
    terms = torch.stack([torch.stack(row) for row in rows]).mean(dim=0)
    weights = terms.new_tensor(settings.weights)
    return LossTerms._make([*terms.unbind(), (terms * weights).sum()])


def _foreground_of_each(
    logits: Tensor | None, labels: Tensor, prior: float | None, total: Total
) -> list[Tensor] | None:  # (b, 1, *space), (b, *space)
    """Evaluate the foreground term of each image; None without a head."""
    if logits is None:
        return None
    logits = logits.float()
    terms = [foreground(*image) for image in zip(logits, labels, strict=True)]
    sparse = (labels == UNLABELED).flatten(1).any(dim=1)
    if prior is None:
        return terms
    # other processes may have sparse images where this one has none
    shared = positive_unlabeled_risk(logits[sparse], labels[sparse], prior, total)
    pairs = zip(sparse.tolist(), terms, strict=True)
    # where it does not count its gradient is zero, but others wait for it
    return [shared if s else term + 0.0 * shared for s, term in pairs]


def _draw_anchors(
    f: Tensor,
    g: Tensor,
    unlabeled: Tensor,
    settings: LossSettings,
    generator: torch.Generator,
) -> Tensor:
    """Pick pixel numbers of anchors until nearly no unlabeled pixel is left uncovered."""
    chosen: list[Tensor] = []
    rest = unlabeled.clone()
    enough = settings.volume_ratio * len(rest)
    squared = settings.delta_var**2
    with torch.no_grad():
        for _ in range(settings.max_anchors):
            candidates = torch.nonzero(rest)[:, 0]
            if len(candidates) < enough or not len(candidates):
                break
            draw = torch.rand((), generator=generator).item()  # the same on every device
            pixel = candidates[min(int(draw * len(candidates)), len(candidates) - 1)]
            chosen.append(pixel)
            for embedding in (f, g):
                rest &= (embedding - embedding[pixel]).square().sum(dim=1) >= squared
            rest[pixel] = False
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long, device=f.device)


def _squared_distances(anchors: Tensor, pixels: Tensor) -> Tensor:  # (a, e), (p, e) -> (a, p)
    """Squared distances by one matrix product, around a common centre for precision."""
    centre = anchors.detach().mean(dim=0)
    a, p = anchors - centre, pixels - centre
    lengths = a.square().sum(dim=1)[:, None] + p.square().sum(dim=1)
    return (lengths - 2 * a @ p.T).clamp_min(0.0)


def _dice_loss(
    shared: Tensor, first_squared: Tensor, second_squared: Tensor, reduction: str
) -> Tensor:
    """1 - 2 sum(st) / (sum(s^2) + sum(t^2)), from its sums, one of each an instance."""
    both = first_squared + second_squared
    if reduction == "joint":
        return 1.0 - 2.0 * shared.sum() / both.sum().clamp_min(_TINY)
    return (1.0 - 2.0 * shared / both.clamp_min(_TINY)).mean()


def _recomputed(function, *arguments: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Call a function whose intermediate results are computed again in the backward pass."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return result


def iterate_terms(terms: LossTerms) -> Iterator[tuple[str, float]]:
    """Yield name and value of every term, for logs."""
    for name, value in zip(terms._fields, terms, strict=True):
        yield name, float(value.detach())
