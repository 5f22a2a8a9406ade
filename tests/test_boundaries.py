"""Instances between boundaries: each seed grows to the ridge, and to nothing beyond it."""

import numpy as np
import pytest

from spoco_zoo.boundaries import Watershed, grow_instances

ONE = Watershed(min_size=0)


def line(*values):
    return np.array([values] * 3, np.float32)


def test_neighbours_meet_on_the_ridge():
    boundary = line(0, 0, 0.2, 0.9, 0.6, 0.3, 0, 0)
    found = grow_instances(boundary, ONE)
    assert found.dtype == np.uint32
    assert found[0].tolist()[:3] == [1, 1, 1]
    assert found[0].tolist()[4:] == [2] * 4
    assert found[0, 3] in (1, 2)


def test_the_ridge_decides_and_not_the_middle_between_seeds():
    found = grow_instances(
        line(0, 0.9, 0.3, 0.3, 0.3, 0), Watershed(seed_threshold=0.8, min_size=0)
    )
    assert found[0].tolist() == [1, 1, 2, 2, 2, 2]


def test_a_gap_in_the_boundary_joins_and_a_higher_threshold_of_seeds_parts():
    boundary = line(0, 0, 0, 0.4, 0, 0, 0)
    assert grow_instances(boundary, ONE).max() == 1
    assert grow_instances(boundary, Watershed(seed_threshold=0.7, min_size=0)).max() == 2


def test_instances_grow_through_foreground_and_never_over_a_gap():
    interior = line(1, 1, 1, 0, 1, 1, 0, 1)
    boundary = line(0, 0, 0, 0, 0, 0, 0, 0.9)  # the last piece has no seed
    found = grow_instances(boundary, ONE, interior)
    assert found[0].tolist() == [1, 1, 1, 0, 2, 2, 0, 0]


def test_an_interior_that_ends_at_the_boundary_takes_it_in():
    interior, boundary = line(0, 0, 1, 1, 0, 0), line(0, 1, 0, 0, 1, 0)
    assert grow_instances(boundary, ONE, interior)[0].tolist() == [0, 0, 1, 1, 0, 0]
    found = grow_instances(boundary, ONE, interior, excludes=True)
    assert found[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_a_mask_is_the_foreground():
    boundary = line(0, 0, 0.9, 0, 0, 0)
    mask = np.ones(boundary.shape, dtype=bool)
    mask[:, -1] = False
    found = grow_instances(boundary, ONE, line(0, 1, 1, 1, 1, 1), mask)
    assert found[0, [0, 1, 3, 4, 5]].tolist() == [1, 1, 2, 2, 0]


@pytest.mark.parametrize(("min_size", "count"), [(0, 2), (6, 2), (7, 1), (100, 0)])
def test_small_instances_are_dropped(min_size, count):
    interior = line(1, 1, 0, 1, 1, 1)
    boundary = np.zeros_like(interior)
    assert grow_instances(boundary, Watershed(min_size=min_size), interior).max() == count


def test_where_nothing_is_surely_inside_nothing_is_found():
    assert not grow_instances(line(0.9, 0.9), ONE).any()
    assert not grow_instances(line(0, 0), ONE, line(0, 0)).any()


def test_volumes_are_cut_too():
    boundary = np.zeros((4, 5, 9), np.float32)
    boundary[:, :, 4] = 1
    found = grow_instances(boundary, ONE)
    assert found.max() == 2
    assert (found[:, :, :4] == 1).all()
    assert (found[:, :, 5:] == 2).all()
