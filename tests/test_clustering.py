"""Clustering of made embeddings whose instances are known."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from sklearn.cluster import MeanShift as SklearnMeanShift

from spoco_zoo import fragments, modes
from spoco_zoo.clustering import cluster
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Head, Prototype, find_core, find_foreground
from spoco_zoo.labels import relabel
from spoco_zoo.modes import mean_shift, merge_near, nearest_center
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

METHODS = [MeanShift(), Hdbscan(), Consistency()]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
piecewise_or_not = pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan()], ids=lambda method: method.method
)

few = settings(max_examples=12, deadline=None)
quick = settings(max_examples=60, deadline=None)


def world(n_axes):
    """Touching blocks in one corner, and two balls far from them and from each other."""
    side, block, n = (60, 8, 3) if n_axes == 2 else (20, 5, 2)
    labels = np.zeros((side,) * n_axes, np.uint32)
    for number, corner in enumerate(np.ndindex((n,) * n_axes), start=1):
        labels[tuple(slice(1 + block * k, 1 + block * (k + 1)) for k in corner)] = number
    here = np.indices(labels.shape)
    for number, place in ((n**n_axes + 1, (0.2, 0.8)), (n**n_axes + 2, (0.8, 0.25))):
        centre = [place[min(axis, 1)] * side for axis in range(n_axes)]
        distance = sum((a - c) ** 2 for a, c in zip(here, centre, strict=True))
        labels[distance < (side / 7) ** 2] = number
    return labels


def embedding_of(labels, e=8, spread=0.05, seed=0, *, twins=True):
    """Centres at least 2 apart, one an instance and one for background, and a little noise.

    The last two instances are twins that share one centre.
    """
    random = np.random.default_rng(seed)
    n = int(labels.max())
    centres = np.zeros((n + 1, e), np.float32)
    centres[:, 0] = random.permutation(n + 1) * 2
    rotation, _ = np.linalg.qr(random.normal(size=(e, e)))
    centres = centres @ rotation
    if twins:
        centres[n] = centres[n - 1]
    noise = random.uniform(-spread, spread, (*labels.shape, e)) / np.sqrt(e)
    return np.moveaxis(centres[labels] + noise, -1, 0).astype(np.float32)


def blocks(*widths, height=20):
    """A line of touching instances, 1, 2, ..., of these widths."""
    return np.repeat(np.arange(1, len(widths) + 1, dtype=np.uint32), widths)[None].repeat(height, 0)


def of_values(labels, *values):
    """An embedding of one dimension, a value for each label from 0 up."""
    return np.array(values, np.float32)[labels][None]


def blurred_embedding_of(labels, sigma):
    """As a network gives it: the centres flow into each other over some pixels."""
    centres = 2.83 * np.eye(int(labels.max()) + 1, 8)  # 4 apart, as a margin of 2 makes them
    sharp = np.moveaxis(centres[labels], -1, 0)
    blurred = ndimage.gaussian_filter(sharp, (0,) + (sigma,) * labels.ndim)
    noise = np.random.default_rng(1).uniform(-0.05, 0.05, blurred.shape)
    return (blurred + noise).astype(np.float32)


def run(labels, embedding, method, momentum_embedding=None, **recipe):
    momentum = embedding if momentum_embedding is None else momentum_embedding
    return cluster(embedding, labels > 0, Recipe(clustering=method, **recipe), momentum)


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("e", [1, 2, 16, 64])
def test_separated_embeddings_give_exactly_the_truth(method, n_axes, e):
    truth = world(n_axes)
    labels = run(truth, embedding_of(truth, e), method)
    assert labels.dtype == np.uint32
    assert (labels == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_without_background_the_truth_is_found_as_well(method, n_axes):
    truth = world(n_axes) + np.uint32(1)  # what was background is one more instance
    labels = run(truth, embedding_of(truth), method)
    assert (labels == relabel(truth)).all()


@methods
@few
@given(st.integers(0, 99), st.floats(-100, 100), st.integers(2, 20))
def test_moving_and_rotating_all_embeddings_changes_nothing(method, seed, by, e):
    truth = world(2)
    embedding = embedding_of(truth, e, seed=seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(e, e)))
    turned = np.tensordot(rotation, embedding, 1).astype(np.float32)
    assert (run(truth, embedding, method) == relabel(truth)).all()
    assert (run(truth, turned, method) == relabel(truth)).all()
    assert (run(truth, embedding + np.float32(by), method) == relabel(truth)).all()


@methods
def test_an_embedding_very_far_from_zero_is_clustered_as_one_near_it(method):
    truth = world(2)
    assert (run(truth, embedding_of(truth) + np.float32(3000), method) == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_flipping_and_transposing_the_image_changes_nothing(method, n_axes, seed):
    truth = world(n_axes)
    embedding = embedding_of(truth, seed=seed)
    for axis in range(n_axes):
        flipped = run(np.flip(truth, axis), np.flip(embedding, axis + 1), method)
        assert (relabel(np.flip(flipped, axis)) == relabel(truth)).all()
    turned = run(truth.T, embedding.transpose(0, *range(n_axes, 0, -1)), method)
    assert (relabel(turned.T) == relabel(truth)).all()


@methods
@few
@given(st.integers(0, 999))
def test_on_any_embedding_labels_are_numbered_pieces_within_the_foreground(method, seed):
    random = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(random.normal(size=(24, 30)), 2) for _ in range(3)]
    embedding = 5 * np.stack(smooth).astype(np.float32)
    foreground = ndimage.gaussian_filter(random.normal(size=(24, 30)), 2) > -0.05
    embedding.flags.writeable = foreground.flags.writeable = False  # a write would raise
    recipe = Recipe(clustering=method, min_size=5)
    labels = cluster(embedding, foreground, recipe, embedding)
    assert not labels[~foreground].any()
    assert (labels == relabel(labels)).all()
    for i in range(1, int(labels.max()) + 1):
        assert ndimage.label(labels == i)[1] == 1
        assert (labels == i).sum() >= 5
    assert (cluster(embedding, foreground, recipe, embedding) == labels).all()


@methods
@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
@pytest.mark.parametrize("e", [1, 64])
def test_one_embedding_everywhere_is_one_instance(method, shape, e):
    embedding = np.full((e, *shape), 0.3, np.float32)
    everywhere = np.ones(shape, np.uint32)
    assert (run(everywhere, embedding, method) == 1).all()
    assert (run(everywhere, embedding, method, min_size=everywhere.size) == 1).all()
    assert not run(everywhere, embedding, method, min_size=everywhere.size + 1).any()


@methods
@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
def test_no_foreground_and_a_foreground_of_one_pixel(method, shape):
    embedding = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    nothing = np.zeros(shape, np.uint32)
    pixel = nothing.copy()
    pixel[(2,) * len(shape)] = 1
    assert not run(nothing, embedding, method).any()
    assert not run(pixel, embedding, method, min_size=2).any()
    for min_size in (0, 1):
        assert (run(pixel, embedding, method, min_size=min_size) == pixel).all()


@pytest.mark.parametrize("method", [MeanShift(), Hdbscan(min_samples=2), Consistency()])
def test_an_instance_of_just_the_least_size_stays(method):
    truth = np.zeros((12, 40), np.uint32)
    truth[1:10, 2:12], truth[1:10, 27:37] = 1, 2  # 90 pixels each
    truth[1:4, 16:19], truth[6:8, 16:20] = 3, 4  # 9 and 8 pixels
    embedding = embedding_of(truth, twins=False)
    assert (run(truth, embedding, method, min_size=8) == relabel(truth)).all()
    assert (run(truth, embedding, method, min_size=9) == relabel(truth * (truth < 4))).all()
    assert (run(truth, embedding, method, min_size=10) == truth * (truth < 3)).all()


@piecewise_or_not
@pytest.mark.parametrize(("reach", "width_left"), [(0, 6), (1, 4), (2, 2), (3, 0), (9, 0)])
def test_undecided_pixels_take_the_neighbour_within_reach(method, reach, width_left):
    truth = blocks(20, 6, 20)
    embedding = embedding_of(truth, twins=False)
    # between the two, every pixel is alone with its embedding
    between = truth == 2
    alone = np.random.default_rng(0).uniform(-50, 50, (len(embedding), between.sum()))
    embedding[:, between] = alone
    labels = run(truth, embedding, method, fill_reach=reach)
    assert (labels == 0).sum() == 20 * width_left
    assert (labels[:, :20] == 1).all()
    assert (labels[:, -20:] == 2).all()


@piecewise_or_not
def test_an_instance_too_small_goes_to_the_one_around_it(method):
    truth = blocks(20, 20)
    truth[9:11, 9:11] = 3
    labels = run(truth, embedding_of(truth, twins=False), method)
    assert (labels == blocks(20, 20)).all()


@pytest.mark.parametrize("method", [MeanShift(), Consistency()], ids=lambda method: method.method)
@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_slope_between_two_instances_makes_no_splinters(method, sigma, n_axes):
    # long straight borders: many pixels agree on every place between two centres
    truth = np.vstack([blocks(20, 20), np.full((20, 40), 3, np.uint32)])
    if n_axes == 3:
        truth = np.stack([truth] * 12)
    blurred = blurred_embedding_of(truth, sigma)
    labels = run(truth, blurred, method)
    assert labels.max() == 3
    assert (labels > 0).all()
    near_border = ndimage.maximum_filter(truth, 5) != ndimage.minimum_filter(truth, 5)
    assert (labels == truth)[~near_border].all()
    assert (labels == truth).mean() > 0.97


def test_a_noisy_embedding_is_not_taken_for_a_slope():
    truth = np.vstack([blocks(20, 20), np.full((20, 40), 3, np.uint32)])
    for spread in (0.2, 0.4, 0.6):
        noisy = embedding_of(truth, 16, spread, twins=False)
        assert (run(truth, noisy, MeanShift()) == truth).all()


@pytest.mark.parametrize("method", [MeanShift(), Consistency()], ids=lambda method: method.method)
def test_three_thousand_pieces_take_a_few_seconds(method):
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
def test_a_sample_of_the_pixels_is_enough(method, n_axes, monkeypatch):
    monkeypatch.setattr(fragments, "_MOST_POINTS", 200)
    monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", 400)
    monkeypatch.setattr(modes, "_POINTS_AT_ONCE", 100)
    truth = world(n_axes)
    labels = run(truth, embedding_of(truth), method)
    assert labels.max() == truth.max()
    assert (labels == relabel(truth)).mean() > 0.99


def test_a_sample_keeps_small_instances_and_leaves_strangers_out(monkeypatch):
    monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", 400)
    truth = blocks(20, 20)
    truth[4:8, 4:8], truth[12:16, 30:34] = 3, 4  # of 16 pixels each, a third in the sample
    embedding = embedding_of(truth, twins=False)
    strangers = np.zeros(truth.shape, dtype=bool)
    strangers[3::5, 39] = True  # too few to be an instance
    embedding[:, strangers] = 50
    labels = run(truth, embedding, Hdbscan(), fill_reach=0)
    assert labels.max() == 4
    assert not labels[strangers].any()
    assert (labels == relabel(truth))[~strangers].all()


def test_an_instance_that_falls_through_the_lattice_is_found_in_what_is_left(monkeypatch):
    monkeypatch.setattr(fragments, "_MOST_POINTS", 50)
    truth = np.ones((60, 60), np.uint32)
    for number, corner in enumerate([(5, 9), (21, 40), (44, 13), (50, 52)], start=2):
        truth[tuple(slice(c, c + 4) for c in corner)] = number
    labels = run(truth, embedding_of(truth, twins=False), MeanShift())
    assert (labels == relabel(truth)).all()


def test_hdbscan_calls_a_cloud_of_nothing_noise(monkeypatch):
    for most_points in (400, 20_000):
        monkeypatch.setattr(fragments, "_MOST_DENSITY_POINTS", most_points)
        embedding = np.random.default_rng(0).uniform(-50, 50, (6, 30, 30)).astype(np.float32)
        everywhere = np.ones((30, 30), np.uint32)
        assert not run(everywhere, embedding, Hdbscan(epsilon=0.0), min_size=40).any()


# Mean-shift.


@st.composite
def clouds(draw):
    """Points in up to 5 clouds of radius 0.2 with centres at least 2 apart, well shuffled."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    e, n = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    centres = np.zeros((n, e))
    centres[:, 0] = 2 * np.arange(n)
    rotation, _ = np.linalg.qr(random.normal(size=(e, e)))
    sizes = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    members = random.permutation(np.repeat(np.arange(n), sizes))
    points = (centres @ rotation)[members] + random.uniform(-0.2, 0.2, (len(members), e)) / e**0.5
    return points.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(clouds())
def test_modes_and_their_points_are_those_of_scikit_learn(points):
    modes, _ = mean_shift(points, 0.5)
    nearest = nearest_center(points, modes, 0.5)
    theirs = SklearnMeanShift(bandwidth=0.5, cluster_all=False).fit(points)
    assert len(modes) == len(theirs.cluster_centers_)
    distances = np.linalg.norm(modes[:, None] - theirs.cluster_centers_[None], axis=2)
    match = distances.argmin(axis=1)
    assert (distances.min(axis=1) < 1e-3).all()
    assert (match[nearest] == theirs.labels_).all()
    crowds = np.bincount(nearest, minlength=len(modes))
    assert (np.diff(crowds) <= 0).all()  # the most crowded first


@quick
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 120), st.floats(0.1, 3))
def test_modes_are_apart_and_points_go_to_the_nearest_within_the_bandwidth(seed, e, n, bandwidth):
    points = np.random.default_rng(seed).normal(size=(n, e)).astype(np.float32)
    modes, _ = mean_shift(points, bandwidth)
    nearest = nearest_center(points, modes, bandwidth)
    apart = np.linalg.norm(modes[:, None] - modes[None], axis=2) + 9 * np.eye(len(modes))
    assert apart.min() > bandwidth * 0.999
    distances = np.linalg.norm(points[:, None] - modes[None], axis=2)
    reached = distances.min(axis=1) <= bandwidth
    unsure = abs(distances.min(axis=1) - bandwidth) < 1e-4
    assert ((nearest >= 0) == reached)[~unsure].all()
    chosen = distances[np.arange(n), nearest]
    assert np.allclose(chosen[nearest >= 0], distances.min(axis=1)[nearest >= 0], atol=1e-4)


def test_crowds_count_the_points_within_the_bandwidth_of_each_mode():
    points = np.repeat(np.array([[0.0], [5.0], [9.0]], np.float32), [10, 4, 7], axis=0)
    modes, crowds = mean_shift(points, 0.5)
    np.testing.assert_allclose(modes.ravel(), [0, 9, 5], atol=1e-5)
    assert crowds.tolist() == [10, 7, 4]


def test_every_centre_has_a_reach_of_its_own():
    points = np.array([[0.0], [0.9], [1.1], [9.0], [6.9]], np.float32)
    centers, reach = np.array([[0.0], [9.0]], np.float32), np.array([1.0, 2.0], np.float32)
    assert nearest_center(points, centers, reach).tolist() == [0, 0, -1, 1, -1]
    assert nearest_center(points, centers[:0], reach[:0]).tolist() == [-1] * 5


def test_merging_joins_the_smaller_to_the_nearest_larger_that_stands():
    centers = np.array([[0.0], [1.5], [3.0], [8.0]], np.float32)
    # the largest stands, its neighbour is joined, the next is too far from what stands
    assert merge_near(centers, np.array([9, 5, 4, 1]), 2.0).tolist() == [0, 0, 2, 3]
    assert merge_near(centers, np.array([4, 9, 5, 1]), 2.0).tolist() == [1, 1, 1, 3]
    assert merge_near(centers, np.array([9, 5, 4, 1]), 1.0).tolist() == [0, 1, 2, 3]


def test_the_merging_variant_joins_touching_clusters_nearer_than_its_distance():
    truth = blocks(15, 15, 15)
    embedding = of_values(truth, 9, 0.0, 1.2, 4.0)
    assert (run(truth, embedding, MeanShift()) == truth).all()
    merged = run(truth, embedding, MeanShift(merge_distance=2.0))
    assert (merged == blocks(30, 15)).all()


def test_mean_shift_leaves_its_points():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    points.flags.writeable = False
    assert len(mean_shift(points, 0.1)[0]) > 1


# Consistency.


@pytest.mark.parametrize("n_axes", [2, 3])
def test_consistency_drops_what_the_two_nets_disagree_on_and_keeps_the_rest(n_axes):
    truth = world(n_axes)
    f = embedding_of(truth)
    g = embedding_of(truth, seed=5)  # another space, the same instances
    assert (run(truth, f, Consistency(), g) == relabel(truth)).all()
    # g scatters instance 2, and makes one of 5 and 6
    random = np.random.default_rng(0)
    g[:, truth == 2] = 10 * random.normal(size=(len(g), (truth == 2).sum()))
    g[:, truth == 6] = g[:, truth == 5]
    kept = truth * ~np.isin(truth, (2, 5, 6))
    assert (run(truth, f, Consistency(), g) == relabel(kept)).all()


def test_consistency_is_as_strict_as_its_threshold():
    truth = blocks(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :4] = 9  # of 1, the balls of g are 0.4 and, more often, 0.6
    for threshold, kept in ((0.0, 2), (0.5, 2), (0.59, 2), (0.61, 1), (1.0, 1)):
        labels = run(truth, f, Consistency(iou_threshold=threshold, anchors=999), g)
        assert labels.max() == kept


def test_what_lies_on_another_piece_of_foreground_is_no_rival():
    truth = np.zeros((20, 44), np.uint32)
    truth[4:16, 4:16], truth[4:16, 20:32] = 1, 2
    shared = np.ones((3, 20, 44), np.float32)  # background too
    assert (run(truth, shared, Consistency()) == truth).all()


def test_another_seed_draws_other_anchors():
    truth = blocks(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :5] = 9  # half and half: with one anchor of an odd draw either may win
    g[0, :5, 4] = 0  # now 0.525 and 0.475

    def n_kept(seed):
        return run(truth, f, Consistency(iou_threshold=0.5, anchors=1, seed=seed), g).max()

    kept = [n_kept(seed) for seed in range(12)]
    assert set(kept) == {1, 2}
    assert [n_kept(seed) for seed in range(12)] == kept


# Foreground.


def test_the_head_says_foreground_from_its_threshold_on():
    embedding = np.zeros((2, 1, 4), np.float32)
    probability = np.array([[0.2, 0.5, 0.7, 0.9]], np.float32)
    assert find_foreground(embedding, Head(), probability).tolist() == [[False, True, True, True]]
    strict = find_foreground(embedding, Head(threshold=0.8), probability)
    assert strict.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 4)])
def test_a_prototype_says_background_within_its_radius(shape):
    embedding = np.array([[1, 1, 4, 1], [2, 3.5, 6, 5]], np.float32).reshape(2, *shape)
    rule = Prototype(center=(1.0, 2.0), radius=1.5)  # at distance 0, 1.5, 5 and 3
    foreground = find_foreground(embedding, rule)
    assert foreground.shape == shape
    assert foreground.ravel().tolist() == [False, False, True, True]


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_everywhere_is_everywhere(shape):
    foreground = find_foreground(np.zeros((3, *shape), np.float32), Everywhere())
    assert foreground.shape == shape
    assert foreground.dtype == bool
    assert foreground.all()


def test_a_head_that_is_not_there_is_named_with_the_other_rules():
    with pytest.raises(SettingError) as error:
        find_foreground(np.zeros((2, 3, 4), np.float32), Head())
    assert str(error.value) == (
        "foreground rule 'head' needs a network with a foreground head, "
        "this one has none: use 'prototype' or 'everywhere'"
    )


def test_a_prototype_of_another_network_is_refused():
    with pytest.raises(SettingError) as error:
        find_foreground(np.zeros((2, 3, 4), np.float32), Prototype(center=(0.0,) * 3, radius=1.0))
    assert str(error.value) == (
        "foreground prototype has 3 numbers, the embedding has 2: both must be the same network's"
    )


# What is refused.


@methods
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_momentum", [False, True])
def test_an_embedding_that_is_not_finite_is_refused(method, value, is_momentum):
    good = np.zeros((2, 4, 5), np.float32)
    bad = good.copy()
    bad[1, 2, 3] = value
    pair = (good, bad) if is_momentum else (bad, good)
    with pytest.raises(SettingError) as error:
        cluster(pair[0], np.ones((4, 5), bool), Recipe(clustering=method), pair[1])
    assert str(error.value) == (
        "the embedding holds NaN or infinity: expected finite numbers; "
        "the image or the network is damaged"
    )


def test_consistency_without_a_momentum_embedding_is_refused():
    with pytest.raises(SettingError) as error:
        cluster(
            np.zeros((2, 4, 5), np.float32),
            np.ones((4, 5), bool),
            Recipe(clustering=Consistency()),
        )
    assert str(error.value) == (
        "consistency clustering needs the embedding of the momentum net, "
        "this package has none: use mean_shift or hdbscan"
    )


positive = st.floats(1e-6, exclude_min=True)  # infinity included
recipes = st.builds(
    Recipe,
    clustering=st.one_of(
        st.builds(MeanShift, bandwidth=positive),
        st.builds(Hdbscan, epsilon=st.floats(0), min_samples=st.none() | st.integers(1)),
        st.builds(
            Consistency,
            bandwidth=positive,
            iou_threshold=st.floats(0, 1),
            anchors=st.integers(1),
            seed=st.integers(0),
        ),
    ),
    foreground=st.one_of(
        st.builds(Head, threshold=st.floats(0, 1, exclude_min=True, exclude_max=True)),
        st.builds(
            Prototype,
            center=st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
            radius=positive,
        ),
        st.just(Everywhere()),
    ),
    min_size=st.integers(0),
    fill_reach=st.integers(0),
)


@quick
@given(recipes)
def test_a_recipe_survives_json(recipe):
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    "words",
    [
        {"min_sise": 3},
        {"clustering": {"method": "mean_shift", "bandwith": 0.5}},
        {"clustering": {"method": "mean_shift", "epsilon": 0.5}},
        {"foreground": {"rule": "everywhere", "threshold": 0.5}},
    ],
)
def test_an_unknown_word_in_a_recipe_is_refused(words):
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(words)
    assert [problem["type"] for problem in error.value.errors()] == ["extra_forbidden"]


@pytest.mark.parametrize(
    "words",
    [
        {"min_size": -1},
        {"fill_reach": 1.5},
        {"clustering": {"method": "mean_shift", "bandwidth": 0}},
        {"clustering": {"method": "hdbscan", "min_samples": 0}},
        {"clustering": {"method": "consistency", "iou_threshold": 1.1}},
        {"clustering": {"method": "watershed"}},
        {"foreground": {"rule": "head", "threshold": 1}},
        {"foreground": {"rule": "prototype", "center": [0.0]}},
    ],
)
def test_an_impossible_number_or_name_in_a_recipe_is_refused(words):
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(words)
    assert len(error.value.errors()) == 1


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError) as error:
        Recipe().min_size = 3
    assert [problem["type"] for problem in error.value.errors()] == ["frozen_instance"]


def test_instances_joined_by_an_uncertain_bridge_are_told_apart_in_the_core():
    # one embedding for both discs: only the head's doubt on the bridge parts them
    probability = np.zeros((20, 44), np.float32)
    probability[5:15, 5:18] = 0.95
    probability[5:15, 26:39] = 0.95
    probability[9:11, 18:26] = 0.5
    embedding = np.zeros((2, 20, 44), np.float32)
    rule = Head(threshold=0.3, core_threshold=0.8)
    recipe = Recipe(foreground=rule, min_size=5, fill_reach=4)
    foreground = find_foreground(embedding, rule, probability)
    core = find_core(foreground, rule, probability)
    labels = cluster(embedding, foreground, recipe, core=core)
    assert labels.max() == 2
    assert ((labels > 0) == foreground).all()
    assert cluster(embedding, foreground, recipe).max() == 1


def test_without_a_core_threshold_all_foreground_is_core():
    probability = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    foreground = probability >= 0.4
    for rule in (Head(threshold=0.4), Everywhere()):
        np.testing.assert_array_equal(find_core(foreground, rule, probability), foreground)


def test_a_core_threshold_below_the_threshold_is_refused():
    with pytest.raises(ValidationError) as error:
        Head(threshold=0.5, core_threshold=0.4)
    assert "core_threshold is 0.4: expected at least the threshold, 0.5" in str(error.value)
