"""What the layouts have in common: how two parts become a source, and their errors."""

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
