"""Which execution providers of ONNX Runtime really run here: each is tried with a small network.

That a provider is offered, or that a session lists it, says little: a library may be missing, the
driver too old, and ONNX Runtime goes on with the CPU. So a convolution and a product of matrices
are run with the CPU forbidden as a substitute, and their numbers are compared.

A broken driver may hang, or end the process that asks it. So all of this is done in a child,
which is this module run by itself; one that ends is started again for the providers that are
left.
"""

import ctypes
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from spoco_zoo.machine import run_briefly

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DEVICES = {"cpu": CPU, "cuda": CUDA}
_PATIENCE_S = 30.0  # the first start of a GPU may take many seconds
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_NO_SUBSTITUTE = "session.disable_cpu_ep_fallback"


@dataclass(frozen=True)
class Trial:
    """What became of a provider: whether it ran, on which its session was, and what was wrong."""

    name: str
    runs: bool
    got: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Driver:
    """What the driver of an NVIDIA GPU says of itself."""

    trouble: str | None  # why it cannot be used
    is_there: bool
    devices: int = 0
    cuda: str | None = None  # the newest CUDA that it knows


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime as this Python imports it, and its providers, tried in its order."""

    version: str | None = None
    folder: str | None = None
    cuda: str | None = None  # the CUDA that it was built for
    broken: str | None = None  # why it cannot be imported
    trials: tuple[Trial, ...] = ()
    driver: Driver | None = None
    missing_libraries: tuple[str, ...] = ()

    def find(self, device: str) -> Trial | None:
        """The trial of a device's provider; None where it is not offered."""
        return next((t for t in self.trials if t.name == DEVICES[device]), None)


def try_providers(timeout_s: float = _PATIENCE_S) -> Runtime:
    """Import ONNX Runtime in a child and run a small network on each provider that it offers.

    Args:
        timeout_s: For a child; a provider that is not ready by then does not run.
    """
    runtime, left = Runtime(), [""]
    while left:
        code, lines = _ask_child(left, timeout_s)
        runtime, tried = _take(runtime, lines)
        offered = next((line["offered"] for line in lines if "offered" in line), None)
        if offered is None:
            broken = runtime.broken or _explain_end(code, timeout_s)
            return replace(runtime, broken=broken)
        names = offered if left == [""] else left
        left = [name for name in names if name not in tried]
        if left:  # the child ended at the first of these
            ended = Trial(left.pop(0), runs=False, reason=_explain_end(code, timeout_s))
            runtime = replace(runtime, trials=(*runtime.trials, ended))
    return runtime


def _ask_child(names: Sequence[str], timeout_s: float) -> tuple[int | None, list[dict[str, Any]]]:
    path = os.pathsep.join(place for place in sys.path if place)  # what `run` would import
    words = [sys.executable, "-P", "-m", "spoco_zoo.providers", *names]
    code, said = run_briefly(words, timeout_s, {"PYTHONPATH": path})
    lines = []
    for line in said.splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return code, lines


def _take(runtime: Runtime, lines: Sequence[dict[str, Any]]) -> tuple[Runtime, set[str]]:
    """Add what a child told to what is known; and the providers that it told of."""
    trials = [Trial(**line["trial"]) for line in lines if "trial" in line]
    known: dict[str, Any] = {"trials": (*runtime.trials, *trials)}
    for line in lines:
        known |= line.get("runtime", {})
        if "driver" in line:
            known["driver"] = Driver(**line["driver"])
        if "missing" in line:
            known["missing_libraries"] = tuple(line["missing"])
    return replace(runtime, **known), {trial.name for trial in trials}


def _explain_end(code: int | None, timeout_s: float) -> str:
    if code is None:
        return f"it does not answer within {timeout_s:g} s"
    if code < 0:
        return f"it ends the program ({signal.Signals(-code).name})"
    return f"it ends the program with code {code}"


# --- what the child does


def main(names: Sequence[str]) -> None:
    """Tell of ONNX Runtime and try providers; one line of JSON for each thing that is done.

    Args:
        names: Providers to try; all that are offered where there is but an empty name.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # whatever libraries print is not an answer

        def tell(words: dict[str, object]) -> None:
            out.write(json.dumps(words) + "\n")
            out.flush()

        try:
            import onnxruntime

            names_offered = onnxruntime.get_available_providers()
            version = onnxruntime.__version__
        except Exception as error:  # noqa: BLE001 - half an installation fails in any way
            tell({"runtime": {"broken": f"{type(error).__name__}: {_first_line(str(error))}"}})
            return
        # those that are used come first: nothing that others do can be in their way
        offered = sorted(names_offered, key=lambda name: (name != CPU, name != CUDA))
        cuda = getattr(onnxruntime, "cuda_version", None) or None
        folder = os.path.dirname(onnxruntime.__file__ or "")
        known = {"version": version, "folder": folder, "cuda": cuda}
        tell({"offered": offered, "runtime": known})
        wanted = offered if list(names) == [""] else [n for n in offered if n in names]
        for name in wanted:
            if name == CUDA:
                tell({"driver": _ask_driver()})
                tell({"missing": _find_missing(onnxruntime, cuda)})
            tell({"trial": _try_provider(onnxruntime, name)})


def _try_provider(onnxruntime: Any, name: str) -> dict[str, object]:  # noqa: ANN401
    """Run the small networks on one provider."""
    told: dict[str, object] = {"name": name, "runs": False}
    with _catch_output() as read:
        try:
            for n_axes in (2, 3):
                got = _run_network(onnxruntime, name, n_axes)
                told["got"] = got
                if got != name:
                    raise RuntimeError(f"ONNX Runtime took {got} instead")
            told["runs"] = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            said = _first_line(str(error)) or type(error).__name__
            told["reason"] = _find_reason(read()) or said
    return told


def _run_network(onnxruntime: Any, name: str, n_axes: int) -> str:  # noqa: ANN401
    """Run one network and compare its numbers; the provider that its session is on."""
    import numpy as np

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2
    options.intra_op_num_threads = 1
    if name != CPU:
        options.add_session_config_entry(_NO_SUBSTITUTE, "1")
    content = (files("spoco_zoo") / "graphs" / f"trial_{n_axes}d.onnx").read_bytes()
    session = onnxruntime.InferenceSession(content, options, providers=[name], enable_fallback=0)
    got = str(session.get_providers()[0])
    if got != name:
        return got
    # small integers, which half the digits of float32 hold exactly
    random = np.random.default_rng(0)
    shapes = {"image": (1, 1, *(8,) * n_axes), "kernel": (1, 1, *(3,) * n_axes), "matrix": (6, 4)}
    given = {k: random.integers(-2, 3, shape).astype(np.float32) for k, shape in shapes.items()}
    windows = np.lib.stride_tricks.sliding_window_view(given["image"], given["kernel"].shape)
    kernel_axes = tuple(range(-n_axes - 2, 0))
    expected = (windows * given["kernel"]).sum(kernel_axes) @ given["matrix"]
    if not np.array_equal(session.run(None, given)[0], expected):
        raise RuntimeError("it computes wrong numbers")
    return got


def _ask_driver() -> dict[str, object]:
    """Ask the driver itself, as CUDA does when it starts."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return {"is_there": False, "trouble": f"no NVIDIA driver is found ({name})"}
    count, version = ctypes.c_int(), ctypes.c_int()
    try:
        code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
        driver.cuDriverGetVersion(ctypes.byref(version))
    except AttributeError:
        return {"is_there": True, "trouble": f"the NVIDIA driver ({name}) is damaged"}
    number = version.value
    cuda = f"{number // 1000}.{number % 1000 // 10}" if number else None
    trouble = None
    if code or not count.value:
        trouble = f"the NVIDIA driver finds no GPU that it can use (code {code})"
    return {"is_there": True, "trouble": trouble, "devices": count.value, "cuda": cuda}


def _find_missing(onnxruntime: Any, cuda: str | None) -> list[str]:  # noqa: ANN401
    """Load what the CUDA provider needs, as a session does; the names of what cannot be loaded."""
    with _catch_output():
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # from the wheels of NVIDIA
    missing = []
    for name in name_libraries(cuda):
        try:
            ctypes.CDLL(name)  # found by its name if it has been loaded from anywhere
        except OSError:
            missing.append(name)
    return missing


def name_libraries(cuda: str | None, platform: str = sys.platform) -> list[str]:
    """Libraries of CUDA and cuDNN 9 that ONNX Runtime loads, those first that others need.

    They are those of `onnxruntime.preload_dlls`.

    Args:
        cuda: Version of CUDA that ONNX Runtime was built for, as `12.8`.
        platform: As `sys.platform` says it.
    """
    major = (cuda or "").split(".")[0]
    if not major.isdecimal():
        return []
    fft = 12 if int(major) >= 13 else 11  # cuFFT 12 came with CUDA 13
    if platform == "win32":
        names = [f"cublasLt64_{major}", f"cublas64_{major}", f"cufft64_{fft}", f"cudart64_{major}"]
        return [f"{name}.dll" for name in [*names, "cudnn64_9"]]
    names = [f"cublasLt.so.{major}", f"cublas.so.{major}", f"nvrtc.so.{major}", "curand.so.10"]
    return [
        f"lib{name}" for name in [*names, f"cufft.so.{fft}", f"cudart.so.{major}", "cudnn.so.9"]
    ]


@contextmanager
def _catch_output() -> Iterator[Callable[[], str]]:
    """Catch what libraries write to stdout and stderr, which only their descriptors see."""
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(1), os.dup(2)

        def read() -> str:
            caught.seek(0)
            return _COLORS.sub("", caught.read().decode(errors="replace"))

        try:
            for target in (1, 2):
                os.dup2(caught.fileno(), target)
            yield read
        finally:
            for target, source in zip((1, 2), kept, strict=True):
                sys.stdout.flush()
                os.dup2(source, target)
                os.close(source)


def _find_reason(log: str) -> str | None:
    """What ONNX Runtime's log says of a library that it could not load, or that was refused."""
    found = re.search(r"Failed to load library \S*?([^/\\\s]+) with error: (.+)", log)
    if found:
        return f"{found[1]} cannot be loaded ({found[2].strip()})"
    found = re.search(r"(?:CUDA failure|CUDNN failure|CUBLAS failure) (\d+: [^;]+)", log)
    return None if found is None else f"CUDA failure {found[1].strip()}"


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 300 else line[:300] + " ..."


if __name__ == "__main__":
    main(sys.argv[1:])
