"""An engine is in the cache whole or not at all, whatever ends its installation."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("filelock")

from spoco_zoo.engines import cache
from spoco_zoo.engines.cache import Item, engines_folder, find, make
from spoco_zoo.errors import MissingExtraError, OutputError

ITEM = Item("thing-1", ("thing==1",))


@pytest.fixture
def root(monkeypatch, tmp_path):
    """A cache of its own: where its engines will be."""
    monkeypatch.setenv("SPOCO_ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def fill(folder, word="content"):
    (folder / "part").mkdir()
    (folder / "part" / "file").write_text(word)


def silent(stage):
    raise AssertionError(stage)


@pytest.mark.parametrize(
    ("system", "variables", "folder"),
    [
        ("linux", {"SPOCO_ZOO_CACHE": "~/mine", "XDG_CACHE_HOME": "/x"}, "~/mine/engines"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/spoco-zoo/engines"),
        ("linux", {"XDG_CACHE_HOME": ""}, "~/.cache/spoco-zoo/engines"),
        ("darwin", {}, "~/Library/Caches/spoco-zoo/engines"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/spoco-zoo/engines"),
    ],
)
def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, system, variables, folder):
    monkeypatch.setattr(sys, "platform", system)
    for word in ("SPOCO_ZOO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(word, raising=False)
    for word, value in variables.items():
        monkeypatch.setenv(word, value)
    assert engines_folder() == Path(folder).expanduser()


def test_what_is_made_is_found_and_not_made_again(root):
    assert find(ITEM) is None
    make(ITEM, fill, silent)
    assert find(ITEM) == root / "thing-1"
    assert (root / "thing-1" / "part" / "file").read_text() == "content"
    make(ITEM, silent, silent)
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == ["thing-1"]


def test_what_was_made_from_something_else_is_made_anew(root):
    make(ITEM, fill, silent)
    newer = Item("thing-1", ("thing==1", "another runner"))
    assert find(newer) is None
    make(newer, lambda folder: fill(folder, "new"), silent)
    assert find(newer) == root / "thing-1"
    assert find(ITEM) is None
    assert (root / "thing-1" / "part" / "file").read_text() == "new"


@pytest.mark.parametrize("mark", [None, "", "{", "[]", json.dumps({"recipe": []})])
def test_a_folder_without_its_whole_mark_counts_as_missing(root, mark):
    make(ITEM, fill, silent)
    if mark is None:
        (root / "thing-1" / cache.MARK).unlink()
    else:
        (root / "thing-1" / cache.MARK).write_text(mark)
    assert find(ITEM) is None
    make(ITEM, lambda folder: fill(folder, "again"), silent)
    assert (root / "thing-1" / "part" / "file").read_text() == "again"


def test_an_installation_that_fails_leaves_nothing(root):
    def fail(folder):
        fill(folder)
        raise MissingExtraError("no network")

    with pytest.raises(MissingExtraError, match=r"^no network$"):
        make(ITEM, fail, silent)
    assert find(ITEM) is None
    assert [path for path in root.iterdir() if path.suffix != ".lock"] == []
    make(ITEM, fill, silent)
    assert find(ITEM) is not None


def test_one_that_fails_leaves_the_old_engine_as_it_was(root):
    make(ITEM, fill, silent)

    def fail(folder):
        raise MissingExtraError("no network")

    with pytest.raises(MissingExtraError):
        make(Item("thing-1", ("thing==2",)), fail, silent)
    assert find(ITEM) == root / "thing-1"


def test_a_killed_installation_is_redone_and_its_rest_removed(root):
    code = (
        "import sys, time\n"
        "from spoco_zoo.engines.cache import Item, make\n"
        "def fill(folder):\n"
        "    (folder / 'half').write_text('half')\n"
        "    print('filling', flush=True)\n"
        "    time.sleep(60)\n"
        "make(Item('thing-1', ('thing==1',)), fill, print)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "filling\n"
        child.send_signal(signal.SIGKILL)
    assert len(list(root.glob(".thing-1.*.part/half"))) == 1
    assert find(ITEM) is None
    make(ITEM, fill, silent)
    assert list(root.glob("*.part")) + list(root.glob(".*.part")) == []
    assert sorted(path.name for path in find(ITEM).iterdir()) == [cache.MARK, "part"]


@pytest.mark.usefixtures("root")
def test_of_two_at_once_the_second_waits_and_finds_it_done():
    made, stages, inside = [], [], threading.Event()

    def slow(folder):
        made.append("first")
        inside.set()
        time.sleep(0.3)
        fill(folder)

    first = threading.Thread(target=make, args=(ITEM, slow, silent))
    first.start()
    assert inside.wait(10)
    make(ITEM, lambda folder: made.append("second"), stages.append)
    first.join()
    assert made == ["first"]
    assert stages == ["waiting for another installation of thing-1"]


def test_one_that_waits_too_long_says_so(root, monkeypatch):
    monkeypatch.setattr(cache, "LONGEST_WAIT", 0.05)

    def nested(folder):
        with pytest.raises(OutputError) as error:
            make(ITEM, fill, lambda stage: None)
        assert str(error.value) == (
            f"{root / 'thing-1'}: another process has been installing it for 0 minutes: "
            "wait for it or end it"
        )
        fill(folder)

    make(ITEM, nested, silent)
    assert find(ITEM) is not None


def test_a_cache_that_cannot_be_written_is_one_sentence(root):
    root.parent.parent.mkdir(exist_ok=True)
    root.parent.write_text("a file")
    with pytest.raises(OutputError) as error:
        make(ITEM, fill, silent)
    assert str(error.value) == (
        f"{root}: cannot be written ({os.strerror(20)}): "
        "free space or set SPOCO_ZOO_CACHE to another folder"
    )


@pytest.mark.usefixtures("root")
def test_without_filelock_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingExtraError) as error:
        make(ITEM, fill, silent)
    assert str(error.value) == "installing engines needs filelock: pip install 'spoco-zoo[train]'"
