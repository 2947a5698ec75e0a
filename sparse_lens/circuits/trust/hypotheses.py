"""Three tests of what an ideal circuit would satisfy: equivalence, independence, minimality (arXiv:2410.13032).

In each, the null hypothesis is that the circuit is ideal, so a small p-value speaks *against* it, and a large one proves nothing:
few prompts reject little. Hence each comes with its effect size. Which parts are whose:

- Equivalence and its p-value, and minimality by a binomial test against a quantile of .9, are as the authors' released code
  describes them (`blei-lab/circuitry`); of the paper itself only the abstract was read. There the random edge of an inflated
  circuit is one of an added path; here, for circuits of nodes, it is one added node. (That code puts the mean difference of scores
  where its description has the share of prompts; the description is followed.)
- Independence is HSIC with a permutation test there and here. Own change: the outputs that are compared say *which* answer is
  ahead, not by how much the right one is, and permutations swap the two prompts of a pair. Otherwise a complement whose output is
  constant counts as dependent: it is right exactly where the other answer is wrong, and the model's two answers differ in size.
- The correction for several tests is Holm's (the released code leaves it to do).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.trust.draws import node_keys, random_outside
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable

EQUIVALENCE_MARGIN = 0.1
"""How far from 1/2 the chance of the circuit to be ahead may be (the paper's epsilon)."""

MINIMALITY_QUANTILE = 0.9
"""Share of random nodes that a node of an ideal circuit outdoes (the released code's value)."""

ROUNDING = 1e-5
"""Differences of logits and losses up to this are ties: float32 sums in another order differ by as much."""


@dataclass(frozen=True)
class HypothesisTest:
    """`effect` is the size of what was seen, `p_value` its chance if the circuit is ideal, on `effect.n` samples.

    Both are not measurable where there was nothing to test, with the reason.
    """

    name: str
    effect: Result
    p_value: Result

    def rejects(self, level: float = 0.05) -> bool:
        """Whether the circuit is found not to be ideal in this respect."""
        return self.p_value.value is not None and self.p_value.value < level


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: rejecting those below a level errs at all with at most that chance."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[int(index)] = least
    return adjusted


def equivalence_test(runs: CircuitRuns, *, margin: float = EQUIVALENCE_MARGIN) -> HypothesisTest:
    """Null: the circuit's loss on a pair is below the model's with a chance within `margin` of 1/2. Ties count half."""
    difference = runs.losses(runs.whole) - runs.losses(runs.alone)
    ahead = np.where(np.abs(difference) <= ROUNDING, 0.5, (difference > 0).astype(float))
    p = equivalence_p_value(float(ahead.sum()), len(ahead), margin)
    return HypothesisTest("equivalence", bootstrap_mean(ahead, null=0.5), exact(p, n=len(ahead)))


def equivalence_p_value(ahead: float, n: int, margin: float) -> float:
    """Chance of a count at least as far from n / 2 as `ahead`, if each of n is ahead with a chance of 1/2 + `margin`."""
    far = abs(ahead - n / 2)
    return min(1.0, sum(_binomial(k, n, 0.5 + margin) for k in range(n + 1) if abs(k - n / 2) >= far - 1e-9))


def independence_test(runs: CircuitRuns, *, n_permutations: int = 1000, seed: int = 0) -> HypothesisTest:
    """Null: without the circuit, the model's output does not depend on which of a pair's prompts it reads.

    The effect is how often the complement still gives the right answer.
    """
    model, complement = runs.toward_first(runs.whole), runs.toward_first(runs.without)
    effect = bootstrap_mean(runs.right(runs.without), null=0.5)
    rows = runs.prompts.pair.argsort(stable=True)
    if len(rows) != 2 * runs.n_pairs:
        raise CircuitError(f"the independence test needs both prompts of every pair, got {len(rows)} of {runs.n_pairs} pairs")
    p = paired_hsic_p_value(model[rows], complement[rows], n_permutations=n_permutations, seed=seed)
    return HypothesisTest("independence", effect, exact(p, n=runs.n_pairs))


def paired_hsic_p_value(x: Float[Tensor, " row"], y: Float[Tensor, " row"], *, n_permutations: int = 1000, seed: int = 0) -> float:
    """Chance of an HSIC this large if the two rows of each pair (2 i, 2 i + 1) were dealt to `y` by a coin; 1 for a constant `y`.

    Gaussian kernels, as wide as the median distance of each variable.
    """
    if float(x.max() - x.min()) <= ROUNDING or float(y.max() - y.min()) <= ROUNDING:
        return 1.0
    kernel_x, kernel_y = _centered(_kernel(x)), _kernel(y)
    seen, at_least = float((kernel_x * kernel_y).sum()), 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_permutations):
        swap = torch.rand(len(x) // 2, generator=generator) < 0.5
        order = torch.arange(len(x)).view(-1, 2)
        order = torch.where(swap[:, None], order.flip(1), order).flatten()
        at_least += float((kernel_x * kernel_y[order][:, order]).sum()) >= seen * (1 - 1e-9)
    return (1 + at_least) / (1 + n_permutations)


def _kernel(x: Float[Tensor, " row"]) -> Float[Tensor, "row row"]:
    distance = (x.double()[:, None] - x.double()[None]).abs()
    positive = distance[distance > ROUNDING]
    return torch.exp(-((distance / positive.median()) ** 2) / 2)


def _centered(kernel: Float[Tensor, "row row"]) -> Float[Tensor, "row row"]:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


@dataclass(frozen=True)
class MinimalityTest(HypothesisTest):
    """`redundant` are the tested nodes that Holm's correction leaves as no better than random ones, `effects` those of `nodes`.

    `effect` is the share of redundant nodes, `p_value` the smallest adjusted one. Effects are changes of the logit difference.
    """

    nodes: tuple[int, ...] = ()
    effects: tuple[float, ...] = ()
    random_effects: tuple[float, ...] = ()
    redundant: tuple[int, ...] = ()


def minimality_test(
    runs: CircuitRuns,
    *,
    n_random: int = 20,
    most_nodes: int = 24,
    quantile: float = MINIMALITY_QUANTILE,
    level: float = 0.05,
    seed: int = 0,
) -> MinimalityTest:
    """Null, for each node: dropping it changes the circuit more than dropping a random node that was added, `quantile` of the time.

    Random nodes lie at the circuit's own sites. Of a larger circuit, `most_nodes` are tested, chosen at random.
    """
    generator = torch.Generator().manual_seed(seed)
    random_nodes = random_outside(runs.circuit, generator, n_random)
    kept = runs.circuit.mask.nonzero().flatten()
    if not len(kept) or not random_nodes:
        nothing = not_measurable("there is no node to drop" if not len(kept) else "there is no node outside the circuit to add")
        return MinimalityTest("minimality", nothing, nothing)
    tested = sorted(kept[node_keys(runs.circuit, generator)[kept].argsort()[:most_nodes]].tolist())
    random_effects = [_effect(runs, node, keep=True) for node in random_nodes]
    effects = [_effect(runs, node, keep=False) for node in tested]
    outdone = [sum(effect > other + ROUNDING for other in random_effects) for effect in effects]
    adjusted = holm([sum(_binomial(k, len(random_nodes), quantile) for k in range(count + 1)) for count in outdone])
    redundant = [node for node, p in zip(tested, adjusted, strict=True) if p < level]
    share = bootstrap_mean(np.array([node in redundant for node in tested], dtype=float))
    numbers = {"nodes": tuple(tested), "effects": tuple(effects), "random_effects": tuple(random_effects)}
    return MinimalityTest("minimality", share, exact(min(adjusted), n=len(tested)), redundant=tuple(redundant), **numbers)


def _effect(runs: CircuitRuns, node: int, *, keep: bool) -> float:
    """Mean change of a prompt's logit difference between the circuit and the circuit with or without one node."""
    mask = runs.circuit.mask.clone()
    mask[node] = keep
    return float((runs.within(mask) - runs.alone).abs().mean())


def _binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
