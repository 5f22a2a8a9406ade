"""Work on a large image as it is begun: its wishes, its blocks, and where it lies meanwhile.

What was begun and not ended is gone on with by the same command alone: `job.json` in the folder
of work says what was asked for.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from spoco_zoo.block_plan import Sizes, choose_sizes
from spoco_zoo.errors import OutputError, SettingError
from spoco_zoo.files import make_folder, refused, write_bytes
from spoco_zoo.layout import Layout, plan_chunks, plan_layout
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe
from spoco_zoo.stages import Job
from spoco_zoo.stores import MARKS, clean_address, is_remote, join, refuse_archive
from spoco_zoo.volumes import Volume

_TOLD = "job.json"  # what was asked for


@dataclass(frozen=True)
class BlockWishes:
    """What a user may ask of a run in blocks; what is None is chosen."""

    recipe: Recipe
    memory_bytes: int
    block: tuple[int, ...] | None = None
    name: str = "instances"
    version: Any = None  # of OME-Zarr, where a new store is written
    scratch: Path | None = None
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    mask: Volume | None = None
    skips_damage: bool = False
    overwrite: bool = False
    embeddings: tuple[Path, ...] = ()  # where they go, for each point in time, if anywhere
    results: tuple[Path, ...] = ()  # other files that are made of it afterwards
    keeps_work: bool = False  # for what is made of the result afterwards


def work_folder(volume: Volume, target: str | Path | None, wishes: BlockWishes) -> Path:
    """Where the work of an image lies until its result has its name.

    Raises:
        SettingError: The result goes into an archive, or to a server and no folder for the work
            is named.
    """
    place = str(target) if target is not None else join(volume.url, "labels", wishes.name)
    refuse_archive(place)
    name = Path(place.rstrip("/")).name if target is not None else f"{volume.name}.{wishes.name}"
    if wishes.scratch is not None:
        # others of this name may have theirs in the same folder
        digits = hashlib.sha256(clean_address(place).encode()).hexdigest()[:8]
        return wishes.scratch.absolute() / f".{name}-{digits}.work"
    beside = place if target is not None else volume.url
    if is_remote(beside):
        raise SettingError(
            f"{beside}: is on a server, where work in progress is not kept: name a folder for it "
            "with --scratch"
        )
    return Path(beside).absolute().parent / f".{name}.work"


def has_begun(folder: Path) -> bool:
    """Whether there is work that was begun and not ended."""
    return (folder / _TOLD).exists()


def plan_job(
    volume: Volume, package: Package, folder: Path, wishes: BlockWishes
) -> tuple[Sizes, Job]:
    """Plan blocks that fit into memory.

    Raises:
        SettingError: None do, or a wish is impossible.
    """
    sizes = choose_sizes(
        package,
        wishes.recipe,
        volume.space,
        wishes.memory_bytes,
        wishes.block,
        shares=wishes.device == "cpu",
    )
    chunks = plan_chunks(volume.space, wishes.recipe, wishes.block)
    layout = plan_layout(volume.space, wishes.recipe, chunks, sizes.block)
    job = Job(
        folder=_folder_of(volume, folder),
        volume=volume,
        package=package.location.absolute(),
        sha256=package.config.files[package.onnx_name],
        recipe=wishes.recipe,
        layout=layout,
        inner=tuple(map(min, sizes.inner, layout.block)),
        # on a GPU a part goes through the network as one tile, so that it may stay there
        tile=sizes.tile if wishes.device == "cpu" else None,
        device=wishes.device,
        threads=wishes.threads,
        precision=wishes.precision,
        mask=wishes.mask,
        skips_damage=wishes.skips_damage,
    )
    return sizes, job


def plan_jobs(
    volumes: Sequence[Volume], package: Package, folder: Path, wishes: BlockWishes
) -> list[Job]:
    """Plan all points in time of an image, which are alike.

    Raises:
        SettingError: No block fits into memory, or a wish is impossible.
    """
    job = plan_job(volumes[0], package, folder, wishes)[1]
    return [replace(job, folder=_folder_of(volume, folder), volume=volume) for volume in volumes]


def _folder_of(volume: Volume, folder: Path) -> Path:
    return folder if volume.time is None else folder / f"t{volume.time}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs from the work of an image, for as long as this one is at it.

    Raises:
        OutputError: Another run is at it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0)
    make_folder(folder.parent)
    try:
        # where a lock cannot be written, it looks to some as if somebody had it
        with TemporaryFile(dir=folder.parent):
            lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"{folder}: another run is working on this result: wait until it has ended"
        ) from error
    except OSError as error:
        raise refused(folder.parent, error) from error
    try:
        yield
    finally:
        if not folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def begin(
    jobs: list[Job], folder: Path, asked: Mapping[str, Any], wishes: BlockWishes
) -> list[Job]:
    """Go on with work of the same command, in its blocks, or start anew.

    Args:
        jobs: What is to be done, one job for each point in time.
        folder: Where work lies.
        asked: What decides the result and is in no job, in words that JSON has.
        wishes: How.

    Raises:
        OutputError: Work of another command lies there.
    """
    path = folder / _TOLD
    told = _tell(jobs, asked, wishes)
    if path.exists():
        known, blocks = _read_told(path)
        if known is not None and wishes.skips_damage:
            # what was done has seen no damage, so it is the same with and without skipping
            known |= {"skips_damage": True}
        same_blocks = wishes.block is None or blocks == [job.layout.block for job in jobs]
        if known == {**told, "blocks": None} and same_blocks:
            jobs = [_with_block(job, block) for job, block in zip(jobs, blocks, strict=True)]
            _note(path, _tell(jobs, asked, wishes))  # from now on with skipping
            return jobs
        if not wishes.overwrite:
            raise OutputError(
                f"{folder}: holds unfinished work of a command with other settings: give that "
                "command again to go on, or add --overwrite to start anew"
            )
    shutil.rmtree(folder, ignore_errors=True)
    _note(path, told)
    return jobs


def _note(path: Path, told: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(told, indent=1).encode(), overwrite=True)


def _read_told(path: Path) -> tuple[dict[str, Any] | None, list[tuple[int, ...]]]:
    """What was asked for, and the blocks in which it was begun; None where nobody can tell."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        blocks = [tuple(block) for block in known["blocks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []
    return {**known, "blocks": None}, blocks


def _with_block(job: Job, block: tuple[int, ...]) -> Job:
    inner = tuple(map(min, job.inner, block))
    return replace(job, layout=Layout(job.layout.shape, block), inner=inner)


def _tell(jobs: list[Job], asked: Mapping[str, Any], wishes: BlockWishes) -> dict[str, Any]:
    """Say in JSON what decides a result; memory, device and workers do not."""
    from importlib.metadata import version

    mask = wishes.mask
    words = {
        "program": version("spoco-zoo"),
        "volumes": [asdict(job.volume) for job in jobs],
        "stamps": [_stamp(job.volume) for job in jobs],
        "network": jobs[0].sha256,
        "recipe": jobs[0].recipe.model_dump(mode="json"),
        "mask": None if mask is None else [asdict(mask), _stamp(mask)],
        "precision": wishes.precision,
        "skips_damage": wishes.skips_damage,
        "name": wishes.name,
        "version": wishes.version,
        "embeddings": [str(path) for path in wishes.embeddings],
        "results": sorted(str(path) for path in wishes.results),
        "blocks": [job.layout.block for job in jobs],
        **asked,
    }
    plain: dict[str, Any] = json.loads(json.dumps(words))
    return plain


def _stamp(volume: Volume) -> list[int] | None:
    """Tell a file or an array from a later one of its name; None where that cannot be told.

    Of a Zarr its metadata are looked at: chunks that were replaced one by one are not seen.
    """
    if is_remote(volume.url):
        return None
    places = [Path(volume.url)]
    if volume.stored.kind == "zarr":
        places = [Path(volume.url) / volume.stored.key / mark for mark in MARKS]
    for place in places:
        with suppress(OSError):
            found = place.stat()
            return [found.st_size, found.st_mtime_ns]
    return None
