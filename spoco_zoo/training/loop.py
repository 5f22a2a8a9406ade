"""The training loop, and the run folder that it leaves.

    runs/NAME/
    ├── spec.yaml         the complete recipe, defaults written out
    ├── instances.json    which images and which of their instances were used
    ├── environment.json  versions, device, precision, parameters
    ├── augmented.png     the first crops as the network sees them: both views, and labels
    ├── last.pt           networks, optimiser and step: where --resume goes on
    ├── best.pt           the same at the best validation score
    ├── history.csv       the terms of the loss over the steps
    ├── curves.png        the same as a picture
    ├── recipe.json       how embeddings become instances, and the score that this reached
    ├── examples/         the best and the worst validation images, for `spoco-zoo report`
    └── tensorboard/      scalars, and pictures of every validation

A run is a function of its spec and data: batches, anchors and learning rate depend on the
number of the step, so stopping and resuming changes nothing. The momentum net moves once a
step, in `pair.update`, and nowhere else.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spoco_zoo.curves import training_curves
from spoco_zoo.errors import SettingError
from spoco_zoo.examples import Validated, write_examples
from spoco_zoo.figures import write_png
from spoco_zoo.files import write_bytes
from spoco_zoo.metrics import mean_scores
from spoco_zoo.spec import Spec, dump_spec, parse_spec
from spoco_zoo.training.checkpoints import CHECKPOINT_VERSION, build_pair, load_checkpoint
from spoco_zoo.training.history import TERMS, History
from spoco_zoo.training.loss import LossTerms, iterate_terms, spoco_loss
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import count_parameters
from spoco_zoo.training.pictures import SHOWN, sample_of, show_pictures
from spoco_zoo.training.samples import AnySample, Batch, SparseSamples, read_samples
from spoco_zoo.training.schedule import (
    learning_rate,
    make_optimizer,
    pick_device,
    pick_precision,
)
from spoco_zoo.training.sheet import show_crops
from spoco_zoo.training.validation import (
    Embedded,
    Fitted,
    embed_all,
    find_instances,
    fit_recipe,
    goal,
    score_instances,
    start_recipe,
)

_LOG_EVERY = 10


@dataclass(frozen=True)
class StepReport:
    """What a progress bar shows."""

    step: int
    steps: int
    terms: dict[str, float]
    seconds_per_step: float
    score: float | None


@dataclass(frozen=True)
class TrainOptions:
    """What the machine and the day decide, and the result does not depend on."""

    device: str = "auto"
    resume: bool = False
    max_minutes: float | None = None
    on_step: Callable[[StepReport], None] = lambda report: None
    on_stage: Callable[[str], None] = lambda stage: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run_folder: Path
    step: int
    finished: bool
    fitted: Fitted | None


def train(spec: Spec, data: Path, run_folder: Path, options: TrainOptions) -> TrainResult:
    """Train a network on the splits train and val of a folder, in any layout of `datasets`.

    Raises:
        ImageError: Images or labels are missing or do not fit together.
        SettingError: The run folder is taken, or `resume` meets another spec.
        DeviceError: The device is not there.
    """
    device = pick_device(options.device)
    options.on_stage("reading images")
    samples = read_samples(data / "train", spec.data, spec.net.dimensions, thin=True)
    validation = read_samples(data / "val", spec.data, spec.net.dimensions, thin=False)
    validation = validation[: spec.schedule.validation_images]
    spec = _with_channels(spec, samples)
    run = _Run.open(spec, run_folder, device, resume=options.resume)
    chosen = _list_instances(samples, validation)
    if options.resume:
        run.check_instances(chosen)
    else:
        run.describe(samples, validation, chosen)
    deadline = None if options.max_minutes is None else time.monotonic() + 60 * options.max_minutes
    options.on_stage("training")
    with run:
        for step, batch, waited in _batches(samples, spec, run.step, device):
            began = time.monotonic()
            run.waits.append(waited)
            terms = run.take_step(batch)
            last = step + 1 == spec.schedule.steps
            due = last or (step + 1) % spec.schedule.validate_every == 0
            run.record(terms, time.monotonic() - began, due=due)
            score = None
            if due:
                score = run.validate(validation, batch)
            options.on_step(run.report(score))
            late = deadline is not None and time.monotonic() > deadline
            if options.should_stop() or (late and not last):
                run.save("last.pt")
                return TrainResult(run_folder, run.step, finished=False, fitted=None)
        run.save("last.pt")
        options.on_stage("fitting the recipe")
        fitted = run.fit(validation)
    training_curves(run_folder / "history.csv", run_folder / "curves.png")
    return TrainResult(run_folder, run.step, finished=True, fitted=fitted)


@dataclass
class _Run:
    """The state of a run, and its files."""

    spec: Spec
    folder: Path
    device: torch.device
    pair: MomentumPair
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    step: int = 0
    best_score: float = -1.0
    recent: list[tuple[dict[str, float], float]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds, since the last row
    board: Any = None

    def __post_init__(self) -> None:
        self.history = History(self.folder / "history.csv")

    @staticmethod
    def open(spec: Spec, folder: Path, device: torch.device, *, resume: bool) -> "_Run":
        torch.manual_seed(spec.schedule.seed)  # the weights before the first step
        pair = build_pair(spec).to(device, memory_format=_LAYOUT[spec.net.dimensions])  # type: ignore[call-overload]
        run = _Run(
            spec, folder, device, pair, make_optimizer(spec, pair), pick_precision(spec, device)
        )
        if resume:
            run._load()
        elif run._is_taken():
            raise SettingError(
                f"{folder}: holds a run already: choose another name, or --resume to go on"
            )
        return run

    def _is_taken(self) -> bool:
        """Whether the folder holds files that a new run would replace."""
        names = ("last.pt", "best.pt", "history.csv", "recipe.json")
        spec = self.folder / "spec.yaml"
        other_spec = spec.exists() and spec.read_text(encoding="utf-8") != dump_spec(self.spec)
        return other_spec or any((self.folder / name).exists() for name in names)

    def __enter__(self) -> "_Run":
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def check_instances(self, chosen: dict[str, Any]) -> None:
        """Refuse to go on with other images or instances than at the start."""
        path = self.folder / "instances.json"
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != chosen:
            raise SettingError(
                f"{path}: lists other images or instances than the data now: "
                "resume with the folder of its start"
            )

    def describe(
        self, samples: Sequence[AnySample], validation: Sequence[AnySample], chosen: dict[str, Any]
    ) -> None:
        """Write what this run is, before it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(self.folder / "spec.yaml", dump_spec(self.spec))
        _write_text(self.folder / "instances.json", json.dumps(chosen, indent=1))
        facts = {
            "torch": torch.__version__,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "parameters": count_parameters(self.pair.embedding_net),
            "train_images": len(samples),
            "train_instances": sum(len(sample.kept) for sample in samples),
            "val_images": len(validation),
        }
        _write_text(self.folder / "environment.json", json.dumps(facts, indent=1))
        self.save("last.pt")
        write_png(self.folder / "augmented.png", show_crops(samples, self.spec), overwrite=True)

    def take_step(self, batch: Batch) -> LossTerms:
        """Move f by the gradient of one batch, then g after it."""
        schedule, loss = self.spec.schedule, self.spec.loss
        self.pair.train()
        low = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=low):
            output = self.pair.embedding_net(batch.view_f)
            momentum_output = None
            if loss.consistency_weight and bool((batch.labels < 0).any()):
                with torch.no_grad():
                    momentum_output = self.pair.momentum_net(batch.view_g)
        split = self.pair.embedding_net.split(output.float())
        g = None
        if momentum_output is not None:
            g = self.pair.momentum_net.split(momentum_output.float()).embedding
        draws = torch.Generator().manual_seed(_mix(schedule.seed, self.step))
        terms = spoco_loss(split, g, batch.labels, loss, draws)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        length = torch.nn.utils.clip_grad_norm_(
            self.pair.embedding_net.parameters(), schedule.clip_norm
        )
        if not torch.isfinite(length):
            raise SettingError(
                f"the gradient is not finite at step {self.step}: "
                "lower schedule.learning_rate and start anew"
            )
        self.optimizer.step()
        self.step += 1
        # at the start g follows closely, or it would average the untrained weights for long
        self.pair.update(min(schedule.momentum, (1 + self.step) / (10 + self.step)))
        return terms

    def record(self, terms: LossTerms, seconds: float, *, due: bool) -> None:
        """Add one row to the history every few steps, and where a validation is due."""
        self.recent.append((dict(iterate_terms(terms)), seconds))
        if self.step % _LOG_EVERY == 0 or due:
            means = self._means()
            rate = learning_rate(self.spec, self.step - 1)
            seconds = sum(s for _, s in self.recent) / len(self.recent)
            waited = sum(self.waits) / len(self.waits)
            self.history.add(self.step, means, rate, (seconds, waited))
            for name, value in means.items():
                self.board.add_scalar(f"loss/{name}", value, self.step)
            self.board.add_scalar("learning_rate", rate, self.step)
            self.recent.clear()
            self.waits.clear()

    def report(self, score: float | None) -> StepReport:
        """Sum up where the run stands."""
        row = self.history.last
        terms = {name: row[name] for name in ("total", *TERMS) if row}
        seconds = row.get("seconds_per_step", 0.0)
        return StepReport(self.step, self.spec.schedule.steps, terms, seconds, score)

    def validate(self, validation: Sequence[AnySample], batch: Batch) -> float:
        """Cluster and score the validation images; keep the checkpoint if it is the best.

        The first of them, and the first crop of the batch, are shown on the board.
        """
        needs_g = self.spec.clustering_method.method == "consistency"
        embedded = self._embed(validation, needs_g=needs_g)
        recipe = start_recipe(self.spec, embedded)
        found = [find_instances(recipe, item) for item in embedded]
        score = goal(mean_scores([*map(score_instances, found, embedded)]))
        crop = sample_of(batch)
        (seen,) = self._embed([crop], needs_g=needs_g)
        shown = list(zip(validation[:SHOWN], embedded, found, strict=False))
        shown.append((crop, seen, find_instances(recipe, seen)))
        show_pictures(self.board, self.step, shown, self.spec.loss)
        self.board.add_scalar("validation/mean_ap", score, self.step)
        self.history.set_score(self.step, score)
        if score > self.best_score:
            self.best_score = score
            self.save("best.pt")
        self.save("last.pt")
        return score

    def _embed(self, validation: Sequence[AnySample], *, needs_g: bool) -> list[Embedded]:
        """Embed the validation images, by g too where clustering may ask for it."""
        pair = self.pair.eval()
        twin = pair.momentum_net if needs_g else None
        return embed_all(pair.embedding_net, validation, self.device, twin)

    def fit(self, validation: Sequence[AnySample]) -> Fitted:
        """Choose the numbers of the recipe with the best network, and write them."""
        best = load_checkpoint(self.folder / "best.pt", self.device)
        self.pair.load_state_dict(best["pair"])
        method = self.spec.clustering.method
        needs_g = method is None or method.method == "consistency"
        embedded = self._embed(validation, needs_g=needs_g)
        fitted = fit_recipe(self.spec, embedded)
        content = {
            "recipe": fitted.recipe.model_dump(mode="json"),
            "step": best["step"],
            "validation": fitted.scores,
            "validation_images": len(validation),
            "tried": [
                {"score": round(trial.score, 4), **trial.recipe.model_dump(mode="json")}
                for trial in fitted.trials
            ],
        }
        _write_text(self.folder / "recipe.json", json.dumps(content, indent=1))
        kept = [Validated(s.name, s.image, e) for s, e in zip(validation, embedded, strict=True)]
        write_examples(self.folder / "examples", kept, fitted.recipe)
        return fitted

    def save(self, name: str) -> None:
        """Write a checkpoint under its name only when it is complete, and the history."""
        state = {
            "version": CHECKPOINT_VERSION,
            "step": self.step,
            "best_score": self.best_score,
            "spec": self.spec.model_dump_json(),
            "pair": self.pair.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "recent": [[terms, seconds] for terms, seconds in self.recent],
        }
        buffer = BytesIO()  # torch hides a full disk behind an error of its own
        torch.save(state, buffer)
        write_bytes(self.folder / name, buffer.getvalue(), overwrite=True)
        self.history.write()

    def _load(self) -> None:
        path = self.folder / "last.pt"
        if not path.is_file():
            raise SettingError(f"{path}: no such checkpoint to resume from: start without --resume")
        state = load_checkpoint(path, self.device)
        # parsed, since a newer version may know more words than the checkpoint holds
        if parse_spec(json.loads(state["spec"]), str(path)) != self.spec:
            raise SettingError(
                f"{self.folder}: was started with other settings than these: "
                "resume with the spec and flags of its start"
            )
        self.pair.load_state_dict(state["pair"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best_score = state["step"], state["best_score"]
        self.recent = [(dict(terms), seconds) for terms, seconds in state["recent"]]
        self.history.load(self.step)

    def _means(self) -> dict[str, float]:
        names = self.recent[0][0].keys()
        return {n: sum(terms[n] for terms, _ in self.recent) / len(self.recent) for n in names}


# channels last: convolutions are faster, and the loss reads whole embeddings of pixels
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def _list_instances(
    samples: Sequence[AnySample], validation: Sequence[AnySample]
) -> dict[str, Any]:
    return {
        "train": {sample.name: list(sample.kept) for sample in samples},
        "val": {sample.name: list(sample.kept) for sample in validation},
    }


def _batches(
    samples: Sequence[AnySample], spec: Spec, start: int, device: torch.device
) -> Iterator[tuple[int, Batch, float]]:
    """Yield number and batch of each step, and the seconds that it was waited for."""
    loader = DataLoader(
        SparseSamples(samples, spec),
        batch_size=None,
        sampler=range(start, spec.schedule.steps),
        num_workers=spec.schedule.workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if spec.schedule.workers else None,
        worker_init_fn=_ignore_interrupts if spec.schedule.workers else None,
    )
    batches = iter(loader)
    for step in range(start, spec.schedule.steps):
        began = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - began
        tensors = (_move(t, device) for t in (batch.view_f, batch.view_g, batch.labels))
        yield step, Batch(*tensors), waited


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the main process, which saves and ends the workers."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _with_channels(spec: Spec, samples: Sequence[AnySample]) -> Spec:
    """Write the count of channels of the images into the spec, or refuse another."""
    channels = samples[0].channels
    if spec.net.in_channels not in (None, channels):
        raise SettingError(
            f"net.in_channels is {spec.net.in_channels}: the images have {channels}; leave it out"
        )
    net = spec.net.model_copy(update={"in_channels": channels})
    return spec.model_copy(update={"net": net})


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode(), overwrite=True)


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
