"""Controls: what a circuit of this size shows if nothing is there to find.

| control | what is changed | a good circuit |
|---|---|---|
| `random_circuits` | the nodes, as many at every site | recovers much more |
| nonsense labels | another task, whose labels no rule of Python gives (`nonsense_quote` and its other draws) | is much smaller |
| random answers | the same prompts, two random tokens for their answers | is much smaller |
| shuffled labels | the same prompts, answers swapped by a coin for each pair | is much smaller |
| `random_weights` | the model: each tensor's nonzero entries change places | is much smaller |

All sizes are of searches with the circuit's own effort, ablation and target (arXiv:2501.17727 for random weights; the nonsense task
after Drori's critique of arXiv:2511.13653).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.masking import mean_reference
from sparse_lens.circuits.search.nodes import default_windows
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust.draws import random_like
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.circuits.trust.searches import Searches
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, not_measurable
from sparse_lens.tasks import AnyTask


def random_circuits(runs: CircuitRuns, *, n_draws: int = 8, seed: int = 0, same_errors: bool = False) -> Result:
    """Recovered share of random circuits, as large at every site: the mean; `lo` and `hi` are the worst and the best draw.

    With `same_errors` they have the circuit's error nodes, and the other nodes are drawn.
    """
    if n_draws < 1:
        raise CircuitError(f"random circuits need at least one draw, got {n_draws}")
    generator = torch.Generator().manual_seed(seed)
    found = [runs.recovered(runs.model(random_like(runs.circuit, generator, same_errors=same_errors))) for _ in range(n_draws)]
    values = [result.value for result in found if result.value is not None]
    if len(values) < n_draws:
        return found[0]
    return Result(float(np.mean(values)), min(values), max(values), 0.0, found[0].n, n_draws)


@dataclass(frozen=True)
class ControlSize:
    """Size and loss of the circuits that a control's searches found, and the size over that of the real circuit.

    Only circuits that met the target have a size; `ratio` is not measurable if none did: then the control was not fitted, and its
    best losses are in `loss`.
    """

    nodes: Result
    loss: Result
    ratio: Result


def control_size(found: Sequence[Circuit], real: Circuit) -> ControlSize:
    """What the searches of a control found, beside the real circuit; raises `CircuitError` for none."""
    if not found:
        raise CircuitError("a control needs at least one search")
    n, seeds = _evaluated(real), len(found)
    loss = _over([circuit.loss for circuit in found], n=n)
    sizes = [circuit.n_nodes for circuit in found if circuit.reached]
    if not sizes:
        missing = not_measurable(f"not fitted to the target of {real.target_loss:.3g}; best loss {loss}", n=n, seeds=seeds)
        return ControlSize(missing, loss, missing)
    if real.n_nodes == 0:
        empty = not_measurable("the circuit has no nodes to compare with", n=n, seeds=seeds)
        return ControlSize(_over(sizes, n=n), loss, empty)
    return ControlSize(_over(sizes, n=n), loss, _over([size / real.n_nodes for size in sizes], n=n, null=1.0))


def fitted_size(searches: Searches, tasks: Sequence[AnyTask], real: Circuit) -> ControlSize:
    """Search each of `tasks` (nonsense, random answers, shuffled labels) as the circuit was searched."""
    return control_size([searches.find(searches.problem(task)) for task in tasks], real)


def random_weights_size(searches: Searches, real: Circuit, *, windows: np.ndarray | None = None, seed: int = 0) -> ControlSize:
    """Search the circuit's task in the model with random weights, its means taken anew over `windows`.

    Raises `CircuitError` for a circuit of latents: its dictionaries belong to the trained model.
    """
    if real.space.has_dictionaries:
        raise CircuitError("dictionaries trained on the model say nothing about a copy with random weights")
    windows = default_windows(searches.bridge) if windows is None else windows
    with random_weights(searches.bridge, seed=seed) as bridge:
        reference = mean_reference(bridge, real.space, windows)
        copied = replace(real, reference=reference, model=model_fingerprint(bridge))
        return control_size([replace(searches, circuit=copied).find()], real)


@contextmanager
def random_weights(bridge: Any, *, seed: int = 0) -> Iterator[Any]:
    """Inside the block, the bridge's weights are shuffled (`shuffle_weights`); then it has its own again.

    (A deep copy of a bridge would share some hooks with it.)
    """
    before = {name: parameter.detach().clone() for name, parameter in bridge.named_parameters()}
    try:
        shuffle_weights(bridge, seed=seed)
        yield bridge
    finally:
        for name, parameter in bridge.named_parameters():
            parameter.detach().copy_(before[name])


def shuffle_weights(bridge: Any, *, seed: int = 0) -> None:
    """Let the nonzero entries of every tensor of the model change places at random: as many, as large, between the same zeros."""
    parameters, generator = dict(bridge.named_parameters()), torch.Generator().manual_seed(seed)
    for name in sorted(parameters):
        values = parameters[name].detach().flatten()
        places = values.nonzero().flatten()
        drawn = places[torch.randperm(len(places), generator=generator).to(places.device)]
        parameters[name].detach().copy_(values.index_copy(0, places, values[drawn]).view(parameters[name].shape))


def _over(values: Sequence[float], *, n: int, null: float | None = None) -> Result:
    """Mean over searches; with several, `lo` and `hi` are the least and the largest."""
    spread = (float(min(values)), float(max(values))) if len(values) > 1 else (None, None)
    return Result(float(np.mean(values)), *spread, null=null, n=n, seeds=len(values))


def _evaluated(circuit: Circuit) -> int:
    """Prompt pairs that the losses of a search are measured on."""
    config = circuit.search.get("config")
    return int(config.get("evaluation_pairs", 1)) if isinstance(config, dict) else 1
