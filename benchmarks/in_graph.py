"""What a label image out of the graph costs, and whether it is the one of `spoco-zoo run`.

    spoco-zoo engines --install
    python benchmarks/in_graph.py weights/nuclei-2d weights/nuclei-2d-instances
    python benchmarks/in_graph.py EMBEDDINGS INSTANCES --images DATA/test/images

With images, labels are compared: those of `segment` with those of the instances package in the
installed ONNX Runtime. Without, fields of simulated nuclei are made, sparse and dense, and every
engine opens both packages in a process of its own that times its run: the network alone, and the
network with clustering inside. Sides take turns; ratios are medians over the rounds, and a process
runs once, so its first call is what is measured. Memory is the peak of the process, over that of
the process with the network alone, in the engines of this Python.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from spoco_zoo import load_package, segment
from spoco_zoo.engines import pick_engines, run_onnx
from spoco_zoo.images import find_images, read_image
from spoco_zoo.labels import relabel
from spoco_zoo.normalization import fit_affine
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

SIZES = (512, 1024, 2048)
NUCLEI = {"sparse": 0.02, "dense": 0.2}  # part of the image that nuclei cover
WEIGHTS = {"onnx": "weights.onnx", "torchscript": "weights_torchscript.pt"}


def make_field(size, density):
    """Make a square field; the simulator is slow, so large ones are mosaics."""
    side = min(size, 512)
    fields = [
        simulate_nuclei((side, side), seed, NucleiSettings(density=density))[0]
        for seed in range((size // side) ** 2)
    ]
    rows = range(0, len(fields), size // side)
    return np.vstack([np.hstack(fields[row : row + size // side]) for row in rows])


def run_engine(engine, weights, image, folder):
    """Run some weights once, in a process of their own; its seconds, and its peak memory."""
    np.save(folder / "input.npy", image)
    words = [*engine.command(), weights, folder / "input.npy", folder / "output"]
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    return told["seconds"], told.get("peak_bytes")


def normalized(package, image):
    affine = fit_affine(image[None], package.normalization)
    return affine.apply(image[None])[None].astype(np.float32)


def time_engines(options):
    package = load_package(options.embeddings)
    engines = [e for e in pick_engines("cached") if e.kind in WEIGHTS]
    print("| field | nuclei | engine | with clustering / network | its memory | run / network |")
    print("|---|---|---|---|---|---|")
    with EmbeddingSession(package, "cpu") as session, tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            for kind, density in NUCLEI.items():
                field = make_field(size, density)
                image = normalized(package, field)
                for engine in engines:
                    file = WEIGHTS[engine.kind]
                    ratios, runs, peaks = [], [], []
                    for _ in range(options.rounds):
                        both = [
                            run_engine(engine, folder / file, image, Path(name))
                            for folder in (options.embeddings, options.instances)
                        ]
                        start = time.perf_counter()
                        count = segment(field, session).max()
                        runs.append((time.perf_counter() - start) / both[0][0])
                        ratios.append(both[1][0] / both[0][0])
                        if both[0][1]:
                            peaks.append(both[1][1] / both[0][1])
                    found = np.load(f"{name}/output0.npy")[0, 0]
                    assert len(np.unique(found[found > 0])) == count
                    low, high = min(ratios), max(ratios)
                    memory = f"{statistics.median(peaks):.2f}" if peaks else "not told"
                    print(
                        f"| {size} {kind} | {count} | {engine.name} "
                        f"| {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) "
                        f"| {memory} | {statistics.median(runs):.2f} |",
                        flush=True,
                    )


def compare_labels(options):
    from sklearn.metrics import adjusted_rand_score

    package = load_package(options.embeddings)
    (engine,) = (e for e in pick_engines("installed") if e.kind == "onnx")
    worst, same, counts = 1.0, 0, 0
    paths = find_images([options.images])
    with EmbeddingSession(package, "cpu") as session:
        for path in paths:
            pixels = read_image(path, package.n_axes).pixels
            expected = segment(pixels, session)
            image = fit_affine(pixels, package.normalization).apply(pixels)[None]
            found = run_onnx(engine, options.instances / WEIGHTS["onnx"], image.astype(np.float32))
            labels = found[0][0, 0]
            worst = min(worst, adjusted_rand_score(expected.ravel(), labels.ravel()))
            same += int((relabel(labels) == expected).all())
            counts += int(len(np.unique(labels[labels > 0])) == expected.max())
    print(
        f"{len(paths)} images: {same} with the same pixels, {counts} with the same count, "
        f"lowest ARI {worst:.4f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--images", help="compare labels on these instead of timing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    if options.images:
        compare_labels(options)
    else:
        time_engines(options)


if __name__ == "__main__":
    main()
