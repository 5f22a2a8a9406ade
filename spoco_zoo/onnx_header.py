"""What an ONNX file says of itself, read without the onnx package.

An ONNX file is a protobuf message. Only the few fields that tell which program can open it are
looked at here; everything else, the weights above all, is stepped over where it lies. The bytes
may come from anywhere: what is no protobuf is refused, and what is accepted is read as onnx
itself reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from spoco_zoo.errors import PackageError

_MOST_DEPTH = 100  # that of protobuf itself; a loop within a loop takes six
_MOST_FIELDS = 5_000_000
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

# which fields are opened, as messages of these kinds, in a message of this kind
_OPENED = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type"},
    "type": {1: "array"},
    "array": {2: "shape"},
    "shape": {1: "dim"},
}
# and which are kept as numbers or as bytes
_NUMBERS = {"model": {1}, "opset": {2}, "tensor": {14}, "array": {1}, "dim": {1}}
_STRINGS = {"opset": {1}, "tensor": {8}, "value": {1}, "dim": {2}, "type": {4, 5, 7, 8, 9}}

_EXTERNAL = 1
_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph: its name, the type of its elements, its sizes.

    A size is a number, the name of a free one, or None; a shape of None is not stated at all.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OnnxHeader:
    """The fields of an ONNX file that decide where it opens.

    `opsets` has a version for each operator domain, of which ONNX's own is `ai.onnx`; `inputs`
    are those that a caller gives; `external` names the weights that lie in other files.
    """

    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    external: tuple[str, ...]


@dataclass(frozen=True)
class _Message:
    """What was kept of a message: the values of each field, in the order of the file."""

    parts: dict[int, list["_Message"]] = field(default_factory=dict)
    numbers: dict[int, list[int]] = field(default_factory=dict)
    strings: dict[int, list[bytes]] = field(default_factory=dict)


class _DamagedError(Exception):
    """Why these bytes are no ONNX file."""


def read_onnx_header(content: bytes, place: object) -> OnnxHeader:
    """Read the header of the ONNX file with this content; `place` names it in an error.

    Raises:
        PackageError: The bytes are no ONNX file.
    """
    try:
        model = _Reader().read(memoryview(content), "model", 0)
        return _understand(model)
    except _DamagedError as error:
        raise PackageError(
            f"{place}: is no ONNX file ({error}): the weights are damaged; "
            "copy or export them again"
        ) from error


def refuse_external_data(content: bytes, place: object) -> None:
    """Refuse a network whose weights lie in other files, which no hash of a package covers.

    What is no ONNX file passes: ONNX Runtime refuses that, and knows more of why.

    Raises:
        PackageError: Some weights lie elsewhere.
    """
    try:
        names = read_onnx_header(content, place).external
    except PackageError:
        return
    if names:
        raise PackageError(
            f"{place}: keeps {len(names)} of its weights in other files, {names[0]!r} first: "
            "expected one ONNX file with all of them; save it again without external data"
        )


def _understand(model: _Message) -> OnnxHeader:
    graph = _merge(model, 7)
    stored = {_string(tensor, 8) for tensor in graph.parts.get(5, [])}
    stored |= {_string(_merge(sparse, 1), 8) for sparse in graph.parts.get(15, [])}
    inputs = [_tensor(value) for value in graph.parts.get(11, [])]
    outputs = [_tensor(value) for value in graph.parts.get(12, [])]
    ir_version = _number(model, 1)
    if ir_version < 1 or not outputs:
        raise _DamagedError(f"IR version {ir_version}, {len(outputs)} outputs")
    opsets: dict[str, int] = {}
    for opset in model.parts.get(8, []):
        domain = _string(opset, 1) or "ai.onnx"
        opsets[domain] = max(_number(opset, 2), opsets.get(domain, 0))
    return OnnxHeader(
        ir_version=ir_version,
        opsets=opsets,
        inputs=tuple(tensor for tensor in inputs if tensor.name not in stored),
        outputs=tuple(outputs),
        external=tuple(_find_external(model, "model")),
    )


def _tensor(value: _Message) -> OnnxTensor:
    name, kind = _string(value, 1), _merge(value, 2)
    if len(kind.parts) + len(kind.strings) > 1:
        raise _DamagedError("a value of two types")
    if not kind.parts:
        return OnnxTensor(name, "no tensor", None)
    array = _merge(kind, 1)
    number = _number(array, 1, bits=32)
    known = _TYPES.get(number, f"type {number}")
    if not array.parts:
        return OnnxTensor(name, known, None)
    sizes: list[int | str | None] = []
    for dim in _merge(array, 2).parts.get(1, []):
        if dim.numbers and dim.strings:
            raise _DamagedError("a size that is a number and a name")
        sizes.append(_number(dim, 1) if dim.numbers else _string(dim, 2) or None)
    return OnnxTensor(name, known, tuple(sizes))


def _find_external(message: _Message, kind: str) -> Iterator[str]:
    """Find the tensors, in subgraphs too, whose numbers lie outside of the file."""
    if kind == "tensor" and _EXTERNAL in message.numbers.get(14, []):
        yield _string(message, 8)
    for number, parts in message.parts.items():
        for part in parts:
            yield from _find_external(part, _OPENED[kind][number])


class _Reader:
    """Take protobuf messages apart, up to so many fields in all."""

    def __init__(self) -> None:
        self._left = _MOST_FIELDS

    def read(self, content: memoryview, kind: str, depth: int) -> _Message:
        """Read one message: the fields that the tables name, each as the list of its values."""
        if depth > _MOST_DEPTH:
            raise _DamagedError(f"more than {_MOST_DEPTH} messages within each other")
        opened = _OPENED.get(kind, {})
        numbers, strings = _NUMBERS.get(kind, set()), _STRINGS.get(kind, set())
        message = _Message()
        at = 0
        while at < len(content):
            self._left -= 1
            if self._left < 0:
                raise _DamagedError(f"more than {_MOST_FIELDS} fields")
            number, value, at = _next_field(content, at)
            if isinstance(value, int):
                if number in numbers:
                    message.numbers.setdefault(number, []).append(value)
            elif number in opened:
                part = self.read(value, opened[number], depth + 1)
                message.parts.setdefault(number, []).append(part)
            elif number in strings:
                message.strings.setdefault(number, []).append(bytes(value))
        return message


def _next_field(content: memoryview, at: int) -> tuple[int, int | memoryview, int]:
    """Read the field at an offset: its number, its value, and where the next one begins."""
    key, at = _varint(content, at)
    number, wire = key >> 3, key & 7
    if not 0 < number < 2**29:
        raise _DamagedError(f"field number {number}")
    if wire == _VARINT:
        value, at = _varint(content, at)
        return number, value, at
    if wire not in (_BYTES, _EIGHT_BYTES, _FOUR_BYTES):
        raise _DamagedError(f"wire type {wire}")
    if wire == _BYTES:
        length, at = _varint(content, at)
    else:  # a floating-point number, which no table asks for
        number, length = 0, 8 if wire == _EIGHT_BYTES else 4
    if length > len(content) - at:
        raise _DamagedError("it ends too early")
    return number, content[at : at + length], at + length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise _DamagedError("it ends too early")
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number % 2**64, at
    raise _DamagedError("a number of more than 64 bits")


def _merge(message: _Message, number: int) -> _Message:
    """Join what was said of a single part in several places, as protobuf does."""
    merged = _Message()
    for part in message.parts.get(number, []):
        for key, parts in part.parts.items():
            merged.parts.setdefault(key, []).extend(parts)
        for key, numbers in part.numbers.items():
            merged.numbers.setdefault(key, []).extend(numbers)
        for key, strings in part.strings.items():
            merged.strings.setdefault(key, []).extend(strings)
    return merged


def _number(message: _Message, number: int, bits: int = 64) -> int:
    """Return the number in a field, the last where there are several, 0 where there is none."""
    last, most = message.numbers.get(number, [0])[-1], 1 << bits
    return (last + most // 2) % most - most // 2


def _string(message: _Message, number: int) -> str:
    try:
        return message.strings.get(number, [b""])[-1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamagedError("a name that is not UTF-8 text") from error
