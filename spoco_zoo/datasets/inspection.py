"""What would be read from a folder, told to people before they train: counts, sizes, advice.

Everything is measured on pixels and labels as they are; each image is gone through once, in
slabs. The advice is a starting point from the sizes of the instances and of a pixel, not a law.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from spoco_zoo.datasets import Source, find_pairs, folders, hdf5, recognize
from spoco_zoo.datasets.advice import suggest_crop, suggest_pooling
from spoco_zoo.errors import ImageError
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import Spec

_SPLITS = ("train", "val", "test")
_ACROSS, _LEAST_SIDE = 20, 128  # instances and pixels along a side of a picture
_FILLED = 0.95  # where instances are more of an image, they touch all around
_SAME = 1.01  # sizes of pixels up to this ratio are the same, written with fewer digits


@dataclass(frozen=True, eq=False)
class Measured:
    """The instances of one image."""

    source: Source
    sizes: Int[np.ndarray, " n"]  # pixels
    extents: Int[np.ndarray, "n d"]  # pixels along each axis
    slivers: int  # instances that lie within one layer of pixels at the border
    zero: int  # pixels of label 0
    unknown: int  # pixels of label -1
    is_flat: bool  # all pixels have one value
    checksum: int  # of the pixels


@dataclass(frozen=True, eq=False)
class Split:
    """All images of a split."""

    name: str
    images: tuple[Measured, ...]
    unread: tuple[str, ...] = ()  # what lies beside them and is no image or labels

    @property
    def sources(self) -> list[Source]:
        """The images as they are read."""
        return [image.source for image in self.images]

    @property
    def sizes(self) -> Int[np.ndarray, " n"]:
        """Pixels of all instances."""
        return np.concatenate([image.sizes for image in self.images])

    def share(self, pixels: Callable[[Measured], int]) -> float:
        """Part of all pixels that are of a kind."""
        total = sum(math.prod(source.space) for source in self.sources)
        return sum(map(pixels, self.images)) / total


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a folder holds, split by split."""

    root: Path
    layout: str
    spec: Spec
    has_spec: bool  # else the advice starts from what is there
    splits: tuple[Split, ...]

    @cached_property
    def n_axes(self) -> int:
        """Space axes of the images."""
        return len(self.splits[0].sources[0].space)

    @cached_property
    def scale_um(self) -> tuple[float, ...] | None:
        """Median pixel size of all images, or that of the spec where no file says one."""
        sources = [source for split in self.splits for source in split.sources]
        known = [source.scale_um for source in sources if source.scale_um is not None]
        if not known:
            stated = self.spec.data.pixel_size_um
            return stated if stated is not None and len(stated) == self.n_axes else None
        return tuple(float(size) for size in np.median(np.array(known), axis=0))

    def rows(self) -> list[tuple[str, ...]]:
        """Facts as rows of a table: a name, and a column for each split."""
        columns = [_describe(split, self.n_axes) for split in self.splits]
        return [(name, *(column[name] for column in columns)) for name in columns[0]]

    def warnings(self) -> list[str]:
        """Say what may be wrong with the images and labels, a sentence each."""
        first, *others = self.splits
        lines = [line for split in self.splits for line in _warn(split, self.spec)]
        lines += [line for split in others for line in _compare(split, first)]
        names = [split.name for split in self.splits]
        if "train" in names and "val" not in names:
            lines.append("val is missing: training needs some labelled images there")
        return lines

    def suggestions(self) -> list[str]:
        """Lines of a spec that suit these images."""
        first = self.splits[0]
        lines = []
        if not self.has_spec or self.spec.net.dimensions != self.n_axes:
            lines.append(f"net.dimensions: {self.n_axes}")
        levels = len(self.spec.net.widths) - 1
        pooling = [list(step) for step in suggest_pooling(self.scale_um, self.n_axes, levels)]
        given = self.spec.net.pooling if self.spec.net.dimensions == self.n_axes else None
        if pooling != [[2] * self.n_axes] * levels or given is not None:
            lines.append(f"net.pooling: {pooling}")
        extents = np.concatenate([image.extents for image in first.images])
        spaces = np.array([source.space for source in first.sources])
        strides = np.prod(pooling, axis=0)
        lines.append(f"schedule.crop: {list(suggest_crop(extents, spaces, strides))}")
        if self.scale_um is not None and self.spec.data.pixel_size_um is None:
            lines.append(f"data.pixel_size_um: {[round(size, 4) for size in self.scale_um]}")
        several = any(len(image.sizes) > 1 for image in first.images)
        fills = several and first.share(lambda i: int(i.sizes.sum())) > _FILLED
        if fills and not self.spec.data.boundary_width:
            lines.append("data.boundary_width: 1")
            if self.spec.net.foreground_head is False:  # which learns the boundaries
                lines.append("net.foreground_head: true")
            if self.spec.clustering.foreground == "everywhere":
                lines.append("clustering.foreground: head")
        return lines


def inspect_folder(
    root: Path,
    spec: Spec | None,
    on_image: Callable[[str], None] = lambda name: None,
) -> Inspection:
    """Read all splits of a folder that are there.

    Args:
        root: The data, as `train` takes them.
        spec: What they are for; the dimensions are those of the labels where there is none.
        on_image: Told the name of each image that is measured.

    Raises:
        ImageError: There is nothing to read, or it cannot be read.
        MissingExtraError: h5py or zarr is needed and not installed.
    """
    words = spec or Spec()
    background_label = words.data.background_label
    n_axes = None if spec is None else spec.net.dimensions
    found: list[Split] = []
    layout = words.data.layout or recognize(root, "train")
    for name in _SPLITS:
        if not _is_there(root, name, layout):
            continue
        images = []
        for source in find_pairs(root, name, words.data, n_axes):
            on_image(f"{name}: {source.name}")
            images.append(measure(replace(source, background_label=background_label)))
        found.append(Split(name, tuple(images), _list_unread(root / name, layout)))
    if not found:
        find_pairs(root, "train", words.data, n_axes)  # which says what is missing
        raise ImageError(f"{root}: holds none of {', '.join(_SPLITS)}: expected at least one")
    return Inspection(root, layout, words, spec is not None, tuple(found))


def measure(source: Source) -> Measured:
    """Measure the instances of an image, slab by slab.

    Raises:
        ImageError: Pixels are not finite numbers, or labels are no ids.
    """
    from scipy.ndimage import find_objects

    lowest, highest, checksum = math.inf, -math.inf, 0
    counts: Counter[int] = Counter()
    boxes: dict[int, tuple[list[int], list[int]]] = {}
    zero = unknown = 0
    for slab in source.slabs():
        pixels, labels = source.read(slab)
        lowest, highest = min(lowest, float(pixels.min())), max(highest, float(pixels.max()))
        checksum = zlib.crc32(pixels.tobytes(), checksum)
        ids, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        places = find_objects(inverse.reshape(labels.shape).astype(np.int64) + 1)
        for label, size, place in zip(ids.tolist(), sizes.tolist(), places, strict=True):
            if label <= 0:
                zero += size * (label == 0)
                unknown += size * (label == UNLABELED)
                continue
            counts[label] += size
            low = [part.start + whole.start for part, whole in zip(place, slab, strict=True)]
            high = [part.stop + whole.start for part, whole in zip(place, slab, strict=True)]
            before = boxes.get(label, (low, high))
            boxes[label] = (
                [min(a, b) for a, b in zip(low, before[0], strict=True)],
                [max(a, b) for a, b in zip(high, before[1], strict=True)],
            )
    n_axes = len(source.space)
    lows = np.array([boxes[label][0] for label in counts], int).reshape(-1, n_axes)
    highs = np.array([boxes[label][1] for label in counts], int).reshape(-1, n_axes)
    is_at_border = (lows == 0) | (highs == np.array(source.space))
    is_sliver = (is_at_border & (highs - lows == 1) & (np.array(source.space) > 1)).any(axis=1)
    sizes = np.array(list(counts.values()), int)
    return Measured(
        source,
        sizes,
        highs - lows,
        int(is_sliver.sum()),
        zero,
        unknown,
        is_flat=lowest == highest,
        checksum=checksum,
    )


def show_part(image: Measured) -> tuple[np.ndarray, Integer[np.ndarray, "y x"], str]:
    """Read what a picture shows of an image, with a name for it.

    Of a volume it is the middle slice, and of an image with small instances the middle, so that
    there are about twenty of them along a side.
    """
    source = image.source
    typical = float(np.median(image.extents[:, -2:])) if len(image.extents) else math.inf
    side = max(_ACROSS * typical, _LEAST_SIDE)
    sizes = [int(min(n, side)) for n in source.space[-2:]]
    starts = [(n - size) // 2 for n, size in zip(source.space[-2:], sizes, strict=True)]
    box = [slice(a, a + n) for a, n in zip(starts, sizes, strict=True)]
    text = source.name
    if len(source.space) == 3:
        middle = source.space[0] // 2
        box.insert(0, slice(middle, middle + 1))
        text += f", z {middle}"
    if tuple(sizes) != source.space[-2:]:
        text += ", middle"
    pixels, labels = source.read(tuple(box))
    shape = tuple(sizes)
    return pixels.reshape(len(pixels), *shape), labels.reshape(shape), text


def _is_there(root: Path, split: str, layout: str) -> bool:
    """Whether a split is worth looking at; some layouts have no folder of that name."""
    match layout:
        case "cityscapes":
            return (root / "leftImg8bit" / split).is_dir()
        case "cvppp":
            is_by_hand = any((root / name).is_dir() for name in ("train", "val"))
            return (root / split).is_dir() or (split != "test" and not is_by_hand)
        case "cvppp_hdf5":
            return split != "test"
    return (root / split).is_dir()


def _describe(split: Split, n_axes: int) -> dict[str, str]:
    sources = split.sources
    sizes, counts = split.sizes, np.array([len(image.sizes) for image in split.images])
    spaces = np.array([source.space for source in sources])
    facts = {
        "images": str(len(sources)),
        f"size ({', '.join('zyx'[-n_axes:])})": _span(spaces),
        "channels": str(sources[0].channels),
        "pixels": _kinds(str(source.image.dtype) for source in sources),
        "labels": _kinds(str(source.labels.dtype) for source in sources),
        "pixel size, µm": _kinds(_scale(source.scale_um) for source in sources),
        "instances": str(counts.sum()),
        "per image, median": _range(counts),
        "pixels of one, median": _range(sizes),
        f"µm{'²³'[n_axes - 2]} of one, median": _physical(split),
        "label 0 (-1)": f"{split.share(lambda i: i.zero):.1%} "
        f"({split.share(lambda i: i.unknown):.1%})",
    }
    return facts


def _physical(split: Split) -> str:
    sized = [image for image in split.images if image.source.scale_um is not None]
    if not sized:
        return "not known"
    return _range(
        np.concatenate([image.sizes * math.prod(image.source.scale_um or ()) for image in sized])
    )


def _span(spaces: Int[np.ndarray, "n d"]) -> str:
    ends = zip(spaces.min(axis=0).tolist(), spaces.max(axis=0).tolist(), strict=True)
    return " x ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def _range(values: Integer[np.ndarray, " n"] | Float[np.ndarray, " n"]) -> str:
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{_number(middle)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _kinds(words: Iterable[str]) -> str:
    counted = Counter(words)
    if len(counted) == 1:
        return str(next(iter(counted)))
    most = counted.most_common(3)
    more = ", ..." if len(counted) > 3 else ""
    return ", ".join(f"{word} ({count})" for word, count in most) + more


def _scale(scale_um: tuple[float, ...] | None) -> str:
    return "not known" if scale_um is None else " x ".join(f"{size:.4g}" for size in scale_um)


def _warn(split: Split, spec: Spec) -> list[str]:
    """Say what may be wrong with a split."""
    lines = []
    sizes = split.sizes
    least = max(spec.clustering.min_size, 2)
    tiny = int((sizes < least).sum())
    if tiny:
        lines.append(f"{tiny} of {len(sizes)} instances have fewer than {least} pixels")
    slivers = sum(image.slivers for image in split.images)
    if slivers:
        lines.append(f"{slivers} of {len(sizes)} instances lie in the outermost pixels alone")
    lines += _name(split, lambda image: image.is_flat, "have the same value in every pixel")
    lines += _name(split, lambda image: not len(image.sizes), "have no instance")
    only_one = [image for image in split.images if len(image.sizes) == 1]
    if len(only_one) > 1 and len(only_one) == sum(len(i.sizes) > 0 for i in split.images):
        lines.append("no image has more than one label: expected a number for each instance")
    known = [image.source.scale_um for image in split.images if image.source.scale_um is not None]
    if known and len(known) < len(split.images):
        count = len(split.images) - len(known)
        lines.append(f"{count} of {len(split.images)} images do not say their pixel size")
    if known:
        ratios = np.max(known, axis=0) / np.min(known, axis=0)
        if ratios.max() > _SAME:
            lines.append(f"pixel sizes differ by a factor of up to {ratios.max():.3g}")
    crop = spec.schedule.crop
    if split.name == "train" and len(crop) == len(split.sources[0].space):
        smaller = lambda image: any(np.less(image.source.space, crop))  # noqa: E731
        told = f"have fewer pixels than the crop {list(crop)}, so are mirrored"
        lines += _name(split, smaller, told)
    if split.unread:
        is_one = len(split.unread) == 1
        lines.append(
            f"{len(split.unread)} {'entry is' if is_one else 'entries are'} passed over, since "
            f"only files of other endings are read ({_shorten(split.unread)})"
        )
    return [f"{split.name}: {line}" for line in lines]


def _compare(split: Split, first: Split) -> list[str]:
    """Say what does not fit between two splits that one network is to learn from."""
    one, other = split.sources[0], first.sources[0]
    lines = []
    for word, here, there in (
        ("channels", one.channels, other.channels),
        ("space axes", len(one.space), len(other.space)),
    ):
        if here != there:
            lines.append(
                f"images have {here} {word}, and those of {first.name} {there}: one network takes "
                "only the same"
            )
    known = {(image.checksum, image.source.image.shape) for image in first.images}
    twice = lambda i: not i.is_flat and (i.checksum, i.source.image.shape) in known  # noqa: E731
    lines += _name(split, twice, f"are in {first.name} too, so scores on them say little")
    sizes = [
        next((s.scale_um for s in sources if s.scale_um is not None), None)
        for sources in (split.sources, first.sources)
    ]
    if sizes[0] is not None and sizes[1] is not None and len(sizes[0]) == len(sizes[1]):
        ratios = np.divide(sizes[0], sizes[1])
        worst = max(*ratios, *(1 / ratios))
        if worst > _SAME:
            lines.append(
                f"pixel sizes differ from those of {first.name} by a factor of {worst:.3g}"
            )
    return [f"{split.name}: {line}" for line in lines]


def _name(split: Split, is_meant: Callable[[Measured], bool], what: str) -> list[str]:
    """Say what is true of how many images, with the names of the first."""
    names = [image.source.name for image in split.images if is_meant(image)]
    return [f"{len(names)} of {len(split.images)} images {what} ({_shorten(names)})"] * bool(names)


def _shorten(names: Sequence[str]) -> str:
    """Name the first of many."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _list_unread(folder: Path, layout: str) -> tuple[str, ...]:
    """Name what lies among the files of a split and is passed over, such as JPEG."""
    match layout:
        case "folders":
            return tuple(folders.list_unread(folder))
        case "hdf5":
            return tuple(hdf5.list_unread(folder))
    return ()  # the layouts of data sets have files of other kinds, too
