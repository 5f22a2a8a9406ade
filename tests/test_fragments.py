"""What is found in one block: slopes, samples, pieces, windows."""

import time

import numpy as np
import pytest
from scipy import ndimage

from spoco_zoo import fragments, modes
from spoco_zoo.labels import relabel
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift

piecewise_or_not = pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan()], ids=lambda method: method.method
)


@pytest.mark.parametrize("method", [MeanShift(), Consistency()], ids=lambda method: method.method)
@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_slope_between_two_instances_makes_no_splinters(
    blurred_embedding_of, stripes, run, method, sigma, n_axes
):
    # long straight borders: many pixels agree on every place between two centres
    truth = np.vstack([stripes(20, 20), np.full((20, 40), 3, np.uint32)])
    if n_axes == 3:
        truth = np.stack([truth] * 12)
    blurred = blurred_embedding_of(truth, sigma)
    labels = run(truth, blurred, method)
    assert labels.max() == 3
    assert (labels > 0).all()
    near_border = ndimage.maximum_filter(truth, 5) != ndimage.minimum_filter(truth, 5)
    assert (labels == truth)[~near_border].all()
    assert (labels == truth).mean() > 0.97


def test_a_noisy_embedding_is_not_taken_for_a_slope(embedding_of, stripes, run):
    truth = np.vstack([stripes(20, 20), np.full((20, 40), 3, np.uint32)])
    for spread in (0.2, 0.4, 0.6):
        noisy = embedding_of(truth, 16, spread, twins=False)
        assert (run(truth, noisy, MeanShift()) == truth).all()


@pytest.mark.parametrize("method", [MeanShift(), Consistency()], ids=lambda method: method.method)
def test_three_thousand_pieces_take_a_few_seconds(run, method):
    here = np.indices((600, 500)) % 10
    truth = ndimage.label(((here - 4) ** 2).sum(axis=0) < 10)[0].astype(np.uint32)
    random = np.random.default_rng(0)
    centres = random.normal(size=(3001, 16)).astype(np.float32)
    embedding = np.moveaxis(centres[truth], -1, 0).copy()
    start = time.process_time()
    labels = run(truth, embedding, method)
    assert (labels == relabel(truth)).all()
    assert labels.max() == 3000
    assert time.process_time() - start < 20


@pytest.mark.parametrize("n_axes", [2, 3])
@piecewise_or_not
def test_a_sample_of_the_pixels_is_enough(world, embedding_of, run, method, n_axes, monkeypatch):
    monkeypatch.setattr(fragments, "_MOST_POINTS", 200)
    monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", 400)
    monkeypatch.setattr(modes, "_POINTS_AT_ONCE", 100)
    truth = world(n_axes)
    labels = run(truth, embedding_of(truth), method)
    assert labels.max() == truth.max()
    assert (labels == relabel(truth)).mean() > 0.99


def test_a_sample_keeps_small_instances_and_leaves_strangers_out(
    embedding_of, stripes, run, monkeypatch
):
    monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", 400)
    truth = stripes(20, 20)
    truth[4:8, 4:8], truth[12:16, 30:34] = 3, 4  # of 16 pixels each, a third in the sample
    embedding = embedding_of(truth, twins=False)
    strangers = np.zeros(truth.shape, dtype=bool)
    strangers[3::5, 39] = True  # too few to be an instance
    embedding[:, strangers] = 50
    labels = run(truth, embedding, Hdbscan(), fill_reach=0)
    assert labels.max() == 4
    assert not labels[strangers].any()
    assert (labels == relabel(truth))[~strangers].all()


def test_an_instance_that_falls_through_the_lattice_is_found_in_what_is_left(
    embedding_of, run, monkeypatch
):
    monkeypatch.setattr(fragments, "_MOST_POINTS", 50)
    truth = np.ones((60, 60), np.uint32)
    for number, corner in enumerate([(5, 9), (21, 40), (44, 13), (50, 52)], start=2):
        truth[tuple(slice(c, c + 4) for c in corner)] = number
    labels = run(truth, embedding_of(truth, twins=False), MeanShift())
    assert (labels == relabel(truth)).all()


def test_hdbscan_calls_a_cloud_of_nothing_noise(run, monkeypatch):
    for most_points in (400, 20_000):
        monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", most_points)
        embedding = np.random.default_rng(0).uniform(-50, 50, (6, 30, 30)).astype(np.float32)
        everywhere = np.ones((30, 30), np.uint32)
        assert not run(everywhere, embedding, Hdbscan(epsilon=0.0), min_size=40).any()
