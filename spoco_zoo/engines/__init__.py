"""The engines that consumers open packages in: got once, kept in a cache, run as children.

A package that works here may fail in Fiji or ilastik, which bring engines of their own, some of
them years old. Here they can be asked before a user is: ONNX Runtime, libtorch and bioimageio.core
in the versions that are out there, each as a process of its own, so that one that dies takes
nothing with it.
"""

from spoco_zoo.engines.asking import (
    CoreResult,
    measure_peak,
    run_images,
    run_onnx,
    run_torchscript,
    test_core,
)
from spoco_zoo.engines.cache import engines_folder
from spoco_zoo.engines.kinds import ENGINES, Engine, pick_engines

__all__ = [
    "ENGINES",
    "CoreResult",
    "Engine",
    "engines_folder",
    "measure_peak",
    "pick_engines",
    "run_images",
    "run_onnx",
    "run_torchscript",
    "test_core",
]
