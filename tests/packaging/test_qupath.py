"""The graph for QuPath is called as its extension calls, and finds what `run` finds."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Head
from spoco_zoo.labels import relabel
from spoco_zoo.normalization import ScaleRange, ZeroMeanUnitVariance, fit_affine
from spoco_zoo.packaging.graphs import read_torchscript, write_torchscript
from spoco_zoo.packaging.qupath import CLIP, PERCENTILES, build_qupath, check_qupath, give_as_qupath
from spoco_zoo.recipe import Hdbscan, MeanShift, Recipe
from spoco_zoo.segmentation import make_instances
from spoco_zoo.session import Embedded
from spoco_zoo.spec import Spec

NORMALIZATIONS = [
    ZeroMeanUnitVariance(eps=1e-4),
    ScaleRange(min_percentile=2.0, max_percentile=97.0),
    ScaleRange(min_percentile=PERCENTILES[0], max_percentile=PERCENTILES[1]),
]


@pytest.fixture(scope="module")
def net(untrained):
    return untrained([[2, 2]], channels=2, head=True)


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        clustering=MeanShift(bandwidth=0.4),
        foreground=Head(threshold=0.3, core_threshold=0.4),
        min_size=4,
        fill_reach=2,
    )


def make_spec(normalization=NORMALIZATIONS[0], **words):
    data = {"normalization": normalization.model_dump(), "pixel_size_um": [0.5, 0.5]}
    shape = {"dimensions": 2, "in_channels": 2, "embedding_dim": 3, "widths": [4, 6]}
    return Spec.model_validate({"data": data, "net": shape} | words)


def picture(shape, seed=0):
    """Intensities (2, y, x) of smooth blobs, as a microscope gives them."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(2, *shape)), (0, 1.5, 1.5))
    return (1000 + 300 * smooth / smooth.std()).astype(np.uint16)


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=["mean", "range", "its-own"])
def test_it_finds_what_run_finds_of_the_same_image(net, recipe, normalization, tmp_path):
    module = build_qupath(net, make_spec(normalization), recipe, torch.randn(1, 2, 5, 5))
    write_torchscript(module, tmp_path / "instanseg.pt")
    opened = read_torchscript(tmp_path / "instanseg.pt")
    for number, shape in enumerate([(37, 45), (16, 9)]):
        given = give_as_qupath(picture(shape, number))
        same = normalization == NORMALIZATIONS[2]
        normal = given if same else fit_affine(given, normalization).apply(given)
        with torch.no_grad():
            embedding, probability = (out[0].numpy() for out in net(torch.from_numpy(normal)[None]))
            labels = opened(torch.from_numpy(given)[None])
        expected = make_instances(Embedded(embedding, probability[0], None), recipe)
        assert number or expected.max() > 2
        assert labels.dtype == torch.float32
        assert labels.shape == (1, 1, *shape)
        assert (relabel(labels.numpy()[0, 0].astype(np.int64)) == expected).all()


def test_it_takes_several_tiles_and_settings_that_mean_nothing_to_it(net, recipe):
    module = build_qupath(net, make_spec(), recipe, torch.randn(1, 2, 5, 5))
    given = [torch.from_numpy(give_as_qupath(picture((20, 24), seed)))[None] for seed in (0, 1)]
    both = module(torch.cat(given), {"mask_threshold": torch.tensor(0.53)})
    assert both.any()
    for number, image in enumerate(given):
        assert (module(image)[0] == both[number]).all()


def test_an_empty_tile_has_no_instance(net, recipe):
    module = build_qupath(net, make_spec(), recipe, torch.randn(1, 2, 5, 5))
    assert not module(torch.full((1, 2, 16, 16), 0.25)).any()


def test_images_are_given_between_percentiles_and_clipped():
    image = np.arange(20_000, dtype=np.uint16).reshape(1, 100, 200)
    image[0, 0, 0] = 65_000
    given = give_as_qupath(image)
    assert given.dtype == np.float32
    assert (given.min(), given.max()) == (pytest.approx(-0.001, abs=1e-4), CLIP[1])
    low, high = np.percentile(given, PERCENTILES)
    assert (low, high) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            {"net": {"dimensions": 3}, "schedule": {"crop": [16, 16, 16]}, "data": {}},
            "net.dimensions is 3: QuPath shows images of 2; leave out the qupath flavour",
        ),
        (
            {
                "data": {
                    "normalization": {
                        "id": "fixed_zero_mean_unit_variance",
                        "mean": [1.0],
                        "std": [2.0],
                    }
                }
            },
            "data.normalization is fixed_zero_mean_unit_variance: QuPath gives no intensities but "
            "what lies between percentiles; train with scale_range or zero_mean_unit_variance, or "
            "leave out the qupath flavour",
        ),
        (
            {"data": {}},
            "data.pixel_size_um is not given: QuPath resamples images to it; write the pixel size "
            "of the training images into spec.yaml of the run, or leave out the qupath flavour",
        ),
    ],
    ids=["volumes", "fixed", "pixel"],
)
def test_what_qupath_cannot_be_given_is_refused(words, sentence):
    with pytest.raises(SettingError) as error:
        check_qupath(Spec.model_validate(words), Recipe())
    assert str(error.value) == sentence


def test_what_does_not_fit_into_a_graph_is_refused():
    with pytest.raises(SettingError, match="a graph holds mean_shift alone"):
        check_qupath(make_spec(), Recipe(clustering=Hdbscan()))
