"""Recipes are not guessed but fitted: cluster labelled images, score the instances, keep the best.

Foreground rule, method, radius and least size are tried on the embeddings of images whose labels
are known: those of validation after a training, or any that a user has for a package of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spoco_zoo.clustering import cluster
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import (
    Everywhere,
    External,
    Head,
    Prototype,
    Rule,
    find_core,
    find_foreground,
)
from spoco_zoo.labels import BACKGROUND, UNLABELED, Labels
from spoco_zoo.metrics import Scores, Summary, drop_unlabeled, mean_scores, score
from spoco_zoo.recipe import Clustering, Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.spec import Spec

# a prototype is believed when it tells background from instances this well on validation
_LEAST_AGREEMENT = 0.7
_MOST_PIXELS = 200_000  # of the sample that a prototype is found on
_WORTH = 0.005  # of AP: HDBSCAN takes longer, and consistency runs two networks

_HOPELESS = 0.2  # of AP behind the best: no number of the recipe makes up for it

_Change = tuple[str, Sequence[float | int]]  # a number of the recipe, and values to try


@dataclass(frozen=True, eq=False)
class Embedded:
    """A labelled image as the networks see it."""

    embedding: np.ndarray  # (e, *space)
    momentum_embedding: np.ndarray | None  # (e, *space)
    probability: np.ndarray | None  # (*space), of the foreground head
    states: np.ndarray  # (*space), labels in three states


class Trial(NamedTuple):
    """A recipe that was tried, and its pooled AP, averaged over the thresholds."""

    recipe: Recipe
    score: float


@dataclass(frozen=True)
class Fitted:
    """The recipe that did best on the validation images, how it scored there, and the others."""

    recipe: Recipe
    scores: dict[str, float]
    trials: tuple[Trial, ...]


def start_recipe(spec: Spec, embedded: Sequence[Embedded]) -> Recipe:
    """Make a recipe from the settings of a spec, before anything is fitted.

    Raises:
        SettingError: The spec asks for a foreground rule that these images cannot give.
    """
    return Recipe(
        clustering=spec.clustering_method,
        foreground=_foreground_rules(spec, embedded)[0],
        min_size=spec.clustering.min_size,
        fill_reach=spec.clustering.fill_reach,
    )


def fit_recipe(spec: Spec, embedded: Sequence[Embedded]) -> Fitted:
    """Try foreground rules, methods and numbers, one after the other; keep what scores best.

    What the spec chooses is not tried otherwise: a rule or a method that it names is kept, and
    its numbers are fitted. The goal is the pooled AP, averaged over the thresholds 0.50 to 0.95.
    Ties stay with the spec, and a method must be worth its cost.

    Raises:
        SettingError: The spec asks for a foreground rule that these images cannot give.
    """
    search = _Search(start_recipe(spec, embedded), embedded)
    if spec.clustering.fit:
        for rule in _foreground_rules(spec, embedded):
            start = search.best.recipe.model_copy(update={"foreground": rule})
            search.try_changes(start, *_foreground_numbers(rule))
        search.try_changes(search.best.recipe, *_clustering_numbers(search.best.recipe.clustering))
        if spec.clustering.method is None:
            for method in _other_methods(search.best.recipe.clustering, spec, embedded):
                start = search.best.recipe.model_copy(update={"clustering": method})
                search.try_changes(start, *_clustering_numbers(method), least_gain=_WORTH)
        # what is best for one number depends on the others
        search.try_changes(search.best.recipe, *_foreground_numbers(search.best.recipe.foreground))
        search.try_changes(search.best.recipe, *_joins(search.best.recipe.clustering))
        if spec.data.boundary_width:
            search.try_changes(search.best.recipe, *_fillings(search.best.recipe.foreground))
        search.try_changes(search.best.recipe, _least_sizes(embedded))
    return Fitted(search.best.recipe, main_scores(search.summary), tuple(search.trials))


def score_recipe(recipe: Recipe, embedded: Sequence[Embedded]) -> Summary:
    """Make instances of all validation images and score them, as `score_instances` does."""
    return mean_scores([score_instances(find_instances(recipe, e), e) for e in embedded])


def find_instances(recipe: Recipe, item: Embedded) -> Labels:
    """Make the instances of one image by a recipe."""
    # where people give masks, the truth stands for them
    mask = item.states != BACKGROUND if isinstance(recipe.foreground, External) else None
    foreground = find_foreground(item.embedding, recipe.foreground, item.probability, mask)
    core = find_core(foreground, recipe.foreground, item.probability, mask)
    return cluster(item.embedding, foreground, recipe, item.momentum_embedding, core)


def score_instances(found: Labels, item: Embedded) -> Scores:
    """Score the instances of one image.

    Where 0 means unlabeled, predicted instances that lie on unlabeled pixels are left out: they
    may be right.
    """
    truth, found = comparable(found, item)
    return score(found, truth)


def comparable(found: Labels, item: Embedded) -> tuple[Labels, Labels]:
    """Give the truth, and of what was found the part that the truth can judge."""
    truth = np.maximum(item.states, 0).astype(np.uint32)
    if (item.states == UNLABELED).any():
        found = drop_unlabeled(found, truth)
    return truth, found


def goal(summary: Summary) -> float:
    """The one number that validation compares: pooled AP, mean over the thresholds."""
    return float(np.mean(summary.pooled_ap))


def main_scores(summary: Summary) -> dict[str, float]:
    """The scores that a run states: AP over all objects, SBD and |DiC| as means of images."""
    scores = {
        "ap50": summary.pooled_ap[0],
        "mean_ap": goal(summary),
        "sbd": summary.sbd,
        "count_difference": summary.count_difference,
    }
    return {name: round(float(value), 4) for name, value in scores.items()}


class _Search:
    """The best recipe so far, and all that were tried."""

    def __init__(self, start: Recipe, embedded: Sequence[Embedded]) -> None:
        self._embedded = embedded
        self.summary = score_recipe(start, embedded)
        self.best = Trial(start, goal(self.summary))
        self.trials = [self.best]

    def try_out(self, recipe: Recipe, least_gain: float = 0.0) -> float:
        """Score a recipe; it becomes the best where it gains more than asked."""
        known = {trial.recipe: trial.score for trial in self.trials}
        if recipe in known:
            return known[recipe]
        summary = score_recipe(recipe, self._embedded)
        trial = Trial(recipe, goal(summary))
        self.trials.append(trial)
        # a method that was worth its cost once is measured by its score from then on
        if recipe.clustering.method == self.best.recipe.clustering.method:
            least_gain = 0.0
        if trial.score > self.best.score + least_gain:
            self.best, self.summary = trial, summary
        return trial.score

    def try_changes(self, start: Recipe, *changes: _Change, least_gain: float = 0.0) -> None:
        """Change one number after the other, each time going on from the best of this series."""
        series, score = start, self.try_out(start, least_gain)
        if score < self.best.score - _HOPELESS:
            return
        for name, values in changes:
            for value in values:
                changed = _set(start, name, value)
                found = self.try_out(changed, least_gain)
                if found > score:
                    series, score = changed, found
            start = series


def _foreground_rules(spec: Spec, embedded: Sequence[Embedded]) -> list[Rule]:
    """Rules that may be tried, the likeliest first; one where the spec says which."""
    wish = spec.clustering.foreground
    # where training parted instances by boundaries, one gap in a boundary would join them again
    head = Head(threshold=0.1, core_threshold=0.9) if spec.data.boundary_width else Head()
    if wish == "head":
        return [head]
    if wish == "mask":
        return [External()]
    if wish == "everywhere":
        return [Everywhere()]
    prototype = _find_prototype(spec, embedded)
    if wish == "prototype":
        if prototype is None:
            raise SettingError(
                "clustering.foreground is prototype, but no embedding stands for background on "
                "the validation images: label background there, or use everywhere"
            )
        return [prototype]
    rules: list[Rule] = [head] if spec.has_foreground_head else []
    return [*rules, *([] if prototype is None else [prototype]), Everywhere()]


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


def _foreground_numbers(rule: Rule) -> list[_Change]:
    match rule:
        case Head():
            return [("core_threshold", [0.6, 0.7, 0.8, 0.9]), ("threshold", [0.2, 0.3, 0.4])]
        case Prototype(radius=radius):
            return [("radius", [radius * f for f in (0.8, 1.25)])]
        case _:
            return []


def _fillings(rule: Rule) -> list[_Change]:
    """How far instances grow into the boundaries that training took from them."""
    if not isinstance(rule, Head):
        return []
    return [
        ("threshold", [0.05, 0.01]),
        ("fill_reach", [8, 12]),
        ("core_threshold", [0.8, 0.9, 0.95]),
    ]


def _clustering_numbers(method: Clustering) -> list[_Change]:
    match method:
        case MeanShift(bandwidth=bandwidth):
            return [("bandwidth", _around(bandwidth))]
        case Hdbscan(epsilon=epsilon):
            return [("epsilon", _around(epsilon))]
        case Consistency(bandwidth=bandwidth):
            return [("bandwidth", _around(bandwidth)), ("iou_threshold", [0.4, 0.5, 0.7])]


def _joins(method: Clustering) -> list[_Change]:
    """Distances at which the merging variant of mean-shift may join."""
    if not isinstance(method, MeanShift):
        return []
    return [("merge_distance", [method.bandwidth * f for f in (1.25, 1.5)])]


def _around(radius: float) -> list[float]:
    # up more than down: a margin is a promise of the loss, and networks keep it only in part
    return [radius * f for f in (0.5, 0.75, 1.25, 1.5, 2.0, 3.0, 4.0)]


def _other_methods(found: Clustering, spec: Spec, embedded: Sequence[Embedded]) -> list[Clustering]:
    """Methods to try where the spec leaves the choice, with the radius that was found."""
    radius = found.epsilon if isinstance(found, Hdbscan) else found.bandwidth
    methods: list[Clustering] = [Hdbscan(epsilon=radius)]
    if all(item.momentum_embedding is not None for item in embedded):
        methods.append(Consistency(bandwidth=radius, seed=spec.schedule.seed))
    return methods


def _least_sizes(embedded: Sequence[Embedded]) -> _Change:
    """Below the smallest labelled instances there is only dirt."""
    sizes = [
        n
        for item in embedded
        for n in np.unique(item.states, return_counts=True)[1][np.unique(item.states) > BACKGROUND]
    ]
    if not sizes:
        return "min_size", []
    return "min_size", [int(v) for v in np.unique(np.percentile(sizes, [0.5, 2, 5]) * 0.75)]


def _set(recipe: Recipe, name: str, value: float | int) -> Recipe:
    """Set one number of a recipe, wherever it stands."""
    if name in ("min_size", "fill_reach"):
        return recipe.model_copy(update={name: int(value)})
    part = "foreground" if name in ("threshold", "core_threshold", "radius") else "clustering"
    changed = getattr(recipe, part).model_copy(update={name: value})
    return recipe.model_copy(update={part: changed})
