"""Sizes of blocks: the largest that fit, and none that does not."""

import pytest

from spoco_zoo.block_plan import choose_sizes
from spoco_zoo.errors import SettingError
from spoco_zoo.recipe import Recipe

GIB = 1 << 30


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_more_memory_means_larger_blocks_within_it(load_tiny, kind):
    package = load_tiny(kind)
    n_axes = package.n_axes
    shape = (40_000,) * n_axes
    before = 0
    for gib in (1, 2, 4, 8, 64):
        sizes = choose_sizes(package, Recipe(), shape, gib * GIB)
        assert sizes.peak_bytes <= gib * GIB
        pixels = 1
        windows = Recipe().windows(n_axes)
        for side, inner, tile, window, step in zip(
            sizes.block, sizes.inner, sizes.tile, windows, package.config.multiple_of, strict=True
        ):
            assert side % window == inner % window == tile % step == 0
            assert 0 < inner <= side
            pixels *= side
        assert pixels >= before
        before = pixels


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
    assert told.startswith("--memory is 0.10 GB: expected at least ")
    least, rest = told.split("at least ")[1].split(" GB for a block of ")
    enough = int((float(least) + 0.01) * 1e9)
    sizes = choose_sizes(load_tiny("package"), Recipe(), (3000, 7000), enough)
    assert rest == f"{list(sizes.block)} pixels"
    assert sizes.peak_bytes <= enough
