"""What must hold before a package gets its name.

Torch, TorchScript and ONNX Runtime agree on sizes that were not traced; tiles equal the whole;
bioimageio.spec finds the description valid and bioimageio.core reproduces the test tensors with
every weight format; and reading the package gives back what was written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml

from spoco_zoo.archive import RDF_NAME
from spoco_zoo.errors import PackageError
from spoco_zoo.package import load_package
from spoco_zoo.packaging.graphs import output_names, read_torchscript
from spoco_zoo.segmentation import embed
from spoco_zoo.session import Embedded, EmbeddingSession
from spoco_zoo.training.net import PackagedUNet

AGREEMENT = 1e-4  # largest difference allowed, over the mean length of an embedding
WEIGHT_FORMATS: tuple[Literal["onnx", "torchscript", "pytorch_state_dict"], ...] = (
    "onnx",
    "torchscript",
    "pytorch_state_dict",
)


def measure_agreement(
    net: PackagedUNet, torchscript: Path, session: EmbeddingSession, seed: int = 0
) -> dict[str, float]:
    """Compare the exported graphs with the network that was trained.

    Sizes are the smallest, odd ones and more than the traced one; contents are noise, a
    constant, and both in one.

    Returns:
        The largest difference of any output, by runtime.

    Raises:
        PackageError: A runtime differs by more than `AGREEMENT`.
    """
    random = np.random.default_rng(seed)
    channels, steps = session.package.channels, net.embedding_net.multiple_of
    script = read_torchscript(torchscript)
    worst = {"TorchScript": 0.0, "ONNX Runtime": 0.0}
    for factor, extra in ((1, 0), (2, 1), (5, 3)):
        space = [factor * step + extra for step in steps]
        noise = random.normal(size=(1, channels, *space)).astype(np.float32)
        half = noise * (np.arange(space[-1]) < space[-1] // 2)
        for image in (noise, np.zeros_like(noise), half.astype(np.float32)):
            with torch.no_grad():
                truth = [t.numpy() for t in net(torch.from_numpy(image))]
                traced = [t.numpy() for t in script(torch.from_numpy(image))]
            found = _as_list(session.embed(image[0]))
            for name, outputs in (("TorchScript", traced), ("ONNX Runtime", found)):
                worst[name] = max(worst[name], _difference(truth, outputs))
    for name, difference in worst.items():
        if not difference <= AGREEMENT:
            raise PackageError(
                f"{name} differs from the training code by {difference:.1e}: "
                f"expected at most {AGREEMENT}; this torch and this runtime do not fit together"
            )
    return worst


def measure_tiling(session: EmbeddingSession, seed: int = 0) -> float:
    """Compare a tiled image with the whole one; the largest difference of the embedding.

    Raises:
        PackageError: Tiles differ from the whole by more than `AGREEMENT`.
    """
    package = session.package
    halo, steps = package.config.halo, package.config.multiple_of
    space = [2 * h + 5 * s + 3 for h, s in zip(halo, steps, strict=True)]
    random = np.random.default_rng(seed)
    pixels = random.normal(size=(package.channels, *space)).astype(np.float32)
    whole = embed(pixels, session, tile=max(space) + max(steps))
    tiled = embed(pixels, session, tile=[2 * step for step in steps])
    difference = _difference(_as_list(whole), _as_list(tiled))
    if not difference <= AGREEMENT:
        raise PackageError(
            f"tiles differ from the whole image by {difference:.1e}: expected at most "
            f"{AGREEMENT}; the halo {list(halo)} does not cover the receptive field"
        )
    return difference


def test_with_bioimageio(folder: Path) -> None:
    """Let bioimageio.spec validate the package and bioimageio.core test every weight format.

    GitHub names are left out: they would be looked up, and an export needs no network.

    Raises:
        PackageError: Either finds an error.
    """
    import logging
    import warnings

    from bioimageio.core import test_description
    from bioimageio.spec import ValidationContext

    words = yaml.safe_load((folder / RDF_NAME).read_text(encoding="utf-8"))
    for author in words["authors"]:
        author.pop("github_user", None)
    logging.getLogger("bioimageio").setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), ValidationContext(root=folder, file_name=RDF_NAME):
        warnings.simplefilter("ignore")
        for weights in WEIGHT_FORMATS:
            summary = test_description(
                words,
                weight_format=weights,
                devices=["CPUExecutionProvider"] if weights == "onnx" else ["cpu"],
                expected_type="model",
            )
            if summary.status != "passed":
                reasons = [error.msg for detail in summary.details for error in detail.errors]
                raise PackageError(
                    f"bioimageio.core does not accept the {weights} weights: "
                    f"{'; '.join(reasons)[:500]}"
                )


def check_round_trip(folder: Path, net: PackagedUNet, written: Mapping[str, object]) -> None:
    """Read the package back and compare it with what was meant.

    Raises:
        PackageError: Something was lost or changed.
    """
    package = load_package(folder)
    found = {
        "name": package.name,
        "channels": package.channels,
        "normalization": package.normalization,
        "outputs": package.outputs,
        "embedding_dim": package.embedding_dim,
        "config": package.config,
    }
    meant = dict(written) | {"outputs": tuple(output_names(net))}
    different = [word for word in found if found[word] != meant[word]]
    if different:
        raise PackageError(
            f"the package reads back with another {', '.join(different)} than was written: "
            "this is a defect of spoco-zoo, please report it"
        )


def _as_list(embedded: Embedded) -> list[np.ndarray]:
    outputs = [embedded.embedding[None]]
    if embedded.probability is not None:
        outputs.append(embedded.probability[None, None])
    if embedded.momentum_embedding is not None:
        outputs.append(embedded.momentum_embedding[None])
    return outputs


def _difference(truth: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Largest difference of any value, over the mean length of an embedding."""
    length = max(float(np.linalg.norm(truth[0], axis=1).mean()), 1.0)
    pairs = zip(truth, found, strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs) / length
