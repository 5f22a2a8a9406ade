"""A card says how its flavour is used, with the numbers of its network, and where it stops."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import pytest

torch = pytest.importorskip("torch")

from spoco_zoo.packaging.flavours import FLAVOURS
from spoco_zoo.packaging.memory import SIZES, Memory
from spoco_zoo.packaging.run_folder import Environment, Fitted, RunFacts
from spoco_zoo.packaging.usage import FIJI_NUMBERS, limit_lines, use_lines
from spoco_zoo.spec import parse_spec


def make_run(*, rule=None, **words):
    recipe = {"clustering": {"method": "mean_shift", "bandwidth": 1.0}}
    if rule is not None:
        recipe["foreground"] = rule
    scores = {"ap50": 0.5, "mean_ap": 0.25, "sbd": 0.6, "count_difference": 3.5}
    fitted = {"recipe": recipe, "step": 1, "validation": scores, "validation_images": 1}
    machine = {"train_images": 1, "train_instances": 1, "precision": "float32", "device": "cpu"}
    words = {"name": "some-nuclei"} | words
    if words.get("net", {}).get("dimensions") == 3:
        words["schedule"] = {"crop": [16, 64, 64]}
    return RunFacts(
        parse_spec(words, "spec"),
        Fitted.model_validate(fitted),
        Environment.model_validate(machine),
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_word_is_left_to_fill_in(flavour):
    run = make_run(net={"in_channels": 1})
    told = use_lines(run, flavour, ("foreground", "boundary")) + limit_lines(run, flavour, None)
    assert not [line for line in told if "{" in line or "}" in line]


def test_the_macro_names_the_package():
    told = use_lines(make_run(), "instances")
    assert (
        '  run("DeepImageJ Run", "model_path=some-nuclei-instances '
        'output_folder=/path/to/results");' in told
    )


@pytest.mark.parametrize(("channels", "is_said"), [(1, True), (3, False)])
def test_colours_are_to_be_converted_where_the_network_takes_one_channel(channels, is_said):
    told = use_lines(make_run(net={"in_channels": channels}), "instances")
    assert any("Convert RGB to 8-bit first" in line for line in told) == is_said


def test_ilastik_is_told_the_channels_and_the_fitted_threshold():
    head = {"rule": "head", "threshold": 0.35, "core_threshold": 0.7}
    told = "\n".join(use_lines(make_run(rule=head), "boundaries", ("one", "two")))
    assert "in 0..1: one, two." in told
    assert "final is foreground at 0.35," in told


@pytest.mark.parametrize(
    ("net", "most"),
    [
        ({"in_channels": 1}, "7094 x 7094 pixels"),
        ({"in_channels": 3}, "4096 x 4096 pixels"),
        ({"in_channels": 1, "dimensions": 3}, "369 x 369 x 369 voxels"),
    ],
)
def test_the_largest_image_of_fiji_has_as_many_axes_and_channels_as_the_network(net, most):
    told = "\n".join(limit_lines(make_run(net=net), "instances", None))
    assert f"an image of more than {most} makes" in told
    assert f"{FIJI_NUMBERS:,}" in told


@pytest.mark.parametrize(
    ("normalization", "word"),
    [
        ({"id": "zero_mean_unit_variance"}, "statistics of whole images"),
        ({"id": "fixed_zero_mean_unit_variance", "mean": [1.0], "std": [2.0]}, "fixed numbers"),
    ],
)
def test_ilastik_is_told_what_its_tiles_do_to_the_normalization(normalization, word):
    run = make_run(data={"normalization": normalization}, net={"in_channels": 1})
    assert word in "\n".join(limit_lines(run, "boundaries", None))


def test_memory_is_told_for_a_size_that_people_have():
    memory = Memory("Engine 1", 100.0, 1000.0, SIZES[2])
    for flavour in FLAVOURS:
        told = limit_lines(make_run(), flavour, memory)[-1]
        assert "By that, 2048 x 2048 in one piece is about 4.3 GB" in told
        assert told.endswith("takes tiles instead.") == (flavour == "embeddings")
    volumes = make_run(net={"dimensions": 3})
    assert (
        "64 x 512 x 512 in one piece is about 16.9 GB"
        in (limit_lines(volumes, "instances", memory)[-1])
    )
