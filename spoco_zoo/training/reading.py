"""Labelled images as training takes them: normalised, their labels in three states.

A split is read once, and again crop by crop where it does not fit into memory, which changes no
crop. Each image is normalised as a whole and its labels brought to the three states of the loss,
so that no crop can turn an instance into background. Which instances stay labelled depends on a
seed and on the names of the images.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from spoco_zoo.datasets import Box, Source, find_pairs
from spoco_zoo.errors import ImageError
from spoco_zoo.labels import BACKGROUND, KNOWN_BACKGROUND, UNLABELED
from spoco_zoo.normalization import (
    Affine,
    Normalization,
    fit_affine,
    fit_affine_in_parts,
)
from spoco_zoo.spec import DataSettings, LabelZero

_MEMORY_BYTES = 4 << 30  # of a split, normalised and with its labels, to hold in memory
_WHOLE_BYTES = 1 << 30  # of one image, to find its statistics at once
_BOX = 1 << 22  # pixels whose labels are looked at together


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, normalised, with its labels in three states."""

    name: str
    image: Float[np.ndarray, "c *space"]
    labels: Int[np.ndarray, "*space"]
    kept: tuple[int, ...]  # ids of the instances that stay, as in the file

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return len(self.image)

    @property
    def space(self) -> tuple[int, ...]:
        """Size in pixels, without the channels."""
        return self.labels.shape

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Cut a box out of image and labels."""
        return self.image[(slice(None), *box)], self.labels[box]

    def ids(self) -> Int[np.ndarray, " n"]:
        """List its instances."""
        return np.unique(self.labels[self.labels > 0])

    def thin_out(self, kept: tuple[int, ...], label_zero: LabelZero) -> "Sample":
        """Bring labels of the file to three states, of which only some instances stay."""
        return replace(self, labels=to_states(self.labels, kept, label_zero), kept=kept)

    def label_boxes(self, overlap: int = 0) -> Iterator[Int[np.ndarray, "*space"]]:
        """Cut the labels into boxes that are small in memory."""
        for box in _cut(self.space, overlap):
            yield self.labels[box]

    def has_background(self) -> bool:
        """Whether some pixel is known background."""
        return bool((self.labels == BACKGROUND).any())

    def places(self) -> np.ndarray:
        """List the pixels of instances, as positions in the flat image."""
        return np.flatnonzero(self.labels > BACKGROUND)


@dataclass(frozen=True, eq=False)
class StreamedSample:
    """The same, of an image that stays in its file; its numbers are those of the whole image."""

    source: Source
    affine: Affine
    kept: tuple[int, ...]
    label_zero: LabelZero

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.source.name

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return self.source.channels

    @property
    def space(self) -> tuple[int, ...]:
        """Size in pixels, without the channels."""
        return self.source.space

    @property
    def image(self) -> Float[np.ndarray, "c *space"]:
        """The whole image, normalised; read anew each time."""
        return self.affine.apply(self.source.read()[0])

    @property
    def labels(self) -> Int[np.ndarray, "*space"]:
        """All its labels, in three states; read anew each time."""
        return to_states(self.source.read()[1], self.kept, self.label_zero)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Read a box of image and labels from the file."""
        pixels, labels = self.source.read(box)
        return self.affine.apply(pixels), to_states(labels, self.kept, self.label_zero)

    def ids(self) -> Int[np.ndarray, " n"]:
        """List its instances."""
        found: set[int] = set()
        for box in self.source.slabs():
            found.update(np.unique(self.source.read_labels(box)).tolist())
        return np.array(sorted(label for label in found if label > 0), dtype=np.int64)

    def thin_out(self, kept: tuple[int, ...], label_zero: LabelZero) -> "StreamedSample":
        """Keep only some instances."""
        return replace(self, kept=kept, label_zero=label_zero)

    def label_boxes(self, overlap: int = 0) -> Iterator[Int[np.ndarray, "*space"]]:
        """Read the labels box by box, in three states."""
        for box in _cut(self.space, overlap):
            yield to_states(self.source.read_labels(box), self.kept, self.label_zero)

    def has_background(self) -> bool:
        """Whether some pixel is known background."""
        return any((labels == BACKGROUND).any() for labels in self.label_boxes())

    def places(self) -> "Places":
        """List the pixels of instances, as positions in the flat image."""
        return Places(self.source, self.kept)


class Places:
    """Positions of the pixels of instances, counted in slabs and looked up when asked for."""

    def __init__(self, source: Source, kept: Sequence[int]) -> None:
        self.source, self.kept = source, np.array(kept, dtype=np.int64)
        self.boxes = list(source.slabs())
        self.ends = np.cumsum([len(self._find(box)) for box in self.boxes])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int | np.integer) -> int:
        slab = int(np.searchsorted(self.ends, number, side="right"))
        before = int(self.ends[slab - 1]) if slab else 0
        box = self.boxes[slab]
        # slabs are cut along the first axis, so that flat positions rise through them
        start: int = box[0].start * math.prod(self.source.space[1:])
        return start + int(self._find(box)[int(number) - before])

    def _find(self, box: Box) -> np.ndarray:
        return np.flatnonzero(np.isin(self.source.read_labels(box), self.kept))


AnySample = Sample | StreamedSample


def _cut(space: Sequence[int], overlap: int) -> Iterator[Box]:
    """Cut an image into boxes; no thin ones, in which little of an instance could be seen."""
    sides = list(space)
    while math.prod(sides) > _BOX:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    starts = (range(0, size, side) for size, side in zip(space, sides, strict=True))
    for corner in product(*starts):
        yield tuple(
            slice(max(at - overlap, 0), min(at + side + overlap, size))
            for at, side, size in zip(corner, sides, space, strict=True)
        )


def choose_instances(
    labels: Integer[np.ndarray, "*space"], ratio: float, seed: int, name: str
) -> tuple[int, ...]:
    """Pick the instances of one image that stay labelled.

    The ids are shuffled by the seed and the image's name and the first are kept, so a larger
    ratio contains a smaller one. Half counts round up, and an image with instances keeps one.
    """
    ids = np.unique(labels[labels > 0])
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shuffled = random.permutation(ids)
    count = max(_part_of(len(ids), ratio), 1) if len(ids) else 0
    return tuple(sorted(int(i) for i in shuffled[:count]))


def choose_over_split(
    ids: Sequence[tuple[str, Integer[np.ndarray, " _"]]], ratio: float, seed: int
) -> list[tuple[int, ...]]:
    """Pick the instances of a whole split that stay labelled.

    Every instance draws a lot, by the seed and the name of its image, and of all images together
    the lowest lots are kept: a larger ratio contains a smaller one, the order of the images does
    not matter, and an image may keep none. Half counts round up, and one instance is kept.

    Args:
        ids: Name and sorted instance ids of each image.
        ratio: Part of all instances that stays.
        seed: Of the lots.

    Returns:
        The kept ids of each image, sorted.
    """
    lots = [np.random.default_rng([seed, zlib.crc32(n.encode())]).random(len(i)) for n, i in ids]
    everyone = np.sort(np.concatenate([*lots, np.empty(0)]))
    if not len(everyone):
        return [()] * len(ids)
    highest = everyone[max(_part_of(len(everyone), ratio), 1) - 1]
    return [
        tuple(int(i) for i in own[lot <= highest]) for (_, own), lot in zip(ids, lots, strict=True)
    ]


def _part_of(count: int, ratio: float) -> int:
    return math.floor(ratio * count + 0.5)


def to_states(
    labels: Integer[np.ndarray, "*space"], kept: Sequence[int], label_zero: LabelZero
) -> Int[np.ndarray, "*space"]:
    """Bring labels as painted to the states of the loss: what is not kept is UNLABELED."""
    zero = BACKGROUND if label_zero == "background" else UNLABELED
    ids = np.unique(labels)
    # ids may be large and sparse: number the kept ones 1..n
    numbers = {i: n for n, i in enumerate(sorted(kept), start=1)}
    numbers |= {0: zero, KNOWN_BACKGROUND: BACKGROUND}
    states = np.array([numbers.get(int(i), UNLABELED) for i in ids], dtype=np.int64)
    return states[np.searchsorted(ids, labels)]


def read_samples(folder: Path, data: DataSettings, n_axes: int, *, thin: bool) -> list[AnySample]:
    """Read a split, in any layout of `datasets`; what does not fit into memory stays in its files.

    Args:
        folder: A split, such as DIR/train.
        data: What the files mean.
        n_axes: Space axes of the network.
        thin: Keep only `instance_ratio` of the instances; validation keeps them all.

    Raises:
        ImageError: Files are missing, unreadable, without partner or of different shape.
        MissingExtraError: h5py or zarr is needed and not installed.
    """
    zero = data.label_zero if thin else data.validation_label_zero or data.label_zero
    background_label = data.background_label  # of all splits, whatever 0 means in this one
    sources = [
        replace(source, background_label=background_label)
        for source in find_pairs(folder.parent, folder.name, data, n_axes)
    ]
    held = sum(math.prod(source.space) * (4 * source.channels + 8) for source in sources)
    read = _stream if held > _MEMORY_BYTES else _hold
    samples = [read(source, data.normalization, zero) for source in sources]
    ratio = data.instance_ratio if thin else 1.0
    samples = [sample.thin_out(kept, zero) for sample, kept in _choose(samples, ratio, data)]
    place = folder / "labels" if (folder / "labels").is_dir() else folder
    if thin and not any(sample.kept for sample in samples):
        raise ImageError(f"{place}: no instance is labelled: label some and try again")
    is_told = thin and background_label is not None
    if is_told and not any(sample.has_background() for sample in samples):
        raise ImageError(
            f"{place}: no pixel is known background, while data.background_label is "
            f"{background_label}: paint some background with it, or leave the setting out"
        )
    return samples


def _hold(source: Source, normalization: Normalization, zero: LabelZero) -> AnySample:
    """Read an image into memory; its labels are still those of the file."""
    pixels, labels = source.read()
    affine = fit_affine(pixels, normalization)
    return Sample(source.name, affine.apply(pixels), labels.astype(np.int64), ())


def _stream(source: Source, normalization: Normalization, zero: LabelZero) -> AnySample:
    """Go through an image once for its statistics, and leave it where it is."""
    is_large = math.prod(source.image.shape) * source.image.dtype.itemsize > _WHOLE_BYTES
    if is_large:
        affine = fit_affine_in_parts(
            lambda: (source.read(box)[0] for box in source.slabs()),
            normalization,
            source.image.shape,
            source.image.dtype,
        )
    else:
        affine = fit_affine(source.read()[0], normalization)
    return StreamedSample(source, affine, (), zero)


def _choose(
    samples: Sequence[AnySample], ratio: float, data: DataSettings
) -> list[tuple[AnySample, tuple[int, ...]]]:
    """Pick the instances that stay labelled, of each image or of the whole split."""
    seed = data.instance_seed
    ids = [(sample.name, sample.ids()) for sample in samples]
    if data.instance_ratio_of == "image":
        kept = [choose_instances(own, ratio, seed, name) for name, own in ids]
    else:
        kept = choose_over_split(ids, ratio, seed)
    return list(zip(samples, kept, strict=True))
