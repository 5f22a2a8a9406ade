"""All pairs of some pixels and anchors: soft masks, hinges, their sums and their gradients.

Soft masks ask of every pixel x how far it is from every anchor a. One matrix product gives the
exponents of all of them, for

    -|x - a|^2 = (x, |x|^2, 1) . (2 a, -1, -|a|^2)

and with weights W, (p, a), two more give what they say of the places:

    for x: sum_a W (a - x) = W a - x sum_a W        for a: sum_x W (x - a) = W' x - a sum_x W

Pixels are taken block by block, so that nothing of the size pixels x anchors outlives a block:
the backward pass computes it again. On the CPU the anchors to which a block gave nothing are
left out there; a GPU would have to wait for the answer.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_BLOCK = 2**19  # pairs at once: two megabytes stay in the cache
_CPU_PIXELS = 2**14  # and pixels at once
_GPU_BLOCK = 2**25
_NEGLIGIBLE = -28.0  # an exponent: a million such pairs sum up to less than 1e-6
_LEAST = -40.0  # an exponent: beyond come numbers that are slow to compute with
_NOTHING = 1e-8  # a sum of soft masks: less than one pixel in a hundred million
_TINY = 1e-6
_ROUNDED = 4.0  # times eps |a|^2: what a squared distance by a matrix product may be wrong by


class Anchors(NamedTuple):
    """Points of one image, moved so that their mean is at the origin, which keeps digits."""

    centre: Float[Tensor, " e"]
    places: Float[Tensor, "a e"]
    table: Float[Tensor, "a c"]  # c = e + 2; times `rows` it is the log2 of soft masks
    unit: float  # -|x - a|^2 for a log2 of 1

    @classmethod
    def of(cls, points: Float[Tensor, "a e"], width: float) -> "Anchors":
        """Prepare for soft masks exp(-|x - a|^2 / width)."""
        centre = points.mean(dim=0)
        places, unit = points - centre, width * math.log(2.0)
        lengths = places.square().sum(dim=1, keepdim=True)
        table = torch.cat([2 * places, -torch.ones_like(lengths), -lengths], dim=1)
        return cls(centre, places, table.div_(unit), unit)

    def rows(self, pixels: Float[Tensor, "p e"]) -> Float[Tensor, "p c"]:
        """Write pixels as (x, |x|^2, 1), moved as the anchors are."""
        rows = pixels.new_empty(len(pixels), pixels.shape[1] + 2)
        centred = torch.sub(pixels, self.centre, out=rows[:, :-2])
        rows[:, -2] = squares_of_rows(centred)
        rows[:, -1] = 1.0
        return rows

    def log_soft(self, rows: Float[Tensor, "p c"]) -> Float[Tensor, "p a"]:
        """Find the log2 of all soft masks, which rounding may bring above zero."""
        return rows @ self.table.T

    def hinges(
        self, logs: Float[Tensor, "p a"], delta_dist: float
    ) -> tuple[Float[Tensor, "p a"], Float[Tensor, "p a"]]:
        """Find d to divide by, and the hinges max(delta_dist - d, 0), from the log2 of soft masks.

        The first is never less than what rounding makes uncertain: a pixel that seems to be nearer
        than it is would get a gradient of any length.
        """
        distance = (logs * -self.unit).clamp_min_(_TINY**2).sqrt_()
        hinge = (delta_dist - distance).clamp_min_(0.0)
        # the last column of the table is -|a|^2
        rounded = self.table[:, -1] * (-self.unit * _ROUNDED * torch.finfo(logs.dtype).eps)
        return torch.maximum(distance, rounded.sqrt(), out=distance), hinge

    def only(self, some: Tensor | slice) -> "Anchors":
        """Leave out the others; the centre stays."""
        return self._replace(places=self.places[some], table=self.table[some])


def squares_of_rows(rows: Float[Tensor, "p e"]) -> Float[Tensor, " p"]:
    """Squared length of each row; by a product with ones, which is faster than a sum."""
    return torch.mv(rows.square(), rows.new_ones(rows.shape[1]))


def exp2_(logs: Tensor) -> Tensor:
    """Soft masks from their log2, in place, but none so small that it is slow to compute with."""
    return logs.clamp_(_LEAST / math.log(2.0), 0.0).exp2_()


def lean_of_pixels(
    weights: Float[Tensor, "p a"], slopes: Float[Tensor, " a"], rows: Tensor, anchors: Anchors
) -> Float[Tensor, "p e"]:
    """For each pixel the sum over anchors of slope W (a - x)."""
    total = torch.mv(weights, slopes)[:, None]
    return (rows[:, :-2] * -total).addmm_(weights, anchors.places * slopes[:, None])


def lean_of_anchors(
    weights: Float[Tensor, "p a"], rows: Tensor, anchors: Anchors
) -> Float[Tensor, "a e"]:
    """For each anchor the sum over pixels of W (x - a)."""
    total = weights.sum(dim=0)[:, None]
    return (anchors.places * -total).addmm_(weights.T, rows[:, :-2])


def leaves_out(device: torch.device) -> bool:
    """Whether pairs that make no difference are looked for; a GPU would wait for the answer."""
    return device.type == "cpu"


def find_near(sums: Float[Tensor, " a"]) -> Tensor | slice:
    """Which anchors a block gives anything to; a slice where that are all of them."""
    if not leaves_out(sums.device):
        return slice(None)
    near = torch.nonzero(sums > _NOTHING)[:, 0]
    return slice(None) if len(near) == len(sums) else near


def reach_of_soft_mask(width: float) -> float:
    """Distance from which on squares of soft masks exp(-d^2 / width) make no difference."""
    return math.sqrt(-_NEGLIGIBLE * width / 2)


def iterate_blocks(length: int, count: int, device: torch.device) -> Iterator[slice]:
    """Part pixels into blocks of so many pairs with `count` anchors."""
    count = max(count, 1)
    size = min(_CPU_BLOCK // count, _CPU_PIXELS) if device.type == "cpu" else _GPU_BLOCK // count
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + max(size, 1), length))


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
        for image, chosen, twins in _each_image(f, g, anchors, width):
            for part in iterate_blocks(f.shape[1], len(chosen), f.device):
                (soft_f, _), (soft_g, _) = (_soften(e[image, part], a) for e, a in twins)
                products = soft_f * soft_g, soft_f.square_(), soft_g.square_()
                given = torch.stack([product.sum(dim=0) for product in products])
                sums[:, image, : len(chosen)] += given
                ctx.near.append(find_near(given.amax(dim=0)))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        f, g = ctx.saved_tensors
        anchors, width = ctx.words
        for_f = torch.zeros_like(f)
        nears = iter(ctx.near)
        for image, chosen, twins in _each_image(f, g, anchors, width):
            for part in iterate_blocks(f.shape[1], len(chosen), f.device):
                near = next(nears)
                by_shared, by_square, _ = slopes[:, image, : len(chosen)][:, near]
                (soft_f, rows), (soft_g, _) = (
                    _soften(e[image, part], a.only(near)) for e, a in twins
                )
                # by |x - a|^2 the derivative of by_shared s_f s_g + by_square s_f^2 is -W / width
                weights = soft_g.mul_(by_shared).addcmul_(soft_f, 2 * by_square).mul_(soft_f)
                around = twins[0][1].only(near)
                ones = torch.ones_like(by_shared)
                for_pixels = lean_of_pixels(weights, ones, rows, around)
                for_f[image, part] += for_pixels.mul_(2 / width)
                for_anchors = lean_of_anchors(weights, rows, around).mul_(2 / width)
                for_f[image].index_add_(0, chosen[near], for_anchors)
        return for_f, None, None, None


def _each_image(
    f: Tensor, g: Tensor, anchors: Sequence[Tensor], width: float
) -> Iterator[tuple[int, Tensor, tuple[tuple[Tensor, Anchors], tuple[Tensor, Anchors]]]]:
    """Yield number of image, its anchors' pixels, and for f and g the embedding and anchors."""
    for image, chosen in enumerate(anchors):
        if len(chosen):
            of_f, of_g = (Anchors.of(e[image].index_select(0, chosen), width) for e in (f, g))
            yield image, chosen, ((f, of_f), (g, of_g))


def _soften(pixels: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor]:
    """Find soft masks, and the rows that they were made of."""
    rows = anchors.rows(pixels)
    return exp2_(anchors.log_soft(rows)), rows
