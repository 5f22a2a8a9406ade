"""The page of a run, section by section, each a function of what was read."""

from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from statistics import fmean, median
from typing import Any

import numpy as np
from pydantic import BaseModel

from spoco_zoo.examples import PANELS, Example
from spoco_zoo.figures import KIND_COLORS
from spoco_zoo.mistakes import KINDS
from spoco_zoo.recipe import Recipe
from spoco_zoo.report.charts import Line, bar_chart, line_chart
from spoco_zoo.report.hints import find_hints
from spoco_zoo.report.markup import Markup, element, folded, join, styled, table
from spoco_zoo.report.reading import Run
from spoco_zoo.spec import Spec, dump_spec
from spoco_zoo.words import count, duration, percent, value

# nothing may be loaded or run, whatever the files of the run say
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TERMS = (
    *("total", "pull", "push", "norm"),
    *("unlabeled_push", "instance", "consistency", "foreground"),
)
_MOST_TRIED = 12  # recipes shown at once
_KIND_WORDS = {
    "right": "found, and shares at least half of its union with the truth",
    "inexact": "found, but the outline is off: less than half is shared",
    "split": "found in pieces",
    "merged": "found together with a neighbour",
    "missed": "not found",
    "false": "found where the truth has nothing like it",
}
_SCORES = {
    "ap50": ("AP at IoU 0.50", "right / (right + false + missed); 1 is perfect"),
    "mean_ap": ("mean AP", "the same for ever stricter overlap, IoU 0.50 to 0.95"),
    "sbd": ("best Dice", "how well outlines agree (SBD); 1 is perfect"),
    "count_difference": ("count off by", "instances an image, in the mean (|DiC|)"),
}


def draw_page(run: Run) -> str:
    """Draw the whole page."""
    title = run.spec.card.title if run.spec.card != Spec().card else run.spec.name
    style = files("spoco_zoo.report").joinpath("style.css").read_text(encoding="utf-8")
    colors = "".join(f".{kind}{{--kind:rgb{KIND_COLORS[kind]}}}" for kind in KINDS)
    policy = {"http-equiv": "Content-Security-Policy", "content": _POLICY}
    view = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    head = element(
        "head",
        element("meta", attributes={"charset": "utf-8"}),
        element("meta", attributes=policy),
        element("meta", attributes=view),
        element("title", f"{title}: report of a run"),
        element("style", Markup(style + colors)),
    )
    made = styled("p", "small", f"Made by spoco-zoo {version('spoco-zoo')} from {run.spec.name}.")
    main = element("main", *_header(run, title), *_sections(run), element("footer", made))
    page = element("html", head, element("body", main), attributes={"lang": "en"})
    return f"<!DOCTYPE html>\n{page}\n"


def _sections(run: Run) -> Iterator[Markup]:
    yield _mistakes(run)
    yield _next(run)
    yield _examples(run)
    yield _course(run)
    yield _recipe(run)
    yield _data(run)
    yield _settings(run)
    yield _environment(run)


def _header(run: Run, title: str) -> Iterator[Markup]:
    """Title, what was done in plain words, and the scores."""
    yield styled("p", "kicker", "Report of a training run" if run.fitted else "Run not finished")
    yield element("h1", title)
    yield styled("p", "lead", " ".join(_summary(run)))
    if run.spec.card.description != Spec().card.description:
        yield element("p", run.spec.card.description)
    tiles = []
    if run.fitted is not None:
        for name, (label, meaning) in _SCORES.items():
            if name in run.fitted.validation:
                digits = 1 if name == "count_difference" else 3
                number = f"{run.fitted.validation[name]:.{digits}f}"
                tiles.append(_tile(number, label, meaning))
    elif len(run.scored[1]):
        meaning = "mean AP on the validation images, best so far"
        tiles.append(_tile(f"{run.scored[1].max():.3f}", "validation score", meaning))
    done = percent(run.step, run.spec.schedule.steps)
    tiles.append(_tile(f"{run.step:,}", "steps", f"{done} of {run.spec.schedule.steps:,}"))
    tiles.append(_tile(duration(run.seconds), "time of steps", "without validation and reading"))
    yield styled("div", "tiles", *tiles)


def _tile(number: str, label: str, meaning: str) -> Markup:
    return styled(
        "div",
        "tile",
        styled("div", "number", number),
        styled("div", "label", label),
        styled("div", "small", meaning),
    )


def _summary(run: Run) -> Iterator[str]:
    """Say what was trained on what, how long, and how good it is."""
    net = f"A {run.spec.net.dimensions}D network"
    if isinstance(run.environment.get("parameters"), int):
        net += f" of {count(run.environment['parameters'], 'parameter')}"
    labels = count(run.count_instances("train"), "labelled instance")
    images = count(len(run.instances.get("train", {})), "image")
    device = "the CPU" if run.environment.get("device") == "cpu" else "a GPU"
    yield f"{net} learnt from {labels} in {images}, in {duration(run.seconds)} on {device}."
    if run.fitted is None:
        yield from _outlook(run)
        return
    of_images = count(run.fitted.validation_images, "image")
    if run.examples is not None:
        kinds, total = run.examples.count(), sum(image.true for image in run.examples.images)
        yield (
            f"On {of_images} that it did not learn from it finds {kinds['right']:,} of "
            f"{count(total, 'instance')} ({percent(kinds['right'], total)}), and "
            f"{kinds['false']:,} of those that it finds are false."
        )
    elif "ap50" in run.fitted.validation:
        yield (
            f"On {of_images} that it did not learn from, its average precision at IoU 0.50 is "
            f"{run.fitted.validation['ap50']:.2f}, where 1 is perfect."
        )
    yield "The recipe was fitted on these images, so expect a little less on new ones."


def _outlook(run: Run) -> Iterator[str]:
    steps, scores = run.scored
    planned = run.spec.schedule.steps
    left = run.seconds / run.step * (planned - run.step) if run.step else 0.0
    yield f"It is at step {run.step:,} of {planned:,}, with about {duration(left)} to go."
    if len(scores):
        best = int(scores.argmax())
        yield f"Its best validation score so far is {scores[best]:.3f}, at step {steps[best]:,.0f}."


def _section(title: str, *content: str) -> Markup:
    return element("section", element("h2", title), *content)


def _mistakes(run: Run) -> Markup:
    """What became of the instances of validation, all together and image by image."""
    title = "What it finds, and what not"
    if run.examples is None:
        told = "Validation images are kept when the recipe is fitted, at the end of train."
        if run.fitted is not None:
            told = "This run kept no validation images: train --resume adds them."
        return _section(title, element("p", told))
    images, kinds = run.examples.images, run.examples.count()
    total = sum(image.true for image in images)
    shares = [
        element("span", attributes={"class": kind, "style": f"flex:{kinds[kind]}"})
        for kind in KINDS
        if kinds[kind] and kind != "false"
    ]
    key = [
        element("li", styled("b", kind, f"{kinds[kind]:,} {kind}"), f" {_KIND_WORDS[kind]}")
        for kind in KINDS
    ]
    ranked = sorted(images, key=lambda image: -image.ap50)
    head = ("image", "AP 0.50", "mean AP", "SBD", "true", "found", *KINDS)
    rows = [
        (
            image.name,
            *(f"{score:.3f}" for score in (image.ap50, image.mean_ap, image.sbd)),
            *map(str, (image.true, image.found, *(image.kinds[kind] for kind in KINDS))),
        )
        for image in ranked
    ]
    return _section(
        title,
        element("p", f"What became of {count(total, 'true instance')} of the validation images:"),
        styled("div", "shares", *shares),
        styled("ul", "key", *key),
        bar_chart(
            "AP at IoU 0.50 of every validation image",
            [image.name for image in ranked],
            [image.ap50 for image in ranked],
        ),
        folded("Scores of every image", table(head, rows)),
    )


def _examples(run: Run) -> Markup:
    """Show the worst and the best images."""
    images = run.examples.images if run.examples else ()
    shown = {example.shown: example for example in images if example.shown}
    parts = []
    if shown and run.spec.net.dimensions == 3:
        parts.append(styled("p", "small", "Pictures show the middle slice of each volume."))
    for group, title in (("worst", "Where it fails"), ("best", "Where it works best")):
        of_group = [_example(shown[name], run) for name in sorted(shown) if name.startswith(group)]
        if of_group:
            parts += [element("h3", title), *of_group]
    return _section("Examples", *parts) if parts else Markup()


def _example(example: Example, run: Run) -> Markup:
    """Show one image: as it is, the truth, what was found, and the mistakes."""
    panels = []
    captions = {
        "image": "image",
        "truth": f"truth: {example.true}",
        "found": f"found: {example.found}",
        "mistakes": "mistakes",
    }
    for panel in PANELS:
        content = b64encode(run.pictures[f"{example.shown}-{panel}.png"]).decode()
        source = {"src": f"data:image/png;base64,{content}", "alt": f"{example.name}, {panel}"}
        caption = element("figcaption", captions[panel])
        panels.append(element("figure", element("img", attributes=source), caption))
    told = [styled("b", kind, f"{n} {kind}") for kind, n in example.kinds.items() if n]
    name = styled("span", "name", example.name)
    scores = f" AP {example.ap50:.2f} at IoU 0.50 "
    return styled(
        "article",
        "example",
        element("p", name, scores, styled("span", "kinds", join(told, " "))),
        styled("div", "panels", *panels),
    )


def _next(run: Run) -> Markup:
    hints = find_hints(run)
    if not hints:
        return _section("What to try next", element("p", "Nothing stands out."))
    items = [element("li", element("b", title), f" {text}") for title, text in hints]
    return _section("What to try next", styled("ol", "hints", *items))


def _course(run: Run) -> Markup:
    """Curves over the steps."""
    history = run.history
    steps = history["step"]
    lines = []
    for name in _TERMS:
        is_there = np.isfinite(history[name])
        if np.nan_to_num(history[name]).any():
            column = history[name][is_there]
            lines.append(Line(name.replace("_", " "), name, steps[is_there], column))
    charts = []
    if lines:
        is_log = all((line.values >= 0).all() for line in lines)
        charts.append(line_chart("Loss and its terms", lines, run.step, is_log=is_log))
    scored, scores = run.scored
    if len(scores):
        best = int(scores.argmax())
        score = Line("score", "score", scored, scores, has_points=True)
        title = f"Validation score (mean AP); best {scores[best]:.3f} at step {scored[best]:,.0f}"
        charts.append(line_chart(title, [score], run.step))
    rate = Line("learning rate", "rate", steps, history["learning_rate"])
    charts.append(line_chart("Learning rate", [rate], run.step))
    told = (
        "Terms are means over some steps, each before it is weighed. The validation score is that "
        "of the recipe before it is fitted, so the scores above may be higher."
    )
    return _section("Training", styled("div", "charts", *charts), styled("p", "small", told))


def _recipe(run: Run) -> Markup:
    """How instances are made, and what else was tried."""
    if run.fitted is None:
        told = "It is fitted on the validation images when all steps are done."
        return _section("Recipe", element("p", told))
    fitted = run.fitted
    rows = [(word, value(held)) for word, held in _plain(fitted.recipe).items()]
    told = f"How instances are made of embeddings, with the network of step {fitted.step:,}"
    steps, scores = run.scored
    if fitted.step == run.spec.schedule.steps and len(scores) and scores[-1] < scores.max():
        best = int(steps[scores.argmax()])
        told += (
            f", the last one: that of step {best:,} scored best in training, with the recipe of "
            "the spec, but less than this one once both were fitted"
        )
    parts: list[str] = [
        element("p", f"{told}:"),
        table(("setting", "value"), rows),
    ]
    if len(fitted.tried) > 1:
        ranked = sorted(fitted.tried, key=lambda tried: -tried.score)
        others = [(f"{tried.score:.3f}", *_tell(tried)) for tried in ranked]
        head = ("mean AP", "clustering", "foreground", "least pixels")
        told = (
            f"{count(len(ranked), 'recipe')} tried, from {ranked[-1].score:.3f} to "
            f"{ranked[0].score:.3f}; settings stay as they are where others are not better:"
        )
        parts += [element("p", told), table(head, others[:_MOST_TRIED])]
        if others[_MOST_TRIED:]:
            parts.append(folded("The others", table(head, others[_MOST_TRIED:])))
    return _section("Recipe", *parts)


def _tell(recipe: Recipe) -> tuple[str, str, str]:
    words = _plain(recipe)
    return value(words["clustering"]), value(words["foreground"]), str(recipe.min_size)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe with names of methods in place of pairs; a centre is too long to read."""
    words = recipe.model_dump(mode="json")
    for part, tag in (("clustering", "method"), ("foreground", "rule")):
        inner = {word: held for word, held in words[part].items() if word not in (tag, "center")}
        words[part] = [words[part][tag].replace("_", " "), inner] if inner else words[part][tag]
    return words


def _data(run: Run) -> Markup:
    data = run.spec.data
    rows = []
    for split, zero in (
        ("train", data.label_zero),
        ("val", data.validation_label_zero or data.label_zero),
    ):
        counts = [len(ids) for ids in run.instances.get(split, {}).values()]
        spread = f"{min(counts)} to {max(counts)}, median {median(counts):g}" if counts else "none"
        word = "training" if split == "train" else "validation"
        rows.append((word, f"{len(counts):,}", f"{sum(counts):,}", spread, zero))
    parts: list[str] = [
        table(("split", "images", "instances used", "an image", "0 in labels is"), rows)
    ]
    if data.instance_ratio < 1:
        told = (
            f"Of the labelled instances {100 * data.instance_ratio:.3g}% were used, chosen by seed "
            f"{data.instance_seed}; the rest counted as unlabelled."
        )
        parts.append(element("p", told))
    if data.boundary_width:
        told = (
            f"Where instances touch, each lost {count(data.boundary_width, 'pixel')} to "
            "background, and the pieces that were left counted as instances."
        )
        parts.append(element("p", told))
    if run.spec.card.data != Spec().card.data:
        parts.append(element("p", run.spec.card.data))
    names = [
        (split, name, str(len(ids)))
        for split, images in run.instances.items()
        for name, ids in images.items()
    ]
    parts.append(folded("Every image", table(("split", "image", "instances used"), names)))
    return _section("Data", *parts)


def _settings(run: Run) -> Markup:
    """Settings that differ from the defaults; all of them folded."""
    rows = list(_differences(run.spec, Spec()))
    told = element("p", "All settings are the defaults.")
    head = ("setting", "value", "default", "meaning")
    return _section(
        "Settings",
        table(head, rows) if rows else told,
        folded("All settings", element("pre", dump_spec(run.spec))),
    )


def _differences(spec: Spec, defaults: Spec) -> Iterator[tuple[str, str, str, str]]:
    """List the words that differ, their values and defaults, and what they mean."""
    for section in type(spec).model_fields:
        ours, theirs = getattr(spec, section), getattr(defaults, section)
        if section == "card" or not isinstance(ours, BaseModel):
            continue
        for word, field in type(ours).model_fields.items():
            held, usual = getattr(ours, word), getattr(theirs, word)
            if held != usual:
                shown = [
                    value(part.model_dump(mode="json") if isinstance(part, BaseModel) else part)
                    for part in (held, usual)
                ]
                yield f"{section}.{word}", shown[0], shown[1], field.description or ""


def _environment(run: Run) -> Markup:
    rows = [
        (word.replace("_", " "), f"{held:,}" if type(held) is int else value(held))
        for word, held in run.environment.items()
    ]
    seconds = run.history["seconds_per_step"]
    rows.append(("seconds a step, mean", f"{fmean(np.nan_to_num(seconds)):.2f}"))
    return _section("Environment", table(("fact", "value"), rows))
