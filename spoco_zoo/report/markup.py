"""HTML that cannot be broken from outside: text is escaped unless this room made it."""

import html
from collections.abc import Iterable, Mapping

_VOID = ("img", "meta")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(
    name: str, *content: str, attributes: Mapping[str, str | float] | None = None
) -> Markup:
    """Make an element of texts, which are escaped, and of other elements, which are not."""
    words = "".join(
        f' {word}="{html.escape(str(value))}"' for word, value in (attributes or {}).items()
    )
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(content)}</{name}>")


def styled(name: str, style: str, *content: str) -> Markup:
    """Make an element of a class of the style sheet."""
    return element(name, *content, attributes={"class": style})


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Put texts and elements behind each other."""
    return Markup(
        html.escape(between).join(
            part if isinstance(part, Markup) else html.escape(part) for part in parts
        )
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Markup:
    """Make a table that scrolls by itself where the page is narrow."""
    lines = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    titles = element("tr", *(element("th", title) for title in head))
    return styled(
        "div", "table", element("table", element("thead", titles), element("tbody", *lines))
    )


def folded(title: str, *content: str) -> Markup:
    """Make a part that opens when it is asked for."""
    return element("details", element("summary", title), *content)
