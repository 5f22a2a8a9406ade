"""The run folder as a report needs it: small files alone, and no networks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from spoco_zoo.curves import read_history
from spoco_zoo.errors import SettingError
from spoco_zoo.examples import PANELS, Examples, read_examples
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import Spec, load_spec

_PNG = b"\x89PNG\r\n\x1a\n"

Instances = dict[str, dict[str, list[int]]]  # ids by image, by split


class Tried(Recipe):
    """A recipe that the fit tried, and its score on the validation images."""

    score: float


class FittedRecipe(BaseModel):
    """What `recipe.json` holds."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    step: int
    validation: dict[str, float]
    validation_images: int
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """A run, finished or not."""

    spec: Spec
    environment: dict[str, Any]
    instances: Instances
    history: dict[str, np.ndarray]  # a column of `history.csv` each, (n)
    fitted: FittedRecipe | None  # of a finished run
    examples: Examples | None
    pictures: dict[str, bytes]  # PNG, by the name of the file

    @property
    def step(self) -> int:
        """Steps done, as far as the history tells."""
        return int(self.history["step"][-1])

    @cached_property
    def seconds(self) -> float:
        """Time that the steps took, in seconds; validation is not in it."""
        steps = np.diff(self.history["step"], prepend=0.0)
        return float(np.nansum(steps * self.history["seconds_per_step"]))

    @cached_property
    def scored(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps with a validation, and their scores."""
        is_scored = np.isfinite(self.history["score"])
        return self.history["step"][is_scored], self.history["score"][is_scored]

    def count_instances(self, split: str) -> int:
        """Labelled instances that a split was used with."""
        return sum(len(ids) for ids in self.instances.get(split, {}).values())


def read_run(folder: Path) -> Run:
    """Read the files of a run that a report tells of.

    Raises:
        SettingError: The folder is not that of a run, or a file in it is missing or damaged.
    """
    for name in ("spec.yaml", "environment.json", "instances.json", "history.csv"):
        if not (folder / name).is_file():
            raise SettingError(
                f"{folder}: no {name}: expected the folder of a run, as train leaves it"
            )
    fitted = None
    if (folder / "recipe.json").is_file():
        fitted = _read_json(folder / "recipe.json", FittedRecipe)
    examples = read_examples(folder / "examples")
    return Run(
        spec=load_spec(folder / "spec.yaml"),
        environment=_read_json(folder / "environment.json", dict[str, Any]),
        instances=_read_json(folder / "instances.json", Instances),
        history=read_history(folder / "history.csv"),
        fitted=fitted,
        examples=examples,
        pictures={} if examples is None else _read_pictures(folder / "examples", examples),
    )


def _read_json(path: Path, kind: Any) -> Any:  # noqa: ANN401 - a type, and a value of it
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise SettingError(
            f"{path}: is damaged: expected what train writes; make it anew with train"
        ) from error


def _read_pictures(folder: Path, examples: Examples) -> dict[str, bytes]:
    pictures = {}
    for example in examples.images:
        for panel in PANELS if example.shown else ():
            name = f"{example.shown}-{panel}.png"
            path = folder / name
            content = path.read_bytes() if path.is_file() else b""
            if not content.startswith(_PNG):
                raise SettingError(
                    f"{path}: is missing or no PNG: remove the folder, or make it anew with "
                    "train --resume"
                )
            pictures[name] = content
    return pictures
