"""Sizes of blocks: those with the least work that fit, and none that does not."""

import math

import numpy as np
import pytest

from spoco_zoo.block_plan import choose_sizes, read_block, read_side
from spoco_zoo.embedder import Embedder
from spoco_zoo.errors import SettingError
from spoco_zoo.layout import plan_chunks, plan_layout
from spoco_zoo.margins import gives
from spoco_zoo.normalization import Affine
from spoco_zoo.recipe import Recipe
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.tiling import widen

GIB = 1 << 30


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
@pytest.mark.parametrize("shares", [False, True])
def test_more_memory_is_never_exceeded_nor_does_it_make_more_work(load_tiny, kind, shares):
    package = load_tiny(kind)
    n_axes = package.n_axes
    shape = (12_000 if n_axes == 2 else 1500,) * n_axes
    before = 1e9
    for gib in (1, 2, 4, 8, 64):
        sizes = choose_sizes(package, Recipe(), shape, gib * GIB, shares=shares)
        assert sizes.peak_bytes <= gib * GIB
        assert 1 <= sizes.work <= 1.03 * before
        before = sizes.work
        chunks = plan_chunks(shape, Recipe())
        for side, inner, tile, window, step in zip(
            sizes.block,
            sizes.inner,
            sizes.tile,
            Recipe().windows(n_axes),
            package.config.multiple_of,
            strict=True,
        ):
            assert inner % window == tile % step == 0
            assert 0 < inner <= side
        # blocks are of whole chunks already, so what is planned is what was estimated
        assert plan_layout(shape, Recipe(), chunks, sizes.block).block == sizes.block


@pytest.mark.parametrize("shape", [(512, 512, 512), (1100, 1100, 1100), (200, 3000, 3000)])
@pytest.mark.parametrize("shares", [False, True])
def test_the_work_is_what_the_network_will_see(load_tiny, shape, shares):
    package, recipe = load_tiny("volume"), Recipe()
    sizes = choose_sizes(package, recipe, shape, 2 * GIB, shares=shares)
    layout = plan_layout(shape, recipe, plan_chunks(shape, recipe), sizes.block)
    embedder = Embedder(
        np.broadcast_to(np.uint8(0), (1, *shape)),
        EmbeddingSession(package, "cpu", 1),
        sizes.tile,
        Affine(np.zeros(1, np.float32), np.ones(1, np.float32)),
    )
    seen = 0
    for number, box in enumerate(layout.boxes()):
        margins = recipe.margins(3)
        if shares and not gives(layout, number):
            wide = tuple(
                slice(s.start + m * (s.start > 0), max(s.stop - m * (s.stop < n), s.start))
                for s, m, n in zip(box, margins, shape, strict=True)
            )
        else:
            wide = widen(box, margins, shape)
        rows = math.ceil((box[0].stop - box[0].start) / sizes.inner[0])
        for cut in np.array_split(np.arange(wide[0].start, wide[0].stop), rows):
            part = (slice(int(cut[0]), int(cut[-1]) + 1), *wide[1:])
            for tile in embedder.plan(part):
                seen += math.prod(
                    min(s.stop, n) - max(s.start, 0) for s, n in zip(tile.read, shape, strict=True)
                )
    assert sizes.work == pytest.approx(seen / math.prod(shape), rel=0.15)


def test_an_image_that_fits_is_one_block(load_tiny):
    sizes = choose_sizes(load_tiny("package"), Recipe(), (300, 700), 2 * GIB)
    assert sizes.block == (512, 768)


def test_a_block_that_is_asked_for_is_taken(load_tiny):
    recipe = Recipe(window=(16, 16))
    sizes = choose_sizes(load_tiny("package"), recipe, (300, 700), 1, block=(40, 64))
    assert sizes.block == (40, 64)
    assert sizes.inner[1] == 64


def test_too_little_memory_is_told_with_what_is_needed(load_tiny):
    with pytest.raises(SettingError) as error:
        choose_sizes(load_tiny("package"), Recipe(), (3000, 7000), 100_000_000)
    told = str(error.value)
    assert told.startswith("a worker has 0.10 GB of memory: expected at least ")
    least, rest = told.split("at least ")[1].split(" GB for a block of ")
    enough = int((float(least) + 0.01) * 1e9)
    sizes = choose_sizes(load_tiny("package"), Recipe(), (3000, 7000), enough)
    assert rest == ("[1024, 1024] pixels; give it more with --memory, or ask for fewer --workers")
    assert sizes.peak_bytes <= enough


def test_blocks_in_one_number_or_one_per_axis():
    assert read_block(None, 2) is None
    assert read_block("64", 3) == (64, 64, 64)
    assert read_block("8, 64,32", 3) == (8, 64, 32)
    for text in ("", "0", "1,2", "a", "-3", "1.5"):
        with pytest.raises(SettingError) as error:
            read_block(text, 3)
        assert str(error.value) == (
            f"--block is {text}: expected one number of pixels, or 3 with commas"
        )
    assert read_side("64") == 64
    assert read_side(None) is None
    with pytest.raises(SettingError) as error:
        read_side("8,64")
    assert str(error.value) == "--block is 8,64: expected one number of pixels, at least 1"
