"""Images that stay in their files give the crops of those in memory; the first crops are shown."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import pickle

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile

from spoco_zoo.errors import ImageError
from spoco_zoo.labels import UNLABELED
from spoco_zoo.spec import parse_spec
from spoco_zoo.training import reading as room
from spoco_zoo.training.samples import SparseSamples, StreamedSample, read_samples
from spoco_zoo.training.sheet import show_crops

torch.set_num_threads(1)


def make_spec(crop, data=None, normalization="zero_mean_unit_variance"):
    axes = len(crop)
    words = {
        "data": {"normalization": {"id": normalization}, **(data or {})},
        "net": {"dimensions": axes, "widths": [4, 8], "pooling": [[1, 2, 2][-axes:]]},
        "schedule": {"crop": crop, "batch_size": 2, "steps": 6},
    }
    return parse_spec(words, "test")


def make_labels(shape, random):
    blocks = tuple(-(-n // 8) for n in shape)
    ids = random.permutation(np.prod(blocks) * 3)[: np.prod(blocks)].reshape(blocks)
    ids.flat[-1] = 5
    whole = np.kron(ids, np.ones((8,) * len(shape), int))
    return whole[tuple(slice(0, n) for n in shape)].astype(np.uint32)


@pytest.fixture(params=["plain", "zlib", "npy", "hdf5", "zarr"])
def folder(request, tmp_path):
    """Two volumes in files of one kind."""
    random = np.random.default_rng(0)
    images, ids = tmp_path / "train/images", tmp_path / "train/labels"
    for name, shape in (("a", (12, 40, 30)), ("b", (9, 24, 50))):
        pixels = random.integers(0, 60_000, shape).astype(np.uint16)
        labels = make_labels(shape, random)
        if request.param == "hdf5":
            h5py = pytest.importorskip("h5py")
            (tmp_path / "train").mkdir(exist_ok=True)
            with h5py.File(tmp_path / f"train/{name}.h5", "w") as file:
                file["raw"], file["label"] = pixels, labels
            continue
        for folder, values in ((images, pixels), (ids, labels)):
            folder.mkdir(parents=True, exist_ok=True)
            if request.param == "npy":
                np.save(folder / f"{name}.npy", values)
            elif request.param == "zarr":
                write_zarr(folder / f"{name}.ome.zarr", values)
            else:
                compression = None if request.param == "plain" else "zlib"
                path = folder / f"{name}.tif"
                tifffile.imwrite(path, values, compression=compression, photometric="minisblack")
    return tmp_path / "train"


def write_zarr(path, values):
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(store=str(path), zarr_format=2)
    stored = group.create_array("0", shape=values.shape, chunks=(4, 16, 16), dtype=values.dtype)
    stored[...] = values
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]


@pytest.mark.parametrize("crop", [(4, 16, 16), (12, 32, 32)])
@pytest.mark.parametrize(
    ("zero", "normalization"),
    [("background", "zero_mean_unit_variance"), ("unlabeled", "scale_range")],
)
def test_streamed_crops_are_those_of_memory(folder, monkeypatch, crop, zero, normalization):
    """To the last bit; crops larger than the image are mirrored in both."""
    data = {"label_zero": zero, "instance_ratio": 0.4}
    if zero == "unlabeled":
        data |= {"background_label": 5, "instance_ratio_of": "split"}
    spec = make_spec(crop, data, normalization)
    held = read_samples(folder, spec.data, 3, thin=True)
    monkeypatch.setattr(room, "_MEMORY_BYTES", 0)
    monkeypatch.setattr("spoco_zoo.datasets.source._SLAB", 3 * 40 * 30)
    streamed = read_samples(folder, spec.data, 3, thin=True)
    for a, b in zip(held, streamed, strict=True):
        assert isinstance(b, StreamedSample)
        assert (a.name, a.kept, a.channels, a.space) == (b.name, b.kept, b.channels, b.space)
        assert (a.image == b.image).all()
        assert (a.labels == b.labels).all()
        places = b.places()
        assert [places[n] for n in range(0, len(places), 97)] == a.places()[::97].tolist()
        assert len(places) == len(a.places())
    first, second = (SparseSamples(samples, spec) for samples in (held, streamed))
    second = pickle.loads(pickle.dumps(second))
    for step in range(2):
        x, y = first[step], second[step]
        assert torch.equal(x.view_f, y.view_f)
        assert torch.equal(x.view_g, y.view_g)
        assert torch.equal(x.labels, y.labels)


def test_statistics_of_what_memory_cannot_hold_are_found_in_slabs(folder, monkeypatch):
    spec = make_spec((4, 16, 16))
    held = read_samples(folder, spec.data, 3, thin=True)
    monkeypatch.setattr(room, "_MEMORY_BYTES", 0)
    monkeypatch.setattr(room, "_WHOLE_BYTES", 0)
    monkeypatch.setattr("spoco_zoo.datasets.source._SLAB", 3 * 40 * 30)
    for a, b in zip(held, read_samples(folder, spec.data, 3, thin=True), strict=True):
        assert np.allclose(a.image, b.image, rtol=0, atol=1e-6)


def test_images_without_any_label_are_never_aimed_at(tmp_path, monkeypatch):
    for part, values in (("images", np.eye(40)), ("labels", np.zeros((40, 40), int))):
        (tmp_path / "val" / part).mkdir(parents=True)
        np.save(tmp_path / "val" / part / "empty.npy", values)
    monkeypatch.setattr(room, "_MEMORY_BYTES", 0)
    spec = make_spec((16, 16))
    (sample,) = read_samples(tmp_path / "val", spec.data, 2, thin=False)
    assert len(sample.places()) == 0
    assert (SparseSamples([sample], spec)[0].labels <= 0).all()


def test_other_layouts_without_any_instance_are_refused_by_their_folder(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "train").mkdir()
    with h5py.File(tmp_path / "train/a.h5", "w") as file:
        file["raw"], file["label"] = np.eye(8), np.zeros((8, 8), int)
    with pytest.raises(ImageError) as error:
        read_samples(tmp_path / "train", make_spec((16, 16)).data, 2, thin=True)
    assert str(error.value) == (
        f"{tmp_path / 'train'}: no instance is labelled: label some and try again"
    )


@pytest.mark.parametrize("crop", [(16, 32), (4, 16, 16)])
def test_the_sheet_shows_the_first_crops_and_their_labels(crop):
    shape = (12, 48, 48)[-len(crop) :]
    labels = np.full(shape, UNLABELED)
    labels[..., :30] = 1
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    spec = make_spec(crop)
    samples = [room.Sample("a", image, labels, (1,))]
    sheet = show_crops(samples, spec)
    assert sheet.dtype == np.uint8
    # two columns of three pictures, four rows
    width, height = 224, 224 * crop[-2] // crop[-1]
    assert sheet.shape == (4 * (height + 20 + 20) + 20, 2 * (3 * width + 8 + 20) + 20, 3)
    state = SparseSamples(samples, spec)[0].labels[0]
    shown = state if len(crop) == 2 else state[crop[0] // 2]
    left = 20 + 2 * (width + 4)
    drawn = sheet[20 : 20 + height, left : left + width]
    side = width // crop[-1]
    assert (
        (drawn[side // 2 :: side, side // 2 :: side] == 96).all(-1) == (shown == -1).numpy()
    ).all()
    assert (show_crops(samples, spec) == sheet).all()
    few = spec.model_copy(update={"schedule": spec.schedule.model_copy(update={"steps": 1})})
    assert len(show_crops(samples, few)) == height + 20 + 20 + 20


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_background_that_is_nowhere_is_refused_when_streamed_too(tmp_path, monkeypatch, memory):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
        np.save(tmp_path / "train" / part / "a.npy", np.eye(20, dtype=int))
    monkeypatch.setattr(room, "_MEMORY_BYTES", memory)
    words = {"label_zero": "unlabeled", "background_label": 9}
    with pytest.raises(ImageError) as error:
        read_samples(tmp_path / "train", make_spec((16, 16), words).data, 2, thin=True)
    assert str(error.value) == (
        f"{tmp_path / 'train/labels'}: no pixel is known background, while data.background_label "
        "is 9: paint some background with it, or leave the setting out"
    )
