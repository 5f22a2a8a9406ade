"""The card of a package, in Markdown, and its cover.

Every number in the card comes from the run folder, the export's own measurements, or a score
file that `spoco-zoo evaluate` wrote. The pictures are of the simulator's images.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spoco_zoo.figures import embedding_colors, overlay, side_by_side, write_png
from spoco_zoo.packaging.description import package_title, what_it_gives
from spoco_zoo.packaging.flavours import Flavour, FlavourName
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.proof import Check, Proof
from spoco_zoo.packaging.run_folder import RunFacts
from spoco_zoo.packaging.usage import limit_lines, use_lines
from spoco_zoo.session import Embedded
from spoco_zoo.words import count

_GIVES: Mapping[FlavourName, str] = {
    "embeddings": "This package gives the embeddings; `spoco-zoo run` makes instances of them.",
    "instances": "In this package that step is part of the network: it gives a label image.",
    "boundaries": "This package gives what follows from the embeddings of neighbours, as "
    "probabilities: where boundaries are, and where the interior of an instance is.",
    "qupath": "In this package that step is part of the network, which is called as the InstanSeg "
    "extension of QuPath calls its own.",
}

_SCORED: Mapping[FlavourName, str] = {
    "embeddings": "",
    "instances": "Scores are of `spoco-zoo run` with the embeddings package of this network. This "
    "package gives the same labels, which is one of the proofs below.",
    "boundaries": "Scores are of `spoco-zoo run` with the embeddings package of this network, not "
    "of what ilastik makes of these maps.",
    "qupath": "Scores are of `spoco-zoo run` with the embeddings package of this network, on "
    "images as they are. This package gives the labels of `run` too, but of images as QuPath "
    "normalises and resamples them, which was not scored.",
}

# what a check of the proof is called for people, and what its number is
_CHECKS: Mapping[str, str] = {
    "agreement": "computes what the training code computes",
    "tiles": "tiles give what the whole image gives",
    "tiles off the grid": "the same for tiles that begin off the pooling grid (told, not asked)",
    "pixels seen beyond the halo": "no pixel beyond the declared halo counts",
    "labels of spoco-zoo run": "gives the labels of `spoco-zoo run`",
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
        *_draft_lines(run),
        f"{card.description} {what_it_gives(flavour)}".strip(),
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
        *use_lines(run, flavour.name, flavour.outputs[0].channels if flavour.outputs else ()),
        "",
        "## Training",
        "",
        f"- Data: {card.data}",
        f"- {count(run.environment.train_images, 'image')} with "
        f"{count(run.environment.train_instances, 'instance')}, {kept}, {zero}",
        *_boundary_lines(spec.data.boundary_width),
        f"- {count(spec.schedule.steps, 'step')} of {count(spec.schedule.batch_size, 'crop')} of "
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
        *(["", _SCORED[flavour.name]] if _SCORED[flavour.name] else []),
        *(_map_lines(run) if flavour.name == "boundaries" else []),
        "",
        "## Proof",
        "",
        *_proof_lines(proof),
        "",
        "## Limits",
        "",
        *limit_lines(run, flavour.name, memory),
        "",
        *(_recipe_lines(run) if flavour.name != "boundaries" else []),
        "## Cite",
        "",
        *(f"- {c.text} {c.doi or c.url or ''}".rstrip() for c in card.cite),
    ]
    return "\n".join(lines) + "\n"


def _draft_lines(run: RunFacts) -> list[str]:
    """Say that a card is a draft, and what a collection would ask for."""
    if not run.is_draft:
        return []
    if run.lacks:
        lacks = "; ".join(run.lacks).rstrip(".")
        return [f"**Draft**: before it goes into a collection, bioimageio.spec says: {lacks}.", ""]
    return ["**Draft**: its author has not yet said that it is ready for a collection.", ""]


def _recipe_lines(run: RunFacts) -> list[str]:
    recipe = json.dumps(run.recipe.model_dump(mode="json"), indent=1)
    return ["## How instances are made", "", "```json", recipe, "```", ""]


def _map_lines(run: RunFacts) -> list[str]:
    """What the next steps in ilastik make of the maps, as far as that was measured."""
    if run.maps is None:
        return []
    lines = [
        "",
        "What the next steps make of the maps, on "
        f"{count(run.maps.images, 'validation image')}, by {run.maps.library}, with the settings "
        "above:",
        "",
        "| instances by | AP at IoU 0.50, pooled |",
        "|---|---|",
    ]
    return lines + [f"| {name} | {value:.3f} |" for name, value in run.maps.ap50.items()]


def _proof_lines(proof: Proof) -> list[str]:
    """Say what was measured, in which engines, and in which not; equal rows are one."""
    lines = [
        "All of this was measured on the files of this package before they got their name, in the "
        "engines that Fiji, ilastik and others bring. Numbers are the largest difference of any "
        "value, over the mean length of a pixel's vector; of labels, the part of the pixels that "
        "differ. `proof.json` has them one by one, with the sha256 of every file.",
        "",
        "| what | in | measured | allowed |",
        "|---|---|---|---|",
    ]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for check in proof.checks:
        name, value, limit = _row(check)
        rows.setdefault((name, value, limit), []).append(check.engine)
    lines += [
        f"| {name} | {', '.join(engines)} | {value} | {limit} |"
        for (name, value, limit), engines in rows.items()
    ]
    if proof.missing:
        lines += ["", f"Not proven in: {', '.join(proof.missing)}."]
    return lines


def _row(check: Check) -> tuple[str, str, str]:
    """A check as people read it: what, the measured, the allowed."""
    name = _CHECKS.get(check.name, check.name)
    if check.name.startswith("test tensors"):
        return f"reproduces its {check.name}", "yes", ""
    if check.name.startswith("pixels"):
        return name, f"{max(-check.value, 0):.0f} pixels to spare", ""
    limit = "" if check.limit is None else f"{check.limit:.0e}" if check.limit else "0"
    return name, f"{check.value:.1e}" if check.value else "0", limit


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


def _boundary_lines(width: int) -> list[str]:
    """Say what instances lost to background, where they did."""
    if not width:
        return []
    pixels = "the outermost pixel" if width == 1 else f"the outermost {width} pixels"
    return [f"- Where instances touch, {pixels} of each counted as background"]


def _score_lines(run: RunFacts) -> list[str]:
    validation, scores = dict(run.fitted.validation), run.scores
    lines = [
        f"The recipe was fitted on {count(run.fitted.validation_images, 'validation image')}"
        + ("." if scores else "; no test images were scored."),
        "",
        "| score | validation |" + (" test |" if scores else ""),
        "|---|---|" + ("---|" if scores else ""),
    ]
    for name, (val_key, key) in _SCORES.items():
        test = "" if scores is None else f" {dict(scores.summary)[key]:.3f} |"
        lines.append(f"| {name} | {validation[val_key]:.3f} |{test}")
    if scores is not None:
        lines += ["", f"Test: {count(len(scores.images), 'image')}."]
    floor = run.spec.card.floor_ap50
    if floor is not None and scores is not None:
        lines[-1] += (
            f" Without any learning, by a threshold and a watershed whose numbers were chosen on "
            f"the validation images, AP at IoU 0.50 is {floor:.3f}."
        )
    if run.spec.card.few_labels is not None:
        lines += ["", f"With few labels: {run.spec.card.few_labels}"]
    return lines
