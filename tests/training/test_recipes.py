"""Every recipe without weights trains on made-up files in the layout of its data."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import numpy as np
import tifffile
from PIL import Image

from spoco_zoo.spec import change_spec, load_spec
from spoco_zoo.training.loop import train
from spoco_zoo.training.options import TrainOptions

torch.set_num_threads(1)
SPECS = Path(__file__).parents[2] / "specs"
SIZE = 8  # of an object and of the gap to the next


def make_objects(shape, random):
    """Squares or cubes on a lattice, and an image of them."""
    blocks = [np.arange(n) // SIZE for n in shape]
    cells = np.ix_(*blocks)
    inside = np.logical_and.reduce(np.broadcast_arrays(*(b % 2 == 1 for b in cells)))
    numbers = np.zeros(shape, dtype=np.int64)
    for block, n in zip(cells, shape, strict=True):
        numbers = numbers * (n // SIZE) + block
    _, ids = np.unique(np.where(inside, numbers, 0), return_inverse=True)
    labels = ids.reshape(shape)
    pixels = 40 + 120 * (labels > 0) + random.normal(0, 10, shape)
    return pixels.clip(0, 255).astype(np.uint8), labels


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_leaves(root, random):
    for number in range(1, 6):
        pixels, labels = make_objects((72, 80), random)
        stem = root / "training/A1" / f"plant{number:03d}"
        colour = np.dstack([pixels // 2, pixels, pixels // 3, np.full_like(pixels, 255)])
        write_png(Path(f"{stem}_rgb.png"), colour)
        picture = Image.fromarray(labels.astype(np.uint8))
        picture.putpalette([0, 0, 0, *random.integers(1, 256, 3 * 255).tolist()])
        picture.save(f"{stem}_label.png")


def write_streets(root, random):
    for split in ("train", "val"):
        pixels, labels = make_objects((72, 144), random)
        ids = np.full(labels.shape, 7, np.uint16)  # road
        for label in np.unique(labels[labels > 0]):
            ids[labels == label] = (26, 26000 + label, 33000 + label)[label % 3]
        name = "ulm/ulm_000001_000019"
        write_png(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", np.dstack([pixels] * 3))
        write_png(root / f"gtFine/{split}/{name}_gtFine_instanceIds.png", ids)


def write_tissue(root, random):
    h5py = pytest.importorskip("h5py")
    for split in ("train", "val"):
        pixels, labels = make_objects((16, 48, 48), random)
        (root / split).mkdir(parents=True)
        with h5py.File(root / split / "ovule.h5", "w") as file:
            for name, values in (("raw", pixels), ("label", labels.astype(np.uint16))):
                stored = file.create_dataset(name, data=values, chunks=True)
                stored.attrs["element_size_um"] = (0.235, 0.15, 0.15)


def write_slices(root, random):
    for split in ("train", "val"):
        pixels, labels = make_objects((80, 80), random)
        for part, values in (("images", pixels), ("labels", labels.astype(np.uint16))):
            (root / split / part).mkdir(parents=True)
            tifffile.imwrite(root / split / part / "slice.tif", values)


@pytest.mark.parametrize(
    ("name", "write", "crop"),
    [
        ("cvppp-a1", write_leaves, [64, 64]),
        ("cityscapes", write_streets, [32, 64]),
        ("ovules-3d", write_tissue, [16, 32, 32]),
        ("mitochondria-em", write_slices, [64, 64]),
    ],
)
def test_a_recipe_trains_on_made_up_files_in_its_layout(name, write, crop, tmp_path):
    write(tmp_path / "data", np.random.default_rng(0))
    spec = load_spec(SPECS / f"{name}.yaml")
    small = {
        "net": {"widths": [max(width // 8, 2) for width in spec.net.widths]},
        "schedule": {
            "crop": crop,
            "steps": 2,
            "batch_size": 2,
            "validate_every": 2,
            "warmup_steps": 1,
            "precision": "float32",
            "workers": 0,
        },
        "clustering": {"fit": False},
    }
    run = tmp_path / "run"
    result = train(change_spec(spec, small), tmp_path / "data", run, TrainOptions(device="cpu"))
    assert result.finished
    told = json.loads((run / "recipe.json").read_text())
    assert 0.0 <= told["validation"]["ap50"] <= 1.0
    kept = json.loads((run / "instances.json").read_text())
    n_kept, n_all = (sum(map(len, kept[split].values())) for split in ("train", "val"))
    assert n_kept > 0
    if spec.data.instance_ratio < 1:
        assert n_kept < n_all
