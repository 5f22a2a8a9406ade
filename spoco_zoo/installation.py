"""What is installed: distributions by their metadata, without importing what they bring.

All wheels of ONNX Runtime bring the one folder `onnxruntime`. Where two are installed into the
same place, the files of one lie over those of the other, and removing one breaks the other.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OURS = "spoco-zoo"
_WHEEL = re.compile(r"(onnxruntime|ort)(-.+)?")
_FOLDER = "onnxruntime"
_OTHER_FOLDERS = {"onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-genai-cuda"}
_DEVELOPMENT = "dev"  # the extra for those who change spoco-zoo

# of importlib.metadata, or of its backport importlib_metadata, which takes over wherever some
# library imports it
Installed = Any


@dataclass(frozen=True)
class Wheel:
    """A distribution that brings ONNX Runtime, and the folder that it brings it into."""

    name: str
    version: str
    folder: Path


@dataclass(frozen=True)
class Part:
    """A requirement: what is wanted, and what of it is installed."""

    name: str
    wanted: str
    version: str | None

    @property
    def is_missing(self) -> bool:
        """Whether it is not installed, or in a version that is not wanted."""
        return self.version is None or not Requirement(self.wanted).specifier.contains(
            self.version, prereleases=True
        )

    def __str__(self) -> str:
        """The requirement, and what is there instead."""
        wanted = f"{self.name}{Requirement(self.wanted).specifier}"
        return wanted if self.version is None else f"{wanted} (there is {self.version})"


def find_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed, or damaged."""
    with suppress(Exception):  # damaged metadata fails in any way
        return str(distribution(name).version or "") or None
    return None


def find_wheels() -> tuple[tuple[Wheel, ...], tuple[str, ...]]:
    """Find all wheels of ONNX Runtime, and distributions whose metadata is damaged.

    Returns:
        The wheels, that which is imported first; and folders of damaged metadata.
    """
    wheels: dict[tuple[str, Path], Wheel] = {}
    damaged = []
    for found in distributions():
        place = str(getattr(found, "_path", "unknown"))
        try:
            name = canonicalize_name(found.metadata["Name"])
            version = str(found.version)
        except Exception:  # noqa: BLE001 - damaged metadata fails in any way
            damaged.append(place)
            continue
        if _WHEEL.fullmatch(name) and name not in _OTHER_FOLDERS and _brings_runtime(found):
            folder = Path(str(found.locate_file(_FOLDER))).resolve()
            wheels.setdefault((name, folder), Wheel(name, version, folder))
    return tuple(wheels.values()), tuple(dict.fromkeys(damaged))


def find_clashes(wheels: tuple[Wheel, ...]) -> tuple[tuple[Wheel, ...], ...]:
    """Wheels that were installed into one folder."""
    folders = dict.fromkeys(wheel.folder for wheel in wheels)
    groups = (tuple(w for w in wheels if w.folder == folder) for folder in folders)
    return tuple(group for group in groups if len(group) > 1)


def read_parts() -> dict[str, tuple[Part, ...]]:
    """What spoco-zoo needs, by extra; under an empty name what every use of it needs.

    It is empty where spoco-zoo is not installed, but run out of a folder.
    """
    try:
        own = distribution(OURS)
        extras = own.metadata.get_all("Provides-Extra") or []
    except Exception:  # noqa: BLE001 - damaged metadata fails in any way
        return {}
    names = ["", *(extra for extra in extras if extra != _DEVELOPMENT)]
    return {name: _read_extra(own, name) for name in names}


def name_wheel(platform: str = sys.platform, machine: str = "") -> str:
    """The wheel of ONNX Runtime that spoco-zoo installs here, which one with CUDA is if it can.

    Args:
        platform: As `sys.platform` says it.
        machine: As `platform.machine()` says it.
    """
    has_cuda = platform == "win32" or (platform == "linux" and machine == "x86_64")
    return "onnxruntime-gpu" if has_cuda else "onnxruntime"


def name_extra(extra: str) -> str:
    """An extra as pip is to be told it."""
    return f"'{OURS}[{extra}]'"


def _brings_runtime(found: Installed) -> bool:
    names = found.files
    # without a list of files its name is believed
    return names is None or any(file.parts[:2] == (_FOLDER, "__init__.py") for file in names)


def _read_extra(own: Installed, extra: str) -> tuple[Part, ...]:
    parts = {}
    for wanted in _walk(own, extra, set()):
        if canonicalize_name(wanted.name) != OURS:
            parts[str(wanted)] = Part(wanted.name, str(wanted), find_version(wanted.name))
    return tuple(parts.values())


def _walk(own: Installed, extra: str, seen: set[tuple[str, str]]) -> Iterator[Requirement]:
    """Requirements of an extra, and of the extras that they ask for in turn."""
    for line in own.requires or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        marker = wanted.marker
        is_general = marker is None or marker.evaluate({"extra": ""})
        if is_general != (extra == "") or not (marker is None or marker.evaluate({"extra": extra})):
            continue
        yield wanted
        for more in sorted(wanted.extras):
            if (wanted.name, more) not in seen:
                seen.add((wanted.name, more))
                with suppress(PackageNotFoundError):
                    yield from _walk(distribution(wanted.name), more, seen)
