"""What is found out of this machine: nothing is guessed, and what is not told is left out."""

import platform
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spoco_zoo import installation
from spoco_zoo.engines import engines_folder
from spoco_zoo.errors import OutputError, SpocoZooError
from spoco_zoo.installation import Part, Wheel
from spoco_zoo.machine import Disk, Gpu, Memory, count_cores, read_disk, read_gpus, read_memory
from spoco_zoo.providers import Runtime, try_providers

_MEASURED = re.compile(r"about (\d+) MB and (\d+) MB for every (megapixel|million voxels) of one")
_PIECE = {2: (64, 64), 3: (16, 64, 64)}  # pixels of a package's trial


@dataclass(frozen=True)
class Trial:
    """A package that was tried: on which device it ran, or why it did not."""

    location: Path
    name: str | None = None
    device: str | None = None
    trouble: str | None = None
    memory: str | None = None  # as its authors measured it
    fits: float | None = None  # million pixels in one piece, in the memory that is free
    piece: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What was found out; see `installation`, `machine` and `providers`."""

    asked: str
    versions: dict[str, str | None]
    wheels: tuple[Wheel, ...]
    damaged: tuple[str, ...]
    parts: dict[str, tuple[Part, ...]]
    runtime: Runtime
    gpus: tuple[Gpu, ...]
    gpu_trouble: str | None
    cores: int
    memory: Memory | None
    disks: dict[str, Disk]
    package: Trial | None = None

    @property
    def device(self) -> str | None:
        """Where images run if `--device` is what was asked for; None where they do not."""
        names = ("cuda", "cpu") if self.asked == "auto" else (self.asked,)
        trials = ((name, self.runtime.find(name)) for name in names)
        return next((name for name, trial in trials if trial and trial.runs), None)

    @property
    def has_gpu(self) -> bool:
        """Whether an NVIDIA GPU is there, whatever keeps it from being used."""
        driver = self.runtime.driver
        return bool(self.gpus or (driver and driver.devices))


def gather(package: Path | None = None, device: str = "auto") -> Facts:
    """Find out what works here.

    Args:
        package: Also open this package and run its network once.
        device: What is asked for: `cpu`, `cuda`, or `auto`, which takes what there is.

    Raises:
        OutputError: No folder for temporary files can be written.
    """
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:
        raise OutputError(
            "no folder for temporary files can be written: free space, or set TMPDIR to a folder "
            "that can"
        ) from error
    with ThreadPoolExecutor(2) as pool:  # both wait for other programs
        asked_gpus, asked_runtime = pool.submit(read_gpus), pool.submit(try_providers)
        wheels, damaged = installation.find_wheels()
        parts = installation.read_parts()
        (gpus, gpu_trouble), runtime = asked_gpus.result(), asked_runtime.result()
    facts = Facts(
        asked=device,
        versions={
            "spoco-zoo": installation.find_version(installation.OURS),
            "Python": platform.python_version(),
            "system": platform.platform(),
            "NumPy": installation.find_version("numpy"),
            "ONNX Runtime": runtime.version,
        },
        wheels=wheels,
        damaged=damaged,
        parts=parts,
        runtime=runtime,
        gpus=gpus,
        gpu_trouble=gpu_trouble,
        cores=count_cores(),
        memory=read_memory(),
        disks=_read_disks(temporary),
    )
    return facts if package is None else replace(facts, package=try_package(package, facts))


def _read_disks(temporary: Path) -> dict[str, Disk]:
    disks = {"temporary files": read_disk(temporary)}
    with suppress(RuntimeError):  # a user without a home has no cache
        disks["the cache"] = read_disk(engines_folder())
    return disks


def try_package(location: Path, facts: Facts) -> Trial:
    """Open a package and run its network on a small piece."""
    if facts.device is None:
        return Trial(
            location, trouble="not tried, since the device that was asked for is not there"
        )
    try:
        return _run_package(location, facts)
    except SpocoZooError as error:
        return Trial(location, trouble=str(error))
    except MemoryError:
        return Trial(location, trouble="its network does not fit into memory")


def _run_package(location: Path, facts: Facts) -> Trial:
    import numpy as np

    from spoco_zoo.foreign import ForeignPackage, is_foreign, load_foreign
    from spoco_zoo.package import Package, load_package
    from spoco_zoo.prediction import predict
    from spoco_zoo.session import EmbeddingSession, NetworkSession

    random = np.random.default_rng(0)
    package: Package | ForeignPackage
    if is_foreign(location):
        package = load_foreign(location)
        piece = _PIECE[package.n_axes]
        image = random.integers(0, 255, (package.channels, *piece), dtype=np.uint8)
        with NetworkSession(package, facts.asked) as network:
            predict(image, network)
            device = network.device
    else:
        package = load_package(location)
        pooled = zip(_PIECE[package.n_axes], package.config.multiple_of, strict=True)
        piece = tuple(-(-size // step) * step for size, step in pooled)
        pixels = random.normal(size=(package.channels, *piece)).astype(np.float32)
        with EmbeddingSession(package, facts.asked) as session:
            session.embed(pixels)
            device = session.device
    memory = _read_measured(package.location)
    fits = _find_fit(memory, facts.memory)
    return Trial(location, package.name, device, None, memory, fits, piece)


def _read_measured(location: Path) -> str | None:
    """What the description says of memory, if its authors measured it."""
    from spoco_zoo.archive import read_description

    words: Any = read_description(location)
    for name in ("config", "bioimageio", "memory_requirements_inference"):
        words = words.get(name) if isinstance(words, dict) else None
    return words if isinstance(words, str) and _MEASURED.match(words) else None


def _find_fit(memory: str | None, there: Memory | None) -> float | None:
    """Million pixels that fit into the free memory in one piece, on the CPU."""
    found = _MEASURED.match(memory or "")
    if found is None or there is None or there.free_bytes is None or not int(found[2]):
        return None
    return max(there.free_bytes / 1e6 - int(found[1]), 0.0) / int(found[2])
