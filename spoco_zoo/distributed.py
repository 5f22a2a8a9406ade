"""Images larger than memory, in blocks, on the workers of one machine or of a cluster.

    survey ─ find ─ meet ─ join ─ fill ─ number ─ write ─ pyramid ─ name

The driver sends numbers of blocks to workers and joins what lies on faces; it never sees a pixel.
All that is done lies in a folder of work beside the result, in files that are whole or not there.
So the same command, given again after any end, goes on where it stopped, and ends in the same
bytes. The folder goes when the result has its name.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spoco_zoo import stages
from spoco_zoo.block_jobs import (
    BlockWishes,
    begin,
    has_begun,
    plan_job,
    plan_jobs,
    work_folder,
)
from spoco_zoo.block_plan import Sizes
from spoco_zoo.blocks import Meeting
from spoco_zoo.embedding_stores import create_embeddings, finish_embeddings
from spoco_zoo.errors import OutputError
from spoco_zoo.files import make_folder, write_bytes
from spoco_zoo.joining import (
    AGREEMENT,
    BOUND,
    Joining,
    Numbering,
    has_keys,
    read_keys,
    write_keys,
)
from spoco_zoo.label_metadata import describe
from spoco_zoo.label_stores import (
    LabelStore,
    create_labels,
    dump_store,
    load_store,
    refuse_finished,
    reopen,
)
from spoco_zoo.layout import plan_chunks
from spoco_zoo.margins import plan_order
from spoco_zoo.measurements import Measurements, merge
from spoco_zoo.normalization import Affine, ask_for_affine, fit_affine
from spoco_zoo.package import Package, load_package
from spoco_zoo.recipe import Consistency
from spoco_zoo.scratch import DamagedFileError, is_whole, read_arrays, write_arrays
from spoco_zoo.stages import Done, Job
from spoco_zoo.stores import clean_address
from spoco_zoo.volumes import Volume
from spoco_zoo.workers import Pool, count_at_once, together

Progress = Callable[[str, int, int], None]  # the step, blocks done and blocks in all

_MOST_REPAIRS = 3
_STORE = "store.json"  # the handle of the label image, when only names are missing
_MANY_BLOCKS = 100 << 20  # bytes that a worker of many blocks keeps besides what the first took
_AT_ONCE = 64  # blocks whose measurements are put together


@dataclass(frozen=True)
class Segmented:
    """One image whose instances are found."""

    store: LabelStore
    folder: Path  # of the work, until it is cleared
    jobs: tuple[Job, ...]  # one for each point in time
    totals: tuple[int, ...]  # instances of each
    peak_bytes: int  # of the worker that took most
    told: tuple[str, ...]  # what was skipped, in sentences

    @property
    def url(self) -> str:
        """Where the labels are."""
        return self.store.url


@dataclass(frozen=True)
class Measured:
    """What a trial with one block says of all."""

    job: Job
    sizes: Sizes
    seconds: float
    network_s: float
    peak_bytes: int
    disk_bytes: int  # of what is kept of the block until the end
    shared_bytes: int  # of what neighbours leave for each other, for a pixel
    gpu_bytes: int | None = None  # where there is one and its driver tells


def segment_image(
    volumes: Sequence[Volume],
    package: Package,
    target: str | Path | None,
    wishes: BlockWishes,
    pool: Pool,
    progress: Progress = lambda *_: None,
) -> Segmented:
    """Find the instances of one image, at all its points in time, and write them as OME-Zarr.

    Args:
        volumes: The image: its points in time, or the one volume.
        package: What finds them.
        target: The new store; None puts labels into the store of the image.
        wishes: How.
        pool: Who does the work.
        progress: Told what is being done, and how far.

    Raises:
        OutputError: The result exists, work of another command lies there, or a disk is full.
        ImageError: The image cannot be read.
        SettingError: A wish is impossible.
        PackageError: The network fails.
        DeviceError: Workers fail, or are gone.
    """
    check_target(volumes, target, wishes)
    folder = work_folder(volumes[0], target, wishes)
    jobs = plan_jobs(volumes, package, folder / "steps", wishes)
    asked = {
        "target": None if target is None else clean_address(target),
        # all that is done with what the network gives, and the network's own hash among it
        "package": package.model_dump(mode="json", exclude={"location"}),
    }
    jobs = _keep_embeddings(begin(jobs, folder, asked, wishes), folder, package, wishes)
    store = _open_store(volumes, target, folder, jobs[0].layout.block, wishes)
    runs, totals = _run_all([replace(job, labels=store) for job in jobs], pool, progress)
    # once this is written, only names are missing
    write_bytes(folder / _STORE, dump_store(store), overwrite=True)
    for job, place in zip(jobs, wishes.embeddings, strict=False):
        if job.embeddings is not None and job.embeddings.exists():
            finish_embeddings(job.embeddings, place, overwrite=wishes.overwrite)
    store.finish(max(totals))
    peak = max(run.peak_bytes for run in runs)
    told = tuple(dict.fromkeys(sentence for run in runs for sentence in run.told))
    done = Segmented(store, folder, tuple(jobs), totals, peak, told)
    if not wishes.keeps_work:
        clear(done)
    return done


def _run_all(
    jobs: list[Job], pool: Pool, progress: Progress
) -> tuple[list["_Run"], tuple[int, ...]]:
    """Find and count the instances at all points in time, at several at once if they are small."""
    at_once = count_at_once(pool.most, len(jobs), len(jobs[0].layout))
    # steps of several would mix
    runs = [_Run(job, pool, progress if at_once == 1 else _say_nothing) for job in jobs]
    totals: list[int] = []
    with together([run.run for run in runs], pool, at_once) as works:
        for work in works:
            totals.append(work())
            if at_once > 1:
                progress("points in time", len(totals), len(jobs))
    return runs, tuple(totals)


def check_target(volumes: Sequence[Volume], target: str | Path | None, wishes: BlockWishes) -> None:
    """Refuse a result that may not be written, before anything is begun for it.

    Raises:
        OutputError: It exists.
        SettingError: Labels cannot go there.
    """
    if not has_begun(work_folder(volumes[0], target, wishes)):
        refuse_finished(target, volumes, name=wishes.name, overwrite=wishes.overwrite)


def measure_instances(job: Job, pool: Pool, progress: Progress = lambda *_: None) -> Measurements:
    """Measure all instances of a job whose labels are found, and not cleared yet.

    Raises:
        ImageError: The image cannot be read any more.
        OutputError: Files are damaged again and again.
        DeviceError: Workers fail, or are gone.
    """
    run = _Run(job, pool, progress)
    for _ in range(_MOST_REPAIRS):
        try:
            run.do("measuring instances", "measured", stages.weigh, range(len(job.layout)))
            return _merge_measured(job)
        except DamagedFileError:
            run.run()
    raise _damaged(job)


def _merge_measured(job: Job) -> Measurements:
    # some blocks at a time, so that what they share is put together early
    parts: list[Measurements] = []
    for number in range(len(job.layout)):
        parts.append(stages.read_measured(job, number))
        if len(parts) == _AT_ONCE:
            parts = [merge(parts)]
    return merge(parts)


def clear(done: Segmented) -> None:
    """Delete the work of a result that is finished."""
    shutil.rmtree(done.folder, ignore_errors=True)


def measure_block(
    volume: Volume, package: Package, folder: Path, wishes: BlockWishes, pool: Pool
) -> Measured:
    """Find the instances of one block in the middle, to tell what all will take.

    Nothing is kept. Statistics of the image are not found: those of the block stand for them.

    Raises:
        ImageError: The image cannot be read.
        SettingError: A wish is impossible.
        PackageError: The network fails.
    """
    sizes, job = plan_job(volume, package, folder, wishes)
    middle = [count // 2 for count in job.layout.counts]
    number = int(np.ravel_multi_index(middle, job.layout.counts))
    box = job.layout.box(number)
    pixels = volume.read_around_damage(box)[0] if wishes.skips_damage else volume.read(box)
    affine = fit_affine(pixels, package.normalization)
    job = replace(job, affine=affine)
    make_folder(stages.path_of(job, "found", number).parent)
    ((_, done),) = pool.run(partial(stages.find, job), [number])
    path = stages.path_of(job, "found", number)
    size = path.stat().st_size
    path.unlink()
    shutil.rmtree(job.folder / stages.SHARED, ignore_errors=True)
    shared = 4 * sum(package.numbers) if job.device == "cpu" else 0
    peak = done.peak_bytes + (_MANY_BLOCKS if len(job.layout) > 1 else 0)
    return Measured(job, sizes, done.seconds, done.network_s, peak, size, shared)


class _Run:
    """One image at one point in time."""

    def __init__(self, job: Job, pool: Pool, progress: Progress) -> None:
        self.job = job
        self.peak_bytes = 0
        self.told: list[str] = []
        self._pool = pool
        self._progress = progress

    def run(self) -> int:
        """Do all that is not done; the count of instances.

        Raises:
            OutputError: Files are damaged again and again.
        """
        for _ in range(_MOST_REPAIRS):
            try:
                return self._run()
            except DamagedFileError:
                # what is damaged counts as not done, and the rest as done
                self._forget_joining()
        raise _damaged(self.job)

    def _run(self) -> int:
        layout = self.job.layout
        blocks, numbers = range(len(layout)), self.job.folder / "numbers.zip"
        self._survey()
        order = plan_order(layout, self._pool.count)
        self.do("finding instances", "found", stages.find, order)
        shutil.rmtree(self.job.folder / stages.SHARED, ignore_errors=True)
        self.do("looking at faces", "met", stages.meet, blocks)
        if not has_keys(self.job.folder):
            self._join()
        self.do("filling gaps", "filled", stages.fill, blocks)
        if not (is_whole(numbers) and stages.read_numbers(self.job.folder).is_whole()):
            self._number()
        self.do("writing labels", "written", stages.write, blocks)
        assert self.job.labels is not None
        for level in range(1, len(self.job.labels.plan_pyramid())):
            parts = range(len(stages.plan_level(self.job, level)))
            self.do("writing the pyramid", f"level{level}", partial(_shrink, level), parts)
        return stages.read_numbers(self.job.folder).total

    def _survey(self) -> None:
        """Find out how the image is normalised, unless that is known."""
        path = self.job.folder / "affine.zip"
        if not is_whole(path):
            volume, package = self.job.volume, load_package(self.job.package)
            parts = range(len(stages.plan_survey(self.job)))
            asking = ask_for_affine(package.normalization, volume.shape, np.dtype(volume.dtype))
            try:
                question, turn = next(asking), 0
                while True:
                    work = partial(_ask, question, turn)
                    self.do("looking at intensities", f"survey{turn}", work, parts)
                    answers = (stages.read_answer(self.job, n, turn) for n in parts)
                    total = next(answers)
                    for answer in answers:
                        total = total + answer
                    question, turn = asking.send(total), turn + 1
            except StopIteration as end:
                affine: Affine = end.value
            write_arrays(path, {"gain": affine.gain, "offset": affine.offset})
        self.job = replace(self.job, affine=Affine(*read_arrays(path, "gain", "offset")))

    def do(
        self,
        title: str,
        stage: str,
        work: Callable[[Job, int, int], Done],
        numbers: Iterable[int],
    ) -> None:
        """Let workers do what is not done of a step."""
        make_folder(self.job.folder / stage)
        numbers = list(numbers)
        self._progress(title, 0, len(numbers))
        for count, (_, done) in enumerate(self._pool.run(partial(work, self.job), numbers), 1):
            self.peak_bytes = max(self.peak_bytes, done.peak_bytes)
            self.told += done.told
            self._progress(title, count, len(numbers))

    def _join(self) -> None:
        """Join what lies on faces, and tell each block the keys of its pieces there."""
        names: tuple[str, ...] = BOUND
        if isinstance(self.job.recipe.clustering, Consistency):
            names = (*BOUND, *AGREEMENT)
        joining = Joining(self.job.recipe)
        lowest: list[np.ndarray] = []
        for number in range(len(self.job.layout)):
            ends, *arrays = read_arrays(stages.path_of(self.job, "found", number), "range", *names)
            joining.add_block(dict(zip(names, arrays, strict=True)))
            lowest.append(ends)
            self._progress("joining", number + 1, len(self.job.layout))
        for number in range(len(self.job.layout)):
            path = stages.path_of(self.job, "met", number)
            for axis, other in stages.next_blocks(self.job.layout, number):
                meeting = Meeting(*read_arrays(path, f"links_{axis}", f"contacts_{axis}"))
                joining.add_meeting(number, other, meeting)
        ends = np.stack(lowest)
        is_constant = bool((ends[:, 0].min(axis=0) == ends[:, 1].max(axis=0)).all())
        write_keys(self.job.folder, joining.finish(), is_constant=is_constant)

    def _number(self) -> None:
        """Number all instances."""
        is_constant = read_keys(self.job.folder).is_constant
        numbering = Numbering(self.job.folder)
        names = ("keys", "firsts", "is_shared")
        for number in range(len(self.job.layout)):
            arrays = read_arrays(stages.path_of(self.job, "filled", number), *names)
            numbering.add_block(dict(zip(names, arrays, strict=True)))
        found = numbering.finish()
        if found.total > np.iinfo(np.uint32).max:
            raise OutputError(
                f"{self.job.volume.url}: has {found.total} instances, and labels of 32 bits count "
                "to 4294967295: cut the image into parts"
            )
        write_arrays(
            self.job.folder / "numbers.zip",
            {
                "keys": found.keys,
                "firsts": found.firsts,
                # an image of one value has no instances, whatever the network says
                "total": np.array(0 if is_constant else found.total),
                "checksum": np.array(found.checksum),
            },
        )

    def _forget_joining(self) -> None:
        for name in ("keys.zip", "numbers.zip"):
            (self.job.folder / name).unlink(missing_ok=True)


def _keep_embeddings(
    jobs: list[Job], folder: Path, package: Package, wishes: BlockWishes
) -> list[Job]:
    """Make stores of embeddings where they are wanted and not begun."""
    if not wishes.embeddings:
        return jobs
    is_done = (folder / _STORE).exists()  # then all blocks were found, and all are in
    kept = []
    for job, target in zip(jobs, wishes.embeddings, strict=True):
        place = target.with_name(f".{target.name}.part")
        if not place.exists() and not is_done:
            # blocks that were found before have none
            shutil.rmtree(job.folder / "found", ignore_errors=True)
            shape = (package.embedding_dim, *job.volume.space)
            windows = job.recipe.windows(len(job.volume.space))
            version = wishes.version or "0.4"
            described = describe(job.volume, clean_address(target), None)
            create_embeddings(place, shape, windows, described, version)
        kept.append(replace(job, embeddings=place))
    return kept


def _say_nothing(title: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def _damaged(job: Job) -> OutputError:
    return OutputError(
        f"{job.folder}: files are damaged as soon as they are written: look at this disk"
    )


def _ask(question: Any, turn: int, job: Job, number: int, attempt: int) -> Done:  # noqa: ANN401
    return stages.survey(job, number, attempt, question, turn)


def _shrink(level: int, job: Job, number: int, attempt: int) -> Done:
    return stages.shrink(job, number, attempt, level)


def _open_store(
    volumes: Sequence[Volume],
    target: str | Path | None,
    folder: Path,
    block: Sequence[int],
    wishes: BlockWishes,
) -> LabelStore:
    """Find the unfinished label image of this work, or make one."""
    written = folder / _STORE
    if written.exists():  # an earlier run died between names
        store = load_store(written.read_bytes())
        if store.is_there():
            return store
        written.unlink()  # somebody deleted the result
    chunks = plan_chunks(volumes[0].space, wishes.recipe, block)
    has_begun = any((folder / "steps").glob("**/written/*.zip"))
    if has_begun or not wishes.overwrite:
        found = reopen(target, volumes, name=wishes.name)
        if found is not None:
            sides = zip(block, found.chunks, found.shape, strict=True)
            if all(side % chunk == 0 or side >= n for side, chunk, n in sides):
                return found
    for stage in ("written", "level*"):  # what was written is gone with its store
        for path in (folder / "steps").glob(f"**/{stage}"):
            shutil.rmtree(path)
    return create_labels(
        target,
        volumes,
        chunks=chunks,
        name=wishes.name,
        version=wishes.version,
        overwrite=wishes.overwrite,
    )
