"""The graphs that are exported: one network as ONNX, TorchScript and state dict.

What consumers can open decides the form. ONNX: opset 17 and IR 8 by the tracing exporter, one
file, because the engines of Fiji read nothing newer. TorchScript: networks are traced, because
scripting one pulls in operators that libtorch 2.0 does not know. Both keep the size of the image
free; the padding to the pooling grid is part of the graph.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spoco_zoo.spec import Spec
from spoco_zoo.training.checkpoints import build_net
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import PackagedUNet

OPSET = 17


def package_net(spec: Spec, pair: MomentumPair, *, momentum: bool) -> PackagedUNet:
    """Put trained networks into the form of a package, in evaluation mode."""
    net = PackagedUNet(**architecture(spec, momentum=momentum))
    net.embedding_net.load_state_dict(pair.embedding_net.state_dict())
    if net.momentum_net is not None:
        net.momentum_net.load_state_dict(pair.momentum_net.state_dict())
    return net.eval()


def architecture(spec: Spec, *, momentum: bool) -> dict[str, Any]:
    """The arguments that build the network anew, as plain numbers and lists."""
    plain = build_net(spec)
    return {
        "in_channels": spec.net.in_channels,
        "embedding_dim": plain.embedding_dim,
        "widths": list(spec.net.widths),
        "pooling": [list(step) for step in spec.net.steps],
        "foreground_head": plain.has_foreground_head,
        "order": plain.order,
        "momentum": momentum,
    }


def output_names(net: PackagedUNet) -> list[str]:
    """Names of the outputs in their order."""
    names = ["embedding"]
    if net.embedding_net.has_foreground_head:
        names.append("foreground")
    if net.momentum_net is not None:
        names.append("momentum_embedding")
    return names


def write_state_dict(net: PackagedUNet, path: Path) -> None:
    """Write the weights as tensors and nothing else."""
    torch.save({name: value.clone() for name, value in net.state_dict().items()}, path)


def write_torchscript(script: Any, path: Path) -> None:  # noqa: ANN401 - torch has no type
    """Write a traced or compiled network."""
    with quiet():
        torch.jit.save(script, path)


def read_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Open what `write_torchscript` wrote."""
    with quiet():
        module: torch.jit.ScriptModule = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return module


def write_onnx(network: Any, example: torch.Tensor, names: Sequence[str], path: Path) -> None:  # noqa: ANN401
    """Export a network as one ONNX file with free sizes of batch and space.

    Args:
        network: A module, traced, compiled or neither, in evaluation mode.
        example: An image `(1, c, *space)`.
        names: Names of the outputs.
        path: Where the file goes.
    """
    space = dict(enumerate("zyx"[-(example.ndim - 2) :], start=2))
    with quiet(), torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,  # the new exporter writes opset 18 and IR 10 whatever is asked for
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes={name: {0: "batch"} | space for name in ["image", *names]},
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back that TorchScript is deprecated: the format has no successor to it yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
