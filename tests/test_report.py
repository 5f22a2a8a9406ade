"""The page of a run: whole, closed to the outside, and true to the numbers."""

import base64
import json
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image
from typer.testing import CliRunner

from spoco_zoo.cli import app
from spoco_zoo.errors import OutputError, SettingError
from spoco_zoo.examples import PANELS, read_examples, write_examples
from spoco_zoo.foreground import Head
from spoco_zoo.recipe import Hdbscan, MeanShift, Recipe
from spoco_zoo.report import write_report
from spoco_zoo.report.hints import find_hints
from spoco_zoo.report.reading import read_run
from spoco_zoo.spec import dump_spec, parse_spec

HEADER = (
    "step,total,pull,push,norm,unlabeled_push,instance,consistency,foreground,"
    "learning_rate,seconds_per_step,score\n"
)
EVIL = '<script>alert("x")</script>&amp;'
RECIPE = Recipe(clustering=MeanShift(bandwidth=0.5), foreground=Head(threshold=0.3), min_size=2)
VOID = ("img", "meta")


class Reader(HTMLParser):
    """Reads a page strictly: every element closed, and nothing from outside."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @classmethod
    def of(cls, path):
        reader = cls()
        reader.feed(path.read_text(encoding="utf-8"))
        reader.close()
        assert reader.open == []
        assert "script" not in reader.tags
        for tag, word, content in reader.attributes:
            assert not word.startswith("on")
            assert word not in ("href", "xlink:href", "srcset", "action", "data")
            if word == "src":
                assert tag == "img"
                assert content.startswith("data:image/png;base64,")
            assert "url(" not in (content or "")
        return reader

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def make_folder(tmp_path, make_validated):
    """Write the folder of a run: its spec, history and, where it is finished, what was fitted."""

    def make(*, scores=(0.2, 0.5, 0.4), images=(), recipe=RECIPE, tried=(), words=None, end=100):
        folder = tmp_path / "run"
        folder.mkdir()
        spec = parse_spec({"name": "discs", "schedule": {"steps": 100}, **(words or {})}, "test")
        (folder / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
        facts = {"device": "cpu", "parameters": 1234, "nets": [1, 2.5], "half": False}
        (folder / "environment.json").write_text(json.dumps(facts))
        ids = {"train": {"a": [1, 2, 3], EVIL: [7]}, "val": {"c": [1, 2]}}
        (folder / "instances.json").write_text(json.dumps(ids))
        rows = [f"{n},{3 / n},{1 / n},0,0.01,0,0,,0,0.001,6.0," for n in range(10, end + 1, 10)]
        for place, score in enumerate(scores, start=1):
            rows[len(rows) * place // len(scores) - 1] += str(score)
        (folder / "history.csv").write_text(HEADER + "".join(row + "\n" for row in rows))
        if recipe is not None:
            fitted = {"recipe": recipe.model_dump(mode="json"), "step": 70, "validation_images": 5}
            fitted["validation"] = {"ap50": 0.8765, "mean_ap": 0.5432, "count_difference": 1.25}
            fitted["tried"] = [{"score": s, **r.model_dump(mode="json")} for s, r in tried]
            (folder / "recipe.json").write_text(json.dumps(fitted))
        if images:
            kept = [make_validated(name, **how) for name, how in images]
            write_examples(folder / "examples", kept, recipe)
        return folder

    return make


@pytest.fixture
def read_page(tmp_path):
    """Write the page of a run and read it strictly."""

    def read(folder):
        write_report(folder, tmp_path / "page.html", overwrite=True)
        return Reader.of(tmp_path / "page.html")

    return read


MIXED = [
    ("a", {"mistake": "missed"}),
    ("b", {}),
    ("c", {"mistake": "merged"}),
    ("d", {"mistake": "all"}),
    ("e", {"mistake": "false"}),
]


def test_a_finished_run_is_told_with_its_numbers_and_examples(make_folder, read_page, world):
    each = int(world(2).max())
    tried = [(0.1, RECIPE), (0.3, RECIPE.model_copy(update={"min_size": 17}))]
    page = read_page(make_folder(images=MIXED, tried=tried))
    total = 5 * each - 1
    right = total - each - 2  # all of d, one missed, and one merged with another of its size
    for told in (
        "A 2D network of 1,234 parameters learnt from 4 labelled instances in 2 images, "
        "in 10 min on the CPU.",
        f"finds {right} of {total} instances",
        "0.876",
        "0.543",
        "with the network of step 70:",
        "2 recipes tried, from 0.100 to 0.300",
        "mean shift, bandwidth 0.5, merge_distance 0",
        "head, threshold 0.3",
        "schedule.steps 100 5000",
        "best 0.500 at step 60",
        "half no",
        f"{each + 1} missed",
        "1 merged",
        "1 false",
    ):
        assert told in page.text
    pictures = [c for tag, word, c in page.attributes if (tag, word) == ("img", "src")]
    assert len(pictures) == 5 * len(PANELS)
    for source in pictures:
        with Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert max(image.size) <= 384
    assert page.text.index("Where it fails") < page.text.index("d AP 0.00")
    assert page.text.index("d AP 0.00") < page.text.index("Where it works best")
    assert page.text.index("Where it works best") < page.text.index("b AP 1.00")


def test_the_same_run_gives_the_same_page_byte_for_byte(make_folder, tmp_path):
    folder = make_folder(images=MIXED[:2])
    for name in ("one", "two"):
        write_report(folder, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_users_write_is_shown_and_never_run(make_folder, read_page):
    card = {"description": EVIL, "data": EVIL, "limits": EVIL}
    page = read_page(make_folder(images=[(EVIL, {"mistake": "all"})], words={"card": card}))
    assert page.text.count(EVIL) >= 5
    assert 'alert("x")' in page.text
    policy = next(c for _, word, c in page.attributes if word == "content")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_run_that_is_not_finished_says_how_far_it_is(make_folder, read_page):
    page = read_page(make_folder(recipe=None, end=40, scores=(0.2, 0.25)))
    for told in (
        "Run not finished",
        "It is at step 40 of 100, with about 6 min to go.",
        "Its best validation score so far is 0.250, at step 40.",
        "Validation images are kept when the recipe is fitted, at the end of train.",
        "It is fitted on the validation images when all steps are done.",
        "40 % of 100",
    ):
        assert told in page.text
    assert "img" not in page.tags


def test_a_run_without_any_score_yet_is_told_too(make_folder, read_page):
    page = read_page(make_folder(recipe=None, end=10, scores=()))
    assert "best validation score" not in page.text
    assert page.tags.count("svg") == 2


def test_a_finished_run_of_older_versions_says_how_to_get_examples(make_folder, read_page):
    page = read_page(make_folder())
    assert "This run kept no validation images: train --resume adds them." in page.text
    assert "its average precision at IoU 0.50 is 0.88, where 1 is perfect." in page.text


@pytest.mark.parametrize(
    ("step", "scores", "told"),
    [
        (100, (0.2, 0.5, 0.4), True),
        (100, (0.2, 0.5, 0.5), False),
        (60, (0.2, 0.5, 0.4), False),
    ],
)
def test_why_the_last_network_was_kept_is_told(make_folder, read_page, step, scores, told):
    folder = make_folder(scores=scores)
    fitted = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**fitted, "step": step}))
    page = read_page(folder)
    assert (f"with the network of step {step}, the last one: that of step 60" in page.text) == told


def test_many_recipes_are_folded(make_folder, read_page):
    tried = [(n / 100, RECIPE.model_copy(update={"min_size": n})) for n in range(30)]
    text = read_page(make_folder(tried=tried)).text
    assert text.index("0.290") < text.index("The others") < text.index("0.170")


@pytest.mark.parametrize(("width", "pixels"), [(1, "1 pixel"), (2, "2 pixels")])
def test_what_instances_lost_where_they_touch_is_told(make_folder, read_page, width, pixels):
    page = read_page(make_folder(words={"data": {"boundary_width": width}}))
    told = f"Where instances touch, each lost {pixels} to background, and"
    assert told in page.text


def test_few_instances_used_and_unlabelled_zero_are_told(make_folder, read_page):
    words = {"data": {"label_zero": "unlabeled", "instance_ratio": 0.1, "instance_seed": 4}}
    text = read_page(make_folder(words=words)).text
    assert "Of the labelled instances 10% were used, chosen by seed 4" in text
    assert "training 2 4 1 to 3, median 2 unlabeled" in text


# Advice.


def titles(folder):
    return [hint.title for hint in find_hints(read_run(folder))]


@pytest.mark.parametrize(("end", "warmup"), [(100, 100), (60, 101)])
def test_a_training_that_saw_its_full_rate_or_goes_on_is_not_called_short(make_folder, end, warmup):
    words = {"schedule": {"steps": 100, "warmup_steps": warmup}}
    assert "The training ended as it began" not in titles(make_folder(words=words, end=end))


def test_a_training_that_ended_within_its_warmup_is_told_first(make_folder):
    words = {"schedule": {"steps": 100, "warmup_steps": 101}}
    folder = make_folder(images=MIXED, words=words)
    assert find_hints(read_run(folder))[0] == (
        "The training ended as it began",
        "The learning rate rises for 101 steps (schedule.warmup_steps), and 100 steps were taken: "
        "all else on this page says little. Train with more --steps.",
    )


@pytest.mark.parametrize(
    ("mistake", "title"),
    [("missed", "Instances are missed"), ("merged", "Neighbours are merged")],
)
def test_frequent_mistakes_get_advice(make_folder, mistake, title):
    folder = make_folder(images=[(name, {"mistake": mistake}) for name in "ab"])
    assert title in titles(folder)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ({"label_zero": "unlabeled"}, "label some background, or train with --labelled-ratio"),
        ({}, "check that labels end at the edges of the objects, label more images"),
        ({"label_zero": "unlabeled", "boundary_width": 1}, "train longer, or label more images"),
    ],
)
def test_advice_on_foreground_rests_on_the_score_with_the_true_one(make_folder, data, advice):
    folder = make_folder(images=[("a", {"mistake": "all"}), ("b", {})], words={"data": data})
    hint = find_hints(read_run(folder))[0]
    examples = read_examples(folder / "examples")
    assert hint.title == "Foreground is the limit"
    known, score = examples.mean_ap_true_foreground, examples.mean_ap
    assert hint.text.startswith(
        f"With the true foreground the same recipe scores {known:.2f} instead of {score:.2f}"
    )
    assert advice in hint.text


def change_examples(folder, **changes):
    path = folder / "examples" / "examples.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_advice_says_where_foreground_is_not_the_limit(make_folder):
    folder = make_folder(images=[("a", {})])
    change_examples(folder, mean_ap=0.5, mean_ap_true_foreground=0.52)
    assert "Foreground is not the limit" in titles(folder)
    change_examples(folder, mean_ap=0.5, mean_ap_true_foreground=None)
    assert not [title for title in titles(folder) if title.startswith("Foreground")]


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(clustering=Hdbscan(epsilon=0.75), min_size=3)])
def test_every_kind_of_mistake_has_advice_with_the_numbers_of_the_recipe(make_folder, recipe):
    folder = make_folder(images=[("a", {})], recipe=recipe)
    (image,) = json.loads((folder / "examples" / "examples.json").read_text())["images"]
    kinds = {"right": 5, "inexact": 6, "split": 7, "merged": 8, "missed": 9, "false": 10}
    change_examples(folder, images=[image | {"kinds": kinds, "true": 35}])
    hints = [hint for hint in find_hints(read_run(folder)) if "of the 35 true ones" in hint.text]
    assert [hint.title for hint in hints] == [
        "Found where nothing is",
        "Instances are missed",
        "Neighbours are merged",
        "Instances fall into pieces",
        "Outlines are off",
    ]
    told = " ".join(hint.text for hint in hints)
    assert "10 of those found are false, as many as 29 % of the 35 true ones." in told
    assert f"smaller than {recipe.min_size} pixels" in told
    number = "0.75" if isinstance(recipe.clustering, Hdbscan) else "0.5"
    assert f"than {number} joins pieces" in told
    assert ("--threshold" in told) == isinstance(recipe.foreground, Head)


def test_images_that_are_harder_than_others_are_named(make_folder):
    folder = make_folder(images=MIXED)
    hints = {hint.title: hint.text for hint in find_hints(read_run(folder))}
    assert hints["Some images are harder than others"].startswith("d scores 0.00 where half")


@pytest.mark.parametrize(
    ("scores", "end", "told"),
    [
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 100, "A run with --steps 200 may well be better."),
        ((0.1, 0.2, 0.3, 0.4), 60, "It is worth finishing: train --resume."),
        ((0.1, 0.6, 0.5, 0.4, 0.3), 100, "From 0.600 at step 40 to 0.300 at step 100."),
        ((0.1, 0.5, 0.6, 0.605, 0.6, 0.6), 100, None),
        ((0.1, 0.9), 100, None),
    ],
)
def test_the_course_of_the_score_gets_advice(make_folder, scores, end, told):
    folder = make_folder(scores=scores, end=end, recipe=None if end < 100 else RECIPE)
    hints = [hint for hint in find_hints(read_run(folder)) if hint.title.startswith("The score")]
    hints = [hint.text for hint in hints if hint.title != "The score is uncertain"]
    assert len(hints) == (told is not None)
    assert told is None or told in hints[0]


def test_the_largest_radius_that_was_tried_gets_advice(make_folder):
    others = [RECIPE.model_copy(update={"clustering": MeanShift(bandwidth=b)}) for b in (0.2, 0.4)]
    folder = make_folder(tried=[(0.5, recipe) for recipe in (RECIPE, *others)])
    assert "The largest radius did best" in titles(folder)
    assert "The score is uncertain" in titles(folder)


# What is wrong with a folder.


@pytest.mark.parametrize("name", ["spec.yaml", "environment.json", "instances.json", "history.csv"])
def test_a_missing_file_is_one_sentence(make_folder, tmp_path, name):
    folder = make_folder()
    (folder / name).unlink()
    with pytest.raises(SettingError) as error:
        write_report(folder, tmp_path / "page.html")
    assert str(error.value) == (
        f"{folder}: no {name}: expected the folder of a run, as train leaves it"
    )
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["environment.json", "instances.json", "recipe.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b'{"train": 3, "recipe": {}}'])
def test_a_damaged_file_is_one_sentence(make_folder, tmp_path, name, content):
    folder = make_folder()
    if name == "environment.json" and content.endswith(b"}}"):
        pytest.skip("facts of an environment may be anything")
    (folder / name).write_bytes(content)
    with pytest.raises(SettingError) as error:
        write_report(folder, tmp_path / "page.html")
    assert str(error.value) == (
        f"{folder / name}: is damaged: expected what train writes; make it anew with train"
    )


def test_damaged_examples_are_one_sentence(make_folder, tmp_path):
    folder = make_folder(images=MIXED[:2])
    path = folder / "examples" / "worst-1-found.png"
    path.write_bytes(b"GIF89a")
    with pytest.raises(SettingError) as error:
        write_report(folder, tmp_path / "page.html")
    assert str(error.value) == (
        f"{path}: is missing or no PNG: remove the folder, or make it anew with train --resume"
    )
    path = folder / "examples" / "examples.json"
    # a name that leads out of the folder is none that train writes
    path.write_text(path.read_text().replace("worst-1", "../../worst-1"))
    with pytest.raises(SettingError) as error:
        write_report(folder, tmp_path / "page.html")
    assert str(error.value) == (
        f"{path}: is damaged: remove the folder, or make it anew with train --resume"
    )


def test_a_page_is_not_overwritten_unless_asked_for(make_folder, tmp_path):
    folder, page = make_folder(), tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(OutputError) as error:
        write_report(folder, page)
    assert str(error.value) == f"{page}: exists already: choose another name or add --overwrite"
    assert page.read_text() == "mine"


def test_the_command_writes_into_the_run_unless_told_otherwise(make_folder, tmp_path):
    folder = make_folder()
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0
    assert done.stdout == f"{folder / 'report.html'}: 0.0 MB, to open in a browser\n"
    Reader.of(folder / "report.html")
    done = CliRunner().invoke(app, ["report", str(folder), "-o", str(tmp_path / "x.html")])
    assert done.exit_code == 0
    assert (tmp_path / "x.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_real_run_keeps_examples_and_can_be_told(tiny_run, tmp_path):
    write_report(tiny_run, tmp_path / "page.html")
    page = Reader.of(tmp_path / "page.html")
    assert page.tags.count("img") == 2 * len(PANELS)
    kept = json.loads((tiny_run / "recipe.json").read_text())
    examples = read_examples(tiny_run / "examples")
    assert examples.mean_ap == kept["validation"]["mean_ap"]
