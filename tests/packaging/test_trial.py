"""A package of anyone is tried only when its user has vouched for it, and for all of it."""

# ruff: noqa: E402 - without torch the file ends at the line that asks for it

import hashlib
import shutil
import zipfile

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bioimageio.core")

from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.packaging import trial
from spoco_zoo.packaging.proof import Proof
from spoco_zoo.packaging.trial import check_trust, try_package


@pytest.fixture
def package(tiny_export, tmp_path):
    return shutil.copytree(tiny_export[0], tmp_path / "package")


@pytest.fixture
def asked(monkeypatch):
    """What would be proven, without an engine being asked."""
    told = []

    def note(candidate, engines, **_):
        told.append(candidate)
        return Proof(candidate.name)

    monkeypatch.setattr(trial, "prove", note)
    return told


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_nobody_vouched_for_is_not_tried(package):
    with pytest.raises(SettingError, match=r"nobody has vouched for it: .* --sha256, or --trust$"):
        check_trust(package, None, trust=False)
    check_trust(package, None, trust=True)


def test_the_hash_of_a_folder_is_that_of_its_description(package):
    right = digest_of(package / "rdf.yaml")
    check_trust(package, f" {right.upper()}\n", trust=False)
    with pytest.raises(
        PackageError, match=r"rdf\.yaml: sha256 is .* not the package that you mean"
    ):
        check_trust(package, "0" * 64, trust=True)


def test_the_hash_of_a_zip_is_that_of_the_zip(package, zip_folder, tmp_path):
    target = tmp_path / "package.zip"
    zip_folder(package, target)
    check_trust(target, digest_of(target), trust=False)
    with pytest.raises(PackageError, match="sha256 is"):
        check_trust(target, digest_of(package / "rdf.yaml"), trust=False)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(PackageError, match="no such package"):
        check_trust(tmp_path / "none", None, trust=True)


def test_a_whole_package_is_proven(package):
    proof = try_package(package, "installed")
    assert proof.failed == []
    assert {check.name for check in proof.checks} >= {"agreement", "tiles", "description"}
    assert "ONNX Runtime 1.12.1" in proof.missing
    assert "checks hold in 2 engines; not in " in proof.summary


@pytest.mark.parametrize("name", ["weights_torchscript.pt", "weights.onnx", "net.py"])
def test_changed_files_reach_no_engine(package, asked, name):
    with (package / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(PackageError, match="the file was changed"):
        try_package(package, "installed", is_hashed=True)
    assert asked == []


def test_files_that_the_hash_does_not_cover_reach_no_engine(package, asked, edit_rdf):
    def forget(words):
        del words["weights"]["torchscript"]["sha256"]

    edit_rdf(package, forget)
    with pytest.raises(PackageError, match=r"states no sha256 of weights_torchscript\.pt"):
        try_package(package, "installed", is_hashed=True)
    assert asked == []


def test_sources_outside_of_the_package_are_refused(package, asked, edit_rdf):
    edit_rdf(package, lambda words: words["weights"]["onnx"].update(source="../../evil.onnx"))
    with pytest.raises(PackageError):
        try_package(package, "installed")
    assert asked == []


def test_a_zip_is_unpacked_and_nothing_of_it_stays(package, zip_folder, tmp_path, asked):
    zip_folder(package, tmp_path / "package.zip")
    try_package(tmp_path / "package.zip", "installed")
    (candidate,) = asked
    assert candidate.folder.name == "package"
    assert not candidate.folder.exists()


def test_a_zip_that_no_folder_can_hold_is_told(tmp_path, package):
    target = tmp_path / "package.zip"
    with zipfile.ZipFile(target, "w") as file:
        for path in package.iterdir():
            file.write(path, path.name)
        file.writestr("a", b"")
        file.writestr("a/b", b"")
    with pytest.raises(PackageError):
        try_package(target, "installed")
