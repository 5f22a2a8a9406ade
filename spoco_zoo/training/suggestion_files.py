"""Suggestions as files that people can work from.

    OUT/
    ├── regions.csv        every region, the best first: image, place, size, scores
    ├── images.csv         every image, by the mean score of its regions
    ├── regions.png        the first regions as pictures, with their scores
    ├── rois/NAME.zip      the same as rectangles for the ROI manager of Fiji, one zip an image
    └── geojson/NAME.geojson   and for QuPath

Rectangles are named by their rank.
"""

import csv
import json
import zipfile
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from spoco_zoo.errors import ImageError, MissingExtraError, SettingError
from spoco_zoo.figures import overlay, write_png
from spoco_zoo.files import refuse_existing, write_bytes
from spoco_zoo.images import read_image, stem_of
from spoco_zoo.training.suggest import Region, rank_images, rank_regions

_SIDE = 192  # pixels of a picture on the sheet
_GAP = 10
_CAPTION = 36  # pixels below a picture: two lines
_ACROSS = 5  # pictures in a row
_SCORES = ("disagreement", "uncertainty", "coverage", "score")
_FURTHEST = 2**15 - 1  # ImageJ keeps the corners of a rectangle in 16 bits

# an asterisk ends the name of what is no instance: the places are saved beside labels that are
_PASSED_OVER = "region*"


def check_target(images: Sequence[Path], out: Path, count: int, *, overwrite: bool) -> None:
    """Refuse what could not be written at the end, before anything is computed.

    Raises:
        SettingError: `count` is below 1, or `out` is a file.
        ImageError: Two images have the same name.
        OutputError: There are suggestions already and they may not be replaced.
        MissingExtraError: roifile is not installed.
    """
    if count < 1:
        raise SettingError(f"--count is {count}: expected at least 1 region")
    if out.is_file():
        raise SettingError(f"--out is {out}, which is a file: expected a folder")
    names: dict[str, Path] = {}
    for path in images:
        rival = names.setdefault(stem_of(path), path)
        if rival != path:
            raise ImageError(
                f"{rival} and {path}: have the same name, and files are named after them: "
                "rename one of them"
            )
    refuse_existing(out / "regions.csv", overwrite=overwrite)
    try:
        import roifile  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "suggestions for Fiji need roifile: pip install 'spoco-zoo[train]'"
        ) from error


def write_suggestions(regions: Sequence[Region], out: Path, count: int, n_axes: int) -> None:
    """Write all files; older ones of the same names are replaced.

    Fiji has no rectangle for regions further than 32767 pixels from the corner of an image: they
    are in the tables and the GeoJSON.

    Args:
        regions: At least one, in any order.
        out: The folder.
        count: How many of the first regions are shown and marked.
        n_axes: Space axes of the images.

    Raises:
        ImageError: An image cannot be read any more.
        OutputError: The disk refuses it.
    """
    ranked = rank_regions(regions)
    _write_table(out / "regions.csv", *_region_rows(ranked, n_axes))
    images = [
        [rank, image, f"{mean:.4f}", f"{best:.4f}"]
        for rank, (image, mean, best) in enumerate(rank_images(regions), start=1)
    ]
    _write_table(out / "images.csv", ["rank", "image", "mean_score", "highest_score"], images)
    shown = list(enumerate(ranked[:count], start=1))
    write_png(out / "regions.png", contact_sheet(shown), overwrite=True)
    by_image: dict[Path, list[tuple[int, Region]]] = {}
    for rank, region in shown:
        by_image.setdefault(region.image, []).append((rank, region))
    for image, marked in by_image.items():
        name = stem_of(image)
        near = [(rank, r) for rank, r in marked if max(_stops(r)[-2:]) <= _FURTHEST]
        if near:
            write_bytes(out / "rois" / f"{name}.zip", _rectangles(near), overwrite=True)
        features = [_feature(rank, region) for rank, region in marked]
        text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1)
        write_bytes(out / "geojson" / f"{name}.geojson", text.encode(), overwrite=True)


def contact_sheet(shown: Sequence[tuple[int, Region]]) -> UInt8[np.ndarray, "y x 3"]:
    """Draw regions in rows, each with rank, score and the name of its image.

    A volume shows the middle slice of the region. The contrast is that of the whole image, so
    that regions without anything stay dark.

    Args:
        shown: Ranks and regions, at least one.

    Raises:
        ImageError: An image cannot be read any more.
    """
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    step = (_SIDE + _GAP, _SIDE + _CAPTION + _GAP)
    sheet = Image.new("RGB", (across * step[0] + _GAP, down * step[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (rank, region) in enumerate(shown):
        left, top = (_GAP + (number % across) * step[0], _GAP + (number // across) * step[1])
        picture = Image.fromarray(_picture(region))
        scale = _SIDE / max(picture.size)
        width, height = (max(round(n * scale), 1) for n in picture.size)
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        place = ", ".join(map(str, region.start))
        lines = (f"{rank}.  score {region.score:.3f}  at {place}", region.image.name)
        for line, text in enumerate(lines):
            while draw.textlength(text, font) > _SIDE:
                text = f"{text.rstrip('…')[:-1]}…"
            draw.text((left, top + height + 2 + 16 * line), text, "black", font)
    return np.asarray(sheet)


def _picture(region: Region) -> UInt8[np.ndarray, "y x 3"]:
    pixels = read_image(region.image, len(region.start)).pixels
    plane = _middle_plane(region)
    if plane is not None:
        pixels = pixels[:, plane]
    grey = overlay(pixels, np.zeros(pixels.shape[1:], np.uint8))
    y, x = (slice(a, b) for a, b in zip(region.start[-2:], _stops(region)[-2:], strict=True))
    return grey[y, x]


def _region_rows(ranked: Sequence[Region], n_axes: int) -> tuple[list[str], list[list[Any]]]:
    axes = "zyx"[-n_axes:]
    sizes = [f"size_{axis}" for axis in axes]
    header = ["rank", "image", *axes, *sizes, *_SCORES]
    rows = []
    for rank, region in enumerate(ranked, start=1):
        unsure = "" if region.uncertainty is None else f"{region.uncertainty:.4f}"
        covered = f"{region.coverage:.4f}"
        scores = [f"{region.disagreement:.4f}", unsure, covered, f"{region.score:.4f}"]
        rows.append([rank, region.image, *region.start, *region.size, *scores])
    return header, rows


def _write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_bytes(path, text.getvalue().encode(), overwrite=True)


def _stops(region: Region) -> tuple[int, ...]:
    return tuple(a + n for a, n in zip(region.start, region.size, strict=True))


def _middle_plane(region: Region) -> int | None:
    """The slice of a volume on which a rectangle is drawn, from 0."""
    return region.start[0] + region.size[0] // 2 if len(region.start) == 3 else None


def _name(rank: int, region: Region) -> str:
    return f"{rank:02d} score {region.score:.3f}"


def _rectangles(marked: Sequence[tuple[int, Region]]) -> bytes:
    from roifile import ROI_TYPE, ImagejRoi

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for rank, region in marked:
            (top, left), (bottom, right) = region.start[-2:], _stops(region)[-2:]
            plane, name = _middle_plane(region), _name(rank, region)
            roi = ImagejRoi(
                roitype=ROI_TYPE.RECT,
                name=f"{name} {_PASSED_OVER}",
                top=top,
                left=left,
                bottom=bottom,
                right=right,
                position=0 if plane is None else plane + 1,  # ImageJ counts slices from 1
            )
            # without a date of today, equal suggestions are equal files
            archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes())
    return buffer.getvalue()


def _feature(rank: int, region: Region) -> dict[str, Any]:
    """A rectangle as QuPath reads annotations, in pixels (x, y)."""
    (top, left), (bottom, right) = region.start[-2:], _stops(region)[-2:]
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [corners]}
    plane = _middle_plane(region)
    if plane is not None:
        geometry["plane"] = {"c": -1, "z": plane, "t": 0}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {
            "objectType": "annotation",
            "name": _name(rank, region),
            "classification": {"name": _PASSED_OVER},
            "rank": rank,
            "score": round(region.score, 4),
        },
    }
