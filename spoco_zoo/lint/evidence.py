"""Everything the rules look at, read out of a package once and verified.

That is its description, the header of its ONNX file, the operators of its TorchScript, and the
type, sizes and range of its test tensors.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo.archive import RDF_NAMES, check_names, check_zip, read_member, verify
from spoco_zoo.errors import PackageError
from spoco_zoo.lint.description import HASH, Description, FileReference, Tensor
from spoco_zoo.onnx_header import OnnxHeader, read_onnx_header

_MOST_CODE_BYTES = 50_000_000
_OPERATOR = re.compile(rb"\b(?:torch|ops\.\w+)\.(\w+)\(")


@dataclass(frozen=True)
class Sample:
    """A test tensor: its type, its sizes, and the range of its values."""

    type: str
    shape: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """A package as the rules see it; what it does not hold is None or empty."""

    location: Path
    description: Description
    unhashed: tuple[str, ...]
    onnx: OnnxHeader | None
    operators: frozenset[str]
    samples: Mapping[str, Sample]

    @property
    def labels(self) -> tuple[Tensor, ...]:
        """Outputs that are label images."""
        return tuple(tensor for tensor in self.description.outputs if tensor.is_labels)

    def holds(self, name: str) -> bool:
        """Whether a file of this name can be read."""
        try:
            return bool(read_member(self.location, name))
        except PackageError:
            return False


def find_package(location: Path | str) -> Path:
    """Find the folder or zip of a package, which may be given by its `rdf.yaml`.

    Raises:
        PackageError: There is none, or the zip is damaged or unsafe.
    """
    location = Path(location)
    if location.name in RDF_NAMES and location.is_file():
        location = location.parent
    if not location.exists():
        raise PackageError(f"{location}: no such package: expected a folder or a zip")
    check_zip(location)
    return location


def gather(location: Path, description: Description) -> Evidence:
    """Read and verify the files that a description names.

    Raises:
        PackageError: One is missing, changed, damaged, or outside of the package.
    """
    weights = description.weights
    references = _references(description)
    stated = description.configured("spoco_zoo", "files")
    hashes = {str(name): _as_hash(value) or "" for name, value in _as_mapping(stated).items()}
    named = {reference.source for reference in references}
    hashes |= {k: v for k, v in _attached_hashes(description).items() if k in named}
    names = dict.fromkeys([*(reference.source for reference in references), *hashes])
    check_names(location, names)
    contents = {name: read_member(location, name) for name in names}
    for reference in references:
        if reference.sha256 is not None:
            verify(location, reference.source, contents[reference.source], reference.sha256)
    for name, expected in hashes.items():
        verify(location, name, contents[name], expected)
    onnx = operators = None
    if weights.onnx is not None:
        name = weights.onnx.source
        onnx = read_onnx_header(contents[name], location / name)
    if weights.torchscript is not None:
        name = weights.torchscript.source
        operators = _read_operators(contents[name], location / name)
    samples = {
        tensor.id: _read_sample(contents[name], location / name)
        for tensor in description.tensors
        if tensor.test_tensor is not None
        for name in [tensor.test_tensor.source]
    }
    unhashed = [r.source for r in references if r.sha256 is None and r.source not in hashes]
    return Evidence(
        location=location,
        description=description,
        unhashed=tuple(dict.fromkeys(unhashed)),
        onnx=onnx,
        operators=operators or frozenset(),
        samples=samples,
    )


def _references(description: Description) -> list[FileReference]:
    """List the files that are named, but not what older readers take for plain text."""
    weights = description.weights.present().values()
    found: list[FileReference | None] = list(weights)
    for tensor in description.tensors:
        found += [tensor.test_tensor, tensor.sample_tensor]
    pictures = description.covers if isinstance(description.covers, list) else []
    parts = [entry.architecture for entry in weights]
    for part in (description.documentation, description.icon, *pictures, *parts):
        source = part.get("source") if isinstance(part, dict) else part
        sha256 = part.get("sha256") if isinstance(part, dict) else None
        if isinstance(source, str):
            found.append(FileReference.model_construct(source=source, sha256=_as_hash(sha256)))
    return [reference for reference in found if reference is not None]


def _attached_hashes(description: Description) -> dict[str, str]:
    """Hashes of attachments, which may be those of a card or a cover that have no other place."""
    entries = description.attachments if isinstance(description.attachments, list) else []
    pairs = [
        (_as_mapping(e).get("source"), _as_hash(_as_mapping(e).get("sha256"))) for e in entries
    ]
    return {source: sha256 for source, sha256 in pairs if isinstance(source, str) and sha256}


def _as_mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _as_hash(value: object) -> str | None:
    return value if isinstance(value, str) and re.match(HASH, value) else None


def _read_operators(content: bytes, place: Path) -> frozenset[str]:
    """Collect the operators that the code of a TorchScript file names; none of it is run."""
    found: set[bytes] = set()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            code = [i for i in archive.infolist() if re.search(r"/code/.*\.py$", i.filename)]
            if not code or sum(info.file_size for info in code) > _MOST_CODE_BYTES:
                raise PackageError(
                    f"{place}: is no TorchScript file: it holds {len(code)} files of code, "
                    f"expected some with at most {_MOST_CODE_BYTES} bytes; export it again"
                )
            for info in code:
                with archive.open(info) as file:
                    found.update(_OPERATOR.findall(file.read(info.file_size)))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, OSError) as error:
        raise PackageError(
            f"{place}: is no TorchScript file ({error}): the weights are damaged; "
            "copy or export them again"
        ) from error
    return frozenset(name.decode("utf-8", "replace") for name in found)


def _read_sample(content: bytes, place: Path) -> Sample:
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        header = read.get(version, np.lib.format.read_array_header_2_0)
        shape, _, kind = header(file)
        if kind.kind not in "biuf":
            raise ValueError(f"numbers of type {kind}")
        values = np.frombuffer(content, kind, offset=file.tell())
        if values.size != np.prod([int(n) for n in shape], dtype=object) or values.size == 0:
            raise ValueError(f"{values.size} numbers for the shape {shape}")
    except Exception as error:  # the header is Python text, which may raise anything
        raise PackageError(
            f"{place}: is no NPY file of numbers ({error}): the test tensor is damaged; "
            "copy or export it again"
        ) from error
    return Sample(kind.name, tuple(map(int, shape)), float(values.min()), float(values.max()))
