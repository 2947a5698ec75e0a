"""Stochastic and adversarial ablation: what is left out is neither fully there nor fully gone.

Complete ablation tests one point of a cube: every node outside the circuit at its ablation value. If these nodes do not matter, any
mixture of that value and the node's own does as well: `x -> r x + (1 - r) mu` with one coefficient `r` in [0, 1] a node. Random
coefficients are drawn, and the worst are sought by gradient ascent (as in stochastic and adversarial parameter decomposition,
arXiv:2506.20790; the attack here is projected gradient ascent with signs, arXiv:1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import task_loss
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.circuits.trust.draws import node_keys
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result


def stochastic_ablation(runs: CircuitRuns, *, n_draws: int = 6, seed: int = 0) -> Result:
    """Recovered share under random mixtures: the mean over draws; `lo` and `hi` are the worst and the best draw."""
    if n_draws < 1:
        raise CircuitError(f"stochastic ablation needs at least one draw, got {n_draws}")
    generator, kept = torch.Generator().manual_seed(seed), runs.circuit.mask.float()
    found = [runs.recovered(runs.within(torch.maximum(kept, node_keys(runs.circuit, generator)))) for _ in range(n_draws)]
    values = [result.value for result in found if result.value is not None]
    if len(values) < n_draws:
        return found[0]
    return Result(float(np.mean(values)), min(values), max(values), 0.0, found[0].n, n_draws)


def adversarial_ablation(runs: CircuitRuns, attacked: CircuitRuns, *, steps: int = 10) -> Result:
    """Recovered share on `runs` under the mixture that is worst on the prompts of `attacked`.

    An upper bound of the worst case: a stronger attack may find worse. With other prompts in `attacked` the interval is honest.
    """
    return runs.recovered(runs.within(worst_mixture(attacked, steps=steps)))


def worst_mixture(runs: CircuitRuns, *, steps: int = 10) -> Float[Tensor, " node"]:
    """Coefficients of all nodes (1 inside the circuit) that raise the mean task loss most, of all that the ascent passes.

    It starts at 1/2, its steps shrink evenly from 1/4; full ablation and the whole model are among what is compared.
    """
    kept = runs.circuit.mask.float()
    found: list[tuple[float, Tensor]] = []
    for mask in (kept, torch.ones_like(kept)):
        found.append((float(runs.losses(runs.within(mask)).mean()), mask))
    mask = kept + 0.5 * (1 - kept)
    with runs.edges_cut(), frozen(runs.bridge):
        differences = runs.mixed()
        for step in range(steps + 1):
            loss, slope = _loss_and_slope(runs, differences, mask)
            found.append((loss, mask))
            mask = torch.maximum(kept, (mask + 0.25 * (1 - step / (steps + 1)) * slope.sign()).clamp(0, 1))
    return max(found, key=lambda entry: entry[0])[1]


def _loss_and_slope(
    runs: CircuitRuns, differences: Callable[[Tensor, Prompts], Tensor], mask: Float[Tensor, " node"]
) -> tuple[float, Float[Tensor, " node"]]:
    """Mean task loss with the nodes mixed by `mask`, and its gradient."""
    mask, total = mask.clone().requires_grad_(), 0.0
    with torch.enable_grad():
        for chunk in runs.chunks():
            loss = task_loss(differences(mask, chunk)).sum() / len(runs.prompts)
            loss.backward()
            total += float(loss.detach())
    assert mask.grad is not None
    return total, mask.grad
