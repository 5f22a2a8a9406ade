"""What stays labelled, what a crop shows, and that a batch depends on its number alone."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import json
import pickle

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.labels import KNOWN_BACKGROUND
from spoco_zoo.spec import DataSettings, parse_spec
from spoco_zoo.training.batches import iterate_batches
from spoco_zoo.training.loss import BACKGROUND, UNLABELED
from spoco_zoo.training.samples import (
    Sample,
    SparseSamples,
    _part_touching,
    _renumber,
    check_boundaries,
    choose_instances,
    choose_over_split,
    draw,
    read_samples,
    to_states,
)

torch.set_num_threads(1)  # on tiny images threads wait for each other
quick = settings(max_examples=40, deadline=None)

STILL = {
    "flips": False,
    "rotation_degrees": 0,
    "scaling": [1, 1],
    "elastic_ratio": 0,
    "intensity_ratio": 0,
}


def make_spec(crop=(32, 32), augmentation=None, **schedule):
    axes = len(crop)
    return parse_spec(
        {
            "net": {"dimensions": axes, "widths": [4, 8], "pooling": [[1, 2, 2][-axes:]]},
            "augmentation": augmentation or {},
            "schedule": {"crop": crop, "batch_size": 3, "steps": 50, **schedule},
        },
        "test",
    )


def make_sample(labels, image=None, name="one"):
    labels = np.asarray(labels, np.int64)
    if image is None:
        image = np.random.default_rng(0).normal(size=labels.shape)
    image = np.asarray(image, np.float32)
    image = image[None] if image.ndim == labels.ndim else image
    return Sample(name, image, labels, tuple(int(i) for i in np.unique(labels[labels > 0])))


def checkers(shape, side):
    """Fill an image with square instances, 0 between them, ids counting up."""
    labels = np.zeros(shape, np.int64)
    starts = np.stack(np.meshgrid(*(np.arange(0, n, side + 4) for n in shape), indexing="ij"))
    for number, start in enumerate(starts.reshape(len(shape), -1).T, start=1):
        labels[tuple(slice(s, s + side) for s in start)] = number
    return labels


def equal(first, second):
    pairs = (("view_f", "view_f"), ("view_g", "view_g"), ("labels", "labels"))
    return all(torch.equal(getattr(first, a), getattr(second, b)) for a, b in pairs)


# Which instances stay.

label_images = st.lists(st.sampled_from([0, 1, 2, 5, 70_000, 4_000_000_000]), min_size=1).map(
    lambda flat: np.array(flat, np.uint32)[None]
)
ratios = st.floats(0.001, 1)


@quick
@given(st.integers(0, 60), ratios, ratios, st.integers(0, 2**32), st.text(max_size=8))
def test_a_larger_ratio_contains_a_smaller_one_and_never_is_empty(count, a, b, seed, name):
    labels = np.arange(count + 1)[None]
    few, many = (choose_instances(labels, ratio, seed, name) for ratio in sorted((a, b)))
    assert set(few) <= set(many) <= set(range(1, count + 1))
    assert len(set(few)) == len(few)
    assert len(few) == (max(int(min(a, b) * count + 0.5), 1) if count else 0)
    assert choose_instances(labels, 1.0, seed, name) == tuple(range(1, count + 1))


def test_half_counts_round_up():
    labels = np.arange(6)[None]
    kept = [len(choose_instances(labels, ratio, 0, "a")) for ratio in (0.1, 0.29, 0.3, 0.5, 0.7)]
    assert kept == [1, 1, 2, 3, 4]


def test_the_choice_depends_on_the_seed_and_the_name_of_the_image():
    labels = np.arange(101)[None]
    first = choose_instances(labels, 0.1, 0, "cells-1")
    assert first == choose_instances(labels, 0.1, 0, "cells-1")
    assert first == choose_instances(labels.reshape(101, 1).repeat(3, axis=1), 0.1, 0, "cells-1")
    assert first != choose_instances(labels, 0.1, 0, "cells-2")
    assert first != choose_instances(labels, 0.1, 1, "cells-1")
    # every instance has its chance
    chosen = [choose_instances(labels, 0.1, 0, f"cells-{n}") for n in range(200)]
    assert set().union(*chosen) == set(range(1, 101))


@quick
@given(label_images, ratios, st.sampled_from(["background", "unlabeled"]))
def test_an_instance_stays_one_or_is_unlabeled_and_never_is_background(labels, ratio, zero):
    kept = choose_instances(labels, ratio, 0, "a")
    states = to_states(labels, kept, zero)
    assert states.shape == labels.shape
    numbers = dict(zip(kept, range(1, len(kept) + 1), strict=True))
    nothing = {"background": BACKGROUND, "unlabeled": UNLABELED}[zero]
    for label, state in zip(labels.ravel().tolist(), states.ravel().tolist(), strict=True):
        assert state == (nothing if label == 0 else numbers.get(label, UNLABELED))


splits = st.dictionaries(st.text(max_size=4), st.integers(0, 9), min_size=1, max_size=6).map(
    lambda counts: [(name, np.arange(1, count + 1)) for name, count in counts.items()]
)


@quick
@given(splits, ratios, ratios, st.integers(0, 2**32))
def test_over_a_split_a_larger_ratio_contains_a_smaller_one(split, a, b, seed):
    few, many = (choose_over_split(split, ratio, seed) for ratio in sorted((a, b)))
    total = sum(len(ids) for _, ids in split)
    assert sum(map(len, few)) == (max(int(min(a, b) * total + 0.5), 1) if total else 0)
    for less, more, (_, ids) in zip(few, many, split, strict=True):
        assert set(less) <= set(more) <= set(ids.tolist())
        assert list(less) == sorted(less)
    everything = [tuple(ids.tolist()) for _, ids in split]
    assert choose_over_split(split, 1.0, seed) == everything


@quick
@given(splits, ratios, st.integers(0, 2**32), st.randoms())
def test_over_a_split_the_order_of_the_images_does_not_matter(split, ratio, seed, random):
    chosen = dict(zip([n for n, _ in split], choose_over_split(split, ratio, seed), strict=True))
    mixed = random.sample(split, len(split))
    again = dict(zip([n for n, _ in mixed], choose_over_split(mixed, ratio, seed), strict=True))
    assert again == chosen


def test_over_a_split_an_image_may_keep_none_and_every_instance_has_its_chance():
    split = [(f"cells-{n}", np.arange(1, 6)) for n in range(20)]
    chosen = [choose_over_split(split, 0.05, seed) for seed in range(200)]
    assert all(sum(map(len, kept)) == 5 for kept in chosen)
    assert all(() in kept for kept in chosen)
    counts = np.zeros((20, 5), int)
    for kept in chosen:
        for image, ids in enumerate(kept):
            counts[image, np.array(ids, int) - 1] += 1
    assert counts.min() >= 1
    assert counts.max() <= 25  # of 200 draws, 10 on average


@quick
@given(st.lists(st.sampled_from([-2, -1, 0, 4, 9]), min_size=1), st.sampled_from([(), (4,), (9,)]))
def test_what_was_painted_becomes_its_state_whatever_zero_means(flat, kept):
    labels = np.array(flat)[None]
    for zero, state in (("background", BACKGROUND), ("unlabeled", UNLABELED)):
        meaning = {KNOWN_BACKGROUND: BACKGROUND, UNLABELED: UNLABELED, 0: state}
        meaning |= {i: 1 if i in kept else UNLABELED for i in (4, 9)}
        expected = [[meaning[label] for label in flat]]
        assert to_states(labels, kept, zero).tolist() == expected


# Crops.


@quick
@given(
    st.lists(st.sampled_from([UNLABELED, BACKGROUND, 1, 2, 7, 300, 70_000]), min_size=1).map(
        lambda flat: torch.tensor(flat)[None]
    )
)
def test_renumbering_a_crop_turns_no_object_into_another_state(states):
    numbers = _renumber(states)
    for state in (UNLABELED, BACKGROUND):
        assert torch.equal(numbers == state, states == state)
    ids = sorted({int(i) for i in states.flatten() if i > BACKGROUND})
    for number, state in enumerate(ids, start=1):
        assert torch.equal(numbers == number, states == state)


@quick
@given(st.integers(0, 2**32), st.integers(2, 3), st.integers(1, 2))
def test_where_instances_touch_there_is_background_and_nothing_else_is_lost(seed, n_axes, width):
    random = np.random.default_rng(seed)
    beyond = UNLABELED - 1
    blocks = random.choice([beyond, UNLABELED, BACKGROUND, 3, 5, 90], (4,) * n_axes)
    side = 7
    states = np.kron(blocks, np.ones((side,) * n_axes, int))
    parted = _part_touching(torch.from_numpy(states), width).numpy()
    padded = np.pad(states, width, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1,) * n_axes)
    around = around.reshape(*states.shape, -1)
    is_other = (around != BACKGROUND) & (around != beyond) & (around != states[..., None])
    meets_another = is_other.any(axis=-1) & (states > 0)
    assert (parted[meets_another] == BACKGROUND).all()
    assert (parted[states <= 0] == states[states <= 0]).all()
    # a block keeps enough of itself, whatever it touches, to be more than a speck
    assert (parted[(states > 0) & ~meets_another] > 0).all()
    for number in np.unique(parted[parted > 0]):
        assert len(np.unique(states[parted == number])) == 1


def test_pieces_of_an_instance_are_instances_and_specks_are_not_known():
    states = np.ones((1, 12, 30), np.int64).repeat(12, axis=0)
    states[:, :, 10:14] = 2  # parts the first in two
    states[:2, :2, 28:] = 3  # too small for a piece, once its boundary is gone
    parted = _part_touching(torch.from_numpy(states), 1).numpy()
    assert len(np.unique(parted[:, :, :9])) == len(np.unique(parted[5:, 5:, 15:])) == 1
    assert parted[5, 5, 0] != parted[5, 5, 20]
    assert (parted[:, :, [9, 10, 13, 14]] == BACKGROUND).all()
    assert parted[0, 0, 29] == UNLABELED
    assert sorted(np.unique(parted)) == [UNLABELED, BACKGROUND, 1, 2, 3]


def test_instances_that_boundaries_leave_are_counted_and_none_is_refused(monkeypatch):
    # as thick as twice the width: of these the outermost are left
    rows = np.kron(np.arange(1, 9), np.ones(2, int))
    thin = make_sample(np.ones((20, 1), int) * rows)
    thick = make_sample(np.kron(np.arange(1, 5).reshape(2, 2), np.ones((9, 9), int)))
    told = "data.boundary_width is 1: of {}{} labelled instances {} are left"
    assert check_boundaries([thick], 1) == told.format("", 4, 4)
    assert check_boundaries([thin, thick], 1) == told.format("", 12, 6)
    # of many pixels the first are enough
    monkeypatch.setattr("spoco_zoo.training.samples._LOOKED_AT", 0)
    assert check_boundaries([thin, thick], 1) == told.format("the first ", 8, 2)
    assert check_boundaries([thick], 1) == told.format("", 4, 4)  # there are no others
    # and box by box it is the same
    monkeypatch.setattr("spoco_zoo.training.samples._LOOKED_AT", 1 << 20)
    monkeypatch.setattr("spoco_zoo.training.reading._BOX", 16 * 10)
    assert check_boundaries([thin, thick], 1) == told.format("", 12, 6)
    with pytest.raises(SettingError) as error:
        check_boundaries([thin, thick], 8)
    assert str(error.value) == (
        "data.boundary_width is 8: boundaries of that width leave nothing of the 12 labelled "
        "instances: expected less than half of their width; lower it"
    )


def test_thin_instances_of_a_volume_of_large_slices_are_not_lost_by_cutting_it(monkeypatch):
    rods = np.zeros((1, 12, 96), int)  # of 3 x 5 pixels across, one beside the other
    rods[0, 3:8, :90] = np.repeat(np.arange(1, 31), 3)
    volume = make_sample(np.repeat(rods, 16, axis=0))
    monkeypatch.setattr("spoco_zoo.training.reading._BOX", rods.size)
    boxes = list(volume.label_boxes())
    assert sum(box.size for box in boxes) == volume.labels.size
    assert max(box.size for box in boxes) <= rods.size
    assert check_boundaries([volume], 1) == (
        "data.boundary_width is 1: of 30 labelled instances 30 are left"
    )


@pytest.mark.parametrize("crop", [(32, 32), (12, 32, 32)])
def test_the_edge_of_the_image_is_no_boundary(crop):
    spec = make_spec(crop)
    data = spec.data.model_copy(update={"boundary_width": 1})
    sample = make_sample(np.ones([n + 4 for n in crop]))
    batches = SparseSamples([sample], spec.model_copy(update={"data": data}))
    labels = torch.cat([batches[step].labels for step in range(6)])
    assert set(torch.unique(labels).tolist()) >= {UNLABELED, 1}  # turned: beyond the image is seen
    assert (labels != BACKGROUND).all()


def test_a_crop_shows_boundaries_where_the_spec_asks_for_them():
    labels = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((12, 12), int))
    spec = make_spec((32, 32), STILL)
    plain = SparseSamples([make_sample(labels)], spec)[0].labels
    data = spec.data.model_copy(update={"boundary_width": 1})
    parted = SparseSamples([make_sample(labels)], spec.model_copy(update={"data": data}))[0].labels
    assert (plain > 0).all()
    assert 0.1 < (parted == BACKGROUND).double().mean() < 0.4
    assert (parted >= BACKGROUND).double().mean() > 0.95


@quick
@given(st.integers(0, 2**32), st.integers(0, 40), st.booleans())
def test_a_crop_shows_each_object_as_one_and_as_an_object(seed, step, holds_background):
    random = np.random.default_rng(seed)
    # the image says which object a pixel belongs to, and stays as it is where nothing is bent
    blocks = random.choice([UNLABELED, BACKGROUND, 3, 5, 90], (6, 6))
    labels = np.kron(blocks, np.ones((8, 8), int))
    if not holds_background:
        labels[labels == BACKGROUND] = UNLABELED
    data = SparseSamples([make_sample(labels, labels)], make_spec((16, 16), STILL, seed=seed))
    batch = data[step]
    for view, states in zip(batch.view_f[:, 0].round(), batch.labels, strict=True):
        known = states != UNLABELED
        assert torch.equal((view > BACKGROUND)[known], (states > BACKGROUND)[known])
        ids = torch.unique(states[states > BACKGROUND])
        assert ids.tolist() == list(range(1, len(ids) + 1))
        for number in ids:
            assert len(torch.unique(view[states == number])) == 1


def test_a_crop_without_any_zero_turns_no_instance_into_background():
    for state in (1, 2, 7):
        data = SparseSamples([make_sample(np.full((64, 64), state))], make_spec((16, 16)))
        labels = torch.cat([data[step].labels for step in range(5)])
        assert set(torch.unique(labels).tolist()) <= {UNLABELED, 1}  # beyond the image, turned
        assert (labels == 1).double().mean() > 0.9


def test_states_survive_a_crop_and_ids_are_closed_up():
    labels = checkers((90, 90), 9)
    labels[labels % 3 == 1] = UNLABELED
    sample = make_sample(labels, image=np.where(labels > 0, 10.0, 10.0 * labels))
    data = SparseSamples([sample], make_spec((24, 24), STILL))
    seen = set()
    for step in range(20):
        batch = data[step]
        for view, states in zip(batch.view_f, batch.labels, strict=True):
            assert torch.allclose(view[0], 10.0 * states.clamp(max=1), atol=1e-3)
            ids = torch.unique(states[states > 0]).tolist()
            assert ids == list(range(1, len(ids) + 1))
            seen |= set(torch.unique(states.clamp(max=1)).tolist())
    assert seen == {UNLABELED, BACKGROUND, 1}


def test_ids_beyond_the_digits_of_float32_are_told_apart():
    labels = np.zeros((40, 40), np.uint32)
    labels[:20], labels[20:] = 4_000_000_000, 4_000_000_001
    states = to_states(labels, choose_instances(labels, 1.0, 0, "a"), "background")
    data = SparseSamples([make_sample(states)], make_spec((32, 32), STILL | {"flips": True}))
    for step in range(5):
        batch = data[step].labels
        assert all(torch.unique(crop).tolist() == [1, 2] for crop in batch)


def test_a_step_does_not_depend_on_the_steps_before_it():
    sample = make_sample(checkers((60, 60), 9))
    data, fresh = (SparseSamples([sample], make_spec()) for _ in range(2))
    batches = [data[step] for step in range(6)]
    assert equal(fresh[5], batches[5])
    assert equal(data[2], batches[2])
    assert not equal(batches[2], batches[5])
    assert not torch.equal(batches[2].view_f[0], batches[2].view_f[1])


def test_another_seed_makes_other_batches():
    sample = make_sample(checkers((60, 60), 9))
    first, other = (SparseSamples([sample], make_spec(seed=seed)) for seed in (0, 1))
    assert not equal(first[0], other[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forks
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    samples = [make_sample(checkers((60, 60), 9), name=name) for name in ("a", "b")]
    device = torch.device("cpu")
    alone = SparseSamples(samples, make_spec(steps=7))
    crops = SparseSamples(samples, make_spec(steps=7, workers=workers))
    found = list(iterate_batches(crops, 2, device))
    assert len(found) == 5
    assert all(equal(batch, alone[step]) for step, (batch, _) in enumerate(found, start=2))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_a_batch_make_what_one_would(count):
    samples = [make_sample(checkers((60, 60), 9), name=name) for name in ("a", "b")]
    alone = SparseSamples(samples, make_spec(batch_size=6))[4]
    for rank in range(count):
        own = SparseSamples(samples, make_spec(batch_size=6), range(rank, 6, count))[4]
        assert equal(own, alone.part(slice(rank, None, count)))


def test_every_crop_has_draws_of_its_own_which_do_not_depend_on_other_crops():
    drawn = {
        place: torch.rand(3, generator=draw(*place)).tolist()
        for place in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    }
    assert len({tuple(values) for values in drawn.values()}) == 4
    assert torch.rand(3, generator=draw(0, 1, 0)).tolist() == drawn[0, 1, 0]


@pytest.mark.parametrize("crop", [(16, 16), (4, 16, 16)])
def test_batches_can_be_made_in_a_process_that_shares_no_memory(crop):
    """Windows and macOS start workers that way, and Linux from Python 3.14 on."""
    data = SparseSamples([make_sample(checkers((20, 40, 40)[-len(crop) :], 9))], make_spec(crop))
    assert equal(pickle.loads(pickle.dumps(data))[3], data[3])


def test_the_global_generators_are_left_as_they_were():
    data = SparseSamples([make_sample(checkers((60, 60), 9))], make_spec())
    np.random.seed(3)
    torch.manual_seed(4)
    before = np.random.get_state(), torch.get_rng_state()
    first = data[0]
    after = np.random.get_state(), torch.get_rng_state()
    assert before[0][0] == after[0][0]
    assert (before[0][1] == after[0][1]).all()
    assert before[0][2:] == after[0][2:]
    assert torch.equal(before[1], after[1])
    np.random.seed(5)
    torch.manual_seed(6)
    assert equal(first, data[0])


# Geometry and intensity.


@pytest.mark.parametrize("crop", [(32, 32), (12, 32, 32)])
def test_both_views_share_geometry_and_differ_in_intensity_alone(crop):
    sample = make_sample(checkers((24, 60, 60)[-len(crop) :], 9))
    spec = {ratio: make_spec(crop, {"intensity_ratio": ratio}) for ratio in (0.0, 1.0)}
    plain, varied = (SparseSamples([sample], spec[ratio]) for ratio in (0.0, 1.0))
    for step in range(4):
        a, b = plain[step], varied[step]
        assert torch.equal(a.view_f, a.view_g)
        assert not torch.equal(b.view_f, b.view_g)
        assert not torch.equal(b.view_f, a.view_f)
        assert torch.equal(a.labels, b.labels)


def away_from_edges(states, by):
    """Find pixels inside the crop whose surrounding, `by` pixels wide, is of one label."""
    kernel, values = 2 * by + 1, states[:, None].double()
    pool = {2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}[states.ndim - 1]
    alike = (pool(values, kernel, 1) == -pool(-values, kernel, 1))[:, 0]
    return torch.nn.functional.pad(alike, (by, by) * (states.ndim - 1)) & (states != UNLABELED)


@pytest.mark.parametrize(("crop", "shape"), [((48, 48), (96, 96)), ((16, 32, 32), (30, 64, 64))])
@pytest.mark.parametrize("elastic", [0.0, 1.0])
def test_image_and_labels_move_together(crop, shape, elastic):
    """Every instance has an intensity of its own; wherever it goes, both are there."""
    labels = checkers(shape, 11)
    spec = make_spec(crop, {"intensity_ratio": 0, "elastic_ratio": elastic})
    data = SparseSamples([make_sample(labels, image=labels)], spec)
    seen, wrong, count = set(), 0, 0
    for step in range(12):
        batch = data[step]
        sure = away_from_edges(batch.labels, 2)
        for view, states, inside in zip(batch.view_f[:, 0], batch.labels, sure, strict=True):
            shown = {}
            for state in torch.unique(states[inside]).tolist():
                values = view[inside & (states == state)]
                shown[state] = round(values.median().item())
                wrong += int(((values - shown[state]).abs() > 1e-2).sum())
            assert shown.get(BACKGROUND, 0) == 0
            instances = [shown[state] for state in sorted(shown) if state > BACKGROUND]
            assert instances == sorted(set(instances))
            assert 0 not in instances
            seen |= set(instances)
            count += int(inside.sum())
    assert len(seen) > 10
    assert count > 5000
    # where pixels are pulled far apart, an edge may pass between two of them
    assert wrong <= 0.01 * elastic * count


def test_a_volume_turns_in_its_image_plane_only():
    depth = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 48, 48))
    sample = make_sample(np.ones((20, 48, 48)), image=np.array(depth))
    only_turned = {**STILL, "rotation_degrees": 180}
    flat = np.broadcast_to(np.arange(48.0)[:, None], (20, 48, 48))
    across = make_sample(np.ones((20, 48, 48)), image=np.array(flat))
    data, turned = (
        SparseSamples([s], make_spec((8, 24, 24), only_turned)) for s in (sample, across)
    )
    slopes = set()
    for step in range(6):
        slices = data[step].view_f[:, 0]
        assert slices.std(dim=(-1, -2)).max() < 1e-4
        assert torch.allclose(slices.diff(dim=1), torch.ones(()), atol=1e-4)
        plane = turned[step].view_f[:, 0]
        assert plane.std(dim=1).max() < 1e-4
        slopes |= {round(v, 1) for v in plane.diff(dim=2)[:, 0, 12, 12].tolist()}
    assert len(slopes) > 5


def test_outside_of_the_image_nothing_is_labelled_and_pixels_are_mirrored():
    image = np.random.default_rng(0).normal(size=(20, 40))
    data = SparseSamples([make_sample(np.ones((20, 40)), image)], make_spec((32, 32), STILL))
    for step in range(5):
        batch = data[step]
        assert (batch.labels[:, 6:26] == 1).all()
        assert (batch.labels[:, :6] == UNLABELED).all()
        assert (batch.labels[:, 26:] == UNLABELED).all()
        mirrored = torch.cat(
            [batch.view_f[..., 7:13, :].flip(2), batch.view_f[..., 19:25, :].flip(2)], dim=2
        )
        shown = torch.cat([batch.view_f[..., :6, :], batch.view_f[..., 26:, :]], dim=2)
        assert torch.allclose(shown, mirrored, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((32, 40), (32, 32)),
        ((40, 33), (16, 18)),
        ((5, 40, 40), (5, 16, 16)),
        ((9, 20, 21), (7, 16, 8)),
    ],
)
@pytest.mark.parametrize("aimed", [0.0, 1.0])
def test_a_crop_is_cut_out_of_an_image_that_is_large_enough(shape, crop, aimed):
    """Nothing is invented beyond the edge and nothing blurred, at even sizes and odd ones."""
    spec = make_spec(crop, STILL, instance_crop_ratio=aimed)
    image = np.arange(np.prod(shape)).reshape(shape)
    data = SparseSamples([make_sample(checkers(shape, 9), image=image)], spec)
    for step in range(10):
        batch = data[step]
        assert (batch.labels >= BACKGROUND).all()
        for view in batch.view_f[:, 0]:
            first = np.unravel_index(round(view.flatten()[0].item()), shape)
            box = tuple(slice(a, a + n) for a, n in zip(first, crop, strict=True))
            assert np.allclose(view, image[box], atol=0.02)


def test_every_pixel_of_an_image_is_shown_sooner_or_later():
    labels = np.arange(1, 24 * 24 + 1).reshape(24, 24)
    spec = make_spec((16, 16), STILL, instance_crop_ratio=0.0)
    data = SparseSamples([make_sample(np.ones((24, 24)), image=labels)], spec)
    shown = {round(v) for step in range(40) for v in data[step].view_f.flatten().tolist()}
    assert shown == set(range(1, 24 * 24 + 1))


def test_crops_are_aimed_at_instances_as_often_as_asked_for():
    labels = np.zeros((300, 300))
    labels[140:145, 140:145] = 1
    hits = {}
    for ratio in (0.0, 0.5, 1.0):
        spec = make_spec((24, 24), STILL, instance_crop_ratio=ratio)
        data = SparseSamples([make_sample(labels)], spec)
        crops = torch.cat([data[step].labels for step in range(40)])
        hits[ratio] = (crops > 0).flatten(1).any(dim=1).double().mean().item()
    assert hits[1.0] == 1.0
    assert hits[0.0] < 0.1
    assert hits[0.5] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("crop", [(2, 16, 16), (4, 16, 16), (8, 8, 8), (8, 8)])
def test_thin_crops_can_be_varied_too(crop):
    """Blur wants pixels beside its kernel, of which a few slices have none."""
    spec = make_spec(crop, {"intensity_ratio": 1.0})
    data = SparseSamples([make_sample(checkers((20, 40, 40)[-len(crop) :], 9))], spec)
    for step in range(4):
        batch = data[step]
        assert batch.view_f.shape == batch.view_g.shape == (3, 1, *crop)
        assert batch.labels.shape == (3, *crop)
        assert torch.isfinite(batch.view_f).all()


def test_a_constant_image_stays_finite():
    sample = make_sample(np.ones((40, 40)), image=np.zeros((40, 40)))
    data = SparseSamples([sample], make_spec((16, 16), {"intensity_ratio": 1.0}))
    for step in range(10):
        assert torch.isfinite(data[step].view_f).all()
        assert torch.isfinite(data[step].view_g).all()


def test_all_channels_are_kept_in_their_order():
    image = np.broadcast_to(np.arange(3.0)[:, None, None], (3, 40, 40))
    data = SparseSamples([make_sample(np.ones((40, 40)), image=image)], make_spec((16, 16), STILL))
    batch = data[0]
    assert batch.view_f.shape == (3, 3, 16, 16)
    assert torch.allclose(batch.view_g[0].mean(dim=(1, 2)), torch.arange(3.0))


def test_large_images_are_drawn_more_often_but_not_by_their_area():
    small, large = make_sample(np.ones((32, 32))), make_sample(np.full((320, 320), 1), name="two")
    data = SparseSamples([small, large], make_spec((32, 32)))
    assert data.chances.tolist() == pytest.approx([1 / 11, 10 / 11])
    tiny = SparseSamples([make_sample(np.ones((4, 4))), small], make_spec((32, 32)))
    assert tiny.chances.tolist() == [0.5, 0.5]


def test_a_run_has_as_many_batches_as_steps():
    data = SparseSamples([make_sample(np.ones((40, 40)))], make_spec((16, 16), steps=17))
    assert len(data) == 17


# From files.


def write(folder, images, labels):
    for part, arrays in (("images", images), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, pixels in arrays.items():
            tifffile.imwrite(folder / part / f"{name}.tif", np.asarray(pixels), metadata=None)


@pytest.fixture
def pair(tmp_path):
    folder = tmp_path / "train"
    random = np.random.default_rng(0)
    labels = {name: np.kron(np.arange(12).reshape(3, 4), np.ones((5, 6))) for name in ("a", "b")}
    labels = {name: (pixels * 1000).astype(np.uint32) for name, pixels in labels.items()}
    images = {name: random.integers(0, 999, (15, 24)).astype(np.uint16) for name in labels}
    write(folder, images, labels)
    return folder


def test_reading_normalises_the_whole_image_and_thins_the_labels(pair):
    words = DataSettings(instance_ratio=0.3, label_zero="background")
    samples = read_samples(pair, words, 2, thin=True)
    assert [sample.name for sample in samples] == ["a", "b"]
    for sample in samples:
        assert sample.image.shape == (1, 15, 24)
        assert sample.image.dtype == np.float32
        assert sample.image.mean() == pytest.approx(0, abs=1e-6)
        assert sample.image.std() == pytest.approx(1, abs=1e-4)
        assert len(sample.kept) == 3
        assert set(sample.kept) <= {1000 * n for n in range(1, 12)}
        pixels = np.unique(sample.labels, return_counts=True)
        assert pixels[0].tolist() == [UNLABELED, BACKGROUND, 1, 2, 3]
        assert pixels[1].tolist() == [8 * 30, 30, 30, 30, 30]
    assert samples[0].kept != samples[1].kept


def test_validation_keeps_all_instances_and_may_mean_another_thing_by_zero(pair):
    words = DataSettings(
        instance_ratio=0.3, label_zero="unlabeled", validation_label_zero="background"
    )
    thin = read_samples(pair, words, 2, thin=True)[0]
    whole = read_samples(pair, words, 2, thin=False)[0]
    assert np.unique(thin.labels).tolist() == [UNLABELED, 1, 2, 3]
    assert np.unique(whole.labels).tolist() == list(range(12))
    assert whole.kept == tuple(1000 * n for n in range(1, 12))
    same = read_samples(pair, DataSettings(label_zero="unlabeled"), 2, thin=False)[0]
    assert np.unique(same.labels).tolist() == [UNLABELED, *range(1, 12)]


def test_volumes_are_read_where_volumes_are_expected(tmp_path):
    labels = np.zeros((6, 15, 24), np.uint16)
    labels[2:4, 5:9, 5:9] = 3
    write(tmp_path / "train", {"a": labels * 7 + 1}, {"a": labels})
    (sample,) = read_samples(tmp_path / "train", DataSettings(), 3, thin=True)
    assert sample.image.shape == (1, 6, 15, 24)
    assert (sample.labels == (labels > 0)).all()
    assert sample.kept == (3,)


def test_validation_may_hold_images_without_instances(tmp_path):
    write(tmp_path / "val", {"a": np.eye(15)}, {"a": np.zeros((15, 15), np.uint8)})
    (sample,) = read_samples(tmp_path / "val", DataSettings(), 2, thin=False)
    assert sample.kept == ()
    assert (sample.labels == BACKGROUND).all()


def refuse(folder, n_axes=2, *, thin=True):
    with pytest.raises(ImageError) as error:
        read_samples(folder, DataSettings(), n_axes, thin=thin)
    return str(error.value)


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_missing_folder_is_named_with_what_belongs_there(pair, part):
    (pair / part).rename(pair / "elsewhere")
    assert refuse(pair) == (
        f"{pair / part}: no such folder: expected train/images and train/labels "
        "with files of equal names"
    )


def test_labels_of_another_shape_are_refused(pair):
    write(pair, {}, {"b": np.ones((15, 23), np.uint8)})
    assert refuse(pair) == (
        f"{pair / 'labels' / 'b.tif'}: labels have shape (15, 23), the image has (15, 24): "
        "both must show the same pixels"
    )


def test_images_are_refused_where_volumes_are_expected(pair):
    assert refuse(pair, 3) == (
        f"{pair / 'images' / 'a.tif'}: image has 2 space axes: expected 3; "
        "set net.dimensions in the spec"
    )


def test_volumes_are_refused_where_images_are_expected(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
        path = tmp_path / "train" / part / "a.tif"
        tifffile.imwrite(
            path, np.ones((6, 15, 24), np.uint8), metadata={"axes": "ZYX"}, imagej=True
        )
    assert refuse(tmp_path / "train") == (
        f"{tmp_path / 'train' / 'images' / 'a.tif'}: image has 3 space axes: expected 2; "
        "set net.dimensions in the spec"
    )


def test_images_with_another_count_of_channels_are_refused(pair):
    tifffile.imwrite(pair / "images" / "b.tif", np.ones((15, 24, 3), np.uint8), photometric="rgb")
    assert refuse(pair) == (
        f"{pair / 'images' / 'b.tif'}: image has 3 channels, a has 1: all images must have as many"
    )


def test_training_without_any_instance_is_refused(tmp_path):
    write(tmp_path / "train", {"a": np.eye(15)}, {"a": np.zeros((15, 15), np.uint8)})
    assert refuse(tmp_path / "train") == (
        f"{tmp_path / 'train' / 'labels'}: no instance is labelled: label some and try again"
    )


def test_an_image_without_labels_is_refused(pair):
    write(pair, {"c": np.ones((15, 24))}, {})
    assert refuse(pair) == (
        f"{pair / 'images' / 'c.tif'}: no partner in {pair / 'labels'}: "
        "expected a file of the same name in both folders"
    )


def paint(path, *boxes):
    """Write boxes (x, y, side, class) as GeoJSON."""
    features = []
    for x, y, side, kind in boxes:
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        properties = {"classification": {"name": kind}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps(features), encoding="utf-8")


@pytest.mark.parametrize("zero", ["background", "unlabeled"])
def test_outlines_are_labels_with_known_background(pair, zero):
    for name in ("a", "b"):
        (pair / "labels" / f"{name}.tif").unlink()
    paint(pair / "labels" / "a.geojson", (2, 2, 4, ""), (8, 8, 3, "Background"))
    paint(pair / "labels" / "b.json", (2, 2, 4, ""), (12, 2, 4, ""), (8, 8, 3, "Ignore*"))
    first, second = read_samples(pair, DataSettings(label_zero=zero), 2, thin=True)
    assert (first.kept, second.kept) == ((1,), (1, 2))
    assert (first.labels[2:6, 2:6] == 1).all()
    assert (first.labels[8:11, 8:11] == BACKGROUND).all()
    assert (second.labels[8:11, 8:11] == UNLABELED).all()
    assert first.labels[0, 0] == {"background": BACKGROUND, "unlabeled": UNLABELED}[zero]


def test_one_number_of_label_images_may_be_background(pair):
    words = DataSettings(label_zero="unlabeled", background_label=11_000)
    for sample in read_samples(pair, words, 2, thin=True):
        assert sample.kept == tuple(1000 * n for n in range(1, 11))
        pixels = np.unique(sample.labels, return_counts=True)
        assert pixels[0].tolist() == [UNLABELED, BACKGROUND, *range(1, 11)]
        assert set(pixels[1].tolist()) == {30}
    # where validation images are labelled completely, the same number is background beside 0
    mixed = words.model_copy(update={"validation_label_zero": "background"})
    sample = read_samples(pair, mixed, 2, thin=False)[0]
    assert sample.kept == tuple(1000 * n for n in range(1, 11))
    assert np.unique(sample.labels).tolist() == list(range(11))


def test_background_that_nobody_painted_is_refused(pair):
    words = DataSettings(label_zero="unlabeled", background_label=255)
    with pytest.raises(ImageError) as error:
        read_samples(pair, words, 2, thin=True)
    assert str(error.value) == (
        f"{pair / 'labels'}: no pixel is known background, while data.background_label is 255: "
        "paint some background with it, or leave the setting out"
    )
    assert len(read_samples(pair, words, 2, thin=False)) == 2


def test_a_part_of_the_whole_split_is_kept(pair):
    words = DataSettings(instance_ratio=0.1, instance_ratio_of="split", label_zero="unlabeled")
    samples = read_samples(pair, words, 2, thin=True)
    assert sum(len(sample.kept) for sample in samples) == 2
    ids = [(name, 1000 * np.arange(1, 12)) for name in ("a", "b")]
    assert [sample.kept for sample in samples] == choose_over_split(ids, 0.1, 0)
    for sample in samples:
        assert np.unique(sample.labels).tolist() == [UNLABELED, *range(1, len(sample.kept) + 1)]
    assert len(read_samples(pair, words, 2, thin=False)[0].kept) == 11
