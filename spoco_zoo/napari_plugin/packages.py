"""What a package is, in the few words that people choose one by."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spoco_zoo.archive import find_description, read_description
from spoco_zoo.boundaries import Watershed
from spoco_zoo.errors import SettingError
from spoco_zoo.foreign import Boundaries, Embeddings, is_foreign, load_foreign
from spoco_zoo.package import load_package
from spoco_zoo.recipe import Hdbscan, Recipe

Kind = Literal["embeddings", "boundaries", "labels"]

_MOST_LETTERS = 180  # of a description


@dataclass(frozen=True)
class Offer:
    """A verified package as it is offered to a person."""

    location: Path
    name: str
    kind: Kind  # what the network gives
    n_axes: int
    channels: int
    scale_um: tuple[float, ...] | None
    summary: str  # one line, may be empty
    licence: str  # may be empty
    bandwidth: float | None  # of its recipe; None where it states none
    min_size: int | None

    @property
    def images(self) -> str:
        """What images it takes, in a line."""
        kind, axes = {2: ("2D images", "y, x"), 3: ("Volumes", "z, y, x")}[self.n_axes]
        words = f"{kind} ({axes}), {_count(self.channels)}"
        return words if self.scale_um is None else f"{words}, {_say_pixel(self.scale_um)}"


def describe(location: Path) -> Offer:
    """Verify a package, ours or that of others, and say what it is.

    Raises:
        PackageError: It is missing, damaged, unsafe, or not of a kind that runs here.
    """
    if location.name == "rdf.yaml" and location.is_file():
        location = location.parent
    foreign = is_foreign(location)
    words = read_description(location, find_description(location))
    summary = _shorten(str(words.get("description") or ""))
    licence = str(words.get("license") or "")
    if not foreign:
        ours = load_package(location)
        recipe = ours.config.recipe
        method = recipe.clustering
        return Offer(
            location=location,
            name=ours.name,
            kind="embeddings",
            n_axes=ours.n_axes,
            channels=ours.channels,
            scale_um=ours.scale_um,
            summary=summary,
            licence=licence,
            bandwidth=method.epsilon if isinstance(method, Hdbscan) else method.bandwidth,
            min_size=recipe.min_size,
        )
    theirs = load_foreign(location)
    kind: Kind = "labels"
    least: int | None = None
    if isinstance(theirs.meaning, Embeddings):
        kind, least = "embeddings", Recipe().min_size
    elif isinstance(theirs.meaning, Boundaries):
        kind, least = "boundaries", Watershed().min_size
    return Offer(
        location=location,
        name=theirs.name,
        kind=kind,
        n_axes=theirs.n_axes,
        channels=theirs.channels,
        scale_um=None,
        summary=summary,
        licence=licence,
        bandwidth=None,
        min_size=least,
    )


def refuse_incomplete(offer: Offer, bandwidth: float | None) -> None:
    """Ask for the bandwidth that a package of others leaves open.

    Raises:
        SettingError: None is known.
    """
    if offer.kind == "embeddings" and offer.bandwidth is None and bandwidth is None:
        raise SettingError(
            f"{offer.name} gives embeddings and no recipe for instances: set a bandwidth "
            "under More settings, 0.5 for a start"
        )


def _shorten(text: str) -> str:
    """Keep the first sentence, or what of it fits."""
    plain = " ".join(text.split())
    first = re.split(r"(?<=[.!?]) ", plain, maxsplit=1)[0]
    return textwrap.shorten(first, _MOST_LETTERS, placeholder=" ...")


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _say_pixel(scale_um: Sequence[float]) -> str:
    sizes = [f"{size:.3g}" for size in scale_um]
    if len(set(sizes)) == 1:
        return f"{sizes[0]} µm a pixel"
    return f"{' x '.join(sizes)} µm a pixel"
