"""A network with clustering behind it gives the labels that `run` gives, in every form."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnxruntime import InferenceSession

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.labels import relabel
from spoco_zoo.packaging import instances
from spoco_zoo.packaging.graphs import read_torchscript, write_onnx, write_torchscript
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.segmentation import make_instances
from spoco_zoo.session import Embedded

BY_RULE = {
    "head": (Head(threshold=0.4), True),
    "core": (Head(threshold=0.3, core_threshold=0.6), True),
    "everywhere": (Everywhere(), False),
    "prototype": (Prototype(center=(0.5, 0.0, -0.5), radius=0.8), False),
}
SIZES = {2: [(37, 45), (16, 9)], 3: [(9, 14, 19), (5, 16, 8)]}


@pytest.fixture(scope="module")
def build(untrained):
    """Make a network of two channels and 3-D embeddings, and a recipe."""

    def make(n_axes, rule, *, head, momentum=False):
        pooling = [[1, 2, 2][-n_axes:]]
        net = untrained(pooling, channels=2, head=head, momentum=momentum)
        recipe = Recipe(
            clustering=MeanShift(bandwidth=0.4),
            foreground=rule,
            min_size=4,
            fill_reach=2,
            window={2: (16, 16), 3: (8, 8, 8)}[n_axes],
        )
        return net, recipe

    return make


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
def exported(request, build, tmp_path_factory):
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
        assert number or expected.max() > 2
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


def test_the_momentum_network_takes_no_part(build):
    rule, _ = BY_RULE["head"]
    net, recipe = build(2, rule, head=True)
    twin, _ = build(2, rule, head=True, momentum=True)
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
def test_what_does_not_fit_into_a_graph_is_refused(build, recipe, sentence):
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


def test_a_window_of_another_number_of_axes_is_refused(build):
    net, recipe = build(2, Everywhere(), head=False)
    wrong = recipe.model_copy(update={"window": (8, 8, 8)})
    with pytest.raises(SettingError, match="expected 2 numbers, one per axis"):
        instances.build_instances(net, wrong, picture((5, 5)))
