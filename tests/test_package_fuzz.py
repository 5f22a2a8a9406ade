"""Ten thousand damaged packages: each is loaded, or refused in our words, and none writes a thing.

The packages are small, so that the whole takes well under a minute; what is changed and how is
drawn from a seed.
"""

import copy
import hashlib
import json
import os
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import yaml

from spoco_zoo.errors import PackageError
from spoco_zoo.foreign import load_foreign
from spoco_zoo.package import load_package

pytestmark = pytest.mark.uncounted

TINY = Path(__file__).parent / "data" / "tiny_package"
HOSTILE = (
    *("../outside", "/outside", "a/../../outside", "..\\outside", "C:\\outside", "CON", "nul.txt"),
    *("rdf.yaml", "RDF.YAML", "weights.onnx ", "weights.onnx.", "a\nb", "", ".", "..", "ö", "a/b"),
    *("//server/share", "https://example.org/weights.onnx", "weights.onnx/", "~/outside", "a:b"),
)
STRANGE = (
    *(None, True, -1, 0, 2**40, 2**70, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]]),
    *({"min": -1}, {"source": "../outside"}, "2001-01-01", "a" * 3000, [1] * 300, *HOSTILE),
)


@pytest.fixture(scope="module")
def our_words():
    """The description of a package of ours of two files, as small as one gets."""
    everything = yaml.safe_load((TINY / "rdf.yaml").read_text())
    spoco = everything["config"]["spoco_zoo"]
    spoco["files"] = {"weights.onnx": hashlib.sha256(b"weights").hexdigest()}
    spoco["recipe"] = {"foreground": {"rule": "everywhere"}}
    del everything["weights"]["onnx"]["sha256"]
    del everything["outputs"][1]
    for tensor in (*everything["inputs"], *everything["outputs"]):
        del tensor["test_tensor"]
    return everything


@pytest.fixture(scope="module")
def their_words(our_words):
    """The same as a package of others, once in each format."""
    words = copy.deepcopy(our_words)
    del words["config"]
    for axis in words["inputs"][0]["axes"][2:]:
        axis["size"] = {"min": 8, "step": 2}
    for axis in words["outputs"][0]["axes"][2:]:
        axis |= {"size": {"tensor_id": "image", "axis_id": axis["id"]}, "halo": 4}
    words["weights"]["onnx"]["sha256"] = hashlib.sha256(b"weights").hexdigest()
    range_of = {"mode": "per_sample", "axes": "yx"}
    image = {"name": "image", "axes": "bcyx", "data_type": "uint8"}
    image["shape"] = {"min": [1, 1, 8, 8], "step": [0, 0, 2, 2]}
    image["preprocessing"] = [{"name": "scale_range", "kwargs": range_of}]
    output = {"name": "embedding", "axes": "bcyx", "data_type": "float32", "halo": [0, 0, 4, 4]}
    shape = {"reference_tensor": "image", "scale": [1, None, 1, 1], "offset": [0, 1, 0, 0]}
    output["shape"] = shape
    old = words | {"format_version": "0.4.10", "inputs": [image], "outputs": [output]}
    return words, old


def places_of(words, before=()):
    """Every place in nested words."""
    steps = words.items() if isinstance(words, dict) else enumerate(words)
    for step, value in steps:
        yield (*before, step)
        if isinstance(value, (dict, list)):
            yield from places_of(value, (*before, step))


def change_words(words, draw):
    """Delete, replace, double or move a few fields."""
    words = copy.deepcopy(words)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = list(places_of(words))
        if not places:
            return words
        *path, last = draw.choice(places)
        inner = words
        for step in path:
            inner = inner[step]
        match draw.randrange(4):
            case 0:
                del inner[last]
            case 1:
                inner[last] = copy.deepcopy(draw.choice(STRANGE))
            case 2 if isinstance(inner, list):
                inner.insert(last, copy.deepcopy(inner[last]))
            case 2:
                inner[draw.choice(HOSTILE)] = copy.deepcopy(inner[last])
            case 3:
                around = list(inner.values()) if isinstance(inner, dict) else inner
                inner[last] = copy.deepcopy(draw.choice(around))
    return words


def change_bytes(content, draw):
    """Flip, drop, double or cut off some bytes."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                content[at] ^= 1 << draw.randrange(8)
            case 1:
                del content[at : at + draw.randrange(1, 40)]
            case 2:
                content[at:at] = content[at : at + draw.randrange(1, 40)]
            case 3 if draw.random() < 0.2:
                del content[at:]
        content = content or bytearray(b"x")
    return bytes(content)


def zip_members(members, draw):
    """Zip files, one of them under a hostile name, twice, as a link, or empty."""
    members = list(members.items())
    at = draw.randrange(len(members))
    name, content = members[at]
    entry = zipfile.ZipInfo(name)  # its name is stored as it is
    match draw.randrange(5):
        case 0:
            entry.filename = draw.choice(HOSTILE)
        case 1:
            members.append((name, content))
        case 2:
            entry.external_attr = draw.choice((0o120777, 0o010777, 0o060777)) << 16
        case 3:
            content = b"\0" * draw.choice((0, 200_000))
        case 4:
            members.append((draw.choice(HOSTILE) or "none", content))
    members[at] = (entry, content)
    return members


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that stand twice
        for entry, content in members:
            file.writestr(entry, content)


def listing(folder):
    """All files below a folder, with what tells whether they were written."""
    paths = sorted(Path(folder).rglob("*"))
    return [(str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in paths]


def damage(package, members, whole, kind, draw):
    """Write a package anew, damaged."""
    words = json.loads(members["rdf.yaml"])
    match kind:
        case "words":
            (package / "rdf.yaml").write_text(json.dumps(change_words(words, draw)))
        case "folder":
            damaged = draw.choice(("rdf.yaml", "rdf.yaml", "rdf.yaml", "weights.onnx"))
            for name, content in members.items():
                content = change_bytes(content, draw) if name == damaged else content
                (package / name).write_bytes(content)
        case "zip bytes":
            package.write_bytes(change_bytes(whole, draw))
        case "zip members":
            write_zip(package, zip_members(members, draw))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["words", "folder", "zip bytes", "zip members"])
@pytest.mark.parametrize(("origin", "count"), [("ours", 1000), ("theirs", 1000), ("old", 500)])
def test_whatever_comes_is_loaded_or_refused_and_nothing_is_written(
    tmp_path, monkeypatch, request, our_words, their_words, kind, origin, count
):
    draw = random.Random(request.node.name)
    words = {"ours": our_words, "theirs": their_words[0], "old": their_words[1]}[origin]
    load = load_package if origin == "ours" else load_foreign
    home, package = tmp_path / "home", tmp_path / "package"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    members = {"rdf.yaml": json.dumps(words).encode(), "weights.onnx": b"weights"}
    if kind.startswith("zip"):
        write_zip(package, members.items())
        whole = package.read_bytes()
    else:
        package.mkdir()
        whole = b""
        for name, content in members.items():
            (package / name).write_bytes(content)
    load(package)
    sentences = []
    for _ in range(count):
        damage(package, members, whole, kind, draw)
        before = listing(tmp_path)
        try:
            load(package)
        except PackageError as error:
            sentences.append(str(error))
        assert listing(tmp_path) == before
    assert os.listdir(home) == []
    assert all(sentence.startswith(str(package)) for sentence in sentences)
    assert 0.3 * count < len(sentences) <= count
