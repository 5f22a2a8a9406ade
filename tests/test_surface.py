"""The front door: what it names can be had, is documented, and costs nothing until used."""

import importlib.resources
import inspect
import subprocess
import sys

import pytest

import spoco_zoo
from spoco_zoo import errors

NEEDS_TORCH = {"train", "export_package"}


def test_the_surface_is_these_eight_names():
    assert spoco_zoo.__all__ == [
        "cluster",
        "evaluate",
        "export_package",
        "load_package",
        "score",
        "segment",
        "segment_volume",
        "train",
    ]
    assert dir(spoco_zoo) == spoco_zoo.__all__


@pytest.mark.parametrize("name", spoco_zoo.__all__)
def test_every_name_is_a_documented_function(name):
    if name in NEEDS_TORCH:
        pytest.importorskip("torch")
    if name == "segment_volume":
        pytest.importorskip("distributed")
    function = getattr(spoco_zoo, name)
    assert inspect.isfunction(function)
    assert "Raises:" in inspect.getdoc(function) or name == "evaluate"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as error:
        spoco_zoo.segmentt  # noqa: B018
    assert str(error.value) == "module 'spoco_zoo' has no attribute 'segmentt'"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, spoco_zoo; "
        "print([m for m in ('numpy', 'torch', 'sklearn', 'onnxruntime', 'pydantic') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "word"), [("train", "training"), ("export_package", "export")])
def test_without_torch_the_wing_says_what_to_install(name, word):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import spoco_zoo\n"
        f"try: spoco_zoo.{name}\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{word} needs torch: pip install 'spoco-zoo[train]'"


def test_without_its_extra_segment_volume_says_what_to_install():
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "import spoco_zoo\n"
        "try: spoco_zoo.segment_volume\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "segment_volume needs distributed: pip install 'spoco-zoo[volumes]'"
    )


def test_every_error_is_one_of_ours():
    kinds = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    assert all(issubclass(kind, errors.SpocoZooError) for kind in kinds)
    assert issubclass(errors.SettingError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_types_are_shipped():
    assert importlib.resources.files("spoco_zoo").joinpath("py.typed").is_file()
