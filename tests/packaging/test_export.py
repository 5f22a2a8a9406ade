"""Export: a proven package of a finished run, readable by old and new programs, or nothing."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import errno
import gc
import hashlib
import json
import os
import shutil
import warnings
import zipfile
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("bioimageio.core")

from PIL import Image

from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.images import read_image
from spoco_zoo.normalization import ScaleRange, fit_affine
from spoco_zoo.package import load_package
from spoco_zoo.packaging import ExportOptions, export, export_package, export_packages
from spoco_zoo.packaging.acceptance import find_alerts
from spoco_zoo.packaging.flavours import FLAVOURS
from spoco_zoo.packaging.graphs import read_torchscript
from spoco_zoo.packaging.proof import Check, Proof
from spoco_zoo.recipe import Recipe
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.training import net as net_module
from spoco_zoo.training.checkpoints import load_run
from spoco_zoo.training.net import PackagedUNet

OPTIONS = ExportOptions(draft=True)  # runs made for a test have no card
HEAD = {"rule": "head", "threshold": 0.5}
MEAN_SHIFT = {"method": "mean_shift", "bandwidth": 0.5}
FILES = [
    *("README.md", "cover.png", "net.py", "proof.json", "rdf.yaml", "sample_embedding.tif"),
    *("sample_foreground.tif", "sample_image.tif", "test_embedding.npy", "test_foreground.npy"),
    "test_input.npy",
    *("weights.onnx", "weights.pt", "weights_torchscript.pt"),
]


def leaves_files_open(test):
    """Mark a test in which bioimageio.spec leaves files open."""
    test = pytest.mark.usefixtures("collected")(test)
    return pytest.mark.filterwarnings("ignore::ResourceWarning")(test)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def words_of(folder):
    return yaml.safe_load((folder / "rdf.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def exported(tiny_export):
    return tiny_export[0]


# --- what is written


def test_the_package_holds_these_files_and_nothing_is_left_beside_it(exported):
    assert names_in(exported) == FILES
    assert names_in(exported.parent) == ["package"]


def test_every_file_is_listed_with_its_hash(exported):
    hashes = {
        name: hashlib.sha256((exported / name).read_bytes()).hexdigest()
        for name in FILES
        if name != "rdf.yaml"
    }
    assert words_of(exported)["config"]["spoco_zoo"]["files"] == hashes

    def stated(words):
        """Every pair of source and sha256, wherever it stands."""
        if isinstance(words, dict):
            if "sha256" in words:
                yield words["source"], words["sha256"]
            words = list(words.values())
        for word in words if isinstance(words, list) else ():
            yield from stated(word)

    found = dict(stated(words_of(exported)))
    assert sorted(found) == sorted(hashes)
    assert all(hashes[name] == value for name, value in found.items())


def test_the_description_has_the_form_that_old_and_new_readers_share(exported):
    words = words_of(exported)
    assert (words["type"], words["format_version"]) == ("model", "0.5.4")
    assert (words["id"], words["name"]) == ("tiny-nuclei", "Tiny nuclei (test)")
    assert (words["documentation"], words["covers"]) == ("README.md", ["cover.png"])
    assert words["license"] == "CC0-1.0"
    assert words["authors"] == [{"name": "Ada", "github_user": "octocat"}]
    assert words["tags"] == ["nuclei", "2d"]
    assert words["cite"] == [{"text": "SPOCO", "url": "https://arxiv.org/abs/2103.14572"}]
    assert datetime.fromisoformat(words["timestamp"]).utcoffset().total_seconds() == 0
    assert isinstance(words["timestamp"], str)
    assert all(isinstance(entry["source"], str) for entry in words["weights"].values())
    assert isinstance(words["weights"]["pytorch_state_dict"]["architecture"]["source"], str)


def test_the_weights_say_what_they_are(exported):
    weights = words_of(exported)["weights"]
    assert sorted(weights) == ["onnx", "pytorch_state_dict", "torchscript"]
    assert weights["onnx"]["opset_version"] == 17
    assert weights["onnx"]["parent"] == weights["torchscript"]["parent"] == "pytorch_state_dict"
    architecture = weights["pytorch_state_dict"]["architecture"]
    assert architecture["callable"] == "PackagedUNet"
    assert architecture["kwargs"] == {
        "in_channels": 1,
        "embedding_dim": 4,
        "widths": [4, 8],
        "pooling": [[2, 2]],
        "foreground_head": True,
        "order": "cbr",
        "momentum": False,
    }
    plain = torch.__version__.split("+")[0]
    assert weights["torchscript"]["pytorch_version"] == plain
    assert weights["pytorch_state_dict"]["pytorch_version"] == plain


def test_the_tensors_are_described_as_they_are(exported):
    words = words_of(exported)
    (image,) = words["inputs"]
    assert image["id"] == "image"
    assert [axis["id"] for axis in image["axes"]] == ["batch", "channel", "y", "x"]
    assert [axis["size"] for axis in image["axes"][2:]] == [{"min": 22, "step": 1}] * 2
    assert image["preprocessing"] == [
        {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"], "eps": 1e-6}},
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
    ]
    embedding, foreground = words["outputs"]
    assert (embedding["id"], foreground["id"]) == ("embedding", "foreground")
    assert embedding["axes"][1]["channel_names"] == [f"embedding{n}" for n in range(4)]
    assert foreground["axes"][1]["channel_names"] == ["foreground"]
    for output in words["outputs"]:
        space = output["axes"][2:]
        assert [axis["size"] for axis in space] == [
            {"tensor_id": "image", "axis_id": "y"},
            {"tensor_id": "image", "axis_id": "x"},
        ]
        assert [axis["halo"] for axis in space] == [10, 10]


def test_the_package_reads_back_as_it_was_meant(exported, tiny_run):
    spec, _, fitted = load_run(tiny_run)
    package = load_package(exported)
    assert package.config.recipe == Recipe.model_validate(fitted["recipe"])
    assert (package.config.multiple_of, package.config.halo) == ((2, 2), (10, 10))
    assert package.config.crop == spec.schedule.crop == (32, 32)
    assert package.config.delta_var == spec.loss.delta_var
    assert package.config.delta_dist == spec.loss.delta_dist
    assert package.normalization == spec.data.normalization
    assert (package.name, package.channels, package.embedding_dim) == ("Tiny nuclei (test)", 1, 4)
    assert package.outputs == ("embedding", "foreground")


@leaves_files_open
def test_a_collection_would_ask_for_nothing_more(exported):
    assert find_alerts(exported) == []


@leaves_files_open
def test_what_a_collection_would_ask_for_is_refused_but_in_a_draft(tiny_run, tmp_path, quick_judge):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    del spec["card"]["cite"]
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(PackageError, match=r"a collection would ask for more \(cite: .*a --draft$"):
        export_package(run, tmp_path / "package", ExportOptions())
    assert names_in(tmp_path) == ["run"]
    package = export_package(run, tmp_path / "package", ExportOptions(draft=True))
    assert "**Draft**" in (package / "README.md").read_text(encoding="utf-8")


def test_the_card_shows_the_scores_of_the_test(exported):
    lines = (exported / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Tiny nuclei (test)"
    assert "| score | validation | test |" in lines
    assert any(line.startswith("| AP at IoU 0.50, pooled | ") for line in lines)
    (row,) = [line for line in lines if line.startswith("| SBD | ")]
    assert row.endswith(" | 1.000 |")


def test_the_sample_is_an_image_to_try_it_on(exported):
    package = load_package(exported)
    sample = read_image(exported / "sample_image.tif", package.n_axes)
    assert sample.pixels.shape == (1, 384, 512)
    assert segment(sample.pixels, package, device="cpu").shape == (384, 512)
    sample_tensor = words_of(exported)["inputs"][0]["sample_tensor"]
    assert sample_tensor["source"] == "sample_image.tif"


def test_the_cover_is_twice_as_wide_as_high(exported):
    with Image.open(exported / "cover.png") as cover:
        assert (cover.format, cover.size) == ("PNG", (720, 360))


def test_the_stages_are_told(tiny_export):
    stages = tiny_export[1]
    assert stages[0] == "embeddings: writing weights, test tensors and pictures"
    assert [stage for stage in stages if stage.startswith("running in ONNX Runtime")]
    assert stages[-2:] == [
        "testing every weight format with bioimageio.core",
        "giving it its name",
    ]


# --- the graphs


def test_the_onnx_file_is_what_old_engines_open(exported):
    model = onnx.load(exported / "weights.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    tensors = list(model.graph.initializer)
    assert {t.data_type for t in tensors} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in tensors)
    assert not model.functions
    ends = [*model.graph.input, *model.graph.output]
    assert [end.name for end in ends] == ["image", "embedding", "foreground"]
    for end, channels in zip(ends, (1, 4, 1), strict=True):
        assert end.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        batch, channel, *space = end.type.tensor_type.shape.dim
        assert (batch.dim_param, [axis.dim_param for axis in space]) == ("batch", ["y", "x"])
        assert channel.dim_value in (channels, 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 9), (33, 70), (64, 64)])
def test_three_runtimes_agree_on_sizes_that_were_not_traced(exported, tiny_run, shape):
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    tensor = torch.from_numpy(image)[None]
    _, pair, _ = load_run(tiny_run)
    kwargs = words_of(exported)["weights"]["pytorch_state_dict"]["architecture"]["kwargs"]
    rebuilt = PackagedUNet(**kwargs).eval()
    rebuilt.load_state_dict(torch.load(exported / "weights.pt", weights_only=True))
    script = read_torchscript(exported / "weights_torchscript.pt")
    with torch.no_grad():
        truth = pair.embedding_net.embed(tensor)
        expected = [truth.embedding, torch.sigmoid(truth.foreground)]
        for net in (rebuilt, script):
            for found, value in zip(net(tensor), expected, strict=True):
                torch.testing.assert_close(found, value, rtol=0, atol=1e-5)
    with EmbeddingSession(load_package(exported), "cpu") as session:
        found = session.embed(image)
    np.testing.assert_allclose(found.embedding, expected[0][0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.probability, expected[1][0, 0].numpy(), rtol=0, atol=1e-5)


def test_the_test_tensors_are_raw_input_and_output_of_torch(exported):
    package = load_package(exported)
    raw = np.load(exported / "test_input.npy")
    assert raw.dtype == np.float32
    assert raw.max() > 2  # grey values, not normalised
    least = [axis["size"]["min"] for axis in words_of(exported)["inputs"][0]["axes"][2:]]
    assert all(size >= n for size, n in zip(raw.shape[2:], least, strict=True))
    with EmbeddingSession(package, "cpu") as session:
        found = session.embed(fit_affine(raw[0], package.normalization).apply(raw[0]))
    expected = np.load(exported / "test_embedding.npy")
    np.testing.assert_allclose(found.embedding[None], expected, rtol=0, atol=1e-5)


def test_the_code_that_ships_is_the_code_that_trained(exported):
    with open(net_module.__file__, "rb") as file:
        assert (exported / "net.py").read_bytes() == file.read()


# --- other runs


def test_consistency_brings_the_embedding_of_the_momentum_net(
    tiny_run, tmp_path, quick_judge, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    fitted = json.loads((run / "recipe.json").read_text())
    fitted["recipe"]["clustering"] = {"method": "consistency", "bandwidth": 0.5}
    (run / "recipe.json").write_text(json.dumps(fitted))
    package = load_package(export_package(run, tmp_path / "package", OPTIONS))
    assert package.outputs == ("embedding", "foreground", "momentum_embedding")
    assert package.has_momentum
    _, pair, _ = load_run(run)
    image = np.random.default_rng(0).normal(size=(1, 12, 15)).astype(np.float32)
    with torch.no_grad():
        f = pair.embedding_net.embed(torch.from_numpy(image)[None]).embedding[0].numpy()
        g = pair.momentum_net.embed(torch.from_numpy(image)[None]).embedding[0].numpy()
    with EmbeddingSession(package, "cpu") as session:
        found = session.embed(image)
    np.testing.assert_allclose(found.embedding, f, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.momentum_embedding, g, rtol=0, atol=1e-5)
    assert np.abs(f - g).max() > 1e-3
    assert "test_momentum_embedding.npy" in names_in(tmp_path / "package")
    assert [weights for _, weights in quick_judge] == ["onnx", "torchscript", "pytorch_state_dict"]


def test_colour_without_foreground_head(make_run, tmp_path, quick_judge):
    run = make_run(
        {
            "net": {
                "widths": [4, 8],
                "embedding_dim": 3,
                "in_channels": 3,
                "foreground_head": False,
                "order": "bcr",
            },
            "data": {"normalization": {"id": "scale_range", "max_percentile": 99}},
        },
        {"clustering": MEAN_SHIFT, "foreground": {"rule": "everywhere"}},
    )
    package = load_package(export_package(run, tmp_path / "package", OPTIONS))
    assert (package.channels, package.outputs) == (3, ("embedding",))
    assert package.normalization == ScaleRange(max_percentile=99)
    assert read_image(tmp_path / "package" / "sample_image.tif", 2).pixels.shape == (3, 384, 512)
    assert np.load(tmp_path / "package" / "test_input.npy").shape[1] == 3


def test_a_volume_pooled_in_the_plane_alone(make_run, tmp_path, quick_judge):
    run = make_run(
        {
            "net": {
                "dimensions": 3,
                "widths": [2, 4],
                "pooling": [[1, 2, 2]],
                "embedding_dim": 2,
                "in_channels": 1,
            },
            "schedule": {"crop": [8, 16, 16]},
        },
        {"clustering": MEAN_SHIFT, "foreground": HEAD},
    )
    package = load_package(export_package(run, tmp_path / "package", OPTIONS))
    assert package.n_axes == 3
    assert package.config.multiple_of == (1, 2, 2)
    assert package.config.crop == (8, 16, 16)
    image = words_of(tmp_path / "package")["inputs"][0]
    assert [axis["id"] for axis in image["axes"]] == ["batch", "channel", "z", "y", "x"]
    assert image["preprocessing"][0]["kwargs"]["axes"] == ["z", "y", "x"]
    sample = read_image(tmp_path / "package" / "sample_image.tif", 3)
    assert sample.pixels.shape == (1, 32, 128, 128)


@leaves_files_open
def test_outputs_near_zero_get_a_tolerance_that_the_format_allows(make_run, tmp_path, quick_judge):
    """bioimageio.spec refuses an absolute tolerance above 1 % of the largest value."""
    from bioimageio.spec import load_description

    run = make_run(
        {"net": {"widths": [4, 8], "embedding_dim": 2, "in_channels": 1}},
        {"clustering": MEAN_SHIFT, "foreground": HEAD},
    )
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    checkpoint["pair"]["embedding_net.head.weight"].zero_()
    checkpoint["pair"]["embedding_net.head.bias"].copy_(torch.tensor([-1.0, -2.0, -4.0]))
    torch.save(checkpoint, run / "best.pt")
    export_package(run, tmp_path / "package", OPTIONS)
    words = words_of(tmp_path / "package")["config"]["bioimageio"]["reproducibility_tolerance"]
    told = {entry["output_ids"][0]: entry["absolute_tolerance"] for entry in words}
    foreground = 1 / (1 + np.exp(4.0))
    assert told == {"embedding": 0.0, "foreground": pytest.approx(0.009 * foreground)}
    summary = load_description(tmp_path / "package").validation_summary
    assert [error for detail in summary.details for error in detail.errors] == []


# --- targets


def test_a_zip_holds_the_same_at_its_top(tiny_run, exported, tmp_path, quick_judge):
    target = tmp_path / "new" / "package.zip"
    package = load_package(export_package(tiny_run, target, OPTIONS))
    assert package.location == target
    assert names_in(target.parent) == ["package.zip"]
    with zipfile.ZipFile(target) as file:
        assert sorted(file.namelist()) == FILES
        for name in ("weights.onnx", "net.py", "test_embedding.npy", "weights.pt"):
            if name != "weights.pt":
                assert file.read(name) == (exported / name).read_bytes()
    image = np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)
    expected = segment(image, load_package(exported), device="cpu")
    assert (segment(image, package, device="cpu") == expected).all()


@pytest.mark.parametrize("name", ["package", "package.zip"])
def test_a_target_that_is_there_is_kept(tiny_run, tmp_path, name):
    target = tmp_path / name
    target.mkdir()
    with pytest.raises(PackageError) as error:
        export_package(tiny_run, target, OPTIONS)
    assert str(error.value) == f"{target}: exists already: choose another name or add --overwrite"
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["package", "package.zip"])
def test_overwrite_replaces_a_package_whole(
    tiny_run, copy_tiny, zip_folder, tmp_path, quick_judge, name
):
    old = copy_tiny("package")
    target = tmp_path / "here" / name
    target.parent.mkdir()
    if name == "package":
        shutil.copytree(old, target)
        (target / "extra.txt").write_text("of the old one")
    else:
        zip_folder(old, target)
    assert load_package(target).name == "Tiny"
    package = load_package(export_package(tiny_run, target, ExportOptions(overwrite=True)))
    assert package.name == "Tiny nuclei (test)"
    assert names_in(target.parent) == [name]
    if name == "package":
        assert names_in(target) == FILES


def test_overwrite_does_not_replace_what_is_no_package(tiny_run, tmp_path, quick_judge):
    target = tmp_path / "here" / "thesis"
    target.mkdir(parents=True)
    (target / "chapter1.tex").write_text("words")
    with pytest.raises(SettingError) as error:
        export_package(tiny_run, target, ExportOptions(overwrite=True))
    assert str(error.value) == (
        f"{target}: is not a package and is not overwritten: choose another name"
    )
    assert names_in(target) == ["chapter1.tex"]
    assert names_in(target.parent) == ["thesis"]
    assert quick_judge == []  # told before the work is done


# --- proofs that fail


def test_a_check_that_does_not_hold_leaves_nothing(tiny_run, tmp_path, quick_judge, monkeypatch):
    check = Check("agreement", "an engine", 0.5, 1e-4)
    made = Proof("Tiny", ["an engine"], [], [Check("tiles", "an engine", 0.0, 1e-5), check])
    monkeypatch.setattr(export, "prove", lambda *_: made)
    with pytest.raises(PackageError) as error:
        export_package(tiny_run, tmp_path / "package", OPTIONS)
    assert str(error.value) == (
        "Tiny is not proven: agreement in an engine: 5.0e-01, expected at most 1e-04; "
        "export it with other settings, or report this as a defect of spoco-zoo"
    )
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("flavour", ["instances", "boundaries", "qupath"])
def test_flavours_for_desktops_are_proven_in_what_is_installed(
    tiny_run, tmp_path, request, flavour
):
    if flavour != "boundaries":  # once on images as large as those of users
        request.getfixturevalue("small_memory")
    options = ExportOptions(flavour=flavour, draft=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        package = export_package(tiny_run, tmp_path / "package", options)
        gc.collect()
    told = json.loads((package / "proof.json").read_text(encoding="utf-8"))
    names = {check["name"] for check in told["checks"]}
    assert all(check["passed"] for check in told["checks"])
    assert ("labels of spoco-zoo run" in names) == (flavour in ("instances", "qupath"))
    assert ({"tiles", "tiles off the grid", "pixels seen beyond the halo"} <= names) == (
        flavour == "boundaries"
    )
    assert "ONNX Runtime 1.12.1" in told["engines_missing"]
    assert words_of(package)["attachments"][0]["source"] == "proof.json"
    for name, digest in told["files"].items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == digest
    weights = {"weights.onnx", "weights_torchscript.pt"}
    assert told["files"].keys() >= {"test_input.npy"} | (
        {"instanseg.pt"} if flavour == "qupath" else weights
    )
    assert "Memory: about" in (package / "README.md").read_text(encoding="utf-8")


def test_all_flavours_go_into_a_folder_by_their_ids(tiny_run, tmp_path, quick_judge):
    lines = list(export_packages(tiny_run, tmp_path / "out", "all", OPTIONS))
    ids = [f"tiny-nuclei{end}" for end in ("", "-boundaries", "-instances", "-qupath")]
    assert names_in(tmp_path / "out") == ids
    assert [words_of(tmp_path / "out" / name)["id"] for name in ids] == ids
    assert [line.rsplit(": ", 1)[-1] for line in lines[:-1]] == [
        f"{name}, proven" for name in FLAVOURS
    ]
    assert lines[-1].startswith("drafts are for you and your colleagues")
    with pytest.raises(PackageError, match="exists already"):
        list(export_packages(tiny_run, tmp_path / "out", "all", OPTIONS))


def test_a_recipe_that_no_graph_holds_leaves_instances_out_and_says_so(
    tiny_run, tmp_path, quick_judge
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    fitted = json.loads((run / "recipe.json").read_text())
    fitted["recipe"]["clustering"] = {"method": "hdbscan", "epsilon": 0.5}
    (run / "recipe.json").write_text(json.dumps(fitted))
    lines = list(export_packages(run, tmp_path / "out", "all", OPTIONS))
    assert lines[0].startswith("no instances package: clustering.method is hdbscan: a graph holds")
    assert lines[1].startswith("no qupath package: clustering.method is hdbscan: a graph holds")
    assert names_in(tmp_path / "out") == ["tiny-nuclei", "tiny-nuclei-boundaries"]
    with pytest.raises(SettingError, match=r"clustering\.method is hdbscan"):
        export_package(run, tmp_path / "package", ExportOptions(flavour="instances"))


def test_what_bioimageio_refuses_leaves_nothing(
    tiny_run, copy_tiny, tmp_path, quick_judge, monkeypatch
):
    core = pytest.importorskip("bioimageio.core")
    details = [
        SimpleNamespace(errors=[SimpleNamespace(msg="first")]),
        SimpleNamespace(errors=[]),
        SimpleNamespace(errors=[SimpleNamespace(msg="second")]),
    ]
    answers = {
        "onnx": SimpleNamespace(status="passed"),
        "torchscript": SimpleNamespace(status="failed", details=details),
    }
    monkeypatch.setattr(
        core, "test_description", lambda _, weight_format, **__: answers[weight_format]
    )
    old = copy_tiny("package")
    before = (old / "rdf.yaml").read_bytes()
    with pytest.raises(PackageError) as error:
        export_package(tiny_run, old, ExportOptions(overwrite=True))
    assert str(error.value) == (
        "bioimageio.core does not accept the torchscript weights: first; second"
    )
    assert names_in(tmp_path) == ["tiny_package"]
    assert (old / "rdf.yaml").read_bytes() == before


def test_a_full_disk_is_told_and_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PackageError) as error:
        export_package(tiny_run, tmp_path / "package", OPTIONS)
    assert str(error.value) == (
        f"{tmp_path / 'package'}: cannot be written (No space left on device): "
        "free space or choose another folder"
    )
    assert names_in(tmp_path) == []


def test_a_folder_that_is_a_file_is_told(tiny_run, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    target = tmp_path / "taken" / "package"
    with pytest.raises(PackageError) as error:
        export_package(tiny_run, target, OPTIONS)
    reason = os.strerror(errno.EEXIST)
    assert str(error.value) == (
        f"{target}: cannot be written ({reason}): free space or choose another folder"
    )


# --- runs that are none


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(SettingError) as error:
        export_package(tmp_path / "run", tmp_path / "package", OPTIONS)
    assert str(error.value) == (
        f"{tmp_path / 'run'}: no recipe.json: expected the folder of a finished run; "
        "finish it with train --resume"
    )
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", None),
        ("environment.json", "{"),
        ("environment.json", '{"device": "cpu"}'),
        ("recipe.json", "{}"),
        ("recipe.json", '{"recipe": {"clustering": {"method": "mean_shift", "bandwidth": 1.0}}}'),
        ("boundaries.json", '{"images": 3}'),
        ("recipe.json", '{"recipe": {"clustering": {"method": "watershed"}}}'),
    ],
)
def test_a_damaged_run_is_refused(tiny_run, tmp_path, name, content):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(SettingError) as error:
        export_package(run, tmp_path / "package", OPTIONS)
    cure = {
        "environment.json": "train again",
        "recipe.json": "make it anew with train --resume",
        "boundaries.json": "measure it anew, or remove it",
    }[name]
    assert str(error.value) == f"{run}: {name} is damaged: {cure}"
    assert names_in(tmp_path) == ["run"]


def test_scores_that_are_none_are_refused_before_work_is_done(tiny_run, tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(SettingError) as error:
        export_package(
            tiny_run, tmp_path / "package", ExportOptions(scores=tmp_path / "scores.json")
        )
    assert str(error.value) == (
        f"{tmp_path / 'scores.json'}: holds no scores: expected a file of spoco-zoo evaluate --json"
    )
    assert names_in(tmp_path) == ["scores.json"]
