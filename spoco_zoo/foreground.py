"""Where instances may lie: a rule that is kept with the network, and never guessed.

The loss of SPOCO ties background to no place in embedding space, so embeddings alone do not say
what is foreground. A network may have learnt it beside them (`Head`); validation may have shown
that all background shares one embedding (`Prototype`); someone else may know it (`External`); or
there is no background (`Everywhere`). The largest cluster is not background by habit.
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spoco_zoo.errors import SettingError


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(_Settings):
    """Foreground where the network's own head says so."""

    rule: Literal["head"] = "head"
    threshold: float = Field(0.5, gt=0, lt=1, description="least probability of foreground")
    core_threshold: float | None = Field(
        None, gt=0, lt=1, description="the same where instances are told apart"
    )

    @model_validator(mode="after")
    def _check(self) -> "Head":
        if self.core_threshold is not None and self.core_threshold < self.threshold:
            raise ValueError(
                f"core_threshold is {self.core_threshold}: expected at least the threshold, "
                f"{self.threshold}"
            )
        return self


class Prototype(_Settings):
    """Foreground where the embedding is far from that of background.

    The loss ties background to no place. A prototype is written by training, and only after it
    was verified on validation images with labelled background.
    """

    rule: Literal["prototype"] = "prototype"
    center: tuple[float, ...] = Field(description="embedding of background")
    radius: float = Field(gt=0, description="background is nearer than this")


class Everywhere(_Settings):
    """Every pixel belongs to some instance: tissue without background."""

    rule: Literal["everywhere"] = "everywhere"


class External(_Settings):
    """Only a mask that comes with the image says what is foreground."""

    rule: Literal["mask"] = "mask"


Rule = Head | Prototype | Everywhere | External
Foreground = Annotated[Rule, Field(discriminator="rule")]


def find_foreground(
    embedding: Float[np.ndarray, "e *space"],
    settings: Rule,
    probability: Float[np.ndarray, "*space"] | None = None,
    mask: Bool[np.ndarray, "*space"] | None = None,
) -> Bool[np.ndarray, "*space"]:
    """Decide for every pixel whether it belongs to any instance.

    Args:
        embedding: The embedding of the image.
        settings: The rule.
        probability: What the foreground head says, in 0..1; needed by `Head` alone.
        mask: Foreground as someone else knows it. It takes the place of any rule.

    Raises:
        SettingError: The rule needs what the network does not give, or a mask.
    """
    if mask is not None:
        return mask
    match settings:
        case Head(threshold=threshold):
            if probability is None:
                raise SettingError(
                    "foreground rule 'head' needs a network with a foreground head, "
                    "this one has none: use 'prototype' or 'everywhere'"
                )
            return np.asarray(probability >= threshold)
        case Prototype(center=center, radius=radius):
            if len(center) != len(embedding):
                raise SettingError(
                    f"foreground prototype has {len(center)} numbers, the embedding has "
                    f"{len(embedding)}: both must be the same network's"
                )
            offset = embedding - np.asarray(center, np.float32).reshape(
                -1, *[1] * (embedding.ndim - 1)
            )
            return np.asarray((offset * offset).sum(axis=0) > radius * radius)
        case Everywhere():
            return np.ones(embedding.shape[1:], dtype=bool)
        case External():
            raise SettingError(
                "this package takes its foreground from a mask, and none is given: expected a "
                "mask of each image; give it with --mask"
            )


def find_core(
    foreground: Bool[np.ndarray, "*space"],
    settings: Rule,
    probability: Float[np.ndarray, "*space"] | None = None,
    mask: Bool[np.ndarray, "*space"] | None = None,
) -> Bool[np.ndarray, "*space"]:
    """Find the part of the foreground in which instances are told apart.

    Touching instances are joined by a bridge of uncertain pixels, whose embeddings are those of
    nobody. A head that is sure of the inside only leaves the bridge out; `cluster` gives it to
    the instances afterwards. Other rules, and masks, have no degrees of certainty: all foreground
    is core.
    """
    if mask is not None or not isinstance(settings, Head):
        return foreground
    if settings.core_threshold and probability is not None:
        return np.asarray(foreground & (probability >= settings.core_threshold))
    return foreground
