"""The curve of an annotation budget, as PNG: scores against labelled objects."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from spoco_zoo.errors import MissingExtraError
from spoco_zoo.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# told apart without colour too: by the line and the marker
_LOOKS = (
    ("spoco", "SPOCO{}", "#0072B2", "o-"),
    ("baseline", "baseline: pull, push and norm", "#D55E00", "s--"),
    ("head", "baseline with the foreground head", "#009E73", "^:"),
)
_SPLITS = {"val": "validation images", "test": "test images"}


class Point(NamedTuple):
    """One method at one ratio: the median of its labelled objects, and the scores of its seeds."""

    method: str
    ratio: float
    labelled_objects: float
    ap50: tuple[float, ...]
    sbd: tuple[float, ...]


def draw_budget(
    points: Sequence[Point], split: str, target: Path, *, has_head: bool = True
) -> None:
    """Draw AP at IoU 0.50 and SBD over the count of labelled objects, for every method.

    The line goes through the medians over the seeds, the band from the lowest to the highest,
    and every seed is a dot. An older picture is replaced.

    Args:
        points: At least one.
        split: `val` or `test`, the images that were scored.
        target: The PNG.
        has_head: Whether networks of SPOCO have a foreground head, which the legend says.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: The disk refuses it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "figures of training need matplotlib: pip install 'spoco-zoo[train]'"
        ) from error
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    points = [*points, *_share(points)]
    _draw(left, points, [point.ap50 for point in points], "AP at IoU 0.50, all objects")
    _draw(right, points, [point.sbd for point in points], "SBD, mean of images")
    seeds = max(len(point.ap50) for point in points)
    shown = "one seed" if seeds == 1 else f"median and range of {seeds} seeds"
    figure.suptitle(f"Annotation budget: {_SPLITS[split]}, {shown}")
    handles, labels = left.get_legend_handles_labels()
    labels = [label.format(" with the foreground head" * has_head) for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(target, buffer.getvalue(), overwrite=True)


def _share(points: Sequence[Point]) -> list[Point]:
    """Give the baseline with a head the point that both have: with all labels they are the same."""
    if {point.ratio for point in points if point.method == "head"} in (set(), {1.0}):
        return []
    full = [p for p in points if p.method == "baseline" and p.ratio == 1]
    return [point._replace(method="head") for point in full]


def _draw(
    axes: "Axes", points: Sequence[Point], values: Sequence[tuple[float, ...]], title: str
) -> None:
    """Draw one score of every method."""
    for method, label, color, line in _LOOKS:
        mine = [(p, v) for p, v in zip(points, values, strict=True) if p.method == method]
        if not mine:
            continue
        objects = [point.labelled_objects for point, _ in mine]
        low, high = ([edge(v) for _, v in mine] for edge in (min, max))
        axes.fill_between(objects, low, high, color=color, alpha=0.15, linewidth=0)
        for point, scores in mine:
            axes.plot([point.labelled_objects] * len(scores), scores, ".", color=color, alpha=0.5)
        middle = [median(v) for _, v in mine]
        axes.plot(objects, middle, line, color=color, label=label, linewidth=2, markersize=6)
    axes.set_xscale("log")
    axes.set(title=title, xlabel="labelled objects in training", ylim=(0, 1))
    ticks = {point.ratio: point.labelled_objects for point in points}
    names = [f"{objects:.0f}\n{100 * ratio:.3g} %" for ratio, objects in ticks.items()]
    axes.set_xticks(list(ticks.values()), names)
    axes.minorticks_off()
    axes.grid(visible=True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
