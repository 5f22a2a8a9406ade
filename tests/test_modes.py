"""Modes and clusters of made clouds, held against scikit-learn and HDBSCAN."""

import numpy as np
import pytest
from hdbscan import HDBSCAN
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MeanShift as SklearnMeanShift
from sklearn.metrics import adjusted_rand_score

from spoco_zoo import modes as modes_room
from spoco_zoo.modes import find_means, hdbscan, mean_shift, merge_near, nearest_center

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


def row_of_clouds(e, sigma, seed):
    """Four clouds in a row, 1 apart, long in the direction of the row; and who is of which."""
    random = np.random.default_rng(seed)
    members = random.permutation(np.repeat(np.arange(4), 60))
    points = sigma * random.normal(size=(len(members), e)) * ([1] + [0.3] * (e - 1))
    points[:, 0] += members
    return points.astype(np.float32), members


@pytest.mark.parametrize("e", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_clouds_of_which_one_kernel_sees_two_are_parted_as_scikit_learn_parts_them(e, seed):
    points, _ = row_of_clouds(e, 0.15, seed)
    modes, _ = mean_shift(points, 0.5)
    theirs = SklearnMeanShift(bandwidth=0.5).fit(points)
    assert len(modes) == len(theirs.cluster_centers_)
    assert adjusted_rand_score(nearest_center(points, modes, np.inf), theirs.labels_) >= 0.95


@pytest.mark.parametrize("e", [2, 4])
def test_clouds_that_overlap_are_parted_as_well_as_by_scikit_learn(e):
    # shallow valleys: no two ways of seeding give quite the same modes
    gains = []
    for seed in range(4):
        points, members = row_of_clouds(e, 0.25, seed)
        modes, _ = mean_shift(points, 0.5)
        theirs = SklearnMeanShift(bandwidth=0.5).fit(points)
        ours = adjusted_rand_score(nearest_center(points, modes, np.inf), members)
        gains.append(ours - adjusted_rand_score(theirs.labels_, members))
    assert np.mean(gains) > -0.05


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


@quick
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 60), st.integers(1, 9))
def test_the_nearest_centre_is_that_of_all_distances_written_out(seed, e, n, m):
    random = np.random.default_rng(seed)
    points, centers = random.normal(size=(n, e)), random.normal(size=(m, e))
    reach = random.uniform(0.1, 2, m).astype(np.float32)
    points, centers = points.astype(np.float32), centers.astype(np.float32)
    distances = np.linalg.norm(points[:, None] - centers[None], axis=2)
    nearest, least = distances.argmin(axis=1), distances.min(axis=1)
    expected = np.where(least <= reach[nearest], nearest, -1)
    next_best = np.partition(distances, 1, axis=1)[:, 1] if m > 1 else np.full(n, np.inf)
    is_clear = (abs(least - reach[nearest]) > 1e-4) & (next_best - least > 1e-4)
    found = nearest_center(points, centers, reach)
    assert (found == expected)[is_clear].all()


def test_how_many_points_are_compared_at_once_changes_nothing(monkeypatch):
    random = np.random.default_rng(0)
    points = random.normal(size=(500, 3)).astype(np.float32)
    centers = random.normal(size=(7, 3)).astype(np.float32)
    whole = nearest_center(points, centers, 1.0)
    assert len(np.unique(whole)) == 8
    for at_once in (1, 77, 500):
        monkeypatch.setattr(modes_room, "_POINTS_AT_ONCE", at_once)
        assert (nearest_center(points, centers, 1.0) == whole).all()


# --- HDBSCAN


@settings(max_examples=25, deadline=None)
@given(clouds(), st.sampled_from([0.0, 0.5]), st.none() | st.integers(1, 5), st.integers(2, 12))
def test_clusters_are_those_of_hdbscan_on_the_same_points(points, epsilon, min_samples, min_size):
    spread = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    found = hdbscan(points, epsilon, min_samples, min_size)
    if len(points) <= min_size or spread <= epsilon:
        assert len(np.unique(found)) == 1
        return
    theirs = HDBSCAN(
        min_cluster_size=min_size, min_samples=min_samples, cluster_selection_epsilon=epsilon
    ).fit_predict(points.astype(np.float64))
    if (theirs >= 0).any():
        assert (found == theirs).all()
        return
    # the only cluster there is they call noise: it may be the points around the median, if most
    near = np.linalg.norm(points - np.median(points, axis=0), axis=1) <= epsilon
    is_one = near.sum() >= max(min_size, len(points) / 2)
    assert (found == np.where(near & is_one, 0, -1)).all()


def test_a_noisy_instance_alone_is_found_by_what_most_of_it_says():
    random = np.random.default_rng(0)
    points = random.uniform(-0.2, 0.2, (40, 2)).astype(np.float32)
    points[:8] = random.uniform(-6, 6, (8, 2))
    assert (HDBSCAN(min_cluster_size=30).fit_predict(points.astype(np.float64)) == -1).all()
    assert (hdbscan(points, 0.5, None, 30)[8:] == 0).all()
    assert (hdbscan(points, 0.5, None, 30)[:8] == -1).sum() >= 7


def test_one_compact_cloud_is_one_cluster_and_too_few_points_are_noise():
    random = np.random.default_rng(0)
    cloud = random.uniform(-0.2, 0.2, (40, 2)).astype(np.float32)
    assert (hdbscan(cloud, 0.5, None, 10) == 0).all()
    assert (hdbscan(cloud[:3], 0.5, None, 10) == 0).all()
    assert (hdbscan(9 * cloud[:10], 0.5, None, 10) == -1).all()


@quick
@given(clouds(), st.integers(1, 4))
def test_a_cluster_has_the_mean_of_its_members_and_reaches_the_farthest(points, count):
    clusters = np.arange(len(points)) % (count + 1) - 1
    means, reach = find_means(points, clusters)
    assert len(means) == len(reach) == clusters.max() + 1
    for number, (mean, farthest) in enumerate(zip(means, reach, strict=True)):
        own = points[clusters == number].astype(np.float64)
        np.testing.assert_allclose(mean, own.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(
            farthest, np.linalg.norm(own - own.mean(axis=0), axis=1).max(), atol=1e-5
        )
