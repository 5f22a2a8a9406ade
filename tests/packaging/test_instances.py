"""The graph finds the instances that `run` finds."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnxruntime import InferenceSession

from spoco_zoo.clustering import cluster
from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.labels import relabel
from spoco_zoo.packaging import instances
from spoco_zoo.packaging.graphs import read_torchscript, write_onnx, write_torchscript
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.segmentation import make_instances
from spoco_zoo.session import Embedded
from spoco_zoo.training.net import PackagedUNet

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


# --- clustering in the graph is that of `run`


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


# --- a network with clustering behind it

BY_RULE = {
    "head": (Head(threshold=0.4), True),
    "core": (Head(threshold=0.3, core_threshold=0.6), True),
    "everywhere": (Everywhere(), False),
    "prototype": (Prototype(center=(0.5, 0.0, -0.5), radius=1.0), False),
}
SIZES = {2: [(37, 45), (16, 9)], 3: [(9, 14, 19), (5, 16, 8)]}


def build(n_axes, rule, *, head):
    """A network, untrained but with outputs of mean 0 and spread 1, and a recipe that fits them."""
    torch.manual_seed(3)
    net = PackagedUNet(2, 3, [4, 6], [[1, 2, 2][-n_axes:]], foreground_head=head)
    unet, image = net.embedding_net, picture((32, 64, 64)[-n_axes:], seed=9)
    for module in unet.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    with torch.no_grad():
        unet.train()(image)
        raw = unet.eval()(image)[0].flatten(1)
        unet.head.bias -= raw.mean(1)
        unet.head.bias /= raw.std(1)
        unet.head.weight /= raw.std(1).reshape(-1, *[1] * (n_axes + 1))
    net.eval()
    recipe = Recipe(
        clustering=MeanShift(bandwidth=0.4),
        foreground=rule,
        min_size=4,
        fill_reach=2,
        window=WINDOWS[n_axes],
    )
    return net, recipe


def picture(shape, seed=0):
    """Two channels (1, 2, *space) of smooth blobs."""
    random = np.random.default_rng(seed)
    sigma = (0, *(1.5,) * len(shape))
    smooth = ndimage.gaussian_filter(random.normal(size=(2, *shape)), sigma)
    return torch.from_numpy((smooth / smooth.std()).astype(np.float32))[None]


@pytest.fixture(
    scope="module",
    params=[*((2, name) for name in BY_RULE), (3, "core"), (3, "prototype")],
    ids=lambda param: f"{param[0]}d-{param[1]}",
)
def exported(request, tmp_path_factory):
    """The network and its recipe, the script, and the folder and an open session of its files."""
    n_axes, name = request.param
    rule, head = BY_RULE[name]
    net, recipe = build(n_axes, rule, head=head)
    folder = tmp_path_factory.mktemp("graph")
    example = torch.randn(1, 2, *[5] * n_axes)
    script = instances.build_instances(net, recipe, example)
    write_onnx(script, example, [instances.OUTPUT], folder / "weights.onnx")
    write_torchscript(script, folder / "weights.pt")
    session = InferenceSession(folder / "weights.onnx", providers=["CPUExecutionProvider"])
    return SimpleNamespace(
        net=net, recipe=recipe, script=script, folder=folder, session=session, sizes=SIZES[n_axes]
    )


def test_all_forms_find_what_run_finds(exported):
    opened = read_torchscript(exported.folder / "weights.pt")
    for number, shape in enumerate(exported.sizes):
        image = picture(shape)
        with torch.no_grad():
            embedding, *probability = (out[0].numpy() for out in exported.net(image))
            labels, again = exported.script(image), opened(image)
        embedded = Embedded(embedding, probability[0][0] if probability else None, None)
        expected = make_instances(embedded, exported.recipe)
        assert number or expected.max() > 5
        assert labels.dtype == torch.int64
        assert labels.shape == (1, 1, *shape)
        assert (relabel(labels.numpy()[0, 0]) == expected).all()
        assert (again == labels).all()
        (found,) = exported.session.run(None, {"image": image.numpy()})
        assert found.dtype == np.int64
        assert (found == labels.numpy()).all()


def test_an_image_in_which_nothing_varies_has_no_instance(exported):
    shape = exported.sizes[0]
    spotted = picture(shape)
    spotted[:, 1] = 0.5  # one channel varies
    constant = spotted.clone()
    constant[:, 0] = -2.0
    for image, is_any in ((spotted, True), (constant, False)):
        assert bool(exported.script(image).any()) == is_any
        assert exported.session.run(None, {"image": image.numpy()})[0].any() == is_any


def test_the_file_is_one_that_old_engines_read(exported):
    model = onnx.load(exported.folder / "weights.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {node.domain for node in nodes_of(model.graph)} == {""}
    assert len(model.functions) == 0
    (output,) = model.graph.output
    assert output.name == "instance_segmentation"
    assert output.type.tensor_type.elem_type == onnx.TensorProto.INT64
    sizes = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert all(sizes[2:])


def nodes_of(graph):
    """All nodes, those of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def test_the_momentum_network_takes_no_part():
    rule, _ = BY_RULE["head"]
    net, recipe = build(2, rule, head=True)
    twin = PackagedUNet(2, 3, [4, 6], [[2, 2]], foreground_head=True, momentum=True).eval()
    twin.embedding_net.load_state_dict(net.embedding_net.state_dict())
    image, example = picture(SIZES[2][0]), picture((5, 5))
    labels = [instances.build_instances(n, recipe, example)(image) for n in (net, twin)]
    assert labels[0].any()
    assert (labels[0] == labels[1]).all()


# --- what cannot go into a graph


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            Recipe(clustering=Hdbscan()),
            "clustering.method is hdbscan: a graph holds mean_shift alone; fit it, "
            "or leave out the instances flavour",
        ),
        (
            Recipe(clustering=Consistency()),
            "clustering.method is consistency: a graph holds mean_shift alone; fit it, "
            "or leave out the instances flavour",
        ),
        (
            Recipe(clustering=MeanShift(merge_distance=1.5)),
            "clustering.merge_distance is 1.5: expected 0 in a graph; "
            "fit without it, or leave out the instances flavour",
        ),
        (
            Recipe(foreground=External()),
            "the foreground rule is mask: a graph is given an image alone; train a foreground "
            "head, or leave out the instances flavour",
        ),
    ],
    ids=["hdbscan", "consistency", "merging", "mask"],
)
def test_what_does_not_fit_into_a_graph_is_refused(recipe, sentence):
    net, _ = build(2, Everywhere(), head=False)
    for refuse in (
        lambda: instances.check_recipe(recipe),
        lambda: instances.build_instances(net, recipe, picture((5, 5))),
    ):
        with pytest.raises(SettingError) as error:
            refuse()
        assert str(error.value) == sentence


def test_every_other_rule_goes_into_a_graph():
    for rule, _ in BY_RULE.values():
        assert instances.check_recipe(Recipe(foreground=rule)) is None


def test_a_window_of_another_number_of_axes_is_refused():
    net, recipe = build(2, Everywhere(), head=False)
    wrong = recipe.model_copy(update={"window": (8, 8, 8)})
    with pytest.raises(SettingError, match="expected 2 numbers, one per axis"):
        instances.build_instances(net, wrong, picture((5, 5)))


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
