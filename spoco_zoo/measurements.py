"""Instances to numbers: size, place, intensities and shape of each, as a table.

What is kept of an instance adds up, so that an image may be measured in parts, in any order:
`measure` each part with its offset, `merge` them, and make a `table`. Sums are of whole numbers
wherever they can be. Perimeter and solidity do not add up; they come out of its outline
(`outlines.Traced`), and where none is given their cells are empty.

Places count pixels from 0 at the middle of the first pixel, in index order (z, y, x). Boxes run
from their first pixel to the one after their last.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from math import isnan
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Integer

from spoco_zoo.errors import ImageError, MissingExtraError

Table = dict[str, np.ndarray]  # columns by name; NaN is an empty cell

_AT_ONCE = 1 << 22  # pixels that are looked at together
_DIGITS = 9  # of a number in a text


@dataclass(frozen=True, eq=False)
class Measurements:
    """What is known of instances, in the order of their ids; intensities by channel."""

    ids: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]  # pixels
    starts: Int64[np.ndarray, "n d"]  # of the bounding boxes
    stops: Int64[np.ndarray, "n d"]
    sums: Int64[np.ndarray, "n d"]  # of the places of pixels, from the start of the box
    products: Float[np.ndarray, "n 3"]  # of y and y, y and x, x and x of an image, likewise
    totals: Float[np.ndarray, "n c"]  # of intensities
    lowest: Float[np.ndarray, "n c"]
    highest: Float[np.ndarray, "n c"]

    def boxes(self) -> list[tuple[int, tuple[slice, ...]]]:
        """Ids and bounding boxes, as `outlines.trace_objects` takes them."""
        ends = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        boxes = [tuple(map(slice, start, stop)) for start, stop in ends]
        return list(zip(self.ids.tolist(), boxes, strict=True))

    def centroids(self) -> Float[np.ndarray, "n d"]:
        """Mean places of pixels."""
        return np.asarray(self.starts + self.sums / self.sizes[:, None])


def measure(
    labels: Any,  # noqa: ANN401 - an array, or what is cut like one
    image: Any = None,  # noqa: ANN401
    offset: Sequence[int] | None = None,
) -> Measurements:
    """Measure the instances of an image or a part of it, some rows or slices at a time.

    Args:
        labels: `*space` integers, 0 for no instance.
        image: `(c, *space)` intensities, if any.
        offset: Where the part starts in the whole image; at its beginning otherwise.

    Raises:
        ImageError: Labels and image differ in shape, or are neither 2D nor 3D.
    """
    shape = tuple(labels.shape)
    if len(shape) not in (2, 3):
        raise ImageError(f"labels are {shape}: expected (y, x) or (z, y, x)")
    if image is not None and tuple(image.shape[1:]) != shape:
        raise ImageError(
            f"the image is {tuple(image.shape[1:])} and the labels are {shape}: "
            "they must have the same shape"
        )
    first, *others = offset or [0] * len(shape)
    step = max(_AT_ONCE // max(int(np.prod(shape[1:])), 1), 1)
    parts = []
    for start in range(0, max(shape[0], 1), step):
        cut = slice(start, start + step)
        ids = np.asarray(labels[cut])
        shown = np.zeros((0, *ids.shape)) if image is None else np.asarray(image[:, cut])
        parts.append(_measure_part(ids, shown, [first + start, *others]))
    return merge(parts)


def merge(parts: Iterable[Measurements]) -> Measurements:
    """Put together what was measured of several parts, of which some may share instances.

    Args:
        parts: At least one, of the same axes and channels, whose pixels are counted once.
    """
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    every = Measurements(
        *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(parts[0]))
    )
    order = np.argsort(every.ids, kind="stable")
    every = Measurements(*(getattr(every, field.name)[order] for field in fields(every)))
    return _reduce(every)


def _measure_part(
    labels: Integer[np.ndarray, "*space"], image: np.ndarray, offset: Sequence[int]
) -> Measurements:
    """Measure runs: pixels of one instance that follow each other along x."""
    width = labels.shape[-1]
    is_start = np.ones((labels.size // max(width, 1), width), bool)
    lines = labels.reshape(is_start.shape)
    np.not_equal(lines[:, 1:], lines[:, :-1], out=is_start[:, 1:])
    starts = np.flatnonzero(is_start)
    is_shown = lines.ravel()[starts] != 0
    lengths = np.diff(starts, append=labels.size)[is_shown]
    channels = [np.ascontiguousarray(channel).ravel() for channel in image]
    totals, lowest, highest = (
        _by_run(channels, starts, is_shown, way) for way in (np.add, np.minimum, np.maximum)
    )
    line, x = np.divmod(starts[is_shown], width)
    place = np.stack([*np.unravel_index(line, labels.shape[:-1]), x], axis=1)
    low = place + np.array(offset)[-labels.ndim :]
    high = low + 1
    high[:, -1] += lengths - 1
    # a run starts at its own box, so all of its places but those along x are 0
    along = lengths - 1
    sums = np.zeros_like(place)
    sums[:, -1] = lengths * along // 2
    products = np.zeros((len(place), 3))
    products[:, 2] = along * lengths * (2 * along + 1) / 6
    ids = lines.ravel()[starts[is_shown]].astype(np.int64)
    order = np.argsort(ids, kind="stable")
    runs = (ids, lengths, low, high, sums, products, totals, lowest, highest)
    return _reduce(Measurements(*(numbers[order] for numbers in runs)))


def _by_run(
    channels: Sequence[np.ndarray], starts: np.ndarray, is_shown: np.ndarray, way: np.ufunc
) -> Float[np.ndarray, "n c"]:
    """Sum, least or most of each channel on the runs that belong to instances."""
    found = np.zeros((int(is_shown.sum()), len(channels)))
    for column, channel in enumerate(channels):
        if len(starts):
            kind = np.float64 if way is np.add else None
            found[:, column] = way.reduceat(channel, starts, dtype=kind)[is_shown]
    return found


def _reduce(many: Measurements) -> Measurements:
    """Join what belongs to one instance; ids are in order."""
    if not len(many.ids):
        return many
    first = np.flatnonzero(np.r_[True, many.ids[1:] != many.ids[:-1]])
    if len(first) == len(many.ids):
        return many
    counts = np.diff(first, append=len(many.ids))
    starts = np.minimum.reduceat(many.starts, first)
    # sums count from the start of a box, which is now that of all
    moved = many.starts - np.repeat(starts, counts, axis=0)
    sizes = many.sizes[:, None]
    y, x = moved[:, -2:].astype(np.float64).T
    size, sum_y, sum_x = many.sizes.astype(np.float64), *many.sums[:, -2:].T
    products = many.products + np.stack(
        [
            2 * y * sum_y + size * y * y,
            y * sum_x + x * sum_y + size * y * x,
            2 * x * sum_x + size * x * x,
        ],
        axis=1,
    )
    return Measurements(
        ids=many.ids[first],
        sizes=np.add.reduceat(many.sizes, first),
        starts=starts,
        stops=np.maximum.reduceat(many.stops, first),
        sums=np.add.reduceat(many.sums + moved * sizes, first),
        products=np.add.reduceat(products, first),
        totals=np.add.reduceat(many.totals, first),
        lowest=np.minimum.reduceat(many.lowest, first),
        highest=np.maximum.reduceat(many.highest, first),
    )


def to_table(
    found: Measurements,
    scale_um: Sequence[float] | None = None,
    rims: dict[int, tuple[float, float]] | None = None,
) -> Table:
    """Make a table of instances, with the same columns for all images of as many channels.

    Args:
        found: What was measured.
        scale_um: Size of a pixel along each axis in µm; without it columns in µm are empty.
        rims: By id the perimeter and the area of the convex hull in pixels, of an image.

    Returns:
        A column for each number, NaN where it is not known or not defined: `label`; `area` or
        `volume`; `centroid`, `box_start` and `box_stop` by axis; the diameter of a disc or ball
        of that size; of an image perimeter, eccentricity of the ellipse with the same second
        moments, and solidity, the part of its convex hull that an instance fills; mean, least
        and highest intensity of each channel, from 1.
    """
    n_axes = found.starts.shape[1]
    axes, size = "zyx"[-n_axes:], "area" if n_axes == 2 else "volume"
    scale = np.full(n_axes, np.nan) if scale_um is None else np.array(scale_um, np.float64)
    centroids, unit = found.centroids(), np.prod(scale)
    in_um = found.sizes * unit
    table: Table = {
        "label": found.ids,
        f"{size}_px": found.sizes,
        f"{size}_um{n_axes}": in_um,
        **{f"centroid_{a}_px": centroids[:, n] for n, a in enumerate(axes)},
        **{f"centroid_{a}_um": centroids[:, n] * scale[n] for n, a in enumerate(axes)},
        **{f"box_start_{a}_px": found.starts[:, n] for n, a in enumerate(axes)},
        **{f"box_stop_{a}_px": found.stops[:, n] for n, a in enumerate(axes)},
        "equivalent_diameter_px": _diameters(found.sizes, n_axes),
        "equivalent_diameter_um": _diameters(in_um, n_axes),
    }
    if n_axes == 2:
        table |= _shape_columns(found, scale, rims or {})
    for channel in range(found.totals.shape[1]):
        word = f"channel_{channel + 1}"
        table[f"mean_{word}"] = found.totals[:, channel] / found.sizes
        table[f"min_{word}"] = found.lowest[:, channel]
        table[f"max_{word}"] = found.highest[:, channel]
    return table


def _diameters(sizes: np.ndarray, n_axes: int) -> Float[np.ndarray, " n"]:
    """Diameters of discs or balls."""
    if n_axes == 2:
        return np.asarray(np.sqrt(4 * sizes / np.pi))
    return np.asarray(np.cbrt(6 * sizes / np.pi))


def _shape_columns(
    found: Measurements, scale: Float[np.ndarray, " 2"], rims: dict[int, tuple[float, float]]
) -> Table:
    unknown = (np.nan, np.nan)
    rows = [rims.get(i, unknown) for i in found.ids.tolist()]
    perimeters, hulls = np.array(rows, np.float64).reshape(-1, 2).T
    # the perimeter of a pixel, and of a line of two, is not defined by steps along a rim
    perimeters = np.where(perimeters > 0, perimeters, np.nan)
    is_square = bool(np.isclose(scale[0], scale[1]))
    return {
        "perimeter_px": perimeters,
        "perimeter_um": perimeters * (scale[0] if is_square else np.nan),
        "eccentricity": _eccentricities(found),
        "solidity": found.sizes / hulls,
    }


def _eccentricities(found: Measurements) -> Float[np.ndarray, " n"]:
    """Of the ellipse with the second moments of each instance; NaN for a single pixel."""
    y, x = (found.sums / found.sizes[:, None]).T
    moments = found.products / found.sizes[:, None]
    yy, yx, xx = (moments - np.stack([y * y, y * x, x * x], axis=1)).T
    half = np.hypot(yy - xx, 2 * yx) / 2
    longest, shortest = (yy + xx) / 2 + half, np.maximum((yy + xx) / 2 - half, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(found.sizes > 1, np.sqrt(1 - shortest / longest), np.nan))


def to_csv(table: Table) -> bytes:
    """Write a table as CSV: a line of names, then a line for each instance."""
    columns = [round_column(column) for column in table.values()]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def round_column(column: np.ndarray) -> list[int | float | None]:
    """Numbers for a text: whole ones as they are, others to nine digits; None for an empty cell."""
    if column.dtype.kind != "f":
        return list(column.tolist())
    numbers: list[int | float | None] = []
    for value in column.tolist():
        if isnan(value):
            numbers.append(None)
            continue
        rounded = float(f"{value:.{_DIGITS}g}")
        numbers.append(int(rounded) if rounded.is_integer() else rounded)
    return numbers


def to_parquet(table: Table) -> bytes:
    """Write a table as Parquet; empty cells are null.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    check_parquet()
    import pyarrow
    from pyarrow import parquet

    columns = {
        name: pyarrow.array(column, from_pandas=True)  # NaN is null
        for name, column in table.items()
    }
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def check_parquet() -> None:
    """Say before anything is measured that Parquet cannot be written.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "tables in Parquet need pyarrow: pip install 'spoco-zoo[parquet]', or save CSV"
        ) from error
