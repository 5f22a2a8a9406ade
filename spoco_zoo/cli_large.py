"""`run` and `plan` for what is larger than memory; `cli` says what holds for all commands."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spoco_zoo.errors import SettingError, SpocoZooError
from spoco_zoo.terminal import complain, console, progress_bar, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from spoco_zoo.choices import Flags
    from spoco_zoo.distributed import Progress as Tell
    from spoco_zoo.large_jobs import ImageJob, LargeRun, LargeWishes

_SILENCE_S = 30.0  # between lines, where a step takes long
_MOST_LISTED = 6  # points in time whose instances are told one by one

Device = Literal["auto", "cpu", "cuda"]
Level = Annotated[int, typer.Option(help="In blocks: resolution level; 0 is the finest.")]
Channels = Annotated[
    str | None,
    typer.Option(help="In blocks: channels by number or name, with commas; all otherwise."),
]
Workers = Annotated[
    int | None, typer.Option(help="In blocks: processes at once; one per core or GPU.")
]
Memory = Annotated[str | None, typer.Option(help="In blocks: what a worker may take, such as 4GB.")]
Into = Annotated[
    bool,
    typer.Option(
        "--into", help="In blocks: put labels into the OME-Zarr of the image, as labels/NAME."
    ),
]
Name = Annotated[str, typer.Option(help="In blocks: name of the labels in an OME-Zarr.")]
Format = Annotated[
    Literal["0.4", "0.5"] | None,
    typer.Option(help="In blocks: format of a new store; 0.4 otherwise, which more programs read."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="In blocks: Dask scheduler whose workers to use: an address such as "
        "tcp://10.0.0.1:8786, or its scheduler file."
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(help="In blocks: folder for work in progress; beside the result otherwise."),
]
SkipDamaged = Annotated[
    bool,
    typer.Option(
        "--skip-damaged", help="In blocks: take chunks that cannot be decoded as 0, and name them."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="In blocks: only try one and tell what all take, as `plan`."),
]
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
    run, missing = _prepare(package, inputs, "plan", wishes, Flags())
    _show_plan(run)
    if missing:
        raise typer.Exit(1)


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
    run, missing = _prepare(package, inputs, out, wishes, flags)
    if dry_run:
        _show_plan(run)
        if missing:
            raise typer.Exit(1)
        return
    if len(run.jobs) == 1:
        run.check(run.jobs[0])  # before workers are started
    failed, count_all = missing, len(run.jobs) + missing
    told = "stopped: what is done is kept, and the same command goes on"
    bar = progress_bar()
    bar.live.transient = True
    bar.disable |= not bar.console.is_terminal  # into a file steps are written as lines
    with (
        _ending_in_order(told),
        bar,
        run.pool() as pool,
        run.run_all(pool, partial(_show, bar, len(run.jobs))) as works,
    ):
        count = "1 worker" if pool.count == 1 else f"{pool.count} workers"
        where = count if wishes.scheduler is None else f"{count} of {wishes.scheduler}"
        bar.console.print(f"{run.package.name} on {run.device}, {where}", markup=False)
        for work in works:
            try:
                done = work()
            except SpocoZooError as error:
                failed += 1
                complain(error)
                if count_all == 1:
                    raise typer.Exit(1) from error
                continue
            for sentence in done.told:
                bar.console.print(f"skipped: {sentence}", markup=False, soft_wrap=True)
            line = f"{done.url}: {_count(done.totals)}"
            if done.peak_bytes:
                line += f" (a worker took up to {done.peak_bytes / 1e9:.2f} GB of memory)"
            bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"{count_all - failed} of {count_all} images done", err=bool(failed))
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
        "--ome-zarr": wishes.ome_zarr,
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
) -> tuple["LargeRun", int]:
    """Open package and images; those of several that cannot be opened are told and counted."""
    from spoco_zoo.choices import change_recipe
    from spoco_zoo.foreign import is_foreign
    from spoco_zoo.large_jobs import LargeRun, list_jobs
    from spoco_zoo.package import load_package

    if is_foreign(package):
        raise SettingError(
            f"{package}: has no embedding with a recipe of spoco-zoo, which alone is joined "
            "across blocks: take a package of the flavour embeddings, or give images that fit "
            "into memory, as TIFF"
        )
    loaded = load_package(package)
    recipe = change_recipe(loaded, flags)
    jobs, missing = list_jobs(inputs, out, loaded, wishes)
    for error in missing:
        complain(error)
    if not jobs:
        raise typer.Exit(1)
    return LargeRun(loaded, recipe, jobs, wishes), len(missing)


def _show_plan(run: "LargeRun") -> None:
    from rich.table import Table

    from spoco_zoo.plan_table import tell_plan

    with _ending_in_order("stopped"), console().status("trying one block"), run.pool(1) as pool:
        measured = run.measure(pool)
        workers = run.workers if run.wishes.scheduler is None else pool.count
    table = Table(show_header=False)
    for name, value in tell_plan(run, measured, workers):
        table.add_row(name, value)
    console(stderr=False).print(table)


def _count(totals: Sequence[int]) -> str:
    """Say how many instances were found at each point in time."""
    if len(totals) == 1:
        return f"{totals[0]} instances"
    if len(totals) <= _MOST_LISTED:
        return f"{', '.join(map(str, totals))} instances at {len(totals)} points in time"
    return f"{min(totals)} to {max(totals)} instances at each of {len(totals)} points in time"


@contextmanager
def _ending_in_order(told: str) -> Iterator[None]:
    """End in order after Ctrl-C, or where a batch system asks for it, and say something."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as error:
        say(told, err=True)
        (number,) = error.args or (signal.SIGINT,)
        raise typer.Exit(128 + int(number)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _show(bar: "Progress", images: int, job: "ImageJob") -> Iterator["Tell"]:
    """Show the blocks of a step of an image on a bar of its own, or as lines."""
    name = f"{job.volumes[0].name}, " if images > 1 else ""
    task = bar.add_task("starting", total=None, detail=job.volumes[0].name)
    last_s = time.monotonic()

    def show(title: str, done: int, total: int) -> None:
        nonlocal last_s
        if not bar.disable:
            bar.update(task, description=title, completed=done, total=total)
        elif done == total > 1 or time.monotonic() > last_s + _SILENCE_S:
            say(f"{name}{title}: {done} of {total}", err=True)
            last_s = time.monotonic()

    try:
        yield show
    finally:
        bar.remove_task(task)
