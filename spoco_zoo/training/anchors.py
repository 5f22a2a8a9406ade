"""Which pixels the consistency term looks at: anchors in what nobody labelled."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spoco_zoo.spec import LossSettings
from spoco_zoo.training.pairs import squared_distances

_PROPOSALS = 8  # pixels drawn at once


@torch.no_grad()
def draw_anchors(
    f: Float[Tensor, "p e"],
    g: Float[Tensor, "p e"],
    unlabeled: Bool[Tensor, " p"],
    settings: LossSettings,
    generator: torch.Generator,
) -> Int[Tensor, " a"]:
    """Draw unlabeled pixels that no earlier anchor covers, until few of those are left.

    An anchor covers what is nearer to it than `delta_var`, in either space. Drawing ends with
    `max_anchors` anchors, or with fewer uncovered pixels than `volume_ratio` of the image.

    Pixels are proposed several at once and passed over where one before them covers them: that
    is the same as to draw the next from what is left, and asks for all distances only once in a
    while. Whatever the device, a generator of the CPU draws.

    Returns:
        Numbers of pixels, in the order of their drawing; none without unlabeled pixels.
    """
    chosen: list[Tensor] = []
    rest = unlabeled.clone()
    enough = max(settings.volume_ratio * len(rest), 1)
    missing = settings.max_anchors
    while missing:
        candidates = torch.nonzero(rest)[:, 0]
        if len(candidates) < enough:
            break
        draws = torch.rand(_PROPOSALS, generator=generator, dtype=torch.float64)
        proposed = candidates[(draws * len(candidates)).long().to(candidates.device)]
        covers = _find_covered(f, proposed, settings) | _find_covered(g, proposed, settings)
        accepted: list[int] = []
        for number, covered_by in enumerate(covers[:, proposed].T.tolist()):
            if not any(covered_by[earlier] for earlier in accepted):
                accepted.append(number)
        # what each leaves uncovered, with those before it
        left = rest & (covers[accepted].cumsum(dim=0) == 0)
        are_left = left.sum(dim=1).tolist()
        count = 1 + sum(n >= enough for n in are_left[:-1])
        count = min(count, missing)
        chosen.append(proposed[accepted[:count]])
        rest = left[count - 1]
        missing -= count
    return torch.cat(chosen) if chosen else torch.nonzero(rest)[:0, 0]


def _find_covered(embedding: Tensor, proposed: Tensor, settings: LossSettings) -> Tensor:
    """Which pixels are near which of the proposed ones, as (proposed, p); each to itself."""
    near = squared_distances(embedding[proposed], embedding) < settings.delta_var**2
    near[torch.arange(len(proposed), device=near.device), proposed] = True
    return near
