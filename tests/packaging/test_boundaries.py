"""Boundaries are what the formula says, tiles agree with the whole, and ilastik gets instances."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import itertools
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")

from spoco_zoo.foreground import Everywhere, External, Head, Prototype
from spoco_zoo.metrics import score
from spoco_zoo.package import load_package
from spoco_zoo.packaging.boundaries import CORE, BoundaryNet, find_reach
from spoco_zoo.packaging.flavours import build_flavour
from spoco_zoo.recipe import Recipe
from spoco_zoo.segmentation import embed, make_instances
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import simulate_nuclei
from spoco_zoo.spec import Spec
from spoco_zoo.training.net import PackagedUNet

NUCLEI = Path(__file__).resolve().parents[2] / "weights" / "nuclei-2d"
GRIDS = [(8, 8), (2, 4), (4, 4, 4), (1, 4, 4), (2, 4, 8)]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)


class Given(PackagedUNet):
    """A network whose outputs are known beforehand."""

    def __init__(self, grid, embedding, probability=None):
        super().__init__(1, 1, [1, 1], [grid], foreground_head=probability is not None)
        given = (embedding,) if probability is None else (embedding, probability[None])
        self.outputs = tuple(torch.from_numpy(np.asarray(out, np.float32))[None] for out in given)

    def forward(self, image):
        return self.outputs


def maps_of(grid, embedding, probability=None, rule=None, delta_dist=2.0):
    """The maps (channel, *space) of a known embedding (e, *space), and their names."""
    recipe = Recipe(foreground=rule or Everywhere())
    net = BoundaryNet(Given(grid, embedding, probability), delta_dist, recipe)
    with torch.no_grad():
        maps = net(torch.zeros(1))
    assert maps.shape == (1, len(net.channel_names), *embedding.shape[1:])
    return dict(zip(net.channel_names, maps[0].numpy(), strict=True))


def noise(grid, seed=0, e=5):
    shape = (13, 11, 12)[-len(grid) :]
    return np.random.default_rng(seed).normal(size=(e, *shape)).astype(np.float32)


# --- the formula


@grids
def test_boundary_is_one_less_the_affinity_across_the_reach_in_every_direction(grid):
    f, reach, delta_dist = noise(grid), find_reach(grid), 3.0
    shape = f.shape[1:]
    expected = np.zeros(shape)
    for here in np.ndindex(shape):
        for direction in itertools.product((-1, 0, 1), repeat=len(shape)):
            ends = []
            for sign in (-1, 1):
                end = [h + sign * d * r for h, d, r in zip(here, direction, reach, strict=True)]
                ends.append(tuple(min(max(x, 0), n - 1) for x, n in zip(end, shape, strict=True)))
            distance = np.sqrt(((f[:, *ends[0]] - f[:, *ends[1]]) ** 2).sum())
            affinity = max(0, (2 * delta_dist - distance) / (2 * delta_dist)) ** 2
            expected[here] = max(expected[here], 1 - affinity)
    assert 0 < expected.min() < expected.max() <= 1
    maps = maps_of(grid, f, delta_dist=delta_dist)
    np.testing.assert_allclose(maps["boundary"], expected, atol=1e-5)


@grids
def test_two_halves_far_apart_have_a_boundary_as_wide_as_the_reach_to_both_sides(grid):
    shape = (13, 11, 12)[-len(grid) :]
    for axis, reach in enumerate(find_reach(grid)):
        f = np.zeros((2, *shape))
        f[1] = 4 * (np.indices(shape)[axis] >= 6)
        boundary = np.moveaxis(maps_of(grid, f)["boundary"], axis, 0)
        is_edge = np.zeros(len(boundary))
        is_edge[6 - reach : 6 + reach] = 1
        assert (boundary == is_edge.reshape(-1, *[1] * (len(shape) - 1))).all()


@pytest.mark.parametrize(
    ("grid", "reach"),
    [
        ((8, 8), (2, 2)),
        ((1, 1, 1), (2, 2, 2)),
        ((1, 4, 4), (1, 2, 2)),
        ((2, 4, 4), (1, 2, 2)),
        ((1, 16, 16), (1, 2, 2)),
        ((3, 4, 4), (2, 2, 2)),
    ],
)
def test_the_reach_is_two_pixels_and_one_where_steps_are_long(grid, reach):
    assert find_reach(grid) == reach


@grids
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 1e4])
def test_all_values_lie_between_0_and_1(grid, scale):
    f = scale * noise(grid)
    probability = np.random.default_rng(1).random(f.shape[1:])
    rule = Prototype(center=(0.0,) * len(f), radius=0.5)
    for maps in (maps_of(grid, f), maps_of(grid, f, probability), maps_of(grid, f, rule=rule)):
        for values in maps.values():
            assert values.dtype == np.float32
            assert values.min() >= 0
            assert values.max() <= 1


@grids
def test_turning_the_embedding_space_changes_nothing(grid):
    f = noise(grid)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(f),) * 2))
    turned = np.tensordot(rotation, f, 1) + 7
    expected = maps_of(grid, f)["boundary"]
    np.testing.assert_allclose(maps_of(grid, turned)["boundary"], expected, atol=1e-4)


# --- foreground


@pytest.mark.parametrize("rule", [Head(), Prototype(center=(0.0,) * 5, radius=1.0), Everywhere()])
def test_the_head_says_what_is_foreground_whatever_the_rule(rule):
    f = noise((4, 4))
    probability = np.random.default_rng(1).random(f.shape[1:]).astype(np.float32)
    maps = maps_of((4, 4), f, probability, rule)
    assert list(maps) == ["foreground", "boundary", "interior"]
    assert (maps["foreground"] == probability).all()
    np.testing.assert_allclose(maps["interior"], probability * (1 - maps["boundary"]), rtol=1e-6)


def test_a_prototype_gives_a_half_at_its_radius_and_all_at_twice_of_it():
    f = np.zeros((2, 1, 5), np.float32)
    f[:, 0] = np.array([[3, 3, 3, 3, 3], [1, 2, 3, 5, 9]])
    maps = maps_of((4, 4), f, rule=Prototype(center=(3.0, 1.0), radius=2.0), delta_dist=50.0)
    assert list(maps) == ["foreground", "boundary", "interior"]
    np.testing.assert_allclose(maps["foreground"], [[0, 0.25, 0.5, 1, 1]])
    np.testing.assert_allclose(
        maps["interior"], maps["foreground"] * (1 - maps["boundary"]), rtol=1e-6
    )


@pytest.mark.parametrize("rule", [Everywhere(), External()])
def test_foreground_that_nobody_knows_is_left_out(rule):
    maps = maps_of((1, 4, 4), noise((1, 4, 4)), rule=rule)
    assert list(maps) == ["boundary", "interior"]
    np.testing.assert_allclose(maps["interior"], 1 - maps["boundary"])


# --- tiles and traces


@pytest.fixture(scope="module")
def flavour_of(untrained):
    """Build the flavour of a network of this pooling."""

    def make(pooling, *, head):
        n_axes = len(pooling[0])
        net = untrained(pooling, head=head)
        words = {"dimensions": n_axes, "in_channels": 1, "embedding_dim": 3}
        words |= {"widths": [4, *[6] * len(pooling)], "pooling": pooling}
        spec = Spec(name="tiny", net=words, schedule={"crop": [32] * n_axes})
        return build_flavour("boundaries", net, spec, Recipe())

    return make


POOLINGS = [[[2, 2], [2, 2]], [[1, 2, 2]], [[2, 2, 2]]]
poolings = pytest.mark.parametrize("pooling", POOLINGS, ids=str)


@poolings
@pytest.mark.parametrize("head", [True, False])
def test_a_trace_is_right_for_images_of_any_size(flavour_of, pooling, head):
    flavour = flavour_of(pooling, head=head)
    for shape in ((8, 21, 16), (3, 4, 5), (1, 1, 1), (5, 30, 9)):
        image = torch.randn(1, 1, *shape[-len(pooling[0]) :])
        with torch.no_grad():
            (expected,) = flavour.run(image)
            found = flavour.script(image)
        assert found.shape == (1, 3 if head else 2, *image.shape[2:])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def worst_of_tiles(flavour, halo):
    """Largest difference of tiles with this halo, cut on the grid, from the whole image."""
    grid = flavour.multiple_of
    shape = [2 * far + 5 * step + 3 for far, step in zip(flavour.halo, grid, strict=True)]
    torch.manual_seed(0)
    image = torch.randn(1, 1, *shape)
    with torch.no_grad():
        (whole,) = flavour.run(image)
    worst = 0.0
    for corner in itertools.product((0, 1), repeat=len(grid)):
        seen, kept, here = [], [], []
        for is_last, step, far, n in zip(corner, grid, halo, shape, strict=True):
            start, stop = (3 * step, n) if is_last else (0, 3 * step)
            low, high = max(start - far, 0), min(stop + far, n)
            seen.append(slice(low, high))
            here.append(slice(start, stop))
            kept.append(slice(start - low, stop - low))
        with torch.no_grad():
            (tile,) = flavour.run(image[(..., *seen)])
        worst = max(worst, float((tile[(..., *kept)] - whole[(..., *here)]).abs().max()))
    return worst


@poolings
def test_tiles_with_the_halo_equal_the_whole(flavour_of, pooling):
    flavour = flavour_of(pooling, head=True)
    assert worst_of_tiles(flavour, flavour.halo) < 1e-5


@poolings
def test_tiles_with_less_of_a_halo_do_not(flavour_of, pooling):
    flavour = flavour_of(pooling, head=True)
    assert worst_of_tiles(flavour, flavour.multiple_of) > 1e-3


# --- what ilastik makes of it


def grow_cores(interior, foreground):
    """Hysteresis thresholding as ilastik's object classification does it, without merging."""
    segmentation = pytest.importorskip("skimage.segmentation")
    cores, _ = ndimage.label(interior > CORE)
    return segmentation.watershed(np.zeros(cores.shape), cores, mask=foreground > 0.5)


def test_hysteresis_on_the_maps_finds_what_segment_finds():
    ours, theirs = [], []
    with EmbeddingSession(load_package(NUCLEI), "cpu") as session:
        config = session.package.config
        for seed in range(8):
            image, truth = simulate_nuclei((192, 192), seed)
            seen = embed(image[None], session)
            maps = maps_of(config.multiple_of, seen.embedding, seen.probability)
            grown = grow_cores(maps["interior"], maps["foreground"]).astype(np.uint32)
            ours.append(score(make_instances(seen, config.recipe), truth).ap50)
            theirs.append(score(grown, truth).ap50)
    assert fmean(ours) > 0.8
    assert fmean(theirs) > fmean(ours) - 0.03
