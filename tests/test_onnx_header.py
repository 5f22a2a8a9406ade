"""The header of an ONNX file is what onnx reads in it, and damaged bytes are refused in words."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from spoco_zoo import onnx_header
from spoco_zoo.errors import PackageError
from spoco_zoo.onnx_header import OnnxHeader, OnnxTensor, read_onnx_header

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("weights/*/*.onnx"), *ROOT.glob("tests/data/*/*.onnx")])
TINY = (ROOT / "tests" / "data" / "tiny_package" / "weights.onnx").read_bytes()


def refused(content):
    """The reason with which bytes are refused."""
    with pytest.raises(PackageError) as error:
        read_onnx_header(content, "net.onnx")
    sentence = str(error.value)
    start, end = (
        "net.onnx: is no ONNX file (",
        "): the weights are damaged; copy or export them again",
    )
    assert sentence.startswith(start)
    assert sentence.endswith(end)
    return sentence[len(start) : -len(end)]


def varint(number):
    number %= 2**64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """One field of a message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def array(elem_type, *dims):
    shape = b"".join(field(1, field(1, d) if isinstance(d, int) else field(2, d)) for d in dims)
    return field(1, field(1, elem_type) + field(2, shape))


def value(name, kind):
    return field(1, name) + field(2, kind)


OUTPUT = field(12, value(b"y", array(1)))
IR_8 = field(1, 8)


def model(*graph, ir=IR_8, rest=b""):
    return ir + field(7, b"".join(graph)) + rest


def test_a_header_is_read():
    assert read_onnx_header(TINY, "net.onnx") == OnnxHeader(
        ir_version=8,
        opsets={"ai.onnx": 17},
        inputs=(OnnxTensor("image", "float32", ("b", 1, "y", "x")),),
        outputs=(
            OnnxTensor("embedding", "float32", ("b", 2, "y", "x")),
            OnnxTensor("foreground", "float32", ("b", 1, "y", "x")),
        ),
        external=(),
    )


def test_every_part_of_a_header_is_told_apart():
    content = model(
        field(5, field(8, b"weight")),
        field(15, field(1, field(8, b"sparse"))),
        *[field(11, value(name, array(7, -1))) for name in (b"x", b"weight", b"sparse")],
        field(12, field(1, b"sequence") + field(2, field(4, b""))),
        field(12, field(1, b"free") + field(2, field(1, field(1, 99)))),
        field(12, value(b"y", array(10, b"n", 3, b""))),
        rest=field(8, field(1, b"com.example") + field(2, 1)) + field(8, field(2, 16)),
    )
    assert read_onnx_header(content, "net.onnx") == OnnxHeader(
        ir_version=8,
        opsets={"com.example": 1, "ai.onnx": 16},
        inputs=(OnnxTensor("x", "int64", (-1,)),),
        outputs=(
            OnnxTensor("sequence", "no tensor", None),
            OnnxTensor("free", "type 99", None),
            OnnxTensor("y", "float16", ("n", 3, None)),
        ),
        external=(),
    )


EXTERNAL = field(8, b"far") + field(14, 1)


@pytest.mark.parametrize(
    "content",
    [
        model(OUTPUT, field(5, EXTERNAL)),
        model(OUTPUT, field(15, field(1, EXTERNAL))),
        model(OUTPUT, field(15, field(2, EXTERNAL))),
        model(OUTPUT, field(1, field(5, field(5, EXTERNAL)))),
        model(OUTPUT, field(1, field(5, field(10, EXTERNAL)))),
        model(OUTPUT, field(1, field(5, field(6, field(5, EXTERNAL))))),
        model(OUTPUT, field(1, field(5, field(11, field(5, EXTERNAL))))),
        model(OUTPUT, field(1, field(5, field(22, field(1, EXTERNAL))))),
        model(OUTPUT, field(1, field(5, field(23, field(1, EXTERNAL))))),
        model(OUTPUT, rest=field(20, field(1, field(5, EXTERNAL)))),
        model(OUTPUT, rest=field(20, field(2, field(5, EXTERNAL)))),
        model(OUTPUT, rest=field(25, field(7, field(5, field(5, EXTERNAL))))),
        model(OUTPUT, rest=field(25, field(11, field(5, EXTERNAL)))),
        model(OUTPUT, field(5, EXTERNAL + field(14, 0))),
    ],
)
def test_weights_outside_of_the_file_are_found_wherever_they_are(content):
    assert read_onnx_header(content, "net.onnx").external == ("far",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "IR version 0, 0 outputs"),
        (model(OUTPUT, ir=b""), "IR version 0, 1 outputs"),
        (model(), "IR version 8, 0 outputs"),
        (b"\x08", "it ends too early"),
        (b"\x0a\x05ab", "it ends too early"),
        (b"\x0d\x00\x00", "it ends too early"),
        (b"\x08" + b"\xff" * 10, "a number of more than 64 bits"),
        (b"\x00\x00", "field number 0"),
        (field(2**29, 1), "field number 536870912"),
        (b"\x0b\x0c", "wire type 3"),
        (model(field(12, field(1, b"\xff"))), "a name that is not UTF-8 text"),
        (model(field(12, value(b"y", array(1) + field(4, b"")))), "a value of two types"),
        (
            model(
                field(12, value(b"y", field(1, field(2, field(1, field(1, 1) + field(2, b"n"))))))
            ),
            "a size that is a number and a name",
        ),
    ],
)
def test_what_is_no_onnx_file_is_refused(content, reason):
    assert refused(content) == reason


def test_graphs_within_graphs_end_somewhere():
    graph = OUTPUT
    for _ in range(40):
        graph = field(1, field(5, field(6, graph)))
    assert refused(model(OUTPUT, graph)) == "more than 100 messages within each other"


def test_a_file_of_fields_alone_ends_somewhere(monkeypatch):
    monkeypatch.setattr(onnx_header, "_MOST_FIELDS", 1000)
    assert refused(field(30, 1) * 1001) == "more than 1000 fields"


# --- onnx as the judge


def tensor_of(info):
    """An input or output as onnx reads it."""
    kind = info.type.tensor_type
    known = onnx_header._TYPES.get(kind.elem_type, f"type {kind.elem_type}")
    if not info.type.HasField("tensor_type"):
        return OnnxTensor(info.name, "no tensor", None)
    if not kind.HasField("shape"):
        return OnnxTensor(info.name, known, None)
    dims = kind.shape.dim
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]
    return OnnxTensor(info.name, known, tuple(sizes))


def find_external(message):
    """The names of external tensors anywhere in a message as onnx reads it."""
    if message.DESCRIPTOR.name == "TensorProto" and message.data_location == message.EXTERNAL:
        yield message.name
    for known, inner in message.ListFields():
        if known.message_type is not None:
            for part in [inner] if hasattr(inner, "ListFields") else inner:
                yield from find_external(part)


@pytest.fixture(scope="module")
def read_by_onnx():
    """Read a header with onnx, or None where it refuses the bytes."""
    onnx = pytest.importorskip("onnx")
    from google.protobuf.message import DecodeError

    def read(content):
        try:
            loaded = onnx.ModelProto.FromString(content)
        except DecodeError:
            return None
        graph, opsets = loaded.graph, {}
        for opset in loaded.opset_import:
            domain = opset.domain or "ai.onnx"
            opsets[domain] = max(opset.version, opsets.get(domain, 0))
        stored = {tensor.name for tensor in graph.initializer}
        stored |= {sparse.values.name for sparse in graph.sparse_initializer}
        return OnnxHeader(
            ir_version=loaded.ir_version,
            opsets=opsets,
            inputs=tuple(tensor_of(i) for i in graph.input if i.name not in stored),
            outputs=tuple(tensor_of(o) for o in graph.output),
            external=tuple(find_external(loaded)),
        )

    return read


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_real_files_are_read_as_onnx_reads_them(path, read_by_onnx):
    content = path.read_bytes()
    header = read_onnx_header(content, path)
    assert header == read_by_onnx(content)
    assert header.opsets == {"ai.onnx": 17}


def mutate(chance, content):
    """Damage some bytes: flip, cut out, repeat, put in, or cut off."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, length = chance.randrange(len(content) + 1), chance.randrange(1, 9)
        match chance.randrange(5):
            case 0:
                content[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length]
            case 3:
                content[at:at] = chance.randbytes(length)
            case 4 if chance.random() < 0.2:
                del content[at:]
    return bytes(content)


def test_damaged_files_are_refused_or_read_as_onnx_reads_them(read_by_onnx):
    chance = random.Random(0)
    rich = model(
        OUTPUT,
        field(5, EXTERNAL),
        field(1, field(5, field(6, field(5, EXTERNAL)))),
        field(11, value(b"x", array(7, 2, b"n"))),
        rest=field(8, field(1, b"com.example") + field(2, 1)) + field(25, field(7, b"")),
    )
    ends = {"read": 0, "refused": 0}
    for number in range(2000):
        content = mutate(chance, (TINY, rich)[number % 2])
        try:
            header = read_onnx_header(content, "net.onnx")
        except PackageError:
            ends["refused"] += 1
            continue
        expected = read_by_onnx(content)
        if expected is not None:  # onnx also refuses what is wrong in what is stepped over here
            ends["read"] += 1
            assert replace(header, external=()) == replace(expected, external=())
            assert header.external or not expected.external
    assert min(ends.values()) > 200


def test_any_bytes_are_refused_in_words():
    chance = random.Random(1)
    for _ in range(2000):
        refused(chance.randbytes(chance.randrange(60)))
