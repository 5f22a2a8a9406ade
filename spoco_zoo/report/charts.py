"""Curves and bars as inline SVG: no library, no script, colours by the style sheet of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spoco_zoo.report.markup import Markup, element, styled

_WIDTH, _HEIGHT = 440.0, 230.0  # units of the drawing; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 12.0, 40.0
_POINTS = 160  # of a line, at most


@dataclass(frozen=True, eq=False)
class Line:
    """A curve: its name, its colour as a class of the style sheet, and its points."""

    name: str
    style: str
    steps: np.ndarray  # (n)
    values: np.ndarray  # (n), finite
    has_points: bool = False


def line_chart(title: str, lines: Sequence[Line], last: int, *, is_log: bool = False) -> Markup:
    """Draw curves over the steps, with a legend where there are several.

    Args:
        title: what the values are.
        lines: at least one, each with a point at least.
        last: step at which the drawing ends.
        is_log: whether values are drawn by their logarithm; those not above 0 are left out then.
    """
    if is_log:
        lines = [_only_positive(line) for line in lines if (line.values > 0).any()]
    lines = [line if line.has_points else _thin(line) for line in lines]
    lowest = min(float(line.values.min()) for line in lines)
    highest = max(float(line.values.max()) for line in lines)
    ticks = _log_ticks(lowest, highest) if is_log else _ticks(min(lowest, 0.0), highest)
    bottom, top = (math.log10(t) if is_log else t for t in (ticks[0], ticks[-1]))

    def across(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last, 1)

    def down(value: float) -> float:
        part = ((math.log10(value) if is_log else value) - bottom) / ((top - bottom) or 1.0)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * part

    parts = []
    for tick in ticks:
        parts.append(_segment(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid"))
        parts.append(_text(f"{tick:g}", _LEFT - 6, down(tick) + 4, "end"))
    for tick in _ticks(0.0, float(last)):
        if tick <= last:
            anchor = "end" if tick > 0.95 * last else "middle"
            parts.append(_text(f"{tick:,.0f}", across(tick), _HEIGHT - _BOTTOM + 18, anchor))
    parts.append(_text("step", _WIDTH - _RIGHT, _HEIGHT - 4, "end"))
    for line in lines:
        points = [
            (across(float(step)), down(float(value)))
            for step, value in zip(line.steps, line.values, strict=True)
        ]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(element("path", attributes={"class": f"line {line.style}", "d": path}))
        if line.has_points:
            best = int(line.values.argmax())
            parts += [_dot(x, y, 5.0 if n == best else 2.5) for n, (x, y) in enumerate(points)]
    legend = [
        styled("li", line.style, line.name) for line in lines if len(lines) > 1
    ]  # a chart of one line is named by its title
    return styled(
        "figure",
        "chart",
        element("figcaption", title),
        _drawing(title, _HEIGHT, parts),
        *([styled("ul", "legend", *legend)] if legend else []),
    )


def bar_chart(title: str, names: Sequence[str], values: Sequence[float]) -> Markup:
    """Draw a bar from 0 to 1 for each name, in order; the pointer shows the name."""
    height = 150.0
    width = (_WIDTH - _LEFT - _RIGHT) / len(names)
    whole = height - _TOP - 8

    def down(value: float) -> float:
        return height - 8 - whole * value

    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(_segment(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid"))
        parts.append(_text(f"{tick:g}", _LEFT - 6, down(tick) + 4, "end"))
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        shape = {
            "class": "bar",
            "x": f"{_LEFT + place * width + width * 0.1:.1f}",
            "y": f"{down(value) - 1:.1f}",
            "width": f"{min(width * 0.8, 40):.1f}",
            "height": f"{whole * value + 1:.1f}",
        }
        told = element("title", f"{name}: {value:.2f}")
        parts.append(element("rect", told, attributes=shape))
    return styled("figure", "chart", element("figcaption", title), _drawing(title, height, parts))


def _drawing(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    attributes = {"viewBox": f"0 0 {_WIDTH:g} {height:g}", "role": "img", "aria-label": title}
    return element("svg", *parts, attributes=attributes)


def _thin(line: Line) -> Line:
    """Replace many points by the means of equal parts."""
    n = min(_POINTS, len(line.steps))
    steps, values = (
        np.array([part.mean() for part in np.array_split(column, n)])
        for column in (line.steps, line.values)
    )
    return Line(line.name, line.style, steps, values)


def _only_positive(line: Line) -> Line:
    keep = line.values > 0
    return Line(line.name, line.style, line.steps[keep], line.values[keep], line.has_points)


def _ticks(lowest: float, highest: float) -> list[float]:
    """Round numbers, about five, from below the lowest to above the highest."""
    span = (highest - lowest) or abs(highest) or 1.0
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    return [float(f"{step * n:.12g}") for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """Powers of ten, from below the lowest to above the highest; two at least."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    return [float(f"1e{n}") for n in range(first, max(last, first + 1) + 1)]


def _segment(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    return element("path", attributes={"class": style, "d": path})


def _text(words: str, x: float, y: float, anchor: str) -> Markup:
    place: dict[str, str | float] = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
    return element("text", words, attributes=place)


def _dot(x: float, y: float, radius: float) -> Markup:
    place: dict[str, str | float] = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": radius}
    return element("circle", attributes=place | {"class": "dot"})
