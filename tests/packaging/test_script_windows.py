"""Clustering in a graph is the clustering of `run`."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

torch = pytest.importorskip("torch")

from spoco_zoo.clustering import cluster
from spoco_zoo.labels import relabel
from spoco_zoo.packaging import instances
from spoco_zoo.recipe import MeanShift, Recipe

KINDS = ["cells", "large", "twins", "gaps", "crumbs", "combs"]
SHAPES = {2: (34, 41), 3: (12, 10, 17)}
WINDOWS = {2: (16, 16), 3: (8, 8, 8)}
both_dimensions = pytest.mark.parametrize("n_axes", [2, 3])


def cluster_in_graph(embedding, foreground, recipe, core=None):
    """What the graph makes of an embedding, as numbered labels."""
    n_axes = foreground.ndim
    volume = (1,) * (3 - n_axes) + foreground.shape
    core = foreground if core is None else core & foreground
    constants = instances._constants(recipe, n_axes)
    with torch.no_grad():
        labels = instances._compile().cluster(
            torch.from_numpy(embedding.reshape(-1, *volume).copy()),
            torch.from_numpy(foreground.reshape(volume).copy()),
            torch.from_numpy(core.reshape(volume).copy()),
            constants["window"],
            constants["margin"],
            constants["around"],
            2 * n_axes,
            constants["lattice"],
            recipe.clustering.bandwidth,
            recipe.min_size,
            recipe.fill_reach,
        )
    assert labels.dtype == torch.int64
    return relabel(labels.numpy().reshape(foreground.shape))


def is_steady(embedding, foreground, recipe, core, labels):
    """Whether numbers moved by a little more than rounding give `run` the same labels."""
    for seed in range(4):
        noise = np.random.default_rng(seed).uniform(-2e-6, 2e-6, embedding.shape)
        moved = (embedding * (1 + noise)).astype(np.float32)
        if (cluster(moved, foreground, recipe, core=core) != labels).any():
            return False
    return True


def agrees(embedding, foreground, recipe, core=None):
    """Hold the graph against `run`; None where rounding decides."""
    labels = cluster(embedding, foreground, recipe, core=core)
    if not is_steady(embedding, foreground, recipe, core, labels):
        return None
    return bool((cluster_in_graph(embedding, foreground, recipe, core) == labels).all())


@both_dimensions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("e", [1, 4])
def test_what_is_hard_to_cut_into_windows(scene, n_axes, kind, e):
    f, foreground, _ = scene(kind, SHAPES[n_axes], seed=1, e=e)
    recipe = Recipe(min_size=6, fill_reach=2, window=WINDOWS[n_axes])
    assert agrees(f, foreground, recipe)


@both_dimensions
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_shape_window_and_setting(scene, n_axes, data):
    most = {2: 40, 3: 12}[n_axes]
    shape = data.draw(st.tuples(*[st.integers(1, most)] * n_axes))
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32))
    f, foreground, _ = scene(kind, shape, seed, data.draw(st.sampled_from([1, 3, 16, 64])))
    windows = st.tuples(*[st.integers(8, 20)] * n_axes)
    recipe = Recipe(
        clustering=MeanShift(bandwidth=data.draw(st.sampled_from([0.2, 0.5, 1.5]))),
        min_size=data.draw(st.sampled_from([0, 1, 6, 15, 200])),
        fill_reach=data.draw(st.sampled_from([0, 1, 5])),
        window=data.draw(st.one_of(st.none(), windows)),
    )
    core = None
    if data.draw(st.booleans()):
        core = np.random.default_rng(seed).random(shape) < data.draw(st.sampled_from([0.5, 0.9]))
    same = agrees(f, foreground, recipe, core)
    assume(same is not None)
    assert same


@both_dimensions
@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("e", [1, 8, 64])
def test_separated_embeddings_give_exactly_the_truth(world, embedding_of, n_axes, windowed, e):
    truth = world(n_axes)
    recipe = Recipe(window=WINDOWS[n_axes] if windowed else None)
    assert (cluster_in_graph(embedding_of(truth, e), truth > 0, recipe) == relabel(truth)).all()


@both_dimensions
@pytest.mark.parametrize("by", [-100, 3000])
def test_an_embedding_far_from_zero_is_clustered_as_one_near_it(world, embedding_of, n_axes, by):
    truth = world(n_axes) + np.uint32(1)
    f = embedding_of(truth) + np.float32(by)
    everywhere = np.ones(truth.shape, dtype=bool)
    assert (cluster_in_graph(f, everywhere, Recipe()) == relabel(truth)).all()
    assert agrees(f, everywhere, Recipe(window=WINDOWS[n_axes]))


@both_dimensions
def test_touching_instances_without_background_whose_embeddings_flow_into_each_other(
    world, blurred_embedding_of, n_axes
):
    truth = world(n_axes)
    f, everywhere = blurred_embedding_of(truth, 0.8), np.ones(truth.shape, dtype=bool)
    recipe = Recipe(window=WINDOWS[n_axes])
    assert cluster_in_graph(f, everywhere, recipe).max() >= 8
    assert agrees(f, everywhere, recipe)


@pytest.mark.parametrize("min_size", [0, 40, 900])
def test_more_pixels_than_centres_are_sought_among(blurred_embedding_of, min_size):
    """A window of 96 x 96 pixels is thinned on a lattice, more so where no instance is small."""
    y, x = np.indices((96, 96))
    truth = 1 + (y // 32 * 3 + x // 32).astype(np.uint32) % 6
    truth[40:50, 40:50] = 0
    everywhere = np.ones(truth.shape, dtype=bool)
    f = blurred_embedding_of(truth, 0.5)
    recipe = Recipe(min_size=min_size)
    assert cluster(f, everywhere, recipe).max() == (10 if min_size < 100 else 9)
    assert agrees(f, everywhere, recipe)


@pytest.mark.parametrize("min_size", [0, 4, 9])
def test_small_instances_that_fall_through_the_lattice(min_size):
    """One of 6 pixels is looked at first, and specks of 4 to 9 have a place of their own each."""
    random = np.random.default_rng(0)
    y, x = np.indices((150, 150))
    truth = y // 30 * 5 + x // 30
    for number in range(60):
        row, column = random.integers(0, 147, 2)
        height, width = random.integers(2, 4, 2)
        truth[row : row + height, column : column + width] = 25 + number
    centres = 6 * random.normal(size=(85, 4))
    f = np.moveaxis(centres[truth] + random.uniform(-0.1, 0.1, (150, 150, 4)), -1, 0)
    f, everywhere = f.astype(np.float32), np.ones(truth.shape, dtype=bool)
    recipe = Recipe(min_size=min_size, fill_reach=0)
    assert cluster(f, everywhere, recipe).max() > 25
    assert agrees(f, everywhere, recipe)


@both_dimensions
@pytest.mark.parametrize("e", [1, 16])
def test_noise_everywhere(n_axes, e):
    shape = SHAPES[n_axes]
    f = np.random.default_rng(1).normal(size=(e, *shape)) / e**0.5
    everywhere = np.ones(shape, dtype=bool)
    recipe = Recipe(min_size=0, fill_reach=0, window=WINDOWS[n_axes])
    assert cluster(f.astype(np.float32), everywhere, recipe).max() > 50
    assert agrees(f.astype(np.float32), everywhere, recipe)


@pytest.mark.parametrize(("kind", "seed"), [("cells", 1), ("cells", 3), ("large", 0)])
def test_the_lattice_lies_still_in_the_image_whatever_window_looks_through_it(scene, kind, seed):
    """Corners of these windows are no multiples of any thinning."""
    f, everywhere, _ = scene(kind, (70, 100), seed)
    assert agrees(f, everywhere, Recipe(min_size=60, fill_reach=0, window=(50, 45)))


@pytest.mark.parametrize(("n_axes", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("length", [7, 8, 9])
def test_a_piece_that_fits_into_the_margin_is_one_by_the_mean_of_its_sample(n_axes, axis, length):
    """Two rows are out of reach of the mode, and within reach of the mean."""
    sides = [8] * n_axes  # the margin
    sides[axis] = length
    box = tuple(slice(5 + k, 5 + k + side) for k, side in enumerate(sides))
    piece = np.zeros((30,) * n_axes, dtype=bool)
    piece[box] = True
    f = np.full((2, *piece.shape), 10, np.float32)
    rows = np.array([0.7, 0.4, 0.7] + [0.0] * (length - 3))
    f[0][box] += rows.reshape([-1 if k == axis else 1 for k in range(n_axes)])
    recipe = Recipe(min_size=0, fill_reach=0, window=(32,) * n_axes)
    if n_axes == 2:
        assert (cluster(f, piece, recipe) == piece).all() == (length <= 8)
    assert agrees(f, piece, recipe)


@both_dimensions
@pytest.mark.parametrize("drift", [0.1, 0.24, 0.4])
def test_an_instance_that_drifts_through_many_windows_is_one(n_axes, drift):
    """The last drift is more than half a bandwidth from window to window, in both directions."""
    window = {2: 16, 3: 8}[n_axes]
    truth = np.zeros((window,) * (n_axes - 2) + (2 * window, 4 * window), np.uint32)
    truth[..., 2 : window // 2, :], truth[..., window // 2 : -2, :] = 1, 2
    f = np.random.default_rng(0).uniform(-0.02, 0.02, (3, *truth.shape))
    f[0] += drift / window * np.indices(truth.shape)[-2:].sum(axis=0)
    f[1] += 2 * (truth == 2)
    f = f.astype(np.float32)
    recipe = Recipe(window=(window,) * n_axes)
    expected = cluster(f, truth > 0, recipe)
    assert (cluster_in_graph(f, truth > 0, recipe) == expected).all()
    assert (expected == truth).all()


def spiral(side):
    """A path one pixel wide from the corner of a square to its middle."""
    path = np.zeros((side, side), dtype=bool)
    y, x, dy, dx = 0, 0, 0, 1
    path[y, x] = True
    for length in [side - 1] + [n for n in range(side - 1, 0, -2) for _ in range(2)]:
        for _ in range(length):
            y, x = y + dy, x + dx
            path[y, x] = True
        dy, dx = dx, -dy
    return path


@pytest.mark.parametrize("turned", range(4))
def test_a_spiral_is_one_piece_from_whatever_end_it_is_read(turned):
    path = np.rot90(spiral(41), turned)
    assert ndimage.label(path)[1] == 1
    f = np.zeros((2, *path.shape), np.float32)
    for recipe in (Recipe(), Recipe(window=(8, 8))):
        assert (cluster_in_graph(f, path, recipe) == path).all()


def test_snakes_and_stairs_are_the_pieces_that_they_are():
    y, x = np.indices((31, 37))
    snake = (y % 2 == 0) | (x == np.where(y % 4 == 1, 36, 0))
    stairs = abs(y - x) < 1  # connected by corners alone: each pixel is a part of its own
    noise = np.random.default_rng(0).random(y.shape) < 0.55
    for mask in (snake, stairs, noise, noise.T):
        f = np.zeros((2, *mask.shape), np.float32)
        for min_size in (0, 3):
            recipe = Recipe(min_size=min_size, fill_reach=0, window=(8, 8))
            assert (cluster_in_graph(f, mask, recipe) == cluster(f, mask, recipe)).all()
    assert cluster_in_graph(np.zeros((2, 31, 37), np.float32), snake, Recipe()).max() == 1
    assert cluster_in_graph(np.zeros((2, 31, 37), np.float32), stairs, Recipe(min_size=0)).max() > 9


@pytest.mark.parametrize("shape", [(9, 11), (1, 40), (40, 1), (4, 5, 6), (1, 9, 12), (12, 1, 1)])
@pytest.mark.parametrize("e", [1, 64])
def test_nothing_one_pixel_and_one_embedding_everywhere(shape, e):
    nothing = np.zeros(shape, dtype=bool)
    pixel, everywhere = nothing.copy(), ~nothing
    pixel[tuple(n // 2 for n in shape)] = True
    f = np.full((e, *shape), 0.3, np.float32)
    recipe = Recipe(min_size=0)
    assert not cluster_in_graph(f, nothing, recipe).any()
    assert (cluster_in_graph(f, pixel, recipe) == pixel).all()
    assert not cluster_in_graph(f, pixel, Recipe(min_size=2)).any()
    assert (cluster_in_graph(f, everywhere, recipe) == 1).all()
    assert not cluster_in_graph(f, everywhere, recipe, core=nothing).any()
    grown = cluster_in_graph(f, everywhere, Recipe(min_size=1, fill_reach=2), core=pixel)
    steps = ndimage.distance_transform_cdt(~pixel, "taxicab")
    assert (grown == (steps <= 2)).all()


@both_dimensions
@pytest.mark.parametrize("kind", ["cells", "crumbs"])
def test_a_frame_of_whole_windows_around_the_image_changes_nothing(scene, n_axes, kind):
    f, foreground, _ = scene(kind, SHAPES[n_axes], seed=2)
    recipe = Recipe(min_size=6, window=WINDOWS[n_axes])
    plain = cluster_in_graph(f, foreground, recipe)
    frame = [(w, 5) for w in WINDOWS[n_axes]]
    inner = tuple(slice(w, -5) for w in WINDOWS[n_axes])
    framed = cluster_in_graph(np.pad(f, [(0, 0), *frame]), np.pad(foreground, frame), recipe)
    assert plain.max() > 3
    assert (relabel(framed[inner]) == plain).all()
    assert not framed.sum() > framed[inner].sum()


@both_dimensions
def test_flipping_and_transposing_the_image_changes_nothing(world, embedding_of, n_axes):
    truth = world(n_axes)
    f, recipe = embedding_of(truth), Recipe(window=WINDOWS[n_axes])
    for axis in range(n_axes):
        flipped = cluster_in_graph(np.flip(f, axis + 1), np.flip(truth, axis) > 0, recipe)
        assert (relabel(np.flip(flipped, axis)) == relabel(truth)).all()
    turned = cluster_in_graph(f.transpose(0, *range(n_axes, 0, -1)), truth.T > 0, recipe)
    assert (relabel(turned.T) == relabel(truth)).all()


@both_dimensions
def test_neighbours_that_share_a_side_come_first_before_and_after_along_each_axis(n_axes):
    around = instances._constants(Recipe(), n_axes)["around"].numpy()
    assert len(around) == 3**n_axes - 1
    assert len({tuple(offset) for offset in around}) == len(around)
    sides = around[: 2 * n_axes]
    assert (np.abs(sides).sum(axis=1) == 1).all()
    for before, after in sides.reshape(-1, 2, 3):
        assert before.sum() == -1
        assert (after == -before).all()
    lattice = instances._constants(Recipe(), n_axes)["lattice"]
    assert len(lattice) > math.prod(Recipe().windows(n_axes)) * 4 // 4000
