"""Where engines are kept, and how one gets there: whole or not at all.

An engine is put together in a hidden folder beside its own and renamed when it is complete. Its
`engine.json` says what it was made from: where that differs from what is wanted now, the engine
counts as missing and is made anew.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spoco_zoo.errors import MissingExtraError, OutputError

MARK = "engine.json"
LONGEST_WAIT = 3600.0  # seconds for another installation to end


@dataclass(frozen=True)
class Item:
    """A folder of the cache: its name, and what it is made from."""

    folder: str
    recipe: tuple[str, ...]


def engines_folder() -> Path:
    """The folder of the engines, which need not exist: in SPOCO_ZOO_CACHE or the user's cache."""
    own = os.environ.get("SPOCO_ZOO_CACHE")
    if own:
        return Path(own).expanduser().absolute() / "engines"
    places = {
        "win32": ("LOCALAPPDATA", "~/AppData/Local"),
        "darwin": ("XDG_CACHE_HOME", "~/Library/Caches"),
    }
    variable, otherwise = places.get(sys.platform, ("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get(variable) or otherwise).expanduser()
    return home.absolute() / "spoco-zoo" / "engines"


def find(item: Item) -> Path | None:
    """The folder of an item that is complete and made from what is wanted now."""
    folder = engines_folder() / item.folder
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if mark == {"recipe": list(item.recipe)} else None


def make(item: Item, fill: Callable[[Path], None], on_stage: Callable[[str], None]) -> None:
    """Put an item into the cache unless it is there; of two at once, the second waits.

    Args:
        item: What to make.
        fill: Puts everything into the empty folder that it is given, or raises.
        on_stage: Is told what is being waited for.

    Raises:
        MissingExtraError: The lock needs filelock, which is not installed.
        OutputError: The disk refuses it, or another installation does not end.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise MissingExtraError(
            "installing engines needs filelock: pip install 'spoco-zoo[train]'"
        ) from error
    root = engines_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{item.folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_stage(f"waiting for another installation of {item.folder}")
            lock.acquire(timeout=LONGEST_WAIT)
        try:
            if find(item) is None:
                _make_locked(root, item, fill)
        finally:
            lock.release()
    except Timeout as error:
        raise OutputError(
            f"{root / item.folder}: another process has been installing it for "
            f"{LONGEST_WAIT / 60:.0f} minutes: wait for it or end it"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{root}: cannot be written ({error.strerror or error}): "
            "free space or set SPOCO_ZOO_CACHE to another folder"
        ) from error


def _make_locked(root: Path, item: Item, fill: Callable[[Path], None]) -> None:
    for left in root.glob(f".{item.folder}.*.part"):  # by one that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{item.folder}.", suffix=".part", dir=root))
    try:
        fill(part)
        (part / MARK).write_text(json.dumps({"recipe": item.recipe}), encoding="utf-8")
        target = root / item.folder
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
