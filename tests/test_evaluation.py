"""Evaluation of files: paired by name, scored as arrays are, told as plain numbers."""

import json

import numpy as np
import pytest
import tifffile

from spoco_zoo.errors import ImageError
from spoco_zoo.evaluation import evaluate, rows
from spoco_zoo.metrics import THRESHOLDS, mean_scores, score

TRUTH = np.repeat(np.array([[0, 1, 1, 2, 2, 2, 0, 3]], np.uint16), 4, axis=0)
PREDICTIONS = {
    "b": TRUTH,
    "a": np.where(TRUTH == 3, 0, TRUTH).astype(np.uint16),
    "c": np.where(TRUTH == 2, 1, TRUTH).astype(np.uint16),
}


@pytest.fixture
def folders(tmp_path):
    """Three predictions, and for each the truth under the same name and another suffix."""
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    for folder in (predictions, truth):
        folder.mkdir()
    for name, prediction in PREDICTIONS.items():
        tifffile.imwrite(predictions / f"{name}.tif", prediction)
        np.save(truth / f"{name}.npy", TRUTH)
    return predictions, truth


def test_files_score_as_their_arrays_do(folders):
    evaluation = evaluate(*folders)
    expected = tuple(score(PREDICTIONS[name], TRUTH) for name in "abc")
    assert evaluation.names == ("a.tif", "b.tif", "c.tif")
    assert evaluation.scores == expected
    assert evaluation.summary == mean_scores(expected)


def test_two_files_need_no_common_name(folders):
    predictions, truth = folders
    evaluation = evaluate(predictions / "a.tif", truth / "b.npy")
    assert evaluation.names == ("a.tif",)
    assert evaluation.scores == (score(PREDICTIONS["a"], TRUTH),)


def test_a_volume_scores_as_its_array_does(tmp_path):
    truth = np.repeat(TRUTH[None], 5, axis=0)
    prediction = np.where(truth == 3, 2, truth)
    prediction[0] = 0
    for name, labels in (("prediction.tif", prediction), ("truth.tif", truth)):
        tifffile.imwrite(tmp_path / name, labels, imagej=True, metadata={"axes": "ZYX"})
    evaluation = evaluate(tmp_path / "prediction.tif", tmp_path / "truth.tif")
    assert evaluation.scores == (score(prediction, truth),)


def test_progress_counts_every_pair(folders):
    calls = []
    evaluate(*folders, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_json_holds_every_number_and_survives_a_file(folders):
    evaluation = evaluate(*folders)
    told = evaluation.to_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["thresholds"] == list(THRESHOLDS)
    assert [image["name"] for image in told["images"]] == ["a.tif", "b.tif", "c.tif"]
    for image, scores in zip(told["images"], evaluation.scores, strict=True):
        assert image["sbd"] == scores.sbd
        assert image["ap"] == list(scores.ap)
        assert image["ap50"] == scores.ap50
        assert image["mean_ap"] == scores.mean_ap
    summary = told["summary"]
    assert summary["n_images"] == 3
    assert summary["tp"] == list(evaluation.summary.tp)
    assert summary["pooled_ap50"] == evaluation.summary.pooled_ap[0]
    assert summary["pooled_mean_ap"] == pytest.approx(sum(summary["pooled_ap"]) / 10)
    assert summary["mean_ap"] == evaluation.summary.mean_ap


def test_rows_tell_the_summary_in_reading_order(folders):
    predictions, truth = folders
    perfect = evaluate(predictions / "b.tif", truth / "b.npy")
    assert rows(perfect) == [
        ("images", "1"),
        ("objects in the truth", "3"),
        ("objects predicted", "3"),
        ("|DiC|, mean of images", "0.00"),
        ("SBD, mean of images", "1.0000"),
        ("AP50, mean of images", "1.0000"),
        ("AP50, all objects", "1.0000"),
        ("AP50:95, mean of images", "1.0000"),
        ("AP50:95, all objects", "1.0000"),
        ("adapted Rand error, mean of images", "0.0000"),
        ("VOI split, mean of images, bits", "0.0000"),
        ("VOI merge, mean of images, bits", "0.0000"),
    ]
    told = dict(rows(evaluate(predictions, truth)))
    # a misses one object of three; c joins two, and the larger still reaches 3 of 5.
    assert told["|DiC|, mean of images"] == "0.67"
    assert told["AP50, mean of images"] == f"{(2 / 3 + 1 + 2 / 3) / 3:.4f}"
    assert told["AP50, all objects"] == f"{7 / 9:.4f}"


def test_another_shape_is_refused_with_the_files(folders):
    predictions, truth = folders
    np.save(truth / "c.npy", TRUTH[:2])
    with pytest.raises(ImageError) as error:
        evaluate(predictions, truth)
    assert str(error.value) == (
        f"{predictions / 'c.tif'} has shape (4, 8), {truth / 'c.npy'} has shape (2, 8): "
        "both must be the label images of one image"
    )


def test_a_file_without_partner_is_refused_before_any_is_scored(folders):
    predictions, truth = folders
    (truth / "c.npy").unlink()
    calls = []
    with pytest.raises(ImageError, match=r"c\.tif"):
        evaluate(predictions, truth, progress=lambda *done: calls.append(done))
    assert calls == []
