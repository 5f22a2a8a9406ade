"""A simulated volume of any size, written slab by slab: balls of many greys, some touching.

tests/data/tiny_volume tells them apart by their grey, at next to no cost for its network, so what
is timed is all the rest. A quarter of the volume is foreground, with 125 balls in a million voxels.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import zarr

PITCH = 20  # voxels from one ball to the next, before they are shifted
RADII = range(6, 11)
GREYS = np.arange(60, 256, 28)  # farther apart than clusters are wide
CHUNK = 128


def write_blobs(folder, shape, chunk=CHUNK, draw=None):
    """Write an OME-Zarr (0.4) of one level, uint8, of balls or what else is drawn."""
    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    level = {"path": "0", "coordinateTransformations": scale}
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    chunks = tuple(min(chunk, side) for side in shape)
    array = root.create_array(
        "0",
        shape=tuple(shape),
        chunks=chunks,
        dtype="u1",
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0,
    )
    for start in range(0, shape[0], chunks[0]):
        stop = min(start + chunks[0], shape[0])
        array[start:stop] = (draw or draw_slab)(shape, start, stop)


def draw_slab(shape, start, stop):
    """Planes of the volume; the same whatever slabs it is drawn in."""
    slab = np.zeros((stop - start, *shape[1:]), np.uint8)
    balls = {radius: _ball(radius) for radius in RADII}
    counts = [-(-side // PITCH) for side in shape]
    most = max(RADII) + PITCH
    rows = range(max(start - most, 0) // PITCH, min(-(-(stop + most) // PITCH), counts[0]))
    for row in rows:
        random = np.random.default_rng([row, *shape])
        shifts = random.integers(0, PITCH, (*counts[1:], 3))
        kinds = random.integers(0, [len(RADII), len(GREYS)], (*counts[1:], 2))
        for place in product(*map(range, counts[1:])):
            corner = np.array((row, *place)) * PITCH + shifts[place]
            radius = RADII[kinds[place][0]]
            corner = corner - radius - (start, 0, 0)
            inside = [
                slice(max(-c, 0), min(2 * radius + 1, n - c))
                for c, n in zip(corner.tolist(), slab.shape, strict=True)
            ]
            if all(s.start < s.stop for s in inside):
                box = tuple(
                    slice(c + s.start, c + s.stop)
                    for c, s in zip(corner.tolist(), inside, strict=True)
                )
                slab[box][balls[radius][tuple(inside)]] = GREYS[kinds[place][1]]
    return slab


def _ball(radius):
    z, y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
    return z * z + y * y + x * x <= radius * radius


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", type=int, nargs=3, help="voxels in z, y and x")
    options = parser.parse_args()
    write_blobs(options.folder, options.shape)


if __name__ == "__main__":
    main()
