"""What people open of labels larger than memory: drawn as from memory, a few rows at once."""

import math

import numpy as np
import pytest
from PIL import Image

# ruff: noqa: E402 - without zarr the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")

from spoco_zoo import large_results
from spoco_zoo.figures import overlay
from spoco_zoo.label_stores import create_labels
from spoco_zoo.large_results import write_large_results
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
