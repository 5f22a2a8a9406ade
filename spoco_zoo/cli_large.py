"""`run` and `plan` for what is larger than memory; `cli` says what holds for all commands."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spoco_zoo.errors import SettingError, SpocoZooError
from spoco_zoo.terminal import complain, console, progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from spoco_zoo.choices import Flags
    from spoco_zoo.distributed import Progress as Tell
    from spoco_zoo.large_jobs import LargeRun, LargeWishes

Device = Literal["auto", "cpu", "cuda"]
Level = Annotated[int, typer.Option(help="Resolution level of OME-Zarr or TIFF; 0 is the finest.")]
Channels = Annotated[
    str | None, typer.Option(help="Channels by number or name, with commas; all otherwise.")
]
Workers = Annotated[
    int | None, typer.Option(help="Processes that share blocks; one per core or GPU.")
]
Memory = Annotated[str | None, typer.Option(help="What a worker may take, such as 4GB.")]
BlockSize = Annotated[
    str | None, typer.Option(help="Pixels a side clustered at once, or z,y,x; changes no result.")
]


def plan(
    package: Annotated[Path, typer.Argument(help="bioimage.io package of spoco-zoo.")],
    inputs: Annotated[list[str], typer.Argument(help="OME-Zarr or TIFF: paths or addresses.")],
    level: Level = 0,
    channels: Channels = None,
    workers: Workers = None,
    memory: Memory = None,
    block: BlockSize = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
) -> None:
    """Try one block of a large image, and tell memory, disk and time of all before they start."""
    from spoco_zoo.choices import Flags
    from spoco_zoo.large_jobs import LargeWishes

    wishes = LargeWishes(
        level=level, channels=channels, workers=workers, memory=memory, block=block, device=device
    )
    # results go nowhere, so their place does not matter
    run = _prepare(package, inputs, "plan", replace(wishes, into=False), Flags())
    _show_plan(run)


def run_in_blocks(
    package: Path,
    inputs: list[str],
    out: str | None,
    wishes: "LargeWishes",
    flags: "Flags",
    *,
    dry_run: bool = False,
) -> None:
    """Run a package on large images, or only tell what that would take."""
    run = _prepare(package, inputs, out, wishes, flags)
    if dry_run:
        _show_plan(run)
        return
    failed = 0
    with progress_bar() as bar, run.pool() as pool:
        where = wishes.scheduler or f"{pool.count} workers" if pool.count > 1 else "1 worker"
        bar.console.print(f"{run.package.name} on {run.device}, {where}", markup=False)
        for job in run.jobs:
            task = bar.add_task("starting", total=None, detail=job.volumes[0].name)
            try:
                done = run.run(job, pool, _show(bar, task))
            except SpocoZooError as error:
                failed += 1
                complain(error)
                if len(run.jobs) == 1:
                    raise typer.Exit(1) from error
                continue
            finally:
                bar.remove_task(task)
            for sentence in done.told:
                bar.console.print(f"skipped: {sentence}", markup=False, soft_wrap=True)
            found = ", ".join(map(str, done.totals))
            line = f"{done.store.url}: {found} instances"
            if done.peak_bytes:
                line += f" (peak memory {done.peak_bytes / 1e9:.2f} GB for each worker)"
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"{len(run.jobs) - failed} of {len(run.jobs)} images done", err=bool(failed))
    if failed:
        raise typer.Exit(1)


def refuse_large_wishes(wishes: "LargeWishes", *, dry_run: bool) -> None:
    """Refuse what has no meaning for an image that is run as a whole.

    Raises:
        SettingError: Something of that kind is asked for.
    """
    given = {
        "--level": wishes.level or None,
        "--channels": wishes.channels,
        "--workers": wishes.workers,
        "--memory": wishes.memory,
        "--scheduler": wishes.scheduler,
        "--scratch": wishes.scratch,
        "--skip-damaged": wishes.skip_damaged or None,
        "--name": None if wishes.name == "instances" else wishes.name,
        "--dry-run": dry_run or None,
        "--save embeddings": "embeddings" in wishes.kinds or None,
    }
    wrong = [flag for flag, value in given.items() if value is not None]
    if wrong:
        raise SettingError(
            f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} for images that are run "
            "in blocks: give --out NAME.ome.zarr for that, or leave "
            f"{'it' if len(wrong) == 1 else 'them'} out"
        )


def _prepare(
    package: Path, inputs: list[str], out: str | None, wishes: "LargeWishes", flags: "Flags"
) -> "LargeRun":
    from spoco_zoo.choices import change_recipe
    from spoco_zoo.foreign import is_foreign
    from spoco_zoo.large_jobs import LargeRun, list_jobs
    from spoco_zoo.package import load_package

    if is_foreign(package):
        raise SettingError(
            f"{package}: is no package of spoco-zoo, and only these are run in blocks: "
            "give images that fit into memory, as TIFF"
        )
    loaded = load_package(package)
    recipe = change_recipe(loaded, flags)
    return LargeRun(loaded, recipe, list_jobs(inputs, out, loaded, wishes), wishes)


def _show_plan(run: "LargeRun") -> None:
    from rich.table import Table

    from spoco_zoo.large_jobs import tell_plan

    with console().status("trying one block"), run.pool(1) as pool:
        measured = run.measure(pool)
    table = Table(show_header=False)
    for name, value in tell_plan(run, measured):
        table.add_row(name, value)
    console(stderr=False).print(table)


def _show(bar: "Progress", task: "TaskID") -> "Tell":
    """Make the callback that shows the blocks of a step on the bar."""

    def show(title: str, done: int, total: int) -> None:
        bar.update(task, description=title, completed=done, total=total)

    return show
