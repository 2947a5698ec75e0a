"""Searches like the one that found a circuit: the same effort, ablation, means and target, with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool
from pydantic import ValidationError
from torch import Tensor

from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.circuits.search.nodes import SearchProblem, learn_masks, search_problem, select_circuit
from sparse_lens.circuits.search.objectives import objective_of
from sparse_lens.errors import CircuitError
from sparse_lens.tasks import AnyTask


@dataclass(frozen=True, eq=False)
class Searches:
    """Repeats the node search of `circuit` in `bridge`."""

    bridge: Any
    circuit: Circuit
    task: AnyTask
    config: SearchConfig

    @property
    def target(self) -> float:
        return self.circuit.target_loss

    @property
    def seed(self) -> int:
        """The seed that the circuit was found with; 0 if that is not recorded."""
        seeds = _node_search(self.circuit).get("seeds")
        return seeds[0] // 1000 if isinstance(seeds, list) and seeds and isinstance(seeds[0], int) else 0

    def problem(self, task: AnyTask | None = None, *, prompts: int | None = None) -> SearchProblem:
        """The search's problem on `task` (by default the circuit's), with the prompts of seed `prompts`."""
        circuit, seed = self.circuit, self.seed if prompts is None else prompts
        ablation = Ablation(circuit.reference, circuit.ablation, circuit.frozen_norms, seed)
        how = {"seed": seed, "objective": objective_of(circuit)}
        return search_problem(self.bridge, circuit.space, ablation, task or self.task, self.config, **how)

    def find(
        self, problem: SearchProblem | None = None, *, gates: int | None = None, forbid: Bool[Tensor, " node"] | None = None
    ) -> Circuit:
        """The smallest circuit for a problem at the target, from gates that start at seed `gates`."""
        problem = replace(problem or self.problem(), forbid=forbid)
        seed = self.seed if gates is None else gates
        learned = learn_masks(problem, self.target, self.config, seed=seed)
        return select_circuit(problem, learned, self.target, self.config)


def config_of(circuit: Circuit) -> SearchConfig:
    """The effort that a circuit's nodes were searched with; the default one where that is not recorded, as for derived circuits.

    Raises `CircuitError` for a record that is no configuration.
    """
    recorded = _node_search(circuit).get("config")
    if recorded is None:
        return SearchConfig()
    try:
        return SearchConfig.model_validate(recorded)
    except ValidationError as error:
        raise CircuitError(f"the circuit's record of its search is damaged: {error}") from error


def _node_search(circuit: Circuit) -> dict[str, Any]:
    """The record of the search of nodes, which that of edges holds inside."""
    inner = circuit.search.get("nodes")
    return inner if isinstance(inner, dict) else circuit.search
