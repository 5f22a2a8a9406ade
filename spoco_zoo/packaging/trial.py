"""A package that may be anybody's, proven anew on this machine.

Engines open TorchScript and bioimageio.core imports architecture files: both run code that the
package carries. So a package is only tried when its user has said where it comes from.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from spoco_zoo.archive import RDF_NAME, check_zip, read_description, read_member
from spoco_zoo.engines import pick_engines
from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.packaging.proof import Candidate, Proof, prove, read_candidate


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
    content = read_member(location, RDF_NAME) if location.is_dir() else location.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.strip().lower():
        what = f"{location / RDF_NAME}" if location.is_dir() else f"{location}"
        raise PackageError(
            f"{what}: sha256 is {found}, --sha256 says {sha256}: it is not the package that you "
            "mean; download it again"
        )


def try_package(
    location: Path,
    which: Literal["installed", "cached", "all"],
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Proof:
    """Prove a package, of which its user has vouched for (`check_trust`).

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
        try:
            candidate = read_candidate(folder)
        except PackageError:
            candidate = Candidate(
                folder,
                str(words.get("name")),
                {kind: "" for kind, entry in (words.get("weights") or {}).items() if entry},
                0,
                (),
                (),
                (),
                is_label=False,
            )
            engines = tuple(engine for engine in engines if engine.kind == "bioimageio")
        proof = prove(candidate, engines, on_stage=on_stage)
    there = {engine.name for engine in engines}
    proof.missing = [engine.name for engine in pick_engines("all") if engine.name not in there]
    return proof


def _unpack(location: Path, folder: Path) -> Path:
    """Unpack a zip that was looked over as a whole, file by file."""
    check_zip(location)
    folder.mkdir()
    with zipfile.ZipFile(location) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_member(location, name))
    return folder
