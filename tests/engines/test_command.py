"""`spoco-zoo engines` lists what is there, and says of what it cannot get why not."""

import sys

import pytest

pytest.importorskip("filelock")

from spoco_zoo import cli
from spoco_zoo.engines import ENGINES, cache


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the command over an empty cache; exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SPOCO_ZOO_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["spoco-zoo", "engines", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run


def states(out):
    """Engine and state of each row of the table."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def test_the_list_says_which_engines_are_there(call, tmp_path):
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{tmp_path / 'cache' / 'engines'}:"
    expected = {e.name: (e.kind, "there" if e.find() else "missing") for e in ENGINES}
    assert states(out) == expected
    assert expected["libtorch 2.0.0"] == ("torchscript", "missing")
    engine = next(e for e in ENGINES if e.name == "libtorch 2.0.0")
    cache.make(engine.item, lambda folder: None, print)
    assert states(call()[1]) == expected | {"libtorch 2.0.0": ("torchscript", "there")}


def test_what_cannot_be_got_is_said_once_each_and_the_list_still_shown(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = call("--install")
    assert code == 1
    missing = [engine for engine in ENGINES if not engine.find()]
    lines = err.replace("\n ", " ").splitlines()
    assert len([line for line in lines if line.startswith("Error: ")]) == len(missing) == 8
    assert "Error: ONNX Runtime 1.12.1 needs node, which is not installed" in err
    assert "Error: bioimageio.core 0.10.2 needs PyTorch: pip install" in err
    assert [state for _, state in states(out).values()].count("missing") == 8
