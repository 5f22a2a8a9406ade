"""The end of a run: which of its networks is kept, by what recipe, and how good that is."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from spoco_zoo.curves import training_curves
from spoco_zoo.examples import Validated, write_examples
from spoco_zoo.files import write_bytes
from spoco_zoo.spec import Spec
from spoco_zoo.training.checkpoints import load_checkpoint
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.samples import AnySample
from spoco_zoo.training.validation import Embedded, Fitted, embed_pair, fit_recipe


def finish_run(
    spec: Spec,
    folder: Path,
    pair: MomentumPair,
    validation: Sequence[AnySample],
    device: torch.device,
) -> Fitted:
    """Choose the network and the numbers of its recipe, and write them and what they make.

    Scores in training are those of one recipe, which may suit an earlier network by chance. So
    the last network is fitted too, and becomes the best one where it scores higher then.

    Args:
        spec: What the run was trained by.
        folder: Its folder, with its two checkpoints.
        pair: Networks to fill with them; those that are kept are in it afterwards.
        validation: Labelled images.
        device: Where the networks are.

    Raises:
        SettingError: A checkpoint is missing or damaged.
        OutputError: The disk refuses a file.
    """
    best, last = folder / "best.pt", folder / "last.pt"
    step, embedded = _embed(spec, best, pair, validation, device)
    fitted = fit_recipe(spec, embedded)
    if spec.clustering.fit and step < spec.schedule.steps:
        del embedded  # before the next ones come: those of volumes are large
        end, embedded = _embed(spec, last, pair, validation, device)
        of_last = fit_recipe(spec, embedded)
        if of_last.scores["mean_ap"] > fitted.scores["mean_ap"]:
            fitted, step = of_last, end
            # before the recipe: killed here, the run is fitted to the same network again
            write_bytes(best, last.read_bytes(), overwrite=True)
        else:
            del embedded
            _, embedded = _embed(spec, best, pair, validation, device)
    _write_recipe(folder / "recipe.json", fitted, step, len(validation))
    kept = [Validated(s.name, s.image, e) for s, e in zip(validation, embedded, strict=True)]
    write_examples(folder / "examples", kept, fitted.recipe)
    training_curves(folder / "history.csv", folder / "curves.png")
    return fitted


def _embed(
    spec: Spec,
    checkpoint: Path,
    pair: MomentumPair,
    validation: Sequence[AnySample],
    device: torch.device,
) -> tuple[int, list[Embedded]]:
    """Fill the networks from a checkpoint and embed by them; return its step, too."""
    state = load_checkpoint(checkpoint, device)
    pair.load_state_dict(state["pair"])
    method = spec.clustering.method
    needs_g = method is None or method.method == "consistency"
    return int(state["step"]), embed_pair(pair, validation, device, needs_g=needs_g)


def _write_recipe(path: Path, fitted: Fitted, step: int, images: int) -> None:
    content = {
        "recipe": fitted.recipe.model_dump(mode="json"),
        "step": step,
        "validation": fitted.scores,
        "validation_images": images,
        "tried": [
            {"score": round(trial.score, 4), **trial.recipe.model_dump(mode="json")}
            for trial in fitted.trials
        ],
    }
    write_bytes(path, json.dumps(content, indent=1).encode(), overwrite=True)
