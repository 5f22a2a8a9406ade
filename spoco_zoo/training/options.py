"""What a training is asked for beside its spec, and what it tells."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spoco_zoo.errors import SettingError
from spoco_zoo.training.validation import Fitted


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
    start: Path | None = None  # a run or package whose weights a new run starts from
    max_minutes: float | None = None
    on_step: Callable[[StepReport], None] = lambda report: None
    on_stage: Callable[[str], None] = lambda stage: None
    on_note: Callable[[str], None] = lambda note: None
    should_stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes >= 0:
            raise SettingError(f"max_minutes is {self.max_minutes:g}: expected 0 or more")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; the same in all its processes."""

    run_folder: Path
    step: int
    finished: bool
    fitted: Fitted | None
