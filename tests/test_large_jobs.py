"""Large inputs: where results go, and what is asked for in words."""

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo.errors import SettingError
from spoco_zoo.large_jobs import (
    LargeRun,
    LargeWishes,
    list_jobs,
    read_memory,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("2.5G", 2_500_000_000),
        ("512MiB", 512 << 20),
        ("1k", 1000),
        ("1234", 1234),
        ("1TB", 10**12),
    ],
)
def test_memory_in_words_of_people(text, count):
    assert read_memory(text, 1) == count


@pytest.mark.parametrize("text", ["", "much", "4 apples", "-1GB", "GB"])
def test_other_words_are_no_memory(text):
    with pytest.raises(SettingError) as error:
        read_memory(text, 1)
    assert str(error.value) == f"--memory is {text}: expected an amount such as 4GB"


def test_without_a_word_memory_is_shared():
    assert 0 < read_memory(None, 4) <= read_memory(None, 1) <= 3_600_000_000


@pytest.fixture
def images(crowd, write_ngff, tmp_path):
    names = ("one/a.ome.zarr", "two/a.zarr", "b.zarr")
    return [str(write_ngff(tmp_path / name, crowd(20, 30), "yx")) for name in names]


def targets_of(jobs):
    return [(job.target, None if job.beside is None else job.beside.name) for job in jobs]


def test_each_image_has_its_place(images, load_tiny, tmp_path):
    package, out = load_tiny("package"), str(tmp_path / "out")
    jobs, _ = list_jobs(images[1:], f"{out}/", package, LargeWishes())
    assert targets_of(jobs) == [(f"{out}/a.ome.zarr", "a.tif"), (f"{out}/b.ome.zarr", "b.tif")]
    jobs, _ = list_jobs(images[:1], f"{out}/c.ome.zarr", package, LargeWishes())
    assert targets_of(jobs) == [(f"{out}/c.ome.zarr", "c.tif")]
    jobs, _ = list_jobs(images, None, package, LargeWishes(into=True))
    assert targets_of(jobs) == [(None, None)] * 3
    (job,), _ = list_jobs(
        images[:1], out, package, LargeWishes(into=True, kinds=("labels", "table"))
    )
    assert targets_of([job]) == [(None, "a.tif")]
    (job,), _ = list_jobs(images[:1], "s3://x/out", package, LargeWishes())
    assert targets_of([job]) == [("s3://x/out/a.ome.zarr", None)]


def test_two_results_never_share_a_place(images, load_tiny, tmp_path):
    with pytest.raises(SettingError) as error:
        list_jobs(images, str(tmp_path), load_tiny("package"), LargeWishes())
    assert str(error.value) == (
        f"two images would both be written to {tmp_path}/a.ome.zarr: run them into separate folders"
    )


def test_tables_of_two_images_never_share_a_place(images, load_tiny, write_ngff, crowd, tmp_path):
    package, out = load_tiny("package"), str(tmp_path / "out")
    both = ("labels", "table")
    with pytest.raises(SettingError) as error:
        list_jobs(images, out, package, LargeWishes(into=True, kinds=both))
    assert str(error.value) == (
        f"two images are called a, and --save would write both to the same files in {out}: "
        "run them into separate folders"
    )
    assert len(list_jobs(images, None, package, LargeWishes(into=True))[0]) == 3
    # a point in time may have the name of another image
    movie = write_ngff(tmp_path / "m.zarr", np.stack([crowd(20, 30)] * 2), "tyx")
    still = write_ngff(tmp_path / "m_t0001.zarr", crowd(20, 30), "yx")
    with pytest.raises(SettingError) as error:
        list_jobs([str(movie), str(still)], out, package, LargeWishes(kinds=both))
    assert str(error.value) == (
        f"two images are called m_t0001, and --save would write both to the same files in {out}: "
        "run them into separate folders"
    )


def test_one_store_is_no_place_for_several_inputs_of_which_one_cannot_be_opened(
    images, load_tiny, tmp_path
):
    with pytest.raises(SettingError) as error:
        list_jobs(
            [images[0], f"{tmp_path}/no.zarr"], "b.ome.zarr", load_tiny("package"), LargeWishes()
        )
    assert str(error.value) == (
        "--out is b.ome.zarr for 2 images: expected a folder, or --into to put labels into the "
        "store of each image"
    )


@pytest.mark.parametrize(
    ("out", "wishes", "sentence"),
    [
        (None, {}, "no --out is given: expected NAME.ome.zarr, a folder, or --into"),
        (
            None,
            {"into": True, "kinds": ("labels", "rois")},
            "--save asks for more than labels, which do not go into the input: give a folder for "
            "them with --out",
        ),
        (
            "out.ome.zarr",
            {"into": True},
            "--into puts labels into the store of the image, and --out is out.ome.zarr: leave one "
            "of them out, or ask with --save for what else goes there",
        ),
        (
            "out.ome.zarr",
            {},
            "--out is out.ome.zarr for 3 images: expected a folder, or --into to put labels into "
            "the store of each image",
        ),
        (
            "s3://x/out",
            {"kinds": ("labels", "table")},
            "--save asks for more than labels, and --out is s3://x/out: expected a folder of this "
            "machine, as only labels go to a server",
        ),
        (
            "memory://x/y.ome.zarr",
            {"kinds": ("labels", "table")},
            "--save asks for more than labels, and --out is memory://x/y.ome.zarr: expected a "
            "folder of this machine, as only labels go to a server",
        ),
    ],
    ids=["nowhere", "into", "both", "many", "server", "store on a server"],
)
def test_results_without_a_place_are_refused(images, load_tiny, out, wishes, sentence):
    with pytest.raises(SettingError) as error:
        list_jobs(images, out, load_tiny("package"), LargeWishes(**wishes))
    assert str(error.value) == sentence


def test_images_for_another_network_are_refused(images, load_tiny, tmp_path):
    jobs, errors = list_jobs(images, str(tmp_path), load_tiny("volume"), LargeWishes())
    assert jobs == []
    assert [str(error) for error in errors] == [
        f"{image}: is an image (y, x): the network takes volumes (z, y, x); choose a package "
        "for images"
        for image in images
    ]


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("2", 2), (None, 4)])
def test_a_worker_that_is_alone_has_as_many_threads_as_the_variable_says(
    images, load_tiny, tmp_path, monkeypatch, said, threads
):
    for room in ("large_jobs", "machine"):
        monkeypatch.setattr(f"spoco_zoo.{room}.count_cores", lambda *_: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    package = load_tiny("package")
    jobs, _ = list_jobs(images[:1], str(tmp_path / "out"), package, LargeWishes())
    run = LargeRun(package, package.config.recipe, jobs, LargeWishes(device="cpu"))
    assert (run.workers, run.plan.threads) == (1, threads)
