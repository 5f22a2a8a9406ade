"""Rules of foreground, on numbers whose answer is plain."""

import numpy as np
import pytest
from pydantic import ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Head, Prototype, find_core, find_foreground


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


def test_without_a_core_threshold_all_foreground_is_core():
    probability = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    foreground = probability >= 0.4
    for rule in (Head(threshold=0.4), Everywhere()):
        np.testing.assert_array_equal(find_core(foreground, rule, probability), foreground)


def test_a_core_threshold_below_the_threshold_is_refused():
    with pytest.raises(ValidationError) as error:
        Head(threshold=0.5, core_threshold=0.4)
    assert "core_threshold is 0.4: expected at least the threshold, 0.5" in str(error.value)
