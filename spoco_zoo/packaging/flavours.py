"""Packages of one network, because no file serves all programs.

- `embeddings`: what the network gives, and in the description how instances are made of it; for
  `spoco-zoo run`, bioimageio.core and Python.
- `instances`: a label image, clustering included; for Fiji (deepImageJ) and everybody who wants no
  second step. One tile, one image: labels of different tiles would collide.
- `boundaries`: foreground, boundary and interior as probabilities; for ilastik's workflows.
- `qupath`: instances again, as QuPath calls a network. It needs a pixel size in the description,
  which Fiji's library takes for a ratio of sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spoco_zoo.packaging import boundaries, instances, qupath
from spoco_zoo.packaging.graphs import output_names, quiet
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import Spec
from spoco_zoo.training.net import PackagedUNet

FlavourName = Literal["embeddings", "instances", "boundaries", "qupath"]
FLAVOURS: tuple[FlavourName, ...] = ("embeddings", "instances", "boundaries", "qupath")
WeightsFormat = Literal["onnx", "torchscript", "pytorch_state_dict"]


@dataclass(frozen=True)
class Output:
    """One output of a package."""

    id: str
    channels: tuple[str, ...]
    description: str
    type: Literal["float32", "int64"] = "float32"

    @property
    def is_label(self) -> bool:
        """Whether its values are numbers of instances, which are right or wrong."""
        return self.id == instances.OUTPUT


@dataclass(frozen=True, eq=False)
class Flavour:
    """What is exported: a network and what comes behind it."""

    name: FlavourName
    run: Callable[[Tensor], tuple[Tensor, ...]]  # an image (1, c, *space) as it is given, by torch
    script: Any  # the same as TorchScript
    source: Any  # what ONNX is made of: the network itself where it can be, for its names
    outputs: tuple[Output, ...]
    halo: tuple[int, ...]  # of every output, 0 where an image must not be cut
    multiple_of: tuple[int, ...]
    formats: tuple[WeightsFormat, ...] = ("onnx", "torchscript")

    @property
    def step(self) -> tuple[int, ...]:
        """By how much the declared size of the input grows, per axis."""
        # ilastik cuts tiles by this step, and a tile off the pooling grid differs from the whole
        return self.multiple_of if self.name == "boundaries" else (1,) * len(self.halo)

    @property
    def smallest(self) -> tuple[int, ...]:
        """Least size that is declared: more than both halos, on the pooling grid."""
        pairs = zip(self.halo, self.multiple_of, strict=True)
        return tuple((2 * halo // step + 1) * step for halo, step in pairs)


def build_flavour(name: FlavourName, net: PackagedUNet, spec: Spec, recipe: Recipe) -> Flavour:
    """Build one flavour of a trained network, which is in evaluation mode.

    Raises:
        SettingError: The recipe cannot go into a graph, for `instances`.
    """
    odd = [step * 2 + 1 for step in net.embedding_net.multiple_of]
    example = torch.randn(1, spec.net.in_channels or 0, *odd)
    match name:
        case "embeddings":
            return _embeddings(net, spec, example)
        case "instances":
            return _instances(net, recipe, example)
        case "boundaries":
            return _boundaries(net, spec, recipe, example)
        case "qupath":
            return _qupath(net, spec, recipe, example)


def check_flavour(name: FlavourName, spec: Spec, recipe: Recipe) -> None:
    """Refuse a flavour that a run cannot have.

    Raises:
        SettingError: It cannot; says why.
    """
    if name == "instances":
        instances.check_recipe(recipe)
    if name == "qupath":
        qupath.check_qupath(spec, recipe)


def _embeddings(net: PackagedUNet, spec: Spec, example: Tensor) -> Flavour:
    texts = {
        "embedding": "Pixel embeddings: near each other within an instance, far between two",
        "foreground": "Probability that a pixel belongs to any instance",
        "momentum_embedding": "Pixel embeddings of the momentum network",
    }
    names = tuple(f"embedding{n}" for n in range(spec.net.embedding_dim))
    outputs = tuple(
        Output(name, ("foreground",) if name == "foreground" else names, texts[name])
        for name in output_names(net)
    )
    grid, halo = net.embedding_net.multiple_of, net.embedding_net.halo
    formats: tuple[WeightsFormat, ...] = ("onnx", "torchscript", "pytorch_state_dict")
    return Flavour("embeddings", net, _trace(net, example), net, outputs, halo, grid, formats)


def _instances(net: PackagedUNet, recipe: Recipe, example: Tensor) -> Flavour:
    script = instances.build_instances(net, recipe, example)
    text = "Instance labels, 0 is background; for whole images, labels of tiles collide"
    output = Output(instances.OUTPUT, ("labels",), text, "int64")
    grid = net.embedding_net.multiple_of
    whole = (0,) * len(grid)
    return Flavour(
        "instances", lambda image: (script(image),), script, script, (output,), whole, grid
    )


def _qupath(net: PackagedUNet, spec: Spec, recipe: Recipe, example: Tensor) -> Flavour:
    script = qupath.build_qupath(net, spec, recipe, example)
    text = "Instance labels, 0 is background, in float32, which QuPath reads"
    output = Output(instances.OUTPUT, ("labels",), text)
    grid = net.embedding_net.multiple_of
    whole = (0,) * len(grid)
    return Flavour(
        "qupath",
        lambda image: (script(image),),
        script,
        None,
        (output,),
        whole,
        grid,
        ("torchscript",),
    )


def _boundaries(net: PackagedUNet, spec: Spec, recipe: Recipe, example: Tensor) -> Flavour:
    module = boundaries.BoundaryNet(net, spec.loss.delta_dist, recipe).eval()
    names = module.channel_names
    text = f"Probabilities in 0..1, in this order: {', '.join(names)}"
    field, grid = net.embedding_net.receptive_field, net.embedding_net.multiple_of
    sees = [far + reach for far, reach in zip(field, module.reach, strict=True)]
    halo = tuple(-(-far // step) * step for far, step in zip(sees, grid, strict=True))
    output = Output(boundaries.OUTPUT, names, text)
    return Flavour(
        "boundaries",
        lambda image: (module(image),),
        _trace(module, example),
        module,
        (output,),
        halo,
        grid,
    )


def _trace(module: nn.Module, example: Tensor) -> Any:  # noqa: ANN401 - torch has no type for it
    with quiet(), torch.no_grad():
        return torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
