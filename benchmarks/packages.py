"""Make the shipped packages anew: after a change of words, cards or proofs, without training.

    spoco-zoo engines --install
    python benchmarks/packages.py weights/                # all of them, about an hour on two cores
    python benchmarks/packages.py packages/ nuclei-2d --engines installed
    python benchmarks/packages.py weights/ --words  # cards and descriptions alone

What a run left is in the repository, in two places: its weights in `weights/NAME/weights.pt`, the
rest in `benchmarks/NAME`. They are put together as a run folder again, with the card that
`specs/NAME.yaml` has now, and exported as any run is. So every number of a card is one that the
run, its test scores or this export measured. Networks for consistency clustering have two sets of
weights, of which a package may hold one: those are not made here.

With `--words` no weights are written and nothing is proven again: card and `rdf.yaml` are written
anew around the files that `proof.json` vouches for, whose hashes are compared first.
"""

import argparse
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch

from spoco_zoo.archive import read_description
from spoco_zoo.packaging import ExportOptions, export_packages
from spoco_zoo.packaging.acceptance import check_consumers, check_round_trip
from spoco_zoo.packaging.export import _Draft
from spoco_zoo.packaging.flavours import build_flavour
from spoco_zoo.packaging.graphs import package_net
from spoco_zoo.packaging.memory import SIZES, Memory
from spoco_zoo.packaging.proof import Check, Proof
from spoco_zoo.packaging.run_folder import read_run
from spoco_zoo.spec import change_spec, dump_yaml, load_spec
from spoco_zoo.training.checkpoints import CHECKPOINT_VERSION, build_pair

ROOT = Path(__file__).resolve().parent.parent
ENDINGS = {
    "embeddings": "",
    "instances": "-instances",
    "boundaries": "-boundaries",
    "qupath": "-qupath",
}
NETWORKS = sorted(
    path.parent.name
    for path in (ROOT / "weights").glob("*/rdf.yaml")
    if not path.parent.name.endswith(tuple(filter(None, ENDINGS.values())))
)


def rebuild_run(name, folder):
    """Put a run folder together that export takes."""
    left = ROOT / "benchmarks" / name
    trained, told = load_spec(left / "spec.yaml"), load_spec(ROOT / "specs" / f"{name}.yaml")
    spec = change_spec(told, {"net": {"in_channels": trained.net.in_channels}})
    for part in ("net", "loss", "schedule", "augmentation"):
        if getattr(spec, part) != getattr(trained, part):
            raise SystemExit(f"specs/{name}.yaml: {part} is not what the network was trained with")
    pair = build_pair(spec)
    state = torch.load(ROOT / "weights" / name / "weights.pt", weights_only=True)
    prefix = "embedding_net."
    net = {word.removeprefix(prefix): value for word, value in state.items()}
    pair.embedding_net.load_state_dict(net)
    pair.momentum_net.load_state_dict(net)
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(dump_yaml(spec.model_dump(mode="json")), encoding="utf-8")
    checkpoint = {"version": CHECKPOINT_VERSION, "pair": pair.state_dict()}
    torch.save(checkpoint, folder / "best.pt")
    for file in ("environment.json", "recipe.json", "history.csv", "boundaries.json"):
        if (left / file).is_file():
            shutil.copyfile(left / file, folder / file)
    return folder


def read_proof(folder):
    """Read the proof of a package, whose files must be those that were proven."""
    told = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
    for name, digest in told["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{folder / name}: is not the file that was proven: export it anew")
    words = ("name", "engine", "value", "limit", "trouble")
    checks = [Check(*(check[word] for word in words)) for check in told["checks"]]
    return Proof(told["package"], told["engines"], told["engines_missing"], checks)


def read_memory(folder, n_axes):
    """Read what the description says of memory."""
    told = read_description(folder)["config"]["bioimageio"].get("memory_requirements_inference")
    if told is None:
        return None
    numbers = {"base": r"(\d+) MB (?:and|besides)", "slope": r"(\d+) MB for every"}
    base, slope = (float(re.search(numbers[word], told)[1]) for word in ("base", "slope"))
    return Memory(re.search(r"CPU in (.*?), measured", told)[1], base, slope, SIZES[n_axes])


def tell_again(run_folder, scores, package, name):
    """Write card and description of a package anew, around what was proven."""
    run, pair = read_run(run_folder, scores, is_draft=True)
    net = package_net(run.spec, pair, momentum=False)
    flavour = build_flavour(name, net, run.spec, run.recipe)
    draft = _Draft(run, net, flavour, package)
    alerts = draft.tell(read_proof(package), read_memory(package, run.spec.net.dimensions))
    check_consumers(package)
    if name == "embeddings":
        check_round_trip(package, draft.meant())
    print(f"{package}: {'; '.join(alerts) or 'nothing more to ask for'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="folder of the packages")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--flavours", nargs="*", default=list(ENDINGS))
    parser.add_argument("--engines", choices=("installed", "cached", "all"), default="all")
    parser.add_argument("--words", action="store_true", help="cards and descriptions alone")
    words = parser.parse_args()
    for name in words.networks:
        scores = ROOT / "benchmarks" / name / "scores.json"
        options = ExportOptions(
            engines=words.engines, scores=scores, draft=True, overwrite=True, on_stage=print
        )
        with tempfile.TemporaryDirectory() as place:
            run = rebuild_run(name, Path(place) / name)
            for flavour in words.flavours:
                package = f"{name}{ENDINGS[flavour]}"
                if not (ROOT / "weights" / package).is_dir():
                    continue
                if words.words:
                    tell_again(run, scores, words.target / package, flavour)
                    continue
                for line in export_packages(run, words.target / package, flavour, options):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
