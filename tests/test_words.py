"""Numbers are told as people say them."""

import pytest

from spoco_zoo.words import count, duration, percent, value


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (count(1, "image"), "1 image"),
        (count(1200, "image"), "1,200 images"),
        (percent(1, 3), "33 %"),
        (percent(0, 0), "0 %"),
        (duration(0.0), "0 s"),
        (duration(89.4), "89 s"),
        (duration(3570.0), "1 h 0 min"),
        (duration(12000.0), "3 h 20 min"),
        (duration(190000.0), "2 d 5 h"),
        (value(None), "not set"),
        (value(True), "yes"),
        (value(1e-5), "1e-05"),
        (value({"a": [1, 2.5]}), "a 1, 2.5"),
        (value(()), "none"),
    ],
)
def test_numbers_read_well(told, expected):
    assert told == expected
