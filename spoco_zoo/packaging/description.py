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
from spoco_zoo.packaging import qupath
from spoco_zoo.packaging.flavours import Flavour, Output
from spoco_zoo.packaging.graphs import OPSET
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.run_folder import RunFacts
from spoco_zoo.spec import Spec

FORMAT_VERSION = "0.5.4"

TOLERANCE = 1e-3

FILES = {
    "onnx": "weights.onnx",
    "torchscript": "weights_torchscript.pt",
    "instanseg": "instanseg.pt",  # the same, as QuPath calls it
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

    run: RunFacts
    flavour: Flavour
    config: SpocoConfig | None  # of a package that `run` clusters
    architecture: Mapping[str, object]
    parameters: int
    peaks: Mapping[str, float]  # largest value of each expected output
    files: Mapping[str, str]  # sha256 by name
    memory: Memory | None = None


def package_title(spec: Spec, flavour: str) -> str:
    """The name that tells the flavours apart in the lists of programs."""
    return spec.card.title if flavour == "embeddings" else f"{spec.card.title} {flavour}"


def torchscript_name(flavour: str) -> str:
    """The file of the TorchScript: QuPath looks for one name."""
    return FILES["instanseg" if flavour == "qupath" else "torchscript"]


def package_id(spec: Spec, flavour: str) -> str:
    """The id of a package, which is also the name of its folder in a collection."""
    return spec.name if flavour == "embeddings" else f"{spec.name}-{flavour}"


def test_output_name(output: str) -> str:
    """File that holds the expected output of the test input."""
    return f"test_{output}.npy"


def sample_output_name(output: str) -> str:
    """File that shows an output of the sample image."""
    return f"sample_{output}.tif"


def describe(facts: Facts) -> dict[str, Any]:
    """Put the description together."""
    spec, flavour = facts.run.spec, facts.flavour
    card = spec.card
    optional = {
        "cite": [c.model_dump(exclude_none=True) for c in card.cite],
        "tags": list(card.tags),
        "training_data": card.dataset and {"id": card.dataset.id},
        "maintainers": [
            {"name": author.name, "github_user": author.github_user}
            for author in card.authors
            if author.github_user
        ]
        + [{"github_user": facts.run.maintainer}] * (facts.run.maintainer is not None),
    }
    return {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "id": package_id(spec, flavour.name),
        "name": package_title(spec, flavour.name),
        "description": f"{card.description} {what_it_gives(flavour)}".strip(),
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
        "inputs": [_input(facts)],
        "outputs": [_output(output, facts) for output in flavour.outputs],
        "weights": _weights(facts),
        "config": {
            "bioimageio": _common_config(facts),
            **(
                {"spoco_zoo": facts.config.model_dump(mode="json")}
                if facts.config is not None
                else {}
            ),
        },
    }


def _common_config(facts: Facts) -> dict[str, Any]:
    """`config.bioimageio`: what the collection's own words can tell of training and needs."""
    spec, schedule = facts.run.spec, facts.run.spec.schedule
    card = spec.card
    widths = ", ".join(map(str, spec.net.widths))
    optional = {
        "modality": card.modality,
        "target_structure": list(card.target_structure),
        "memory_requirements_inference": facts.memory and str(facts.memory),
        "evaluations": _evaluations(facts.run) if facts.flavour.name == "embeddings" else [],
    }
    return {
        "reproducibility_tolerance": [_tolerance(o, facts) for o in facts.flavour.outputs],
        "model_parameter_count": facts.parameters,
        "architecture_type": "U-Net",
        "architecture_description": (
            f"{spec.net.dimensions}D U-Net of {len(spec.net.widths)} levels ({widths} channels), "
            f"which gives every pixel an embedding of {spec.net.embedding_dim} numbers"
        ),
        "task": "instance segmentation",
        "out_of_scope_use": card.limits,
        "training": {
            "training_preprocessing": f"{spec.data.normalization.id} of the whole image",
            "training_augmentation": spec.augmentation.model_dump(mode="json"),
            "training_steps": schedule.steps,
            "training_batch_size": schedule.batch_size,
            "training_crop": list(schedule.crop),
            "initial_learning_rate": schedule.learning_rate,
            "learning_rate_schedule": f"cosine after {schedule.warmup_steps} steps of warm-up"
            + (f", anew at steps {list(schedule.restarts)}" if schedule.restarts else ""),
            "loss_function": "SPOCO (Wolny et al., CVPR 2022)",
            "loss_function_kwargs": spec.loss.model_dump(mode="json", exclude_none=True),
            "optimizer": schedule.optimizer,
            "optimizer_kwargs": {"weight_decay": schedule.weight_decay},
        }
        | ({} if facts.run.hours is None else {"training_duration": round(facts.run.hours, 2)}),
        **{word: value for word, value in optional.items() if value},
    }


def _evaluations(run: RunFacts) -> list[dict[str, Any]]:
    """Scores of `run` with this package, in the words of the format, which name a data set."""
    dataset = run.spec.card.dataset
    if dataset is None:
        return []
    fitted = run.fitted
    found = [("validation", fitted.validation_images, tuple(dict(fitted.validation).values()))]
    if run.scores is not None:
        scored = tuple(dict(run.scores.summary).values())
        found.append(("test", len(run.scores.images), scored))
    return [
        {
            "dataset_id": dataset.id,
            "dataset_source": dataset.source,
            "dataset_role": role,
            "sample_count": count,
            "evaluation_factors": ["overall"],
            "evaluation_factors_long": ["all images"],
            "metrics": ["AP50", "mean AP", "SBD", "|DiC|"],
            "metrics_long": [
                "average precision at IoU 0.50, pooled over all objects",
                "mean of average precision at IoU 0.50 to 0.95, pooled over all objects",
                "symmetric best Dice, mean of images",
                "absolute difference in count, mean of images",
            ],
            "results": [[round(value, 4)] for value in values],
        }
        for role, count, values in found
    ]


def what_it_gives(flavour: Flavour) -> str:
    """What people see of the output; ilastik shows channels by number alone."""
    match flavour.name:
        case "embeddings":
            return "Gives pixel embeddings, which spoco-zoo run turns into instances."
        case "boundaries":
            names = ", ".join(name for output in flavour.outputs for name in output.channels)
            return f"Gives probabilities, in this order: {names}."
        case _:
            return "Gives a label image: 0 is background, every instance has a number."


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a package but `rdf.yaml`, by name."""
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name != RDF_NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _tolerance(output: Output, facts: Facts) -> dict[str, Any]:
    if output.is_label:
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


def _scale(facts: Facts) -> list[dict[str, Any]]:
    """Pixel size per axis, where a program asks for it."""
    # Fiji's library takes the scale of an output for a ratio of sizes, so no other flavour has it
    size = facts.run.spec.data.pixel_size_um
    if facts.flavour.name != "qupath" or size is None:
        return [{}] * len(facts.flavour.halo)
    return [{"scale": length, "unit": "micrometer"} for length in size]


def _axes(channels: Sequence[str], sizes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    space = "zyx"[-len(sizes) :]
    return [
        {"type": "batch", "id": "batch", "size": 1},
        {"type": "channel", "id": "channel", "channel_names": list(channels)},
        *({"type": "space", "id": a, **size} for a, size in zip(space, sizes, strict=True)),
    ]


def _input(facts: Facts) -> dict[str, Any]:
    spec = facts.run.spec
    channels = [f"channel{n}" for n in range(spec.net.in_channels or 0)]
    flavour = facts.flavour
    sizes = [
        {"size": {"min": smallest, "step": step}} | scale
        for smallest, step, scale in zip(flavour.smallest, flavour.step, _scale(facts), strict=True)
    ]
    space = "zyx"[-len(sizes) :]
    preprocessing = _preprocessing(spec.data.normalization, space)
    if flavour.name == "qupath":
        preprocessing = _preprocessing_of_qupath(space)
    return {
        "id": "image",
        "description": "Intensities as they come from the microscope",
        "axes": _axes(channels, sizes),
        "data": {"type": "float32"},
        "test_tensor": _file(FILES["input"], facts),
        "sample_tensor": _file(FILES["sample"], facts),
        "preprocessing": preprocessing,
    }


def _output(output: Output, facts: Facts) -> dict[str, Any]:
    halos = facts.flavour.halo
    sizes: list[dict[str, Any]] = [
        {"size": {"tensor_id": "image", "axis_id": axis}} | ({"halo": halo} if halo else {}) | scale
        for axis, halo, scale in zip("zyx"[-len(halos) :], halos, _scale(facts), strict=True)
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


def _preprocessing_of_qupath(space: str) -> list[dict[str, Any]]:
    """What the extension does by itself, so that others give the network the same."""
    low, high = qupath.PERCENTILES
    words = {"axes": list(space), "min_percentile": low, "max_percentile": high}
    return [
        {"id": "scale_range", "kwargs": words},
        {"id": "clip", "kwargs": dict(zip(("min", "max"), qupath.CLIP, strict=True))},
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
    ]


def _weights(facts: Facts) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    formats = facts.flavour.formats
    script = _file(torchscript_name(facts.flavour.name), facts) | {"pytorch_version": version}
    if "onnx" not in formats:
        return {"torchscript": script}
    onnx = _file(FILES["onnx"], facts) | {"opset_version": OPSET}
    if "pytorch_state_dict" not in formats:
        return {"onnx": onnx | {"parent": "torchscript"}, "torchscript": script}
    child = {"parent": "pytorch_state_dict"}
    state_dict = _file(FILES["state_dict"], facts) | {
        "pytorch_version": version,
        "architecture": _file(FILES["architecture"], facts)
        | {"callable": "PackagedUNet", "kwargs": dict(facts.architecture)},
    }
    return {"onnx": onnx | child, "pytorch_state_dict": state_dict, "torchscript": script | child}
