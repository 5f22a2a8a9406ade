"""What the doctor says, sentence by sentence, and how the command ends.

Machines that are not at hand are facts made by hand. The command is tried in a world of its own:
another metadata folder, another ONNX Runtime or another tool before those that are installed.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spoco_zoo.doctor import Checkup, describe, examine
from spoco_zoo.doctor.facts import Facts, try_package
from spoco_zoo.doctor.facts import Trial as PackageTrial
from spoco_zoo.doctor.troubles import explain_cuda, find_troubles
from spoco_zoo.errors import OutputError
from spoco_zoo.installation import Part, Wheel, name_wheel
from spoco_zoo.machine import Disk, Gpu, Memory
from spoco_zoo.providers import CPU, CUDA, Driver, Runtime, Trial
from spoco_zoo.session import find_gpu

ROOT = Path(__file__).resolve().parent.parent
SITE = Path("/site/onnxruntime").resolve()
GPU_WHEEL = Wheel("onnxruntime-gpu", "1.31.1", SITE)
CPU_WHEEL = Wheel("onnxruntime", "1.30.0", SITE)
CUDA_PART = Part("nvidia-cufft", "nvidia-cufft~=12.0", None)
NO_DRIVER = Driver("no NVIDIA driver is found (libcuda.so.1)", is_there=False)
DRIVER = Driver(None, is_there=True, devices=1, cuda="13.2")
CARD = Gpu("NVIDIA A1", 80_000_000_000, 79_000_000_000, "590.10")
RUNS = (Trial(CPU, True, CPU), Trial(CUDA, True, CUDA))
FAILS = (Trial(CPU, True, CPU), Trial(CUDA, False, CPU, "libx.so cannot be loaded (liby.so)"))
INSTALL_DRIVER = (
    "install the driver of the GPU (https://www.nvidia.com/drivers); start a container with its "
    "GPU (docker run --gpus all); or use --device cpu"
)
UPDATE = "update the driver (https://www.nvidia.com/drivers)"


@pytest.fixture(autouse=True)
def linux(monkeypatch):
    """Sentences are those of Linux with an Intel or AMD processor, and nothing hides a GPU."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def make(asked="auto", *, trials=RUNS, driver=DRIVER, missing=(), cuda="13.0", **changes):
    """A machine on which all is well, but for the changes."""
    runtime = Runtime("1.31.1", str(SITE), cuda, None, tuple(trials), driver, tuple(missing))
    facts = Facts(
        asked=asked,
        versions={
            "spoco-zoo": "0.1.0",
            "Python": "3.12.1",
            "system": "Linux",
            "NumPy": "2.4.6",
            "ONNX Runtime": "1.31.1",
        },
        wheels=(GPU_WHEEL,),
        damaged=(),
        parts={"": (), "cuda": (replace(CUDA_PART, version="12.1"),)},
        runtime=runtime,
        gpus=(CARD,),
        gpu_trouble=None,
        cores=4,
        memory=Memory(16_000_000_000, 9_000_000_000),
        disks={
            "temporary files": Disk(Path("/tmp"), 5_000_000_000),
            "the cache": Disk(Path("/cache"), None),
        },
    )
    return replace(facts, **changes)


def said(facts):
    return [str(finding) for finding in find_troubles(facts)]


def is_well(facts):
    return Checkup(facts, tuple(find_troubles(facts))).is_well


# --- what is wrong


@pytest.mark.parametrize(("asked", "device"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_where_all_is_well_nothing_is_said(asked, device):
    facts = make(asked)
    assert said(facts) == []
    assert facts.device == device


def test_a_machine_without_a_gpu_misses_nothing_unless_cuda_is_asked_for():
    missing = ("libcudart.so.13", "libcudnn.so.9")
    parts = {"cuda": (CUDA_PART,)}
    facts = make(trials=FAILS, driver=NO_DRIVER, missing=missing, parts=parts, gpus=())
    assert said(facts) == []
    assert facts.device == "cpu"
    assert said(replace(facts, asked="cuda")) == [
        f"Error: CUDA does not run: no NVIDIA driver is found (libcuda.so.1): {INSTALL_DRIVER}",
        "Error: CUDA does not run: libraries of CUDA cannot be loaded (libcudart.so.13, "
        "libcudnn.so.9): pip install 'spoco-zoo[cuda]'",
    ]
    assert replace(facts, asked="cuda").device is None


def test_a_gpu_that_is_not_used_is_a_warning_and_an_error_where_it_was_asked_for():
    facts = make(trials=FAILS, missing=["libcudnn.so.9"], parts={"cuda": (CUDA_PART,)})
    sentence = (
        "CUDA does not run: libraries of CUDA cannot be loaded (libcudnn.so.9): "
        "pip install 'spoco-zoo[cuda]'"
    )
    assert said(facts) == [f"Warning: {sentence}"]
    assert said(replace(facts, asked="cuda")) == [f"Error: {sentence}"]
    assert said(replace(facts, asked="cpu")) == []


@pytest.mark.parametrize(
    ("changes", "sentence", "mend"),
    [
        (
            {"missing": ["libcudnn.so.9"]},  # though pip says that it is installed
            "libraries of CUDA cannot be loaded (libcudnn.so.9)",
            "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'",
        ),
        (
            {"driver": Driver(None, True, 1, "12.4")},
            "the NVIDIA driver knows CUDA up to 12.4, and this ONNX Runtime was built for "
            "CUDA 13.0",
            f"{UPDATE}, or pip install 'onnxruntime-gpu[cuda,cudnn]<1.27', which was built for "
            "CUDA 12",
        ),
        (
            {"driver": Driver(None, True, 1, "11.4"), "cuda": "12.8"},
            "the NVIDIA driver knows CUDA up to 11.4, and this ONNX Runtime was built for "
            "CUDA 12.8",
            UPDATE,
        ),
        (
            {"driver": Driver("the NVIDIA driver finds no GPU that it can use (code 100)", True)},
            "the NVIDIA driver finds no GPU that it can use (code 100)",
            "restart the machine, install the driver anew (https://www.nvidia.com/drivers), or "
            "use --device cpu",
        ),
        (
            {},
            "libx.so cannot be loaded (liby.so)",
            f"{UPDATE}, or use --device cpu",
        ),
        (
            {"driver": None},
            "libx.so cannot be loaded (liby.so)",
            f"{UPDATE}, or use --device cpu",
        ),
        (
            {"trials": RUNS[:1], "wheels": (CPU_WHEEL,)},
            "ONNX Runtime (onnxruntime 1.30.0) was built without it",
            "pip uninstall -y onnxruntime, then pip install 'spoco-zoo[cuda]'",
        ),
    ],
)
def test_what_cuda_lacks_is_told_with_what_mends_it(changes, sentence, mend):
    assert explain_cuda(make("cuda", **{"trials": FAILS} | changes)) == [(sentence, mend)]


def test_a_gpu_that_the_environment_hides_is_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver = Driver("the NVIDIA driver finds no GPU that it can use (code 100)", True)
    assert explain_cuda(make(trials=FAILS, driver=driver)) == [
        (
            "the NVIDIA driver finds no GPU that it can use (code 100), and CUDA_VISIBLE_DEVICES "
            "is ''",
            "unset CUDA_VISIBLE_DEVICES, or use --device cpu",
        )
    ]


def test_a_system_without_cuda_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert explain_cuda(make(trials=RUNS[:1])) == [
        ("there is no ONNX Runtime with CUDA for Darwin on arm64", "use --device cpu")
    ]


def test_two_wheels_in_one_folder_are_an_error_though_one_may_run():
    facts = make(wheels=(CPU_WHEEL, GPU_WHEEL))
    assert said(facts) == [
        f"Error: onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1 are both installed in {SITE}, where "
        "the files of one lie over those of the other: pip uninstall -y onnxruntime "
        "onnxruntime-gpu, then pip install onnxruntime-gpu"
    ]
    assert not is_well(facts)


def test_a_folder_that_stands_before_the_installed_one_is_told():
    runtime = replace(make().runtime, folder="/here/onnxruntime")
    assert said(make(runtime=runtime)) == [
        "Warning: ONNX Runtime is imported out of /here/onnxruntime, where no installed package "
        "has put it: rename that folder if it is yours, or pip install --force-reinstall "
        "onnxruntime-gpu"
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"runtime": Runtime(broken="ImportError: no"), "wheels": ()},
            "ONNX Runtime is not installed: pip install onnxruntime-gpu",
        ),
        (
            {"runtime": Runtime(broken="ImportError: no")},
            "ONNX Runtime cannot be imported (ImportError: no): "
            "pip install --force-reinstall onnxruntime-gpu",
        ),
        (
            {
                "trials": [Trial(CPU, False, CPU, "it computes wrong numbers")],
                "gpus": (),
                "driver": None,
            },
            "ONNX Runtime does not run on the CPU (it computes wrong numbers): "
            "pip install --force-reinstall onnxruntime-gpu",
        ),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_without_a_working_onnx_runtime_nothing_works(asked, changes, sentence):
    facts = make(asked, **changes)
    assert said(facts) == [f"Error: {sentence}"]
    assert facts.device is None


def test_what_every_use_needs_is_named():
    parts = (
        Part("scipy", "scipy>=1.11", "1.10.0"),
        Part("hdbscan", "hdbscan>=0.8.40; python_version > '3'", None),
        Part("onnxruntime-gpu", "onnxruntime-gpu>=1.20", None),  # another wheel may do
    )
    facts = make(parts={"": parts})
    assert said(facts) == [
        'Error: hdbscan>=0.8.40 is needed and not installed: pip install "hdbscan>=0.8.40"',
        'Warning: scipy>=1.11 (there is 1.10.0) is needed: pip install "scipy>=1.11"',
    ]


def test_little_room_and_a_tool_in_trouble_are_warnings():
    facts = make(
        memory=Memory(2_000_000_000, 500_000_000, "container"),
        disks={
            "temporary files": Disk(Path("/t"), 100_000_000),
            "the cache": Disk(Path("/c"), 200_000_000),
        },
        gpu_trouble="nvidia-smi does not answer within 5 s",
        damaged=("/site/x.dist-info",),
    )
    assert said(facts) == [
        "Warning: /site/x.dist-info is damaged: it does not say which package it is of: install "
        "that package again, or delete this folder if it is not needed",
        "Warning: only 0.5 GB of memory are free: end other programs, or use a small --tile and "
        "--block",
        "Warning: only 0.1 GB are free for temporary files (/t): free space, or set TMPDIR to "
        "another folder",
        "Warning: only 0.2 GB are free for the cache (/c): free space, or set SPOCO_ZOO_CACHE to "
        "another folder",
        "Warning: nvidia-smi does not answer within 5 s: restart the machine, or update the "
        "driver (https://www.nvidia.com/drivers)",
    ]
    assert is_well(facts)


# --- what is told


def test_the_whole_page():
    package = PackageTrial(
        Path("mine"),
        "Mine",
        "cpu",
        None,
        "about 69 MB and 1379 MB for every megapixel",
        6.47,
        (64, 64),
    )
    parts = {"": (), "cuda": (CUDA_PART,), "train": (Part("torch", "torch>=2.6", "2.13.0"),)}
    trials = (*FAILS, Trial("OtherExecutionProvider", False, None, "no"))
    facts = make("cpu", trials=trials, missing=["liby.so"], parts=parts, package=package)
    assert describe(Checkup(facts, tuple(find_troubles(facts)))) == [
        "Versions",
        "  spoco-zoo: 0.1.0",
        f"  Python: 3.12.1 ({sys.executable})",
        "  system: Linux",
        "  NumPy: 2.4.6",
        "  ONNX Runtime: 1.31.1, built for CUDA 13.0",
        "  wheels of ONNX Runtime: onnxruntime-gpu 1.31.1",
        "Devices, each tried with two small networks",
        "  cpu: works (CPUExecutionProvider ran them, and the numbers are right)",
        "  cuda: does not work (libraries of CUDA cannot be loaded (liby.so))",
        "  OtherExecutionProvider, which spoco-zoo does not use: does not work (no)",
        "Machine, as far as this program may use it",
        "  cores: 4",
        "  memory: 16.0 GB, 9.0 GB free",
        "  GPU: NVIDIA A1, 80.0 GB of memory, 79.0 GB free, driver 590.10",
        "  free disk for temporary files: 5.0 GB (/tmp)",
        "  free disk for the cache: the system does not tell (/cache)",
        "Parts that are installed when wanted",
        "  cuda: not installed, nvidia-cufft~=12.0 missing: pip install 'spoco-zoo[cuda]'",
        "  train: installed",
        "Package mine",
        "  Mine: runs here, tried on the cpu with 64 x 64 pixels",
        "  memory: about 69 MB and 1379 MB for every megapixel",
        "  so about 6.5 megapixels of one piece fit into what is free",
        "",
        "What was asked for works: images run on the CPU.",
    ]


def test_what_nobody_knows_is_not_invented():
    package = PackageTrial(Path("mine"), "Mine", "cuda", piece=(16, 64, 64))
    facts = make(
        gpus=(Gpu("GB10", None, None, None),),
        memory=Memory(8_000_000_000, None, "ulimit"),
        parts={},
        package=package,
    )
    lines = describe(Checkup(facts, ()))
    assert "  GPU: GB10" in lines
    assert "  memory: 8.0 GB, as the ulimit limits it" in lines
    assert "  memory: nobody has measured what it takes" in lines
    assert "Parts that are installed when wanted" not in lines
    assert lines[-2:] == ["", "What was asked for works: images run on the GPU."]
    lines = describe(Checkup(replace(facts, gpus=(), memory=None), ()))
    assert "  GPU of NVIDIA: 1 found by the driver, which nvidia-smi does not name" in lines
    assert "  memory: the system does not tell" in lines


def test_without_onnx_runtime_the_page_says_so():
    facts = replace(make(), runtime=Runtime(broken="ImportError: no"), wheels=(), gpus=())
    facts = replace(facts, versions=dict.fromkeys(facts.versions) | {"Python": "3.12.1"})
    lines = describe(Checkup(facts, tuple(find_troubles(facts))))
    assert "  spoco-zoo: not installed, but run out of a folder" in lines
    assert "  NumPy: not installed" in lines
    assert "  ONNX Runtime: cannot be imported" in lines
    assert "  wheels of ONNX Runtime: none" in lines
    assert "  cpu: does not work" in lines
    assert "  GPU of NVIDIA: none" in lines
    assert lines[-2:] == [
        "Error: ONNX Runtime is not installed: pip install onnxruntime-gpu",
        "What was asked for does not work.",
    ]


# --- the command, in worlds of its own


BEYOND_BASE = (
    "torch onnx onnxscript bioimageio filelock matplotlib roifile tensorboard batchgeneratorsv2 "
    "h5py zarr"
)


def run(*words, path=(), variables=None):
    """Run the command as a process of its own, as if no extra were installed."""
    code = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({BEYOND_BASE!r}.split())\n"  # cannot be imported
        f"sys.path[:0] = {[str(p) for p in path]!r}\n"
        f"sys.argv = {['spoco-zoo', 'doctor', *map(str, words)]!r}\n"
        "from spoco_zoo import cli\n"
        "cli.main()\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)} | (variables or {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )


def fake_wheel(place, name, version):
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "RECORD").write_text("onnxruntime/__init__.py,,\n")


def test_here_images_run_and_the_facts_are_written(tmp_path):
    target = tmp_path / "facts.json"
    done = run("--device", "cpu", "--json", target)
    assert done.returncode == 0
    assert done.stdout.endswith("\nWhat was asked for works: images run on the CPU.\n")
    assert done.stderr == ""
    told = json.loads(target.read_text())
    assert (told["is_well"], told["device"], told["asked"]) == (True, "cpu", "cpu")
    assert {part["name"] for part in told["parts"]["base"]} >= {"numpy", "typer"}
    again = run("--json", target)
    assert again.returncode == 1
    assert again.stderr == (
        f"Error: {target}: exists already: choose another name or add --overwrite\n"
    )


@pytest.mark.skipif(find_gpu(), reason="a GPU is there")
def test_cuda_that_is_not_here_ends_with_1():
    done = run("--device", "cuda")
    assert done.returncode == 1
    assert done.stdout.endswith("\nWhat was asked for does not work.\n")
    assert "\nError: CUDA does not run: " in done.stdout


def test_two_wheels_are_found_where_they_lie(tmp_path):
    fake_wheel(tmp_path, "onnxruntime", "1.30.0")
    fake_wheel(tmp_path, "onnxruntime-gpu", "1.31.1")
    done = run("--device", "cpu", path=[tmp_path])
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Error: ")]
    assert f"are both installed in {tmp_path.resolve() / 'onnxruntime'}, where" in line
    wheel = name_wheel(sys.platform, os.uname().machine if hasattr(os, "uname") else "")
    assert line.endswith(f", then pip install {wheel}")


@pytest.fixture(scope="module")
def here():
    """The facts of this machine."""
    return examine(None, "cpu").facts


def test_a_package_of_ours_and_of_others_is_tried(here, tiny_package, make_stranger):
    for folder, name in ((tiny_package, "tiny"), (make_stranger(), "Stranger")):
        found = try_package(folder, here)
        assert found.name.lower().startswith(name.lower())
        assert (found.device, found.trouble, found.memory) == ("cpu", None, None)


def test_memory_is_told_as_the_package_has_it_measured(here, tiny_package, edit_rdf):
    def change(words):
        told = "about 100 MB and 500 MB for every megapixel of one piece, on the CPU"
        words["config"]["bioimageio"] = {"memory_requirements_inference": told}

    edit_rdf(tiny_package, change)
    facts = replace(here, memory=Memory(4_000_000_000, 1_100_000_000))
    found = try_package(tiny_package, facts)
    assert found.memory.startswith("about 100 MB and 500 MB for every megapixel")
    assert found.fits == 2.0
    assert try_package(tiny_package, replace(here, memory=None)).fits is None


def test_a_package_that_cannot_run_is_an_error(here, tmp_path, tiny_package):
    def errors(folder):
        facts = replace(here, package=try_package(folder, here))
        return [str(finding) for finding in find_troubles(facts) if finding.is_error]

    assert errors(tmp_path / "none") == [
        f"Error: {tmp_path / 'none'}: no such package: expected a folder or a zip"
    ]
    (tiny_package / "weights.onnx").write_bytes(b"damaged")
    (sentence,) = errors(tiny_package)
    assert sentence.startswith(f"Error: {tiny_package / 'weights.onnx'}: sha256 is ")


def test_a_package_is_not_tried_where_its_device_is_not():
    facts = make("cuda", trials=FAILS, missing=["liby.so"])
    facts = replace(facts, package=try_package(Path("mine"), facts))
    assert said(facts)[-1] == (
        "Error: mine: not tried, since the device that was asked for is not there: see above"
    )


def test_without_a_folder_for_temporary_files_nothing_can_be_found_out(monkeypatch):
    def fail():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    with pytest.raises(OutputError) as error:
        examine()
    assert str(error.value) == (
        "no folder for temporary files can be written: free space, or set TMPDIR to a folder that "
        "can"
    )
