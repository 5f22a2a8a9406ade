"""What stops a package in bioimageio.core 0.9 to 0.11, or in its tests and tiles."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import chain

from spoco_zoo.lint.description import Tensor, find_mappings, show
from spoco_zoo.lint.evidence import Evidence
from spoco_zoo.lint.finding import Finding

_error = partial(Finding, "bioimageio.core", "error")
_warning = partial(Finding, "bioimageio.core", "warning")

_COMMON_PATCH = 4  # format 0.5.4 is read by everything that reads 0.5 today
_STATISTICS = {"scale_range", "zero_mean_unit_variance"}
_MOST_RELATIVE, _MOST_PPM = 0.01, 5000


def check_bioimageio_core(package: Evidence) -> Iterator[Finding]:
    """Find what bioimageio.core refuses, or what its tests do not notice."""
    return chain(
        _check_words(package),
        _check_operations(package),
        _check_halos(package),
        _check_tests(package),
        _check_tolerances(package),
        _check_weights(package),
    )


def _check_words(package: Evidence) -> Iterator[Finding]:
    description = package.description
    for word in find_mappings(description):
        yield _error(
            f"{word} is written as a mapping, which core 0.10 and earlier do not read: "
            "write plain strings"
        )
    patch = int(description.format_version.rsplit(".", 1)[1])
    if patch > _COMMON_PATCH:
        yield _warning(
            f"format_version is {description.format_version}, which not every reader knows: "
            f"write 0.5.{_COMMON_PATCH} where nothing newer is used"
        )
    wanted = ("description", "authors", "cite", "license", "tags", "documentation", "covers")
    empty = [word for word in wanted if not getattr(description, word)]
    if empty:
        yield _warning(f"{', '.join(empty)} not filled in, which the zoo reports: fill them in")
    if not 5 <= len(description.name) <= 128 or not _is_plain(description.name):
        yield _error(
            f"name is '{show(description.name)}': expected 5 to 128 letters, digits, spaces "
            "and any of _ + - ( )"
        )


def _is_plain(name: str) -> bool:
    return all(letter.isalnum() or letter in "_+- ()" for letter in name)


def _check_operations(package: Evidence) -> Iterator[Finding]:
    for tensor in package.description.tensors:
        for operation in (*tensor.preprocessing, *tensor.postprocessing):
            if operation.id in _STATISTICS:
                axes = operation.settings.get("axes")
                if not isinstance(axes, list) or "batch" in axes:
                    yield _warning(
                        f"{operation.id} of {tensor.id} does not name its axes or names batch, "
                        "which asks for statistics of a whole dataset: write the axes of one image"
                    )
            if operation.id == "custom":
                yield _warning(
                    f"{tensor.id} asks for the operation custom, which runs code of the package "
                    "and core before 0.10 does not know: do it inside the network"
                )


def _check_halos(package: Evidence) -> Iterator[Finding]:
    description = package.description
    sides = {(t.id, axis.name): axis for t in description.inputs for axis in t.space}
    halos = {tuple((axis.name, axis.halo) for axis in t.space) for t in description.outputs}
    if len(halos) > 1:
        yield _error(
            "outputs have different halos, so some come back larger than the image: "
            "write the same halo for every output"
        )
    for output in description.outputs:
        if all(axis.type != "channel" for axis in output.axes):
            yield _error(
                f"{output.id} has no channel axis and is left out where tiles are used: add one"
            )
        for axis in output.space:
            place = f"{output.id}.{axis.name}"
            if axis.halo == 0:
                continue
            size = axis.size
            if size is None or size.tensor_id is None or size.axis_id is None:
                yield _error(
                    f"{place} has a halo and a size of its own: refer to an axis of the input"
                )
                continue
            side = sides.get((size.tensor_id, size.axis_id))
            least = side.size if side is not None else None
            if least is None:
                continue  # a reference that leads nowhere is a matter of the format
            start = f"{place} has a halo of {axis.halo} and its input"
            if (least.fixed or least.min or 0) <= 2 * axis.halo:
                yield _error(
                    f"{start} a least size of {least.fixed or least.min}: "
                    "expected more than both halos; make it larger"
                )
            if least.step and 2 * axis.halo % least.step:
                yield _error(
                    f"{start} steps of {least.step}: "
                    "expected both halos together to be a multiple of the step"
                )


def _check_tests(package: Evidence) -> Iterator[Finding]:
    for tensor in package.description.tensors:
        sample = package.samples.get(tensor.id)
        if sample is None:
            yield _error(f"{tensor.id} has no test_tensor, without which nothing can be tested")
            continue
        if tensor.is_integer and sample.type != tensor.type:
            yield _error(f"the test tensor of {tensor.id} is {sample.type}: expected {tensor.type}")
        if max(-sample.low, sample.high) <= 1e-4:
            yield _error(
                f"the test tensor of {tensor.id} is 0 everywhere, which is refused: "
                "take an image with something in it"
            )


def _check_tolerances(package: Evidence) -> Iterator[Finding]:
    stated = package.description.configured("bioimageio", "reproducibility_tolerance")
    entries = [e for e in stated if isinstance(e, dict)] if isinstance(stated, list) else []
    for output in package.description.outputs:
        named = [e for e in entries if _names(e, output)]
        if not named:
            yield _warning(
                f"{output.id} has no tolerance of its own, and defaults differ between versions: "
                "write one under config.bioimageio.reproducibility_tolerance with output_ids"
            )
            continue
        relative = _limit(named[0], "relative_tolerance", 1e-3)
        absolute = _limit(named[0], "absolute_tolerance", 1e-3)
        share = _limit(named[0], "mismatched_elements_per_million", 100.0)
        if output.is_integer and (relative, absolute) != (0, 0):
            yield _error(
                f"tolerances of {output.id} are {relative:g} relative and {absolute:g} absolute: "
                "expected 0 and 0, since it is of whole numbers"
            )
        if relative > _MOST_RELATIVE or share > _MOST_PPM:
            yield _error(
                f"tolerances of {output.id} are {relative:g} relative and {share:g} elements in a "
                f"million: expected at most {_MOST_RELATIVE} and {_MOST_PPM}"
            )


def _names(entry: dict[str, object], output: Tensor) -> bool:
    ids = entry.get("output_ids")
    return isinstance(ids, list) and output.id in ids


def _limit(entry: dict[str, object], word: str, default: float) -> float:
    """Return a number that is stated; what is none counts as infinite."""
    value = entry.get(word, default)
    known = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    try:
        return float(value) if known else math.inf  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def _check_weights(package: Evidence) -> Iterator[Finding]:
    weights = package.description.weights.present()
    first = [name for name, entry in weights.items() if entry.parent is None]
    if len(weights) > 1 and len(first) != 1:
        yield _warning(
            f"weights without a parent are {', '.join(first) or 'none'}: expected one; "
            "write parent: pytorch_state_dict for those made of it"
        )
    for name, entry in weights.items():
        version = entry.pytorch_version
        needs = name in ("torchscript", "pytorch_state_dict")
        if needs and (not isinstance(version, str) or "+" in version):
            yield _error(
                f"{name} weights are of pytorch_version {show(version)}: "
                "expected the plain version, such as '2.7.0'"
            )
        if name == "onnx" and entry.opset_version is None:
            yield _error("onnx weights have no opset_version: write that of the file")
