"""A zoo recipe as frozen settings: what `specs/NAME.yaml` may say, and nothing else.

A spec describes one network from data to card. Every word has a default, so a file names only
what differs; an unknown or impossible word is refused by file and field. The run folder keeps
the complete spec, with the defaults written out.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spoco_zoo.errors import SettingError
from spoco_zoo.normalization import Normalization, ZeroMeanUnitVariance
from spoco_zoo.recipe import Clustering, MeanShift
from spoco_zoo.refusals import explain

SceneName = Literal["nuclei", "dim_nuclei", "phase_cells", "axons", "neurons"]
LabelZero = Literal["background", "unlabeled"]
Layout = Literal["folders", "hdf5", "cvppp", "cvppp_hdf5", "cityscapes"]
CityClass = Literal[
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "caravan", "trailer"
]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(_Settings):
    """Where the training files are, and what they mean."""

    layout: Layout | None = Field(None, description="told from the folder where left out")
    hdf5_raw: str = Field("raw", min_length=1, description="place of the image in an HDF5 file")
    hdf5_label: str = Field("label", min_length=1, description="and of its labels")
    subsets: tuple[str, ...] | None = Field(
        None, description="folders to read of a split: A1 to A4 of CVPPP, cities of Cityscapes"
    )
    classes: tuple[CityClass, ...] | None = Field(
        None, min_length=1, description="of Cityscapes; the eight that are evaluated if left out"
    )
    label_zero: LabelZero = Field("background", description="what label 0 means in train/labels")
    validation_label_zero: LabelZero | None = Field(
        None, description="the same for val/labels; as in train where left out"
    )
    background_label: int | None = Field(
        None, ge=1, description="this id in label images is known background, 0 is unlabeled"
    )
    boundary_width: int = Field(
        0,
        ge=0,
        description="pixels that instances lose to background where they touch, as in tissue; "
        "pieces that are left are instances of their own",
    )
    instance_ratio: float = Field(1.0, gt=0, le=1, description="part of the instances kept")
    instance_ratio_of: Literal["image", "split"] = Field(
        "image", description="of each image by itself, or of all images together"
    )
    instance_seed: int = Field(0, ge=0, description="of the choice of kept instances")
    normalization: Normalization = ZeroMeanUnitVariance()
    pixel_size_um: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="micrometres a pixel, per axis; QuPath resamples images to it"
    )

    @property
    def knows_background(self) -> bool:
        """Whether some pixels of crops are background."""
        is_painted = self.label_zero == "background" or self.background_label is not None
        return is_painted or self.boundary_width > 0

    @model_validator(mode="after")
    def _check(self) -> "DataSettings":
        if self.background_label is not None and self.label_zero == "background":
            raise ValueError(
                f"background_label is {self.background_label} while data.label_zero is "
                "background: one number is enough for background; make label_zero unlabeled, or "
                "leave background_label out"
            )
        return self


class NetSettings(_Settings):
    """The U-Net."""

    dimensions: Literal[2, 3] = 2
    in_channels: int | None = Field(None, ge=1, description="as in the images where left out")
    embedding_dim: int = Field(16, ge=1, le=256)
    widths: tuple[int, ...] = Field((16, 32, 64, 128), min_length=2, description="finest first")
    pooling: tuple[tuple[int, ...], ...] | None = Field(
        None, description="factor per axis between levels; 2 everywhere where left out"
    )
    order: Literal["bcr", "cbr"] = "cbr"
    foreground_head: bool | None = Field(
        None, description="one more channel, foreground; if left out, where it can be learnt"
    )

    @model_validator(mode="after")
    def _check(self) -> "NetSettings":
        if min(self.widths) < 1:
            raise ValueError(
                f"widths holds {min(self.widths)}: expected at least 1 channel a level"
            )
        steps = self.steps
        if len(steps) != len(self.widths) - 1 or any(len(s) != self.dimensions for s in steps):
            raise ValueError(
                f"pooling is {[list(s) for s in steps]}: expected {len(self.widths) - 1} steps "
                f"of {self.dimensions} factors for {len(self.widths)} widths"
            )
        if any(factor < 1 for step in steps for factor in step):
            raise ValueError("pooling holds a factor below 1: use 1 for an axis that is not pooled")
        return self

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Pooling factors per step and axis, with the default written out."""
        if self.pooling is None:
            return ((2,) * self.dimensions,) * (len(self.widths) - 1)
        return self.pooling


class LossSettings(_Settings):
    """Margins and weights of the SPOCO loss (Wolny et al. 2022, sec. 3)."""

    delta_var: float = Field(0.5, gt=0, description="margin of pull")
    delta_dist: float = Field(2.0, gt=0, description="half the margin of push")
    kernel_threshold: float = Field(0.5, gt=0, lt=1, description="soft mask at delta_var")
    pull_weight: float = Field(1.0, ge=0)
    push_weight: float = Field(1.0, ge=0)
    norm_weight: float = Field(0.001, ge=0)
    unlabeled_push_weight: float = Field(1.0, ge=0)
    instance_weight: float = Field(1.0, ge=0)
    consistency_weight: float = Field(1.0, ge=0)
    foreground_weight: float = Field(
        10.0, ge=0, description="high, since the other terms have longer gradients"
    )
    labelled_ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="part of the instances that is labelled, to learn foreground from the rest",
    )
    dice: Literal["per_instance", "joint"] = "per_instance"
    max_anchors: int = Field(20, ge=1, description="of the consistency term, per image")
    volume_ratio: float = Field(0.05, ge=0, lt=1, description="unlabeled rest that ends the draw")

    @property
    def two_sigma_squared(self) -> float:
        """Width of the soft mask: the kernel equals its threshold at distance delta_var."""
        return self.delta_var**2 / -math.log(self.kernel_threshold)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights in the order of the terms."""
        return (
            self.pull_weight,
            self.push_weight,
            self.norm_weight,
            self.unlabeled_push_weight,
            self.instance_weight,
            self.consistency_weight,
            self.foreground_weight,
        )


class AugmentationSettings(_Settings):
    """How crops are varied: geometry for both views alike, intensity for each by itself."""

    flips: bool = True
    rotation_degrees: float = Field(180.0, ge=0, le=180, description="in the image plane")
    scaling: tuple[float, float] = (0.7, 1.4)
    elastic_ratio: float = Field(0.2, ge=0, le=1, description="part of the crops bent")
    noise_variance: float = Field(0.1, ge=0)
    blur_sigma: tuple[float, float] = (0.5, 1.5)
    brightness: tuple[float, float] = (0.7, 1.4)
    contrast: tuple[float, float] = (0.7, 1.4)
    gamma: tuple[float, float] = (0.7, 1.5)
    intensity_ratio: float = Field(0.3, ge=0, le=1, description="chance of each intensity change")

    @model_validator(mode="after")
    def _check(self) -> "AugmentationSettings":
        for word in ("scaling", "blur_sigma", "brightness", "contrast", "gamma"):
            low, high = getattr(self, word)
            if not 0 < low <= high:
                raise ValueError(f"{word} is {[low, high]}: expected two rising numbers above 0")
        return self


class ScheduleSettings(_Settings):
    """How long and how fast."""

    steps: int = Field(5000, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(
        1, ge=1, description="parts of a batch taken one after the other, to save memory"
    )
    crop: tuple[int, ...] = Field((128, 128), description="pixels per axis")
    instance_crop_ratio: float = Field(0.8, ge=0, le=1, description="crops aimed at an instance")
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(100, ge=0)
    restarts: tuple[int, ...] = Field((), description="steps at which the cosine starts anew")
    clip_norm: float = Field(5.0, gt=0)
    momentum: float = Field(0.999, ge=0, lt=1, description="of the momentum net")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(100, ge=1, description="steps that a killed run may lose")
    validation_images: int = Field(50, ge=1, description="the first of val, sorted by name")
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0, description="processes that prepare batches")


class ClusteringSettings(_Settings):
    """How validation, and later `run`, makes instances."""

    method: Clustering | None = Field(
        None, description="mean-shift of delta_var where left out, and what fits best at the end"
    )
    foreground: Literal["auto", "head", "prototype", "mask", "everywhere"] = "auto"
    min_size: int = Field(10, ge=0)
    fill_reach: int = Field(5, ge=0)
    fit: bool = Field(True, description="choose the numbers on the validation images at the end")


class Author(_Settings):
    """A person in the card."""

    name: str
    affiliation: str | None = None
    orcid: str | None = None
    github_user: str | None = None


class Citation(_Settings):
    """A work in the card."""

    text: str
    doi: str | None = None
    url: str | None = None


class Dataset(_Settings):
    """A published data set, as collections refer to it."""

    id: str = Field(pattern=r"^[a-z0-9_\-/.]+$", description="as collections write it")
    source: str = Field(pattern=r"^https?://", description="its page")


class Card(_Settings):
    """What people read about the network."""

    title: str = Field(
        "SPOCO instance segmentation", min_length=5, max_length=64, pattern=r"^[A-Za-z0-9_+\- ()]+$"
    )
    description: str = "Instance segmentation from pixel embeddings, trained with SPOCO."
    authors: tuple[Author, ...] = (Author(name="spoco-zoo user"),)
    license: str = "CC-BY-4.0"
    data: str = Field("not stated", description="what it was trained on, with licence")
    dataset: Dataset | None = Field(None, description="the same for collections: id and page")
    modality: str | None = Field(None, description="such as fluorescence microscopy")
    target_structure: tuple[str, ...] = Field((), description="such as nuclei")
    cite: tuple[Citation, ...] = ()
    tags: tuple[str, ...] = ()
    floor_ap50: float | None = Field(
        None, ge=0, le=1, description="AP at IoU 0.50 of a threshold on the test images, untaught"
    )
    few_labels: str | None = Field(
        None, description="what a part of the labels gave, with its numbers, in whole sentences"
    )
    scene: SceneName = Field("nuclei", description="what samples and covers show, simulated")
    limits: str = Field("Not stated.", description="where it should not be used")
    version: str = "0.1.0"


class Spec(_Settings):
    """One zoo entry."""

    name: str = Field("unnamed", pattern=r"^[a-z0-9][a-z0-9-]*$")
    data: DataSettings = DataSettings()
    net: NetSettings = NetSettings()
    loss: LossSettings = LossSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clustering: ClusteringSettings = ClusteringSettings()
    card: Card = Card()

    @model_validator(mode="after")
    def _check(self) -> "Spec":
        crop, steps = self.schedule.crop, self.net.steps
        if len(crop) != self.net.dimensions:
            raise ValueError(
                f"schedule.crop is {list(crop)}: expected {self.net.dimensions} numbers "
                f"for net.dimensions {self.net.dimensions}"
            )
        for axis, size in enumerate(crop):
            step = math.prod(s[axis] for s in steps)
            if size % step or size < 1:
                raise ValueError(
                    f"schedule.crop is {size} on axis {axis}: expected a multiple of {step}, "
                    "the total stride of the network"
                )
        if self.schedule.batch_size % self.schedule.accumulate:
            raise ValueError(
                f"schedule.accumulate is {self.schedule.accumulate}: expected a divisor of "
                f"schedule.batch_size, {self.schedule.batch_size}"
            )
        restarts = (0, *self.schedule.restarts, self.schedule.steps)
        if any(after <= before for before, after in pairwise(restarts)):
            raise ValueError(
                f"schedule.restarts is {list(self.schedule.restarts)}: expected rising steps "
                f"between 0 and schedule.steps, {self.schedule.steps}"
            )
        wanted = {"dim_nuclei": 3, "neurons": 3, "phase_cells": 2, "axons": 2}
        if wanted.get(self.card.scene, self.net.dimensions) != self.net.dimensions:
            raise ValueError(
                f"card.scene is {self.card.scene}, which has {wanted[self.card.scene]} axes: "
                f"expected one for net.dimensions {self.net.dimensions}"
            )
        pixel = self.data.pixel_size_um
        if pixel is not None and len(pixel) != self.net.dimensions:
            raise ValueError(
                f"data.pixel_size_um is {list(pixel)}: expected {self.net.dimensions} numbers "
                f"for net.dimensions {self.net.dimensions}"
            )
        return self

    @model_validator(mode="after")
    def _check_foreground(self) -> "Spec":
        if self.net.foreground_head and not self._can_learn_foreground:
            raise ValueError(
                "net.foreground_head is true while data.label_zero is unlabeled: a foreground "
                "head learns from labelled background, from boundaries or with "
                "loss.labelled_ratio; give data.background_label, data.boundary_width or the "
                "ratio, or leave the head out"
            )
        ratio = self.loss.labelled_ratio
        if ratio is not None and self.data.label_zero == "background":
            raise ValueError(
                f"loss.labelled_ratio is {ratio:g} while data.label_zero is background, which says "
                "that everything is labelled: make label_zero unlabeled, or leave the ratio out"
            )
        if self.data.boundary_width and self.clustering.foreground == "everywhere":
            raise ValueError(
                f"clustering.foreground is everywhere while data.boundary_width is "
                f"{self.data.boundary_width}: boundaries are background then; use head or auto, or "
                "leave the width out"
            )
        if self.clustering.foreground == "head" and not self.has_foreground_head:
            raise ValueError(
                "clustering.foreground is head and the network has none: "
                "use auto, prototype or everywhere"
            )
        return self

    @property
    def has_foreground_head(self) -> bool:
        """Whether the network says foreground by itself."""
        if self.net.foreground_head is None:
            return self._can_learn_foreground
        return self.net.foreground_head

    @property
    def _can_learn_foreground(self) -> bool:
        return self.data.knows_background or self.loss.labelled_ratio is not None

    @property
    def clustering_method(self) -> Clustering:
        """The clustering method, with the default written out."""
        return self.clustering.method or MeanShift(bandwidth=self.loss.delta_var)


def load_spec(path: Path) -> Spec:
    """Read a spec from YAML.

    Raises:
        SettingError: The file cannot be read, or a word in it is unknown or impossible.
    """
    try:
        words = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingError(f"{path}: cannot be read ({reason}): expected a spec in YAML") from error
    # dates and tagged numbers that are none, and very deep nesting, are not YAMLError
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise SettingError(f"{path}: is not valid YAML{line}: expected a spec") from error
    if words is None:
        words = {}
    if not isinstance(words, dict):
        raise SettingError(f"{path}: holds a {type(words).__name__}: expected words and values")
    return parse_spec(words, str(path))


def parse_spec(words: dict[Any, Any], name: str) -> Spec:
    """Check the words of a spec.

    Args:
        words: As read from YAML.
        name: Where they come from, for the error.

    Raises:
        SettingError: A word is unknown, missing or impossible.
    """
    try:
        return Spec.model_validate(words)
    except ValidationError as error:
        raise SettingError(f"{name}: {explain(error, Spec)}") from error


def dump_spec(spec: Spec) -> str:
    """Write a complete spec as YAML, defaults included."""
    return dump_yaml(spec.model_dump(mode="json"))


def dump_yaml(words: dict[str, Any]) -> str:
    """Write words and values as YAML that reads back as the same."""
    # PyYAML takes the control character "next line" for a letter, and a line end when it reads
    is_plain = not any("\x85" in text for text in _texts(words))
    return yaml.safe_dump(words, sort_keys=False, allow_unicode=is_plain, width=100)


def _texts(value: object) -> Iterator[str]:
    """All texts within lists and mappings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def change_spec(spec: Spec, changes: dict[str, dict[str, Any]]) -> Spec:
    """Return the spec with some words changed, checked as a whole; None changes nothing.

    Raises:
        SettingError: The changed spec is impossible.
    """
    words = spec.model_dump(mode="json")
    for section, values in changes.items():
        given = {word: value for word, value in values.items() if value is not None}
        words.setdefault(section, {}).update(given)
    return parse_spec(words, "settings")
