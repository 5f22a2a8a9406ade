"""What a label image out of the graph costs, and whether it is the one of `spoco-zoo run`.

    spoco-zoo engines --install
    python benchmarks/in_graph.py weights/nuclei-2d weights/nuclei-2d-instances
    python benchmarks/in_graph.py EMBEDDINGS INSTANCES --images DATA/test/images

With images, labels of the instances package in every engine are compared with those of `segment`,
pixel by pixel. Without, fields of 50 to 500 simulated nuclei are made, and every engine opens both
packages in a process of its own that times its run: the network alone, and the network with
clustering inside. Sides take turns; a ratio is that of the fastest runs of both sides, with the
range of the ratios of each turn, and a process runs once, so its first call is what is measured.
Memory is the peak of a process, which libtorch's does not tell. The partition is compared with
that of `segment`, whose time, when it is warm, is told as well.
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
from spoco_zoo.engines import pick_engines, run_onnx, run_torchscript
from spoco_zoo.images import find_images, read_image
from spoco_zoo.labels import relabel
from spoco_zoo.normalization import fit_affine
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

FIELDS = ((512, 50), (512, 500), (1024, 50), (1024, 300), (1024, 500), (2048, 50), (2048, 500))
WEIGHTS = {"onnx": "weights.onnx", "torchscript": "weights_torchscript.pt"}
ASKED = ("installed", "1.12.1", "2.0.0")  # parts of the names of engines


def make_field(size, count):
    """Make a square field of so many nuclei; the simulator is slow, so large ones are mosaics."""
    side = min(size, 512)
    parts = (size // side) ** 2
    radius = 10.0 if count / size**2 < 1e-3 else 8.0  # 500 of the usual size do not fit into 512
    counts = [count * (part + 1) // parts - count * part // parts for part in range(parts)]
    fields = [
        simulate_nuclei((side, side), seed, NucleiSettings(count=n, radius_mean=radius))[0]
        for seed, n in enumerate(counts)
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
    print(
        "| field | nuclei | engine | with clustering / network | its memory, MB | ARI with run "
        "| run, warm / network |"
    )
    print("|---|---|---|---|---|---|---|")
    with EmbeddingSession(package, "cpu") as session, tempfile.TemporaryDirectory() as name:
        for size, wanted in options.fields:
            field = make_field(size, wanted)
            expected = segment(field, session)
            for engine in find_engines(options):
                row = time_field(options, engine, session, field, expected, Path(name))
                print(f"| {size} | {expected.max()} | {engine.name} | {row} |", flush=True)


def find_engines(options):
    engines = [e for e in pick_engines("cached") if e.kind in WEIGHTS]
    return [e for e in engines if any(word in e.name for word in options.engines)]


def time_field(options, engine, session, field, expected, folder):
    """Time both packages and `segment` on one field, in turns."""
    image = normalized(session.package, field)
    times, peaks = [], []
    for _ in range(options.rounds):
        both = [
            run_engine(engine, place / WEIGHTS[engine.kind], image, folder)
            for place in (options.embeddings, options.instances)
        ]
        start = time.perf_counter()
        segment(field, session)
        times.append([*(seconds for seconds, _ in both), time.perf_counter() - start])
        peaks.append([peak and peak / 1e6 for _, peak in both])
    memory = "not told"
    if all(peaks[0]):
        alone, clustered = (statistics.median(side) for side in zip(*peaks, strict=True))
        memory = f"{alone:.0f} to {clustered:.0f}"
    labels = np.load(folder / "output0.npy")[0, 0]
    alone, clustered, run = map(min, zip(*times, strict=True))
    ratios = [time[1] / time[0] for time in times]
    ratio = f"{clustered / alone:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{ratio} | {memory} | {tell_partition(labels, expected)} | {run / alone:.2f}"


def tell_partition(labels, expected):
    from sklearn.metrics import adjusted_rand_score

    if (relabel(labels) == expected).all():
        return "1.0000, all pixels the same"
    return f"{adjusted_rand_score(expected.ravel(), labels.ravel()):.4f}"


def compare_labels(options):
    from sklearn.metrics import adjusted_rand_score

    package = load_package(options.embeddings)
    paths = find_images([options.images])
    engines = find_engines(options)
    worst = dict.fromkeys(engines, 1.0)
    same, counts = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0)
    with EmbeddingSession(package, "cpu") as session:
        for path in paths:
            pixels = read_image(path, package.n_axes).pixels
            expected = segment(pixels, session)
            image = fit_affine(pixels, package.normalization).apply(pixels)[None]
            for engine in engines:
                run = {"onnx": run_onnx, "torchscript": run_torchscript}[engine.kind]
                weights = options.instances / WEIGHTS[engine.kind]
                labels = run(engine, weights, image.astype(np.float32))[0][0, 0]
                ari = adjusted_rand_score(expected.ravel(), labels.ravel())
                worst[engine] = min(worst[engine], ari)
                same[engine] += int((relabel(labels) == expected).all())
                counts[engine] += int(len(np.unique(labels[labels > 0])) == expected.max())
    for engine in engines:
        print(
            f"{engine.name}: {len(paths)} images, {same[engine]} with the same pixels, "
            f"{counts[engine]} with the same count, lowest ARI {worst[engine]:.4f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--images", help="compare labels on these instead of timing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--fields",
        nargs="+",
        default=FIELDS,
        type=lambda word: tuple(map(int, word.split("x"))),
        help="side x count of nuclei, such as 1024x300",
    )
    parser.add_argument("--engines", nargs="+", default=ASKED, help="parts of their names")
    options = parser.parse_args()
    if options.images:
        compare_labels(options)
    else:
        time_engines(options)


if __name__ == "__main__":
    main()
