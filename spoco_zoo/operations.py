"""What the bioimage.io format lets be done to an image before, and to an output after, a network.

Settings say what to do, in the words of format 0.5; `apply_operations` does it, in order, on a
whole array whose axes have names. Statistics are those of the array that is given, so a tile must
not be: without `axes`, or with `batch` among them, they are those of everything there is, which
the format calls a data set.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from spoco_zoo.errors import ImageError

DType = Literal[
    "float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "bool",
]  # fmt: skip
_Positive = Annotated[float, Field(ge=1e-6)]
_Eps = Annotated[float, Field(gt=0, le=0.1)]
_Low = Annotated[float, Field(ge=0, lt=100)]
_High = Annotated[float, Field(gt=1, le=100)]
_Axes = tuple[str, ...] | None


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Binarize(_Operation):
    """Tell where values are above a threshold."""

    id: Literal["binarize"]
    threshold: float | tuple[float, ...]
    axis: str | None = None


class Clip(_Operation):
    """Move values into a range, given by numbers or percentiles."""

    id: Literal["clip"]
    min: float | None = None
    max: float | None = None
    min_percentile: _Low | None = None
    max_percentile: _High | None = None
    axes: _Axes = None

    @model_validator(mode="after")
    def _check(self) -> "Clip":
        low, high = (self.min, self.min_percentile), (self.max, self.max_percentile)
        if low == high == (None, None) or None not in low or None not in high:
            raise ValueError("expected at most one lower and one upper end, and one at least")
        for least, most in zip(low, high, strict=True):
            if least is not None and most is not None and least >= most:
                raise ValueError(f"the lower end {least:g} is not below the upper, {most:g}")
        return self


class EnsureDtype(_Operation):
    """Turn the values into another type."""

    id: Literal["ensure_dtype"]
    dtype: DType


class FixedZeroMeanUnitVariance(_Operation):
    """Subtract given means and divide by given standard deviations."""

    id: Literal["fixed_zero_mean_unit_variance"]
    mean: float | tuple[float, ...]
    std: _Positive | tuple[_Positive, ...]
    axis: str | None = None


class ScaleLinear(_Operation):
    """Multiply by a gain and add an offset."""

    id: Literal["scale_linear"]
    gain: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    axis: str | None = None


class ScaleRange(_Operation):
    """Map two percentiles to 0 and 1."""

    id: Literal["scale_range"]
    axes: _Axes = None
    min_percentile: _Low = 0.0
    max_percentile: _High = 100.0
    eps: _Eps = 1e-6

    @model_validator(mode="after")
    def _check(self) -> "ScaleRange":
        if self.min_percentile >= self.max_percentile:
            raise ValueError(
                f"min_percentile {self.min_percentile:g} is not below max_percentile, "
                f"{self.max_percentile:g}"
            )
        return self


class Sigmoid(_Operation):
    """Map logits to probabilities."""

    id: Literal["sigmoid"]


class Softmax(_Operation):
    """Map the logits along an axis to probabilities that sum up to one."""

    id: Literal["softmax"]
    axis: str = "channel"


class ZeroMeanUnitVariance(_Operation):
    """Subtract the mean and divide by the standard deviation."""

    id: Literal["zero_mean_unit_variance"]
    axes: _Axes = None
    eps: _Eps = 1e-6


Operation = (
    Binarize
    | Clip
    | EnsureDtype
    | FixedZeroMeanUnitVariance
    | ScaleLinear
    | ScaleRange
    | Sigmoid
    | Softmax
    | ZeroMeanUnitVariance
)
_ADAPTER: TypeAdapter[Operation] = TypeAdapter(Annotated[Operation, Field(discriminator="id")])


def parse_operation(words: Mapping[str, Any], axes: Sequence[str]) -> Operation:
    """Check one operation on an array of these axes, in the words of format 0.5.

    Args:
        words: The name under `id` and its settings under `kwargs`.
        axes: Names of the axes of the array.

    Raises:
        ValueError: It is unknown, or has settings that are unknown, missing or impossible.
    """
    kwargs = words.get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"{words.get('id')}: kwargs are no words and values")
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    try:
        operation = _ADAPTER.validate_python({"id": words.get("id"), **kwargs})
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"].startswith("union_tag"):
            raise ValueError(f"{words.get('id')}: is no operation that is known here") from error
        place = ".".join(str(part) for part in problem["loc"][1:])
        reason = problem["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        told = f"{place}: {reason}" if place else reason
        raise ValueError(f"{words.get('id')}: {told}") from error
    used = getattr(operation, "axes", None) or ()
    axis = getattr(operation, "axis", None)
    for name in (*used, *(() if axis is None else (axis,))):
        if name not in axes:
            raise ValueError(f"{operation.id}: there is no axis {name}")
    lists = (v for v in operation.__dict__.values() if isinstance(v, tuple) and v is not used)
    if axis is None and any(len(numbers) > 1 for numbers in lists):
        raise ValueError(f"{operation.id}: several numbers and no axis")
    return operation


def apply_operations(
    values: np.ndarray, axes: Sequence[str], operations: Sequence[Operation]
) -> np.ndarray:
    """Do one operation after the other on a whole array.

    Args:
        values: An array of any numbers; it is not changed.
        axes: Names of its axes.
        operations: What to do, checked for these axes.

    Raises:
        ImageError: A type cannot hold the values, or a list of numbers is not as long as its axis.
    """
    for operation in operations:
        values = _apply(values, axes, operation)
    return values


def _apply(values: np.ndarray, axes: Sequence[str], operation: Operation) -> np.ndarray:
    found: np.ndarray
    match operation:
        case EnsureDtype(dtype=dtype):
            found = ensure_dtype(values, dtype)
        case Binarize(threshold=threshold, axis=axis):
            found = values > _along(threshold, axis, values, axes)
        case Sigmoid():
            with np.errstate(over="ignore"):  # of exp(-x), whose inverse is 0 then
                found = 1 / (1 + np.exp(-_wide(values)))
        case Softmax(axis=axis):
            place = axes.index(axis)
            powers = np.exp(_wide(values) - values.max(axis=place, keepdims=True))
            found = powers / powers.sum(axis=place, keepdims=True)
        case Clip():
            found = _clip(values, axes, operation)
        case ScaleLinear(gain=gain, offset=offset, axis=axis):
            gains = _along(gain, axis, values, axes)
            found = _wide(values) * gains + _along(offset, axis, values, axes)
        case FixedZeroMeanUnitVariance(mean=mean, std=std, axis=axis):
            centred = _wide(values) - _along(mean, axis, values, axes)
            # the format does not speak of this summand, its reference implementation has it
            found = centred / (_along(std, axis, values, axes) + 1e-6)
        case ZeroMeanUnitVariance(axes=over, eps=eps):
            places, wide = _places(over, axes), _wide(values)
            centred = wide - wide.mean(axis=places, keepdims=True)
            found = centred / (wide.std(axis=places, keepdims=True) + eps)
        case ScaleRange(axes=over, min_percentile=low, max_percentile=high, eps=eps):
            places, wide = _places(over, axes), _wide(values)
            bottom, top = np.percentile(wide, [low, high], axis=places, keepdims=True)
            found = (wide - bottom) / (top - bottom + eps)
    return found


def ensure_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Turn values into another type, integers by cutting off what is behind the point.

    Raises:
        ImageError: They do not fit.
    """
    kind = np.dtype(dtype)
    if kind.kind in "ui" and values.size and values.dtype != kind:
        least, most = values.min(), values.max()
        room = np.iinfo(kind)
        if not (float(least) > room.min - 1 and float(most) < room.max + 1):
            raise ImageError(
                f"holds values from {least:g} to {most:g}, and the package takes them as {dtype}: "
                f"expected {room.min} to {room.max}; scale the image first"
            )
    with np.errstate(over="ignore"):  # what is infinite then is refused where it matters
        return values.astype(kind)


def _clip(values: np.ndarray, axes: Sequence[str], clip: Clip) -> np.ndarray:
    ends: list[Any] = [clip.min, clip.max]
    for number, percentile in enumerate((clip.min_percentile, clip.max_percentile)):
        if percentile is not None:  # here, and here alone, the format wants a value that occurs
            ends[number] = np.percentile(
                values,
                percentile,
                axis=_places(clip.axes, axes),
                keepdims=True,
                method="inverted_cdf",
            )
    wide = _wide(values)
    wide = wide if ends[0] is None else np.maximum(wide, ends[0])
    return wide if ends[1] is None else np.minimum(wide, ends[1])


def _wide(values: np.ndarray) -> np.ndarray:
    # 16 bit values minus their mean lose digits in float32
    return values.astype(np.float64)


def _places(over: tuple[str, ...] | None, axes: Sequence[str]) -> tuple[int, ...]:
    """Positions of axes that share their statistics; the batch is one image."""
    return tuple(range(len(axes))) if over is None else tuple(axes.index(name) for name in over)


def _along(
    numbers: float | tuple[float, ...], axis: str | None, values: np.ndarray, axes: Sequence[str]
) -> np.ndarray:
    """Shape numbers so that there is one for each place along an axis."""
    found = np.atleast_1d(np.asarray(numbers, np.float64))
    shape = [1] * values.ndim
    if axis is not None:
        place = axes.index(axis)
        if len(found) not in (1, values.shape[place]):
            raise ImageError(
                f"has {values.shape[place]} places along {axis}, and the package gives "
                f"{len(found)} numbers for them: expected as many"
            )
        shape[place] = len(found)
    return found.reshape(shape)
