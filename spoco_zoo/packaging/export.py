"""Export: a finished run in, a proven package out, or nothing.

All files are written into a hidden folder beside the target; only when every proof has passed
does it get its name. A target that ends in `.zip` becomes a zip, any other a folder.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from spoco_zoo.archive import RDF_NAME
from spoco_zoo.errors import PackageError, SettingError
from spoco_zoo.normalization import fit_affine
from spoco_zoo.package import Package, SpocoConfig, load_package
from spoco_zoo.packaging.card import Proven, RunFacts, read_scores, write_card, write_cover
from spoco_zoo.packaging.description import (
    FILES,
    Facts,
    describe,
    hash_files,
    smallest_size,
    test_output_name,
)
from spoco_zoo.packaging.graphs import (
    architecture,
    output_names,
    package_net,
    write_onnx,
    write_state_dict,
    write_torchscript,
)
from spoco_zoo.packaging.proof import (
    check_round_trip,
    measure_agreement,
    measure_tiling,
    test_with_bioimageio,
)
from spoco_zoo.recipe import Consistency, Recipe
from spoco_zoo.segmentation import embed, make_instances
from spoco_zoo.session import EmbeddingSession
from spoco_zoo.simulation import simulate_nuclei
from spoco_zoo.spec import Spec
from spoco_zoo.training import net as net_module
from spoco_zoo.training.checkpoints import load_run
from spoco_zoo.training.net import PackagedUNet, count_parameters


@dataclass(frozen=True)
class ExportOptions:
    """How a package is written."""

    scores: Path | None = None
    overwrite: bool = False
    on_stage: Callable[[str], None] = lambda stage: None


def export_package(run_folder: Path, target: Path, options: ExportOptions) -> Package:
    """Write the bioimage.io package of a finished run.

    Raises:
        SettingError: The run is not finished, or the scores cannot be read.
        PackageError: The target exists, cannot be written, or a proof fails.
    """
    run_folder, target = Path(run_folder), Path(target)
    _check_target(target, overwrite=options.overwrite)
    scores = None if options.scores is None else read_scores(options.scores)
    spec, pair, fitted = load_run(run_folder)
    try:
        environment = json.loads((run_folder / "environment.json").read_text(encoding="utf-8"))
        recipe = Recipe.model_validate(fitted["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"{run_folder}: environment.json or recipe.json is damaged: train again"
        ) from error
    run = RunFacts(spec, fitted, environment)
    net = package_net(spec, pair, momentum=isinstance(recipe.clustering, Consistency))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            folder = Path(name) / "package"
            folder.mkdir()
            draft = _Draft(spec, recipe, net, folder)
            options.on_stage("writing ONNX, TorchScript and state dict")
            draft.write_weights()
            draft.write_test_tensors()
            draft.write_sample()
            options.on_stage("comparing torch, TorchScript and ONNX Runtime, tiles and whole")
            proven = draft.prove()
            (folder / FILES["card"]).write_text(write_card(run, proven, scores), encoding="utf-8")
            draft.describe()
            options.on_stage("testing every weight format with bioimageio.core")
            test_with_bioimageio(folder)
            check_round_trip(folder, net, draft.meant())
            options.on_stage("giving it its name")
            _publish(folder, target)
    except OSError as error:
        raise PackageError(
            f"{target}: cannot be written ({error.strerror or error}): "
            "free space or choose another folder"
        ) from error
    return load_package(target)


@dataclass(frozen=True)
class _Draft:
    """A package on its way, in a folder that nobody sees."""

    spec: Spec
    recipe: Recipe
    net: PackagedUNet
    folder: Path

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
            "embedding_dim": self.spec.net.embedding_dim,
            "config": self.config(),
        }

    def write_weights(self) -> None:
        odd = [step * 2 + 1 for step in self.net.embedding_net.multiple_of]
        example = torch.randn(1, self.channels, *odd)
        write_onnx(self.net, example, self.folder / FILES["onnx"])
        write_torchscript(self.net, example, self.folder / FILES["torchscript"])
        write_state_dict(self.net, self.folder / FILES["state_dict"])
        # the file that trained the network is the file that ships
        shutil.copyfile(net_module.__file__, self.folder / FILES["architecture"])

    def write_test_tensors(self) -> None:
        """Raw test input, and the outputs that torch gives for it."""
        space = [
            size + step + 3
            for size, step in zip(
                smallest_size(self.config()), self.net.embedding_net.multiple_of, strict=True
            )
        ]
        image = self._simulate(space, seed=0).astype(np.float32)
        normalized = fit_affine(image, self.spec.data.normalization).apply(image)
        np.save(self.folder / FILES["input"], image[None])
        with torch.no_grad():
            outputs = self.net(torch.from_numpy(normalized)[None])
        for name, output in zip(output_names(self.net), outputs, strict=True):
            np.save(self.folder / test_output_name(name), output.numpy())

    def write_sample(self) -> None:
        """Write an image to try the package on, simulated as the test input is."""
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

    def prove(self) -> Proven:
        """Measure the graphs through the runtime that `run` uses, and draw the cover."""
        for name in (FILES["card"], FILES["cover"]):
            (self.folder / name).write_bytes(b"")  # the description names them
        self.describe()
        with EmbeddingSession(load_package(self.folder), "cpu") as session:
            agreement = measure_agreement(self.net, self.folder / FILES["torchscript"], session)
            tiled = measure_tiling(session)
            space = (352, 232) if self.spec.net.dimensions == 2 else (16, 176, 116)
            image = self._simulate(space, seed=1)
            embedded = embed(image, session)
            labels = make_instances(embedded, self.recipe)
            (self.folder / FILES["cover"]).unlink()
            write_cover(self.folder / FILES["cover"], image, embedded, labels)
        return Proven(agreement, tiled, count_parameters(self.net))

    def describe(self) -> None:
        """Write `rdf.yaml` for the files that are there."""
        f = self.net.embedding_net
        sizes = dict.fromkeys(output_names(self.net), f.embedding_dim)
        if "foreground" in sizes:
            sizes["foreground"] = 1
        expected = {name: np.load(self.folder / test_output_name(name)) for name in sizes}
        facts = Facts(
            outputs=sizes,
            architecture=architecture(self.spec, momentum=self.net.momentum_net is not None),
            config=self.config(),
            parameters=count_parameters(self.net),
            peaks={name: float(values.max()) for name, values in expected.items()},
        )
        words = describe(self.spec, facts)
        text = yaml.safe_dump(words, sort_keys=False, allow_unicode=True, width=100)
        (self.folder / RDF_NAME).write_text(text, encoding="utf-8")

    def _simulate(self, space: tuple[int, ...] | list[int], seed: int) -> np.ndarray:
        image, _ = simulate_nuclei(tuple(space), seed)
        return np.repeat(image[None], self.channels, axis=0)


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Stop before work is done for a target that may not be written."""
    if target.exists() and not overwrite:
        raise PackageError(f"{target}: exists already: choose another name or add --overwrite")
    if target.exists() and target.suffix != ".zip" and not (target / RDF_NAME).is_file():
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
