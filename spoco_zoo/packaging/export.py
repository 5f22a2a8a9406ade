"""Export: a finished run in, a proven package out, or nothing.

All files are written into a hidden folder beside the target; only when every proof has passed
does it get its name. A target that ends in `.zip` becomes a zip, any other a folder.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spoco_zoo.archive import RDF_NAME
from spoco_zoo.engines import Engine, pick_engines
from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.labels import relabel
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import SpocoConfig
from spoco_zoo.packaging.acceptance import (
    check_consumers,
    check_round_trip,
    find_alerts,
    test_with_bioimageio,
)
from spoco_zoo.packaging.card import write_card, write_cover
from spoco_zoo.packaging.description import (
    FILES,
    Facts,
    describe,
    hash_files,
    package_id,
    sample_output_name,
    test_output_name,
    torchscript_name,
)
from spoco_zoo.packaging.flavours import (
    FLAVOURS,
    Flavour,
    FlavourName,
    build_flavour,
    check_flavour,
)
from spoco_zoo.packaging.graphs import (
    architecture,
    output_names,
    package_net,
    write_onnx,
    write_state_dict,
    write_torchscript,
)
from spoco_zoo.packaging.memory import Memory, measure_memory
from spoco_zoo.packaging.proof import Check, Proof, prove, read_candidate
from spoco_zoo.packaging.qupath import give_as_qupath
from spoco_zoo.packaging.run_folder import RunFacts, read_run
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.scenes import simulate_scene
from spoco_zoo.segmentation import make_instances
from spoco_zoo.session import Embedded
from spoco_zoo.spec import SceneName, Spec, dump_yaml
from spoco_zoo.training import net as net_module
from spoco_zoo.training.net import PackagedUNet, count_parameters

_DRAFT = "drafts are for you and your colleagues: export without --draft for a collection"
_UPLOAD = """to share on bioimage.io:
  1. open the package in the program that it is for, once
  2. make it a zip, with rdf.yaml at its top (a target NAME.zip is one already)
  3. choose Upload on https://bioimage.io, log in, and give it the zip
  4. its tests take some minutes; then a reviewer looks at it, and may ask you there"""


@dataclass(frozen=True)
class ExportOptions:
    """How a package is written."""

    flavour: FlavourName = "embeddings"
    engines: Literal["installed", "cached", "all"] = "installed"
    scores: Path | None = None
    maintainer: str | None = None  # the name on GitHub of who answers for it in a collection
    draft: bool = False
    overwrite: bool = False
    on_stage: Callable[[str], None] = lambda stage: None


def export_package(run_folder: Path, target: Path, options: ExportOptions) -> Path:
    """Write a bioimage.io package of a finished run, of one flavour; its path.

    Raises:
        SettingError: The run is not finished, the scores cannot be read, or the recipe cannot go
            into a graph.
        PackageError: The target exists, cannot be written, or a proof fails; or, of what is no
            draft, something is missing that a collection asks for.
        MissingExtraError: An engine cannot be installed.
    """
    run_folder, target = Path(run_folder), Path(target)
    _check_target(target, overwrite=options.overwrite)
    run, pair = read_run(
        run_folder, options.scores, is_draft=options.draft, maintainer=options.maintainer
    )
    spec, recipe = run.spec, run.recipe
    check_flavour(options.flavour, spec, recipe)
    is_consistency = isinstance(recipe.clustering, Consistency)
    net = package_net(spec, pair, momentum=is_consistency and options.flavour == "embeddings")
    flavour = build_flavour(options.flavour, net, spec, recipe)
    engines = pick_engines(options.engines)
    for engine in engines:
        engine.install(options.on_stage)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            folder = Path(name) / "package"
            folder.mkdir()
            draft = _Draft(run, net, flavour, folder)
            options.on_stage(f"{flavour.name}: writing weights, test tensors and pictures")
            draft.write_weights()
            draft.write_test_tensors()
            draft.write_pictures()
            draft.describe()
            proof = draft.prove(engines, options.on_stage)
            options.on_stage("measuring memory")
            memory = draft.measure_memory(engines, options.on_stage)
            alerts = draft.tell(proof, memory)
            options.on_stage("testing every weight format with bioimageio.core")
            test_with_bioimageio(folder, flavour.formats)
            check_consumers(folder)
            if alerts and not options.draft:
                raise PackageError(
                    f"{package_id(spec, flavour.name)}: a collection would ask for more "
                    f"({'; '.join(alerts)[:400]}): fill in the card in {run_folder / 'spec.yaml'}, "
                    "give a --maintainer where that is asked for, or export a --draft"
                )
            if flavour.name == "embeddings":
                check_round_trip(folder, draft.meant())
            options.on_stage("giving it its name")
            _publish(folder, target)
    except OSError as error:
        raise PackageError(
            f"{target}: cannot be written ({error.strerror or error}): "
            "free space or choose another folder"
        ) from error
    return target


def export_packages(
    run_folder: Path, target: Path, flavour: FlavourName | Literal["all"], options: ExportOptions
) -> Iterator[str]:
    """Write one flavour to a target, or all that the run allows into a folder, by their ids.

    Yields:
        A line on every package, when it is there; or why the recipe allows none.

    Raises:
        As `export_package`.
    """
    upload = _DRAFT if options.draft else _UPLOAD
    if flavour != "all":
        path = export_package(run_folder, target, replace(options, flavour=flavour))
        yield f"{path}: {flavour}, proven"
        yield upload
        return
    if target.suffix.lower() == ".zip" or target.is_file():
        raise SettingError(f"{target}: expected a folder for the packages of all flavours")
    run, _ = read_run(Path(run_folder), options.scores)
    places = {name: target / package_id(run.spec, name) for name in FLAVOURS}
    for name in FLAVOURS:
        try:
            check_flavour(name, run.spec, run.recipe)
        except SettingError as error:
            places.pop(name)
            yield f"no {name} package: {error}"
    for place in places.values():
        _check_target(place, overwrite=options.overwrite)
    for name, place in places.items():
        export_package(run_folder, place, replace(options, flavour=name))
        yield f"{place}: {name}, proven"
    yield upload


@dataclass(frozen=True)
class _Draft:
    """A package on its way, in a folder that nobody sees."""

    run: RunFacts
    net: PackagedUNet
    flavour: Flavour
    folder: Path

    @property
    def spec(self) -> Spec:
        return self.run.spec

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def channels(self) -> int:
        return self.spec.net.in_channels or 0

    def config(self) -> SpocoConfig:
        f = self.net.embedding_net
        return SpocoConfig(
            multiple_of=f.multiple_of,
            halo=f.halo,
            crop=self.spec.schedule.crop,
            delta_var=self.spec.loss.delta_var,
            delta_dist=self.spec.loss.delta_dist,
            recipe=self.recipe,
            files=hash_files(self.folder),
        )

    def meant(self) -> dict[str, object]:
        """What reading the package must give."""
        return {
            "name": self.spec.card.title,
            "channels": self.channels,
            "normalization": self.spec.data.normalization,
            "outputs": tuple(output.id for output in self.flavour.outputs),
            "embedding_dim": self.spec.net.embedding_dim,
            "config": self.config(),
        }

    def write_weights(self) -> None:
        odd = [step * 2 + 1 for step in self.net.embedding_net.multiple_of]
        example = torch.randn(1, self.channels, *odd)
        names = [output.id for output in self.flavour.outputs]
        if "onnx" in self.flavour.formats:
            write_onnx(self.flavour.source, example, names, self.folder / FILES["onnx"])
        write_torchscript(self.flavour.script, self.folder / torchscript_name(self.flavour.name))
        if "pytorch_state_dict" in self.flavour.formats:
            write_state_dict(self.net, self.folder / FILES["state_dict"])
            # the file that trained the network is the file that ships
            shutil.copyfile(net_module.__file__, self.folder / FILES["architecture"])

    def compute(self, image: np.ndarray) -> list[np.ndarray]:
        """What the training code gives for an image `(1, c, *space)` as it is given."""
        with torch.no_grad():
            return [output.numpy() for output in self.flavour.run(torch.from_numpy(image))]

    def write_test_tensors(self) -> None:
        """Raw test input, and the outputs that torch gives for it."""
        grid = self.net.embedding_net.multiple_of
        least = (64, 64) if self.spec.net.dimensions == 2 else (16, 48, 48)
        space = [max(size, n) for size, n in zip(self.flavour.smallest, least, strict=True)]
        if self.flavour.name == "boundaries":
            # ilastik's tiles begin anywhere; twice the grid is where all of them agree
            space = [-(-n // (2 * step)) * 2 * step for n, step in zip(space, grid, strict=True)]
        else:
            # off the grid; of a volume one voxel is enough, since its tensors are large files
            is_image = len(space) == 2
            space = [n + (step + 3 if is_image else 1) for n, step in zip(space, grid, strict=True)]
        image = self._simulate(space, seed=0).astype(np.float32)
        np.save(self.folder / FILES["input"], image[None])
        outputs = self.compute(self._give(image)[None])
        for output, values in zip(self.flavour.outputs, outputs, strict=True):
            np.save(self.folder / test_output_name(output.id), values)

    def write_pictures(self) -> None:
        """Write an image to try the package on, simulated as the test input is, and the cover."""
        import tifffile

        space = (384, 512) if self.spec.net.dimensions == 2 else (32, 128, 128)
        image = self._simulate(space, seed=2)
        axes = "CZYX"[-image.ndim :] if image.ndim == 4 else "CYX"
        tifffile.imwrite(
            self.folder / FILES["sample"],
            image if self.channels > 1 else image[0],
            photometric="minisblack",
            compression="zlib",
            metadata={"axes": axes if self.channels > 1 else axes[1:]},
        )
        outputs = self.compute(self._give(image)[None])
        for output, values in zip(self.flavour.outputs, outputs, strict=True):
            tifffile.imwrite(
                self.folder / sample_output_name(output.id),
                _to_picture(values[0], is_label=output.is_label),
                photometric="minisblack",
                compression="zlib",
            )
        image, embedded, labels = self._segment(self._simulate_cover())
        write_cover(self.folder / FILES["cover"], image, embedded, labels)
        (self.folder / FILES["card"]).write_text("# Draft\n", encoding="utf-8")  # it is described

    def prove(self, engines: tuple[Engine, ...], on_stage: Callable[[str], None]) -> Proof:
        """Measure what was written, and keep the proof with it."""
        given = self._give(self._simulate_cover())
        candidate = read_candidate(self.folder)
        proof = prove(candidate, engines, self.compute, [given[None]], on_stage)
        there = {engine.name for engine in engines}
        proof.missing = [e.name for e in pick_engines("all") if e.name not in there]
        if candidate.is_label:
            # QuPath's network is given what is normalised already, and normalises that
            image = given if self.flavour.name == "qupath" else self._simulate_cover()
            found = self.compute(given[None])[0][0, 0].astype(np.int64)
            gap = float((relabel(found) != self._segment(image)[2]).mean())
            proof.checks.append(Check("labels of spoco-zoo run", "spoco-zoo", gap, 0.0))
        proof.demand()
        proof.write(self.folder, sorted(hash_files(self.folder).keys() - {FILES["card"]}))
        return proof

    def measure_memory(
        self, engines: tuple[Engine, ...], on_stage: Callable[[str], None] = lambda stage: None
    ) -> Memory | None:
        """Measure the peak memory of the first engine that opens the weights.

        A machine on which that fails still gets its package, which does not tell it.
        """
        kind = self.flavour.formats[0]
        engine = next(e for e in engines if e.kind == kind and not e.from_cache)
        name = FILES["onnx"] if kind == "onnx" else torchscript_name(self.flavour.name)
        try:
            return measure_memory(
                engine,
                self.folder / name,
                self.spec.net.dimensions,
                lambda space: self._give(self._simulate(space, seed=3))[None],
            )
        except PackageError as error:
            on_stage(f"memory is not told: {error}")
            return None

    def tell(self, proof: Proof, memory: Memory | None) -> list[str]:
        """Write card and description for people; what a collection would still ask for."""
        self.write_card(proof, memory)
        self.describe(memory)
        lacks = find_alerts(self.folder)
        if lacks and self.run.is_draft:
            replace(self, run=replace(self.run, lacks=tuple(lacks))).write_card(proof, memory)
            self.describe(memory)
        return lacks

    def write_card(self, proof: Proof, memory: Memory | None) -> None:
        """Write the card."""
        card = write_card(self.run, self.flavour, proof, count_parameters(self.net), memory)
        (self.folder / FILES["card"]).write_text(card, encoding="utf-8")

    def describe(self, memory: Memory | None = None) -> None:
        """Write `rdf.yaml` for the files that are there."""
        outputs = [output.id for output in self.flavour.outputs]
        expected = {name: np.load(self.folder / test_output_name(name)) for name in outputs}
        facts = Facts(
            run=self.run,
            flavour=self.flavour,
            config=self.config() if self.flavour.name == "embeddings" else None,
            architecture=architecture(self.spec, momentum=self.net.momentum_net is not None),
            parameters=count_parameters(self.net),
            peaks={name: float(values.max()) for name, values in expected.items()},
            files=hash_files(self.folder),
            memory=memory,
        )
        words = describe(facts)
        text = dump_yaml(words)
        (self.folder / RDF_NAME).write_text(text, encoding="utf-8")

    def _segment(self, image: np.ndarray) -> tuple[np.ndarray, Embedded, np.ndarray]:
        """Segment an image as `run` does, with the training code's embeddings."""
        with torch.no_grad():
            found = self.net(torch.from_numpy(self._normalize(image))[None])
        arrays = dict(zip(output_names(self.net), (a[0].numpy() for a in found), strict=True))
        probability = arrays["foreground"][0] if "foreground" in arrays else None
        embedded = Embedded(arrays["embedding"], probability, arrays.get("momentum_embedding"))
        return image, embedded, make_instances(embedded, self.recipe)

    def _normalize(self, image: np.ndarray) -> np.ndarray:
        return fit_affine(image, self.spec.data.normalization).apply(image)

    def _give(self, image: np.ndarray) -> np.ndarray:
        """An image as programs give it to the network, after the operations of `rdf.yaml`."""
        return give_as_qupath(image) if self.flavour.name == "qupath" else self._normalize(image)

    def _simulate_cover(self) -> np.ndarray:
        """The image of the cover."""
        space = (352, 232) if self.spec.net.dimensions == 2 else (16, 176, 116)
        return self._simulate(space, seed=1)

    def _simulate(self, space: tuple[int, ...] | list[int], seed: int) -> np.ndarray:
        image = _simulated(self.spec.card.scene, tuple(space), seed)
        return np.repeat(image[None], self.channels, axis=0)


@lru_cache(maxsize=8)
def _simulated(scene: SceneName, space: tuple[int, ...], seed: int) -> np.ndarray:
    """An image of a scene, which all flavours of a network share."""
    return simulate_scene(scene, space, seed)[0]


def _to_picture(values: np.ndarray, *, is_label: bool) -> np.ndarray:
    """An output `(c, *space)` as people look at it: labels, or 8 bits a channel, three at most."""
    if is_label:
        return values.astype(np.uint16)
    shown = values[:3]
    axes = tuple(range(1, values.ndim))
    low, high = shown.min(axis=axes, keepdims=True), shown.max(axis=axes, keepdims=True)
    if low.min() >= 0 and high.max() <= 1:  # a probability is shown as it is
        low, high = np.zeros_like(low), np.ones_like(high)
    return np.asarray(255 * (shown - low) / np.maximum(high - low, 1e-6)).astype(np.uint8)


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Stop before work is done for a target that may not be written."""
    if target.exists() and not overwrite:
        raise PackageError(f"{target}: exists already: choose another name or add --overwrite")
    is_zip = target.suffix.lower() == ".zip" and target.is_file()
    if target.exists() and not is_zip and not (target / RDF_NAME).is_file():
        raise SettingError(
            f"{target}: is not a package and is not overwritten: choose another name"
        )


def _publish(folder: Path, target: Path) -> None:
    """Move the finished package to its name, as a zip if that is what the name says."""
    if target.suffix.lower() == ".zip":
        archive = folder.with_name("package.zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(folder.iterdir()):
                file.write(path, path.name)
        archive.replace(target)
        return
    old = folder.with_name("old")
    if target.exists():
        target.replace(old)
    try:
        folder.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
