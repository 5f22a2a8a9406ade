"""Embeddings that stay on the device on which they were computed.

The dense steps of clustering are small ONNX graphs, run by the same ONNX Runtime on the same
device; only places, centres and answers travel. The graphs lie beside this module and are
written by `packaging.dense`.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spoco_zoo.modes import Centers, Points
from spoco_zoo.pixels import Places
from spoco_zoo.tiling import Box

Mask = Bool[np.ndarray, "*space"]

_PIXELS_AT_ONCE = 1 << 18  # times some dozen centres: the largest array that a step makes


class DenseSteps:
    """The graphs, opened on one device when they are first used."""

    def __init__(self, provider: str | tuple[str, dict[str, str]]) -> None:
        """Take the provider of ONNX Runtime on which the embeddings lie."""
        self._provider = provider
        self._open = cache(self._open_graph)

    def run(self, name: str, embedding: Any, given: Mapping[str, np.ndarray]) -> np.ndarray:  # noqa: ANN401
        """Run a graph on an embedding (`onnxruntime.OrtValue`) that stays where it is."""
        session = self._open(f"{name}_{len(embedding.shape()) - 2}d")
        binding = session.io_binding()
        binding.bind_ortvalue_input("embedding", embedding)
        for key, value in given.items():
            binding.bind_cpu_input(key, np.ascontiguousarray(value))
        binding.bind_output("answer", "cpu")
        session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    def _open_graph(self, name: str) -> Any:  # noqa: ANN401
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        content = (files("spoco_zoo") / "graphs" / f"{name}.onnx").read_bytes()
        return onnxruntime.InferenceSession(content, options, providers=[self._provider])


class DevicePixels:
    """A box of an embedding `(1, e, *space)` on a device; see `spoco_zoo.pixels.Pixels`."""

    def __init__(self, embedding: Any, steps: DenseSteps, box: Box) -> None:  # noqa: ANN401
        """Take an `onnxruntime.OrtValue`; it is not copied."""
        self._embedding = embedding
        self._steps = steps
        self._box = box

    @property
    def dim(self) -> int:
        """Numbers per pixel, e."""
        return int(self._embedding.shape()[1])

    def crop(self, box: Box) -> "DevicePixels":
        """The same pixels within a box."""
        inside = tuple(
            slice(own.start + s.start, own.start + s.stop)
            for own, s in zip(self._box, box, strict=True)
        )
        return DevicePixels(self._embedding, self._steps, inside)

    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinity."""
        return bool(self._steps.run("finite", self._embedding, self._bounds()) == 0)

    def points(self, places: Places) -> Points:
        """Embeddings of some pixels."""
        return self._steps.run("points", self._embedding, {"places": self._move(places)})

    def squares(self, places: Places, index: Places, centers: Centers) -> Float[np.ndarray, " n"]:
        """Squared distance of each pixel from the centre that its index names."""
        given = {"places": self._move(places), "index": index, "centers": centers}
        return self._steps.run("squares", self._embedding, given)

    def nearest(
        self, places: Places, centers: Centers, reach: Float[np.ndarray, " m"]
    ) -> Int[np.ndarray, " n"]:
        """Nearest centre of each pixel, -1 where that centre does not reach it."""
        nearest = np.full(len(places), -1)
        if len(centers):
            for start in range(0, len(places), _PIXELS_AT_ONCE):
                part = self._move(places[start : start + _PIXELS_AT_ONCE])
                given = {"places": part, "centers": centers, "reach": reach}
                nearest[start : start + len(part)] = self._steps.run(
                    "nearest", self._embedding, given
                )
        return nearest

    def steps(self, mask: Mask) -> Float[np.ndarray, "*space"]:
        """Distance of each pixel from its nearer neighbour in the mask, on the worst axis."""
        return self._steps.run("steps", self._embedding, self._bounds() | {"mask": mask})

    def _move(self, places: Places) -> Places:
        """Places in the box, as places in the whole array."""
        whole = self._embedding.shape()[2:]
        shape = [s.stop - s.start for s in self._box]
        where = np.unravel_index(places, shape)
        moved = [at + s.start for at, s in zip(where, self._box, strict=True)]
        return np.asarray(np.ravel_multi_index(moved, whole), np.int64)

    def _bounds(self) -> dict[str, np.ndarray]:
        return {
            "starts": np.array([s.start for s in self._box], np.int64),
            "stops": np.array([s.stop for s in self._box], np.int64),
        }
