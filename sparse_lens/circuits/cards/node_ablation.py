"""What each node is worth: how far the task loss rises when it alone is ablated, from the circuit and from the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.prompts import Prompts, both_sides, per_pair
from sparse_lens.circuits.scoring import masked_differences, task_loss
from sparse_lens.circuits.sites import full_mask
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.tasks import TaskBatch


@torch.no_grad()
def ablation_deltas(
    bridge: Any,
    circuit: Circuit,
    prompts: TaskBatch | Prompts,
    nodes: Int[Tensor, " chosen"],
    *,
    whole_model: bool = False,
    on_step: Callable[[], Any] = lambda: None,
) -> list[Result]:
    """Rise of the task loss (nats, mean over pairs) when one of `nodes` (indices in the space) is ablated as well.

    It is dropped from the circuit, or with `whole_model` from the model with nothing else ablated, to the value that the circuit's
    ablation gives it. Kept edges stay cut to what they are. Raises `CircuitError` for another model.
    """
    rows = prompts if isinstance(prompts, Prompts) else both_sides(prompts)
    space = circuit.check_model(bridge)
    start = full_mask(space) if whole_model else circuit.mask

    def losses(mask: Bool[Tensor, " node"]) -> np.ndarray:
        return per_pair(task_loss(masked_differences(bridge, space, mask, circuit.how_ablated, rows)), rows)

    with _edges_cut(bridge, circuit, whole_model):
        before, found = losses(start), []
        for node in nodes.tolist():
            mask = start.clone()
            mask[node] = False
            found.append(bootstrap_mean(losses(mask) - before, null=0.0))
            on_step()
    return found


@contextmanager
def _edges_cut(bridge: Any, circuit: Circuit, whole_model: bool) -> Iterator[None]:
    if whole_model or circuit.edges is None:
        yield
    else:
        with circuit.edges.cut_in(bridge):
            yield
