"""Packages of others, run: the same instances as ours of the same network, whatever the tiles."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from spoco_zoo.boundaries import Watershed
from spoco_zoo.errors import DeviceError, ImageError, PackageError, SettingError
from spoco_zoo.foreground import Everywhere, Head
from spoco_zoo.foreign import Side, load_foreign
from spoco_zoo.prediction import Strip, plan_strip, predict, segment_foreign
from spoco_zoo.recipe import MeanShift, Recipe
from spoco_zoo.segmentation import embed, segment
from spoco_zoo.session import EmbeddingSession, NetworkSession
from spoco_zoo.simulation import simulate_nuclei

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "nuclei-2d"
EVERYWHERE = Recipe(clustering=MeanShift(bandwidth=0.5), foreground=Everywhere())
MAPS = {"maps": ("bcyx", ["foreground", "boundary"], {})}
IDS = {"labels": ("bcyx", "l", {"data": {"type": "int32"}})}


@pytest.fixture
def start():
    """Open a package of others on the CPU."""
    sessions = []

    def open_it(folder):
        sessions.append(NetworkSession(load_foreign(folder), "cpu", 1))
        return sessions[-1]

    yield open_it
    for session in sessions:
        session.close()


# --- tiles along an axis


@pytest.mark.parametrize(
    ("length", "side", "wish", "most", "expected"),
    [
        (100, Side(16, 16, 0), None, None, Strip(1, 112, 100, 0)),
        (96, Side(16, 16, 0), None, 1024, Strip(1, 96, 96, 0)),
        (10, Side(64, 16, 8), None, 1024, Strip(1, 64, 10, 8)),
        (100, Side(16, 16, 8), None, 1024, Strip(1, 128, 100, 8)),
        (3000, Side(16, 16, 32), None, 1024, Strip(3, 1072, 1008, 32)),
        (100, Side(16, 16, 8), 20, 1024, Strip(4, 48, 32, 8)),
        (100, Side(2, 2, 4), 9, 1024, Strip(10, 18, 10, 4)),
        (100, Side(10, 8, 0), 9, None, Strip(13, 10, 8, 0)),
        (100, Side(32, 0, 4), None, 1024, Strip(5, 32, 24, 4)),
        (20, Side(32, 0, 4), 32, 1024, Strip(1, 32, 24, 4)),
        (9, Side(2, 16, 40), 1, None, Strip(1, 98, 16, 40)),
    ],
)
def test_an_axis_is_cut_into_sizes_that_the_network_takes(length, side, wish, most, expected):
    assert plan_strip(length, side, wish, most) == expected


def test_every_plan_covers_the_axis_with_its_context_on_the_grid():
    random = np.random.default_rng(0)
    for _ in range(2000):
        step = int(random.choice([0, 1, 2, 8, 16]))
        halo = int(random.integers(0, 40))
        least = int(random.integers(1, 100)) + (2 * halo if step == 0 else 0)
        length = int(random.integers(1, 500))
        wish = None if step == 0 or random.random() < 0.3 else int(random.integers(1, 300))
        most = None if random.random() < 0.3 else int(random.integers(1, 300))
        strip = plan_strip(length, Side(least, step, halo), wish, most)
        assert strip.size >= least
        assert (strip.size - least) % step == 0 if step else strip.size == least
        assert strip.halo == halo
        assert strip.count * strip.stride >= length
        assert (strip.count - 1) * strip.stride < length
        assert strip.size >= strip.stride + 2 * halo
        assert strip.count == 1 or step == 0 or strip.stride % step == 0


def test_a_package_of_one_size_takes_no_other():
    with pytest.raises(SettingError) as error:
        plan_strip(100, Side(32, 0, 4), 20, None)
    assert str(error.value) == (
        "tile is 20: this package takes 32 pixels at once and no other size; leave it out"
    )


# --- embeddings


def test_the_embedding_is_that_of_our_own_path(make_stranger, tiny_package, paint, start):
    from spoco_zoo.package import load_package

    image = paint()[0][None]
    found = predict(image, start(make_stranger()))
    with EmbeddingSession(load_package(tiny_package), "cpu") as session:
        expected = embed(image, session)
    # the grid of pooling lies alike, but for the last row and column, where padding differs
    inner = (slice(None), slice(0, -6), slice(0, -6))
    np.testing.assert_allclose(
        found["embedding"][inner], expected.embedding[inner], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(found["foreground"][0], expected.probability, rtol=0, atol=1e-5)


def test_the_instances_are_those_of_our_own_path(make_stranger, tiny_package, painted, start):
    from spoco_zoo.package import load_package

    image, truth = painted
    package = load_package(tiny_package)
    recipe = package.config.recipe
    ours = segment(image, package, device="cpu")
    theirs = segment_foreign(image[None], start(make_stranger()), recipe)
    assert (theirs == ours).all()
    assert theirs.max() == truth.max()


@pytest.mark.parametrize("tile", [4, 10, (6, 30), 1000])
def test_no_tile_changes_the_outputs(make_stranger, painted, start, tile):
    image = painted[0][None]
    session = start(make_stranger(halo=6))
    whole, tiled = predict(image, session), predict(image, session, tile)
    for name, values in whole.items():
        assert (tiled[name] == values).all()


def test_a_halo_is_what_keeps_tiles_equal(make_stranger, painted, start):
    """The law above can break: with less context than the network sees, tiles show."""
    image = painted[0][None]
    session = start(make_stranger(halo=1))
    whole, tiled = predict(image, session), predict(image, session, 10)
    assert (tiled["embedding"] != whole["embedding"]).any()


def test_images_of_one_size_are_run_tile_by_tile(make_stranger, painted, start):
    image = painted[0][None]
    calls = []
    fixed = start(make_stranger(size=24, halo=6))
    found = predict(image, fixed, progress=lambda *done: calls.append(done))
    assert calls == [(n, 36) for n in range(1, 37)]
    assert found["embedding"].shape == (2, 62, 72)
    grey = (image[0] - 10.0) / 240
    np.testing.assert_allclose(found["embedding"][0], 8 * grey, atol=1e-5)


def test_tiles_without_halo_are_said_to_show(make_stranger, painted, start, caplog):
    session = start(make_stranger(halo=0))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        predict(painted[0][None], session)
        assert caplog.records == []
        predict(painted[0][None], session, 36)
    assert [r.getMessage() for r in caplog.records] == [
        "Stranger: 4 tiles without halo: their seams may show"
    ]


def test_a_large_image_without_halo_is_one_tile(make_stranger, start):
    calls = []
    image = np.random.default_rng(0).integers(0, 255, (1, 8, 2300))
    predict(image, start(make_stranger(halo=0)), progress=lambda *done: calls.append(done))
    assert calls == [(1, 1)]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_images_are_padded_as_the_package_says(make_foreign, start, mode):
    def change(words):
        words["inputs"][0]["pad"] = {"mode": mode} | ({"value": 90} if mode == "constant" else {})

    folder = make_foreign("foreign/boundaries.onnx", MAPS, halo=2, change=change)
    image = np.full((1, 6, 6), 50, np.uint8)
    image[0, :, 1] = 70
    boundary = predict(image, start(folder))["maps"][1]
    # the boundary sees one pixel around: that before the first column is another in each mode
    expected = {"constant": 0.2, "edge": 0.1, "reflect": 0.1, "symmetric": 0.1}[mode]
    assert np.allclose(boundary[2, 0], expected)
    assert np.allclose(boundary[2, 5], 0.2 if mode == "constant" else 0)


def test_channels_last_and_no_batch_are_respected(make_foreign, start):
    outputs = {"out": ("yxc", "abc", {})}
    network = "foreign/channels_last.onnx"
    folder = make_foreign(network, outputs, axes="yxc", channels=("r", "g"), halo=2)
    image = np.random.default_rng(0).integers(0, 200, (2, 9, 13)).astype(np.uint16)
    expected = np.stack([image[0] + image[1], image[0], image[1]])
    session = start(folder)
    for tile in (None, 4):
        found = predict(image, session, tile)["out"]
        assert found.dtype == np.float32
        assert (found == expected).all()


def test_operations_are_done_before_and_after_on_the_whole(make_foreign, start):
    after = [{"id": "scale_range", "kwargs": {"axes": ["y", "x"]}}]
    outputs = {"out": ("yxc", "abc", {"postprocessing": after})}

    def change(words):
        words["inputs"][0]["preprocessing"] = [
            {"id": "scale_linear", "kwargs": {"gain": [1, 3], "axis": "channel"}},
            {"id": "clip", "kwargs": {"max": 300}},
        ]

    folder = make_foreign(
        "foreign/channels_last.onnx",
        outputs,
        axes="yxc",
        channels=("r", "g"),
        halo=2,
        change=change,
    )
    image = np.random.default_rng(0).integers(0, 200, (2, 9, 13))
    prepared = np.minimum(np.stack([image[0], 3 * image[1]]), 300).astype(float)
    planes = [prepared.sum(axis=0), *prepared]
    expected = [(p - p.min()) / (p.max() - p.min() + 1e-6) for p in planes]
    for tile in (None, 4):
        found = predict(image, start(folder), tile)["out"]
        np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)


# --- boundaries and labels


def test_boundaries_become_instances(make_foreign, painted, start):
    image, truth = painted
    session = start(make_foreign("foreign/boundaries.onnx", MAPS, halo=2))
    numbers = Watershed(seed_threshold=0.8)
    found = segment_foreign(image[None], session, numbers)
    assert found.max() == truth.max() == 5
    for number in range(1, 6):
        ids, counts = np.unique(found[truth == number], return_counts=True)
        assert counts.max() > 0.9 * (truth == number).sum()
        assert ids[counts.argmax()] > 0
    assert (segment_foreign(image[None], session, numbers, tile=10) == found).all()
    masked = segment_foreign(image[None], session, numbers, mask=np.asarray(truth == 3))
    assert masked.max() == 1
    assert ((masked > 0) <= (truth == 3)).all()


def test_maps_that_are_no_probabilities_are_refused(make_foreign, painted, start):
    after = {"postprocessing": [{"id": "scale_linear", "kwargs": {"gain": 2}}]}
    outputs = {"maps": ("bcyx", ["foreground", "boundary"], after)}
    session = start(make_foreign("foreign/boundaries.onnx", outputs, halo=2))
    with pytest.raises(PackageError) as error:
        segment_foreign(painted[0][None], session, Watershed())
    assert str(error.value) == (
        f"{session.package.location}: output maps goes from 0 to 2: expected probabilities in "
        "0..1; ask the authors for a sigmoid in its postprocessing"
    )


def test_labels_are_taken_as_they_are_and_renumbered(make_foreign, painted, start):
    image, _ = painted
    session = start(make_foreign("foreign/labels.onnx", IDS))
    found = segment_foreign(image[None], session, None)
    # two discs are of one grey, and one id
    ids = [1, *(i for i in range(2, 6))]
    assert found.dtype == np.uint32
    assert sorted(np.unique(found)) == ids
    for grey in np.unique(image):
        assert len(np.unique(found[image == grey])) == 1
    masked = segment_foreign(image[None], session, None, mask=np.asarray(image > 10))
    assert masked.max() == 4
    assert (masked[image == 10] == 0).all()


@pytest.mark.parametrize(("size", "tile"), [(32, None), (None, 20)])
def test_labels_are_not_put_together_from_tiles(make_foreign, painted, start, size, tile):
    session = start(make_foreign("foreign/labels.onnx", IDS, size=size))
    with pytest.raises(ImageError) as error:
        segment_foreign(painted[0][None], session, None, tile=tile)
    count, side = (6, 32) if size else (16, 20)
    assert str(error.value) == (
        f"image needs {count} tiles of {side} x {side} pixels: Stranger numbers its labels anew "
        "in each, and they cannot be told apart; give an image of one tile and no --tile"
    )


# --- what is refused


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (
            np.zeros((2, 8, 8)),
            "image has 2 channels: Stranger was trained on 1; select or convert channels first",
        ),
        (
            np.zeros((1, 1, 8, 8)),
            "image is float64 of shape (1, 1, 8, 8): Stranger takes integers "
            "or floats, channels before 2 axes of space, at least one pixel each",
        ),
        (
            np.zeros((1, 0, 8)),
            "image is float64 of shape (1, 0, 8): Stranger takes integers "
            "or floats, channels before 2 axes of space, at least one pixel each",
        ),
        (
            np.full((1, 2, 2), np.nan),
            "image: 4 of 4 pixels are NaN or infinite: replace them by finite values",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(make_stranger, start, image, problem):
    with pytest.raises(ImageError) as error:
        predict(image, start(make_stranger()))
    assert str(error.value) == problem


@pytest.mark.parametrize("tile", [0, (4,), (4, 0)])
def test_impossible_tiles_are_refused(make_stranger, start, tile):
    with pytest.raises(SettingError) as error:
        predict(np.zeros((1, 8, 8)), start(make_stranger()), tile)
    assert str(error.value) == (
        f"tile is {tile}: expected one number of pixels, or 2, each at least 1"
    )


def test_a_mask_of_another_shape_is_refused(make_stranger, start):
    with pytest.raises(ImageError) as error:
        segment_foreign(
            np.zeros((1, 8, 8)), start(make_stranger()), EVERYWHERE, mask=np.ones((8, 9))
        )
    assert str(error.value) == (
        "mask has shape (8, 9): expected that of the image, (8, 8), without channels"
    )


@pytest.mark.parametrize("settings", [None, Watershed()])
def test_settings_of_another_kind_are_refused(make_stranger, start, settings):
    with pytest.raises(SettingError) as error:
        segment_foreign(np.ones((1, 8, 8)), start(make_stranger()), settings)
    assert str(error.value) == (
        f"Stranger gives Embeddings, for which the settings are {type(settings).__name__}: "
        "expected those of its kind"
    )


def test_an_output_of_another_shape_is_refused(make_foreign, start):
    outputs = {"maps": ("bcyx", ["boundary", "b", "c"], {})}
    folder = make_foreign("foreign/boundaries.onnx", outputs)
    with pytest.raises(PackageError) as error:
        predict(np.zeros((1, 8, 8)), start(folder))
    assert str(error.value) == (
        f"{folder}: output maps has shape (1, 2, 8, 8): expected (1, 3, 8, 8), as its description "
        "says; ask the authors of the package"
    )


def test_an_output_that_is_not_finite_is_refused(make_foreign, start):
    after = {"postprocessing": [{"id": "scale_linear", "kwargs": {"gain": 1e300}}]}
    folder = make_foreign("foreign/boundaries.onnx", {"maps": ("bcyx", ["a", "boundary"], after)})
    with pytest.raises(PackageError) as error:
        predict(np.full((1, 8, 8), 90), start(folder))
    assert str(error.value) == (
        f"{folder}: output maps is not finite: the network or its description is wrong; "
        "ask the authors of the package"
    )


def test_a_network_that_fails_is_told(make_foreign, start):
    folder = make_foreign("foreign/boundaries.onnx", MAPS, channels=("a", "b"))
    with pytest.raises(PackageError) as error:
        predict(np.zeros((2, 8, 8)), start(folder))
    assert str(error.value).startswith(f"{folder}: the network failed on shape (1, 2, 8, 8) (")


def test_outputs_are_found_by_name_or_else_by_order(make_foreign, start):
    folder = make_foreign("foreign/boundaries.onnx", {"other": MAPS["maps"]})
    assert list(predict(np.zeros((1, 8, 8)), start(folder))) == ["other"]


def test_a_network_of_other_outputs_is_refused(make_foreign, start):
    outputs = MAPS | {"more": ("bcyx", "ab", {})}
    folder = make_foreign("foreign/boundaries.onnx", outputs)
    with pytest.raises(PackageError) as error:
        start(folder)
    assert str(error.value) == (
        f"{folder / 'net.onnx'}: takes image and gives maps: the description says image and "
        "maps, more; ask its authors"
    )


def test_weights_that_are_no_network_are_told(make_foreign, start):
    folder = make_foreign(b"no network", MAPS)
    with pytest.raises(PackageError) as error:
        start(folder)
    assert str(error.value).startswith(f"{folder / 'net.onnx'}: ONNX Runtime cannot open it (")


def test_a_device_that_is_not_there_is_told(make_stranger):
    with pytest.raises(DeviceError):
        NetworkSession(load_foreign(make_stranger()), "tpu")


def test_a_closed_session_is_told(make_stranger):
    with NetworkSession(load_foreign(make_stranger()), "cpu") as session:
        pass
    with pytest.raises(PackageError) as error:
        session.run(np.zeros((1, 1, 8, 8)))
    assert str(error.value) == "Stranger: the session is closed: open a new one"


def test_foreground_that_is_given_is_used(make_stranger, painted, start):
    recipe = Recipe(clustering=MeanShift(bandwidth=0.5), foreground=Head())
    found = segment_foreign(painted[0][None], start(make_stranger()), recipe)
    assert ((found > 0) == (painted[1] > 0)).all()


@pytest.mark.filterwarnings("ignore")
def test_bioimageio_core_gives_the_same_outputs(tmp_path, start, collected):
    """Of the shipped network without its halo: with one, core pads before it takes statistics."""
    pytest.importorskip("bioimageio.core")
    import xarray
    from bioimageio.core import Sample, Tensor, create_prediction_pipeline, load_model_description
    from bioimageio.spec import ValidationContext

    folder = Path(shutil.copytree(SHIPPED, tmp_path / "package"))
    words = yaml.safe_load((folder / "rdf.yaml").read_text())
    del words["config"]["spoco_zoo"]
    for output in words["outputs"]:
        for axis in output["axes"]:
            axis.pop("halo", None)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
    image = simulate_nuclei((130, 151), 1)[0].astype(np.float32)
    with ValidationContext(perform_io_checks=False):
        model = load_model_description(folder / "rdf.yaml")
    pipeline = create_prediction_pipeline(
        model, weight_format="onnx", devices=["CPUExecutionProvider"]
    )
    array = xarray.DataArray(image[None, None], dims=("batch", "channel", "y", "x"))
    sample = Sample(members={"image": Tensor.from_xarray(array)}, stat={}, id="sample")
    expected = pipeline.predict_sample_without_blocking(sample).members
    found = predict(image[None], start(folder))
    assert set(found) == {"embedding", "foreground"}
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name].data[0], rtol=0, atol=1e-4)
