"""The loss against golden values, and each term against a slow loop written from the paper."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import math
from itertools import combinations

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from spoco_zoo.spec import LossSettings
from spoco_zoo.training.anchors import draw_anchors
from spoco_zoo.training.loss import (
    BACKGROUND,
    UNLABELED,
    LossTerms,
    consistency,
    find_clusters,
    foreground,
    foreground_from_some,
    instance,
    iterate_terms,
    norm,
    pull,
    push,
    spoco_loss,
    unlabeled_push,
)
from spoco_zoo.training.net import NetOutput

torch.set_num_threads(1)  # on tiny images threads wait for each other
quick = settings(max_examples=40, deadline=None)
DEFAULTS = LossSettings()


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def each(images):
    """Draws for each image, alike, whatever its place."""
    return [draws() for _ in images]


def without_consistency(embedding, labels, words=DEFAULTS, logit=None):
    output = NetOutput(embedding[None], None if logit is None else logit[None])
    return spoco_loss(output, None, labels[None], words, each(labels[None]))


# The six terms as the paper writes them: pixel by pixel, instance by instance.


def slow_means(embedding, labels):
    return {int(i): embedding[:, labels == i].mean(axis=1) for i in np.unique(labels)}


def slow_pull(embedding, labels, words):
    means = slow_means(embedding, labels)
    costs = []
    for i in means:
        if i == UNLABELED:
            continue
        pixels = embedding[:, labels == i].T
        hinges = [max(math.dist(p, means[i]) - words.delta_var, 0.0) ** 2 for p in pixels]
        costs.append(sum(hinges) / len(hinges))
    return sum(costs) / len(costs) if costs else 0.0


def slow_push(embedding, labels, words):
    means = {i: m for i, m in slow_means(embedding, labels).items() if i != UNLABELED}
    hinges = [
        max(2 * words.delta_dist - math.dist(means[i], means[j]), 0.0) ** 2
        for i in means
        for j in means
        if i != j
    ]
    return sum(hinges) / len(hinges) if hinges else 0.0


def slow_norm(embedding, labels, words):
    lengths = [math.hypot(*mean) for mean in slow_means(embedding, labels).values()]
    return sum(lengths) / len(lengths)


def slow_unlabeled_push(embedding, labels, words):
    means = slow_means(embedding, labels)
    pixels = embedding[:, labels == UNLABELED].T
    hinges = [
        max(words.delta_dist - math.dist(p, means[i]), 0.0) ** 2
        for i in means
        if i > BACKGROUND
        for p in pixels
    ]
    return sum(hinges) / len(hinges) if hinges else 0.0


def slow_soft(embedding, anchor, words):
    """Give 2 sigma squared by what it is for: the kernel is `kernel_threshold` at delta_var."""
    return np.array(
        [
            words.kernel_threshold ** ((math.dist(p, anchor) / words.delta_var) ** 2)
            for p in embedding.T
        ]
    )


def slow_dice(pairs, words):
    """Give the Dice loss of pairs of masks, one each or one over all of them."""
    shared = [sum(float(a) * float(b) for a, b in zip(s, t, strict=True)) for s, t in pairs]
    squares = [sum(float(a) ** 2 for a in (*s, *t)) for s, t in pairs]
    if words.dice == "joint":
        return 1 - 2 * sum(shared) / sum(squares)
    return sum(1 - 2 * a / b for a, b in zip(shared, squares, strict=True)) / len(pairs)


def slow_instance(embedding, labels, words):
    means = slow_means(embedding, labels)
    pairs = [
        (slow_soft(embedding, means[i], words), (labels == i).astype(float))
        for i in means
        if i > BACKGROUND
    ]
    return slow_dice(pairs, words) if pairs else 0.0


def slow_foreground(logit, labels):
    known = labels != UNLABELED
    if not (labels == BACKGROUND).any():
        return 0.0
    probability = 1 / (1 + np.exp(-logit[known]))
    truth = (labels[known] > BACKGROUND).astype(float)
    entropy = -np.mean(np.where(truth == 1, np.log(probability), np.log(1 - probability)))
    if not truth.any():
        return entropy
    dice = 1 - 2 * (probability * truth).sum() / ((probability**2).sum() + truth.sum())
    return entropy + dice


def slow_foreground_from_some(logit, labels, ratio):
    """Say of every pixel how likely its label is."""
    cost = weight = 0.0
    pixels = zip(logit.ravel(), labels.ravel(), find_beside(labels), strict=True)
    for value, label, beside in pixels:
        p = 1 / (1 + math.exp(-value))
        own = max(0.9, ratio) if beside else ratio
        likely = p if label > BACKGROUND else 1 - p if label == BACKGROUND else 1 - own * p
        cost -= math.log(likely)
        weight += own if label == UNLABELED else 1.0
    return cost / weight


def find_beside(labels):
    """Which pixels have an instance at most two pixels away, along y and x."""
    places = np.argwhere(labels > BACKGROUND)
    return [
        any(
            np.array_equal(place[:-2], p[:-2]) and np.abs(place - p)[-2:].max() <= 2 for p in places
        )
        for place in np.ndindex(labels.shape)
    ]


def clusters_of(embedding, labels, words=DEFAULTS):
    return find_clusters(embedding[None], labels[None], words)


def consistency_of(pair, labels, words, generator):
    """Draw the anchors of one image, and compare f and g around them."""
    f, g = (e.flatten(1).T for e in pair)
    unlabeled = labels.flatten() == UNLABELED
    anchors = draw_anchors(f.detach(), g.detach(), unlabeled, words, generator)
    return consistency(f[None], g[None].detach(), [anchors], words)


def foreground_of(logit, labels):
    return foreground(logit[None], labels[None])


def fast_terms(embedding, labels, words):
    clusters = clusters_of(torch.from_numpy(embedding), torch.from_numpy(labels), words)
    return {
        "pull": pull(clusters),
        "push": push(clusters, words.delta_dist),
        "norm": norm(clusters),
        "unlabeled_push": unlabeled_push(clusters),
        "instance": instance(clusters, words.dice),
    }


SLOW = {
    "pull": slow_pull,
    "push": slow_push,
    "norm": slow_norm,
    "unlabeled_push": slow_unlabeled_push,
    "instance": slow_instance,
}

many_words = st.builds(
    LossSettings,
    delta_var=st.floats(0.2, 1.5),
    delta_dist=st.floats(0.5, 3),
    kernel_threshold=st.floats(0.1, 0.95),
    dice=st.sampled_from(["per_instance", "joint"]),
)


@st.composite
def problems(draw):
    """An embedding and labels: 2D or 3D, few or many instances, with any state missing."""
    axes = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes)))
    states = draw(
        st.sampled_from(
            [
                [UNLABELED],
                [BACKGROUND],
                [7],
                [UNLABELED, BACKGROUND],
                [UNLABELED, 7],
                [BACKGROUND, 7],
                [1, 2, 9],
                [UNLABELED, BACKGROUND, 1, 2, 9],
            ]
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 3.0]))
    embedding = random.normal(0, spread, (draw(st.integers(1, 4)), *shape))
    return embedding, random.choice(states, shape).astype(np.int64)


def assert_terms_are_those_of_the_loops(embedding, labels, words):
    flat = embedding.reshape(len(embedding), -1), labels.ravel()
    for name, value in fast_terms(embedding, labels, words).items():
        assert value.item() == pytest.approx(SLOW[name](*flat, words), abs=1e-6), name


@quick
@given(problems(), many_words)
def test_each_term_is_the_formula_of_the_paper(problem, words):
    assert_terms_are_those_of_the_loops(*problem, words)


@pytest.mark.parametrize("count", [32, 33, 70])
@pytest.mark.parametrize("dice", ["per_instance", "joint"])
def test_the_formulas_hold_across_the_chunks_of_many_instances(count, dice):
    random = np.random.default_rng(count)
    labels = random.permutation(np.resize(np.arange(-1, count + 1), 3 * count)).reshape(3, count)
    embedding = random.normal(0, 1, (3, 3, count))
    assert_terms_are_those_of_the_loops(embedding, labels, LossSettings(dice=dice))


@quick
@given(problems(), st.booleans())
def test_the_loss_of_an_image_is_the_weighted_sum_of_its_terms_in_float32(problem, has_head):
    embedding, labels = problem
    weights = [0.3, 0.7, 0.1, 1.3, 0.9, 1.7, 0.6]
    names = [name for name in LossTerms._fields if name != "total"]
    words = LossSettings(**{f"{n}_weight": w for n, w in zip(names, weights, strict=True)})
    logit = np.random.default_rng(0).normal(0, 2, (1, *labels.shape))
    terms = without_consistency(
        *(torch.from_numpy(a) for a in (embedding, labels)),
        words,
        torch.from_numpy(logit) if has_head else None,
    )
    flat = embedding.reshape(len(embedding), -1), labels.ravel()
    expected = {name: SLOW[name](*flat, words) for name in SLOW}
    expected["consistency"] = 0.0
    expected["foreground"] = slow_foreground(logit.ravel(), labels.ravel()) if has_head else 0.0
    assert {t.dtype for t in terms} == {torch.float32}
    found = dict(iterate_terms(terms))
    total = found.pop("total")
    # a distance near zero has half the digits of its square
    assert found == pytest.approx(expected, abs=5e-3)
    by_hand = sum(w * found[n] for n, w in zip(names, weights, strict=True))
    assert total == pytest.approx(by_hand, abs=1e-5)


# Golden values of the reference implementation.


def golden(b, zero):
    """Two objects and a rest: 4x4 pixels, two numbers each."""
    embedding = torch.empty(2, 4, 4)
    embedding[:, :2, :2] = torch.tensor([3.0, 0.0])[:, None, None]
    embedding[:, 0, 0] = torch.tensor([4.0, 0.0])
    embedding[:, :2, 2:] = torch.tensor([0.0, 1.0])[:, None, None]
    embedding[:, 2:] = torch.tensor(b)[:, None, None]
    labels = torch.full((4, 4), zero)
    labels[:2, :2], labels[:2, 2:] = 1, 2
    return embedding, labels


@pytest.mark.parametrize(
    ("b", "zero", "dice", "values", "total"),
    [
        (
            (-1.0, -1.0),
            UNLABELED,
            "joint",
            {
                "pull": 0.0078125,
                "push": 0.3595589,
                "norm": 1.8880712,
                "unlabeled_push": 0.0,
                "instance": 0.0493938,
            },
            0.4186532,
        ),
        (
            (-1.0, -1.0),
            BACKGROUND,
            "joint",
            {
                "pull": 0.0052083,
                "push": 1.1570050,
                "norm": 1.8880712,
                "unlabeled_push": 0.0,
                "instance": 0.0493938,
            },
            1.2134951,
        ),
        (
            (0.5, 0.5),
            UNLABELED,
            "joint",
            {
                "pull": 0.0078125,
                "push": 0.3595589,
                "norm": 1.6523689,
                "unlabeled_push": 0.8357864,
                "instance": 0.0818033,
            },
            1.2866135,
        ),
        (
            (0.5, 0.5),
            BACKGROUND,
            "joint",
            {
                "pull": 0.0052083,
                "push": 4.2181745,
                "norm": 1.6523689,
                "unlabeled_push": 0.0,
                "instance": 0.0818033,
            },
            4.3068385,
        ),
        ((-1.0, -1.0), UNLABELED, "per_instance", {"instance": 0.0567421}, None),
        ((-1.0, -1.0), BACKGROUND, "per_instance", {"instance": 0.0567421}, None),
        ((0.5, 0.5), UNLABELED, "per_instance", {"instance": 0.0861539}, None),
        ((0.5, 0.5), BACKGROUND, "per_instance", {"instance": 0.0861539}, None),
    ],
)
def test_golden_values_of_the_reference(b, zero, dice, values, total):
    terms = without_consistency(*golden(b, zero), LossSettings(dice=dice))
    found = dict(iterate_terms(terms))
    assert {name: found[name] for name in values} == pytest.approx(values, abs=2e-6)
    if total is not None:
        assert found["total"] == pytest.approx(total, abs=2e-6)
    assert found["consistency"] == found["foreground"] == 0.0


def test_the_soft_mask_is_a_half_at_delta_var():
    assert DEFAULTS.two_sigma_squared == pytest.approx(0.3606738, abs=1e-7)
    embedding = torch.tensor([[0.0, 0.5, -0.5, 9.0]], dtype=torch.float64)
    clusters = clusters_of(embedding, torch.tensor([3, UNLABELED, UNLABELED, UNLABELED]))
    # one pixel of 1, two of one half, one of nothing, against a mask of one pixel
    dice = instance(clusters)
    assert dice.item() == pytest.approx(1 - 2 * 1 / (1 + 2 * 0.25 + 1), abs=1e-9)


def test_one_dice_an_instance_counts_small_ones_and_one_over_all_does_not():
    labels = torch.cat([torch.full((98,), 1), torch.full((2,), 2)])
    embedding = torch.zeros(1, 100, dtype=torch.float64)
    embedding[0, 98:] = torch.tensor([9.0, 11.0], dtype=torch.float64)  # the small one is torn
    clusters = clusters_of(embedding, labels)
    assert instance(clusters, "per_instance").item() > 0.3
    assert instance(clusters, "joint").item() < 0.03


# What each term leaves alone.


def test_a_perfect_embedding_costs_nothing_but_its_length():
    labels = torch.tensor([[1, 1, 2, 2], [3, 3, 0, 0], [0, 0, -1, -1], [-1, 0, 0, -1]])
    places = {0: (0.0, 0.0), 1: (4.0, 0.0), 2: (0.0, 4.0), 3: (-4.0, 0.0), -1: (0.0, -4.0)}
    embedding = torch.tensor([[places[int(i)] for i in row] for row in labels])
    embedding = embedding.permute(2, 0, 1).contiguous().requires_grad_()
    logit = torch.where(labels > 0, 60.0, -60.0)[None, None]
    output = NetOutput(embedding[None], logit)
    words = LossSettings(norm_weight=0.0)
    terms = spoco_loss(output, embedding.detach()[None], labels[None], words, each(labels[None]))
    assert dict(iterate_terms(terms)) == pytest.approx(
        dict.fromkeys(LossTerms._fields, 0.0) | {"norm": 16 / 5}, abs=1e-6
    )
    terms.total.backward()
    assert embedding.grad.abs().max() < 1e-6


def test_pixels_within_the_margins_cost_nothing():
    labels = torch.tensor([1] * 4 + [2] * 4)
    embedding = torch.tensor([[0.49, -0.49, 0, 0, 4.3, 3.7, 4.0, 4.0]], dtype=torch.float64)
    clusters = clusters_of(embedding, labels)
    assert pull(clusters).item() == push(clusters, 2.0).item() == 0.0
    narrow = LossSettings(delta_var=0.25)
    assert pull(clusters_of(embedding, labels, narrow)).item() > 0.0
    assert push(clusters, 2.1).item() == pytest.approx(0.2**2)


def test_unlabeled_pixels_exert_no_pull_and_no_push_on_means():
    embedding = torch.randn(3, 5, 6, generator=draws(1), dtype=torch.float64)
    labels = torch.randint(-1, 3, (5, 6), generator=draws(2))
    other = torch.where(labels == UNLABELED, embedding.flip(2) + 3, embedding)
    for term in (pull, lambda clusters: push(clusters, 2.0)):
        leaf = embedding.clone().requires_grad_()
        value = term(clusters_of(leaf, labels))
        (gradient,) = torch.autograd.grad(value, leaf)
        assert value.item() > 0
        assert gradient[:, labels == UNLABELED].abs().max() == 0.0
        assert gradient[:, labels != UNLABELED].abs().max() > 0.0
        assert term(clusters_of(other, labels)).item() == value.item()


def test_unlabeled_push_leaves_background_alone_and_moves_pixels_out_of_instances():
    labels = torch.tensor([[1, 1, UNLABELED, BACKGROUND]])
    embedding = torch.tensor([[[0.0, 0.0, 1.0, 0.9]]], dtype=torch.float64).requires_grad_()
    value = unlabeled_push(clusters_of(embedding, labels, LossSettings(delta_dist=2.0)))
    (gradient,) = torch.autograd.grad(value, embedding)
    assert value.item() == pytest.approx(1.0)
    assert gradient[0, 0].tolist() == pytest.approx([1.0, 1.0, -2.0, 0.0])


def test_two_states_of_zero_are_two_losses():
    """Background is a cluster; what nobody labelled is none."""
    for b in ((-1.0, -1.0), (0.5, 0.5)):
        sparse, full = (
            dict(iterate_terms(without_consistency(*golden(b, zero))))
            for zero in (UNLABELED, BACKGROUND)
        )
        assert full["push"] > sparse["push"]
        assert full["pull"] < sparse["pull"]
        assert full["instance"] == sparse["instance"]
        assert full["norm"] == sparse["norm"]


def test_names_of_instances_change_nothing():
    embedding = torch.randn(2, 6, 6, generator=draws(0))
    labels = torch.randint(-1, 4, (6, 6), generator=draws(1))
    renamed = torch.where(labels > 0, 5_000_000_000 - 7 * labels, labels)
    first, second = (
        dict(iterate_terms(without_consistency(embedding, n))) for n in (labels, renamed)
    )
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("states", [[UNLABELED], [BACKGROUND], [4], [UNLABELED, 4, 5], [0, 1]])
def test_gradients_are_finite_where_all_embeddings_coincide(states):
    """An untrained network may say the same everywhere: every distance is zero."""
    labels = torch.tensor(states).repeat(6).reshape(3, -1)
    for height in (0.0, 1.0):
        embedding = torch.full((4, *labels.shape), height, requires_grad=True)
        output = NetOutput(embedding[None], None)
        twin = embedding.detach()[None]
        terms = spoco_loss(output, twin, labels[None], DEFAULTS, each(labels[None]))
        (gradient,) = torch.autograd.grad(terms.total, embedding)
        assert torch.isfinite(terms.total)
        assert torch.isfinite(gradient).all()


def test_distances_keep_their_digits_far_from_the_origin():
    """Nothing but a weak norm holds the embedding near zero; float32 must do where it drifts."""
    embedding = torch.round(torch.randn(8, 12, 12, generator=draws(0)) * 512) / 1024
    labels = torch.randint(-1, 5, (12, 12), generator=draws(1))
    near, far = (dict(iterate_terms(without_consistency(e, labels))) for e in _moved(embedding))
    twins = [consistency_of((e, e), labels, DEFAULTS, draws()).item() for e in _moved(embedding)]
    for name in ("pull", "push", "unlabeled_push", "instance"):
        assert near[name] > 0.01
        assert far[name] == pytest.approx(near[name], rel=1e-3), name
    assert twins == pytest.approx([0.0, 0.0], abs=1e-5)


def _moved(embedding):
    return embedding, embedding + 256.0  # exact in float32, since all are multiples of 1 / 1024


# Gradients by finite differences.


def leaf_of(seed, shape=(3, 3, 5)):
    return torch.randn(shape, generator=draws(seed), dtype=torch.float64, requires_grad=True)


LABELS = torch.tensor([[0, 0, 1, 1, -1], [2, 2, 1, -1, -1], [2, 0, 0, 3, -1]])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "term",
    [
        pull,
        lambda c: push(c, 2.0),
        norm,
        unlabeled_push,
        lambda c: instance(c, "per_instance"),
        lambda c: instance(c, "joint"),
    ],
    ids=["pull", "push", "norm", "unlabeled_push", "instance", "instance_joint"],
)
def test_gradients_of_the_supervised_terms_are_right(term, seed):
    embedding = leaf_of(seed)
    wide = LossSettings(delta_dist=2.0, kernel_threshold=0.85)  # soft masks of a width of 1.5
    assert term(clusters_of(embedding, LABELS, wide)).item() > 0
    assert gradcheck(lambda e: term(clusters_of(e, LABELS, wide)), embedding)


@pytest.mark.parametrize("spread", [1.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
def test_no_unlabeled_pixel_is_pushed_harder_for_being_where_an_instance_is(spread, noise):
    """By an instance mean at most as a hinge of delta_dist pushes, whatever rounding makes of d."""
    truth = torch.randint(1, 4, (40, 40), generator=draws(0))
    means = spread * torch.randn(4, 16, generator=draws(1))
    jitter = noise * torch.randn(16, 40, 40, generator=draws(2))
    embedding = (means[truth].movedim(-1, 0) + jitter).requires_grad_()
    is_unlabeled = torch.rand(40, 40, generator=draws(3)) < 0.5
    labels = truth.masked_fill(is_unlabeled, UNLABELED)
    value = unlabeled_push(clusters_of(embedding, labels))
    (gradient,) = torch.autograd.grad(value, embedding)
    most = 2 * DEFAULTS.delta_dist / is_unlabeled.sum()
    assert gradient[:, is_unlabeled].norm(dim=0).max() < 1.3 * most


@pytest.mark.parametrize("dice", ["per_instance", "joint"])
def test_the_gradient_of_consistency_is_right(dice):
    words = LossSettings(dice=dice, delta_var=1.0)
    f, g = leaf_of(0), leaf_of(1).detach()
    assert gradcheck(lambda e: consistency_of((e, g), LABELS, words, draws()), f)


def test_the_gradient_of_foreground_is_right():
    assert gradcheck(lambda v: foreground_of(v, LABELS), leaf_of(0, (1, 3, 5)))


# Consistency.


@pytest.mark.parametrize("dice", ["per_instance", "joint"])
def test_consistency_compares_the_soft_masks_of_both_networks(dice):
    """Two blobs, each of one embedding: whichever pixels are drawn, the anchors are these."""
    random = np.random.default_rng(0)
    labels = np.array([[-1, -1, -1, 1], [-1, -1, -1, 1], [0, 0, 0, 0]])
    f, g = random.normal(0, 0.4, (2, 3, 3, 4))
    blobs = (slice(None), slice(0, 2), slice(0, 2)), (slice(None), slice(0, 2), 2)
    for embedding, places in ((f, (0.0, 2.0)), (g, (0.3, 3.0))):
        for blob, place in zip(blobs, places, strict=True):
            embedding[blob] = place
    words = LossSettings(dice=dice)
    flat_f, flat_g = f.reshape(3, -1), g.reshape(3, -1)
    pairs = [
        (slow_soft(flat_f, flat_f[:, n], words), slow_soft(flat_g, flat_g[:, n], words))
        for n in (0, 2)
    ]
    tensors = torch.from_numpy(f), torch.from_numpy(g)
    for seed in range(4):
        value = consistency_of(tensors, torch.from_numpy(labels), words, draws(seed))
        assert value.item() == pytest.approx(slow_dice(pairs, words), abs=1e-9)
    assert value.item() > 0.01


@quick
@given(problems(), many_words, st.integers(0, 100))
def test_consistency_is_the_dice_of_the_anchors_that_were_drawn(problem, words, seed):
    f, labels = problem
    g = f + np.random.default_rng(seed).normal(0, 0.3, f.shape)
    flat_f, flat_g = f.reshape(len(f), -1), g.reshape(len(g), -1)
    tensors = torch.from_numpy(f), torch.from_numpy(g)
    unlabeled = torch.from_numpy(labels.ravel()) == UNLABELED
    anchors = draw_anchors(*(t.flatten(1).T for t in tensors), unlabeled, words, draws(seed))
    value = consistency_of(tensors, torch.from_numpy(labels), words, draws(seed)).item()
    pairs = [
        (slow_soft(flat_f, flat_f[:, n], words), slow_soft(flat_g, flat_g[:, n], words))
        for n in anchors.tolist()
    ]
    assert value == pytest.approx(slow_dice(pairs, words) if pairs else 0.0, abs=1e-6)
    assert bool(pairs) == bool((labels == UNLABELED).mean() >= words.volume_ratio)


def test_consistency_depends_on_its_generator_alone():
    f, g = (torch.randn(3, 12, 12, generator=draws(n)) for n in (1, 2))
    labels = torch.full((12, 12), UNLABELED)
    torch.manual_seed(0)
    first = consistency_of((f, g), labels, DEFAULTS, draws(5)).item()
    torch.manual_seed(1)
    again = consistency_of((f, g), labels, DEFAULTS, draws(5)).item()
    other = consistency_of((f, g), labels, DEFAULTS, draws(6)).item()
    assert first == again
    assert first != other


def test_consistency_moves_f_and_never_g():
    f, g = (leaf_of(n, (2, 4, 4)) for n in (1, 2))
    labels = torch.full((4, 4), UNLABELED)
    consistency_of((f, g), labels, DEFAULTS, draws()).backward()
    assert g.grad is None
    assert f.grad.abs().max() > 0


def anchors_of(f, g, unlabeled, words=DEFAULTS, seed=0):
    flat = (torch.as_tensor(e, dtype=torch.float64).reshape(len(e), -1).T for e in (f, g))
    return draw_anchors(*flat, torch.as_tensor(unlabeled), words, draws(seed)).tolist()


@pytest.mark.parametrize("most", [1, 7, 20])
def test_at_most_so_many_anchors_are_drawn(most):
    far_apart = 10.0 * np.arange(100.0)[None]
    words = LossSettings(max_anchors=most, volume_ratio=0.0)
    found = anchors_of(far_apart, far_apart, np.ones(100, bool), words)
    assert len(set(found)) == len(found) == most


def test_clean_clusters_take_one_anchor_each():
    blobs = np.repeat([0.0, 5.0, 10.0], 40)[None]
    for seed in range(5):
        found = anchors_of(blobs, blobs, np.ones(120, bool), seed=seed)
        assert sorted(blobs[0, found]) == [0.0, 5.0, 10.0]


def test_anchors_are_unlabeled_pixels_that_neither_network_counts_to_an_earlier_anchor():
    random = np.random.default_rng(0)
    unlabeled = random.random(300) < 0.7
    words = LossSettings(max_anchors=200, volume_ratio=0.0)
    f, g = random.normal(0, 1.5, (2, 2, 300))
    found = anchors_of(f, g, unlabeled, words)
    assert 5 < len(found) < 200
    assert unlabeled[found].all()
    for embedding in (f, g):
        distances = np.linalg.norm(embedding[:, found, None] - embedding[:, None, found], axis=0)
        assert distances[np.triu_indices(len(found), 1)].min() >= words.delta_var
    # and none is left that both would need
    near = [np.linalg.norm(e[:, :, None] - e[:, None, found], axis=0) < 0.5 for e in (f, g)]
    assert (near[0] | near[1]).any(axis=1)[unlabeled].all()


@pytest.mark.parametrize(("count", "anchors"), [(4, 0), (5, 1), (100, 1)])
def test_anchors_are_drawn_while_enough_of_the_image_is_uncovered(count, anchors):
    same = np.zeros((2, 100))
    assert len(anchors_of(same, same, np.arange(100) < count)) == anchors


def test_the_draw_ends_when_the_rest_is_a_small_part_of_the_whole_image():
    blobs = np.concatenate([np.zeros(94), 10.0 * np.arange(1, 7)])[None]
    for seed in range(5):
        found = anchors_of(blobs, blobs, np.ones(100, bool), seed=seed)
        # after the large blob, six far pixels: two of them leave less than five
        assert sum(n < 94 for n in found) == 1
        assert sum(n >= 94 for n in found) >= 2


def test_consistency_is_zero_where_everything_is_labelled():
    f, g = (leaf_of(n, (2, 4, 4)) for n in (1, 2))
    value = consistency_of((f, g), torch.ones(4, 4, dtype=torch.int64), DEFAULTS, draws())
    (gradient,) = torch.autograd.grad(value, f)
    assert value.item() == 0.0
    assert gradient.abs().max() == 0.0


# The foreground head.


@quick
@given(problems(), st.integers(0, 100))
def test_foreground_is_cross_entropy_and_dice_of_what_is_known(problem, seed):
    labels = problem[1]
    logit = np.random.default_rng(seed).normal(0, 3, (1, *labels.shape))
    value = foreground_of(torch.from_numpy(logit), torch.from_numpy(labels)).item()
    assert value == pytest.approx(slow_foreground(logit.ravel(), labels.ravel()), abs=1e-9)


def test_foreground_ignores_unlabeled_pixels():
    logit = leaf_of(0, (1, 3, 5))
    (gradient,) = torch.autograd.grad(foreground_of(logit, LABELS), logit)
    assert gradient[0][LABELS == UNLABELED].abs().max() == 0.0
    assert gradient[0][LABELS != UNLABELED].abs().min() > 0.0


def test_foreground_says_nothing_without_labelled_background():
    logit = leaf_of(0, (1, 3, 5))
    assert foreground_of(logit, torch.where(LABELS == BACKGROUND, UNLABELED, LABELS)).item() == 0.0
    assert foreground_of(logit, torch.full((3, 5), UNLABELED)).item() == 0.0


# The foreground head without complete labels.


def from_some(logit, labels, ratio):
    """Take the term of one image, or of pixels in a row."""
    return foreground_from_some(
        torch.as_tensor(logit)[None, None], torch.as_tensor(labels)[None], ratio
    )[0]


@quick
@given(
    st.sampled_from([(4, 17), (13, 3), (2, 5, 14)]),
    st.floats(0.001, 0.05),
    st.floats(0.01, 0.99),
    st.integers(0, 100),
)
def test_foreground_from_some_instances_is_its_formula(shape, share, ratio, seed):
    random = np.random.default_rng(seed)
    states = [UNLABELED, BACKGROUND, 1, 2]
    labels = random.choice(states, shape, p=[0.7, 0.3 - 2 * share, share, share])
    logit = random.normal(0, 3, shape)
    expected = slow_foreground_from_some(logit, labels, ratio)
    assert from_some(logit, labels, ratio).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("planes", [(), (2,)])
@pytest.mark.parametrize("gap", [4, 16])
@pytest.mark.parametrize("known", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_over_all_choices_of_instances_the_gradient_leads_to_the_truth(planes, gap, known, count):
    """Six instances in a row, in a dense field or far from each other, and any logits."""
    truth = np.zeros((*planes, 3, 6 * (4 + gap)), dtype=np.int64)
    for number in range(1, 7):
        end = number * (4 + gap) - gap // 2
        truth[..., end - 4 : end] = number
    logit = torch.from_numpy(np.random.default_rng(0).normal(0.0, 3.0, truth.shape))
    logit.requires_grad_()
    slopes = []
    for kept in combinations(range(1, 7), count):
        labels = np.where(np.isin(truth, kept), truth, UNLABELED)
        labels[..., :known, :][truth[..., :known, :] == BACKGROUND] = BACKGROUND
        slopes.append(torch.autograd.grad(from_some(logit, labels, count / 6), logit)[0])
    mean = torch.stack(slopes).mean(dim=0)
    assert len(slopes) == math.comb(6, count)
    assert mean[truth == BACKGROUND].min() > 0.0  # less likely to be foreground
    assert mean[truth > BACKGROUND].max() < 0.0


def test_with_complete_labels_foreground_from_some_is_the_mean_cross_entropy():
    logit = leaf_of(0, (3, 5)).detach()
    complete = torch.where(LABELS == UNLABELED, 1, LABELS)
    truth = (complete > BACKGROUND).to(logit.dtype)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logit, truth)
    for ratio in (0.01, 0.5, 0.99):
        assert from_some(logit, complete, ratio).item() == pytest.approx(entropy.item())


def test_the_gradient_of_foreground_from_some_is_right():
    logit = leaf_of(0, (3, 5))
    assert gradcheck(lambda v: from_some(v, LABELS, 0.3), logit)
    (gradient,) = torch.autograd.grad(from_some(logit, LABELS, 0.3), logit)
    assert gradient[LABELS > BACKGROUND].max() < 0.0
    assert gradient[LABELS <= BACKGROUND].min() > 0.0


@pytest.mark.parametrize("size", [-200.0, 200.0])
@pytest.mark.parametrize("ratio", [1e-6, 0.1, 1 - 1e-6])
def test_sure_heads_have_finite_gradients(size, ratio):
    logit = torch.full((3, 5), size, requires_grad=True)
    term = from_some(logit, LABELS, ratio)
    assert torch.isfinite(term)
    assert torch.isfinite(torch.autograd.grad(term, logit)[0]).all()


def test_images_without_unlabeled_pixels_keep_the_foreground_term_of_complete_labels():
    labels = torch.stack([LABELS, LABELS.clamp_min(0), LABELS.flip(0)])
    labels[2][labels[2] == BACKGROUND] = UNLABELED
    logits = torch.randn(3, 1, 3, 5, generator=draws(0))

    def evaluate(rows, ratio=None):
        output = NetOutput(torch.zeros(len(rows), 2, 3, 5), logits[rows])
        words = LossSettings(labelled_ratio=ratio)
        return spoco_loss(output, None, labels[rows], words, each(labels[rows])).foreground.item()

    assert evaluate([1], 0.6) == evaluate([1]) == foreground_of(logits[1], labels[1]).item()
    some = [from_some(logits[k, 0], labels[k], 0.6).item() for k in (0, 2)]
    assert evaluate([0, 2], 0.6) == pytest.approx(sum(some) / 2)
    assert evaluate([0, 1, 2], 0.6) == pytest.approx((sum(some) + evaluate([1])) / 3)
    assert evaluate([0]) == pytest.approx(foreground_of(logits[0], labels[0]).item())
    assert evaluate([2]) == 0.0  # without the ratio nothing tells what the unlabeled are


def test_a_linear_head_learns_foreground_from_one_instance_in_five():
    """Pixels of two numbers; images differ in how much foreground they have, and one has none."""
    random = np.random.default_rng(0)
    shares = np.array([0, 5, 10, 15, 20, 25, 30, 35])  # instances of 10 pixels, of 1000 pixels
    truth = np.zeros((8, 1000), dtype=np.int64)
    labels = np.full((8, 1000), UNLABELED)
    for image, share in enumerate(shares):
        truth[image, : 10 * share] = np.repeat(np.arange(1, share + 1), 10)
        labels[image, : 2 * share] = truth[image, : 2 * share]
    pixels = random.normal(0, 1, (8, 2, 1000)) + 1.2 * np.where(truth > 0, 1, -1)[:, None]
    tensors = [torch.from_numpy(a) for a in (pixels, truth, labels)]

    shares_found = []

    def train_and_score(term):
        weight = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            term(torch.nn.functional.conv1d(tensors[0], weight, bias)).backward()
            optimizer.step()
        said = torch.nn.functional.conv1d(tensors[0], weight, bias)[:, 0] > 0
        shares_found.append(said.float().mean().item())
        true = tensors[1] > 0
        return 2 * (said & true).sum().item() / (said.sum() + true.sum()).item()

    complete = train_and_score(lambda v: _mean_foreground(v, tensors[1]))
    negative = train_and_score(lambda v: _mean_foreground(v, tensors[2].clamp_min(BACKGROUND)))
    low, found, high = (
        train_and_score(
            lambda v, r=r: foreground_from_some(v[..., None, :], tensors[2][:, None], r).mean()
        )
        for r in (0.1, 0.2, 0.4)
    )
    assert complete > 0.85
    assert found > complete - 0.03
    assert negative < found - 0.2
    # a ratio that is half or double the true one
    assert shares_found[-3] > shares_found[-2] > shares_found[-1]
    assert low > found - 0.03  # too low a ratio does little harm
    assert high < found - 0.1


def _mean_foreground(logits, labels):
    return sum(foreground_of(*image) for image in zip(logits, labels, strict=True)) / len(logits)


# The batch, and what it costs.


def test_the_batch_is_the_mean_over_its_images():
    random = draws(0)
    embeddings = torch.randn(3, 2, 6, 6, generator=random)
    labels = torch.randint(0, 4, (3, 6, 6), generator=random)
    labels[1] = UNLABELED
    embeddings[1] = 0.5  # one blob: its anchor is the same whatever is drawn
    logits = torch.randn(3, 1, 6, 6, generator=random)
    twins = embeddings + 0.3

    def evaluate(rows):
        output = NetOutput(embeddings[rows], logits[rows])
        terms = spoco_loss(output, twins[rows], labels[rows], DEFAULTS, each(labels[rows]))
        return dict(iterate_terms(terms))

    alone = [evaluate([n]) for n in range(3)]
    mean = {name: sum(values[name] for values in alone) / 3 for name in alone[0]}
    assert evaluate([0, 1, 2]) == pytest.approx(mean, abs=1e-5)
    assert evaluate([1, 1, 1, 1]) == pytest.approx(alone[1], abs=1e-6)
    assert alone[1]["foreground"] == alone[1]["pull"] == 0.0
    assert min(alone[0].values()) >= 0.0 < alone[0]["foreground"]


def test_sums_over_a_million_pixels_keep_their_digits():
    embedding = 0.3 + 0.05 * torch.randn(2, 1024, 1024, generator=draws(0))
    labels = torch.ones(1024, 1024, dtype=torch.int64)
    found = clusters_of(embedding, labels)
    whole = clusters_of(embedding.double(), labels)
    for name in ("means", "pull_hinges", "shared", "soft_squares"):
        table, exact = getattr(found, name).double(), getattr(whole, name)
        assert torch.allclose(table, exact, rtol=1e-5, atol=1e-6), name


class _Sizes(TorchDispatchMode):
    """Record the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        for tensor in results:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("dice", ["per_instance", "joint"])
def test_memory_grows_with_the_pixels_and_not_with_pixels_times_instances(dice):
    side, dims, count = 128, 16, 200
    pixels = side * side
    labels = torch.randint(-1, count + 1, (1, side, side), generator=draws(0))
    embedding = torch.randn(1, dims, side, side, generator=draws(1), requires_grad=True)
    output = NetOutput(embedding, None)
    twin = torch.randn(1, dims, side, side, generator=draws(2))
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor  # kept, so that no address is used twice
        return tensor

    sizes = _Sizes()
    with sizes:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            terms = spoco_loss(output, twin, labels, LossSettings(dice=dice), each(labels))
        terms.total.backward()
    assert find_clusters(embedding.detach(), labels, DEFAULTS).exists[0, 2:].sum() == count
    # one block of pairs at any moment, and of that nothing from forward to backward
    assert sizes.largest == pixels * dims
    assert sum(tensor.numel() for tensor in saved.values()) < pixels * count / 2
    assert embedding.grad.abs().max() > 0


def test_terms_are_named_in_the_order_of_their_weights():
    words = LossSettings(**{f"{n}_weight": k for k, n in enumerate(LossTerms._fields[:-1])})
    assert words.weights == tuple(float(k) for k in range(7))
    terms = LossTerms(*(torch.tensor(float(k)) for k in range(8)))
    assert list(iterate_terms(terms)) == list(zip(LossTerms._fields, range(8), strict=True))
