"""Label images that spoco-zoo has written, as layers of napari.

They are told by a mark that other programs do not write: a TIFF by its software, an OME-Zarr by
being labels. Zarr arrays are read where they are looked at.
"""

from pathlib import Path
from typing import Any

from spoco_zoo.errors import ImageError
from spoco_zoo.images import SOFTWARE, check_labels, read_image, stem_of

LayerData = tuple[Any, dict[str, Any], str]


def is_result(path: Path) -> bool:
    """Tell whether a file or folder is a label image of ours; cheap, and never an error."""
    if path.is_dir():
        return is_store(path)
    return path.suffix.lower() in (".tif", ".tiff") and _software(path) == SOFTWARE


def is_store(path: Path) -> bool:
    """Tell whether a folder is a Zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def read_result(path: Path) -> list[LayerData]:
    """Read a label image of ours as layers, with the size of its pixels.

    Raises:
        ImageError: It cannot be read, or holds no labels.
        MissingExtraError: It is an OME-Zarr, and zarr is not installed.
    """
    if path.is_dir():
        return _read_store(path)
    image = read_image(path)
    labels = check_labels(image.pixels[0], str(path))
    return [(labels, _words(stem_of(path), labels.ndim, image.scale_um), "labels")]


def _read_store(path: Path) -> list[LayerData]:
    from dask import array

    from spoco_zoo.datasets.ome_zarr import find_labels, label_part

    if (path / "labels").is_dir():
        path = find_labels(path)
    part, scale_um = label_part(path)
    if part.open is None or part.dtype.kind not in "ui":
        raise ImageError(
            f"{path}: labels are {part.dtype}: expected integers, 0 for no instance; "
            "open it as an image"
        )
    stored = part.open()
    index = tuple(slice(None) if n in part.order else 0 for n in range(stored.ndim))
    labels = array.from_array(stored)[index]
    return [(labels, _words(path.name, labels.ndim, scale_um), "labels")]


def _words(name: str, n_axes: int, scale_um: tuple[float, ...] | None) -> dict[str, Any]:
    words: dict[str, Any] = {"name": name, "axis_labels": tuple("zyx"[-n_axes:])}
    if scale_um is not None:
        words |= {"scale": scale_um, "units": ("um",) * n_axes}
    return words


def _software(path: Path) -> str | None:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return str(file.pages.first.software)
    except Exception:  # noqa: BLE001 - a damaged file can make a decoder raise anything
        return None
