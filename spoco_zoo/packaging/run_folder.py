"""What the folder of a finished run says, and the scores that were measured with it, checked."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import Spec
from spoco_zoo.training.checkpoints import load_run
from spoco_zoo.training.momentum import MomentumPair


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


F = TypeVar("F", bound=_Facts)


class Validation(_Facts):
    """Scores of the fitted recipe on the validation images."""

    ap50: float
    mean_ap: float
    sbd: float
    count_difference: float


class Fitted(_Facts):
    """`recipe.json`."""

    recipe: Recipe
    step: int
    validation: Validation
    validation_images: int


class Environment(_Facts):
    """`environment.json`."""

    train_images: int
    train_instances: int
    precision: str
    device: str


class Summary(_Facts):
    """Scores over all images, as `evaluate` names them."""

    pooled_ap50: float
    pooled_mean_ap: float
    sbd: float
    count_difference: float


class Scores(_Facts):
    """What `spoco-zoo evaluate --json` wrote."""

    summary: Summary
    images: list[Any] = Field(min_length=1)


class Maps(_Facts):
    """`boundaries.json`, if somebody measured what instances boundary maps lead to."""

    images: int
    library: str
    ap50: dict[str, float]


@dataclass(frozen=True)
class RunFacts:
    """A finished run as its packages tell it."""

    spec: Spec
    fitted: Fitted
    environment: Environment
    hours: float | None = None  # of training
    scores: Scores | None = None  # of the test images
    is_draft: bool = False
    maintainer: str | None = None  # by the name on GitHub, beside those of the authors
    lacks: tuple[str, ...] = ()  # what a collection would ask for
    maps: Maps | None = None

    @property
    def recipe(self) -> Recipe:
        """How instances are made."""
        return self.fitted.recipe


def read_run(
    folder: Path,
    scores: Path | None = None,
    *,
    is_draft: bool = False,
    maintainer: str | None = None,
) -> tuple[RunFacts, MomentumPair]:
    """Read the folder of a finished run, and its networks.

    Raises:
        SettingError: The run is not finished, one of its files is damaged, or there are no scores.
    """
    measured = None if scores is None else read_scores(scores)
    spec, pair, words = load_run(folder)
    try:
        fitted = Fitted.model_validate(words)
    except ValidationError as error:
        raise SettingError(
            f"{folder}: recipe.json is damaged: make it anew with train --resume"
        ) from error
    environment = _read_json(folder / "environment.json", Environment, "train again")
    measured_maps = folder / "boundaries.json"
    maps = None
    if measured_maps.is_file():
        maps = _read_json(measured_maps, Maps, "measure it anew, or remove it")
    hours = _sum_hours(folder / "history.csv")
    facts = RunFacts(
        spec, fitted, environment, hours, measured, is_draft, maintainer=maintainer, maps=maps
    )
    return facts, pair


def read_scores(path: Path) -> Scores:
    """Read what `spoco-zoo evaluate --json` wrote.

    Raises:
        SettingError: The file is missing or holds no scores.
    """
    try:
        return Scores.model_validate(json.loads(path.read_text(encoding="utf-8")), strict=True)
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise SettingError(
            f"{path}: holds no scores: expected a file of spoco-zoo evaluate --json"
        ) from error


def _read_json(path: Path, kind: type[F], cure: str) -> F:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path.parent}: {path.name} is damaged: {cure}") from error


def _sum_hours(history: Path) -> float | None:
    """How long the steps took; None where it was not kept."""
    seconds, before = 0.0, 0
    try:
        with history.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                seconds += (int(row["step"]) - before) * float(row["seconds_per_step"])
                before = int(row["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seconds / 3600 if before else None
