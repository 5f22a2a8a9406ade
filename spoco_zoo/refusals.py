"""Why words of a file were refused, as one sentence with the field's full name.

pydantic reports every problem with its place in the model; people want the first that they can
mend, in the words that they wrote.
"""

import difflib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from spoco_zoo.errors import OutputError

_CHOICES = (
    *("mean_shift", "hdbscan", "consistency", "head", "prototype", "everywhere"),
    *("zero_mean_unit_variance", "fixed_zero_mean_unit_variance", "scale_linear", "scale_range"),
)

_SHORT = reprlib.Repr()  # of what a file holds, which may be anything
_SHORT.maxlevel, _SHORT.maxother, _SHORT.maxstring = 2, 100, 100


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first problem of a pydantic report as one sentence, with the field's full name.

    An unknown word comes first, since it is often why another one is missing.
    """
    problems = error.errors()
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    place = [str(part) for part in problem["loc"]]
    # in a union the choice made stands in the place, but the user wrote it elsewhere
    last = len(place) - (kind == "extra_forbidden")
    place = [part for part in place[:last] if part not in _CHOICES] + place[last:]
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        place.append(context["discriminator"].strip("'"))
    field = ".".join(place)
    reason = problem["msg"][0].lower() + problem["msg"][1:]
    match kind:
        case "extra_forbidden":
            words = _words_of(model, [str(part) for part in problem["loc"][:-1]])
            close = difflib.get_close_matches(place[-1], words, n=1)
            return f"{field} is not a setting" + (f"; did you mean {close[0]}?" if close else "")
        case "missing" | "union_tag_not_found":
            return f"{field} is missing: add it"
        case "value_error":
            return f"{field}.{context['error']}" if field else str(context["error"])
        case "union_tag_invalid":
            value, tags = context["tag"], context["expected_tags"].replace("'", "")
            reason = f"expected one of {tags}"
        case "model_type" | "model_attributes_type":
            reason = "expected words and values"
    return f"{field} is {_SHORT.repr(value)}: {reason}"


def _words_of(model: type[BaseModel], place: list[str]) -> set[str]:
    """Every word that may stand at a place of a model, a union's choice being part of it."""
    models = {model}
    for part in place:
        if part in _CHOICES:
            models = {m for m in models if part in [f.default for f in m.model_fields.values()]}
        elif not part.isdigit():
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = {m for field in fields for m in _models_in(field.annotation)}
    return {word for m in models for word in m.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:  # noqa: ANN401 - walks annotations
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for part in get_args(annotation) for model in _models_in(part)}


def say_why(error: Exception) -> str:
    """Say in a line why something outside failed: a disk, a server, a decoder."""
    told = getattr(error, "strerror", None) or str(error)
    return str(told).splitlines()[0] if told else type(error).__name__


@contextmanager
def looking_at(url: str) -> Iterator[None]:
    """Tell in one sentence that a disk or backend refuses to say what is at a place.

    Raises:
        OutputError: It does.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{url}: cannot be looked at ({say_why(error)}): look at its disk or server, and at "
            "the credentials for it"
        ) from error


def refused(url: str, error: Exception) -> OutputError:
    """Say in one sentence that a disk or backend refuses to write."""
    return OutputError(
        f"{url}: cannot be written ({say_why(error)}): free space or choose another place"
    )
