"""Every flavour says what it gives, and how an image may be cut for it."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spoco_zoo.errors import SettingError
from spoco_zoo.foreground import Everywhere, Prototype
from spoco_zoo.packaging.boundaries import find_reach
from spoco_zoo.packaging.flavours import FLAVOURS, build_flavour
from spoco_zoo.packaging.graphs import architecture
from spoco_zoo.recipe import Hdbscan, Recipe
from spoco_zoo.spec import Spec

POOLINGS = [[[2, 2]], [[2, 2], [2, 2]], [[1, 2, 2], [2, 2, 2]], [[1, 2, 2], [1, 2, 2]]]
PROTOTYPE = Prototype(center=(0.0, 0.0, 0.0), radius=1.0)


@pytest.fixture(scope="module")
def build(untrained):
    """Build a flavour of a network of this pooling, for images of two channels."""

    def make(name, pooling, recipe=None, *, head=True, momentum=False):
        net = untrained(pooling, channels=2, head=head, momentum=momentum)
        n_axes = len(pooling[0])
        words = {"dimensions": n_axes, "in_channels": 2, "embedding_dim": 3, "pooling": pooling}
        words |= {"widths": [4, *[6] * len(pooling)], "foreground_head": head}
        data = {"pixel_size_um": [0.5] * n_axes}
        spec = Spec(name="tiny", data=data, net=words, schedule={"crop": [32] * n_axes})
        assert architecture(spec, momentum=momentum)["pooling"] == pooling
        return build_flavour(name, net, spec, recipe or Recipe()), net.embedding_net

    return make


@pytest.fixture(params=POOLINGS, ids=str)
def pooling(request):
    return request.param


@pytest.mark.parametrize("name", FLAVOURS)
def test_every_flavour_can_be_declared(build, name, pooling):
    if name == "qupath" and len(pooling[0]) == 3:
        with pytest.raises(SettingError, match="QuPath shows images of 2"):
            build(name, pooling)
        return
    flavour, unet = build(name, pooling)
    assert flavour.name == name
    assert flavour.multiple_of == unet.multiple_of
    for halo, step, smallest, grid in zip(
        flavour.halo, flavour.step, flavour.smallest, unet.multiple_of, strict=True
    ):
        assert smallest > 2 * halo
        assert smallest - grid <= 2 * halo  # and no larger than it must be
        assert smallest % grid == 0
        assert halo % grid == 0
        assert step >= 1


def test_embeddings_fit_at_any_size_with_the_halo_of_the_network(build, pooling):
    flavour, unet = build("embeddings", pooling)
    assert flavour.step == (1,) * unet.n_axes
    assert flavour.halo == unet.halo
    assert flavour.formats == ("onnx", "torchscript", "pytorch_state_dict")


def test_an_image_of_instances_is_never_cut(build, pooling):
    flavour, unet = build("instances", pooling)
    assert flavour.step == (1,) * unet.n_axes
    assert flavour.halo == (0,) * unet.n_axes
    assert flavour.smallest == unet.multiple_of
    assert flavour.formats == ("onnx", "torchscript")
    if unet.n_axes == 2:
        same, _ = build("qupath", pooling)
        assert (same.step, same.halo, same.smallest) == (
            flavour.step,
            flavour.halo,
            flavour.smallest,
        )
        assert same.formats == ("torchscript",)


def test_boundaries_are_cut_on_the_pooling_grid_with_the_least_halo_that_sees_enough(
    build, pooling
):
    flavour, unet = build("boundaries", pooling)
    assert flavour.step == unet.multiple_of
    reach = find_reach(unet.multiple_of)
    for halo, field, far, grid in zip(
        flavour.halo, unet.receptive_field, reach, unet.multiple_of, strict=True
    ):
        assert 0 <= halo - (field + far) < grid
        assert halo % grid == 0
    assert flavour.formats == ("onnx", "torchscript")


def test_the_halo_of_boundaries_is_wider_where_the_network_just_sees_its_own(build):
    """A field of 10 and a grid of 2: the halo of the network is 10, and 2 pixels are added."""
    flavour, unet = build("boundaries", [[2, 2]])
    assert unet.halo[0] < flavour.halo[0]


@pytest.mark.parametrize(
    ("name", "kinds", "expected"),
    [
        ("embeddings", {"head": False}, {"embedding": 3}),
        ("embeddings", {"head": True}, {"embedding": 3, "foreground": 1}),
        (
            "embeddings",
            {"head": True, "momentum": True},
            {"embedding": 3, "foreground": 1, "momentum_embedding": 3},
        ),
        ("instances", {"head": True}, {"instance_segmentation": 1}),
        ("boundaries", {"head": True}, {"boundaries": 3}),
        ("boundaries", {"head": True, "momentum": True}, {"boundaries": 3}),
        ("boundaries", {"head": False}, {"boundaries": 2}),
        ("boundaries", {"head": False, "recipe": Recipe(foreground=PROTOTYPE)}, {"boundaries": 3}),
    ],
)
@pytest.mark.parametrize("pooling", [POOLINGS[0], POOLINGS[2]], ids=["2d", "3d"])
def test_outputs_are_what_they_are_called(build, pooling, name, kinds, expected):
    flavour, unet = build(name, pooling, **kinds)
    assert {output.id: len(output.channels) for output in flavour.outputs} == expected
    shape = tuple(2 * step + 3 for step in unet.multiple_of)
    image = torch.randn(1, 2, *shape)
    with torch.no_grad():
        eager, scripted = flavour.run(image), flavour.script(image)
    scripted = scripted if isinstance(scripted, tuple) else (scripted,)
    assert len(eager) == len(scripted) == len(flavour.outputs)
    for output, one, other in zip(flavour.outputs, eager, scripted, strict=True):
        assert one.shape == (1, len(output.channels), *shape)
        assert str(one.dtype) == f"torch.{output.type}"
        np.testing.assert_allclose(other.numpy(), one.numpy(), atol=1e-5)
        assert output.description


def test_channels_are_named_in_their_order(build):
    known = {"foreground": ("foreground",), "instance_segmentation": ("labels",)}
    known |= {
        f"{kind}embedding": ("embedding0", "embedding1", "embedding2") for kind in ("", "momentum_")
    }
    known["boundaries"] = ("foreground", "boundary", "interior")
    for name in FLAVOURS:
        for output in build(name, [[2, 2]], momentum=True)[0].outputs:
            assert output.channels == known[output.id]
    flavour, _ = build("boundaries", [[2, 2]], Recipe(foreground=Everywhere()), head=False)
    assert flavour.outputs[0].channels == ("boundary", "interior")
    assert flavour.outputs[0].description.endswith("in this order: boundary, interior")


def test_instances_that_cannot_be_found_in_a_graph_are_refused_and_others_are_not(build):
    recipe = Recipe(clustering=Hdbscan())
    for name in ("instances", "qupath"):
        with pytest.raises(SettingError, match="a graph holds mean_shift alone"):
            build(name, [[2, 2]], recipe)
    for name in ("embeddings", "boundaries"):
        assert build(name, [[2, 2]], recipe)[0].name == name
