"""Instances out of maps of their boundaries: seeds inside, grown until they meet.

The seeds are connected pieces of what is surely inside. They grow through the foreground in the
order of the height of the boundary (the image foresting transform of Falcão, Stolfi and Lotufo
2004, as SciPy has it), so neighbours meet on its ridge.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt32
from pydantic import BaseModel, ConfigDict, Field

from spoco_zoo.labels import remove_small, split_disconnected

_HIGHEST = 65535  # of a landscape of 16 bits; nothing grows through it


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
    from scipy import ndimage

    inside = 1 - boundary if interior is None else interior * (1 - boundary)
    if mask is not None:
        foreground = mask
    elif interior is None:
        foreground = np.ones(boundary.shape, dtype=bool)
    else:
        covered = np.maximum(interior, boundary) if excludes else interior
        foreground = covered >= settings.threshold
    seeds = split_disconnected(((inside >= settings.seed_threshold) & foreground).astype(np.uint8))
    if not seeds.any():
        return np.zeros(boundary.shape, np.uint32)
    height = np.full(boundary.shape, _HIGHEST, np.uint16)
    height[foreground] = np.clip(boundary[foreground], 0, 1) * (_HIGHEST - 1)
    grown = ndimage.watershed_ift(height, seeds.astype(np.int32)) * foreground
    # a piece of foreground without a seed is nobody's, though something grew over to it
    pieces = split_disconnected(foreground.astype(np.uint8))
    with_seed = np.zeros(int(pieces.max()) + 1, dtype=bool)
    with_seed[pieces[seeds > 0]] = True
    return remove_small(grown * with_seed[pieces], settings.min_size)
