"""Sums over all pairs of an anchor and a pixel, and their gradients.

Soft masks ask of every pixel how far it is from every anchor. One matrix product gives all
squared distances; and with W the derivative of a sum by each of them, two more give its gradients

    for x: 2 (x sum_a W - sum_a W a)        for a: 2 (a sum_x W - sum_x W x)

Pixels are taken block by block. Nothing of the size pixels x anchors outlives a block: the
backward pass computes it again. On the CPU the anchors that are far from every pixel of a block
are left out; a GPU would have to wait for the answer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_BLOCK = 2**18  # pairs at once: a megabyte stays in the cache of a core
_CPU_PIXELS = 2**12  # and pixels at once
_GPU_BLOCK = 2**25
_NEGLIGIBLE = -28.0  # an exponent: a million such pairs sum up to less than 1e-6
_LEAST = -40.0  # an exponent: beyond come numbers that are slow to compute with
_TINY = 1e-6


def sum_over_pairs(
    pixels: tuple[Float[Tensor, "m e"], Sequence[int]],
    anchors: tuple[Float[Tensor, "b a e"], Sequence[int]],
    unlabeled: Bool[Tensor, " m"] | None,
    two_sigma_squared: float,
    delta_dist: float,
) -> Float[Tensor, "2 b a"]:
    """Sum the squared soft masks around anchors, and the hinges that push pixels off them.

    Args:
        pixels: Embeddings x, image after image, and how many each image has.
        anchors: Points a, and how many each image has; those behind them count for nothing.
        unlabeled: The pixels of the second sum; None where there is none.
        two_sigma_squared: Width of the soft masks.
        delta_dist: Margin of the hinge.

    Returns:
        For each anchor the sum over pixels of exp(-|x - a|^2 / two_sigma_squared)^2, and that
        over unlabeled pixels of max(delta_dist - |x - a|, 0)^2. Gradients flow to both.
    """
    words = _Words(pixels[1], anchors[1], two_sigma_squared, delta_dist)
    sums: Tensor = _PairSums.apply(pixels[0], anchors[0], unlabeled, words)  # type: ignore[no-untyped-call]
    return sums


def sum_over_twins(
    f: Float[Tensor, "b p e"],
    g: Float[Tensor, "b p e"],
    anchors: Sequence[Int[Tensor, " _"]],
    two_sigma_squared: float,
) -> Float[Tensor, "3 b a"]:
    """Compare the soft masks of two embeddings around the same pixels.

    Args:
        f: Embedding that gradients flow to, that of its anchors too.
        g: Embedding that none flow to.
        anchors: For each image, the numbers of its pixels that are anchors.
        two_sigma_squared: Width of the soft masks s.

    Returns:
        For each anchor the sums over pixels of s_f s_g, s_f^2 and s_g^2; zero behind the last.
    """
    sums: Tensor = _TwinSums.apply(f, g, anchors, two_sigma_squared)  # type: ignore[no-untyped-call]
    return sums


def reach_of_soft_mask(two_sigma_squared: float) -> float:
    """Distance from which on squared soft masks make no difference."""
    return math.sqrt(-_NEGLIGIBLE * two_sigma_squared / 2)


class _Words(NamedTuple):
    """What is no tensor of `sum_over_pairs`."""

    pixels: Sequence[int]
    anchors: Sequence[int]
    two_sigma_squared: float
    delta_dist: float

    def blocks(self, device: torch.device) -> Iterator[tuple[int, slice, slice]]:
        """Yield number of image, its anchors, and pixels of a block."""
        start = 0
        for image, (length, count) in enumerate(zip(self.pixels, self.anchors, strict=True)):
            for part in _blocks(length, count, device):
                yield image, slice(count), slice(start + part.start, start + part.stop)
            start += length


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        pixels: Tensor,
        anchors: Tensor,
        unlabeled: Tensor | None,
        words: _Words,
    ) -> Tensor:
        ctx.save_for_backward(pixels, anchors, unlabeled)
        ctx.words, ctx.near = words, []
        width = words.two_sigma_squared / 2
        reach = max(reach_of_soft_mask(words.two_sigma_squared), words.delta_dist)
        sums = pixels.new_zeros(2, *anchors.shape[:2])
        for image, used, part in words.blocks(pixels.device):
            a, x = _centre(anchors[image, used], pixels[part])
            squared = _squared_distances(a, x)
            near = _find_near(squared.amin(dim=1), reach)
            squared = squared[near]
            if unlabeled is not None:
                hinge, _ = _hinge(squared, words.delta_dist, unlabeled[part])
                sums[1, image, used][near] += hinge.square_().sum(dim=1)
            sums[0, image, used][near] += _soft(squared, width).sum(dim=1)
            ctx.near.append(near)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        pixels, anchors, unlabeled = ctx.saved_tensors
        words: _Words = ctx.words
        width = words.two_sigma_squared / 2
        for_pixels, for_anchors = torch.zeros_like(pixels), torch.zeros_like(anchors)
        blocks = words.blocks(pixels.device)
        for near, (image, used, part) in zip(ctx.near, blocks, strict=True):
            a, x = _centre(anchors[image, used], pixels[part])
            a = a[near]
            by_soft, by_hinge = slopes[:, image, used, None][:, near]
            squared = _squared_distances(a, x)
            hinges = None
            if unlabeled is not None:
                # the derivative of max(delta - d, 0)^2 by d^2 is -max(delta - d, 0) / d
                hinge, distance = _hinge(squared, words.delta_dist, unlabeled[part])
                hinges = hinge.div_(distance).mul_(by_hinge)
            weights = _soft(squared, width).mul_(by_soft / -width)
            weights = weights if hinges is None else weights.sub_(hinges)
            for_pixels[part], gradient = _gradients(weights, a, x)
            for_anchors[image, used][near] += gradient
        return for_pixels, for_anchors, None, None


class _TwinSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        f: Tensor,
        g: Tensor,
        anchors: Sequence[Tensor],
        width: float,
    ) -> Tensor:
        ctx.save_for_backward(f, g)
        ctx.words, ctx.near = (anchors, width), []
        sums = f.new_zeros(3, len(f), max(len(chosen) for chosen in anchors))
        for image, part in _blocks_of_each(f, anchors):
            chosen = anchors[image]
            both = [_squared_distances(*_centre(e[image, chosen], e[image, part])) for e in (f, g)]
            least = torch.minimum(*(squared.amin(dim=1) for squared in both))
            near = _find_near(least, reach_of_soft_mask(width))
            soft_f, soft_g = (_soft(squared[near], width) for squared in both)
            products = soft_f * soft_g, soft_f.square_(), soft_g.square_()
            sums[:, image, : len(chosen)][:, near] += torch.stack([p.sum(dim=1) for p in products])
            ctx.near.append(near)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        f, g = ctx.saved_tensors
        anchors, width = ctx.words
        for_f = torch.zeros_like(f)
        for near, (image, part) in zip(ctx.near, _blocks_of_each(f, anchors), strict=True):
            chosen = anchors[image]
            by_shared, by_square, _ = slopes[:, image, : len(chosen), None][:, near]
            # the centre is that of all anchors: those that are near may be none
            (a, x), (b, y) = (_centre(e[image, chosen], e[image, part]) for e in (f, g))
            a, b, chosen = a[near], b[near], chosen[near]
            soft_f = _soft(_squared_distances(a, x), width)
            soft_g = _soft(_squared_distances(b, y), width)
            # the derivative of by_shared s_f s_g + by_square s_f^2 by |x - a|^2
            weights = soft_g.mul_(by_shared).add_(soft_f * (2 * by_square)).mul_(soft_f)
            for_pixels, for_chosen = _gradients(weights.div_(-width), a, x)
            for_f[image, part] += for_pixels
            for_f[image].index_add_(0, chosen, for_chosen)
        return for_f, None, None, None


def _blocks_of_each(f: Tensor, anchors: Sequence[Tensor]) -> Iterator[tuple[int, slice]]:
    """Yield number of image and pixels of a block."""
    for image, chosen in enumerate(anchors):
        for part in _blocks(f.shape[1], len(chosen), f.device):
            yield image, part


def _blocks(length: int, count: int, device: torch.device) -> Iterator[slice]:
    """Part pixels into blocks of so many pairs with `count` anchors; none without anchors."""
    if not count:
        return
    size = min(_CPU_BLOCK // count, _CPU_PIXELS) if device.type == "cpu" else _GPU_BLOCK // count
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + max(size, 1), length))


def _centre(anchors: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Move both so that the anchors' mean is at the origin, which keeps digits."""
    centre = anchors.mean(dim=0)
    return anchors - centre, pixels - centre


def _squared_distances(a: Tensor, x: Tensor) -> Tensor:  # (a, e), (n, e) -> (a, n)
    """Squared distances as |a|^2 + |x|^2 - 2 a x, which rounding may bring below zero."""
    lengths = a.square().sum(dim=1)[:, None] + x.square().sum(dim=1)
    return lengths.addmm_(a, x.T, alpha=-2)


def _find_near(least: Tensor, reach: float) -> Tensor | slice:
    """Which anchors have their least squared distance in reach; a slice where all of them have."""
    if least.device.type != "cpu":
        return slice(None)
    near = torch.nonzero(least < reach**2)[:, 0]
    return slice(None) if len(near) == len(least) else near


def _soft(squared: Tensor, width: float) -> Tensor:
    """exp(-d^2 / width), in place."""
    return squared.div_(-width).clamp_(_LEAST, 0.0).exp_()


def _hinge(squared: Tensor, delta_dist: float, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
    """Hinges max(delta_dist - d, 0) at unlabeled pixels, and d, from squared distances."""
    distance = squared.clamp_min(_TINY**2).sqrt_()
    return (delta_dist - distance).clamp_min_(0.0).mul_(unlabeled), distance


def _gradients(weights: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for pixels and anchors of the sum of W |x - a|^2, W being (a, n)."""
    by_pixel, by_anchor = weights.sum(dim=0)[:, None], weights.sum(dim=1, keepdim=True)
    for_pixels = (x * (2 * by_pixel)).addmm_(weights.T, a, alpha=-2)
    for_anchors = (a * (2 * by_anchor)).addmm_(weights, x, alpha=-2)
    return for_pixels, for_anchors
