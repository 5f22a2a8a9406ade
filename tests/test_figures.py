"""Laws of the pictures."""

import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from spoco_zoo.curves import read_history, training_curves
from spoco_zoo.errors import ImageError, MissingExtraError, OutputError, SettingError
from spoco_zoo.figures import (
    KIND_COLORS,
    contact_sheet,
    embedding_colors,
    label_colors,
    label_picture,
    mistakes_overlay,
    montage,
    outline,
    overlay,
    resize,
    side_by_side,
    write_png,
)
from spoco_zoo.mistakes import judge

HEADER = (
    "step,total,pull,push,norm,unlabeled_push,instance,consistency,foreground,"
    "learning_rate,seconds_per_step,score\n"
)


@pytest.fixture
def two_that_touch():
    labels = np.zeros((12, 14), np.uint32)
    labels[2:10, 2:7] = 1
    labels[2:10, 7:12] = 2
    return labels


def write_history(path, steps, is_scored=True):
    rows = []
    for step in range(steps):
        score = f"{0.5 + step / 1000}" if is_scored and step % 10 == 9 else ""
        rows.append(f"{step},{3 / (step + 1)},{1 / (step + 1)},0.2,0.01,0,0.3,,0,1e-3,0.1,{score}")
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return path


def test_colors_are_distinct_bright_and_black_for_background():
    colors = label_colors(250)
    assert colors.shape == (251, 3)
    assert not colors[0].any()
    assert len(np.unique(colors, axis=0)) == 251
    assert (colors[1:].max(1) > 150).all()
    steps = np.abs(np.diff(colors[1:].astype(int), axis=0)).sum(1)
    assert steps.min() > 80


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_color_of_an_id_does_not_depend_on_how_many_there_are(n, more):
    assert (label_colors(n + more)[: n + 1] == label_colors(n)).all()


grey_images = arrays.arrays(
    st.sampled_from(["uint8", "uint16", "int32", "float32", "bool"]),
    st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
)


@settings(deadline=None)
@given(grey_images, st.data())
def test_overlay_leaves_what_has_no_label_grey(image, data):
    labels = data.draw(arrays.arrays("uint32", image.shape[1:], elements=st.integers(0, 3)))
    picture = overlay(image, labels)
    assert picture.shape == (*labels.shape, 3)
    outside = picture[labels == 0]
    assert (outside == outside[:, :1]).all()
    plain = overlay(image, np.zeros_like(labels))
    assert (outside == plain[labels == 0]).all()


def test_overlay_outlines_each_instance_inside_in_its_full_color(two_that_touch):
    labels = two_that_touch
    image = np.random.default_rng(0).integers(0, 200, (1, *labels.shape)).astype(np.uint8)
    picture = overlay(image, labels)
    colors = label_colors(2)
    for label, left, right in ((1, 2, 6), (2, 7, 11)):
        for edge in (picture[2, left : right + 1], picture[2:10, left], picture[2:10, right]):
            assert (edge == colors[label]).all()
        inside = picture[3:9, left + 1 : right]
        assert (inside != colors[label]).any(-1).all()
        grey = overlay(image, np.zeros_like(labels))[3:9, left + 1 : right]
        assert np.abs(inside - (0.65 * grey + 0.35 * colors[label])).max() <= 1


def test_overlay_keeps_the_hue_of_rgb_and_stretches_channels_together():
    image = np.zeros((3, 8, 8), np.uint8)
    image[0, :4] = 200
    image[1, 4:] = 100
    picture = overlay(image, np.zeros((8, 8), np.uint8))
    assert (picture[0, 0] == [255, 0, 0]).all()
    assert picture[7, 7, 1] == pytest.approx(128, abs=2)


def test_overlay_of_a_constant_or_broken_image_is_black_not_an_error(two_that_touch):
    for image in (np.full((1, 12, 14), 7.0), np.full((1, 12, 14), np.nan)):
        assert not overlay(image, two_that_touch)[two_that_touch == 0].any()
    image = np.zeros((1, 12, 14))
    image[0, 0, 0], image[0, 0, 1], image[0, 1] = np.inf, -np.inf, 5.0
    picture = overlay(image, two_that_touch)
    assert picture[0, 0, 0] == 255
    assert picture[0, 1, 0] == 0


def test_overlay_and_embedding_of_a_volume_show_the_middle_slice():
    rng = np.random.default_rng(0)
    image = rng.random((1, 5, 6, 7))
    labels = rng.integers(0, 4, (5, 6, 7))
    embedding = rng.random((4, 5, 6, 7)).astype(np.float32)
    assert (overlay(image, labels) == overlay(image[:, 2], labels[2])).all()
    assert (embedding_colors(embedding) == embedding_colors(embedding[:, 2])).all()


def test_a_montage_shows_slices_of_one_contrast_and_an_image_itself(two_that_touch):
    random = np.random.default_rng(0)
    image = random.integers(0, 200, (1, *two_that_touch.shape)).astype(np.uint16)
    labels = np.repeat(two_that_touch[None], 30, axis=0)
    bright = np.repeat(image[:, None], 30, axis=1)
    bright[:, 15:] *= 2
    sheet = montage(bright, labels)
    height, width = two_that_touch.shape
    # 4 columns and 3 rows of 12 slices, with gaps, and a line of text below each
    assert sheet.shape[1] == 4 * width + 5 * 12
    first = sheet[12 : 12 + height, 12 : 12 + width]
    last = sheet[-12 - 20 - height : -12 - 20, -12 - width : -12]
    outside = two_that_touch == 0
    assert first[outside].mean() < last[outside].mean()
    assert (montage(image, two_that_touch) == overlay(image, two_that_touch)).all()
    assert (montage(bright[:, :2], labels[:2])[12 : 12 + height, 12 : 12 + width] > 0).any()


def test_a_montage_of_large_slices_is_made_smaller():
    labels = np.zeros((2, 600, 1200), int)
    labels[:, 200:400, 200:400] = 1
    sheet = montage(np.ones((1, 2, 600, 1200)), labels)
    assert sheet.shape[1] == 2 * 512 + 3 * 12


def test_overlay_of_sparse_huge_ids_needs_no_table():
    labels = np.full((4, 4), 2**63, np.uint64)
    assert overlay(np.zeros((1, 4, 4)), labels).any()


def test_overlay_names_shapes_that_differ():
    with pytest.raises(ImageError) as error:
        overlay(np.zeros((1, 4, 5)), np.zeros((5, 4), int))
    assert str(error.value) == (
        "the image is (4, 5) and the labels are (5, 4): they must have the same shape"
    )
    with pytest.raises(ImageError) as error:
        overlay(np.zeros((1, 4)), np.zeros(4, int))
    assert str(error.value) == "a picture needs an image (y, x) or a volume (z, y, x), not 1 axes"
    with pytest.raises(SettingError) as error:
        overlay(np.zeros((1, 4, 4)), np.zeros((4, 4), int), alpha=2.0)
    assert str(error.value) == "alpha is 2.0, but must be from 0 to 1"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**20))
def test_embedding_colors_do_not_see_shifts_and_signs_of_the_noise(e, seed):
    rng = np.random.default_rng(seed)
    # unequal variances, so that the order of the components is certain
    embedding = rng.random((e, 5, 6)) * 2.0 ** np.arange(e)[:, None, None]
    picture = embedding_colors(embedding)
    assert picture.shape == (5, 6, 3)
    moved = embedding_colors(embedding + 5.0)
    assert np.abs(picture.astype(int) - moved).max() <= 1
    if e == 1:
        assert (picture == picture[..., :1]).all()


def test_embedding_colors_tell_instances_apart_and_leave_background_black(two_that_touch):
    embedding = np.zeros((16, *two_that_touch.shape), np.float32)
    embedding[3][two_that_touch == 2] = 4.0
    picture = embedding_colors(embedding, two_that_touch > 0)
    assert not picture[two_that_touch == 0].any()
    one, two = (np.unique(picture[two_that_touch == label], axis=0) for label in (1, 2))
    assert len(one) == len(two) == 1
    assert np.abs(one.astype(int) - two).max() > 200
    assert one.any()
    assert not embedding_colors(embedding, two_that_touch > 9).any()


def test_embedding_colors_name_shapes_that_differ():
    with pytest.raises(ImageError) as error:
        embedding_colors(np.zeros((2, 4, 5)), np.zeros((5, 4), bool))
    assert str(error.value) == (
        "the embedding is (4, 5) and the foreground is (5, 4): they must have the same shape"
    )


def test_side_by_side_keeps_every_panel_and_fills_with_white():
    grey = np.full((3, 4), 9, np.uint8)
    color = np.full((5, 2, 3), (1, 2, 3), np.uint8)
    row = side_by_side([grey, color], gap=2)
    assert row.shape == (5, 8, 3)
    assert (row[:3, :4] == 9).all()
    assert (row[:, 6:] == (1, 2, 3)).all()
    assert (row[:, 4:6] == 255).all()
    assert (row[3:, :4] == 255).all()


def test_side_by_side_refuses_nothing_and_what_is_no_picture():
    with pytest.raises(ImageError) as error:
        side_by_side([])
    assert str(error.value) == "there are no panels to put side by side: give at least one"
    with pytest.raises(ImageError) as error:
        side_by_side([np.zeros((4, 4, 2), np.uint8)])
    assert str(error.value) == "a panel is (4, 4, 2), but must be (y, x) or (y, x, 3)"


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_png_reads_back_equal(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == pixels).all()
    assert os.listdir(tmp_path) == ["a.png"]


def test_png_is_not_overwritten_unless_asked_for(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputError) as error:
        write_png(path, np.zeros((2, 2), np.uint8), overwrite=False)
    assert str(error.value) == f"{path}: exists already: choose another name or add --overwrite"
    assert path.read_bytes() == b"old"
    write_png(path, np.zeros((2, 2), np.uint8), overwrite=True)
    assert path.read_bytes() != b"old"


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError) as error:
        write_png(path, np.zeros((2, 2), np.uint8), overwrite=True)
    assert str(error.value) == (
        f"{path}: cannot be written (No space left on device): free space or choose another folder"
    )
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("steps", "is_scored"), [(1, False), (120, True)])
def test_training_curves_are_drawn_and_drawn_again(tmp_path, steps, is_scored):
    pytest.importorskip("matplotlib")
    history = write_history(tmp_path / "history.csv", steps, is_scored)
    for _ in range(2):
        training_curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500
        assert len(np.unique(np.asarray(image))) > 20
    assert sorted(os.listdir(tmp_path)) == ["curves.png", "history.csv"]


def test_training_curves_say_what_is_wrong_with_a_history(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "history.csv"

    def sentence():
        with pytest.raises(SettingError) as error:
            training_curves(path, tmp_path / "curves.png")
        return str(error.value)

    assert sentence() == f"{path} does not exist: give the history.csv of a run folder"
    path.write_text("step,total\n1,2\n")
    assert sentence() == f"{path} has no column pull: give the history.csv of a run folder"
    path.write_text(HEADER)
    assert sentence() == f"{path} has no steps yet: train first"
    path.write_text(HEADER + "1,much" + ",0" * 10 + "\n")
    assert sentence() == (
        f"{path} is damaged: could not convert string to float: 'much'; train again"
    )


def test_training_curves_without_matplotlib_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError) as error:
        training_curves(tmp_path / "history.csv", tmp_path / "curves.png")
    assert str(error.value) == (
        "figures of training need matplotlib: pip install 'spoco-zoo[train]'"
    )


def test_a_history_that_is_being_written_reads_up_to_its_last_whole_line(tmp_path):
    path = write_history(tmp_path / "history.csv", 30)
    with path.open("a") as file:
        file.write("30,0.1,0.0")
    assert read_history(path)["step"].tolist() == list(range(30))


def test_mistakes_have_the_colours_of_their_kinds():
    three = np.zeros((12, 14), np.uint32)
    three[2:10, 1:13] = np.repeat([1, 2, 3], 4)
    image, nothing, one = np.zeros((1, 12, 14)), np.zeros_like(three), (three > 0).astype(np.uint32)
    for found, truth, kind, inside in (
        (one, three, "merged", 0.4),
        (three, one, "split", 0.4),
        (nothing, three, "missed", 0.4),
        (three, nothing, "false", 0.4),
        (three, three, "right", 0.0),
    ):
        picture = mistakes_overlay(image, found, truth, judge(found, truth))
        color = np.array(KIND_COLORS[kind])
        assert (picture[2, 1:13] == color).all(), kind
        assert (picture[5, 4:6] == color).all(), kind  # between the instances
        assert np.abs(picture[5, 2:4] - inside * color).max() <= 1, kind
        assert not picture[three == 0].any(), kind


def test_mistakes_name_shapes_that_differ(two_that_touch):
    verdicts = judge(two_that_touch, two_that_touch)
    with pytest.raises(ImageError) as error:
        mistakes_overlay(np.zeros((1, 12, 14)), two_that_touch, two_that_touch.T, verdicts)
    assert str(error.value) == (
        "the image is (12, 14) and the true labels are (14, 12): they must have the same shape"
    )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.booleans())
def test_resized_pictures_fit_and_keep_the_values_they_had(height, width, side, smooth):
    labels = np.arange(height * width).reshape(1, height, width)
    small = resize(labels, side, smooth=smooth)
    longest = max(height, width)
    expected = side // longest * longest if longest <= side else side
    assert max(small.shape[1:]) == expected
    if smooth and longest > side:
        assert small.min() >= 0
        assert small.max() <= labels.max()
    else:
        assert np.isin(small, labels).all()
    if longest <= side:
        assert (small[:, :: side // longest, :: side // longest] == labels).all()


def test_outlines_stay_one_pixel_wide_and_bright_at_any_size(two_that_touch):
    image = np.random.default_rng(0).integers(0, 200, (1, 12, 14)).astype(np.uint8)
    colors = {tuple(color) for color in label_colors(2)[1:].tolist()}
    for side in (14, 56, 7):
        picture = outline(image, two_that_touch, side)
        assert picture.shape == (side * 12 // 14, side, 3)
        drawn = np.array([[tuple(pixel) in colors for pixel in row] for row in picture.tolist()])
        # the lowest row of an instance is drawn whole, the one above only at its sides
        factor = side // 14 if side >= 14 else 1
        assert drawn.any()
        if side >= 14:
            assert drawn[10 * factor - 1, 2 * factor : 12 * factor].all()
            assert drawn[10 * factor - 2, 2 * factor : 12 * factor].sum() == 4
    assert (outline(image, two_that_touch * 0, 14) == overlay(image, two_that_touch * 0)).all()


def test_outlines_darken_what_is_unlabeled(two_that_touch):
    image = np.random.default_rng(0).integers(0, 200, (1, 12, 14)).astype(np.uint8)
    labels = np.where(two_that_touch > 0, -1, 0)
    plain, dark = (outline(image, values, 14) for values in (labels * 0, labels))
    assert (dark == np.where((labels < 0)[..., None], plain // 2, plain)).all()


def test_a_picture_of_labels_shows_three_states():
    labels = np.array([[-1, 0], [1, 4_000_000_000]])
    picture = label_picture(labels, 4)
    assert picture.shape == (4, 4, 3)
    assert (picture[:2, :2] == 96).all()
    assert not picture[:2, 2:].any()
    assert (picture[2:, :2] == label_colors(1)[1]).all()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4
    assert (label_picture(np.stack([labels * 0, labels, labels * 0]), 4) == picture).all()


def test_a_sheet_has_every_picture_in_its_cell_with_a_line_under_it():
    grey = np.full((30, 50), 9, np.uint8)
    color = np.full((40, 20, 3), (1, 2, 3), np.uint8)
    sheet = contact_sheet([("one", grey), ("two", color), ("three", grey)], columns=2, gap=10)
    height, width = 40 + 20, 50
    assert sheet.shape == (2 * (height + 10) + 10, 2 * (width + 10) + 10, 3)
    assert (sheet[10:40, 10:60] == 9).all()
    assert (sheet[10:50, 70:90] == (1, 2, 3)).all()
    assert (sheet[10:50, 90:120] == 255).all()
    assert (sheet[80:110, 10:60] == 9).all()
    for top, left in ((40, 10), (50, 70), (110, 10)):
        assert sheet[top : top + 20, left : left + 50].min() < 120
    assert (sheet[110:, 70:] == 255).all()


def test_a_text_that_is_too_wide_loses_its_middle():
    picture = np.zeros((8, 60), np.uint8)
    long = contact_sheet([("a" * 80 + "1", picture)])
    assert long.shape == (8 + 20 + 24, 60 + 24, 3)
    assert (long[:, 60 + 12 :] == 255).all()
    # the end is kept: another last digit is another picture
    assert (contact_sheet([("a" * 80 + "4", picture)]) != long).any()
    assert (contact_sheet([("a" * 70 + "1", picture)]) == long).all()
    assert contact_sheet([("wwww", picture[:, :1])]).shape == (8 + 20 + 24, 25, 3)


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ImageError) as error:
        contact_sheet([])
    assert str(error.value) == "there are no pictures to lay out: give at least one"
