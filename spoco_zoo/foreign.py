"""Packages of others: what their outputs mean to instances, decided by what they say of themselves.

    embeddings   one output of floats with several channels: to be clustered by a recipe
    boundaries   a channel named so, in 0..1: instances lie between them
    labels       one channel of integers, or named so: the instances themselves

Nothing is guessed beyond these names. Like all packages they are data: only ONNX weights are
read, and only after their sha256, where the description states one.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spoco_zoo.archive import check_zip, find_description, read_description, read_member, verify
from spoco_zoo.errors import PackageError
from spoco_zoo.onnx_header import refuse_external_data
from spoco_zoo.operations import EnsureDtype
from spoco_zoo.rdf import Axis, Description, Tensor, parse_description

_log = logging.getLogger(__name__)
_BOUNDARY_WORDS = ("boundar", "border", "contour")
_INTERIOR_WORDS = ("foreground", "interior")
_LABEL_NAMES = ("label", "labels", "instances", "instance_labels", "instance_segmentation")


@dataclass(frozen=True)
class Plane:
    """One channel of one output."""

    output: str
    channel: int = 0


@dataclass(frozen=True)
class Embeddings:
    """Which output is the embedding, and which channel says foreground, if any."""

    output: str
    dim: int
    foreground: Plane | None


@dataclass(frozen=True)
class Boundaries:
    """Which channel is boundary, and which the inside of instances, if any.

    Where `excludes` is true, the inside ends at the boundary, else it takes it in.
    """

    boundary: Plane
    interior: Plane | None
    excludes: bool


@dataclass(frozen=True)
class LabelImage:
    """Which output is a label image."""

    output: str


@dataclass(frozen=True)
class Side:
    """Sizes that the network takes along one axis of space, and what of it is context."""

    least: int
    step: int  # 0 for one size only
    halo: int


@dataclass(frozen=True)
class ForeignPackage:
    """A package of others, as far as running it needs."""

    location: Path
    description: Description
    meaning: Embeddings | Boundaries | LabelImage
    sides: tuple[Side, ...]
    has_halo: bool

    @property
    def name(self) -> str:
        """What the package calls itself."""
        return self.description.name

    @property
    def image(self) -> Tensor:
        """The input."""
        return self.description.inputs[0]

    @property
    def space(self) -> tuple[str, ...]:
        """Names of the axes of space, z before y before x."""
        return tuple(sorted((axis.name for axis in self.image.find("space")), reverse=True))

    @property
    def n_axes(self) -> int:
        """Number of space axes: 2 for images, 3 for volumes."""
        return len(self.sides)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return len(self.image.channel_names)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Outputs that are used."""
        match self.meaning:
            case Embeddings(output=output, foreground=plane):
                names = [output, *([] if plane is None else [plane.output])]
            case Boundaries(boundary=boundary, interior=plane):
                names = [boundary.output, *([] if plane is None else [plane.output])]
            case LabelImage(output=output):
                names = [output]
        return tuple(tensor for tensor in self.description.outputs if tensor.name in names)

    def read_weights(self) -> bytes:
        """Read the network.

        Raises:
            PackageError: It is missing, or not the one that the description states.
        """
        name = self.description.onnx_name
        content = read_member(self.location, name)
        if self.description.sha256 is not None:
            verify(self.location, name, content, self.description.sha256)
        refuse_external_data(content, self.location / name)
        return content


def is_foreign(location: Path | str) -> bool:
    """Tell whether a package was written by others: it has no `config.spoco_zoo`.

    Raises:
        PackageError: It is missing, damaged or unsafe.
    """
    location = _find(location)
    config = read_description(location, find_description(location)).get("config")
    return not isinstance(config, dict) or "spoco_zoo" not in config


def load_foreign(location: Path | str) -> ForeignPackage:
    """Read and verify a package of others: a folder, a zip, or the path of its description.

    Raises:
        PackageError: The package is missing, damaged, unsafe, or not of a kind that runs here.
    """
    location = _find(location)
    name = find_description(location)
    place = location / name
    description = parse_description(place, read_description(location, name))
    if len(description.inputs) != 1:
        raise PackageError(f"{place}: has {len(description.inputs)} inputs: expected one image")
    names = [tensor.name for tensor in (*description.inputs, *description.outputs)]
    if len(set(names)) < len(names):
        raise PackageError(f"{place}: two tensors of {', '.join(names)} share a name: rename one")
    image = description.inputs[0]
    _check_tensor(place, image)
    meaning = _find_meaning(place, description)
    found = ForeignPackage(location, description, meaning, (), has_halo=False)
    for tensor in found.outputs:
        _check_tensor(place, tensor)
        _check_follows(place, tensor, image)
    sides = tuple(_find_side(place, axis, found.outputs, image) for axis in found.space)
    has_halo = any(side.halo for side in sides)
    package = ForeignPackage(location, description, meaning, sides, has_halo)
    package.read_weights()
    if description.sha256 is None:
        _log.warning("%s: states no sha256 of %s: not verified", place, description.onnx_name)
    if not has_halo and not isinstance(meaning, LabelImage):
        _log.warning("%s: declares no halo: %s", place, _without_halo(sides))
    return package


def arrange(values: np.ndarray, tensor: Tensor, space: Sequence[str]) -> np.ndarray:
    """Bring `(c, *space)` to the axes of a tensor; those that are neither get one place."""
    keys = _keys(tensor)
    has_channel = "" in keys
    source = ["", *space] if has_channel else list(space)
    values = values if has_channel else values[0]
    ordered = values.transpose([source.index(key) for key in keys if key is not None])
    return np.expand_dims(ordered, [at for at, key in enumerate(keys) if key is None])


def restore(values: np.ndarray, tensor: Tensor, space: Sequence[str]) -> np.ndarray:
    """Bring the axes of a tensor to `(c, *space)`, the way back of `arrange`."""
    keys = _keys(tensor)
    plain = values.squeeze(tuple(at for at, key in enumerate(keys) if key is None))
    kept = [key for key in keys if key is not None]
    order = [kept.index(key) for key in ("", *space) if key in kept]
    ordered = plain.transpose(order)
    return ordered if "" in kept else ordered[None]


def _keys(tensor: Tensor) -> list[str | None]:
    """For each axis the name of one of space, nothing for channels, None for any other."""
    keys: dict[str, str | None] = {"channel": ""}
    return [a.name if a.kind == "space" else keys.get(a.kind) for a in tensor.axes]


def _find(location: Path | str) -> Path:
    location = Path(location)
    if location.suffix == ".yaml" and location.is_file():
        location = location.parent
    if not location.exists():
        raise PackageError(f"{location}: no such package: expected a folder or a zip")
    check_zip(location)
    return location


def _find_meaning(place: Path, description: Description) -> Embeddings | Boundaries | LabelImage:
    tensors = description.outputs
    planes = [
        (Plane(tensor.name, at), f"{tensor.name if len(names) == 1 else ''} {name}".lower())
        for tensor in tensors
        for names in [tensor.channel_names]
        for at, name in enumerate(names)
    ]
    boundary, _ = _find_plane(planes, _BOUNDARY_WORDS)
    interior, told = _find_plane(planes, _INTERIOR_WORDS)
    if boundary is not None:
        return Boundaries(boundary, interior, "interior" in told)
    for tensor in tensors:
        if len(tensor.channel_names) == 1 and (
            _is_integer(tensor) or tensor.name.lower() in _LABEL_NAMES
        ):
            return LabelImage(tensor.name)
    many = [t for t in tensors if len(t.channel_names) > 1 and not _is_integer(t)]
    named = [tensor for tensor in many if "embedding" in tensor.name.lower()]
    chosen = named if len(many) > 1 else many
    if len(chosen) == 1 and (interior is None or interior.output != chosen[0].name):
        return Embeddings(chosen[0].name, len(chosen[0].channel_names), interior)
    told = ", ".join(f"{t.name} of {len(t.channel_names)} channels" for t in tensors)
    raise PackageError(
        f"{place}: outputs are {told}: expected an embedding of several channels, a channel named "
        "boundary, or one channel of labels; choose a package for instances"
    )


def _find_plane(
    planes: Iterable[tuple[Plane, str]], words: Sequence[str]
) -> tuple[Plane | None, str]:
    for plane, told in planes:
        if any(word in told for word in words):
            return plane, told
    return None, ""


def _is_integer(tensor: Tensor) -> bool:
    last = tensor.operations[-1]
    return isinstance(last, EnsureDtype) and np.dtype(last.dtype).kind in "ui"


def _check_tensor(place: Path, tensor: Tensor) -> None:
    names = sorted((axis.name for axis in tensor.find("space")), reverse=True)
    many = [a.name for a in tensor.axes if a.kind in ("batch", "time", "index") and a.least != 1]
    if names not in (["y", "x"], ["z", "y", "x"]) or many:
        told = f"{', '.join(many)} of more than one place" if many else ", ".join(names) or "none"
        raise PackageError(
            f"{place}: axes of space of {tensor.name} are {told}: expected y and x, or z, y and x, "
            "and nothing else of more than one place but channels"
        )


def _check_follows(place: Path, tensor: Tensor, image: Tensor) -> None:
    """Refuse an output of another size than the image, whose pixels would not be the image's."""
    inputs = {axis.name: axis for axis in image.find("space")}
    for axis in tensor.find("space"):
        taken = inputs.get(axis.name)
        if taken is None or not _is_as_long(axis, taken, image.name):
            raise PackageError(
                f"{place}: output {tensor.name} is not as long as {image.name} on axis "
                f"{axis.name}: expected one pixel for each of the image"
            )


def _is_as_long(axis: Axis, taken: Axis, name: str) -> bool:
    if axis.follows is not None:
        same = (axis.follows.tensor, axis.follows.axis) == (name, taken.name)
        return same and axis.scale == taken.scale and axis.follows.offset == 0
    return axis.step != 0 or (taken.step == 0 and axis.least == taken.least)


def _find_side(place: Path, name: str, outputs: Sequence[Tensor], image: Tensor) -> Side:
    taken = next(axis for axis in image.find("space") if axis.name == name)
    if taken.step is None:
        raise PackageError(
            f"{place}: the size of {image.name} on axis {name} depends on another: "
            "expected sizes of its own"
        )
    halo = max(axis.halo for tensor in outputs for axis in tensor.axes if axis.name == name)
    if taken.step == 0 and taken.least <= 2 * halo:
        raise PackageError(
            f"{place}: axis {name} has {taken.least} pixels and a halo of {halo} on both sides: "
            "nothing is left between them; ask the authors"
        )
    return Side(taken.least, taken.step, halo)


def _without_halo(sides: Sequence[Side]) -> str:
    if any(side.step == 0 for side in sides):
        return "nothing is known of its context, and tiles of its one size may show seams"
    return "nothing is known of its context, so every image is taken as one tile"
