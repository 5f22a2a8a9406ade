"""Streets: class and number in one value, groups that are no instances, 16 bits of them."""

import numpy as np
import pytest

from spoco_zoo.datasets import find_pairs, recognize
from spoco_zoo.datasets.inspection import inspect_folder
from spoco_zoo.errors import ImageError
from spoco_zoo.spec import DataSettings

# a road, a group of cars, cars of which one is hidden, the first person, and a bicycle
VALUES = [0, 7, 26, 26000, 26002, 24000, 33000, 29001, 1]
IDS = np.kron(np.array(VALUES).reshape(3, 3), np.ones((2, 4))).astype(np.uint16)


def find(root, split="train", **words):
    return find_pairs(root, split, DataSettings(**words), 2)


@pytest.fixture
def streets(tmp_path, write_png, random):
    def write(city, frame, ids):
        name = f"{city}_000001_{frame:06}"
        pixels = random.integers(0, 255, (*IDS.shape, 3)).astype(np.uint8)
        folder = f"train/{city}/{name}"
        write_png(tmp_path / "leftImg8bit" / f"{folder}_leftImg8bit.png", pixels)
        for kind, values in (("instanceIds", ids), ("labelIds", (ids > 99).astype(np.uint8))):
            write_png(tmp_path / "gtFine" / f"{folder}_gtFine_{kind}.png", values)

    write("ulm", 19, IDS)
    write("bonn", 5, np.full_like(IDS, 7))
    return tmp_path


def test_instances_are_ids_from_1000_on_and_16_bits_survive(streets):
    assert recognize(streets, "train") == "cityscapes"
    empty, source = find(streets)
    assert [empty.name, source.name] == ["bonn_000001_000005", "ulm_000001_000019"]
    pixels, labels = source.read()
    assert pixels.shape == source.image.shape == (3, *IDS.shape)
    expected = [0, 0, -1, 26000, 26002, 24000, 33000, 0, 0]
    assert (labels == np.kron(np.array(expected).reshape(3, 3), np.ones((2, 4)))).all()
    assert not empty.read()[1].any()
    box = (slice(1, 5), slice(0, 7))
    assert (source.read(box)[1] == labels[box]).all()


def test_a_class_can_be_chosen_and_the_others_are_background(streets):
    chosen = find(streets, classes=("car",))[1].read()[1]
    assert np.unique(chosen).tolist() == [-1, 0, 26000, 26002]
    other = find(streets, classes=("bicycle", "caravan"))[1].read()[1]
    assert np.unique(other).tolist() == [0, 29001, 33000]


def test_cities_can_be_chosen(streets):
    assert [s.name for s in find(streets, subsets=("ulm",))] == ["ulm_000001_000019"]
    with pytest.raises(ImageError) as error:
        find(streets, subsets=("kiel",))
    assert str(error.value) == (
        f"{streets}: holds no kiel, which data.subsets names: expected some of bonn, ulm"
    )
    (streets / "leftImg8bit/val/kiel").mkdir(parents=True)
    assert [s.name for s in find(streets, subsets=("ulm", "kiel"))] == ["ulm_000001_000019"]
    with pytest.raises(ImageError) as error:
        find(streets, subsets=("kiel",))
    assert str(error.value) == (
        f"{streets / 'leftImg8bit/train'}: no image found in kiel, as data.subsets says: expected "
        "CITY/*_leftImg8bit.png"
    )


def test_an_image_without_ground_truth_is_refused(streets):
    truth = streets / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    truth.unlink()
    with pytest.raises(ImageError) as error:
        find(streets)
    image = streets / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
    assert str(error.value) == f"{image}: has no ground truth: expected {truth}"


def test_all_splits_are_inspected(streets):
    shown = inspect_folder(streets, None)
    assert shown.layout == "cityscapes"
    assert [(s.name, len(s.images)) for s in shown.splits] == [("train", 2)]
    assert dict(shown.rows())["label 0 (-1)"] == "72.2% (5.6%)"
