"""How fast and where: learning rate over the steps, optimiser, device and precision."""

import math

import torch

from spoco_zoo.errors import DeviceError
from spoco_zoo.spec import Spec
from spoco_zoo.training.momentum import MomentumPair


def learning_rate(spec: Spec, step: int) -> float:
    """Linear warm-up, then a half cosine to zero, anew at every restart.

    Restarts are those of Loshchilov and Hutter 2017, at given steps.
    """
    schedule = spec.schedule
    bounds = (0, *schedule.restarts, schedule.steps)
    start = max(bound for bound in bounds[:-1] if bound <= step)
    length = min(bound for bound in bounds if bound > start) - start
    if step - start < schedule.warmup_steps:
        return schedule.learning_rate * (step - start + 1) / schedule.warmup_steps
    progress = (step - start - schedule.warmup_steps) / max(length - schedule.warmup_steps, 1)
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(spec: Spec, pair: MomentumPair) -> torch.optim.Optimizer:
    """Make the optimiser of f; g is not its business."""
    kind = torch.optim.Adam if spec.schedule.optimizer == "adam" else torch.optim.AdamW
    return kind(
        pair.embedding_net.parameters(),
        lr=spec.schedule.learning_rate,
        weight_decay=spec.schedule.weight_decay,
    )


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, or insist on what was asked for.

    Raises:
        DeviceError: The device is unknown, or asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "cuda was asked for, but torch finds none: use --device cpu, "
            "or install a CUDA build of torch"
        )
    if name not in ("cpu", "cuda"):
        raise DeviceError(f"device is {name}: expected auto, cpu or cuda")
    return torch.device(name)


def pick_precision(spec: Spec, device: torch.device) -> torch.dtype:
    """Resolve `auto` to what is fast here: bfloat16 where the hardware multiplies it."""
    if spec.schedule.precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec.schedule.precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - torch has no public question
    return torch.bfloat16 if fast else torch.float32
