"""What a spec may say, and the sentence for everything else."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spoco_zoo.errors import SettingError
from spoco_zoo.recipe import Hdbscan, MeanShift
from spoco_zoo.spec import (
    ClusteringSettings,
    LossSettings,
    Spec,
    change_spec,
    dump_spec,
    load_spec,
    parse_spec,
)

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.yaml"))


@pytest.fixture
def refusal(tmp_path):
    """The sentence for a file with this text, without the name of the file."""

    def write_and_load(text):
        path = tmp_path / "spec.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SettingError) as error:
            load_spec(path)
        before, _, sentence = str(error.value).partition(f"{path}: ")
        assert before == ""
        return sentence

    return write_and_load


# The zoo.


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_of_the_zoo_loads_and_survives_writing(path, tmp_path):
    spec = load_spec(path)
    assert spec.name == path.stem
    (tmp_path / "copy.yaml").write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(tmp_path / "copy.yaml") == spec


def test_there_are_specs():
    assert SPECS


# Reading and writing.


def test_an_empty_file_is_all_defaults(tmp_path):
    for text in ("", "# nothing\n", "{}"):
        (tmp_path / "spec.yaml").write_text(text)
        assert load_spec(tmp_path / "spec.yaml") == Spec()


def test_the_defaults_are_written_out(tmp_path):
    words = yaml.safe_load(dump_spec(Spec()))
    assert list(words) == list(Spec.model_fields)
    for section, settings_ in words.items():
        if isinstance(settings_, dict):
            assert list(settings_) == list(Spec.model_fields[section].annotation.model_fields)
    assert parse_spec(words, "spec") == Spec()


METHODS = [
    None,
    {"method": "mean_shift", "bandwidth": 0.7},
    {"method": "hdbscan", "min_samples": None},
    {"method": "consistency", "seed": 3},
]
OPERATIONS = [
    {"id": "zero_mean_unit_variance"},
    {"id": "scale_range", "min_percentile": 1},
    {"id": "fixed_zero_mean_unit_variance", "mean": [1, 2.5], "std": [1e-6, 3]},
]
some_words = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[a-z0-9][a-z0-9-]*\Z"),
        "data": st.fixed_dictionaries(
            {"normalization": st.sampled_from(OPERATIONS)},
            optional={"instance_ratio": st.floats(0, 1, exclude_min=True)},
        ),
        "net": st.sampled_from([{"pooling": [[1, 2], [2, 2], [2, 1]]}, {"in_channels": 3}]),
        "loss": st.fixed_dictionaries({"delta_var": st.floats(1e-3, allow_infinity=False)}),
        "schedule": st.fixed_dictionaries({"clip_norm": st.floats(1e-3, allow_infinity=False)}),
        "clustering": st.fixed_dictionaries({"method": st.sampled_from(METHODS)}),
        "card": st.fixed_dictionaries({"data": st.text(st.characters(codec="utf-8"))}),
    },
)


@settings(max_examples=60, deadline=None)
@example({"card": {"data": "a\x85b"}})
@given(some_words)
def test_any_spec_survives_writing_and_changing_nothing(words):
    spec = parse_spec(words, "spec")
    assert parse_spec(yaml.safe_load(dump_spec(spec)), "spec") == spec
    assert change_spec(spec, {}) == spec
    assert change_spec(spec, {"loss": {"delta_var": None}}) == spec


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError) as error:
        Spec().name = "other"
    assert [problem["type"] for problem in error.value.errors()] == ["frozen_instance"]


def test_what_is_left_out_follows_from_the_rest():
    spec = parse_spec({"loss": {"delta_var": 0.3}, "net": {"widths": [8, 16, 32]}}, "spec")
    assert spec.net.steps == ((2, 2), (2, 2))
    assert spec.clustering_method == MeanShift(bandwidth=0.3)
    assert spec.has_foreground_head
    sparse = parse_spec({"data": {"label_zero": "unlabeled"}}, "spec")
    assert not sparse.has_foreground_head
    without = parse_spec({"net": {"foreground_head": False}}, "spec")
    assert not without.has_foreground_head
    chosen = parse_spec({"clustering": {"method": {"method": "hdbscan"}}}, "spec")
    assert chosen.clustering_method == Hdbscan()
    deep = parse_spec(
        {"net": {"dimensions": 3, "widths": [8, 16]}, "schedule": {"crop": [8, 16, 16]}}, "spec"
    )
    assert deep.net.steps == ((2, 2, 2),)


@pytest.mark.parametrize(
    ("zero", "known", "ratio", "width"),
    [
        ("background", None, None, 0),
        ("unlabeled", None, None, 0),
        ("unlabeled", None, None, 1),
        ("unlabeled", None, 0.3, 0),
        ("unlabeled", 255, None, 0),
        ("unlabeled", 255, 0.3, 0),
    ],
)
@pytest.mark.parametrize("wish", [None, True, False])
def test_a_foreground_head_needs_background_or_a_ratio(zero, known, ratio, width, wish):
    words = {
        "data": {"label_zero": zero, "background_label": known, "boundary_width": width},
        "net": {"foreground_head": wish},
        "loss": {"labelled_ratio": ratio},
    }
    can_learn = zero == "background" or known is not None or ratio is not None or width > 0
    if wish and not can_learn:
        with pytest.raises(SettingError, match=r"or the ratio, or leave the head out"):
            parse_spec(words, "spec")
    else:
        spec = parse_spec(words, "spec")
        assert spec.has_foreground_head == (can_learn if wish is None else wish)
        assert spec.loss.labelled_ratio == ratio


def test_a_ratio_lets_sparse_labels_cluster_within_the_head():
    words = {"data": {"label_zero": "unlabeled"}, "clustering": {"foreground": "head"}}
    assert parse_spec({**words, "loss": {"labelled_ratio": 0.2}}, "spec").has_foreground_head


def test_the_soft_mask_is_at_its_threshold_at_delta_var():
    loss = LossSettings(delta_var=0.7, kernel_threshold=0.3)
    assert math.exp(-(0.7**2) / loss.two_sigma_squared) == pytest.approx(0.3)
    # 0.3606738 for the margins of the paper, measured on the original
    assert LossSettings().two_sigma_squared == pytest.approx(0.3606738, abs=1e-7)


def test_weights_come_in_the_order_of_the_terms():
    names = ["pull", "push", "norm", "unlabeled_push", "instance", "consistency", "foreground"]
    loss = LossSettings(**{f"{name}_weight": n for n, name in enumerate(names)})
    assert loss.weights == tuple(range(7))


# What is refused.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lss: {}", "lss is not a setting; did you mean loss?"),
        ("zebra: 1", "zebra is not a setting"),
        ("head: 1", "head is not a setting"),
        (
            "loss: {consistency_term_weight: 1}",
            "loss.consistency_term_weight is not a setting; did you mean consistency_weight?",
        ),
        ("net: {head: true}", "net.head is not a setting"),
        ("net: {width: [8, 16]}", "net.width is not a setting; did you mean widths?"),
        ("data: {label_zer: 1}", "data.label_zer is not a setting; did you mean label_zero?"),
        (
            "schedule: {batchsize: 4}",
            "schedule.batchsize is not a setting; did you mean batch_size?",
        ),
        (
            "augmentation: {rotation: 9}",
            "augmentation.rotation is not a setting; did you mean rotation_degrees?",
        ),
        (
            "clustering: {min_sise: 4}",
            "clustering.min_sise is not a setting; did you mean min_size?",
        ),
        ("card: {titel: Nuclei}", "card.titel is not a setting; did you mean title?"),
        (
            "card: {authors: [{nmae: Ada}]}",
            "card.authors.0.nmae is not a setting; did you mean name?",
        ),
        (
            "card: {cite: [{text: a}, {text: b, dio: c}]}",
            "card.cite.1.dio is not a setting; did you mean doi?",
        ),
        (
            "clustering: {method: {method: mean_shift, bandwith: 1}}",
            "clustering.method.bandwith is not a setting; did you mean bandwidth?",
        ),
        (
            "clustering: {method: {method: mean_shift, epsilon: 1}}",
            "clustering.method.epsilon is not a setting",
        ),
        (
            "clustering: {method: {method: hdbscan, epsilom: 1}}",
            "clustering.method.epsilom is not a setting; did you mean epsilon?",
        ),
        (
            "data: {normalization: {id: scale_range, min_percentil: 1}}",
            "data.normalization.min_percentil is not a setting; did you mean min_percentile?",
        ),
    ],
)
def test_a_misspelled_word_is_named_with_the_one_that_was_meant(refusal, text, sentence):
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loss: {delta_var: -1}", "loss.delta_var is -1: input should be greater than 0"),
        ("loss: {delta_var: .nan}", "loss.delta_var is nan: input should be a finite number"),
        ("loss: {dice: mean}", "loss.dice is 'mean': input should be 'per_instance' or 'joint'"),
        (
            "data: {instance_ratio: 1.5}",
            "data.instance_ratio is 1.5: input should be less than or equal to 1",
        ),
        (
            "data: {background_label: 0, label_zero: unlabeled}",
            "data.background_label is 0: input should be greater than or equal to 1",
        ),
        (
            "data: {instance_ratio_of: batch}",
            "data.instance_ratio_of is 'batch': input should be 'image' or 'split'",
        ),
        (
            "data: {label_zero: nothing}",
            "data.label_zero is 'nothing': input should be 'background' or 'unlabeled'",
        ),
        (
            "loss: {labelled_ratio: 0}",
            "loss.labelled_ratio is 0: input should be greater than 0",
        ),
        (
            "loss: {labelled_ratio: 1}",
            "loss.labelled_ratio is 1: input should be less than 1",
        ),
        ("net: {dimensions: 4}", "net.dimensions is 4: input should be 2 or 3"),
        (
            "net: {embedding_dim: 0}",
            "net.embedding_dim is 0: input should be greater than or equal to 1",
        ),
        (
            "net: {widths: [8]}",
            "net.widths is [8]: tuple should have at least 2 items after validation, not 1",
        ),
        ("net: {widths: [8, 0]}", "net.widths holds 0: expected at least 1 channel a level"),
        (
            "schedule: {steps: many}",
            "schedule.steps is 'many': "
            "input should be a valid integer, unable to parse string as an integer",
        ),
        ("schedule: {momentum: 1}", "schedule.momentum is 1: input should be less than 1"),
        ("card: {version: 0.1}", "card.version is 0.1: input should be a valid string"),
        ("card: {title: abc}", "card.title is 'abc': string should have at least 5 characters"),
        ("name: Nuclei", "name is 'Nuclei': string should match pattern '^[a-z0-9][a-z0-9-]*$'"),
        ("augmentation: {scaling: [1.4]}", "augmentation.scaling.1 is missing: add it"),
        ("card: {authors: [{affiliation: x}]}", "card.authors.0.name is missing: add it"),
        ("net: 5", "net is 5: expected words and values"),
        ("net:", "net is None: expected words and values"),
        (
            "clustering: {method: hdbscan}",
            "clustering.method is 'hdbscan': expected words and values",
        ),
        ("clustering: {method: {bandwidth: 1}}", "clustering.method.method is missing: add it"),
        (
            "clustering: {method: {method: mean_shif}}",
            "clustering.method.method is 'mean_shif': "
            "expected one of mean_shift, hdbscan, consistency",
        ),
        (
            "clustering: {method: {method: consistency, anchors: 0}}",
            "clustering.method.anchors is 0: input should be greater than or equal to 1",
        ),
        ("data: {normalization: {eps: 0.01}}", "data.normalization.id is missing: add it"),
        (
            "data: {normalization: {id: fixed_zero_mean_unit_variance, mean: [1]}}",
            "data.normalization.std is missing: add it",
        ),
        (
            "data: {normalization: {id: scale_range, min_percentile: 90, max_percentile: 10}}",
            "data.normalization.min_percentile is 90: "
            "expected less than max_percentile, which is 10",
        ),
        ("1: 2", "1 is 1: keys should be strings"),
    ],
)
def test_an_impossible_value_is_named_with_what_was_expected(refusal, text, sentence):
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "schedule: {batch_size: 6, accumulate: 4}",
            "schedule.accumulate is 4: expected a divisor of schedule.batch_size, 6",
        ),
        (
            "schedule: {crop: [128, 100]}",
            "schedule.crop is 100 on axis 1: expected a multiple of 8, "
            "the total stride of the network",
        ),
        (
            "schedule: {crop: [0, 128]}",
            "schedule.crop is 0 on axis 0: expected a multiple of 8, "
            "the total stride of the network",
        ),
        (
            "net: {pooling: [[1, 2], [2, 2], [2, 3]]}",
            "schedule.crop is 128 on axis 1: expected a multiple of 12, "
            "the total stride of the network",
        ),
        (
            "net: {dimensions: 3}",
            "schedule.crop is [128, 128]: expected 3 numbers for net.dimensions 3",
        ),
        (
            "net: {pooling: [[2, 2]]}",
            "net.pooling is [[2, 2]]: expected 3 steps of 2 factors for 4 widths",
        ),
        ("net: {pooling: []}", "net.pooling is []: expected 3 steps of 2 factors for 4 widths"),
        (
            "net: {dimensions: 3, widths: [8, 16], pooling: [[2, 2]]}",
            "net.pooling is [[2, 2]]: expected 1 steps of 3 factors for 2 widths",
        ),
        (
            "net: {widths: [8, 16], pooling: [[0, 2]]}",
            "net.pooling holds a factor below 1: use 1 for an axis that is not pooled",
        ),
        (
            "net: {foreground_head: true}\ndata: {label_zero: unlabeled}",
            "net.foreground_head is true while data.label_zero is unlabeled: "
            "a foreground head learns from labelled background, from boundaries or with "
            "loss.labelled_ratio; give data.background_label, data.boundary_width or the ratio, "
            "or leave the head out",
        ),
        (
            "loss: {labelled_ratio: 0.1}",
            "loss.labelled_ratio is 0.1 while data.label_zero is background, which says that "
            "everything is labelled: make label_zero unlabeled, or leave the ratio out",
        ),
        (
            "data: {background_label: 255}",
            "data.background_label is 255 while data.label_zero is background: one number is "
            "enough for background; make label_zero unlabeled, or leave background_label out",
        ),
        (
            "clustering: {foreground: everywhere}\ndata: {boundary_width: 2}",
            "clustering.foreground is everywhere while data.boundary_width is 2: boundaries are "
            "background then; use head or auto, or leave the width out",
        ),
        (
            "clustering: {foreground: head}\nnet: {foreground_head: false}",
            "clustering.foreground is head and the network has none: "
            "use auto, prototype or everywhere",
        ),
        (
            "clustering: {foreground: head}\ndata: {label_zero: unlabeled}",
            "clustering.foreground is head and the network has none: "
            "use auto, prototype or everywhere",
        ),
    ],
)
def test_words_that_do_not_go_together_are_refused(refusal, text, sentence):
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1", "is not valid YAML at line 1: expected a spec"),
        ("name: x\n\tnet: 1", "is not valid YAML at line 2: expected a spec"),
        ("a: 1\nb: *c", "is not valid YAML at line 2: expected a spec"),
        ("a: \0", "is not valid YAML: expected a spec"),
        ("a: 2024-13-45", "is not valid YAML: expected a spec"),
        ("a: !!int many", "is not valid YAML: expected a spec"),
        ("a: " + 5000 * "[", "is not valid YAML: expected a spec"),
        ("- a\n- b", "holds a list: expected words and values"),
        ("just words", "holds a str: expected words and values"),
    ],
)
def test_a_file_that_holds_no_spec_is_refused(refusal, text, sentence):
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!mkdir"]
)
def test_a_spec_runs_no_code(refusal, tmp_path, tag):
    made = tmp_path / "made"
    assert refusal(f"name: {tag} ['{made}']") == "is not valid YAML at line 1: expected a spec"
    assert not made.exists()


def test_a_bomb_of_aliases_is_refused_in_a_short_sentence(refusal):
    # 10 to the 20 words, if written out
    lines = ["name: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    assert refusal("\n".join(lines)) == "a1 is not a setting"
    nested = "&a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"
    for n in range(1, 20):
        nested = f"&a{n} [{nested}, {', '.join([f'*a{n - 1}'] * 9)}]"
    assert refusal(f"name: {nested}") == (
        "name is [[[...], [...], [...], [...], [...], [...], ...], "
        "[[...], [...], [...], [...], [...], [...], ...], "
        "[[...], [...], [...], [...], [...], [...], ...], "
        "[[...], [...], [...], [...], [...], [...], ...], "
        "[[...], [...], [...], [...], [...], [...], ...], "
        "[[...], [...], [...], [...], [...], [...], ...], ...]: input should be a valid string"
    )


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "spec.yaml"
    for reason in ("No such file or directory", "Is a directory"):
        with pytest.raises(SettingError) as error:
            load_spec(path)
        assert str(error.value) == f"{path}: cannot be read ({reason}): expected a spec in YAML"
        path.mkdir(exist_ok=True)
    (tmp_path / "latin.yaml").write_bytes("card: {limits: größer}".encode("latin-1"))
    with pytest.raises(SettingError) as error:
        load_spec(tmp_path / "latin.yaml")
    assert str(error.value) == (
        f"{tmp_path / 'latin.yaml'}: cannot be read (not UTF-8 text): expected a spec in YAML"
    )


# Changing.


def test_changes_replace_their_words_and_no_others():
    spec = parse_spec({"loss": {"delta_var": 0.3}, "schedule": {"steps": 7, "seed": 4}}, "spec")
    changed = change_spec(spec, {"schedule": {"steps": 9, "seed": None}, "loss": {"dice": "joint"}})
    expected = {"loss": {"delta_var": 0.3, "dice": "joint"}, "schedule": {"steps": 9, "seed": 4}}
    assert changed == parse_spec(expected, "spec")
    assert spec.schedule.steps == 7


def test_a_spec_made_in_python_can_be_changed():
    spec = Spec(clustering=ClusteringSettings(method=Hdbscan(epsilon=0.2)))
    changed = change_spec(spec, {"schedule": {"steps": 9}})
    assert changed.clustering_method == Hdbscan(epsilon=0.2)
    assert changed.schedule.steps == 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"schedule": {"crop": [100, 100]}},
            "settings: schedule.crop is 100 on axis 0: expected a multiple of 8, "
            "the total stride of the network",
        ),
        (
            {"schedule": {"step": 3}},
            "settings: schedule.step is not a setting; did you mean steps?",
        ),
        ({"shedule": {"steps": 3}}, "settings: shedule is not a setting; did you mean schedule?"),
    ],
)
def test_impossible_changes_are_refused(changes, sentence):
    with pytest.raises(SettingError) as error:
        change_spec(Spec(), changes)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("scene", "dimensions", "axes"), [("axons", 3, 2), ("neurons", 2, 3)])
def test_a_scene_of_other_axes_is_refused(scene, dimensions, axes):
    words = {"net": {"dimensions": dimensions}, "schedule": {"crop": [32] * dimensions}}
    with pytest.raises(SettingError) as error:
        parse_spec(words | {"card": {"scene": scene}}, "spec")
    assert str(error.value) == (
        f"spec: card.scene is {scene}, which has {axes} axes: "
        f"expected one for net.dimensions {dimensions}"
    )
