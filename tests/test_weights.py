"""Every shipped package is what it says: bytes, test tensors, tiles, size."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from spoco_zoo.engines import pick_engines, run_onnx, run_torchscript
from spoco_zoo.images import read_image
from spoco_zoo.labels import relabel
from spoco_zoo.lint import choose_consumers, lint_package
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import load_package
from spoco_zoo.segmentation import embed, make_instances, segment
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import simulate_nuclei

pytestmark = pytest.mark.uncounted

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.parent for path in (ROOT / "weights").glob("*/rdf.yaml"))
ENDINGS = ("-instances", "-boundaries", "-qupath")
DESKTOP = [path for path in SHIPPED if path.name.endswith(ENDINGS)]
PACKAGES = [path for path in SHIPPED if path not in DESKTOP]
TILES = {2: [(1024, 1024), (128, 128), (64, 200)], 3: [(96, 96, 96), (16, 48, 48), (8, 64, 32)]}


@pytest.fixture(scope="module", params=PACKAGES, ids=lambda path: path.name)
def session(request):
    with EmbeddingSession(load_package(request.param), "cpu") as opened:
        yield opened


def sample_of(package, space):
    """The corner of the sample image, which shows what the network is for."""
    pixels = read_image(package.location / "sample_image.tif", package.n_axes).pixels
    return np.ascontiguousarray(pixels[(slice(None), *map(slice, space))])


def test_there_is_a_shipped_package():
    assert (ROOT / "weights" / "nuclei-2d") in PACKAGES


@pytest.fixture(params=SHIPPED, ids=lambda path: path.name)
def shipped(request):
    return request.param


def test_every_network_is_there_for_every_program():
    for path in PACKAGES:
        assert path.with_name(f"{path.name}-instances") in DESKTOP
    for ending in ENDINGS:
        assert ROOT / "weights" / f"nuclei-2d{ending}" in DESKTOP


def test_every_package_was_proven_in_every_engine(shipped):
    told = json.loads((shipped / "proof.json").read_text(encoding="utf-8"))
    assert told["engines_missing"] == []
    assert {"ONNX Runtime 1.12.1", "libtorch 2.0.0", "bioimageio.core 0.10.2"} <= set(
        told["engines"]
    )
    assert [check["name"] for check in told["checks"] if not check["passed"]] == []
    for name, digest in told["files"].items():
        assert hashlib.sha256((shipped / name).read_bytes()).hexdigest() == digest
    names = {path.name for path in shipped.iterdir()}
    assert names - told["files"].keys() == {"README.md", "proof.json", "rdf.yaml"}


def test_nothing_is_found_that_keeps_a_package_from_its_programs(shipped):
    findings = lint_package(shipped, choose_consumers(shipped))
    assert [finding.message for finding in findings if finding.severity == "error"] == []


def test_a_collection_would_ask_for_the_name_of_a_maintainer_and_nothing_else(shipped):
    pytest.importorskip("bioimageio.core")
    pytest.importorskip("torch")
    from spoco_zoo.packaging.acceptance import find_alerts

    (alert,) = find_alerts(shipped)
    assert alert.startswith("Missing `maintainers` or any author in `authors`")
    assert f"bioimageio.spec says: {alert}" in (shipped / "README.md").read_text(encoding="utf-8")


def test_what_is_made_of_boundary_maps_is_nearly_as_good_as_run():
    """What `benchmarks/boundary_maps.py` measured on the validation images."""
    told = json.loads((ROOT / "benchmarks/nuclei-2d/boundaries.json").read_text(encoding="utf-8"))
    run, *others = told["ap50"].values()
    assert told["images"] == 30
    assert len(others) == 4
    assert min(others) > run - 0.03
    card = (ROOT / "weights/nuclei-2d-boundaries/README.md").read_text(encoding="utf-8")
    for name, value in told["ap50"].items():
        assert f"| {name} | {value:.3f} |" in card


@pytest.mark.parametrize(
    "path", [p for p in DESKTOP if p.name.endswith("-instances")], ids=lambda path: path.name
)
def test_labels_out_of_the_graph_are_those_of_run(path):
    (engine,) = (e for e in pick_engines("installed") if e.kind == "onnx")
    package = load_package(path.with_name(path.name.removesuffix("-instances")))
    image = sample_of(package, (300, 333) if package.n_axes == 2 else (21, 90, 101))
    expected = segment(image, package, device="cpu")
    normalized = fit_affine(image, package.normalization).apply(image)[None].astype(np.float32)
    (found,) = run_onnx(engine, path / "weights.onnx", normalized)
    assert expected.max() > 5
    np.testing.assert_array_equal(relabel(found[0, 0]), expected)


@pytest.mark.parametrize(
    "path", [p for p in DESKTOP if p.name.endswith("-qupath")], ids=lambda path: path.name
)
def test_what_qupath_calls_gives_labels_of_a_tile(path):
    engine = next((e for e in pick_engines("installed") if e.kind == "torchscript"), None)
    if engine is None or not engine.find():
        pytest.skip("PyTorch is not there")
    package = load_package(path.with_name(path.name.removesuffix("-qupath")))
    image = sample_of(package, (300, 333)).astype(np.float32)
    low, high = np.percentile(image, (0.1, 99.9))
    given = np.clip((image - low) / (high - low), -0.5, 1.5)[None].astype(np.float32)
    (found,) = run_torchscript(engine, path / "instanseg.pt", given)
    assert found.dtype == np.float32
    expected = segment(given[0], package, device="cpu")
    np.testing.assert_array_equal(relabel(found[0, 0].astype(np.int64)), expected)


def test_the_test_tensors_are_reproduced(session):
    package = session.package
    words = yaml.safe_load((package.location / "rdf.yaml").read_text(encoding="utf-8"))
    raw = np.load(package.location / words["inputs"][0]["test_tensor"]["source"])[0]
    found = session.embed(fit_affine(raw, package.normalization).apply(raw))
    named = {
        "embedding": found.embedding,
        "foreground": None if found.probability is None else found.probability[None],
        "momentum_embedding": found.momentum_embedding,
    }
    for output in words["outputs"]:
        expected = np.load(package.location / output["test_tensor"]["source"])[0]
        np.testing.assert_allclose(named[output["id"]], expected, rtol=1e-3, atol=1e-3)


def test_the_description_has_the_form_that_every_reader_knows(session):
    words = yaml.safe_load((session.package.location / "rdf.yaml").read_text(encoding="utf-8"))
    assert (words["type"], words["format_version"]) == ("model", "0.5.4")
    assert words["id"] == session.package.location.name
    assert (words["documentation"], words["covers"]) == ("README.md", ["cover.png"])
    assert words["weights"]["onnx"]["opset_version"] == 17
    assert all(isinstance(entry["source"], str) for entry in words["weights"].values())
    assert words["license"]
    assert words["tags"]
    assert words["cite"]


def test_tiles_change_nothing(session):
    package = session.package
    image = sample_of(package, (300, 260) if package.n_axes == 2 else (24, 100, 90))
    whole = embed(image, session, tile=TILES[package.n_axes][0])
    labels = make_instances(whole, package.config.recipe)
    assert labels.max() > 5
    for tile in TILES[package.n_axes][1:]:
        tiled = embed(image, session, tile=tile)
        np.testing.assert_allclose(tiled.embedding, whole.embedding, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(make_instances(tiled, package.config.recipe), labels)


def test_neither_tiles_nor_blocks_change_a_large_image():
    """Four fields side by side: more windows, and more instances, than any crop has seen."""
    fields = [simulate_nuclei((512, 512), seed)[0] for seed in range(4)]
    image = np.block([fields[:2], fields[2:]])
    with EmbeddingSession(load_package(ROOT / "weights" / "nuclei-2d"), "cpu") as session:
        expected = segment(image, session)
        assert expected.max() > 350
        assert (segment(image, session, tile=(512, 128), block=(700, 300)) == expected).all()


def test_the_sample_image_shows_instances(session):
    package = session.package
    sample = read_image(package.location / "sample_image.tif", package.n_axes)
    labels = segment(sample.pixels, session)
    assert labels.max() >= 5


def test_packages_are_small_enough_to_clone():
    for package in PACKAGES:
        assert sum(p.stat().st_size for p in package.iterdir()) <= 25_000_000
    together = sum(p.stat().st_size for package in SHIPPED for p in package.iterdir())
    assert together <= 120_000_000
