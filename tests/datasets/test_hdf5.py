"""HDF5 as PlantSeg and pytorch-3dunet write it."""

import builtins

import numpy as np
import pytest

pytest.importorskip("h5py")

from spoco_zoo.datasets import find_pairs
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.spec import DataSettings


def find(root, n_axes=None, split="train", **words):
    return find_pairs(root, split, DataSettings(**words), n_axes)


@pytest.mark.parametrize(
    ("raw", "label", "n_axes", "channels", "space"),
    [
        ((4, 6, 8), (4, 6, 8), 3, 1, (4, 6, 8)),
        ((2, 4, 6, 8), (4, 6, 8), 3, 2, (4, 6, 8)),
        ((5, 4, 6, 8), (1, 4, 6, 8), 3, 5, (4, 6, 8)),
        ((1, 6, 8), (1, 6, 8), 3, 1, (1, 6, 8)),
        ((6, 8), (6, 8), 2, 1, (6, 8)),
        ((1, 6, 8), (1, 6, 8), 2, 1, (6, 8)),
        ((3, 1, 6, 8), (1, 6, 8), 2, 3, (6, 8)),
        ((3, 6, 8), (6, 8), 2, 3, (6, 8)),
        ((3, 1, 6, 8), (1, 6, 8), None, 3, (6, 8)),
        ((4, 6, 8), (4, 6, 8), None, 1, (4, 6, 8)),
    ],
)
def test_shapes_are_understood(tmp_path, write_hdf5, random, raw, label, n_axes, channels, space):
    pixels = random.integers(0, 60_000, raw).astype(np.uint16)
    ids = random.integers(0, 900, label).astype(np.uint16)
    write_hdf5(tmp_path / "train/one.h5", [0.3, 0.1, 0.1], raw=pixels, label=ids)
    (source,) = find(tmp_path, n_axes)
    assert (source.name, source.channels, source.space) == ("one", channels, space)
    assert source.is_mapped
    got, labels = source.read()
    assert (got == pixels.reshape(channels, *space)).all()
    assert (labels == ids.reshape(space)).all()
    assert source.scale_um == (0.3, 0.1, 0.1)[-len(space) :]
    box = tuple(slice(n // 2, n) for n in space)
    some, part = source.read(box)
    assert (some == got[(slice(None), *box)]).all()
    assert (part == labels[box]).all()


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".hdf", ".hd5", ".H5"])
def test_all_suffixes_are_found_and_files_are_sorted(tmp_path, write_hdf5, suffix):
    for name in ("b", "a", ".hidden"):
        write_hdf5(tmp_path / f"val/{name}{suffix}", raw=np.eye(4), label=np.eye(4, dtype=int))
    assert [source.name for source in find(tmp_path, 2, "val")] == ["a", "b"]
    assert find(tmp_path, 2, "val")[0].scale_um is None


def test_data_sets_can_have_other_names(tmp_path, write_hdf5):
    path = tmp_path / "train/one.h5"
    unknown = np.array([[-1, 0], [5, 900]], np.int32)
    write_hdf5(path, volumes__raw=np.eye(2), volumes__label_with_ignore=unknown)
    words = {"hdf5_raw": "volumes/raw", "hdf5_label": "volumes/label_with_ignore"}
    (source,) = find(tmp_path, 2, **words)
    assert source.read()[1].tolist() == unknown.tolist()
    assert source.image.where == f"{path}:volumes/raw"
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == (
        f"{path}: holds no data set raw, only volumes/label_with_ignore, volumes/raw: "
        "set data.hdf5_raw and data.hdf5_label in the spec"
    )
    with pytest.raises(ImageError, match="holds no data set volumes, only"):
        find(tmp_path, 2, hdf5_raw="volumes")


def test_an_empty_file_says_that_it_holds_nothing(tmp_path, write_hdf5):
    path = write_hdf5(tmp_path / "train/one.h5")
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == (
        f"{path}: holds no data set raw, only nothing: "
        "set data.hdf5_raw and data.hdf5_label in the spec"
    )


@pytest.mark.parametrize(
    ("raw", "label", "sentence"),
    [
        (
            (4, 6, 8),
            (5, 6, 8),
            "{path}:label: labels have shape (5, 6, 8), the image has (4, 6, 8): "
            "both must show the same pixels",
        ),
        (
            (6, 8, 3),
            (6, 8),
            "{path}:raw: shape is (6, 8, 3), with channels last: expected them first; move that "
            "axis and write the file again",
        ),
        (
            (2, 3, 6, 8),
            (6, 8),
            "{path}:raw: shape is (2, 3, 6, 8): expected (y, x) or (z, y, x), "
            "with channels before them if there are any",
        ),
        (
            (8,),
            (6, 8),
            "{path}:raw: shape is (8,): expected (y, x) or (z, y, x), "
            "with channels before them if there are any",
        ),
        (
            (4, 6, 8),
            (2, 4, 6, 8),
            "{path}:label: label shape is (2, 4, 6, 8): expected (y, x) or (z, y, x) with one "
            "integer a pixel",
        ),
        (
            (8,),
            (8,),
            "{path}:label: label shape is (8,): expected (y, x) or (z, y, x) with one "
            "integer a pixel",
        ),
        (
            (4, 6, 8),
            (4, 6, 8),
            "{path}:raw: image has 3 space axes: expected 2; set net.dimensions in the spec",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path, write_hdf5, raw, label, sentence):
    path = write_hdf5(tmp_path / "train/a.h5", raw=np.zeros(raw), label=np.zeros(label, int))
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == sentence.format(path=path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "train/a.h5"
    path.parent.mkdir()
    path.write_bytes(b"no HDF5")
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == (
        f"{path}: cannot be read as HDF5: expected a whole file; write it again"
    )


@pytest.mark.parametrize("sizes", [[0, 0, 0], [1.0], b"0.1"])
def test_a_voxel_size_that_is_none_is_not_taken(tmp_path, write_hdf5, sizes):
    ids = np.zeros((4, 6, 8), int)
    write_hdf5(tmp_path / "train/a.h5", sizes, raw=ids, label=ids)
    assert find(tmp_path, 3)[0].scale_um is None


def test_without_h5py_the_error_says_what_to_install(tmp_path, write_hdf5, monkeypatch):
    write_hdf5(tmp_path / "train/a.h5", raw=np.eye(2), label=np.eye(2, dtype=int))
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError) as error:
        find(tmp_path, 2)
    assert str(error.value) == "HDF5 needs h5py: pip install 'spoco-zoo[data]'"
