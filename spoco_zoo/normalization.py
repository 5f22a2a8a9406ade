"""Preprocessing as one affine map a channel, found once on the whole image.

Settings say what to do, in the words of the bioimage.io format; `fit_affine` finds the numbers
they come to; only those touch pixels. So a tile, a crop of training and the whole image get the
same intensities by construction.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spoco_zoo.errors import SettingError
from spoco_zoo.intensities import Answer, Question, find_moments, find_percentiles


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
    return fit_affine_in_parts(lambda: [pixels], settings, pixels.shape, pixels.dtype)


def fit_affine_in_parts(
    read_parts: Callable[[], Iterable[np.ndarray]],
    settings: Normalization,
    shape: Sequence[int],
    dtype: np.dtype,
) -> Affine:
    """Resolve settings to numbers on an image that does not fit into memory.

    The numbers are those of `fit_affine`, to the last bit.

    Args:
        read_parts: Gives the image in parts `(c, *space)` with whole rows; it is called as often
            as something has to be asked, twice for most images.
        settings: What the numbers are for.
        shape: Of the image, `(c, *space)`.
        dtype: Of its pixels.

    Raises:
        SettingError: Fixed numbers are given for another count of channels.
    """
    asking = ask_for_affine(settings, shape, dtype)
    try:
        question = next(asking)
        while True:
            first, *others = map(question, read_parts())
            question = asking.send(sum(others, start=first))
    except StopIteration as end:
        affine: Affine = end.value
        return affine


def ask_for_affine(
    settings: Normalization, shape: Sequence[int], dtype: np.dtype
) -> Generator[Question, Answer, Affine]:
    """Ask what must be known of an image `(c, *space)` to resolve settings.

    Yields:
        Questions to every part of the image; the sum of the answers must be sent back.

    Raises:
        SettingError: Fixed numbers are given for another count of channels.
    """
    channels, count = shape[0], math.prod(shape[1:])
    match settings:
        case ZeroMeanUnitVariance(eps=eps):
            mean, std = yield from find_moments(channels, count, dtype)
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
            bottom, top = yield from find_percentiles(channels, count, dtype, (low, high))
            gain = 1 / (top - bottom + eps)
            return Affine(gain, -bottom * gain)


def _per_channel(values: tuple[float, ...], channels: int, word: str) -> np.ndarray:
    if len(values) not in (1, channels):
        raise SettingError(
            f"normalization {word} has {len(values)} numbers for {channels} channels: "
            "expected one, or one a channel"
        )
    return np.broadcast_to(np.asarray(values, np.float64), (channels,)).copy()
