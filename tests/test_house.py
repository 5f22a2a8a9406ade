"""What holds the house up: floors, docstrings, dependencies, the map."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "spoco_zoo"
ROOMS = sorted(HOUSE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_go_down_only():
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(HOUSE)))
def test_every_room_says_what_it_is_for(room):
    tree = parse(room)
    assert ast.get_docstring(tree)
    public = (ast.FunctionDef, ast.ClassDef)
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, public) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert silent == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(HOUSE)))
def test_no_function_swallows_unknown_words(room):
    functions = [n for n in ast.walk(parse(room)) if isinstance(n, ast.FunctionDef)]
    swallow = [f.name for f in functions if f.args.kwarg and f.args.kwarg.arg != "__"]
    assert swallow == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(HOUSE)))
def test_no_room_is_a_hall(room):
    assert len(room.read_text(encoding="utf-8").splitlines()) <= 450


def test_the_map_of_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Where things are")[1]
    block = re.search(r"```\n(.*?)```", section, flags=re.DOTALL).group(1)
    drawn = set(re.findall(r"── (\w+(?:\.py|/))", block))
    there = {p.name for p in HOUSE.glob("*.py")} | {
        f"{p.name}/" for p in HOUSE.iterdir() if (p / "__init__.py").exists()
    }
    assert drawn == there


def test_the_base_install_is_what_running_needs():
    names = [re.split(r"[><=;\[ ]", d)[0] for d in PROJECT["project"]["dependencies"]]
    assert sorted(set(names)) == [
        "PyYAML",
        "connected-components-3d",
        "hdbscan",
        "jaxtyping",
        "numpy",
        "onnxruntime",
        "onnxruntime-gpu",
        "packaging",
        "pillow",
        "pydantic",
        "rich",
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "tifffile",
        "typer",
        "xarray",
    ]


def test_only_the_plug_in_for_napari_brings_napari_and_nothing_brings_qt():
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["napari"] == ["napari>=0.6.6"]  # without an extra of its own, which brings Qt
    others = [d for name, needs in extras.items() if name != "napari" for d in needs]
    graphical = re.compile(r"napari|qt|pyside|magicgui", re.IGNORECASE)
    assert [d for d in PROJECT["project"]["dependencies"] + others if graphical.search(d)] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(HOUSE)))
def test_napari_and_qt_are_named_in_their_plug_in_only(room):
    if "napari_plugin" in room.parts:
        return
    named = set()
    for node in ast.walk(parse(room)):
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add((node.module or "").split(".")[0])
    assert named & {"napari", "qtpy", "superqt", "magicgui", "PyQt6", "PySide6"} == set()


def test_no_version_is_pinned_in_two_places():
    def names(file):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        return {re.sub(r"[-_.]+", "-", n.split("==")[0]).lower() for n in lines if "==" in n}

    assert names("constraints.txt") & names("constraints-napari.txt") == set()


def test_no_text_names_a_place_of_one_machine():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    places = re.compile(r"(?<![\w.])/(?:work|root|home|tmp)/\w")
    found = []
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".cff", ".csv", ".json", ""}:
            if path.is_file() and places.search(path.read_text(encoding="utf-8")):
                found.append(name)
    assert found == []
