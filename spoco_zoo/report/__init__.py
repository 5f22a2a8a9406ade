"""A run told on one page: what it learnt from, how good it is, where it fails, what to try next.

The page is one HTML file that asks for nothing else: pictures, curves and style are in it, it
runs no code, and forbids itself to load anything. Everything that comes from files is escaped.
The same run folder gives the same page, byte for byte.
"""

from pathlib import Path

from spoco_zoo.files import refuse_existing, write_bytes
from spoco_zoo.report.page import draw_page
from spoco_zoo.report.reading import read_run

__all__ = ["write_report"]


def write_report(run_folder: Path, target: Path, *, overwrite: bool = False) -> int:
    """Write the page of a run, finished or not, and return its size in bytes.

    Raises:
        SettingError: The folder is not that of a run, or a file in it is missing or damaged.
        OutputError: The page exists and may not be overwritten, or the disk refuses it.
    """
    refuse_existing(target, overwrite=overwrite)
    content = draw_page(read_run(run_folder)).encode()
    write_bytes(target, content, overwrite=overwrite)
    return len(content)
