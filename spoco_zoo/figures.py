"""Pictures for people: labels and mistakes on an image, embeddings as colours, sheets, courses.

Pictures are arrays `(y, x, 3)` of uint8 until `write_png` makes a file of one. A volume is shown
by its middle slice, and in a montage by several. Colours depend on the id alone, so an instance
has the same colour in every picture of the same labels. Only `training_curves` needs matplotlib.

Not here: label images for other programs (`images`).
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.files import refuse_existing, write_bytes
from spoco_zoo.labels import UNLABELED
from spoco_zoo.mistakes import Kind, Verdicts

if TYPE_CHECKING:
    pass

KIND_COLORS: dict[Kind, tuple[int, int, int]] = {  # told apart without red and green
    "right": (70, 200, 130),
    "inexact": (190, 200, 215),
    "split": (245, 212, 0),
    "merged": (224, 90, 214),
    "missed": (58, 160, 255),
    "false": (255, 96, 44),
}
_LEVELS = ((0.8, 1.0), (1.0, 0.75), (0.45, 1.0), (0.65, 0.85))  # saturation and value, in turn
_UNLABELED_GREY = 96
_SLICES = 12  # of a volume that a montage shows
_PANEL = 512  # pixels of the longer side of each
_LINE = 20  # pixels of a line of text
_FLAT = 1e-6  # variance, as a part of the largest, from which on a component is rounding error


def label_colors(n: int) -> UInt8[np.ndarray, "n 3"]:
    """Give the colours of the ids 0 to n: black for 0, neighbours in id far apart in hue."""
    return colors_of(np.arange(n + 1))


def overlay(
    image: Shaped[np.ndarray, "c *space"], labels: Integer[np.ndarray, "..."], alpha: float = 0.35
) -> UInt8[np.ndarray, "y x 3"]:
    """Paint instances over an image: each filled lightly and outlined in its own colour.

    Args:
        image: three channels are red, green and blue; of any other number the first is shown.
        labels: the ids of the instances; 0 is left as it is.
        alpha: strength of the filling, from 0 to 1.

    Raises:
        ImageError: image and labels differ in shape, or are neither 2D nor 3D.
        SettingError: `alpha` is out of range.
    """
    if image.shape[1:] != labels.shape:
        raise ImageError(
            f"the image is {image.shape[1:]} and the labels are {labels.shape}: "
            "they must have the same shape"
        )
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha is {alpha}, but must be from 0 to 1")
    pixels = _grey_or_rgb(image)
    shown = middle_slice(labels, labels.ndim)
    ids, index = np.unique(shown, return_inverse=True)
    colors = colors_of(ids)[index.reshape(shown.shape)] / 255
    strength = np.where(_is_outline(shown), 1.0, alpha) * (shown != 0)
    return _as_bytes(pixels + strength[..., None] * (colors - pixels))


def montage(
    image: Shaped[np.ndarray, "c *space"], labels: Integer[np.ndarray, "..."]
) -> UInt8[np.ndarray, "y x 3"]:
    """Paint instances over an image, or over slices of a volume in rows, each with its number.

    Slices are as far apart as each other, twelve at most, counted from 1, and of one contrast. A
    large one is made smaller.

    Raises:
        ImageError: image and labels differ in shape, or are neither 2D nor 3D.
    """
    if labels.ndim != 3 or image.shape[1:] != labels.shape:
        return overlay(image, labels)
    planes = choose_slices(len(labels))
    return paint_slices(image[:, planes], labels[planes], planes)


def choose_slices(depth: int) -> list[int]:
    """Choose the slices that stand for a volume, twelve at most and evenly apart."""
    count = min(_SLICES, depth)
    places = np.linspace(0, depth - 1, 2 * count + 1)[1::2]
    return [int(z) for z in np.unique(places.round())]


def paint_slices(
    image: Shaped[np.ndarray, "c n y x"],
    labels: Integer[np.ndarray, "n y x"],
    planes: Sequence[int],
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Paint instances over slices in rows, each with its number, which is counted from 1."""
    if max(labels.shape[1:]) > _PANEL:
        image, labels = resize(image, _PANEL, smooth=True), resize(labels, _PANEL)
    # beside each other they are one image, with one contrast
    width = labels.shape[2]
    row = overlay(
        np.moveaxis(image, 1, 2).reshape(len(image), labels.shape[1], -1),
        np.moveaxis(labels, 0, 1).reshape(labels.shape[1], -1),
    )
    pictures = [(f"z {z + 1}", row[:, n * width : (n + 1) * width]) for n, z in enumerate(planes)]
    return contact_sheet(pictures)


def mistakes_overlay(
    image: Shaped[np.ndarray, "c *space"],
    found: Integer[np.ndarray, "..."],
    truth: Integer[np.ndarray, "..."],
    verdicts: Verdicts,
) -> UInt8[np.ndarray, "y x 3"]:
    """Paint over an image what was found, each instance in the colour of its kind.

    What is right is outlined only, so that the eye is led to the mistakes; a true instance that
    was missed, merged or split is drawn by its true outline.

    Args:
        image: as for `overlay`.
        found: the instances found.
        truth: the true ones.
        verdicts: what became of each, by `mistakes.judge`.

    Raises:
        ImageError: image and labels differ in shape, or are neither 2D nor 3D.
    """
    for name, labels in (("instances found", found), ("true labels", truth)):
        if image.shape[1:] != labels.shape:
            raise ImageError(
                f"the image is {image.shape[1:]} and the {name} are {labels.shape}: "
                "they must have the same shape"
            )
    pixels = 0.7 * _grey_or_rgb(image)  # darker, or bright objects outshine the colours
    found, truth = (middle_slice(labels, labels.ndim) for labels in (found, truth))
    order: tuple[Kind, ...] = tuple(KIND_COLORS)
    found_kinds = _kinds_of(found, verdicts.found, order)
    true_kinds = _kinds_of(truth, verdicts.truth, order)
    merged, missed = order.index("merged"), order.index("missed")
    # a neighbour that spreads into a missed instance is not drawn over
    shown = np.where((true_kinds == missed) & (found > 0), found_kinds, true_kinds)
    filled = np.where((found_kinds < 0) | (true_kinds == merged), shown, found_kinds)
    outlined = np.where(_is_outline(found), found_kinds, -1)
    outlined = np.where(_is_outline(truth) & (true_kinds > 1), true_kinds, outlined)
    colors = np.array([KIND_COLORS[kind] for kind in order]) / 255
    pixels = pixels + 0.4 * (filled > 0)[..., None] * (colors[filled] - pixels)
    return _as_bytes(np.where(outlined[..., None] >= 0, colors[outlined], pixels))


def resize(
    channels: Shaped[np.ndarray, "*more y x"], side: int, *, smooth: bool = False
) -> Shaped[np.ndarray, "*more v w"]:
    """Bring the longer side to `side` pixels at most, and enlarge small pictures by whole factors.

    Args:
        channels: images or labels.
        side: of the picture, in pixels.
        smooth: take means of pixels where they become fewer, which labels do not bear.
    """
    height, width = channels.shape[-2:]
    longest = max(height, width)
    factor = side // longest if longest <= side else side / longest
    shape = (max(round(height * factor), 1), max(round(width * factor), 1))
    if smooth and factor < 1:
        flat = channels.reshape(-1, height, width).astype(np.float32)
        small = [Image.fromarray(plane).resize(shape[::-1], Image.Resampling.BOX) for plane in flat]
        return np.stack([np.asarray(plane) for plane in small]).reshape(
            *channels.shape[:-2], *shape
        )
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, (height, width), strict=True)
    )
    return channels[..., rows[:, None], columns]


def embedding_colors(
    embedding: Float[np.ndarray, "e *space"], foreground: Bool[np.ndarray, "..."] | None = None
) -> UInt8[np.ndarray, "y x 3"]:
    """Show an embedding by its first three principal components as red, green and blue.

    One component is shown as grey, two as red and green. Equal colours mean near embeddings;
    the colours of two embeddings cannot be compared with each other.

    Args:
        embedding: of an image or a volume.
        foreground: where the components are fitted and shown; elsewhere is black.

    Raises:
        ImageError: embedding and foreground differ in shape, or are neither 2D nor 3D.
    """
    axes = embedding.ndim - 1
    vectors = middle_slice(embedding, axes)
    is_shown = np.ones(vectors.shape[1:], bool)
    if foreground is not None:
        if foreground.shape != embedding.shape[1:]:
            raise ImageError(
                f"the embedding is {embedding.shape[1:]} and the foreground is "
                f"{foreground.shape}: they must have the same shape"
            )
        is_shown = middle_slice(foreground, axes)
    pixels = np.zeros((*is_shown.shape, 3))
    if is_shown.any():
        components = _principal_components(np.nan_to_num(vectors[:, is_shown].astype(np.float64)))
        colors = np.zeros((3, components.shape[1]))
        for channel, component in zip(colors, components, strict=False):
            channel[:] = _stretch(component, 1.0, 99.0)
        if len(components) < 2:
            colors[1:] = colors[0]
        # the darkest foreground is still told from the background
        pixels[is_shown] = 0.15 + 0.85 * colors.T
    return _as_bytes(pixels)


def side_by_side(
    panels: Sequence[UInt8[np.ndarray, "..."]], gap: int = 8
) -> UInt8[np.ndarray, "y x 3"]:
    """Put pictures, grey or RGB, in a row on white, aligned at the top.

    Raises:
        ImageError: there is no picture, or one is neither (y, x) nor (y, x, 3).
    """
    if not panels:
        raise ImageError("there are no panels to put side by side: give at least one")
    for panel in panels:
        if panel.ndim != 2 and (panel.ndim != 3 or panel.shape[-1] != 3):
            raise ImageError(f"a panel is {panel.shape}, but must be (y, x) or (y, x, 3)")
    height = max(len(panel) for panel in panels)
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) - 1)
    row = np.full((height, width, 3), 255, np.uint8)
    start = 0
    for panel in panels:
        stop = start + panel.shape[1]
        row[: len(panel), start:stop] = panel if panel.ndim == 3 else panel[..., None]
        start = stop + gap
    return row


def middle_slice(channels: Shaped[np.ndarray, "..."], axes: int) -> Shaped[np.ndarray, "..."]:
    """Take the middle z-slice of a volume; leave an image as it is.

    Args:
        channels: the axes of space come last.
        axes: how many these are.

    Raises:
        ImageError: there are neither two nor three.
    """
    if axes not in (2, 3):
        raise ImageError(f"a picture needs an image (y, x) or a volume (z, y, x), not {axes} axes")
    return channels if axes == 2 else channels[..., channels.shape[-3] // 2, :, :]


def outline(
    image: Shaped[np.ndarray, "c *space"], labels: Integer[np.ndarray, "..."], side: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Fit an image into a square of `side` pixels, its instances outlined in their colours.

    Outlines are drawn after the image has its new size, so that they stay one pixel wide and
    bright. What is unlabelled (-1) is darkened.

    Raises:
        ImageError: image and labels differ in shape, or are neither 2D nor 3D.
    """
    grey = overlay(image, np.zeros_like(labels))
    shown = _fit_square(middle_slice(labels, labels.ndim), side)
    way = Image.Resampling.BOX if side < max(labels.shape[-2:]) else Image.Resampling.NEAREST
    pixels = np.array(Image.fromarray(grey).resize(shown.shape[::-1], way))
    pixels[shown == UNLABELED] //= 2
    is_drawn = _is_outline(shown) & (shown > 0)
    pixels[is_drawn] = colors_of(shown[is_drawn].astype(np.int64))
    return pixels


def label_picture(
    labels: Integer[np.ndarray, "..."], side: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Show labels alone: background black, what is unlabelled (-1) grey, each id in its colour.

    Raises:
        ImageError: the labels are neither 2D nor 3D.
    """
    shown = _fit_square(middle_slice(labels, labels.ndim), side).astype(np.int64)
    colors = colors_of(np.maximum(shown, 0).ravel()).reshape(*shown.shape, 3)
    return np.asarray(np.where((shown == UNLABELED)[..., None], np.uint8(_UNLABELED_GREY), colors))


def contact_sheet(
    pictures: Sequence[tuple[str, UInt8[np.ndarray, "..."]]], columns: int = 4, gap: int = 12
) -> UInt8[np.ndarray, "y x 3"]:
    """Lay out pictures in rows on white, each with a line of text under it.

    Cells are as large as the largest picture. A text that is wider than its cell is shortened
    in its middle, since names of files differ at their ends.

    Raises:
        ImageError: there is no picture, or one is neither (y, x) nor (y, x, 3).
    """
    if not pictures:
        raise ImageError("there are no pictures to lay out: give at least one")
    # one row of each alone checks and colours it
    cells = [(text, side_by_side([picture])) for text, picture in pictures]
    columns = min(columns, len(cells))
    height = max(len(cell) for _, cell in cells) + _LINE
    width = max(cell.shape[1] for _, cell in cells)
    rows = -(-len(cells) // columns)
    canvas = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", canvas, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_LINE - 6)
    for number, (text, cell) in enumerate(cells):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + gap)
        sheet.paste(Image.fromarray(cell), (left, top))
        short = _shorten(text, lambda line: pen.textlength(line, font=font) <= width)
        pen.text((left, top + len(cell) + 2), short, fill=(40, 40, 40), font=font)
    return np.asarray(sheet)


def write_png(path: Path, pixels: UInt8[np.ndarray, "..."], *, overwrite: bool = False) -> None:
    """Write a picture, whole or not at all.

    Raises:
        OutputError: The file exists and may not be overwritten, or the disk refuses it.
    """
    refuse_existing(path, overwrite=overwrite)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue(), overwrite=overwrite)


def _fit_square(
    labels: Integer[np.ndarray, "y x"], side: int
) -> Integer[np.ndarray, "height width"]:
    """Enlarge or shrink labels until their longer side has so many pixels; no id is mixed."""
    rows, columns = (
        (np.arange(max(round(n * side / max(labels.shape)), 1)) + 0.5) * max(labels.shape) / side
        for n in labels.shape
    )
    height, width = labels.shape
    rows = rows.astype(int).clip(0, height - 1)
    return np.asarray(labels[rows][:, columns.astype(int).clip(0, width - 1)])


def _shorten(text: str, fits: Callable[[str], bool]) -> str:
    """Leave out the middle of a text until it fits."""
    short, kept = text, len(text)
    while not fits(short) and kept > 2:
        kept -= 1
        short = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return short


def colors_of(ids: Integer[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Give the colours of ids: hues a golden angle apart, in four mixtures of tint and shade."""
    hue = ids.astype(np.float64) * (5**0.5 - 1) / 2 % 1
    saturation, value = np.array(_LEVELS)[ids % len(_LEVELS)].T
    # HSV to RGB: each channel is `value` less what the saturation takes from far hues
    place = (np.array([5, 3, 1]) + hue[:, None] * 6) % 6
    taken = np.minimum(place, 4 - place).clip(0, 1)
    rgb = value[:, None] * (1 - saturation[:, None] * taken)
    return _as_bytes(np.where(ids[:, None] == 0, 0.0, rgb))


def _grey_or_rgb(image: Shaped[np.ndarray, "c *space"]) -> Float[np.ndarray, "y x 3"]:
    """Show three channels as red, green and blue, and of any other number the first as grey."""
    channels = middle_slice(image if len(image) == 3 else image[:1], image.ndim - 1)
    stretched = _stretch(channels, 0.5, 99.8)
    return np.moveaxis(np.broadcast_to(stretched, (3, *stretched.shape[1:])), 0, -1)


def _kinds_of(
    labels: Integer[np.ndarray, "y x"], kinds: dict[int, Kind], order: tuple[Kind, ...]
) -> Integer[np.ndarray, "y x"]:
    """Replace every id by the place of its kind, and background by -1."""
    ids, index = np.unique(labels, return_inverse=True)
    places = [order.index(kinds[int(i)]) if i > 0 else -1 for i in ids]
    return np.array(places)[index.reshape(labels.shape)]


def _as_bytes(pixels: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Turn 0..1 into 0..255."""
    return np.asarray(np.rint(255 * pixels).clip(0, 255), np.uint8)


def _stretch(
    values: Shaped[np.ndarray, "..."], low: float, high: float
) -> Float[np.ndarray, "..."]:
    """Map the percentiles `low` and `high` to 0 and 1; all to 0 where nothing varies."""
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    darkest, brightest = np.percentile(finite, [low, high]) if finite.size else (0.0, 0.0)
    if brightest <= darkest and finite.size:
        # a few pixels on a flat image: percentiles see nothing
        darkest, brightest = finite.min(), finite.max()
    if brightest <= darkest:
        return np.zeros(values.shape)
    stretched = (values - darkest) / (brightest - darkest)
    return np.asarray(np.nan_to_num(stretched, posinf=1.0, neginf=0.0).clip(0, 1))


def _is_outline(labels: Integer[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Find the pixels of instances that have another id, or background, beside them."""
    is_outline = np.zeros(labels.shape, bool)
    differs = labels[1:] != labels[:-1]
    is_outline[1:] |= differs
    is_outline[:-1] |= differs
    differs = labels[:, 1:] != labels[:, :-1]
    is_outline[:, 1:] |= differs
    is_outline[:, :-1] |= differs
    is_outline &= labels != 0
    return is_outline


def _principal_components(vectors: Float[np.ndarray, "e n"]) -> Float[np.ndarray, "c n"]:
    """Project on the directions of largest variance, three at most and none without variance."""
    centered = vectors - vectors.mean(1, keepdims=True)
    variance, directions = np.linalg.eigh(centered @ centered.T / vectors.shape[1])
    variance, directions = variance[::-1][:3], directions[:, ::-1][:, :3]
    directions = directions[:, variance > max(_FLAT * variance[0], 1e-24)]
    # eigenvectors come with either sign: let the largest entry be positive
    largest = np.abs(directions).argmax(0)
    signs = np.sign(directions[largest, np.arange(directions.shape[1])])
    return np.asarray((directions * signs).T @ centered)
