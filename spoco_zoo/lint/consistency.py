"""What contradicts itself in a package, whatever it is for."""

from collections.abc import Iterator
from functools import partial
from itertools import chain

from spoco_zoo.lint.description import Axis, Tensor, show
from spoco_zoo.lint.evidence import Evidence, Sample
from spoco_zoo.lint.finding import Finding
from spoco_zoo.onnx_header import OnnxTensor

_error, _warning = partial(Finding, "format", "error"), partial(Finding, "format", "warning")


def check_format(package: Evidence) -> Iterator[Finding]:
    """Find what is said in one place of a package and not true in another."""
    return chain(
        _check_ids(package),
        _check_references(package),
        _check_samples(package),
        _check_onnx(package),
        _check_hashes(package),
    )


def _check_ids(package: Evidence) -> Iterator[Finding]:
    ids = [tensor.id for tensor in package.description.tensors]
    for name in dict.fromkeys(ids):
        if ids.count(name) > 1:
            yield _error(f"{ids.count(name)} tensors have the id {name}: rename one")
        if not (name.isidentifier() and name == name.lower() and len(name) <= 32):
            yield _error(
                f"a tensor has the id {name!r}: expected a name in lower case, of at most 32 "
                "letters, digits and _"
            )
    for tensor in package.description.tensors:
        names = tensor.axis_names
        if len(set(names)) < len(names):
            yield _error(f"axes of {tensor.id} are {', '.join(names)}: expected each once")
    if not package.description.weights.present():
        yield _error("there are no weights of a known format: export them")


def _check_references(package: Evidence) -> Iterator[Finding]:
    known = {(t.id, axis.name): axis for t in package.description.tensors for axis in t.axes}
    for tensor in package.description.tensors:
        for axis in tensor.axes:
            size = axis.size
            if size is None and axis.type not in ("batch", "channel"):
                yield _error(f"{tensor.id}.{axis.name} has no size: write one")
            if size is not None and size.is_unknown and axis.type != "index":
                yield _error(
                    f"{tensor.id}.{axis.name} has a size from {size.min} on without a step: "
                    "write min and step"
                )
            if size is None or size.tensor_id is None or size.axis_id is None:
                continue
            other = known.get((size.tensor_id, size.axis_id))
            if other is None or (other.size is not None and other.size.tensor_id is not None):
                yield _error(
                    f"{tensor.id}.{axis.name} is as large as {size.tensor_id}.{size.axis_id}, "
                    "which has no size of its own: refer to an axis that has"
                )
            elif other.unit != axis.unit:
                yield _error(
                    f"{tensor.id}.{axis.name} and {size.tensor_id}.{size.axis_id} have different "
                    "units: write the same"
                )


def _check_samples(package: Evidence) -> Iterator[Finding]:
    for tensor in package.description.tensors:
        sample = package.samples.get(tensor.id)
        if sample is None:
            continue
        shape = " x ".join(map(str, sample.shape))
        if len(sample.shape) != len(tensor.axes):
            yield _error(
                f"the test tensor of {tensor.id} is {shape} and has {len(tensor.axes)} axes in "
                "rdf.yaml: expected one size for each"
            )
            continue
        for axis, size in zip(tensor.axes, sample.shape, strict=True):
            if not _may_be(axis, size, package):
                yield _error(
                    f"the test tensor of {tensor.id} is {shape}, which is not what rdf.yaml says "
                    f"of {axis.name}: expected another size there"
                )


def _may_be(axis: Axis, found: int, package: Evidence) -> bool:
    """Whether an axis may have the size that it has in the test tensor."""
    if axis.channels is not None and axis.channels != found:
        return False
    size = axis.size
    if size is None or size.is_unknown:
        return True
    if size.fixed is not None:
        return size.fixed == found
    if size.min is not None and size.step is not None:
        return found >= size.min and (found - size.min) % size.step == 0
    for tensor in package.description.tensors:
        sample: Sample | None = package.samples.get(tensor.id)
        if tensor.id != size.tensor_id or sample is None:
            continue
        for other, length in zip(tensor.axes, sample.shape, strict=False):
            refers = other.size is not None and other.size.tensor_id is not None
            if other.name == size.axis_id and not refers:
                return found == int(length * other.scale / axis.scale) + size.offset
    return True


def _check_onnx(package: Evidence) -> Iterator[Finding]:
    header, weights = package.onnx, package.description.weights.onnx
    if header is None or weights is None:
        return
    opset = header.opsets.get("ai.onnx", 0)
    if weights.opset_version is not None and weights.opset_version != opset:
        yield _error(
            f"opset_version is {weights.opset_version} and the ONNX file has {opset}: "
            "write that of the file"
        )
    description = package.description
    for kind, found, stated in (
        ("inputs", header.inputs, description.inputs),
        ("outputs", header.outputs, description.outputs),
    ):
        if len(found) != len(stated):
            yield _error(
                f"the ONNX file has {len(found)} {kind} and rdf.yaml describes {len(stated)}: "
                "describe all of them"
            )
            continue
        for value, tensor in zip(found, stated, strict=True):
            if not _fits(value, tensor):
                sizes = " x ".join(show(size or "?") for size in value.shape or ())
                yield _error(
                    f"{show(value.name)} is {sizes} in the ONNX file, which is not what rdf.yaml "
                    f"says of {tensor.id}: describe the axes in the order of the file"
                )


def _fits(value: OnnxTensor, tensor: Tensor) -> bool:
    if value.shape is None:
        return True
    if len(value.shape) != len(tensor.axes):
        return False
    pairs = zip(value.shape, tensor.axes, strict=True)
    return all(axis.channels in (None, size) for size, axis in pairs if isinstance(size, int))


def _check_hashes(package: Evidence) -> Iterator[Finding]:
    if package.unhashed:
        yield _warning(
            f"{', '.join(package.unhashed)[:200]} without a sha256, so damage is not noticed: "
            "write it"
        )
