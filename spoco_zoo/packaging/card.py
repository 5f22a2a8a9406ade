"""The card of a package, in Markdown, and its cover.

Every number in the card comes from the run folder, the export's own measurements, or a score
file that `spoco-zoo evaluate` wrote. The pictures are of the simulator's images.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spoco_zoo.figures import embedding_colors, overlay, side_by_side, write_png
from spoco_zoo.foreground import Head
from spoco_zoo.packaging.description import package_title
from spoco_zoo.packaging.flavours import Flavour, FlavourName
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.proof import Proof
from spoco_zoo.packaging.run_folder import RunFacts
from spoco_zoo.session import Embedded

_OF_RUN = (
    "Scores are those of `spoco-zoo run` with the embeddings package of this network; this package "
    "was not scored by itself."
)
_DRAFT = "**Draft**: not for a collection before its author has looked it over."

_GIVES: Mapping[FlavourName, str] = {
    "embeddings": "This package gives the embeddings; `spoco-zoo run` makes instances of them.",
    "instances": "In this package that step is part of the network: it gives a label image.",
    "boundaries": "This package gives what follows from the embeddings of neighbours, as "
    "probabilities: where boundaries are, and where the interior of an instance is.",
    "qupath": "In this package that step is part of the network, which is called as the InstanSeg "
    "extension of QuPath calls its own.",
}

_USE: Mapping[FlavourName, tuple[str, ...]] = {
    "embeddings": (
        "```",
        "spoco-zoo run PACKAGE IMAGES -o LABELS",
        "```",
        "",
        "In Python: `spoco_zoo.segment(image, spoco_zoo.load_package(PACKAGE))`. "
        "`bioimageio.core` gives the embeddings.",
    ),
    "instances": (
        "The output is a label image: 0 is background, every instance has a number of its own.",
        "",
        "- **Fiji**: *Plugins > DeepImageJ > Install model manually* takes the zip; then "
        '*DeepImageJ Run*. In a macro: `run("DeepImageJ Run", "model_path=FOLDER '
        'output_folder=OUT");` and open the file that ends in `instance_segmentation.tif`. '
        "*Image > Lookup Tables > Glasbey* shows instances apart; *Label image to ROIs* "
        "(BIOP, MorphoLibJ) makes ROIs of them. Convert RGB to 8-bit first.",
        "- **Python**: `bioimageio.core.predict` gives the labels of a whole image. Do not "
        "predict in blocks: every block counts from 1.",
        "- **spoco-zoo**: the embeddings package of the same network gives the same "
        "instances, for images of any size.",
    ),
    "boundaries": (
        "The output has the channels that its description names, in 0..1.",
        "",
        "- **ilastik**: *Neural Network Classification (Local)* opens the zip. It shows the "
        "channels as Label 1, 2, 3, in their order. Export *Probabilities*, then either "
        "*Boundary-based Segmentation with Multicut*, with the boundary as its channel, or "
        "*Object Classification [Pixel Prediction Map]* with hysteresis: core is interior at "
        "0.5, final is foreground at {final}, objects of 10 pixels or more, *Don't merge "
        "objects*.",
        "- **Python**: `bioimageio.core.predict`, in blocks too.",
    ),
    "qupath": (
        "- **QuPath** 0.6 or newer with the InstanSeg extension: put this folder into the "
        "extension's model folder, choose it under *Local models*, select an annotation and run. "
        "Images are resampled to the pixel size that `rdf.yaml` states, so the image must know "
        "its own. Choose the CPU, or a GPU of NVIDIA: Apple's has no double precision, which the "
        "clustering uses.",
        "- **Elsewhere**: take the instances package of the same network.",
    ),
}

_LIMITS: Mapping[FlavourName, tuple[str, ...]] = {
    "embeddings": (),
    "instances": (
        "",
        "An image is computed in one piece. Fiji's library stops at 50,331,648 numbers of "
        "input (7094 x 7094 pixels of one channel): crop larger images. Clustering settings "
        "are part of the graph and cannot be changed.",
    ),
    "boundaries": (
        "",
        "ilastik normalises every tile by itself, and its tiles at the borders of an image "
        "begin off the pooling grid: the table says what the second does. Statistics of a "
        "whole image (`zero_mean_unit_variance`, `scale_range`) make tiles differ more; a "
        "network trained with fixed numbers does not have that difference.",
    ),
    "qupath": (
        "",
        "QuPath itself was not at hand: what was tried are the libraries that it brings. It takes "
        "percentiles over all that is annotated, and the network's own statistics are of a tile: "
        "where a tile shows next to nothing, noise may be taken for instances.",
    ),
}


def write_card(
    run: RunFacts,
    flavour: Flavour,
    proof: Proof,
    parameters: int,
    memory: Memory | None,
) -> str:
    """Write the card of one flavour."""
    spec, card = run.spec, run.spec.card
    kept = f"{100 * spec.data.instance_ratio:.3g}% of the instances labelled"
    zero = f"label 0 meaning {spec.data.label_zero}"
    lines = [
        f"# {package_title(spec, flavour.name)}",
        "",
        *([_DRAFT, ""] if run.is_draft else []),
        card.description,
        "",
        "A SPOCO network (Wolny et al., CVPR 2022) gives every pixel a vector, an *embedding*, "
        "that is near to those of its own instance and far from those of others. Clustering the "
        f"embeddings gives the instances. {_GIVES[flavour.name]}",
        "",
        "![image and instances](cover.png)",
        "",
        "The picture shows a simulated image.",
        "",
        "## Use",
        "",
        *_use_lines(run, flavour.name),
        "",
        "## Training",
        "",
        f"- Data: {card.data}",
        f"- {run.environment.train_images} images with {run.environment.train_instances} "
        f"instances, {kept}, {zero}",
        f"- {spec.schedule.steps} steps of {spec.schedule.batch_size} crops of "
        f"{' x '.join(map(str, spec.schedule.crop))} pixels, seed {spec.schedule.seed}, "
        f"{run.environment.precision} on {run.environment.device}"
        + ("" if run.hours is None else f", {run.hours:.1f} hours")
        + f"; weights of step {run.fitted.step}, the best on validation",
        f"- {parameters:,} parameters, embedding of {spec.net.embedding_dim} numbers",
        f"- Licence of the weights: {card.license}",
        "",
        "## Validation",
        "",
        *_score_lines(run),
        *(["", _OF_RUN] if flavour.name != "embeddings" else []),
        "",
        *_proof_lines(proof),
        "",
        "## Limits",
        "",
        card.limits,
        *_LIMITS[flavour.name],
        *([] if memory is None else ["", f"Memory: {memory}."]),
        "",
        "## How instances are made",
        "",
        "```json",
        json.dumps(run.recipe.model_dump(mode="json"), indent=1),
        "```",
        "",
        "## Cite",
        "",
        *(f"- {c.text} {c.doi or c.url or ''}".rstrip() for c in card.cite),
    ]
    return "\n".join(lines) + "\n"


def _use_lines(run: RunFacts, flavour: FlavourName) -> list[str]:
    """Say how programs use a flavour, with the threshold that was fitted."""
    rule = run.recipe.foreground
    final = rule.threshold if isinstance(rule, Head) else 0.5
    return [line.replace("{final}", f"{final:.2g}") for line in _USE[flavour]]


def _proof_lines(proof: Proof) -> list[str]:
    """Say what was measured, in which engines, and in which not."""
    lines = [
        "Proven before it was written. Differences are the largest of any value, over the mean "
        "length of a pixel's vector; of labels, the part of the pixels that differ.",
        "",
        "| what | engine | measured | allowed |",
        "|---|---|---|---|",
    ]
    for check in proof.checks:
        is_word = check.name.startswith("test tensors")
        value = "reproduced" if is_word else f"{check.value:.1e}"
        limit = "" if check.limit is None else f"{check.limit:.0e}"
        lines.append(f"| {check.name} | {check.engine} | {value} | {limit} |")
    if proof.missing:
        lines += ["", f"Not proven in: {', '.join(proof.missing)}."]
    return lines


def write_cover(path: Path, image: np.ndarray, embedded: Embedded, labels: np.ndarray) -> None:
    """Draw image, embedding and instances side by side, twice as wide as high."""
    from PIL import Image, ImageOps

    panels = side_by_side(
        [
            overlay(image, np.zeros_like(labels)),
            embedding_colors(embedded.embedding, labels > 0),
            overlay(image, labels),
        ]
    )
    width, height = 720, 360
    picture = Image.new("RGB", (width, height), "white")
    drawn = ImageOps.contain(Image.fromarray(panels), (width - 8, height - 8))
    picture.paste(drawn, ((width - drawn.width) // 2, (height - drawn.height) // 2))
    write_png(path, np.asarray(picture))


_SCORES = {  # in the run folder, and of spoco-zoo evaluate
    "AP at IoU 0.50, pooled": ("ap50", "pooled_ap50"),
    "AP, mean of IoU 0.50 to 0.95, pooled": ("mean_ap", "pooled_mean_ap"),
    "SBD": ("sbd", "sbd"),
    "count difference, mean": ("count_difference", "count_difference"),
}


def _score_lines(run: RunFacts) -> list[str]:
    validation, scores = dict(run.fitted.validation), run.scores
    lines = [
        f"The recipe was fitted on the {run.fitted.validation_images} validation images"
        + ("." if scores else "; no test images were scored."),
        "",
        "| score | validation |" + (" test |" if scores else ""),
        "|---|---|" + ("---|" if scores else ""),
    ]
    for name, (val_key, key) in _SCORES.items():
        test = "" if scores is None else f" {dict(scores.summary)[key]:.3f} |"
        lines.append(f"| {name} | {validation[val_key]:.3f} |{test}")
    if scores is not None:
        lines += ["", f"Test: {len(scores.images)} images."]
    floor = run.spec.card.floor_ap50
    if floor is not None and scores is not None:
        lines[-1] += (
            f" Without any learning, by a threshold and a watershed whose numbers were chosen on "
            f"the validation images, AP at IoU 0.50 is {floor:.3f}."
        )
    if run.spec.card.few_labels is not None:
        lines += ["", f"With few labels: {run.spec.card.few_labels}"]
    return lines
