"""The words of `rdf.yaml` that the rules look at, with their types and nothing else.

Only what every program needs in order to make sense of a description is insisted on. What some
take and others do not, a mapping as documentation for one, is kept as it is for the rules.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from spoco_zoo.lint.finding import Finding

_MOST_FINDINGS = 20
HASH = r"^[0-9a-f]{64}$"


def _check_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("holds what cannot be printed")
    return name


def _check_some(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not parts:
        raise ValueError("is empty")
    return parts


_Some = AfterValidator(_check_some)
_Count = Annotated[int, Field(strict=True, ge=0, le=2**31)]
_Name = Annotated[str, Field(max_length=100), AfterValidator(_check_printable)]
_Scale = Annotated[float, Field(ge=1e-15, le=1e15)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Size(_Part):
    """Size of an axis: fixed, a range, that of another axis, or known after the run alone."""

    fixed: _Count | None = None
    min: _Count | None = None
    step: _Count | None = None
    max: _Count | None = None
    tensor_id: _Name | None = None
    axis_id: _Name | None = None
    offset: Annotated[int, Field(strict=True, ge=-(2**31), le=2**31)] = 0

    @model_validator(mode="after")
    def _check(self) -> "Size":
        forms = (self.fixed, self.min, self.tensor_id)
        whole = (self.tensor_id is None) == (self.axis_id is None)
        if sum(form is not None for form in forms) != 1 or not whole:
            raise ValueError("is no number, no min and step, and no tensor_id and axis_id")
        if 0 in (self.fixed, self.min, self.step):
            raise ValueError("is 0 or in steps of 0")
        return self

    @property
    def is_unknown(self) -> bool:
        """Whether only the run shows it."""
        return self.min is not None and self.step is None


def _number_as_size(value: Any) -> Any:  # noqa: ANN401 - from YAML
    return {"fixed": value} if isinstance(value, int) else value


class Axis(_Part):
    """An axis of a tensor."""

    type: Literal["batch", "channel", "index", "time", "space"]
    id: _Name | None = None
    channel_names: Any = None
    size: Annotated[Size | None, BeforeValidator(_number_as_size)] = None
    scale: _Scale = 1.0
    unit: Any = None
    halo: _Count = 0

    @property
    def name(self) -> str:
        """What the format calls it: space without an id is x."""
        return self.id or ("x" if self.type == "space" else self.type)

    @property
    def channels(self) -> int | None:
        """Number of channels, where it is stated."""
        named = isinstance(self.channel_names, list) and len(self.channel_names) > 0
        return len(self.channel_names) if self.type == "channel" and named else None


class _Data(_Part):
    type: _Name = "float32"


def _as_operation(value: Any) -> Any:  # noqa: ANN401 - from YAML
    """Take the name of an operation for its id, as older packages spell it."""
    if isinstance(value, dict) and "id" not in value and "name" in value:
        return value | {"id": value["name"]}
    return value


class _Operation(_Part):
    id: _Name
    settings: Annotated[dict[str, Any], Field(alias="kwargs")] = {}


Operation = Annotated[_Operation, BeforeValidator(_as_operation)]


class FileReference(_Part):
    """A file of the package, with its hash if that is stated."""

    source: _Name
    sha256: Annotated[str, Field(pattern=HASH)] | None = None


def _name_as_file(value: Any) -> Any:  # noqa: ANN401 - from YAML
    return {"source": value} if isinstance(value, str) else value


_File = Annotated[FileReference, BeforeValidator(_name_as_file)]


class Tensor(_Part):
    """An input or output."""

    id: _Name
    description: str = ""
    axes: Annotated[tuple[Axis, ...], _Some]
    data: _Data | Annotated[tuple[_Data, ...], _Some] = _Data()
    test_tensor: _File | None = None
    sample_tensor: _File | None = None
    preprocessing: tuple[Operation, ...] = ()
    postprocessing: tuple[Operation, ...] = ()

    @property
    def type(self) -> str:
        """Type of its numbers."""
        return (self.data if isinstance(self.data, _Data) else self.data[0]).type

    @property
    def is_integer(self) -> bool:
        """Whether its numbers are whole."""
        return self.type.startswith(("int", "uint"))

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of its axes in order."""
        return tuple(axis.name for axis in self.axes)

    @property
    def space(self) -> tuple[Axis, ...]:
        """Its axes of space."""
        return tuple(axis for axis in self.axes if axis.type == "space")

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of its channels in lower case; none where they are not stated."""
        found = [axis for axis in self.axes if axis.channels is not None]
        return tuple(show(name).lower() for name in found[0].channel_names) if found else ()

    @property
    def is_labels(self) -> bool:
        """Whether it is a label image: one channel of whole numbers, or named as labels."""
        named = any(word in self.id.lower() for word in ("label", "instance"))
        return len(self.channel_names) <= 1 and (self.is_integer or named)

    @property
    def is_maps(self) -> bool:
        """Whether it is the maps that ilastik's workflows make instances of."""
        maps = ("foreground", "boundary", "interior")
        return self.channel_names in (maps, maps[1:]) and not self.is_integer


class WeightsFile(FileReference):
    """The network in one format."""

    parent: str | None = None
    opset_version: _Count | None = None
    pytorch_version: Any = None
    architecture: Any = None


class _Weights(_Part):
    onnx: WeightsFile | None = None
    torchscript: WeightsFile | None = None
    pytorch_state_dict: WeightsFile | None = None
    keras_hdf5: WeightsFile | None = None
    keras_v3: WeightsFile | None = None
    tensorflow_js: WeightsFile | None = None
    tensorflow_saved_model_bundle: WeightsFile | None = None

    def present(self) -> dict[str, WeightsFile]:
        """Every format that is there, by its name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: weights for name, weights in found.items() if weights is not None}


class Description(_Part):
    """What a package says of itself."""

    type: Literal["model"]
    format_version: Annotated[str, Field(pattern=r"^0\.5\.\d{1,4}$")]
    name: str
    description: str = ""
    id: Any = None
    documentation: Any = None
    covers: Any = None
    attachments: Any = None
    icon: Any = None
    license: Any = None
    git_repo: Any = None
    authors: Any = None
    cite: Any = None
    tags: Any = None
    inputs: Annotated[tuple[Tensor, ...], _Some]
    outputs: Annotated[tuple[Tensor, ...], _Some]
    weights: _Weights
    config: dict[str, Any] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    def configured(self, *path: str) -> object:
        """Value at a path under `config`; None where there is none."""
        value: object = self.config
        for word in path:
            value = value.get(word) if isinstance(value, dict) else None
        return value


def parse_description(words: dict[str, Any]) -> Description | list[Finding]:
    """Give the words their types, or say which of them have none that makes sense."""
    try:
        return Description.model_validate(words)
    except ValidationError as error:
        return [
            Finding(
                "format",
                "error",
                f"{'.'.join(str(part) for part in problem['loc'])}: "
                f"{problem['msg'].removeprefix('Value error, ')}: "
                "see the description of the format, model 0.5, and export the package again",
            )
            for problem in error.errors(include_input=False, include_url=False)[:_MOST_FINDINGS]
        ]


def name_kind(value: object) -> str:
    """Say what a value of YAML is."""
    kinds = {
        dict: "a mapping",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }
    return kinds.get(type(value), f"of type {type(value).__name__}")


def show(value: object) -> str:
    """Write a value of YAML as part of a sentence: short, and without what cannot be printed."""
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in value[:60])
    if isinstance(value, int | float) and abs(value) < 1e9:
        return str(value)
    return name_kind(value)


def find_mappings(description: Description) -> list[str]:
    """Find the words that bioimageio.spec 0.5.11 and later write as mappings, and older refuse."""
    words = {
        "documentation": description.documentation,
        "icon": description.icon,
        "license": description.license,
    }
    found = [word for word, value in words.items() if isinstance(value, dict)]
    covers = description.covers if isinstance(description.covers, list) else []
    return found + ["covers"] * any(isinstance(cover, dict) for cover in covers)
