"""Modes and clusters of made clouds, held against scikit-learn and HDBSCAN."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MeanShift as SklearnMeanShift

from spoco_zoo.modes import mean_shift, merge_near, nearest_center

quick = settings(max_examples=60, deadline=None)


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


def test_mean_shift_leaves_its_points():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    points.flags.writeable = False
    assert len(mean_shift(points, 0.1)[0]) > 1
