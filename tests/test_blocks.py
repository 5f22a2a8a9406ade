"""Blocks against the whole: the same instances with the same numbers, to the last pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spoco_zoo.blocks import fill, find_block, meet
from spoco_zoo.clustering import cluster
from spoco_zoo.embedder import Seen
from spoco_zoo.foreground import Head
from spoco_zoo.joining import AGREEMENT, BOUND, Joining, Numbering
from spoco_zoo.layout import Layout, plan_layout
from spoco_zoo.pixels import HostPixels
from spoco_zoo.recipe import Consistency, Hdbscan, MeanShift, Recipe
from spoco_zoo.session import Embedded

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


@pytest.fixture(scope="session")
def in_blocks(tmp_path_factory):
    """Find the instances of an embedding in memory block by block, in any order of the blocks."""

    def run(world, recipe, layout, inner, seed=0):
        f, probability, g = world

        def see(box):
            part = (slice(None), *box)
            known = Embedded(f[part], probability[box], g[part])
            return Seen(known, HostPixels(known.embedding), HostPixels(known.momentum_embedding))

        random = np.random.default_rng(seed)
        found = {
            number: find_block(see, recipe, layout, number, inner)
            for number in random.permutation(len(layout)).tolist()
        }

        def load(number, *names):
            return [found[number][name] for name in names]

        names = BOUND + (AGREEMENT if isinstance(recipe.clustering, Consistency) else ())
        joining = Joining(recipe)
        for number in range(len(layout)):
            joining.add_block(dict(zip(names, load(number, *names), strict=True)))
        for number in random.permutation(len(layout)).tolist():
            for axis in range(len(layout.shape)):
                offset = [int(n == axis) for n in range(len(layout.shape))]
                other = layout.neighbor(number, offset)
                if other is not None:
                    joining.add_meeting(number, other, meet(load, number, axis, other))
        keys = list(joining.finish())
        filled = [
            fill(load, keys.__getitem__, recipe, layout, number) for number in range(len(layout))
        ]
        numbering = Numbering(tmp_path_factory.mktemp("scratch"))
        for number in random.permutation(len(layout)).tolist():
            numbering.add_block(filled[number])
        numbers = numbering.finish()
        labels = np.zeros(layout.shape, np.uint32)
        for number, part in enumerate(filled):
            labels[layout.box(number)] = numbers.of_block(part)[part["labels"]]
        return SimpleNamespace(labels=labels, total=numbers.total)

    return run


@variants
@pytest.mark.parametrize("n_axes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_labels_of_the_whole(scene, in_blocks, method, n_axes, kind):
    shape = {2: (41, 27), 3: (10, 12, 17)}[n_axes]
    f, foreground, g = scene(kind, shape)
    recipe = Recipe(
        clustering=method, foreground=Head(), min_size=6, fill_reach=2, window=(8,) * n_axes
    )
    whole = cluster(f, foreground, recipe, g)
    assert whole.max() > 1
    world = f, foreground.astype(np.float32), g
    for block, inner in [(16, 8), ((24, 8, 8)[:n_axes], (8, 16, 8)[:n_axes])]:
        sides = [block] * n_axes if isinstance(block, int) else block
        parts = [inner] * n_axes if isinstance(inner, int) else inner
        layout = plan_layout(shape, recipe, (8,) * n_axes, sides)
        found = in_blocks(world, recipe, layout, parts)
        assert (found.labels == whole).all()
        assert found.total == whole.max()


@variants
@pytest.mark.parametrize("n_axes", [2, 3])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_no_lattice_of_blocks_changes_a_pixel(scene, in_blocks, method, n_axes, data):
    most = {2: 40, 3: 18}[n_axes]
    sizes = st.tuples(*[st.integers(1, most)] * n_axes)
    shape, block = data.draw(sizes), data.draw(sizes)
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 2**32))
    f, foreground, g = scene(kind, shape, seed, data.draw(st.sampled_from([1, 3, 16])))
    probability = np.where(foreground, 0.6, 0.1).astype(np.float32)
    if data.draw(st.booleans()):
        probability[ndimage.binary_erosion(foreground)] = 0.9
    recipe = Recipe(
        clustering=method,
        foreground=Head(core_threshold=0.8 if (probability > 0.8).any() else None),
        min_size=data.draw(st.integers(0, 15)),
        fill_reach=data.draw(st.integers(0, 9)),
        window=data.draw(st.tuples(*[st.integers(8, 20)] * n_axes)),
    )
    core = foreground if recipe.foreground.core_threshold is None else probability >= 0.8
    whole = cluster(f, foreground, recipe, g, core)
    windows = recipe.windows(n_axes)
    layout = plan_layout(shape, recipe, windows, block)
    found = in_blocks((f, probability, g), recipe, layout, data.draw(sizes), seed)
    assert (found.labels == whole).all()
    assert found.total == whole.max()


def test_the_tests_of_blocks_can_fail(scene, in_blocks):
    """Without joining, an instance on a face would be two."""
    f, foreground, g = scene("large", (70, 41))
    recipe = Recipe(foreground=Head(), window=(16, 16), min_size=6, fill_reach=2)
    whole = cluster(f, foreground, recipe, g)
    layout = Layout((70, 41), (16, 16))
    parts = [whole[layout.box(number)] for number in range(len(layout))]
    assert sum(len(np.unique(part[part > 0])) for part in parts) > whole.max()
