"""Instance segmentation from a few labelled objects.

    package = spoco_zoo.load_package("weights/nuclei-2d")
    labels = spoco_zoo.segment(image, package)

Names are imported when they are first used, so `import spoco_zoo` costs nothing, and what needs
torch (`train`, `export_package`) does not stand in the way of what does not.
"""

from importlib import import_module
from importlib.util import find_spec
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
    from spoco_zoo.volume_segmentation import segment_volume

__all__ = [
    "cluster",
    "evaluate",
    "export_package",
    "load_package",
    "score",
    "segment",
    "segment_volume",
    "train",
]

_ROOMS = {
    "cluster": "clustering",
    "evaluate": "evaluation",
    "export_package": "packaging",
    "load_package": "package",
    "score": "metrics",
    "segment": "segmentation",
    "segment_volume": "volume_segmentation",
    "train": "training",
}
_EXTRAS = {  # what for, the extra, and what it has to bring
    "train": ("training", "train", ("torch", "batchgeneratorsv2", "tensorboard", "matplotlib")),
    "export_package": ("export", "train", ("torch", "onnx", "bioimageio.core")),
    "segment_volume": ("segment_volume", "volumes", ("distributed", "fsspec", "zarr")),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the types stand above
    if name not in _ROOMS:
        raise AttributeError(f"module 'spoco_zoo' has no attribute {name!r}")
    if name in _EXTRAS:
        word, extra, needs = _EXTRAS[name]
        missing = next((package for package in needs if not _is_installed(package)), None)
        if missing is not None:
            raise MissingExtraError(f"{word} needs {missing}: pip install 'spoco-zoo[{extra}]'")
    return getattr(import_module(f"spoco_zoo.{_ROOMS[name]}"), name)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ValueError, ModuleNotFoundError):
        return False


def __dir__() -> list[str]:
    return sorted(__all__)
