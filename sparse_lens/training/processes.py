"""Several processes on one run (`torchrun`): each takes a part of every batch, all end every step with the same weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_lens.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `count`, on `device`; alone it is 0 of 1."""

    rank: int = 0
    count: int = 1
    local_count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def here(batch_size: int, device: str = "cpu") -> Processes:
        """What `torchrun` has started, joined; "cuda" is one GPU for each process of a machine.

        Raises `ConfigError` if there is no such device, or the batch cannot be shared equally.
        """
        count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        chosen = _device(device, local if count > 1 else None)
        if count == 1:
            return Processes(device=chosen)
        if batch_size % count:
            raise ConfigError(f"a batch of {batch_size} sequences cannot be shared equally by {count} processes")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_WORLD_SIZE", count)), chosen)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, batch: np.ndarray) -> np.ndarray:
        """This process's sequences of a batch."""
        each = len(batch) // self.count
        return batch[self.rank * each : (self.rank + 1) * each]

    def wrap(self, core: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass whose gradients are averaged over the processes."""
        return core if self.count == 1 else DistributedDataParallel(core)

    def mean(self, loss: Tensor) -> float:
        """Mean over the processes."""
        if self.count == 1:
            return float(loss)
        total = loss.clone()
        dist.all_reduce(total)
        return float(total) / self.count

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.count == 1 else self.mean(torch.tensor(float(flag), device=self.device)) > 0

    def agree(self, step: int) -> None:
        """Raise `CheckpointError` unless all processes are at the same step: they must see the same checkpoints."""
        if self.count > 1 and self.any(self.mean(torch.tensor(float(step), device=self.device)) != step):
            raise CheckpointError(
                f"process {self.rank} would go on from step {step}, another from elsewhere: all must see one folder of checkpoints"
            )

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def _device(name: str, local_rank: int | None) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}; give cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("this PyTorch sees no GPU; leave the device at cpu")
        if local_rank is not None:
            device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device
