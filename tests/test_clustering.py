"""Clustering of made embeddings whose instances are known."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo.clustering import Canvas, cluster, find_consistent, plan_blocks
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Head, find_core, find_foreground
from spoco_zoo.fragments import cluster_block
from spoco_zoo.labels import relabel
from spoco_zoo.pixels import HostPixels
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe

METHODS = [MeanShift(), Hdbscan(), Consistency()]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
piecewise_or_not = pytest.mark.parametrize(
    "method", [MeanShift(), Hdbscan()], ids=lambda method: method.method
)

VARIANTS = [
    MeanShift(),
    Hdbscan(),
    Consistency(iou_threshold=0.4, anchors=20),
    MeanShift(merge_distance=1.2),
]
variants = pytest.mark.parametrize(
    "method", VARIANTS, ids=["mean_shift", "hdbscan", "consistency", "merging"]
)
KINDS = ["cells", "large", "twins", "gaps", "crumbs", "combs"]
SHAPES = {2: (50, 41), 3: (18, 12, 17)}
WINDOWS = {2: (16, 16), 3: (8, 8, 8)}
BLOCKS = {
    2: [1, (16, 32), (20, 48), (50, 1), (33, 1000)],  # the first is one window
    3: [1, (8, 16, 8), (9, 12, 8), (1, 100, 17), (18, 1, 1)],
}

few = settings(max_examples=12, deadline=None)


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("e", [1, 2, 16, 64])
def test_separated_embeddings_give_exactly_the_truth(world, embedding_of, run, method, n_axes, e):
    truth = world(n_axes)
    labels = run(truth, embedding_of(truth, e), method)
    assert labels.dtype == np.uint32
    assert (labels == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_without_background_the_truth_is_found_as_well(world, embedding_of, run, method, n_axes):
    truth = world(n_axes) + np.uint32(1)  # what was background is one more instance
    labels = run(truth, embedding_of(truth), method)
    assert (labels == relabel(truth)).all()


@methods
@few
@given(st.integers(0, 99), st.floats(-100, 100), st.integers(2, 20))
def test_moving_and_rotating_all_embeddings_changes_nothing(
    world, embedding_of, run, method, seed, by, e
):
    truth = world(2)
    embedding = embedding_of(truth, e, seed=seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(e, e)))
    turned = np.tensordot(rotation, embedding, 1).astype(np.float32)
    assert (run(truth, embedding, method) == relabel(truth)).all()
    assert (run(truth, turned, method) == relabel(truth)).all()
    assert (run(truth, embedding + np.float32(by), method) == relabel(truth)).all()


@methods
def test_an_embedding_very_far_from_zero_is_clustered_as_one_near_it(
    world, embedding_of, run, method
):
    truth = world(2)
    assert (run(truth, embedding_of(truth) + np.float32(3000), method) == relabel(truth)).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_flipping_and_transposing_the_image_changes_nothing(
    world, embedding_of, run, method, n_axes, seed
):
    truth = world(n_axes)
    embedding = embedding_of(truth, seed=seed)
    for axis in range(n_axes):
        flipped = run(np.flip(truth, axis), np.flip(embedding, axis + 1), method)
        assert (relabel(np.flip(flipped, axis)) == relabel(truth)).all()
    turned = run(truth.T, embedding.transpose(0, *range(n_axes, 0, -1)), method)
    assert (relabel(turned.T) == relabel(truth)).all()


@methods
@few
@given(st.integers(0, 999))
def test_on_any_embedding_labels_are_numbered_pieces_within_the_foreground(method, seed):
    random = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(random.normal(size=(24, 30)), 2) for _ in range(3)]
    embedding = 5 * np.stack(smooth).astype(np.float32)
    foreground = ndimage.gaussian_filter(random.normal(size=(24, 30)), 2) > -0.05
    embedding.flags.writeable = foreground.flags.writeable = False  # a write would raise
    recipe = Recipe(clustering=method, min_size=5)
    labels = cluster(embedding, foreground, recipe, embedding)
    assert not labels[~foreground].any()
    assert (labels == relabel(labels)).all()
    for i in range(1, int(labels.max()) + 1):
        assert ndimage.label(labels == i)[1] == 1
        assert (labels == i).sum() >= 5
    assert (cluster(embedding, foreground, recipe, embedding) == labels).all()


@methods
@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
@pytest.mark.parametrize("e", [1, 64])
def test_one_embedding_everywhere_is_one_instance(run, method, shape, e):
    embedding = np.full((e, *shape), 0.3, np.float32)
    everywhere = np.ones(shape, np.uint32)
    assert (run(everywhere, embedding, method) == 1).all()
    assert (run(everywhere, embedding, method, min_size=everywhere.size) == 1).all()
    assert not run(everywhere, embedding, method, min_size=everywhere.size + 1).any()


@methods
@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
def test_no_foreground_and_a_foreground_of_one_pixel(run, method, shape):
    embedding = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    nothing = np.zeros(shape, np.uint32)
    pixel = nothing.copy()
    pixel[(2,) * len(shape)] = 1
    assert not run(nothing, embedding, method).any()
    assert not run(pixel, embedding, method, min_size=2).any()
    for min_size in (0, 1):
        assert (run(pixel, embedding, method, min_size=min_size) == pixel).all()


@pytest.mark.parametrize("method", [MeanShift(), Hdbscan(min_samples=2), Consistency()])
def test_an_instance_of_just_the_least_size_stays(embedding_of, run, method):
    truth = np.zeros((12, 40), np.uint32)
    truth[1:10, 2:12], truth[1:10, 27:37] = 1, 2  # 90 pixels each
    truth[1:4, 16:19], truth[6:8, 16:20] = 3, 4  # 9 and 8 pixels
    embedding = embedding_of(truth, twins=False)
    assert (run(truth, embedding, method, min_size=8) == relabel(truth)).all()
    assert (run(truth, embedding, method, min_size=9) == relabel(truth * (truth < 4))).all()
    assert (run(truth, embedding, method, min_size=10) == truth * (truth < 3)).all()


@piecewise_or_not
@pytest.mark.parametrize(("reach", "width_left"), [(0, 6), (1, 4), (2, 2), (3, 0), (9, 0)])
def test_undecided_pixels_take_the_neighbour_within_reach(
    embedding_of, stripes, run, method, reach, width_left
):
    truth = stripes(20, 6, 20)
    embedding = embedding_of(truth, twins=False)
    # between the two, every pixel is alone with its embedding
    between = truth == 2
    alone = np.random.default_rng(0).uniform(-50, 50, (len(embedding), between.sum()))
    embedding[:, between] = alone
    labels = run(truth, embedding, method, fill_reach=reach)
    assert (labels == 0).sum() == 20 * width_left
    assert (labels[:, :20] == 1).all()
    assert (labels[:, -20:] == 2).all()


@piecewise_or_not
def test_an_instance_too_small_goes_to_the_one_around_it(embedding_of, stripes, run, method):
    truth = stripes(20, 20)
    truth[9:11, 9:11] = 3
    labels = run(truth, embedding_of(truth, twins=False), method)
    assert (labels == stripes(20, 20)).all()


def test_the_merging_variant_joins_touching_clusters_nearer_than_its_distance(
    stripes, of_values, run
):
    truth = stripes(15, 15, 15)
    embedding = of_values(truth, 9, 0.0, 1.2, 4.0)
    assert (run(truth, embedding, MeanShift()) == truth).all()
    merged = run(truth, embedding, MeanShift(merge_distance=2.0))
    assert (merged == stripes(30, 15)).all()


def test_instances_joined_by_an_uncertain_bridge_are_told_apart_in_the_core():
    # one embedding for both discs: only the head's doubt on the bridge parts them
    probability = np.zeros((20, 44), np.float32)
    probability[5:15, 5:18] = 0.95
    probability[5:15, 26:39] = 0.95
    probability[9:11, 18:26] = 0.5
    embedding = np.zeros((2, 20, 44), np.float32)
    rule = Head(threshold=0.3, core_threshold=0.8)
    recipe = Recipe(foreground=rule, min_size=5, fill_reach=4)
    foreground = find_foreground(embedding, rule, probability)
    core = find_core(foreground, rule, probability)
    labels = cluster(embedding, foreground, recipe, core=core)
    assert labels.max() == 2
    assert ((labels > 0) == foreground).all()
    assert cluster(embedding, foreground, recipe).max() == 1


# --- blocks, windows and places


@pytest.mark.uncounted
@variants
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_no_block_changes_a_pixel(scene, method, n_axes, kind):
    f, foreground, g = scene(kind, SHAPES[n_axes])
    recipe = Recipe(clustering=method, min_size=6, fill_reach=2, window=WINDOWS[n_axes])
    whole = cluster(f, foreground, recipe, g, block=(1000,) * n_axes)
    assert whole.max() > 1
    for block in BLOCKS[n_axes]:
        sizes = (block,) * n_axes if isinstance(block, int) else block
        assert (cluster(f, foreground, recipe, g, block=sizes) == whole).all()


@pytest.mark.uncounted
@variants
@pytest.mark.parametrize("n_axes", [2, 3])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_block_changes_a_pixel_of_any_shape_under_any_window(scene, method, n_axes, data):
    most = {2: 60, 3: 24}[n_axes]
    sizes = st.tuples(*[st.integers(1, most)] * n_axes)
    shape, blocks = data.draw(sizes), data.draw(st.lists(sizes, min_size=5, max_size=5))
    window = data.draw(st.tuples(*[st.integers(8, 20)] * n_axes))
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32))
    f, foreground, g = scene(kind, shape, seed, data.draw(st.sampled_from([1, 3, 16])))
    recipe = Recipe(
        clustering=method,
        min_size=data.draw(st.integers(0, 15)),
        fill_reach=data.draw(st.integers(0, 5)),
        window=window,
    )
    core = ndimage.binary_erosion(foreground) if data.draw(st.booleans()) else None
    whole = cluster(f, foreground, recipe, g, core, (1000,) * n_axes)
    for block in blocks:
        assert (cluster(f, foreground, recipe, g, core, block) == whole).all()


def test_the_tests_of_blocks_can_fail(scene):
    """Windows that see nothing around themselves do find other clusters."""
    f, foreground, _ = scene("cells", SHAPES[2])
    recipe = Recipe(window=WINDOWS[2], min_size=6)
    cut = np.zeros(SHAPES[2], np.uint32)
    for tile in plan_blocks(cut.shape, recipe, (16, 16)):
        region = (slice(None), *tile.write)
        part = cluster(f[region], foreground[tile.write], recipe)
        cut[tile.write] = part + cut.max() * (part > 0)
    whole = cluster(f, foreground, recipe)
    assert not (relabel(cut) == whole).all()


@variants
@pytest.mark.parametrize("n_axes", [2, 3])
def test_blocks_may_come_in_any_order(scene, method, n_axes):
    f, foreground, g = scene("twins", SHAPES[n_axes])
    recipe = Recipe(clustering=method, min_size=6, fill_reach=2, window=WINDOWS[n_axes])
    found = [
        (
            tile,
            cluster_block(
                HostPixels(f[:, *tile.keep]),
                foreground[tile.keep],
                tile,
                recipe,
                HostPixels(g[:, *tile.keep]),
            ),
        )
        for tile in plan_blocks(foreground.shape, recipe, WINDOWS[n_axes])
    ]
    whole = cluster(f, foreground, recipe, g)
    for seed in range(5):
        canvas = Canvas(foreground.shape, recipe)
        for number in np.random.default_rng(seed).permutation(len(found)):
            canvas.add(*found[number])
        assert (canvas.finish(foreground) == whole).all()


@pytest.mark.uncounted
@variants
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 15))
def test_what_lies_far_away_changes_nothing_here(embedding_of, method, seed, place):
    """Cells are smaller than a window, so none reaches from here to what changes."""
    random = np.random.default_rng(seed)
    here = np.indices((64, 64))
    cells = here[0] // 9 * 9 + here[1] // 9 + 1
    f = embedding_of(cells, seed=seed, twins=False)
    corner = np.array([place // 4, place % 4]) * 16
    window = tuple(slice(c, c + 16) for c in corner)
    reach = 16 + 4  # a window and its margin
    is_far = (here < corner[:, None, None] - reach) | (here >= corner[:, None, None] + 16 + reach)
    changed = f.copy()
    changed[:, is_far.any(axis=0)] = 9 * random.normal(size=(len(f), is_far.any(axis=0).sum()))
    recipe = Recipe(clustering=method, window=(16, 16))
    everywhere = np.ones((64, 64), dtype=bool)
    before, after = (cluster(e, everywhere, recipe, e) for e in (f, changed))
    assert not (before == after).all()
    assert (relabel(before[window]) == relabel(after[window])).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("drift", [0.0, 0.1, 0.24])
def test_an_instance_that_drifts_through_many_windows_is_one(method, n_axes, drift):
    """Two bars along the last axis, 2 apart, over 6 windows; and slower the rest of the way."""
    window = {2: 16, 3: 8}[n_axes]
    truth = np.zeros((window,) * (n_axes - 1) + (6 * window,), np.uint32)
    truth[..., 2 : window // 2, :], truth[..., window // 2 : -2, :] = 1, 2
    f = np.random.default_rng(0).uniform(-0.02, 0.02, (3, *truth.shape))
    f[0] += drift / window * np.arange(truth.shape[-1])
    f[1] += 2 * (truth == 2)
    f = f.astype(np.float32)
    recipe = Recipe(clustering=method, window=(window,) * n_axes)
    assert (cluster(f, truth > 0, recipe, f) == truth).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_a_ball_in_many_windows_is_one_and_so_is_what_lies_around_it(method, n_axes):
    window = {2: 16, 3: 8}[n_axes]
    side = {2: 4, 3: 3}[n_axes] * window
    here = np.indices((side,) * n_axes)
    truth = 1 + (((here - side / 2) ** 2).sum(axis=0) < (1.3 * window) ** 2).astype(np.uint32)
    f = np.random.default_rng(0).uniform(-0.02, 0.02, (3, *truth.shape))
    # along the diagonal of all axes, by less than half a bandwidth per window
    f[0] += 0.24 / window * here.sum(axis=0) / n_axes**0.5
    f[1] += 2 * (truth == 2)
    f = f.astype(np.float32)
    recipe = Recipe(clustering=method, window=(window,) * n_axes)
    crossed = {tuple(place // window) for place in np.argwhere(truth == 2)}
    assert len(crossed) >= 2**n_axes
    assert (cluster(f, truth > 0, recipe, f) == truth).all()


@variants
@pytest.mark.parametrize("n_axes", [2, 3])
def test_teeth_that_meet_outside_their_windows_are_one_comb(of_values, method, n_axes):
    shape = {2: (60, 36), 3: (30, 9, 36)}[n_axes]
    here = np.indices(shape)
    truth = (here[-1] // 18 + 1).astype(np.uint32)
    truth[(here[-1] % 6 >= 4) & (here[0] < shape[0] - 3)] = 0
    f = of_values(truth, 9, 0, 3)
    recipe = Recipe(clustering=method, window=WINDOWS[n_axes])
    assert (cluster(f, truth > 0, recipe, f) == relabel(truth)).all()


@methods
@pytest.mark.parametrize(("n_axes", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
@pytest.mark.parametrize("gap", [0.7, 2.0])
def test_two_that_touch_on_a_face_of_windows_are_two(method, n_axes, axis, gap):
    shape, window = {2: (48, 48), 3: (24, 24, 24)}[n_axes], WINDOWS[n_axes]
    for face in range(window[axis], shape[axis], window[axis]):
        truth = 1 + (np.indices(shape)[axis] >= face).astype(np.uint32)
        f = np.random.default_rng(0).uniform(-0.02, 0.02, (3, *shape))
        f[1] += gap * (truth == 2)
        f = f.astype(np.float32)
        recipe = Recipe(clustering=method, window=window)
        assert (cluster(f, truth > 0, recipe, f) == truth).all()


# --- sizes, shapes and layouts


def lattice(rows, columns, e=2):
    """Instances of 5 x 5 pixels, the last row and column a pixel less; and their embedding."""
    y, x = np.indices((5 * rows - 1, 5 * columns - 1)) // 5
    # far more places than a window sees
    f = np.stack([2 * (y % 80), 2 * (x % 80)]).astype(np.float32)
    return (y * columns + x + 1).astype(np.uint32), f


@pytest.mark.uncounted
@pytest.mark.parametrize(("touching", "columns"), [(True, 100), (False, 317)])
def test_up_to_a_hundred_thousand_instances_are_found_exactly_in_bounded_time(touching, columns):
    truth, f = lattice(316, columns)
    if not touching:
        y, x = np.indices(truth.shape) % 5
        truth[(y == 4) | (x == 4)] = 0
    # the time grows with the instances that one window sees
    recipe = Recipe(window=(64, 64) if touching else None)
    start = time.process_time()
    labels = cluster(f, truth > 0, recipe)
    assert time.process_time() - start < 45
    assert labels.max() == 316 * columns
    assert (labels == relabel(truth)).all()


@methods
@pytest.mark.parametrize("shape", [(1, 60), (60, 1), (1, 1, 60), (1, 24, 20), (24, 1, 20)])
@pytest.mark.parametrize("e", [1, 64])
def test_images_of_one_row_and_volumes_of_one_slice(embedding_of, method, shape, e):
    here = np.indices(shape).sum(axis=0)
    truth = (here // 13 + 1).astype(np.uint32)
    truth[here % 13 > 10] = 0
    f = embedding_of(truth, e, twins=False)
    recipe = Recipe(clustering=method, min_size=0, window=(16,) * len(shape))
    expected = relabel(truth)
    for block in (1, 16, 1000):
        labels = cluster(f, truth > 0, recipe, f, block=(block,) * len(shape))
        assert (labels == expected).all()


@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_a_window_larger_than_the_image_sees_it_all(world, embedding_of, method, n_axes):
    truth = world(n_axes)
    f = embedding_of(truth)
    large = Recipe(clustering=method, window=(10_000,) * n_axes)
    assert (cluster(f, truth > 0, large, f) == relabel(truth)).all()


@methods
def test_without_a_least_size_and_without_filling_every_pixel_near_a_centre_stays(method):
    truth = np.zeros((40, 40), np.uint32)
    truth[2:12, 2:12], truth[2:12, 12:22], truth[30, 30] = 1, 2, 3
    f = np.stack([4 * truth, truth]).astype(np.float32)
    f[:, 5, 5] = 50  # nobody's
    labels = cluster(f, truth > 0, Recipe(clustering=method, min_size=0, fill_reach=0), f)
    alone = labels[5, 5]
    expected = truth.copy()
    expected[5, 5] = 0
    labels[5, 5] = 0
    assert (relabel(labels) == relabel(expected)).all()
    assert alone == 0 or alone not in labels


@pytest.mark.uncounted
@methods
@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_layout_of_arrays_and_the_right_to_write_them_do_not_matter(scene, method, n_axes):
    f, foreground, g = scene("cells", SHAPES[n_axes])
    foreground = foreground & (f[0] > -2)
    core = ndimage.binary_erosion(foreground)
    recipe = Recipe(clustering=method, min_size=6, window=WINDOWS[n_axes])
    expected = cluster(f, foreground, recipe, g, core)
    assert expected.max() > 1

    def view(array):
        """See every other pixel of an array twice as large, its axes stored the other way."""
        wide = np.zeros([2 * n for n in array.shape[::-1]], array.dtype)
        seen = wide[(slice(None, None, 2),) * array.ndim].T
        seen[:] = array
        return seen

    for change in (np.asfortranarray, view):
        arrays = [change(a) for a in (f, foreground, g, core)]
        for array in arrays:
            array.flags.writeable = False
        for block in (None, WINDOWS[n_axes]):
            labels = cluster(arrays[0], arrays[1], recipe, arrays[2], arrays[3], block)
            assert (labels == expected).all()


@methods
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_an_embedding_of_another_precision_is_clustered_alike(world, embedding_of, method, dtype):
    truth = world(2)
    f = embedding_of(truth).astype(dtype)
    assert (cluster(f, truth > 0, Recipe(clustering=method), f) == relabel(truth)).all()
    window = Recipe(clustering=method, window=(16, 16))
    assert (cluster(f, truth > 0, window, f) == relabel(truth)).all()


# --- consistency


@pytest.mark.parametrize("n_axes", [2, 3])
def test_consistency_drops_what_the_two_nets_disagree_on_and_keeps_the_rest(
    world, embedding_of, run, n_axes
):
    truth = world(n_axes)
    f = embedding_of(truth)
    g = embedding_of(truth, seed=5)  # another space, the same instances
    assert (run(truth, f, Consistency(), g) == relabel(truth)).all()
    # g scatters instance 2, and makes one of 5 and 6
    random = np.random.default_rng(0)
    g[:, truth == 2] = 10 * random.normal(size=(len(g), (truth == 2).sum()))
    g[:, truth == 6] = g[:, truth == 5]
    kept = truth * ~np.isin(truth, (2, 5, 6))
    assert (run(truth, f, Consistency(), g) == relabel(kept)).all()


def test_consistency_is_as_strict_as_its_threshold(stripes, of_values, run):
    truth = stripes(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :4] = 9  # of 1, the balls of g are 0.4 and, more often, 0.6
    for threshold, kept in ((0.0, 2), (0.5, 2), (0.59, 2), (0.61, 1), (1.0, 1)):
        labels = run(truth, f, Consistency(iou_threshold=threshold, anchors=999), g)
        assert labels.max() == kept


def median_of(values, weights):
    """The median of all pixels, written out one by one."""
    flat = np.sort(np.repeat(values, weights, axis=0).ravel())
    return flat[(len(flat) + 1) // 2 - 1] if len(flat) else np.nan


def test_a_group_is_judged_by_the_median_of_its_pixels():
    generator = np.random.default_rng(0)
    agreement = generator.random((300, 3))
    agreement[generator.random(300) < 0.3, 1] = np.nan  # of these rows nothing is known
    sizes = generator.integers(0, 9, 300)
    groups = generator.integers(0, 90, 300).astype(np.uint32)
    is_known = ~np.isnan(agreement).any(axis=1)
    for threshold in (0.3, 0.5, 0.7):
        settings = Consistency(iou_threshold=threshold)
        is_good = find_consistent(agreement, sizes, groups, settings)
        assert len(is_good) == groups.max() + 1
        for group, answer in enumerate(is_good):
            rows = is_known & (groups == group)
            assert answer == (not median_of(agreement[rows], sizes[rows]) < threshold)
    nothing = np.zeros(0)
    none = find_consistent(
        np.zeros((0, 3)), nothing.astype(int), nothing.astype(np.uint32), settings
    )
    assert none.tolist() == [True]


def test_many_groups_are_judged_in_the_time_of_their_number():
    count = 16_000
    agreement = np.random.default_rng(0).random((3 * count, 2))
    groups = np.tile(np.arange(count, dtype=np.uint32), 3)
    start = time.monotonic()
    find_consistent(agreement, np.ones(3 * count, int), groups, Consistency())
    assert time.monotonic() - start < 1  # one look at all clusters for each group took much longer


def test_what_lies_on_another_piece_of_foreground_is_no_rival(run):
    truth = np.zeros((20, 44), np.uint32)
    truth[4:16, 4:16], truth[4:16, 20:32] = 1, 2
    shared = np.ones((3, 20, 44), np.float32)  # background too
    assert (run(truth, shared, Consistency()) == truth).all()


def test_another_seed_draws_other_anchors(stripes, of_values, run):
    truth = stripes(10, 10)
    f = of_values(truth, 0, 0, 4)
    g = f.copy()
    g[0, :, :5] = 9  # half and half: with one anchor of an odd draw either may win
    g[0, :5, 4] = 0  # now 0.525 and 0.475

    def n_kept(seed):
        return run(truth, f, Consistency(iou_threshold=0.5, anchors=1, seed=seed), g).max()

    kept = [n_kept(seed) for seed in range(12)]
    assert set(kept) == {1, 2}
    assert [n_kept(seed) for seed in range(12)] == kept


# --- what is refused


@methods
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_momentum", [False, True])
def test_an_embedding_that_is_not_finite_is_refused(method, value, is_momentum):
    good = np.zeros((2, 4, 5), np.float32)
    bad = good.copy()
    bad[1, 2, 3] = value
    pair = (good, bad) if is_momentum else (bad, good)
    with pytest.raises(SettingError) as error:
        cluster(pair[0], np.ones((4, 5), bool), Recipe(clustering=method), pair[1])
    assert str(error.value) == (
        "the embedding holds NaN or infinity: expected finite numbers; "
        "the image or the network is damaged"
    )


@methods
@pytest.mark.parametrize("is_momentum", [False, True])
def test_a_number_missing_in_a_block_far_away_is_refused_too(method, is_momentum):
    good = np.zeros((2, 100, 90), np.float32)
    bad = good.copy()
    bad[1, 99, 89] = np.nan
    foreground = np.zeros((100, 90), dtype=bool)
    foreground[:10, :10] = True  # not even there
    recipe = Recipe(clustering=method, window=(16, 16))
    pair = (good, bad) if is_momentum else (bad, good)
    for block in (None, (1, 1), (32, 64)):
        with pytest.raises(SettingError) as error:
            cluster(pair[0], foreground, recipe, pair[1], block=block)
        assert str(error.value).startswith("the embedding holds NaN or infinity")


@pytest.mark.parametrize(("values", "is_finite"), [((np.inf, -np.inf), False), ((3e38,) * 2, True)])
def test_whether_an_embedding_is_finite_is_said_without_a_warning(values, is_finite):
    f = np.zeros((1, 40, 40), np.float32)
    f[0, 3, 3], f[0, 30, 30] = values
    foreground = np.zeros((40, 40), dtype=bool)
    foreground[10:20, 10:20] = True
    if is_finite:
        assert (cluster(f, foreground, Recipe()) == foreground).all()
    else:
        with pytest.raises(SettingError):
            cluster(f, foreground, Recipe())


@pytest.mark.parametrize("block", [(16,), (16, 16, 16), (0, 16), (16, -1)])
def test_an_impossible_block_is_refused(block):
    with pytest.raises(SettingError) as error:
        cluster(np.zeros((1, 9, 9), np.float32), np.ones((9, 9), bool), Recipe(), block=block)
    assert str(error.value) == (
        f"block is {list(block)}: expected one number of pixels, or 2, each at least 1"
    )


@pytest.mark.parametrize("shape", [(9, 9), (5, 9, 9)])
def test_a_window_of_another_number_of_axes_is_refused(shape):
    n_axes = len(shape)
    recipe = Recipe(window=(16,) * (5 - n_axes))
    with pytest.raises(SettingError) as error:
        cluster(np.zeros((1, *shape), np.float32), np.ones(shape, bool), recipe)
    assert str(error.value) == (
        f"recipe.window is {[16] * (5 - n_axes)}: expected {n_axes} numbers, one per axis"
    )


def test_consistency_without_a_momentum_embedding_is_refused():
    with pytest.raises(SettingError) as error:
        cluster(
            np.zeros((2, 4, 5), np.float32),
            np.ones((4, 5), bool),
            Recipe(clustering=Consistency()),
        )
    assert str(error.value) == (
        "consistency clustering needs the embedding of the momentum net, "
        "this package has none: use mean_shift or hdbscan"
    )
