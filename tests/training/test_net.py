"""The U-Net and its momentum twin: how large, how far it looks, and who moves whom."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

from itertools import product

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

from spoco_zoo.tiling import inner_box, plan_tiles
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import PackagedUNet, UNet, count_parameters

torch.set_num_threads(1)  # on tiny images threads wait for each other
DEEP = (16, 32, 64, 128, 256, 512)


def pooled(factor, steps, axes):
    return ((factor,) * axes,) * steps


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_used(net):
    """Give a network statistics of its own, as training does, then freeze them."""
    with torch.no_grad():
        for _ in range(3):
            net.train()(torch.randn(2, 1, *(2 * m for m in net.multiple_of)).to(net.head.weight))
    return net.eval()


def copy_state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize(
    ("in_channels", "embedding_dim", "widths", "axes", "count"),
    [
        (3, 16, DEEP, 2, 5_507_262),
        (3, 8, DEEP, 2, 5_507_126),
        (1, 16, DEEP, 2, 5_507_114),
        (3, 16, DEEP[1:], 2, 5_494_886),
        (3, 16, DEEP, 3, 16_509_294),
        (1, 16, (32, 64, 128, 256), 3, 4_081_762),
        (1, 16, DEEP[1:], 3, 16_471_138),
        (1, 16, DEEP[:-1], 3, 4_119_482),
    ],
)
def test_parameters_are_as_many_as_in_the_published_networks(
    in_channels, embedding_dim, widths, axes, count
):
    with torch.device("meta"):
        steps = pooled(2, len(widths) - 1, axes)
        net = UNet(in_channels, embedding_dim, widths, steps, order="bcr")
    assert count_parameters(net) == count


def test_the_published_network_has_as_many_statistics_of_batch_norm():
    with torch.device("meta"):
        net = UNet(3, 16, DEEP, pooled(2, 5, 2), order="bcr")
    assert sum(buffer.numel() for buffer in net.buffers()) == 5_996


def measure_reach(net, axis):
    """See how far one bright pixel is felt, when nothing can cancel or outshine it.

    With positive weights and no offset a black image embeds to zero, and a bright pixel lifts
    every embedding that it reaches. All places in the pooling window are tried.
    """
    with torch.no_grad():
        for name, parameter in net.double().eval().named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    step, reach = net.multiple_of[axis], net.receptive_field[axis]
    size = 2 * (-(-reach // step) * step) + 4 * step
    shape = [n if a != axis else size for a, n in enumerate(net.multiple_of)]
    images = torch.zeros(step, 1, *shape, dtype=torch.float64)
    places = [size // 2 // step * step + offset for offset in range(step)]
    for image, place in zip(images, places, strict=True):
        image.select(axis + 1, place).fill_(1.0)
    others = [1, *(a + 2 for a in range(net.n_axes) if a != axis)]
    with torch.no_grad():
        touched = net(images).amax(dim=others) > 0
    reached = []
    for row, place in zip(touched, places, strict=True):
        found = torch.nonzero(row)[:, 0]
        assert 0 < found.min()
        assert found.max() < size - 1
        reached += [place - int(found.min()), int(found.max()) - place]
    return max(reached)


@pytest.mark.parametrize(("levels", "reach", "halo"), [(4, 51, 56), (5, 107, 112), (6, 219, 224)])
def test_the_published_networks_reach_as_far_as_their_halo_allows(levels, reach, halo):
    net = UNet(1, 1, (1,) * levels, pooled(2, levels - 1, 2), order="bcr")
    assert measure_reach(net, 0) == measure_reach(net, 1) == reach
    assert net.receptive_field == (reach, reach)
    assert net.halo == (halo, halo)


@pytest.mark.parametrize("order", ["bcr", "cbr"])
@pytest.mark.parametrize(
    "pooling",
    [
        ((2, 2, 2), (2, 2, 2)),
        ((1, 2, 2),),
        ((1, 2, 2), (2, 2, 2)),
        ((1, 2, 2), (1, 2, 2), (2, 2, 2)),
        ((1, 1, 4), (3, 2, 2)),
        ((3, 2), (1, 2)),
    ],
)
def test_the_receptive_field_is_how_far_a_pixel_is_felt_and_the_halo_holds_it(pooling, order):
    net = UNet(1, 1, (1,) * (len(pooling) + 1), pooling, order=order)
    measured = tuple(measure_reach(net, axis) for axis in range(net.n_axes))
    assert measured == net.receptive_field
    for halo, reach, step in zip(net.halo, measured, net.multiple_of, strict=True):
        assert halo % step == 0
        assert reach <= halo < reach + step


def test_a_coarse_axis_is_looked_along_only_where_the_others_have_caught_up():
    net = UNet(1, 4, (4, 8, 8, 8), ((1, 2, 2), (1, 2, 2), (2, 2, 2)))
    kernels = [tuple(encoder[0].kernel_size) for encoder in net.encoders]
    assert kernels == [(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert net.multiple_of == (2, 8, 8)


@pytest.mark.parametrize("order", ["bcr", "cbr"])
@pytest.mark.parametrize(
    ("pooling", "shape", "write"),
    [
        (((2, 2), (2, 2)), (100, 132), (32, 40)),
        (((1, 2, 2),), (20, 30, 34), (5, 8, 12)),
    ],
)
def test_tiles_on_the_pooling_grid_embed_as_the_whole_image(pooling, shape, write, order):
    net = make_used(UNet(1, 3, (4, 6, 8)[: len(pooling) + 1], pooling, order=order))
    image = torch.randn(1, 1, *shape)
    zero = (0,) * len(shape)
    parts = 0
    with torch.no_grad():
        whole = net(image)[0]
        tiled = torch.full_like(whole, torch.nan)
        for tile in plan_tiles(shape, write, net.halo, zero, net.multiple_of):
            parts += image[(..., *tile.read)].numel() < image.numel()
            embedding = net(image[(..., *tile.read)])[0]
            tiled[(..., *tile.write)] = embedding[(..., *inner_box(tile.read, tile.write))]
        bare = net(image[(..., *(slice(0, w) for w in write))])[0]
    assert parts >= 4
    assert (tiled - whole).abs().max() < 1e-5 * whole.abs().max()
    # and it is the halo that does it
    without = bare - whole[(..., *(slice(0, w) for w in write))]
    assert without.abs().max() > 1e-3 * whole.abs().max()


def test_a_tile_off_the_pooling_grid_embeds_otherwise_even_deep_inside():
    net = make_used(UNet(1, 3, (4, 6, 8), pooled(2, 2, 2)).double())
    image = torch.randn(1, 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        whole, shifted = net(image), net(image[..., 1:, :])
    gap = (shifted[..., 46:50, 46:50] - whole[..., 47:51, 46:50]).abs().max()
    assert gap > 1e-3 * whole.abs().max()


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [
        (((2, 2), (2, 2)), (37, 51)),
        (((2, 2), (2, 2)), (4, 5)),
        (((1, 2, 2), (2, 2, 2)), (3, 13, 19)),
    ],
)
def test_odd_sizes_come_out_as_they_went_in(pooling, shape):
    net = UNet(2, 5, (4, 6, 8), pooling).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 2, *shape)).shape == (2, 5, *shape)


def test_the_foreground_head_is_the_last_channel():
    net = UNet(1, 5, (4, 6), pooled(2, 1, 2), foreground_head=True).eval()
    with torch.no_grad():
        output = net(torch.randn(2, 1, 8, 12))
    parts = net.split(output)
    assert output.shape == (2, 6, 8, 12)
    assert torch.equal(parts.embedding, output[:, :5])
    assert torch.equal(parts.foreground, output[:, 5:6])


def test_without_a_foreground_head_all_channels_are_embedding():
    net = UNet(1, 5, (4, 6), pooled(2, 1, 2)).eval()
    with torch.no_grad():
        output = net(torch.randn(2, 1, 8, 12))
    assert output.shape == (2, 5, 8, 12)
    assert torch.equal(net.split(output).embedding, output)
    assert net.split(output).foreground is None


@pytest.mark.parametrize(
    ("widths", "pooling", "sentence"),
    [
        (
            (4, 8, 16),
            ((2, 2),),
            "net.pooling has 1 steps for 3 widths: expected 2 steps with one factor per axis",
        ),
        (
            (4, 8, 16),
            ((2, 2), (2, 2, 2)),
            "net.pooling has 2 steps for 3 widths: expected 2 steps with one factor per axis",
        ),
    ],
)
def test_pooling_that_does_not_fit_the_widths_is_refused(widths, pooling, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence follows
        UNet(1, 4, widths, pooling)
    assert str(error.value) == sentence


# What a package runs.


@pytest.mark.parametrize(
    ("pooling", "shape"), [(((2, 2), (2, 2)), (13, 18)), (((1, 2, 2), (2, 2, 2)), (3, 10, 7))]
)
def test_a_packaged_network_repeats_the_last_pixels_up_to_the_pooling_grid(pooling, shape):
    words = {"in_channels": 1, "embedding_dim": 3, "widths": (4, 6, 8), "pooling": pooling}
    packaged = PackagedUNet(**words, foreground_head=True, momentum=True)
    make_used(packaged.embedding_net)
    make_used(packaged.momentum_net)
    image = torch.randn(1, 1, *shape)
    grown = image
    for axis, step in enumerate(packaged.embedding_net.multiple_of):
        while grown.shape[axis + 2] % step:
            last = grown.narrow(axis + 2, grown.shape[axis + 2] - 1, 1)
            grown = torch.cat([grown, last], dim=axis + 2)
    box = (..., *(slice(n) for n in shape))
    with torch.no_grad():
        embedding, probability, momentum_embedding = packaged(image)
        f, g = packaged.embedding_net(grown)[box], packaged.momentum_net(grown)[box]
    assert grown.shape != image.shape
    assert torch.allclose(embedding, f[:, :3], atol=1e-6)
    assert torch.allclose(probability, torch.sigmoid(f[:, 3:]), atol=1e-6)
    assert torch.allclose(momentum_embedding, g[:, :3], atol=1e-6)


@pytest.mark.parametrize(("head", "momentum"), list(product([False, True], repeat=2)))
def test_a_packaged_network_offers_what_it_has_and_takes_the_trained_weights(head, momentum):
    pair = MomentumPair(UNet(1, 3, (4, 6), pooled(2, 1, 2), foreground_head=head))
    packaged = PackagedUNet(
        1, 3, (4, 6), pooled(2, 1, 2), foreground_head=head, momentum=momentum
    ).eval()
    trained = pair.state_dict()
    kept = {n: v for n, v in trained.items() if momentum or n.startswith("embedding_net.")}
    packaged.load_state_dict(kept)
    with torch.no_grad():
        outputs = packaged(torch.randn(2, 1, 8, 8))
    channels = [3] + [1] * head + [3] * momentum
    assert [tuple(o.shape) for o in outputs] == [(2, c, 8, 8) for c in channels]


# The momentum twin.


def make_pair():
    """Make a pair whose f has moved on: weights and statistics all differ from those of g."""
    pair = MomentumPair(UNet(1, 3, (4, 6), pooled(2, 1, 2)))
    make_used(pair.embedding_net)
    with torch.no_grad():
        for parameter in pair.embedding_net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return pair.double()


def test_the_momentum_net_starts_as_a_copy_and_takes_no_gradient():
    pair = MomentumPair(UNet(1, 3, (4, 6), pooled(2, 1, 2)))
    f, g = pair.embedding_net.state_dict(), pair.momentum_net.state_dict()
    assert f.keys() == g.keys()
    assert changed(f, g) == set()
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(f.values(), g.values(), strict=True))
    assert not any(p.requires_grad for p in pair.momentum_net.parameters())
    assert count_parameters(pair) == count_parameters(pair.embedding_net) > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_update_moves_g_by_the_stated_ratio_statistics_included(momentum):
    pair = make_pair()
    f, g = copy_state(pair.embedding_net), copy_state(pair.momentum_net)
    pair.update(momentum)
    moved = pair.momentum_net.state_dict()
    numbers = [name for name in g if g[name].is_floating_point()]
    assert {name.split(".")[-1] for name in numbers} == {
        *("weight", "bias", "running_mean", "running_var")
    }
    for name in numbers:
        assert not torch.equal(f[name], g[name])
        expected = momentum * g[name] + (1 - momentum) * f[name]
        assert torch.allclose(moved[name], expected, rtol=1e-12, atol=1e-12)
    assert changed(f, pair.embedding_net.state_dict()) == set()


def test_after_n_updates_the_gap_is_the_nth_power_of_the_ratio():
    pair = make_pair()
    f, g = copy_state(pair.embedding_net), copy_state(pair.momentum_net)
    for _ in range(100):
        pair.update(0.999)
    for name, value in pair.momentum_net.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value - f[name], 0.999**100 * (g[name] - f[name]), rtol=1e-9)
        else:
            assert torch.equal(value, f[name])


def test_a_training_pass_of_g_uses_the_statistics_of_its_batch_and_keeps_its_own():
    pair = make_pair().train()
    image = 5 + 3 * torch.randn(2, 1, 8, 8, dtype=torch.float64)
    before = copy_state(pair)
    with torch.no_grad():
        by_batch = pair.momentum_net(image)
        pair.embedding_net(image)
        by_own = pair.momentum_net.eval()(image)
    # torch counts the batches seen; the count is used nowhere, and `update` sets it back
    moved = {n for n in changed(before, pair.state_dict()) if "num_batches_tracked" not in n}
    assert not torch.allclose(by_batch, by_own)
    assert moved == {n for n in before if n.startswith("embedding_net.") and "running_" in n}


def test_evaluation_moves_nothing():
    pair = make_pair().eval()
    before = copy_state(pair)
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    outputs = [net(image) for net in (pair.embedding_net, pair.momentum_net) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert changed(before, pair.state_dict()) == set()


def test_up_sampling_repeats_pixels():
    """The coarse level is seen in blocks as large as the pooling factor."""
    net = UNet(1, 1, (1, 1), ((2, 4),))
    with torch.no_grad():
        for name, parameter in net.eval().named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    seen = {}
    net.decoders[0].register_forward_pre_hook(lambda _, inputs: seen.update(both=inputs[0]))
    with torch.no_grad():
        net(torch.randn(1, 1, 8, 8).abs())
    coarse = seen["both"][:, 1:]
    blocks = F.avg_pool2d(coarse, (2, 4)).repeat_interleave(2, 2).repeat_interleave(4, 3)
    assert coarse.std() > 0
    assert torch.allclose(coarse, blocks)
