"""Interchange-intervention accuracy: does the answer follow the circuit's nodes from one prompt of a pair to the other?

After arXiv:2106.02997 and 2301.04709, with the circuit as a whole as the one high-level variable, "which answer is right". Its
nodes get the values that they have on the other prompt, while all else of the model runs freely; or all else gets them, and the
circuit runs freely. Nothing is ablated here, so no ablation value can flatter the circuit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.trust.runs import CircuitRuns
from sparse_lens.results import Result, bootstrap_mean


@dataclass(frozen=True)
class InterchangeAccuracy:
    """Shares of prompts on which the answer is the one that the circuit's values call for; nulls are without its doing.

    `moved`: the circuit's nodes are those of the other prompt, and the answer is that prompt's; null: the model gives that answer
    anyway. `held`: everything but the circuit is that of the other prompt, and the answer is still the own one; null: it would be
    so if the circuit moved, too.
    """

    moved: Result
    held: Result


def interchange_accuracy(runs: CircuitRuns) -> InterchangeAccuracy:
    """Swap the circuit's nodes, and all others, between the prompts of each pair, in the model with all its edges."""
    swapped = Ablation(runs.circuit.reference, "counterfactual", runs.circuit.frozen_norms)
    wrong = float(1 - runs.right(runs.whole).mean())
    moved = 1 - runs.right(runs.model(~runs.circuit.mask, swapped))
    held = runs.right(runs.model(runs.circuit.mask, swapped))
    return InterchangeAccuracy(bootstrap_mean(moved, null=wrong), bootstrap_mean(held, null=wrong))
