"""The dock widget that finds instances: a package, a layer, Run, and a layer of labels.

The window stays free while a run is under way in a thread. What a user gets wrong is one sentence
in the widget; a traceback is a fault of ours. A run adds a layer and touches no other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from spoco_zoo.choices import Flags
from spoco_zoo.errors import SpocoZooError
from spoco_zoo.napari_plugin.choosing import PackageChooser, caption
from spoco_zoo.napari_plugin.label_layers import is_result, read_result
from spoco_zoo.napari_plugin.layers import find_source
from spoco_zoo.napari_plugin.packages import Offer, refuse_incomplete
from spoco_zoo.napari_plugin.runs import Found, Job, Refused, RunWorker

if TYPE_CHECKING:
    import napari

_DEVICES = {
    "Automatic": ("auto", "The GPU where there is one that works, else the CPU"),
    "CPU": ("cpu", "The processor of this machine"),
    "GPU (CUDA)": ("cuda", "Insist on the GPU"),
}


_RED = "#e0524d"  # legible on the light and the dark theme
_PACKAGES = (".zip", ".yaml", ".yml")  # what may be one, among files


class FindInstances(QWidget):
    """Find the instances of an image layer with a package."""

    def __init__(self, napari_viewer: "napari.components.ViewerModel") -> None:
        super().__init__()
        self._viewer = napari_viewer
        self._worker: RunWorker | None = None
        self.setAcceptDrops(True)
        self.setMinimumWidth(280)
        self._chooser = PackageChooser()
        self._chooser.chosen.connect(self._offer)
        self._chooser.refused.connect(self._complain)
        self._layers = QComboBox()
        self._device = QComboBox()
        self._bandwidth, self._min_size = QDoubleSpinBox(), QSpinBox()
        self._fold, self._more = QPushButton(), QWidget()
        self._run, self._cancel = QPushButton("Run"), QPushButton("Cancel")
        self._bar, self._status = QProgressBar(), QLabel()
        self._dress()
        self._lay_out()
        self._follow_layers()
        self._fold.toggled.connect(lambda wanted: self._unfold(wanted=wanted))
        self._run.clicked.connect(self.run)
        self._cancel.clicked.connect(self.cancel)
        self._offer(None)

    def choose(self, path: Path) -> None:
        """Take a package: a folder or a zip."""
        self._chooser.choose(path)

    def run(self) -> None:
        """Find the instances of the chosen layer, in the background."""
        offer, layer = self._chooser.offer, self._layer()
        if offer is None or layer is None or self._worker is not None:
            return
        try:
            flags = self._flags()
            refuse_incomplete(offer, flags.bandwidth)
            source = find_source(layer, offer, self._viewer.dims.point)
        except SpocoZooError as error:
            self._complain(str(error))
            return
        worker = RunWorker(Job(offer, source, flags, self._device.currentData()))
        worker.advanced.connect(self._advance)
        worker.returned.connect(self._take)
        worker.errored.connect(self._report)
        worker.finished.connect(self._finish)
        self._worker = worker
        self._say("Reading the image and the network ...")
        self._bar.setRange(0, 0)
        self._update()
        worker.start()

    def cancel(self) -> None:
        """End the run with the tile that is under way."""
        if self._worker is not None:
            self._worker.quit()
            self._say("Stopping after this tile ...")
            self._update()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802 - Qt's name
        """Take files and folders."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802 - Qt's name
        """Choose the package that is dropped, or open label images."""
        event.acceptProposedAction()
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.open(Path(url.toLocalFile()))

    def open(self, path: Path) -> None:
        """Choose a package, or open a label image that spoco-zoo has written."""
        if not is_result(path):
            if path.is_dir() or path.suffix.lower() in _PACKAGES or not path.exists():
                self.choose(path)
                return
            self._complain(
                f"{path} is no package and no label image that spoco-zoo has written: "
                "drop images on the canvas"
            )
            return
        try:
            for data, words, _ in read_result(path):
                self._viewer.add_labels(data, **words)
        except SpocoZooError as error:
            self._complain(str(error))

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802 - Qt's name
        """Leave where napari takes the widget out of its dock, which closes it."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._leave()
        super().changeEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Leave where the widget has a window of its own."""
        self._leave()
        super().closeEvent(event)

    def _leave(self) -> None:
        """Stop what is under way, and follow the layers no more."""
        self.cancel()
        layers = self._viewer.layers
        for change in (layers.events.inserted, layers.events.removed, layers.events.reordered):
            change.disconnect(self._list_layers)
        for layer in layers:
            layer.events.name.disconnect(self._list_layers)

    def _dress(self) -> None:
        """Say what each part is for."""
        _let_shrink(self._layers)
        self._layers.setToolTip(
            "The image. Of a pyramid the finest level is taken; of time, or other axes that the "
            "package does not know, the step that is shown."
        )
        self._layers.currentIndexChanged.connect(lambda _: self._update())
        _let_shrink(self._device)
        self._device.setToolTip("Where to compute")
        for name, (device, hint) in _DEVICES.items():
            self._device.addItem(name, device)
            self._device.setItemData(self._device.count() - 1, hint, Qt.ItemDataRole.ToolTipRole)
        self._bandwidth.setToolTip(
            "Radius of a cluster, in units of the embedding: a larger one joins, a smaller one "
            "splits instances"
        )
        self._bandwidth.setDecimals(2)
        self._bandwidth.setSingleStep(0.05)
        self._bandwidth.setRange(0, 100)
        self._min_size.setToolTip("Instances of fewer pixels are left out")
        self._min_size.setRange(-1, 10_000_000)
        self._fold.setCheckable(True)
        self._fold.setStyleSheet(
            "QPushButton, QPushButton:checked { text-align: left; background: transparent; "
            "border: none; padding: 4px }"
        )
        self._run.setToolTip("Find the instances; they come as a new layer")
        self._cancel.setToolTip("Stop; nothing is added")
        self._bar.setFormat("%v of %m tiles")
        self._status.setWordWrap(True)
        self._status.setTextFormat(Qt.TextFormat.PlainText)
        self._status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def _lay_out(self) -> None:
        numbers = QVBoxLayout(self._more)
        numbers.setContentsMargins(0, 0, 0, 0)
        numbers.addLayout(_row("Bandwidth", self._bandwidth))
        numbers.addLayout(_row("Least size", self._min_size))
        self._unfold(wanted=False)
        buttons = QHBoxLayout()
        buttons.addWidget(self._run, stretch=1)
        buttons.addWidget(self._cancel)
        layout = QVBoxLayout(self)
        layout.addWidget(self._chooser)
        layout.addLayout(_row("Image", self._layers))
        layout.addLayout(_row("Device", self._device))
        layout.addWidget(self._fold)
        layout.addWidget(self._more)
        layout.addLayout(buttons)
        layout.addWidget(self._bar)
        layout.addWidget(self._status)
        layout.addStretch()

    def _unfold(self, *, wanted: bool) -> None:
        self._fold.setText("▾ More settings" if wanted else "▸ More settings")
        self._more.setVisible(wanted)

    def _follow_layers(self) -> None:
        events = self._viewer.layers.events
        for change in (events.inserted, events.removed, events.reordered):
            change.connect(self._list_layers)
        self._list_layers()
        active = self._viewer.layers.selection.active
        if active is not None:
            self._layers.setCurrentIndex(max(0, self._layers.findData(active)))

    def _list_layers(self, _: Any = None) -> None:  # noqa: ANN401 - an event of napari
        """List the image layers, the topmost first, and keep the one that is chosen."""
        from napari.layers import Image

        chosen = self._layer()
        images = [layer for layer in reversed(self._viewer.layers) if isinstance(layer, Image)]
        self._layers.blockSignals(True)
        self._layers.clear()
        for layer in images:
            layer.events.name.connect(self._list_layers)  # once: napari keeps no callback twice
            self._layers.addItem(layer.name, layer)
        self._layers.setCurrentIndex(images.index(chosen) if chosen in images else 0)
        self._layers.blockSignals(False)
        self._update()

    def _layer(self) -> Any:  # noqa: ANN401 - napari has no types here
        return self._layers.currentData()

    def _offer(self, offer: Offer | None) -> None:
        """Show the settings of a package."""
        self._bandwidth.setSpecialValueText(_default(None if offer is None else offer.bandwidth))
        self._min_size.setSpecialValueText(_default(None if offer is None else offer.min_size))
        self._bandwidth.setValue(0)
        self._min_size.setValue(-1)
        self._say("")
        self._update()

    def _flags(self) -> Flags:
        """What the user says of how instances are made."""
        radius, size = self._bandwidth.value(), self._min_size.value()
        return Flags(
            bandwidth=radius if radius > 0 and self._bandwidth.isEnabled() else None,
            min_size=size if size >= 0 and self._min_size.isEnabled() else None,
        )

    def _update(self) -> None:
        """Let be used what makes sense now."""
        offer, worker = self._chooser.offer, self._worker
        busy = worker is not None
        kind = None if offer is None else offer.kind
        self._chooser.lock(busy=busy)
        for part in (self._layers, self._device):
            part.setEnabled(not busy)
        self._bandwidth.setEnabled(not busy and kind == "embeddings")
        self._min_size.setEnabled(not busy and kind in ("embeddings", "boundaries"))
        self._run.setEnabled(not busy and offer is not None and self._layer() is not None)
        self._cancel.setEnabled(worker is not None and not worker.abort_requested)
        self._bar.setVisible(busy)

    def _advance(self, done: int, total: int) -> None:
        if self._worker is None or self._worker.abort_requested:
            return
        self._bar.setRange(0, total)
        self._bar.setValue(done)
        self._say("Finding instances ..." if done < total else "Clustering ...")

    def _take(self, result: Found | Refused | None) -> None:
        """Add the labels, or say why there are none."""
        if self._worker is None or self._worker.abort_requested:  # stopped too late for the thread
            return
        if isinstance(result, Refused):
            self._complain(result.sentence)
        elif result is not None:
            source = self._worker.job.source
            layer = self._viewer.add_labels(
                result.labels, name=f"{source.name} instances", **source.place
            )
            told = "1 instance" if result.count == 1 else f"{result.count} instances"
            seconds = f"{result.seconds:.1f} s on {result.device.upper()}"
            self._say(f"{told} in {seconds}: layer {layer.name}")

    def _finish(self) -> None:
        stopped = self._worker is not None and self._worker.abort_requested
        self._worker = None
        if stopped:
            self._say("Stopped; nothing was added")
        self._update()

    def _report(self, error: Exception) -> None:
        """Tell of a fault of ours with its traceback, as napari does."""
        self._complain("The run failed by a fault of spoco-zoo; its report is in napari's message")
        notification_manager.receive_error(type(error), error, error.__traceback__)

    def _say(self, text: str) -> None:
        self._status.setStyleSheet("")
        self._status.setText(text)
        self._status.setVisible(bool(text))

    def _complain(self, sentence: str) -> None:
        self._say(sentence)
        self._status.setStyleSheet(f"color: {_RED}")


def _let_shrink(box: QComboBox) -> None:
    """Let a long name not make the widget wide."""
    box.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)


def _default(value: float | None) -> str:
    return "not set" if value is None else f"{value} (default)"


def _row(name: str, field: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    row.addWidget(caption(name))
    row.addWidget(field, stretch=1)
    return row
