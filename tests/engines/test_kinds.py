"""The list of engines, and what each says when it cannot be had."""

import os
import sys

import pytest

pytest.importorskip("filelock")

from spoco_zoo.engines import ENGINES, cache, kinds, pick_engines
from spoco_zoo.errors import MissingExtraError

OF_THE_CACHE = [engine for engine in ENGINES if engine.from_cache]
BY_NAME = {engine.name: engine for engine in ENGINES}


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A cache without engines."""
    monkeypatch.setenv("SPOCO_ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def no_network(monkeypatch):
    """Registries that are not there, and no second try."""
    for word, value in {
        "npm_config_registry": "http://127.0.0.1:9/",
        "npm_config_fetch_retries": "0",
        "npm_config_cache": "none",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
    }.items():
        monkeypatch.setenv(word, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_the_engines_are_those_of_fiji_and_of_ilastik_and_of_this_python():
    names = [engine.name.removesuffix(" (installed)") for engine in ENGINES]
    ours = {engine.name for engine in ENGINES if not engine.from_cache}
    assert len(ours) == 2
    assert [name for name, engine in zip(names, ENGINES, strict=True) if engine.from_cache] == [
        "ONNX Runtime 1.12.1",
        "ONNX Runtime 1.13.1",
        "libtorch 2.0.0",
        "bioimageio.core 0.9.6",
        "bioimageio.core 0.10.2",
        "bioimageio.core 0.10.4",
        "bioimageio.core 0.11.0",
    ]
    assert {engine.kind for engine in ENGINES} == {"onnx", "torchscript", "bioimageio"}


@pytest.mark.usefixtures("empty")
def test_engines_are_picked_by_where_they_are():
    assert pick_engines("all") == ENGINES
    installed = pick_engines("installed")
    assert all(not engine.from_cache for engine in installed)
    assert "onnx" in {engine.kind for engine in installed}
    assert pick_engines("cached") == installed  # the cache is empty


def test_an_engine_of_the_cache_is_picked_when_it_is_complete(empty):
    engine = BY_NAME["libtorch 2.0.0"]
    cache.make(engine.item, lambda folder: None, lambda stage: None)
    assert engine in pick_engines("cached")
    (empty / engine.item.folder / cache.MARK).unlink()
    assert engine not in pick_engines("cached")


def test_what_is_not_in_this_python_says_how_to_install_it(monkeypatch):
    torch = kinds.OfThisPython(
        "PyTorch", "torchscript", "torch", ("torch",), "pip install 'spoco-zoo[train]'"
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not torch.find()
    with pytest.raises(MissingExtraError) as error:
        torch.install(print)
    assert str(error.value) == "PyTorch is not installed: pip install 'spoco-zoo[train]'"
    unknown = kinds.OfThisPython("Engine", "onnx", "none_such", ("none-such",), "buy it")
    assert (unknown.name, unknown.version) == ("Engine", "")


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("ONNX Runtime 1.12.1", "needs node, which is not installed: install " + kinds.NODE),
        ("libtorch 2.0.0", "needs g++, which is not installed: install a C++17 compiler"),
    ],
)
def test_a_program_that_is_missing_is_named(monkeypatch, tmp_path, name, need):
    if name.startswith("lib") and sys.platform != "linux":
        pytest.skip("libtorch is had for Linux only")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError) as error:
        BY_NAME[name].install(lambda stage: None)
    assert str(error.value) == f"{name} {need}"


@pytest.mark.usefixtures("empty")
def test_without_torch_core_says_what_it_needs(monkeypatch):
    engine = BY_NAME["bioimageio.core 0.10.2"]
    monkeypatch.setitem(sys.modules, "torch", None)
    sentence = "bioimageio.core 0.10.2 needs PyTorch: pip install 'spoco-zoo[train]'"
    assert not engine.find()
    for ask in (lambda: engine.install(print), engine.command):
        with pytest.raises(MissingExtraError) as error:
            ask()
        assert str(error.value) == sentence


@pytest.mark.usefixtures("empty")
def test_libtorch_is_refused_on_other_machines(monkeypatch):
    monkeypatch.setattr(kinds.platform, "machine", lambda: "arm64")
    with pytest.raises(MissingExtraError) as error:
        BY_NAME["libtorch 2.0.0"].install(print)
    assert str(error.value) == (
        f"libtorch 2.0.0 is had for Linux on x86-64 only, and this is {sys.platform} on arm64: "
        "prove the package on another machine"
    )


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["ONNX Runtime 1.13.1", "libtorch 2.0.0"])
def test_without_a_network_the_sentence_says_so_and_nothing_is_left(empty, name):
    engine, stages = BY_NAME[name], []
    for word in ("npm", "node") if engine.kind == "onnx" else ("g++",):
        if kinds.shutil.which(word) is None:
            pytest.skip(f"{word} is not installed")
    with pytest.raises(MissingExtraError) as error:
        engine.install(stages.append)
    said = str(error.value)
    assert said.startswith(f"{name} cannot be installed (")
    assert said.endswith("): look at the network and try again")
    assert "error" in said.lower()
    assert stages[0].startswith(f"{name}: downloading ")
    assert not engine.find()
    assert [path for path in empty.iterdir() if path.suffix != ".lock"] == []


@pytest.fixture
def fake_npm(monkeypatch, tmp_path):
    """An npm that brings a package of some version, with libraries for two systems."""
    node = kinds.shutil.which("node")
    if node is None or sys.platform == "win32":
        pytest.skip("needs node, and scripts with a first line that names their program")
    programs = tmp_path / "programs"
    programs.mkdir()

    def put(version):
        script = programs / "npm"
        script.write_text(
            f"#!{sys.executable}\n"
            "import pathlib, subprocess, sys\n"
            "home = pathlib.Path(sys.argv[sys.argv.index('--prefix') + 1])\n"
            "home = home / 'node_modules' / 'onnxruntime-node'\n"
            "asked = '`${process.platform}/${process.arch}`'\n"
            f"here = subprocess.check_output([{node!r}, '-p', asked], text=True).strip()\n"
            "for place in (here, 'other/arch'):\n"
            "    (home / 'bin' / 'napi-v3' / place).mkdir(parents=True)\n"
            "    (home / 'bin' / 'napi-v3' / place / 'library').write_text(sys.argv[-1])\n"
            f"(home / 'package.json').write_text('{{\"version\": \"{version}\"}}')\n"
            "(home / 'index.js').write_text('')\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    return put


def test_what_npm_brings_is_kept_for_one_system_and_asked_for_its_version(empty, fake_npm):
    engine, stages = BY_NAME["ONNX Runtime 1.13.1"], []
    fake_npm("1.13.1")
    engine.install(stages.append)
    assert engine.find()
    assert stages == ["ONNX Runtime 1.13.1: downloading 30 MB"]
    (library,) = (empty / engine.item.folder).rglob("library")
    assert "other" not in library.parts
    assert library.read_text() == "onnxruntime-node@1.13.1"


def test_another_version_than_was_asked_for_is_not_kept(empty, fake_npm):
    engine = BY_NAME["ONNX Runtime 1.13.1"]
    fake_npm("1.14.0")
    with pytest.raises(MissingExtraError) as error:
        engine.install(lambda stage: None)
    assert str(error.value) == (
        "ONNX Runtime 1.13.1 does not start on this machine (it says it is 1.14.0): "
        "prove the package on another"
    )
    assert not engine.find()
    assert [path for path in empty.iterdir() if path.suffix != ".lock"] == []


def test_an_engine_that_is_not_the_one_meant_does_not_get_into_the_cache(tmp_path):
    engine = BY_NAME["libtorch 2.0.0"]
    for code, said in [
        ('print(\'{"engine": "1.9.0"}\')', "it says it is 1.9.0"),
        ("raise SystemExit('no such library')", "no such library"),
        ('print(\'{"error": "bad"}\'); raise SystemExit(1)', "bad"),
    ]:
        with pytest.raises(MissingExtraError) as error:
            kinds._introduce(engine, (sys.executable, "-c", code), tmp_path)
        assert str(error.value) == (
            f"libtorch 2.0.0 does not start on this machine ({said}): prove the package on another"
        )


@pytest.mark.parametrize("engine", OF_THE_CACHE, ids=lambda engine: engine.name)
def test_what_is_in_the_cache_is_not_installed_twice(engine):
    if not engine.find():
        pytest.skip(f"{engine.name} is not in the cache: spoco-zoo engines --install")
    engine.install(lambda stage: pytest.fail(stage))
