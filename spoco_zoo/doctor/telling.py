"""The facts and what is wrong with them, as lines of text and for programs."""

import json
import sys
from dataclasses import asdict, dataclass

from spoco_zoo.doctor.facts import Facts, Trial
from spoco_zoo.doctor.troubles import Finding, explain_cuda
from spoco_zoo.installation import name_extra
from spoco_zoo.machine import say_size
from spoco_zoo.providers import DEVICES


@dataclass(frozen=True)
class Checkup:
    """The facts and what is wrong with them."""

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether what was asked for works."""
        return not any(finding.is_error for finding in self.findings)

    def to_json(self) -> str:
        """Everything that was found out, for programs."""
        facts = self.facts
        words = asdict(facts) | {
            "is_well": self.is_well,
            "device": facts.device,
            "findings": [asdict(finding) for finding in self.findings],
            "parts": {
                name or "base": [asdict(p) | {"is_missing": p.is_missing} for p in parts]
                for name, parts in facts.parts.items()
            },
        }
        return json.dumps(words, indent=1, default=str)


def describe(checkup: Checkup) -> list[str]:
    """The checkup as lines of text."""
    facts = checkup.facts
    lines = [*_tell_versions(facts), *_tell_devices(facts), *_tell_machine(facts)]
    lines += _tell_parts(facts)
    if facts.package is not None and facts.package.trouble is None:
        lines += _tell_package(facts.package)
    lines += ["", *map(str, checkup.findings)] if checkup.findings else [""]
    if checkup.is_well:
        place = {"cpu": "the CPU", "cuda": "the GPU"}[facts.device or "cpu"]
        return [*lines, f"What was asked for works: images run on {place}."]
    return [*lines, "What was asked for does not work."]


def _tell_versions(facts: Facts) -> list[str]:
    told = facts.versions
    built = f", built for CUDA {facts.runtime.cuda}" if facts.runtime.cuda else ""
    wheels = ", ".join(f"{w.name} {w.version}" for w in facts.wheels) or "none"
    ours = told["spoco-zoo"] or "not installed, but run out of a folder"
    return [
        "Versions",
        f"  spoco-zoo: {ours}",
        f"  Python: {told['Python']} ({sys.executable})",
        f"  system: {told['system']}",
        f"  NumPy: {told['NumPy'] or 'not installed'}",
        f"  ONNX Runtime: {told['ONNX Runtime'] or 'cannot be imported'}{built}",
        f"  wheels of ONNX Runtime: {wheels}",
    ]


def _tell_devices(facts: Facts) -> list[str]:
    lines = ["Devices, each tried with two small networks"]
    for device in DEVICES:
        trial = facts.runtime.find(device)
        if trial is not None and trial.runs:
            lines.append(f"  {device}: works ({trial.got} ran them, and the numbers are right)")
        elif device == "cuda" and not facts.runtime.broken:
            lines.append(f"  cuda: does not work ({explain_cuda(facts)[0][0]})")
        else:
            lines.append(f"  {device}: does not work")
    for trial in facts.runtime.trials:
        if trial.name not in DEVICES.values():
            state = "works" if trial.runs else f"does not work ({trial.reason})"
            lines.append(f"  {trial.name}, which spoco-zoo does not use: {state}")
    return lines


def _tell_machine(facts: Facts) -> list[str]:
    lines = ["Machine, as far as this program may use it", f"  cores: {facts.cores}"]
    if facts.memory is None:
        lines.append("  memory: the system does not tell")
    else:
        memory = facts.memory
        limit = f", as the {memory.limited_by} limits it" if memory.limited_by else ""
        free = "" if memory.free_bytes is None else f", {say_size(memory.free_bytes)} free"
        lines.append(f"  memory: {say_size(memory.total_bytes)}{limit}{free}")
    for gpu in facts.gpus:
        sizes = [(gpu.total_bytes, "of memory"), (gpu.free_bytes, "free")]
        told = [f"{say_size(size)} {word}" for size, word in sizes if size is not None]
        told += [f"driver {gpu.driver}"] if gpu.driver else []
        lines.append(f"  GPU: {', '.join((gpu.name, *told))}")
    if not facts.gpus:
        driver = facts.runtime.driver
        count = driver.devices if driver else 0
        found = f"{count} found by the driver, which nvidia-smi does not name" if count else "none"
        lines.append(f"  GPU of NVIDIA: {found}")
    for purpose, disk in facts.disks.items():
        size = "the system does not tell" if disk.free_bytes is None else say_size(disk.free_bytes)
        lines.append(f"  free disk for {purpose}: {size} ({disk.folder})")
    return lines


def _tell_parts(facts: Facts) -> list[str]:
    lines = ["Parts that are installed when wanted"]
    for extra, parts in facts.parts.items():
        if not extra:
            continue
        missing = [str(part) for part in parts if part.is_missing]
        state = f"not installed, {', '.join(missing)} missing: pip install {name_extra(extra)}"
        lines.append(f"  {extra}: {state if missing else 'installed'}")
    return lines if len(lines) > 1 else []


def _tell_package(package: Trial) -> list[str]:
    is_flat = len(package.piece) == 2
    unit, pixels = ("pixels", "megapixels") if is_flat else ("voxels", "million voxels")
    size = " x ".join(map(str, package.piece))
    lines = [
        f"Package {package.location}",
        f"  {package.name}: runs here, tried on the {package.device} with {size} {unit}",
    ]
    if package.memory is None:
        return [*lines, "  memory: nobody has measured what it takes"]
    lines.append(f"  memory: {package.memory}")
    if package.fits is not None and package.device == "cpu":
        lines.append(f"  so about {package.fits:.1f} {pixels} of one piece fit into what is free")
    return lines
