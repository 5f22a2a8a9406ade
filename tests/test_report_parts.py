"""Parts of the page of a run: elements, curves and bars."""

import re

import numpy as np
import pytest

from spoco_zoo.report.charts import Line, bar_chart, line_chart
from spoco_zoo.report.markup import Markup, element, join

EVIL = '<script>alert("x")</script>&amp;'


def test_elements_escape_texts_and_attributes_but_not_each_other():
    inner = element("b", "1 < 2", attributes={"title": '"&'})
    assert inner == '<b title="&quot;&amp;">1 &lt; 2</b>'
    assert element("p", inner, "<i>") == f"<p>{inner}&lt;i&gt;</p>"
    assert join(["<", Markup("<br>")], " & ") == "&lt; &amp; <br>"


def numbers_of(drawing, word):
    return [float(number) for number in re.findall(rf' {word}="([-\d.]+)"', drawing)]


@pytest.mark.parametrize("is_log", [True, False])
@pytest.mark.parametrize("values", [[0.5], [0.0, 0.002, 7.0], [3.0, 3.0], [1e-9, 2e-9]])
def test_curves_stay_within_the_drawing(is_log, values):
    values = np.array(values)
    line = Line("a", "total", np.arange(1, len(values) + 1) * 10, values, has_points=True)
    drawing = line_chart("losses", [line], len(values) * 10, is_log=is_log)
    shown = int((values > 0).sum()) if is_log else len(values)
    assert drawing.count("<circle") == shown
    for word, size in (("cx", 440), ("cy", 230)):
        assert all(0 <= number <= size for number in numbers_of(drawing, word))
    heights = numbers_of(drawing, "cy")
    assert heights == sorted(heights, reverse=True)


def test_a_long_curve_is_thinned_to_means():
    steps = np.arange(10000)
    drawing = line_chart("x", [Line("a", "total", steps, np.sin(steps) + 2)], 10000)
    (path,) = re.findall(r'class="line total" d="M([^"]*)"', drawing)
    assert path.count("L") == 159


def test_bars_are_as_high_as_their_values():
    low, high = numbers_of(bar_chart("x", ["a", EVIL], [0.25, 1.0]), "height")
    assert (high - 1) / (low - 1) == pytest.approx(4, rel=0.01)
    assert EVIL not in bar_chart("x", [EVIL], [0.5])
