"""The command that looks at data before anything is trained on them.

It is part of `cli`, which says what holds for all commands.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spoco_zoo.errors import SettingError
from spoco_zoo.terminal import console

if TYPE_CHECKING:
    import numpy as np

    from spoco_zoo.datasets.inspection import Inspection

_SIDE = 240  # pixels of a picture
_PER_SPLIT = 12

Overwrite = Annotated[bool, typer.Option(help="Replace what is there already.")]


def inspect(
    data: Annotated[Path, typer.Argument(help="Folder of labelled images, as `train` takes it.")],
    spec: Annotated[
        Path | None, typer.Option(help="Recipe in YAML that they are for; defaults otherwise.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also draw images and their labels, as PNG."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Show what training would read from a folder, and suggest settings."""
    from rich.table import Table

    from spoco_zoo.datasets.inspection import inspect_folder
    from spoco_zoo.figures import write_png
    from spoco_zoo.files import refuse_existing
    from spoco_zoo.spec import load_spec

    if out is not None and out.suffix.lower() != ".png":
        raise SettingError(f"--out is {out}: expected a name that ends in .png")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    recipe = None if spec is None else load_spec(spec)
    with console().status("looking") as status:
        found = inspect_folder(data, recipe, status.update)
    table = Table("", *(split.name for split in found.splits))
    for row in found.rows():
        table.add_row(*row)
    typer.echo(f"{data}: layout {found.layout}")
    console(stderr=False).print(table)
    for line in found.warnings():
        typer.echo(f"Warning: {line}")
    typer.echo("For the spec:")
    for line in found.suggestions():
        typer.echo(f"  {line}")
    if out is not None:
        write_png(out, _draw(found), overwrite=overwrite)
        typer.echo(f"{out}: written")


def _draw(found: "Inspection") -> "np.ndarray":
    """Lay out the first images of each split, with the outlines of their labels."""
    from spoco_zoo.datasets.inspection import show_part
    from spoco_zoo.figures import contact_sheet, outline

    pictures = []
    for split in found.splits:
        for image in split.images[:_PER_SPLIT]:
            pixels, labels, text = show_part(image)
            pictures.append((f"{split.name}/{text}", outline(pixels, labels, _SIDE)))
    return contact_sheet(pictures, columns=6)
