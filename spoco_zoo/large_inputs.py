"""Which images large inputs are: themselves, or what folders and patterns hold."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from spoco_zoo.errors import ImageError
from spoco_zoo.images import is_image
from spoco_zoo.refusals import say_why
from spoco_zoo.stores import clean_address, is_remote
from spoco_zoo.volumes import is_volume


def is_large(inputs: Sequence[str], out: str | None, *, into: bool) -> bool:
    """Whether to work in blocks: for OME-Zarr, addresses, and where OME-Zarr is asked for."""
    return into or is_zarr(out) or any(is_volume(entry) for entry in find_inputs(inputs))


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """Put what they hold in the place of folders of OME-Zarr and of patterns, sorted in each.

    What is named several times, with a slash, a dot or `file://` or without, is taken once.

    Raises:
        ImageError: A folder cannot be read, or one or a pattern holds OME-Zarr and other images.
    """
    found: dict[str, str] = {}
    for entry in inputs:
        try:
            for name in _look_into(entry) or [entry]:
                found.setdefault(clean_address(name), name)
        except OSError as error:
            raise ImageError(
                f"{entry}: cannot be looked at ({say_why(error)}): look at its disk and rights"
            ) from error
    return list(found.values())


def _look_into(entry: str) -> list[str]:
    """List the images of a pattern, or of a folder of OME-Zarr; none of what is an image itself."""
    if is_remote(entry):
        return []
    is_pattern = re.search(r"[*?\[]", entry) is not None and not Path(entry).exists()
    if is_pattern:
        within = [Path(match) for match in glob.glob(entry, recursive=True)]
    elif Path(entry).is_dir() and not is_volume(entry):
        within = list(Path(entry).iterdir())
    else:
        return []
    stores = [str(path) for path in within if is_zarr(path) and not path.name.startswith(".")]
    others = [str(path) for path in within if not is_zarr(path) and is_image(path)]
    if stores and others:
        pattern = "'*.zarr'" if is_pattern else f"'{entry.rstrip('/')}/*.zarr'"
        raise ImageError(
            f"{entry}: holds OME-Zarr and other images: give a pattern for those that are meant, "
            f"such as {pattern}"
        )
    return sorted(stores or (others if is_pattern else []))


def is_zarr(path: Path | str | None) -> bool:
    """Whether a path is to be an OME-Zarr, by its name."""
    return path is not None and str(path).rstrip("/").lower().endswith(".zarr")
