"""Small networks for the tests of what is exported."""

import pytest


@pytest.fixture(scope="session")
def untrained():
    """Make a network of known wiring whose outputs have mean 0 and spread 1; needs torch.

    An untrained network gives nearly the same for all pixels, and nothing can be told from that.
    """
    torch = pytest.importorskip("torch")
    from spoco_zoo.training.net import PackagedUNet

    def make(pooling, *, channels=1, e=3, head=False, momentum=False, seed=3):
        torch.manual_seed(seed)
        widths = [4, *[6] * len(pooling)]
        net = PackagedUNet(channels, e, widths, pooling, foreground_head=head, momentum=momentum)
        unet, n_axes = net.embedding_net, len(pooling[0])
        image = torch.randn(2, channels, *[{2: 64, 3: 24}[n_axes]] * n_axes)
        for axis in range(2, image.ndim):  # as smooth as images are
            image = image + image.roll(1, axis) + image.roll(2, axis)
        image /= image.std()
        with torch.no_grad():
            for module in unet.modules():
                if hasattr(module, "momentum"):
                    module.momentum = 1.0
            unet.train()(image)
            raw = unet.eval()(image).transpose(0, 1).flatten(1)
            unet.head.bias -= raw.mean(1)
            unet.head.bias /= raw.std(1)
            unet.head.weight /= raw.std(1).reshape(-1, *[1] * (n_axes + 1))
        return net.eval()

    return make
