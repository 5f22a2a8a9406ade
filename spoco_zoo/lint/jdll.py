"""What stops a package in JDLL, with which deepImageJ 3 opens it in Fiji.

The rules are those of JDLL 0.6.1 to 0.6.3 and of the engines that they install: ONNX Runtime up
to 1.13.1 and PyTorch 2.0.0.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

from spoco_zoo.lint.description import Axis, Operation, Tensor, name_kind, show
from spoco_zoo.lint.evidence import Evidence
from spoco_zoo.lint.finding import Finding

_error, _warning = partial(Finding, "JDLL", "error"), partial(Finding, "JDLL", "warning")

_NEWEST_IR, _NEWEST_OPSET = 8, 17
_DOMAINS = {"ai.onnx", "ai.onnx.ml"}
_MOST_ELEMENTS = 4096 * 4096 * 3
_TYPES = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"}
_ONNX_TYPES = {"float32", "float64", "int8", "int32", "int64"}
_OPERATIONS = {
    "binarize",
    "clip",
    "ensure_dtype",
    "fixed_zero_mean_unit_variance",
    "scale_linear",
    "scale_range",
    "sigmoid",
    "zero_mean_unit_variance",
}
# operators of newer versions that PyTorch 2.0.0 was seen to refuse
_NEW_OPERATORS = {"_upsample_lanczos2d_aa"}


def check_jdll(package: Evidence) -> Iterator[Finding]:
    """Find what keeps Fiji from loading the package or gives other results there."""
    return chain(
        _check_words(package),
        _check_config(package),
        _check_tensors(package),
        _check_tiles(package),
        _check_weights(package),
        _check_onnx(package),
        _check_onnx_types(package),
        _check_torchscript(package),
    )


def _check_words(package: Evidence) -> Iterator[Finding]:
    description = package.description
    for word in ("documentation", "license", "git_repo", "id"):
        value = getattr(description, word)
        if value is not None and not isinstance(value, str):
            yield _error(
                f"{word} is {name_kind(value)}, with which the model is not listed: "
                "write a plain string"
            )
    covers = description.covers if isinstance(description.covers, list) else []
    strange = [cover for cover in covers if not isinstance(cover, str)]
    if strange:
        yield _error(
            f"covers holds {name_kind(strange[0])}, with which no model at all is listed: "
            "write plain strings"
        )
    if description.id is None and description.configured("bioimageio", "nickname") is None:
        if description.config:
            yield _error("id is missing beside a config, which ends in an error: write an id")
        else:
            yield _warning("id is missing, and another is made up at every start: write an id")


def _check_config(package: Evidence) -> Iterator[Finding]:
    description = package.description
    config = description.configured("deepimagej")
    if isinstance(config, dict):
        if config.get("allow_tiling") is not True:
            yield _error(
                "config.deepimagej does not say allow_tiling: true, which asks for tiles of "
                "size -1: leave config.deepimagej out"
            )
        for part in ("preprocess", "postprocess"):
            if description.configured("deepimagej", "prediction", part):
                yield _warning(
                    f"config.deepimagej.prediction.{part} names macros, which deepImageJ 3 does "
                    "not run: leave config.deepimagej out"
                )
    if "stardist" in description.name.lower() and description.configured("stardist"):
        yield _warning(
            "name holds stardist and there is a config.stardist, which is run as StarDist in a "
            "Python environment: choose another name"
        )


def _check_tensors(package: Evidence) -> Iterator[Finding]:
    description = package.description
    if len(description.inputs) != 1:
        yield _error(f"there are {len(description.inputs)} inputs: only one image can be given")
    for tensor in description.tensors:
        if tensor.type not in _TYPES:
            yield _error(
                f"{tensor.id} is of type {tensor.type}, which is not known: "
                f"write one of {', '.join(sorted(_TYPES))}"
            )
        for axis in tensor.axes:
            yield from _check_axis(tensor, axis)
        for operation in (*tensor.preprocessing, *tensor.postprocessing):
            yield from _check_operation(tensor, operation)
    for output in description.outputs:
        for axis in output.space:
            yield from _check_output_axis(output, axis)
    halo = max((axis.halo for output in description.outputs for axis in output.axes), default=0)
    if halo:
        yield _warning(
            f"outputs have a halo of {halo}, by which the image is mirrored at its border even "
            "where one tile is enough, so results differ from the test tensor: pad inside the "
            "network and leave the halo out"
        )


def _check_axis(tensor: Tensor, axis: Axis) -> Iterator[Finding]:
    place = f"{tensor.id}.{axis.name}"
    if axis.type == "channel" and axis.channels is None:
        yield _error(f"{place} has no channel_names, which ends in an error: name every channel")
    if axis.type in ("index", "time"):
        yield _error(
            f"{place} is of type {axis.type}, which is refused: "
            "expected batch, channel, and x, y or z alone"
        )
    if axis.type == "space" and axis.id not in ("x", "y", "z"):
        yield _error(f"{place} has the id {axis.id}: expected x, y or z, and stated")
    if axis.type == "batch" and (axis.size is None or axis.size.fixed != 1):
        yield _warning(
            f"{place} has no fixed size: write size: 1, since images are given one by one"
        )


def _check_operation(tensor: Tensor, operation: Operation) -> Iterator[Finding]:
    if operation.id not in _OPERATIONS:
        yield _error(
            f"{tensor.id} asks for the operation {operation.id}, which is not there and stops "
            "the run: do it inside the network"
        )
    elif operation.settings.get("reference_tensor") is not None:
        yield _error(
            f"{tensor.id} takes the range of another tensor in {operation.id}, which is not "
            "supported: leave reference_tensor out"
        )


def _check_output_axis(output: Tensor, axis: Axis) -> Iterator[Finding]:
    place = f"{output.id}.{axis.name}"
    if axis.size is not None and axis.size.min is not None:
        yield _error(
            f"{place} has a size of its own from {axis.size.min} on, which is refused as too "
            "complex: refer to an axis of the input"
        )
    if axis.scale != 1:
        yield _error(
            f"{place} has the scale {axis.scale:g}, which is taken for the ratio of output to "
            "input size and stops the run: leave the scale of inputs and outputs out"
        )


def _check_tiles(package: Evidence) -> Iterator[Finding]:
    """Images are cut to a multiple of the step, and labels of two tiles are never joined."""
    for tensor in package.description.inputs:
        elements = max(len(tensor.channel_names), 1)
        cut = []
        for axis in tensor.space:
            size = axis.size
            if size is None:
                continue
            elements *= size.fixed or size.min or 1
            if size.min and size.step and size.min % size.step:
                yield _error(
                    f"{tensor.id}.{axis.name} is at least {size.min} in steps of {size.step}: "
                    "expected a least size that is a multiple of the step"
                )
            if size.step != 1:
                cut.append(f"{axis.name} in steps of {size.step}" if size.step else axis.name)
        if cut:
            start = f"{tensor.id} is not of any size in {', '.join(cut)}, so images are cut"
            cure = "pad inside the network and write step: 1"
            if package.labels:
                yield _error(f"{start} into tiles whose labels collide: {cure}")
            else:
                yield _warning(f"{start} into tiles: {cure}")
        if elements > _MOST_ELEMENTS:
            yield _error(
                f"{tensor.id} has at least {elements} elements, and more than {_MOST_ELEMENTS} "
                "are never done: take smaller images"
            )


def _check_weights(package: Evidence) -> Iterator[Finding]:
    weights = package.description.weights
    if weights.onnx is None and weights.torchscript is None:
        found = ", ".join(weights.present()) or "none"
        yield _error(
            f"weights are {found}: expected onnx or torchscript, for which no Python environment "
            "has to be installed"
        )
    for name, entry in (("onnx", weights.onnx), ("torchscript", weights.torchscript)):
        if entry is not None and "/" in entry.source:
            yield _error(
                f"{name} weights are {entry.source}, which is not found: put them beside rdf.yaml"
            )
    for output in package.labels:
        if output.type in ("int8", "uint8"):
            yield _warning(
                f"{output.id} is of type {output.type}, which ends at 127 or 255 objects: "
                "write int32 or int64"
            )


def _check_onnx(package: Evidence) -> Iterator[Finding]:
    header = package.onnx
    if header is None:
        return
    if header.ir_version > _NEWEST_IR:
        yield _error(
            f"the ONNX file is of IR version {header.ir_version}, and {_NEWEST_IR} is the newest "
            "that opens: export with dynamo=False, opset_version=17"
        )
    opset = header.opsets.get("ai.onnx", 0)
    if opset > _NEWEST_OPSET:
        yield _error(
            f"the ONNX file is of opset {opset}, and {_NEWEST_OPSET} is the newest that opens: "
            "export with dynamo=False, opset_version=17"
        )
    foreign = sorted(set(header.opsets) - _DOMAINS)
    if foreign:
        yield _error(
            f"the ONNX file asks for operators of {', '.join(map(show, foreign))}, which are not "
            "there: export with operators of ONNX alone"
        )
    if header.external:
        yield _warning(
            f"the ONNX file keeps {len(header.external)} weights in another file, which is lost "
            "when the model is moved: export with external_data=False"
        )


def _check_onnx_types(package: Evidence) -> Iterator[Finding]:
    header = package.onnx
    if header is None:
        return
    for tensor in header.inputs:
        if tensor.type != "float32":
            yield _error(
                f"the ONNX input {show(tensor.name)} is {tensor.type}, and float32 is always "
                "given: cast inside the network"
            )
    # a file with other outputs than the description is a matter of the format
    for found, stated in zip(header.outputs, package.description.outputs, strict=False):
        if found.type not in _ONNX_TYPES:
            yield _error(
                f"the ONNX output {show(found.name)} is {found.type}, which cannot be taken over: "
                "give float32, int32 or int64"
            )
        elif found.type != stated.type:
            yield _error(
                f"the ONNX output {show(found.name)} is {found.type} and {stated.id} is described "
                f"as {stated.type}, which is refused: describe it as {found.type}"
            )


def _check_torchscript(package: Evidence) -> Iterator[Finding]:
    entry = package.description.weights.torchscript
    if entry is None:
        return
    version = show(entry.pytorch_version)
    if version.split(".")[0] not in ("1", "2"):
        yield _error(
            f"torchscript weights are of PyTorch {version}: expected 1 or 2, for which there are "
            "engines; write the pytorch_version"
        )
    for operator in sorted(package.operators & _NEW_OPERATORS):
        yield _error(
            f"the TorchScript file names the operator {operator}, which PyTorch 2.0.0 refuses: "
            "trace the network and script only what is around it"
        )
