"""Every failure has one root, and is also what other code would expect of it."""

import re

import pytest

from spoco_zoo import errors
from spoco_zoo.errors import MissingExtraError, SettingError, SpocoZooError


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))
    assert {kind.__name__ for kind in SpocoZooError.__subclasses__()} == drawn


@pytest.mark.parametrize(
    ("kind", "builtin"), [(SettingError, ValueError), (MissingExtraError, ImportError)]
)
def test_code_that_knows_only_python_catches_it_too(kind, builtin):
    with pytest.raises(builtin) as error:
        raise kind("what is wrong: what to do")
    assert str(error.value) == "what is wrong: what to do"
