"""What is dropped: a package as a zip on the viewer, packages and label images on the widget.

napari asks whoever claims a kind of file, and lets the user choose where several do. Zips are
claimed by nobody else; TIFFs and folders would be asked for every time, so these go to the widget.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spoco_zoo.archive import RDF_NAMES

Nothing = list[tuple[None]]


def get_reader(path: str | Sequence[str]) -> Callable[[Any], Nothing] | None:
    """Say who opens a zip: this plug-in if it is a package, else None."""
    paths = [path] if isinstance(path, str) else list(path)
    if len(paths) != 1 or not _holds_package(Path(paths[0])):
        return None
    return take_package


def take_package(path: str | Sequence[str]) -> Nothing:
    """Open the widget with a package; no layer comes of that."""
    import napari

    viewer = napari.current_viewer()
    first = path if isinstance(path, str) else path[0]
    if viewer is not None:
        _, widget = viewer.window.add_plugin_dock_widget("spoco-zoo", "Find instances")
        widget.choose(Path(first))
    return [(None,)]


def _holds_package(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name in RDF_NAMES for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
