"""Files appear whole under their name, or not at all."""

import errno
import os
import stat

import pytest

from spoco_zoo.errors import OutputError
from spoco_zoo.files import refuse_existing, write_bytes, write_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_bytes_read_back_as_written_in_a_folder_that_was_not_there(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    write_bytes(path, b"\x00\xff words")
    assert path.read_bytes() == b"\x00\xff words"
    assert names_in(path.parent) == ["file.bin"]


def test_the_file_has_no_name_before_it_is_complete(tmp_path):
    path = tmp_path / "file.bin"
    seen = []

    def write(file):
        file.write(b"half")
        seen.append(path.exists())

    write_whole(path, write)
    assert seen == [False]
    assert path.read_bytes() == b"half"


def test_what_is_written_is_handed_to_the_disk_before_it_is_named(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    calls = []
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(path.exists()))
    write_bytes(path, b"words")
    assert calls == [False]


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError) as error:
        write_bytes(path, b"new")
    assert str(error.value) == f"{path}: exists already: choose another name or add --overwrite"
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


def test_an_existing_file_is_replaced_on_request(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old and longer")
    write_bytes(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_name_is_never_refused(tmp_path, overwrite):
    refuse_existing(tmp_path / "new", overwrite=overwrite)
    assert names_in(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError) as error:
        write_bytes(path, b"new", overwrite=True)
    assert str(error.value) == (
        f"{path}: cannot be written (No space left on device): free space or choose another folder"
    )
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_stop_in_the_middle_leaves_nothing(tmp_path, failure):
    def write(file):
        file.write(b"half")
        raise failure

    with pytest.raises(failure):
        write_whole(tmp_path / "file.bin", write)
    assert names_in(tmp_path) == []


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    path = tmp_path / "taken" / "file.bin"
    with pytest.raises(OutputError) as error:
        write_bytes(path, b"words")
    reason = os.strerror(errno.EEXIST)
    assert str(error.value) == (
        f"{path}: cannot be written ({reason}): free space or choose another folder"
    )


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OutputError) as error:
        write_bytes(path, b"words", overwrite=True)
    reason = os.strerror(errno.EISDIR)
    assert str(error.value) == (
        f"{path}: cannot be written ({reason}): free space or choose another folder"
    )
    assert names_in(tmp_path) == ["taken"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_the_rights_are_those_of_any_new_file(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file.bin", b"words")
        after = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == rights
    assert after == mask
