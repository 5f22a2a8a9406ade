"""What to label next: regions of unlabelled images on which f and g disagree.

The embedding net f and its momentum net g learnt from the same labels, and training asked them
to agree on unlabeled pixels too. Where they still do not, the labels so far say little about what
is there. Agreement is measured as in training (`loss.consistency`): soft masks around the same
anchors in both embeddings, compared by Dice. Only distances within each embedding count, so
moving or turning one of them as a whole changes nothing.

Anchors are drawn where instances may lie by the rule of the run's recipe, since background is
tied to no place by the loss. A foreground head says besides how sure it is of that, and the score
of a region is the geometric mean of both, since the two have scales of their own. Where there is
hardly anything, labels bring little: the score is lower then.

Regions are crops of the size that the run was trained on, spread evenly over the image; their
embeddings are those of the whole image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spoco_zoo.errors import ImageError
from spoco_zoo.foreground import External, Head, find_foreground
from spoco_zoo.images import read_image
from spoco_zoo.labels import BACKGROUND, UNLABELED
from spoco_zoo.normalization import fit_affine
from spoco_zoo.recipe import Recipe
from spoco_zoo.spec import LossSettings, Spec
from spoco_zoo.tiling import Box, inner_box
from spoco_zoo.training.checkpoints import load_run
from spoco_zoo.training.loss import consistency
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.schedule import pick_device

_WHOLE = 1 << 21  # pixels of an image that is embedded at once
_MAYBE = 0.1  # probability of foreground from which on an instance may lie there
_ANCHORS = 40  # of a region, at most
_LITTLE = 0.02  # part of a region that, if covered by what may be instances, halves its score


@dataclass(frozen=True)
class Region:
    """A part of an image, and what the networks make of it.

    Attributes:
        image: The file.
        start: First pixel, per axis, as (y, x) or (z, y, x).
        size: Pixels per axis.
        disagreement: Of f and g, 0 to 1.
        uncertainty: Of the foreground head where instances may lie, from 0 (sure) to 1 (even
            odds); None without a head.
        coverage: Part of the region where instances may lie.
    """

    image: Path
    start: tuple[int, ...]
    size: tuple[int, ...]
    disagreement: float
    uncertainty: float | None
    coverage: float

    @property
    def score(self) -> float:
        """How much labels are worth here, 0 to 1; to be compared within one run only."""
        doubt = self.disagreement
        if self.uncertainty is not None:
            doubt = math.sqrt(self.disagreement * self.uncertainty)
        return doubt * self.coverage / (self.coverage + _LITTLE)


@dataclass(frozen=True)
class Suggester:
    """Both networks of a finished run, at its best step, and what they were trained for."""

    spec: Spec
    pair: MomentumPair
    recipe: Recipe
    device: torch.device

    @staticmethod
    def open(run_folder: Path, device: str = "auto") -> "Suggester":
        """Read a run folder.

        Raises:
            SettingError: The folder is not that of a finished run.
            DeviceError: The device is not there.
        """
        place = pick_device(device)
        spec, pair, fitted = load_run(run_folder)
        return Suggester(spec, pair.to(place), Recipe.model_validate(fitted["recipe"]), place)

    @torch.no_grad()
    def look(self, path: Path) -> list[Region]:
        """Score all regions of an image.

        Raises:
            ImageError: The image cannot be read, or is not of the kind that was trained on.
        """
        channels, n_axes = self.spec.net.in_channels, self.spec.net.dimensions
        image = read_image(path, n_axes)
        if len(image.space) != n_axes or len(image.pixels) != channels:
            raise ImageError(
                f"{path}: image has {len(image.space)} space axes and {len(image.pixels)} "
                f"channels: expected {n_axes} and {channels}, as in the training; choose images "
                "of the same kind"
            )
        pixels = fit_affine(image.pixels, self.spec.data.normalization).apply(image.pixels)
        return [
            Region(path, tuple(s.start for s in box), tuple(s.stop - s.start for s in box), *found)
            for read, boxes in self._plan(image.space)
            for box, found in zip(boxes, self._score(pixels, read, boxes), strict=True)
        ]

    def _plan(self, shape: tuple[int, ...]) -> Iterator[tuple[Box, list[Box]]]:
        """Yield what is embedded at once, and the regions in it."""
        boxes = list(plan_regions(shape, self.spec.schedule.crop))
        if math.prod(shape) <= _WHOLE:
            yield tuple(slice(0, n) for n in shape), boxes
            return
        net = self.pair.embedding_net
        for box in boxes:
            sides = zip(box, net.halo, net.multiple_of, shape, strict=True)
            # on the pooling grid a part embeds its pixels as the whole image does
            yield (
                tuple(
                    slice(max(0, (s.start - h) // m * m), min(s.stop + h, n))
                    for s, h, m, n in sides
                ),
                [box],
            )

    def _score(
        self, pixels: Float[np.ndarray, "c *space"], read: Box, boxes: Sequence[Box]
    ) -> list[tuple[float, float | None, float]]:
        """Find disagreement, uncertainty and coverage of regions that are embedded at once."""
        part = torch.from_numpy(np.ascontiguousarray(pixels[(slice(None), *read)]))
        output = self.pair.embedding_net.embed(part[None].to(self.device))
        f = output.embedding[0]
        g = self.pair.momentum_net.embed(part[None].to(self.device)).embedding[0]
        head = None
        if output.foreground is not None:
            head = torch.sigmoid(output.foreground[0, 0]).cpu().numpy()
        scores: list[tuple[float, float | None, float]] = []
        for box in boxes:
            cut = inner_box(read, box)
            probability = None if head is None else head[cut]
            place = (slice(None), *cut)
            maybe = self._find_candidates(f[place].cpu().numpy(), probability)
            # what is smaller than the least instance is nothing to label
            if maybe.sum() < max(self.recipe.min_size, 1):
                scores.append((0.0, None if probability is None else 0.0, 0.0))
                continue
            unsure = None if probability is None else _uncertainty(probability[maybe])
            found = disagreement((f[place], g[place]), maybe, self.spec.loss)
            scores.append((found, unsure, float(maybe.mean())))
        return scores

    def _find_candidates(
        self, embedding: Float[np.ndarray, "e *space"], probability: np.ndarray | None
    ) -> Bool[np.ndarray, "*space"]:
        """Find where instances may lie, without asking for certainty."""
        match self.recipe.foreground:
            case Head():
                return np.asarray(probability) >= _MAYBE
            case External():  # their mask is not known here
                return np.ones(embedding.shape[1:], bool)
            case rule:
                return find_foreground(embedding, rule)


def disagreement(
    pair: tuple[Float[Tensor, "e *space"], Float[Tensor, "e *space"]],
    maybe: Bool[np.ndarray, "*space"],
    settings: LossSettings,
) -> float:
    """Mean of 1 - Dice of soft masks in two embeddings, around anchors where instances may lie.

    The same pixels always draw the same anchors.

    Args:
        pair: The embeddings of f and g.
        maybe: Where anchors may lie.
        settings: Width of the soft masks, as in the training.

    Returns:
        0, where both see the same instances, to 1; 0 too where there is no place for an anchor.
    """
    chosen = settings.model_copy(
        update={"max_anchors": _ANCHORS, "volume_ratio": 0.0, "dice": "per_instance"}
    )
    states = torch.from_numpy(np.where(maybe, UNLABELED, BACKGROUND)).to(pair[0].device)
    found = float(consistency(pair, states, chosen, torch.Generator().manual_seed(0)))
    return min(max(found, 0.0), 1.0)  # rounding


def plan_regions(shape: Sequence[int], crop: Sequence[int]) -> Iterator[Box]:
    """Spread crops evenly over an image, the last axis fastest.

    Crops overlap where they do not fit; up to a quarter of a crop stays unseen rather than that
    two show nearly the same. An image smaller than a crop is a region as it is.
    """
    starts, sizes = [], []
    for n, wish in zip(shape, crop, strict=True):
        size = min(n, wish)
        count = max(math.ceil((n - size / 4) / size), 1)
        gaps = max(count - 1, 1)
        first = (n - size) // 2 if count == 1 else 0
        starts.append([first + number * (n - size) // gaps for number in range(count)])
        sizes.append(size)
    for corner in product(*starts):
        yield tuple(slice(a, a + size) for a, size in zip(corner, sizes, strict=True))


def rank_regions(regions: Sequence[Region]) -> list[Region]:
    """Order regions by their score, the highest first; ties by name and place."""
    return sorted(regions, key=lambda r: (-r.score, str(r.image), r.start))


def rank_images(regions: Sequence[Region]) -> list[tuple[Path, float, float]]:
    """Order images by the mean score of their regions: name, mean and the highest of each."""
    found: dict[Path, list[float]] = {}
    for region in regions:
        found.setdefault(region.image, []).append(region.score)
    rows = [(image, sum(scores) / len(scores), max(scores)) for image, scores in found.items()]
    return sorted(rows, key=lambda row: (-row[1], str(row[0])))


def _uncertainty(probability: np.ndarray) -> float:
    return float((4 * probability * (1 - probability)).mean())
