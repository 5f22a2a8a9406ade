"""Clustering of made embeddings whose instances are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo.clustering import cluster
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Head, find_core, find_foreground
from spoco_zoo.labels import relabel
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

METHODS = [MeanShift(), Hdbscan(), Consistency()]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
piecewise_or_not = pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan()], ids=lambda method: method.method
)

few = settings(max_examples=12, deadline=None)


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("e", [1, 2, 16, 64])
def test_separated_embeddings_give_exactly_the_truth(world, embedding_of, run, method, n_axes, e):
    truth = world(n_axes)
    labels = run(truth, embedding_of(truth, e), method)
    assert labels.dtype == np.uint32
    assert (labels == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_without_background_the_truth_is_found_as_well(world, embedding_of, run, method, n_axes):
    truth = world(n_axes) + np.uint32(1)  # what was background is one more instance
    labels = run(truth, embedding_of(truth), method)
    assert (labels == relabel(truth)).all()


@methods
@few
@given(st.integers(0, 99), st.floats(-100, 100), st.integers(2, 20))
def test_moving_and_rotating_all_embeddings_changes_nothing(
    world, embedding_of, run, method, seed, by, e
):
    truth = world(2)
    embedding = embedding_of(truth, e, seed=seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(e, e)))
    turned = np.tensordot(rotation, embedding, 1).astype(np.float32)
    assert (run(truth, embedding, method) == relabel(truth)).all()
    assert (run(truth, turned, method) == relabel(truth)).all()
    assert (run(truth, embedding + np.float32(by), method) == relabel(truth)).all()


@methods
def test_an_embedding_very_far_from_zero_is_clustered_as_one_near_it(
    world, embedding_of, run, method
):
    truth = world(2)
    assert (run(truth, embedding_of(truth) + np.float32(3000), method) == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_flipping_and_transposing_the_image_changes_nothing(
    world, embedding_of, run, method, n_axes, seed
):
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
def test_one_embedding_everywhere_is_one_instance(run, method, shape, e):
    embedding = np.full((e, *shape), 0.3, np.float32)
    everywhere = np.ones(shape, np.uint32)
    assert (run(everywhere, embedding, method) == 1).all()
    assert (run(everywhere, embedding, method, min_size=everywhere.size) == 1).all()
    assert not run(everywhere, embedding, method, min_size=everywhere.size + 1).any()


@methods
@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
def test_no_foreground_and_a_foreground_of_one_pixel(run, method, shape):
    embedding = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    nothing = np.zeros(shape, np.uint32)
    pixel = nothing.copy()
    pixel[(2,) * len(shape)] = 1
    assert not run(nothing, embedding, method).any()
    assert not run(pixel, embedding, method, min_size=2).any()
    for min_size in (0, 1):
        assert (run(pixel, embedding, method, min_size=min_size) == pixel).all()


@pytest.mark.parametrize("method", [MeanShift(), Hdbscan(min_samples=2), Consistency()])
def test_an_instance_of_just_the_least_size_stays(embedding_of, run, method):
    truth = np.zeros((12, 40), np.uint32)
    truth[1:10, 2:12], truth[1:10, 27:37] = 1, 2  # 90 pixels each
    truth[1:4, 16:19], truth[6:8, 16:20] = 3, 4  # 9 and 8 pixels
    embedding = embedding_of(truth, twins=False)
    assert (run(truth, embedding, method, min_size=8) == relabel(truth)).all()
    assert (run(truth, embedding, method, min_size=9) == relabel(truth * (truth < 4))).all()
    assert (run(truth, embedding, method, min_size=10) == truth * (truth < 3)).all()


@piecewise_or_not
@pytest.mark.parametrize(("reach", "width_left"), [(0, 6), (1, 4), (2, 2), (3, 0), (9, 0)])
def test_undecided_pixels_take_the_neighbour_within_reach(
    embedding_of, stripes, run, method, reach, width_left
):
    truth = stripes(20, 6, 20)
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
def test_an_instance_too_small_goes_to_the_one_around_it(embedding_of, stripes, run, method):
    truth = stripes(20, 20)
    truth[9:11, 9:11] = 3
    labels = run(truth, embedding_of(truth, twins=False), method)
    assert (labels == stripes(20, 20)).all()


def test_the_merging_variant_joins_touching_clusters_nearer_than_its_distance(
    stripes, of_values, run
):
    truth = stripes(15, 15, 15)
    embedding = of_values(truth, 9, 0.0, 1.2, 4.0)
    assert (run(truth, embedding, MeanShift()) == truth).all()
    merged = run(truth, embedding, MeanShift(merge_distance=2.0))
    assert (merged == stripes(30, 15)).all()


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


# --- consistency


@pytest.mark.parametrize("n_axes", [2, 3])
def test_consistency_drops_what_the_two_nets_disagree_on_and_keeps_the_rest(
    world, embedding_of, run, n_axes
):
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


def test_consistency_is_as_strict_as_its_threshold(stripes, of_values, run):
    truth = stripes(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :4] = 9  # of 1, the balls of g are 0.4 and, more often, 0.6
    for threshold, kept in ((0.0, 2), (0.5, 2), (0.59, 2), (0.61, 1), (1.0, 1)):
        labels = run(truth, f, Consistency(iou_threshold=threshold, anchors=999), g)
        assert labels.max() == kept


def test_what_lies_on_another_piece_of_foreground_is_no_rival(run):
    truth = np.zeros((20, 44), np.uint32)
    truth[4:16, 4:16], truth[4:16, 20:32] = 1, 2
    shared = np.ones((3, 20, 44), np.float32)  # background too
    assert (run(truth, shared, Consistency()) == truth).all()


def test_another_seed_draws_other_anchors(stripes, of_values, run):
    truth = stripes(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :5] = 9  # half and half: with one anchor of an odd draw either may win
    g[0, :5, 4] = 0  # now 0.525 and 0.475

    def n_kept(seed):
        return run(truth, f, Consistency(iou_threshold=0.5, anchors=1, seed=seed), g).max()

    kept = [n_kept(seed) for seed in range(12)]
    assert set(kept) == {1, 2}
    assert [n_kept(seed) for seed in range(12)] == kept


# --- what is refused


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
