"""Small worlds for the tests: hand-made packages, images and embeddings of known answer, a run.

What the packages compute stands in `data/make_tiny_package.py`. Every test gets copies of its
own, so it may damage them.
"""

import gc
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from scipy import ndimage
from scipy.spatial import cKDTree

import spoco_zoo
from spoco_zoo.clustering import cluster
from spoco_zoo.labels import relabel
from spoco_zoo.package import load_package
from spoco_zoo.recipe import Recipe

DATA = Path(__file__).parent / "data"


def pytest_collection_modifyitems(items):
    """Coverage is asked of the rooms that run packages; tests of all others do without it."""
    for item in items:
        if item.path.parent.name in ("datasets", "engines", "packaging", "training"):
            item.add_marker("uncounted")


@pytest.fixture
def copy_tiny(tmp_path):
    """Copy `package`, `momentum` or `volume` and return its folder."""

    def copy(kind):
        return Path(shutil.copytree(DATA / f"tiny_{kind}", tmp_path / f"tiny_{kind}"))

    return copy


@pytest.fixture
def tiny_package(copy_tiny):
    """A package for images: the path of a copy."""
    return copy_tiny("package")


def describe_axes(letters, channels, size=None, halo=0):
    """Axes of format 0.5, of letters as in 0.4."""
    kinds = {"b": "batch", "c": "channel", "t": "time", "i": "index"}
    axes = []
    for letter in letters:
        axis = {"type": kinds.get(letter, "space"), "id": kinds.get(letter, letter)}
        if letter == "c":
            axis["channel_names"] = list(channels)
        elif letter in "ti":
            axis["size"] = 1
        elif letter in "zyx":
            axis |= {"size": size or {"tensor_id": "image", "axis_id": letter}}
            axis |= {"halo": halo} if halo else {}
        axes.append(axis)
    return axes


@pytest.fixture
def make_foreign(tmp_path):
    """Write a package of others around a network, in format 0.5, and return its folder.

    `outputs` maps names to the letters of their axes, their channels, and other words.
    """

    def make(network, outputs, *, axes="bcyx", channels=("grey",), size=None, halo=0, change=None):
        folder = tmp_path / f"foreign{len(list(tmp_path.glob('foreign*')))}"
        folder.mkdir()
        weights = network if isinstance(network, bytes) else (DATA / network).read_bytes()
        (folder / "net.onnx").write_bytes(weights)
        image = {"id": "image", "data": {"type": "float32"}}
        image["axes"] = describe_axes(axes, channels, size or {"min": 2, "step": 2})
        digest = hashlib.sha256(weights).hexdigest()
        words = {"type": "model", "format_version": "0.5.4", "name": "Stranger", "inputs": [image]}
        words["outputs"] = []
        for name, (letters, named, more) in outputs.items():
            output = {"id": name, "data": {"type": "float32"}}
            output["axes"] = describe_axes(letters, named, halo=halo)
            words["outputs"].append(output | more)
        words["weights"] = {"onnx": {"source": "net.onnx", "sha256": digest, "opset_version": 17}}
        words = json.loads(json.dumps(words))  # what stands twice must not become an alias
        if change is not None:
            change(words)
        (folder / "rdf.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
        return folder

    return make


@pytest.fixture
def make_stranger(make_foreign):
    """Write the network of the tiny package as a package of others, which says nothing of SPOCO."""

    def make(*, halo=4, size=None, change=None):
        outputs = {
            "embedding": ("bcyx", ("a", "b"), {}),
            "foreground": ("bcyx", ("foreground",), {}),
        }

        def prepare(words):
            kwargs = {"axes": ["y", "x"]}
            words["inputs"][0]["preprocessing"] = [{"id": "scale_range", "kwargs": kwargs}]
            if change is not None:
                change(words)

        return make_foreign(
            "tiny_package/weights.onnx", outputs, size=size, halo=halo, change=prepare
        )

    return make


@pytest.fixture
def load_tiny():
    """Load a package of `data` where it lies, for tests that damage nothing."""
    return lambda kind: load_package(DATA / f"tiny_{kind}")


@pytest.fixture
def edit_rdf():
    """Change the words of a package's `rdf.yaml` by a function, and state the true hashes."""

    def edit(folder, change=lambda words: None, *, rehash=True):
        path = folder / "rdf.yaml"
        words = yaml.safe_load(path.read_text())
        files = words["config"]["spoco_zoo"]["files"]
        if rehash:
            names = sorted(p.name for p in folder.iterdir() if p.is_file() and p != path)
            hashes = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
            files.update(hashes)
            words["weights"]["onnx"]["sha256"] = files["weights.onnx"]
        change(words)
        path.write_text(yaml.safe_dump(words, sort_keys=False))

    return edit


@pytest.fixture
def zip_folder():
    """Zip the files of a folder, at the top of the zip unless under another name."""

    def write(folder, target, prefix="", compression=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(target, "w", compression) as file:
            for path in sorted(folder.iterdir()):
                file.write(path, prefix + path.name)
        return target

    return write


def _disc(shape, center, radius):
    """Pixels within `radius` of `center`, in any number of axes."""
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


@pytest.fixture
def paint():
    """Paint discs or balls of known grey on dark, with their truth.

    Two of them touch and differ in grey; two are of one grey and lie apart.
    """

    def draw(n_axes=2, size=72):
        shape = (size - 10, size) if n_axes == 2 else (12, 30, 36)
        discs = {
            2: [
                ((15, 14), 10, 150),
                ((15, 33), 10, 90),
                ((16, 58), 8, 90),
                ((44, 20), 11, 250),
                ((45, 52), 12, 200),
            ],
            3: [((5, 9, 9), 6, 150), ((6, 9, 20), 5.5, 90), ((6, 22, 16), 5, 250)],
        }
        image, truth = np.full(shape, 10, np.uint8), np.zeros(shape, np.uint32)
        for number, (center, radius, grey) in enumerate(discs[n_axes], start=1):
            inside = _disc(shape, center, radius)
            image[inside], truth[inside] = grey, number
        return image, relabel(truth)

    return draw


@pytest.fixture
def painted(paint):
    """The painted image of discs, and its truth."""
    return paint()


@pytest.fixture(scope="session")
def world():
    """Label touching blocks in one corner, and two balls far from them and from each other."""

    def make(n_axes):
        side, block, n = (60, 8, 3) if n_axes == 2 else (20, 5, 2)
        labels = np.zeros((side,) * n_axes, np.uint32)
        for number, corner in enumerate(np.ndindex((n,) * n_axes), start=1):
            labels[tuple(slice(1 + block * k, 1 + block * (k + 1)) for k in corner)] = number
        here = np.indices(labels.shape)
        for number, place in ((n**n_axes + 1, (0.2, 0.8)), (n**n_axes + 2, (0.8, 0.25))):
            centre = [place[min(axis, 1)] * side for axis in range(n_axes)]
            distance = sum((a - c) ** 2 for a, c in zip(here, centre, strict=True))
            labels[distance < (side / 7) ** 2] = number
        return labels

    return make


@pytest.fixture(scope="session")
def stripes():
    """Label a line of touching instances, 1, 2, ..., of these widths."""

    def make(*widths, height=20):
        line = np.repeat(np.arange(1, len(widths) + 1, dtype=np.uint32), widths)
        return line[None].repeat(height, 0)

    return make


@pytest.fixture(scope="session")
def embedding_of():
    """Embed labels: centres at least 2 apart, one an instance and one for background, and noise.

    The last two instances are twins that share one centre.
    """

    def make(labels, e=8, spread=0.05, seed=0, *, twins=True):
        random = np.random.default_rng(seed)
        n = int(labels.max())
        centres = np.zeros((n + 1, e), np.float32)
        centres[:, 0] = random.permutation(n + 1) * 2
        rotation, _ = np.linalg.qr(random.normal(size=(e, e)))
        centres = centres @ rotation
        if twins:
            centres[n] = centres[n - 1]
        noise = random.uniform(-spread, spread, (*labels.shape, e)) / np.sqrt(e)
        return np.moveaxis(centres[labels] + noise, -1, 0).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def blurred_embedding_of():
    """Embed labels as a network does: the centres flow into each other over some pixels."""

    def make(labels, sigma):
        centres = 2.83 * np.eye(int(labels.max()) + 1, 8)  # 4 apart, as a margin of 2 makes them
        sharp = np.moveaxis(centres[labels], -1, 0)
        blurred = ndimage.gaussian_filter(sharp, (0,) + (sigma,) * labels.ndim)
        noise = np.random.default_rng(1).uniform(-0.05, 0.05, blurred.shape)
        return (blurred + noise).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def scene():
    """Make what is hard to cut into windows: the embedding of f, foreground, and that of g.

    Cells of random shape fill the image, with an embedding each, blurred and noisy: a few larger
    than any window; twins that share an embedding far apart; with gaps; under a foreground of
    crumbs. Or combs, whose teeth meet at one side of the image alone.
    """

    def make(kind, shape, seed=0, e=4):
        random = np.random.default_rng([seed, *shape])
        count = max(math.prod(shape) // (1200 if kind == "large" else 90), 2)
        seeds = random.uniform(0, shape, (count, len(shape)))
        here = np.indices(shape)
        cells = cKDTree(seeds).query(np.moveaxis(here, 0, -1))[1]
        if kind == "combs":
            cells = np.broadcast_to(here[-1] // 12, shape)
        centres = 2 * random.normal(size=(count + shape[-1], e))
        if kind == "twins":
            centres = centres[random.integers(0, max(count // 3, 2), len(centres))]
        sigma = random.choice([0.0, 0.7, 1.5])
        f = np.moveaxis(centres[cells], -1, 0)
        f = ndimage.gaussian_filter(f, (0,) + (sigma,) * len(shape)) if sigma else f
        f = f + random.choice([0.05, 0.4]) / e**0.5 * random.uniform(-1, 1, f.shape)
        g = f + 0.15 / e**0.5 * random.normal(size=f.shape)
        foreground = {
            "gaps": ndimage.minimum_filter(cells, 3) == ndimage.maximum_filter(cells, 3),
            "crumbs": ndimage.gaussian_filter(random.normal(size=shape), 1) > 0,
            "combs": (here[-1] % 6 < 4) | (here[0] > shape[0] - 4),
        }.get(kind, np.ones(shape, dtype=bool))
        return f.astype(np.float32), foreground, g.astype(np.float32)

    return make


@pytest.fixture(scope="session")
def of_values():
    """Embed labels in one dimension, a value for each label from 0 up."""
    return lambda labels, *values: np.array(values, np.float32)[labels][None]


@pytest.fixture(scope="session")
def make_validated(world, embedding_of):
    """A validation image of which the networks know everything, but for one mistake."""
    from spoco_zoo.examples import Validated
    from spoco_zoo.fitting import Embedded
    from spoco_zoo.labels import UNLABELED

    def make(name="plain", *, mistake=None, unlabeled=False):
        labels = world(2)
        embedding = embedding_of(labels, twins=False)
        probability = (labels > 0).astype(np.float32)
        states = labels.astype(np.int64)
        if mistake == "missed":
            probability[labels == 1] = 0
        elif mistake == "false":
            states[labels == 1] = 0
        elif mistake == "merged":
            embedding[:, labels == 2] = embedding[:, labels == 1].mean(1)[:, None]
        elif mistake == "all":
            probability[:] = 0
        if unlabeled:
            states[states == 0] = UNLABELED
        image = np.random.default_rng(1).normal(size=(1, *labels.shape)).astype(np.float32)
        return Validated(name, image, Embedded(embedding, None, probability, states))

    return make


@pytest.fixture(scope="session")
def run():
    """Cluster the foreground of a label image by an embedding."""

    def find(labels, embedding, method, momentum_embedding=None, **recipe):
        momentum = embedding if momentum_embedding is None else momentum_embedding
        return cluster(embedding, labels > 0, Recipe(clustering=method, **recipe), momentum)

    return find


@pytest.fixture(scope="session")
def crowd():
    """Draw discs or balls of random place, size and grey over each other: many touch."""

    def draw(*shape, seed=0, dtype=np.uint8):
        random = np.random.default_rng([seed, *shape])
        image = np.full(shape, 10, dtype)
        largest = 12 if len(shape) == 2 else 7
        for _ in range(max(math.prod(shape) // (150 if len(shape) == 2 else 700), 8)):
            radius = random.uniform(2, largest)
            image[_disc(shape, random.uniform(0, shape), radius)] = random.integers(40, 250)
        return image

    return draw


@pytest.fixture(scope="session")
def write_ngff():
    """Write an OME-Zarr by hand, of pixels with these axes; its path."""
    zarr = pytest.importorskip("zarr")

    def write(path, pixels, axes, *, levels=1, chunk=16, version="0.4", group=None):
        keys = {"name": "default" if version == "0.5" else "v2", "separator": "/"}
        zarr_format = 3 if version == "0.5" else 2
        if group is None:
            group = zarr.create_group(store=str(path), zarr_format=zarr_format)
        datasets = []
        for n in range(levels):
            level = pixels[tuple(slice(None, None, 2**n if a in "zyx" else 1) for a in axes)]
            chunks = tuple(
                min(chunk, s) if a in "zyx" else 1 for a, s in zip(axes, level.shape, strict=True)
            )
            array = group.create_array(
                str(n), shape=level.shape, dtype=level.dtype, chunks=chunks, chunk_key_encoding=keys
            )
            array[...] = level
            scale = [0.5 * 2**n if a in "zyx" else 1.0 for a in axes]
            change = [{"type": "scale", "scale": scale}]
            datasets.append({"path": str(n), "coordinateTransformations": change})
        kinds = {"t": "time", "c": "channel"}
        named = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
        for axis in named:
            axis.update({"unit": "micrometer"} if axis["type"] == "space" else {})
        told = {"multiscales": [{"version": version, "axes": named, "datasets": datasets}]}
        channels = [{"label": name} for name in ("DAPI", "GFP", "RFP")]
        if "c" in axes:
            told["omero"] = {"channels": channels[: pixels.shape[axes.index("c")]]}
        group.attrs.put({"ome": {"version": "0.5"} | told} if version == "0.5" else told)
        return path

    return write


@pytest.fixture(scope="session")
def files_in():
    """All files of a folder by their names, with what is in them."""

    def read(folder):
        found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return {name: path.read_bytes() for name, path in sorted(found.items())}

    return read


@pytest.fixture
def image_folder(paint, tmp_path):
    """Three painted TIFF images of different size with a pixel size of 0.25 µm."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in (("a", 72), ("b", 75), ("c", 80)):
        tifffile.imwrite(
            folder / f"{name}.tif",
            paint(size=size)[0],
            imagej=True,
            resolution=(4, 4),
            metadata={"unit": "um", "axes": "YX"},
        )
    return folder


@pytest.fixture(scope="session")
def start_python():
    """Start Python in a subprocess that finds the package; keyword arguments as for Popen."""

    def start(*arguments, **options):
        root = str(Path(spoco_zoo.__file__).parents[1])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def nuclei_data(tmp_path_factory):
    """A folder as `train` takes it: three simulated images to train on and two to validate."""
    from spoco_zoo.simulation import NucleiSettings, simulate_nuclei

    root = tmp_path_factory.mktemp("nuclei")
    easy = NucleiSettings(clustering=0.0, defocus=0.0, noise_sigma=0.002, brightness_spread=0.05)
    for part, seeds in (("train", (0, 1, 2)), ("val", (3, 4))):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for seed in seeds:
            image, labels = simulate_nuclei((64, 72), seed, easy)
            tifffile.imwrite(root / part / "images" / f"{seed}.tif", image)
            tifffile.imwrite(root / part / "labels" / f"{seed}.tif", labels.astype(np.uint16))
    return root


TINY_SPEC = {
    "name": "tiny-nuclei",
    "data": {"pixel_size_um": [0.5, 0.5]},
    "net": {"widths": [4, 8], "embedding_dim": 4},
    # after so few steps another weight lets another method of clustering win the fit
    "loss": {"consistency_weight": 0.0, "foreground_weight": 1.0},
    "schedule": {
        "steps": 20,
        "batch_size": 2,
        "crop": [32, 32],
        "warmup_steps": 2,
        "validate_every": 20,
        "workers": 0,
        "precision": "float32",
        "learning_rate": 0.01,
    },
    "card": {
        "title": "Tiny nuclei (test)",
        "license": "CC0-1.0",
        "tags": ["nuclei", "2d"],
        "authors": [{"name": "Ada", "github_user": "octocat"}],
        "cite": [{"text": "SPOCO", "url": "https://arxiv.org/abs/2103.14572"}],
        "data": "simulated",
        "limits": "Good for tests.",
    },
}


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory):
    """Path of a spec of a network that trains in seconds."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_SPEC))
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, nuclei_data, tiny_spec):
    """The folder of a finished run; needs torch."""
    pytest.importorskip("torch")
    from spoco_zoo.spec import load_spec
    from spoco_zoo.training import TrainOptions, train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    result = train(load_spec(tiny_spec), nuclei_data, folder, TrainOptions(device="cpu"))
    assert result.finished
    return folder


@pytest.fixture
def make_run(tmp_path):
    """Write the folder of a finished run whose network was never trained; needs torch."""
    torch = pytest.importorskip("torch")
    from spoco_zoo.spec import dump_spec, parse_spec
    from spoco_zoo.training.checkpoints import CHECKPOINT_VERSION, build_pair

    def make(words, recipe):
        folder = tmp_path / "run"
        folder.mkdir()
        spec = parse_spec(words, "spec")
        torch.manual_seed(0)
        pair = build_pair(spec)
        state = {"version": CHECKPOINT_VERSION, "pair": pair.state_dict()}
        torch.save(state, folder / "best.pt")
        (folder / "spec.yaml").write_text(dump_spec(spec))
        scores = {"ap50": 0.5, "mean_ap": 0.4, "sbd": 0.3, "count_difference": 1.5}
        fitted = {"recipe": recipe, "step": 7, "validation": scores, "validation_images": 2}
        (folder / "recipe.json").write_text(json.dumps(fitted))
        facts = {"train_images": 3, "train_instances": 9, "precision": "float32", "device": "cpu"}
        (folder / "environment.json").write_text(json.dumps(facts))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_scores(tmp_path_factory):
    """A score file as `evaluate --json` writes it, of one image without a mistake."""
    from spoco_zoo.evaluation import evaluate

    folder = tmp_path_factory.mktemp("scores")
    np.save(folder / "labels.npy", np.repeat([[0, 1, 1, 2]], 4, axis=0))
    told = evaluate(folder / "labels.npy", folder / "labels.npy").to_json()
    (folder / "scores.json").write_text(json.dumps(told))
    return folder / "scores.json"


# images on which the memory of a tiny network is measured: not one of the tests is about the number
SMALL_SIZES = {2: ((64, 64), (128, 128)), 3: ((8, 32, 32), (16, 32, 32))}


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory, tiny_run, tiny_scores):
    """The package of the run, proven by everything; its folder and the stages of the export."""
    pytest.importorskip("bioimageio.core")
    from spoco_zoo.packaging import ExportOptions, export_package, memory

    folder, stages = tmp_path_factory.mktemp("export") / "package", []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "SIZES", SMALL_SIZES)
        warnings.simplefilter("ignore", ResourceWarning)
        export_package(tiny_run, folder, ExportOptions(scores=tiny_scores, on_stage=stages.append))
        gc.collect()
    return folder, stages


@pytest.fixture
def collected():
    """Collect what bioimageio left open where `filterwarnings` of the test still lets it be."""
    yield
    gc.collect()


@pytest.fixture
def small_memory(monkeypatch):
    """Measure memory on small images, for most of an export of a tiny network is that of large."""
    from spoco_zoo.packaging import memory

    monkeypatch.setattr(memory, "SIZES", SMALL_SIZES)


@pytest.fixture
def quick_judge(monkeypatch, small_memory):
    """Let engines and bioimageio.core pass everything, where `tiny_export` has asked them."""
    core = pytest.importorskip("bioimageio.core")
    from spoco_zoo.packaging import export
    from spoco_zoo.packaging.proof import Proof

    asked = []

    def judge(words, *, weight_format, **_):
        asked.append((words["name"], weight_format))
        return SimpleNamespace(status="passed")

    monkeypatch.setattr(core, "test_description", judge)
    monkeypatch.setattr(export, "prove", lambda candidate, *_: Proof(candidate.name))
    return asked


def _trace(mask):
    """Walk along the sides of the pixels of a mask; the corners of each closed way.

    The mask lies to the right of the way, so a way around a hole runs the other way round.
    """
    padded = np.pad(mask, 1)
    following = {}
    for row, column in np.argwhere(padded):
        sides = [
            (-1, 0, (column, row), (column + 1, row)),
            (0, 1, (column + 1, row), (column + 1, row + 1)),
            (1, 0, (column + 1, row + 1), (column, row + 1)),
            (0, -1, (column, row + 1), (column, row)),
        ]
        for down, right, start, end in sides:
            if not padded[row + down, column + right]:
                following.setdefault(start, []).append(end)
    rings = []
    while following:
        ring = [next(iter(following))]
        while ring[-1] in following:
            ends = following[ring[-1]]
            ring.append(ends.pop())
            if not ends:
                del following[ring[-2]]
        rings.append(np.array(ring[:-1], float) - 1)
    return rings


@pytest.fixture(scope="session")
def trace():
    """The sides of the pixels of a mask as closed ways."""
    return _trace
