"""The commands that look at runs: the report of one.

They are part of `cli`, which says what holds for all commands.
"""

from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option(help="Replace what is there already.")]


def report(
    run_folder: Annotated[Path, typer.Argument(help="What `train` left, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write; report.html in the run.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tell a run on one HTML page: scores, examples, curves, settings, what to try next."""
    from spoco_zoo.report import write_report

    target = run_folder / "report.html" if out is None else out
    size = write_report(run_folder, target, overwrite=overwrite)
    typer.echo(f"{target}: {size / 1e6:.1f} MB, to open in a browser")
