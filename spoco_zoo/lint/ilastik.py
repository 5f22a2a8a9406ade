"""What stops a package in ilastik's Neural Network Classification, or is wrong there silently.

The rules are those of ilastik 1.4.1 and 1.4.2 with their tiktorch. A tile that fails is only
written to a log there, and the result is an image of zeros.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain

from spoco_zoo.lint.description import Axis, Tensor, find_mappings
from spoco_zoo.lint.evidence import Evidence
from spoco_zoo.lint.finding import Finding

_error, _warning = partial(Finding, "ilastik", "error"), partial(Finding, "ilastik", "warning")

_TILE = {2: 512, 3: 64}
_MOST_MESSAGE_BYTES = 100 * 1024 * 1024
_PER_TILE = {"scale_range", "zero_mean_unit_variance"}
_PER_TILE_OPERATORS = {"group_norm", "instance_norm"}
# operations that bioimageio.spec 0.5.9, which is what it has, does not know
_NEW_OPERATIONS = {"custom", "cellpose_flow_dynamics", "stardist_postprocessing"}


def check_ilastik(package: Evidence) -> Iterator[Finding]:
    """Find what ilastik refuses, or shows wrongly."""
    yield from _check_weights(package)
    yield from _check_words(package)
    inputs, outputs = package.description.inputs, package.description.outputs
    if len(inputs) != 1 or len(outputs) != 1:
        yield _error(
            f"there are {len(inputs)} inputs and {len(outputs)} outputs: expected one of each; "
            "export a package with one output"
        )
        return
    yield from chain(
        _check_axes(inputs[0], outputs[0]),
        _check_sizes(inputs[0], outputs[0]),
        _check_message(inputs[0], outputs[0]),
        _check_input(inputs[0]),
        _check_maps(package, outputs[0]),
    )


def _check_weights(package: Evidence) -> Iterator[Finding]:
    weights = package.description.weights
    if weights.torchscript is None:
        state = weights.pytorch_state_dict
        if state is None:
            found = ", ".join(weights.present()) or "none"
            yield _error(
                f"weights are {found}: expected torchscript, without which the model is refused; "
                "export it too"
            )
        elif not isinstance(state.architecture, dict) or "source" not in state.architecture:
            yield _error(
                "weights are a state dict whose architecture is no file of the package: "
                "expected torchscript, since the library is not there; export it too"
            )
        else:
            yield _warning(
                "weights are a state dict alone, whose code is run when the model is opened: "
                "export torchscript too"
            )
    for operator in sorted(package.operators & _PER_TILE_OPERATORS):
        yield _warning(
            f"the TorchScript file names {operator}, whose statistics differ from tile to tile: "
            "train with batch norm"
        )


def _check_words(package: Evidence) -> Iterator[Finding]:
    for word in find_mappings(package.description):
        yield _error(
            f"{word} is written as a mapping, which only bioimageio.spec 0.5.11 and later read: "
            "write plain strings"
        )
    for tensor in package.description.tensors:
        for operation in (*tensor.preprocessing, *tensor.postprocessing):
            if operation.id in _NEW_OPERATIONS:
                yield _error(
                    f"{tensor.id} asks for the operation {operation.id}, which "
                    "bioimageio.spec 0.5.9 does not know: do it inside the network"
                )


def _check_axes(image: Tensor, output: Tensor) -> Iterator[Finding]:
    for tensor in (image, output):
        kinds = [axis.type for axis in tensor.axes]
        for kind in ("batch", "channel"):
            if kind not in kinds:
                yield _error(f"{tensor.id} has no {kind} axis: expected one; declare it")
        if kinds.count("space") < 2:
            yield _error(
                f"{tensor.id} has {kinds.count('space')} axes of space: expected two or three"
            )
        if "index" in kinds:
            yield _error(f"{tensor.id} has an index axis, which no image has: leave it out")
    if sorted(image.axis_names) != sorted(output.axis_names):
        yield _error(
            f"axes are {', '.join(image.axis_names)} in {image.id} and "
            f"{', '.join(output.axis_names)} in {output.id}: expected the same, or nothing is shown"
        )
    elif image.axis_names != output.axis_names:
        yield _error(
            f"axes of {output.id} are in the order {', '.join(output.axis_names)}: "
            f"expected {', '.join(image.axis_names)} as in {image.id}, or zeros are shown; "
            "transpose inside the network"
        )


def _check_sizes(image: Tensor, output: Tensor) -> Iterator[Finding]:
    sides = {axis.name: axis for axis in image.space}
    bare = [axis.name for axis in output.space if axis.halo == 0]
    if bare:
        yield _warning(
            f"{output.id} has no halo in {', '.join(bare)}, which leaves seams between tiles: "
            "write at least the receptive field"
        )
    for axis in output.space:
        place = f"{output.id}.{axis.name}"
        if axis.name in sides and not _is_same_size(image, sides[axis.name], axis):
            yield _error(
                f"{place} is not as large as {image.id}.{axis.name}, which shows zeros or shifts "
                "the result: give an output of the size of the input and refer to it"
            )
        size = sides[axis.name].size if axis.name in sides else None
        if size is None or axis.halo == 0:
            continue
        least = size.fixed or size.min or 0
        if least <= 2 * axis.halo:
            yield _error(
                f"{place} has a halo of {axis.halo} and {image.id} a least size of {least}: "
                "expected more than both halos"
            )
        if size.step and axis.halo % size.step:
            yield _warning(
                f"{place} has a halo of {axis.halo} and {image.id} steps of {size.step}, so "
                "results differ from the test tensor: write a multiple of the step"
            )


def _is_same_size(image: Tensor, side: Axis, axis: Axis) -> bool:
    size = axis.size
    if size is None or side.size is None or size.min is not None:
        return False
    if size.fixed is not None:
        return size.fixed == side.size.fixed
    refers = (size.tensor_id, size.axis_id) == (image.id, side.name)
    return refers and size.offset == 0 and axis.scale == side.scale


def _check_message(image: Tensor, output: Tensor) -> Iterator[Finding]:
    """A tile is sent to the network, and back from it, in one message."""
    sides = _tile(image)
    if not sides:
        return
    for tensor in (image, output):
        size = 4 * math.prod(sides) * max(len(tensor.channel_names), 1)
        if size >= _MOST_MESSAGE_BYTES:
            yield _error(
                f"a tile of {' x '.join(map(str, sides))} has {size} bytes in {tensor.id}, and a "
                f"message less than {_MOST_MESSAGE_BYTES}: give fewer channels or a smaller "
                "least size"
            )


def _tile(image: Tensor) -> list[int]:
    """Sizes of a tile: all grow by one number of steps, until a side is long enough."""
    sizes = [axis.size for axis in image.space if axis.size is not None]
    goal = _TILE.get(len(image.space), 0)
    if not goal or len(sizes) < len(image.space) or any(s.is_unknown for s in sizes):
        return []
    ranges = [(s.min, s.step) for s in sizes if s.min is not None and s.step is not None]
    steps = min((max(0, math.ceil((goal - low) / step)) for low, step in ranges), default=0)
    return [s.fixed or (s.min or 0) + steps * (s.step or 0) for s in sizes]


def _check_input(image: Tensor) -> Iterator[Finding]:
    operations = image.preprocessing
    for operation in operations:
        if operation.id in _PER_TILE:
            yield _warning(
                f"{image.id} is normalized by {operation.id}, whose statistics are taken from "
                "each tile: use scale_linear or fixed_zero_mean_unit_variance"
            )
    last = operations[-1] if operations else None
    closed = (
        last is not None and last.id == "ensure_dtype" and last.settings.get("dtype") == "float32"
    )
    if image.type != "float32" and not closed:
        yield _error(
            f"{image.id} is of type {image.type}, to which it is cast before the network, which "
            "then shows zeros: describe it as float32, or end with ensure_dtype float32"
        )


def _check_maps(package: Evidence, output: Tensor) -> Iterator[Finding]:
    """Every channel is shown as a probability; boundary and interior lead to instances."""
    if output.is_labels:
        yield _warning(
            f"{output.id} is a label image, whose objects are cut and numbered anew in every "
            "tile: give foreground, boundary and interior"
        )
        return
    names = output.channel_names
    if not output.is_maps:
        yield _warning(
            f"channels of {output.id} are {', '.join(names)[:60] or 'not named'}, of which no "
            "workflow makes instances: give foreground, boundary, interior in this order"
        )
        return
    text = package.description.description.lower()
    missing = [name for name in names if name not in text]
    if missing:
        yield _warning(
            f"the description does not name {', '.join(missing)}, and channels are shown by "
            "number alone: write what the channels are, in their order"
        )
    sample = package.samples.get(output.id)
    if sample is not None and not 0 <= sample.low <= sample.high <= 1:
        yield _error(
            f"{output.id} is from {sample.low:.3g} to {sample.high:.3g} in its test tensor, and "
            "only 0 to 1 is shown: scale it inside the network"
        )
