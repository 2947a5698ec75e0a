"""Same under knock-outs: do model and circuit do the same when random parts of the circuit are taken out of both?

A circuit may give the model's answers for other reasons than the model does, or the model may have more ways than the circuit. If
it works as the model does, the same damage does the same to both: this is the completeness of arXiv:2211.00593, section 4, over
random subsets, with KL as in the toolbox auto-circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.prompts import per_pair
from sparse_lens.circuits.trust.draws import node_keys
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, bootstrap_mean


@dataclass(frozen=True)
class KnockoutAgreement:
    """How far the two-answer probabilities of model and circuit are apart, over draws of what is taken out of both.

    `distance` is the mean total variation, 0 for the same and 1 for opposite certainties; its null compares different damage to
    each. `kl` is that of the model to the circuit, in nats. `intact` and `kl_intact` are the same without damage.
    """

    distance: Result
    intact: Result
    kl: Result
    kl_intact: Result


def random_knockouts(circuit: Circuit, n_draws: int, *, seed: int = 0) -> list[Bool[Tensor, " node"]]:
    """Random subsets of the circuit's nodes, of shares that are spread evenly between none and all; each has a node at least."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for draw in range(n_draws):
        keys = torch.where(circuit.mask, node_keys(circuit, generator), torch.inf)
        size = max(1, round(circuit.n_nodes * (draw + 0.5) / n_draws))
        draws.append(torch.zeros_like(circuit.mask).index_fill(0, keys.argsort()[:size], True) & circuit.mask)
    return draws


def same_under_knockouts(runs: CircuitRuns, knockouts: Sequence[Bool[Tensor, " node"]]) -> KnockoutAgreement:
    """Compare model and circuit with each of `knockouts` taken out of both; raises `CircuitError` without any."""
    if not len(knockouts):
        raise CircuitError("same_under_knockouts needs at least one set of nodes to take out; see random_knockouts")
    model = torch.stack([runs.model(~knockout) for knockout in knockouts])
    circuit = torch.stack([runs.within(runs.circuit.mask & ~knockout) for knockout in knockouts])

    def mean(values: Float[Tensor, "draw row"], null: float | None = None) -> Result:
        return bootstrap_mean(per_pair(values.mean(0), runs.prompts), null=null, seeds=len(values))

    whole, alone = runs.whole[None], runs.alone[None]
    return KnockoutAgreement(
        distance=mean(_distance(model, circuit), null=float(_distance(model, circuit.roll(1, 0)).mean())),
        intact=mean(_distance(whole, alone)),
        kl=mean(two_answer_kl(model, circuit)),
        kl_intact=mean(two_answer_kl(whole, alone)),
    )


def _distance(first: Float[Tensor, "*draw row"], second: Float[Tensor, "*draw row"]) -> Float[Tensor, "*draw row"]:
    return (torch.sigmoid(first) - torch.sigmoid(second)).abs()


def two_answer_kl(model: Float[Tensor, "*draw row"], other: Float[Tensor, "*draw row"]) -> Float[Tensor, "*draw row"]:
    """KL of the two-answer distribution with logit difference `model` to that with `other`, in nats."""
    terms = [F.sigmoid(sign * model) * (F.logsigmoid(sign * model) - F.logsigmoid(sign * other)) for sign in (1, -1)]
    return (terms[0] + terms[1]).clamp(min=0)
