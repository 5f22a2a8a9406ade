"""Large images on workers: the labels of memory, whoever does the work, and whatever dies."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

# ruff: noqa: E402 - without zarr and dask the file ends at the line that asks for it

zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")

from spoco_zoo.block_jobs import BlockWishes
from spoco_zoo.distributed import _open_store, segment_image
from spoco_zoo.errors import OutputError
from spoco_zoo.label_stores import dump_store
from spoco_zoo.package import load_package
from spoco_zoo.segmentation import segment
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.volumes import open_volumes
from spoco_zoo.workers import Cluster, Here

pytestmark = pytest.mark.uncounted

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).resolve().parent.parent
SHAPES = {2: (40, 60), 3: (14, 30, 40)}
WINDOWS = {2: (16, 16), 3: (8, 16, 16)}
BLOCKS = {
    2: [(16, 16), (32, 16), (16, 48), (48, 32), (48, 64)],
    3: [(8, 16, 16), (8, 32, 32), (16, 16, 32), (8, 32, 16), (16, 32, 48)],
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Give workers by name, started once: this process, Dask here, and Dask somewhere."""
    folder = tmp_path_factory.mktemp("shared")
    made = {}
    with ExitStack() as stack:

        def start(name):
            kind, count = name.split()
            if kind == "here":
                return Here()
            if kind == "local":
                return stack.enter_context(Cluster.start(int(count), 1_500_000_000, folder))
            words = {"protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
            somewhere = distributed.LocalCluster(
                n_workers=int(count), threads_per_worker=1, processes=False, **words
            )
            address = stack.enter_context(somewhere).scheduler_address
            return stack.enter_context(Cluster.connect(address, folder, DATA))

        def find(name):
            if name not in made:
                made[name] = start(name)
            return made[name]

        yield find


@pytest.fixture(scope="module")
def judged(tmp_path_factory, crowd, write_ngff):
    """An image as OME-Zarr, its package and recipe with small windows, its labels from memory."""
    made = {}

    def make(kind):
        if kind not in made:
            package = load_package(DATA / f"tiny_{kind}")
            n_axes = package.n_axes
            recipe = package.config.recipe.model_copy(update={"window": WINDOWS[n_axes]})
            pixels = crowd(*SHAPES[n_axes])
            folder = tmp_path_factory.mktemp(kind)
            url = write_ngff(folder / "image.ome.zarr", pixels, "zyx"[-n_axes:])
            with EmbeddingSession(package, "cpu") as session:
                labels = segment(pixels, session, recipe=recipe)
            made[kind] = SimpleNamespace(
                url=url, package=package, recipe=recipe, pixels=pixels, labels=labels
            )
        return made[kind]

    return make


def run(world, target, pool, **wishes):
    volumes = open_volumes(world.url, world.package.n_axes)
    wishes = BlockWishes(world.recipe, 2_000_000_000, **wishes)
    return segment_image(volumes, world.package, target, wishes, pool)


def read(target, level=0):
    return zarr.open_group(str(target), mode="r")[str(level)][...]


# --- whoever works, in whatever blocks


@pytest.mark.parametrize("workers", ["local 1", "local 2", "somewhere 1", "somewhere 2"])
@pytest.mark.parametrize("kind", ["package", "volume"])
@pytest.mark.parametrize("size", range(5))
def test_labels_are_those_of_memory(judged, pools, tmp_path, kind, size, workers):
    world = judged(kind)
    assert world.labels.max() > 8
    block = BLOCKS[world.package.n_axes][size]
    done = run(world, tmp_path / "out.ome.zarr", pools(workers), block=block)
    assert (read(tmp_path / "out.ome.zarr") == world.labels).all()
    assert done.totals == (world.labels.max(),)
    assert os.listdir(tmp_path) == ["out.ome.zarr"]
    assert done.peak_bytes > 0


def test_a_server_that_refuses_to_be_looked_at_is_told_at_resume(judged, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    world = judged("package")
    volumes = open_volumes(world.url, 2)
    wishes = BlockWishes(world.recipe, 2_000_000_000, scratch=tmp_path)
    place = "memory://resumed/b.zarr", tmp_path, (16, 16), wishes
    store = _open_store(volumes, *place)
    (tmp_path / "store.json").write_bytes(dump_store(store))

    def refuse(*_, **__):
        raise LookupError("no rights")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(OutputError) as error:
        _open_store(volumes, *place)
    assert str(error.value) == (
        "memory://resumed/b.zarr: cannot be looked at (no rights): look at its disk or server, and "
        "at the credentials for it"
    )


# --- whatever dies


def children_of(pid):
    """The workers that a process has started, alive or starting."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "stat").read_text().rpartition(")")[2].split()
            if int(words[1]) == pid and words[0] != "Z":
                if b"spawn_main" in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
        except OSError:  # it is gone already
            continue
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so, what, limit_s=200):
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end, f"waited {limit_s} s until {what}"
        time.sleep(0.01)


def wait_for_steps(driver, out, count):
    """Wait until so many steps are done, which a driver that has ended never does."""
    work = out.with_name(f".{out.name}.work")
    wait_until(
        lambda: driver.poll() is not None or len(list(work.glob("steps/*/*.zip"))) >= count,
        f"{count} steps are done",
    )
    assert driver.poll() is None, driver.communicate()


def kill_a_worker(driver, dice):
    def has_killed():
        workers = children_of(driver.pid)
        with suppress(ProcessLookupError):
            if workers:
                os.kill(dice.choice(workers), signal.SIGKILL)
                return True
        return False

    wait_until(has_killed, "there is a worker")


def kill(driver):
    """Kill a driver; its workers are not to live on."""
    orphans = children_of(driver.pid)
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(is_alive, orphans)), "the workers are gone, too")


@pytest.fixture
def start(edit_rdf, copy_tiny):
    """Start the command on an image and return its process."""
    package = copy_tiny("package")

    def use_small_windows(words):
        words["config"]["spoco_zoo"]["recipe"]["window"] = [16, 16]

    edit_rdf(package, use_small_windows)
    processes = []

    def begin(image, out, *flags):
        command = [sys.executable, "-m", "spoco_zoo", "run", package, image, "-o", out, *flags]
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
            # or a suite that runs in the background of a script would have it ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ten_kills_of_workers_and_driver_change_no_byte(
    start, crowd, write_ngff, tmp_path, files_in
):
    image = write_ngff(tmp_path / "image.ome.zarr", crowd(90, 107), "yx")
    flags = ("--block", "16", "--memory", "1GB")
    calm = tmp_path / "calm" / "out.ome.zarr"
    assert start(image, calm, *flags, "--workers", "1").wait() == 0
    stormy = tmp_path / "stormy" / "out.ome.zarr"
    flags += ("--workers", "2")
    dice = random.Random(0)
    driver = start(image, stormy, *flags)
    # so many steps are done when somebody dies; there are about 170
    points = sorted(dice.sample(range(1, 160), 10))
    deaths = dice.sample(["worker"] * 7 + ["driver"] * 3, 10)
    for point, who in zip(points, deaths, strict=True):
        wait_for_steps(driver, stormy, point)
        if who == "worker":
            kill_a_worker(driver, dice)
        else:
            kill(driver)
            driver = start(image, stormy, *flags)
    told, complaint = driver.communicate()
    assert driver.returncode == 0, complaint
    assert told == "1 of 1 images done\n"
    assert files_in(stormy) == files_in(calm)
    assert os.listdir(stormy.parent) == ["out.ome.zarr"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("whom", ["all", "driver"])
def test_control_c_takes_workers_along_and_is_gone_on_with(
    start, crowd, write_ngff, tmp_path, files_in, whom
):
    image = write_ngff(tmp_path / "image.ome.zarr", crowd(60, 70), "yx")
    out = tmp_path / "out.ome.zarr"
    driver = start(image, out, "--block", "16", "--workers", "2", "--memory", "1GB")
    wait_for_steps(driver, out, 20)
    orphans = children_of(driver.pid)
    if whom == "all":  # as a terminal does
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.send_signal(signal.SIGINT)
    told, complaint = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert told == ""
    assert "Traceback" not in complaint
    told = "stopped: what is done is kept, and the same command goes on"
    assert [line for line in complaint.splitlines() if line][-1] == told
    assert len(orphans) == 2
    wait_until(lambda: not any(map(is_alive, orphans)), "the workers are gone, too", 20)
    assert not out.exists()
    again = start(image, out, "--block", "16", "--workers", "1", "--memory", "1GB")
    assert again.wait() == 0
    assert read(out).max() > 10


def test_a_scheduler_of_others_does_the_work(start, pools, crowd, write_ngff, tmp_path, judged):
    """By the command line; the scheduler is that of the tests above."""
    image = write_ngff(tmp_path / "image.ome.zarr", crowd(*SHAPES[2]), "yx")
    address = pools("somewhere 2")._address
    out = tmp_path / "out.ome.zarr"
    done = start(image, out, "--block", "32", "--scheduler", address, "--memory", "1GB")
    _, complaint = done.communicate()
    assert done.returncode == 0, complaint
    assert f"Tiny on cpu, 2 workers of {address}" in complaint
    assert (read(out) == judged("package").labels).all()
