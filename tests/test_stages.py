"""What a worker does with a block: the same file in parts of any size, and nothing twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo import stages
from spoco_zoo.block_jobs import BlockWishes, plan_job
from spoco_zoo.errors import PackageError
from spoco_zoo.layout import Layout
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import load_package
from spoco_zoo.scratch import read_arrays
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.volumes import open_volumes

DATA = Path(__file__).parent / "data"


@pytest.fixture
def make_job(crowd, write_ngff, tmp_path):
    def make(kind, block, package=None):
        package = load_package(package or DATA / f"tiny_{kind}")
        n_axes = package.n_axes
        pixels = crowd(*{2: (70, 90), 3: (16, 40, 50)}[n_axes])
        url = write_ngff(tmp_path / "a.zarr", pixels, "zyx"[-n_axes:])
        window = {2: (16, 16), 3: (8, 16, 16)}[n_axes]
        recipe = package.config.recipe.model_copy(update={"window": window})
        wishes = BlockWishes(recipe, 2_000_000_000, block=block)
        (volume,) = open_volumes(url, n_axes)
        _, job = plan_job(volume, package, tmp_path / "work", wishes)
        return replace(job, affine=fit_affine(pixels[None], package.normalization))

    return make


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_a_block_in_smaller_parts_is_the_same_file(make_job, kind, monkeypatch):
    monkeypatch.setattr(stages, "_LEAST_TILE", 8)
    job = make_job(kind, (16, 32, 32) if kind == "volume" else (48, 48))
    path = stages.path_of(job, "found", 1)
    done = stages.find(job, 1, 0)
    whole = path.read_bytes()
    assert done.seconds > 0
    assert done.peak_bytes > 1 << 20
    for attempt in (1, 3, 5):
        path.unlink()
        stages.find(job, 1, attempt)
        assert path.read_bytes() == whole
    # on a GPU a part goes through the network at once
    path.unlink()
    stages.find(replace(job, tile=(8, 16, 16)[-len(job.inner) :]), 1, 0)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["package", "momentum", "volume"])
def test_what_a_neighbour_has_embedded_is_not_embedded_again(make_job, kind, monkeypatch):
    job = make_job(kind, (16, 32, 32) if kind == "volume" else (48, 48))
    seen = []
    embed = EmbeddingSession.embed

    def watch(session, image):
        seen.append(image.size)
        return embed(session, image)

    monkeypatch.setattr(EmbeddingSession, "embed", watch)
    path = stages.path_of(job, "found", 1)
    stages.find(job, 1, 0)
    alone, without = sum(seen), path.read_bytes()
    path.unlink()
    stages.find(job, 0, 0)
    assert list(job.folder.glob("shared/0-1/*"))
    seen.clear()
    stages.find(job, 1, 0)
    assert sum(seen) < alone
    assert path.read_bytes() == without
    assert not list(job.folder.glob("shared/*-1/*"))
    # a block that is tried again in small parts takes nothing and leaves nothing
    stages.path_of(job, "found", 0).unlink()
    stages.find(job, 0, 3)
    assert not list(job.folder.glob("shared/0-1/*"))


def test_a_step_that_is_done_is_not_done_again(make_job):
    job = make_job("package", (48, 48))
    stages.find(job, 0, 0)
    path = stages.path_of(job, "found", 0)
    before = path.stat().st_mtime_ns, path.read_bytes()
    again = stages.find(job, 0, 0)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert again.network_s == 0
    path.write_bytes(before[1][:-1] + b"?")
    stages.find(job, 0, 0)
    assert path.read_bytes() == before[1]


def test_a_package_that_was_changed_meanwhile_is_refused(make_job, copy_tiny, edit_rdf):
    package = copy_tiny("package")
    job = make_job("package", (48, 48), package)
    (package / "weights.onnx").write_bytes((DATA / "tiny_momentum/weights.onnx").read_bytes())
    edit_rdf(package)
    with pytest.raises(PackageError) as error:
        stages.find(job, 0, 0)
    assert str(error.value) == (
        f"{package}: is another package than the one that this run was begun with: put that back, "
        "or add --overwrite to start anew"
    )


@pytest.mark.parametrize("kind", ["package", "volume"])
def test_parts_of_the_survey_are_the_image_once(make_job, kind):
    job = make_job(kind, (16, 32, 32) if kind == "volume" else (48, 48))
    counts = np.zeros(job.volume.space, int)
    for box in stages.plan_survey(job):
        counts[box] += 1
    assert (counts == 1).all()
    # a large image is cut where chunks end
    space = (300, 2048, 2048) if kind == "volume" else (40000, 40000)
    volume = replace(job.volume, shape=(1, *space), chunks=(64,) * len(space))
    boxes = stages.plan_survey(replace(job, volume=volume))
    assert len(boxes) > 10
    assert all(s.start % 64 == 0 for box in boxes for s in box)
    assert max(np.prod([s.stop - s.start for s in box]) for box in boxes) <= 1 << 26


@pytest.mark.parametrize(
    ("space", "chunks"),
    [
        ((2048, 2048, 2048), (128, 128, 128)),
        ((500, 3000, 5000), (1, 512, 512)),
        ((700, 700, 700), (64, 64, 64)),
        ((900, 2000, 4000), (64, 64, 64)),
        ((9, 300, 200), (9, 300, 200)),
    ],
)
def test_no_chunk_is_in_two_parts_of_the_survey(make_job, space, chunks):
    job = make_job("volume", (16, 32, 32))
    volume = replace(job.volume, shape=(1, *space), chunks=chunks, dtype="uint16")
    boxes = stages.plan_survey(replace(job, volume=volume))
    assert boxes == stages.plan_survey(replace(job, volume=volume))
    assert sum(np.prod([s.stop - s.start for s in box]) for box in boxes) == np.prod(space)
    assert len({tuple(s.start for s in box) for box in boxes}) == len(boxes)
    for box in boxes:
        assert box[-1] == slice(0, space[-1])
        assert all(s.start % c == 0 for s, c in zip(box, chunks, strict=True))
        assert all(
            s.stop % c == 0 or s.stop == n for s, c, n in zip(box, chunks, space, strict=True)
        )
        assert np.prod([s.stop - s.start for s in box]) <= 1 << 26  # pixels


@pytest.mark.parametrize(
    ("space", "chunks", "part"),
    [
        ((2048, 2048, 2048), (1024, 1024, 1024), (256, 256, 2048)),  # shards
        ((1, 60000, 50000), (1, 60000, 50000), (1, 1875, 50000)),  # a TIFF of one strip
    ],
)
def test_chunks_too_large_for_a_part_are_cut_evenly(make_job, space, chunks, part):
    job = make_job("volume", (16, 32, 32))
    volume = replace(job.volume, shape=(1, *space), chunks=chunks, dtype="uint16")
    boxes = stages.plan_survey(replace(job, volume=volume))
    assert boxes == Layout(space, part).boxes()


def test_a_block_sees_no_more_than_margin_and_halo(make_job, monkeypatch):
    job = make_job("package", (16, 16))
    read = []
    real = type(job.volume).read
    monkeypatch.setattr(
        type(job.volume), "read", lambda self, box: read.append(box) or real(self, box)
    )
    stages.find(job, 9, 0)
    (box,) = read
    here = job.layout.box(9)
    # a quarter of a window, the halo of the package, and its pooling grid twice
    assert [h.start - b.start for h, b in zip(here, box, strict=True)] == [4 + 4 + 4] * 2
    (told,) = read_arrays(stages.path_of(job, "found", 9), "told")
    assert told.tolist() == []
