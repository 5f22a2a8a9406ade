"""Pictures of a validation: what is in them, and that they leave no trace in the run."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spoco_zoo.figures import label_colors
from spoco_zoo.fitting import Embedded
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import LossSettings
from spoco_zoo.training.pictures import draw, sample_of, show_pictures, soft_masks
from spoco_zoo.training.samples import Batch, Sample

LOSS = LossSettings()


class Board:
    """Keeps what it is shown."""

    def __init__(self):
        self.shown = {}

    def add_image(self, tag, pixels, step, dataformats):
        self.shown[tag] = (pixels, step, dataformats)


@pytest.fixture
def seen(world, embedding_of):
    def make(n_axes=2, *, probability=True, states=None):
        labels = world(n_axes)
        embedding = embedding_of(labels, twins=False)
        states = labels.astype(np.int64) if states is None else states
        image = np.random.default_rng(0).normal(size=(1, *labels.shape)).astype(np.float32)
        head = (labels > 0).astype(np.float32) if probability else None
        sample = Sample("one", image, states, ())
        return sample, Embedded(embedding, None, head, states), labels

    return make


@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("probability", [True, False])
def test_a_picture_holds_six_panels_of_at_most_256_pixels(seen, n_axes, probability):
    one = seen(n_axes, probability=probability)
    picture = draw(one, LOSS)
    side = 256 // one[2].shape[-1] * one[2].shape[-1]
    assert picture.shape == (2 * side + 8, 3 * side + 16, 3)
    foreground = picture[side + 8 :, 2 * side + 16 :]
    assert np.unique(foreground).tolist() == ([0, 255] if probability else [255])
    panels = [picture[:side, (side + 8) * n : (side + 8) * n + side] for n in range(3)]
    # what was found is the truth here, and the image alone has no colour
    assert (panels[1] == panels[2]).all()
    assert (panels[0] == panels[0][..., :1]).all()
    assert (panels[1] != panels[0]).any()


def test_large_images_become_smaller(seen):
    sample, embedded, _ = seen()
    large = [np.repeat(np.repeat(part, 9, -1), 9, -2) for part in (sample.image, sample.labels)]
    big = Sample("big", large[0], large[1], ())
    embedding = np.repeat(np.repeat(embedded.embedding, 9, -1), 9, -2)
    states = large[1]
    picture = draw((big, Embedded(embedding, None, None, states), states.astype(np.uint32)), LOSS)
    assert picture.shape == (2 * 256 + 8, 3 * 256 + 16, 3)


def test_unlabelled_pixels_are_tinted_in_the_labels(seen):
    states = np.zeros((60, 60), np.int64)
    states[:, 30:] = UNLABELED
    picture = draw(seen(states=states), LOSS)
    labels = picture[:240, 2 * 248 :].astype(int)
    assert (labels[:, :120, 0] == labels[:, :120, 2]).all()
    assert (labels[:, 120:, 2] - labels[:, 120:, 1] >= 49).all()
    lower = picture[248:, 248 : 248 + 240]
    assert not lower.any()  # no instance, no soft mask


def test_a_soft_mask_is_one_at_the_mean_and_half_at_the_margin():
    states = np.array([[3, 3, 0, 0]])
    embedding = np.array([[[0.0, 0.0, 0.5, 9.0]]])
    picture = soft_masks(embedding, states, LOSS)
    color = label_colors(3)[3]
    assert (picture[0, :2] == color).all()
    assert (picture[0, 2] == np.rint(color * 0.5)).all()
    assert not picture[0, 3].any()


def test_at_most_six_soft_masks_are_shown(world, embedding_of):
    labels = world(2)
    embedding = embedding_of(labels, twins=False)
    picture = soft_masks(embedding, labels.astype(np.int64), LOSS)
    bright = [i for i in range(1, labels.max() + 1) if picture[labels == i].max(-1).mean() > 100]
    assert len(bright) == 6
    assert {bright[0], bright[-1]} == {1, int(labels.max())}


def test_a_crop_is_the_first_of_its_batch():
    images = torch.arange(2 * 16, dtype=torch.float32).reshape(2, 1, 4, 4)
    labels = torch.arange(2 * 16).reshape(2, 4, 4)
    crop = sample_of(Batch(images, images + 1, labels))
    assert crop.name == "training crop"
    assert (crop.image == images[0].numpy()).all()
    assert (crop.labels == labels[0].numpy()).all()


def test_pictures_are_shown_by_name_and_draw_no_random_numbers(seen):
    board, states = Board(), (np.random.get_state()[1].copy(), torch.get_rng_state())
    show_pictures(board, 7, [seen()], LOSS)
    (tag,) = board.shown
    pixels, step, order = board.shown[tag]
    assert (tag, step, order) == ("pictures/one", 7, "HWC")
    assert pixels.dtype == np.uint8
    assert (np.random.get_state()[1] == states[0]).all()
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_run_shows_two_validation_images_and_a_crop(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "tensorboard"), {"images": 0})
    events.Reload()
    tags = events.Tags()["images"]
    assert tags == ["pictures/3", "pictures/4", "pictures/training crop"]
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [20]
