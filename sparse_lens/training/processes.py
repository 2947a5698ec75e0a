"""Several processes on one run (`torchrun`): each takes a part of every batch, all end every step with the same weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparse_lens.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `count`; alone it is 0 of 1."""

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @staticmethod
    def here(batch_size: int) -> Processes:
        """What `torchrun` has started, joined; raises `ConfigError` if the batch cannot be shared equally."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return Processes()
        if batch_size % count:
            raise ConfigError(f"a batch of {batch_size} sequences cannot be shared equally by {count} processes")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))

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
        return flag if self.count == 1 else self.mean(torch.tensor(float(flag))) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()
