"""The metrics against slow loops written from their definitions, and against scikit-image."""

import math
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error, variation_of_information

from spoco_zoo.errors import ImageError
from spoco_zoo.metrics import THRESHOLDS, drop_unlabeled, mean_scores, score

quick = settings(max_examples=60, deadline=None)


@st.composite
def label_pairs(draw):
    """Two label images of one shape, 2D or 3D, of a few ids with gaps between them."""
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple))
    ids = st.sampled_from([0, 1, 2, 3, 7, 4_000_000_000])
    n = math.prod(shape)
    first, second = (draw(st.lists(ids, min_size=n, max_size=n)) for _ in range(2))
    if draw(st.booleans()):  # near copies reach the high thresholds, random pairs do not
        second = [
            b if i % 7 == 0 else a for i, (a, b) in enumerate(zip(first, second, strict=True))
        ]
    return tuple(np.array(flat, np.uint32).reshape(shape) for flat in (first, second))


@pytest.fixture
def unchecked(monkeypatch):
    """Call as users do, without the shape checks of the test run in front of our own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def line(text):
    """Read a label image of one line, a digit for each pixel."""
    return np.array([[int(digit) for digit in text]], np.uint32)


def numbers(scores):
    return [
        scores.sbd,
        *scores.ap,
        scores.adapted_rand_error,
        scores.voi_split,
        scores.voi_merge,
        scores.n_predicted,
        scores.n_truth,
    ]


# The definitions, one pixel set an object.


def objects(labels):
    return [labels == i for i in np.unique(labels) if i]


def best_dice(these, those):
    def dice(a, b):
        return Fraction(2 * int((a & b).sum()), int(a.sum()) + int(b.sum()))

    return sum(max(dice(a, b) for b in those) for a in these) / len(these)


def slow_sbd(prediction, truth):
    predicted, true = objects(prediction), objects(truth)
    if not predicted or not true:
        return float(len(predicted) == len(true))
    return float(min(best_dice(true, predicted), best_dice(predicted, true)))


def slow_matches(prediction, truth, threshold):
    predicted, true = objects(prediction), objects(truth)
    percent = round(100 * threshold)
    reached = np.zeros((len(predicted), len(true)))
    for i, a in enumerate(predicted):
        for j, b in enumerate(true):
            reached[i, j] = 100 * int((a & b).sum()) >= percent * int((a | b).sum())
    return int(reached[linear_sum_assignment(reached, maximize=True)].sum())


def slow_rand_error(prediction, truth):
    pixels = [(p, t) for p, t in zip(prediction.flat, truth.flat, strict=True) if t]
    pairs = [(a, b) for i, a in enumerate(pixels) for j, b in enumerate(pixels) if i != j]
    together_in_prediction = sum(a[0] == b[0] for a, b in pairs)
    together_in_truth = sum(a[1] == b[1] for a, b in pairs)
    if not pixels:
        return float(prediction.any())
    if not together_in_prediction + together_in_truth:
        return 0.0
    together_in_both = sum(a == b for a, b in pairs)
    return 1 - 2 * together_in_both / (together_in_prediction + together_in_truth)


def slow_entropy(labels, given_labels):
    """H(labels | given_labels) in bits."""
    entropy = 0.0
    for i in np.unique(given_labels):
        inside = labels[given_labels == i]
        _, pixels = np.unique(inside, return_counts=True)
        ratio = pixels / inside.size
        entropy -= inside.size / labels.size * (ratio * np.log2(ratio)).sum()
    return entropy


@quick
@given(label_pairs())
def test_scores_are_those_of_the_definitions(pair):
    prediction, truth = pair
    scores = score(prediction, truth)
    n_predicted, n_truth = len(objects(prediction)), len(objects(truth))
    tp = tuple(slow_matches(prediction, truth, t) for t in THRESHOLDS)
    assert (scores.n_predicted, scores.n_truth) == (n_predicted, n_truth)
    assert scores.count_difference == abs(n_predicted - n_truth)
    assert scores.sbd == pytest.approx(slow_sbd(prediction, truth), abs=1e-12)
    assert scores.tp == tp
    assert scores.fp == tuple(n_predicted - n for n in tp)
    assert scores.fn == tuple(n_truth - n for n in tp)
    assert scores.ap == tuple(
        n / (n_predicted + n_truth - n) if n_predicted + n_truth else 1.0 for n in tp
    )
    assert scores.ap50 == scores.ap[0]
    assert scores.mean_ap == pytest.approx(sum(scores.ap) / 10)
    assert scores.adapted_rand_error == pytest.approx(slow_rand_error(*pair), abs=1e-12)
    assert scores.voi_split == pytest.approx(slow_entropy(prediction, truth), abs=1e-12)
    assert scores.voi_merge == pytest.approx(slow_entropy(truth, prediction), abs=1e-12)


@quick
@given(label_pairs())
def test_scores_are_those_of_scikit_image(pair):
    prediction, truth = (np.unique(a, return_inverse=True)[1].reshape(a.shape) for a in pair)
    prediction, truth = prediction * (pair[0] > 0), truth * (pair[1] > 0)
    scores = score(prediction, truth)
    split, merge = variation_of_information(truth, prediction)
    assert scores.voi_split == pytest.approx(split, abs=1e-12)
    assert scores.voi_merge == pytest.approx(merge, abs=1e-12)
    with np.errstate(invalid="ignore"):
        error, _, _ = adapted_rand_error(truth, prediction)
    assume(not np.isnan(error))  # 0 / 0 where no two pixels belong together
    assert scores.adapted_rand_error == pytest.approx(error, abs=1e-12)


@quick
@given(label_pairs(), st.permutations([11, 12, 13, 14, 15]), st.booleans())
def test_renaming_ids_changes_nothing(pair, names, is_first):
    new = dict(zip([1, 2, 3, 7, 4_000_000_000], names, strict=True)) | {0: 0}
    renamed = np.vectorize(new.get, otypes=[np.int64])(pair[0 if is_first else 1])
    other = (renamed, pair[1]) if is_first else (pair[0], renamed)
    assert numbers(score(*other)) == pytest.approx(numbers(score(*pair)), abs=1e-12)


@quick
@given(label_pairs())
def test_the_truth_itself_is_a_perfect_prediction(pair):
    scores = score(pair[0], pair[0])
    assert (scores.sbd, scores.ap, scores.mean_ap) == (1, (1,) * 10, 1)
    assert (scores.count_difference, scores.fp, scores.fn) == (0, (0,) * 10, (0,) * 10)
    assert (scores.adapted_rand_error, scores.voi_split, scores.voi_merge) == (0, 0, 0)


@quick
@given(label_pairs())
def test_changing_sides_swaps_split_and_merge_and_keeps_the_object_scores(pair):
    one, other = score(*pair), score(*pair[::-1])
    assert (one.tp, one.fp, one.fn) == (other.tp, other.fn, other.fp)
    assert one.sbd == other.sbd
    assert one.voi_split == pytest.approx(other.voi_merge, abs=1e-12)


def test_images_without_objects():
    empty, discs = line("0000"), line("0110")
    both, missed, invented = score(empty, empty), score(empty, discs), score(discs, empty)
    assert (both.sbd, both.ap50, both.mean_ap, both.adapted_rand_error) == (1, 1, 1, 0)
    assert (both.count_difference, both.voi_split, both.voi_merge) == (0, 0, 0)
    # An object missed is one segment as before: the adapted Rand error does not see it.
    assert (missed.sbd, missed.ap50, missed.adapted_rand_error) == (0, 0, 0)
    assert (missed.tp[0], missed.fp[0], missed.fn[0]) == (0, 0, 1)
    assert (missed.voi_split, missed.voi_merge) == (0, 1)
    assert (invented.sbd, invented.ap50, invented.adapted_rand_error) == (0, 0, 1)
    assert (invented.voi_split, invented.voi_merge) == (1, 0)


def test_objects_of_one_pixel_leave_no_pair_to_get_wrong():
    assert score(line("12"), line("21")).adapted_rand_error == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "voi"),
    [("12", "11", (1, 0)), ("11", "12", (0, 1)), ("1234", "1111", (2, 0))],
)
def test_split_counts_objects_cut_up_and_merge_objects_joined(prediction, truth, voi):
    scores = score(line(prediction), line(truth))
    assert (scores.voi_split, scores.voi_merge) == voi


@pytest.mark.parametrize(
    ("prediction", "truth", "counts"),
    [
        ("1111", "1122", (1, 0, 1)),  # one object over two halves
        ("1122", "1111", (1, 1, 0)),
        ("11112233", "11223333", (2, 1, 1)),  # both at once
        ("1110", "0111", (1, 0, 0)),  # alone at 2 of 4
        ("1100", "0110", (0, 1, 1)),  # 1 of 3
    ],
)
def test_at_an_overlap_of_exactly_one_half_a_match_is_one_to_one(prediction, truth, counts):
    scores = score(line(prediction), line(truth))
    assert (scores.tp[0], scores.fp[0], scores.fn[0]) == counts
    assert scores.tp[1] == 0


def test_an_overlap_equal_to_a_threshold_reaches_it():
    truth = line("1" * 100)
    for i, threshold in enumerate(THRESHOLDS):
        percent = 50 + 5 * i
        assert threshold == percent / 100
        at, below = (line("1" * n + "0" * (100 - n)) for n in (percent, percent - 1))
        assert score(at, truth).tp == (1,) * (i + 1) + (0,) * (9 - i)
        assert score(below, truth).tp == (1,) * i + (0,) * (10 - i)


def test_best_dice_takes_the_worse_direction():
    # Truth 1 finds a perfect partner; of the two predictions one finds nothing.
    assert score(line("1102"), line("1100")).sbd == 0.5
    assert score(line("1100"), line("1102")).sbd == 0.5


def test_labels_of_any_integer_type_and_order_score_alike():
    truth, prediction = line("0112233"), line("0111233")
    expected = score(prediction, truth)
    for dtype in (np.uint8, np.int16, np.dtype(">u2"), np.int64, np.uint64):
        assert score(prediction.astype(dtype), truth) == expected
    assert score(np.asfortranarray(prediction.T), truth.T) == expected


def test_a_large_image_of_many_objects_takes_no_dense_table():
    blocks = np.arange(1, 128 * 128 + 1, dtype=np.uint32).reshape(128, 128)
    truth = blocks.repeat(4, axis=0).repeat(4, axis=1)  # 16384 objects: dense would be 2 GiB
    scores = score(np.roll(truth, 1, axis=1), truth)
    assert (scores.n_truth, scores.tp[:3]) == (16384, (16384, 16384, 16384))  # IoU 12 / 20
    assert scores.tp[3] == 0
    assert scores.sbd == 0.75


@pytest.fixture(scope="module")
def several():
    pairs = [
        ("11223300", "11222000"),
        ("00000000", "00000000"),
        ("11111111", "11112222"),
        ("12345678", "00000000"),
    ]
    return [(line(prediction), line(truth)) for prediction, truth in pairs]


def test_pooled_precision_is_that_of_one_image_of_all(several):
    summary = mean_scores([score(*pair) for pair in several])
    shifted = [
        [labels + np.uint32(100 * i) * (labels > 0) for labels in pair]
        for i, pair in enumerate(several)
    ]
    whole = score(*(np.concatenate(side) for side in zip(*shifted, strict=True)))
    assert (summary.tp, summary.fp, summary.fn) == (whole.tp, whole.fp, whole.fn)
    assert summary.pooled_ap == whole.ap
    assert (summary.n_predicted, summary.n_truth) == (whole.n_predicted, whole.n_truth)


def test_means_weigh_every_image_the_same(several):
    scores = [score(*pair) for pair in several]
    summary = mean_scores(scores)
    assert summary.n_images == 4
    for name in ("sbd", "count_difference", "adapted_rand_error", "voi_split", "voi_merge"):
        mean = sum(getattr(s, name) for s in scores) / 4
        assert getattr(summary, name) == pytest.approx(mean)
    assert summary.ap50 == pytest.approx((2 / 3 + 1 + 1 / 2 + 0) / 4)
    assert summary.mean_ap == pytest.approx(sum(s.mean_ap for s in scores) / 4)
    assert summary.count_difference == (1 + 0 + 1 + 8) / 4


def test_of_no_scores_there_is_no_mean():
    with pytest.raises(ImageError) as error:
        mean_scores([])
    assert str(error.value) == "there are no scores to average: score at least one image"


def test_objects_mostly_on_unlabeled_pixels_are_dropped():
    truth = line("0001110000")
    prediction = line("0055577890")
    # 5 has a third, 7 half, 8 and 9 all of their pixels on unlabeled ones.
    kept = drop_unlabeled(prediction, truth)
    assert kept.tolist() == line("0055577000").tolist()
    assert kept.dtype == prediction.dtype
    assert prediction.tolist() == line("0055577890").tolist()


@quick
@given(label_pairs())
def test_dropping_keeps_all_others_as_they_are(pair):
    prediction, truth = pair
    kept = drop_unlabeled(prediction, truth)
    for i in np.unique(prediction):
        inside = prediction == i
        is_dropped = 2 * int((truth[inside] == 0).sum()) > int(inside.sum())
        assert (kept[inside] == (0 if is_dropped else i)).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [score, drop_unlabeled])
@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (
            np.zeros((4, 5), np.uint32),
            np.zeros((5, 4), np.uint32),
            "prediction has shape (4, 5), truth has shape (5, 4): "
            "both must be the label images of one image",
        ),
        (
            np.zeros((0, 4), np.uint32),
            np.zeros((0, 4), np.uint32),
            "the images have shape (0, 4): at least one pixel is needed",
        ),
        (
            np.zeros((2, 2), np.float32),
            np.zeros((2, 2), np.uint32),
            "prediction has dtype float32: labels are integers from 0 up",
        ),
        (
            np.zeros((2, 2), np.uint32),
            np.zeros((2, 2), np.bool_),
            "truth has dtype bool: labels are integers from 0 up",
        ),
        (
            np.zeros((2, 2), np.uint32),
            np.array([[0, -1], [3, 0]]),
            "truth holds label -1: labels are integers from 0 up",
        ),
    ],
)
def test_impossible_labels_are_refused(function, prediction, truth, message):
    with pytest.raises(ImageError) as error:
        function(prediction, truth)
    assert str(error.value) == message
