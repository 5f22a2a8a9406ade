"""What is installed is told from metadata, whole or damaged; two wheels in one place are found."""

import platform
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from spoco_zoo.installation import (
    Part,
    Wheel,
    find_clashes,
    find_version,
    find_wheels,
    name_extra,
    name_wheel,
    read_parts,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The only folder in which anything is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(place, name, version, *, more="", brings=("onnxruntime/__init__.py",)):
    """Write the metadata that pip leaves."""
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"
    )
    if brings is not None:
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in brings))
        for file in brings:  # which newer Pythons leave out where they are not there
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).touch()
    return folder


def test_two_wheels_in_one_folder_are_a_clash(place):
    install(place, "onnxruntime", "1.30.0")
    install(place, "onnxruntime-gpu", "1.31.1")
    install(place, "onnxruntime-extensions", "0.14", brings=("onnxruntime_extensions/__init__.py",))
    wheels, damaged = find_wheels()
    folder = place.resolve() / "onnxruntime"
    expected = {Wheel("onnxruntime", "1.30.0", folder), Wheel("onnxruntime-gpu", "1.31.1", folder)}
    assert set(wheels) == expected
    (clash,) = find_clashes(wheels)
    assert set(clash) == expected
    assert damaged == ()


def test_two_wheels_in_two_folders_are_none_and_the_first_is_imported(tmp_path, monkeypatch):
    for name, version in (("first", "1.30.0"), ("second", "1.31.1")):
        install(tmp_path / name, "onnxruntime-gpu", version)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    wheels, _ = find_wheels()
    assert [wheel.version for wheel in wheels] == ["1.30.0", "1.31.1"]
    assert find_clashes(wheels) == ()


def test_a_wheel_without_a_list_of_its_files_is_believed(place):
    install(place, "ort-nightly-gpu", "1.32.0.dev1", brings=None)
    ((wheel,), _) = find_wheels()
    assert wheel.name == "ort-nightly-gpu"


def test_damaged_metadata_is_told_and_stops_nothing(place):
    install(place, "onnxruntime", "1.30.0")
    (place / "nothing-1.0.dist-info").mkdir()
    (place / "bytes-1.0.dist-info").mkdir()
    (place / "bytes-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe\x00")
    wheels, damaged = find_wheels()
    assert [wheel.name for wheel in wheels] == ["onnxruntime"]
    assert sorted(Path(p).name for p in damaged) == ["bytes-1.0.dist-info", "nothing-1.0.dist-info"]
    assert find_version("bytes") is None
    assert find_version("nothing") is None


def test_what_an_extra_lacks_is_found_through_the_extras_that_it_asks_for(place):
    more = (
        "Provides-Extra: cuda\nProvides-Extra: dev\n"
        "Requires-Dist: numpy>=1.26\n"
        "Requires-Dist: never; sys_platform == 'nowhere'\n"
        "Requires-Dist: not a requirement at all !\n"
        "Requires-Dist: onnxruntime-gpu[cuda]>=1.27; extra == 'cuda'\n"
        "Requires-Dist: pytest; extra == 'dev'\n"
    )
    install(place, "spoco-zoo", "0.1.0", more=more, brings=())
    more = "Provides-Extra: cuda\nRequires-Dist: nvidia-cufft~=12.0; extra == 'cuda'\n"
    install(place, "onnxruntime-gpu", "1.26.0", more=more)
    install(place, "numpy", "1.26.4", brings=())
    parts = read_parts()
    assert list(parts) == ["", "cuda"]
    assert [(part.name, part.is_missing) for part in parts[""]] == [("numpy", False)]
    assert [str(part) for part in parts["cuda"] if part.is_missing] == [
        "onnxruntime-gpu>=1.27 (there is 1.26.0)",
        "nvidia-cufft~=12.0",
    ]


def test_a_preliminary_version_is_a_version():
    assert not Part("a", "a>=1.0", "1.1rc1").is_missing
    assert Part("a", "a>=1.0", None).is_missing


def test_without_an_installation_no_part_is_known(place):
    assert read_parts() == {}
    assert find_version("spoco-zoo") is None


def test_the_wheel_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in project["dependencies"] if "onnxruntime" in line]
    for system, machine in (
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("win32", "AMD64"),
    ):
        words = {"sys_platform": system, "platform_machine": machine}
        (asked,) = [w.name for w in wanted if w.marker.evaluate(words)]
        assert name_wheel(system, machine) == asked
    assert find_version(name_wheel(sys.platform, platform.machine()))


def test_an_extra_is_written_as_pip_takes_it():
    assert name_extra("cuda") == "'spoco-zoo[cuda]'"
