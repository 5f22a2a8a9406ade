"""Pairs of files: what is told from their heads is what reading them gives, box by box."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from spoco_zoo.datasets import find_pairs
from spoco_zoo.errors import ImageError
from spoco_zoo.images import read_image, read_labels
from spoco_zoo.labels import KNOWN_BACKGROUND
from spoco_zoo.spec import DataSettings

VOLUME = {"axes": "ZYX", "PhysicalSizeZ": 0.3, "PhysicalSizeY": 0.1, "PhysicalSizeX": 0.1}


def find(root, n_axes=None, split="train", **words):
    return find_pairs(root, split, DataSettings(**words), n_axes)


def assert_boxes_are_cuts(source, random):
    """Boxes, of whatever place and step through the file, are parts of the whole."""
    pixels, labels = source.read()
    assert pixels.shape == (source.channels, *source.space)
    assert labels.shape == source.space
    assert pixels.dtype.newbyteorder("=") == source.image.dtype.newbyteorder("=")
    for _ in range(5):
        ends = [sorted(random.choice(n + 1, 2, replace=False)) for n in source.space]
        box = tuple(slice(int(a), int(b)) for a, b in ends)
        some, ids = source.read(box)
        assert (some == pixels[(slice(None), *box)]).all()
        assert (ids == labels[box]).all()
        assert some.dtype == pixels.dtype
    slabs = list(source.slabs())
    assert sum(source.read_labels(slab).size for slab in slabs) == labels.size


@pytest.mark.parametrize(
    ("name", "shape", "words", "n_axes", "is_mapped"),
    [
        ("grey.tif", (20, 30), {}, 2, True),
        ("zip.tif", (20, 30), {"compression": "zlib"}, 2, False),
        ("rgb.tif", (20, 30, 3), {"photometric": "rgb"}, 2, True),
        ("planes.tif", (3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}, 2, True),
        ("volume.ome.tif", (5, 20, 30), {"metadata": VOLUME}, 3, True),
        ("pages.tif", (5, 20, 30), {"compression": "zlib"}, 3, False),
        ("both.ome.tif", (2, 5, 20, 30), {"metadata": {"axes": "CZYX"}}, 3, True),
        ("zc.tif", (5, 2, 20, 30), {"imagej": True, "metadata": {"axes": "ZCYX"}}, 3, True),
        ("big.tif", (20, 30), {"byteorder": ">"}, 2, True),
    ],
)
def test_a_tiff_is_what_reading_it_gives(
    tmp_path, write_tiff, random, name, shape, words, n_axes, is_mapped
):
    images, labels = tmp_path / "train/images", tmp_path / "train/labels"
    kind = np.uint8 if "imagej" not in words else np.uint16
    write_tiff(images / name, random.integers(0, 250, shape).astype(kind), **words)
    space = {2: (20, 30), 3: (5, 20, 30)}[n_axes]
    write_tiff(labels / "x.tif", random.integers(0, 9, space).astype(np.uint32))
    (labels / "x.tif").rename(labels / name)
    (source,) = find(tmp_path, n_axes)
    assert source.name == name.split(".")[0]
    assert source.space == space
    assert source.image.is_mapped is is_mapped
    image = read_image(images / name, n_axes)
    assert (source.read()[0] == image.pixels).all()
    assert source.scale_um == image.scale_um
    assert (source.read()[1] == read_labels(labels / name)).all()
    assert_boxes_are_cuts(source, random)
    assert_boxes_are_cuts(pickle.loads(pickle.dumps(source)), random)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (3, 20, 30)])
def test_npy_is_mapped_and_may_be_boolean(tmp_path, random, shape):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    pixels = random.random(shape).astype(np.float32)
    np.save(tmp_path / "train/images/a.npy", pixels)
    np.save(tmp_path / "train/labels/a.npy", np.eye(20, 30, dtype=bool))
    (source,) = find(tmp_path, 2)
    assert source.is_mapped
    assert_boxes_are_cuts(source, random)
    assert source.read()[1].dtype == np.uint32


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("I;16", 1)])
def test_png_with_labels_in_a_palette(tmp_path, write_png, random, mode, channels):
    shape = (20, 30) if channels == 1 else (20, 30, channels)
    kind = np.uint16 if mode == "I;16" else np.uint8
    write_png(tmp_path / "train/images/a.png", random.integers(0, 250, shape).astype(kind))
    ids = random.integers(0, 5, (20, 30)).astype(np.uint8)
    write_png(tmp_path / "train/labels/a.png", ids, palette=random.bytes(768))
    (source,) = find(tmp_path, 2)
    assert source.channels == channels
    assert not source.is_mapped
    assert (source.read()[1] == ids).all()
    assert_boxes_are_cuts(source, random)


def test_labels_may_be_larger_than_16_bits(tmp_path, write_tiff):
    ids = np.array([[0, 70_000], [4_000_000_000, 65_535]], np.uint32)
    write_tiff(tmp_path / "train/images/a.tif", np.eye(2))
    write_tiff(tmp_path / "train/labels/a.tif", ids)
    (source,) = find(tmp_path, 2)
    assert (source.read()[1] == ids).all()
    np.save(tmp_path / "train/labels/b.npy", ids.astype(np.uint64) * 10)
    np.save(tmp_path / "train/images/b.npy", np.eye(2))
    path = tmp_path / "train/labels/b.npy"
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)[1].read()
    assert str(error.value) == (
        f"{path}: the highest label is 40000000000: expected at most 4294967295; "
        "renumber the labels from 0"
    )


def test_minus_one_is_unlabeled_and_nothing_else_is_below_0(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    for name, ids in (("a", [[-1, 0], [3, 3]]), ("b", [[-2, -1], [0, 0]])):
        np.save(tmp_path / f"train/images/{name}.npy", np.eye(2))
        np.save(tmp_path / f"train/labels/{name}.npy", np.array(ids))
    fine, wrong = find(tmp_path, 2)
    for box in ((slice(0, 2), slice(0, 2)), None):  # out of the file, or read as a whole
        assert fine.read(box)[1].tolist() == [[-1, 0], [3, 3]]
        with pytest.raises(ImageError) as error:
            wrong.read(box)
        assert str(error.value) == (
            f"{wrong.labels.where}: the lowest label is -2: expected 0 or more; "
            "renumber the labels from 0"
        )


def test_what_boxes_hold_is_checked_like_whole_images(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    image, words = tmp_path / "train/images/a.npy", tmp_path / "train/images/b.npy"
    np.save(image, np.array([[1.0, np.nan], [np.inf, 0.0]]))
    np.save(words, np.array([[1j, 0]]))
    np.save(tmp_path / "train/labels/a.npy", np.eye(2, dtype=int))
    np.save(tmp_path / "train/labels/b.npy", np.ones((1, 2), int))
    nan, complex_numbers = find(tmp_path, 2)
    with pytest.raises(ImageError) as error:
        nan.read((slice(0, 2), slice(0, 2)))
    assert str(error.value) == (
        f"{image}: 2 of 4 pixels are NaN or infinite: replace them by finite values"
    )
    with pytest.raises(ImageError) as error:
        complex_numbers.read((slice(0, 1), slice(0, 2)))
    assert str(error.value) == f"{words}: pixels are complex128: expected integers or floats"


def damage(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_damaged_file_is_told_as_when_it_is_read_alone(tmp_path, write_tiff, part):
    for folder in ("images", "labels"):
        write_tiff(tmp_path / "train" / folder / "a.tif", np.eye(20, dtype=np.uint8))
    path = tmp_path / "train" / part / "a.tif"
    damage(path)
    read = read_image if part == "images" else read_labels
    with pytest.raises(ImageError) as alone:
        read(path)
    with pytest.raises(ImageError) as found:
        find(tmp_path, 2)[0].read()
    assert str(found.value) == str(alone.value)


def test_colour_is_no_label_image(tmp_path, write_png):
    write_png(tmp_path / "train/images/a.png", np.zeros((8, 8), np.uint8))
    path = tmp_path / "train/labels/a.png"
    write_png(path, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == (
        f"{path}: label shape is (8, 8, 3): expected (y, x) or (z, y, x) with one integer a "
        "pixel; a colour picture holds no labels"
    )


def test_pixel_sizes_may_be_missing_or_near_each_other_but_not_of_another_scale(
    tmp_path, write_tiff
):
    for name, size in (("a", None), ("b", 0.2), ("c", 0.3), ("d", 0.5)):
        metadata = {"axes": "YX"}
        if size is not None:
            metadata |= {"PhysicalSizeY": size, "PhysicalSizeX": 0.2}
        for part in ("images", "labels"):
            path = tmp_path / "train" / part / f"{name}.ome.tif"
            write_tiff(path, np.eye(8, dtype=np.uint8), metadata=metadata)
    with pytest.raises(ImageError) as error:
        find(tmp_path, 2)
    assert str(error.value) == (
        f"{tmp_path / 'train/images/d.ome.tif'}: a pixel is 0.5 x 0.2 µm, in b 0.2 x 0.2 µm: "
        "expected sizes within a factor of 2; resample the images to one size"
    )
    for part in ("images", "labels"):
        (tmp_path / "train" / part / "d.ome.tif").unlink()
    sizes = [source.scale_um for source in find(tmp_path, 2)]
    assert sizes == [None, (0.2, 0.2), (0.3, 0.2)]


def test_labels_say_the_pixel_size_where_the_image_does_not(tmp_path, write_tiff):
    write_tiff(tmp_path / "train/images/a.tif", np.zeros((5, 8, 8), np.uint8))
    write_tiff(tmp_path / "train/labels/a.ome.tif", np.zeros((5, 8, 8), np.uint8), metadata=VOLUME)
    (source,) = find(tmp_path)
    assert source.scale_um == (0.3, 0.1, 0.1)
    assert source.space == (5, 8, 8)


def test_images_and_volumes_do_not_mix(tmp_path, write_tiff):
    for part in ("images", "labels"):
        write_tiff(tmp_path / f"train/{part}/a.tif", np.zeros((8, 8), np.uint8))
        write_tiff(tmp_path / f"train/{part}/b.tif", np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'train/images/b.tif'}: image has 3 space axes, a has 2: "
        "all images must have as many"
    )


def test_a_folder_of_nothing_says_what_is_expected(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'train/images'}: no image found: expected files ending in "
        ".tif, .tiff, .png, .npy"
    )


def test_a_folder_without_any_layout_says_which_there_are(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds no images that are understood: expected train/images and "
        "train/labels, HDF5 files in train, or the layout of cvppp, cvppp_hdf5, cityscapes"
    )
    (tmp_path / "mine" / "images").mkdir(parents=True)
    with pytest.raises(ImageError) as error:
        find(tmp_path / "mine")
    assert str(error.value) == (
        f"{tmp_path / 'mine'}: holds images and labels of no split: expected train/images and "
        "train/labels; move most of them into train and the others, labelled as well as you can, "
        "into val"
    )
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ImageError) as error:
        find(nowhere)
    assert str(error.value) == (
        f"{nowhere / 'train/images'}: no such folder: expected train/images and train/labels "
        "with files of equal names"
    )


def test_a_layout_can_be_forced(tmp_path, write_tiff):
    write_tiff(tmp_path / "train/images/a.tif", np.eye(8, dtype=np.uint8))
    with pytest.raises(ImageError) as error:
        find(tmp_path, layout="hdf5")
    assert str(error.value) == (
        f"{tmp_path / 'train'}: no HDF5 file found: expected files ending in .h5, .hdf5, .hdf, .hd5"
    )


def write_outlines(path):
    square = [[10, 5], [20, 5], [20, 15], [10, 15], [10, 5]]
    corner = [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}} if name else {},
        }
        for ring, name in ((square, None), (corner, "Background"))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_outlines_are_labels_too(tmp_path, write_tiff, random):
    write_tiff(tmp_path / "train/images/a.tif", random.integers(0, 9, (20, 30)).astype(np.uint8))
    write_outlines(tmp_path / "train/labels/a.geojson")
    for n_axes in (2, None):
        (source,) = find(tmp_path, n_axes)
        labels = source.read()[1]
        assert (labels[5:15, 10:20] == 1).all()
        assert np.unique(labels).tolist() == [KNOWN_BACKGROUND, 0, 1]
        assert_boxes_are_cuts(source, random)
    # a number for background is one of label images, and outlines have no numbers
    marked = replace(source, background_label=1)
    assert (marked.read()[1] == labels).all()


def test_a_number_of_label_images_may_be_known_background(tmp_path, write_tiff, random):
    ids = random.integers(0, 4, (20, 30)).astype(np.uint8)
    for part in ("images", "labels"):
        write_tiff(tmp_path / f"train/{part}/a.tif", ids)
    source = replace(find(tmp_path, 2)[0], background_label=3)
    assert (source.read()[1] == np.where(ids == 3, KNOWN_BACKGROUND, ids.astype(int))).all()
    assert_boxes_are_cuts(source, random)
