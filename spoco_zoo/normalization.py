"""Preprocessing as one affine map a channel, found once on the whole image.

Settings say what to do, in the words of the bioimage.io format; `fit_affine` finds the numbers
they come to; only those touch pixels. So a tile, a crop of training and the whole image get the
same intensities by construction.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spoco_zoo.errors import SettingError


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ZeroMeanUnitVariance(_Operation):
    """Subtract the mean and divide by the standard deviation, per channel over space."""

    id: Literal["zero_mean_unit_variance"] = "zero_mean_unit_variance"
    eps: float = Field(1e-6, gt=0, le=0.1, description="added to the standard deviation")


class FixedZeroMeanUnitVariance(_Operation):
    """Subtract given means and divide by given standard deviations."""

    id: Literal["fixed_zero_mean_unit_variance"] = "fixed_zero_mean_unit_variance"
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(ge=1e-6)], ...]


class ScaleLinear(_Operation):
    """Multiply by a gain and add an offset."""

    id: Literal["scale_linear"] = "scale_linear"
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)


class ScaleRange(_Operation):
    """Map two percentiles to 0 and 1, per channel over space."""

    id: Literal["scale_range"] = "scale_range"
    min_percentile: float = Field(0.0, ge=0, lt=100)
    max_percentile: float = Field(100.0, gt=0, le=100)
    eps: float = Field(1e-6, gt=0, le=0.1)

    @model_validator(mode="after")
    def _check(self) -> "ScaleRange":
        if self.min_percentile >= self.max_percentile:
            raise ValueError(
                f"min_percentile is {self.min_percentile:g}: "
                f"expected less than max_percentile, which is {self.max_percentile:g}"
            )
        return self


Normalization = Annotated[
    ZeroMeanUnitVariance | FixedZeroMeanUnitVariance | ScaleLinear | ScaleRange,
    Field(discriminator="id"),
]


@dataclass(frozen=True, eq=False)
class Affine:
    """`pixels * gain + offset`, one number each a channel."""

    gain: Float[np.ndarray, " c"]
    offset: Float[np.ndarray, " c"]

    def apply(self, pixels: np.ndarray) -> Float[np.ndarray, "c *space"]:
        """Map the pixels `(c, *space)` of the image, or of any part of it, to float32."""
        shape = (-1, *[1] * (pixels.ndim - 1))
        # in float64, since 16 bit values minus their mean lose digits in float32
        wide = pixels * self.gain.reshape(shape) + self.offset.reshape(shape)
        return np.asarray(wide, np.float32)


def fit_affine(pixels: np.ndarray, settings: Normalization) -> Affine:
    """Resolve settings to numbers on a whole image `(c, *space)`.

    A constant channel becomes 0 everywhere under `zero_mean_unit_variance`.

    Raises:
        SettingError: Fixed numbers are given for another count of channels.
    """
    channels = len(pixels)
    axes = tuple(range(1, pixels.ndim))
    match settings:
        case ZeroMeanUnitVariance(eps=eps):
            mean = pixels.mean(axis=axes, dtype=np.float64)
            std = pixels.std(axis=axes, dtype=np.float64)
            return Affine(1 / (std + eps), -mean / (std + eps))
        case FixedZeroMeanUnitVariance(mean=means, std=stds):
            mean = _per_channel(means, channels, "mean")
            std = _per_channel(stds, channels, "std")
            return Affine(1 / std, -mean / std)
        case ScaleLinear(gain=gain, offset=offset):
            return Affine(
                _per_channel(gain, channels, "gain"), _per_channel(offset, channels, "offset")
            )
        case ScaleRange(min_percentile=low, max_percentile=high, eps=eps):
            bottom, top = np.percentile(pixels, [low, high], axis=axes)
            gain = 1 / (top - bottom + eps)
            return Affine(gain, -bottom * gain)


def fit_affine_in_slabs(
    read_slabs: Callable[[], Iterable[np.ndarray]], settings: ZeroMeanUnitVariance
) -> Affine:
    """Resolve mean and standard deviation of an image that does not fit into memory.

    The numbers are those of `fit_affine` but for the rounding of their last digits.

    Args:
        read_slabs: Gives the image in pieces `(c, *space)`; it is called twice.
        settings: What the numbers are for.
    """
    total, count = np.zeros(0), 0
    for slab in read_slabs():
        pixels = slab.reshape(len(slab), -1)
        total = (total if count else 0.0) + pixels.sum(axis=1, dtype=np.float64)
        count += pixels.shape[1]
    mean = total / count
    # about the mean, since the difference of two large sums loses all digits
    squares = np.zeros_like(mean)
    for slab in read_slabs():
        squares += np.square(slab.reshape(len(slab), -1) - mean[:, None]).sum(axis=1)
    std = np.sqrt(squares / count)
    return Affine(1 / (std + settings.eps), -mean / (std + settings.eps))


def _per_channel(values: tuple[float, ...], channels: int, word: str) -> np.ndarray:
    if len(values) not in (1, channels):
        raise SettingError(
            f"normalization {word} has {len(values)} numbers for {channels} channels: "
            "expected one, or one a channel"
        )
    return np.broadcast_to(np.asarray(values, np.float64), (channels,)).copy()
