"""Engines for the tests: those that are there, and one that is lines of Python."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Fake:
    """An engine that is lines of Python."""

    code: str
    kind: str = "onnx"
    there: bool = True
    name: str = "Fake 1"
    version: str = "1"
    from_cache: bool = False

    def find(self):
        return self.there

    def install(self, on_stage):
        raise AssertionError

    def command(self):
        return (sys.executable, "-c", self.code)


@pytest.fixture
def fake():
    """Make an engine out of lines of Python."""
    return Fake


@pytest.fixture
def there():
    """Skip the test unless an engine is there."""

    def check(engine):
        if not engine.find():
            pytest.skip(f"{engine.name} is not there: spoco-zoo engines --install")

    return check


@pytest.fixture
def damaged(tiny_export, tmp_path):
    """A copy of the exported package to change."""
    return Path(shutil.copytree(tiny_export[0], tmp_path / "package"))
