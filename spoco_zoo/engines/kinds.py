"""The engines: what each is called, whether it is there, how to get it, how to start it."""

import platform
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from spoco_zoo.engines import cache
from spoco_zoo.engines.child import run_child
from spoco_zoo.errors import MissingExtraError

NODE = "Node.js 18 or newer, with npm"
PIP = ("-I", "-m", "pip", "--quiet", "--disable-pip-version-check")
RUNNERS = Path(__file__).resolve().parent / "runners"
DOWNLOAD_TIME = 3600.0  # seconds that one step of an installation may take
LIBTORCH = "2.0.0"
# the wheel of PyTorch is built for CUDA, and its part for the CPU is linked with these two
LIBTORCH_WHEELS = (
    f"torch=={LIBTORCH}",
    "nvidia-cuda-runtime-cu11==11.7.99",
    "nvidia-cuda-cupti-cu11==11.7.101",
)
LIBTORCH_PARTS = (
    "torch/include/",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp",
    "nvidia/cuda_runtime/lib/lib",
    "nvidia/cuda_cupti/lib/lib",
)


@runtime_checkable
class Engine(Protocol):
    """A program that opens the weights of a package."""

    @property
    def name(self) -> str:
        """What people call it, with its version."""

    @property
    def version(self) -> str:
        """What it says of itself when it runs."""

    @property
    def kind(self) -> Literal["onnx", "torchscript", "bioimageio"]:
        """What it opens."""

    @property
    def from_cache(self) -> bool:
        """Whether it is kept in the cache, or else is part of this Python."""

    def find(self) -> bool:
        """Whether it is there."""

    def install(self, on_stage: Callable[[str], None]) -> None:
        """Get it unless it is there, telling what is being done.

        Raises:
            MissingExtraError: A program, the network or a part of this Python is missing.
            OutputError: The disk refuses it.
        """

    def command(self) -> tuple[str, ...]:
        """The words that start it, before those that say on what."""


@dataclass(frozen=True)
class OfThisPython:
    """An engine that is installed beside this package: ONNX Runtime or PyTorch."""

    label: str
    kind: Literal["onnx", "torchscript"]
    module: str
    distributions: tuple[str, ...]
    install_words: str
    from_cache: Literal[False] = False

    @property
    def version(self) -> str:
        """As its distribution says."""
        for distribution in self.distributions:
            try:
                return version(distribution).partition("+")[0]
            except PackageNotFoundError:
                continue
        return ""

    @property
    def name(self) -> str:
        """With the word that tells it from those of the cache."""
        return f"{self.label} {self.version} (installed)" if self.version else self.label

    def find(self) -> bool:
        """Whether it can be imported here."""
        return find_spec(self.module) is not None

    def install(self, on_stage: Callable[[str], None]) -> None:
        """Say how to install it: a program does not change the Python that it runs in."""
        if not self.find():
            raise MissingExtraError(f"{self.label} is not installed: {self.install_words}")

    def command(self) -> tuple[str, ...]:
        """This Python, and its runner."""
        return (sys.executable, "-P", str(RUNNERS / f"run_{self.kind}.py"))


@dataclass(frozen=True)
class NodeOnnxRuntime:
    """ONNX Runtime of a version that no Python of today can install, in Node.js."""

    version: str
    kind: Literal["onnx"] = "onnx"
    from_cache: Literal[True] = True

    @property
    def name(self) -> str:
        """The library, not its host."""
        return f"ONNX Runtime {self.version}"

    @property
    def item(self) -> cache.Item:
        """Its place in the cache."""
        place = f"onnxruntime-{self.version}-{sys.platform}-{platform.machine().lower()}"
        return cache.Item(place, (f"onnxruntime-node@{self.version}",))

    def find(self) -> bool:
        """Whether it is in the cache, and Node.js is here."""
        return cache.find(self.item) is not None and shutil.which("node") is not None

    def install(self, on_stage: Callable[[str], None]) -> None:
        """Get it by npm."""

        def fill(folder: Path) -> None:
            npm, node = _program("npm", self.name, NODE), _program("node", self.name, NODE)
            on_stage(f"{self.name}: downloading 30 MB")
            flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder)
            _step(self.name, [npm, "install", *flags, *self.item.recipe], folder)
            _keep_one_platform(folder, node)
            _introduce(self, self._start(node, folder), folder)

        if not self.find():
            _program("node", self.name, NODE)
            cache.make(self.item, fill, on_stage)

    def command(self) -> tuple[str, ...]:
        """Node.js, our runner, and where the library is."""
        return self._start("node", engines_place(self.item))

    def _start(self, node: str, folder: Path) -> tuple[str, ...]:
        return (node, str(RUNNERS / "run_onnx.js"), str(folder))


@dataclass(frozen=True)
class Libtorch:
    """The C++ library of PyTorch of a version that Java programs bring, with a runner of ours."""

    version: str = LIBTORCH
    kind: Literal["torchscript"] = "torchscript"
    from_cache: Literal[True] = True

    @property
    def name(self) -> str:
        """The library."""
        return f"libtorch {self.version}"

    @property
    def item(self) -> cache.Item:
        """Its place in the cache; another runner makes it another engine."""
        source = (RUNNERS / "run_torchscript.cpp").read_text(encoding="utf-8")
        return cache.Item(f"libtorch-{self.version}", (*LIBTORCH_WHEELS, source))

    def find(self) -> bool:
        """Whether it is in the cache."""
        return cache.find(self.item) is not None

    def install(self, on_stage: Callable[[str], None]) -> None:
        """Get the wheels, keep what the CPU needs, and build the runner."""

        def fill(folder: Path) -> None:
            compiler = _program("g++", self.name, "a C++17 compiler")
            on_stage(f"{self.name}: downloading 630 MB")
            wheels = folder / "wheels"
            target = ("--platform", "manylinux1_x86_64", "--platform", "manylinux2014_x86_64")
            words = ("--no-deps", "--no-cache-dir", "--python-version", "311", *target)
            download = (*PIP, "download", *words, "--only-binary=:all:", "-d", wheels)
            _step(self.name, [sys.executable, *download, *LIBTORCH_WHEELS], folder)
            on_stage(f"{self.name}: unpacking")
            for wheel in wheels.glob("*.whl"):
                with zipfile.ZipFile(wheel) as file:
                    names = [n for n in file.namelist() if n.startswith(LIBTORCH_PARTS)]
                    file.extractall(folder, names)
            shutil.rmtree(wheels)
            on_stage(f"{self.name}: building the runner")
            _step(self.name, [compiler, *_compiler_words(folder)], folder)
            shutil.rmtree(folder / "torch" / "include")
            _introduce(self, (str(folder / "run"),), folder)

        if self.find():
            return
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise MissingExtraError(
                f"{self.name} is had for Linux on x86-64 only, and this is {sys.platform} on "
                f"{platform.machine()}: prove the package on another machine"
            )
        cache.make(self.item, fill, on_stage)

    def command(self) -> tuple[str, ...]:
        """The runner that was built."""
        return (str(engines_place(self.item) / "run"),)


@dataclass(frozen=True)
class Core:
    """bioimageio.core of one version, in a virtual environment of its own.

    Its dependencies are the newest that it allows. PyTorch is that of this Python.
    """

    version: str
    kind: Literal["bioimageio"] = "bioimageio"
    from_cache: Literal[True] = True

    @property
    def name(self) -> str:
        """The library."""
        return f"bioimageio.core {self.version}"

    @property
    def needs(self) -> tuple[str, ...]:
        """What pip is asked for."""
        # pydantic 2.14 broke every bioimageio.spec that these versions of core ask for
        return (f"bioimageio.core=={self.version}", "pydantic<2.14", "onnxruntime")

    @property
    def item(self) -> cache.Item:
        """Its place in the cache: one for each version of Python, which share PyTorch with it."""
        place = f"bioimageio.core-{self.version}-{sys.implementation.cache_tag}"
        return cache.Item(place, (*self.needs, sys.base_prefix))

    def find(self) -> bool:
        """Whether it is in the cache, and PyTorch is here."""
        return cache.find(self.item) is not None and find_spec("torch") is not None

    def install(self, on_stage: Callable[[str], None]) -> None:
        """Get it by pip."""

        def fill(folder: Path) -> None:
            on_stage(f"{self.name}: making a virtual environment")
            _step(self.name, [sys.executable, "-m", "venv", folder], folder)
            on_stage(f"{self.name}: downloading 150 MB")
            words = (*PIP, "install", "--no-compile", *self.needs)
            _step(self.name, [self._python(folder), *words], folder)
            _introduce(self, self._start(folder), folder)

        if self.find():
            return
        if find_spec("torch") is None:
            raise MissingExtraError(f"{self.name} needs PyTorch: pip install 'spoco-zoo[train]'")
        cache.make(self.item, fill, on_stage)

    def command(self) -> tuple[str, ...]:
        """Its Python, our runner, and where PyTorch is."""
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise MissingExtraError(f"{self.name} needs PyTorch: pip install 'spoco-zoo[train]'")
        place = Path(torch.origin).resolve().parent.parent
        return (*self._start(engines_place(self.item)), str(place))

    def _start(self, folder: Path) -> tuple[str, ...]:
        return (str(self._python(folder)), "-I", str(RUNNERS / "run_core.py"))

    def _python(self, folder: Path) -> Path:
        return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


# what Fiji brings (ONNX Runtime 1.12.1 or 1.13.1, and libtorch), then ilastik (core 0.10.2)
ENGINES: tuple[Engine, ...] = (
    OfThisPython(
        "ONNX Runtime",
        "onnx",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install spoco-zoo",
    ),
    NodeOnnxRuntime("1.12.1"),
    NodeOnnxRuntime("1.13.1"),
    OfThisPython("PyTorch", "torchscript", "torch", ("torch",), "pip install 'spoco-zoo[train]'"),
    Libtorch(),
    Core("0.9.6"),
    Core("0.10.2"),
    Core("0.10.4"),
    Core("0.11.0"),
)


def pick_engines(which: Literal["all", "installed", "cached"]) -> tuple[Engine, ...]:
    """All engines, those of this Python, or all that are there now."""
    if which == "all":
        return ENGINES
    if which == "installed":
        return tuple(engine for engine in ENGINES if not engine.from_cache and engine.find())
    return tuple(engine for engine in ENGINES if engine.find())


def engines_place(item: cache.Item) -> Path:
    """Where an item of the cache is, or would be."""
    return cache.engines_folder() / item.folder


def _program(word: str, name: str, what: str) -> str:
    """The path of a program that has to be here."""
    found = shutil.which(word)
    if found is None:
        raise MissingExtraError(f"{name} needs {word}, which is not installed: install {what}")
    return found


def _step(name: str, words: Sequence[str | Path], folder: Path) -> None:
    """Run one step of an installation."""
    ending = run_child(words, folder, timeout=DOWNLOAD_TIME)
    if ending.trouble is not None:
        raise MissingExtraError(
            f"{name} cannot be installed ({ending.trouble}): look at the network and try again"
        )


def _introduce(engine: Engine, words: Sequence[str], folder: Path) -> None:
    """Start an engine that was just put together, and hear that it is the one that is meant."""
    ending = run_child(words, folder, timeout=300.0)
    heard = ending.lines[-1] if ending.lines else {}
    if ending.trouble is not None or heard.get("engine") != engine.version:
        said = heard.get("error") or ending.trouble or f"it says it is {heard.get('engine')}"
        raise MissingExtraError(
            f"{engine.name} does not start on this machine ({said}): prove the package on another"
        )


def _keep_one_platform(folder: Path, node: str) -> None:
    """Remove the libraries of other systems, which are four fifths of the download."""
    asked = "JSON.stringify({ place: `${process.platform}/${process.arch}` })"
    ending = run_child([node, "-p", asked], folder, timeout=60.0)
    here = ending.lines[0]["place"] if ending.lines else ""
    for place in (folder / "node_modules" / "onnxruntime-node" / "bin").glob("*/*/*"):
        if here and place.is_dir() and "/".join(place.parts[-2:]) != here:
            shutil.rmtree(place)


def _compiler_words(folder: Path) -> list[str | Path]:
    include, libraries = folder / "torch" / "include", folder / "torch" / "lib"
    return [
        *("-std=c++17", "-O1", "-D_GLIBCXX_USE_CXX11_ABI=0"),  # as the wheel was built
        *("-I", include, "-I", include / "torch" / "csrc" / "api" / "include"),
        RUNNERS / "run_torchscript.cpp",
        *("-o", folder / "run", "-L", libraries, "-Wl,-rpath,$ORIGIN/torch/lib"),
        *("-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"),
        # the libraries name what they need by their own folders
        *("-Wl,--allow-shlib-undefined", "-Wl,--unresolved-symbols=ignore-in-shared-libs"),
    ]
