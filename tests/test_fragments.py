"""What is found in one block: slopes, samples, pieces, windows."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo import fragments, modes
from spoco_zoo.clustering import cluster, plan_blocks
from spoco_zoo.fragments import cluster_block
from spoco_zoo.labels import relabel
from spoco_zoo.pixels import HostPixels
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

piecewise_or_not = pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan()], ids=lambda method: method.method
)
METHODS = [MeanShift(), Hdbscan(), Consistency(anchors=20), MeanShift(merge_distance=1.2)]
variants = pytest.mark.parametrize(
    "method", METHODS, ids=["mean_shift", "hdbscan", "consistency", "merging"]
)
SHAPES = {2: (50, 41), 3: (18, 12, 17)}
WINDOWS = {2: (16, 16), 3: (8, 8, 8)}


def cluster_whole(f, foreground, recipe, g, threads=None):
    """Cluster an image as one block."""
    (tile,) = plan_blocks(foreground.shape, recipe, (1000,) * foreground.ndim)
    g = None if g is None else HostPixels(g)
    return cluster_block(HostPixels(f), foreground, tile, recipe, g, threads)


# --- blocks


@variants
@pytest.mark.parametrize("n_axes", [2, 3])
def test_threads_change_nothing(scene, method, n_axes):
    f, foreground, g = scene("cells", SHAPES[n_axes])
    recipe = Recipe(clustering=method, min_size=6, window=WINDOWS[n_axes])
    alone = cluster_whole(f, foreground, recipe, g, threads=1)
    assert len(alone.centers) > 5
    for threads in (2, 5, None):
        found = cluster_whole(f, foreground, recipe, g, threads)
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.uncounted
@variants
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("kind", ["cells", "gaps", "crumbs"])
def test_the_clusters_of_a_window_depend_on_its_margin_and_on_nothing_else(
    scene, method, n_axes, kind
):
    f, foreground, g = scene(kind, SHAPES[n_axes])
    recipe = Recipe(clustering=method, min_size=6, window=WINDOWS[n_axes])
    before = cluster_whole(f, foreground, recipe, g)
    random = np.random.default_rng(0)
    for tile in list(plan_blocks(foreground.shape, recipe, WINDOWS[n_axes]))[::5]:
        strange = [random.normal(size=e.shape).astype(np.float32) for e in (f, g)]
        for e, new in zip((f, g), strange, strict=True):
            new[:, *tile.keep] = e[:, *tile.keep]
        elsewhere = random.random(foreground.shape) < 0.7
        elsewhere[tile.keep] = foreground[tile.keep]
        after = cluster_whole(strange[0], elsewhere, recipe, strange[1])
        here = [found.labels[tile.write] for found in (before, after)]
        assert (relabel(here[0]) == relabel(here[1])).all()


@variants
def test_labels_of_a_block_number_its_clusters(scene, method):
    f, foreground, g = scene("gaps", SHAPES[2])
    recipe = Recipe(clustering=method, min_size=6, window=WINDOWS[2])
    for tile in plan_blocks(foreground.shape, recipe, (32, 16)):
        seen = (slice(None), *tile.keep)
        found = cluster_block(
            HostPixels(f[seen]), foreground[tile.keep], tile, recipe, HostPixels(g[seen])
        )
        assert found.labels.shape == foreground[tile.write].shape
        assert found.labels.max() <= len(found.centers) == len(found.reach)
        assert len(found.agreement) == len(found.centers)
        assert not found.labels[~foreground[tile.write]].any()
        assert np.isin(found.links, np.arange(1, len(found.centers) + 1)).all()
        # nobody is farther from its centre than the centre reaches
        labels = found.labels[found.labels > 0]
        points = f[:, *tile.write][:, found.labels > 0].T
        gaps = np.linalg.norm(points - found.centers[labels - 1], axis=1)
        assert (gaps <= found.reach[labels - 1] + 1e-4).all()


# --- compact pieces


@pytest.mark.parametrize("size", [3, 4, 5, 8])
@piecewise_or_not
def test_a_compact_piece_is_one_cluster_with_the_mean_as_centre(method, size):
    """Of a window of 16 the margin is 4: what is larger is left to the windows."""
    recipe = Recipe(clustering=method, window=(16, 16), min_size=4)
    foreground = np.zeros((40, 40), dtype=bool)
    foreground[14 : 14 + size, 15 : 15 + size] = True
    f = np.random.default_rng(0).uniform(-0.2, 0.2, (3, 40, 40)).astype(np.float32)
    found = cluster_whole(f, foreground, recipe, None)
    fits = size <= 4
    assert len(found.centers) == (1 if fits else 4)  # four windows meet where it lies
    assert ((found.labels > 0) == foreground).all()
    if fits:
        np.testing.assert_allclose(found.centers[0], f[:, foreground].mean(axis=1), atol=1e-5)


@piecewise_or_not
def test_a_piece_of_two_embeddings_is_not_compact(method):
    foreground = np.zeros((40, 40), dtype=bool)
    foreground[10:16, 10:22] = True
    f = np.zeros((2, 40, 40), np.float32)
    f[0, :, 16:] = 3
    labels = cluster(f, foreground, Recipe(clustering=method))
    assert (labels[10:16, 10:16] == 1).all()
    assert (labels[10:16, 16:22] == 2).all()


# --- slopes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(1, 1), (1, 7), (6, 9), (3, 4, 5)]))
def test_a_step_is_that_to_the_nearer_neighbour_on_the_worst_axis(seed, shape):
    random = np.random.default_rng(seed)
    f = random.normal(size=(3, *shape)).astype(np.float32)
    core = random.random(shape) < 0.7
    found = HostPixels(f).steps(core)
    for place in np.argwhere(core):
        worst = 0.0
        for axis in range(len(shape)):
            gaps = []
            for step in (-1, 1):
                other = place.copy()
                other[axis] += step
                if 0 <= other[axis] < shape[axis] and core[tuple(other)]:
                    gaps.append(np.linalg.norm(f[:, *place] - f[:, *other]))
            worst = max(worst, min(gaps, default=0.0))
        np.testing.assert_allclose(found[tuple(place)], worst, rtol=1e-5)


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


@pytest.mark.uncounted
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


def test_an_unthinned_clustering_by_hdbscan_is_hdbscan(embedding_of):
    from hdbscan import HDBSCAN

    here = np.indices((40, 44))
    truth = (here[0] // 10 * 4 + here[1] // 11 + 1).astype(np.uint32)
    f = embedding_of(truth, spread=0.3, twins=False)
    labels = cluster(f, truth > 0, Recipe(clustering=Hdbscan(), min_size=10))
    points = f.reshape(len(f), -1).T.astype(np.float64)
    plain = HDBSCAN(min_cluster_size=10, cluster_selection_epsilon=0.5).fit_predict(points)
    assert (labels == relabel(plain.reshape(truth.shape) + 1)).all()
    assert (labels == truth).all()


def test_pixels_on_a_slope_within_reach_of_the_centre_count_for_the_size_of_an_instance():
    foreground = np.zeros((12, 40), dtype=bool)
    foreground[5, 3:14] = foreground[6, 3] = True
    f = np.zeros((1, 12, 40), np.float32)
    f[0, 5, 3], f[0, 5, 13], f[0, 6, 3] = 0.45, -0.45, 9.0  # the last is a stranger
    labels = cluster(f, foreground, Recipe(min_size=11))
    assert (labels[5, 3:14] == 1).all()


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.method)
def test_the_end_of_a_long_instance_is_not_smaller_than_the_instance(method):
    fibre = np.ones((3, 3, 80), dtype=bool)
    f = np.zeros((2, 3, 3, 80), np.float32)
    labels = cluster(f, fibre, Recipe(clustering=method, min_size=300), f)
    assert (labels == 1).all()


def test_hdbscan_finds_small_instances_in_windows_that_do_not_hold_too_many():
    here = np.indices((300, 300)) // 10
    truth = (here[0] * 30 + here[1] + 1).astype(np.uint32)  # of 100 pixels each
    f = (2 * here + np.random.default_rng(0).normal(0, 0.05, here.shape)).astype(np.float32)
    labels = cluster(f, truth > 0, Recipe(clustering=Hdbscan(), window=(64, 64)))
    assert (labels == relabel(truth)).all()


@pytest.mark.uncounted
def test_consistency_drops_no_small_instance_that_both_nets_find():
    here = np.indices((400, 400))
    foreground = (here % 5 < 4).all(axis=0)  # 6400 pieces of 16 pixels
    f = 2 * (here // 5).astype(np.float32)
    recipe = Recipe(clustering=Consistency(anchors=10), window=(400, 400))
    assert cluster(f, foreground, recipe, f).max() == 6400


# --- the lattice


def thin_box(thinning, n_axes):
    """Thin a box that the lattice fills evenly; the kept position of each line, in 0..thinning."""
    where = np.indices((thinning,) * n_axes).reshape(n_axes, -1)
    everyone = np.arange(where.shape[1])
    kept, found = fragments._thin(everyone, where, len(everyone) // thinning, 0)
    assert found == thinning
    is_kept = np.isin(everyone, kept).reshape((thinning,) * n_axes)
    assert (is_kept.sum(axis=-1) == 1).all()
    return is_kept.argmax(axis=-1)


def largest_empty_box(thinning, n_axes):
    """Pixels of the largest box without a kept one.

    All boxes of a size are alike on a lattice, so those in the first corner stand for them.
    """
    place = thin_box(thinning, n_axes).reshape(thinning, -1)
    largest = 0
    for high in range(1, len(place) + 1):
        for wide in range(1, min(place.shape[1], 12 * thinning // high) + 1):
            taken = np.unique(place[:high, :wide])
            gap = np.diff(np.append(taken, taken[0] + thinning)).max() - 1
            largest = max(largest, high * wide * int(gap))
    return largest


@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("thinning", [2, 3, 4, 6, 9, 16, 23, 36, 37, 47, 64])
def test_every_line_keeps_one_pixel_in_as_many_as_were_asked_for(n_axes, thinning):
    here = thin_box(thinning, n_axes)
    for axis in range(n_axes - 1):
        lines = np.sort(here, axis=axis)
        assert (np.moveaxis(lines, axis, -1) == np.arange(thinning)).all()


@pytest.mark.parametrize(("n_axes", "times"), [(2, 3), (3, 7)])
def test_no_box_of_a_few_times_the_thinning_is_empty(n_axes, times):
    for thinning in range(2, 65):
        assert largest_empty_box(thinning, n_axes) < times * thinning
