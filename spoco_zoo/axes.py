"""Which axis of a file is which, told from letters where the format has them, or from sizes.

Inside the house an image is `(c, *space)` and a label image `*space`, in index order. Only shapes
are looked at here: nothing is read.
"""

from collections.abc import Sequence
from pathlib import Path

from spoco_zoo.errors import ImageError


def kept_axes(shape: Sequence[int], axes: str | None) -> tuple[list[int], str | None]:
    """Say which axes of a file remain without those of length 1, y and x excepted, and their names.

    Without names, axes of length 1 are left out only while there are more than three.
    """
    keep = list(range(len(shape)))
    if axes is None or len(axes) != len(shape):
        while len(keep) > 3 and 1 in (sizes := [shape[n] for n in keep]):
            del keep[sizes.index(1)]
        return keep, None
    keep = [n for n in keep if shape[n] != 1 or axes[n] in "YX"]
    return keep, "".join(axes[n] for n in keep)


def _name_planes(axes: str, shape: tuple[int, ...], n_axes: int | None) -> str:
    """Give colours, unnamed planes and what ImageJ calls a movie the name of c or z."""
    names = axes.replace("S", "C").replace("Q", "I")
    if names.count("I") == 1:  # unnamed planes: a z stack where a volume is expected
        few = shape[names.index("I")] <= 4 and n_axes != 3
        if few and "C" not in names:
            names = names.replace("I", "C")
        elif n_axes != 2:
            names = names.replace("I", "Z")
    if "T" in names and "Z" not in names and n_axes == 3:
        names = names.replace("T", "Z")  # ImageJ calls many a z stack a movie
    return names


def order_axes(
    path: Path | str, shape: Sequence[int], axes: str | None, n_axes: int | None
) -> tuple[int | None, ...]:
    """Say which axis of a file each axis of `(c, *space)` is; None for channels it has not.

    Args:
        path: Where the array is, for the error.
        shape: Of the array as it is stored.
        axes: Letters of its axes, such as TCZYX, where the format has them.
        n_axes: Number of space axes that are expected, as in `read_image`.

    Raises:
        ImageError: The axes are none of an image or a volume.
    """
    keep, axes = kept_axes(shape, axes)
    sizes = tuple(shape[n] for n in keep)
    if axes is not None:
        names = _name_planes(axes, sizes, n_axes)
        if sorted(names) in (sorted("YX"), sorted("CYX"), sorted("ZYX"), sorted("CZYX")):
            order = [keep[names.index(a)] for a in "CZYX" if a in names]
            return (*order,) if "C" in names else (None, *order)
        if n_axes == 2 and "Z" not in names and set(names) & set("IT"):
            raise ImageError(
                f"{path}: axes are {axes} of shape {sizes}, with planes that are no channels by "
                "their name: expected y and x alone, or with channels; name the channels, split a "
                "time series into files, or take a network for volumes"
            )
        raise ImageError(
            f"{path}: axes are {axes} of shape {sizes}: expected y and x, "
            "with z for a volume and at most one channel axis; split a time series into files"
        )
    few = len(keep) == 3 and n_axes != 3 and min(sizes[0], sizes[-1]) <= 4
    if few or len(keep) == 4:
        return (keep[-1], *keep[:-1]) if sizes[-1] <= 4 else (*keep,)
    if len(keep) in (2, 3):
        return (None, *keep)
    raise ImageError(
        f"{path}: shape is {sizes}: expected (y, x), (z, y, x) or either with channels"
    )
