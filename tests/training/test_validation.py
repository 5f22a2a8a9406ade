"""What decides between recipes, and when an embedding is believed to stand for background."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Head, Prototype
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.spec import parse_spec
from spoco_zoo.training.loss import BACKGROUND, UNLABELED
from spoco_zoo.training.net import UNet
from spoco_zoo.training.samples import Sample
from spoco_zoo.training.validation import (
    Embedded,
    embed_all,
    fit_recipe,
    goal,
    score_recipe,
    start_recipe,
)

torch.set_num_threads(1)  # on tiny images threads wait for each other
PLACES = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 4, 0], [4, 0, 4]], float)


def make_states(zero=BACKGROUND):
    """Paint five squares of 6 pixels on 24x24, two of them touching."""
    states = np.full((24, 24), zero, np.int64)
    for number, (y, x) in enumerate([(1, 1), (1, 9), (1, 15), (10, 2), (14, 14)], start=1):
        states[y : y + 6, x : x + 6] = number
    return states


def make_embedded(states, spread=0.0, seed=0, probability=None):
    """Give every instance a place of its own in embedding space, and zero another."""
    random = np.random.default_rng(seed)
    embedding = PLACES[np.maximum(states, 0)] + random.normal(0, spread, (*states.shape, 3))
    embedding = np.ascontiguousarray(np.moveaxis(embedding, -1, 0), dtype=np.float32)
    return Embedded(embedding, embedding.copy(), probability, states)


def make_spec(zero="background", head=False, **words):
    net = {"foreground_head": head or None if zero == "unlabeled" else head}
    return parse_spec({"data": {"label_zero": zero}, "net": net, "clustering": words}, "test")


# Embedding whole images.


@pytest.mark.parametrize(
    ("pooling", "shape"), [(((2, 2), (2, 2)), (13, 18)), (((1, 2, 2), (2, 2, 2)), (3, 10, 7))]
)
def test_images_of_odd_sizes_are_padded_by_their_last_pixels(pooling, shape):
    torch.manual_seed(0)
    f, g = (UNet(2, 3, (4, 6, 8), pooling, foreground_head=True).eval() for _ in range(2))
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    states = np.ones(shape, np.int64)
    sample = Sample("a", image, states, (1,))
    (found,) = embed_all(f, [sample], torch.device("cpu"), g)
    (alone,) = embed_all(f, [sample], torch.device("cpu"))
    missing = [(0, -n % step) for n, step in zip(shape, f.multiple_of, strict=True)]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *missing], mode="edge"))[None]
    box = (0, slice(None), *(slice(n) for n in shape))
    with torch.no_grad():
        expected_f, expected_g = f(padded)[box].numpy(), g(padded)[box].numpy()
    assert padded.shape[2:] != shape
    assert found.embedding.shape == (3, *shape)
    assert found.embedding.dtype == np.float32
    assert np.allclose(found.embedding, expected_f[:3], atol=1e-6)
    assert np.allclose(found.momentum_embedding, expected_g[:3], atol=1e-6)
    assert np.allclose(found.probability, 1 / (1 + np.exp(-expected_f[3])), atol=1e-6)
    assert found.states is states
    assert alone.momentum_embedding is None


def test_a_network_without_head_gives_no_probability():
    net = UNet(1, 3, (4, 6), ((2, 2),)).eval()
    sample = Sample("a", np.zeros((1, 8, 8), np.float32), np.ones((8, 8), np.int64), (1,))
    assert embed_all(net, [sample], torch.device("cpu"))[0].probability is None


# The foreground rule.


def test_a_prototype_is_found_where_background_has_one_embedding():
    embedded = [make_embedded(make_states(), 0.05, seed) for seed in range(2)]
    recipe = start_recipe(make_spec(), embedded)
    assert isinstance(recipe.foreground, Prototype)
    assert recipe.foreground.center == pytest.approx((0, 0, 0), abs=0.02)
    assert 0.5 <= recipe.foreground.radius <= 2.0
    assert goal(score_recipe(recipe, embedded)) == 1.0


def scatter_background(states):
    embedded = make_embedded(states, 0.05)
    random = np.random.default_rng(1)
    zero = states == BACKGROUND
    embedded.embedding[:, zero] = random.uniform(-9, 9, (3, int(zero.sum()))).astype(np.float32)
    return embedded


def test_no_prototype_is_believed_where_background_is_scattered():
    embedded = [scatter_background(make_states())]
    assert isinstance(start_recipe(make_spec(), embedded).foreground, Everywhere)


def test_no_prototype_is_believed_where_instances_merely_fill_the_image():
    """There, calling every pixel an instance is mostly right, and says nothing of background."""
    states = np.arange(576).reshape(24, 24) // 24 // 6 + 1
    states[:, ::6] = BACKGROUND
    embedded = [scatter_background(states)]
    assert isinstance(start_recipe(make_spec(), embedded).foreground, Everywhere)


@pytest.mark.parametrize("zero", ["background", "unlabeled"])
def test_no_prototype_is_believed_without_labelled_background(zero):
    states = {"background": np.ones((24, 24), np.int64), "unlabeled": make_states(UNLABELED)}[zero]
    embedded = [make_embedded(states)]
    assert isinstance(start_recipe(make_spec(zero), embedded).foreground, Everywhere)


def test_no_prototype_is_believed_where_there_are_no_instances():
    embedded = [make_embedded(np.zeros((24, 24), np.int64))]
    assert isinstance(start_recipe(make_spec(), embedded).foreground, Everywhere)


def test_a_prototype_that_was_asked_for_and_is_not_there_is_refused():
    with pytest.raises(SettingError) as error:
        start_recipe(make_spec(foreground="prototype"), [scatter_background(make_states())])
    assert str(error.value) == (
        "clustering.foreground is prototype, but no embedding stands for background on the "
        "validation images: label background there, or use everywhere"
    )


@pytest.mark.parametrize(
    ("head", "wish", "rule"),
    [
        (True, "auto", Head()),
        (True, "head", Head()),
        (True, "everywhere", Everywhere()),
        (False, "everywhere", Everywhere()),
    ],
)
def test_the_foreground_rule_is_the_one_that_was_asked_for(head, wish, rule):
    embedded = [make_embedded(make_states(), probability=(make_states() > 0) * 1.0)]
    assert start_recipe(make_spec(head=head, foreground=wish), embedded).foreground == rule


def test_a_prototype_may_be_asked_for_beside_a_head():
    embedded = [make_embedded(make_states())]
    recipe = start_recipe(make_spec(head=True, foreground="prototype"), embedded)
    assert isinstance(recipe.foreground, Prototype)


def test_the_recipe_starts_with_the_numbers_of_the_spec():
    embedded = [make_embedded(make_states())]
    recipe = start_recipe(make_spec(min_size=3, fill_reach=2, foreground="everywhere"), embedded)
    assert recipe == Recipe(
        clustering=MeanShift(bandwidth=0.5), foreground=Everywhere(), min_size=3, fill_reach=2
    )


# Scores.


def test_a_perfect_embedding_scores_one_and_a_blind_one_nothing():
    states = make_states()
    everywhere = Recipe(foreground=Everywhere(), min_size=1)
    right = Recipe(foreground=Prototype(center=(0, 0, 0), radius=1.0), min_size=1)
    summary = score_recipe(right, [make_embedded(states)] * 2)
    assert goal(summary) == summary.sbd == 1.0
    assert (summary.n_predicted, summary.n_truth) == (10, 10)
    blind = Embedded(np.zeros((3, 24, 24), np.float32), None, None, states)
    assert goal(score_recipe(everywhere, [blind])) == 0.0


def test_instances_on_unlabeled_pixels_may_be_right_and_do_not_count():
    """The same prediction: beside unlabeled pixels all right, beside background a third wrong."""
    recipe = Recipe(foreground=Prototype(center=(0, 0, 0), radius=1.0), min_size=1)
    truth = make_embedded(make_states())
    goals = {}
    for zero in (UNLABELED, BACKGROUND):
        states = make_states(zero)
        states[make_states() >= 4] = zero  # nobody labelled the last two of five
        item = Embedded(truth.embedding, truth.momentum_embedding, None, states)
        goals[zero] = goal(score_recipe(recipe, [item]))
    assert goals == {UNLABELED: 1.0, BACKGROUND: pytest.approx(3 / 5)}


def test_the_goal_is_the_precision_of_all_objects_pooled_over_the_thresholds():
    states = make_states()
    half = make_embedded(states)
    half.embedding[:, states == 5] = 0.0
    recipe = Recipe(foreground=Prototype(center=(0, 0, 0), radius=1.0), min_size=1)
    empty = make_embedded(np.zeros((24, 24), np.int64))
    summary = score_recipe(recipe, [half, empty])
    assert goal(summary) == pytest.approx(4 / 5)  # and not the mean of 4/5 and 1
    assert goal(summary) == pytest.approx(np.mean(summary.pooled_ap))


# Fitting.


def test_a_bandwidth_that_is_too_small_is_widened():
    embedded = [make_embedded(make_states(), 0.25, seed) for seed in range(2)]
    spec = make_spec(method={"method": "mean_shift", "bandwidth": 0.3}, min_size=3)
    start = start_recipe(spec, embedded)
    fitted = fit_recipe(spec, embedded)
    assert fitted.recipe.clustering.bandwidth > 0.3
    assert fitted.scores["mean_ap"] > round(goal(score_recipe(start, embedded)), 4)


def test_a_least_size_that_is_too_large_is_lowered():
    embedded = [make_embedded(make_states(), 0.05)]
    spec = make_spec(min_size=60)
    fitted = fit_recipe(spec, embedded)
    assert goal(score_recipe(start_recipe(spec, embedded), embedded)) == 0.0
    assert fitted.recipe.min_size == 27  # three quarters of the smallest instances
    assert fitted.scores["mean_ap"] == 1.0


def test_a_threshold_of_the_head_is_fitted_too():
    probability = np.where(make_states() > 0, 0.45, 0.35).astype(np.float32)
    embedded = [make_embedded(make_states(), 0.05, probability=probability)]
    fitted = fit_recipe(make_spec(head=True), embedded)
    assert fitted.recipe.foreground == Head(threshold=0.4)
    assert fitted.scores["mean_ap"] == 1.0


@pytest.mark.parametrize("width", [0, 1])
def test_where_training_took_boundaries_instances_grow_back_into_them(width):
    y, x = np.indices((24, 24))
    states = (1 + y // 12 + 2 * (x // 12)).astype(np.int64)
    near = np.minimum(np.abs(y - 11.5), np.abs(x - 11.5))
    probability = np.where(near < 2, 0.03, 0.97).astype(np.float32)
    embedded = [make_embedded(states, 0.05, probability=probability)]
    spec = make_spec(head=True, min_size=3, foreground="head")
    data = spec.data.model_copy(update={"boundary_width": width})
    fitted = fit_recipe(spec.model_copy(update={"data": data}), embedded)
    assert fitted.recipe.foreground.threshold == (0.01 if width else 0.5)
    assert (fitted.scores["mean_ap"] == 1.0) == bool(width)


def test_every_rule_and_method_that_there_is_is_tried_and_the_best_is_kept():
    # the head is blind, all background has one embedding, and everywhere is a large instance more
    blind = np.full((24, 24), 0.6, np.float32)
    embedded = [make_embedded(make_states(), 0.05, seed, blind) for seed in range(2)]
    fitted = fit_recipe(make_spec(head=True, min_size=3), embedded)
    rules = {trial.recipe.foreground.rule for trial in fitted.trials}
    assert rules == {"head", "prototype", "everywhere"}
    methods = {trial.recipe.clustering.method for trial in fitted.trials}
    assert methods == {"mean_shift", "hdbscan", "consistency"}
    assert fitted.recipe.foreground.rule == "prototype"
    assert fitted.scores["mean_ap"] == 1.0
    assert fitted.recipe.clustering.method == "mean_shift"  # as good as the others, and cheaper


def test_what_the_spec_names_is_not_tried_otherwise():
    embedded = [make_embedded(make_states(), 0.3)]
    spec = make_spec(method={"method": "hdbscan"}, foreground="everywhere")
    trials = fit_recipe(spec, embedded).trials
    assert {trial.recipe.clustering.method for trial in trials} == {"hdbscan"}
    assert {trial.recipe.foreground.rule for trial in trials} == {"everywhere"}
    assert len({trial.recipe for trial in trials}) == len(trials)


def test_where_people_give_masks_the_truth_stands_for_them():
    blind = np.full((24, 24), 0.6, np.float32)
    embedded = [make_embedded(make_states(), 0.05, probability=blind)]
    fitted = fit_recipe(make_spec(head=True, foreground="mask", min_size=3), embedded)
    assert fitted.recipe.foreground.rule == "mask"
    assert fitted.scores["mean_ap"] == 1.0


def test_a_method_must_be_worth_its_cost():
    embedded = [make_embedded(make_states(), 0.05)]
    g = embedded[0].momentum_embedding
    random = np.random.default_rng(0)
    # g knows that what f takes for an instance is none
    states = make_states()
    ghost = states.copy()
    ghost[20:23, 2:9] = 6
    f = np.moveaxis(np.vstack([PLACES, [[9, 9, 9]]])[ghost], -1, 0).astype(np.float32)
    g = np.moveaxis(PLACES[states], -1, 0).astype(np.float32)
    g[:, ghost == 6] = random.normal(0, 30, (3, (ghost == 6).sum()))
    embedded = [Embedded(f, g, None, states)]
    fitted = fit_recipe(make_spec(foreground="prototype", min_size=3, fill_reach=0), embedded)
    assert fitted.recipe.clustering.method == "consistency"
    assert fitted.scores["mean_ap"] == 1.0


def test_ties_stay_with_the_spec():
    embedded = [make_embedded(make_states(), 0.01)]
    for method in (MeanShift(), Consistency()):
        spec = make_spec(method=method.model_dump())
        assert fit_recipe(spec, embedded).recipe == start_recipe(spec, embedded)


def test_nothing_is_fitted_where_the_spec_says_so():
    embedded = [make_embedded(make_states(), 0.05)]
    spec = make_spec(min_size=60, fit=False)
    fitted = fit_recipe(spec, embedded)
    assert fitted.recipe == start_recipe(spec, embedded)
    assert fitted.recipe.min_size == 60
    assert fitted.scores["mean_ap"] == 0.0


# a failure costs minutes to shrink, and a seed says as much
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)
@given(
    st.integers(0, 2**32),
    st.floats(0.0, 1.5),
    st.sampled_from([MeanShift(), MeanShift(bandwidth=2.0), Hdbscan(epsilon=0.3), Consistency()]),
    st.sampled_from(["auto", "everywhere"]),
    st.booleans(),
    st.integers(0, 40),
)
def test_a_fitted_recipe_never_scores_below_the_one_it_started_from(
    seed, spread, method, wish, head, min_size
):
    random = np.random.default_rng(seed)
    probability = np.clip((make_states() > 0) * 0.4 + random.uniform(0, 0.6, (24, 24)), 0, 1)
    embedded = [
        make_embedded(make_states(), spread, seed + n, probability.astype(np.float32))
        for n in range(2)
    ]
    spec = make_spec(head=head, method=method.model_dump(), foreground=wish, min_size=min_size)
    before = score_recipe(start_recipe(spec, embedded), embedded)
    fitted = fit_recipe(spec, embedded)
    after = score_recipe(fitted.recipe, embedded)
    assert goal(after) >= goal(before)
    assert fitted.scores == pytest.approx(
        {
            "ap50": after.pooled_ap[0],
            "mean_ap": goal(after),
            "sbd": after.sbd,
            "count_difference": after.count_difference,
        },
        abs=5e-5,
    )
