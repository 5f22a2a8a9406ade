"""How a package makes instances is said by someone: the package, a flag, or a fitted recipe."""

import json

import numpy as np
import pytest

from spoco_zoo.boundaries import Watershed
from spoco_zoo.choices import (
    Flags,
    change_recipe,
    choose_settings,
    dump_fitted,
    fit_to_image,
    open_package,
    plan_run,
    read_recipe,
)
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.foreground import Everywhere, External, Head
from spoco_zoo.foreign import load_foreign
from spoco_zoo.metrics import score
from spoco_zoo.package import load_package
from spoco_zoo.prediction import segment_foreign
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession, NetworkSession

MAPS = {"maps": ("bcyx", ["foreground", "boundary"], {})}
IDS = {"labels": ("bcyx", "l", {"data": {"type": "int32"}})}
PLAIN = {"embedding": ("bcyx", "ab", {})}


@pytest.fixture
def embeddings(make_stranger):
    """Embeddings with a foreground output."""
    return load_foreign(make_stranger())


@pytest.fixture
def plain(make_foreign):
    """Embeddings alone."""
    return load_foreign(make_foreign(b"net", PLAIN))


def refused(package, flags):
    with pytest.raises(SettingError) as error:
        choose_settings(package, flags)
    return str(error.value)


@pytest.mark.parametrize(
    ("flags", "clustering"),
    [
        (Flags(bandwidth=2.0), MeanShift(bandwidth=2)),
        (Flags("mean_shift", 2.0), MeanShift(bandwidth=2)),
        (Flags("hdbscan", 2.0), Hdbscan(epsilon=2)),
        (Flags(recipe=Recipe(clustering=Hdbscan(epsilon=3))), Hdbscan(epsilon=3)),
        (Flags("mean_shift", recipe=Recipe(clustering=Hdbscan(epsilon=3))), MeanShift(bandwidth=3)),
        (
            Flags(bandwidth=4.0, recipe=Recipe(clustering=Hdbscan(epsilon=3, min_samples=7))),
            Hdbscan(epsilon=4, min_samples=7),
        ),
    ],
)
def test_flags_and_recipes_say_how_to_cluster(embeddings, flags, clustering):
    assert choose_settings(embeddings, flags).clustering == clustering


def test_foreground_is_what_there_is(embeddings, make_foreign, plain):
    one = Flags(bandwidth=1.0)
    assert choose_settings(embeddings, one).foreground == Head()
    assert choose_settings(plain, one).foreground == Everywhere()
    assert choose_settings(plain, Flags(bandwidth=1.0, has_mask=True)).foreground == External()
    high = Flags(bandwidth=1.0, threshold=0.8, min_size=3)
    assert choose_settings(embeddings, high).foreground == Head(threshold=0.8)
    assert choose_settings(embeddings, high).min_size == 3
    fitted = Recipe(foreground=Head(threshold=0.3, core_threshold=0.6))
    changed = choose_settings(embeddings, Flags(recipe=fitted, threshold=0.8)).foreground
    assert changed == Head(threshold=0.8, core_threshold=0.8)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            Flags(),
            "Stranger gives embeddings and no recipe for instances: give --bandwidth, or fit a "
            "recipe on a labelled image (spoco-zoo fit) and give it with --recipe",
        ),
        (
            Flags("hdbscan"),
            "Stranger gives embeddings and no recipe for instances: give "
            "--bandwidth, or fit a recipe on a labelled image (spoco-zoo fit) and give it with "
            "--recipe",
        ),
        (
            Flags("consistency", 1.0),
            "the method is consistency, and Stranger has no momentum embedding: "
            "use mean-shift or hdbscan",
        ),
        (
            Flags(recipe=Recipe(clustering=Consistency())),
            "the method is consistency, and Stranger has no momentum embedding: "
            "use mean-shift or hdbscan",
        ),
        (
            Flags(recipe=Recipe(foreground=Head())),
            "the foreground rule is head, and Stranger has no foreground output: "
            "fit the recipe on this package",
        ),
        (
            Flags(bandwidth=1.0, threshold=0.5),
            "--threshold is 0.5, but Stranger has no foreground output: leave it out",
        ),
        (
            Flags(bandwidth=1.0, threshold=0.5, has_mask=True),
            "--threshold and --mask both say what is foreground: give one of them only",
        ),
        (
            Flags(bandwidth=-1.0),
            "clustering.bandwidth is -1.0: input should be greater than 0",
        ),
    ],
)
def test_flags_that_do_not_fit_embeddings_are_refused(plain, flags, problem):
    assert refused(plain, flags) == problem


def test_flags_of_boundaries_and_of_labels(make_foreign, tmp_path):
    package = load_foreign(make_foreign(b"net", MAPS))
    assert choose_settings(package, Flags()) == Watershed()
    changed = choose_settings(package, Flags(threshold=0.3, min_size=5))
    assert changed == Watershed(threshold=0.3, min_size=5)
    assert refused(package, Flags("hdbscan", 2.0)) == (
        "--method and --bandwidth cannot change the boundaries that Stranger gives: leave them out"
    )
    assert refused(package, Flags(threshold=1.5)) == (
        "threshold is 1.5: input should be less than 1"
    )


def test_labels_take_no_flags(make_foreign):
    package = load_foreign(make_foreign(b"net", IDS))
    assert choose_settings(package, Flags(has_mask=True)) is None
    assert refused(package, Flags(min_size=5)) == (
        "--min-size cannot change the labels that Stranger gives: leave it out"
    )


def test_a_recipe_may_replace_that_of_our_package(tiny_package):
    package = load_package(tiny_package)
    assert change_recipe(package, Flags()) == package.config.recipe
    other = Recipe(clustering=Hdbscan(epsilon=3), min_size=99)
    assert change_recipe(package, Flags(recipe=other)) == other
    assert change_recipe(package, Flags(bandwidth=5.0, recipe=other)).clustering.epsilon == 5


@pytest.mark.parametrize(("block", "precision"), [(64, "float32"), (None, "float16")])
def test_what_only_our_packages_can_is_refused(make_stranger, block, precision):
    with pytest.raises(SettingError) as error:
        plan_run(make_stranger(), Flags(bandwidth=1.0), block, "cpu", precision)
    assert str(error.value) == (
        "--block and --precision are for packages of spoco-zoo, and Stranger is none: "
        "leave them out"
    )


def test_packages_are_opened_by_what_they_are(tiny_package, make_stranger):
    with open_package(tiny_package, "cpu") as session:
        assert isinstance(session, EmbeddingSession)
    with open_package(make_stranger(), "cpu") as session:
        assert isinstance(session, NetworkSession)
    settings, start = plan_run(tiny_package, Flags(), None, "cpu", "float32")
    with start() as session:
        assert settings == session.package.config.recipe


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read: expected a recipe as fit writes it"),
        (None, "cannot be read: expected a recipe as fit writes it"),
        ("[" * 100_000, "cannot be read: expected a recipe as fit writes it"),
        ('{"min_sise": 3}', "min_sise is not a setting; did you mean min_size?"),
        ('{"recipe": {"min_size": -3}}', "min_size is -3: input should be greater than or equal"),
    ],
)
def test_a_file_that_is_no_recipe_is_told(tmp_path, content, problem):
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: {problem}")


# --- fit


@pytest.fixture
def example(paint, tmp_path):
    """An image and its labels, as files."""
    image, truth = paint()
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "labels.npy", truth)
    return tmp_path / "image.npy", tmp_path / "labels.npy"


@pytest.mark.parametrize("label_zero", ["background", "unlabeled"])
def test_a_recipe_that_is_fitted_finds_the_instances_again(
    make_stranger, example, tmp_path, painted, label_zero
):
    with open_package(make_stranger(), "cpu") as session:
        fitted = fit_to_image(session, *example, label_zero)
        path = tmp_path / "recipe.json"
        path.write_bytes(dump_fitted(fitted))
        assert read_recipe(path) == fitted.recipe
        told = json.loads(path.read_text())
        assert told["scores"]["ap50"] == 1
        assert len(told["trials"]) == len(fitted.trials) > 10
        recipe = choose_settings(session.package, Flags(recipe=read_recipe(path)))
        image, truth = painted
        labels = segment_foreign(image[None], session, recipe)
    assert score(labels * (truth > 0), truth).ap50 == 1


@pytest.mark.parametrize("label_zero", ["background", "unlabeled"])
def test_outlines_of_the_instances_fit_a_recipe_too(
    make_stranger, example, tmp_path, painted, label_zero, trace
):
    _, truth = painted
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [r.tolist() for r in trace(mask)]},
            "properties": {"classification": {"name": kind}},
        }
        for mask, kind in [
            *((truth == i, "") for i in np.unique(truth[truth > 0])),
            (truth == 0, "Background"),
        ]
    ]
    path = tmp_path / "labels.geojson"
    path.write_text(json.dumps(features))
    with open_package(make_stranger(), "cpu") as session:
        fitted = fit_to_image(session, example[0], path, label_zero)
        # all is told, so it does not matter what 0 means
        assert fitted.recipe == fit_to_image(session, *example, "background").recipe


def test_a_recipe_for_embeddings_alone_learns_what_is_background(make_foreign, painted, example):
    outputs = {"embedding": ("bcyx", "ab", {})}
    network = "tiny_package/weights.onnx"

    def change(words):
        words["inputs"][0]["preprocessing"] = [{"id": "scale_range", "kwargs": {}}]

    folder = make_foreign(network, outputs, halo=4, change=change)
    with open_package(folder, "cpu") as session:
        fitted = fit_to_image(session, *example, "background")
        labels = segment_foreign(painted[0][None], session, fitted.recipe)
    assert fitted.recipe.foreground.rule == "prototype"
    assert score(labels, painted[1]).ap50 == 1


def test_our_packages_can_be_fitted_too(tiny_package, example, painted):
    with open_package(tiny_package, "cpu") as session:
        fitted = fit_to_image(session, *example, "background")
        labels = segment(painted[0], session, recipe=fitted.recipe)
    assert score(labels, painted[1]).ap50 == 1


def test_one_labelled_instance_is_enough_to_start(make_stranger, example, painted):
    np.save(example[1], painted[1] * (painted[1] == 2))
    with open_package(make_stranger(), "cpu") as session:
        fitted = fit_to_image(session, *example, "unlabeled")
    assert fitted.scores["ap50"] == 1


def test_labels_that_do_not_fit_are_refused(make_stranger, example, painted):
    image, labels = example
    with open_package(make_stranger(), "cpu") as session:
        np.save(labels, painted[1][:, 1:])
        with pytest.raises(ImageError) as error:
            fit_to_image(session, image, labels, "background")
        assert str(error.value) == (
            f"{labels} has shape (62, 71), {image} has (62, 72): expected the labels of this image"
        )
        np.save(labels, painted[1] * 0)
        with pytest.raises(ImageError) as error:
            fit_to_image(session, image, labels, "background")
        assert str(error.value) == (f"{labels}: holds no instance: expected some that are labelled")


def test_only_embeddings_are_fitted(make_foreign, example):
    folder = make_foreign("foreign/boundaries.onnx", MAPS)
    with open_package(folder, "cpu") as session, pytest.raises(SettingError) as error:
        fit_to_image(session, *example, "background")
    assert str(error.value) == "Stranger gives Boundaries: expected a package of embeddings"


def test_fitting_needs_no_torch(start_python, make_stranger, example, tmp_path):
    code = (
        "import sys\nfrom spoco_zoo.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    out = tmp_path / "recipe.json"
    process = start_python(
        "-c", code, "fit", make_stranger(), *example, "-o", out, "--device", "cpu"
    )
    told, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    assert told.startswith(f"{out}: the best of ")
    assert told.endswith("\nFalse False\n")
    assert read_recipe(out).foreground.rule == "head"
