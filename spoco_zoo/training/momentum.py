"""The momentum net g: a moving average of the embedding net f."""

from copy import deepcopy

import torch
from torch import nn

from spoco_zoo.training.net import UNet


class MomentumPair(nn.Module):
    """The embedding net f, trained by gradient, and the momentum net g that follows it.

    g is not touched by any forward pass: in training it normalises with the statistics of its
    own batch, and its running statistics move only in `update`, with its weights.
    """

    def __init__(self, embedding_net: UNet) -> None:
        super().__init__()
        self.embedding_net = embedding_net
        self.momentum_net = deepcopy(embedding_net)
        for parameter in self.momentum_net.parameters():
            parameter.requires_grad_(False)
        for module in self.momentum_net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                module.momentum = 0.0  # running statistics are moved by `update` alone

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move g towards f: g = momentum * g + (1 - momentum) * f, buffers included.

        Call it once after each step of the optimiser (Wolny et al. 2022, sec. 3.3).
        """
        f, g = self.embedding_net.state_dict(), self.momentum_net.state_dict()
        for name, value in g.items():
            if value.is_floating_point():
                value.lerp_(f[name], 1.0 - momentum)
            else:
                value.copy_(f[name])  # the count of batches seen
