"""What `spoco-zoo run` costs beside the network: against ONNX Runtime alone and bioimageio.core.

    pip install "spoco-zoo[train]"     # for bioimageio.core and torch; both may be missing
    python benchmarks/run.py

Images are simulated nuclei: one of 2048 x 2048, and a folder of 40 of 520 x 696. Sides take turns
in rounds, all on the CPU with all its cores; ratios are medians over the rounds.

- work: read, `segment` with an open session, write. Also the command itself, in a child process.
- network: ONNX Runtime on the same tiles with the same session, and on the whole image in one run.
- bioimageio.core: embedding and foreground of the same package by its ONNX weights, in one run,
  and for the large image in blocks of the size of our tiles (it takes none larger than the image);
  no clustering, no reading, no writing. Its default blocks, much smaller, are run once, on one
  image of the folder.

Start-up is the command on one small image, against the import of ONNX Runtime, or torch, alone.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from spoco_zoo import load_package
from spoco_zoo.images import find_images, read_image, write_labels
from spoco_zoo.normalization import fit_affine
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "nuclei-2d"
TILE = 1024  # what the package takes where the user says nothing


def make_images(folder):
    """Write the images; the large one is a mosaic of fields, as simulating is slow."""
    import tifffile

    moderate = NucleiSettings(density=0.2)
    for name in ("large", "folder", "small"):
        (folder / name).mkdir()
    fields = [simulate_nuclei((512, 512), seed, moderate)[0] for seed in range(16)]
    rows = [np.hstack(fields[start : start + 4]) for start in range(0, 16, 4)]
    tifffile.imwrite(folder / "large" / "mosaic.tif", np.vstack(rows))
    tifffile.imwrite(folder / "small" / "field.tif", fields[0][:256, :256])
    for number in range(40):
        image, _ = simulate_nuclei((520, 696), 100 + number, moderate)
        tifffile.imwrite(folder / "folder" / f"field{number:02}.tif", image)


class Recorder:
    """Stands in for the network of a session, and notes what it is asked and how long it takes."""

    def __init__(self, run):
        self.run = run
        self.asked = []
        self.seconds = 0.0

    def __call__(self, image, place):
        start = time.perf_counter()
        found = self.run(image, place)
        self.seconds += time.perf_counter() - start
        self.asked.append((image, place))
        return found


@contextlib.contextmanager
def stopwatch(times, name):
    start = time.perf_counter()
    yield
    times.setdefault(name, []).append(time.perf_counter() - start)


def work(session, paths, out):
    """What the command does with its images."""
    for path in paths:
        image = read_image(path, session.package.n_axes)
        labels = segment(image.pixels, session)
        write_labels(out / path.name, labels, image.scale_um, overwrite=True)


def command(paths, out):
    """Run the command itself, with this Python and this package."""
    code = "from spoco_zoo.cli import main; main()"
    words = ["run", WEIGHTS, *paths, "--out", out, "--device", "cpu", "--overwrite"]
    python(code, *words)


def python(code, *words):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.getenv('PYTHONPATH', '')}"}
    subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        check=True,
        capture_output=True,
    )


def whole_inputs(package, paths):
    """Normalise images and pad them to the pooling grid, for one run of the network each."""
    batches = []
    for path in paths:
        pixels = read_image(path, package.n_axes).pixels
        image = fit_affine(pixels, package.normalization).apply(pixels)
        steps = package.config.multiple_of
        padding = [(0, -n % step) for n, step in zip(image.shape[1:], steps, strict=True)]
        image = np.pad(image, [(0, 0), *padding], mode="edge")
        batches.append(np.ascontiguousarray(image[None], np.float32))
    return batches


class Bioimageio:
    """The embeddings of the same package by bioimageio.core."""

    def __init__(self, package):
        os.environ["TQDM_DISABLE"] = "1"  # what it says of every block would be part of its time
        from bioimageio.core import create_prediction_pipeline, load_model_description
        from loguru import logger

        logger.disable("bioimageio")
        model = load_model_description(WEIGHTS / "rdf.yaml", perform_io_checks=False)
        self.model, self.package = model, package
        self.pipeline = create_prediction_pipeline(
            model, weights_format="onnx", devices=["CPUExecutionProvider"]
        )
        self.pipeline.load()

    def samples(self, paths):
        from bioimageio.core import Tensor
        from bioimageio.core.digest_spec import create_sample_for_model

        dims = ("batch", "channel", "y", "x")
        for path in paths:
            pixels = read_image(path, self.package.n_axes).pixels.astype(np.float32)
            tensor = Tensor.from_numpy(pixels[None], dims=dims)
            yield create_sample_for_model(self.model, inputs={"image": tensor}, sample_id=path.stem)

    def whole(self, sample):
        return self.pipeline.predict_sample_without_blocking(sample)

    def blocks(self, sample):
        sizes = [TILE + 2 * halo for halo in self.package.config.halo]
        shape = {"batch": 1, "channel": 1, "y": sizes[0], "x": sizes[1]}
        return self.pipeline.predict_sample_with_fixed_blocking(sample, {"image": shape})

    def default_blocks(self, sample):
        return self.pipeline.predict_sample_with_blocking(sample)


def compare(name, paths, out, options):
    """Let the sides take turns on some images."""
    package = load_package(WEIGHTS)
    theirs = Bioimageio(package) if has_bioimageio() else None
    if theirs is None:
        print("bioimageio.core: left out, it is not installed")
    times = {}
    with EmbeddingSession(package, "cpu") as session:
        for number in range(-1, options.rounds):
            if number == 0:  # the round before warms everything up
                times.clear()
            time_ours(session, paths, out, times)
            ways = ("whole", "blocks") if name == "large" else ("whole",)
            for way in ways if theirs else ():
                samples = list(theirs.samples(paths))
                with stopwatch(times, f"bioimageio.core, {way}"):
                    for sample in samples:
                        getattr(theirs, way)(sample)
        print_ratios(name, times)
        if theirs is not None and name == "folder":
            compare_default_blocks(session, theirs, paths[:1], out)


def time_ours(session, paths, out, times):
    """Time the work, the network in it and by itself, and the command."""
    onnx, package = session._session, session.package
    recorder = session._run = Recorder(session._run)
    with stopwatch(times, "work"):
        work(session, paths, out)
    session._run = recorder.run
    times.setdefault("network in work", []).append(recorder.seconds)
    with stopwatch(times, "network, same tiles"):
        for image, place in recorder.asked:
            session._run(image, place)
    batches = whole_inputs(package, paths)
    with stopwatch(times, "network, whole images"):
        for batch in batches:
            onnx.run(list(package.outputs), {package.input_id: batch})
    with stopwatch(times, "command"):
        command(paths, out)


def has_bioimageio():
    try:
        return importlib.util.find_spec("bioimageio.core") is not None
    except ModuleNotFoundError:
        return False


def compare_default_blocks(session, theirs, paths, out):
    times = {}
    with stopwatch(times, "work"):
        work(session, paths, out)
    (sample,) = theirs.samples(paths)
    with stopwatch(times, "theirs"):
        theirs.default_blocks(sample)
    ratio = times["work"][0] / times["theirs"][0]
    print(f"\none image: work / bioimageio.core in its default blocks: {ratio:.4f} (once)")


def print_ratios(name, times):
    print(f"\n## {name}\n\n| ratio | median | lowest to highest |\n|---|---|---|")
    for side in ("work", "command"):
        for other, seconds in times.items():
            if other in ("work", "command") and not (side == "command" and other == "work"):
                continue
            print_ratio(f"{side} / {other}", times[side], seconds)
    print(flush=True)


def print_ratio(name, ours, theirs):
    ratios = [mine / yours for mine, yours in zip(ours, theirs, strict=True)]
    low, high = min(ratios), max(ratios)
    print(f"| {name} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} |")


def compare_start(paths, out, options):
    """Run the command on a small image, and bare imports, in turns."""
    times = {}
    modules = [m for m in ("onnxruntime", "torch") if importlib.util.find_spec(m)]
    for number in range(-1, 3 * options.rounds):
        if number == 0:
            times.clear()
        with stopwatch(times, "command"):
            command(paths, out)
        for module in modules:
            with stopwatch(times, f"import {module}"):
                python(f"import {module}")
    print("\n## start-up, one image of 256 x 256\n\n| ratio | median | lowest to highest |")
    print("|---|---|---|")
    for other, seconds in times.items():
        if other != "command":
            print_ratio(f"command / {other}", times["command"], seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", choices=["large", "folder", "start"], action="append", help="part of it"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        for part in options.only or ["large", "folder", "start"]:
            out = folder / f"{part}-labels"
            out.mkdir()
            if part == "start":
                compare_start(find_images([folder / "small"]), out, options)
            else:
                compare(part, find_images([folder / part]), out, options)


if __name__ == "__main__":
    main()
