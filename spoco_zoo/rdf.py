"""Descriptions of models of any origin, formats 0.4 and 0.5, brought to one shape.

Only what running needs is read: axes, sizes, types, operations and the ONNX weights. What would be
guessed is refused. Axes are named as in format 0.5, whatever letters a description of 0.4 gives.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spoco_zoo.errors import PackageError
from spoco_zoo.operations import Binarize, DType, EnsureDtype, Operation, parse_operation

Kind = Literal["batch", "channel", "space", "index", "time"]
PadMode = Literal["constant", "edge", "reflect", "symmetric"]

_LETTERS: dict[str, Kind] = {
    **{"b": "batch", "i": "index", "t": "time", "c": "channel"},
    **{"z": "space", "y": "space", "x": "space"},
}
_MOST_PIXELS = 1 << 20
_MOST_CHANNELS = 4096
_Size = Annotated[int, Field(strict=True, ge=1, le=_MOST_PIXELS)]
_Step = Annotated[int, Field(strict=True, ge=0, le=1 << 16)]
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Sizes are `least`, `least + step` and so on; with step 0 `least` alone. An axis of an output
    that follows the input has step None.
    """

    name: str
    kind: Kind
    least: int = 1
    step: int | None = 1
    halo: int = 0
    channel_names: tuple[str, ...] = ()
    scale: float = 1.0
    follows: "Reference | None" = None


@dataclass(frozen=True)
class Reference:
    """The axis of the input that an axis of an output follows, in pixels of its own scale."""

    tensor: str
    axis: str
    offset: int | float


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its axes, and what is done to it, its type coming last."""

    name: str
    axes: tuple[Axis, ...]
    operations: tuple[Operation, ...]
    pad: PadMode = "symmetric"
    pad_value: float = 0.0

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the axes in their order."""
        return tuple(axis.name for axis in self.axes)

    def find(self, kind: Kind) -> list[Axis]:
        """Axes of one kind, in their order."""
        return [axis for axis in self.axes if axis.kind == kind]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels; one without a name where there is no such axis."""
        channels = self.find("channel")
        return channels[0].channel_names if channels else ("",)


@dataclass(frozen=True)
class Description:
    """What a description says that running needs."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_name: str
    sha256: str | None


class _Words(BaseModel):
    """A part of the format of which only some fields matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Parameterized(_Words):
    min: _Size
    step: _Step


class _SizeReference(_Words):
    tensor_id: str
    axis_id: str
    offset: Annotated[int, Field(strict=True)] = 0


class _Axis5(_Words):
    type: Kind
    id: str | None = Field(None, min_length=1, max_length=32)
    size: _Size | _Parameterized | _SizeReference | None = None
    halo: _Step = 0
    scale: float = Field(1.0, gt=0)
    channel_names: tuple[str, ...] = Field((), max_length=_MOST_CHANNELS)


class _Data5(_Words):
    type: DType = "float32"


class _Pad(_Words):
    mode: PadMode = "symmetric"
    value: float = 0.0


def _first(value: Any) -> Any:  # noqa: ANN401 - from YAML
    return value[0] if isinstance(value, list) and value else value


class _Tensor5(_Words):
    id: str
    axes: tuple[_Axis5, ...] = Field(min_length=1, max_length=8)
    data: Annotated[_Data5, BeforeValidator(_first)] = _Data5()  # a list is one a channel
    pad: _Pad | None = None
    preprocessing: tuple[dict[str, Any], ...] = ()
    postprocessing: tuple[dict[str, Any], ...] = ()


def _source(value: Any) -> Any:  # noqa: ANN401 - from YAML
    return value.get("source") if isinstance(value, dict) else value


class _Onnx(_Words):
    source: Annotated[str, BeforeValidator(_source)]
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    external_data: Any = None


class _Weights(_Words):
    onnx: _Onnx | None = None


class _Model5(_Words):
    name: str
    inputs: tuple[_Tensor5, ...]
    outputs: tuple[_Tensor5, ...]
    weights: _Weights


class _Shape4(_Words):
    min: tuple[_Size, ...]
    step: tuple[_Step, ...]


class _Reference4(_Words):
    reference_tensor: str
    scale: tuple[float | None, ...]
    offset: tuple[float, ...]


class _Tensor4(_Words):
    name: str
    axes: str = Field(pattern="^[bitczyx]{1,7}$")
    data_type: DType = "float32"
    shape: tuple[_Size, ...] | _Shape4 | _Reference4
    halo: tuple[_Step, ...] | None = None
    preprocessing: tuple[dict[str, Any], ...] = ()
    postprocessing: tuple[dict[str, Any], ...] = ()


class _Model4(_Words):
    name: str
    inputs: tuple[_Tensor4, ...]
    outputs: tuple[_Tensor4, ...]
    weights: _Weights


def parse_description(place: Path, words: Mapping[str, Any]) -> Description:
    """Bring the words of a description to one shape.

    Args:
        place: Where they come from, for the error.
        words: As read from YAML.

    Raises:
        PackageError: They describe no model of these formats, or one that cannot be run here.
    """
    version = str(words.get("format_version"))
    if words.get("type", "model") != "model" or not re.fullmatch(r"0\.[45]\.\d+", version):
        raise PackageError(
            f"{place}: is {words.get('type')} of format {version}: "
            "expected model of format 0.4 or 0.5; update the package with bioimageio update-format"
        )
    is_old = version.startswith("0.4.")
    model = _check(place, _Model4, words) if is_old else _check(place, _Model5, words)
    onnx = model.weights.onnx
    if onnx is None:
        raise PackageError(
            f"{place}: has no onnx weights, and no others are run, since they may hold code: "
            "add them with bioimageio add-weights, or ask the authors for them"
        )
    if onnx.external_data is not None:
        raise PackageError(
            f"{place}: keeps weights beside {onnx.source}: expected one ONNX file with all of "
            "them; save it again without external data"
        )
    if re.match(r"[a-zA-Z][\w+.-]+:", onnx.source):
        raise PackageError(
            f"{place}: weights are at {onnx.source}: nothing is downloaded; put the file into the "
            "package and name it in weights.onnx.source"
        )
    inputs = tuple(_read(place, tensor, is_input=True) for tensor in model.inputs)
    outputs = tuple(_read(place, tensor, is_input=False) for tensor in model.outputs)
    return Description(model.name, inputs, outputs, onnx.source, onnx.sha256)


def _read(place: Path, tensor: _Tensor4 | _Tensor5, *, is_input: bool) -> Tensor:
    try:
        if isinstance(tensor, _Tensor5):
            return _read_new(tensor)
        # format 0.4 gives every network float32, whatever the image is
        return _read_old(tensor, "float32" if is_input else tensor.data_type)
    except ValueError as error:
        name = tensor.name if isinstance(tensor, _Tensor4) else tensor.id
        raise PackageError(
            f"{place}: tensor {name}: {error}; expected what formats 0.4 and 0.5 describe"
        ) from error


def _check(place: Path, kind: type[_Model], words: Mapping[str, Any]) -> _Model:
    try:
        return kind.model_validate(words)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        raise PackageError(
            f"{place}: {field}: {reason[0].lower() + reason[1:]}; "
            "the description is wrong: ask its authors"
        ) from error


def _read_new(tensor: _Tensor5) -> Tensor:
    axes = tuple(_read_axis(axis) for axis in tensor.axes)
    _check_axes(axes)
    names = [axis.name for axis in axes]
    operations = [
        parse_operation(_forget_self(words, tensor.id), names)
        for words in (*tensor.preprocessing, *tensor.postprocessing)
    ]
    pad, dtype = tensor.pad or _Pad(), tensor.data.type
    return Tensor(tensor.id, axes, _frame(operations, dtype, dtype), pad.mode, pad.value)


def _frame(operations: list[Operation], first: DType, last: DType) -> tuple[Operation, ...]:
    """Add the types that the format takes for granted before and after the operations."""
    if not operations or not isinstance(operations[0], EnsureDtype):
        operations = [EnsureDtype(id="ensure_dtype", dtype=first), *operations]
    if not isinstance(operations[-1], EnsureDtype | Binarize):
        operations = [*operations, EnsureDtype(id="ensure_dtype", dtype=last)]
    return tuple(operations)


def _read_axis(axis: _Axis5) -> Axis:
    name = axis.id or ("x" if axis.type == "space" else axis.type)
    if axis.type == "channel":
        if not axis.channel_names:
            raise ValueError("the channel axis has no channel_names")
        return Axis(name, "channel", len(axis.channel_names), 0, 0, axis.channel_names)
    found = Axis(name, axis.type, halo=axis.halo, scale=axis.scale)
    match axis.size:
        case int(size):
            return replace(found, least=size, step=0)
        case _Parameterized(min=least, step=step):
            return replace(found, least=least, step=step)
        case _SizeReference(tensor_id=tensor, axis_id=of, offset=offset):
            return replace(found, step=None, follows=Reference(tensor, of, offset))
        case _:
            return found


def _forget_self(words: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Leave out a reference to the tensor itself, which says nothing."""
    kwargs = words.get("kwargs")
    if not isinstance(kwargs, dict) or kwargs.get("reference_tensor") != name:
        return dict(words)
    return {**words, "kwargs": {k: v for k, v in kwargs.items() if k != "reference_tensor"}}


def _check_axes(axes: Sequence[Axis]) -> None:
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ValueError(f"two axes of {', '.join(names)} share a name")
    for kind in ("batch", "channel", "index", "time"):
        if sum(axis.kind == kind for axis in axes) > 1:
            raise ValueError(f"there are two axes of type {kind}")


def _read_old(tensor: _Tensor4, last: DType) -> Tensor:
    letters = tensor.axes
    names = [_new_name(letter) for letter in letters]
    halo = tensor.halo or (0,) * len(letters)
    shape = tensor.shape
    lists = (shape,) if isinstance(shape, tuple) else tuple(shape.__dict__.values())
    for numbers in (*lists, halo):
        if not isinstance(numbers, str) and len(numbers) != len(letters):
            raise ValueError(f"axes {letters} have {len(numbers)} sizes")
    axes = tuple(_read_old_axis(tensor, at, halo[at]) for at in range(len(letters)))
    _check_axes(axes)
    operations = [
        parse_operation(_translate(words, tensor), names)
        for words in (*tensor.preprocessing, *tensor.postprocessing)
    ]
    operations.append(EnsureDtype(id="ensure_dtype", dtype=last))
    return Tensor(tensor.name, axes, _frame(operations, tensor.data_type, last))


def _read_old_axis(tensor: _Tensor4, at: int, halo: int) -> Axis:
    letter, shape = tensor.axes[at], tensor.shape
    name, kind = _new_name(letter), _LETTERS[letter]
    if letter == "b":
        return Axis(name, kind)
    match shape:
        case _Shape4():
            found = Axis(name, kind, shape.min[at], shape.step[at], halo)
        case _Reference4() if shape.scale[at]:
            follows = Reference(shape.reference_tensor, name, 2 * shape.offset[at])
            scale = 1 / (shape.scale[at] or 1.0)
            found = Axis(name, kind, 1, None, halo, scale=scale, follows=follows)
        case _Reference4():  # twice its offset, whatever comes in
            found = Axis(name, kind, round(2 * shape.offset[at]), 0, halo)
        case _:
            found = Axis(name, kind, shape[at], 0, halo)
    if not 1 <= found.least <= _MOST_PIXELS or found.scale <= 0:
        raise ValueError(f"axis {name} has {found.least} places")
    if letter != "c":
        return found
    if found.step != 0 or found.least > _MOST_CHANNELS:
        raise ValueError("the count of its channels is not fixed, or impossible")
    return replace(found, channel_names=tuple(f"channel{n}" for n in range(found.least)))


def _new_name(letter: str) -> str:
    return letter if letter in "zyx" else _LETTERS[letter]


def _translate(words: Mapping[str, Any], tensor: _Tensor4) -> dict[str, Any]:
    """Put an operation of format 0.4 into the words of 0.5."""
    name, kwargs = words.get("name"), words.get("kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"{name}: kwargs are no words and values")
    kwargs = dict(kwargs)
    if kwargs.get("reference_tensor") == tensor.name:
        del kwargs["reference_tensor"]
    if name not in ("zero_mean_unit_variance", "scale_range", "scale_linear"):
        return {"id": name, "kwargs": kwargs}
    letters = kwargs.pop("axes", None)
    over = tensor.axes if letters is None else letters
    if not isinstance(over, str) or not set(over) <= set(tensor.axes):
        raise ValueError(f"{name}: axes {letters} are not of {tensor.axes}")
    mode = kwargs.pop("mode", "fixed" if name == "zero_mean_unit_variance" else None)
    if mode == "per_dataset":
        raise ValueError(f"{name}: statistics of a data set are asked for and not given")
    if mode == "per_sample":
        axes = {} if letters is None else {"axes": [_new_name(letter) for letter in letters]}
        return {"id": name, "kwargs": kwargs | axes}
    if mode == "fixed":
        if kwargs.get("mean") is None or kwargs.get("std") is None:
            raise ValueError(f"{name}: mode fixed without mean and std")
        kwargs.pop("eps", None)
        name = "fixed_zero_mean_unit_variance"
    rest = [_new_name(letter) for letter in tensor.axes if letter not in {*over, "b"}]
    if len(rest) > 1:
        raise ValueError(f"{name}: numbers along more than one axis")
    return {"id": name, "kwargs": kwargs | ({"axis": rest[0]} if rest else {})}
