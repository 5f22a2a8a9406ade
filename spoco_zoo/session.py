"""A package opened in ONNX Runtime, on one device: image in, embedding out.

The device is a promise. ONNX Runtime itself falls back to the CPU with a warning when CUDA
cannot start; here that is an error, and `auto` says in the log what it took and why.
"""

import ctypes
import logging
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from spoco_zoo.errors import DeviceError, PackageError
from spoco_zoo.package import Package

_log = logging.getLogger(__name__)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, eq=False)
class Embedded:
    """What the network says of an image, or of a tile of it."""

    embedding: Float[np.ndarray, "e *space"]
    probability: Float[np.ndarray, "*space"] | None  # of foreground
    momentum_embedding: Float[np.ndarray, "e *space"] | None


class EmbeddingSession:
    """One package on one device. Close it, or use it in a `with`, to free the device."""

    def __init__(self, package: Package, device: str = "auto", threads: int | None = None) -> None:
        """Open the ONNX weights of a package.

        Args:
            package: A verified package.
            device: `cpu`, `cuda`, or `auto`: CUDA where there is a GPU that works.
            threads: CPU threads; all cores where left out.

        Raises:
            DeviceError: The device is unknown, or asked for and not there.
            PackageError: The weights are no network that ONNX Runtime can open.
        """
        self.package = package
        self.turn = threading.Lock()  # for callers that let several threads take turns
        self.device = _pick_device(device)
        self._session = _open(package, self.device, threads)
        if self._session is None and device == "auto":
            _log.warning("the GPU cannot be used by ONNX Runtime; running on the CPU instead")
            self.device = "cpu"
            self._session = _open(package, "cpu", threads)
        if self._session is None:
            raise DeviceError(
                "cuda was asked for, but ONNX Runtime cannot start it: "
                "pip install 'spoco-zoo[cuda]', or use --device cpu"
            )

    def __enter__(self) -> "EmbeddingSession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what the session holds."""
        self._session = None

    def embed(self, image: Float[np.ndarray, "c *space"]) -> Embedded:
        """Embed one normalised image or tile in one piece.

        Raises:
            PackageError: The network fails, or gives another shape than the package says.
        """
        if self._session is None:
            raise PackageError(f"{self.package.name}: the session is closed: open a new one")
        batch = np.ascontiguousarray(image[None], dtype=np.float32)
        try:
            values = self._session.run(list(self.package.outputs), {self.package.input_id: batch})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise PackageError(
                f"{self.package.location}: the network failed on shape {batch.shape} ({reason}): "
                "use smaller tiles, or export the package again"
            ) from error
        outputs = dict(zip(self.package.outputs, values, strict=True))
        for name, value in outputs.items():
            channels = 1 if name == "foreground" else self.package.embedding_dim
            if value.shape != (1, channels, *image.shape[1:]):
                raise PackageError(
                    f"{self.package.location}: output {name} has shape {value.shape}: "
                    f"expected {(1, channels, *image.shape[1:])}; export the package again"
                )
        momentum = outputs.get("momentum_embedding")
        probability = outputs.get("foreground")
        return Embedded(
            outputs["embedding"][0],
            None if probability is None else probability[0, 0],
            None if momentum is None else momentum[0],
        )


def find_gpu() -> bool:
    """Tell whether an NVIDIA driver with at least one GPU is there, without loading CUDA."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int()
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return False
    return ready and count.value > 0


def _pick_device(name: str) -> str:
    import onnxruntime

    if name not in ("auto", *_PROVIDERS):
        raise DeviceError(f"device is {name}: expected auto, cpu or cuda")
    if name == "cpu":
        return name
    offered = _PROVIDERS["cuda"] in onnxruntime.get_available_providers()
    if offered and find_gpu():
        return "cuda"
    if name == "auto":
        return "cpu"
    reason = (
        "no NVIDIA GPU with a driver is found: use --device cpu"
        if offered
        else "ONNX Runtime was built without it: pip uninstall onnxruntime, "
        "then pip install 'spoco-zoo[cuda]', or use --device cpu"
    )
    raise DeviceError(f"cuda was asked for, but {reason}")


def _open(package: Package, device: str, threads: int | None) -> Any | None:  # noqa: ANN401
    """Open a session; None where the device turns out not to work."""
    import onnxruntime

    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below
    options.intra_op_num_threads = threads or len(_cores())
    options.enable_mem_pattern = False  # tiles differ in shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "falling back to CPU" is refused below
            session = onnxruntime.InferenceSession(
                package.read(package.onnx_name), options, providers=[_provider(device)]
            )
    except PackageError:
        raise
    except Exception as error:
        if device == "cuda":
            return None
        reason = str(error).splitlines()[0]
        raise PackageError(
            f"{package.location / package.onnx_name}: ONNX Runtime cannot open it ({reason}): "
            "export the package again"
        ) from error
    if session.get_providers()[0] != _PROVIDERS[device]:
        return None
    taken = [tensor.name for tensor in session.get_inputs()]
    given = [tensor.name for tensor in session.get_outputs()]
    if taken != [package.input_id] or not set(package.outputs) <= set(given):
        raise PackageError(
            f"{package.location / package.onnx_name}: takes {', '.join(taken)} and gives "
            f"{', '.join(given)}: rdf.yaml says {package.input_id} and "
            f"{', '.join(package.outputs)}; export the package again"
        )
    return session


def _provider(device: str) -> str | tuple[str, dict[str, str]]:
    """Provider and options; on CUDA, full float32 and one algorithm whatever the tile's shape."""
    name = _PROVIDERS[device]
    if device == "cpu":
        return name
    return name, {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


def _cores() -> set[int]:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
