"""The whole loss, with its gradients, against a loop over instances; and what makes it fast."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import math

import pytest

torch = pytest.importorskip("torch")

from spoco_zoo.spec import LossSettings
from spoco_zoo.training import clusters, loss, pairs
from spoco_zoo.training.anchors import draw_anchors
from spoco_zoo.training.loss import BACKGROUND, UNLABELED, spoco_loss
from spoco_zoo.training.net import NetOutput

torch.set_num_threads(1)
SIDE = 24


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def literal_dice(pairs_of_masks, words):
    parts = [(2 * (s * t).sum(), (s * s).sum() + (t * t).sum()) for s, t in pairs_of_masks]
    if words.dice == "joint":
        return 1 - sum(a for a, _ in parts) / sum(b for _, b in parts)
    return sum(1 - a / b for a, b in parts) / len(parts)


def literal_image(f, g, labels, anchors, words):
    """Write the terms of one image as its equations, one instance after the other."""

    def soft(embedding, anchor):
        squared = (embedding - anchor[:, None, None]).square().sum(0)
        return words.kernel_threshold ** (squared / words.delta_var**2)

    means = {int(i): f[:, labels == i].mean(1) for i in labels.unique()}
    known = [i for i in means if i != UNLABELED]
    instances = [i for i in means if i > BACKGROUND]
    total = words.norm_weight * sum(m.norm() for m in means.values()) / len(means)
    for i in known:
        distance = (f[:, labels == i] - means[i][:, None]).norm(dim=0)
        total = total + torch.relu(distance - words.delta_var).square().mean() / len(known)
        for j in known:
            if i != j:
                gap = torch.relu(2 * words.delta_dist - (means[i] - means[j]).norm())
                total = total + gap**2 / (len(known) * (len(known) - 1))
    for i in instances:
        if UNLABELED in means:
            distance = (f[:, labels == UNLABELED] - means[i][:, None]).norm(dim=0)
            hinge = torch.relu(words.delta_dist - distance).square()
            total = total + hinge.mean() / len(instances)
    if instances:
        masks = [(soft(f, means[i]), (labels == i).to(f.dtype)) for i in instances]
        total = total + literal_dice(masks, words)
    if len(anchors):
        rows, columns = anchors // SIDE, anchors % SIDE
        masks = [
            (soft(f, f[:, y, x]), soft(g, g[:, y, x])) for y, x in zip(rows, columns, strict=True)
        ]
        total = total + literal_dice(masks, words)
    return total


def grid_of(cells, share):
    """Squares 1..cells^2 in a frame of background; `share` of them stay, the rest is unlabeled."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    size = SIDE // cells
    labels = torch.where((y % size > 0) & (x % size > 0), y // size * cells + x // size + 1, 0)
    if share == 1:
        return labels
    kept = labels <= share * cells**2
    return torch.where((labels > 0) & kept, labels, UNLABELED)


def embedding_of(labels, state, seed):
    """Embed as an untrained network would, as a trained one, or as none."""
    place, spread = {"untrained": (0.05, 0.02), "trained": (2.0, 0.1), "noise": (0.0, 1.0)}[state]
    objects = labels.clamp_min(0) if labels.max() > 20 else grid_of(4, 1)
    places = place * torch.randn(int(objects.max()) + 1, 8, generator=draws(seed))
    noise = spread * torch.randn(SIDE, SIDE, 8, generator=draws(seed + 1))
    return (places[objects] + noise).permute(2, 0, 1)


def scattered(states):
    return torch.tensor(states)[torch.randint(len(states), (SIDE, SIDE), generator=draws(7))]


def specks(rest):
    """Twelve instances of one pixel each."""
    labels = torch.full((SIDE * SIDE,), rest)
    labels[47 * torch.arange(1, 13)] = torch.arange(1, 13)
    return labels.reshape(SIDE, SIDE)


BATCHES = {
    "all labelled": [grid_of(4, 1), grid_of(6, 1)],
    "some labelled": [grid_of(4, 0.5), grid_of(6, 0.3)],
    "single pixels": [specks(BACKGROUND), specks(UNLABELED)],
    "all states": [
        grid_of(4, 1),
        torch.zeros(SIDE, SIDE, dtype=torch.int64),
        grid_of(4, 0.2),
        torch.full((SIDE, SIDE), UNLABELED),
        scattered([UNLABELED, 3]),
        scattered([UNLABELED, BACKGROUND]),
        torch.ones(SIDE, SIDE, dtype=torch.int64),
        torch.full((SIDE, SIDE), UNLABELED).index_fill(0, torch.tensor([5]), 9),
    ],
}


def both_losses(labels, state, words, monkeypatch):
    """Total and gradient of the loop, in double precision, and of the product."""
    chosen = []

    def remember(*arguments):
        chosen.append(draw_anchors(*arguments))
        return chosen[-1]

    monkeypatch.setattr(loss, "draw_anchors", remember)
    f = torch.stack([embedding_of(one, state, n) for n, one in enumerate(labels)])
    g = f + 0.1 * torch.randn(f.shape, generator=draws(9))
    leaf = f.clone().requires_grad_()
    total = spoco_loss(
        NetOutput(leaf, None), g, torch.stack(labels), words, [draws() for _ in labels]
    ).total
    (gradient,) = torch.autograd.grad(total, leaf)
    slow_leaf = f.double().requires_grad_()
    images = zip(slow_leaf, g.double(), labels, chosen, strict=True)
    slow = sum(literal_image(*image, words) for image in images) / len(labels)
    (slow_gradient,) = torch.autograd.grad(slow, slow_leaf)
    assert slow_gradient.abs().max() > 0
    return (total.item(), gradient), (slow.item(), slow_gradient), chosen


def assert_equal(first, second):
    """To 1e-5, the gradient as a whole."""
    assert first[0] == pytest.approx(second[0], rel=1e-5, abs=1e-6)
    assert (first[1] - second[1]).norm() <= 1e-5 * second[1].norm()


@pytest.mark.parametrize("dice", ["per_instance", "joint"])
@pytest.mark.parametrize("state", ["untrained", "trained", "noise"])
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_gradient_are_those_of_the_loop(batch, state, dice, monkeypatch):
    words = LossSettings(dice=dice)
    fast, slow, chosen = both_losses(BATCHES[batch], state, words, monkeypatch)
    assert_equal(fast, slow)
    has_unlabeled = any((one == UNLABELED).any() for one in BATCHES[batch])
    assert any(len(anchors) for anchors in chosen) == has_unlabeled


@pytest.mark.parametrize("state", ["untrained", "trained", "noise"])
def test_the_size_of_a_block_changes_nothing(state, monkeypatch):
    monkeypatch.setattr(pairs, "_CPU_BLOCK", 100)
    fast, slow, _ = both_losses(BATCHES["all states"], state, LossSettings(), monkeypatch)
    assert_equal(fast, slow)


@pytest.mark.parametrize("batch", BATCHES)
def test_what_is_left_out_on_the_cpu_makes_no_difference(batch, monkeypatch):
    """With all pairs, as on a GPU, the loss is the same; without, most of them are left out."""
    evaluated = {"all": 0, "near": 0}
    side = "near"
    log_soft = pairs.Anchors.log_soft

    def count_pairs(anchors, rows):
        logs = log_soft(anchors, rows)
        evaluated[side] += logs.numel()
        return logs

    monkeypatch.setattr(pairs, "_CPU_BLOCK", 2000)
    monkeypatch.setattr(pairs.Anchors, "log_soft", count_pairs)
    near, _, _ = both_losses(BATCHES[batch], "trained", LossSettings(), monkeypatch)
    side = "all"
    for module in (pairs, clusters):
        monkeypatch.setattr(module, "leaves_out", lambda device: False)
    whole, _, _ = both_losses(BATCHES[batch], "trained", LossSettings(), monkeypatch)
    # a matrix product gives fewer digits of small distances than differences do
    assert near[0] == pytest.approx(whole[0], abs=1e-5)
    assert (near[1] - whole[1]).norm() <= 3e-4 * whole[1].norm()
    assert evaluated["near"] < evaluated["all"]
    if batch == "all labelled":
        assert evaluated["near"] < evaluated["all"] / 20


def test_far_embeddings_give_no_numbers_that_are_slow_to_compute_with():
    logs = torch.tensor([0.0, 1.0, 90.0, 1e6]) / -math.log(2)
    soft = pairs.exp2_(logs)
    assert soft[:2].tolist() == pytest.approx([1.0, math.exp(-1)])
    # as small as may be, and still far from the least normal number, 1e-38
    assert (soft[2:] < 1e-17).all()
    assert (soft[2:] > 1e-30).all()


def test_an_anchor_is_drawn_from_what_those_before_it_leave_uncovered():
    """Three blobs of 10, 30 and 60 pixels: how often each comes first, and second."""
    blobs = torch.cat([torch.full((n,), 10.0 * n) for n in (10, 30, 60)])[:, None]
    words = LossSettings(volume_ratio=0.0)
    orders = []
    for seed in range(400):
        anchors = draw_anchors(blobs, blobs, torch.ones(100, dtype=torch.bool), words, draws(seed))
        orders.append(tuple(int(n) for n in blobs[anchors, 0] / 10))
    assert {tuple(sorted(order)) for order in orders} == {(10, 30, 60)}
    first = sum(order[0] == 60 for order in orders) / 400
    then = sum(order[:2] == (60, 30) for order in orders) / sum(o[0] == 60 for o in orders)
    assert first == pytest.approx(0.6, abs=0.07)
    assert then == pytest.approx(30 / 40, abs=0.09)


def test_anchors_of_an_image_do_not_depend_on_the_images_before_it():
    embeddings = torch.randn(3, 4, SIDE, SIDE, generator=draws(1))
    twins = embeddings + 0.3
    labels = torch.stack([grid_of(4, 1), grid_of(4, 0.2), grid_of(6, 0.4)])

    def evaluate(rows):
        output = NetOutput(embeddings[rows], None)
        return spoco_loss(
            output, twins[rows] * 1.1, labels[rows], LossSettings(), [draws() for _ in labels[rows]]
        )

    behind_none = 2 * evaluate([0, 1]).consistency
    behind_other = 2 * evaluate([2, 1]).consistency - evaluate([2]).consistency
    assert behind_none > 0.01
    assert behind_other.item() == pytest.approx(behind_none.item(), abs=1e-5)
