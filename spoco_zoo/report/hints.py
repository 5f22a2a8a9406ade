"""What to try next, each piece of advice with the numbers that it rests on."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from spoco_zoo.examples import Examples
from spoco_zoo.foreground import External, Head
from spoco_zoo.mistakes import Kind
from spoco_zoo.recipe import Hdbscan, Recipe
from spoco_zoo.report.reading import Run
from spoco_zoo.words import count, percent

_OFTEN = 0.03  # part of the true instances from which on a mistake is worth advice
_LIMIT = 0.05  # of AP: less is within the luck of a run
_RISE = 0.02  # of AP, over the last third of a training
_FEW = 50  # instances of validation
_LEAST = 4  # scores or images to compare with each other


class Hint(NamedTuple):
    """A heading, and the advice with its numbers."""

    title: str
    text: str


def find_hints(run: Run) -> list[Hint]:
    """List what stands out, what costs most first."""
    return [
        *_of_length(run),
        *_of_examples(run),
        *_of_fit(run),
        *_of_course(run),
        *_of_validation(run),
    ]


def _of_length(run: Run) -> Iterator[Hint]:
    warmup, planned = run.spec.schedule.warmup_steps, run.spec.schedule.steps
    if planned <= run.step < warmup:
        yield Hint(
            "The training ended as it began",
            f"The learning rate rises for {count(warmup, 'step')} (schedule.warmup_steps), and "
            f"{count(planned, 'step')} were taken: all else on this page says little. Train with "
            "more --steps.",
        )


def _of_examples(run: Run) -> Iterator[Hint]:
    examples, fitted = run.examples, run.fitted
    if examples is None or fitted is None:
        return
    yield from _of_foreground(run, examples, fitted.recipe)
    kinds = examples.count()
    total = sum(image.true for image in examples.images)
    for kind in sorted(_ADVICE, key=lambda kind: -kinds[kind]):
        if total and kinds[kind] >= max(_OFTEN * total, 2):
            title, told, advise = _ADVICE[kind]
            base = (
                f"{kinds[kind]:,} {told} {percent(kinds[kind], total)} of the {total:,} true ones."
            )
            yield Hint(title, f"{base} {advise(run, fitted.recipe)}")
    yield from _of_spread(examples)


def _of_foreground(run: Run, examples: Examples, recipe: Recipe) -> Iterator[Hint]:
    known, score = examples.mean_ap_true_foreground, examples.mean_ap
    if known is None or isinstance(recipe.foreground, External):
        return
    numbers = (
        f"With the true foreground the same recipe scores {known:.2f} instead of {score:.2f} "
        "(mean AP)."
    )
    if known - score >= _LIMIT:
        label = "label some background, or train with --labelled-ratio"
        if run.spec.loss.labelled_ratio is not None:
            label = "label some background, or more instances"
        if run.spec.data.label_zero == "background":
            label = "check that labels end at the edges of the objects, label more images"
        elif run.spec.data.boundary_width:
            label = "train longer, or label more images"
        yield Hint(
            "Foreground is the limit",
            f"{numbers} Better foreground helps more than any number of the clustering: {label}, "
            "or give masks with --mask.",
        )
    elif known < 0.8:
        yield Hint(
            "Foreground is not the limit",
            f"{numbers} What costs is telling instances apart, so more labelled instances that "
            "touch each other, or a longer training, help more than labelled background.",
        )


def _of_spread(examples: Examples) -> Iterator[Hint]:
    images = sorted(examples.images, key=lambda image: image.ap50)
    if len(images) < _LEAST:
        return
    middle = float(np.median([image.ap50 for image in images]))
    hard = [image for image in images if image.ap50 < middle / 2]
    if hard:
        worst = hard[0]
        yield Hint(
            "Some images are harder than others",
            f"{worst.name} scores {worst.ap50:.2f} where half of the images score {middle:.2f} "
            f"or more (AP at IoU 0.50), and {count(len(hard), 'image')} of {len(images)} less "
            "than half of that. If they are of a kind of their own, label more like them.",
        )


def _of_fit(run: Run) -> Iterator[Hint]:
    if run.fitted is None:
        return
    flag, best = _radius(run.fitted.recipe)
    method = run.fitted.recipe.clustering.method
    tried = {_radius(t)[1] for t in run.fitted.tried if t.clustering.method == method}
    if len(tried) > 1 and best >= max(tried):
        margin = run.spec.loss.delta_var
        yield Hint(
            "The largest radius did best",
            f"No larger {flag} than {best:g} was tried, and training draws instances together to "
            f"{margin:g} (loss.delta_var): try a larger one, and train longer.",
        )


def _of_course(run: Run) -> Iterator[Hint]:
    steps, scores = run.scored
    if len(scores) < _LEAST:
        return
    best = int(scores.argmax())
    before = scores[: max(2 * len(scores) // 3, 1)].max()
    if best >= len(scores) - 2 and scores[best] - before >= _RISE:
        planned = run.spec.schedule.steps
        advice = f"A run with --steps {2 * planned} may well be better."
        if run.step < planned:
            advice = "It is worth finishing: train --resume."
        yield Hint(
            "The score was still rising",
            f"From {before:.3f} in the first two thirds to {scores[best]:.3f} at step "
            f"{steps[best]:,.0f}. {advice}",
        )
    elif scores[best] - scores[-1] >= _LIMIT and best < 2 * len(scores) / 3:
        yield Hint(
            "The score fell again",
            f"From {scores[best]:.3f} at step {steps[best]:,.0f} to {scores[-1]:.3f} at step "
            f"{steps[-1]:,.0f}. The better of both is kept. More labelled instances or more "
            "augmentation hold off the fall; more steps do not.",
        )


def _of_validation(run: Run) -> Iterator[Hint]:
    images, instances = len(run.instances.get("val", {})), run.count_instances("val")
    if 0 < instances < _FEW:
        yield Hint(
            "The score is uncertain",
            f"Validation has {count(instances, 'instance')} in {count(images, 'image')}: one "
            f"instance more or less moves AP by {1 / instances:.3f}. Label more of them before "
            "comparing runs.",
        )


def _radius(recipe: Recipe) -> tuple[str, float]:
    """The setting that decides how far a cluster reaches, and its value."""
    method = recipe.clustering
    if isinstance(method, Hdbscan):
        return "epsilon of the recipe", method.epsilon
    return "--bandwidth", method.bandwidth


def _join_more(run: Run, recipe: Recipe) -> str:
    flag, radius = _radius(recipe)
    crop = " by ".join(map(str, run.spec.schedule.crop))
    return (
        f"A larger {flag} than {radius:g} joins pieces, at the risk of merging. If such instances "
        f"are larger than half a crop ({crop} pixels), a larger schedule.crop is the cure: the "
        "network holds together what it sees as a whole."
    )


def _part_more(run: Run, recipe: Recipe) -> str:
    flag, radius = _radius(recipe)
    return (
        f"A smaller {flag} than {radius:g} parts neighbours, at the risk of splitting. Labels of "
        "instances that touch teach it for good."
    )


def _find_more(run: Run, recipe: Recipe) -> str:
    dropped = f"The recipe drops what is smaller than {recipe.min_size} pixels (--min-size)"
    if isinstance(recipe.foreground, Head):
        return (
            f"{dropped} and what is less likely foreground than "
            f"{recipe.foreground.threshold:g} (--threshold): a lower number finds more."
        )
    return f"{dropped}: a lower number finds more."


def _find_less(run: Run, recipe: Recipe) -> str:
    dropped = f"--min-size above {recipe.min_size}"
    if isinstance(recipe.foreground, Head):
        dropped = f"--threshold above {recipe.foreground.threshold:g}, or {dropped},"
    return (
        f"{dropped} drops more. Images without instances among the training images teach what is "
        "none. Look first whether the truth lacks them."
    )


def _outline_better(run: Run, recipe: Recipe) -> str:
    if isinstance(recipe.foreground, Head):
        return (
            f"A --threshold other than {recipe.foreground.threshold:g} moves all outlines. Look "
            "first whether the labels follow the edges."
        )
    return "Look first whether the labels follow the edges."


_ADVICE: dict[Kind, tuple[str, str, Callable[[Run, Recipe], str]]] = {
    "split": ("Instances fall into pieces", "instances are split,", _join_more),
    "merged": ("Neighbours are merged", "instances are merged with others,", _part_more),
    "missed": ("Instances are missed", "instances are missed,", _find_more),
    "false": ("Found where nothing is", "of those found are false, as many as", _find_less),
    "inexact": ("Outlines are off", "instances are found inexactly,", _outline_better),
}
