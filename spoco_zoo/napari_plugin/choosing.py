"""Which package, and what it is: the upper part of the dock widget."""

from pathlib import Path

from napari.qt.threading import create_worker
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMenu,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from spoco_zoo.errors import SpocoZooError
from spoco_zoo.napari_plugin.packages import Offer, describe

_REMEMBERED = "spoco_zoo_packages"  # a property of the program, so it ends with it
_INVITATION = "Drop a package here"
_HINT = (
    "A package is a folder or a zip, by spoco-zoo or from bioimage.io. Drop one anywhere on this "
    "widget, or choose one."
)


class PackageChooser(QWidget):
    """The packages of this session, one of which is chosen, and what it is."""

    chosen = Signal(object)  # Offer, or None while it is read or where it is refused
    refused = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.offer: Offer | None = None
        self._wanted: Path | None = None
        self._list = QComboBox()
        self._list.setPlaceholderText(_INVITATION)
        self._list.setToolTip(_HINT)
        self._list.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._list.activated.connect(lambda n: self.choose(Path(self._list.itemData(n))))
        self._choose = choose = QPushButton("Choose")
        choose.setStyleSheet("QPushButton { padding-right: 16px }")  # room for the arrow
        choose.setToolTip("Choose a package from disk")
        menu = QMenu(choose)
        menu.addAction("Folder...", self._ask_folder)
        menu.addAction("Zip file...", self._ask_zip)
        choose.setMenu(menu)
        row = QHBoxLayout()
        row.addWidget(caption("Package"))
        row.addWidget(self._list, stretch=1)
        row.addWidget(choose)
        self._name = _line()
        self._name.setStyleSheet("font-weight: bold")
        self._images, self._summary, self._licence = _line(), _line(), _line()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row)
        for label in self._lines:
            layout.addWidget(label)
        self._fill()
        self._show(None)

    @property
    def _lines(self) -> tuple[QLabel, ...]:
        return self._name, self._images, self._summary, self._licence

    def choose(self, path: Path) -> None:
        """Read a package in the background, then offer it."""
        self._wanted = path
        self._show(None)
        self._name.setText(f"Reading {path.name} ...")
        self._name.setVisible(True)
        self.chosen.emit(None)
        create_worker(_read, path, _connect={"returned": self._take})

    def lock(self, *, busy: bool) -> None:
        """Let nothing be chosen while a run is under way."""
        self._list.setEnabled(not busy and self._list.count() > 0)
        self._choose.setEnabled(not busy)

    def _take(self, read: tuple[Path, Offer | str]) -> None:
        path, result = read
        if path != self._wanted:  # another one was chosen meanwhile
            return
        if isinstance(result, str):
            self._show(None)
            self._fill()
            self.refused.emit(result)
            return
        self._remember(result)
        self._fill()
        self._list.setCurrentIndex(0)
        self._show(result)
        self.chosen.emit(result)

    def _show(self, offer: Offer | None) -> None:
        self.offer = offer
        words = ("", "", _HINT, "")
        if offer is not None:
            licence = f"Licence: {offer.licence or 'not stated'}"
            words = (offer.name, offer.images, offer.summary, licence)
            self._name.setToolTip(str(offer.location))
        for label, text in zip(self._lines, words, strict=True):
            label.setText(text)
            label.setVisible(bool(text))

    def _remember(self, offer: Offer) -> None:
        kept = [entry for entry in _remembered() if entry[1] != str(offer.location)]
        entries = [(offer.name, str(offer.location)), *kept]
        QApplication.instance().setProperty(_REMEMBERED, entries)

    def _fill(self) -> None:
        self._list.clear()
        for name, location in _remembered():
            self._list.addItem(name, location)
            self._list.setItemData(self._list.count() - 1, location, Qt.ItemDataRole.ToolTipRole)
        self._list.setCurrentIndex(-1)
        self._list.setEnabled(self._list.count() > 0)

    def _ask_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Choose the folder of a package")
        if name:
            self.choose(Path(name))

    def _ask_zip(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Choose a package", "", "Packages (*.zip)")
        if name:
            self.choose(Path(name))


def caption(text: str) -> QLabel:
    """Make the words before a field, all of one width."""
    label = QLabel(text)
    label.setFixedWidth(label.fontMetrics().horizontalAdvance("Bandwidth") + 12)
    return label


def _read(path: Path) -> tuple[Path, Offer | str]:
    try:
        return path, describe(path)
    except SpocoZooError as error:
        return path, str(error)


def _remembered() -> list[tuple[str, str]]:
    """Names and places of the packages of this session, the last one first."""
    return [(str(n), str(p)) for n, p in QApplication.instance().property(_REMEMBERED) or []]


def _line() -> QLabel:
    label = QLabel()
    label.setTextFormat(Qt.TextFormat.PlainText)  # a package may call itself anything
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
