"""Work on a large image as it is begun: its wishes, its blocks, and where it lies meanwhile.

What was begun and not ended is gone on with by the same command alone: `job.json` in the folder
of work says what was asked for.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spoco_zoo.block_plan import Sizes, choose_sizes
from spoco_zoo.errors import OutputError, SettingError
from spoco_zoo.files import write_bytes
from spoco_zoo.layout import Layout, plan_chunks, plan_layout
from spoco_zoo.package import Package
from spoco_zoo.recipe import Recipe
from spoco_zoo.stages import Job
from spoco_zoo.stores import clean_address, is_remote
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
    keeps_work: bool = False  # for what is made of the result afterwards


def work_folder(volume: Volume, target: str | Path | None, wishes: BlockWishes) -> Path:
    """Where the work of an image lies until its result has its name.

    Raises:
        SettingError: The result goes to a server, and no folder for the work is named.
    """
    place = str(target) if target is not None else f"{volume.url}/labels/{wishes.name}"
    name = Path(place.rstrip("/")).name if target is not None else f"{volume.name}.{wishes.name}"
    if wishes.scratch is not None:
        return wishes.scratch.absolute() / f".{name}.work"
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
    sizes = choose_sizes(package, wishes.recipe, volume.space, wishes.memory_bytes, wishes.block)
    chunks = plan_chunks(volume.space, wishes.recipe, wishes.block)
    layout = plan_layout(volume.space, wishes.recipe, chunks, sizes.block)
    job = Job(
        folder=folder if volume.time is None else folder / f"t{volume.time}",
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


def begin(
    jobs: list[Job], folder: Path, target: str | Path | None, wishes: BlockWishes
) -> list[Job]:
    """Go on with work of the same command, in its blocks, or start anew.

    Raises:
        OutputError: Work of another command lies there.
    """
    place = None if target is None else clean_address(target)
    told = [_tell(job, place) for job in jobs]
    path = folder / _TOLD
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            blocks = [tuple(words.pop("block")) for words in known]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            known, blocks = None, []
        mine = [{key: value for key, value in words.items() if key != "block"} for words in told]
        if known is not None and wishes.skips_damage:
            # what was done has seen no damage, so it is the same with and without skipping
            known = [words | {"skips_damage": True} for words in known]
        same_blocks = wishes.block is None or blocks == [job.layout.block for job in jobs]
        if known == mine and same_blocks:
            jobs = [_with_block(job, block) for job, block in zip(jobs, blocks, strict=True)]
            _note(path, jobs, place)  # from now on with skipping
            return jobs
        if not wishes.overwrite:
            raise OutputError(
                f"{folder}: holds unfinished work of a command with other settings: give that "
                "command again to go on, or add --overwrite to start anew"
            )
    shutil.rmtree(folder, ignore_errors=True)
    _note(path, jobs, place)
    return jobs


def _note(path: Path, jobs: list[Job], target: str | None) -> None:
    told = [_tell(job, target) for job in jobs]
    write_bytes(path, json.dumps(told, indent=1).encode(), overwrite=True)


def _with_block(job: Job, block: tuple[int, ...]) -> Job:
    inner = tuple(map(min, job.inner, block))
    return replace(job, layout=Layout(job.layout.shape, block), inner=inner)


def _tell(job: Job, target: str | None) -> dict[str, Any]:
    """Say in JSON what decides a result; memory, device and workers do not."""
    words = {
        "volume": asdict(job.volume),
        "network": job.sha256,
        "recipe": job.recipe.model_dump(mode="json"),
        "mask": None if job.mask is None else asdict(job.mask),
        "precision": job.precision,
        "skips_damage": job.skips_damage,
        "block": job.layout.block,
        "target": target,
    }
    plain: dict[str, Any] = json.loads(json.dumps(words))
    return plain
