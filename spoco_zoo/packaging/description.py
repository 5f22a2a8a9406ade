"""`rdf.yaml` of a package, in the form that old and new readers share.

bioimageio.spec from 0.5.11 on writes mappings where older readers (ilastik's, JDLL's) expect
plain strings, and JDLL needs an id. So the description is put together here in the common form
and bioimageio.spec is its judge, in `proof`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spoco_zoo.archive import RDF_NAME
from spoco_zoo.normalization import (
    FixedZeroMeanUnitVariance,
    Normalization,
    ScaleLinear,
    ScaleRange,
    ZeroMeanUnitVariance,
)
from spoco_zoo.package import SpocoConfig
from spoco_zoo.packaging.graphs import OPSET
from spoco_zoo.spec import Spec

FORMAT_VERSION = "0.5.4"

TOLERANCE = 1e-3

FILES = {
    "onnx": "weights.onnx",
    "torchscript": "weights_torchscript.pt",
    "state_dict": "weights.pt",
    "architecture": "net.py",
    "input": "test_input.npy",
    "sample": "sample_image.tif",
    "card": "README.md",
    "cover": "cover.png",
}


@dataclass(frozen=True)
class Facts:
    """What the description needs to know beside the spec."""

    outputs: Mapping[str, int]  # channels by name
    architecture: Mapping[str, object]
    config: SpocoConfig
    parameters: int
    peaks: Mapping[str, float]  # largest value of each expected output


def test_output_name(output: str) -> str:
    """File that holds the expected output of the test input."""
    return f"test_{output}.npy"


def smallest_size(config: SpocoConfig) -> tuple[int, ...]:
    """Least size of the input that the package declares: more than both halos, on the grid."""
    pairs = zip(config.halo, config.multiple_of, strict=True)
    return tuple((2 * halo // step + 1) * step for halo, step in pairs)


def describe(spec: Spec, facts: Facts) -> dict[str, Any]:
    """Put the description together."""
    card = spec.card
    optional = {
        "cite": [c.model_dump(exclude_none=True) for c in card.cite],
        "tags": list(card.tags),
    }
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "id": spec.name,
        "name": card.title,
        "description": card.description,
        "authors": [author.model_dump(exclude_none=True) for author in card.authors],
        **{word: value for word, value in optional.items() if value},
        "license": card.license,
        "version": card.version,
        "timestamp": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "documentation": FILES["card"],
        "covers": [FILES["cover"]],
        "inputs": [_input(spec, facts)],
        "outputs": [_output(name, n, facts) for name, n in facts.outputs.items()],
        "weights": _weights(facts),
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [_tolerance(n, facts) for n in facts.outputs],
                "model_parameter_count": facts.parameters,
                "architecture_type": "U-Net",
                "task": "instance segmentation",
            },
            "spoco_zoo": facts.config.model_dump(mode="json"),
        },
    }


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a package but `rdf.yaml`, by name."""
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name != RDF_NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _tolerance(output: str, facts: Facts) -> dict[str, Any]:
    # bioimageio.spec refuses an absolute tolerance above 1 % of the largest value
    return {
        "output_ids": [output],
        "relative_tolerance": TOLERANCE,
        "absolute_tolerance": min(TOLERANCE, max(0.0, 0.009 * facts.peaks[output])),
        "mismatched_elements_per_million": 100,
    }


def _file(name: str, facts: Facts) -> dict[str, str]:
    return {"source": name, "sha256": facts.config.files[name]}


def _axes(channels: Sequence[str], sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    space = "zyx"[-len(sizes) :]
    return [
        {"type": "batch", "id": "batch", "size": 1},
        {"type": "channel", "id": "channel", "channel_names": list(channels)},
        *({"type": "space", "id": a, **size} for a, size in zip(space, sizes, strict=True)),
    ]


def _input(spec: Spec, facts: Facts) -> dict[str, Any]:
    channels = [f"channel{n}" for n in range(spec.net.in_channels or 0)]
    sizes = [{"size": {"min": n, "step": 1}} for n in smallest_size(facts.config)]
    return {
        "id": "image",
        "description": "Intensities as they come from the microscope",
        "axes": _axes(channels, sizes),
        "data": {"type": "float32"},
        "test_tensor": _file(FILES["input"], facts),
        "sample_tensor": _file(FILES["sample"], facts),
        "preprocessing": _preprocessing(spec.data.normalization, "zyx"[-len(sizes) :]),
    }


def _output(name: str, channels: int, facts: Facts) -> dict[str, Any]:
    space = "zyx"[-len(facts.config.halo) :]
    sizes = [
        {"size": {"tensor_id": "image", "axis_id": axis}, "halo": halo}
        for axis, halo in zip(space, facts.config.halo, strict=True)
    ]
    names = ["foreground"] if name == "foreground" else [f"embedding{n}" for n in range(channels)]
    texts = {
        "embedding": "Pixel embeddings: near each other within an instance, far between two",
        "foreground": "Probability that a pixel belongs to any instance",
        "momentum_embedding": "Pixel embeddings of the momentum network",
    }
    return {
        "id": name,
        "description": texts[name],
        "axes": _axes(names, sizes),
        "data": {"type": "float32"},
        "test_tensor": _file(test_output_name(name), facts),
    }


def _preprocessing(normalization: Normalization, space: str) -> list[dict[str, Any]]:
    match normalization:
        case ZeroMeanUnitVariance(eps=eps):
            words: dict[str, Any] = {"axes": list(space), "eps": eps}
        case ScaleRange() as settings:
            words = {"axes": list(space)} | settings.model_dump(exclude={"id"})
        case FixedZeroMeanUnitVariance(mean=mean, std=std):
            words = {"axis": "channel", "mean": list(mean), "std": list(std)}
        case ScaleLinear(gain=gain, offset=offset):
            words = {"axis": "channel", "gain": list(gain), "offset": list(offset)}
    return [
        {"id": normalization.id, "kwargs": words},
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
    ]


def _weights(facts: Facts) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    child = {"parent": "pytorch_state_dict"}
    return {
        "onnx": _file(FILES["onnx"], facts) | {"opset_version": OPSET} | child,
        "pytorch_state_dict": _file(FILES["state_dict"], facts)
        | {
            "pytorch_version": version,
            "architecture": _file(FILES["architecture"], facts)
            | {"callable": "PackagedUNet", "kwargs": dict(facts.architecture)},
        },
        "torchscript": _file(FILES["torchscript"], facts) | {"pytorch_version": version} | child,
    }
