"""A package opened in ONNX Runtime, on one device: image in, embedding out.

The device is a promise. ONNX Runtime itself falls back to the CPU with a warning when CUDA
cannot start; here that is an error, and `auto` says in the log what it took and why.

What is left at ONNX Runtime's default was tried too: benchmarks/README.md, "The session".
"""

import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spoco_zoo.device import DenseSteps
from spoco_zoo.errors import DeviceError, MissingExtraError, PackageError, SettingError
from spoco_zoo.foreign import ForeignPackage
from spoco_zoo.machine import count_gpus, count_threads
from spoco_zoo.package import Package

_log = logging.getLogger(__name__)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PRECISIONS = ("float32", "float16")
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_FALLS_BACK = "the GPU cannot be used by ONNX Runtime; running on the CPU instead"
_TENSOR_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}
_FIRST_BLOCK = 2**31 - 1  # bytes of address space: the most that can be asked for


@dataclass(frozen=True, eq=False)
class Embedded:
    """What the network says of an image, or of a tile of it."""

    embedding: Float[np.ndarray, "e *space"]
    probability: Float[np.ndarray, "*space"] | None  # of foreground
    momentum_embedding: Float[np.ndarray, "e *space"] | None


class EmbeddingSession:
    """One package on one device. Close it, or use it in a `with`, to free the device."""

    def __init__(
        self,
        package: Package,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "float32",
    ) -> None:
        """Open the ONNX weights of a package.

        Args:
            package: A verified package.
            device: `cpu`, `cuda`, or `auto`: CUDA where there is a GPU that works.
            threads: CPU threads; where left out as many as OMP_NUM_THREADS says, or all cores.
            precision: `float32`, or `float16` for a network that computes in half precision on
                CUDA; inputs and outputs are float32 all the same. With nuclei-2d, rounded on the
                CPU as a GPU would, embeddings differed by 0.019 at most and instances hardly
                (benchmarks/README.md). On a GPU none of this was tried, nor whether tiles still
                equal the whole bit for bit.

        Raises:
            DeviceError: The device is unknown, or asked for and not there, or does not compute
                in that precision.
            MissingExtraError: float16 was asked for, and onnx is not installed.
            PackageError: The weights are no network that ONNX Runtime can open.
            SettingError: The precision is unknown.
        """
        if precision not in _PRECISIONS:
            raise SettingError(f"precision is {precision}: expected {' or '.join(_PRECISIONS)}")
        self.package = package
        self.turn = threading.Lock()  # for callers that let several threads take turns
        self.spare: list[np.ndarray] = []  # arrays that an image has left for the next
        self.precision = precision
        self.device = _pick_device(device)
        self._session = None
        if self.device == "cuda":
            self._session = _open(package, "cuda", threads, precision)
        if self._session is None and device == "cuda":
            raise _no_cuda()
        if self._session is None and precision == "float16":
            raise DeviceError(
                "precision is float16 on the device cpu, which does not compute in it: "
                "expected cuda; use precision float32"
            )
        if self._session is None:
            if self.device == "cuda":
                _log.warning(_FALLS_BACK)
            self.device = "cpu"
            self._session = _open(package, "cpu", threads, precision)

    @cached_property
    def dense_steps(self) -> DenseSteps:
        """The dense steps of clustering on the same device."""
        return DenseSteps(_provider(self.device))

    def __enter__(self) -> "EmbeddingSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the session holds."""
        self._session = None
        self.spare = []

    def embed(self, image: Float[np.ndarray, "c *space"]) -> Embedded:
        """Embed one normalised image or tile in one piece.

        Raises:
            PackageError: The network fails, or gives another shape than the package says, or in
                float16 numbers that are none.
        """
        outputs = {name: value.numpy() for name, value in self._run(image, "cpu").items()}
        if self.precision == "float16":
            for name, value in outputs.items():
                _check_overflow(value, name, self.package)
        momentum = outputs.get("momentum_embedding")
        probability = outputs.get("foreground")
        return Embedded(
            outputs["embedding"][0],
            None if probability is None else probability[0, 0],
            None if momentum is None else momentum[0],
        )

    def embed_on_device(self, image: Float[np.ndarray, "c *space"]) -> dict[str, Any]:
        """Embed one normalised image or tile and leave the outputs where they were computed.

        On CUDA nothing is copied to the host: what goes on there can take the memory by its
        address (`data_ptr()`), and `numpy()` copies it when it is wanted after all.

        Returns:
            One `onnxruntime.OrtValue` for each of the package's outputs, float32, of shape
            `(1, channels, *space)`: `embedding`, and `foreground` and `momentum_embedding` where
            the package has them. They hold memory of the session until they are let go of.

        Raises:
            PackageError: The network fails, or gives another shape than the package says.
        """
        return self._run(image, self.device)

    def _run(self, image: Float[np.ndarray, "c *space"], place: str) -> dict[str, Any]:
        """Run the network and put its outputs in the memory of a device."""
        if self._session is None:
            raise PackageError(f"{self.package.name}: the session is closed: open a new one")
        batch = np.ascontiguousarray(image[None], dtype=np.float32)
        try:
            binding = self._session.io_binding()
            binding.bind_cpu_input(self.package.input_id, batch)
            for name in self.package.outputs:
                binding.bind_output(name, place)
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise PackageError(
                f"{self.package.location}: the network failed on shape {batch.shape} ({reason}): "
                "use smaller tiles, or export the package again"
            ) from error
        outputs = dict(zip(self.package.outputs, values, strict=True))
        for name, value in outputs.items():
            channels = 1 if name == "foreground" else self.package.embedding_dim
            found, expected = tuple(value.shape()), (1, channels, *image.shape[1:])
            if found != expected:
                raise PackageError(
                    f"{self.package.location}: output {name} has shape {found}: "
                    f"expected {expected}; export the package again"
                )
        return outputs


def hush() -> None:
    """Keep ONNX Runtime from writing to the screen where others open sessions in this process."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)


class NetworkSession:
    """The network of a package of others on one device. Close it, or use it in a `with`."""

    def __init__(
        self, package: ForeignPackage, device: str = "auto", threads: int | None = None
    ) -> None:
        """Open the ONNX weights of a verified package, as `EmbeddingSession` does.

        Raises:
            DeviceError: The device is unknown, or asked for and not there.
            PackageError: The weights are no network that ONNX Runtime can open, or have other
                inputs or outputs than the description.
        """
        self.package = package
        self.turn = threading.Lock()  # for callers that let several threads take turns
        self.device = _pick_device(device)
        place = package.location / package.description.onnx_name
        content = package.read_weights()
        self._session = _start(content, place, self.device, threads)
        if self._session is None:
            if device == "cuda":
                raise _no_cuda()
            _log.warning(_FALLS_BACK)
            self.device = "cpu"
            self._session = _start(content, place, "cpu", threads)
        self._names = self._find_names(place)

    def __enter__(self) -> "NetworkSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the session holds."""
        self._session = None

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network on one array, with the axes that the description gives the input.

        Returns:
            The outputs that the package uses, by their names in the description.

        Raises:
            PackageError: The network fails.
        """
        if self._session is None:
            raise PackageError(f"{self.package.name}: the session is closed: open a new one")
        taken = self._session.get_inputs()[0]
        kind = _TENSOR_TYPES.get(taken.type, image.dtype)
        batch = np.ascontiguousarray(image, dtype=kind)
        wanted = [tensor.name for tensor in self.package.outputs]
        try:
            values = self._session.run([self._names[name] for name in wanted], {taken.name: batch})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise PackageError(
                f"{self.package.location}: the network failed on shape {batch.shape} ({reason}): "
                "use smaller tiles, or ask the authors of the package"
            ) from error
        return dict(zip(wanted, values, strict=True))

    def _find_names(self, place: Path) -> dict[str, str]:
        """Find the outputs of the network: by their names, or else by their order."""
        session: Any = self._session
        taken = [tensor.name for tensor in session.get_inputs()]
        given = [tensor.name for tensor in session.get_outputs()]
        said = [tensor.name for tensor in self.package.description.outputs]
        if len(taken) == 1 and set(said) <= set(given):
            return {name: name for name in said}
        if len(taken) == 1 and len(said) == len(given):
            return dict(zip(said, given, strict=True))
        raise PackageError(
            f"{place}: takes {', '.join(taken)} and gives {', '.join(given)}: the description says "
            f"{self.package.image.name} and {', '.join(said)}; ask its authors"
        )


def find_gpu() -> bool:
    """Tell whether an NVIDIA driver with at least one GPU is there, without loading CUDA."""
    return count_gpus() > 0


def _no_cuda() -> DeviceError:
    return DeviceError(
        "cuda was asked for, but ONNX Runtime cannot start it: "
        "pip install 'spoco-zoo[cuda]', or use --device cpu"
    )


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


def convert_to_half(content: bytes) -> bytes:
    """Turn an ONNX network of float32 into one of float16; its inputs and outputs stay float32.

    Everything is done in memory, and nothing but the graph is read. Numbers too large for
    float16 become the largest there is. ONNX Runtime's CPU provider runs such a network too,
    with rounded weights but in float32 arithmetic.

    Args:
        content: A network that ONNX Runtime has opened before: what it refuses (damage, weights
            in other files) must not come this far.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise MissingExtraError(
            f"precision float16 needs {error.name}: pip install 'spoco-zoo[cuda]'"
        ) from error
    model = convert_float_to_float16(onnx.load_model_from_string(content), keep_io_types=True)
    half: bytes = model.SerializeToString()
    return half


def _open(package: Package, device: str, threads: int | None, precision: str) -> Any | None:  # noqa: ANN401
    """Open a session; None where the device turns out not to work."""
    content = package.read(package.onnx_name)
    if precision == "float16":
        _open(package, "cpu", threads, "float32")  # refuses what must not be converted
        content = _convert(content, package)
    session = _start(content, package.location / package.onnx_name, device, threads)
    if session is None:
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


def _start(content: bytes, place: Path, device: str, threads: int | None) -> Any | None:  # noqa: ANN401
    """Start ONNX Runtime on a network; None where the device turns out not to work."""
    import onnxruntime

    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below
    options.intra_op_num_threads = threads or count_threads()
    options.enable_mem_pattern = False  # tiles differ in shape, and a plan of each takes memory
    # weights in other files would be read out of the folder that the program was started in
    options.add_session_config_entry(_EXTERNAL_FOLDER, os.devnull)
    arena = _roomy_arena(options) if device == "cpu" else nullcontext()
    try:
        with warnings.catch_warnings(), arena:
            warnings.simplefilter("ignore")  # "falling back to CPU" is refused below
            session = onnxruntime.InferenceSession(content, options, providers=[_provider(device)])
    except Exception as error:
        if device == "cuda":
            return None
        reason = str(error).splitlines()[0]
        raise PackageError(
            f"{place}: ONNX Runtime cannot open it ({reason}): export the package again"
        ) from error
    return session if session.get_providers()[0] == _PROVIDERS[device] else None


@contextmanager
def _roomy_arena(options: Any) -> Iterator[None]:  # noqa: ANN401 - onnxruntime has no types
    """Let the session that is opened meanwhile take its CPU memory out of one large block.

    By default memory grows in blocks that double. Tensors freed in the small ones leave holes
    where the larger tensors of later layers do not fit, so about twice the memory is touched
    for the first time, which is the slow part of a first call. A block costs only what is
    touched of it; a session that outgrows it takes more.

    An arena can only be offered to the whole process: it is withdrawn at once, so that it belongs
    to this session and goes with it. Where ONNX Runtime is too old to replace one arena by
    another, the session keeps its default.
    """
    if sys.platform != "linux":  # elsewhere a block may cost all that was asked for
        yield
        return
    with suppress(RuntimeError):
        _offer_arena(-1)
        _offer_arena(_FIRST_BLOCK)
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        yield
    finally:
        with suppress(RuntimeError):
            _offer_arena(-1)


def _offer_arena(first_block: int) -> None:
    """Offer an arena with a first block of so many bytes to sessions; -1 for the default."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    config = onnxruntime.OrtArenaCfg({"initial_chunk_size_bytes": first_block})
    onnxruntime.create_and_register_allocator(place, config)


def _convert(content: bytes, package: Package) -> bytes:
    try:
        return convert_to_half(content)
    except MissingExtraError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PackageError(
            f"{package.location / package.onnx_name}: cannot be converted to float16 ({reason}): "
            "use precision float32"
        ) from error


def _check_overflow(value: np.ndarray, name: str, package: Package) -> None:
    """Float16 ends at 65504: what grows beyond it inside the network spoils all that follows."""
    if not math.isfinite(float(value.sum())):
        raise PackageError(
            f"{package.location}: output {name} is not finite in float16: the network computes "
            "with larger numbers than that holds; use precision float32"
        )


def _provider(device: str) -> str | tuple[str, dict[str, str]]:
    """Provider and options; on CUDA, full float32 and one algorithm whatever the tile's shape."""
    name = _PROVIDERS[device]
    if device == "cpu":
        return name
    return name, {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
