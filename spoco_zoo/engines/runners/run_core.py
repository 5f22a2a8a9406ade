"""Test a package with the bioimageio.core of this Python: TORCH_FOLDER RDF WEIGHTS...

Prints the versions, then one line of JSON for each weights format as soon as it is tested; without
arguments, only the versions. PyTorch is large and is taken from TORCH_FOLDER, with what comes
along with it, unless this Python has its own.
"""

import json
import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from typing import Any

TORCH = ("torch", "torchgen", "functorch", "triton", "nvidia", "cuda")
# and bioimageio.core does not need
ITS_NEEDS = ("sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec")


class _TorchFinder(MetaPathFinder):
    """Finds PyTorch, and nothing else, in the packages of another Python."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        """Find a module whose first word is allowed."""
        if path is None and fullname in TORCH + ITS_NEEDS:
            return PathFinder.find_spec(fullname, [self.folder])
        return None


def main(words: list[str]) -> int:
    """Test each weights format; the exit code is 1 where the library itself does not work."""
    try:
        versions = {name: version(f"bioimageio.{name}") for name in ("core", "spec")}
        if words:
            sys.meta_path.append(_TorchFinder(words[0]))
        from bioimageio.core import test_description
        from loguru import logger
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        _tell({"error": f"{type(error).__name__}: {error}"})
        return 1
    _tell({"engine": versions["core"], "spec": versions["spec"]})
    logger.remove()
    warnings.simplefilter("ignore")
    weights: Any
    for weights in words[2:]:
        device = "CPUExecutionProvider" if weights == "onnx" else "cpu"
        try:
            summary = test_description(
                words[1], weight_format=weights, devices=[device], expected_type="model"
            )
            errors = [e.msg for detail in summary.details for e in detail.errors]
            if summary.status != "passed":
                errors = errors or [f"its status is {summary.status}"]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            errors = [f"{type(error).__name__}: {error}"]
        _tell({"weights": weights, "errors": errors})
    return 0


def _tell(words: dict[str, object]) -> None:
    sys.stdout.write("\n" + json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
