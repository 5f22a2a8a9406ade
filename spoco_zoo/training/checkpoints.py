"""Checkpoints: networks built anew from a spec, and filled from a file that holds data alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spoco_zoo.errors import SettingError
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import Spec, load_spec, parse_spec
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import UNet

CHECKPOINT_VERSION = 1


def build_net(spec: Spec) -> UNet:
    """Make the untrained network of a spec whose count of channels is known.

    Raises:
        SettingError: `net.in_channels` is not set.
    """
    if spec.net.in_channels is None:
        raise SettingError("net.in_channels is not set: give the channels of the images")
    return UNet(
        spec.net.in_channels,
        spec.net.embedding_dim,
        spec.net.widths,
        spec.net.steps,
        foreground_head=spec.has_foreground_head,
        order=spec.net.order,
    )


def build_pair(spec: Spec) -> MomentumPair:
    """Make both untrained networks of a spec."""
    return MomentumPair(build_net(spec))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint, without running any code that it might hold.

    Raises:
        SettingError: The file is missing, damaged or of another version.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise SettingError(f"{path}: no such checkpoint: train first") from error
    except Exception as error:
        raise SettingError(
            f"{path}: is not a readable checkpoint ({type(error).__name__}): train again"
        ) from error
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise SettingError(f"{path}: is no checkpoint of version {CHECKPOINT_VERSION}: train again")
    return state


def load_state(path: Path, spec: Spec) -> dict[str, Any]:
    """Read the checkpoint that a run goes on from.

    Raises:
        SettingError: There is none, it is damaged, or it is one of another spec.
    """
    if not path.is_file():
        raise SettingError(f"{path}: no such checkpoint to resume from: start without --resume")
    state = load_checkpoint(path)
    # parsed, since a newer version may know more words than the checkpoint holds
    started = parse_spec(json.loads(state["spec"]), str(path))
    if started != spec:
        raise SettingError(
            f"{path.parent}: was started with other settings, {tell_change(started, spec)}: "
            "resume with the spec and flags of its start"
        )
    return state


def tell_change(before: Spec, now: Spec) -> str:
    """Name the first setting that differs between two specs, and how many others do."""
    words = before.model_dump(mode="json"), now.model_dump(mode="json")
    first, *others = _differences(*words, place=())
    more = f" (and {len(others)} more)" if others else ""
    return first + more


def _differences(before: object, now: object, place: tuple[str, ...]) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for word in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(word), now.get(word), (*place, word))
    elif before != now:
        was, is_now = ("left out" if value is None else value for value in (before, now))
        yield f"{'.'.join(place)} was {was} and is {is_now}"


def load_run(run_folder: Path, name: str = "best.pt") -> tuple[Spec, MomentumPair, dict[str, Any]]:
    """Read spec, trained networks and fitted recipe of a finished run.

    Raises:
        SettingError: The folder is not that of a finished run.
    """
    if not (run_folder / "recipe.json").is_file():
        raise SettingError(
            f"{run_folder}: no recipe.json: expected the folder of a finished run; "
            "finish it with train --resume"
        )
    spec = load_spec(run_folder / "spec.yaml")
    pair = build_pair(spec)
    try:
        pair.load_state_dict(load_checkpoint(run_folder / name)["pair"])
    except (RuntimeError, KeyError) as error:
        raise SettingError(
            f"{run_folder / name}: does not fit spec.yaml beside it: put back the spec of the run"
        ) from error
    try:
        fitted = json.loads((run_folder / "recipe.json").read_text(encoding="utf-8"))
        Recipe.model_validate(fitted["recipe"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingError(
            f"{run_folder}: recipe.json is damaged: make it anew with train --resume"
        ) from error
    return spec, pair.eval(), fitted
