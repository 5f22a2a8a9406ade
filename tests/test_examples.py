"""What a run keeps of its validation images is what a report needs, and true."""

import numpy as np
from PIL import Image

from spoco_zoo.examples import PANELS, Validated, read_examples, write_examples
from spoco_zoo.fitting import Embedded
from spoco_zoo.foreground import Everywhere, Head
from spoco_zoo.recipe import MeanShift, Recipe

RECIPE = Recipe(clustering=MeanShift(bandwidth=0.5), foreground=Head(threshold=0.3), min_size=2)
MIXED = [
    ("a", {"mistake": "missed"}),
    ("b", {}),
    ("c", {"mistake": "merged"}),
    ("d", {"mistake": "all"}),
    ("e", {"mistake": "false"}),
]


def test_examples_keep_scores_and_pictures_of_the_best_and_the_worst(tmp_path, make_validated):
    images = [*MIXED, ("f", {}), ("g", {}), ("h", {"mistake": "missed"})]
    kept = [make_validated(name, **how) for name, how in images]
    write_examples(tmp_path, kept, RECIPE)
    examples = read_examples(tmp_path)
    assert [example.name for example in examples.images] == list("abcdefgh")
    shown = {example.shown: example.name for example in examples.images if example.shown}
    assert shown["worst-1"] == "d"
    assert {shown[f"worst-{n}"] for n in (2, 3)} < set("aceh")
    assert {shown[f"best-{n}"] for n in (1, 2, 3)} == set("bfg")
    names = {f"{name}-{panel}.png" for name in shown for panel in PANELS}
    assert {path.name for path in tmp_path.iterdir()} == {"examples.json", *names}
    # with the true foreground neither d is empty nor a lacks an instance
    assert examples.mean_ap < 0.9 < examples.mean_ap_true_foreground
    assert examples.images[3].kinds["missed"] == examples.images[3].true
    assert examples.images[1].ap50 == examples.images[1].sbd == 1


def test_a_single_image_is_shown_once_and_an_empty_one_not_at_all(tmp_path, make_validated):
    nothing = make_validated("empty", mistake="all")
    nothing.embedded.states[:] = 0
    write_examples(tmp_path, [nothing, make_validated()], RECIPE)
    shown = [example.shown for example in read_examples(tmp_path).images]
    assert shown == [None, "worst-1"]


def test_where_nobody_knows_the_foreground_no_score_with_it_is_told(tmp_path, make_validated):
    kept = [make_validated(unlabeled=True)]
    write_examples(tmp_path, kept, Recipe(foreground=Everywhere()))
    assert read_examples(tmp_path).mean_ap_true_foreground is None


def test_a_volume_is_shown_by_its_middle_slice(tmp_path, world, embedding_of):
    labels = world(3)
    embedded = Embedded(embedding_of(labels), None, None, labels.astype(np.int64))
    image = np.zeros((2, *labels.shape), np.float32)
    write_examples(tmp_path, [Validated("v", image, embedded)], Recipe(foreground=Everywhere()))
    with Image.open(tmp_path / "worst-1-truth.png") as picture:
        assert picture.size == (380, 380)  # 20 pixels, 19 times
