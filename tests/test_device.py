"""Pixels on a device answer as pixels in memory do; here the device is the CPU."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoco_zoo import device
from spoco_zoo.clustering import Canvas, cluster, plan_blocks
from spoco_zoo.device import DenseSteps, DevicePixels
from spoco_zoo.fragments import cluster_block
from spoco_zoo.pixels import HostPixels, Pixels
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

STEPS = DenseSteps("CPUExecutionProvider")


def make_pair(shape, e, seed):
    """One box of one embedding, on the device and in memory."""
    random = np.random.default_rng(seed)
    embedding = random.normal(size=(e, *shape)).astype(np.float32)
    box = tuple(slice(a := random.integers(n), random.integers(a, n) + 1) for n in shape)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(embedding[None])
    there = DevicePixels(value, STEPS, box)
    return there, HostPixels(embedding[(slice(None), *box)]), random


def shape_of(host):
    return host._embedding.shape[1:]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(1, 20), st.integers(0, 2**32)
)
def test_every_answer_is_that_of_memory(shape, e, seed):
    there, here, random = make_pair(shape, e, seed)
    shape = shape_of(here)
    places = np.flatnonzero(random.random(shape).ravel() < 0.6)
    centers = random.normal(size=(4, here.dim)).astype(np.float32)
    reach = random.uniform(0.5, 3, 4).astype(np.float32)
    index = random.integers(0, 4, len(places))
    mask = random.random(shape) < 0.8
    assert there.dim == here.dim
    assert there.is_finite()
    assert (there.points(places) == here.points(places)).all()
    np.testing.assert_allclose(
        there.squares(places, index, centers), here.squares(places, index, centers), rtol=1e-5
    )
    assert (there.nearest(places, centers, reach) == here.nearest(places, centers, reach)).all()
    np.testing.assert_allclose(there.steps(mask), here.steps(mask), rtol=1e-5)
    inner = tuple(slice(n // 2, n) for n in shape)
    crop = np.arange(np.zeros(shape)[inner].size)
    assert (there.crop(inner).points(crop) == here.crop(inner).points(crop)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_noticed_within_the_box_only(value):
    embedding = np.zeros((1, 3, 6, 8), np.float32)
    embedding[0, 1, 5, 2] = value
    there = onnxruntime.OrtValue.ortvalue_from_numpy(embedding)
    assert not DevicePixels(there, STEPS, (slice(0, 6), slice(0, 8))).is_finite()
    assert DevicePixels(there, STEPS, (slice(0, 5), slice(0, 8))).is_finite()


def test_many_pixels_are_asked_for_in_parts(monkeypatch):
    monkeypatch.setattr(device, "_PIXELS_AT_ONCE", 7)
    embedding = np.random.default_rng(0).normal(size=(4, 9, 9)).astype(np.float32)
    there = DevicePixels(
        onnxruntime.OrtValue.ortvalue_from_numpy(embedding[None]), STEPS, (slice(0, 9),) * 2
    )
    centers, reach = embedding[:, 2, :3].T.copy(), np.ones(3, np.float32)
    places = np.arange(81)
    here = HostPixels(embedding)
    assert (there.nearest(places, centers, reach) == here.nearest(places, centers, reach)).all()
    assert (there.nearest(places, centers[:0], reach[:0]) == -1).all()


@pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan(), Consistency()], ids=lambda method: method.method
)
@pytest.mark.parametrize("n_axes", [2, 3])
def test_instances_are_those_of_memory(method, n_axes):
    shape = (70, 60) if n_axes == 2 else (20, 24, 18)
    random = np.random.default_rng(3)
    here = np.indices(shape) // 12
    truth = np.ravel_multi_index(here, (9,) * n_axes)
    centers = random.normal(0, 3, (9**n_axes, 6))
    embedding = np.moveaxis(centers[truth] + random.normal(0, 0.03, (*shape, 6)), -1, 0)
    embedding = embedding.astype(np.float32)
    foreground = random.random(shape) < 0.97
    recipe = Recipe(clustering=method, window=(16,) * n_axes)
    expected = cluster(embedding, foreground, recipe, embedding)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(embedding[None])
    canvas = Canvas(shape, recipe)
    for tile in plan_blocks(shape, recipe, (32,) * n_axes):
        pixels = DevicePixels(value, STEPS, tile.keep)
        canvas.add(tile, cluster_block(pixels, foreground[tile.keep], tile, recipe, pixels))
    assert (canvas.finish(foreground) == expected).all()
    assert expected.max() > 4


def test_pixels_on_a_device_are_pixels():
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 2, 2), np.float32))
    assert isinstance(DevicePixels(value, STEPS, (slice(0, 2), slice(0, 2))), Pixels)
