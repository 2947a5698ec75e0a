"""The part of a card that needs no new search: runs of the model and the circuit, masked in many ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.attribution.nodes import attribute_nodes
from sparse_lens.circuits.trust.controls import random_circuits
from sparse_lens.circuits.trust.curves import (
    Curve,
    completeness_curve,
    curve_sizes,
    faithfulness_curve,
    random_ranking,
    ranked_after,
)
from sparse_lens.circuits.trust.hypotheses import equivalence_test, holm, independence_test, minimality_test
from sparse_lens.circuits.trust.interchange import interchange_accuracy
from sparse_lens.circuits.trust.knockouts import random_knockouts, same_under_knockouts
from sparse_lens.circuits.trust.mixtures import adversarial_ablation, stochastic_ablation
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.results import Result, bootstrap_mean

TEST_PAIRS, CURVE_PAIRS, FITTED_PAIRS, ATTACK_PAIRS = 64, 32, 32, 16
"""Held-out pairs that most tests run on; that curves and minimality, with many runs, are content with; and others, disjoint from
these, that a ranking, or an attack, is fitted on."""

Rows = dict[str, dict[str, Result]]


@dataclass(frozen=True, eq=False)
class QuickTests:
    """All tests of a circuit on held-out prompts; every method gives rows of the card by section and name."""

    tests: CircuitRuns
    small: CircuitRuns
    fitted: CircuitRuns
    seed: int

    @classmethod
    def on(cls, runs: CircuitRuns, seed: int) -> QuickTests:
        """Share out the pairs; where there are too few, what is fitted is fitted on the pairs that are tested."""
        small, enough = runs.of_pairs(CURVE_PAIRS), runs.n_pairs >= TEST_PAIRS + FITTED_PAIRS
        return cls(runs.of_pairs(TEST_PAIRS), small, runs.of_pairs(FITTED_PAIRS, start=TEST_PAIRS) if enough else small, seed)

    def stages(self) -> dict[str, Callable[[], Rows]]:
        """The tests by what a progress bar calls them."""
        return {
            "hypotheses": self.hypotheses,
            "knock-outs": self.knockouts,
            "interchange": self.interchange,
            "mixtures": self.mixtures,
            "random circuits": self.random,
        }

    def curves(self) -> tuple[dict[str, Curve], Rows]:
        """Curves along the circuit's nodes and then all others, each part by attribution; the null is of a random ranking."""
        runs, ranking = self.small, self._ranking()
        sizes = curve_sizes(runs.space.n_nodes, runs.circuit.n_nodes)
        curves = {
            "faithfulness": faithfulness_curve(runs, ranking, sizes),
            "completeness": completeness_curve(runs, ranking, sizes),
        }
        null = faithfulness_curve(runs, random_ranking(runs, seed=self.seed), sizes).areas
        rows = {name: dict(curve.areas) for name, curve in curves.items()}
        rows["faithfulness"] = {area: replace(found, null=null[area].value) for area, found in rows["faithfulness"].items()}
        return curves, rows

    def hypotheses(self) -> Rows:
        """Three tests of an ideal circuit, and how far its loss is above the model's."""
        tests = (
            equivalence_test(self.tests),
            independence_test(self.tests, seed=self.seed),
            minimality_test(self.small, seed=self.seed),
        )
        tested = [test.p_value.value for test in tests if test.p_value.value is not None]
        adjusted = iter(holm(tested))
        rows = {}
        for test, effect in zip(tests, ("circuit_ahead", "complement_accuracy", "redundant_nodes"), strict=True):
            p = test.p_value
            rows |= {effect: test.effect, f"{test.name}_p": p if p.value is None else replace(p, value=next(adjusted))}
        above = self.tests.losses(self.tests.alone) - self.tests.losses(self.tests.whole)
        return {"hypotheses": rows, "model": {"loss_above_model": bootstrap_mean(above, null=0.0)}}

    def knockouts(self) -> Rows:
        """Agreement with parts of the circuit knocked out; an empty circuit has none."""
        draws = random_knockouts(self.tests.circuit, 6, seed=self.seed)
        return {"knockouts": vars(same_under_knockouts(self.tests, draws))}

    def interchange(self) -> Rows:
        """Interchange-intervention accuracy."""
        return {"interchange": vars(interchange_accuracy(self.tests))}

    def mixtures(self) -> Rows:
        """Stochastic and adversarial ablation; the attack is fitted on other pairs than it is measured on."""
        stochastic = stochastic_ablation(self.tests, n_draws=6, seed=self.seed)
        return {
            "mixtures": {
                "stochastic": stochastic,
                "adversarial": adversarial_ablation(self.tests, self.fitted.of_pairs(ATTACK_PAIRS)),
            }
        }

    def random(self) -> Rows:
        """Random circuits of equal size."""
        return {"random": {"sufficiency": random_circuits(self.tests, n_draws=8, seed=self.seed)}}

    def _ranking(self) -> Float[Tensor, " node"]:
        fitted, circuit = self.fitted, self.fitted.circuit
        scores = attribute_nodes(
            fitted.bridge, fitted.prompts, method="eap", space=circuit.space, ablation=circuit.how_ablated
        ).scores
        return ranked_after(torch.nan_to_num(scores), circuit.mask)
