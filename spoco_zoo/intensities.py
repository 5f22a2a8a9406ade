"""What is true of the intensities of an image that is seen part by part, without rounding.

A `Question` is put to every part, and the answers of all parts are added up. Counts and sums are
kept as whole numbers and fractions, so the total does not depend on how the image was cut, in
which order its parts came, or who looked at them: an image in memory and the same image in
ten thousand chunks on ten machines get the same numbers to the last bit.

Pixels of up to 16 bits are counted value by value, which tells all. Of others, sums of single
rows are rounded (and always alike, so a part must hold whole rows along x), and ranks are found
digit by digit, 16 bits at a time.
"""

import math
from collections.abc import Callable, Generator, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
from jaxtyping import Float, Int

Answer = np.ndarray  # answers of parts are added
Question = Callable[[np.ndarray], Answer]  # of a part `(c, *space)` with whole rows
Asking = Generator[Question, Answer, Float[np.ndarray, "..."]]

_DIGIT = 16  # bits
_VALUES = 1 << _DIGIT
_AT_ONCE = 1 << 20  # pixels, of which copies are made


def find_moments(channels: int, count: int, dtype: np.dtype) -> Asking:
    """Ask for mean and standard deviation of each channel.

    Args:
        channels: Of the image.
        count: Pixels of one channel.
        dtype: Of the pixels.

    Yields:
        Questions; what is sent back must be the sum of the answers of all parts.

    Returns:
        Means and standard deviations, `(2, c)` in float64.
    """
    if _is_countable(dtype):
        counts = yield count_values
        return np.array([_moments_of(row, dtype) for row in counts]).T
    totals = yield partial(sum_rows, about=None)
    means = np.array([float(total / count) for total in totals])
    squares = yield partial(sum_rows, about=means)
    variances = [float(square / count) for square in squares]
    return np.stack([means, np.sqrt(variances)])


def find_percentiles(
    channels: int, count: int, dtype: np.dtype, percentiles: Sequence[float]
) -> Asking:
    """Ask for percentiles of each channel, interpolated linearly as NumPy does.

    Yields:
        Questions; what is sent back must be the sum of the answers of all parts.

    Returns:
        `(percentiles, c)` in float64.
    """
    places = [percentile / 100 * (count - 1) for percentile in percentiles]
    ranks = [min(math.floor(place) + more, count - 1) for place in places for more in (0, 1)]
    if _is_countable(dtype):
        counts = yield count_values
        ends = np.cumsum(counts, axis=1)
        found = np.array([np.searchsorted(end, ranks, side="right") for end in ends])
        values = (found + _lowest(dtype)).astype(np.float64)
    else:
        keys = yield from _find_keys(channels, ranks, dtype)
        values = _values_of(keys, dtype)
    below, above = values[:, ::2].T, values[:, 1::2].T
    share = np.array([place - math.floor(place) for place in places])[:, None]
    step = above - below
    return np.asarray(np.where(share < 0.5, below + step * share, above - step * (1 - share)))


def count_values(pixels: np.ndarray) -> Int[np.ndarray, "c v"]:
    """Count how often each value occurs in each channel, from the lowest that the dtype has."""
    lowest = _lowest(pixels.dtype)
    counts = np.zeros((len(pixels), _VALUES), np.int64)
    for channel, row in zip(pixels, counts, strict=True):
        for part in _pieces(channel):
            row += np.bincount(part.astype(np.intp) - lowest, minlength=_VALUES)
    return counts


def sum_rows(pixels: np.ndarray, about: Float[np.ndarray, " c"] | None) -> Answer:
    """Sum each channel, or its squared distances from a number, as exact fractions of row sums."""
    totals = [Fraction(0)] * len(pixels)
    for number, channel in enumerate(pixels):
        rows = channel.reshape(-1, channel.shape[-1])
        step = max(_AT_ONCE // max(rows.shape[1], 1), 1)
        for start in range(0, len(rows), step):
            values = np.array(rows[start : start + step], np.float64, order="C")
            if about is not None:
                values -= about[number]
                values *= values
            totals[number] += _sum_exactly(values.sum(axis=-1))
    answer = np.empty(len(pixels), object)
    answer[:] = totals
    return answer


def count_digits(
    pixels: np.ndarray, prefixes: Int[np.ndarray, "c r"], shift: int
) -> Int[np.ndarray, "c r v"]:
    """Count the digit at `shift` among the pixels whose digits above it are those of a rank."""
    counts = np.zeros((*prefixes.shape, _VALUES), np.int64)
    for channel, row, wanted in zip(pixels, counts, prefixes.astype(np.uint64), strict=True):
        for part in _pieces(channel):
            keys = _keys_of(part)
            digit = (keys >> np.uint64(shift)).astype(np.int64) & (_VALUES - 1)
            above = keys >> np.uint64(shift) >> np.uint64(_DIGIT)
            for prefix in np.unique(wanted):
                counted = np.bincount(digit[above == prefix], minlength=_VALUES)
                row[wanted == prefix] += counted
    return counts


def _find_keys(
    channels: int, ranks: Sequence[int], dtype: np.dtype
) -> Generator[Question, Answer, Int[np.ndarray, "c r"]]:
    """Find the pixels of given ranks, as numbers in their order."""
    prefixes = np.zeros((channels, len(ranks)), np.uint64)
    left = np.tile(np.array(ranks, np.int64), (channels, 1))
    for shift in reversed(range(0, 8 * dtype.itemsize, _DIGIT)):
        counts = yield partial(count_digits, prefixes=prefixes.astype(np.int64), shift=shift)
        ends = np.cumsum(counts, axis=2)
        digit = (ends <= left[..., None]).sum(axis=2)
        before = np.take_along_axis(ends, np.maximum(digit - 1, 0)[..., None], 2)[..., 0]
        left -= np.where(digit > 0, before, 0)
        prefixes = (prefixes << np.uint64(_DIGIT)) | digit.astype(np.uint64)
    return prefixes


def _is_countable(dtype: np.dtype) -> bool:
    return dtype.kind in "ui" and 8 * dtype.itemsize <= _DIGIT


def _lowest(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).min)


def _pieces(channel: np.ndarray) -> Generator[np.ndarray, None, None]:
    """The pixels of a channel, flat, some at a time."""
    planes = channel.reshape(-1, channel.shape[-1])
    step = max(_AT_ONCE // max(planes.shape[1], 1), 1)
    for start in range(0, len(planes), step):
        yield planes[start : start + step].ravel()


def _moments_of(counts: Int[np.ndarray, " v"], dtype: np.dtype) -> tuple[float, float]:
    """Mean and standard deviation of values that were counted."""
    places = np.flatnonzero(counts)
    pairs = [(int(n) + _lowest(dtype), int(counts[n])) for n in places]
    count = sum(times for _, times in pairs)
    total = sum(value * times for value, times in pairs)
    squares = sum(value * value * times for value, times in pairs)
    variance = Fraction(count * squares - total * total, count * count)
    return float(Fraction(total, count)), math.sqrt(variance)


def _sum_exactly(numbers: Float[np.ndarray, " n"]) -> Fraction:
    """Sum floats without rounding: as whole numbers, for each exponent by itself."""
    fractions, exponents = np.frexp(numbers)
    whole = np.ldexp(fractions, 53).astype(np.int64)
    total = Fraction(0)
    for exponent in np.unique(exponents):
        mine = whole[exponents == exponent]
        # in halves, so that 2**31 of them do not overflow
        high, low = int((mine >> 32).sum()), int((mine & 0xFFFFFFFF).sum())
        total += Fraction((high << 32) + low) * Fraction(2) ** (int(exponent) - 53)
    return total


def _keys_of(pixels: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 in the order of the pixels, as uint64."""
    bits = 8 * pixels.dtype.itemsize
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    plain = native.view(f"u{pixels.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (bits - 1))
    match pixels.dtype.kind:
        case "u":
            return plain
        case "i":
            return plain ^ sign
    # floats of one sign are ordered as their bits are, negative ones the other way round
    every = np.uint64((1 << bits) - 1)
    return np.where(plain & sign, plain ^ every, plain ^ sign)


def _values_of(keys: np.ndarray, dtype: np.dtype) -> Float[np.ndarray, "c r"]:
    """The pixels that `_keys_of` turned into these numbers."""
    bits = 8 * dtype.itemsize
    sign = np.uint64(1 << (bits - 1))
    every = np.uint64((1 << bits) - 1)
    match dtype.kind:
        case "u":
            plain = keys
        case "i":
            plain = keys ^ sign
        case _:
            plain = np.where(keys & sign, keys ^ sign, keys ^ every)
    return plain.astype(f"u{dtype.itemsize}").view(dtype.newbyteorder("=")).astype(np.float64)
