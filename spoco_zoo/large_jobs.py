"""Inputs larger than memory, one or many: where results go, who works, what is told.

`jobs` does the same for images that fit into memory.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from spoco_zoo.block_jobs import BlockWishes, alone, has_begun, plan_job, work_folder
from spoco_zoo.block_plan import read_block
from spoco_zoo.distributed import (
    Measured,
    Progress,
    Segmented,
    check_target,
    clear,
    measure_block,
    measure_instances,
    segment_image,
)
from spoco_zoo.errors import DeviceError, ImageError, SettingError
from spoco_zoo.files import make_folder, refuse_existing
from spoco_zoo.large_inputs import find_inputs, is_zarr
from spoco_zoo.large_results import write_large_results
from spoco_zoo.large_tiffs import SUFFIXES as TIFF_SUFFIXES
from spoco_zoo.machine import count_cores, count_gpus, count_threads, read_gpus
from spoco_zoo.machine import read_memory as read_machine_memory
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe
from spoco_zoo.results import name_files
from spoco_zoo.stores import is_remote
from spoco_zoo.volumes import Volume, find_volumes, group_images, open_volumes
from spoco_zoo.workers import Cluster, Here, Pool, count_at_once, together

_USUAL_BYTES = 3_600_000_000  # for a worker, where there is as much


@dataclass(frozen=True)
class LargeWishes:
    """What a user says of large inputs."""

    into: bool = False
    level: int = 0
    channels: str | None = None
    name: str = "instances"
    ome_zarr: Literal["0.4", "0.5"] | None = None
    workers: int | None = None
    memory: str | None = None
    block: str | None = None
    scheduler: str | None = None
    scratch: Path | None = None
    skip_damaged: bool = False
    mask: str | None = None
    device: str = "auto"
    precision: str = "float32"
    kinds: tuple[str, ...] = ("labels",)
    overwrite: bool = False


@dataclass(frozen=True)
class ImageJob:
    """One image of the inputs, all its points in time, and where its labels go."""

    volumes: list[Volume]
    target: str | None  # None for the store of the image
    beside: Path | None  # the label TIFF that other results lie beside, had it been written

    def name_besides(self) -> list[Path]:
        """Say the label TIFF, written or not, of each point in time; none without `beside`."""
        if self.beside is None:
            return []
        stem = self.beside.stem
        names = [stem + ("" if v.time is None else f"_t{v.time:04}") for v in self.volumes]
        return [self.beside.with_name(f"{name}.tif") for name in names]


def list_jobs(
    inputs: Sequence[str],
    out: str | None,
    package: Package,
    wishes: LargeWishes,
) -> tuple[list[ImageJob], list[ImageError]]:
    """Open all inputs and say where the results of each image go.

    Args:
        inputs: Paths and addresses.
        out: Where results go.
        package: Says what an image has to be.
        wishes: What else a user says.

    Returns:
        A job for each image, and why others cannot be opened.

    Raises:
        ImageError: An image has other channels than the package, or is given twice.
        SettingError: Results of two images would have one name, or there is no place for them.
    """
    words = None if wishes.channels is None else wishes.channels.split(",")
    channels = None if words is None else [word.strip() for word in words]
    volumes: list[Volume] = []
    errors: list[ImageError] = []
    for entry in find_inputs(inputs):
        try:
            opened, missing = find_volumes(
                entry, package.n_axes, level=wishes.level, channels=channels
            )
        except ImageError as error:
            opened, missing = [], [error]
        volumes += opened
        errors += missing
    if not volumes:
        return [], errors
    for volume in volumes:
        if volume.shape[0] != package.channels:
            raise ImageError(
                f"{volume.url}: has {volume.shape[0]} channels: {package.name} was trained on "
                f"{package.channels}; select with --channels"
            )
    images = group_images(volumes)
    _check_out(out, len(images) + len(errors), wishes)
    jobs = [_place(image, out, wishes) for image in images]
    _check_twice(jobs, wishes)
    return jobs, errors


def _check_twice(jobs: list[ImageJob], wishes: LargeWishes) -> None:
    """Refuse two images whose results would have one name."""
    targets = Counter(job.target for job in jobs if job.target is not None)
    if target := next((target for target, count in targets.items() if count > 1), None):
        raise SettingError(
            f"two images would both be written to {target}: run them into separate folders"
        )
    besides = Counter(path for job in jobs for path in job.name_besides())
    path = next((path for path, count in besides.items() if count > 1), None)
    if path is not None and set(wishes.kinds) != {"labels"}:
        raise SettingError(
            f"two images are called {path.stem}, and --save would write both to the same "
            f"files in {path.parent}: run them into separate folders"
        )


def _check_out(out: str | None, images: int, wishes: LargeWishes) -> None:
    """Refuse an --out that has no place for all results."""
    if out is None and not wishes.into:
        raise SettingError("no --out is given: expected NAME.ome.zarr, a folder, or --into")
    if out is not None and wishes.into and set(wishes.kinds) == {"labels"}:
        raise SettingError(
            f"--into puts labels into the store of the image, and --out is {out}: leave one of "
            "them out, or ask with --save for what else goes there"
        )
    if out is None and set(wishes.kinds) != {"labels"}:
        raise SettingError(
            "--save asks for more than labels, which do not go into the input: give a folder for "
            "them with --out"
        )
    if out is not None and is_remote(out) and set(wishes.kinds) != {"labels"}:
        raise SettingError(
            f"--save asks for more than labels, and --out is {out}: expected a folder of this "
            "machine, as only labels go to a server"
        )
    if out is not None and Path(out).suffix.lower() in (*TIFF_SUFFIXES, ".png", ".npy"):
        raise SettingError(
            f"--out is {out}, and labels of what is run in blocks are OME-Zarr: expected "
            "NAME.ome.zarr, a folder, or --into"
        )
    if is_zarr(out) and images > 1 and not wishes.into:
        raise SettingError(
            f"--out is {out} for {images} images: expected a folder, or --into to put labels "
            "into the store of each image"
        )


def _place(image: list[Volume], out: str | None, wishes: LargeWishes) -> ImageJob:
    """Say where the results of an image go."""
    if out is None:
        return ImageJob(image, None, None)
    name = _bare(image[0].name)
    target = f"{out.rstrip('/')}/{name}.ome.zarr"
    folder = Path(out)
    if is_zarr(out):
        name, target, folder = _bare(Path(out).name), out, Path(out).parent
    beside = None if is_remote(out) else folder / f"{name}.tif"
    return ImageJob(image, None if wishes.into else target, beside)


def _bare(name: str) -> str:
    return re.sub(r"(\.ome)?\.(zarr|tiff?)$", "", name, flags=re.IGNORECASE)


def read_memory(text: str | None, workers: int) -> int:
    """Read what a worker may take: such as 4GB, or what there is where left out.

    Raises:
        SettingError: It is no amount of memory.
    """
    if text is None:
        machine = read_machine_memory()
        free = None if machine is None else machine.free_bytes
        return _USUAL_BYTES if free is None else min(_USUAL_BYTES, int(0.85 * free / workers))
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, flags=re.IGNORECASE)
    if not found:
        raise SettingError(f"--memory is {text}: expected an amount such as 4GB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " kmgt".index(found[2].lower() or " "))


class LargeRun:
    """A package, its inputs, and how they are run."""

    def __init__(
        self,
        package: Package,
        recipe: Recipe,
        jobs: list[ImageJob],
        wishes: LargeWishes,
    ) -> None:
        """Find out who works and with how much memory.

        Raises:
            DeviceError: The device is not there.
            SettingError: A wish is impossible.
        """
        self.package = package
        self.jobs = jobs
        self.wishes = wishes
        gpus = 0 if wishes.device == "cpu" else count_gpus()
        if wishes.device == "cuda" and not gpus and wishes.scheduler is None:
            raise DeviceError(
                "cuda was asked for, but no NVIDIA GPU with a driver is found: use --device cpu"
            )
        self.device = "cuda" if gpus or wishes.device == "cuda" else "cpu"
        if wishes.workers is not None and wishes.workers < 1:
            raise SettingError(f"--workers is {wishes.workers}: expected at least 1")
        self.workers = wishes.workers or gpus or count_cores()
        memory = read_memory(wishes.memory, self.workers)
        while wishes.workers is None and wishes.memory is None and self.workers > 1:
            if memory >= 2_000_000_000:
                break
            self.workers -= 1
            memory = read_memory(None, self.workers)
        masks = [] if wishes.mask is None else open_volumes(wishes.mask, package.n_axes)
        if masks and masks[0].shape[0] != 1:
            raise ImageError(
                f"{wishes.mask}: has {masks[0].shape[0]} channels: expected a mask of one channel, "
                "which is foreground where it is not 0"
            )
        for volume in (volume for job in jobs for volume in job.volumes if masks):
            if len(masks) != 1 or masks[0].space != volume.space:
                raise ImageError(
                    f"{wishes.mask}: has shape {masks[0].space}: expected one mask of the shape of "
                    f"the image, {volume.space}"
                )
        self.plan = BlockWishes(
            recipe=recipe,
            memory_bytes=memory,
            block=read_block(wishes.block, package.n_axes),
            name=wishes.name,
            version=wishes.ome_zarr,
            scratch=wishes.scratch,
            device=self.device,
            precision=wishes.precision,
            mask=masks[0] if masks else None,
            skips_damage=wishes.skip_damaged,
            overwrite=wishes.overwrite,
            keeps_work=True,
        )
        self.blocks = self._count_blocks()
        if wishes.scheduler is None:
            self.workers = min(self.workers, sum(self.blocks))
            in_one_block = sum(self.blocks) == sum(len(job.volumes) for job in jobs)
            if wishes.workers is None and in_one_block and self._is_small():
                self.workers = 1
            # where it was not said how many, cores that are left help inside each
            left = 1 if wishes.workers else max(count_cores() // self.workers, 1)
            threads = min(left, count_threads())
            self.plan = replace(self.plan, threads=threads)

    @contextmanager
    def pool(self, workers: int | None = None) -> Iterator[Pool]:
        """Start workers, or find those of a scheduler."""
        folder = work_folder(self.jobs[0].volumes[0], self.jobs[0].target, self.plan)
        with ExitStack() as stack:
            if self.wishes.scheduler is not None:
                make_folder(folder.parent)
                place = self.package.location.absolute()
                yield stack.enter_context(
                    Cluster.connect(self.wishes.scheduler, folder.parent, place)
                )
            elif (workers or self.workers) == 1 and self._is_small():
                yield Here()
            else:
                # beyond this a worker is ended, and its block tried smaller
                most = max(int(1.3 * self.plan.memory_bytes), 1_500_000_000)
                temporary = stack.enter_context(TemporaryDirectory(prefix="spoco-zoo-"))
                count = workers or self.workers
                yield stack.enter_context(Cluster.start(count, most, Path(temporary)))

    def measure(self, pool: Pool) -> Measured:
        """Try one block of the first image, and keep nothing of it."""
        shared = self.wishes.scratch
        if self.wishes.scheduler is not None:  # where its workers see it
            shared = work_folder(self.jobs[0].volumes[0], self.jobs[0].target, self.plan).parent
        if shared is not None:
            make_folder(shared)
        with TemporaryDirectory(prefix="spoco-zoo-", dir=shared) as folder:
            before = _free_on_gpu() if self.device == "cuda" else None
            measured = measure_block(
                self.jobs[0].volumes[0], self.package, Path(folder), self.plan, pool
            )
            after = None if before is None else _free_on_gpu()  # the worker still holds it
            taken = None if before is None or after is None else max(before - after, 0)
            return replace(measured, gpu_bytes=taken)

    def check(self, job: ImageJob) -> None:
        """Refuse results that are there already, before anything is begun.

        Raises:
            OutputError: One exists.
            SettingError: Labels cannot go there.
        """
        check_target(job.volumes, job.target, self.plan)
        # what lies there of work that has begun is of this very work
        if not has_begun(work_folder(job.volumes[0], job.target, self.plan)):
            for path in (path for named in self._name_files(job) for path in named.values()):
                refuse_existing(path, overwrite=self.wishes.overwrite)

    @contextmanager
    def run_all(
        self, pool: Pool, progress: Callable[[ImageJob], AbstractContextManager[Progress]]
    ) -> Iterator[list[Callable[[], Segmented]]]:
        """Segment all images, several at once where they are small.

        Args:
            pool: Who does the work.
            progress: Told what is being done of an image, from when it is begun until it is done.

        Yields:
            For each image what gives its result, or raises why there is none.
        """

        def run(job: ImageJob) -> Segmented:
            with progress(job) as tell:
                return self.run(job, pool, tell)

        steps = sum(self.blocks) // len(self.jobs)
        at_once = count_at_once(pool.most, len(self.jobs), steps)
        with together([partial(run, job) for job in self.jobs], pool, at_once) as works:
            yield works

    def run(self, job: ImageJob, pool: Pool, progress: Progress) -> Segmented:
        """Segment one image and write all its results.

        Raises:
            SpocoZooError: It cannot be done; the same command goes on later.
        """
        with alone(work_folder(job.volumes[0], job.target, self.plan)):
            return self._run(job, pool, progress)

    def _run(self, job: ImageJob, pool: Pool, progress: Progress) -> Segmented:
        self.check(job)
        files = self._name_files(job)
        # that these were free, or may be replaced, was found out when the work was begun
        overwrite = self.wishes.overwrite or has_begun(
            work_folder(job.volumes[0], job.target, self.plan)
        )
        results = tuple(path for named in files for path in named.values())
        places = tuple(named.pop("embeddings") for named in files if "embeddings" in named)
        plan = replace(self.plan, embeddings=places, results=results)
        done = segment_image(job.volumes, self.package, job.target, plan, pool, progress)
        for part, named in zip(done.jobs, files, strict=True):
            found = None
            if named.keys() - {"overlay"}:
                found = measure_instances(replace(part, labels=done.store), pool, progress)
            progress("writing results", 0, 1)
            write_large_results(named, part.volume, done.store, found, overwrite=overwrite)
            progress("writing results", 1, 1)
        clear(done)
        return done

    def _name_files(self, job: ImageJob) -> list[dict[str, Path]]:
        """Say where results other than labels go, for each point in time."""
        kinds = [kind for kind in self.wishes.kinds if kind != "labels"]
        if job.beside is None or not kinds:
            return [{} for _ in job.volumes]
        return [name_files(path, kinds) for path in job.name_besides()]

    def _count_blocks(self) -> list[int]:
        """Blocks of each image, at all its points in time."""
        spaces = {volume.space: volume for job in self.jobs for volume in job.volumes}
        counts = {
            space: len(plan_job(volume, self.package, Path(), self.plan)[1].layout)
            for space, volume in spaces.items()
        }
        return [sum(counts[volume.space] for volume in job.volumes) for job in self.jobs]

    def _is_small(self) -> bool:
        """Whether it is not worth a process of its own: a few megapixels in all."""
        pixels = sum(math.prod(v.space) for job in self.jobs for v in job.volumes)
        return pixels <= 1 << 24


def _free_on_gpu() -> int | None:
    gpus, _ = read_gpus()
    return gpus[0].free_bytes if gpus else None
