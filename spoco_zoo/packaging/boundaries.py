"""The network with boundaries made of embeddings inside: what ilastik segments further.

An embedding changes from one instance to the next, over some pixels. So the change *across* a
few pixels says where a boundary is; the change to the direct neighbour is only a fraction of it,
and a little blur takes that away. Everything here is local, so tiles agree with the whole.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spoco_zoo.foreground import Prototype
from spoco_zoo.recipe import Recipe
from spoco_zoo.training.net import PackagedUNet

OUTPUT = "boundaries"
CORE = 0.4  # interior from here on is an instance: what did best (benchmarks/boundary_maps.py)

_REACH = 2  # pixels to either side


class BoundaryNet(nn.Module):
    """An image in; foreground, boundary and interior out, each in 0..1.

    With d the largest distance of embeddings across `reach` pixels, over all axes and diagonals,
    `boundary = 1 - clamp((2 delta_dist - d) / (2 delta_dist), 0, 1)^2`: one less the affinity of
    Wolny et al. 2022; `interior = foreground
    (1 - boundary)`. Where nothing is known of foreground, it is left out.
    """

    def __init__(self, net: PackagedUNet, delta_dist: float, recipe: Recipe) -> None:
        """Take a network; its head, or the prototype of the recipe, gives foreground."""
        super().__init__()
        self.net = net
        self.delta_dist = delta_dist
        self.reach = find_reach(net.embedding_net.multiple_of)
        self.has_head = net.embedding_net.has_foreground_head
        rule = recipe.foreground
        self.radius = rule.radius if isinstance(rule, Prototype) and not self.has_head else None
        if isinstance(rule, Prototype):
            center = torch.tensor(rule.center)
            self.register_buffer("center", center.reshape(-1, *[1] * len(self.reach)))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What the channels are, in their order."""
        with_foreground = self.has_head or self.radius is not None
        return ("foreground",) * with_foreground + ("boundary", "interior")

    def forward(self, image: Tensor) -> Tensor:  # (b, c, *space) -> (b, 2 or 3, *space)
        """Compute the maps."""
        outputs = self.net(image)
        embedding = outputs[0]
        distance = torch.sqrt(_largest_square(embedding, self.reach)).unsqueeze(1)
        margin = 2 * self.delta_dist
        boundary = 1 - torch.clamp((margin - distance) / margin, 0.0, 1.0) ** 2
        if self.has_head:
            foreground = outputs[1]
        elif self.radius is not None:
            away = torch.sqrt(((embedding - self.center) ** 2).sum(1, keepdim=True))
            foreground = torch.clamp(away / (2 * self.radius), 0.0, 1.0)  # 0.5 at the radius
        else:
            return torch.cat([boundary, 1 - boundary], 1)
        return torch.cat([foreground, boundary, foreground * (1 - boundary)], 1)


def find_reach(multiple_of: Sequence[int]) -> tuple[int, ...]:
    """Pixels to either side per axis: fewer where steps are longer, as the pooling says."""
    longest = max(multiple_of)
    return tuple(max(1, round(_REACH * step / longest)) for step in multiple_of)


def _largest_square(embedding: Tensor, reach: Sequence[int]) -> Tensor:
    """Largest squared distance across `reach`, over axes and diagonals, (b, *space)."""
    n_axes = len(reach)
    pad = [n for r in reversed(reach) for n in (r, r)]
    padded = F.pad(embedding, pad, mode="replicate")
    largest = None
    for direction in itertools.product((-1, 0, 1), repeat=n_axes):
        if direction <= (0,) * n_axes:  # the way back is the same
            continue
        ahead = padded[_shifted(direction, reach)]
        back = padded[_shifted([-step for step in direction], reach)]
        square = ((ahead - back) ** 2).sum(1)
        largest = square if largest is None else torch.maximum(largest, square)
    assert largest is not None
    return largest


def _shifted(direction: Sequence[int], reach: Sequence[int]) -> tuple[slice, ...]:
    """The pixels (b, e, *space) of a padded embedding, each axis shifted by its reach or not."""
    starts = [r + step * r for step, r in zip(direction, reach, strict=True)]
    stops = [-r + step * r for step, r in zip(direction, reach, strict=True)]
    space = (slice(a, b or None) for a, b in zip(starts, stops, strict=True))
    return (slice(None), slice(None), *space)
