"""Batches for training: crops with sparse labels, two views of each.

What a crop shows depends on the seed, the number of the step and its own number in the batch
alone: a resumed run sees what an uninterrupted one sees, and processes that share a batch see what
one would, whatever the count of workers.

    image ─ crop ─ geometry ─┬─ intensity ─ view of f
                             └─ intensity ─ view of g
    labels ─ crop ─ geometry ─── labels of both

Augmentation itself is batchgeneratorsv2's.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spoco_zoo.errors import SettingError
from spoco_zoo.labels import BACKGROUND, UNLABELED, split_disconnected
from spoco_zoo.spec import AugmentationSettings, ScheduleSettings, Spec
from spoco_zoo.training.reading import (
    AnySample,
    Places,
    Sample,
    StreamedSample,
    choose_instances,
    choose_over_split,
    read_samples,
    to_states,
)

__all__ = [
    "AnySample",
    "Batch",
    "Sample",
    "SparseSamples",
    "StreamedSample",
    "choose_instances",
    "choose_over_split",
    "read_samples",
    "to_states",
]


_OUTSIDE = UNLABELED - 1  # beyond the image, where its pixels are mirrored: becomes UNLABELED
_LEAST_PIECE = 3  # to the power of the axes: pixels that a piece of an instance has at least
_LOOKED_AT = 1 << 26  # pixels, to tell which part of the instances boundaries leave


@dataclass(frozen=True, eq=False)
class Batch:
    """Two views of the same crops, and the labels of both."""

    view_f: Tensor  # (b, c, *space)
    view_g: Tensor  # (b, c, *space)
    labels: Tensor  # (b, *space)

    def part(self, rows: slice) -> "Batch":
        """Take some of the crops."""
        return Batch(self.view_f[rows], self.view_g[rows], self.labels[rows])

    def pin_memory(self) -> "Batch":
        """Move to page-locked memory, which the loader asks for on CUDA."""
        return Batch(self.view_f.pin_memory(), self.view_g.pin_memory(), self.labels.pin_memory())


class SparseSamples(Dataset[Batch]):
    """All batches of a training run, by the number of the step.

    Args:
        samples: Images of any size.
        spec: Says how they are cropped and varied.
        numbers: Which crops of each batch are made; all of them where left out.
    """

    def __init__(
        self, samples: Sequence[AnySample], spec: Spec, numbers: Sequence[int] | None = None
    ) -> None:
        self.samples = samples
        self.schedule: ScheduleSettings = spec.schedule
        self.numbers = range(spec.schedule.batch_size) if numbers is None else numbers
        self.boundary_width = spec.data.boundary_width
        self.geometry = _geometry(spec.augmentation, spec.schedule.crop)
        self.intensity = _intensity(spec.augmentation)
        # large images count more, but a few of them must not push out all small ones
        area = np.array([math.prod(sample.space) for sample in samples], dtype=float)
        crops = np.maximum(area / math.prod(spec.schedule.crop), 1.0)
        self.chances = np.sqrt(crops) / np.sqrt(crops).sum()
        self.places: list[np.ndarray | Places] = [sample.places() for sample in samples]

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        crops = [self._crop(step, number) for number in self.numbers]
        first, second, labels = zip(*crops, strict=True)
        return Batch(torch.stack(first), torch.stack(second), torch.stack(labels))

    def _crop(self, step: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng([self.schedule.seed, step, number])
        chosen = int(random.choice(len(self.samples), p=self.chances))
        image, labels = self._window(chosen, random)
        with _seeded(int(random.integers(2**31))):
            # 0 is what the geometry fills in from outside
            moved = self.geometry(image=image, segmentation=labels[None] - _OUTSIDE)
            states = moved["segmentation"][0].long() + _OUTSIDE
            if self.boundary_width:
                states = _part_touching(states, self.boundary_width)
            states = _renumber(states.clamp(min=UNLABELED))
            crop = moved["image"]
            view_f = self.intensity(image=crop.clone())["image"]
            view_g = self.intensity(image=crop.clone())["image"]
        return view_f.contiguous(), view_g.contiguous(), states

    def _window(self, chosen: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cut a piece around the place of a crop, large enough to turn and shrink in.

        Beyond the edge of the image the pixels are mirrored and nothing is labelled: a
        mirrored instance would be two with one id.
        """
        sample, crop = self.samples[chosen], self.schedule.crop
        shape, places = sample.space, self.places[chosen]
        aimed = len(places) and random.random() < self.schedule.instance_crop_ratio
        if aimed:
            place = np.unravel_index(places[random.integers(len(places))], shape)
            jitter = [random.integers(-size // 3, size // 3 + 1) for size in crop]
            center = [int(p) + int(j) for p, j in zip(place, jitter, strict=True)]
        else:
            center = [int(random.integers(n)) for n in shape]
        windows = []
        for middle, size, n in zip(center, crop, shape, strict=True):
            # the crop stays inside where the image is large enough
            middle = min(max(middle, size // 2), max(n - (size + 1) // 2, size // 2))
            middle = middle if n >= size else n // 2
            start = middle - size
            windows.append(np.arange(start, start + 2 * size + size % 2))
        mirrored = [_mirror(window, n) for window, n in zip(windows, shape, strict=True)]
        box = tuple(slice(int(m.min()), int(m.max()) + 1) for m in mirrored)
        image, labels = sample.read(box)
        for axis, (indices, inside, n) in enumerate(zip(windows, mirrored, shape, strict=True)):
            image = image.take(inside - inside.min(), axis=axis + 1)
            labels = labels.take(inside - inside.min(), axis=axis)
            outside = (indices < 0) | (indices >= n)
            labels[(slice(None),) * axis + (outside,)] = _OUTSIDE
        return torch.from_numpy(image), torch.from_numpy(labels)


def draw(seed: int, step: int, number: int) -> torch.Generator:
    """Make the generator of what is drawn for one crop of one step, apart from the crop itself."""
    mixed = np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _mirror(indices: np.ndarray, size: int) -> np.ndarray:
    """Reflect indices at the first and last pixel."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(indices) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(indices)


def _part_touching(states: Tensor, width: int) -> Tensor:
    """Make background of the pixels where instances touch, and instances of the pieces they leave.

    What is unlabeled beside an instance counts as another one, so that few labelled instances
    show boundaries too; what is background, or beyond the image, does not. Only what meets inside
    the crop is taken for one: the ends of a long instance that bends out of sight look like two.
    Specks are none, they become UNLABELED.
    """
    from scipy import ndimage

    labels = states.numpy()
    inside = labels > BACKGROUND
    unknown = labels.max() + 1
    highest, lowest = labels.copy(), labels.copy()
    highest[labels == UNLABELED] = lowest[labels == UNLABELED] = unknown
    lowest[~inside & (labels != UNLABELED)] = unknown
    size = 2 * width + 1
    is_boundary = inside & (
        ndimage.minimum_filter(lowest, size, mode="nearest")
        != ndimage.maximum_filter(highest, size, mode="nearest")
    )
    left = np.where(inside & ~is_boundary, labels, 0).astype(np.uint32)
    pieces = split_disconnected(left, _LEAST_PIECE**labels.ndim).astype(np.int64)
    lost = np.where(inside, UNLABELED, labels)
    lost[is_boundary] = BACKGROUND
    return torch.from_numpy(np.where(pieces > 0, pieces, lost))


def check_boundaries(samples: Sequence[AnySample], width: int) -> str:
    """Tell how many instances boundaries of a width leave, or refuse a width that leaves none.

    Images are looked at as they are, while crops of them are scaled, too; of many pixels the
    first, until some instance is left.

    Raises:
        SettingError: No instance of any image is left.
    """
    found = left = pixels = 0
    some_are_left_out = False
    for sample in samples:
        if left and pixels > _LOOKED_AT:
            some_are_left_out = True
            break
        before: set[int] = set()
        after: set[int] = set()
        for labels in sample.label_boxes(overlap=width):
            if after and pixels > _LOOKED_AT:
                some_are_left_out = True
                break
            parted = _part_touching(torch.from_numpy(labels), width).numpy()
            before.update(np.unique(labels[labels > BACKGROUND]).tolist())
            after.update(np.unique(labels[parted > BACKGROUND]).tolist())
            pixels += labels.size
        found, left = found + len(before), left + len(after)
    if not left:
        raise SettingError(
            f"data.boundary_width is {width}: boundaries of that width leave nothing of the "
            f"{found} labelled instances: expected less than half of their width; lower it"
        )
    first = "the first " * some_are_left_out
    return f"data.boundary_width is {width}: of {first}{found} labelled instances {left} are left"


def _renumber(states: Tensor) -> Tensor:
    """Close the gaps in the ids of a crop; UNLABELED and BACKGROUND stay what they are."""
    ids, inverse = torch.unique(states, return_inverse=True)
    numbers = torch.cumsum(ids > BACKGROUND, dim=0)
    result: Tensor = torch.where(ids > BACKGROUND, numbers, ids)[inverse]
    return result


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that the library draws from, and put them back after."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


@dataclass(frozen=True)
class _InPlane:
    """Draws a rotation about z alone; a class, since processes cannot be sent a lambda."""

    angle: float

    def __call__(self, *_: object, dim: int, **__: object) -> float:
        return 0.0 if dim else float(np.random.uniform(-self.angle, self.angle))


@dataclass(frozen=True)
class _BlurWidth:
    """Draws a width of blur that fits into an axis of few pixels."""

    limits: tuple[float, float]

    def __call__(self, size: int) -> float:
        return float(min(np.random.uniform(*self.limits), max((size - 1) / 3, 0.1)))


def _geometry(settings: AugmentationSettings, crop: Sequence[int]) -> Any:  # noqa: ANN401
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    angle = math.radians(settings.rotation_degrees)
    axes = tuple(range(len(crop)))
    spatial = SpatialTransform(
        tuple(crop),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=settings.elastic_ratio,
        elastic_deform_scale=(0.1, 0.3),
        elastic_deform_magnitude=(0.0, 4.0),
        p_rotation=0.7 if angle else 0.0,
        # a volume turns in its image plane only: z has another pixel size
        rotation=_InPlane(angle) if len(crop) == 3 else (-angle, angle),
        p_scaling=0.7,
        scaling=settings.scaling,
        p_synchronize_scaling_across_axes=0.8,
        mode_seg="nearest",
        padding_mode_image="reflection",
    )
    flips = [MirrorTransform(allowed_axes=axes)] if settings.flips else []
    return ComposeTransforms([spatial, *flips])


def _intensity(settings: AugmentationSettings) -> Any:  # noqa: ANN401 - the library is untyped
    from batchgeneratorsv2.transforms.intensity.brightness import (
        MultiplicativeBrightnessTransform,
    )
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    changes = [
        GaussianNoiseTransform((0.0, settings.noise_variance), synchronize_channels=True),
        GaussianBlurTransform(_BlurWidth(settings.blur_sigma), synchronize_channels=True),
        MultiplicativeBrightnessTransform(
            BGContrast(settings.brightness), synchronize_channels=False
        ),
        ContrastTransform(
            BGContrast(settings.contrast), preserve_range=True, synchronize_channels=False
        ),
        GammaTransform(
            BGContrast(settings.gamma),
            p_invert_image=0.0,
            synchronize_channels=False,
            p_per_channel=1.0,
            p_retain_stats=1.0,
        ),
    ]
    return ComposeTransforms([RandomTransform(c, settings.intensity_ratio) for c in changes])
