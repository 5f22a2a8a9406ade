"""The whole way from image to labels: the truth on painted images, whatever the tiles."""

import itertools

import jaxtyping
import numpy as np
import pytest
import xarray
from scipy import ndimage

from spoco_zoo import segmentation
from spoco_zoo.errors import DeviceError, ImageError, SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.labels import relabel
from spoco_zoo.package import load_package
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.segmentation import embed, make_instances, segment
from spoco_zoo.session import EmbeddingSession, find_gpu

HEAD = Head(threshold=0.5)
RECIPE = Recipe(clustering=MeanShift(bandwidth=0.5), foreground=HEAD, min_size=4, fill_reach=2)
WINDOWS = {2: (16, 16), 3: (8, 8, 8)}
TILES = {2: [1000, 8, 23, (10, 64), (62, 16)], 3: [1000, 8, (3, 30, 12), (12, 6, 36), (1, 16, 16)]}
BLOCKS = {
    2: [1000, 1, (16, 48), 33, (1, 1000)],
    3: [1000, 1, (12, 8, 16), 17, (8, 30, 1)],
}


@pytest.fixture
def open_tiny(load_tiny):
    """Open packages of `data` on the CPU, and close them after the test."""
    opened = []

    def start(kind):
        opened.append(EmbeddingSession(load_tiny(kind), "cpu"))
        return opened[-1]

    yield start
    for session in opened:
        session.close()


@pytest.fixture
def tiny(open_tiny):
    return open_tiny("package")


# --- the truth


@pytest.mark.parametrize(("kind", "n_axes"), [("package", 2), ("volume", 3)])
def test_painted_instances_are_found_exactly(open_tiny, paint, kind, n_axes):
    image, truth = paint(n_axes)
    labels = segment(image, open_tiny(kind))
    assert labels.dtype == np.uint32
    assert truth.max() == {2: 5, 3: 3}[n_axes]
    assert (labels == truth).all()


def test_a_package_is_opened_for_one_image(load_tiny, painted):
    image, truth = painted
    assert (segment(image, load_tiny("package"), device="cpu") == truth).all()


def test_the_story_in_steps_is_the_story(tiny, painted):
    image, truth = painted
    assert (make_instances(embed(image[None], tiny), RECIPE) == truth).all()


def test_the_image_is_not_changed(tiny, painted):
    image, _ = painted
    before = image.copy()
    image.flags.writeable = False
    segment(image, tiny)
    assert (image == before).all()


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "i2", "i4", "i8", "u8", "f2", "f4", "f8", ">u2", ">f4"]
)
def test_every_dtype_gives_the_same_partition(tiny, painted, dtype):
    image, truth = painted
    assert (segment(image.astype(dtype), tiny) == truth).all()


def test_a_mask_is_an_image_too(tiny):
    image = np.zeros((12, 20), bool)
    image[2:6, 2:8] = image[2:6, 12:18] = True
    expected = np.zeros((12, 20), np.uint32)
    expected[2:6, 2:8], expected[2:6, 12:18] = 1, 2
    assert (segment(image, tiny) == expected).all()
    assert (segment(image.astype(np.uint8), tiny) == expected).all()


def test_gain_and_offset_of_the_camera_do_not_matter(tiny, painted):
    image, truth = painted
    assert (segment(image.astype(np.uint16) * 200 + 1000, tiny) == truth).all()
    assert (segment(image / 255 - 7, tiny) == truth).all()


def test_a_channel_axis_of_one_changes_nothing(tiny, painted):
    image, truth = painted
    assert (segment(image[None], tiny) == truth).all()


def test_strides_do_not_matter(tiny, painted):
    image, truth = painted
    assert (segment(np.asfortranarray(image), tiny) == truth).all()
    wide = np.zeros((image.shape[0], 2 * image.shape[1]), np.uint8)
    wide[:, ::2] = image
    assert (segment(wide[:, ::2], tiny) == truth).all()


# --- tiles


@pytest.mark.parametrize("shape", [(62, 72), (61, 71), (47, 72)])
def test_no_tile_changes_a_bit_of_an_image(tiny, painted, shape):
    image = painted[0][: shape[0], : shape[1]]
    whole = embed(image[None], tiny, tile=1000)
    labels = segment(image, tiny, tile=1000)
    for tile in (4, 7, 16, 30, (8, 64), (62, 2), (32,)):
        tiled = embed(image[None], tiny, tile=tile)
        assert (tiled.embedding == whole.embedding).all()
        np.testing.assert_allclose(tiled.probability, whole.probability, rtol=0, atol=1e-6)
        assert (segment(image, tiny, tile=tile) == labels).all()


def test_no_tile_changes_a_bit_of_a_volume(open_tiny, paint):
    session = open_tiny("volume")
    volume, truth = paint(3)
    whole = embed(volume[None], session, tile=1000)
    for tile in (5, 8, (1, 16, 16), (12, 6, 36), (3, 30, 2)):
        tiled = embed(volume[None], session, tile=tile)
        assert (tiled.embedding == whole.embedding).all()
        assert (segment(volume, session, tile=tile) == truth).all()


def test_the_embedding_of_the_momentum_net_is_tiled_alike(open_tiny, painted):
    session = open_tiny("momentum")
    whole = embed(painted[0][None], session, tile=1000)
    tiled = embed(painted[0][None], session, tile=10)
    assert (tiled.momentum_embedding == whole.momentum_embedding).all()
    assert (tiled.embedding == whole.embedding).all()
    assert not (whole.embedding == whole.momentum_embedding).all()


def test_the_tests_of_tiles_can_fail(tiny_package, edit_rdf, painted):
    """With the halo taken from the package, tiles do differ: the context crosses their edge."""
    edit_rdf(tiny_package, lambda words: words["config"]["spoco_zoo"].update(halo=[0, 0]))
    with EmbeddingSession(load_package(tiny_package), "cpu") as session:
        whole = embed(painted[0][None], session, tile=1000)
        tiled = embed(painted[0][None], session, tile=16)
    assert not (tiled.embedding == whole.embedding).all()


def test_a_halo_off_the_grid_is_rounded_up_to_it(tiny_package, edit_rdf, painted):
    """The context reaches three pixels; read from there, a tile would pool other pairs."""
    edit_rdf(tiny_package, lambda words: words["config"]["spoco_zoo"].update(halo=[3, 3]))
    with EmbeddingSession(load_package(tiny_package), "cpu") as session:
        whole = embed(painted[0][None], session, tile=1000)
        tiled = embed(painted[0][None], session, tile=16)
    assert (tiled.embedding == whole.embedding).all()


def test_an_image_off_the_grid_is_padded_by_its_last_pixels(tiny_package, edit_rdf):
    """Below zero after normalisation, so that padding by zeros would be the largest around."""

    def change(words):
        words["inputs"][0]["preprocessing"] = [
            {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 300, "std": 100}}
        ]

    edit_rdf(tiny_package, change)
    image = np.random.default_rng(0).integers(0, 255, (1, 7, 9)).astype(np.uint8)
    padded = np.pad(image, [(0, 0), (0, 1), (0, 1)], mode="edge")
    with EmbeddingSession(load_package(tiny_package), "cpu") as session:
        found = embed(image, session)
        expected = embed(padded, session)
    assert found.embedding.shape == (2, 7, 9)
    assert found.probability.shape == (7, 9)
    assert (found.embedding == expected.embedding[:, :7, :9]).all()


def test_progress_counts_every_tile(tiny):
    calls = []
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    segment(image, tiny, tile=(16, 10), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]
    calls.clear()
    segment(image, tiny, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]


@pytest.mark.parametrize("tile", [0, -4, (), (8, 8, 8), (8, 0)])
def test_an_impossible_tile_is_refused(tiny, painted, tile):
    with pytest.raises(SettingError) as error:
        segment(painted[0], tiny, tile=tile)
    assert str(error.value) == (
        f"tile is {tile}: expected one number of pixels, or 2, each at least 1"
    )


# --- blocks


@pytest.mark.uncounted
@pytest.mark.parametrize(("kind", "n_axes"), [("package", 2), ("momentum", 2), ("volume", 3)])
def test_no_tile_and_no_block_changes_a_pixel(open_tiny, paint, kind, n_axes):
    session = open_tiny(kind)
    image = paint(n_axes)[0].astype(np.float32)
    # greys that flow: instances whose borders are for the clustering to find
    image += 30 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=image.shape), 1.5)
    recipe = session.package.config.recipe.model_copy(update={"window": WINDOWS[n_axes]})
    whole = segment(image, session, recipe=recipe, tile=1000, block=1000)
    assert whole.max() > 2
    for tile, block in itertools.product(TILES[n_axes], BLOCKS[n_axes]):
        assert (segment(image, session, recipe=recipe, tile=tile, block=block) == whole).all()


@pytest.mark.parametrize(("kind", "n_axes"), [("package", 2), ("volume", 3)])
def test_painted_instances_are_found_exactly_in_any_blocks(open_tiny, paint, kind, n_axes):
    image, truth = paint(n_axes)
    recipe = RECIPE.model_copy(update={"window": WINDOWS[n_axes]})
    session = open_tiny(kind)
    for block in (None, *BLOCKS[n_axes]):
        assert (segment(image, session, recipe=recipe, block=block) == truth).all()


def test_blocks_that_are_left_out_are_those_that_memory_allows(tiny, painted, monkeypatch):
    image, truth = painted
    monkeypatch.setattr(segmentation, "_BLOCK_BYTES", 4 * 3 * 20 * 20)
    recipe = RECIPE.model_copy(update={"window": (16, 16)})
    totals = set()
    labels = segment(image, tiny, recipe=recipe, progress=lambda _, total: totals.add(total))
    assert (labels == truth).all()
    assert totals == {6}  # blocks of 32 pixels, in 62 x 72


@pytest.mark.parametrize("block", [1, 32, (16, 1000), 1000])
@pytest.mark.parametrize("tile", [None, 16, (8, 1000)])
def test_progress_counts_every_tile_of_every_block_once(tiny, painted, tile, block):
    calls = []
    recipe = RECIPE.model_copy(update={"window": (16, 16)})
    segment(
        painted[0],
        tiny,
        recipe=recipe,
        tile=tile,
        block=block,
        progress=lambda done, total: calls.append((done, total)),
    )
    total = calls[0][1]
    assert calls == [(n, total) for n in range(1, total + 1)]
    write = [16 * -(-size // 16) for size in np.broadcast_to(block, 2)]
    blocks = -(-62 // write[0]) * -(-72 // write[1])
    assert total == blocks if tile is None else total >= blocks


@pytest.mark.parametrize("block", [0, -4, (), (8, 8, 8), (8, 0)])
def test_an_impossible_block_is_refused(tiny, painted, block):
    with pytest.raises(SettingError) as error:
        segment(painted[0], tiny, block=block)
    assert str(error.value) == (
        f"block is {block}: expected one number of pixels, or 2, each at least 1"
    )


def test_a_window_of_another_number_of_axes_is_refused(tiny, painted):
    with pytest.raises(SettingError) as error:
        segment(painted[0], tiny, recipe=RECIPE.model_copy(update={"window": (8, 8, 8)}))
    assert str(error.value) == "recipe.window is [8, 8, 8]: expected 2 numbers, one per axis"


# --- masks


@pytest.mark.parametrize("rule", [HEAD, Everywhere(), External()], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint32, np.int64, np.float32])
def test_a_mask_takes_the_place_of_the_rule(tiny, painted, rule, dtype):
    image, truth = painted
    recipe = RECIPE.model_copy(update={"foreground": rule, "window": (16, 16)})
    some = truth * (truth != 2)  # one instance the less
    mask = some.astype(dtype)
    mask.flags.writeable = False
    for block in (1, 1000):
        labels = segment(image, tiny, recipe=recipe, mask=mask, block=block)
        assert (labels == relabel(some)).all()
    assert not segment(image, tiny, recipe=recipe, mask=np.zeros_like(mask)).any()


def test_a_mask_may_be_wider_than_what_the_head_sees(tiny, painted):
    image, truth = painted
    everywhere = np.ones(image.shape, dtype=bool)
    labels = segment(image, tiny, mask=everywhere)
    assert (labels > 0).all()
    for number in range(1, truth.max() + 1):
        inside = ndimage.binary_erosion(truth == number)
        assert len(np.unique(labels[inside])) == 1


def test_a_mask_lies_on_a_volume(open_tiny, paint):
    volume, truth = paint(3)
    recipe = RECIPE.model_copy(update={"foreground": External(), "window": (8, 8, 8)})
    session = open_tiny("volume")
    for block in (1, 1000):
        labels = segment(volume, session, recipe=recipe, mask=truth > 1, block=block)
        assert (labels == relabel(truth * (truth > 1))).all()


@pytest.mark.parametrize("dims", [("y", "x"), ("x", "y"), ("x", "c", "y")])
def test_a_mask_has_its_axes_in_order_whatever_those_of_the_image(tiny, painted, dims):
    image, truth = painted
    plain = xarray.DataArray(image, dims=("y", "x"))
    array = (plain.expand_dims("c") if "c" in dims else plain).transpose(*dims)
    recipe = RECIPE.model_copy(update={"foreground": External()})
    labels = segment(array, tiny, recipe=recipe, mask=truth > 3)
    assert labels.dims == ("y", "x")
    assert (labels.values == relabel(truth * (truth > 3))).all()


@pytest.mark.parametrize("shape", [(72, 62), (62, 71), (1, 62, 72), (62,), ()])
@pytest.mark.parametrize("has_names", [False, True])
def test_a_mask_of_another_shape_is_refused(tiny, painted, shape, has_names):
    image = xarray.DataArray(painted[0], dims=("y", "x")) if has_names else painted[0]
    with pytest.raises(ImageError) as error:
        segment(image, tiny, mask=np.ones(shape, dtype=bool))
    assert str(error.value) == (
        f"mask has shape {shape}: expected that of the image, (62, 72), without channels"
    )


def test_a_rule_that_asks_for_a_mask_is_refused_without_one(tiny, painted):
    with pytest.raises(SettingError) as error:
        segment(painted[0], tiny, recipe=RECIPE.model_copy(update={"foreground": External()}))
    assert str(error.value) == (
        "this package takes its foreground from a mask, and none is given: expected a "
        "mask of each image; give it with --mask"
    )


# --- sizes


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 40), (40, 1), (2, 2), (5, 4)])
def test_images_smaller_than_anything_are_segmented(tiny, shape):
    image = np.zeros(shape, np.uint8)
    image[..., : -(-shape[1] // 2)] = 100
    labels = segment(image, tiny)
    expected = (image == 100) if (image == 100).sum() >= 4 and shape[1] > 1 else np.zeros(shape)
    assert labels.shape == shape
    assert (labels == expected).all()


def test_a_volume_of_one_voxel_has_no_instance(open_tiny):
    assert segment(np.full((1, 1, 1), 9), open_tiny("volume")).tolist() == [[[0]]]


@pytest.mark.parametrize("value", [0, 7, -2.5, 1e30])
def test_a_constant_image_is_empty(tiny, value):
    labels = segment(np.full((20, 30), value), tiny)
    assert labels.dtype == np.uint32
    assert labels.shape == (20, 30)
    assert not labels.any()


def test_a_constant_image_is_empty_even_where_everything_is_foreground(tiny):
    labels = segment(np.full((20, 30), 7), tiny, recipe=Recipe(foreground=Everywhere()))
    assert not labels.any()


# --- images that do not fit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_that_are_no_numbers_are_counted_and_refused(tiny, painted, value, dtype):
    image = painted[0].astype(dtype)
    image[0, :3] = value
    with pytest.raises(ImageError) as error:
        segment(image, tiny)
    assert str(error.value) == (
        "image: 3 of 4464 pixels are NaN or infinite: replace them by finite values"
    )


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (
            (3, 8, 8),
            "image has 3 channels: Tiny was trained on 1; select or convert channels first",
        ),
        (
            (8,),
            "image has shape (8,): expected 2 space axes, "
            "with at most one channel axis before them",
        ),
        (
            (1, 1, 8, 8),
            "image has shape (1, 1, 8, 8): expected 2 space axes, "
            "with at most one channel axis before them",
        ),
        ((0, 8), "image has shape (1, 0, 8): expected at least one pixel per axis"),
        (
            (0, 8, 8),
            "image has 0 channels: Tiny was trained on 1; select or convert channels first",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tiny, shape, problem):
    with pytest.raises(ImageError) as error:
        segment(np.zeros(shape, np.uint8), tiny)
    assert str(error.value) == problem


def test_a_plane_is_no_volume(open_tiny, painted):
    with pytest.raises(ImageError) as error:
        segment(painted[0], open_tiny("volume"))
    assert str(error.value) == (
        "image has shape (62, 72): expected 3 space axes, with at most one channel axis before them"
    )


def test_the_embedding_of_another_number_of_axes_is_refused(tiny):
    with pytest.raises(ImageError) as error:
        embed(np.zeros((1, 4, 8, 8), np.uint8), tiny)
    assert str(error.value) == (
        "image has 3 space axes: Tiny was trained on 2; choose a package of as many"
    )


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U1", "object"])
def test_what_is_no_number_is_refused(tiny, dtype):
    with pytest.raises(ImageError) as error:
        segment(np.zeros((8, 8)).astype("i8").astype(dtype), tiny)
    assert str(error.value) == f"image is {np.dtype(dtype)}: expected integers or floats"


# --- labelled axes


@pytest.mark.parametrize(
    "dims", [("y", "x"), ("x", "y"), ("c", "y", "x"), ("y", "x", "c"), ("x", "c", "y"), ("Y", "X")]
)
def test_named_axes_may_stand_in_any_order(tiny, painted, dims):
    image, truth = painted
    lowered = tuple(name.lower() for name in dims)
    plain = xarray.DataArray(image, dims=("y", "x"))
    array = (plain.expand_dims("c") if "c" in lowered else plain).transpose(*lowered)
    array = array.rename(dict(zip(lowered, dims, strict=True)))
    labels = segment(array, tiny)
    assert isinstance(labels, xarray.DataArray)
    assert labels.dims == (("Y", "X") if "Y" in dims else ("y", "x"))
    assert labels.dtype == np.uint32
    assert (labels.values == truth).all()


def test_coordinates_and_attributes_stay(tiny, painted):
    image, truth = painted
    array = xarray.DataArray(
        image[..., None],
        dims=("y", "x", "channel"),
        coords={
            "y": np.arange(62) * 0.5,
            "x": np.arange(72) * 0.25,
            "channel": ["DAPI"],
            "time": 5,
            "row": ("y", np.arange(62)),
        },
        attrs={"microscope": "confocal"},
        name="nuclei",
    )
    labels = segment(array, tiny)
    assert (labels.values == truth).all()
    assert labels.dims == ("y", "x")
    assert labels.name == "labels"
    assert labels.attrs == {"microscope": "confocal"}
    assert set(labels.coords) == {"y", "x", "time", "row"}
    for name in labels.coords:
        assert labels.coords[name].equals(array.coords[name])
    assert array.name == "nuclei"


def test_a_volume_with_named_axes(open_tiny, paint):
    volume, truth = paint(3)
    array = xarray.DataArray(volume, dims=("z", "y", "x")).transpose("x", "z", "y")
    labels = segment(array, open_tiny("volume"))
    assert labels.dims == ("z", "y", "x")
    assert (labels.values == truth).all()


@pytest.mark.parametrize(
    "dims", [("row", "column"), ("t", "y", "x"), ("z", "y", "x"), ("c", "z", "y", "x"), ("c", "y")]
)
def test_other_dimensions_are_refused(tiny, dims):
    array = xarray.DataArray(np.zeros((2,) * len(dims)), dims=dims)
    with pytest.raises(ImageError) as error:
        segment(array, tiny)
    assert str(error.value) == (
        f"image has dimensions {', '.join(dims)}: expected y, x and at most c; "
        "rename or select them"
    )


def test_named_axes_are_held_to_the_same_rules(tiny):
    array = xarray.DataArray(np.full((4, 4), np.nan), dims=("y", "x"))
    with pytest.raises(ImageError) as error:
        segment(array, tiny)
    assert str(error.value) == (
        "image: 16 of 16 pixels are NaN or infinite: replace them by finite values"
    )


# --- recipes and devices


def test_hdbscan_finds_the_painted_instances_too(tiny, painted):
    image, truth = painted
    recipe = RECIPE.model_copy(update={"clustering": Hdbscan(epsilon=0.5)})
    labels = segment(image, tiny, recipe=recipe)
    # it sees all instances at once, and two far ones are of one grey: the space between parts them
    assert (labels == truth).all()


def test_consistency_drops_what_the_momentum_net_does_not_find_again(open_tiny, paint):
    """For g all greys above one half are one, so it cannot tell the touching bright ones."""
    image, truth = paint()
    image[truth == truth[15, 33]] = 240
    truth[(truth == truth[15, 14]) | (truth == truth[15, 33])] = 0
    found = segment(image, open_tiny("momentum"))
    assert ((found > 0) == (truth > 0)).all()
    recipe = Recipe(clustering=Consistency(bandwidth=0.5, iou_threshold=0), foreground=HEAD)
    everything = segment(image, open_tiny("momentum"), recipe=recipe)
    assert everything.max() == 5


def test_a_minimal_size_drops_what_is_smaller(tiny, painted):
    image, truth = painted
    sizes = np.bincount(truth.ravel())
    recipe = RECIPE.model_copy(update={"min_size": int(sizes[1:].max())})
    labels = segment(image, tiny, recipe=recipe)
    assert labels.max() == 1
    assert ((labels > 0) == (truth == sizes[1:].argmax() + 1)).all()


def test_a_wide_bandwidth_joins_what_touches(tiny, painted):
    image, truth = painted
    recipe = RECIPE.model_copy(update={"clustering": MeanShift(bandwidth=20)})
    labels = segment(image, tiny, recipe=recipe)
    assert labels.max() == truth.max() - 1
    assert labels[15, 14] == labels[15, 33] != 0


def test_background_by_prototype_equals_background_by_head(tiny, painted):
    image, truth = painted
    rule = Prototype(center=(0.0, 0.0), radius=0.9)
    labels = segment(image, tiny, recipe=RECIPE.model_copy(update={"foreground": rule}))
    assert (labels == truth).all()


def test_consistency_without_the_momentum_net_is_refused(tiny, painted):
    with pytest.raises(SettingError) as error:
        segment(painted[0], tiny, recipe=Recipe(clustering=Consistency(), foreground=HEAD))
    assert str(error.value) == (
        "consistency clustering needs the embedding of the momentum net, "
        "this package has none: use mean_shift or hdbscan"
    )


def test_the_head_of_a_network_without_one_is_refused(tiny_package, edit_rdf, painted):
    def change(words):
        words["outputs"].pop()
        words["config"]["spoco_zoo"]["recipe"]["foreground"] = {"rule": "everywhere"}

    edit_rdf(tiny_package, change)
    package = load_package(tiny_package)
    with pytest.raises(SettingError) as error:
        segment(painted[0], package, recipe=RECIPE, device="cpu")
    assert str(error.value) == (
        "foreground rule 'head' needs a network with a foreground head, "
        "this one has none: use 'prototype' or 'everywhere'"
    )
    everything = segment(painted[0], package, device="cpu")
    assert (everything > 0).all()


def test_an_unknown_device_is_refused(load_tiny, painted):
    with pytest.raises(DeviceError) as error:
        segment(painted[0], load_tiny("package"), device="tpu")
    assert str(error.value) == "device is tpu: expected auto, cpu or cuda"


@pytest.mark.skipif(find_gpu(), reason="there is one here")
def test_a_gpu_that_is_not_there_is_refused(load_tiny, painted):
    with pytest.raises(DeviceError) as error:
        segment(painted[0], load_tiny("package"), device="cuda")
    assert str(error.value).startswith("cuda was asked for, but ")


def test_a_list_is_no_image(load_tiny, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no type checks
    with pytest.raises(ImageError) as error:
        segment([[1, 2]], load_tiny("package"))
    assert str(error.value) == "image is a list: expected a NumPy array or an xarray.DataArray"


# An embedding that stays on the device. The device is the CPU here, by another name.


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
@pytest.mark.parametrize("method", [MeanShift(), Hdbscan()], ids=lambda method: method.method)
def test_instances_are_the_same_where_embeddings_stay_on_the_device(
    open_tiny, paint, kind, method, monkeypatch
):
    session = open_tiny(kind)
    image = paint(n_axes=session.package.n_axes)[0]
    recipe = session.package.config.recipe.model_copy(
        update={"clustering": method, "window": (16,) * image.ndim}
    )
    expected = segment(image, session, recipe=recipe)
    assert expected.max() > 0
    left = []
    on_cpu = session._run

    def run(tile, _):
        left.append(tile.shape)
        return on_cpu(tile, "cpu")

    assert session.dense_steps  # opened for the CPU
    monkeypatch.setattr(session, "_run", run)
    monkeypatch.setattr(session, "device", "cuda")
    monkeypatch.setattr(EmbeddingSession, "embed", None)  # nothing may come to the host
    assert (segment(image, session, recipe=recipe) == expected).all()
    assert len(left) == 1
    assert (segment(image, session, recipe=recipe, block=16) == expected).all()
    assert len(left) > 2
