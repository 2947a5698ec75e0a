"""Circuits of latents, and of other ablations than the mean: every test either runs on them or says why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sparse_lens.circuits import Circuit, evaluate_circuit, mean_reference, node_space
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.circuits.trust.controls import random_weights_size
from sparse_lens.circuits.trust.searches import Searches, config_of
from sparse_lens.errors import CircuitError

from .conftest import Planted, TokenTask, circuit_of


@dataclass(frozen=True)
class PositiveParts:
    """The positive part of each neuron, less what is above 1, as a latent; the rest is left to the error."""

    hook_in: str = "blocks.0.mlp.hook_post"
    hook_out: str = "blocks.0.mlp.hook_post"
    name: str = "positive"
    hash: str = "positive"
    n_latents: int = 6
    exact: bool = False
    W_dec: torch.Tensor = field(default_factory=lambda: torch.eye(6))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(0, 1)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f


def latent_circuit(planted: Planted) -> Circuit:
    """The planted path with a latent and the error in the place of the neuron."""
    space = node_space(planted.bridge, [PositiveParts()])
    reference = mean_reference(planted.bridge, space, planted.batch.clean)
    circuit = Circuit(torch.zeros(space.n_nodes, dtype=torch.bool), space, reference, "planted", "", 0.1, 0.01)
    nodes = planted.nodes | {"mlp_neuron.0": [1, 6]}
    changes: dict[str, Any] = {"model": model_fingerprint(planted.bridge), "mask": circuit.with_nodes(nodes).mask}
    return Circuit(**{name: getattr(circuit, name) for name in ("space", "reference", "task", "target_loss", "loss")} | changes)


def test_a_circuit_of_latents(planted: Planted) -> None:
    """All tests run on it; random weights, to which the dictionary does not belong, do not."""
    circuit = latent_circuit(planted)
    card = evaluate_circuit(planted.bridge, circuit, TokenTask(), progress=False)
    assert card.nodes == 5 and (card.heldout.sufficiency.value or 0) > 0.8
    measured = [section for section, rows in card.measures.items() if all(result.measurable for result in rows.values())]
    assert {"hypotheses", "faithfulness", "completeness", "knockouts", "interchange", "mixtures", "random"} <= set(measured)
    with pytest.raises(CircuitError, match="dictionaries"):
        random_weights_size(Searches(planted.bridge, circuit, TokenTask(), config_of(circuit)), circuit)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["counterfactual", "resample"])
def test_other_ablations(planted: Planted, kind: Any) -> None:
    """Nothing but the planted nodes carries the answer, whatever stands in for the rest."""
    card = evaluate_circuit(planted.bridge, circuit_of(planted, ablation=kind), TokenTask(), progress=False)
    assert card.ablation == kind and (card.heldout.sufficiency.value or 0) > 0.95
    assert (card.result("mixtures", "adversarial").value or 0) > 0.9 and card.result("interchange", "moved").value == 1
