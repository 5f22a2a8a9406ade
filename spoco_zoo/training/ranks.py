"""Several processes that train one network, as `torchrun` starts them.

Every process takes its share of each batch, and all take the same step: gradients and the
statistics of batch norm are those of the whole batch, so that the count of processes changes
nothing but rounding. The first process alone writes, validates and decides; the others wait.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spoco_zoo.errors import DeviceError, SettingError, SpocoZooError

Result = TypeVar("Result")

_PATIENCE = timedelta(days=2)  # a validation by the first process may be long
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: the number of this one, from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batch_size: int, parts: int) -> range:
        """Numbers of this process within each batch, of which all processes make `parts` parts.

        Raises:
            SettingError: The batch cannot be shared out evenly.
        """
        if batch_size % (self.count * parts):
            raise SettingError(
                f"schedule.batch_size is {batch_size} and schedule.accumulate {parts} for "
                f"{self.count} processes: expected a multiple of {self.count * parts} images; "
                "change one of the three"
            )
        return range(self.rank, batch_size, self.count)

    def first(self, action: Callable[[], Result]) -> Result:
        """Let the first process do something while the others wait; all get its result.

        The result must be plain data. Where it fails for a reason that the user can mend, the
        first process says so and all end.
        """
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, True]
        failure: SpocoZooError | None = None
        if self.is_first:
            try:
                outcome = [action(), True]
            except SpocoZooError as error:
                failure, outcome = error, [None, False]
        distributed.broadcast_object_list(outcome, src=0, device=_CPU)
        if failure is not None:
            raise failure
        result, done = outcome
        if not done:
            raise SystemExit(1)  # the first process tells why
        return result  # type: ignore[no-any-return]

    def together(self, action: Callable[[], Result]) -> Result:
        """Let every process do the same; where one of them fails, the first says why and all end.

        Only failures that the user can mend are told; any other ends its process as it is.
        """
        if self.count == 1:
            return action()
        outcome: list[Result] = []
        failure: SpocoZooError | None = None
        try:
            outcome.append(action())
        except SpocoZooError as error:
            failure = error
        failures: list[SpocoZooError | None] = [None] * self.count
        distributed.all_gather_object(failures, failure)
        told = next((error for error in failures if error is not None), None)
        if told is None:
            return outcome[0]
        if self.is_first:
            raise told
        raise SystemExit(1)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes; the gradient flows back to all of them.

        Every process must call it as often, and its result must count in every process's loss.
        """
        if self.count == 1:
            return tensor
        result: Tensor = _Total.apply(tensor)  # type: ignore[no-untyped-call]
        return result

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over processes, without gradient."""
        with torch.no_grad():
            return self.total(tensor.detach()) / self.count

    def any(self, fact: bool) -> bool:
        """Whether a fact holds in any process."""
        return bool(self.mean(torch.tensor(float(fact))) > 0)

    def join(self, pair: nn.Module, trained: nn.Module, device: torch.device) -> nn.Module:
        """Let all processes train one network.

        Args:
            pair: All networks whose batch norm sees a share of the batch only; changed in place,
                but for the names of its weights.
            trained: The part of it that learns by gradient.
            device: Where it is.

        Returns:
            What to call in place of `trained`, in training: its gradients are means over
            processes.
        """
        if self.count == 1:
            return trained
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(pair)  # type: ignore[no-untyped-call]
        else:
            share_statistics(pair, self)
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(trained, device_ids=ids)


def later(trained: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Put off averaging the gradients of one part of a batch until the last part."""
    if last or not isinstance(trained, DistributedDataParallel):
        return nullcontext()
    delay: AbstractContextManager[None] = trained.no_sync()
    return delay


@contextmanager
def join_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other processes, if `torchrun` started any, and part from them at the end.

    Who trains several times in one process meets the others before, by `init_process_group`:
    they then stay together.

    Yields:
        The processes, and the device of this one.

    Raises:
        DeviceError: There are fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), device
        return
    if device.type == "cuda":
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if gpus < processes:
            raise DeviceError(
                f"{processes} processes share {gpus} GPUs: expected a GPU for each; "
                "lower --nproc-per-node or use --device cpu"
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # what is decided travels between CPUs, so that no GPU waits for it
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    meets = not distributed.is_initialized()
    if meets:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        if meets:
            distributed.destroy_process_group()


def share_statistics(net: nn.Module, ranks: Ranks) -> None:
    """Let every batch norm of a network normalise by the batch of all processes, in place.

    The same as `SyncBatchNorm` of torch, which exists for CUDA alone.
    """
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, _SharedBatchNorm(child, ranks))


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, which are of one size."""

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.ranks = ranks
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of space axes."""

    def forward(self, features: Tensor) -> Tensor:  # (b, c, *space)
        if not self.training:
            return super().forward(features)
        values = features.float()
        axes = (0, *range(2, values.ndim))
        own = torch.stack(torch.var_mean(values, axes, correction=0))  # (2, c)
        # each process fills its row: the sum is then everyone's rows, in one exchange
        rows = [
            own if r == self.ranks.rank else torch.zeros_like(own) for r in range(self.ranks.count)
        ]
        variances, means = self.ranks.total(torch.stack(rows, dim=1))
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self._follow(mean.detach(), variance.detach(), self.ranks.count * values[:, 0].numel())
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, *(1,) * (values.ndim - 2))
        moved = (values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        result: Tensor = moved.to(features.dtype)
        return result

    def _follow(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics, as torch does; their variance is that of a sample."""
        moved = ((self.running_mean, mean), (self.running_var, variance * n / (n - 1)))
        for buffer, now in moved:
            if buffer is not None:
                buffer.lerp_(now, self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _Total(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ANN401 - as in torch
        total = tensor.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total
