"""Instances out of maps of their boundaries: seeds inside, grown until they meet.

The seeds are connected pieces of what is surely inside. They grow through the foreground as water
rises (Vincent and Soille 1991): through what is low first, and pixel by pixel, so neighbours meet
on the ridge between them, and nothing is reached over a gap.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt32
from pydantic import BaseModel, ConfigDict, Field

from spoco_zoo.labels import fill_from_neighbors, remove_small, split_disconnected

_LEVELS = 16  # at which the water stands for a while


class Watershed(BaseModel):
    """The numbers that decide."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    threshold: float = Field(0.5, gt=0, lt=1, description="least probability of foreground")
    seed_threshold: float = Field(0.5, gt=0, lt=1, description="the same of what is surely inside")
    min_size: int = Field(10, ge=0, description="smaller instances are dropped, in pixels")


def grow_instances(
    boundary: Float[np.ndarray, "*space"],
    settings: Watershed,
    interior: Float[np.ndarray, "*space"] | None = None,
    mask: Bool[np.ndarray, "*space"] | None = None,
    *,
    excludes: bool = False,
) -> UInt32[np.ndarray, "*space"]:
    """Find the instances between boundaries.

    Args:
        boundary: Probability of boundary, in 0..1.
        settings: The numbers that decide.
        interior: Probability of the inside of instances, in 0..1; everything where left out.
        mask: Foreground as someone else knows it.
        excludes: Whether the inside ends at the boundary, which is foreground too then.

    Returns:
        Instances 1..n, each connected, 0 elsewhere.
    """
    inside = 1 - boundary if interior is None else interior * (1 - boundary)
    if mask is not None:
        foreground = mask
    elif interior is None:
        foreground = np.ones(boundary.shape, dtype=bool)
    else:
        covered = np.maximum(interior, boundary) if excludes else interior
        foreground = covered >= settings.threshold
    seeds = split_disconnected(((inside >= settings.seed_threshold) & foreground).astype(np.uint8))
    grown = seeds
    for level in range(1, _LEVELS):
        low = foreground & (boundary <= level / _LEVELS)
        grown = fill_from_neighbors(grown, low, reach=boundary.size)
    grown = fill_from_neighbors(grown, foreground, reach=boundary.size)
    return remove_small(grown, settings.min_size)
