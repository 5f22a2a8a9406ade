"""The description says what the spec says, and our own reading of it gives the same back."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from spoco_zoo import normalization, package
from spoco_zoo.package import SpocoConfig
from spoco_zoo.packaging.description import (
    FILES,
    Facts,
    describe,
    hash_files,
    package_id,
)
from spoco_zoo.packaging.flavours import Flavour, Output
from spoco_zoo.spec import parse_spec

RECIPE = {"clustering": {"method": "mean_shift", "bandwidth": 0.5}}


def make_config(multiple_of, halo):
    return SpocoConfig(
        multiple_of=multiple_of,
        halo=halo,
        crop=tuple(8 * step for step in multiple_of),
        delta_var=0.5,
        delta_dist=2.0,
        recipe=RECIPE,
        files=dict.fromkeys([*FILES.values(), "test_embedding.npy"], "0" * 64),
    )


def make_flavour(n_axes=2, **changes):
    names = ("embedding0", "embedding1")
    facts = {
        "name": "embeddings",
        "run": lambda image: (image,),
        "script": None,
        "source": None,
        "outputs": (Output("embedding", names, "Two numbers"),),
        "halo": (8,) * n_axes,
        "multiple_of": (4,) * n_axes,
        "has_state_dict": True,
    }
    return Flavour(**facts | changes)


def make_facts(n_axes=2, peak=5.0, **changes):
    config = make_config((4,) * n_axes, (8,) * n_axes)
    names = ["test_embedding.npy", "sample_embedding.tif", "test_labels.npy", "sample_labels.tif"]
    files = dict.fromkeys([*FILES.values(), *names], "0" * 64)
    peaks = {"embedding": peak, "labels": peak}
    flavour = make_flavour(n_axes, **changes)
    return Facts(flavour, config, {"in_channels": 2}, 100, peaks, files)


def make_spec(**words):
    return parse_spec({"net": {"in_channels": 2}} | words, "spec")


@pytest.mark.parametrize(
    ("multiple_of", "halo", "expected"),
    [
        ((2, 2), (10, 10), (22, 22)),
        ((8, 8), (56, 56), (120, 120)),
        ((1, 4, 4), (6, 8, 0), (13, 20, 4)),
        ((16, 16), (0, 0), (16, 16)),
    ],
)
def test_the_smallest_size_is_on_the_grid_and_more_than_both_halos(multiple_of, halo, expected):
    sizes = make_flavour(multiple_of=multiple_of, halo=halo).smallest
    assert sizes == expected
    assert all(
        n > 2 * h and n % step == 0 for n, h, step in zip(sizes, halo, multiple_of, strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        normalization.ZeroMeanUnitVariance(eps=1e-4),
        normalization.ScaleRange(min_percentile=1, max_percentile=99.5, eps=1e-5),
        normalization.FixedZeroMeanUnitVariance(mean=(1.0, 2.0), std=(3.0, 4.0)),
        normalization.ScaleLinear(gain=(0.5, 0.25), offset=(1.0, -1.0)),
    ],
)
def test_every_normalization_reads_back_as_it_was_written(settings):
    spec = make_spec(data={"normalization": settings.model_dump()})
    words = describe(spec, make_facts())
    image = package._Input.model_validate(words["inputs"][0])
    assert package._find_normalization(Path("place"), image, "yx") == settings


def test_what_the_card_leaves_out_is_left_out():
    words = describe(make_spec(), make_facts())
    assert "cite" not in words
    assert "tags" not in words
    assert words["authors"] == [{"name": "spoco-zoo user"}]


def test_the_card_of_the_spec_is_told():
    card = {"title": "Some nuclei", "license": "MIT", "version": "2.0.0", "tags": ["a"]}
    words = describe(make_spec(name="some-nuclei", card=card), make_facts())
    told = {word: words[word] for word in ("id", "name", "license", "version", "tags")}
    assert told == {
        "id": "some-nuclei",
        "name": "Some nuclei",
        "license": "MIT",
        "version": "2.0.0",
        "tags": ["a"],
    }


@pytest.mark.parametrize(("peak", "expected"), [(5.0, 1e-3), (0.01, 9e-5), (0.0, 0.0), (-3.0, 0.0)])
def test_the_tolerance_follows_the_largest_value(peak, expected):
    told = describe(make_spec(), make_facts(peak=peak))["config"]["bioimageio"][
        "reproducibility_tolerance"
    ]
    assert told == [
        {
            "output_ids": ["embedding"],
            "relative_tolerance": 1e-3,
            "absolute_tolerance": pytest.approx(expected),
            "mismatched_elements_per_million": 100,
        }
    ]


def test_volumes_have_three_axes():
    spec = make_spec(net={"in_channels": 2, "dimensions": 3}, schedule={"crop": [32, 32, 32]})
    words = describe(spec, make_facts(3))
    for tensor in (words["inputs"][0], words["outputs"][0]):
        assert [axis["id"] for axis in tensor["axes"]] == ["batch", "channel", "z", "y", "x"]
    assert words["inputs"][0]["axes"][1]["channel_names"] == ["channel0", "channel1"]


def test_every_file_but_the_description_is_hashed(tmp_path):
    for name in ("b.bin", "a.bin", "rdf.yaml"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder").mkdir()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_files(tmp_path) == {"a.bin": empty, "b.bin": empty}


def test_labels_are_whole_numbers_without_tolerance_and_without_halo():
    output = Output("labels", ("labels",), "Instances", "int64")
    changes = {"name": "instances", "outputs": (output,), "halo": (0, 0), "has_state_dict": False}
    words = describe(make_spec(name="nuclei"), make_facts(**changes))
    (told,) = words["outputs"]
    assert told["data"] == {"type": "int64"}
    assert told["axes"][1]["channel_names"] == ["labels"]
    assert all("halo" not in axis for axis in told["axes"])
    assert words["config"]["bioimageio"]["reproducibility_tolerance"] == [
        {
            "output_ids": ["labels"],
            "relative_tolerance": 0.0,
            "absolute_tolerance": 0.0,
            "mismatched_elements_per_million": 1000,
        }
    ]
    assert [axis["size"] for axis in words["inputs"][0]["axes"][2:]] == [{"min": 4, "step": 1}] * 2
    assert sorted(words["weights"]) == ["onnx", "torchscript"]
    assert words["weights"]["onnx"]["parent"] == "torchscript"
    assert "parent" not in words["weights"]["torchscript"]
    assert (words["id"], words["name"]) == (
        "nuclei-instances",
        f"{make_spec().card.title} instances",
    )


def test_tiles_of_boundaries_grow_by_the_pooling_grid():
    words = describe(make_spec(), make_facts(name="boundaries"))
    assert [axis["size"] for axis in words["inputs"][0]["axes"][2:]] == [{"min": 20, "step": 4}] * 2


def test_the_flavours_of_a_run_have_ids_of_their_own():
    ids = [package_id(make_spec(name="a"), name) for name in ("embeddings", "instances")]
    assert ids == ["a", "a-instances"]
