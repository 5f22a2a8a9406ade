"""Label images that spoco-zoo has written, as layers of napari.

They are told by a mark that other programs do not write: a TIFF by its software, an OME-Zarr by
being labels. Of an OME-Zarr only what is looked at is read, at the level that is shown.
"""

from pathlib import Path
from typing import Any

from spoco_zoo.errors import ImageError
from spoco_zoo.images import SOFTWARE, read_image, stem_of
from spoco_zoo.labels import check_labels
from spoco_zoo.ngff import open_array, read_attributes, read_multiscales
from spoco_zoo.stores import clean_address, join

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
    """Read a store of labels, or all labels of the image that a store holds."""
    url = clean_address(path)
    attributes, _ = read_attributes(url)
    if "image-label" in attributes:
        return [_read_labels(url, path.name.split(".")[0])]
    inside = (path / "labels").is_dir()
    listed = read_attributes(join(url, "labels"))[0].get("labels") if inside else None
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    found = [name for name in names if not {"/", "\\"} & set(name) and name not in ("", ".", "..")]
    if not found:
        raise ImageError(f"{path}: holds no labels: drop images on the canvas")
    return [_read_labels(join(url, "labels", name), name) for name in found]


def _read_labels(url: str, name: str) -> LayerData:
    """Open all levels of a label image; nothing is read yet."""
    from dask import array

    image = read_multiscales(url)
    levels = [open_array(url, level.path) for level in image.levels]
    finest = levels[0]
    if finest.dtype.kind not in "ui":
        raise ImageError(
            f"{url}: labels are {finest.dtype}: expected integers, 0 for no instance; "
            "open it as an image"
        )
    kept = [n for n, axis in enumerate(image.axes) if axis != "C" or finest.shape[n] > 1]
    index = tuple(slice(None) if n in kept else 0 for n in range(finest.ndim))
    lazy = [array.from_array(level)[index] for level in levels]
    sizes, level = image.sizes_um(0), image.levels[0]
    in_um = [sizes[n] / level.scale[n] if n in sizes else 1.0 for n in kept]
    words = {
        "name": name,
        "multiscale": len(lazy) > 1,
        "axis_labels": [image.names[n] for n in kept],
        "scale": [level.scale[n] * um for n, um in zip(kept, in_um, strict=True)],
        "translate": [level.translation[n] * um for n, um in zip(kept, in_um, strict=True)],
        "units": ["um" if n in sizes else "pixel" for n in kept],
    }
    return lazy if len(lazy) > 1 else lazy[0], words, "labels"


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
