"""Each bioimageio.core gives its verdict of a package, and a sentence where it gives none."""

import os
import signal

import numpy as np
import pytest
import yaml

from spoco_zoo.engines import ENGINES
from spoco_zoo.engines import test_core as ask_core
from spoco_zoo.errors import PackageError

FORMATS = ("onnx", "torchscript", "pytorch_state_dict")
CORES = [pytest.param(e, id=e.name) for e in ENGINES if e.kind == "bioimageio"]


@pytest.mark.parametrize("engine", CORES)
def test_every_core_accepts_an_exported_package_with_every_format(engine, there, damaged, edit_rdf):
    there(engine)
    # who would be looked up; the package of the user keeps it
    edit_rdf(damaged, lambda words: words["authors"][0].update(github_user="no-such-user-9"))
    before = (damaged / "rdf.yaml").read_bytes()
    result = ask_core(engine, damaged, FORMATS)
    assert result.errors == {"onnx": (), "torchscript": (), "pytorch_state_dict": ()}
    assert result.passed
    assert (result.engine, result.core_version) == (engine.name, engine.version)
    assert result.spec_version.startswith("0.5.")
    assert (damaged / "rdf.yaml").read_bytes() == before


@pytest.mark.parametrize("engine", CORES)
def test_every_core_notices_one_format_that_computes_something_else(
    engine, there, damaged, edit_rdf
):
    there(engine)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(damaged / "weights.onnx")
    first = next(t for t in model.graph.initializer if t.data_type == 1 and len(t.dims) == 4)
    moved = onnx.numpy_helper.to_array(first) * np.float32(1.5)
    first.CopyFrom(onnx.numpy_helper.from_array(moved, first.name))
    onnx.save(model, damaged / "weights.onnx")
    edit_rdf(damaged)
    result = ask_core(engine, damaged, ("onnx", "torchscript"))
    assert result.errors["torchscript"] == ()
    assert result.errors["onnx"][0].startswith("Output 'embedding'")
    assert not result.passed


@pytest.mark.parametrize("named", [True, False])
def test_names_at_github_are_left_out_and_nothing_else(fake, damaged, edit_rdf, named):
    def change(words):
        words["authors"] = [{"name": "S\u00f8ren"}]
        words.pop("maintainers", None)
        if named:
            words["authors"][0]["github_user"] = "someone"
            words["maintainers"] = [{"github_user": "someone"}]

    edit_rdf(damaged, change)
    with (damaged / "rdf.yaml").open("a") as file:
        file.write("# a comment\n")
    code = (
        "import json, pathlib, sys\n"
        "text = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "print(json.dumps({'engine': '1', 'spec': text}))\n"
    )
    seen = ask_core(fake(code, "bioimageio"), damaged, ()).spec_version
    kept = (damaged / "rdf.yaml").read_text(encoding="utf-8")
    if not named:
        assert seen == kept
        return
    words = yaml.safe_load(kept)
    assert words["authors"][0].pop("github_user") == "someone"
    del words["maintainers"]
    assert yaml.safe_load(seen) == words


def test_a_core_that_dies_half_way_keeps_what_it_said(fake, damaged):
    code = (
        "import json, os\n"
        "print(json.dumps({'engine': '1', 'spec': '2'}))\n"
        "print(json.dumps({'weights': 'onnx', 'errors': ['a', 'b']}), flush=True)\n"
        f"os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
    )
    result = ask_core(fake(code, "bioimageio"), damaged, ("onnx", "torchscript"))
    assert result.errors == {
        "onnx": ("a", "b"),
        "torchscript": ("it was ended by SIGSEGV, perhaps for want of memory",),
    }
    assert (result.core_version, result.spec_version) == ("1", "2")


def test_a_core_that_cannot_even_start_is_a_sentence(fake, damaged):
    code = 'print(\'{"error": "ImportError: no xarray"}\'); raise SystemExit(1)'
    with pytest.raises(PackageError) as error:
        ask_core(fake(code, "bioimageio"), damaged, FORMATS)
    assert str(error.value) == (
        "Fake 1 does not work (ImportError: no xarray): "
        "remove it from the cache and install it anew"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, os.strerror(2)), ("- a\n", "rdf.yaml is not a mapping"), ("a: [", "while parsing")],
)
def test_a_package_that_cannot_be_read_is_a_sentence(fake, tmp_path, content, reason):
    folder = tmp_path / "package"
    folder.mkdir()
    if content is not None:
        (folder / "rdf.yaml").write_text(content)
    with pytest.raises(PackageError) as error:
        ask_core(fake("", "bioimageio"), folder, FORMATS)
    said = str(error.value)
    assert said.startswith(f"{folder}: cannot be read (")
    assert reason in said
    assert said.endswith("): expected the folder of a package with rdf.yaml; export it anew")
