"""Small image and label files to arrays and back; the axes are fixed at this door.

Inside the house an image is `(c, *space)` and a label image is `*space`, both in index order
(z, y, x). TIFF (with OME or ImageJ metadata), PNG and NPY are read; labels are written as TIFF,
whole or not at all. Volumes larger than memory are not here.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Integer, UInt32

from spoco_zoo.axes import kept_axes, order_axes
from spoco_zoo.errors import ImageError
from spoco_zoo.files import write_whole
from spoco_zoo.labels import check_label_states, check_labels

SUFFIXES = (".tif", ".tiff", ".png", ".npy")
SOFTWARE = "spoco-zoo"  # the mark of our label images among all TIFFs
OUTLINE_SUFFIXES = (".roi", ".zip", ".geojson", ".json")  # which `annotations` reads


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels `(c, *space)` in their own dtype, and the pixel size in µm where the file says it."""

    pixels: np.ndarray
    scale_um: tuple[float, ...] | None = None

    @property
    def space(self) -> tuple[int, ...]:
        """Size in pixels, without the channels."""
        return tuple(self.pixels.shape[1:])


def read_image(path: Path, n_axes: int | None = None) -> Image:
    """Read an image as `(c, *space)`.

    Args:
        path: A TIFF, PNG or NPY file.
        n_axes: Number of space axes that are expected, which decides what a plain 3-axis array
            without axis names is: 2 takes its short first or last axis as channels, 3 takes it
            as a grey volume. None guesses: a last or first axis of at most 4 is channels.

    Raises:
        ImageError: The file is missing, unreadable, of another format, or not finite numbers.
    """
    pixels, axes, scale_um = _read_array(Path(path), as_labels=False)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif":
        raise ImageError(f"{path}: pixels are {pixels.dtype}: expected integers or floats")
    pixels = _channels_first(path, pixels, axes, n_axes)
    if pixels.size == 0:
        raise ImageError(f"{path}: shape is {pixels.shape}: expected at least one pixel per axis")
    check_finite(pixels, str(path))
    return Image(pixels, known_scale(scale_um, pixels.ndim - 1))


def known_scale(scale_um: Sequence[float] | None, n_axes: int) -> tuple[float, ...] | None:
    """Return a pixel size that is one; some programs write 0 or nonsense where they know none."""
    if scale_um is None or len(scale_um) != n_axes:
        return None
    return tuple(scale_um) if all(1e-6 < size < 1e9 for size in scale_um) else None


def check_finite(pixels: np.ndarray, name: str) -> None:
    """Refuse NaN and infinity, with their number.

    Raises:
        ImageError: Some pixel is not a finite number.
    """
    if pixels.dtype.kind == "f":
        bad = pixels.size - int(np.isfinite(pixels).sum())
        if bad:
            raise ImageError(
                f"{name}: {bad} of {pixels.size} pixels are NaN or infinite: "
                "replace them by finite values"
            )


def read_labels(path: Path) -> UInt32[np.ndarray, "*space"]:
    """Read a label image.

    Raises:
        ImageError: As `read_image`; also for labels that are fractional, negative or in colour.
    """
    return check_labels(_read_numbers(Path(path)), str(path))


def read_label_states(path: Path) -> Integer[np.ndarray, "*space"]:
    """Read a label image in which -1 may stand for pixels that nobody looked at.

    Raises:
        ImageError: As `read_labels`, but for -1.
    """
    return check_label_states(_read_numbers(Path(path)), str(path))


def _read_numbers(path: Path) -> np.ndarray:
    """Read what a label file holds, which may not be labels."""
    values, axes, _ = _read_array(path, as_labels=True)
    keep, names = kept_axes(values.shape, axes)
    values = values.reshape([values.shape[n] for n in keep])
    if names is None:
        is_colour = values.ndim == 3 and values.shape[-1] in (3, 4)
    else:
        is_colour = "S" in names
    if values.ndim not in (2, 3) or is_colour:
        raise ImageError(
            f"{path}: label shape is {values.shape}: expected (y, x) or (z, y, x) with one "
            "integer a pixel; a colour picture holds no labels"
        )
    return values


def write_labels(
    path: Path,
    labels: Integer[np.ndarray, "*space"],
    scale_um: Sequence[float] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a label image as compressed TIFF that ImageJ and Fiji open with its pixel size.

    16 bit when every id fits, else 32 bit. The file appears whole or not at all.

    Raises:
        ImageError: The labels are not integers, negative, or above the range of uint32.
        OutputError: The file exists and may not be overwritten, or the disk refuses it.
    """
    import tifffile

    labels = check_labels(labels, str(path))
    kind = np.uint16 if labels.size == 0 or labels.max() < 2**16 else np.uint32
    axes = "ZYX"[-labels.ndim :]
    metadata: dict[str, Any] = {"axes": axes}
    resolution = None
    if scale_um is not None:
        resolution = (1 / scale_um[-1], 1 / scale_um[-2])
        metadata["unit"] = "um"
        if labels.ndim == 3:
            metadata["spacing"] = scale_um[0]
    # ImageJ's own format has no 32 bit integers; OME-TIFF has
    is_imagej = kind == np.uint16
    if not is_imagej and scale_um is not None:
        metadata = {"axes": axes} | {
            key: value
            for axis, size in zip(axes, scale_um, strict=True)
            for key, value in (
                (f"PhysicalSize{axis}", size),
                (f"PhysicalSize{axis}Unit", "µm"),
            )
        }

    def write(file: BinaryIO) -> None:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(labels, dtype=kind),
            imagej=is_imagej,
            ome=not is_imagej,
            photometric="minisblack",  # else 3 or 4 pixels along x are taken for colours
            compression="zlib",
            resolution=resolution,
            metadata=metadata,
            software=SOFTWARE,
        )

    write_whole(path, write, overwrite=overwrite)


def find_images(inputs: Iterable[Path | str]) -> list[Path]:
    """Expand files, folders and glob patterns to image files, sorted within each.

    Raises:
        ImageError: An input matches nothing that can be read.
    """
    import glob

    found: list[Path] = []
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if is_image(p))
        elif path.exists() or not re.search(r"[*?\[]", str(entry)):
            matches = [path]
        else:
            everything = map(Path, glob.glob(str(entry), recursive=True))
            matches = sorted(p for p in everything if is_image(p))
        if not matches:
            raise ImageError(
                f"{entry}: no image found: expected files ending in {', '.join(SUFFIXES)}"
            )
        found.extend(matches)
    return list(dict.fromkeys(found))


def pair_files(left: Path, right: Path) -> list[tuple[Path, Path]]:
    """Pair two files, or the files of two folders that have the same name before the suffix.

    Args:
        left: An image, or a folder of images.
        right: The same, or what holds outlines of Fiji or QuPath.

    Raises:
        ImageError: A file of either folder has no partner, or a rival of the same name.
    """
    left, right = Path(left), Path(right)
    for path in (left, right):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder: check the path")
    if not left.is_dir() and not right.is_dir():
        return [(left, right)]
    if not (left.is_dir() and right.is_dir()):
        raise ImageError(
            f"{left} and {right}: one is a folder and one is a file: give two of a kind"
        )
    return pair_by_stem(left, right, find_images([left]), find_labels(right))


def pair_by_stem(
    left: Path, right: Path, first: Iterable[Path], second: Iterable[Path]
) -> list[tuple[Path, Path]]:
    """Pair the files of two folders that have the same name before the suffix.

    Raises:
        ImageError: A file has no partner, or a rival of the same name in its folder.
    """
    mine, theirs = _by_stem(left, first), _by_stem(right, second)
    for some, others, folder in ((mine, theirs, right), (theirs, mine, left)):
        lonely = sorted(set(some) - set(others))
        if lonely:
            more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
            raise ImageError(
                f"{some[lonely[0]]}: no partner in {folder}{more}: "
                "expected a file of the same name in both folders"
            )
    return [(mine[stem], theirs[stem]) for stem in sorted(mine)]


def stem_of(path: Path) -> str:
    """Name of a file without its suffix, `.ome.tif` counting as one.

    Outlines may be called after the image file (`a.tif.geojson`), as QuPath does.
    """
    name = path.name
    if name.lower().endswith(OUTLINE_SUFFIXES):
        name = path.stem
        if not name.lower().endswith(SUFFIXES):
            return name
    return re.sub(r"(\.ome)?\.[^.]+$", "", name, flags=re.IGNORECASE)


def is_image(path: Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether a path is a file that can be read, by its name."""
    is_visible = not path.name.startswith(".")
    return is_visible and path.suffix.lower() in suffixes and path.is_file()


def find_labels(folder: Path) -> list[Path]:
    """List label images and outlines of a folder, sorted.

    Raises:
        ImageError: It holds neither.
    """
    known = (*SUFFIXES, *OUTLINE_SUFFIXES)
    return sorted(p for p in folder.iterdir() if is_image(p, known)) or find_images([folder])


def _by_stem(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        rival = found.setdefault(stem_of(path), path)
        if rival != path:
            raise ImageError(
                f"{folder}: holds both {rival.name} and {path.name}: keep one file per name"
            )
    return found


def _read_array(
    path: Path, *, as_labels: bool
) -> tuple[np.ndarray, str | None, tuple[float, ...] | None]:
    """Read pixels, axis names where the format has them, and pixel size in µm."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file: check the path")
    suffix = path.suffix.lower()
    try:
        match suffix:
            case ".tif" | ".tiff":
                return _read_tiff(path, as_labels=as_labels)
            case ".png":
                return _read_png(path, as_labels=as_labels)
            case ".npy":
                with path.open("rb") as file:
                    return np.lib.format.read_array(file, allow_pickle=False), None, None
    except ImageError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise anything
        told = next(iter(str(error).splitlines()), "")
        reason = told if any(map(str.isalpha, told)) else type(error).__name__
        raise ImageError(
            f"{path}: cannot be read as {suffix[1:].upper()} ({reason}): "
            "open it in Fiji and save it again"
        ) from error
    raise ImageError(
        f"{path}: {suffix or 'a file without suffix'} is not read: "
        f"expected {', '.join(SUFFIXES)}; convert it first"
    )


def _read_png(
    path: Path, *, as_labels: bool
) -> tuple[np.ndarray, str | None, tuple[float, ...] | None]:
    from PIL import Image as PillowImage

    with path.open("rb") as file:
        header = file.read(26)  # signature, then IHDR: depth at 24, kind of colour at 25
    if len(header) == 26 and header[24] == 16 and header[25] in (2, 4, 6):
        raise ImageError(
            f"{path}: is a PNG of 16 bits in colour, which would be cut to 8: save it as TIFF"
        )
    with PillowImage.open(path) as picture:
        _expect_one(path, getattr(picture, "n_frames", 1))
        # a palette is not looked up for labels, whose numbers its entries are
        if picture.mode in ("P", "PA") and not as_labels:
            raise ImageError(f"{path}: is a picture with a palette: save it as grey or RGB")
        pixels = np.asarray(picture.convert("L") if picture.mode in ("1", "LA") else picture)
    return pixels, "YXS"[: pixels.ndim], None


def _read_tiff(
    path: Path, *, as_labels: bool
) -> tuple[np.ndarray, str | None, tuple[float, ...] | None]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        check_tiff(path, file, as_labels=as_labels)
        series = file.series[0]
        pixels = series.asarray()
        axes = series.axes
        scale_um = tiff_scale(file)
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("=")), axes, scale_um


def check_tiff(path: Path, file: Any, *, as_labels: bool) -> None:  # noqa: ANN401 - untyped
    """Refuse an open TIFF of several images, or whose pixels are no intensities.

    Raises:
        ImageError: It is such a file; labels may have a palette.
    """
    import tifffile

    _expect_one(path, len(file.series))
    meaning = tifffile.PHOTOMETRIC(file.pages.first.photometric).name
    is_mask = file.series[0].dtype == bool  # often written as MINISWHITE and not meant so
    if meaning in ("PALETTE", "MINISWHITE") and not as_labels and not is_mask:
        raise ImageError(
            f"{path}: its pixels are {meaning}, not intensities: save it as grey or RGB"
        )


def _expect_one(path: Path, count: int) -> None:
    if count > 1:
        raise ImageError(f"{path}: holds {count} images: save them as separate files")


IN_UM = {"um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0}
IN_UM |= {"micrometer": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6}


def tiff_scale(file: Any) -> tuple[float, ...] | None:  # noqa: ANN401 - tifffile is untyped
    """Pixel size (z, y, x) or (y, x) in µm from OME or ImageJ metadata, if it is there."""
    if file.is_ome:
        sizes = {}
        for axis in "ZYX":
            size = re.search(rf'PhysicalSize{axis}="([^"]+)"', file.ome_metadata)
            unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', file.ome_metadata)
            factor = IN_UM.get(unit.group(1) if unit else "µm")
            if size and factor:
                sizes[axis] = float(size.group(1)) * factor
        if not {"Y", "X"} <= set(sizes):
            return None
        deep = re.search(r'SizeZ="(\d+)"', file.ome_metadata)
        if deep and int(deep.group(1)) > 1:
            return tuple(sizes[a] for a in "ZYX") if "Z" in sizes else None
        return sizes["Y"], sizes["X"]
    if file.is_imagej:
        info = file.imagej_metadata or {}
        factor = IN_UM.get(str(info.get("unit", "")).lower())  # Fiji writes µm as \u00B5m
        tags = file.pages[0].tags
        names = [f"{axis}Resolution" for axis in "YX"]
        if factor and all(name in tags and tags[name].value[0] for name in names):
            y, x = (tags[name].value[1] / tags[name].value[0] * factor for name in names)
            if int(info.get("slices", 1)) > 1:
                return float(info.get("spacing", 1.0)) * factor, y, x
            return y, x
    return None


def _channels_first(
    path: Path, pixels: np.ndarray, axes: str | None, n_axes: int | None
) -> np.ndarray:
    """Bring the axes to `(c, *space)`, or say why that cannot be done."""
    order = order_axes(path, pixels.shape, axes, n_axes)
    stored = [n for n in order if n is not None]
    alone = tuple(n for n in range(pixels.ndim) if n not in stored)
    moved = np.squeeze(pixels.transpose([*alone, *stored]), axis=tuple(range(len(alone))))
    if axes is None and stored != sorted(stored):
        moved = np.ascontiguousarray(moved)
    return moved[None] if order[0] is None else moved
