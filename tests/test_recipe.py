"""Settings survive their file, and what is impossible is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

quick = settings(max_examples=60, deadline=None)

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
        st.just(External()),
    ),
    min_size=st.integers(0),
    fill_reach=st.integers(0),
    window=st.none() | st.lists(st.integers(8), min_size=1, max_size=3).map(tuple),
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
        {"window": [256, 7]},
        {"window": 256},
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


def test_windows_are_about_one_crop_where_the_recipe_says_nothing():
    assert Recipe().windows(2) == (256, 256)
    assert Recipe().windows(3) == (64, 64, 64)
    assert Recipe(window=(8, 31)).windows(2) == (8, 31)


@quick
@given(st.lists(st.integers(8, 10**6), min_size=2, max_size=3))
def test_a_window_sees_at_least_a_quarter_of_its_side_around_itself(window):
    recipe = Recipe(window=tuple(window))
    for size, margin in zip(window, recipe.margins(len(window)), strict=True):
        assert size <= 4 * margin < size + 4


@pytest.mark.parametrize(("window", "n_axes"), [((16,), 2), ((16, 16), 3), ((8, 16, 16), 2)])
def test_a_window_of_another_number_of_axes_is_refused(window, n_axes):
    for ask in (Recipe(window=window).windows, Recipe(window=window).margins):
        with pytest.raises(SettingError) as error:
            ask(n_axes)
        assert str(error.value) == (
            f"recipe.window is {list(window)}: expected {n_axes} numbers, one per axis"
        )
