"""Numbers for a spec from the sizes of instances and pixels: crop and pooling.

A crop should show an instance with its surroundings, and several of them, since the network
learns to tell neighbours apart. Pooling should make voxels of unequal sides more equal: an axis
is halved only while its pixels are not much larger than the smallest.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

_LEAST, _MOST = 64, 512  # pixels along an axis of the image plane
_VOXELS = 1 << 20  # of a crop of a volume
_LARGER = math.sqrt(2)  # from here on halving the others alone brings the axes nearer


def suggest_pooling(
    scale_um: Sequence[float] | None, n_axes: int, levels: int
) -> tuple[tuple[int, ...], ...]:
    """Suggest factors per axis for each step between levels; 2 everywhere without sizes."""
    sizes = np.ones(n_axes) if scale_um is None else np.array(scale_um, float)
    steps = []
    for _ in range(levels):
        is_halved = sizes < sizes.min() * _LARGER
        step = np.where(is_halved, 2, 1)
        sizes = sizes * step
        steps.append(tuple(step.tolist()))
    return tuple(steps)


def suggest_crop(
    extents: Int[np.ndarray, "n d"], spaces: Int[np.ndarray, "m d"], strides: Int[np.ndarray, " d"]
) -> tuple[int, ...]:
    """Suggest a crop: four typical instances wide, or twice the larger ones.

    Args:
        extents: Pixels of each instance along each axis.
        spaces: Pixels of each image along each axis.
        strides: Total pooling of the network along each axis, of which a crop is a multiple.
    """
    n_axes = len(strides)
    wanted = np.full(n_axes, float(_LEAST))
    if len(extents):
        typical, large = np.median(extents, axis=0), np.percentile(extents, 95, axis=0)
        wanted = np.maximum(4 * typical, 2 * large)
    plane = slice(n_axes - 2, n_axes)
    wanted[plane] = wanted[plane].max()  # crops are turned in the image plane
    wanted[plane] = wanted[plane].clip(_LEAST, _MOST)
    image = np.median(spaces, axis=0)
    if n_axes == 3 and wanted.prod() > _VOXELS:
        wanted = np.minimum(wanted, image)
        wanted *= min((_VOXELS / wanted.prod()) ** (1 / 3), 1.0)
    # not more than an image has, or the rest would be mirrored
    whole = np.maximum(image // strides, 1)
    counts = np.minimum(np.ceil(wanted / strides), whole)
    return tuple(int(count * stride) for count, stride in zip(counts, strides, strict=True))
