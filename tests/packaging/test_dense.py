"""The graphs that `run` carries are those that are built, in a form that old engines read."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from spoco_zoo.packaging.dense import FOLDER, build_graphs


def test_the_files_are_what_is_built():
    built = build_graphs()
    assert {path.name for path in FOLDER.iterdir()} == set(built)
    for name, content in built.items():
        assert onnx.load_from_string((FOLDER / name).read_bytes()) == onnx.load_from_string(content)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_old_engines_can_open_them(path):
    model = onnx.load(path)
    assert model.ir_version <= 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
