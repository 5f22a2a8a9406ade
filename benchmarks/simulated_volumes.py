"""Write the simulated volumes that `specs/nuclei-3d-simulated.yaml` is trained on.

python benchmarks/simulated_volumes.py DATA
spoco-zoo train DATA --spec specs/nuclei-3d-simulated.yaml --out runs/nuclei-3d-simulated
spoco-zoo run weights/nuclei-3d-simulated DATA/test/images -o predictions
spoco-zoo evaluate predictions DATA/test/labels
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import tifffile

from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

SHAPE = (32, 128, 128)
PIECE = (64, 256, 256)  # of a volume that is too large to be simulated at once
SPLITS = {"train": 12, "val": 4, "test": 4}
SETTINGS = NucleiSettings(density=0.25, radius_mean=8.0, z_spacing=2.0)


def draw_nuclei(shape, start, stop):
    """Planes of a large volume, put together from small ones; nuclei end where these do."""
    slab = np.zeros((stop - start, *shape[1:]), np.uint8)
    pieces = [range(0, side, most) for side, most in zip(slab.shape, PIECE, strict=True)]
    for number, corner in enumerate(product(*pieces)):
        box = tuple(slice(c, c + most) for c, most in zip(corner, PIECE, strict=True))
        image, _ = simulate_nuclei(slab[box].shape, 10_000_000 + start * 10_000 + number, SETTINGS)
        slab[box] = image
    return slab


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    seed = 0
    for split, count in SPLITS.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, labels = simulate_nuclei(SHAPE, seed, SETTINGS)
            seed += 1
            for kind, array in (("images", image), ("labels", labels.astype("uint16"))):
                tifffile.imwrite(
                    folder / split / kind / f"volume{number:02}.tif",
                    array,
                    compression="zlib",
                    metadata={"axes": "ZYX"},
                )


if __name__ == "__main__":
    main()
