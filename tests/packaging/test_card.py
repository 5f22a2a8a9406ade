"""The card tells the numbers of the run, of the proof and of the test, and no others."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from spoco_zoo.errors import SettingError
from spoco_zoo.packaging.card import write_card as write
from spoco_zoo.packaging.card import write_cover
from spoco_zoo.packaging.flavours import FLAVOURS, Flavour
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.proof import Check, Proof
from spoco_zoo.packaging.run_folder import (
    Environment,
    Fitted,
    Maps,
    RunFacts,
    Scores,
    read_scores,
)
from spoco_zoo.recipe import Recipe
from spoco_zoo.session import Embedded
from spoco_zoo.spec import parse_spec

FITTED = {
    "recipe": {"clustering": {"method": "mean_shift", "bandwidth": 0.75}},
    "step": 1234,
    "validation": {"ap50": 0.5, "mean_ap": 0.25, "sbd": 0.625, "count_difference": 3.5},
    "validation_images": 17,
}
ENVIRONMENT = {
    "train_images": 41,
    "train_instances": 997,
    "precision": "bfloat16",
    "device": "cuda",
}
PROVEN = Proof(
    "package",
    ["ONNX Runtime", "core"],
    ["libtorch"],
    [
        Check("agreement", "ONNX Runtime", 2.5e-7, 1e-4),
        Check("tiles off the grid", "ONNX Runtime", 0.25, None),
        Check("agreement", "Other", 2.5e-7, 1e-4),
        Check("agreement", "Exact", 0.0, 1e-4),
        Check("pixels seen beyond the halo", "ONNX Runtime", -6.0, 0.0),
        Check("test tensors, onnx", "core", 0.0, None),
        Check("labels of spoco-zoo run", "spoco-zoo", 0.0, 0.0),
    ],
)
SCORES = {
    "summary": {
        "pooled_ap50": 0.9,
        "pooled_mean_ap": 0.8,
        "sbd": 0.7,
        "count_difference": 2.25,
    },
    "images": [{}] * 39,
}


def make_run(*, hours=None, is_draft=False, **words):
    fitted, environment = Fitted.model_validate(FITTED), Environment.model_validate(ENVIRONMENT)
    return RunFacts(parse_spec(words, "spec"), fitted, environment, hours, None, is_draft)


def write_card(run, proof, scores, flavour="embeddings", memory=None):
    built = Flavour(flavour, lambda image: (image,), None, None, (), (0, 0), (1, 1))
    scored = None if scores is None else Scores.model_validate(scores)
    return write(replace(run, scores=scored), built, proof, 123_456, memory)


def test_the_run_is_told():
    card = write_card(
        make_run(
            data={"instance_ratio": 0.1, "label_zero": "unlabeled"},
            schedule={"steps": 2000, "batch_size": 3, "crop": [64, 96], "seed": 8},
            card={
                "title": "Some nuclei",
                "description": "Of many kinds.",
                "data": "one data set",
                "limits": "Not for cells.",
                "license": "MIT",
                "cite": [{"text": "One", "doi": "10.1/2"}, {"text": "Two"}],
            },
        ),
        PROVEN,
        None,
    ).splitlines()
    assert card[0] == "# Some nuclei"
    for line in (
        "Of many kinds. Gives pixel embeddings, which spoco-zoo run turns into instances.",
        "- Data: one data set",
        "- 41 images with 997 instances, 10% of the instances labelled, label 0 meaning unlabeled",
        "- 2,000 steps of 3 crops of 64 x 96 pixels, seed 8, bfloat16 on cuda; "
        "weights of step 1234, the best on validation",
        "- 123,456 parameters, embedding of 16 numbers",
        "- Licence of the weights: MIT",
        "- Not for cells.",
        "- One 10.1/2",
        "- Two",
    ):
        assert line in card


@pytest.mark.parametrize(
    ("width", "pixels"), [(0, None), (1, "the outermost pixel"), (2, "the outermost 2 pixels")]
)
def test_what_instances_lost_where_they_touch_is_told(width, pixels):
    card = write_card(make_run(data={"boundary_width": width}), PROVEN, None).splitlines()
    told = [line for line in card if line.startswith("- Where instances touch")]
    assert told == (
        [f"- Where instances touch, {pixels} of each counted as background"] if pixels else []
    )


def test_the_title_tells_the_flavours_apart():
    told = [write_card(make_run(), PROVEN, None, name).splitlines()[0] for name in FLAVOURS]
    title = f"# {make_run().spec.card.title}"
    assert told == [title, *(f"{title} {name}" for name in FLAVOURS[1:])]


def test_time_and_memory_are_told_where_they_are_known():
    memory = Memory("Engine 1", 123.4, 567.8, ((16, 128, 128), (64, 128, 128)))
    told = write_card(make_run(hours=1.26), PROVEN, None, memory=memory)
    assert "float16 on cuda, 1.3 hours; weights of step 1234" in told
    assert (
        "- Memory: about 568 MB for every million voxels that is computed in one piece, and 123 MB "
        "besides, on the CPU in Engine 1, measured on simulated images of 16 x 128 x 128 and "
        "64 x 128 x 128." in told
    )
    assert "Memory:" not in write_card(make_run(), PROVEN, None)


def test_the_proof_is_told_and_equal_rows_are_one():
    card = write_card(make_run(), PROVEN, None).splitlines()
    start = card.index("| what | in | measured | allowed |")
    assert card[start + 2 : start + 10] == [
        "| computes what the training code computes | ONNX Runtime, Other | 2.5e-07 | 1e-04 |",
        "| the same for tiles that begin off the pooling grid (told, not asked) | ONNX Runtime "
        "| 2.5e-01 |  |",
        "| computes what the training code computes | Exact | 0 | 1e-04 |",
        "| no pixel beyond the declared halo counts | ONNX Runtime | 6 pixels to spare |  |",
        "| reproduces its test tensors, onnx | core | yes |  |",
        "| gives the labels of `spoco-zoo run` | spoco-zoo | 0 | 0 |",
        "",
        "Not proven in: libtorch.",
    ]


def test_a_draft_says_that_it_is_one_and_what_it_lacks():
    said = "**Draft**: its author has not yet said that it is ready for a collection."
    told = [write_card(make_run(is_draft=is_draft), PROVEN, None) for is_draft in (False, True)]
    assert ["**Draft**" in card for card in told] == [False, True]
    assert said in told[1].splitlines()
    lacks = replace(make_run(is_draft=True), lacks=("cite: missing.", "No maintainer."))
    lines = write_card(lacks, PROVEN, None).splitlines()
    assert (
        "**Draft**: before it goes into a collection, bioimageio.spec says: cite: missing.; "
        "No maintainer." in lines
    )


def test_what_was_measured_of_boundary_maps_is_told_on_their_card_alone():
    maps = Maps(images=7, library="a library 1.0", ap50={"hysteresis": 0.25})
    run = replace(make_run(), maps=maps)
    told = {name: write_card(run, PROVEN, None, name).splitlines() for name in FLAVOURS}
    assert [name for name in FLAVOURS if "| hysteresis | 0.250 |" in told[name]] == ["boundaries"]
    assert any("7 validation images, by a library 1.0" in line for line in told["boundaries"])
    plain = write_card(make_run(), PROVEN, None, "boundaries")
    assert "What the next steps make" not in plain


def test_only_the_card_that_was_scored_tells_scores_as_its_own():
    told = {name: write_card(make_run(), PROVEN, SCORES, name) for name in FLAVOURS}
    sentence = "Scores are of `spoco-zoo run` with the embeddings package of this network"
    assert [name for name in FLAVOURS if sentence not in told[name]] == ["embeddings"]


@pytest.mark.parametrize(
    ("flavour", "word"),
    [
        ("embeddings", "spoco_zoo.segment"),
        ("instances", "DeepImageJ Run"),
        ("boundaries", "Multicut"),
        ("qupath", "Local models"),
    ],
)
def test_every_flavour_says_how_it_is_used(flavour, word):
    told = {name: write_card(make_run(), PROVEN, None, name) for name in FLAVOURS}
    assert [name for name in FLAVOURS if word in told[name]] == [flavour]


def test_without_a_test_only_the_validation_is_told():
    card = write_card(make_run(), PROVEN, None).splitlines()
    start = card.index("| score | validation |")
    assert card[start - 2] == (
        "The recipe was fitted on 17 validation images; no test images were scored."
    )
    assert card[start : start + 6] == [
        "| score | validation |",
        "|---|---|",
        "| AP at IoU 0.50, pooled | 0.500 |",
        "| AP, mean of IoU 0.50 to 0.95, pooled | 0.250 |",
        "| SBD | 0.625 |",
        "| count difference, mean | 3.500 |",
    ]


def test_the_test_stands_beside_the_validation():
    card = write_card(make_run(), PROVEN, SCORES).splitlines()
    start = card.index("| score | validation | test |")
    assert card[start - 2] == "The recipe was fitted on 17 validation images."
    assert card[start : start + 8] == [
        "| score | validation | test |",
        "|---|---|---|",
        "| AP at IoU 0.50, pooled | 0.500 | 0.900 |",
        "| AP, mean of IoU 0.50 to 0.95, pooled | 0.250 | 0.800 |",
        "| SBD | 0.625 | 0.700 |",
        "| count difference, mean | 3.500 | 2.250 |",
        "",
        "Test: 39 images.",
    ]


def test_what_needs_no_learning_is_told_beside_the_test():
    run = make_run(card={"floor_ap50": 0.5})
    sentence = (
        "Test: 39 images. Without any learning, by a threshold and a watershed whose numbers were "
        "chosen on the validation images, AP at IoU 0.50 is 0.500."
    )
    assert sentence in write_card(run, PROVEN, SCORES).splitlines()
    assert "Without any learning" not in write_card(run, PROVEN, None)
    assert "Without any learning" not in write_card(make_run(), PROVEN, SCORES)


def test_what_few_labels_gave_is_told_where_the_spec_says_so():
    run = make_run(card={"few_labels": "a tenth gives half."})
    for scores in (None, SCORES):
        assert "With few labels: a tenth gives half." in write_card(run, PROVEN, scores).split("\n")
    assert "few labels" not in write_card(make_run(), PROVEN, SCORES)


def test_the_recipe_in_the_card_is_the_recipe():
    card = write_card(make_run(), PROVEN, None)
    (block,) = re.findall(r"```json\n(.*?)```", card, flags=re.DOTALL)
    assert json.loads(block) == Recipe.model_validate(FITTED["recipe"]).model_dump(mode="json")
    assert '"bandwidth": 0.75' in block


def test_every_table_has_as_many_cells_in_each_row():
    for scores in (None, SCORES):
        lines = write_card(make_run(), PROVEN, scores).splitlines()
        rows = [(n, line.count("|")) for n, line in enumerate(lines) if line.startswith("|")]
        for (n, cells), (m, others) in pairwise(rows):
            assert m != n + 1 or cells == others


def test_scores_of_evaluate_are_read(tiny_scores):
    scores = read_scores(tiny_scores)
    assert scores.summary.sbd == 1.0
    assert "| SBD | 0.625 | 1.000 |" in write_card(make_run(), PROVEN, scores.model_dump())


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"summary": 5}',
        '{"summary": {"pooled_ap50": 1.0}, "images": [{}]}',
        json.dumps({"summary": SCORES["summary"]}),
        json.dumps({"summary": SCORES["summary"], "images": []}),
        json.dumps({"summary": SCORES["summary"] | {"sbd": "high"}, "images": [{}]}),
        json.dumps({"summary": SCORES["summary"] | {"sbd": float("nan")}, "images": [{}]}),
    ],
)
def test_a_file_without_scores_is_refused(tmp_path, content):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError) as error:
        read_scores(path)
    assert str(error.value) == (
        f"{path}: holds no scores: expected a file of spoco-zoo evaluate --json"
    )


@pytest.mark.parametrize("space", [(40, 60), (60, 40), (256, 256), (5, 20, 30)])
def test_the_cover_has_one_size_and_three_panels(tmp_path, space):
    draw = np.random.default_rng(0)
    labels = np.zeros(space, np.uint32)
    labels[..., 2:8, 2:8] = 1
    embedded = Embedded(draw.normal(size=(4, *space)).astype(np.float32), None, None)
    image = draw.integers(0, 255, (1, *space)).astype(np.uint8)
    write_cover(tmp_path / "cover.png", image, embedded, labels)
    with Image.open(tmp_path / "cover.png") as cover:
        assert (cover.mode, cover.size) == ("RGB", (720, 360))
        pixels = np.asarray(cover)
    assert (pixels[0] == 255).all()
    assert (pixels < 255).any()
