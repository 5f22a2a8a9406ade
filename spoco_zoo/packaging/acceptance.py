"""What the format's own library says of a package, and whether reading it gives what was written.

bioimageio.spec judges the description, bioimageio.core reproduces the test tensors, both as they
are installed; other versions are asked in `proof`.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spoco_zoo.archive import RDF_NAME
from spoco_zoo.errors import PackageError
from spoco_zoo.lint import choose_consumers, lint_package
from spoco_zoo.package import load_package
from spoco_zoo.session import hush

_ALERT = 35  # severity from which a finding is one of a zoo's reviewers


def test_with_bioimageio(folder: Path, weight_formats: Sequence[Any]) -> None:
    """Let bioimageio.spec validate the package and bioimageio.core test some weight formats.

    GitHub names are left out: they would be looked up, and an export needs no network.

    Raises:
        PackageError: Either finds an error.
    """
    from bioimageio.core import test_description
    from bioimageio.spec import ValidationContext

    words = yaml.safe_load((folder / RDF_NAME).read_text(encoding="utf-8"))
    for author in words["authors"]:
        author.pop("github_user", None)
    words.pop("maintainers", None)  # who are nobody without their name there
    logging.getLogger("bioimageio").setLevel(logging.CRITICAL)
    hush()
    with warnings.catch_warnings(), ValidationContext(root=folder, file_name=RDF_NAME):
        warnings.simplefilter("ignore")
        for weights in weight_formats:
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


def check_round_trip(folder: Path, written: Mapping[str, object]) -> None:
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
    different = [word for word in found if found[word] != written[word]]
    if different:
        raise PackageError(
            f"the package reads back with another {', '.join(different)} than was written: "
            "this is a defect of spoco-zoo, please report it"
        )


def find_alerts(folder: Path) -> list[str]:
    """Sentences of bioimageio.spec on what a collection's reviewers would ask for."""
    from bioimageio.spec import ValidationContext, build_description

    logging.getLogger("bioimageio").setLevel(logging.CRITICAL)
    words = yaml.safe_load((folder / RDF_NAME).read_text(encoding="utf-8"))
    with (
        warnings.catch_warnings(),
        ValidationContext(root=folder, file_name=RDF_NAME, perform_io_checks=False) as context,
    ):
        warnings.simplefilter("ignore")
        summary = build_description(words, context=context).validation_summary
    return [
        f"{'.'.join(map(str, warning.loc))}: {warning.msg}".removeprefix(": ")
        for detail in summary.details
        for warning in detail.warnings
        if warning.severity >= _ALERT
    ]


def check_consumers(folder: Path) -> None:
    """Find by reading what would keep the package from working in the programs it is for.

    Raises:
        PackageError: There is something.
    """
    for finding in lint_package(folder, choose_consumers(folder)):
        if finding.severity == "error":
            raise PackageError(
                f"the package would not work in {finding.consumer}: {finding.message}; "
                "this is a defect of spoco-zoo, please report it"
            )
