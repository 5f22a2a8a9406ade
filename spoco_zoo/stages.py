"""What a worker does with one block of a large image, and the files that it leaves.

    survey   what normalisation must know of the whole image, asked part by part
    find     network and clustering                              found/N, shared/N-M
    meet     the faces towards the next blocks                   met/N
    fill     undecided pixels, with the keys of joined pieces    filled/N
    write    final numbers into the label image                  written/N

A worker is sent a `Job`: where things are, and settings; never pixels. A file appears whole or
not at all and carries checksums, so a step that was done is not done again, by whomever and
however often it is asked for, and a step that died leaves nothing that counts.
"""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt32

from spoco_zoo.blocks import fill as fill_block
from spoco_zoo.blocks import find_block
from spoco_zoo.blocks import meet as meet_blocks
from spoco_zoo.embedder import TILE, Embedder, Roll, Seen
from spoco_zoo.embedding_stores import write_embeddings
from spoco_zoo.errors import PackageError
from spoco_zoo.images import check_finite
from spoco_zoo.intensities import Question
from spoco_zoo.joining import Numbers, read_keys
from spoco_zoo.label_stores import LabelStore
from spoco_zoo.labels import look_up
from spoco_zoo.layout import Layout
from spoco_zoo.machine import choose_gpu, peak_bytes, read_gpus
from spoco_zoo.margins import SharedMargins
from spoco_zoo.measurements import Measurements, measure
from spoco_zoo.normalization import Affine
from spoco_zoo.package import load_package
from spoco_zoo.recipe import Recipe
from spoco_zoo.scratch import DamagedFileError, is_whole, read_arrays, write_arrays
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.tiling import Box, Tile, inner_box, widen
from spoco_zoo.volumes import Volume

SHARED = "shared"  # the folder of what blocks leave for each other while they are found
_LEAST_TILE = 16  # pixels a side, below which nothing is gained
_FAR = 4  # times the usual size that a part of the survey may have, to be of whole chunks


@dataclass(frozen=True)
class Job:
    """A large image to be segmented, as it is told to workers."""

    folder: Path  # that all workers see
    volume: Volume
    package: Path
    sha256: str  # of its weights
    recipe: Recipe
    layout: Layout
    inner: tuple[int, ...]  # pixels that are embedded and clustered at once
    tile: tuple[int, ...] | None
    device: str
    threads: int
    precision: str = "float32"
    mask: Volume | None = None
    skips_damage: bool = False
    affine: Affine | None = field(default=None, compare=False)
    labels: LabelStore | None = None
    embeddings: Path | None = None  # where they are kept, if they are wanted


@dataclass(frozen=True)
class Done:
    """What is told of a finished step."""

    seconds: float
    network_s: float = 0.0
    peak_bytes: int = 0
    told: tuple[str, ...] = ()  # sentences for the user


def path_of(job: Job, stage: str, number: int) -> Path:
    """The file that a step of a block leaves."""
    return job.folder / stage / f"{number}.zip"


def plan_survey(job: Job) -> list[Box]:
    """Cut the image into parts with whole rows, of some tens of megabytes and whole chunks."""
    space, chunks = job.volume.space, job.volume.chunks
    most = (1 << 26) // (job.volume.shape[0] * np.dtype(job.volume.dtype).itemsize)
    sizes = [*chunks[:-1], space[-1]]
    # a large shard, or a TIFF of one strip; of shards, halves mostly are whole chunks again
    while math.prod(sizes) > _FAR * most and max(sizes[:-1]) > 1:
        axis = sizes.index(max(sizes[:-1]))
        sizes[axis] = -(-sizes[axis] // 2)
    for axis in reversed(range(len(space) - 1)):
        sizes[axis] = min(sizes[axis] * max(most // math.prod(sizes), 1), space[axis])
    return Layout(space, tuple(sizes)).boxes()


def survey(job: Job, number: int, attempt: int, question: Question, turn: int) -> Done:
    """Put a question to a part of the image."""
    start, path = time.monotonic(), path_of(job, f"survey{turn}", number)
    if is_whole(path):
        return Done(time.monotonic() - start, told=_read_told(path))
    pixels, told = _read(job, plan_survey(job)[number])
    write_arrays(path, _pack(question(pixels)) | {"told": np.array(told, str)})
    return Done(time.monotonic() - start, told=told)


def read_answer(job: Job, number: int, turn: int) -> np.ndarray:
    """What a part of the image answered.

    Raises:
        DamagedFileError: It has to be asked again.
    """
    kind, answer = read_arrays(path_of(job, f"survey{turn}", number), "kind", "answer")
    return _unpack(str(kind), answer)


def find(job: Job, number: int, attempt: int) -> Done:
    """Embed a block and find its pieces; after a failure in smaller parts."""
    start, path = time.monotonic(), path_of(job, "found", number)
    margins = job.recipe.margins(len(job.layout.shape))
    shared = SharedMargins(job.folder / SHARED, job.layout, margins, number)
    if is_whole(path):
        shared.forget()  # a worker may have died just before
        return Done(time.monotonic() - start, told=_read_told(path))
    smaller = 2 ** max(attempt - 1, 0)  # once it may have been somebody else's fault
    inner = [max(side // smaller, 1) for side in job.inner]
    tile = job.tile or (TILE[len(inner)],) * len(inner)
    if smaller > 1:
        tile = tuple(max(side // smaller, _LEAST_TILE) for side in tile)
    session = _open(job)
    assert job.affine is not None
    excerpt, told = _excerpt(job, session, number, tile)
    ends = excerpt.range_in(job.layout.box(number))
    embedder = Embedder(excerpt, session, tile, job.affine)
    # what did not fit is tried again without what neighbours left, which is not cut smaller; and
    # on a GPU it was never tried whether tiles of other sizes give the same last bits
    sharing = shared if smaller == 1 and job.device == "cpu" else None
    roll = Roll(embedder, job.recipe, on_host=job.embeddings is not None, sharing=sharing)
    mask = None if job.mask is None else _Lazy(job.mask)

    def note(tile: Tile, seen: Seen) -> None:
        if job.embeddings is not None:
            inside = (slice(None), *inner_box(tile.keep, tile.write))
            write_embeddings(job.embeddings, tile.write, seen.known.embedding[inside])

    def let_go() -> None:
        roll.let_go()
        excerpt.let_go()

    arrays = find_block(
        roll.see,
        job.recipe,
        job.layout,
        number,
        inner,
        mask=mask,
        threads=job.threads,
        note=note,
        let_go=let_go,
    )
    write_arrays(path, arrays | {"range": ends, "told": np.array(told, str)})
    shared.forget()
    return Done(time.monotonic() - start, embedder.network_s, peak_bytes(), told)


def meet(job: Job, number: int, attempt: int) -> Done:
    """Look at the faces of a block towards the next one along each axis."""
    start, path = time.monotonic(), path_of(job, "met", number)
    if not is_whole(path):
        found: dict[str, np.ndarray] = {}
        for axis, other in next_blocks(job.layout, number):
            meeting = meet_blocks(_loader(job), number, axis, other)
            found |= {f"links_{axis}": meeting.links, f"contacts_{axis}": meeting.contacts}
        write_arrays(path, found)
    return Done(time.monotonic() - start, peak_bytes=peak_bytes())


def fill(job: Job, number: int, attempt: int) -> Done:
    """Give undecided pixels of a block to neighbours."""
    start, path = time.monotonic(), path_of(job, "filled", number)
    if not is_whole(path):
        keys = read_keys(job.folder)
        write_arrays(path, fill_block(_loader(job), keys.of_block, job.recipe, job.layout, number))
    return Done(time.monotonic() - start, peak_bytes=peak_bytes())


def write(job: Job, number: int, attempt: int) -> Done:
    """Write the final labels of a block."""
    start, path = time.monotonic(), path_of(job, "written", number)
    if not is_whole(path):
        assert job.labels is not None
        job.labels.write(job.layout.box(number), _final_labels(job, number), job.volume.time)
        write_arrays(path, {})
    return Done(time.monotonic() - start, peak_bytes=peak_bytes())


def weigh(job: Job, number: int, attempt: int) -> Done:
    """Measure the instances of a block, with the intensities of the image."""
    start, path = time.monotonic(), path_of(job, "measured", number)
    if not is_whole(path):
        box = job.layout.box(number)
        pixels, _ = _read(job, box)
        found = measure(_final_labels(job, number), pixels, [s.start for s in box])
        write_arrays(path, vars(found))
    return Done(time.monotonic() - start, peak_bytes=peak_bytes())


def read_measured(job: Job, number: int) -> Measurements:
    """What was measured of a block.

    Raises:
        DamagedFileError: It has to be measured again.
    """
    names = [field.name for field in fields(Measurements)]
    return Measurements(*read_arrays(path_of(job, "measured", number), *names))


def _final_labels(job: Job, number: int) -> UInt32[np.ndarray, "*space"]:
    names = ("labels", "keys", "firsts", "is_shared")
    found = dict(zip(names, read_arrays(path_of(job, "filled", number), *names), strict=True))
    labels = found["labels"]
    return look_up(read_numbers(job.folder).of_block(found), labels, out=labels)


def shrink(job: Job, number: int, attempt: int, level: int) -> Done:
    """Write one part of a coarser level of the label image."""
    start, path = time.monotonic(), path_of(job, f"level{level}", number)
    if not is_whole(path):
        assert job.labels is not None
        box = plan_level(job, level)[number]
        job.labels.downsample(level, box, job.volume.time)
        write_arrays(path, {})
    return Done(time.monotonic() - start, peak_bytes=peak_bytes())


def plan_level(job: Job, level: int) -> list[Box]:
    """Cut a coarser level of the label image into parts for `shrink`, of whole chunks."""
    assert job.labels is not None
    plan = job.labels.plan_pyramid()[level]
    sizes = [
        chunk * max(round(block / chunk / 2), 1)
        for block, chunk in zip(job.layout.block, plan.chunks, strict=True)
    ]
    return Layout(plan.shape, tuple(sizes)).boxes()


def next_blocks(layout: Layout, number: int) -> Iterator[tuple[int, int]]:
    """Axes along which there is a next block, and its number."""
    n_axes = len(layout.shape)
    for axis in range(n_axes):
        other = layout.neighbor(number, [int(n == axis) for n in range(n_axes)])
        if other is not None:
            yield axis, other


def read_numbers(folder: Path) -> Numbers:
    """The numbers of all instances, as the driver wrote them.

    Raises:
        DamagedFileError: They have to be found again.
    """
    path = folder / "numbers.zip"
    try:
        return _read_numbers(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DamagedFileError(f"{path}: {error}") from error


@lru_cache(maxsize=2)
def _read_numbers(path: Path, changed: int) -> Numbers:
    names = ("total", "keys", "firsts", "checksum")
    total, keys, firsts, checksum = read_arrays(path, *names)
    return Numbers(path.with_name("firsts.part"), int(total), keys, firsts, int(checksum))


class Excerpt:
    """A part of a large image in memory, in the coordinates of the whole."""

    def __init__(self, shape: tuple[int, ...], box: Box, pixels: np.ndarray) -> None:
        """Take the pixels `(c, *space)` of a box."""
        self.shape = shape
        self._box = box
        self._pixels = pixels

    def __getitem__(self, place: tuple[slice, ...], /) -> Shaped[np.ndarray, "c *space"]:
        """Pixels of a box, cut where the image ends."""
        cut = [
            slice(s.start, min(s.stop, n)) for s, n in zip(place[1:], self.shape[1:], strict=True)
        ]
        return np.asarray(self._pixels[(place[0], *inner_box(self._box, tuple(cut)))])

    def let_go(self) -> None:
        """Forget the pixels."""
        self._pixels = np.empty((0,) * self._pixels.ndim, self._pixels.dtype)

    def range_in(self, box: Box) -> Shaped[np.ndarray, "2 c"]:
        """Lowest and highest value of each channel in a box."""
        pixels = self._pixels[(slice(None), *inner_box(self._box, box))]
        axes = tuple(range(1, pixels.ndim))
        return np.stack([pixels.min(axis=axes), pixels.max(axis=axes)])


class _Lazy:
    """A volume that is read where it is looked at."""

    def __init__(self, volume: Volume) -> None:
        self.shape = volume.shape
        self._volume = volume

    def __getitem__(self, place: tuple[slice, ...], /) -> Shaped[np.ndarray, "c *space"]:
        return self._volume.read(place[1:])[place[0]]


def _excerpt(
    job: Job, session: EmbeddingSession, number: int, tile: Sequence[int]
) -> tuple[Excerpt, tuple[str, ...]]:
    """Read all that the network sees of a block: margin, halo, and the rest of the pooling grid."""
    config = session.package.config
    margins = job.recipe.margins(len(job.layout.shape))
    sides = zip(margins, config.halo, config.multiple_of, strict=True)
    around = [margin + halo + 2 * step for margin, halo, step in sides]
    box = widen(job.layout.box(number), around, job.volume.space)
    pixels, told = _read(job, box)
    return Excerpt(job.volume.shape, box, pixels), told


def _read(job: Job, box: Box) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a box, with or without what is damaged."""
    told: list[str] = []
    if job.skips_damage:
        pixels, told = job.volume.read_around_damage(box)
    else:
        pixels = job.volume.read(box)
    corner = ", ".join(str(s.start) for s in box)
    check_finite(pixels, f"{job.volume.url}, at ({corner})")
    return pixels, tuple(told)


def _read_told(path: Path) -> tuple[str, ...]:
    (told,) = read_arrays(path, "told")
    return tuple(told.tolist())


def _loader(job: Job) -> Any:  # noqa: ANN401 - a function of a number and names
    return lambda number, *names: read_arrays(path_of(job, "found", number), *names)


def _open(job: Job) -> EmbeddingSession:
    return _opened(job.package, job.sha256, job.device, job.threads, job.precision, os.getpid())


@lru_cache(maxsize=1)
def _opened(
    package: Path, sha256: str, device: str, threads: int, precision: str, process: int
) -> EmbeddingSession:
    """Open the network once for each process."""
    loaded = load_package(package)
    if loaded.config.files[loaded.onnx_name] != sha256:
        raise PackageError(
            f"{package}: is another package than the one that this run was begun with: "
            "put that back, or add --overwrite to start anew"
        )
    if device == "cuda":
        _take_gpu()
    return EmbeddingSession(loaded, device, threads, precision)


def _take_gpu() -> None:
    """Show this process one GPU of several, before CUDA starts in it, if it is a Dask worker.

    Where dask-cuda starts workers it has given a GPU to each.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None or "dask_cuda" in sys.modules:
        return
    try:
        name = distributed.get_worker().name
    except ValueError:  # no worker: this process has the machine to itself
        return
    # asking CUDA itself for the count would start it
    gpu = choose_gpu(name, len(read_gpus()[0]), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _pack(answer: np.ndarray) -> dict[str, np.ndarray]:
    """Fractions as text, counts as they are."""
    if answer.dtype != object:
        return {"kind": np.array("counts"), "answer": answer}
    return {"kind": np.array("fractions"), "answer": np.array([str(f) for f in answer])}


def _unpack(kind: str, answer: np.ndarray) -> np.ndarray:
    from fractions import Fraction

    if kind == "counts":
        return answer
    fractions = np.empty(len(answer), object)
    fractions[:] = [Fraction(text) for text in answer.tolist()]
    return fractions
