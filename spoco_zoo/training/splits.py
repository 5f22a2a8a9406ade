"""Both splits of a data set, read for a run, and the list of what is used of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spoco_zoo.datasets import expect_alike, find_pairs
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.spec import Spec
from spoco_zoo.training.reading import AnySample, read_samples


def read_splits(spec: Spec, data: Path) -> tuple[Spec, Sequence[AnySample], Sequence[AnySample]]:
    """Read train and val, and write the count of their channels into the spec.

    Returns:
        The spec, the images to train on, and the first of those to validate with.

    Raises:
        ImageError: Images or labels are missing or do not fit together, or validation would see
            no instance.
        SettingError: The spec states another count of channels.
    """
    # from the heads of the files, before all of train is read
    expect_alike(
        [
            source
            for split in ("train", "val")
            for source in find_pairs(data, split, spec.data, spec.net.dimensions)
        ]
    )
    samples = read_samples(data / "train", spec.data, spec.net.dimensions, thin=True)
    validation = read_samples(data / "val", spec.data, spec.net.dimensions, thin=False)
    validation = validation[: spec.schedule.validation_images]
    # on images without instances a network that finds none is perfect
    if not any(sample.kept for sample in validation):
        raise ImageError(
            f"{data / 'val'}: the {len(validation)} images for validation hold no labelled "
            "instance: label some there, or move images with labels from train"
        )
    return _with_channels(spec, samples), samples, validation


def list_instances(samples: Sequence[AnySample], validation: Sequence[AnySample]) -> dict[str, Any]:
    """List the ids of the instances that are used, by split and image."""
    return {
        "train": {sample.name: list(sample.kept) for sample in samples},
        "val": {sample.name: list(sample.kept) for sample in validation},
    }


def expect_equal(chosen: dict[str, Any], first: dict[str, Any]) -> None:
    """Refuse a process that has found something else than the first one.

    Raises:
        SettingError: The lists differ.
    """
    if chosen != first:
        raise SettingError(
            "the processes found different images or instances: give the same data to all"
        )


def _with_channels(spec: Spec, samples: Sequence[AnySample]) -> Spec:
    """Write the count of channels of the images into the spec, or refuse another."""
    channels = samples[0].channels
    if spec.net.in_channels not in (None, channels):
        raise SettingError(
            f"net.in_channels is {spec.net.in_channels}: the images have {channels}; leave it out"
        )
    net = spec.net.model_copy(update={"in_channels": channels})
    return spec.model_copy(update={"net": net})
