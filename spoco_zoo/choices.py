"""How a package makes instances: by its recipe, by flags, or by one fitted to a labelled image.

A package of others says nothing of clustering, and nothing is assumed: what is missing is asked
for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from spoco_zoo.annotations import read_painted
from spoco_zoo.boundaries import Watershed
from spoco_zoo.errors import ImageError, SettingError
from spoco_zoo.fitting import Embedded, Fitted, fit_recipe
from spoco_zoo.foreground import Everywhere, External, Head
from spoco_zoo.foreign import Boundaries, Embeddings, ForeignPackage, is_foreign, load_foreign
from spoco_zoo.images import read_image
from spoco_zoo.labels import BACKGROUND, KNOWN_BACKGROUND, UNLABELED
from spoco_zoo.package import Package, load_package
from spoco_zoo.prediction import Settings, embedding_of, predict
from spoco_zoo.recipe import Consistency, Hdbscan, Recipe
from spoco_zoo.refusals import explain
from spoco_zoo.segmentation import embed
from spoco_zoo.session import EmbeddingSession, NetworkSession
from spoco_zoo.spec import Spec, parse_spec


@dataclass(frozen=True)
class Flags:
    """What a user says of how instances are made; None where nothing is said."""

    method: str | None = None
    bandwidth: float | None = None
    min_size: int | None = None
    threshold: float | None = None
    recipe: Recipe | None = None
    has_mask: bool = False


def plan_run(
    location: Path, flags: Flags, block: int | None, device: str, precision: str
) -> tuple[Settings, Callable[[], EmbeddingSession | NetworkSession]]:
    """Find out how a package, ours or not, makes instances, and how to open it.

    Raises:
        PackageError: The package is missing, damaged, unsafe, or not of a kind that runs here.
        SettingError: A flag does not fit the package, or one is missing.
    """
    if not is_foreign(location):
        ours = load_package(location)
        return change_recipe(ours, flags), lambda: EmbeddingSession(
            ours, device, precision=precision
        )
    package = load_foreign(location)
    if block is not None or precision != "float32":
        raise SettingError(
            f"--block and --precision are for packages of spoco-zoo, and {package.name} is none: "
            "leave them out"
        )
    return choose_settings(package, flags), lambda: NetworkSession(package, device)


def change_recipe(package: Package, flags: Flags) -> Recipe:
    """Apply flags to the recipe of a package of ours, or to one that is given instead.

    Raises:
        SettingError: A flag does not fit the package, or makes an impossible recipe.
    """
    recipe = flags.recipe or package.config.recipe
    changed = recipe.model_dump() | {"clustering": _change_method(recipe, flags)}
    if flags.min_size is not None:
        changed["min_size"] = flags.min_size
    if flags.threshold is not None:
        _check_threshold(flags, package.name, "head", has_head=package.has_foreground_head)
        changed["foreground"] = _change_threshold(recipe, flags.threshold)
    return _make_recipe(changed)


def choose_settings(package: ForeignPackage, flags: Flags) -> Settings:
    """Find out how a package of others makes instances.

    Raises:
        SettingError: A flag does not fit what the package gives, or one is missing.
    """
    clustering: dict[str, object] = {
        "--method": flags.method,
        "--bandwidth": flags.bandwidth,
        "--recipe": flags.recipe,
    }
    if isinstance(package.meaning, Embeddings):
        return _choose_recipe(package, flags)
    if isinstance(package.meaning, Boundaries):
        _refuse(package, "boundaries", clustering)
        _check_threshold(flags, package.name, "output", has_head=True)
        numbers = {"threshold": flags.threshold, "min_size": flags.min_size}
        given = {name: value for name, value in numbers.items() if value is not None}
        try:
            return Watershed.model_validate(given)
        except ValidationError as error:
            raise SettingError(explain(error, Watershed)) from error
    others: dict[str, object] = {"--min-size": flags.min_size, "--threshold": flags.threshold}
    _refuse(package, "labels", clustering | others)
    return None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe as `fit` or a training writes it.

    Raises:
        SettingError: The file cannot be read, or holds no recipe.
    """
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{path}: cannot be read: expected a recipe as fit writes it") from error
    if isinstance(words, dict) and "recipe" in words:
        words = words["recipe"]
    try:
        return Recipe.model_validate(words)
    except ValidationError as error:
        raise SettingError(f"{path}: {explain(error, Recipe)}") from error


def fit_to_image(
    session: EmbeddingSession | NetworkSession, image: Path, labels: Path, label_zero: str
) -> Fitted:
    """Fit a recipe to one image whose instances are labelled.

    Args:
        session: A package of embeddings, open.
        image: The image.
        labels: Its labels: an image, or outlines of Fiji or QuPath.
        label_zero: What 0 means there: `background`, or `unlabeled`.

    Raises:
        ImageError: A file cannot be read, or they do not fit each other or the package.
        SettingError: The package gives no embedding.
    """
    package = session.package
    pixels = read_image(image, package.n_axes).pixels
    truth = read_painted(labels, pixels.shape[1:])
    if truth.shape != pixels.shape[1:]:
        raise ImageError(
            f"{labels} has shape {truth.shape}, {image} has {pixels.shape[1:]}: "
            "expected the labels of this image"
        )
    if not (truth > 0).any():
        raise ImageError(f"{labels}: holds no instance: expected some that are labelled")
    if isinstance(session, NetworkSession):
        found = embedding_of(session.package, predict(pixels, session))
    else:
        found = embed(pixels, session)
    states = truth.copy()
    if label_zero == "unlabeled":
        states[truth == BACKGROUND] = UNLABELED
    states[truth == KNOWN_BACKGROUND] = BACKGROUND
    seen = Embedded(found.embedding, found.momentum_embedding, found.probability, states)
    if isinstance(package, Package):
        margins = package.config.delta_var, package.config.delta_dist
    else:
        margins = _measure_margins(found.embedding, truth)
    spec = _make_spec(margins, has_head=found.probability is not None)
    return fit_recipe(spec, [seen])


def open_package(location: Path, device: str = "auto") -> EmbeddingSession | NetworkSession:
    """Open a package, ours or that of others.

    Raises:
        PackageError: The package is missing, damaged, unsafe, or not of a kind that runs here.
        DeviceError: The device is not there.
    """
    if is_foreign(location):
        return NetworkSession(load_foreign(location), device)
    return EmbeddingSession(load_package(location), device)


def dump_fitted(fitted: Fitted) -> bytes:
    """Write a fitted recipe, with what it and the others scored, as JSON."""
    words = {
        "recipe": fitted.recipe.model_dump(mode="json"),
        "scores": fitted.scores,
        "trials": [
            {"recipe": trial.recipe.model_dump(mode="json"), "mean_ap": round(trial.score, 4)}
            for trial in fitted.trials
        ],
    }
    return json.dumps(words, indent=1).encode()


def _make_spec(margins: tuple[float, float], *, has_head: bool) -> Spec:
    """Say what the search wants to know of a training."""
    words: dict[str, Any] = {
        "net": {"foreground_head": has_head},
        "loss": {"delta_var": margins[0], "delta_dist": margins[1]},
    }
    return parse_spec(words, "fit")


def _measure_margins(embedding: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Measure how far an instance spreads, and half the distance to the next one.

    A network of others was trained with margins that nobody states; the search starts at these.
    """
    points = embedding.reshape(len(embedding), -1).T.astype(np.float64)
    ids = truth.ravel()
    names = np.unique(ids[ids > 0])
    centres = np.stack([points[ids == name].mean(axis=0) for name in names])
    spreads = [
        np.percentile(np.linalg.norm(points[ids == name] - centre, axis=1), 90)
        for name, centre in zip(names, centres, strict=True)
    ]
    spread = max(float(np.median(spreads)), 1e-6)
    if len(names) == 1:
        return spread, 4 * spread
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return spread, max(float(np.median(apart.min(axis=1))) / 2, 1e-6)


def _refuse(package: ForeignPackage, kind: str, given: dict[str, object]) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise SettingError(
            f"{' and '.join(wrong)} cannot change the {kind} that {package.name} gives: "
            f"leave {'it' if len(wrong) == 1 else 'them'} out"
        )


def _choose_recipe(package: ForeignPackage, flags: Flags) -> Recipe:
    if flags.recipe is None and flags.bandwidth is None:
        raise SettingError(
            f"{package.name} gives embeddings and no recipe for instances: give --bandwidth, or "
            "fit a recipe on a labelled image (spoco-zoo fit) and give it with --recipe"
        )
    meaning = package.meaning
    has_head = isinstance(meaning, Embeddings) and meaning.foreground is not None
    _check_threshold(flags, package.name, "output", has_head=has_head)
    recipe = flags.recipe
    if recipe is None:
        rule = Head() if has_head else Everywhere()
        recipe = Recipe(foreground=External() if flags.has_mask else rule)
    changed = recipe.model_dump() | {"clustering": _change_method(recipe, flags)}
    if flags.min_size is not None:
        changed["min_size"] = flags.min_size
    if flags.threshold is not None:
        changed["foreground"] = _change_threshold(recipe, flags.threshold)
    made = _make_recipe(changed)
    if isinstance(made.clustering, Consistency):
        raise SettingError(
            f"the method is consistency, and {package.name} has no momentum embedding: "
            "use mean-shift or hdbscan"
        )
    if isinstance(made.foreground, Head) and not has_head:
        raise SettingError(
            f"the foreground rule is head, and {package.name} has no foreground output: "
            "fit the recipe on this package"
        )
    return made


def _change_method(recipe: Recipe, flags: Flags) -> dict[str, Any]:
    """Change method and radius; the radius stays that of the recipe where none is given."""
    old = recipe.clustering
    radius = old.epsilon if isinstance(old, Hdbscan) else old.bandwidth
    radius = radius if flags.bandwidth is None else flags.bandwidth
    name = flags.method or old.method
    words: dict[str, Any] = old.model_dump() if name == old.method else {"method": name}
    words["epsilon" if name == "hdbscan" else "bandwidth"] = radius
    return words


def _change_threshold(recipe: Recipe, threshold: float) -> dict[str, Any]:
    """Set the threshold of the foreground head; instances are told apart no lower."""
    core = recipe.foreground.model_dump().get("core_threshold")
    return {
        "rule": "head",
        "threshold": threshold,
        "core_threshold": None if core is None else max(core, threshold),
    }


def _check_threshold(flags: Flags, name: str, word: str, *, has_head: bool) -> None:
    if flags.threshold is None:
        return
    if flags.has_mask:
        raise SettingError(
            "--threshold and --mask both say what is foreground: give one of them only"
        )
    if not has_head:
        raise SettingError(
            f"--threshold is {flags.threshold}, but {name} has no foreground {word}: leave it out"
        )


def _make_recipe(words: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(words)
    except ValidationError as error:
        raise SettingError(explain(error, Recipe)) from error
