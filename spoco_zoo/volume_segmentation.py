"""Images in stores to labels in stores, in Python: `segmentation` where memory is too small.

    image ─ plan ─ blocks ─ workers ─ labels, and what people open of them

How it is done is told by `distributed`; `run` and `plan` of the command line go the same way.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from spoco_zoo.distributed import Progress, Segmented
from spoco_zoo.large_jobs import LargeRun, LargeWishes, list_jobs
from spoco_zoo.package import Package, load_package
from spoco_zoo.recipe import Recipe
from spoco_zoo.results import read_kinds


def segment_volume(  # noqa: PLR0913 the door has one keyword for each wish
    image: str | Path,
    package: Package | str | Path,
    out: str | Path | None,
    *,
    recipe: Recipe | None = None,
    save: Sequence[str] = ("labels",),
    level: int = 0,
    channels: Sequence[int | str] | None = None,
    workers: int | None = None,
    memory: str | None = None,
    scheduler: str | None = None,
    scratch: str | Path | None = None,
    mask: str | Path | None = None,
    skip_damaged: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Segmented]:
    """Find the instances of an image that need not fit into memory, in blocks.

    What was begun and not ended is gone on with by the same call. Workers are processes that
    import the calling script, so that script needs `if __name__ == "__main__":` around it.

    Args:
        image: OME-Zarr (an image, a time series, a plate) or TIFF: a path or an address.
        package: What finds them: a package, or where one lies.
        out: NAME.ome.zarr, or a folder; None puts the labels into the OME-Zarr of the image.
        recipe: How instances are made; that of the package where left out.
        save: What to write: labels, and also rois, geojson, table, parquet, overlay, embeddings.
        level: Resolution level; 0 is the finest.
        channels: Channels by number or name; all where left out.
        workers: Processes that share blocks; one per core or GPU where left out.
        memory: What a worker may take, such as 4GB.
        scheduler: Address or scheduler file of a Dask scheduler, to use its workers instead.
        scratch: Folder for work in progress; beside the result where left out.
        mask: OME-Zarr or TIFF of the shape of the image: foreground where it is not 0.
        skip_damaged: Take chunks that cannot be decoded as 0, and name them in `told`.
        device: `cpu`, `cuda` or `auto`.
        overwrite: Whether results that are there may be replaced.
        progress: Told the step, blocks done and blocks in all; where a plate has several
            images under way, from a thread of each.

    Returns:
        For each image, a plate having many: `url` of its labels, `totals` of instances at its
        points in time, `peak_bytes` of memory, and `told`, what was skipped.

    Raises:
        ImageError: The image cannot be read or does not fit the package.
        PackageError: The package cannot be read, or its network fails.
        SettingError: A wish is impossible.
        OutputError: A result exists, or cannot be written.
        DeviceError: The device is not there, or workers fail.
        MissingExtraError: Dask or zarr is not installed.
    """
    loaded = package if isinstance(package, Package) else load_package(package)
    wishes = LargeWishes(
        into=out is None,
        level=level,
        channels=None if channels is None else ",".join(map(str, channels)),
        workers=workers,
        memory=memory,
        scheduler=scheduler,
        scratch=None if scratch is None else Path(scratch),
        mask=None if mask is None else str(mask),
        skip_damaged=skip_damaged,
        device=device,
        kinds=read_kinds(",".join(save)),
        overwrite=overwrite,
    )
    jobs, errors = list_jobs([str(image)], None if out is None else str(out), loaded, wishes)
    if errors:
        raise errors[0]
    run = LargeRun(loaded, recipe or loaded.config.recipe, jobs, wishes)
    for job in jobs:
        run.check(job)
    with run.pool() as pool, run.run_all(pool, lambda _: nullcontext(progress)) as works:
        return [work() for work in works]
