"""Does the time of `cluster` per pixel, and its memory per pixel, stay the same in large images?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes 3

Images are made: objects on a jittered lattice of constant density, cut where they meet, every one
with a random place in embedding space, in 8 float32 numbers a pixel. With `--layout touching`, 60 %
is foreground and most objects touch others, so pieces of foreground reach across the image; with
`--layout apart`, none touch. Every size runs in a child process; rounds go through all sizes, so
what slows the machine down slows all of them down. Time is that of `cluster` alone, relative to
the size named by --base. Memory is the child's peak resident set size less that before the
embedding was there, in units of the embedding's own bytes: 1 is the embedding and nothing else.
"""

import argparse
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import child
import numpy as np

HERE = Path(__file__).resolve()
WIDTH = 8
PITCH = {2: 24, 3: 12}  # pixels from object to object
JITTER = {"touching": 0.2, "apart": 0.05}  # of the pitch
RADIUS = {(2, "touching"): 0.445, (3, "touching"): 0.54, (2, "apart"): 0.4, (3, "apart"): 0.4}
SIZES = {2: [256, 512, 1024, 2048, 4096, 8192], 3: [64, 128, 256]}
REPEATED_PIXELS = 1 << 22  # small images are clustered again and again


def make_scene(shape, layout, seed=0):
    """Make an embedding and the true labels, slab by slab so that little else is in memory."""
    random = np.random.default_rng(seed)
    axes, pitch = len(shape), PITCH[len(shape)]
    cells = [-(-size // pitch) + 2 for size in shape]  # with a ring around the image
    jitter = random.uniform(-JITTER[layout], JITTER[layout], (*cells, axes))
    places = np.moveaxis(np.indices(cells), 0, -1) - 0.5 + jitter
    places = (places * pitch).astype(np.float32)
    centers = random.uniform(-5, 5, (int(np.prod(cells)) + 1, WIDTH)).astype(np.float32)
    most = (RADIUS[axes, layout] * pitch) ** 2
    embedding = np.empty((WIDTH, *shape), np.float32)
    labels = np.empty(shape, np.uint32)
    for start in range(0, shape[0], pitch):
        slab = slice(start, min(start + pitch, shape[0]))
        labels[slab] = label_slab(slab, shape, places, most)
        noise = random.standard_normal((*labels[slab].shape, WIDTH), np.float32)
        noise *= 0.25 / np.sqrt(WIDTH)
        embedding[:, slab] = np.moveaxis(centers[labels[slab]] + noise, -1, 0)
    return embedding, labels


def label_slab(slab, shape, places, most):
    """Number each pixel of a slab by the nearest object if that is near enough, else 0."""
    axes = len(shape)
    ranges = [np.arange(slab.start, slab.stop), *map(np.arange, shape[1:])]
    pixels = np.meshgrid(*(np.float32(r) for r in ranges), indexing="ij", sparse=True)
    home = np.meshgrid(*(r // PITCH[axes] + 1 for r in ranges), indexing="ij", sparse=True)
    labels = np.zeros([len(r) for r in ranges], np.uint32)
    best = np.full(labels.shape, np.float32(most))
    numbers = np.arange(1, places[..., 0].size + 1, dtype=np.uint32).reshape(places.shape[:-1])
    for step in product((-1, 0, 1), repeat=axes):
        cell = tuple(h + s for h, s in zip(home, step, strict=True))
        away = sum((p - places[(*cell, axis)]) ** 2 for axis, p in enumerate(pixels))
        is_nearer = away < best
        np.copyto(best, away, where=is_nearer)
        np.copyto(labels, numbers[cell], where=is_nearer)
    return labels


def run_one(size, options):
    """The child: make one image and cluster it."""
    from spoco_zoo import cluster
    from spoco_zoo.recipe import Hdbscan, MeanShift, Recipe

    recipe = Recipe(clustering=MeanShift() if options.method == "mean_shift" else Hdbscan())
    small = make_scene((64,) * options.axes, options.layout)
    cluster(small[0], small[1] > 0, recipe)  # imports are no part of the time
    before = child.resident_bytes()
    embedding, truth = make_scene((size,) * options.axes, options.layout)
    foreground, objects = truth > 0, np.count_nonzero(np.bincount(truth.ravel())[1:])
    del truth
    times = []
    for _ in range(max(REPEATED_PIXELS // foreground.size, 1)):
        start = time.perf_counter()
        labels = cluster(embedding, foreground, recipe)
        times.append(time.perf_counter() - start)
    child.append(
        options.target,
        size=size,
        per_pixel=statistics.median(times) / foreground.size,
        memory=(child.peak_bytes() - before) / embedding.nbytes,
        cover=float(foreground.mean()),
        found=int(labels.max()) / objects,
    )


def compare(options):
    """Go through all sizes in rounds, and print medians."""
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "records"
            for size in options.sizes:
                words = ["--axes", options.axes, "--layout", options.layout]
                words += ["--method", options.method, "--child", size, "--target", target]
                child.run(HERE, *words)
                print(f"round {number + 1}: {size} done", flush=True)
            rounds.append({record["size"]: record for record in child.records(target)})
    times = {
        size: [found[size]["per_pixel"] / found[options.base]["per_pixel"] for found in rounds]
        for size in options.sizes
    }
    n_axes = options.axes
    print(f"\n{options.method}, {n_axes}D, objects {options.layout}, {options.rounds} rounds")
    print("\n| side | time per pixel | lowest to highest | memory | foreground | objects found |")
    print("|---|---|---|---|---|---|")
    for size, ratios in times.items():
        records = [found[size] for found in rounds]
        print(
            f"| {size} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
            f"| {statistics.median(r['memory'] for r in records):.2f} "
            f"| {records[0]['cover']:.0%} | {records[0]['found']:.2%} |"
        )
    flat = [statistics.median(times[size]) for size in options.sizes if size >= options.base]
    print(f"\nfrom {options.base} on, highest / lowest: {max(flat) / min(flat):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", type=int, choices=[2, 3], default=2)
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels a side")
    parser.add_argument("--base", type=int, help="size whose time per pixel is 1")
    parser.add_argument("--layout", choices=list(JITTER), default="touching")
    parser.add_argument("--method", choices=["mean_shift", "hdbscan"], default="mean_shift")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_one(options.child, options)
        return
    options.sizes = options.sizes or SIZES[options.axes]
    options.base = options.base or (512 if options.axes == 2 else 128)
    if options.base not in options.sizes:
        parser.error(f"--base {options.base} is not among the sizes")
    compare(options)


if __name__ == "__main__":
    main()
