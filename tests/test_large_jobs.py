"""Large inputs: where results go, and what is asked for in words."""

import numpy as np
import pytest

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.large_jobs import (
    LargeWishes,
    find_inputs,
    is_large,
    is_zarr,
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


def test_what_is_run_in_blocks(tmp_path):
    (tmp_path / "a.tif").touch()
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "zarr.json").touch()
    assert is_large([f"{tmp_path}/group"], "out", into=False)
    assert is_large(["s3://x/a"], "out", into=False)
    assert is_large(["a.zarr/"], "out", into=False)
    assert is_large([f"{tmp_path}/a.tif"], "out.OME.ZARR/", into=False)
    assert is_large([f"{tmp_path}/a.tif"], None, into=True)
    assert not is_large([f"{tmp_path}/a.tif"], "out", into=False)
    (tmp_path / "plates" / "a.zarr").mkdir(parents=True)
    assert is_large([f"{tmp_path}/plates"], "out", into=False)
    assert is_large([f"{tmp_path}/*/*.zarr"], "out", into=False)
    assert not is_large([f"{tmp_path}"], "out", into=False)
    assert not is_zarr(None)


@pytest.fixture
def images(crowd, write_ngff, tmp_path):
    names = ("one/a.ome.zarr", "two/a.zarr", "b.zarr")
    return [str(write_ngff(tmp_path / name, crowd(20, 30), "yx")) for name in names]


def test_a_folder_or_pattern_is_what_it_holds_of_ome_zarr(images, tmp_path):
    (tmp_path / "one" / ".b.zarr.part").mkdir()
    (tmp_path / "one" / ".b.zarr").mkdir()
    assert find_inputs([f"{tmp_path}/one", "s3://x/*.zarr"]) == [images[0], "s3://x/*.zarr"]
    assert find_inputs([f"{tmp_path}/*/*.zarr"]) == images[:2]
    assert find_inputs([images[2]]) == [images[2]]
    assert find_inputs([f"{tmp_path}/no/*.zarr"]) == [f"{tmp_path}/no/*.zarr"]
    (tmp_path / "one" / "c.tif").touch()  # of a folder of images, OME-Zarr are no part
    assert find_inputs([f"{tmp_path}/one"]) == [f"{tmp_path}/one"]
    assert find_inputs([f"{tmp_path}/one/[ac].*"]) == [images[0], f"{tmp_path}/one/c.tif"]


def targets_of(jobs):
    return [(job.target, None if job.beside is None else job.beside.name) for job in jobs]


def test_each_image_has_its_place(images, load_tiny, tmp_path):
    package, out = load_tiny("package"), str(tmp_path / "out")
    jobs = list_jobs(images[1:], f"{out}/", package, LargeWishes())
    assert targets_of(jobs) == [(f"{out}/a.ome.zarr", "a.tif"), (f"{out}/b.ome.zarr", "b.tif")]
    jobs = list_jobs(images[:1], f"{out}/c.ome.zarr", package, LargeWishes())
    assert targets_of(jobs) == [(f"{out}/c.ome.zarr", "c.tif")]
    jobs = list_jobs(images, None, package, LargeWishes(into=True))
    assert targets_of(jobs) == [(None, None)] * 3
    (job,) = list_jobs(images[:1], out, package, LargeWishes(into=True, kinds=("labels", "table")))
    assert targets_of([job]) == [(None, "a.tif")]
    (job,) = list_jobs(images[:1], "s3://x/out", package, LargeWishes())
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
    assert len(list_jobs(images, None, package, LargeWishes(into=True))) == 3
    # a point in time may have the name of another image
    movie = write_ngff(tmp_path / "m.zarr", np.stack([crowd(20, 30)] * 2), "tyx")
    still = write_ngff(tmp_path / "m_t0001.zarr", crowd(20, 30), "yx")
    with pytest.raises(SettingError) as error:
        list_jobs([str(movie), str(still)], out, package, LargeWishes(kinds=both))
    assert str(error.value) == (
        f"two images are called m_t0001, and --save would write both to the same files in {out}: "
        "run them into separate folders"
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
    with pytest.raises(ImageError) as error:
        list_jobs(images, str(tmp_path), load_tiny("volume"), LargeWishes())
    assert str(error.value) == (
        f"{images[0]}: is an image (y, x): the network takes volumes (z, y, x); choose a package "
        "for images"
    )
