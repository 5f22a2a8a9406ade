"""Numbers as people read them."""


def count(number: int, word: str) -> str:
    """Say how many: 1 image, 1,200 images."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def percent(part: int, whole: int) -> str:
    """Say what part of a whole."""
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def duration(seconds: float) -> str:
    """Say a time to two places: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def value(setting: object) -> str:
    """Write a setting in a line."""
    match setting:
        case None:
            return "not set"
        case bool():
            return "yes" if setting else "no"
        case float():
            return f"{setting:g}"
        case dict():
            return ", ".join(f"{word} {value(inner)}" for word, inner in setting.items())
        case list() | tuple():
            return ", ".join(value(inner) for inner in setting) or "none"
        case _:
            return str(setting)
