"""Large inputs: what folders and patterns hold, each once, and nothing is dropped."""

from pathlib import Path

import pytest

from spoco_zoo.errors import ImageError
from spoco_zoo.large_inputs import find_inputs, is_large, is_zarr


def test_what_is_run_in_blocks(tmp_path):
    (tmp_path / "a.tif").touch()
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "zarr.json").touch()
    assert is_large([f"{tmp_path}/group"], "out", into=False)
    assert is_large(["s3://x/a"], "out", into=False)
    assert is_large(["a.zarr/"], "out", into=False)
    assert is_large([f"{tmp_path}/a.tif"], "out.OME.ZARR/", into=False)
    assert is_large([f"{tmp_path}/a.tif"], None, into=True)
    assert not is_large([f"{tmp_path}/a.tif"], "out", into=False)
    (tmp_path / "plates" / "a.zarr").mkdir(parents=True)
    assert is_large([f"{tmp_path}/plates"], "out", into=False)
    assert is_large([f"{tmp_path}/*/*.zarr"], "out", into=False)
    assert not is_large([f"{tmp_path}"], "out", into=False)
    assert not is_zarr(None)


@pytest.fixture
def images(tmp_path):
    names = ("one/a.ome.zarr", "two/a.zarr", "b.zarr")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    return [str(tmp_path / name) for name in names]


def test_a_folder_or_pattern_is_what_it_holds_of_ome_zarr(images, tmp_path):
    (tmp_path / "one" / ".b.zarr.part").mkdir()
    (tmp_path / "one" / ".b.zarr").mkdir()
    assert find_inputs([f"{tmp_path}/one", "s3://x/*.zarr"]) == [images[0], "s3://x/*.zarr"]
    assert find_inputs([f"{tmp_path}/*/*.zarr"]) == images[:2]
    assert find_inputs([images[2]]) == [images[2]]
    assert find_inputs([f"{tmp_path}/no/*.zarr"]) == [f"{tmp_path}/no/*.zarr"]
    for name in ("c.tif", "d.png", "e.txt", ".f.tif"):
        (tmp_path / "three").mkdir(exist_ok=True)
        (tmp_path / "three" / name).touch()
    assert find_inputs([f"{tmp_path}/three"]) == [f"{tmp_path}/three"]
    assert find_inputs([f"{tmp_path}/three/*"]) == [
        f"{tmp_path}/three/{n}" for n in ("c.tif", "d.png")
    ]


@pytest.mark.parametrize("name", ["c.tif", "overview.png", "d.npy"])
def test_a_folder_or_pattern_of_several_kinds_is_refused(images, tmp_path, name):
    (tmp_path / "one" / name).touch()
    for entry, pattern in (
        (f"{tmp_path}/one/", f"{tmp_path}/one/*.zarr"),
        (f"{tmp_path}/one/*", "*.zarr"),
    ):
        with pytest.raises(ImageError) as error:
            is_large([images[1], entry], "out", into=False)
        assert str(error.value) == (
            f"{entry}: holds OME-Zarr and other images: give a pattern for those that are meant, "
            f"such as '{pattern}'"
        )
    assert find_inputs([f"{tmp_path}/one/*.zarr"]) == images[:1]
    (tmp_path / "one" / name).rename(tmp_path / "one" / f".{name}")
    assert find_inputs([f"{tmp_path}/one"]) == images[:1]


def test_what_several_inputs_name_is_run_once(images, tmp_path):
    assert find_inputs([f"{tmp_path}/*/*.zarr", images[1], f"{tmp_path}/one"]) == images[:2]
    assert find_inputs([f"{tmp_path}/one", f"{images[0]}/", f"file://{images[0]}"]) == images[:1]
    assert find_inputs(["s3://x/a.zarr/", "s3://x/a.zarr"]) == ["s3://x/a.zarr/"]


def test_a_folder_that_cannot_be_read_is_told(images, tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ImageError) as error:
        find_inputs([f"{tmp_path}/one"])
    assert str(error.value) == (
        f"{tmp_path}/one: cannot be looked at (Permission denied): look at its disk and rights"
    )
