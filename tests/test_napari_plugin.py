"""The plug-in for napari, where that is installed: all but the canvas, without a screen."""

import os
import sys
import threading
import time
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

if sys.platform == "linux":
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
with warnings.catch_warnings():  # of napari and Qt, which are not ours
    warnings.simplefilter("ignore")
    pytest.importorskip("napari")
    pytest.importorskip("qtpy.QtWidgets", exc_type=ImportError)
    import npe2
    from dask import array as lazy
    from napari.components import ViewerModel
    from napari.layers import Image, Labels
    from napari.qt.threading import WorkerBase
    from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
    from qtpy.QtGui import QDropEvent
    from qtpy.QtWidgets import QApplication

from spoco_zoo import load_package, segment
from spoco_zoo.choices import Flags
from spoco_zoo.errors import ImageError
from spoco_zoo.images import write_labels
from spoco_zoo.napari_plugin import drops, samples
from spoco_zoo.napari_plugin.label_layers import is_result, read_result
from spoco_zoo.napari_plugin.layers import find_source
from spoco_zoo.napari_plugin.packages import describe
from spoco_zoo.napari_plugin.runs import Job, StoppedError, find_instances
from spoco_zoo.napari_plugin.widget import FindInstances

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "spoco_zoo" / "napari_plugin" / "napari.yaml"
CONTRIBUTIONS = npe2.PluginManifest.from_file(MANIFEST).contributions
pytestmark = pytest.mark.filterwarnings("default")  # likewise


@pytest.fixture(scope="module")
def app():
    return QApplication.instance() or QApplication([])


@pytest.fixture
def wait(app):
    """Let Qt work until something is true."""

    def until(true, seconds=30):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "nothing came"
            app.processEvents()
            time.sleep(0.005)

    return until


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def open_widget(app, viewer):
    """Open the widget; what it remembers is forgotten afterwards."""
    opened = []

    def make():
        opened.append(FindInstances(viewer))
        return opened[-1]

    yield make
    for widget in opened:
        widget.close()
    WorkerBase.await_workers(30_000)
    app.processEvents()
    app.setProperty("spoco_zoo_packages", None)


@pytest.fixture
def widget(open_widget):
    return open_widget()


@pytest.fixture
def choose(widget, wait):
    """Choose a package and wait until it is read, or refused."""

    def take(path):
        widget.choose(path)
        wait(lambda: widget._chooser.offer is not None or widget._status.text())

    return take


@pytest.fixture
def finish(widget, wait):
    """Run, and wait for the end; what the widget says then."""

    def run():
        widget.run()
        wait(lambda: widget._worker is None)
        return widget._status.text()

    return run


@pytest.fixture
def offer(tiny_package):
    return describe(tiny_package)


def drop(widget, path):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    widget.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, data, left, none))


def labels_in(viewer):
    return [layer for layer in viewer.layers if isinstance(layer, Labels)]


# the manifest


def test_the_manifest_is_valid_and_all_that_it_names_is_there():
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["napari.manifest"] == {
        manifest.name: f"spoco_zoo.napari_plugin:{MANIFEST.name}"
    }


def test_no_file_that_others_read_is_claimed():
    # napari would ask for each of them by whom to open it
    claims = [(r.filename_patterns, r.accepts_directories) for r in CONTRIBUTIONS.readers]
    assert claims == [(["*.zip"], False)]


@pytest.mark.parametrize(
    "sample", npe2.PluginManifest.from_file(MANIFEST).contributions.sample_data
)
def test_samples_are_images(sample):
    ((pixels, words, kind),) = getattr(samples, sample.key)()
    assert (kind, pixels.dtype) == ("image", np.uint8)
    assert pixels.std() > 5
    assert words["name"].endswith("(simulated)")


# packages


def test_a_package_of_ours_says_what_it_is(offer):
    assert (offer.name, offer.kind, offer.channels) == ("Tiny", "embeddings", 1)
    assert offer.images == "2D images (y, x), 1 channel"
    assert offer.bandwidth == load_package(offer.location).config.recipe.clustering.bandwidth


def test_a_description_is_one_line_and_a_licence_is_told(tiny_package, edit_rdf):
    words = {"description": "Nuclei\n in 2D. More of it. " * 20, "license": "CC0-1.0"}
    edit_rdf(tiny_package, lambda rdf: rdf.update(words))
    offer = describe(tiny_package / "rdf.yaml")
    assert (offer.summary, offer.licence) == ("Nuclei in 2D.", "CC0-1.0")


def test_a_package_of_others_needs_a_bandwidth(
    make_stranger, viewer, widget, choose, finish, paint
):
    viewer.add_image(paint()[0])
    choose(make_stranger())
    assert finish() == (
        "Stranger gives embeddings and no recipe for instances: set a bandwidth under "
        "More settings, 0.5 for a start"
    )
    widget._bandwidth.setValue(0.2)
    assert "instances in" in finish()
    assert len(labels_in(viewer)) == 1


# layers


def test_labels_of_a_plane_lie_where_the_image_lies(offer):
    pixels = np.arange(30).reshape(5, 6)
    place = {"scale": (0.5, 0.25), "translate": (3, 4), "rotate": 30, "shear": [0.2]}
    place |= {"units": ("um", "um"), "axis_labels": ("y", "x")}
    layer = Image(pixels, name="a", affine=np.diag([2, 3, 1]), **place)
    source = find_source(layer, offer, (0, 0))
    np.testing.assert_array_equal(source.read(), pixels[None])
    labels = Labels(source.arrange(pixels.astype(np.uint32)), **source.place)
    np.testing.assert_array_equal(labels.data, pixels)
    for point in ((0, 0), (4, 5)):
        np.testing.assert_allclose(labels.data_to_world(point), layer.data_to_world(point))
    assert (labels.units, labels.axis_labels) == (layer.units, layer.axis_labels)


def test_of_a_stack_a_package_for_planes_sees_the_step_that_is_shown(offer):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 6))
    layer = Image(pixels, scale=(2, 0.5, 0.5), translate=(10, 0, 0))
    source = find_source(layer, offer, layer.data_to_world((2, 0, 0)))
    np.testing.assert_array_equal(source.read(), pixels[2][None])
    labels = Labels(source.arrange(pixels[2]), **source.place)
    assert labels.data.shape == (1, 5, 6)
    np.testing.assert_allclose(labels.data_to_world((0, 3, 4)), layer.data_to_world((2, 3, 4)))


def test_labels_of_a_step_lie_on_all_of_its_channels(offer):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 5, 6))
    layer = Image(pixels, scale=(2, 1, 0.5, 0.5))
    source = find_source(layer, replace(offer, channels=3), layer.data_to_world((2, 1, 0, 0)))
    np.testing.assert_array_equal(source.read(), pixels[2])
    labels = Labels(source.arrange(pixels[2, 0]), **source.place)
    for channel in range(3):
        seen = labels.world_to_data(layer.data_to_world((2, channel, 3, 4)))
        np.testing.assert_array_equal(np.round(seen), (0, 0, 3, 4))
    above = labels.world_to_data(layer.data_to_world((3, 1, 3, 4)))
    assert np.round(above)[0] == 1  # where there are none


def test_channels_before_space_go_into_one_plane_of_labels(offer):
    layer = Image(np.arange(60).reshape(2, 5, 6))
    source = find_source(layer, replace(offer, channels=2), (0, 0, 0))
    np.testing.assert_array_equal(source.read(), layer.data)
    assert source.arrange(np.zeros((5, 6), np.uint32)).shape == (5, 6)


def test_named_axes_are_found_in_any_order(offer):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 6, 5))
    layer = Image(pixels, axis_labels=("z", "c", "x", "y"))
    source = find_source(layer, replace(offer, n_axes=3, channels=3), (0, 0, 0, 0))
    np.testing.assert_array_equal(source.read(), pixels.transpose(1, 0, 3, 2))
    volume = pixels.transpose(1, 0, 3, 2)[0]  # (z, y, x)
    np.testing.assert_array_equal(source.arrange(volume), pixels[:, 0])


def test_colours_are_channels_and_alpha_is_none(offer):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 4)).astype(np.uint8)
    source = find_source(Image(pixels, rgb=True), replace(offer, channels=3), (0, 0))
    np.testing.assert_array_equal(source.read(), pixels[..., :3].transpose(2, 0, 1))
    assert source.arrange(pixels[..., 0]).shape == (5, 6)


def test_of_a_pyramid_the_finest_level_is_seen(offer):
    pixels = np.arange(1600).reshape(40, 40)
    source = find_source(Image([pixels, pixels[::2, ::2]], multiscale=True), offer, (0, 0))
    np.testing.assert_array_equal(source.read()[0], pixels)


@pytest.mark.parametrize(
    ("shape", "words", "change", "sentence"),
    [
        (
            (5, 6),
            {},
            {"n_axes": 3},
            "a has 2 axes: Tiny takes volumes; choose a layer with z, y and x",
        ),
        (
            (5, 6, 3),
            {"rgb": True},
            {},
            "a is a picture in colour: Tiny takes 1 channel; right-click the layer, Split RGB, "
            "and choose one of its layers",
        ),
        (
            (4, 5, 6),
            {},
            {"channels": 2},
            "a has shape (4, 5, 6), without an axis of 2 channels before the axes of space: Tiny "
            "takes 2; select a layer for each, right-click, Merge to Stack",
        ),
        (
            (4, 5, 6),
            {"translate": (100, 0, 0), "axis_labels": ("t", "y", "x")},
            {},
            "a is not there at the step that the viewer shows: move the slider of axis t to where "
            "it is seen",
        ),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(offer, shape, words, change, sentence):
    layer = Image(np.zeros(shape, np.uint8), name="a", **words)
    with pytest.raises(ImageError) as error:
        find_source(layer, replace(offer, **change), (0,) * layer.ndim)
    assert str(error.value) == sentence


def test_pixels_that_cannot_be_read_are_told_of(offer):
    def fail(_):
        raise OSError("the disk is gone")

    pixels = lazy.zeros((5, 6), dtype=np.uint8, chunks=5).map_blocks(fail, dtype=np.uint8)
    layer = Image(np.zeros((5, 6), np.uint8), name="a")
    source = replace(find_source(layer, offer, (0, 0)), data=pixels)
    with pytest.raises(ImageError) as error:
        source.read()
    assert str(error.value) == (
        "a: its pixels cannot be read (the disk is gone): open the image again"
    )


# runs


def test_a_run_adds_the_labels_of_segment_where_the_image_lies(
    viewer, widget, choose, finish, paint, tiny_package
):
    pixels, _ = paint()
    place = {"scale": (0.5, 0.25), "translate": (3, 4), "units": ("um", "um")}
    image = viewer.add_image(pixels, name="cells", **place)
    choose(tiny_package)
    said = finish()
    (layer,) = labels_in(viewer)
    np.testing.assert_array_equal(layer.data, segment(pixels, load_package(tiny_package)))
    assert layer.name == "cells instances"
    assert (layer.scale == image.scale).all()
    assert (layer.translate == image.translate).all()
    assert layer.units == image.units
    count = layer.data.max()
    assert said.startswith(f"{count} instances in ")
    assert said.endswith(" s on CPU: layer cells instances")


def test_a_second_run_leaves_the_first_labels_alone(
    viewer, widget, choose, finish, paint, tiny_package
):
    viewer.add_image(paint()[0])
    choose(tiny_package)
    finish()
    (first,) = labels_in(viewer)
    before = first.data.copy()
    widget._min_size.setValue(250)
    finish()
    other = next(layer for layer in labels_in(viewer) if layer is not first)
    np.testing.assert_array_equal(first.data, before)
    assert other.data.max() < first.data.max()


def test_tiles_are_counted_and_the_window_is_free(
    viewer, widget, choose, wait, tiny_package, paint
):
    viewer.add_image(np.tile(paint()[0], (1, 45)))  # four tiles
    choose(tiny_package)
    widget.run()
    seen = []
    widget._worker.advanced.connect(lambda done, total: seen.append((done, total)))
    assert not widget._run.isEnabled()
    assert widget._cancel.isEnabled()
    wait(lambda: widget._worker is None)
    assert {total for _, total in seen} == {4}
    assert seen[-1] == (4, 4)
    assert widget._run.isEnabled()
    assert not widget._cancel.isEnabled()


def test_what_progress_raises_ends_a_run_with_its_tile(offer, paint):
    image = np.tile(paint()[0], (1, 45))
    source = find_source(Image(image), offer, (0, 0))
    seen = []

    def advance(done, total):
        seen.append((done, total))
        raise StoppedError

    with pytest.raises(StoppedError):
        find_instances(Job(offer, source, Flags(), "cpu"), advance)
    assert seen == [(1, 4)]


def test_cancel_stops_and_adds_nothing(viewer, widget, choose, wait, tiny_package, paint):
    started, go = threading.Event(), threading.Event()

    def hold(block):
        started.set()
        go.wait(30)
        return block

    pixels = np.tile(paint()[0], (1, 45))
    layer = viewer.add_image(pixels)
    # the canvas has looked at the pixels; the run will wait for them
    layer._data = lazy.from_array(pixels, chunks=-1).map_blocks(hold, meta=pixels[:0, :0])
    choose(tiny_package)
    seen = []
    widget.run()
    widget._worker.advanced.connect(lambda done, total: seen.append(done))
    wait(started.is_set)
    widget.cancel()
    assert widget._status.text() == "Stopping after this tile ..."
    assert not widget._cancel.isEnabled()
    go.set()
    wait(lambda: widget._worker is None)
    assert widget._status.text() == "Stopped; nothing was added"
    assert seen == []
    assert labels_in(viewer) == []


def test_what_a_package_refuses_is_one_sentence(viewer, choose, finish, tiny_package, widget):
    viewer.add_image(np.full((20, 20), np.nan, np.float32))
    choose(tiny_package)
    assert finish() == (
        "image: 400 of 400 pixels are NaN or infinite: replace them by finite values"
    )
    assert widget._run.isEnabled()


def test_a_damaged_package_is_one_sentence(widget, choose, tiny_package, viewer):
    viewer.add_image(np.zeros((20, 20)))
    (tiny_package / "rdf.yaml").unlink()
    choose(tiny_package)
    assert widget._status.text() == (
        f"{tiny_package / 'rdf.yaml'}: cannot be read (No such file or directory): the package is "
        "incomplete; copy or export it again"
    )
    assert not widget._run.isEnabled()


# the widget


def test_packages_are_remembered_while_napari_runs(
    open_widget, widget, choose, copy_tiny, wait, viewer
):
    choose(copy_tiny("package"))
    choose(copy_tiny("volume"))
    listed = open_widget()._chooser._list
    assert [listed.itemText(n) for n in range(listed.count())] == ["Tiny volume", "Tiny"]
    assert listed.currentIndex() == -1


def test_a_dropped_package_is_chosen(widget, wait, tiny_package, zip_folder, tmp_path):
    for path in (tiny_package, zip_folder(tiny_package, tmp_path / "tiny.zip")):
        drop(widget, path)
        wait(lambda path=path: (o := widget._chooser.offer) is not None and o.location == path)


def test_the_list_of_images_follows_the_viewer(viewer, widget):
    def listed():
        return [widget._layers.itemText(n) for n in range(widget._layers.count())]

    first = viewer.add_image(np.zeros((5, 5)), name="a")
    viewer.add_labels(np.zeros((5, 5), int))
    viewer.add_image(np.zeros((5, 5)), name="b")
    assert listed() == ["b", "a"]
    assert widget._layers.currentText() == "a"
    first.name = "c"
    assert widget._layers.currentText() == "c"
    viewer.layers.remove(first)
    assert listed() == ["b"]


# results


@pytest.mark.parametrize("highest", [9, 70_000])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_our_label_images_come_back_with_their_pixel_size(tmp_path, shape, highest):
    labels = np.zeros(shape, np.uint32)
    labels[..., 1] = highest
    scale = (2.0, 0.5, 0.25)[-len(shape) :]
    write_labels(tmp_path / "a.tif", labels, scale)
    assert is_result(tmp_path / "a.tif")
    ((data, words, kind),) = read_result(tmp_path / "a.tif")
    np.testing.assert_array_equal(data, labels)
    assert kind == "labels"
    layer = Labels(data, **words)
    np.testing.assert_allclose(layer.scale, scale)
    assert {str(unit) for unit in layer.units} == {"micrometer"}
    assert layer.name == "a"


def test_images_of_others_are_not_taken_for_ours(tmp_path, widget, viewer):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint16))
    (tmp_path / "b.tif").write_bytes(b"II*\0")
    (tmp_path / "c.png").write_bytes(b"")
    for name in ("a.tif", "b.tif", "c.png", "none.tif"):
        assert not is_result(tmp_path / name)
    drop(widget, tmp_path / "a.tif")
    assert widget._status.text() == (
        f"{tmp_path / 'a.tif'} is no package and no label image that spoco-zoo has written: "
        "drop images on the canvas"
    )
    assert len(viewer.layers) == 0


def test_a_dropped_label_image_is_a_layer(tmp_path, widget, viewer):
    write_labels(tmp_path / "a.tif", np.ones((4, 5), np.uint32), (0.5, 0.5))
    drop(widget, tmp_path / "a.tif")
    (layer,) = labels_in(viewer)
    assert layer.name == "a"
    np.testing.assert_allclose(layer.scale, (0.5, 0.5))


@pytest.fixture
def label_store(tmp_path):
    """Write labels as `run` does into a store of their own, or into that of their image."""
    zarr = pytest.importorskip("zarr")
    from spoco_zoo.label_stores import create_labels
    from spoco_zoo.volumes import open_volumes

    def write(labels, target):
        axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
        changes = [{"type": "scale", "scale": [2000, 500, 500]}]
        changes.append({"type": "translation", "translation": [4000, 0, 0]})
        level = {"path": "0", "coordinateTransformations": changes}
        group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
        group.create_array("0", data=labels.astype(np.uint8), chunks=labels.shape)
        volumes = open_volumes(tmp_path / "image.zarr", 3)
        store = create_labels(target, volumes, chunks=labels.shape, name="nuclei")
        whole = tuple(slice(0, n) for n in labels.shape)
        store.write(whole, labels)
        for number, coarser in enumerate(store.plan_pyramid()[1:], start=1):
            for box in coarser.boxes():
                store.downsample(number, box)
        store.finish(int(labels.max()))

    return write


@pytest.mark.parametrize("target", [None, "labels.ome.zarr"])
def test_labels_in_an_ome_zarr_are_read_where_they_are_looked_at(
    tmp_path, widget, viewer, label_store, target
):
    labels = np.random.default_rng(0).integers(0, 9, (3, 300, 20)).astype(np.uint32)
    label_store(labels, None if target is None else tmp_path / target)
    drop(widget, tmp_path / (target or "image.zarr"))
    (layer,) = labels_in(viewer)
    assert layer.name == ("nuclei" if target is None else "labels")
    assert layer.multiscale
    assert isinstance(layer.data[0], lazy.Array)
    np.testing.assert_array_equal(np.asarray(layer.data[0]), labels)
    np.testing.assert_allclose(layer.scale, (2, 0.5, 0.5))
    np.testing.assert_allclose(layer.translate, (4, 0, 0))
    assert {str(unit) for unit in layer.units} == {"micrometer"}


def test_an_ome_zarr_without_labels_is_told_of(tmp_path, widget, viewer):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    drop(widget, tmp_path / "a.zarr")
    assert widget._status.text() == (
        f"{tmp_path / 'a.zarr'}: holds no labels: drop images on the canvas"
    )
    assert len(viewer.layers) == 0


# zips on the canvas


def test_a_zip_is_taken_if_it_is_a_package(tiny_package, zip_folder, tmp_path):
    package = zip_folder(tiny_package, tmp_path / "package.zip")
    rois = tmp_path / "rois"
    rois.mkdir()
    (rois / "1.roi").write_bytes(b"Iout")
    others = zip_folder(rois, tmp_path / "rois.zip")
    (tmp_path / "none.zip").write_bytes(b"no zip")
    assert drops.get_reader(str(package)) is drops.take_package
    assert drops.get_reader([str(package)]) is drops.take_package
    assert drops.get_reader([str(package), str(package)]) is None
    assert drops.get_reader(str(others)) is None
    assert drops.get_reader(str(tmp_path / "none.zip")) is None
    assert drops.take_package(str(package)) == [(None,)]
