"""Rules of foreground, on numbers whose answer is plain."""

import numpy as np
import pytest
from pydantic import ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import (
    Everywhere,
    External,
    Head,
    Prototype,
    find_core,
    find_foreground,
)

RULES = [
    Head(core_threshold=0.9),
    Prototype(center=(0.0,) * 3, radius=1.0),
    Everywhere(),
    External(),
]


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


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_a_mask_takes_the_place_of_any_rule_and_of_its_core(rule):
    """Even of a rule that would be refused: the embedding has 2 dimensions, and no head."""
    mask = np.random.default_rng(0).random((3, 4)) < 0.5
    embedding, probability = np.zeros((2, 3, 4), np.float32), np.zeros((3, 4), np.float32)
    for given in (None, probability):
        assert (find_foreground(embedding, rule, given, mask) == mask).all()
        assert (find_core(mask, rule, given, mask) == mask).all()


def test_a_rule_that_asks_for_a_mask_is_refused_without_one():
    with pytest.raises(SettingError) as error:
        find_foreground(np.zeros((2, 3, 4), np.float32), External())
    assert str(error.value) == (
        "this package takes its foreground from a mask, and none is given: expected a "
        "mask of each image; give it with --mask"
    )


def test_the_core_is_where_the_head_is_sure_and_never_outside_the_foreground():
    probability = np.array([[0.1, 0.5, 0.7, 0.9]], np.float32)
    foreground = np.array([[True, True, True, False]])
    rule = Head(threshold=0.4, core_threshold=0.7)
    assert find_core(foreground, rule, probability).tolist() == [[False, False, True, False]]
