"""Instance segmentation from a few labelled objects.

    package = spoco_zoo.load_package("weights/nuclei-2d")
    labels = spoco_zoo.segment(image, package)

Names are imported when they are first used, so `import spoco_zoo` costs nothing, and what needs
torch (`train`, `export_package`) does not stand in the way of what does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spoco_zoo.errors import MissingExtraError

if TYPE_CHECKING:
    from spoco_zoo.clustering import cluster
    from spoco_zoo.evaluation import evaluate
    from spoco_zoo.metrics import score
    from spoco_zoo.package import load_package
    from spoco_zoo.packaging import export_package
    from spoco_zoo.segmentation import segment
    from spoco_zoo.training import train

__all__ = [
    "cluster",
    "evaluate",
    "export_package",
    "load_package",
    "score",
    "segment",
    "train",
]

_ROOMS = {
    "cluster": "clustering",
    "evaluate": "evaluation",
    "export_package": "packaging",
    "load_package": "package",
    "score": "metrics",
    "segment": "segmentation",
    "train": "training",
}
_EXTRAS = {"train": "training", "export_package": "export"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the types stand above
    if name not in _ROOMS:
        raise AttributeError(f"module 'spoco_zoo' has no attribute {name!r}")
    try:
        return getattr(import_module(f"spoco_zoo.{_ROOMS[name]}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if name not in _EXTRAS or missing == "spoco_zoo":
            raise
        raise MissingExtraError(
            f"{_EXTRAS[name]} needs {missing}: pip install 'spoco-zoo[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
