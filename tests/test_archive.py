"""What a folder or a zip of a stranger may hold, and what is refused before it is read."""

import os
import stat
import zipfile

import pytest

from spoco_zoo import archive
from spoco_zoo.archive import check_names, check_zip, read_description, read_member
from spoco_zoo.errors import PackageError


def refused(call, *arguments):
    with pytest.raises(PackageError) as error:
        call(*arguments)
    return str(error.value)


@pytest.fixture
def pack(tmp_path):
    """Zip words under names or under whole entries."""

    def write(*entries, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "packed.zip"
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, words in entries:
                file.writestr(name, words)
        return path

    return write


@pytest.fixture
def describe(tmp_path):
    def write(text):
        (tmp_path / "rdf.yaml").write_text(text)
        return tmp_path

    return write


# --- names


OUTSIDE = ["../a", "a/../../b", "/etc/hostname", "\\\\server\\share", "C:\\a", "C:a", "", "..", "."]
OUTSIDE += ["./a", "a//b", "a\0b", "a\nb", "https://example.org/a", "a?", "a*", "a|b", '"a"', "<a"]
ELSEWHERE = [
    "CON",
    "con.txt",
    "nul",
    "a/NUL.onnx",
    "Aux.yaml",
    "COM1",
    "lpt9.npy",
    "a.",
    "a ",
    "b/a.",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_is_no_path_inside_is_refused(tmp_path, name):
    told = f"{tmp_path}: names the file {name!r}: expected a path inside the package"
    assert refused(check_names, tmp_path, ["good", name]) == told
    assert refused(read_member, tmp_path, name) == told


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_windows_cannot_hold_is_refused(tmp_path, name):
    told = f"{tmp_path}: names the file {name!r}, which Windows cannot hold: rename it"
    assert refused(check_names, tmp_path, ["good", name]) == told
    assert refused(read_member, tmp_path, name) == told


def test_names_that_are_fine_are_left_alone(tmp_path):
    check_names(tmp_path, ["a", "b/a", "b/c", ".hidden", "console", "nulls.npy", "com", "ö ä.tif"])


def test_names_that_differ_in_case_alone_are_refused(tmp_path):
    assert refused(check_names, tmp_path, ["b", "Weights.onnx", "weights.ONNX"]) == (
        f"{tmp_path}: holds the files 'Weights.onnx' and 'weights.ONNX', "
        "which are one file on some systems: rename one of them"
    )


# --- zips as a whole


@pytest.mark.parametrize("name", ["../a", "/a", "b\\..\\a", "CON", "a.", "a?"])
def test_a_hostile_name_in_a_zip_is_refused_though_nobody_reads_it(pack, name):
    path = pack(("rdf.yaml", "a: 1"), (name, "words"))
    assert refused(check_zip, path).startswith(f"{path}: names the file {name!r}")


def test_two_files_of_one_name_are_refused_though_nobody_reads_them(tmp_path):
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", "2")
    assert refused(check_zip, path) == (
        f"{path}: holds 2 files 'a': expected exactly one, "
        "at the top of the zip; export the package again"
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device_in_a_zip_is_refused(pack, kind):
    entry = zipfile.ZipInfo("a")
    entry.external_attr = (kind | 0o777) << 16
    path = pack((entry, "/etc/hostname"))
    assert refused(check_zip, path) == (
        f"{path}: 'a' is a link or a device: expected plain files; zip the files themselves"
    )


def test_folders_in_a_zip_are_no_harm(pack):
    entry = zipfile.ZipInfo("inner/")
    entry.external_attr = (stat.S_IFDIR | 0o755) << 16
    check_zip(pack((entry, b""), ("inner/a", "words"), ("rdf.yaml", "a: 1")))


def test_files_that_are_bombs_together_are_refused(pack):
    names = [f"part{number}" for number in range(10)]
    path = pack(*((name, b"\0" * 100_000) for name in names))
    with zipfile.ZipFile(path) as file:
        packed = sum(info.compress_size for info in file.infolist())
    assert refused(check_zip, path) == (
        f"{path}: unpacks to 1000000 bytes from {packed} in a file of {path.stat().st_size}: "
        "refused as a zip bomb"
    )


def test_one_large_bomb_among_harmless_files_is_refused(pack, monkeypatch):
    monkeypatch.setattr(archive, "_LARGE", 1_000_000)
    others = [(f"part{number}", os.urandom(20_000)) for number in range(10)]
    check_zip(pack(*others, ("a", b"\0" * 1_000_000)))
    path = pack(*others, ("a", b"\0" * 1_000_001))
    with zipfile.ZipFile(path) as file:
        packed = file.getinfo("a").compress_size
    assert refused(check_zip, path) == (
        f"{path}: 'a' unpacks to 1000001 bytes from {packed}: refused as a zip bomb"
    )


def test_no_zip_of_terabytes_is_taken(pack):
    path = pack(("a", os.urandom(100)), compression=zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = b"\xfe\xff\xff\xff" * 2  # both sizes
    path.write_bytes(content)
    assert refused(check_zip, path) == (
        f"{path}: unpacks to 4294967294 bytes from 4294967294 in a file of {len(content)}: "
        "refused as a zip bomb"
    )


def test_a_zip_of_very_many_files_is_refused(pack, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_FILES", 10)
    check_zip(pack(*((str(number), b"") for number in range(10))))
    path = pack(*((str(number), b"") for number in range(11)))
    assert refused(check_zip, path) == (
        f"{path}: holds 11 files: expected at most 10; this is no model package"
    )


# --- YAML


DEEP = "very many values, or deep ones"


def _not_plain(folder, reason):
    return f"{folder / 'rdf.yaml'}: is not plain YAML ({reason}): the file is damaged"


@pytest.mark.parametrize(("depth", "fine"), [(48, True), (51, False)])
def test_deep_nesting_ends_before_the_stack_does(describe, depth, fine):
    folder = describe("a: " + "[" * depth + "]" * depth)
    if fine:
        assert read_description(folder)
    else:
        assert refused(read_description, folder) == _not_plain(folder, DEEP)


def test_very_many_values_are_refused(describe, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_VALUES", 20)
    assert len(read_description(describe("a: [" + "1," * 17 + "]"))["a"]) == 17
    folder = describe("a: [" + "1," * 18 + "]")
    assert refused(read_description, folder) == _not_plain(folder, DEEP)


def test_a_word_that_stands_twice_is_refused(describe):
    folder = describe("a: {b: 1, c: 2, b: 3}")
    assert refused(read_description, folder) == _not_plain(folder, "the word 'b' twice")
