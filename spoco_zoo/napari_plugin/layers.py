"""An image out of a layer of napari, and where its labels lie.

A network sees the last axes of a layer as space, or those called z, y and x; of further axes, such
as time, it sees the step that the viewer shows. The labels lie where the image lies: those of one
step are as thin as the step, and are seen there alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spoco_zoo.errors import ImageError
from spoco_zoo.napari_plugin.packages import Offer

_CHANNEL_NAMES = ("c", "channel", "channels")


@dataclass(frozen=True, eq=False)
class Source:
    """Pixels that are not read yet, which of them are wanted, and a place for their labels."""

    name: str
    data: Any  # an array: of NumPy, or one that reads when it is asked
    index: tuple[int | slice, ...]
    order: tuple[int, ...]  # of the axes that the index leaves: channel, where there is one, space
    n_axes: int
    labels_shape: tuple[int, ...]
    place: dict[str, Any]  # scale, translation and so on of the layer of labels

    def read(self) -> np.ndarray:
        """Read the image as `(c, *space)`.

        Raises:
            ImageError: Its file cannot be read any more.
        """
        try:
            pixels = np.asarray(self.data[self.index])
        except MemoryError:
            raise
        except Exception as error:  # a lazy array can fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ImageError(
                f"{self.name}: its pixels cannot be read ({reason}): open the image again"
            ) from error
        pixels = pixels.transpose(self.order)
        return pixels[None] if pixels.ndim == self.n_axes else pixels

    def arrange(self, labels: np.ndarray) -> np.ndarray:
        """Bring labels `*space` to the axes of their layer."""
        back = np.argsort(self.order[-self.n_axes :])
        return labels.transpose(back).reshape(self.labels_shape)


def find_source(layer: Any, offer: Offer, point: Sequence[float]) -> Source:  # noqa: ANN401
    """Say what of an image layer a package sees, and where the labels lie.

    Args:
        layer: An image layer; of several scales the finest is taken, and of colours with alpha
            the colours.
        offer: The package.
        point: What the viewer shows, in world coordinates.

    Raises:
        ImageError: The layer has too few axes, other channels, or is not there at this point.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    shape = tuple(int(n) for n in data.shape)
    if layer.ndim < offer.n_axes:
        raise ImageError(
            f"{layer.name} has {layer.ndim} axes: {offer.name} takes volumes; "
            "choose a layer with z, y and x"
        )
    names = [str(name).lower() for name in layer.axis_labels]
    space = _find_space(names, offer.n_axes)
    channel = _find_channel(layer, shape, names, space, offer)
    seen = [*([] if channel is None else [channel]), *space]
    rest = [axis for axis in range(layer.ndim) if axis not in seen]
    steps = _find_steps(layer, shape, rest, point)
    index: list[int | slice] = [steps.get(axis, slice(None)) for axis in range(len(shape))]
    if channel is not None and channel == layer.ndim:
        index[channel] = slice(0, offer.channels)
    left = sorted(seen)
    keep = list(range(layer.ndim)) if rest else sorted(space)
    stretched = channel if channel in keep else None
    return Source(
        name=layer.name,
        data=data,
        index=tuple(index),
        order=tuple(left.index(axis) for axis in seen),
        n_axes=offer.n_axes,
        labels_shape=tuple(shape[axis] if axis in space else 1 for axis in keep),
        place=_place(layer, shape, keep, steps, stretched),
    )


def _find_space(names: Sequence[str], n_axes: int) -> list[int]:
    """Find z, y and x by their names, else take the last axes."""
    wanted = "zyx"[-n_axes:]
    if all(names.count(name) == 1 for name in wanted):
        return [names.index(name) for name in wanted]
    return list(range(len(names) - n_axes, len(names)))


def _find_channel(
    layer: Any,  # noqa: ANN401
    shape: tuple[int, ...],
    names: Sequence[str],
    space: Sequence[int],
    offer: Offer,
) -> int | None:
    """Find the axis of channels, where the package wants several."""
    wanted = offer.channels
    if layer.rgb:
        if wanted in (3, shape[-1]):
            return int(layer.ndim)
        raise ImageError(
            f"{layer.name} is a picture in colour: {offer.name} takes {_count(wanted)}; "
            "right-click the layer, Split RGB, and choose one of its layers"
        )
    if wanted == 1:
        return None
    named = [axis for axis, name in enumerate(names) if name in _CHANNEL_NAMES]
    axis = named[0] if len(named) == 1 else min(space) - 1
    if axis >= 0 and shape[axis] == wanted:
        return axis
    raise ImageError(
        f"{layer.name} has shape {shape}, without an axis of {wanted} channels before the axes of "
        f"space: {offer.name} takes {wanted}; select a layer for each, right-click, Merge to Stack"
    )


def _find_steps(
    layer: Any,  # noqa: ANN401
    shape: tuple[int, ...],
    rest: Sequence[int],
    point: Sequence[float],
) -> dict[int, int]:
    """Find the step of each further axis that the viewer shows."""
    if not rest:
        return {}
    shown = layer.world_to_data(point)
    steps = {axis: round(float(shown[axis])) for axis in rest}
    for axis, step in steps.items():
        if not 0 <= step < shape[axis]:
            raise ImageError(
                f"{layer.name} is not there at the step that the viewer shows: move the slider of "
                f"axis {layer.axis_labels[axis]} to where it is seen"
            )
    return steps


def _place(
    layer: Any,  # noqa: ANN401
    shape: tuple[int, ...],
    keep: list[int],
    steps: dict[int, int],
    stretched: int | None,
) -> dict[str, Any]:
    """Say where the labels lie: on the axes that are kept, one step thin, across all channels."""
    from napari.utils.transforms import Affine

    scale = np.array(layer.scale, float)
    shear = np.asarray(layer.shear, float)
    if shear.ndim == 1:  # its values above the diagonal
        values, shear = shear, np.eye(layer.ndim)
        shear[np.triu_indices(layer.ndim, 1)] = values
    moved = np.zeros(layer.ndim)
    for axis, step in steps.items():
        moved[axis] = step
    if stretched is not None:
        moved[stretched] = (shape[stretched] - 1) / 2
    image = Affine(scale=scale, translate=layer.translate, rotate=layer.rotate, shear=shear)
    translate = np.asarray(image(moved))
    if stretched is not None:
        scale[stretched] *= shape[stretched]
    square = np.ix_(keep, keep)
    corner = [*keep, layer.ndim]
    return {
        "scale": scale[keep],
        "translate": translate[keep],
        "rotate": np.asarray(layer.rotate)[square],
        "shear": shear[square],
        "affine": np.asarray(layer.affine.affine_matrix)[np.ix_(corner, corner)],
        "units": [layer.units[axis] for axis in keep],
        "axis_labels": [layer.axis_labels[axis] for axis in keep],
    }


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"
