"""What is wrong with the facts, each in one sentence, and what mends it."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spoco_zoo import installation
from spoco_zoo.doctor.facts import Facts
from spoco_zoo.installation import name_extra
from spoco_zoo.machine import say_size
from spoco_zoo.providers import Driver

_LITTLE = 1e9  # bytes of memory or disk that soon run out
_FIRST_CUDA_13 = "1.27"  # of onnxruntime-gpu; the one before was built for CUDA 12
_DRIVERS = "https://www.nvidia.com/drivers"


@dataclass(frozen=True)
class Finding:
    """Something wrong, and what mends it; an error keeps from working what was asked for."""

    sentence: str
    mend: str
    is_error: bool = False

    def __str__(self) -> str:
        """One line."""
        return f"{'Error' if self.is_error else 'Warning'}: {self.sentence}: {self.mend}"


def find_troubles(facts: Facts) -> Iterator[Finding]:
    """What is wrong with the facts, the worst first."""
    troubles = [
        *_check_wheels(facts),
        *_check_runtime(facts),
        *_check_cuda(facts),
        *_check_parts(facts),
        *_check_package(facts),
        *_check_room(facts),
    ]
    yield from sorted(troubles, key=lambda finding: not finding.is_error)


def _check_wheels(facts: Facts) -> Iterator[Finding]:
    wheel = _wanted_wheel()
    for clash in installation.find_clashes(facts.wheels):
        names = " and ".join(f"{w.name} {w.version}" for w in clash)
        removed = " ".join(dict.fromkeys(w.name for w in clash))
        yield Finding(
            f"{names} are both installed in {clash[0].folder}, where the files of one lie over "
            "those of the other",
            f"pip uninstall -y {removed}, then pip install {wheel}",
            is_error=True,
        )
    folder = facts.runtime.folder
    if folder is not None and Path(folder).resolve() not in {w.folder for w in facts.wheels}:
        yield Finding(
            f"ONNX Runtime is imported out of {folder}, where no installed package has put it",
            f"rename that folder if it is yours, or pip install --force-reinstall {wheel}",
        )
    for place in facts.damaged:
        yield Finding(
            f"{place} is damaged: it does not say which package it is of",
            "install that package again, or delete this folder if it is not needed",
        )


def _check_runtime(facts: Facts) -> Iterator[Finding]:
    """Whether images can run at all."""
    runtime = facts.runtime
    again = f"pip install --force-reinstall {_wanted_wheel()}"
    cpu = runtime.find("cpu")
    if not facts.wheels and runtime.broken:
        mend = f"pip install {_wanted_wheel()}"
        yield Finding("ONNX Runtime is not installed", mend, is_error=True)
    elif runtime.broken:
        sentence = f"ONNX Runtime cannot be imported ({runtime.broken})"
        yield Finding(sentence, again, is_error=True)
    elif cpu is None or not cpu.runs:
        reason = "it is not offered" if cpu is None else cpu.reason
        sentence = f"ONNX Runtime does not run on the CPU ({reason})"
        yield Finding(sentence, again, is_error=facts.asked != "cuda")


def _check_cuda(facts: Facts) -> Iterator[Finding]:
    """Why CUDA does not run; nobody misses it where there is no GPU and it was not asked for."""
    is_wanted = facts.asked == "cuda"
    if facts.runtime.broken or not (is_wanted or (facts.asked == "auto" and facts.has_gpu)):
        return
    for sentence, mend in explain_cuda(facts):
        yield Finding(f"CUDA does not run: {sentence}", mend, is_error=is_wanted)


def explain_cuda(facts: Facts) -> list[tuple[str, str]]:
    """Everything that CUDA lacks here, each with what mends it; nothing where it runs."""
    runtime = facts.runtime
    trial = runtime.find("cuda")
    if trial is None:
        return [_explain_wheel(facts)]
    if trial.runs:
        return []
    found = [] if runtime.driver is None else _explain_driver(runtime.driver, runtime.cuda)
    if runtime.missing_libraries:
        names = ", ".join(runtime.missing_libraries)
        is_there = not any(part.is_missing for part in facts.parts.get("cuda", ()))
        again = "--force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"
        mend = f"pip install {again if is_there else name_extra('cuda')}"
        found.append((f"libraries of CUDA cannot be loaded ({names})", mend))
    reason = trial.reason or "ONNX Runtime does not say why"
    return found or [(reason, f"update the driver ({_DRIVERS}), or use --device cpu")]


def _explain_wheel(facts: Facts) -> tuple[str, str]:
    wheel = _wanted_wheel()
    if wheel == "onnxruntime":
        system = f"{platform.system()} on {platform.machine()}"
        return f"there is no ONNX Runtime with CUDA for {system}", "use --device cpu"
    names = [f"{w.name} {w.version}" for w in facts.wheels]
    removed = " ".join(w.name for w in facts.wheels)
    return (
        f"ONNX Runtime ({', '.join(names)}) was built without it",
        f"pip uninstall -y {removed}, then pip install {name_extra('cuda')}",
    )


def _explain_driver(driver: Driver, built_for: str | None) -> list[tuple[str, str]]:
    if not driver.is_there:
        mend = (
            f"install the driver of the GPU ({_DRIVERS}); start a container with its GPU "
            "(docker run --gpus all); or use --device cpu"
        )
        return [(str(driver.trouble), mend)]
    if driver.trouble:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is None:
            mend = f"restart the machine, install the driver anew ({_DRIVERS}), or use --device cpu"
            return [(driver.trouble, mend)]
        sentence = f"{driver.trouble}, and CUDA_VISIBLE_DEVICES is {hidden!r}"
        return [(sentence, "unset CUDA_VISIBLE_DEVICES, or use --device cpu")]
    known, wanted = (_major(version) for version in (driver.cuda, built_for))
    if known is None or wanted is None or known >= wanted:
        return []
    mend = f"update the driver ({_DRIVERS})"
    if known == 12 and wanted == 13:
        older = f"'onnxruntime-gpu[cuda,cudnn]<{_FIRST_CUDA_13}'"
        mend += f", or pip install {older}, which was built for CUDA 12"
    return [
        (
            f"the NVIDIA driver knows CUDA up to {driver.cuda}, and this ONNX Runtime was built "
            f"for CUDA {built_for}",
            mend,
        )
    ]


def _check_parts(facts: Facts) -> Iterator[Finding]:
    """What every use needs; ONNX Runtime comes in several wheels and is tried instead."""
    missing = [p for p in facts.parts.get("", ()) if p.is_missing and "onnxruntime" not in p.name]
    for part in missing:
        yield Finding(
            f"{part} is needed and not installed" if part.version is None else f"{part} is needed",
            f'pip install "{part.wanted.split(";")[0].strip()}"',
            is_error=part.version is None,
        )


def _check_package(facts: Facts) -> Iterator[Finding]:
    package = facts.package
    if package is not None and package.trouble is not None:
        sentence, _, mend = package.trouble.rpartition(": ")
        if not sentence:
            sentence, mend = package.trouble, "see above"
        place = "" if sentence.startswith(str(package.location)) else f"{package.location}: "
        yield Finding(f"{place}{sentence}", mend, is_error=True)


def _check_room(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    if memory is not None and memory.free_bytes is not None and memory.free_bytes < _LITTLE:
        yield Finding(
            f"only {say_size(memory.free_bytes)} of memory are free",
            "end other programs, or use a small --tile and --block",
        )
    for purpose, disk in facts.disks.items():
        if disk.free_bytes is not None and disk.free_bytes < _LITTLE:
            variable = "TMPDIR" if purpose == "temporary files" else "SPOCO_ZOO_CACHE"
            yield Finding(
                f"only {say_size(disk.free_bytes)} are free for {purpose} ({disk.folder})",
                f"free space, or set {variable} to another folder",
            )
    if facts.gpu_trouble is not None:
        yield Finding(facts.gpu_trouble, f"restart the machine, or update the driver ({_DRIVERS})")


def _major(version: str | None) -> int | None:
    first = (version or "").split(".")[0]
    return int(first) if first.isdecimal() else None


def _wanted_wheel() -> str:
    return installation.name_wheel(sys.platform, platform.machine())
