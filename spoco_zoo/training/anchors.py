"""Which pixels the consistency term looks at: anchors in what nobody labelled."""

from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spoco_zoo.spec import LossSettings

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
    enough = max(settings.volume_ratio * len(unlabeled), 1)
    left = torch.nonzero(unlabeled)[:, 0]
    spaces = [e.index_select(0, left) - e.mean(dim=0) for e in (f, g)]
    while len(left) >= enough and len(chosen) < settings.max_anchors:
        draws = torch.rand(_PROPOSALS, generator=generator, dtype=torch.float64)
        proposed = (draws * len(left)).long().to(left.device)
        covers = _cover(spaces[0], proposed, settings) | _cover(spaces[1], proposed, settings)
        accepted: list[int] = []
        for number, covered_by in enumerate(covers[:, proposed].T.tolist()):
            if not any(covered_by[earlier] for earlier in accepted):
                accepted.append(number)
        covered = list(accumulate((covers[number] for number in accepted), torch.logical_or))
        # an anchor is needed while those before it leave enough
        are_left = [len(left) - n for n in torch.stack([c.sum() for c in covered]).tolist()]
        count = 1 + sum(n >= enough for n in are_left[:-1])
        count = min(count, settings.max_anchors - len(chosen))
        chosen += left[proposed[accepted[:count]]]
        kept = torch.nonzero(~covered[count - 1])[:, 0]
        left, spaces = left[kept], [x.index_select(0, kept) for x in spaces]
    return torch.stack(chosen) if chosen else left[:0]


def _cover(pixels: Tensor, proposed: Tensor, settings: LossSettings) -> Tensor:
    """Which pixels each of the proposed ones covers, (proposed, p); itself always."""
    lengths = pixels.square().sum(dim=1)
    squared = (lengths[proposed, None] + lengths).addmm_(pixels[proposed], pixels.T, alpha=-2)
    near = squared < settings.delta_var**2
    near[torch.arange(len(proposed), device=near.device), proposed] = True
    return near
