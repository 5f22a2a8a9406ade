"""Every scene is an image with connected labels, the same for the same seed."""

from typing import get_args

import numpy as np
import pytest
from scipy import ndimage

from spoco_zoo.errors import SettingError
from spoco_zoo.scenes import simulate_scene
from spoco_zoo.spec import SceneName

SHAPES = {
    "nuclei": (96, 128),
    "dim_nuclei": (12, 64, 80),
    "phase_cells": (256, 300),
    "axons": (96, 128),
    "neurons": (16, 48, 64),
}


@pytest.fixture(params=get_args(SceneName))
def scene(request):
    return request.param


def test_labels_are_compact_and_connected(scene):
    image, labels = simulate_scene(scene, SHAPES[scene], 3)
    assert (image.shape, image.dtype) == (labels.shape, np.uint8)
    ids = np.unique(labels[labels > 0])
    assert len(ids) >= 3
    assert ids.tolist() == list(range(1, len(ids) + 1))
    for number in ids:
        assert ndimage.label(labels == number, np.ones((3,) * labels.ndim))[1] == 1
    assert (labels == 0).any() == (scene != "neurons")  # which fill the volume
    assert image.std() > 5


def test_a_seed_makes_the_same_again_and_another_something_else(scene):
    image, labels = simulate_scene(scene, SHAPES[scene], 5)
    again, same = simulate_scene(scene, SHAPES[scene], 5)
    assert (image == again).all()
    assert (labels == same).all()
    assert (image != simulate_scene(scene, SHAPES[scene], 6)[0]).any()


def test_objects_can_be_told_from_what_is_around_them():
    for scene, sign in (("dim_nuclei", 1), ("axons", -1), ("phase_cells", -1)):
        image, labels = simulate_scene(scene, SHAPES[scene], 1)
        gap = float(image[labels > 0].mean()) - float(image[labels == 0].mean())
        assert sign * gap > 5
    image, labels = simulate_scene("neurons", SHAPES["neurons"], 1)
    border = ndimage.minimum_filter(labels, 3) != ndimage.maximum_filter(labels, 3)
    assert image[border].mean() < image[~border].mean() - 20


@pytest.mark.parametrize(
    ("scene", "shape", "expected"),
    [
        ("axons", (9, 9, 9), "2"),
        ("neurons", (64, 64), "3"),
        ("nuclei", (5,), "2 or 3"),
        ("phase_cells", (0, 9), "2"),
    ],
)
def test_other_axes_are_refused(scene, shape, expected):
    with pytest.raises(SettingError) as error:
        simulate_scene(scene, shape, 0)
    assert str(error.value) == (
        f"shape is {shape}: expected {expected} positive sizes for a scene of {scene}"
    )
