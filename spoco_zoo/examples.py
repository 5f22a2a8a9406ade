"""What a run keeps of its validation images, so that a report needs neither data nor networks.

    RUN/examples/
    ├── examples.json             scores and mistakes of every validation image
    ├── best-1-image.png          pictures of the best three ...
    ├── best-1-truth.png
    ├── best-1-found.png
    ├── best-1-mistakes.png
    └── worst-1-image.png ...     ... and of the worst three, the middle slice of a volume

`examples.json` is written last: where it is, all pictures are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spoco_zoo.errors import SettingError
from spoco_zoo.figures import middle_slice, mistakes_overlay, overlay, resize, write_png
from spoco_zoo.files import write_bytes
from spoco_zoo.fitting import Embedded, comparable, find_instances, goal, score_recipe
from spoco_zoo.foreground import External
from spoco_zoo.labels import UNLABELED, Labels
from spoco_zoo.metrics import Scores, mean_scores, score
from spoco_zoo.mistakes import Kind, Verdicts, judge
from spoco_zoo.recipe import Recipe

PANELS = ("image", "truth", "found", "mistakes")

_SIDE = 384  # pixels of a picture, at most
_SHOWN = 3  # of the best images, and as many of the worst
_NAME = r"^(best|worst)-[1-9]$"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Record):
    """One validation image."""

    name: str
    ap50: float = Field(ge=0, le=1, description="average precision at IoU 0.50")
    mean_ap: float = Field(ge=0, le=1, description="the same, mean over IoU 0.50 to 0.95")
    sbd: float = Field(ge=0, le=1, description="symmetric best Dice")
    true: int = Field(ge=0, description="true instances")
    found: int = Field(ge=0, description="instances found")
    kinds: dict[Kind, int] = Field(description="what became of them, by `mistakes`")
    shown: str | None = Field(None, pattern=_NAME, description="what its pictures are called")

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, kinds: dict[Kind, int]) -> dict[Kind, int]:
        missing = [kind for kind in get_args(Kind) if kind not in kinds]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return kinds


class Examples(_Record):
    """All validation images of a run."""

    version: int = Field(1, ge=1, le=1)
    images: tuple[Example, ...] = Field(min_length=1)
    mean_ap: float = Field(description="of all instances, mean over IoU 0.50 to 0.95")
    mean_ap_true_foreground: float | None = Field(
        None, description="the same with the true foreground; none where it is not known"
    )

    def count(self) -> dict[Kind, int]:
        """Count the kinds over all images."""
        return {kind: sum(image.kinds[kind] for image in self.images) for kind in get_args(Kind)}


class Validated(NamedTuple):
    """A validation image: its name, its pixels (c, *space), and what the networks make of it."""

    name: str
    image: np.ndarray
    embedded: Embedded


def write_examples(folder: Path, validated: Sequence[Validated], recipe: Recipe) -> None:
    """Find the instances of validation images by a recipe, and keep what is worth showing.

    Raises:
        OutputError: The disk refuses a file.
    """
    examples, scores, judged = [], [], []
    for name, _, embedded in validated:
        truth, found = comparable(find_instances(recipe, embedded), embedded)
        scores.append(score(found, truth))
        judged.append((found, truth, judge(found, truth)))
        examples.append(_describe(name, scores[-1], judged[-1][-1]))
    shown = _choose(examples)
    for place, group in shown.items():
        pictures = _draw(validated[place].image, *judged[place])
        for panel, pixels in zip(PANELS, pictures, strict=True):
            write_png(folder / f"{group}-{panel}.png", pixels, overwrite=True)
    summary = Examples(
        images=tuple(
            example.model_copy(update={"shown": shown.get(place)})
            for place, example in enumerate(examples)
        ),
        mean_ap=round(goal(mean_scores(scores)), 4),
        mean_ap_true_foreground=_score_true_foreground(validated, recipe),
    )
    text = json.dumps(summary.model_dump(mode="json"), indent=1)
    write_bytes(folder / "examples.json", text.encode(), overwrite=True)


def read_examples(folder: Path) -> Examples | None:
    """Read what `write_examples` wrote; None where there is nothing.

    Raises:
        SettingError: The file is damaged.
    """
    path = folder / "examples.json"
    if not path.is_file():
        return None
    try:
        return Examples.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SettingError(
            f"{path}: is damaged: remove the folder, or make it anew with train --resume"
        ) from error


def _describe(name: str, scores: Scores, verdicts: Verdicts) -> Example:
    return Example(
        name=name,
        ap50=round(scores.ap50, 4),
        mean_ap=round(scores.mean_ap, 4),
        sbd=round(scores.sbd, 4),
        true=scores.n_truth,
        found=scores.n_predicted,
        kinds=verdicts.count(),
    )


def _choose(examples: Sequence[Example]) -> dict[int, str]:
    """Name the best and the worst images by their place; an image is one of them only."""
    # an empty image in which nothing was found is right, and shows nothing
    worth = [n for n, example in enumerate(examples) if example.true or example.found]
    ranked = sorted(worth, key=lambda n: (examples[n].ap50, examples[n].mean_ap))
    n_worst = min(_SHOWN, (len(ranked) + 1) // 2)
    n_best = min(_SHOWN, len(ranked) - n_worst)
    worst = {place: f"worst-{rank}" for rank, place in enumerate(ranked[:n_worst], start=1)}
    best = {place: f"best-{rank}" for rank, place in enumerate(ranked[::-1][:n_best], start=1)}
    return worst | best


def _draw(
    image: np.ndarray, found: Labels, truth: Labels, verdicts: Verdicts
) -> tuple[np.ndarray, ...]:
    """Draw the panels of an image."""
    pixels = resize(middle_slice(image, truth.ndim), _SIDE, smooth=True)
    found, truth = (resize(middle_slice(labels, labels.ndim), _SIDE) for labels in (found, truth))
    nothing = np.zeros_like(truth)
    return (
        overlay(pixels, nothing),
        overlay(pixels, truth),
        overlay(pixels, found),
        mistakes_overlay(pixels, found, truth, verdicts),
    )


def _score_true_foreground(validated: Sequence[Validated], recipe: Recipe) -> float | None:
    """Score the same recipe where somebody else knows the foreground."""
    embedded = [item.embedded for item in validated]
    if any((item.states == UNLABELED).any() for item in embedded):
        return None
    known = recipe.model_copy(update={"foreground": External()})
    return round(goal(score_recipe(known, embedded)), 4)
