"""What must hold before a package gets its name, measured on its files in the engines of its users.

- Agreement: every engine computes the same from every weights format, on the smallest size, on
  sizes that were not traced, and on images that are constant, noisy, or both.
- Tiles: an image cut as the description allows equals the whole; what happens off the pooling
  grid, where ilastik cuts at the border of an image, is measured too.
- Reach: no pixel beyond the declared halo changes the result.
- Programs: each bioimageio.core accepts the package and reproduces its test tensors.

The files are run in processes of their own (`spoco_zoo.engines`); nothing is taken on trust from
the code that wrote them. The result, `proof.json`, lies in the package.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spoco_zoo.archive import RDF_NAME, read_description
from spoco_zoo.engines import Engine, run_images, test_core
from spoco_zoo.errors import PackageError
from spoco_zoo.packaging.description import FILES
from spoco_zoo.packaging.instances import OUTPUT as LABELS

if TYPE_CHECKING:
    from rich.table import Table

AGREEMENT = 1e-4  # largest difference allowed, over the mean length of a pixel's vector
TILES_AGREE = 1e-5  # the same for tiles on the pooling grid

Run = Callable[[np.ndarray], list[np.ndarray]]  # a normalised image (1, c, *space), its outputs
_Batch = Callable[[Sequence[np.ndarray]], list[list[np.ndarray]]]  # the same for several

_TILE = {2: 512, 3: 64}  # what ilastik cuts, where the least size is not more


@dataclass(frozen=True)
class Check:
    """One thing that was measured; `limit` is None where it is only told."""

    name: str
    engine: str
    value: float
    limit: float | None
    trouble: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return not self.trouble and (self.limit is None or self.value <= self.limit)

    def to_words(self) -> dict[str, Any]:
        """Plain words; a value that is no number (shapes differ, or outputs are not) is None."""
        value = self.value if math.isfinite(self.value) else None
        return asdict(self) | {"value": value, "passed": self.passed}

    def __str__(self) -> str:
        """One sentence for a check that does not hold."""
        if self.trouble:
            return f"{self.name} in {self.engine}: {self.trouble}"
        return f"{self.name} in {self.engine}: {self.value:.1e}, expected at most {self.limit:.0e}"


@dataclass
class Proof:
    """All checks of a package."""

    package: str
    engines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """Checks that do not hold."""
        return [check for check in self.checks if not check.passed]

    def worst(self, name: str) -> float | None:
        """The largest value of a check over all engines."""
        return max((check.value for check in self.checks if check.name == name), default=None)

    def demand(self) -> None:
        """Raise the first check that does not hold.

        Raises:
            PackageError: There is one.
        """
        if self.failed:
            raise PackageError(
                f"{self.package} is not proven: {self.failed[0]}; "
                "export it with other settings, or report this as a defect of spoco-zoo"
            )

    @property
    def summary(self) -> str:
        """One line on all of it."""
        if self.failed:
            return f"{len(self.failed)} of {len(self.checks)} checks do not hold: {self.failed[0]}"
        missing = f"; not in {', '.join(self.missing)}" if self.missing else ""
        return f"all {len(self.checks)} checks hold in {len(self.engines)} engines{missing}"

    def table(self) -> "Table":
        """All checks, for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table("check", "engine", "measured", "allowed", "")
        for check in self.checks:
            limit = "" if check.limit is None else f"{check.limit:.0e}"
            state = "ok" if check.passed else check.trouble or "fails"
            table.add_row(check.name, check.engine, f"{check.value:.1e}", limit, Text(state))
        return table

    def to_json(self, files: Mapping[str, str] | None = None) -> str:
        """The same for programs; `files` are the hashes of what was proven."""
        words = {
            "spoco_zoo": version("spoco-zoo"),
            "package": self.package,
            "engines": self.engines,
            "engines_missing": self.missing,
            "checks": [check.to_words() for check in self.checks],
            "files": dict(files or {}),
        }
        return json.dumps(words, indent=1, allow_nan=False) + "\n"

    def write(self, folder: Path, files: Sequence[str]) -> None:
        """Write `proof.json`, with the hashes of the files that were proven."""
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
        (folder / FILES["proof"]).write_text(self.to_json(hashes), encoding="utf-8")


@dataclass(frozen=True)
class Candidate:
    """A package as far as proving needs it, read from its description."""

    folder: Path
    name: str
    weights: Mapping[str, str]  # file by format
    channels: int
    smallest: tuple[int, ...]
    step: tuple[int, ...]
    halo: tuple[int, ...]
    is_label: bool

    @property
    def formats(self) -> tuple[Literal["onnx", "torchscript"], ...]:
        """Weights that engines open directly."""
        return tuple(kind for kind in ("onnx", "torchscript") if kind in self.weights)


def read_candidate(folder: Path) -> Candidate:
    """Read what proving needs from `rdf.yaml` of an unpacked package.

    Raises:
        PackageError: The description is damaged, or of a kind that cannot be proven here: it has
            not one image as input, or its sizes are fixed.
    """
    words = read_description(folder)
    try:
        (image,) = words["inputs"]
        kinds = [axis["type"] for axis in image["axes"]]
        space = [axis for axis in image["axes"] if axis["type"] == "space"]
        if kinds != ["batch", "channel", *["space"] * len(space)]:
            raise ValueError(f"axes are {', '.join(kinds)}")
        (channel,) = (axis for axis in image["axes"] if axis["type"] == "channel")
        sizes = [axis["size"] for axis in space]
        halos = [
            [int(axis.get("halo") or 0) for axis in output["axes"] if axis["type"] == "space"]
            for output in words["outputs"]
        ]
        return Candidate(
            folder,
            str(words["name"]),
            {
                kind: str(entry["source"])
                for kind, entry in words["weights"].items()
                if isinstance(entry, dict)
            },
            len(channel["channel_names"]),
            tuple(int(size["min"]) for size in sizes),
            tuple(int(size["step"]) for size in sizes),
            tuple(map(max, zip(*halos, strict=True))),
            any(
                "int" in str(output["data"]["type"]) or output.get("id") == LABELS
                for output in words["outputs"]
            ),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"{folder / RDF_NAME}: cannot be proven ({type(error).__name__}: {error}): expected "
            "one image of batch, channel and space, with sizes of the kind min and step"
        ) from error


def prove(
    candidate: Candidate,
    engines: Sequence[Engine],
    truth: Run | None = None,
    images: Sequence[np.ndarray] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Proof:
    """Measure a package in some engines.

    Args:
        candidate: The package.
        engines: Those to ask; of each kind that is installed beside this package at least one.
        truth: What the training code computes; the first engine that opens the package where
            left out.
        images: Normalised images `(1, c, *space)` to compare on beside those of `make_images`.
        on_stage: Told what is done next.

    Raises:
        PackageError: No engine opens the package at all.
    """
    proof = Proof(candidate.name, [engine.name for engine in engines])
    direct = [engine for engine in engines if engine.kind in candidate.formats]
    if not direct and not any(engine.kind == "bioimageio" for engine in engines):
        raise PackageError(
            f"{candidate.folder}: has weights {', '.join(candidate.weights)}, which no engine here "
            "opens: expected onnx or torchscript"
        )
    images = [*make_images(candidate), *images] if candidate.smallest else []
    first = None
    if images:
        first, direct = _find_first(proof, candidate, direct, images[0])
    if first is not None:
        expected = first(images) if truth is None else [truth(image) for image in images]
        _check_agreement(proof, candidate, direct, images, expected, on_stage)
    if first is not None and any(candidate.halo):
        name = direct[0].name
        on_stage(f"comparing tiles with the whole in {name}")
        try:
            _check_tiles(proof, candidate, first, name)
            _check_reach(proof, candidate, first, name)
        except PackageError as error:
            proof.checks.append(Check("tiles", name, 0.0, TILES_AGREE, str(error)))
    for engine in engines:
        if engine.kind == "bioimageio":
            on_stage(f"testing in {engine.name}")
            _check_core(proof, candidate, engine)
    return proof


def make_images(candidate: Candidate, seed: int = 0) -> list[np.ndarray]:
    """Images (1, c, *space): noise, nothing, and both, on the least size and on odd ones."""
    random = np.random.default_rng(seed)
    images = []
    for number, factor in enumerate((0, 1, 3, 7)):
        space = [
            least + factor * -(-5 // step) * step
            for least, step in zip(candidate.smallest, candidate.step, strict=True)
        ]
        noise = random.normal(size=(1, candidate.channels, *space)).astype(np.float32)
        is_left = np.arange(space[-1]) < space[-1] // 2
        images.append([noise, noise, noise * 0, noise * is_left][number].astype(np.float32))
    return images


def difference(truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest difference of any value, over the mean length of a pixel's vector.

    Of labels, the part of the pixels that differ.
    """
    if [a.shape for a in truth] != [b.shape for b in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(truth, found, strict=True):
        if a.dtype.kind in "iu":
            worst = max(worst, float((a != b).mean()))
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        else:
            length = max(float(np.linalg.norm(truth[0].astype(float), axis=1).mean()), 1.0)
            worst = max(worst, float(np.abs(a - b).max()) / length)
    return worst


def _runner(engine: Engine, candidate: Candidate) -> _Batch:
    assert engine.kind != "bioimageio"
    path = candidate.folder / candidate.weights[engine.kind]
    return lambda images: run_images(engine, path, images)


def _find_first(
    proof: Proof, candidate: Candidate, engines: Sequence[Engine], image: np.ndarray
) -> tuple[_Batch | None, list[Engine]]:
    """Find an engine that opens the package; it and those after it. Note those that do not."""
    for number, engine in enumerate(engines):
        run = _runner(engine, candidate)
        try:
            run([image])
        except PackageError as error:
            proof.checks.append(Check("agreement", engine.name, 0.0, AGREEMENT, str(error)))
            continue
        return run, list(engines[number:])
    return None, []


def _check_agreement(
    proof: Proof,
    candidate: Candidate,
    engines: Sequence[Engine],
    images: Sequence[np.ndarray],
    expected: Sequence[Sequence[np.ndarray]],
    on_stage: Callable[[str], None],
) -> None:
    """Compare all engines with the truth on the same images."""
    limit = 0.0 if candidate.is_label else AGREEMENT
    for engine in engines:
        on_stage(f"running in {engine.name}")
        run = _runner(engine, candidate)
        try:
            worst = max(map(difference, expected, run(images)))
        except PackageError as error:
            proof.checks.append(Check("agreement", engine.name, 0.0, limit, str(error)))
            continue
        proof.checks.append(Check("agreement", engine.name, worst, limit))


def _check_tiles(proof: Proof, candidate: Candidate, run: _Batch, engine: str) -> None:
    """Compare tiles, on the grid of the declared steps and off it, with a whole image."""
    halo, step = candidate.halo, candidate.step
    tile = [
        least + -(-max(_TILE[len(halo)] - least, 0) // by) * by
        for least, by in zip(candidate.smallest, step, strict=True)
    ]
    inner = [size - 2 * h for size, h in zip(tile, halo, strict=True)]
    # with a step of 1, pixels of the grid are where halos end, which are multiples of it
    grid = [by if by > 1 else max(h, 1) for by, h in zip(step, halo, strict=True)]
    start = [size // g * g for size, g in zip(inner, grid, strict=True)]
    space = [a + size + g for a, size, g in zip(start, tile, grid, strict=True)]
    random = np.random.default_rng(1)
    image = random.normal(size=(1, candidate.channels, *space)).astype(np.float32)
    every = (slice(None), slice(None))
    middle = tuple(slice(h, size - h) for h, size in zip(halo, tile, strict=True))
    corners = list(product(*((0, a) for a in start)))
    ways = (("tiles", 0, TILES_AGREE), ("tiles off the grid", 1, None))
    places = [
        tuple(slice(a + shift, a + shift + size) for a, size in zip(corner, tile, strict=True))
        for _, shift, _ in ways
        for corner in corners
    ]
    whole, *cuts = run([image, *(np.ascontiguousarray(image[(*every, *p)]) for p in places)])
    worst = []
    for place, cut in zip(places, cuts, strict=True):
        parts = [all_of_it[(*every, *place)][(*every, *middle)] for all_of_it in whole]
        found = [part[(*every, *middle)] for part in cut]
        worst.append(max(difference([a], [b]) for a, b in zip(parts, found, strict=True)))
    for number, (name, _, limit) in enumerate(ways):
        these = worst[number * len(corners) : (number + 1) * len(corners)]
        proof.checks.append(Check(name, engine, max(these), limit))


def _check_reach(proof: Proof, candidate: Candidate, run: _Batch, engine: str) -> None:
    """Change one pixel and see how far away the result changes; at most the halo."""
    random = np.random.default_rng(2)
    space = [2 * h + 3 * max(s, 8) for h, s in zip(candidate.halo, candidate.step, strict=True)]
    image = random.normal(size=(1, candidate.channels, *space)).astype(np.float32)
    places = [[size // 2 + shift for size in space] for shift in (0, 3)]
    images = [image, image.copy(), image.copy()]
    for place, changed in zip(places, images[1:], strict=True):
        changed[(slice(None), slice(None), *(slice(n, n + 1) for n in place))] += 10.0
    before, *after = run(images)
    excess = -max(candidate.halo)
    for place, outputs in zip(places, after, strict=True):
        for old, new in zip(before, outputs, strict=True):
            where = np.argwhere((old != new).any(axis=(0, 1)))
            if len(where):
                far = np.abs(where - place).max(axis=0)
                excess = max(
                    excess, *(int(f - h) for f, h in zip(far, candidate.halo, strict=True))
                )
    proof.checks.append(Check("pixels seen beyond the halo", engine, float(excess), 0.0))


def _check_core(proof: Proof, candidate: Candidate, engine: Engine) -> None:
    """Let a bioimageio.core reproduce the test tensors with every weights format."""
    result: Any = test_core(engine, candidate.folder, tuple(candidate.weights))
    for kind in candidate.weights:
        trouble = "; ".join(result.errors.get(kind, ()))[:500]
        proof.checks.append(Check(f"test tensors, {kind}", engine.name, 0.0, None, trouble))
