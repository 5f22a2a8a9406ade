"""Every instance has one kind, and what is right is what the scores count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spoco_zoo.errors import ImageError
from spoco_zoo.metrics import score
from spoco_zoo.mistakes import KINDS, judge


def line(*runs):
    """Labels along a line, of pairs of a label and its pixels."""
    return np.concatenate([np.full(n, label, np.uint32) for label, n in runs])[None]


@pytest.mark.parametrize(
    ("found", "truth", "of_found", "of_truth"),
    [
        (line((1, 6), (0, 4)), line((7, 10)), {1: "right"}, {7: "right"}),
        (line((1, 5), (0, 5)), line((7, 10)), {1: "right"}, {7: "right"}),
        (line((1, 4), (0, 6)), line((7, 10)), {1: "inexact"}, {7: "inexact"}),
        (line((1, 1), (0, 10)), line((7, 11)), {1: "false"}, {7: "missed"}),
        (line((0, 9), (3, 2)), line((7, 9), (0, 2)), {3: "false"}, {7: "missed"}),
        (line((1, 4), (2, 4), (0, 2)), line((7, 10)), {1: "split", 2: "split"}, {7: "split"}),
        (line((1, 7), (2, 3)), line((7, 10)), {1: "right", 2: "split"}, {7: "right"}),
        (line((4, 9)), line((7, 4), (8, 4), (0, 1)), {4: "merged"}, {7: "merged", 8: "merged"}),
        (line((4, 9)), line((7, 7), (8, 2)), {4: "right"}, {7: "right", 8: "merged"}),
        (line((0, 5)), line((0, 5)), {}, {}),
    ],
    ids=lambda value: str(value.tolist()) if isinstance(value, np.ndarray) else str(value),
)
def test_kinds_of_small_cases(found, truth, of_found, of_truth):
    verdicts = judge(found, truth)
    assert verdicts.found == of_found
    assert verdicts.truth == of_truth


def test_counts_are_of_the_truth_and_of_what_is_false():
    counts = judge(line((1, 3), (0, 9), (5, 2)), line((7, 3), (0, 1), (8, 8), (0, 2))).count()
    assert counts == {
        **dict.fromkeys(KINDS, 0),
        "right": 1,
        "missed": 1,
        "false": 1,
    }


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_right_is_what_the_score_counts_and_no_instance_is_left_out(data):
    shape = data.draw(st.sampled_from([(1, 12), (4, 5), (2, 3, 4)]))
    labels = arrays.arrays(np.uint32, shape, elements=st.integers(0, 4))
    found, truth = data.draw(labels), data.draw(labels)
    verdicts, scores = judge(found, truth), score(found, truth)
    assert verdicts.count()["right"] == scores.tp[0]
    assert sum(kind == "right" for kind in verdicts.found.values()) == scores.tp[0]
    assert len(verdicts.truth) == scores.n_truth
    assert len(verdicts.found) == scores.n_predicted
    assert "false" not in verdicts.truth.values()
    assert "missed" not in verdicts.found.values()
    same = judge(truth, truth)
    assert set(same.truth.values()) | set(same.found.values()) <= {"right"}


def test_shapes_that_differ_are_named():
    with pytest.raises(ImageError) as error:
        judge(np.zeros((2, 3), int), np.zeros((3, 2), int))
    assert str(error.value) == (
        "the instances found have shape (2, 3), the truth has shape (3, 2): "
        "both must be the label images of one image"
    )
