"""What people open of labels larger than memory: drawn as from memory, a few rows at once."""

import math

import numpy as np
import pytest
import roifile
from PIL import Image

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo import large_results
from spoco_zoo.figures import overlay
from spoco_zoo.label_stores import create_labels
from spoco_zoo.large_results import write_large_results
from spoco_zoo.measurements import measure
from spoco_zoo.volumes import Volume, open_volumes


@pytest.mark.parametrize("most", [1 << 22, 1 << 15, 1])
def test_a_wide_image_is_drawn_in_few_rows_at_once(write_ngff, tmp_path, monkeypatch, most):
    height, width, step = 70, 4100, 3
    pixels = np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)
    labels = (np.arange(height)[:, None] // 16 * 300 + np.arange(width) // 16 + 1).astype(np.uint32)
    url = write_ngff(tmp_path / "a.zarr", pixels, "yx", chunk=1024)
    (volume,) = open_volumes(url, 2)
    store = create_labels(tmp_path / "b.zarr", [volume], chunks=(1024, 1024))
    for n, level in enumerate(store.plan_pyramid()):
        for box in level.boxes():
            if n:
                store.downsample(n, box)
            else:
                store.write(box, np.ascontiguousarray(labels[box]))
    store.finish(int(labels.max()))
    read, sizes = Volume.read, []

    def note(volume, box):
        sizes.append([side.stop - side.start for side in box])
        return read(volume, box)

    monkeypatch.setattr(Volume, "read", note)
    monkeypatch.setattr(large_results, "_MOST_PIXELS", most)
    path = tmp_path / "a.png"
    write_large_results({"overlay": path}, volume, store, None)
    with Image.open(path) as drawn:
        expected = overlay(pixels[None, ::step, ::step], labels[::step, ::step])
        assert (np.asarray(drawn) == expected).all()
    assert all(math.prod(size) <= max(most, width * step) for size in sizes)
    rows = max(most // (width * step), 1) * step
    assert len(sizes) == math.ceil(height / rows)


@pytest.mark.parametrize(
    ("axes", "channels", "places"),
    [
        ("zyx", None, [(1, 0, 0), (2, 0, 0), (3, 0, 0)]),  # of a stack
        ("czyx", ["1"], [(0, 1, 0), (0, 2, 0), (0, 3, 0)]),  # of a hyperstack
        ("tczyx", [2], [(0, 1, 2), (0, 2, 2), (0, 3, 2)]),
        ("tzyx", None, [(0, 1, 2), (0, 2, 2), (0, 3, 2)]),
    ],
)
def test_outlines_lie_in_the_slices_of_the_image_whichever_channels_were_run(
    write_ngff, tmp_path, axes, channels, places
):
    sizes = {"t": 2, "c": 3, "z": 3, "y": 8, "x": 9}
    pixels = np.zeros([sizes[axis] for axis in axes], np.uint8)
    volumes = open_volumes(write_ngff(tmp_path / "a.zarr", pixels, axes), 3, channels=channels)
    labels = np.zeros((3, 8, 9), np.uint32)
    labels[:, 2:5, 3:7] = 1
    store = create_labels(tmp_path / "b.zarr", volumes, chunks=(3, 8, 9))
    for volume in volumes:
        store.write((slice(0, 3), slice(0, 8), slice(0, 9)), labels, volume.time)
    store.finish(1)
    write_large_results({"rois": tmp_path / "a.zip"}, volumes[-1], store, measure(labels))
    rois = roifile.roiread(tmp_path / "a.zip")
    assert [(roi.position, roi.z_position, roi.t_position) for roi in rois] == places
