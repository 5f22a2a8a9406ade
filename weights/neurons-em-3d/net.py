"""Embedding networks: a U-Net for images and volumes.

The U-Net is the plain one of SPOCO (Wolny et al. 2022): double convolutions, max pooling,
nearest-neighbour up-sampling to the size of the skip, one 1x1 head. Batch norm is the only
norm: frozen for inference it is a constant, so a tile embeds its pixels exactly as the whole
image does; group and instance norm compute their statistics from each tile.

Levels are counted from the top. `pooling[i]` is the factor per axis between level i and i + 1,
(2, 2) everywhere for images, (1, 2, 2) where a volume is coarse along z.

This file imports torch alone: export puts it into the package as it stands, so what trained is
what is shipped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LayerOrder = Literal["bcr", "cbr"]


@dataclass(frozen=True)
class NetOutput:
    """What a network says of an image: embedding, and foreground logit where it has that head."""

    embedding: Tensor  # (b, e, *space)
    foreground: Tensor | None  # (b, 1, *space)


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU in the stated order."""

    def __init__(
        self, channels: tuple[int, int, int], kernels: Sequence[Sequence[int]], order: LayerOrder
    ) -> None:
        first, middle, last = channels
        layers = [
            *_convolution(first, middle, kernels[0], order),
            *_convolution(middle, last, kernels[1], order),
        ]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net from an image to one embedding vector a pixel.

    Args:
        in_channels: Channels of the image.
        embedding_dim: Length of the embedding vector.
        widths: Channels of each level, the finest first.
        pooling: Factor per axis between neighbouring levels; its length gives the number of
            space axes. One entry fewer than `widths`.
        foreground_head: Adds one channel, the logit of belonging to any instance.
        order: `bcr` (batch norm, convolution, ReLU: the published network) or `cbr`, whose
            batch norm can be folded into the convolution by every runtime.

    Raises:
        ValueError: `pooling` and `widths` do not fit together.
    """

    def __init__(
        self,
        in_channels: int,
        embedding_dim: int,
        widths: Sequence[int],
        pooling: Sequence[Sequence[int]],
        *,
        foreground_head: bool = False,
        order: LayerOrder = "cbr",
    ) -> None:
        super().__init__()
        if len(pooling) != len(widths) - 1 or len({len(p) for p in pooling}) != 1:
            raise ValueError(
                f"net.pooling has {len(pooling)} steps for {len(widths)} widths: "
                f"expected {len(widths) - 1} steps with one factor per axis"
            )
        self.pooling = [tuple(p) for p in pooling]
        self.n_axes = len(pooling[0])
        self.embedding_dim = embedding_dim
        self.has_foreground_head = foreground_head
        self.order: LayerOrder = order
        kernels = self._kernels()
        self.encoders = nn.ModuleList()
        previous = in_channels
        for width, kernel in zip(widths, kernels, strict=True):
            middle = max(width // 2, previous)
            self.encoders.append(DoubleConvolution((previous, middle, width), (kernel,) * 2, order))
            previous = width
        self.decoders = nn.ModuleList()
        for width, kernel in reversed(list(zip(widths[:-1], kernels[:-1], strict=True))):
            channels = (previous + width, width, width)
            self.decoders.append(DoubleConvolution(channels, (kernel,) * 2, order))
            previous = width
        self.head = _CONVOLUTION[self.n_axes](
            previous, embedding_dim + int(foreground_head), kernel_size=1
        )

    def _kernels(self) -> list[tuple[int, ...]]:
        """Kernel sizes per level: 1 along an axis as long as it is coarser than the others.

        A volume pooled (1, 2, 2) has z steps much longer than y and x; its finest level looks
        within the slice only, as in the anisotropic U-Nets of the connectomics field.
        """
        strides = [tuple(1 for _ in range(self.n_axes))]
        for step in self.pooling:
            strides.append(tuple(s * p for s, p in zip(strides[-1], step, strict=True)))
        largest = strides[-1]
        kernels = []
        for level in strides:
            # pixels of this axis that are still to be pooled, against the most pooled axis
            left = [total // done for total, done in zip(largest, level, strict=True)]
            kernels.append(tuple(1 if 4 * n <= max(left) else 3 for n in left))
        isotropic = len(set(largest)) == 1
        return [(3,) * self.n_axes] * len(strides) if isotropic else kernels

    @property
    def multiple_of(self) -> tuple[int, ...]:
        """The pooling grid: total stride per axis, in pixels."""
        return tuple(math.prod(p[axis] for p in self.pooling) for axis in range(self.n_axes))

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """One-sided reach per axis in pixels: how far a pixel can influence an embedding.

        Exact, from the architecture: at each level both double convolutions of the
        encoder and the decoder see `kernel // 2` steps of that level's stride, and the pooling
        and up-sampling between levels shift by at most one step.
        """
        reach = []
        for axis in range(self.n_axes):
            stride, total = 1, 0
            for level, kernel in enumerate(self._kernels()):
                convolutions = 4 if level < len(self.pooling) else 2
                total += convolutions * (kernel[axis] // 2) * stride
                if level < len(self.pooling):
                    factor = self.pooling[level][axis]
                    total += (factor - 1) * stride  # a pixel's place inside its pooling window
                    stride *= factor
            reach.append(total)
        return tuple(reach)

    @property
    def halo(self) -> tuple[int, ...]:
        """Receptive field rounded up to the pooling grid: context that makes a tile exact."""
        pairs = zip(self.receptive_field, self.multiple_of, strict=True)
        return tuple(-(-reach // step) * step for reach, step in pairs)

    def forward(self, image: Tensor) -> Tensor:  # (b, c, *space) -> (b, e [+ 1], *space)
        """Embed every pixel; the foreground logit, if any, is the last channel."""
        skips = []
        features = image
        for level, encoder in enumerate(self.encoders):
            if level:
                factor = self.pooling[level - 1]
                pool = F.max_pool2d if self.n_axes == 2 else F.max_pool3d
                features = pool(features, factor)
            features = encoder(features)
            skips.append(features)
        for decoder, skip in zip(self.decoders, reversed(skips[:-1]), strict=True):
            up = F.interpolate(features, size=skip.shape[2:], mode="nearest")
            features = decoder(torch.cat([skip, up], dim=1))
        output: Tensor = self.head(features)
        return output

    def embed(self, image: Tensor) -> NetOutput:  # (b, c, *space), of any size
        """Embed an image padded to the pooling grid by its last pixels, and cut the result."""
        space = image.shape[2:]
        pad: list[int] = []
        for size, step in zip(reversed(space), reversed(self.multiple_of), strict=True):
            pad += [0, (step - size % step) % step]
        output = self(F.pad(image, pad, mode="replicate"))
        return self.split(output[(..., *(slice(0, size) for size in space))])

    def split(self, output: Tensor) -> NetOutput:
        """Part what `forward` returns into embedding and foreground logit."""
        if not self.has_foreground_head:
            return NetOutput(output, None)
        return NetOutput(output[:, : self.embedding_dim], output[:, self.embedding_dim :])


class PackagedUNet(nn.Module):
    """What a package offers: any image size in; embedding, and what else it has, out.

    The outputs are the embedding of f, then, where the package has them, the probability of
    foreground and the embedding of g.
    """

    def __init__(  # noqa: PLR0913 - the words of the package's rdf.yaml, all named there
        self,
        in_channels: int,
        embedding_dim: int,
        widths: Sequence[int],
        pooling: Sequence[Sequence[int]],
        *,
        foreground_head: bool = False,
        order: LayerOrder = "cbr",
        momentum: bool = False,
    ) -> None:
        super().__init__()

        def make() -> UNet:
            return UNet(
                in_channels,
                embedding_dim,
                widths,
                pooling,
                foreground_head=foreground_head,
                order=order,
            )

        self.embedding_net = make()
        self.momentum_net = make() if momentum else None

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # (b, c, *space)
        """Return (b, e, *space), then (b, 1, *space) and (b, e, *space) where they exist."""
        parts = self.embedding_net.embed(image)
        outputs = [parts.embedding]
        if parts.foreground is not None:
            outputs.append(torch.sigmoid(parts.foreground))
        if self.momentum_net is not None:
            outputs.append(self.momentum_net.embed(image).embedding)
        return tuple(outputs)


def count_parameters(net: nn.Module) -> int:
    """Count the trainable parameters of a network."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


_CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def _convolution(
    channels_in: int, channels_out: int, kernel: Sequence[int], order: LayerOrder
) -> list[nn.Module]:
    make: Any = _CONVOLUTION[len(kernel)]  # their tuples of sizes have typed lengths
    convolution: nn.Module = make(
        channels_in,
        channels_out,
        kernel_size=tuple(kernel),
        padding=tuple(size // 2 for size in kernel),
        bias=False,
    )
    norm = _BATCH_NORM[len(kernel)](channels_in if order == "bcr" else channels_out)
    layers = [norm, convolution] if order == "bcr" else [convolution, norm]
    return [*layers, nn.ReLU(inplace=True)]
