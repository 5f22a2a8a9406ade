"""The commands: flags to one call, its result to a few lines.

Nothing heavy is imported before a command needs it. A failure that the user can mend is one
line on stderr and exit code 1; wrong usage is exit code 2; Ctrl-C is 130.
"""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spoco_zoo import cli_checks, cli_data, cli_labels, cli_large, cli_runs
from spoco_zoo.errors import ImageError, OutputError, PackageError, SettingError, SpocoZooError
from spoco_zoo.terminal import Interrupt, complain, console, progress_bar, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from spoco_zoo.choices import Flags
    from spoco_zoo.large_jobs import LargeWishes
    from spoco_zoo.training import StepReport

app = typer.Typer(
    help="Instance segmentation from a few labelled objects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Device = Literal["auto", "cpu", "cuda"]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


class Method(StrEnum):
    """Clustering methods by the name of their flag."""

    mean_shift = "mean-shift"
    hdbscan = "hdbscan"
    consistency = "consistency"


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SpocoZooError as error:
        complain(error)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Instance segmentation from a few labelled objects."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("spoco-zoo"))
        raise typer.Exit


app.command()(cli_data.inspect)  # the help lists commands in the order of work


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of labelled images; see `inspect`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
    spec: Annotated[Path | None, typer.Option(help="Recipe in YAML; defaults otherwise.")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Run or package whose weights to start from, and its network."),
    ] = None,
    label_zero: Annotated[
        Literal["background", "unlabeled"] | None,
        typer.Option(help="What label 0 means in train/labels."),
    ] = None,
    labelled_ratio: Annotated[
        float | None,
        typer.Option(help="About which part of all instances is labelled, to learn foreground."),
    ] = None,
    instance_ratio: Annotated[
        float | None, typer.Option(help="Part of the training instances to use, 0 to 1.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, crops and anchors.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after so long; go on with --resume.")
    ] = None,
) -> None:
    """Train a network on images with some or all instances labelled."""
    from spoco_zoo import train as run_training
    from spoco_zoo.spec import Spec, change_spec, load_spec
    from spoco_zoo.training import TrainOptions, read_start

    if out.is_file():
        raise SettingError(f"--out is {out}, which is a file: expected a folder for the run")
    started = out / "spec.yaml"
    if spec or (resume and started.exists()):
        recipe = load_spec(spec or started)
    else:
        recipe = Spec() if start is None else change_spec(Spec(), read_start(start).changes)
    changes: dict[str, dict[str, Any]] = {
        "data": {"label_zero": label_zero, "instance_ratio": instance_ratio},
        "loss": {"labelled_ratio": labelled_ratio},
        "schedule": {"steps": steps, "seed": seed},
    }
    recipe = change_spec(recipe, changes)
    with progress_bar() as bar, Interrupt() as interrupt:
        task = bar.add_task("starting", total=None, detail="")
        show_step = _show_step(bar, task)
        options = TrainOptions(
            device=device,
            resume=resume,
            start=start,
            max_minutes=max_minutes,
            on_step=show_step,
            on_stage=lambda stage: bar.update(task, description=stage),
            on_note=lambda note: bar.console.print(note, markup=False, soft_wrap=True),
            should_stop=lambda: interrupt.asked,
        )
        result = run_training(recipe, data, out, options)
    if result.fitted is None:
        say(f"{out}: saved at step {result.step}; go on with --resume")
        raise typer.Exit(130 if interrupt.asked else 0)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in result.fitted.scores.items())
    say(f"{out}: done after {result.step} steps; validation: {scores}")


app.command()(cli_runs.report)
app.command()(cli_labels.suggest)
app.command()(cli_labels.budget)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="What `train` left.")],
    target: Annotated[
        Path,
        typer.Argument(help="Package to write: a folder, or NAME.zip. With `all`, their folder."),
    ],
    flavour: Annotated[
        Literal["embeddings", "instances", "boundaries", "qupath", "all"],
        typer.Option(help="For `run` and Python; for Fiji; for ilastik; for QuPath."),
    ] = "embeddings",
    engines: Annotated[
        Literal["installed", "cached", "all"],
        typer.Option(help="Where it is proven; `all` gets what is missing (see `engines`)."),
    ] = "cached",
    scores: Annotated[
        Path | None, typer.Option(help="Test scores for the card, from evaluate --json.")
    ] = None,
    maintainer: Annotated[
        str | None, typer.Option(help="Who answers for it in a collection: a name on GitHub.")
    ] = None,
    draft: Annotated[bool, typer.Option(help="The card is not finished, and says so.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write bioimage.io packages from a run, after proving that they work."""
    from spoco_zoo import export_package  # noqa: F401 - says what is not installed
    from spoco_zoo.packaging import ExportOptions, export_packages

    with console().status("reading the run") as status:
        options = ExportOptions(
            engines=engines,
            scores=scores,
            maintainer=maintainer,
            draft=draft,
            overwrite=overwrite,
            on_stage=status.update,
        )
        for line in export_packages(run_folder, target, flavour, options):
            typer.echo(line)


@app.command()
def run(
    package: Annotated[
        Path, typer.Argument(help="bioimage.io package, ours or not: a folder or a zip.")
    ],
    inputs: Annotated[
        list[str], typer.Argument(help="Images, folders, patterns, or OME-Zarr (also addresses).")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Folder for results; or NAME.tif or NAME.ome.zarr for one image."
        ),
    ] = None,
    save: Annotated[
        str,
        typer.Option(
            help="What to write, with commas: labels, rois, geojson, table, parquet, overlay; "
            "of OME-Zarr also embeddings. In blocks the labels are always written."
        ),
    ] = "labels",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="The same as `overlay` in --save.")
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe of `fit`; that of the package otherwise.")
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Clustering; that of the recipe otherwise.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Radius of a cluster, in embedding units.")
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Least pixels of an instance's core.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least probability of foreground, 0 to 1.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Foreground where not 0: an image, a folder of equal names, or OME-Zarr (also "
            "an address)."
        ),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Pixels a side in the network at once; changes no result.")
    ] = None,
    block: cli_large.BlockSize = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    precision: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="float16 is for cuda; instances may then differ a little."),
    ] = "float32",
    overwrite: Overwrite = False,
    into: cli_large.Into = False,
    name: cli_large.Name = "instances",
    ome_zarr: cli_large.Format = None,
    level: cli_large.Level = 0,
    channels: cli_large.Channels = None,
    workers: cli_large.Workers = None,
    memory: cli_large.Memory = None,
    scheduler: cli_large.Scheduler = None,
    scratch: cli_large.Scratch = None,
    skip_damaged: cli_large.SkipDamaged = False,
    dry_run: cli_large.DryRun = False,
) -> None:
    """Find the instances of images; write them as label images and for other programs.

    Images in OME-Zarr, and all that is written as OME-Zarr, are run in blocks and may be larger
    than memory; the same command, given again, goes on where it ended. Others are run as a whole.
    """
    from spoco_zoo.choices import Flags, read_recipe
    from spoco_zoo.large_inputs import is_large
    from spoco_zoo.large_jobs import LargeWishes
    from spoco_zoo.results import read_kinds

    kinds = read_kinds(f"{save},overlay" if overlay else save)
    chosen = None if recipe is None else read_recipe(recipe)
    word = None if method is None else method.name
    flags = Flags(word, bandwidth, min_size, threshold, chosen, has_mask=mask is not None)
    wishes = LargeWishes(
        into=into,
        ome_zarr=ome_zarr,
        level=level,
        channels=channels,
        name=name,
        workers=workers,
        memory=memory,
        block=block,
        scheduler=scheduler,
        scratch=scratch,
        skip_damaged=skip_damaged,
        mask=mask,
        device=device,
        precision=precision,
        kinds=kinds,
        overwrite=overwrite,
    )
    if is_large(inputs, out, into=into):
        if tile is not None:
            raise SettingError(
                f"--tile is {tile}, and tiles of large images follow from memory: use --memory"
            )
        cli_large.run_in_blocks(package, inputs, out, wishes, flags, dry_run=dry_run)
        return
    cli_large.refuse_large_wishes(wishes, dry_run=dry_run)
    if out is None:
        raise typer.BadParameter("expected a folder for the labels", param_hint="--out")
    _run_in_memory(package, inputs, Path(out), tile, flags, wishes)


def _run_in_memory(
    package: Path,
    inputs: list[str],
    out: Path,
    tile: int | None,
    flags: "Flags",
    large: "LargeWishes",
) -> None:
    """Run a package on images one by one, each as a whole."""
    from concurrent.futures import ThreadPoolExecutor

    from spoco_zoo.block_plan import read_side
    from spoco_zoo.choices import plan_run
    from spoco_zoo.images import find_images
    from spoco_zoo.jobs import RunWishes, find_masks, name_targets, run_one

    block = read_side(large.block)
    settings, start = plan_run(package, flags, block, large.device, large.precision)
    targets = name_targets(find_images(inputs), out, large.kinds)
    mask = None if large.mask is None else Path(large.mask)
    masks = find_masks([source for source, _ in targets], mask)
    failed = 0
    with start() as session, progress_bar() as bar:
        title = f"{session.package.name} on {session.device}"
        task = bar.add_task(title, total=len(targets), detail="")
        # of a single image the tiles are counted, else the images
        count_tiles = _show_tiles(bar, task) if len(targets) == 1 else None
        wishes = RunWishes(settings, tile, block, large.kinds, large.overwrite, count_tiles)
        # while one image is in the network, the other is read, clustered or written
        pool = ThreadPoolExecutor(2)
        try:
            lines = [
                pool.submit(run_one, session, source, target, masks[source], wishes)
                for source, target in targets
            ]
            for (source, _), done in zip(targets, lines, strict=True):
                bar.update(task, detail=source.name)
                try:
                    bar.console.print(done.result(), markup=False, highlight=False, soft_wrap=True)
                except (ImageError, OutputError, PackageError) as error:
                    failed += 1
                    complain(error)
                except MemoryError:
                    failed += 1
                    complain(
                        ImageError(
                            f"{source}: does not fit into memory: use a smaller --tile and "
                            "--block, or --out NAME.ome.zarr to work on it in blocks"
                        )
                    )
                if count_tiles is None:
                    bar.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)
    typer.echo(f"{len(targets) - failed} of {len(targets)} images done", err=bool(failed))
    if failed:
        raise typer.Exit(1)


app.command()(cli_large.plan)


@app.command()
def fit(
    package: Annotated[Path, typer.Argument(help="Package of embeddings: a folder or a zip.")],
    image: Annotated[Path, typer.Argument(help="An image as it comes from the microscope.")],
    labels: Annotated[Path, typer.Argument(help="Its instances: one number for each.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe to write, for run --recipe.")],
    label_zero: Annotated[
        Literal["background", "unlabeled"], typer.Option(help="What label 0 means.")
    ] = "background",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Fit how a package makes instances to one labelled image; needs no PyTorch."""
    from spoco_zoo.choices import dump_fitted, fit_to_image, open_package
    from spoco_zoo.files import refuse_existing, write_bytes

    refuse_existing(out, overwrite=overwrite)
    with open_package(package, device) as session, console().status("trying recipes"):
        fitted = fit_to_image(session, image, labels, label_zero)
    write_bytes(out, dump_fitted(fitted), overwrite=overwrite)
    scores = ", ".join(f"{name} {value:.3f}" for name, value in fitted.scores.items())
    typer.echo(f"{out}: the best of {len(fitted.trials)} recipes; on this image: {scores}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Label image, or folder of them.")],
    truth: Annotated[Path, typer.Argument(help="True label image, or folder of equal names.")],
    json: Annotated[Path | None, typer.Option(help="Also write all scores to this file.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score label images against the truth: SBD, |DiC|, AP, ARand, VOI."""
    from json import dumps

    from rich.table import Table

    from spoco_zoo import evaluate as score_files
    from spoco_zoo.evaluation import rows
    from spoco_zoo.files import refuse_existing, write_bytes

    if json is not None:
        refuse_existing(json, overwrite=overwrite)
    with progress_bar() as bar:
        task = bar.add_task("scoring", total=None, detail="")
        evaluation = score_files(
            predictions, truth, lambda done, total: bar.update(task, completed=done, total=total)
        )
    table = Table("score", "value")
    for name, value in rows(evaluation):
        table.add_row(name, value)
    console(stderr=False).print(table)
    if json is not None:
        text = dumps(evaluation.to_json(), indent=1)
        write_bytes(json, text.encode(), overwrite=overwrite)


app.command()(cli_checks.validate)
app.command("test")(cli_checks.prove)
app.command()(cli_checks.engines)
app.command()(cli_checks.doctor)


def _show_step(bar: "Progress", task: "TaskID") -> Callable[["StepReport"], None]:
    """Make the callback that shows a step of training on the bar."""

    def show(report: "StepReport") -> None:
        shown = ("total", "pull", "push", "instance", "consistency", "foreground")
        terms = " ".join(f"{n} {report.terms[n]:.3f}" for n in shown if n in report.terms)
        speed = f"{report.seconds_per_step:.2f} s/step"
        bar.update(task, total=report.steps, completed=report.step, detail=f"{terms} {speed}")
        if report.score is not None:
            bar.console.print(f"step {report.step}: validation AP {report.score:.3f}")

    return show


def _show_tiles(bar: "Progress", task: "TaskID") -> Callable[[int, int], None]:
    """Make the callback that shows the tiles of an image on the bar."""
    return lambda done, total: bar.update(task, completed=done, total=total)
