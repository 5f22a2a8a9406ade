"""What is told about data before training: measured on made-up labels whose truth is known."""

import zlib

import numpy as np
import pytest
import tifffile

from spoco_zoo.datasets.advice import suggest_crop, suggest_pooling
from spoco_zoo.datasets.inspection import inspect_folder, show_part
from spoco_zoo.errors import ImageError
from spoco_zoo.spec import change_spec, parse_spec


def write(root, split, name, labels, image=None, sizes=None):
    axes = "ZYX"[-labels.ndim :]
    metadata = {"axes": axes}
    if sizes is not None:
        metadata |= {f"PhysicalSize{a}": s for a, s in zip(axes, sizes, strict=True)}
    if image is None:  # each its own, and none of one value
        image = np.zeros(labels.shape, np.uint8)
        image.flat[zlib.crc32(f"{split}/{name}".encode()) % labels.size] = 255
    for part, values in (("images", image), ("labels", labels)):
        folder = root / split / part
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / f"{name}.ome.tif", values, metadata=metadata)


def blocks(shape=(40, 60)):
    """One block of 4 x 6 in the middle, one of 8 x 5 at the border, a line on the border."""
    labels = np.zeros(shape, np.uint16)
    labels[10:14, 10:16] = 7
    labels[20:28, -5:] = 900
    labels[0, 30:33] = 3
    return labels


def inspect(root, **words):
    return inspect_folder(root, parse_spec(words, "test") if words else None)


@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_instances_are_measured_whatever_the_slabs(tmp_path, monkeypatch, slab):
    monkeypatch.setattr("spoco_zoo.datasets.source._SLAB", slab)
    write(tmp_path, "train", "a", blocks())
    image = inspect(tmp_path).splits[0].images[0]
    found = {int(n): tuple(e) for n, e in zip(image.sizes, image.extents.tolist(), strict=True)}
    assert found == {24: (4, 6), 40: (8, 5), 3: (1, 3)}
    assert image.slivers == 1
    assert image.zero == 40 * 60 - 24 - 40 - 3
    assert image.unknown == 0


def test_an_image_of_one_row_has_no_slivers(tmp_path):
    write(tmp_path, "train", "a", np.ones((1, 30), np.uint8))
    assert inspect(tmp_path).splits[0].images[0].slivers == 0


def test_unlabeled_pixels_are_counted_by_themselves(tmp_path):
    for part, values in (("images", np.eye(4)), ("labels", np.array([[-1, 0, 5, 5]] * 4))):
        (tmp_path / "train" / part).mkdir(parents=True)
        np.save(tmp_path / "train" / part / "a.npy", values)
    found = inspect(tmp_path)
    assert (found.splits[0].images[0].zero, found.splits[0].images[0].unknown) == (4, 4)
    assert dict(found.rows())["label 0 (-1)"] == "25.0% (25.0%)"


def test_the_table_has_a_column_for_each_split(tmp_path):
    write(tmp_path, "train", "a", blocks(), sizes=(0.5, 0.2))
    write(tmp_path, "train", "b", blocks((30, 60)))
    write(tmp_path, "val", "c", blocks((2000, 60)) * 0)
    found = inspect(tmp_path)
    assert found.layout == "folders"
    assert [split.name for split in found.splits] == ["train", "val"]
    assert found.rows() == [
        ("images", "2", "1"),
        ("size (y, x)", "30-40 x 60", "2000 x 60"),
        ("channels", "1", "1"),
        ("pixels", "uint8", "uint8"),
        ("labels", "uint16", "uint16"),
        ("pixel size, µm", "0.5 x 0.2 (1), not known (1)", "not known"),
        ("instances", "6", "0"),
        ("per image, median", "3 (3 to 3)", "0 (0 to 0)"),
        ("pixels of one, median", "24 (3 to 40)", "none"),
        ("µm² of one, median", "2.4 (0.3 to 4)", "not known"),
        ("label 0 (-1)", "96.8% (0.0%)", "100.0% (0.0%)"),
    ]
    assert found.scale_um == (0.5, 0.2)


def test_large_numbers_and_many_kinds_stay_short(tmp_path):
    for number, size in enumerate((0.1, 0.11, 0.12, 0.13)):
        write(tmp_path, "train", f"{number}", np.ones((300, 50), np.uint8), sizes=(size, size))
    rows = dict(inspect(tmp_path).rows())
    assert rows["pixels of one, median"] == "15000 (15000 to 15000)"
    assert rows["pixel size, µm"] == "0.1 x 0.1 (1), 0.11 x 0.11 (1), 0.12 x 0.12 (1), ..."


def test_what_may_be_wrong_is_told_in_whole_sentences(tmp_path):
    write(tmp_path, "train", "a", blocks(), sizes=(0.5, 0.2))
    write(tmp_path, "train", "b", blocks(), sizes=(0.3, 0.2))
    for name in "cdef":
        write(tmp_path, "train", name, np.zeros((200, 200), np.uint8))
    for name in "gh":
        write(tmp_path, "val", name, (blocks() > 0).astype(np.uint8))
    assert inspect(tmp_path).warnings() == [
        "train: 2 of 6 instances have fewer than 10 pixels",
        "train: 2 of 6 instances lie in the outermost pixels alone",
        "train: 4 of 6 images have no instance (c, d, e, ...)",
        "train: 4 of 6 images do not say their pixel size",
        "train: pixel sizes differ by a factor of up to 1.67",
        "train: 2 of 6 images have fewer pixels than the crop [128, 128], so are mirrored (a, b)",
        "val: no image has more than one label: expected a number for each instance",
    ]


def test_good_data_give_no_warning(tmp_path):
    labels = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((16, 16), int)).astype(np.uint16)
    for split in ("train", "val"):
        for name in "ab":
            write(tmp_path, split, name, labels, sizes=(0.2, 0.2))
        (tmp_path / split / "images/.DS_Store").touch()
    assert inspect(tmp_path).warnings() == []


def test_images_of_one_value_and_images_seen_in_training_are_named(tmp_path):
    labels = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((16, 16), int)).astype(np.uint16)
    empty = np.full(labels.shape, 9, np.uint8)
    for split in ("train", "val"):
        write(tmp_path, split, "a", labels, image=(labels % 7).astype(np.uint8))
        write(tmp_path, split, "b", labels)
        write(tmp_path, split, "c", labels, image=empty)
    flat = "1 of 3 images have the same value in every pixel (c)"
    assert inspect(tmp_path).warnings() == [
        f"train: {flat}",
        f"val: {flat}",
        "val: 1 of 3 images are in train too, so scores on them say little (a)",
    ]


def test_pixels_are_checked_as_in_training(tmp_path):
    image = np.zeros((40, 60), np.float32)
    image[3, 4] = np.nan
    write(tmp_path, "train", "a", blocks(), image=image)
    with pytest.raises(ImageError) as error:
        inspect(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'train/images/a.ome.tif'}: 1 of 2400 pixels are NaN or infinite: replace "
        "them by finite values"
    )


def test_splits_that_do_not_fit_together_are_told(tmp_path):
    labels = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((16, 16), int)).astype(np.uint16)
    write(tmp_path, "train", "a", labels, sizes=(0.2, 0.2))
    write(tmp_path, "val", "a", labels, sizes=(0.2, 0.1))
    write(tmp_path, "test", "a", labels[None].repeat(2, axis=0))
    image = np.stack([labels, labels]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "test/images/a.ome.tif", image, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "test/labels/a.ome.tif", labels)
    assert inspect(tmp_path).warnings() == [
        "val: pixel sizes differ from those of train by a factor of 2",
        "test: images have 2 channels, and those of train 1: one network takes only the same",
    ]


def test_files_that_are_not_read_are_named(tmp_path, write_hdf5):
    labels = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((16, 16), int)).astype(np.uint16)
    for split in ("train", "val"):
        write(tmp_path, split, "a", labels)
    for name in ("images/b.jpg", "images/c.czi", "labels/b.xml"):
        (tmp_path / "train" / name).touch()
    (tmp_path / "train/images/more").mkdir()
    assert inspect(tmp_path).warnings() == [
        "train: 4 entries are passed over, since only files of other endings are read "
        "(images/b.jpg, images/c.czi, images/more, ...)"
    ]
    write_hdf5(tmp_path / "h/train/a.h5", raw=labels % 7, label=labels)
    (tmp_path / "h/train/b.tif").touch()
    assert inspect(tmp_path / "h").warnings() == [
        "train: 1 entry is passed over, since only files of other endings are read (b.tif)",
        "val is missing: training needs some labelled images there",
    ]


@pytest.mark.parametrize(
    ("splits", "told"),
    [("train", True), ("train test", True), ("train val", False), ("val", False), ("test", False)],
)
def test_validation_images_that_training_would_miss_are_asked_for(tmp_path, splits, told):
    labels = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((16, 16), int)).astype(np.uint16)
    for number, split in enumerate(splits.split()):
        write(tmp_path, split, f"{number}", np.roll(labels, number, axis=0))
    line = "val is missing: training needs some labelled images there"
    assert (line in inspect(tmp_path).warnings()) == told


def test_advice_for_a_volume_without_a_spec(tmp_path):
    labels = np.zeros((40, 200, 200), np.uint16)
    for number, start in enumerate(range(0, 200, 40), start=1):
        labels[8:18, start : start + 24, 20:44] = number
    write(tmp_path, "train", "a", labels, sizes=(1.0, 0.2, 0.2))
    assert inspect(tmp_path).suggestions() == [
        "net.dimensions: 3",
        "net.pooling: [[1, 2, 2], [1, 2, 2], [2, 2, 2]]",
        "schedule.crop: [40, 96, 96]",
        "data.pixel_size_um: [1.0, 0.2, 0.2]",
    ]
    settled = {"dimensions": 3, "pooling": [[2, 2, 2]] * 3}
    words = {"net": settled, "schedule": {"crop": [8, 16, 16]}}
    found = inspect(tmp_path, **words, data={"pixel_size_um": [0.4, 0.2, 0.2]})
    assert found.suggestions() == [
        "net.pooling: [[1, 2, 2], [1, 2, 2], [2, 2, 2]]",
        "schedule.crop: [40, 96, 96]",
    ]


@pytest.mark.parametrize(("gap", "expected"), [(0, True), (1, True), (9, False)])
def test_boundaries_are_suggested_where_instances_fill_the_image(tmp_path, gap, expected):
    labels = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((16, 16), int)).astype(np.uint16)
    labels[:gap] = 0
    write(tmp_path, "train", "a", labels)
    assert ("data.boundary_width: 1" in inspect(tmp_path).suggestions()) == expected
    lines = inspect(tmp_path, clustering={"foreground": "everywhere"}).suggestions()
    assert (lines[-2:] == ["data.boundary_width: 1", "clustering.foreground: head"]) == expected
    headless = {"clustering": {"foreground": "everywhere"}, "net": {"foreground_head": False}}
    lines = inspect(tmp_path, **headless).suggestions()
    wanted = ["data.boundary_width: 1", "net.foreground_head: true", "clustering.foreground: head"]
    assert (lines[-3:] == wanted) == expected
    if expected:  # what is suggested is a spec
        changes = {"data": {"boundary_width": 1}, "net": {"foreground_head": True}}
        changes |= {"clustering": {"foreground": "head"}}
        change_spec(parse_spec(headless, "test"), changes)
    lines = inspect(tmp_path, data={"boundary_width": 1}).suggestions()
    assert not any("boundary_width" in line for line in lines)
    # background that was painted is no instance
    painted = {"label_zero": "unlabeled", "background_label": 100}
    labels[:80] = 100
    write(tmp_path, "train", "a", labels)
    assert "data.boundary_width: 1" not in inspect(tmp_path, data=painted).suggestions()


def test_one_instance_that_fills_an_image_touches_none(tmp_path):
    for name in "ab":
        write(tmp_path, "train", name, np.ones((40, 60), np.uint16))
    assert "data.boundary_width: 1" not in inspect(tmp_path).suggestions()


def test_the_pixel_size_of_the_spec_counts_where_no_file_says_one(tmp_path):
    write(tmp_path, "train", "a", blocks())
    found = inspect(tmp_path, data={"pixel_size_um": [1.0, 0.25]})
    assert found.scale_um == (1.0, 0.25)
    assert found.suggestions()[0] == "net.pooling: [[1, 2], [1, 2], [2, 2]]"
    assert inspect(tmp_path).scale_um is None
    assert inspect(tmp_path).suggestions() == ["net.dimensions: 2", "schedule.crop: [40, 56]"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (None, [[2, 2, 2], [2, 2, 2]]),
        ((1.0, 1.0, 1.0), [[2, 2, 2], [2, 2, 2]]),
        ((1.4, 1.0, 1.0), [[2, 2, 2], [2, 2, 2]]),
        ((1.5, 1.0, 1.0), [[1, 2, 2], [2, 2, 2]]),
        ((9.0, 1.0, 1.0), [[1, 2, 2], [1, 2, 2]]),
        ((0.5, 1.0, 1.0), [[2, 1, 1], [2, 2, 2]]),
    ],
)
def test_pooling_makes_voxels_more_equal(sizes, expected):
    assert [list(step) for step in suggest_pooling(sizes, 3, 2)] == expected
    if sizes is not None:
        pooled = np.array(sizes) * np.prod(expected, axis=0)
        assert pooled.max() / pooled.min() <= max(np.max(sizes) / np.min(sizes), 2**0.5)


@pytest.mark.parametrize(
    ("extents", "spaces", "strides", "expected"),
    [
        ([], [[500, 500]], [8, 8], (64, 64)),
        ([[20, 10]], [[500, 500]], [8, 8], (80, 80)),
        ([[20, 10]], [[70, 500]], [8, 8], (64, 80)),
        ([[400, 400]], [[4000, 4000]], [8, 8], (512, 512)),
        ([[10, 10]] * 9 + [[100, 100]], [[500, 500]], [8, 8], (120, 120)),
        ([[3, 3]], [[5, 5]], [8, 8], (8, 8)),
        ([[200, 200, 200]], [[900, 900, 900]], [8, 8, 8], (144, 88, 88)),
        ([[200, 30, 30]], [[20, 900, 900]], [2, 8, 8], (20, 120, 120)),
    ],
)
def test_crops_show_several_instances_and_fit(extents, spaces, strides, expected):
    extents = np.array(extents, int).reshape(-1, len(strides))
    crop = suggest_crop(extents, np.array(spaces), np.array(strides))
    assert all(size % stride == 0 for size, stride in zip(crop, strides, strict=True))
    assert crop == expected


def test_pictures_show_the_middle_where_instances_are_small(tmp_path):
    small = np.zeros((400, 400), np.uint16)
    small[198:206, 198:206] = 1
    write(tmp_path, "train", "small", small, image=np.full((400, 400), 9, np.uint8))
    write(tmp_path, "train", "none", small * 0)
    none, shown = inspect(tmp_path).splits[0].images
    pixels, labels, text = show_part(shown)
    assert text == "small, middle"
    assert pixels.shape == (1, 160, 160)
    assert (labels == small[120:280, 120:280]).all()
    assert show_part(none)[2] == "none"
    assert show_part(none)[1].shape == (400, 400)


def test_pictures_show_the_middle_slice_of_a_volume(tmp_path):
    volume = np.zeros((5, 40, 60), np.uint16)
    volume[2, 5:25, 5:25] = 4
    write(tmp_path, "train", "deep", volume)
    _, labels, text = show_part(inspect(tmp_path).splits[0].images[0])
    assert text == "deep, z 2"
    assert (labels == volume[2]).all()


def test_nothing_to_inspect_is_told_as_training_does(tmp_path):
    with pytest.raises(ImageError) as error:
        inspect(tmp_path / "nowhere")
    assert str(error.value) == (
        f"{tmp_path / 'nowhere/train/images'}: no such folder: expected train/images and "
        "train/labels with files of equal names"
    )


def test_a_split_by_itself_is_enough(tmp_path):
    write(tmp_path, "test", "a", blocks())
    told = []
    found = inspect_folder(tmp_path, None, told.append)
    assert [split.name for split in found.splits] == ["test"]
    assert told == ["test: a"]
