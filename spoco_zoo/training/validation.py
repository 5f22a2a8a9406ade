"""Validation by what counts in the end: cluster the validation images and score the instances.

How a recipe is scored and fitted stands in `fitting`, which needs no torch.
"""

from collections.abc import Iterable

import torch

from spoco_zoo.fitting import (
    Embedded,
    Fitted,
    find_instances,
    fit_recipe,
    goal,
    score_instances,
    score_recipe,
    start_recipe,
)
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import UNet
from spoco_zoo.training.samples import AnySample

__all__ = [
    "Embedded",
    "Fitted",
    "embed_all",
    "embed_pair",
    "find_instances",
    "fit_recipe",
    "goal",
    "score_instances",
    "score_recipe",
    "start_recipe",
]


@torch.no_grad()
def embed_all(
    net: UNet, samples: Iterable[AnySample], device: torch.device, momentum_net: UNet | None = None
) -> list[Embedded]:
    """Embed whole images in float32; the networks must be in evaluation mode."""
    embedded = []
    for sample in samples:
        image = torch.from_numpy(sample.image)[None].to(device)
        output = net.embed(image)
        g = None
        if momentum_net is not None:
            g = momentum_net.embed(image).embedding[0].cpu().numpy()
        logit = output.foreground
        embedded.append(
            Embedded(
                output.embedding[0].cpu().numpy(),
                g,
                None if logit is None else torch.sigmoid(logit[0, 0]).cpu().numpy(),
                sample.labels,
            )
        )
    return embedded


def embed_pair(
    pair: MomentumPair, samples: Iterable[AnySample], device: torch.device, *, needs_g: bool
) -> list[Embedded]:
    """Embed whole images by f, and by g too where clustering may ask for it."""
    pair.eval()
    return embed_all(pair.embedding_net, samples, device, pair.momentum_net if needs_g else None)
