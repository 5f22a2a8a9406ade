"""A package that may be anybody's, proven anew on this machine.

Engines open TorchScript and bioimageio.core imports architecture files: both run code that the
package carries. So a package is only tried when its user has said where it comes from.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from spoco_zoo.archive import (
    RDF_NAME,
    check_zip,
    find_description,
    read_description,
    read_member,
    verify,
)
from spoco_zoo.engines import pick_engines
from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.lint import choose_consumers, lint_package
from spoco_zoo.packaging.proof import Candidate, Check, Proof, prove, read_candidate


def check_trust(location: Path, sha256: str | None, *, trust: bool) -> None:
    """Refuse a package that its user has not vouched for.

    Raises:
        PackageError: It is not there, or has another hash.
        SettingError: Neither a hash nor trust was given.
    """
    if not location.exists():
        raise PackageError(f"{location}: no such package: expected a folder or a zip")
    if sha256 is None:
        if not trust:
            raise SettingError(
                f"{location}: a test executes code of the package, and nobody has vouched for it: "
                "look where it comes from, then give its --sha256, or --trust"
            )
        return
    try:
        name = find_description(location)
        content = read_member(location, name) if location.is_dir() else location.read_bytes()
    except OSError as error:
        raise PackageError(
            f"{location}: cannot be read ({error.strerror}): look at its permissions"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.strip().lower():
        what = f"{location / name}" if location.is_dir() else f"{location}"
        raise PackageError(
            f"{what}: sha256 is {found}, --sha256 says {sha256}: it is not the package that you "
            "mean; download it again"
        )


def try_package(
    location: Path,
    which: Literal["installed", "cached", "all"],
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    is_hashed: bool = False,
) -> Proof:
    """Prove a package, of which its user has vouched for (`check_trust`).

    Weights and architecture files are those that the description states by their hashes. Where
    the user vouched with the hash of the description of a folder (`is_hashed`), files without one
    are refused, for nobody vouched for them.

    What the format describes otherwise than one image `(1, c, *space)` of any size is tried in
    bioimageio.core alone.

    Raises:
        PackageError: It is damaged or unsafe, or no engine opens it.
        MissingExtraError: An engine cannot be installed.
    """
    engines = pick_engines(which)
    for engine in engines:
        engine.install(on_stage)
    with tempfile.TemporaryDirectory(prefix="spoco-zoo-") as name:
        folder = _unpack(location, Path(name) / "package") if location.is_file() else location
        words = read_description(folder)
        _check_files(folder, words, is_hashed=is_hashed and location.is_dir())
        try:
            candidate = read_candidate(folder)
        except PackageError:
            candidate = Candidate(
                folder,
                str(words.get("name")),
                dict.fromkeys(_entries(words), ""),
                0,
                (),
                (),
                (),
                is_label=False,
            )
            engines = tuple(engine for engine in engines if engine.kind == "bioimageio")
        consumers = choose_consumers(folder)
        findings = [f for f in lint_package(folder, consumers) if f.severity == "error"]
        proof = prove(candidate, engines, on_stage=on_stage)
    for consumer in consumers:
        trouble = "; ".join(f.message for f in findings if f.consumer in (consumer, "format"))
        proof.checks.append(Check("description", consumer, 0.0, None, trouble))
    there = {engine.name for engine in engines}
    proof.missing = [engine.name for engine in pick_engines("all") if engine.name not in there]
    return proof


def _entries(words: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Weights by format, as far as they are described by words and values."""
    weights = words.get("weights")
    entries = weights.items() if isinstance(weights, dict) else ()
    return {str(kind): entry for kind, entry in entries if isinstance(entry, dict)}


def _check_files(folder: Path, words: Mapping[str, Any], *, is_hashed: bool) -> None:
    """Verify everything that engines may execute, before one of them is started."""
    for kind, entry in _entries(words).items():
        for part in (entry, entry.get("architecture"), entry.get("external_data")):
            if not isinstance(part, dict) or "source" not in part:
                continue
            inner = part["source"]  # newer writers nest the two
            stated = inner if isinstance(inner, dict) else part
            source, digest = stated.get("source"), stated.get("sha256")
            content = read_member(folder, str(source))
            if digest is not None:
                verify(folder, str(source), content, str(digest))
            elif is_hashed:
                raise PackageError(
                    f"{folder / RDF_NAME}: states no sha256 of {source} ({kind}), so the hash of "
                    "the description does not vouch for it: use the hash of a zip, or --trust"
                )


def _unpack(location: Path, folder: Path) -> Path:
    """Unpack a zip that was looked over as a whole, file by file."""
    check_zip(location)
    folder.mkdir()
    with zipfile.ZipFile(location) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    try:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_member(location, name))
    except OSError as error:
        raise PackageError(
            f"{location}: cannot be unpacked ({error.strerror}): free space, or look at its names"
        ) from error
    return folder
