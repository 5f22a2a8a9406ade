"""OME-Zarr images and labels, in both formats, beside each other or one in the other."""

import builtins
import json

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo.datasets import find_pairs
from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.spec import DataSettings


def find(root, n_axes=None):
    return find_pairs(root, "train", DataSettings(), n_axes)


def axis(letter, unit):
    kind = {"t": "time", "c": "channel"}.get(letter, "space")
    return {"name": letter, "type": kind} | ({"unit": unit} if kind == "space" and unit else {})


def write(path, array, axes, scale=None, version=2, unit="micrometer"):
    group = zarr.create_group(store=str(path), zarr_format=version, overwrite=True)
    chunks = tuple(max(n // 2, 1) for n in array.shape)
    for level in (0, 1):
        step = (slice(None, None, 1 + level),) * array.ndim
        stored = group.create_array(
            str(level), shape=array[step].shape, chunks=chunks, dtype=array.dtype
        )
        stored[...] = array[step]
    transform = [{"type": "scale", "scale": scale or [1.0] * array.ndim}]
    named = [axis(letter, unit) for letter in axes]
    sets = [{"path": "0", "coordinateTransformations": transform}, {"path": "1"}]
    meta = {"multiscales": [{"axes": named, "datasets": sets}]}
    group.attrs.update(meta if version == 2 else {"ome": meta})


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("axes", "shape", "n_axes", "order"),
    [
        ("yx", (6, 8), 2, (None, 0, 1)),
        ("cyx", (3, 6, 8), 2, (0, 1, 2)),
        ("tczyx", (1, 2, 4, 6, 8), 3, (1, 2, 3, 4)),
        ("zcyx", (4, 2, 6, 8), 3, (1, 0, 2, 3)),
        ("czyx", (3, 1, 6, 8), 2, (0, 2, 3)),
    ],
)
def test_the_finest_level_is_read(tmp_path, random, version, axes, shape, n_axes, order):
    pixels = random.integers(0, 60_000, shape).astype(np.uint16)
    space = shape[-2:] if n_axes == 2 else (4, 6, 8)
    ids = random.integers(0, 70_000, space).astype(np.uint32)
    scale = [0.3 if a == "z" else 0.1 for a in axes]
    write(tmp_path / "train/images/one.ome.zarr", pixels, axes, scale, version)
    write(tmp_path / "train/labels/one.ome.zarr", ids, "zyx"[-n_axes:], None, version)
    (source,) = find(tmp_path, n_axes)
    assert source.name == "one"
    assert source.is_mapped
    got, labels = source.read()
    kept = [n for n in order if n is not None]
    alone = [n for n in range(len(shape)) if n not in kept]
    expected = pixels.transpose([*alone, *kept]).reshape(source.channels, *space)
    assert (got == expected).all()
    assert (labels == ids).all()
    assert source.scale_um == (0.3, 0.1, 0.1)[-n_axes:]
    box = tuple(slice(n // 3, n - 1) for n in space)
    some, part = source.read(box)
    assert (some == got[(slice(None), *box)]).all()
    assert (part == labels[box]).all()


@pytest.mark.parametrize(
    ("unit", "expected"), [("nanometer", (0.004, 0.005)), (None, None), ("furlong", None)]
)
def test_units_count(tmp_path, unit, expected):
    ids = np.zeros((6, 8), np.uint8)
    for part in ("images", "labels"):
        write(tmp_path / f"train/{part}/one.ome.zarr", ids, "yx", [4.0, 5.0], unit=unit)
    (source,) = find(tmp_path, 2)
    assert source.scale_um == (None if expected is None else pytest.approx(expected))


def test_labels_may_be_in_the_image_or_be_a_tiff(tmp_path, random, write_tiff):
    image = tmp_path / "train/images/one.zarr"
    ids = random.integers(0, 9, (6, 8)).astype(np.uint16)
    write(image, ids, "yx")
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    told = "expected one label image in it, or a labels folder beside the images folder"
    assert str(error.value) == f"{image}: holds no labels: {told}"
    zarr.create_group(store=str(image / "labels"), zarr_format=2).attrs["labels"] = ["cells"]
    write(image / "labels/cells", ids + 1, "yx")
    (source,) = find(tmp_path)
    assert (source.read()[1] == ids + 1).all()
    zarr.open_group(store=str(image / "labels")).attrs["labels"] = ["cells", "nuclei"]
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == f"{image}: holds the labels cells, nuclei: {told}"
    write_tiff(tmp_path / "train/labels/one.tif", ids + 2)
    (source,) = find(tmp_path)
    assert (source.read()[1] == ids + 2).all()


def test_what_is_no_ome_zarr_is_refused(tmp_path):
    ids = np.zeros((6, 8), np.uint8)
    for part in ("images", "labels"):
        write(tmp_path / f"train/{part}/one.zarr", ids, "yx")
    label = tmp_path / "train/labels/one.zarr"
    write(label, np.zeros((3, 6, 8), np.uint8), "cyx")
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{label}: label axes are CYX of shape (3, 6, 8): expected (y, x) or (z, y, x) with one "
        "integer a pixel"
    )
    attributes = label / ".zattrs"
    words = json.loads(attributes.read_text())
    words["multiscales"][0]["datasets"][0]["path"] = "9"
    attributes.write_text(json.dumps(words))
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{label}: its level 9 cannot be read: expected a Zarr array; copy it again"
    )
    attributes.write_text("{}")
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{label}: has no complete multiscales metadata: expected OME-Zarr 0.4 or 0.5 "
        "with axes and a scale"
    )
    (label / ".zgroup").unlink()
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value).startswith(f"{label}: cannot be read as OME-Zarr (")
    assert str(error.value).endswith("): expected a group with multiscales")


def test_without_zarr_the_error_says_what_to_install(tmp_path, monkeypatch):
    for part in ("images", "labels"):
        write(tmp_path / f"train/{part}/one.zarr", np.zeros((6, 8), np.uint8), "yx")
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "zarr":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError) as error:
        find(tmp_path)
    assert str(error.value) == "OME-Zarr needs zarr: pip install 'spoco-zoo[volumes]'"
