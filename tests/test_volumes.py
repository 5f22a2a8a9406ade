"""Images larger than memory at the door: OME-Zarr of every kind, and large TIFFs."""

import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")
fsspec = pytest.importorskip("fsspec")
import tifffile

from spoco_zoo.errors import ImageError, MissingExtraError
from spoco_zoo.pyramids import guess_downsampling
from spoco_zoo.volumes import (
    find_volumes,
    group_images,
    is_volume,
    open_volumes,
)

quick = settings(max_examples=60, deadline=None)

UNITS = {"z": 1000.0, "y": 500.0, "x": 250.0}  # nanometres


def numbers(shape, dtype=np.uint16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def write_image(url, pixels, axes, version="0.4", levels=1, **array):
    """Write an image as its format says, by hand: nobody's library decides what is right."""
    zarr_format = 3 if version == "0.5" else 2
    text = str(url)
    store = text if "://" not in text else zarr.storage.FsspecStore.from_url(text)
    group = zarr.create_group(store=store, zarr_format=zarr_format, overwrite=True)
    datasets = []
    for n in range(levels):
        step = tuple(slice(None, None, 2**n if axis in "zyx" else 1) for axis in axes)
        scale = [UNITS.get(a, 1.0) * (2**n if a in "zyx" else 1) for a in axes]
        changes = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [10.0 if a in "zyx" else 0.0 for a in axes]},
        ]
        datasets.append({"path": f"s{n}", "coordinateTransformations": changes})
        keys = {"name": "default" if zarr_format == 3 else "v2", "separator": "/"}
        made = group.create_array(
            f"s{n}",
            shape=pixels[step].shape,
            dtype=pixels.dtype,
            chunk_key_encoding=keys,
            **({"chunks": tuple(min(4, s) for s in pixels[step].shape)} | array),
        )
        made[...] = pixels[step]
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in named:
        if axis["type"] == "space":
            axis["unit"] = "nanometer"
    image = {"axes": named, "datasets": datasets}
    omero = {"channels": [{"label": name} for name in ("DAPI", "GFP", "RFP")]}
    put_attributes(group, {"multiscales": [image], "omero": omero}, version)
    return str(url)


def put_attributes(group, attributes, version="0.4"):
    if version == "0.5":
        group.attrs.put({"ome": {"version": "0.5"} | attributes})
    else:
        group.attrs.put(attributes)


def everything(volume):
    return tuple(slice(0, n) for n in volume.space)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "zcyx", "zyxc", "xyz", "cxzy"])
def test_any_axis_order_becomes_channels_first(tmp_path, version, axes):
    sizes = {"c": 3, "z": 5, "y": 6, "x": 7}
    inside = numbers([sizes[a] for a in "czyx" if a in axes])
    stored = inside.transpose([[a for a in "czyx" if a in axes].index(a) for a in axes])
    url = write_image(tmp_path / "a.ome.zarr", stored, axes, version)
    (volume,) = open_volumes(url, 3)
    whole = inside if "c" in axes else inside[None]
    assert (volume.name, volume.shape, volume.dtype) == ("a", whole.shape, "uint16")
    assert volume.scale_um == (1.0, 0.5, 0.25)
    assert volume.chunks == (4, 4, 4)
    assert (volume.level, volume.time) == (0, None)
    assert np.array_equal(volume.read(everything(volume)), whole)
    box = (slice(1, 5), slice(3, 6), slice(2, 7))
    assert np.array_equal(volume.read(box), whole[(slice(None), *box)])
    again = pickle.loads(pickle.dumps(volume))
    assert again == volume
    assert hash(again) == hash(volume)
    assert np.array_equal(again.read(box), whole[(slice(None), *box)])


def test_other_bytes_are_made_those_of_this_machine(tmp_path):
    swapped = numbers((6, 7)).astype(">u2" if sys.byteorder == "little" else "<u2")
    (volume,) = open_volumes(write_image(tmp_path / "a.zarr", swapped, "yx"), 2)
    pixels = volume.read(everything(volume))
    assert pixels.dtype == np.uint16
    assert pixels.dtype.isnative
    assert np.array_equal(pixels[0], numbers((6, 7)))


def test_a_level_has_its_own_shape_and_scale(tmp_path):
    url = write_image(tmp_path / "a.zarr", numbers((2, 9, 8)), "cyx", levels=2)
    (volume,) = open_volumes(url, 2, level=1)
    assert (volume.level, volume.shape, volume.scale_um) == (1, (2, 5, 4), (1.0, 0.5))
    assert (volume.finest, volume.downsampling) == ((9, 8), (2, 2))
    assert open_volumes(url, 2)[0].downsampling == (1, 1)
    assert np.array_equal(volume.read(everything(volume)), numbers((2, 9, 8))[:, ::2, ::2])
    with pytest.raises(ImageError) as error:
        open_volumes(url, 2, level=2)
    assert str(error.value) == (
        f"{url}: has no level 2: its levels are 0 of shape (2, 9, 8), 1 of shape (2, 5, 4)"
    )


@pytest.mark.parametrize("wanted", [["RFP"], [2], ["RFP", "DAPI"], [0, 2], [0, 1, 2], ["1"]])
def test_channels_are_chosen_by_index_or_name(tmp_path, wanted):
    url = write_image(tmp_path / "a.zarr", numbers((3, 6, 7)), "cyx")
    index = [{"DAPI": 0, "GFP": 1, "RFP": 2, "1": 1}.get(w, w) for w in wanted]
    (volume,) = open_volumes(url, 2, channels=wanted)
    assert volume.shape == (len(wanted), 6, 7)
    assert np.array_equal(volume.read(everything(volume)), numbers((3, 6, 7))[index])


def test_a_channel_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    url = write_image(tmp_path / "a.zarr", numbers((3, 6, 7)), "cyx")
    with pytest.raises(ImageError) as error:
        open_volumes(url, 2, channels=["Cy5"])
    assert str(error.value) == (
        f"{url}: has no channel Cy5: its channels are 0 (DAPI), 1 (GFP), 2 (RFP)"
    )
    url = write_image(tmp_path / "b.zarr", numbers((2, 6, 7)), "cyx")
    with pytest.raises(ImageError) as error:
        open_volumes(url, 2, channels=[2])
    assert str(error.value) == f"{url}: has no channel 2: its channels are 0, 1"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_time_series_is_one_volume_for_each_point_in_time(tmp_path, version):
    url = write_image(tmp_path / "a.zarr", numbers((3, 2, 1, 6, 7)), "tczyx", version)
    volumes = open_volumes(url, 2)
    assert [v.time for v in volumes] == [0, 1, 2]
    for n, volume in enumerate(volumes):
        assert volume.shape == (2, 6, 7)
        assert np.array_equal(
            volume.read(everything(volume)), numbers((3, 2, 1, 6, 7))[n].squeeze(1)
        )


def test_a_network_for_images_refuses_a_volume_and_the_other_way_round(tmp_path):
    deep = write_image(tmp_path / "a.zarr", numbers((5, 6, 7)), "zyx")
    with pytest.raises(ImageError) as error:
        open_volumes(deep, 2)
    assert str(error.value) == (
        f"{deep}: is a volume of 5 slices: the network takes images (y, x); "
        "choose a package for volumes"
    )
    flat = write_image(tmp_path / "b.zarr", numbers((2, 1, 6, 7)), "czyx")
    with pytest.raises(ImageError) as error:
        open_volumes(flat, 3)
    assert str(error.value) == (
        f"{flat}: is an image (y, x): the network takes volumes (z, y, x); "
        "choose a package for images"
    )


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_plate_is_walked_well_by_well_and_field_by_field(tmp_path, version):
    zarr_format = 3 if version == "0.5" else 2
    plate = tmp_path / "plate.zarr"
    root = zarr.create_group(store=str(plate), zarr_format=zarr_format)
    put_attributes(root, {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}]}}, version)
    for n, well in enumerate(("A/1", "B/2")):
        group = root.create_group(well)
        put_attributes(group, {"well": {"images": [{"path": "0"}, {"path": "1"}]}}, version)
        for field in range(2):
            write_image(plate / well / str(field), numbers((6, 7)) + 10 * n + field, "yx", version)
    volumes = open_volumes(plate, 2)
    assert [v.name for v in volumes] == ["A-1-0", "A-1-1", "B-2-0", "B-2-1"]
    assert [int(v.read(everything(v))[0, 0, 0]) for v in volumes] == [0, 1, 10, 11]
    assert volumes[2].url == str(plate / "B/2/0")
    assert [v.name for v in open_volumes(plate / "B/2", 2)] == ["0", "1"]


@pytest.mark.parametrize("damage", [{}, {"well": []}, {"well": {"images": [{"path": ".."}]}}])
def test_a_well_that_says_nothing_of_its_fields_does_not_stop_the_others(tmp_path, damage):
    plate = tmp_path / "plate.zarr"
    root = zarr.create_group(store=str(plate), zarr_format=2)
    root.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    root.create_group("A/1").attrs.put(damage)
    root.create_group("B/2").attrs["well"] = {"images": [{"path": "0"}]}
    write_image(plate / "B/2/0", numbers((6, 7)), "yx")
    volumes, errors = find_volumes(plate, 2)
    assert [v.name for v in volumes] == ["B-2-0"]
    told = (
        f"{plate}/A/1: its list of images cannot be understood: expected a plate, well or series "
        "of OME-Zarr 0.4 or 0.5"
    )
    assert [str(error) for error in errors] == [told]
    with pytest.raises(ImageError) as error:
        open_volumes(plate, 2)
    assert str(error.value) == told


def test_a_plate_that_leads_elsewhere_is_refused(tmp_path):
    plate = tmp_path / "plate.zarr"
    root = zarr.create_group(store=str(plate), zarr_format=2)
    root.attrs["plate"] = {"wells": [{"path": "../../secrets"}]}
    with pytest.raises(ImageError) as error:
        open_volumes(plate, 2)
    assert str(error.value) == (
        f"{plate}: its list of images cannot be understood: expected a plate, well or series "
        "of OME-Zarr 0.4 or 0.5"
    )


@pytest.mark.parametrize("is_listed", [True, False])
def test_series_of_bioformats2raw_are_walked(tmp_path, is_listed):
    url = tmp_path / "a.zarr"
    root = zarr.create_group(store=str(url), zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    if is_listed:
        root.create_group("OME").attrs["series"] = ["0", "1"]
    for n in range(2):
        write_image(url / str(n), numbers((6, 7)) + n, "yx")
    volumes = open_volumes(url, 2)
    assert [v.name for v in volumes] == ["0", "1"]
    assert int(volumes[1].read(everything(volumes[1]))[0, 0, 0]) == 1


def test_a_store_in_memory_and_a_file_address_are_read(tmp_path):
    url = write_image("memory://volumes/a.ome.zarr", numbers((5, 6, 7)), "zyx", "0.5")
    assert is_volume(url)
    (volume,) = open_volumes(url, 3)
    assert volume.url == url
    assert np.array_equal(volume.read(everything(volume))[0], numbers((5, 6, 7)))
    write_image(tmp_path / "a b.zarr", numbers((6, 7)), "yx")
    (volume,) = open_volumes((tmp_path / "a b.zarr").as_uri(), 2)
    assert volume.url == str(tmp_path / "a b.zarr")


def zip_of(path, folder, within=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, Path(within) / file.relative_to(folder))
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_in_an_archive_is_read(tmp_path, version, monkeypatch):
    write_image(tmp_path / "a.ome.zarr", numbers((5, 6, 7)), "zyx", version, levels=2)
    whole = zip_of(tmp_path / "whole.zip", tmp_path / "a.ome.zarr")
    part = zip_of(tmp_path / "part.zip", tmp_path / "a.ome.zarr", "x/b.ome.zarr")
    with fsspec.open("memory://zips/part.zip", "wb") as file:
        file.write(part.read_bytes())
    monkeypatch.chdir(tmp_path)
    for url, address, name in (
        (f"zip::{whole}", f"zip://::{whole}", "whole"),
        ("zip::whole.zip", f"zip://::{whole}", "whole"),  # workers may be in another folder
        (f"zip://x/b.ome.zarr/::{part}", f"zip://x/b.ome.zarr::{part}", "b"),
        ("zip://x/b.ome.zarr::memory://zips/part.zip",) * 2 + ("b",),
        (f"simplecache::zip::{whole}", f"simplecache::zip://::{whole}", "whole"),
        (f"simplecache::file://{tmp_path}/a.ome.zarr",) * 2 + ("a",),
    ):
        (volume,) = open_volumes(url, 3, level=1)
        assert (volume.url, volume.name, volume.finest) == (address, name, (5, 6, 7))
        assert np.array_equal(volume.read(everything(volume))[0], numbers((5, 6, 7))[::2, ::2, ::2])


def test_a_plate_in_an_archive_is_walked(tmp_path):
    root = zarr.create_group(store=str(tmp_path / "p.zarr"), zarr_format=2)
    put_attributes(root, {"plate": {"wells": [{"path": "A/1"}]}})
    put_attributes(root.create_group("A/1"), {"well": {"images": [{"path": "0"}]}})
    write_image(tmp_path / "p.zarr" / "A" / "1" / "0", numbers((6, 7)), "yx")
    path = zip_of(tmp_path / "p.zip", tmp_path / "p.zarr")
    (volume,) = open_volumes(f"zip::{path}", 2)
    assert (volume.url, volume.name) == (f"zip://A/1/0::{path}", "A-1-0")
    assert np.array_equal(volume.read(everything(volume))[0], numbers((6, 7)))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_in_an_archive_is_read(tmp_path, compression):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", numbers((16, 20)), compression=compression)
    path = zip_of(tmp_path / "b.zip", tmp_path / "in", "x")
    (volume,) = open_volumes(f"zip://x/a.tif::{path}", 2)
    assert volume.name == "a"
    assert np.array_equal(volume.read(everything(volume))[0], numbers((16, 20)))


def test_an_address_without_its_backend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError) as error:
        open_volumes("gs://bucket/a.zarr", 2)
    assert str(error.value) == (
        "gs://bucket/a.zarr: gs:// needs a backend of fsspec that is not installed: "
        "pip install gcsfs"
    )
    with pytest.raises(ImageError) as error:
        open_volumes("gopher://bucket/a.zarr", 2)
    assert str(error.value) == (
        "gopher://bucket/a.zarr: gopher:// is an unknown kind of address: expected a path, or "
        "s3://, gs://, https:// and others that fsspec knows"
    )


def test_of_a_chain_the_link_without_a_backend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for url in ("zip://a.zarr::s3://b/c.zip", "simplecache::s3://b/a.zarr", "zip::s3://b/c.zip"):
        with pytest.raises(MissingExtraError) as error:
            open_volumes(url, 2)
        address = url.replace("zip::", "zip://::")
        assert str(error.value) == (
            f"{address}: s3:// needs a backend of fsspec that is not installed: pip install s3fs"
        )
    for url in ("zip://a.zarr::foo://b/c.zip", "foo://a.zarr::file:///c.zip"):
        with pytest.raises(ImageError) as error:
            open_volumes(url, 2)
        assert str(error.value) == (
            f"{url}: foo:// is an unknown kind of address: expected a path, or s3://, gs://, "
            "https:// and others that fsspec knows"
        )


def test_shards_are_the_chunks_of_the_storage(tmp_path):
    pixels = numbers((8, 8, 12))
    url = write_image(tmp_path / "a.zarr", pixels, "zyx", "0.5", chunks=(2, 2, 2), shards=(4, 4, 6))
    (volume,) = open_volumes(url, 3)
    assert volume.chunks == (4, 4, 6)
    box = (slice(1, 7), slice(3, 8), slice(5, 11))
    assert np.array_equal(volume.read(box)[0], pixels[box])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_that_is_not_there_is_fill_value(tmp_path, version):
    url = write_image(tmp_path / "a.zarr", numbers((8, 8)) + 1, "yx", version)
    (tmp_path / "a.zarr/s0" / ("c/0/1" if version == "0.5" else "0/1")).unlink()
    (volume,) = open_volumes(url, 2)
    expected = numbers((8, 8)) + 1
    expected[:4, 4:] = 0
    assert np.array_equal(volume.read(everything(volume))[0], expected)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_damaged_chunk_is_named_and_can_be_read_around(tmp_path, version):
    pixels = numbers((2, 8, 8)) + 1
    url = write_image(tmp_path / "a.zarr", pixels, "cyx", version, chunks=(1, 4, 4))
    key = "c/1/0/1" if version == "0.5" else "1/0/1"
    (tmp_path / "a.zarr/s0" / key).write_bytes(b"no chunk")
    (volume,) = open_volumes(url, 2)
    assert np.array_equal(volume.read((slice(4, 8), slice(0, 8))), pixels[:, 4:])
    with pytest.raises(ImageError) as error:
        volume.read((slice(2, 8), slice(0, 6)))
    message = str(error.value)
    assert message.startswith(
        f"{url}/s0/{key}: chunk (1, 0, 1), of pixels (0, 4) to (4, 8), cannot be decoded ("
    )
    assert message.endswith("): copy it again, or skip such chunks with --skip-damaged")
    assert "\n" not in message
    around, told = volume.read_around_damage((slice(2, 8), slice(0, 6)))
    expected = pixels[:, 2:8, :6].copy()
    expected[1, :2, 4:] = 0
    assert np.array_equal(around, expected)
    assert told == [message]
    (first,) = open_volumes(url, 2, channels=[0])
    assert np.array_equal(first.read(everything(first)), pixels[:1])


def test_damage_in_a_shard_is_named_by_the_file_of_the_shard(tmp_path):
    url = write_image(
        tmp_path / "a.zarr", numbers((8, 8)) + 1, "yx", "0.5", chunks=(2, 2), shards=(4, 4)
    )
    shard = tmp_path / "a.zarr/s0/c/1/0"
    shard.write_bytes(b"\0" * 20 + shard.read_bytes()[20:])
    (volume,) = open_volumes(url, 2)
    with pytest.raises(ImageError) as error:
        volume.read(everything(volume))
    assert str(error.value).startswith(
        f"{shard}: chunk (2, 0), of pixels (4, 0) to (6, 2), cannot be decoded ("
    )


def test_a_store_that_is_gone_is_not_read_as_empty(tmp_path):
    url = write_image(tmp_path / "a.zarr", numbers((8, 8)) + 1, "yx")
    (volume,) = open_volumes(url, 2)
    volume.read(everything(volume))
    shutil.move(url, tmp_path / "elsewhere")
    for read in (volume.read, volume.read_around_damage):
        with pytest.raises(ImageError) as error:
            read(everything(volume))
        assert str(error.value) == (
            f"{url}: was there and cannot be opened any more: mount or copy it again, "
            "then give the same command"
        )


def test_what_is_no_image_is_refused(tmp_path):
    with pytest.raises(ImageError) as error:
        open_volumes(tmp_path / "none.zarr", 2)
    assert str(error.value) == f"{tmp_path}/none.zarr: no such file or folder: check the path"
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ImageError) as error:
        open_volumes(tmp_path / "a.zarr", 2)
    assert str(error.value) == (
        f"{tmp_path}/a.zarr: cannot be read as OME-Zarr (GroupNotFoundError): "
        "expected a group with multiscales"
    )
    zarr.create_group(store=str(tmp_path / "b.zarr"), zarr_format=2)
    with pytest.raises(ImageError) as error:
        open_volumes(tmp_path / "b.zarr", 2)
    assert str(error.value) == (
        f"{tmp_path}/b.zarr: has no complete multiscales metadata: expected OME-Zarr 0.4 or 0.5 "
        "with axes and a scale"
    )
    url = write_image(tmp_path / "c.zarr", numbers((6, 7), np.complex64), "yx")
    with pytest.raises(ImageError) as error:
        open_volumes(url, 2)
    assert str(error.value) == f"{url}: pixels are complex64: expected integers or floats"
    assert not is_volume(tmp_path / "d.tif")
    assert not is_volume(tmp_path)


TIFFS = {
    "plain": {},
    "big": {"bigtiff": True},
    "imagej": {"imagej": True},
    "tiled": {"tile": (16, 16)},
    "zlib": {"compression": "zlib", "rowsperstrip": 8},
    "tiled zlib": {"tile": (16, 16), "compression": "zlib"},
    "ome": {"ome": True, "compression": "zlib"},
    "other bytes": {"byteorder": ">"},
}


def test_an_image_that_is_given_twice_is_refused(tmp_path):
    urls = [write_image(tmp_path / f"{n}.zarr", numbers((2, 3, 4)), "tyx") for n in "ab"]
    one, other = (open_volumes(url, 2) for url in urls)
    assert [len(image) for image in group_images([*one, *other])] == [2, 2]
    for twice in ([*one, *one], [*one, *other, *one]):
        with pytest.raises(ImageError) as error:
            group_images(twice)
        assert str(error.value) == (
            f"{tmp_path}/a.zarr: is among the inputs 2 times: expected each image once"
        )


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("axes", ["ZYX", "ZCYX"])
def test_a_large_tiff_is_read_box_by_box(tmp_path, kind, axes):
    pixels = numbers((4, 32, 40) if axes == "ZYX" else (4, 2, 32, 40))
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    metadata = {"axes": axes, "unit": "um", "spacing": 2.0}
    if kind == "ome":
        metadata = {"axes": axes, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    options = {"resolution": (2, 2), "photometric": "minisblack", "metadata": metadata}
    tifffile.imwrite(path, pixels, **options, **TIFFS[kind])
    inside = pixels[None] if axes == "ZYX" else pixels.transpose(1, 0, 2, 3)
    (volume,) = open_volumes(path, 3)
    assert (volume.name, volume.shape, volume.dtype) == ("a", inside.shape, "uint16")
    if kind in ("imagej", "ome"):
        assert volume.scale_um == (2.0, 0.5, 0.5)
    box = (slice(1, 4), slice(5, 32), slice(7, 30))
    for reader in (volume, pickle.loads(pickle.dumps(volume))):
        got = reader.read(box)
        assert got.dtype == np.uint16
        assert np.array_equal(got, inside[(slice(None), *box)])
    assert all(1 <= c <= n for c, n in zip(volume.chunks, volume.space, strict=True))


def test_a_level_of_a_tiff_pyramid_is_read(tmp_path):
    pixels = numbers((64, 96))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"tile": (16, 16), "compression": "zlib"}
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        file.write(pixels, subifds=1, metadata={"axes": "YX"} | sizes, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    (volume,) = open_volumes(path, 2, level=1)
    assert (volume.shape, volume.scale_um) == ((1, 32, 48), (1.0, 1.0))
    assert np.array_equal(volume.read(everything(volume))[0], pixels[::2, ::2])
    with pytest.raises(ImageError) as error:
        open_volumes(path, 2, level=4)
    assert str(error.value) == (
        f"{path}: has no level 4: its levels are 0 of shape (64, 96), 1 of shape (32, 48)"
    )


@pytest.mark.parametrize(
    ("finest", "coarse", "downsampling"),
    [
        ((64, 65), (32, 32), (2, 2)),
        ((64, 65), (32, 33), (2, 2)),
        ((7, 7), (7, 7), (1, 1)),
        ((100, 100), (40, 40), (2.5, 2.5)),
        ((1, 1), (1, 1), (1, 1)),
        ((90, 30), (30, 10), (3, 3)),
        ((1001, 1), (63, 1), (16, 16)),
        ((300, 300), (18, 18), (16, 16)),
        ((300, 300), (19, 19), (16, 16)),
        ((300, 4000), (18, 250), (16, 16)),
        ((30, 512, 512), (3, 64, 64), (8, 8, 8)),
        ((30, 512, 512), (30, 64, 64), (1, 8, 8)),
        ((64, 100), (32, 25), (2, 4)),
    ],
)
def test_a_level_is_a_whole_number_coarser_if_it_can_be(finest, coarse, downsampling):
    assert guess_downsampling(finest, coarse) == downsampling


@quick
@given(st.integers(1, 5), st.lists(st.integers(32, 2000), min_size=2, max_size=2), st.booleans())
def test_halving_again_and_again_is_told_from_sizes(level, finest, up):
    half = (lambda n: -(-n // 2)) if up else (lambda n: n // 2)
    coarse = finest
    for _ in range(level):
        coarse = [half(n) for n in coarse]
    if min(coarse) > 2:  # with fewer pixels many numbers fit
        assert guess_downsampling(finest, coarse) == (2.0**level,) * 2


def test_a_short_axis_of_a_pyramid_is_as_coarse_as_its_scale_says(tmp_path):
    url = write_image(tmp_path / "a.zarr", numbers((31, 32, 33)), "zyx", levels=4)
    group = zarr.open_group(url)
    for key, shape in (("s3", (3, 4, 4)),):  # some round down
        group.create_array(key, shape=shape, dtype="u2", overwrite=True)
    (volume,) = open_volumes(url, 3, level=3)
    assert (volume.shape, volume.downsampling) == ((1, 3, 4, 4), (8, 8, 8))
    # with few digits, in one axis alone, not at all, and without sense
    for scales, expected in (
        ([[0.1083, 0.1083, 0.1083], [0.8667, 0.8667, 0.8667]], (8, 8, 8)),
        ([[1, 1, 1], [1, 8.25, 8.25]], (1, 8.25, 8.25)),
        ([[1, 1, 1], [1, 1, 1]], (8, 8, 8)),
        ([[0, 1, 1], [8, 8, 8]], (8, 8, 8)),
    ):
        attributes = dict(group.attrs)
        attributes["multiscales"][0]["datasets"] = [
            {"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for path, scale in zip(("s0", "s3"), scales, strict=True)
        ]
        group.attrs.put(attributes)
        assert open_volumes(url, 3, level=1)[0].downsampling == expected


def test_a_tiff_of_several_points_in_time_is_walked(tmp_path):
    pixels = numbers((3, 2, 6, 7))
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TCYX"})
    volumes = open_volumes(tmp_path / "a.tif", 2)
    assert [v.time for v in volumes] == [0, 1, 2]
    assert np.array_equal(volumes[2].read(everything(volumes[2])), pixels[2])
    tifffile.imwrite(tmp_path / "b.tif", pixels[:, 0], imagej=True, metadata={"axes": "TYX"})
    (volume,) = open_volumes(tmp_path / "b.tif", 3)
    assert volume.shape == (1, 3, 6, 7)


def test_a_damaged_tile_of_a_tiff_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers((32, 32)) + 1, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[1]
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    (volume,) = open_volumes(path, 2)
    assert volume.chunks == (16, 16)
    with pytest.raises(ImageError) as error:
        volume.read(everything(volume))
    assert str(error.value).startswith(
        f"{path}: chunk (0, 1), of pixels (0, 16) to (16, 32), cannot be decoded ("
    )
    around, told = volume.read_around_damage(everything(volume))
    assert len(told) == 1
    assert around[0, :16, 16:].max() == 0
    assert np.array_equal(around[0, 16:], (numbers((32, 32)) + 1)[16:])


def test_a_tiff_behind_an_address_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers((5, 6, 7)), photometric="minisblack")
    with fsspec.open("memory://volumes/a.tif", "wb") as file:
        file.write((tmp_path / "a.tif").read_bytes())
    (volume,) = open_volumes("memory://volumes/a.tif", 3)
    assert np.array_equal(volume.read(everything(volume))[0], numbers((5, 6, 7)))


def test_a_tiff_that_is_none_is_refused(tmp_path):
    with pytest.raises(ImageError) as error:
        open_volumes(tmp_path / "a.tif", 2)
    assert str(error.value) == f"{tmp_path}/a.tif: no such file: check the path"
    Path(tmp_path / "b.tif").write_bytes(b"no tiff")
    with pytest.raises(ImageError) as error:
        open_volumes(tmp_path / "b.tif", 2)
    assert str(error.value).startswith(f"{tmp_path}/b.tif: cannot be read as TIFF (")
    assert str(error.value).endswith("): copy it again, or open it in Fiji and save it")
