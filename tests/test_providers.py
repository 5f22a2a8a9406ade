"""A provider runs if it ran: neither what is offered, nor what ends or hangs, is believed.

Where another ONNX Runtime is needed than that which is installed, a small module of its name
stands before it on the path of the child.
"""

import sys
import textwrap

import numpy as np
import onnxruntime
import pytest

from spoco_zoo.providers import CPU, CUDA, Driver, Runtime, Trial, name_libraries, try_providers
from spoco_zoo.session import find_gpu

STAND_IN = """
import os, sys, time
from contextlib import suppress
import numpy as np

__version__ = "9.9.0"
cuda_version = {cuda!r}

def get_available_providers():
    return {offered!r}

class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass

class InferenceSession:
    def __init__(self, content, options, providers, enable_fallback):
        self.name = providers[0]
        self.content = content
        {start}

    def get_providers(self):
        return {got}

    def run(self, names, given):
        windows = np.lib.stride_tricks.sliding_window_view(given["image"], given["kernel"].shape)
        axes = tuple(range(-given["image"].ndim, 0))
        return [((windows * given["kernel"]).sum(axes) @ given["matrix"]) * {factor}]
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a small ONNX Runtime before that which is installed."""

    def put(offered=(CUDA, CPU), *, cuda="", start="pass", got="[self.name, 'x']", factor=1):
        (tmp_path / "onnxruntime").mkdir()
        text = STAND_IN.format(
            offered=list(offered), cuda=cuda, start=start, got=got, factor=factor
        )
        (tmp_path / "onnxruntime" / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path / "onnxruntime"

    return put


def trials(runtime):
    return {trial.name: (trial.runs, trial.reason) for trial in runtime.trials}


@pytest.fixture(scope="module")
def installed():
    """The ONNX Runtime that is installed."""
    return try_providers()


def test_the_installed_one_runs_on_the_cpu(installed):
    runtime = installed
    assert runtime.version == onnxruntime.__version__
    assert runtime.broken is None
    assert {t.name for t in runtime.trials} == set(onnxruntime.get_available_providers())
    assert runtime.find("cpu") == Trial(CPU, runs=True, got=CPU)


@pytest.mark.skipif(find_gpu(), reason="a GPU is there")
@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this wheel has no CUDA"
)
def test_cuda_without_a_gpu_is_offered_and_does_not_run(installed):
    runtime = installed
    assert not runtime.find("cuda").runs
    assert runtime.find("cuda").reason
    assert runtime.driver.trouble
    assert set(runtime.missing_libraries) <= set(name_libraries(runtime.cuda))


def test_those_that_are_used_are_tried_first(stand_in):
    folder = stand_in(("OtherExecutionProvider", CUDA, CPU))
    runtime = try_providers()
    assert [t.name for t in runtime.trials] == [CPU, CUDA, "OtherExecutionProvider"]
    assert all(trial.runs for trial in runtime.trials)
    assert (runtime.version, runtime.folder) == ("9.9.0", str(folder))


def test_wrong_numbers_are_not_running(stand_in):
    stand_in((CPU,), factor=1.001)
    assert trials(try_providers()) == {CPU: (False, "it computes wrong numbers")}


def test_another_provider_in_its_place_is_not_running(stand_in):
    stand_in(got=f"[{CPU!r}]")
    assert trials(try_providers()) == {
        CPU: (True, None),
        CUDA: (False, f"ONNX Runtime took {CPU} instead"),
    }


def test_the_library_that_fails_is_read_out_of_the_log(stand_in):
    line = (
        "\\x1b[1;31m[E] Failed to load library /a/b/libprovider.so with error: "
        "libcudnn.so.9: cannot open shared object file\\x1b[m\\n"
    )
    stand_in((CUDA,), start=f'os.write(2, b"{line}"); raise RuntimeError("no\\nmore")')
    reason = "libprovider.so cannot be loaded (libcudnn.so.9: cannot open shared object file)"
    assert trials(try_providers()) == {CUDA: (False, reason)}


def test_without_a_log_the_error_is_the_reason(stand_in):
    stand_in((CUDA,), start='raise RuntimeError("first line\\nsecond")')
    assert trials(try_providers()) == {CUDA: (False, "first line")}


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os._exit(7)", "it ends the program with code 7"),
        ("os.kill(os.getpid(), 11)", "it ends the program (SIGSEGV)"),
        ("time.sleep(60)", "it does not answer within 4 s"),
    ],
)
def test_one_that_ends_or_hangs_takes_no_other_with_it(stand_in, end, reason):
    stand_in(("OtherExecutionProvider", CUDA, CPU), start=f"self.name == {CUDA!r} and {end}")
    assert trials(try_providers(timeout_s=4.0 if "sleep" in end else 30.0)) == {
        CPU: (True, None),
        CUDA: (False, reason),
        "OtherExecutionProvider": (True, None),
    }


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("raise ImportError('half of it is gone')", "ImportError: half of it is gone"),
        ("", "AttributeError: module 'onnxruntime' has no attribute 'get_available_providers'"),
        ("import os; os._exit(3)", "it ends the program with code 3"),
        ("import time; time.sleep(60)", "it does not answer within 1 s"),
    ],
)
def test_one_that_cannot_be_imported_is_broken(tmp_path, monkeypatch, text, broken):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert try_providers(timeout_s=1.0 if "sleep" in text else 30.0) == Runtime(broken=broken)


def test_what_a_library_prints_is_no_answer(stand_in):
    stand_in((CPU,), start='print(1, flush=True); os.system("echo [2]")')
    assert trials(try_providers()) == {CPU: (True, None)}


@pytest.mark.skipif(sys.platform != "linux", reason="these are the names of Linux")
def test_libraries_that_are_not_there_are_named(stand_in, monkeypatch):
    stand_in((CUDA, CPU), cuda="99.1")
    assert try_providers().missing_libraries[:2] == ("libcublasLt.so.99", "libcublas.so.99")


def test_the_libraries_are_those_that_onnxruntime_loads():
    named = getattr(onnxruntime, "_get_nvidia_dll_paths", None)
    if named is None or not onnxruntime.cuda_version:
        pytest.skip("this ONNX Runtime does not load libraries of CUDA itself")
    for platform in ("linux", "win32"):
        paths = [path[-1] for path in named(platform == "win32")]
        ours = name_libraries(onnxruntime.cuda_version, platform)
        assert set(ours) <= set(paths)
        assert [name for name in paths if "cudnn" not in name] == ours[:-1]
    assert name_libraries("12.8")[:2] == ["libcublasLt.so.12", "libcublas.so.12"]
    assert name_libraries(None) == []


@pytest.mark.skipif(find_gpu() or sys.platform != "linux", reason="a driver is there")
def test_a_machine_without_a_driver_says_so(stand_in):
    stand_in((CUDA, CPU))
    trouble = "no NVIDIA driver is found (libcuda.so.1)"
    assert try_providers().driver in (
        Driver(trouble, is_there=False),
        Driver("the NVIDIA driver finds no GPU that it can use (code 100)", is_there=True),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is a library of Linux")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, Driver(None, is_there=True, devices=2, cuda="12.4")),
        (
            999,
            Driver("the NVIDIA driver finds no GPU that it can use (code 999)", True, 0, "12.4"),
        ),
    ],
)
def test_a_driver_is_asked_itself(stand_in, tmp_path, monkeypatch, code, expected):
    import shutil
    import subprocess

    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = tmp_path / "driver.c"
    source.write_text(
        textwrap.dedent(f"""
        int cuInit(unsigned int flags) {{ return {code}; }}
        int cuDeviceGetCount(int *count) {{ *count = 2; return 0; }}
        int cuDriverGetVersion(int *version) {{ *version = 12040; return 0; }}
        """)
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    stand_in((CUDA, CPU))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert try_providers().driver == expected


def test_the_networks_are_a_convolution_and_a_product():
    from importlib.resources import files

    for n_axes in (2, 3):
        content = (files("spoco_zoo") / "graphs" / f"trial_{n_axes}d.onnx").read_bytes()
        session = onnxruntime.InferenceSession(content, providers=[CPU])
        image = np.zeros((1, 1, *(4,) * n_axes), np.float32)
        image[0, 0][(1,) * n_axes] = 1  # a single pixel gives the kernel, mirrored
        kernel = np.arange(2**n_axes, dtype=np.float32).reshape(1, 1, *(2,) * n_axes)
        given = {"image": image, "kernel": kernel, "matrix": np.eye(3, dtype=np.float32)}
        (found,) = session.run(None, given)
        corner = found[0, 0][(slice(0, 2),) * n_axes]
        assert (corner == np.flip(kernel[0, 0])).all()
