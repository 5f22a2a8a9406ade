"""Arrays on disk between steps: whole, checked, and the same bytes for the same arrays."""

import errno
import os
import time

import numpy as np
import pytest

from spoco_zoo.errors import OutputError
from spoco_zoo.scratch import DamagedFileError, is_whole, read_arrays, write_arrays


def some_arrays():
    random = np.random.default_rng(0)
    return {
        "labels": random.integers(0, 3, (7, 11)).astype(np.uint32),
        "centers": random.normal(size=(5, 3)).astype(np.float32),
        "nothing": np.zeros((0, 2), np.int64),
        "single": np.array(7),
        "words": np.array(["a", "größer"]),
    }


def test_what_is_written_is_read_name_by_name(tmp_path):
    path, arrays = tmp_path / "folder" / "a.zip", some_arrays()
    write_arrays(path, arrays)
    assert is_whole(path)
    for name, array in arrays.items():
        (found,) = read_arrays(path, name)
        assert (found == array).all()
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
    first, second = read_arrays(path, "single", "labels")
    assert (first, second.shape) == (7, (7, 11))
    with np.load(path) as opened:  # by NumPy too, since it is its own format
        assert set(opened) == set(arrays)
    assert os.listdir(path.parent) == ["a.zip"]


def test_equal_arrays_make_equal_bytes_at_any_time(tmp_path, monkeypatch):
    write_arrays(tmp_path / "a.zip", some_arrays())
    later = time.time() + 1e8
    monkeypatch.setattr(time, "time", lambda: later)
    write_arrays(tmp_path / "b.zip", some_arrays())
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_arrays_in_any_order_of_memory_are_the_same_arrays(tmp_path):
    turned = np.asfortranarray(np.arange(12).reshape(3, 4))
    write_arrays(tmp_path / "a.zip", {"a": turned, "b": turned[::-1, ::2]})
    a, b = read_arrays(tmp_path / "a.zip", "a", "b")
    assert (a == turned).all()
    assert (b == turned[::-1, ::2]).all()


def test_no_damage_of_a_byte_gives_other_arrays(tmp_path):
    path, arrays = tmp_path / "a.zip", some_arrays()
    del arrays["words"], arrays["centers"]
    write_arrays(path, arrays)
    content = path.read_bytes()
    found = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        whole = is_whole(path)
        try:
            read = read_arrays(path, *arrays)
        except DamagedFileError:
            # else a step would be taken for done that nobody can read
            assert not whole, place
            found += 1
            continue
        # what is left are dates, rights and bits that fill a byte
        for one, other in zip(read, arrays.values(), strict=True):
            assert (one == other).all()
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert found > 0.6 * len(content)


@pytest.mark.parametrize("kept", [0, 1, 100, -20])
def test_what_ends_too_early_is_damaged(tmp_path, kept):
    path = tmp_path / "a.zip"
    write_arrays(path, some_arrays())
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(path)
    path.write_bytes(path.read_bytes()[:kept])
    assert not is_whole(path)
    with pytest.raises(DamagedFileError):
        read_arrays(path, "labels")


def test_what_is_not_there_is_damaged_too(tmp_path):
    path = tmp_path / "a.zip"
    assert not is_whole(path)
    with pytest.raises(DamagedFileError):
        read_arrays(path, "labels")
    write_arrays(path, {"a": np.zeros(3)})
    with pytest.raises(DamagedFileError):
        read_arrays(path, "b")
    path.unlink()
    path.mkdir()
    assert not is_whole(path)


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    write_arrays(path, {"a": np.zeros(3)})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as error:
        write_arrays(path, {"a": np.ones(3)})
    assert str(error.value) == (
        f"{path}: cannot be written (No space left on device): free space or choose another folder"
    )
    assert (read_arrays(path, "a")[0] == 0).all()
    assert os.listdir(tmp_path) == ["a.zip"]
