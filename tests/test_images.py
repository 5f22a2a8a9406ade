"""Images and labels as other programs write them, and labels as other programs read them."""

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from spoco_zoo.errors import ImageError, OutputError
from spoco_zoo.images import (
    find_images,
    pair_files,
    read_image,
    read_labels,
    stem_of,
    write_labels,
)
from spoco_zoo.labels import check_labels

SHAPES = [(7, 9), (5, 7, 9)]
DTYPES = [np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.float64]

one_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ramp(*shape, dtype=np.uint8):
    """Every pixel another value, so that no two axes can be swapped unseen."""
    return (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


def tiff(folder, pixels, name="image.tif", **options):
    path = folder / name
    tifffile.imwrite(path, pixels, **options)
    return path


def npy(folder, pixels):
    path = folder / "image.npy"
    np.save(path, pixels)
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Labels: write, read.


@one_folder
@given(st.data())
def test_labels_read_back_as_written(tmp_path, data):
    shape = tuple(data.draw(st.lists(st.integers(2, 6), min_size=2, max_size=3)))
    highest = data.draw(st.sampled_from([0, 1, 300, 2**16 - 1, 2**16, 2**32 - 1]))
    labels = np.random.default_rng(0).integers(0, highest + 1, shape, np.uint32)
    labels.flat[-1] = highest
    scale_um = data.draw(st.none() | st.just((2.0, 0.5, 0.25)[-len(shape) :]))
    path = tmp_path / "labels.tif"
    write_labels(path, labels, scale_um, overwrite=True)
    again = read_labels(path)
    assert again.dtype == np.uint32
    assert again.shape == shape
    assert (again == labels).all()
    assert (read_image(path, len(shape)).pixels == labels[None]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("highest", "kind"), [(65_535, np.uint16), (65_536, np.uint32), (2**32 - 1, np.uint32)]
)
@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_labels_take_16_bits_if_they_fit(tmp_path, shape, highest, kind, dtype):
    labels = np.zeros(shape, dtype)
    labels.flat[5] = highest
    write_labels(tmp_path / "labels.tif", labels)
    stored = tifffile.imread(tmp_path / "labels.tif")
    assert stored.dtype == kind
    assert (stored == labels).all()


def test_a_volume_of_one_plane_reads_as_an_image(tmp_path):
    # TIFF has no word for the difference
    for number, highest in enumerate((5, 70_000)):
        path = tmp_path / f"{number}.tif"
        write_labels(path, np.full((1, 7, 9), highest, np.uint32), (2.0, 0.5, 0.25))
        assert read_labels(path).shape == (7, 9)
        assert read_image(path).scale_um == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("highest", [5, 70_000])
@pytest.mark.parametrize("scale_um", [(2.5, 0.33, 0.21), (40.0, 0.004, 0.0041), (0.3, 7.0, 11.0)])
def test_pixel_size_is_kept(tmp_path, shape, highest, scale_um):
    path, scale_um = tmp_path / "labels.tif", scale_um[-len(shape) :]
    write_labels(path, np.full(shape, highest, np.uint32), scale_um)
    assert read_image(path, len(shape)).scale_um == pytest.approx(scale_um, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_imagej_finds_its_own_metadata_in_16_bit_labels(tmp_path, shape):
    path = tmp_path / "labels.tif"
    write_labels(path, np.ones(shape, np.uint32), (2.5, 0.5, 0.25)[-len(shape) :])
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZYX"[-len(shape) :]
        assert file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata.get("spacing") == (2.5 if len(shape) == 3 else None)
        tags = file.pages[0].tags
        assert tags["YResolution"].value == (2, 1)
        assert tags["XResolution"].value == (4, 1)
        assert tags["Compression"].value == tifffile.COMPRESSION.ADOBE_DEFLATE


@pytest.mark.parametrize("shape", SHAPES)
def test_bioformats_finds_ome_metadata_in_32_bit_labels(tmp_path, shape):
    path = tmp_path / "labels.tif"
    write_labels(path, np.full(shape, 70_000, np.uint32), (2.5, 0.5, 0.25)[-len(shape) :])
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.series[0].axes == "ZYX"[-len(shape) :]
        xml = file.ome_metadata
    sizes = dict(re.findall(r'PhysicalSize([XYZ])="([^"]+)"', xml))
    units = dict(re.findall(r'PhysicalSize([XYZ])Unit="([^"]+)"', xml))
    expected = {"X": "0.25", "Y": "0.5"} | ({"Z": "2.5"} if len(shape) == 3 else {})
    assert sizes == expected
    assert units == dict.fromkeys(expected, "µm")


@pytest.mark.parametrize("highest", [5, 70_000])
def test_without_a_pixel_size_none_is_made_up(tmp_path, highest):
    write_labels(tmp_path / "labels.tif", np.full((7, 9), highest, np.uint32))
    assert read_image(tmp_path / "labels.tif").scale_um is None


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (
            np.array([[3, -1]]),
            "the lowest label is -1: expected 0 or more; renumber the labels from 0",
        ),
        (
            np.array([[2**40, 0]]),
            "the highest label is 1099511627776: expected at most 4294967295; "
            "renumber the labels from 0",
        ),
    ],
)
def test_labels_that_would_change_are_not_written(tmp_path, labels, problem):
    path = tmp_path / "labels.tif"
    with pytest.raises(ImageError) as error:
        write_labels(path, labels)
    assert str(error.value) == f"{path}: {problem}"
    assert names_in(tmp_path) == []


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "labels.tif"
    write_labels(path, np.ones((4, 5), np.uint32))
    with pytest.raises(OutputError) as error:
        write_labels(path, np.zeros((4, 5), np.uint32))
    assert str(error.value) == f"{path}: exists already: choose another name or add --overwrite"
    assert (read_labels(path) == 1).all()
    write_labels(path, np.zeros((4, 5), np.uint32), overwrite=True)
    assert (read_labels(path) == 0).all()
    assert names_in(tmp_path) == ["labels.tif"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_labels_appear_whole_or_not_at_all(tmp_path, monkeypatch, overwrite, failure):
    path = tmp_path / "labels.tif"
    if overwrite:
        write_labels(path, np.ones((4, 5), np.uint32))
        before = path.read_bytes()

    def stop(_):
        raise failure

    monkeypatch.setattr(os, "fsync", stop)
    kind = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as error:
        write_labels(path, np.zeros((4, 5), np.uint32), overwrite=overwrite)
    if kind is OutputError:
        assert str(error.value) == (
            f"{path}: cannot be written (No space left on device): "
            "free space or choose another folder"
        )
    assert names_in(tmp_path) == (["labels.tif"] if overwrite else [])
    if overwrite:
        assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, bool])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_of_any_integers_are_read(tmp_path, dtype, shape):
    labels = ramp(*shape).astype(dtype)
    assert (read_labels(npy(tmp_path, labels)) == labels).all()
    if dtype != np.int64:
        path = tiff(tmp_path, labels, photometric="minisblack")
        assert (read_labels(path) == labels).all()
        assert read_labels(path).dtype == np.uint32


@pytest.mark.parametrize("width", [3, 4])
def test_a_volume_of_labels_as_narrow_as_colours_is_a_volume(tmp_path, width):
    for number, highest in enumerate((5, 70_000)):
        labels = ramp(5, 7, width, dtype=np.uint32) % 5 * np.uint32(highest // 5)
        path = tmp_path / f"{number}.tif"
        write_labels(path, labels)
        assert (read_labels(path) == labels).all()


def test_labels_in_a_palette_png_are_its_numbers(tmp_path):
    labels = ramp(7, 9) % 5
    picture = PillowImage.new("P", (9, 7))
    picture.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200, 90, 90, 90, 20, 20, 20])
    picture.putdata(labels.ravel().tolist())
    picture.save(tmp_path / "labels.png")
    assert (read_labels(tmp_path / "labels.png") == labels).all()


# Images.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_grey_images_and_volumes_keep_their_pixels_and_dtype(tmp_path, dtype, shape):
    pixels = ramp(*shape, dtype=dtype)
    options = {"photometric": "minisblack", "metadata": {"axes": "ZYX"[-len(shape) :]}}
    for path in (tiff(tmp_path, pixels, **options), npy(tmp_path, pixels)):
        image = read_image(path, len(shape))
        assert image.pixels.dtype == dtype
        assert image.space == shape
        assert (image.pixels == pixels[None]).all()
        assert image.scale_um is None


def test_bool_becomes_numbers(tmp_path):
    pixels = ramp(7, 9) > 100
    for path in (tiff(tmp_path, pixels), npy(tmp_path, pixels)):
        image = read_image(path)
        assert image.pixels.dtype == np.uint8
        assert (image.pixels == pixels[None]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"byteorder": "<"},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"byteorder": ">", "compression": "zlib", "tile": (16, 16)},
        {"bigtiff": True},
        {"metadata": None},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(40, 50), (5, 40, 50)])
def test_tiff_is_read_however_it_is_stored(tmp_path, options, dtype, shape):
    pixels = ramp(*shape, dtype=dtype)
    path = tiff(tmp_path, pixels, photometric="minisblack", **options)
    image = read_image(path, len(shape))
    assert image.pixels.dtype == dtype
    assert image.pixels.dtype.isnative
    assert (image.pixels == pixels[None]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_colours_of_a_tiff_are_channels(tmp_path, dtype, planarconfig):
    pixels = ramp(3, 7, 9, dtype=dtype)
    stored = pixels if planarconfig == "separate" else np.moveaxis(pixels, 0, -1)
    path = tiff(tmp_path, stored, photometric="rgb", planarconfig=planarconfig)
    for n_axes in (None, 2):
        assert (read_image(path, n_axes).pixels == pixels).all()


def test_colours_of_a_volume_are_channels(tmp_path):
    pixels = ramp(3, 5, 7, 9)
    path = tiff(tmp_path, np.moveaxis(pixels, 0, -1), photometric="rgb", metadata={"axes": "ZYXS"})
    assert (read_image(path, 3).pixels == pixels).all()


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (ramp(7, 9), "L"),
        (ramp(7, 9, dtype=np.uint16) * np.uint16(250), "I;16"),
        (ramp(7, 9, 3), "RGB"),
        (ramp(7, 9, 4), "RGBA"),
    ],
)
def test_png_is_read_as_it_is(tmp_path, pixels, mode):
    picture = PillowImage.fromarray(pixels)
    assert picture.mode == mode
    picture.save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert image.pixels.dtype == pixels.dtype
    expected = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    assert (image.pixels == expected).all()
    assert image.scale_um is None


def test_png_of_one_bit_or_with_transparent_grey_is_grey(tmp_path):
    grey = ramp(7, 9)
    PillowImage.fromarray(grey > 100).save(tmp_path / "bit.png")
    assert (read_image(tmp_path / "bit.png").pixels == 255 * (grey > 100)[None]).all()
    PillowImage.fromarray(grey).convert("LA").save(tmp_path / "alpha.png")
    assert (read_image(tmp_path / "alpha.png").pixels == grey[None]).all()


@pytest.mark.parametrize(
    ("shape", "n_axes", "expected"),
    [
        ((7, 9), None, (1, 7, 9)),
        ((7, 9), 3, (1, 7, 9)),
        ((5, 7, 9), None, (1, 5, 7, 9)),
        ((5, 7, 9), 3, (1, 5, 7, 9)),
        ((3, 7, 9), None, (3, 7, 9)),
        ((3, 7, 9), 2, (3, 7, 9)),
        ((3, 7, 9), 3, (1, 3, 7, 9)),
        ((7, 9, 3), None, (3, 7, 9)),
        ((7, 9, 3), 2, (3, 7, 9)),
        ((7, 9, 3), 3, (1, 7, 9, 3)),
        ((2, 5, 7, 9), 3, (2, 5, 7, 9)),
        ((5, 7, 9, 2), 3, (2, 5, 7, 9)),
        ((1, 5, 7, 9), 3, (1, 5, 7, 9)),
        ((1, 1, 5, 7, 9), None, (1, 5, 7, 9)),
    ],
)
def test_axes_of_a_plain_array_follow_from_its_shape(tmp_path, shape, n_axes, expected):
    pixels = ramp(*shape)
    image = read_image(npy(tmp_path, pixels), n_axes).pixels
    assert image.shape == expected
    is_moved = len(expected) == len(shape) and expected != shape
    assert (image == (np.moveaxis(pixels, -1, 0) if is_moved else pixels.reshape(expected))).all()


def test_plain_arrays_of_any_order_are_read(tmp_path):
    pixels = ramp(7, 9, dtype=np.uint16)
    for stored in (np.asfortranarray(pixels), pixels.astype(">u2"), pixels[::-1][::-1]):
        assert (read_image(npy(tmp_path, stored)).pixels == pixels[None]).all()


@pytest.mark.parametrize(
    ("planes", "n_axes", "expected"),
    [
        (6, None, (1, 6, 7, 9)),
        (6, 3, (1, 6, 7, 9)),
        (2, None, (2, 7, 9)),
        (2, 2, (2, 7, 9)),
        (2, 3, (1, 2, 7, 9)),
    ],
)
@pytest.mark.parametrize("metadata", [{}, None])
def test_unnamed_planes_of_a_tiff_are_channels_if_few_and_slices_if_many(
    tmp_path, planes, n_axes, expected, metadata
):
    pixels = ramp(planes, 7, 9)
    path = tiff(tmp_path, pixels, photometric="minisblack", metadata=metadata)
    assert (read_image(path, n_axes).pixels == pixels.reshape(expected)).all()


@pytest.mark.parametrize("n_axes", [None, 2, 3])
@pytest.mark.parametrize(
    ("axes", "shape"), [("CYX", (2, 7, 9)), ("ZCYX", (5, 2, 7, 9)), ("ZYX", (5, 7, 9))]
)
def test_imagej_hyperstacks_come_channels_first(tmp_path, axes, shape, n_axes):
    pixels = ramp(*shape, dtype=np.uint16)
    path = tiff(tmp_path, pixels, imagej=True, metadata={"axes": axes})
    expected = pixels.swapaxes(0, 1) if axes == "ZCYX" else pixels
    expected = expected if "C" in axes else expected[None]
    image = read_image(path, n_axes).pixels
    assert image.shape == expected.shape
    assert (image == expected).all()


def test_a_movie_is_a_volume_where_one_is_expected(tmp_path):
    pixels = ramp(5, 7, 9)
    path = tiff(
        tmp_path,
        pixels,
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "TYX", "unit": "um"},
    )
    image = read_image(path, 3)
    assert (image.pixels == pixels[None]).all()
    assert image.scale_um is None  # a file that says frames does not say their distance


# Pixel size.


@pytest.mark.parametrize(
    ("unit", "in_um"),
    [("um", 1), (r"\u00B5m", 1), ("micron", 1), ("microns", 1), ("nm", 1e-3), ("mm", 1e3)],
)
def test_imagej_pixel_size_is_told_in_micrometers(tmp_path, unit, in_um):
    path = tiff(
        tmp_path,
        ramp(5, 7, 9),
        imagej=True,
        resolution=(1 / 0.25, 1 / 0.5),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 2.0},
    )
    expected = pytest.approx((2.0 * in_um, 0.5 * in_um, 0.25 * in_um))
    assert read_image(path).scale_um == expected


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"metadata": {"axes": "YX", "unit": "pixel"}, "resolution": (2, 2)}, "YX"),
        ({"metadata": {"axes": "YX"}, "resolution": (2, 2)}, "YX"),
        ({"metadata": {"axes": "YX", "unit": "um"}, "resolution": (0, 0)}, "YX"),
    ],
)
def test_a_pixel_size_that_says_nothing_is_none(tmp_path, options, axes):
    path = tiff(tmp_path, ramp(7, 9), imagej=True, **options)
    assert read_image(path).scale_um is None


@pytest.mark.parametrize(
    ("axes", "words", "scale_um"),
    [
        (
            "ZYX",
            {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0},
            (2.0, 0.5, 0.25),
        ),
        (
            "CZYX",
            {
                "PhysicalSizeX": 250.0,
                "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.5,
                "PhysicalSizeYUnit": "µm",
                "PhysicalSizeZ": 0.002,
                "PhysicalSizeZUnit": "mm",
            },
            (2.0, 0.5, 0.25),
        ),
        ("YX", {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}, (0.5, 0.25)),
        ("CYX", {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}, (0.5, 0.25)),
        ("ZYX", {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}, None),
        ("YX", {"PhysicalSizeX": 0.25}, None),
        (
            "YX",
            {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1},
            None,
        ),
        ("YX", {}, None),
    ],
)
def test_ome_pixel_size_is_told_in_micrometers(tmp_path, axes, words, scale_um):
    pixels = ramp(*{"C": (2,), "Z": (5,)}.get(axes[0], ()), *((5,) if axes[1] == "Z" else ()), 7, 9)
    path = tiff(
        tmp_path, pixels, "image.ome.tif", photometric="minisblack", metadata={"axes": axes} | words
    )
    image = read_image(path)
    assert (image.pixels == (pixels if "C" in axes else pixels[None])).all()
    assert image.scale_um == (None if scale_um is None else pytest.approx(scale_um))


# What is refused.


def refused_image(path, n_axes=None):
    with pytest.raises(ImageError) as error:
        read_image(path, n_axes)
    return str(error.value)


def refused_labels(path):
    with pytest.raises(ImageError) as error:
        read_labels(path)
    return str(error.value)


@pytest.mark.parametrize("refused", [refused_image, refused_labels])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, refused):
    path = tmp_path / "image.tif"
    assert refused(path) == f"{path}: no such file: check the path"
    path.mkdir()
    assert refused(path) == f"{path}: no such file: check the path"


@pytest.mark.parametrize("refused", [refused_image, refused_labels])
@pytest.mark.parametrize(
    ("name", "what"), [("image.jpg", ".jpg"), ("image", "a file without suffix")]
)
def test_another_format_is_refused(tmp_path, refused, name, what):
    path = tmp_path / name
    path.write_bytes(b"\xff\xd8\xff")
    assert refused(path) == (
        f"{path}: {what} is not read: expected .tif, .tiff, .png, .npy; convert it first"
    )


@pytest.mark.parametrize("refused", [refused_image, refused_labels])
@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png", ".npy"])
def test_a_file_that_is_no_image_is_refused_with_the_reason(tmp_path, refused, suffix):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(b"no image, but words")
    readers = {".tif": tifffile.imread, ".tiff": tifffile.imread, ".png": PillowImage.open}
    with pytest.raises(Exception, match=r".") as reason:
        readers.get(suffix.lower(), read_npy)(path)
    assert refused(path) == (
        f"{path}: cannot be read as {suffix[1:].upper()} ({reason.value}): "
        "open it in Fiji and save it again"
    )


def read_npy(path):
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def test_an_empty_file_is_refused(tmp_path):
    for suffix in (".tif", ".png", ".npy"):
        path = tmp_path / f"image{suffix}"
        path.write_bytes(b"")
        message = refused_image(path)
        assert message.startswith(f"{path}: cannot be read as {suffix[1:].upper()} (")
        assert message.endswith("): open it in Fiji and save it again")


def test_a_python_object_is_not_unpickled(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert refused_image(path) == (
        f"{path}: cannot be read as NPY "
        "(Object arrays cannot be loaded when allow_pickle=False): "
        "open it in Fiji and save it again"
    )


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "image.npz", a=np.zeros((4, 5)))
    path = (tmp_path / "image.npz").rename(tmp_path / "image.npy")
    assert refused_image(path).startswith(f"{path}: cannot be read as NPY (")


def written_in_every_way(folder):
    pixels = ramp(40, 50, dtype=np.uint16) * np.uint16(257)
    yield tiff(folder, pixels, "plain.tif")
    yield tiff(folder, pixels, "zlib.tif", compression="zlib")
    yield tiff(folder, pixels, "tiled.tif", compression="zlib", tile=(16, 16))
    yield tiff(folder, np.stack([pixels] * 3), "stack.tif", imagej=True, compression="zlib")
    PillowImage.fromarray(pixels).save(folder / "grey.png")
    yield folder / "grey.png"
    yield npy(folder, pixels)


@pytest.mark.parametrize("n", range(6))
def test_a_damaged_file_is_refused_or_read_and_never_worse(tmp_path, n):
    random = np.random.default_rng(n)
    path = list(written_in_every_way(tmp_path))[n]
    whole = path.read_bytes()
    n_refused = 0
    # cut off anywhere, or overwritten in the pixels: not in the sizes, which may ask for terabytes
    for length in random.integers(0, len(whole), 40):
        path.write_bytes(whole[:length])
        n_refused += is_refused(path)
    for start in random.integers(len(whole) // 2, len(whole) - 20, 40):
        path.write_bytes(whole[:start] + random.bytes(16) + whole[start + 16 :])
        n_refused += is_refused(path)
    assert n_refused >= 20


def is_refused(path):
    try:
        read_image(path)
    except ImageError as error:
        return str(error).startswith(f"{path}: ")
    return False


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (np.zeros((4, 5), np.complex64), "pixels are complex64: expected integers or floats"),
        (np.full((4, 5), "a"), "pixels are <U1: expected integers or floats"),
        (np.zeros((0, 5)), "shape is (1, 0, 5): expected at least one pixel per axis"),
        (np.zeros(5), "shape is (5,): expected (y, x), (z, y, x) or either with channels"),
        (
            np.zeros((2, 2, 4, 5, 6)),
            "shape is (2, 2, 4, 5, 6): expected (y, x), (z, y, x) or either with channels",
        ),
        (
            np.where(np.arange(20).reshape(4, 5) < 3, np.nan, 1),
            "3 of 20 pixels are NaN or infinite: replace them by finite values",
        ),
        (
            np.where(np.arange(20).reshape(4, 5) < 1, -np.inf, 1).astype(np.float32),
            "1 of 20 pixels are NaN or infinite: replace them by finite values",
        ),
    ],
)
def test_pixels_that_are_no_image_are_refused(tmp_path, pixels, problem):
    path = npy(tmp_path, pixels)
    assert refused_image(path) == f"{path}: {problem}"


@pytest.mark.parametrize(
    ("axes", "shape", "n_axes"),
    [("TYX", (5, 7, 9), None), ("TZYX", (5, 6, 7, 9), 2), ("TZYX", (5, 6, 7, 9), 3)],
)
def test_a_time_series_is_refused(tmp_path, axes, shape, n_axes):
    path = tiff(tmp_path, ramp(*shape), imagej=True, metadata={"axes": axes})
    assert refused_image(path, n_axes) == (
        f"{path}: axes are {axes} of shape {shape}: expected y and x, "
        "with z for a volume and at most one channel axis; split a time series into files"
    )


@pytest.mark.parametrize("axes", ["IYX", "TYX"])
def test_many_planes_are_no_image_unless_they_are_channels_by_name(tmp_path, axes):
    words = {"metadata": None} if axes == "IYX" else {"imagej": True, "metadata": {"axes": axes}}
    path = tiff(tmp_path, ramp(6, 7, 9), photometric="minisblack", **words)
    assert refused_image(path, 2) == (
        f"{path}: axes are {axes} of shape (6, 7, 9), with planes that are no channels by their "
        "name: expected y and x alone, or with channels; name the channels, split a time series "
        "into files, or take a network for volumes"
    )


def test_a_reason_without_words_is_not_told(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0garbage")  # the library says no more than 0
    assert refused_image(path) == (
        f"{path}: cannot be read as TIF (IndexError): open it in Fiji and save it again"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fractional_labels_are_refused(tmp_path, dtype):
    path = tiff(tmp_path, ramp(7, 9, dtype=dtype))
    assert refused_labels(path) == (
        f"{path}: labels are {np.dtype(dtype)}: expected integers, 0 for no instance; "
        "save them as 16 or 32 bit integers"
    )


def test_negative_labels_are_refused(tmp_path):
    path = tiff(tmp_path, ramp(7, 9, dtype=np.int16) - np.int16(3))
    assert refused_labels(path) == (
        f"{path}: the lowest label is -3: expected 0 or more; renumber the labels from 0"
    )


def test_labels_beyond_32_bits_are_refused(tmp_path):
    path = npy(tmp_path, np.full((4, 5), 2**32, np.uint64))
    assert refused_labels(path) == (
        f"{path}: the highest label is 4294967296: expected at most 4294967295; "
        "renumber the labels from 0"
    )
    highest = np.full((4, 5), 2**32 - 1, np.uint64)
    assert (check_labels(highest, "labels") == highest).all()


def colour_picture(folder, kind):
    pixels = ramp(7, 9, 3)
    match kind:
        case "contig":
            return tiff(folder, pixels, photometric="rgb")
        case "separate":
            return tiff(folder, pixels.transpose(2, 0, 1), photometric="rgb", planarconfig=kind)
        case "npy":
            return npy(folder, pixels)
    PillowImage.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png"


@pytest.mark.parametrize("kind", ["contig", "separate", "png", "npy"])
def test_colour_pictures_are_no_labels(tmp_path, kind):
    path = colour_picture(tmp_path, kind)
    shape = (3, 7, 9) if kind == "separate" else (7, 9, 3)
    assert refused_labels(path) == (
        f"{path}: label shape is {shape}: expected (y, x) or (z, y, x) with one integer a pixel; "
        "a colour picture holds no labels"
    )


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)])
def test_labels_of_another_count_of_axes_are_refused(tmp_path, shape):
    path = npy(tmp_path, np.zeros(shape, np.uint16))
    assert refused_labels(path) == (
        f"{path}: label shape is {shape}: expected (y, x) or (z, y, x) with one integer a pixel; "
        "a colour picture holds no labels"
    )


# Files.


@pytest.fixture
def folder(tmp_path):
    for name in ("b.tif", "a.PNG", "c.npy", ".hidden.tif", "notes.txt", "d.ome.tiff"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep.tif").mkdir()
    (tmp_path / "deep.tif" / "e.tif").write_bytes(b"")
    return tmp_path


def found(inputs, folder):
    return [str(path.relative_to(folder)) for path in find_images(inputs)]


def test_a_folder_gives_its_images_sorted(folder):
    assert found([folder], folder) == ["a.PNG", "b.tif", "c.npy", "d.ome.tiff"]
    assert found([str(folder)], folder) == ["a.PNG", "b.tif", "c.npy", "d.ome.tiff"]


def test_a_pattern_gives_the_images_it_matches_sorted(folder):
    assert found([f"{folder}/*.tif"], folder) == ["b.tif"]
    assert found([f"{folder}/*"], folder) == ["a.PNG", "b.tif", "c.npy", "d.ome.tiff"]
    assert found([f"{folder}/[bc].*"], folder) == ["b.tif", "c.npy"]
    assert found([f"{folder}/**/*.tif"], folder) == ["b.tif", "deep.tif/e.tif"]


def test_files_are_taken_as_given_and_once(folder):
    given = [folder / "c.npy", folder / "notes.txt", folder / "none.tif", folder, folder / "b.tif"]
    names = ["c.npy", "notes.txt", "none.tif", "a.PNG", "b.tif", "d.ome.tiff"]
    assert found(given, folder) == names
    assert find_images([]) == []


def test_a_file_may_have_the_name_of_a_pattern(folder):
    (folder / "a[1].tif").write_bytes(b"")
    assert found([folder / "a[1].tif"], folder) == ["a[1].tif"]


@pytest.mark.parametrize("entry", ["empty", "*.jpg", "nothing*", "*.txt"])
def test_an_input_without_an_image_is_refused(folder, entry):
    (folder / "empty").mkdir()
    with pytest.raises(ImageError) as error:
        find_images([folder / "b.tif", f"{folder}/{entry}"])
    assert str(error.value) == (
        f"{folder}/{entry}: no image found: expected files ending in .tif, .tiff, .png, .npy"
    )


def test_a_stem_is_the_name_without_any_suffix_of_an_image():
    names = {"a.tif": "a", "a.ome.tif": "a", "A.OME.TIFF": "A", "a.b.png": "a.b", "a": "a"}
    assert {name: stem_of(Path("folder") / name) for name in names} == names


def two_folders(tmp_path, left, right):
    for side, names in (("left", left), ("right", right)):
        (tmp_path / side).mkdir()
        for name in names:
            (tmp_path / side / name).write_bytes(b"")
    return tmp_path / "left", tmp_path / "right"


def test_files_of_two_folders_pair_by_their_stem(tmp_path):
    left, right = two_folders(
        tmp_path, ["b.tif", "a.ome.tif", "c.png"], ["a.png", "b.npy", "c.png"]
    )
    assert pair_files(left, right) == [
        (left / "a.ome.tif", right / "a.png"),
        (left / "b.tif", right / "b.npy"),
        (left / "c.png", right / "c.png"),
    ]


def test_two_files_are_a_pair_whatever_their_names(tmp_path):
    left, right = two_folders(tmp_path, ["a.tif"], ["b.tif"])
    pair = (left / "a.tif", right / "b.tif")
    assert pair_files(*pair) == [pair]


@pytest.mark.parametrize(
    ("names", "rivals"),
    [
        (["a.tif", "a.png", "b.tif"], "a.png and a.tif"),
        (["a.tif", "a.ome.tif"], "a.ome.tif and a.tif"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_two_files_of_one_name_are_refused(tmp_path, names, rivals, side):
    alone = ["a.tif", "b.tif"]
    left, right = two_folders(tmp_path, *((names, alone) if side == "left" else (alone, names)))
    with pytest.raises(ImageError) as error:
        pair_files(left, right)
    assert str(error.value) == f"{tmp_path / side}: holds both {rivals}: keep one file per name"


@pytest.mark.parametrize(
    ("left", "right", "lonely", "folder", "more"),
    [
        (["a.tif", "b.tif"], ["a.tif"], "left/b.tif", "right", ""),
        (["a.tif"], ["a.tif", "c.tif", "b.tif"], "right/b.tif", "left", " and 1 more"),
        (["a.tif", "b.tif", "c.tif"], ["d.tif"], "left/a.tif", "right", " and 2 more"),
    ],
)
def test_a_file_without_a_partner_is_refused(tmp_path, left, right, lonely, folder, more):
    folders = two_folders(tmp_path, left, right)
    with pytest.raises(ImageError) as error:
        pair_files(*folders)
    assert str(error.value) == (
        f"{tmp_path / lonely}: no partner in {tmp_path / folder}{more}: "
        "expected a file of the same name in both folders"
    )


def test_a_file_and_a_folder_are_no_pair(tmp_path):
    left, right = two_folders(tmp_path, ["a.tif"], ["a.tif"])
    with pytest.raises(ImageError) as error:
        pair_files(left / "a.tif", right)
    assert str(error.value) == (
        f"{left / 'a.tif'} and {right}: one is a folder and one is a file: give two of a kind"
    )


def test_a_path_that_is_not_there_is_no_pair(tmp_path):
    left, _ = two_folders(tmp_path, ["a.tif"], [])
    with pytest.raises(ImageError) as error:
        pair_files(left, tmp_path / "none")
    assert str(error.value) == f"{tmp_path / 'none'}: no such file or folder: check the path"


def test_a_folder_without_images_is_no_pair(tmp_path):
    left, right = two_folders(tmp_path, ["a.tif"], ["a.txt"])
    with pytest.raises(ImageError) as error:
        pair_files(left, right)
    assert str(error.value) == (
        f"{right}: no image found: expected files ending in .tif, .tiff, .png, .npy"
    )


def test_colour_png_of_16_bits_is_refused_and_not_cut_to_8(tmp_path):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + struct.pack(">6H", 1, 300, 65535, 7, 8, 9) for _ in range(2))
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == (
        f"{path}: is a PNG of 16 bits in colour, which would be cut to 8: save it as TIFF"
    )


def test_a_palette_is_numbers_for_labels_and_refused_for_images(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = PillowImage.fromarray(indices, mode="L").convert("P")
    picture.putpalette([255, 255, 255, 90, 90, 90, 0, 0, 0])
    picture.putdata(list(indices.ravel()))
    path = tmp_path / "palette.png"
    picture.save(path)
    assert (read_labels(path) == indices).all()
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{path}: is a picture with a palette: save it as grey or RGB"


def test_inverted_tiff_is_refused_as_an_image(tmp_path):
    path = tmp_path / "inverted.tif"
    tifffile.imwrite(path, np.arange(12, dtype=np.uint8).reshape(3, 4), photometric="miniswhite")
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == (
        f"{path}: its pixels are MINISWHITE, not intensities: save it as grey or RGB"
    )


def test_a_file_of_several_images_is_refused_and_not_cut_to_the_first(tmp_path):
    path = tmp_path / "scenes.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(np.zeros((4, 5), np.uint8))
        writer.write(np.zeros((6, 7), np.uint8))
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value) == f"{path}: holds 2 images: save them as separate files"


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e12])
def test_an_impossible_pixel_size_is_left_out(tmp_path, size):
    path = tmp_path / "size.ome.tif"
    scale = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(path, np.zeros((4, 5), np.uint8), ome=True, metadata={"axes": "YX", **scale})
    assert read_image(path).scale_um is None
