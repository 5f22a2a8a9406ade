"""Simulated images, to try packages on where no image is at hand."""

from collections.abc import Sequence
from typing import Any

from spoco_zoo.scenes import simulate_scene
from spoco_zoo.spec import SceneName

LayerData = tuple[Any, dict[str, Any], str]

_SEED = 20220619


def nuclei() -> list[LayerData]:
    """Fluorescent nuclei, for `nuclei-2d`."""
    return _sample("nuclei", (512, 512), "nuclei (simulated)")


def nuclei_volume() -> list[LayerData]:
    """Fluorescent nuclei in a volume, for `nuclei-3d-simulated`."""
    return _sample("nuclei", (32, 128, 128), "nuclei, a volume (simulated)")


def phase_cells() -> list[LayerData]:
    """Cells in phase contrast, for `cells-phase-2d`."""
    return _sample("phase_cells", (512, 512), "cells in phase contrast (simulated)")


def axons() -> list[LayerData]:
    """Axons in electron microscopy, for `axons-em-2d`."""
    return _sample("axons", (512, 512), "axons (simulated)")


def _sample(scene: SceneName, shape: Sequence[int], name: str) -> list[LayerData]:
    image, _ = simulate_scene(scene, shape, _SEED)
    return [(image, {"name": name}, "image")]
