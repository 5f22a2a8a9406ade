"""What stops a package in the InstanSeg extension of QuPath, which opens others' networks too."""

from collections.abc import Iterator
from functools import partial

from spoco_zoo.lint.description import Tensor
from spoco_zoo.lint.evidence import Evidence
from spoco_zoo.lint.finding import Finding

_error, _warning = partial(Finding, "QuPath", "error"), partial(Finding, "QuPath", "warning")

INSTANSEG = "instanseg.pt"
_OUTPUT = "instance_segmentation"
_DONE = ("scale_range", "clip", "ensure_dtype")  # by the extension itself
_UNITS = ("micrometer", "micron", "um", "µm")


def check_qupath(package: Evidence) -> Iterator[Finding]:
    """Find what keeps QuPath from opening the package."""
    description = package.description
    if not package.location.is_dir():
        yield _warning(f"{package.location.name} is a zip: unpack it, since a folder is opened")
    if not package.holds(INSTANSEG):
        yield _error(f"there is no {INSTANSEG}: put the TorchScript file beside rdf.yaml so named")
    if len(description.inputs) != 1:
        yield _error(f"there are {len(description.inputs)} inputs: expected one image")
    yield from _check_image(description.inputs[0])
    ids = [output.id for output in description.outputs]
    if _OUTPUT not in ids:
        yield _error(
            f"outputs are {', '.join(ids)}: expected {_OUTPUT}, which says what is found; "
            "rename the output"
        )
    for output in description.outputs:
        if output.id == _OUTPUT and len(output.channel_names) not in (1, 2):
            yield _error(
                f"{output.id} has {len(output.channel_names)} channels: "
                "expected labels in one or two"
            )


def _check_image(image: Tensor) -> Iterator[Finding]:
    kinds = [axis.type for axis in image.axes]
    names = [axis.name for axis in image.space]
    if kinds[:1] != ["batch"] or kinds[1:2] not in (["channel"], ["index"]) or names != ["y", "x"]:
        yield _error(
            f"axes of {image.id} are {', '.join(image.axis_names)}: "
            "expected batch, channel, y, x, which is how images are given"
        )
    elif kinds[1] == "channel" and not image.channel_names:
        yield _error(f"{image.id} does not say how many channels it has: name them")
    if image.type != "float32":
        yield _error(f"{image.id} is of type {image.type}: expected float32, which is given")
    for axis in image.space:
        if axis.unit not in _UNITS:
            yield _error(
                f"{image.id}.{axis.name} has no scale in micrometer, and images are resampled: "
                "write the pixel size of the training images as scale, and the unit"
            )
    own = [op.id for op in image.preprocessing if op.id not in _DONE]
    if own:
        yield _warning(
            f"{image.id} is normalized by {', '.join(own)[:60]}, which is not done: percentiles "
            "0.1 to 99.9 are always; train with scale_range, or normalize inside the network"
        )
