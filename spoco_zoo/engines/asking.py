"""Ask an engine: weights and an array in, arrays out; or a package in, its verdict out."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from spoco_zoo.archive import RDF_NAME, find_description
from spoco_zoo.engines.child import Ending, first_line, run_child
from spoco_zoo.engines.kinds import Engine
from spoco_zoo.errors import MissingExtraError, PackageError

TIMEOUT = 600.0  # seconds for one run
CORE_TIMEOUT = 1800.0  # seconds for all weights formats
ADVICE = {
    "onnx": "expected a whole file of opset 17 and IR version 8 at most; export it anew",
    "torchscript": "expected a whole file, traced, of operators that PyTorch 2.0 has; "
    "export it anew",
}
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class CoreResult:
    """What one bioimageio.core says of a package."""

    engine: str
    core_version: str
    spec_version: str
    errors: Mapping[str, tuple[str, ...]]
    """Of each weights format that was asked for; empty where it is accepted."""

    @property
    def passed(self) -> bool:
        """Whether every weights format is accepted."""
        return not any(self.errors.values())


def run_onnx(
    engine: Engine, model: Path, inputs: np.ndarray, timeout: float = TIMEOUT
) -> list[np.ndarray]:
    """Run an ONNX file with one input on an array; its outputs in their order.

    Args:
        engine: One of the kind "onnx".
        model: The file.
        inputs: Of the shape and type that the network asks for, usually `(1, c, *space)`.
        timeout: In seconds.

    Raises:
        MissingExtraError: The engine is not there.
        PackageError: The engine refuses the file or the array, dies, or takes too long.
    """
    return _run(engine, "onnx", model, [inputs], timeout)[0][0]


def run_torchscript(
    engine: Engine, model: Path, inputs: np.ndarray, timeout: float = TIMEOUT
) -> list[np.ndarray]:
    """Run a TorchScript file with one input on an array; its outputs in their order.

    Args:
        engine: One of the kind "torchscript".
        model: The file.
        inputs: Of the shape and type that the network asks for, usually `(1, c, *space)`.
        timeout: In seconds.

    Raises:
        MissingExtraError: The engine is not there.
        PackageError: The engine refuses the file or the array, dies, or takes too long.
    """
    return _run(engine, "torchscript", model, [inputs], timeout)[0][0]


def run_images(
    engine: Engine, model: Path, images: Sequence[np.ndarray], timeout: float = TIMEOUT
) -> list[list[np.ndarray]]:
    """Run a file with one input on several arrays; the outputs of each.

    The engines of this Python open the file once for all of them, those of the cache for each.

    Args:
        engine: One that opens the file itself.
        model: The file.
        images: Of the shapes and the type that the network asks for, usually `(1, c, *space)`.
        timeout: In seconds, for each.

    Raises:
        MissingExtraError: The engine is not there.
        PackageError: The engine refuses the file or an array, dies, or takes too long.
    """
    assert engine.kind != "bioimageio"
    count = 1 if engine.from_cache else max(len(images), 1)
    groups = [images[start : start + count] for start in range(0, len(images), count)]
    found = [_run(engine, engine.kind, model, group, timeout)[0] for group in groups]
    return [outputs for group in found for outputs in group]


def measure_peak(
    engine: Engine, model: Path, inputs: np.ndarray, timeout: float = TIMEOUT
) -> int | None:
    """Run a file on an array; the most memory in bytes that the engine's process held.

    Returns:
        None where the engine or the system does not tell.

    Raises:
        MissingExtraError: The engine is not there.
        PackageError: The engine refuses the file or the array, dies, or takes too long.
    """
    assert engine.kind != "bioimageio"
    peak = _run(engine, engine.kind, model, [inputs], timeout)[1].get("peak_bytes")
    return peak if isinstance(peak, int) else None


def test_core(engine: Engine, folder: Path, weights: Sequence[str]) -> CoreResult:
    """Let a bioimageio.core validate and test a package, with each of some weights formats.

    A copy is tested. GitHub names are left out of it: they would be looked up, and a test needs no
    network. Without such names the description is tested byte by byte as it is.

    Args:
        engine: One of the kind "bioimageio".
        folder: The package, unpacked.
        weights: Names of weights formats as `rdf.yaml` has them.

    Raises:
        MissingExtraError: The engine is not there.
        PackageError: The package cannot be read, or the library itself does not work.
    """
    _check_there(engine, "bioimageio")
    with tempfile.TemporaryDirectory(prefix="spoco-zoo-") as name:
        copy = Path(name) / "package"
        try:
            shutil.copytree(folder, copy)
            description = copy / find_description(copy)
            _leave_out_github(description)
        except (OSError, UnicodeError, yaml.YAMLError, shutil.Error) as error:
            raise PackageError(
                f"{folder}: cannot be read ({first_line(str(error))}): expected the folder of a "
                f"package with {RDF_NAME}; export it anew"
            ) from error
        words = [*engine.command(), str(description), *weights]
        ending = run_child(words, Path(name), timeout=CORE_TIMEOUT, variables=ON_CPU)
    versions = next((line for line in ending.lines if "engine" in line), None)
    if versions is None:
        raise PackageError(
            f"{engine.name} does not work ({_reason(ending)}): remove it from the cache and "
            "install it anew"
        )
    heard = {line["weights"]: line["errors"] for line in ending.lines if "weights" in line}
    errors = {word: tuple(heard[word]) if word in heard else (_reason(ending),) for word in weights}
    return CoreResult(engine.name, versions["engine"], versions["spec"], errors)


def _run(
    engine: Engine,
    kind: Literal["onnx", "torchscript"],
    model: Path,
    images: Sequence[np.ndarray],
    timeout: float,
) -> tuple[list[list[np.ndarray]], dict[str, Any]]:
    """Run a file in a child; its outputs for each image, and what else it told of the last."""
    _check_there(engine, kind)
    model = Path(model).resolve()
    if not model.is_file():
        raise PackageError(f"{model}: is not there: give the file of the weights")
    with tempfile.TemporaryDirectory(prefix="spoco-zoo-") as name:
        folder = Path(name)
        files = [model]
        for number, image in enumerate(images):
            little = image.astype(image.dtype.newbyteorder("<"), order="C", copy=False)
            np.save(folder / f"input{number}.npy", little, allow_pickle=False)
            files += [folder / f"input{number}.npy", folder / f"output{number}_"]
        words = [*engine.command(), *map(str, files)]
        ending = run_child(words, folder, timeout=timeout * len(images), variables=ON_CPU)
        answers = [line for line in ending.lines if "outputs" in line]
        told = ending.lines[-1] if ending.lines else {}
        if ending.trouble is not None or len(answers) < len(images):
            raise PackageError(
                f"{model}: {engine.name} cannot {told.get('stage', 'open')} it "
                f"({_reason(ending)}): {ADVICE[kind]}"
            )
        if told["engine"] != engine.version:
            raise PackageError(
                f"{engine.name} says it is {told['engine']}: expected {engine.version}; "
                "install it anew"
            )
        return [
            [
                np.load(folder / f"output{number}_{output}.npy", allow_pickle=False)
                for output in range(len(answer["outputs"]))
            ]
            for number, answer in enumerate(answers)
        ], told


def _check_there(engine: Engine, kind: str) -> None:
    if engine.kind != kind:
        raise ValueError(f"{engine.name} opens {engine.kind}, not {kind}")
    if not engine.find():
        raise MissingExtraError(f"{engine.name} is not installed: run spoco-zoo engines --install")


def _reason(ending: Ending) -> str:
    """Why an engine gave no answer, in its own words where it has any."""
    said = first_line(str(ending.lines[-1].get("error", ""))) if ending.lines else ""
    return said or ending.trouble or "it gave no answer"


def _leave_out_github(path: Path) -> None:
    words = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(words, dict):
        raise yaml.YAMLError(f"{path.name} is not a mapping")
    people = [p for key in ("authors", "maintainers") for p in words.get(key) or []]
    named = [p for p in people if isinstance(p, dict) and "github_user" in p]
    if not named:
        return
    words.pop("maintainers", None)  # who are nobody without their name there
    for person in named:
        del person["github_user"]
    path.write_text(yaml.safe_dump(words, sort_keys=False, allow_unicode=True), encoding="utf-8")
