"""`rdf.yaml` of a package, in the form that old and new readers share.

bioimageio.spec from 0.5.11 on writes mappings where older readers (ilastik's, JDLL's) expect
plain strings, and JDLL needs an id. So the description is put together here in the common form
and bioimageio.spec is its judge, in `acceptance`.
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
from spoco_zoo.packaging.flavours import Flavour, Output
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
    "proof": "proof.json",
}


@dataclass(frozen=True)
class Facts:
    """What the description needs to know beside the spec."""

    flavour: Flavour
    config: SpocoConfig | None  # of a package that `run` clusters
    architecture: Mapping[str, object]
    parameters: int
    peaks: Mapping[str, float]  # largest value of each expected output
    files: Mapping[str, str]  # sha256 by name


def package_id(spec: Spec, flavour: str) -> str:
    """The id of a package, which is also the name of its folder in a collection."""
    return spec.name if flavour == "embeddings" else f"{spec.name}-{flavour}"


def test_output_name(output: str) -> str:
    """File that holds the expected output of the test input."""
    return f"test_{output}.npy"


def sample_output_name(output: str) -> str:
    """File that shows an output of the sample image."""
    return f"sample_{output}.tif"


def describe(spec: Spec, facts: Facts) -> dict[str, Any]:
    """Put the description together."""
    card, flavour = spec.card, facts.flavour
    optional = {
        "cite": [c.model_dump(exclude_none=True) for c in card.cite],
        "tags": list(card.tags),
    }
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "id": package_id(spec, flavour.name),
        "name": _title(card.title, flavour.name),
        "description": f"{card.description} {_what_it_gives(flavour)}".strip(),
        "authors": [author.model_dump(exclude_none=True) for author in card.authors],
        **{word: value for word, value in optional.items() if value},
        "license": card.license,
        "version": card.version,
        "timestamp": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "documentation": FILES["card"],
        "covers": [FILES["cover"]],
        # the hashes of the card and the cover have no place beside their names
        "attachments": [
            _file(FILES[word], facts)
            for word in ("proof", "card", "cover")
            if FILES[word] in facts.files
        ],
        "inputs": [_input(spec, facts)],
        "outputs": [_output(output, facts) for output in flavour.outputs],
        "weights": _weights(facts),
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [_tolerance(o, facts) for o in flavour.outputs],
                "model_parameter_count": facts.parameters,
                "architecture_type": "U-Net",
                "task": "instance segmentation",
            },
            **(
                {"spoco_zoo": facts.config.model_dump(mode="json")}
                if facts.config is not None
                else {}
            ),
        },
    }


def _what_it_gives(flavour: Flavour) -> str:
    """What people see of the output; ilastik shows channels by number alone."""
    if flavour.name == "instances":
        return "Gives a label image: 0 is background, every instance has a number."
    if flavour.name == "boundaries":
        return f"Gives probabilities, in this order: {', '.join(flavour.outputs[0].channels)}."
    return ""


def _title(title: str, flavour: str) -> str:
    """Tell the flavours apart in the lists of programs."""
    return title if flavour == "embeddings" else f"{title} {flavour}"


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a package but `rdf.yaml`, by name."""
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name != RDF_NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _tolerance(output: Output, facts: Facts) -> dict[str, Any]:
    if output.type != "float32":  # a label is right or wrong
        numbers = {"relative_tolerance": 0.0, "absolute_tolerance": 0.0}
        return {"output_ids": [output.id], **numbers, "mismatched_elements_per_million": 1000}
    # bioimageio.spec refuses an absolute tolerance above 1 % of the largest value
    return {
        "output_ids": [output.id],
        "relative_tolerance": TOLERANCE,
        "absolute_tolerance": min(TOLERANCE, max(0.0, 0.009 * facts.peaks[output.id])),
        "mismatched_elements_per_million": 100,
    }


def _file(name: str, facts: Facts) -> dict[str, str]:
    return {"source": name, "sha256": facts.files[name]}


def _axes(channels: Sequence[str], sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    space = "zyx"[-len(sizes) :]
    return [
        {"type": "batch", "id": "batch", "size": 1},
        {"type": "channel", "id": "channel", "channel_names": list(channels)},
        *({"type": "space", "id": a, **size} for a, size in zip(space, sizes, strict=True)),
    ]


def _input(spec: Spec, facts: Facts) -> dict[str, Any]:
    channels = [f"channel{n}" for n in range(spec.net.in_channels or 0)]
    flavour = facts.flavour
    pairs = zip(flavour.smallest, flavour.step, strict=True)
    sizes = [{"size": {"min": smallest, "step": step}} for smallest, step in pairs]
    return {
        "id": "image",
        "description": "Intensities as they come from the microscope",
        "axes": _axes(channels, sizes),
        "data": {"type": "float32"},
        "test_tensor": _file(FILES["input"], facts),
        "sample_tensor": _file(FILES["sample"], facts),
        "preprocessing": _preprocessing(spec.data.normalization, "zyx"[-len(sizes) :]),
    }


def _output(output: Output, facts: Facts) -> dict[str, Any]:
    halos = facts.flavour.halo
    sizes: list[dict[str, Any]] = [
        {"size": {"tensor_id": "image", "axis_id": axis}} | ({"halo": halo} if halo else {})
        for axis, halo in zip("zyx"[-len(halos) :], halos, strict=True)
    ]
    return {
        "id": output.id,
        "description": output.description,
        "axes": _axes(output.channels, sizes),
        "data": {"type": output.type},
        "test_tensor": _file(test_output_name(output.id), facts),
        "sample_tensor": _file(sample_output_name(output.id), facts),
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
    onnx = _file(FILES["onnx"], facts) | {"opset_version": OPSET}
    script = _file(FILES["torchscript"], facts) | {"pytorch_version": version}
    if not facts.flavour.has_state_dict:
        return {"onnx": onnx | {"parent": "torchscript"}, "torchscript": script}
    child = {"parent": "pytorch_state_dict"}
    state_dict = _file(FILES["state_dict"], facts) | {
        "pytorch_version": version,
        "architecture": _file(FILES["architecture"], facts)
        | {"callable": "PackagedUNet", "kwargs": dict(facts.architecture)},
    }
    return {"onnx": onnx | child, "pytorch_state_dict": state_dict, "torchscript": script | child}
