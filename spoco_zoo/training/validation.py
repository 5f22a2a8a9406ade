"""Validation by what counts in the end: cluster the validation images and score the instances.

Also here: the numbers of the recipe (bandwidth, least size, foreground rule) are not guessed
but fitted, by trying them on the embeddings of the validation images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spoco_zoo.clustering import cluster
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Head, Prototype, find_core, find_foreground
from spoco_zoo.metrics import Summary, drop_unlabeled, mean_scores, score
from spoco_zoo.recipe import Hdbscan, Recipe
from spoco_zoo.spec import Spec
from spoco_zoo.training.loss import BACKGROUND, UNLABELED
from spoco_zoo.training.net import UNet
from spoco_zoo.training.samples import Sample

# a prototype is believed when it tells background from instances this well on validation
_LEAST_AGREEMENT = 0.7
_MOST_PIXELS = 200_000  # of the sample that a prototype is found on


@dataclass(frozen=True, eq=False)
class Embedded:
    """A validation image as the networks see it."""

    embedding: np.ndarray  # (e, *space)
    momentum_embedding: np.ndarray | None  # (e, *space)
    probability: np.ndarray | None  # (*space), of the foreground head
    states: np.ndarray  # (*space), labels in three states


@dataclass(frozen=True)
class Fitted:
    """The recipe that did best on the validation images, and how it scored there."""

    recipe: Recipe
    scores: dict[str, float]


@torch.no_grad()
def embed_all(
    net: UNet, samples: Iterable[Sample], device: torch.device, momentum_net: UNet | None = None
) -> list[Embedded]:
    """Embed whole images in float32; the networks must be in evaluation mode."""
    embedded = []
    for sample in samples:
        image = torch.from_numpy(sample.image)[None].to(device)
        output = net.embed(image)
        g = None
        if momentum_net is not None:
            g = momentum_net.embed(image).embedding[0].cpu().numpy()
        logit = output.foreground
        embedded.append(
            Embedded(
                output.embedding[0].cpu().numpy(),
                g,
                None if logit is None else torch.sigmoid(logit[0, 0]).cpu().numpy(),
                sample.labels,
            )
        )
    return embedded


def start_recipe(spec: Spec, embedded: Sequence[Embedded]) -> Recipe:
    """Make a recipe from the settings of a spec, before anything is fitted.

    Raises:
        SettingError: The spec asks for a foreground rule that these images cannot give.
    """
    return Recipe(
        clustering=spec.clustering_method,
        foreground=_foreground_rule(spec, embedded),
        min_size=spec.clustering.min_size,
        fill_reach=spec.clustering.fill_reach,
    )


def fit_recipe(spec: Spec, embedded: Sequence[Embedded]) -> Fitted:
    """Try values around those of the spec, one setting after the other; keep what scores best.

    The goal is the pooled AP, averaged over the thresholds 0.50 to 0.95. Ties stay with the
    value of the spec.
    """
    recipe = start_recipe(spec, embedded)
    best = score_recipe(recipe, embedded)
    if spec.clustering.fit:
        for name, values in _candidates(recipe, embedded).items():
            start = recipe
            for value in values:
                changed = _change(start, name, value)
                summary = score_recipe(changed, embedded)
                if goal(summary) > goal(best):
                    recipe, best = changed, summary
    scores = {
        "ap50": best.pooled_ap[0],
        "mean_ap": goal(best),
        "sbd": best.sbd,
        "count_difference": best.count_difference,
    }
    return Fitted(recipe, {name: round(float(value), 4) for name, value in scores.items()})


def score_recipe(recipe: Recipe, embedded: Sequence[Embedded]) -> Summary:
    """Make instances of all validation images and score them.

    Where 0 means unlabeled, predicted instances that lie on unlabeled pixels are left out: they
    may be right.
    """
    scores = []
    for item in embedded:
        foreground = find_foreground(item.embedding, recipe.foreground, item.probability)
        core = find_core(foreground, recipe.foreground, item.probability)
        labels = cluster(item.embedding, foreground, recipe, item.momentum_embedding, core)
        truth = np.maximum(item.states, 0).astype(np.uint32)
        if (item.states == UNLABELED).any():
            labels = drop_unlabeled(labels, truth)
        scores.append(score(labels, truth))
    return mean_scores(scores)


def goal(summary: Summary) -> float:
    """The one number that validation compares: pooled AP, mean over the thresholds."""
    return float(np.mean(summary.pooled_ap))


def _foreground_rule(spec: Spec, embedded: Sequence[Embedded]) -> Head | Prototype | Everywhere:
    wish = spec.clustering.foreground
    if wish == "head" or (wish == "auto" and spec.has_foreground_head):
        return Head()
    if wish == "everywhere":
        return Everywhere()
    prototype = _find_prototype(spec, embedded)
    if prototype is not None:
        return prototype
    if wish == "prototype":
        raise SettingError(
            "clustering.foreground is prototype, but no embedding stands for background on the "
            "validation images: label background there, or use everywhere"
        )
    return Everywhere()


def _find_prototype(spec: Spec, embedded: Sequence[Embedded]) -> Prototype | None:
    """Look for one embedding that all background shares; None unless validation confirms it."""
    embeddings = np.concatenate([e.embedding.reshape(len(e.embedding), -1) for e in embedded], 1)
    states = np.concatenate([e.states.ravel() for e in embedded])
    known = np.flatnonzero(states != UNLABELED)
    known = known[:: -(-len(known) // _MOST_PIXELS) or 1]
    background = states[known] == BACKGROUND
    if not background.any() or background.all():
        return None
    points = embeddings[:, known]
    center = np.median(points[:, background], axis=1)
    distance = np.linalg.norm(points - center[:, None], axis=0)
    best, best_radius = 0.0, 0.0
    for radius in np.linspace(0.5, 2.0, 7) * spec.loss.delta_dist / 2:
        found = distance > radius
        right = (found & ~background).sum()
        left = (~found & background).sum()
        # of both classes: where instances fill the image, "everywhere" has a high Dice already
        dice = min(
            2 * right / (found.sum() + (~background).sum()),
            2 * left / ((~found).sum() + background.sum()),
        )
        if dice > best:
            best, best_radius = float(dice), float(radius)
    if best < _LEAST_AGREEMENT:
        return None
    return Prototype(center=tuple(float(f"{c:.6g}") for c in center), radius=best_radius)


def _candidates(recipe: Recipe, embedded: Sequence[Embedded]) -> dict[str, list[float] | list[int]]:
    """Values to try per setting, in the order in which they are fitted."""
    sizes = [
        n
        for item in embedded
        for n in np.unique(item.states, return_counts=True)[1][np.unique(item.states) > BACKGROUND]
    ]
    candidates: dict[str, list[float] | list[int]] = {}
    match recipe.foreground:
        case Head():
            candidates["core_threshold"] = [0.6, 0.7, 0.8, 0.9]
            candidates["threshold"] = [0.2, 0.3, 0.4]
        case Prototype(radius=radius):
            candidates["radius"] = [radius * f for f in (0.8, 1.25)]
    if isinstance(recipe.clustering, Hdbscan):
        candidates["epsilon"] = [recipe.clustering.epsilon * f for f in (0.5, 1.5, 2.0)]
    else:
        candidates["bandwidth"] = [
            recipe.clustering.bandwidth * f for f in (0.5, 0.75, 1.25, 1.5, 2.0)
        ]
    if sizes:
        # below the smallest labelled instances there is only dirt
        candidates["min_size"] = [
            int(v) for v in np.unique(np.percentile(sizes, [0.5, 2, 5]) * 0.75)
        ]
    return candidates


def _change(recipe: Recipe, name: str, value: float | int) -> Recipe:
    """Set one number of a recipe, wherever it stands."""
    if name == "min_size":
        return recipe.model_copy(update={name: int(value)})
    part = "foreground" if name in ("threshold", "core_threshold", "radius") else "clustering"
    changed = getattr(recipe, part).model_copy(update={name: value})
    return recipe.model_copy(update={part: changed})
