"""Weights to start from: those of another run, or of a package, fitted to a new network.

Of a package its state dict is read as tensors, after its sha256 was found to be the one that
`rdf.yaml` states, and the words of its architecture; no code that it carries is run.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from spoco_zoo.archive import RDF_NAME, check_zip, read_description
from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.package import Package, load_package
from spoco_zoo.spec import NetSettings, load_spec
from spoco_zoo.training.checkpoints import load_checkpoint
from spoco_zoo.training.net import UNet

_PREFIX = "embedding_net."  # f; g starts as its copy
_MOST_CHANNELS = 2**16


@dataclass(frozen=True)
class Start:
    """Weights of f, where they come from, and the settings that they were trained with."""

    source: str
    sha256: str  # of the file of weights
    net: NetSettings
    weights: dict[str, Tensor]
    other: dict[str, dict[str, Any]]  # words of a spec beside the network

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """Words of a spec that these weights fit into, whatever the images and labels are."""
        net = self.net.model_dump(mode="json", exclude={"in_channels", "foreground_head"})
        return {"net": net, **self.other}


def read_start(source: Path) -> Start:
    """Read the weights of a run folder or of a package, a folder or a zip.

    Raises:
        PackageError: The package is missing, damaged, or holds no weights to train on.
        SettingError: The run holds no readable checkpoint.
    """
    source = Path(source)
    is_known = source.is_file() or any((source / n).is_file() for n in ("spec.yaml", RDF_NAME))
    if not is_known:
        raise SettingError(
            f"{source}: no such run or package: expected a run folder, or a package as folder "
            "or zip"
        )
    return _read_run(source) if (source / "spec.yaml").is_file() else _read_package(source)


def _read_run(folder: Path) -> Start:
    spec, path = load_spec(folder / "spec.yaml"), folder / "best.pt"
    pair = load_checkpoint(path).get("pair", {})
    net = spec.net.model_copy(update={"foreground_head": spec.has_foreground_head})
    other: dict[str, dict[str, Any]] = {
        "data": {"normalization": spec.data.normalization.model_dump(mode="json")},
        "loss": {"delta_var": spec.loss.delta_var, "delta_dist": spec.loss.delta_dist},
        "schedule": {"crop": list(spec.schedule.crop)},
    }
    weights = _take_weights(pair, net)
    if weights is None:
        raise SettingError(
            f"{path}: does not fit spec.yaml beside it: put back the spec of the run"
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Start(str(folder), sha256, net, weights, other)


class _Architecture(BaseModel):
    """What a package says of its network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]
    embedding_dim: int
    widths: tuple[Annotated[int, Field(le=_MOST_CHANNELS)], ...]
    pooling: tuple[tuple[int, ...], ...]
    foreground_head: bool
    order: str
    momentum: bool

    def to_settings(self) -> NetSettings:
        """Bring it to the words of a spec."""
        words = self.model_dump(exclude={"momentum"})
        return NetSettings.model_validate(words | {"dimensions": len(self.pooling[0])})


def _read_package(source: Path) -> Start:
    check_zip(source)
    weights = read_description(source).get("weights")
    entry = weights.get("pytorch_state_dict") if isinstance(weights, dict) else None
    if not isinstance(entry, dict):
        raise PackageError(
            f"{source}: has no state dict to go on from: expected a run folder, or a package of "
            "the flavour embeddings"
        )
    package = load_package(source)
    try:
        name = str(entry["source"])
        net = _Architecture.model_validate(entry["architecture"]["kwargs"]).to_settings()
        if entry.get("sha256") not in (None, package.config.files[name]):
            raise KeyError("sha256")
        content = package.read(name)
    except (ValidationError, KeyError, TypeError, IndexError) as error:
        raise PackageError(
            f"{source / RDF_NAME}: the state dict is not described as spoco-zoo export does: "
            "export the package again"
        ) from error
    try:
        state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise PackageError(
            f"{source / name}: holds no weights that can be read ({type(error).__name__}): "
            "export the package again"
        ) from error
    found = _take_weights(state, net)
    if found is None:
        raise PackageError(
            f"{source / name}: does not fit the architecture in rdf.yaml: export the package again"
        )
    return Start(str(source), package.config.files[name], net, found, _words_of(package))


def _words_of(package: Package) -> dict[str, dict[str, Any]]:
    config = package.config
    return {
        "data": {"normalization": package.normalization.model_dump(mode="json")},
        "loss": {"delta_var": config.delta_var, "delta_dist": config.delta_dist},
        "schedule": {"crop": list(config.crop)},
    }


def _take_weights(state: object, net: NetSettings) -> dict[str, Tensor] | None:
    """Take the weights of f if they are all there and of the shapes of the network."""
    if not isinstance(state, Mapping):
        return None
    with torch.device("meta"):  # shapes alone: no memory is taken for what a file claims
        expected = _build(net).state_dict()
    taken = {name: state.get(_PREFIX + name) for name in expected}
    fits = all(
        isinstance(value, Tensor) and value.shape == expected[name].shape
        for name, value in taken.items()
    )
    return {n: v for n, v in taken.items() if isinstance(v, Tensor)} if fits else None


def _build(net: NetSettings) -> UNet:
    return UNet(
        net.in_channels or 1,
        net.embedding_dim,
        net.widths,
        net.steps,
        foreground_head=bool(net.foreground_head),
        order=net.order,
    )


@torch.no_grad()
def fill(net: UNet, settings: NetSettings, start: Start) -> list[str]:
    """Fill a new network with the weights of a start, in place; what has none stays as it is.

    Other counts of channels and another head are adapted to.

    Args:
        net: The new network.
        settings: Those of the new network, with the count of channels.
        start: What to start from.

    Returns:
        A sentence for each adaptation.

    Raises:
        SettingError: The networks are of another number of axes or of other shape.
    """
    _refuse_other(settings, start.net)
    weights, notes = dict(start.weights), []
    before, now = start.net.in_channels or 1, settings.in_channels or 1
    if before != now:
        for name in _input_names(net):
            weights[name] = _spread(weights[name], now)
        notes.append(
            f"the images have {now} channels and those of the start {before}: "
            "the first convolution starts with their mean"
        )
    head, heads = _fit_head(net, start)
    own = net.state_dict()
    if any(weights[n].shape != own[n].shape for n in own if not n.startswith("head.")):
        raise SettingError(
            f"the images have {now} channels and those of the start {before}: with more than "
            f"{settings.widths[0] // 2} the network has another shape; train without --from"
        )
    net.load_state_dict(weights | head)
    return notes + heads


def _refuse_other(settings: NetSettings, source: NetSettings) -> None:
    words = {
        "dimensions": (settings.dimensions, source.dimensions),
        "widths": (list(settings.widths), list(source.widths)),
        "pooling": ([list(s) for s in settings.steps], [list(s) for s in source.steps]),
        "order": (settings.order, source.order),
    }
    for word, (own, other) in words.items():
        if own != other:
            raise SettingError(
                f"net.{word} is {own}, and {other} in what --from starts from: "
                "expected the same; change the spec or train without --from"
            )


def _input_names(net: UNet) -> list[str]:
    """Names of the weights that have an entry for each channel of the image."""
    layers = net.encoders[0].named_modules(prefix="encoders.0")
    names: list[str] = []
    for name, module in layers:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return [*names, f"{name}.weight"]
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):  # before it, in the order bcr
            names += [f"{name}.{part}" for part in _OF_NORM]
    return names


_OF_NORM = ("weight", "bias", "running_mean", "running_var")


def _spread(weight: Tensor, channels: int) -> Tensor:
    """Give every channel the mean; a convolution is scaled so that equal channels sum up alike."""
    if weight.ndim == 1:
        return weight.mean().expand(channels)
    mean = weight.mean(dim=1, keepdim=True) * weight.shape[1] / channels
    return mean.expand(-1, channels, *(-1,) * (weight.ndim - 2))


def _fit_head(net: UNet, start: Start) -> tuple[dict[str, Tensor], list[str]]:
    """Put the rows of the head together: embedding and foreground, each old or new."""
    notes, dim, before = [], net.embedding_dim, start.net.embedding_dim
    keeps_embedding, keeps_foreground = dim == before, False
    if not keeps_embedding:
        notes.append(f"embeddings have {dim} numbers and {before} at the start: they are new")
    if net.has_foreground_head:
        keeps_foreground = bool(start.net.foreground_head)
        if not keeps_foreground:
            notes.append("the start has no foreground head: it is new")
    elif start.net.foreground_head:
        notes.append("the foreground head of the start is left out")
    result = {}
    for name in ("head.weight", "head.bias"):
        rows, old = net.state_dict()[name].clone(), start.weights[name]
        if keeps_embedding:
            rows[:dim] = old[:dim]
        if keeps_foreground:
            rows[dim:] = old[before:]
        result[name] = rows
    return result, notes
