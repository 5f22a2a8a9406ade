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
from spoco_zoo.packaging.memory import Memory
from spoco_zoo.packaging.run_folder import Environment, Fitted, RunFacts, Scores
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
        "formats": ("onnx", "torchscript", "pytorch_state_dict"),
    }
    return Flavour(**facts | changes)


def make_facts(
    spec, n_axes=2, peak=5.0, *, scores=None, memory=None, hours=None, maintainer=None, **changes
):
    config = make_config((4,) * n_axes, (8,) * n_axes)
    names = ["test_embedding.npy", "sample_embedding.tif", "test_instance_segmentation.npy"]
    names.append("sample_instance_segmentation.tif")
    files = dict.fromkeys([*FILES.values(), *names], "0" * 64)
    peaks = {"embedding": peak, "instance_segmentation": peak}
    flavour = make_flavour(n_axes, **changes)
    validation = {"ap50": 0.5, "mean_ap": 0.25, "sbd": 0.625, "count_difference": 3.5}
    words = {"recipe": RECIPE, "step": 9, "validation": validation, "validation_images": 17}
    where = {"train_images": 4, "train_instances": 9, "precision": "float32", "device": "cpu"}
    fitted, environment = Fitted.model_validate(words), Environment.model_validate(where)
    run = RunFacts(spec, fitted, environment, hours, scores, maintainer=maintainer)
    return Facts(run, flavour, config, {"in_channels": 2}, 100, peaks, files, memory)


def tell(spec, n_axes=2, peak=5.0, **changes):
    """The description of a run."""
    return describe(make_facts(spec, n_axes, peak, **changes))


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
    words = tell(spec)
    image = package._Input.model_validate(words["inputs"][0])
    assert package._find_normalization(Path("place"), image, "yx") == settings


def test_what_the_card_leaves_out_is_left_out():
    words = tell(make_spec())
    assert "cite" not in words
    assert "tags" not in words
    assert words["authors"] == [{"name": "spoco-zoo user"}]


def test_the_card_of_the_spec_is_told():
    card = {"title": "Some nuclei", "license": "MIT", "version": "2.0.0", "tags": ["a"]}
    words = tell(make_spec(name="some-nuclei", card=card))
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
    told = tell(make_spec(), peak=peak)["config"]["bioimageio"]["reproducibility_tolerance"]
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
    words = tell(spec, 3)
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
    output = Output("instance_segmentation", ("labels",), "Instances", "int64")
    changes = {"name": "instances", "outputs": (output,), "halo": (0, 0)}
    changes |= {"formats": ("onnx", "torchscript")}
    words = tell(make_spec(name="nuclei"), **changes)
    (told,) = words["outputs"]
    assert told["data"] == {"type": "int64"}
    assert told["axes"][1]["channel_names"] == ["labels"]
    assert all("halo" not in axis for axis in told["axes"])
    assert words["config"]["bioimageio"]["reproducibility_tolerance"] == [
        {
            "output_ids": ["instance_segmentation"],
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
    words = tell(make_spec(), name="boundaries")
    assert [axis["size"] for axis in words["inputs"][0]["axes"][2:]] == [{"min": 20, "step": 4}] * 2


def test_the_flavours_of_a_run_have_ids_of_their_own():
    ids = [package_id(make_spec(name="a"), name) for name in ("embeddings", "instances")]
    assert ids == ["a", "a-instances"]


# --- what the collection's own words tell


def test_training_is_told_in_the_words_of_the_format():
    card = {"limits": "Not for cells.", "modality": "microscopy", "target_structure": ["nuclei"]}
    spec = make_spec(card=card, schedule={"steps": 70, "batch_size": 3, "learning_rate": 0.002})
    memory = Memory("Engine 1", 300.0, 500.0, ((512, 512), (1024, 1024)))
    told = tell(spec, hours=1.234, memory=memory)["config"]["bioimageio"]
    assert told["model_parameter_count"] == 100
    assert (told["modality"], told["target_structure"]) == ("microscopy", ["nuclei"])
    assert told["out_of_scope_use"] == "Not for cells."
    assert told["memory_requirements_inference"] == (
        "about 500 MB for every megapixel that is computed in one piece, and 300 MB besides, on "
        "the CPU in Engine 1, measured on simulated images of 512 x 512 and 1024 x 1024"
    )
    training = told["training"]
    assert (training["training_steps"], training["training_batch_size"]) == (70, 3)
    assert (training["initial_learning_rate"], training["training_duration"]) == (0.002, 1.23)
    assert training["loss_function_kwargs"]["delta_var"] == 0.5
    assert "training_duration" not in tell(spec)["config"]["bioimageio"]["training"]


def test_scores_are_told_where_the_data_set_has_a_page():
    dataset = {"id": "nuclei", "source": "https://example.org/nuclei"}
    spec = make_spec(card={"dataset": dataset})
    summary = {"pooled_ap50": 0.9, "pooled_mean_ap": 0.8, "sbd": 0.7, "count_difference": 2.25}
    scores = Scores.model_validate({"summary": summary, "images": [{}] * 39})
    words = tell(spec, scores=scores)
    assert words["training_data"] == {"id": "nuclei"}
    validation, test = words["config"]["bioimageio"]["evaluations"]
    assert (validation["dataset_role"], validation["sample_count"]) == ("validation", 17)
    assert validation["results"] == [[0.5], [0.25], [0.625], [3.5]]
    assert (test["dataset_role"], test["sample_count"]) == ("test", 39)
    assert test["results"] == [[0.9], [0.8], [0.7], [2.25]]
    without = tell(make_spec(), scores=scores)
    assert "evaluations" not in without["config"]["bioimageio"]
    assert "training_data" not in without
    other = tell(spec, scores=scores, name="boundaries")  # which was not scored
    assert "evaluations" not in other["config"]["bioimageio"]


def test_who_has_a_name_on_github_maintains():
    authors = [{"name": "A", "github_user": "a-lab"}, {"name": "B"}]
    words = tell(make_spec(card={"authors": authors}))
    assert words["maintainers"] == [{"name": "A", "github_user": "a-lab"}]
    assert "maintainers" not in tell(make_spec())
    told = tell(make_spec(card={"authors": authors}), maintainer="core-facility")
    assert told["maintainers"][1:] == [{"github_user": "core-facility"}]


def test_qupath_is_told_the_pixel_size_and_what_it_does_itself():
    output = Output("instance_segmentation", ("labels",), "Instances")
    changes = {"outputs": (output,), "halo": (0, 0), "formats": ("torchscript",)}
    spec = make_spec(name="nuclei", data={"pixel_size_um": [0.5, 0.25]})
    words = tell(spec, name="qupath", **changes)
    for tensor in (words["inputs"][0], words["outputs"][0]):
        found = [(axis["scale"], axis["unit"]) for axis in tensor["axes"][2:]]
        assert found == [(0.5, "micrometer"), (0.25, "micrometer")]
    assert words["outputs"][0]["data"] == {"type": "float32"}
    assert [op["id"] for op in words["inputs"][0]["preprocessing"]] == [
        *("scale_range", "clip", "ensure_dtype"),
    ]
    (weights,) = words["weights"].values()
    assert weights["source"] == "instanseg.pt"
    tolerance = words["config"]["bioimageio"]["reproducibility_tolerance"][0]
    assert tolerance["relative_tolerance"] == tolerance["absolute_tolerance"] == 0
    others = tell(spec, name="instances", **changes | {"formats": ("onnx", "torchscript")})
    assert all("scale" not in axis for axis in others["inputs"][0]["axes"])
