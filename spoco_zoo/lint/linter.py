"""Read a package, and ask the rules of each program what they find."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from spoco_zoo.archive import read_description
from spoco_zoo.lint.bioimageio_core import check_bioimageio_core
from spoco_zoo.lint.consistency import check_format
from spoco_zoo.lint.description import parse_description
from spoco_zoo.lint.evidence import Evidence, find_package, gather
from spoco_zoo.lint.finding import CONSUMERS, Consumer, Finding
from spoco_zoo.lint.ilastik import check_ilastik
from spoco_zoo.lint.jdll import check_jdll
from spoco_zoo.lint.qupath import INSTANSEG, check_qupath

_RULES: Mapping[Consumer, Callable[[Evidence], Iterator[Finding]]] = {
    "JDLL": check_jdll,
    "ilastik": check_ilastik,
    "QuPath": check_qupath,
    "bioimageio.core": check_bioimageio_core,
}


def choose_consumers(location: Path | str) -> tuple[Consumer, ...]:
    """Choose the programs that a package is for by what its network gives.

    Labels are for JDLL, or QuPath where the file is there that it opens, since it wants a pixel
    size that JDLL takes for a ratio; boundary maps are for ilastik; embeddings are for
    bioimageio.core, and JDLL at least must load them. Whatever it is, bioimageio.core is what the
    zoo tests it with.

    Raises:
        PackageError: The package is missing, damaged or unsafe.
    """
    location = find_package(location)
    description = parse_description(read_description(location))
    if isinstance(description, list):
        return ("bioimageio.core",)
    package = gather(location, description)
    labels = len(package.labels) > 0
    qupath = labels and package.holds(INSTANSEG)
    maps = any(output.is_maps for output in description.outputs)
    wanted = {
        "JDLL": (labels or not maps) and not qupath,
        "ilastik": maps,
        "QuPath": qupath,
        "bioimageio.core": True,
    }
    return tuple(consumer for consumer in CONSUMERS if wanted[consumer])


def lint_package(location: Path | str, consumers: Collection[Consumer]) -> list[Finding]:
    """Find what keeps a package from working in these programs: a folder, a zip or an rdf.yaml.

    What contradicts the format is found whatever they are.

    Raises:
        PackageError: The package is missing, damaged or unsafe.
    """
    location = find_package(location)
    description = parse_description(read_description(location))
    if isinstance(description, list):
        return description
    package = gather(location, description)
    findings = list(check_format(package))
    for consumer in CONSUMERS:
        if consumer in consumers:
            findings += _RULES[consumer](package)
    return findings
