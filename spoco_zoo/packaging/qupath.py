"""The instances graph as QuPath's InstanSeg extension calls it: floats of its own range to labels.

The extension resamples an image to the pixel size in the description, maps the percentiles 0.1
and 99.9 of what was annotated to 0 and 1, clips, cuts tiles and joins the labels of them. So the
operations of the network's own normalisation are part of the file. Where the network was trained
with those percentiles, nothing is left to do.
"""

from typing import Any

import numpy as np
from torch import Tensor

from spoco_zoo.errors import SettingError
from spoco_zoo.normalization import Normalization, ScaleRange, ZeroMeanUnitVariance, fit_affine
from spoco_zoo.packaging.instances import build_instances, check_recipe
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import Spec
from spoco_zoo.training.net import PackagedUNet

PERCENTILES = (0.1, 99.9)
CLIP = (-0.5, 1.5)

# `args` are settings of the extension, which the graph has fixed
_FORWARD = """
def forward(self, images: Tensor, args: Optional[Dict[str, Tensor]] = None):
    labels = torch.jit.annotate(List[Tensor], [])
    for image in images.split(1):
        flat = image.reshape(image.size(1), -1).to(torch.float64)
        {statistics}
        flat = (flat - low.unsqueeze(1)) / span.unsqueeze(1)
        normalized = flat.to(torch.float32).reshape(image.size())
        labels.append(self.find_instances(normalized).to(torch.float32))
    return torch.cat(labels)
"""
_MEAN = """
        low = flat.mean(1)
        span = torch.sqrt(torch.square(flat - low.unsqueeze(1)).mean(1)) + {eps}
"""
_RANGE = """
        ranked = torch.sort(flat, 1)[0]
        low = {low}
        span = {high} - low + {eps}
"""
_NOTHING = """
        low = torch.zeros([flat.size(0)], dtype=flat.dtype, device=flat.device)
        span = torch.ones_like(low)
"""


def check_qupath(spec: Spec, recipe: Recipe) -> None:
    """Refuse what QuPath cannot be given.

    Raises:
        SettingError: The network is for volumes, the pixel size is not known, the images are
            normalised by fixed numbers, or the recipe cannot go into a graph.
    """
    check_recipe(recipe)
    if spec.net.dimensions != 2:
        raise SettingError(
            f"net.dimensions is {spec.net.dimensions}: QuPath shows images of 2; "
            "leave out the qupath flavour"
        )
    normalization = spec.data.normalization
    if not isinstance(normalization, ZeroMeanUnitVariance | ScaleRange):
        raise SettingError(
            f"data.normalization is {normalization.id}: QuPath gives no intensities but what lies "
            "between percentiles; train with scale_range or zero_mean_unit_variance, or leave out "
            "the qupath flavour"
        )
    if spec.data.pixel_size_um is None:
        raise SettingError(
            "data.pixel_size_um is not given: QuPath resamples images to it; write the pixel size "
            "of the training images into spec.yaml of the run, or leave out the qupath flavour"
        )


def build_qupath(net: PackagedUNet, spec: Spec, recipe: Recipe, example: Tensor) -> Any:  # noqa: ANN401
    """Put normalisation before and clustering behind a network.

    Args:
        net: The network, in evaluation mode.
        spec: Says how the images of its training were normalised.
        recipe: How instances are made.
        example: A normalised image `(1, c, y, x)` to trace on, best of an odd size.

    Returns:
        A script module from images `(n, c, y, x)` as QuPath gives them, and settings that it
        passes over, to labels `(n, 1, y, x)` in float32, 0 for background.

    Raises:
        SettingError: As `check_qupath`.
    """
    check_qupath(spec, recipe)
    forward = _FORWARD.format(statistics=_write_statistics(spec.data.normalization))
    return build_instances(net, recipe, example, forward)


def give_as_qupath(image: np.ndarray) -> np.ndarray:
    """An image `(c, y, x)` as the extension gives it to a network, when all of it is annotated."""
    settings = ScaleRange(min_percentile=PERCENTILES[0], max_percentile=PERCENTILES[1])
    return np.asarray(fit_affine(image, settings).apply(image).clip(*CLIP))


def _write_statistics(normalization: Normalization) -> str:
    """Lines that find, per channel, what is subtracted and what is divided by."""
    match normalization:
        case ZeroMeanUnitVariance(eps=eps):
            return _MEAN.format(eps=eps).strip()
        case ScaleRange(min_percentile=low, max_percentile=high, eps=eps):
            if (low, high) == PERCENTILES:
                return _NOTHING.strip()
            return _RANGE.format(low=_write_rank(low), high=_write_rank(high), eps=eps).strip()
        case _:
            raise AssertionError(normalization)  # refused by `check_qupath`


def _write_rank(percentile: float) -> str:
    """The percentile of sorted values, between the two that are nearest, as NumPy has it."""
    place = f"(ranked.size(1) - 1) * {percentile / 100!r}"
    before = f"ranked[:, int({place})]"
    after = f"ranked[:, min(int({place}) + 1, ranked.size(1) - 1)]"
    return f"torch.lerp({before}, {after}, {place} - int({place}))"
