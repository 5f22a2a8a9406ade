"""What the layouts have in common: how two parts become a source, and their errors."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from spoco_zoo.datasets.source import Part, Source
from spoco_zoo.errors import ImageError


def join(
    name: str,
    image: Part,
    labels: Part,
    scale_um: tuple[float, ...] | None,
    n_axes: int | None,
) -> Source:
    """Put an image and its labels together.

    Raises:
        ImageError: They differ in shape, or have other axes than expected.
    """
    space = image.shape[1:]
    if space != labels.shape:
        raise ImageError(
            f"{labels.where}: labels have shape {labels.shape}, the image has {space}: "
            "both must show the same pixels"
        )
    if n_axes is not None and len(space) != n_axes:
        raise ImageError(
            f"{image.where}: image has {len(space)} space axes: expected {n_axes}; "
            "set net.dimensions in the spec"
        )
    return Source(name, image, labels, scale_um)


def expect_subsets(root: Path, subsets: Sequence[str] | None, held: Iterable[str]) -> None:
    """Refuse a name that no folder of the data has.

    Args:
        root: The data.
        subsets: As `data.subsets` says.
        held: Names that there are, in any split.

    Raises:
        ImageError: A subset is none of them.
    """
    known = sorted(set(held))
    for name in subsets or ():
        if name not in known:
            raise ImageError(
                f"{root}: holds no {name}, which data.subsets names: expected some of "
                f"{', '.join(known) or 'none'}"
            )


def told_subsets(subsets: Sequence[str] | None) -> str:
    """Say where was looked alone, for an error; empty where that was everywhere."""
    return f" in {' or '.join(subsets)}, as data.subsets says" if subsets else ""
