"""The training loop, and the run folder that it leaves.

    runs/NAME/
    ├── spec.yaml         the complete recipe, defaults written out
    ├── instances.json    which images and which of their instances were used
    ├── environment.json  versions, device, precision, parameters
    ├── augmented.png     the first crops as the network sees them: both views, and labels
    ├── last.pt           networks, optimiser and step: where --resume goes on
    ├── best.pt           the same at the best validation score, or last.pt where that fits better
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
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from spoco_zoo.errors import SettingError
from spoco_zoo.figures import write_png
from spoco_zoo.files import write_bytes
from spoco_zoo.metrics import mean_scores
from spoco_zoo.spec import Spec, dump_spec
from spoco_zoo.training.batches import iterate_batches
from spoco_zoo.training.checkpoints import (
    CHECKPOINT_VERSION,
    build_net,
    load_state,
)
from spoco_zoo.training.ending import finish_run
from spoco_zoo.training.history import TERMS, History
from spoco_zoo.training.loss import LossTerms, spoco_loss
from spoco_zoo.training.momentum import MomentumPair
from spoco_zoo.training.net import count_parameters
from spoco_zoo.training.options import StepReport, TrainOptions, TrainResult
from spoco_zoo.training.pictures import SHOWN, sample_of, show_pictures
from spoco_zoo.training.ranks import Ranks, join_ranks, later
from spoco_zoo.training.samples import AnySample, Batch, SparseSamples, check_boundaries, draw
from spoco_zoo.training.schedule import (
    learning_rate,
    make_optimizer,
    pick_device,
    pick_precision,
)
from spoco_zoo.training.sheet import show_crops
from spoco_zoo.training.splits import expect_equal, list_instances, read_splits
from spoco_zoo.training.starting import fill, read_start
from spoco_zoo.training.validation import (
    embed_pair,
    find_instances,
    goal,
    score_instances,
    start_recipe,
)

_LOG_EVERY = 10


def train(spec: Spec, data: Path, run_folder: Path, options: TrainOptions) -> TrainResult:
    """Train a network on the splits train and val of a folder, in any layout of `datasets`.

    Raises:
        ImageError: Images or labels are missing or do not fit together.
        SettingError: The run folder is taken, or `resume` meets another spec.
        DeviceError: The device is not there.
    """
    with join_ranks(pick_device(options.device)) as (ranks, device):
        if not ranks.is_first:
            options = replace(options, on_stage=_be_quiet, on_note=_be_quiet)
        options.on_stage("reading images")
        spec, samples, validation = ranks.together(partial(read_splits, spec, data))
        chosen = list_instances(samples, validation)
        ranks.together(partial(expect_equal, chosen, ranks.first(lambda: chosen)))
        width = spec.data.boundary_width
        if width and not options.resume:
            options.on_note(ranks.first(partial(check_boundaries, samples, width)))
        run = _Run.open(spec, run_folder, (ranks, device), options)
        if options.resume:
            ranks.first(partial(run.check_instances, chosen))
        else:
            ranks.first(partial(run.describe, samples, chosen))
        options.on_stage("training")
        with run:
            end = partial(run.end_step, validation, options, _deadline(options.max_minutes))
            numbers = ranks.share(spec.schedule.batch_size, spec.schedule.accumulate)
            crops = SparseSamples(samples, spec, numbers)
            for batch, waited in iterate_batches(crops, run.step, device):
                began = time.monotonic()
                terms = run.take_step(batch)
                if ranks.is_first:
                    run.recent.append((terms, time.monotonic() - began))
                    run.waits.append(waited)
                if ranks.first(partial(end, batch)):
                    return TrainResult(run_folder, run.step, finished=False, fitted=None)
            options.on_stage("fitting the recipe")
            fitted = ranks.first(
                partial(finish_run, spec, run_folder, run.pair, validation, device)
            )
    return TrainResult(run_folder, run.step, finished=True, fitted=fitted)


@dataclass
class _Run:
    """The state of a run, and its files, which are those of the first process alone."""

    spec: Spec
    folder: Path
    ranks: Ranks
    device: torch.device
    pair: MomentumPair
    trained: torch.nn.Module  # the embedding net, as it is called in training
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    step: int = 0
    best_score: float = -1.0
    recent: list[tuple[dict[str, float], float]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # seconds, since the last row
    started_from: dict[str, Any] | None = None
    board: Any = None

    def __post_init__(self) -> None:
        self.history = History(self.folder / "history.csv")

    @staticmethod
    def open(
        spec: Spec, folder: Path, place: tuple[Ranks, torch.device], options: TrainOptions
    ) -> "_Run":
        """Make the networks, or fill them from the checkpoint or from those of another run."""
        ranks, device = place
        ranks.together(partial(ranks.share, spec.schedule.batch_size, spec.schedule.accumulate))
        torch.manual_seed(spec.schedule.seed)  # the weights before the first step
        net, started_from = build_net(spec), None
        if options.start is not None and not options.resume:
            start = ranks.first(partial(read_start, options.start))
            notes = ranks.together(partial(fill, net, spec.net, start))
            for note in notes:
                options.on_note(note)
            started_from = {"source": start.source, "sha256": start.sha256, "notes": notes}
        layout = _LAYOUT[spec.net.dimensions]
        pair = MomentumPair(net).to(device, memory_format=layout)  # type: ignore[call-overload]
        trained = ranks.join(pair, pair.embedding_net, device)
        optimizer, precision = make_optimizer(spec, pair), pick_precision(spec, device)
        run = _Run(spec, folder, ranks, device, pair, trained, optimizer, precision)
        run.started_from = started_from
        if options.resume:
            if options.start is not None:
                options.on_note(f"{options.start} is passed over: the run goes on where it stopped")
            run._load()
        else:
            ranks.first(run._refuse_taken)
        return run

    def _refuse_taken(self) -> None:
        """Stop before files of another run would be replaced."""
        names = ("last.pt", "best.pt", "recipe.json")
        spec = self.folder / "spec.yaml"
        other_spec = spec.exists() and spec.read_text(encoding="utf-8") != dump_spec(self.spec)
        if other_spec or any((self.folder / name).exists() for name in names):
            raise SettingError(
                f"{self.folder}: holds a run already: choose another name, or --resume to go on"
            )

    def __enter__(self) -> "_Run":
        if self.ranks.is_first:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def check_instances(self, chosen: dict[str, Any]) -> None:
        """Refuse to go on with other images or instances than at the start."""
        path = self.folder / "instances.json"
        try:
            started = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingError(
                f"{path}: is missing or damaged: put it back, or start anew in another folder"
            ) from error
        if started != chosen:
            raise SettingError(
                f"{path}: lists other images or instances than the data now: "
                "resume with the folder of its start"
            )

    def describe(self, samples: Sequence[AnySample], chosen: dict[str, Any]) -> None:
        """Write what this run is, before it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(self.folder / "spec.yaml", dump_spec(self.spec))
        _write_text(self.folder / "instances.json", json.dumps(chosen, indent=1))
        facts = {
            "torch": torch.__version__,
            "device": self.device.type,
            "processes": self.ranks.count,
            "precision": str(self.precision).removeprefix("torch."),
            "parameters": count_parameters(self.pair.embedding_net),
            "train_images": len(chosen["train"]),
            "train_instances": sum(len(kept) for kept in chosen["train"].values()),
            "val_images": len(chosen["val"]),
        }
        if self.started_from is not None:
            facts["started_from"] = self.started_from
        _write_text(self.folder / "environment.json", json.dumps(facts, indent=1))
        self.save("last.pt")
        write_png(self.folder / "augmented.png", show_crops(samples, self.spec), overwrite=True)

    def take_step(self, batch: Batch) -> dict[str, float]:
        """Move f by the gradient of one batch, of which this process holds its share; then g.

        Returns:
            The terms of the loss by their names, of the whole batch.
        """
        schedule, loss = self.spec.schedule, self.spec.loss
        self.pair.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        needs_g = loss.consistency_weight > 0 and self.ranks.any(bool((batch.labels < 0).any()))
        numbers = self.ranks.share(schedule.batch_size, schedule.accumulate)
        size = len(numbers) // schedule.accumulate
        sums = torch.zeros(len(LossTerms._fields), device=self.device)
        for begin in range(0, len(numbers), size):
            part = slice(begin, begin + size)
            with later(self.trained, last=begin + size == len(numbers)):
                terms = self._evaluate(batch.part(part), numbers[part], needs_g=needs_g)
                (terms.total / schedule.accumulate).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack(terms).detach() / schedule.accumulate
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
        return dict(zip(LossTerms._fields, self.ranks.mean(sums).tolist(), strict=True))

    def _evaluate(self, part: Batch, numbers: Sequence[int], *, needs_g: bool) -> LossTerms:
        """Evaluate the loss of a part of the batch, given the numbers of its images."""
        low = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=low):
            output = self.trained(part.view_f)
            momentum_output = None
            if needs_g:
                with torch.no_grad():
                    momentum_output = self.pair.momentum_net(part.view_g)
        split = self.pair.embedding_net.split(output.float())
        g = None
        if momentum_output is not None:
            g = self.pair.momentum_net.split(momentum_output.float()).embedding
        # of each image by itself, so that it does not matter which process has it
        draws = [draw(self.spec.schedule.seed, self.step, number) for number in numbers]
        return spoco_loss(split, g, part.labels, self.spec.loss, draws)

    def end_step(
        self,
        validation: Sequence[AnySample],
        options: TrainOptions,
        deadline: float,
        batch: Batch,
    ) -> bool:
        """Write down a step, validate and save where it is time to; say whether to stop."""
        schedule = self.spec.schedule
        last = self.step == schedule.steps
        due = last or self.step % schedule.validate_every == 0
        saves = due or self.step % schedule.checkpoint_every == 0
        if due or self.step % _LOG_EVERY == 0:
            self._add_row()
        score = self.validate(validation, batch) if due else None
        if saves:
            self.save("last.pt")
        options.on_step(self.report(score))
        stop = options.should_stop() or (time.monotonic() > deadline and not last)
        if stop and not saves:
            self.save("last.pt")
        return stop

    def _add_row(self) -> None:
        """Add the means of the steps since the last row to the history and the board."""
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
        embedded = embed_pair(self.pair, validation, self.device, needs_g=needs_g)
        recipe = start_recipe(self.spec, embedded)
        found = [find_instances(recipe, item) for item in embedded]
        score = goal(mean_scores([*map(score_instances, found, embedded)]))
        crop = sample_of(batch)
        (seen,) = embed_pair(self.pair, [crop], self.device, needs_g=needs_g)
        shown = list(zip(validation[:SHOWN], embedded, found, strict=False))
        shown.append((crop, seen, find_instances(recipe, seen)))
        show_pictures(self.board, self.step, shown, self.spec.loss)
        self.board.add_scalar("validation/mean_ap", score, self.step)
        self.history.set_score(self.step, score)
        if is_best(score, self.best_score):
            self.best_score = score
            self.save("best.pt")
        return score

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
        # first, since rows ahead of a checkpoint can be dropped, and missing ones are lost
        self.history.write()
        buffer = BytesIO()  # torch hides a full disk behind an error of its own
        torch.save(state, buffer)
        write_bytes(self.folder / name, buffer.getvalue(), overwrite=True)

    def _load(self) -> None:
        state = self.ranks.first(partial(load_state, self.folder / "last.pt", self.spec))
        self.pair.load_state_dict(state["pair"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best_score = state["step"], state["best_score"]
        self.recent = [(dict(terms), seconds) for terms, seconds in state["recent"]]
        self.ranks.first(self._tidy)

    def _tidy(self) -> None:
        """Take out rows of the steps that were lost, and what a killed process was writing."""
        self.history.load(self.step)
        for part in self.folder.glob(".*.part"):
            part.unlink()

    def _means(self) -> dict[str, float]:
        names = self.recent[0][0].keys()
        return {n: sum(terms[n] for terms, _ in self.recent) / len(self.recent) for n in names}


def is_best(score: float, before: float) -> bool:
    """Whether a checkpoint is to be kept as the best one.

    Of equal scores the first is, but while nothing is found the later one: it has seen more.
    """
    return score > before or score == before == 0


# channels last: convolutions are faster, and the loss reads whole embeddings of pixels
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def _deadline(minutes: float | None) -> float:
    return math.inf if minutes is None else time.monotonic() + 60 * minutes


def _be_quiet(_: str) -> None:
    """Say nothing: the first process does."""


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode(), overwrite=True)
