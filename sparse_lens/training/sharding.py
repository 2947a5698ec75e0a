"""Weights in shards, one per process (FSDP2): what needs a whole tensor gathers it, what changes one changes this process's part.

A projection compares the magnitudes of a whole matrix, so each matrix is gathered on every process in turn, its mask computed there
(the same everywhere), and this process's rows of the mask are applied to its own shard. The largest matrix is what must fit.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sparse_lens.models import CircuitGPTCore


def shard_core(core: CircuitGPTCore, n_processes: int) -> None:
    """Share the weights of every block, and of the rest, out to the processes by rows."""
    mesh = init_device_mesh(core.wte.weight.device.type, (n_processes,))
    for block in core.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(core, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of it put together; a call that every process must make."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, in the layout of `like`; no process speaks to another."""
    if not isinstance(like, DTensor):
        return tensor
    part = distribute_tensor(tensor.contiguous(), like.device_mesh, like.placements, src_data_rank=None)
    return part.to_local()


def own(tensor: Tensor) -> Tensor:
    """The memory that this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
