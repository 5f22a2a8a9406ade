"""A bioimage.io package as far as running it needs, verified before anything is used.

A package is a folder or a zip with `rdf.yaml` at its top. It is read here with a small typed
subset of the format (model 0.5), as data only: no code that it carries is ever run, zips are
read in place and never unpacked, a file is used only if its sha256 is the one that `rdf.yaml`
states, and what is not understood is refused instead of guessed.

What the format cannot say stands under `config.spoco_zoo`: the pooling grid, and the recipe
that makes instances of embeddings.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from spoco_zoo.archive import (
    RDF_NAME,
    check_names,
    check_zip,
    read_description,
    read_member,
    verify,
)
from spoco_zoo.errors import PackageError
from spoco_zoo.foreground import Head, Prototype
from spoco_zoo.normalization import (
    FixedZeroMeanUnitVariance,
    Normalization,
    ScaleLinear,
    ScaleRange,
    ZeroMeanUnitVariance,
)
from spoco_zoo.onnx_header import refuse_external_data
from spoco_zoo.recipe import Consistency, Recipe


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Foreign(BaseModel):
    """A part of the format of which only some fields matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SpocoConfig(_Strict):
    """`config.spoco_zoo`: what running a package needs beyond the format."""

    format: Literal[1] = 1
    multiple_of: tuple[int, ...] = Field(description="pooling grid, in pixels per axis")
    halo: tuple[int, ...] = Field(description="context that makes a tile exact, in pixels")
    crop: tuple[int, ...] = Field(description="size of a training crop, in pixels")
    delta_var: float = Field(gt=0)
    delta_dist: float = Field(gt=0)
    recipe: Recipe
    files: dict[str, str] = Field(description="sha256 of every other file of the package")

    @model_validator(mode="after")
    def _check(self) -> "SpocoConfig":
        n_axes = len(self.multiple_of)
        if n_axes not in (2, 3) or len(self.halo) != n_axes or len(self.crop) != n_axes:
            raise ValueError(
                f"multiple_of, halo and crop have {n_axes}, {len(self.halo)} and {len(self.crop)} "
                "numbers: expected 2 each for images, 3 for volumes"
            )
        if min(self.multiple_of) < 1 or min(self.halo) < 0 or max(self.multiple_of) > 4096:
            raise ValueError("multiple_of and halo hold impossible sizes")
        if max(self.halo) > 65536:
            raise ValueError("halo holds impossible sizes")
        return self


class _Axis(_Foreign):
    type: Literal["batch", "channel", "space", "index", "time"]
    id: str | None = None
    channel_names: tuple[Any, ...] | None = None
    size: Any = None
    scale: float = 1.0
    unit: str | None = None

    @property
    def name(self) -> str:
        return self.id or self.type


class _Tensor(_Foreign):
    id: str
    axes: tuple[_Axis, ...]
    test_tensor: Any = None

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def channels(self) -> int | None:
        for axis in self.axes:
            if axis.type == "channel" and axis.channel_names is not None:
                return len(axis.channel_names)
        return None


class _Output(_Tensor):
    postprocessing: tuple[Any, ...] = ()


class _Input(_Tensor):
    preprocessing: tuple[dict[str, Any], ...] = ()


class _OnnxWeights(_Foreign):
    source: Annotated[str, BeforeValidator(lambda v: v.get("source") if isinstance(v, dict) else v)]
    sha256: str | None = None
    opset_version: int


class _Weights(_Foreign):
    onnx: _OnnxWeights | None = None


class _Config(_Foreign):
    spoco_zoo: SpocoConfig | None = None


class _Rdf(_Foreign):
    type: str
    format_version: str
    name: str
    description: str = ""
    inputs: tuple[_Input, ...]
    outputs: tuple[_Output, ...]
    weights: _Weights
    config: _Config = _Config()


class Package(_Strict):
    """A verified package: what the network takes and gives, and how instances are made of it."""

    name: str
    location: Path
    onnx_name: str
    input_id: str
    channels: int
    scale_um: tuple[float, ...] | None
    normalization: Normalization
    outputs: tuple[str, ...]
    embedding_dim: int
    config: SpocoConfig

    @property
    def n_axes(self) -> int:
        """Number of space axes: 2 for images, 3 for volumes."""
        return len(self.config.multiple_of)

    @property
    def has_foreground_head(self) -> bool:
        """Whether the network says foreground by itself."""
        return "foreground" in self.outputs

    @property
    def has_momentum(self) -> bool:
        """Whether the embedding of the momentum net comes along."""
        return "momentum_embedding" in self.outputs

    @property
    def numbers(self) -> list[int]:
        """Numbers that a pixel gets: embedding, that of the momentum net, foreground."""
        dim = self.embedding_dim
        return [dim] + [dim] * self.has_momentum + [1] * self.has_foreground_head

    def read(self, name: str) -> bytes:
        """Read one file of the package, verified.

        Raises:
            PackageError: The file is missing, outside, or not the one that rdf.yaml states.
        """
        content = read_member(self.location, name)
        verify(self.location, name, content, self.config.files[name])
        return content


def load_package(location: Path | str) -> Package:
    """Read and verify a package: a folder, a zip, or the path of an `rdf.yaml`.

    Raises:
        PackageError: The package is missing, damaged, unsafe, or not of a kind that runs here.
    """
    location = Path(location)
    if location.name == RDF_NAME and location.is_file():
        location = location.parent
    if not location.exists():
        raise PackageError(f"{location}: no such package: expected a folder or a zip")
    check_zip(location)
    words = read_description(location)
    _check_format(location / RDF_NAME, words)
    rdf = _validate(location, words)
    package = _understand(location, rdf)
    check_names(location, package.config.files)
    for name, expected in package.config.files.items():
        content = read_member(location, name)
        verify(location, name, content, expected)
        if name == package.onnx_name:
            refuse_external_data(content, location / name)
    return package


def _check_format(place: Path, words: dict[str, Any]) -> None:
    version = str(words.get("format_version"))
    if words.get("type") != "model" or not re.fullmatch(r"0\.5\.\d+", version):
        raise PackageError(
            f"{place}: is {words.get('type')} of format {version}: "
            "expected model of format 0.5; update the package with bioimageio update-format"
        )


def _validate(location: Path, words: dict[str, Any]) -> _Rdf:
    try:
        return _Rdf.model_validate(words)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise PackageError(
            f"{location / RDF_NAME}: {field}: {reason}; export the package again"
        ) from error


def _understand(location: Path, rdf: _Rdf) -> Package:
    """Bring a description to what running needs, or say what is missing."""
    place = location / RDF_NAME
    config, onnx = rdf.config.spoco_zoo, rdf.weights.onnx
    if config is None:
        raise PackageError(
            f"{place}: has no config.spoco_zoo: expected a package written by spoco-zoo export"
        )
    if onnx is None:
        raise PackageError(f"{place}: has no onnx weights: only these are run; export them too")
    if len(rdf.inputs) != 1:
        raise PackageError(f"{place}: has {len(rdf.inputs)} inputs: expected one image")
    image = rdf.inputs[0]
    space = "zyx"[-len(config.multiple_of) :]
    expected = ("batch", "channel", *space)
    outputs = {tensor.id: tensor for tensor in rdf.outputs}
    for tensor in (image, *rdf.outputs):
        if tensor.axis_names != expected or tensor.channels is None:
            raise PackageError(
                f"{place}: axes of {tensor.id} are {', '.join(tensor.axis_names)}: "
                f"expected {', '.join(expected)} with channel names"
            )
    known = ("embedding", "foreground", "momentum_embedding")
    if "embedding" not in outputs or not set(outputs) <= set(known):
        raise PackageError(
            f"{place}: outputs are {', '.join(outputs)}: "
            f"expected embedding, and at most {known[1]} and {known[2]}"
        )
    for tensor in rdf.outputs:
        if tensor.postprocessing:
            raise PackageError(
                f"{place}: {tensor.id} has postprocessing: expected none; export the package again"
            )
    _check_weights(place, onnx.source, onnx.sha256, config)
    _check_recipe(place, config.recipe, outputs)
    return Package(
        name=rdf.name,
        location=location,
        onnx_name=onnx.source,
        input_id=image.id,
        channels=image.channels or 0,
        scale_um=_scale_um([axis for axis in image.axes if axis.type == "space"]),
        normalization=_find_normalization(place, image, space),
        outputs=tuple(outputs),
        embedding_dim=outputs["embedding"].channels or 0,
        config=config,
    )


def _check_weights(place: Path, source: str, sha256: str | None, config: SpocoConfig) -> None:
    """Refuse weights that are no file of the package, or another one than was listed."""
    if source not in config.files:
        raise PackageError(
            f"{place}: the ONNX weights are {source!r}, which is no file that config.spoco_zoo "
            "lists: expected one of the package; export it again"
        )
    if sha256 not in (None, config.files[source]):
        raise PackageError(f"{place}: states two sha256 of {source}: export the package again")


def _check_recipe(place: Path, recipe: Recipe, outputs: Mapping[str, _Tensor]) -> None:
    """Refuse a recipe that asks for what the network does not give."""
    if isinstance(recipe.foreground, Head) and "foreground" not in outputs:
        raise PackageError(
            f"{place}: the foreground rule is head and there is no foreground output: "
            "export the package again"
        )
    if isinstance(recipe.clustering, Consistency) and "momentum_embedding" not in outputs:
        raise PackageError(
            f"{place}: the method is consistency and there is no momentum_embedding output: "
            "export the package again"
        )
    dim = outputs["embedding"].channels
    if isinstance(recipe.foreground, Prototype) and len(recipe.foreground.center) != dim:
        raise PackageError(
            f"{place}: the foreground prototype has {len(recipe.foreground.center)} numbers and "
            f"the embedding {dim}: export the package again"
        )


def _find_normalization(place: Path, image: _Input, space: str) -> Normalization:
    """Translate the preprocessing of the format, or refuse what would be another result."""
    plain = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}  # what is done anyway
    operations = [op for op in image.preprocessing if op != plain]
    if not operations:
        return ScaleLinear()
    first = operations[0]
    try:
        if len(operations) > 1:
            raise ValueError("more than one operation")
        words = dict(first.get("kwargs") or {})
        axes = words.pop("axes", None)
        match first.get("id"):
            case "zero_mean_unit_variance":
                _expect_axes(axes, space)
                return ZeroMeanUnitVariance(**words)
            case "scale_range":
                _expect_axes(axes, space)
                return ScaleRange(**words)
            case "fixed_zero_mean_unit_variance":
                _expect_axis(words.pop("axis", None), image.channels)
                return FixedZeroMeanUnitVariance(
                    mean=_as_tuple(words["mean"]), std=_as_tuple(words["std"])
                )
            case "scale_linear":
                _expect_axis(words.pop("axis", None), image.channels)
                return ScaleLinear(
                    gain=_as_tuple(words.get("gain", 1.0)),
                    offset=_as_tuple(words.get("offset", 0.0)),
                )
            case _:
                raise ValueError("not known here")
    except (ValueError, TypeError, KeyError) as error:
        names = " and ".join(str(op.get("id")) for op in operations)
        raise PackageError(
            f"{place}: preprocessing {names} is not understood: expected one of "
            "zero_mean_unit_variance, fixed_zero_mean_unit_variance, scale_linear, scale_range, "
            "per channel over space"
        ) from error


def _expect_axes(axes: Any, space: str) -> None:  # noqa: ANN401 - from YAML
    if axes is None or set(axes) != set(space):
        raise ValueError(f"statistics over {axes}")


def _expect_axis(axis: Any, channels: int | None) -> None:  # noqa: ANN401 - from YAML
    if axis not in ("channel", None) or (axis is None and channels != 1):
        raise ValueError(f"numbers along {axis}")


def _as_tuple(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - from YAML
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _scale_um(axes: Sequence[_Axis]) -> tuple[float, ...] | None:
    """Pixel size that the network was trained for, if the package states one."""
    if any(axis.unit != "micrometer" for axis in axes):
        return None
    return tuple(axis.scale for axis in axes)
