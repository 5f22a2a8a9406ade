"""The commands about labels: how many are enough, and which to draw next.

They are part of `cli`, which says what holds for all commands.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.terminal import Interrupt, complain, progress_bar

if TYPE_CHECKING:
    from spoco_zoo.training.budget import Method

Device = Literal["auto", "cpu", "cuda"]
Overwrite = Annotated[bool, typer.Option(help="Replace what is there already.")]


def budget(
    data: Annotated[
        Path, typer.Argument(help="Folder with {train,val}/{images,labels}, all labelled.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and the curve.")],
    spec: Annotated[
        Path | None, typer.Option(help="Recipe in YAML; that in --out or defaults otherwise.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="Parts of the training instances, by commas.")
    ] = "0.05,0.1,0.25,0.5,1",
    seeds: Annotated[int, typer.Option(help="Choices of instances, for each ratio.")] = 3,
    methods: Annotated[
        str,
        typer.Option(
            help="By commas: spoco, baseline (the contrastive loss alone), head (the same with "
            "the foreground head)."
        ),
    ] = "spoco,baseline",
    split: Annotated[
        Literal["val", "test"], typer.Option(help="Images that the curve is about.")
    ] = "val",
    steps: Annotated[int | None, typer.Option(help="Length of each training.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after so long; the same command goes on.")
    ] = None,
) -> None:
    """Train with ever more of the labels, and a baseline beside it; draw what the labels bring."""
    from spoco_zoo import train  # noqa: F401 - says what is not installed
    from spoco_zoo.spec import Spec, change_spec, load_spec
    from spoco_zoo.training import StepReport, TrainOptions
    from spoco_zoo.training.budget import Cell, Grid, run_budget

    if data.suffix.lower() in (".yaml", ".yml"):
        raise SettingError(
            f"{data}: is a spec, which does not say where images are: give the folder of the "
            f"images first, and --spec {data}"
        )
    grid = Grid(_read_ratios(ratios), seeds, split, _read_methods(methods))
    started = out / "spec.yaml"
    recipe = load_spec(spec or started) if spec or started.is_file() else Spec()
    recipe = change_spec(recipe, {"schedule": {"steps": steps}})
    with progress_bar() as bar, Interrupt() as interrupt:
        task = bar.add_task("starting", total=None, detail="")
        shown = ""

        def show_cell(number: int, cell: Cell) -> None:
            nonlocal shown
            shown = f"{number} of {len(grid.cells)}: {cell.name}"
            bar.update(task, description=shown, total=None, completed=0)

        def show_step(report: StepReport) -> None:
            speed = f"{report.seconds_per_step:.2f} s/step"
            bar.update(task, total=report.steps, completed=report.step, detail=speed)

        options = TrainOptions(
            device=device,
            max_minutes=max_minutes,
            on_step=show_step,
            on_stage=lambda stage: bar.update(task, description=f"{shown}: {stage}"),
            should_stop=lambda: interrupt.asked,
        )
        result = run_budget(recipe, data, out, grid, options, show_cell)
    typer.echo(f"{out}: {len(result.scores)} of {result.n_cells} networks are finished")
    if not result.is_finished:
        typer.echo("the same command goes on where this one stopped")
        raise typer.Exit(130 if interrupt.asked else 0)
    typer.echo(f"{out / 'budget.png'}: AP and SBD against labelled objects")


def _read_ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(
            f"--ratios is {text}: expected numbers above 0 and up to 1, separated by commas"
        ) from error


def _read_methods(text: str) -> "tuple[Method, ...]":
    from spoco_zoo.training.budget import METHODS

    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(METHODS):
        raise SettingError(
            f"--methods is {text}: expected some of {', '.join(METHODS)}, separated by commas"
        )
    return tuple(method for method in METHODS if method in names)


def suggest(
    run_folder: Annotated[Path, typer.Argument(help="What `train` left.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders, or patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    count: Annotated[int, typer.Option(help="Regions to show and mark.")] = 20,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Rank unlabelled images, and regions in them, by what is worth labelling next."""
    from spoco_zoo import train  # noqa: F401 - says what is not installed
    from spoco_zoo.images import find_images
    from spoco_zoo.training.suggest import Region, Suggester
    from spoco_zoo.training.suggestion_files import check_target, write_suggestions

    paths = find_images(images)
    check_target(paths, out, count, overwrite=overwrite)
    suggester = Suggester.open(run_folder, device)
    regions: list[Region] = []
    failed = 0
    with progress_bar() as bar:
        task = bar.add_task("looking", total=len(paths), detail="")
        for path in paths:
            bar.update(task, detail=path.name)
            try:
                regions += suggester.look(path)
            except ImageError as error:
                failed += 1
                complain(error)
            bar.advance(task)
    if regions:
        write_suggestions(regions, out, count, suggester.spec.net.dimensions)
        shown = min(count, len(regions))
        typer.echo(f"{out}: the first {shown} of {len(regions)} regions are in regions.png")
    if failed:
        typer.echo(f"{len(paths) - failed} of {len(paths)} images done", err=True)
        raise typer.Exit(1)
