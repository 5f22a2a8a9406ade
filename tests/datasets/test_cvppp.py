"""Leaves: palettes, greys and colours, any number of digits, both splits, and HDF5."""

import numpy as np
import pytest

from spoco_zoo.datasets import find_pairs, recognize
from spoco_zoo.datasets.inspection import inspect_folder
from spoco_zoo.errors import ImageError
from spoco_zoo.spec import DataSettings

LEAVES = np.kron(np.array([[0, 1, 2], [3, 3, 0]]), np.ones((3, 4))).astype(np.uint8)
# as in the data set, entries of the palette are no ids: black, then colours
PALETTE = bytes([0, 0, 0, 252, 233, 79, 114, 159, 207, 239, 41, 41]) + bytes(756)
COLORS = np.frombuffer(PALETTE, np.uint8).reshape(256, 3)


def find(root, split="train", n_axes=2, **words):
    return find_pairs(root, split, DataSettings(**words), n_axes)


@pytest.fixture
def write_plant(write_png):
    def write(folder, name, label=LEAVES, palette=PALETTE, fg=None):
        rgba = np.dstack([np.full((*LEAVES.shape, 1), v, np.uint8) for v in (10, 20, 30, 255)])
        write_png(folder / f"{name}_rgb.png", rgba)
        if label is not None:
            write_png(folder / f"{name}_label.png", label, palette)
        if fg is not None:
            write_png(folder / f"{name}_fg.png", fg.astype(np.uint8), bytes(3) + b"\xff" * 765)
        write_png(folder / f"{name}_centers.png", (LEAVES == 9).astype(np.uint8), palette)

    return write


def test_the_index_of_the_palette_is_the_leaf(tmp_path, write_plant):
    write_plant(tmp_path / "train/A1", "plant001")
    assert recognize(tmp_path, "train") == "cvppp"
    (source,) = find(tmp_path)
    pixels, labels = source.read()
    assert source.name == "A1/plant001"
    assert source.image.shape == pixels.shape == (3, *LEAVES.shape)
    assert [int(channel.max()) for channel in pixels] == [10, 20, 30]
    assert (labels == LEAVES).all()
    box = (slice(1, 5), slice(2, 9))
    assert (source.read(box)[1] == LEAVES[box]).all()


def test_colours_are_packed_after_widening_and_greys_are_ids(tmp_path, write_plant):
    write_plant(tmp_path / "train/A1", "plant001", COLORS[LEAVES], None)
    write_plant(tmp_path / "train/A1", "plant002", LEAVES * 60, None)
    alpha = np.full((*LEAVES.shape, 1), 255, np.uint8)
    write_plant(tmp_path / "train/A1", "plant003", np.dstack([COLORS[LEAVES], alpha]), None)
    write_plant(tmp_path / "train/A1", "plant004", LEAVES.astype(np.uint16) * 20_000, None)
    color, grey, rgba, wide = (source.read()[1] for source in find(tmp_path))
    packed = np.array([0, 252 * 65536 + 233 * 256 + 79, 114 * 65536 + 159 * 256 + 207])
    assert (color[LEAVES < 3] == packed[LEAVES[LEAVES < 3]]).all()
    assert len(np.unique(color)) == 4
    assert (rgba == color).all()
    assert (grey == LEAVES * 60).all()
    assert (wide == LEAVES.astype(int) * 20_000).all()


def test_any_number_of_digits_in_the_order_of_numbers(tmp_path, write_plant):
    for folder, name in (
        ("A4", "plant0002"),
        ("A1", "plant10"),
        ("A1", "plant9"),
        ("A4", "plant12345"),
    ):
        write_plant(tmp_path / "train" / folder, name)
    names = ["A1/plant9", "A1/plant10", "A4/plant0002", "A4/plant12345"]
    assert [source.name for source in find(tmp_path)] == names
    assert [source.name for source in find(tmp_path, subsets=("A4",))] == names[2:]


@pytest.mark.parametrize("place", ["training", "."])
def test_what_is_handed_out_is_split_by_every_fifth_plant_of_a_folder(tmp_path, write_plant, place):
    for number in range(1, 12):
        write_plant(tmp_path / place / "A1", f"plant{2 * number:03}")
    for number in range(1, 6):
        write_plant(tmp_path / place / "A2", f"plant{number:03}")
    train, val = ({s.name for s in find(tmp_path, split)} for split in ("train", "val"))
    assert val == {"A1/plant010", "A1/plant020", "A2/plant005"}
    assert len(train) == 13
    assert not train & val


def test_too_few_plants_to_split_are_refused(tmp_path, write_plant):
    for number in range(1, 5):
        write_plant(tmp_path / "training/A1", f"plant{number}")
    with pytest.raises(ImageError) as error:
        find(tmp_path, "val")
    assert str(error.value) == (
        f"{tmp_path / 'training'}: of 4 plants none is for val: expected 5 or more in a "
        "folder, of which every fifth is for validation; or split them into train and val"
    )


def test_all_splits_of_the_challenge_are_inspected(tmp_path, write_plant):
    for number in range(1, 6):
        write_plant(tmp_path / "training/A1", f"plant{number}")
        write_plant(tmp_path / "mine" / ("test" if number > 3 else "val"), f"plant{number}")
    ours, mine = (inspect_folder(root, None) for root in (tmp_path, tmp_path / "mine"))
    assert [(s.name, len(s.images)) for s in ours.splits] == [("train", 4), ("val", 1)]
    assert [(s.name, len(s.images)) for s in mine.splits] == [("val", 3), ("test", 2)]


def test_foreground_without_leaves_is_background_and_unlabeled_leaves(tmp_path, write_plant):
    write_plant(tmp_path / "training/A1", "plant001")
    write_plant(tmp_path / "testing/A1", "plant003", label=None, fg=LEAVES > 0)
    (source,) = find(tmp_path, "test")
    assert (source.read()[1] == np.where(LEAVES > 0, -1, 0)).all()


def test_a_plant_with_neither_is_refused(tmp_path, write_plant):
    write_plant(tmp_path / "train/A1", "plant001", label=None)
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'train/A1/plant001_rgb.png'}: has neither plant001_label.png nor "
        "plant001_fg.png beside it: add one of them"
    )
    with pytest.raises(ImageError) as error:
        find(tmp_path, subsets=("A2",))
    assert str(error.value) == (
        f"{tmp_path}: holds no A2, which data.subsets names: expected some of A1"
    )


def test_labels_without_a_picture_are_refused(tmp_path, write_plant, write_hdf5):
    for name in ("plant001", "plant02"):
        write_plant(tmp_path / "train/A1", name)
    (tmp_path / "train/A1/plant02_rgb.png").unlink()
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'train/A1/plant02_label.png'}: has no image: expected plant02_rgb.png; copy "
        "it again, or delete the labels"
    )
    rgb = np.zeros((*LEAVES.shape, 3), np.uint8)
    write_hdf5(tmp_path / "a_training_images.h5", A1__plant001__rgb=rgb)
    write_hdf5(
        tmp_path / "a_training_truth.h5", A1__plant001__label=LEAVES, A1__plant02__label=LEAVES
    )
    with pytest.raises(ImageError) as error:
        find(tmp_path, layout="cvppp_hdf5")
    assert str(error.value) == (
        f"{tmp_path / 'a_training_truth.h5'}:/A1/plant02/label: has no image: expected "
        "/A1/plant02/rgb; copy it again, or delete the labels"
    )


def test_a_folder_of_another_split_is_no_mistake_but_alone_it_is_not_enough(tmp_path, write_plant):
    write_plant(tmp_path / "train/A1", "plant001")
    write_plant(tmp_path / "val/A4", "plant0001")
    assert [s.name for s in find(tmp_path, subsets=("A1", "A4"))] == ["A1/plant001"]
    with pytest.raises(ImageError) as error:
        find(tmp_path, subsets=("A4",))
    assert str(error.value) == (
        f"{tmp_path / 'train'}: no plant found in A4, as data.subsets says: expected "
        "A1/plant001_rgb.png and A1/plant001_label.png"
    )


def test_damaged_or_grey_pictures_are_refused(tmp_path, write_plant, write_png):
    write_plant(tmp_path / "train/A1", "plant001")
    path = tmp_path / "train/A1/plant001_rgb.png"
    write_png(path, LEAVES)
    with pytest.raises(ImageError) as error:
        find(tmp_path)[0].read()
    assert str(error.value) == f"{path}: has 1 channels: expected red, green and blue"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError) as error:
        find(tmp_path)
    sentence = "cannot be read as PNG (UnidentifiedImageError): copy it again"
    assert str(error.value) == f"{path}: {sentence}"
    write_plant(tmp_path / "train/A1", "plant001")
    label = tmp_path / "train/A1/plant001_label.png"
    (source,) = find(tmp_path)
    label.write_bytes(b"nothing")
    with pytest.raises(ImageError) as error:
        source.read()
    assert str(error.value) == f"{label}: {sentence}"


def test_the_hdf5_form(tmp_path, write_hdf5):
    rgb = np.dstack([np.full(LEAVES.shape, v, np.uint8) for v in (10, 20, 30, 255)])
    plants = {f"A1__plant{n:03}__rgb": rgb for n in range(1, 7)} | {"A2__plant001__rgb": rgb}
    truth = {name.replace("rgb", "label"): LEAVES for name in plants}
    del truth["A2__plant001__label"]
    fg = {"A2__plant001__fg": (LEAVES > 0).astype(np.uint8)}
    write_hdf5(tmp_path / "CVPPP2017_training_images.h5", **plants, **fg)
    write_hdf5(tmp_path / "CVPPP2017_training_truth.h5", **truth)
    write_hdf5(tmp_path / "CVPPP2017_testing_images.h5", A5__plant007__rgb=rgb)
    assert recognize(tmp_path, "train") == "cvppp_hdf5"
    shown = inspect_folder(tmp_path, None)
    assert [(s.name, len(s.images)) for s in shown.splits] == [("train", 6), ("val", 1)]
    (val,) = find(tmp_path, "val")
    assert val.name == "A1/plant005"
    pixels, labels = val.read()
    assert (pixels == np.moveaxis(rgb[..., :3], -1, 0)).all()
    assert (labels == LEAVES).all()
    box = (slice(1, 5), slice(2, 9))
    assert (val.read(box)[0] == pixels[(slice(None), *box)]).all()
    train = find(tmp_path)
    assert [s.name for s in train] == [
        *(f"A1/plant00{n}" for n in (1, 2, 3, 4, 6)),
        "A2/plant001",
    ]
    assert (train[-1].read()[1] == np.where(LEAVES > 0, -1, 0)).all()
    assert [s.name for s in find(tmp_path, subsets=("A2",))] == ["A2/plant001"]
    path = tmp_path / "CVPPP2017_testing_images.h5"
    with pytest.raises(ImageError) as error:
        find(tmp_path, "test")
    assert str(error.value) == (
        f"{path}:/A5/plant007/rgb: has neither label nor fg beside it: add one of them"
    )
    with pytest.raises(ImageError) as error:
        find(tmp_path, "test", subsets=("A1",))
    assert str(error.value) == (
        f"{path}: no plant found in A1, as data.subsets says: expected data sets like "
        "/A1/plant001/rgb"
    )
    path.unlink()
    with pytest.raises(ImageError) as error:
        find(tmp_path, "test")
    assert str(error.value) == (
        f"{tmp_path}: no file ends in testing_images.h5: expected CVPPP 2017 as HDF5"
    )


def test_a_folder_that_is_not_there_has_no_plant(tmp_path):
    with pytest.raises(ImageError, match="no plant found: expected A1/plant001_rgb"):
        find_pairs(tmp_path / "nope", "train", DataSettings(layout="cvppp"))


def test_a_damaged_hdf5_file_is_a_sentence(tmp_path):
    pytest.importorskip("h5py")
    path = tmp_path / "CVPPP2017_training_images.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(ImageError) as error:
        find_pairs(tmp_path, "train", DataSettings(layout="cvppp_hdf5"))
    assert str(error.value) == (
        f"{path}: cannot be read as HDF5: expected a whole file; write it again"
    )
