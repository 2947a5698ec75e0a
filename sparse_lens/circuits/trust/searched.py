"""The part of a card that needs searches: the circuit's own search again, with one thing changed each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.trust.backups import find_backups
from sparse_lens.circuits.trust.controls import ControlSize, fitted_size, random_weights_size
from sparse_lens.circuits.trust.searches import Searches
from sparse_lens.circuits.trust.stability import overlap
from sparse_lens.errors import CircuitError, SparseLensError
from sparse_lens.results import Result, not_measurable
from sparse_lens.tasks import AnyTask, Task, get_task
from sparse_lens.tasks.controls import control_of

NONSENSE_TASKS = ("nonsense_quote", "nonsense_quote_1", "nonsense_quote_2")
MORE_SEARCHES = 2
"""Further searches for each kind of overlap, and draws of the nonsense labels."""

CONTROL_NAMES = ("nonsense", "random_answers", "shuffled", "random_weights")
STABILITY_NAMES = ("seeds", "resamples", "templates")

Rows = dict[str, dict[str, Result]]


@dataclass(frozen=True, eq=False)
class SearchedTests:
    """All controls of a circuit that search again; what cannot be done for its model, task or tokenizer is not measurable."""

    searches: Searches
    windows: np.ndarray | None
    seed: int

    @cached_property
    def circuit(self) -> Circuit:
        """What sizes and overlaps are compared with: of a circuit of edges, its nodes searched anew; a missing loss is measured."""
        circuit = self.searches.circuit
        if circuit.edges is not None:
            return self.searches.find()
        if math.isfinite(circuit.loss):
            return circuit
        return replace(circuit, loss=self.searches.problem().loss(circuit.mask))

    def stages(self) -> dict[str, Callable[[], Rows]]:
        """The tests by what a progress bar calls them."""
        task = self.searches.task
        draws = [name for name in NONSENSE_TASKS if name != task.name][:MORE_SEARCHES]
        return {
            "nonsense labels": lambda: self._control("nonsense", lambda: self._fitted([get_task(name) for name in draws])),
            "random answers": lambda: self._control("random_answers", lambda: self._fitted([control_of(task, "random")])),
            "shuffled labels": lambda: self._control("shuffled", lambda: self._fitted([control_of(task, "shuffled")])),
            "random weights": lambda: self._control("random_weights", self._random_weights),
            "other seeds": lambda: self._overlap("seeds", self._seeds),
            "other prompts": lambda: self._overlap("resamples", self._resamples),
            "other templates": lambda: self._overlap("templates", self._templates),
            "backups": self._backups,
        }

    def _fitted(self, tasks: Sequence[AnyTask]) -> ControlSize:
        return fitted_size(self.searches, tasks, self.circuit)

    def _random_weights(self) -> ControlSize:
        return random_weights_size(self.searches, self.circuit, windows=self.windows, seed=self.seed)

    def _control(self, name: str, measure: Callable[[], ControlSize]) -> Rows:
        if not self.circuit.reached:
            reason = f"the circuit misses its own target of {self.circuit.target_loss:.3g}, so sizes at it say nothing"
            return {"controls": control_rows(name, not_measurable(reason))}
        try:
            size = measure()
        except SparseLensError as error:
            return {"controls": control_rows(name, not_measurable(str(error)))}
        return {"controls": {f"{name}_nodes": size.nodes, f"{name}_loss": size.loss, f"{name}_ratio": size.ratio}}

    def _overlap(self, name: str, search: Callable[[], list[Circuit]]) -> Rows:
        try:
            found = [circuit for circuit in [self.circuit, *search()] if circuit.reached]
            return {"stability": {name: overlap(found)}}
        except SparseLensError as error:
            return {"stability": {name: not_measurable(str(error))}}

    def _seeds(self) -> list[Circuit]:
        problem, seed = self.searches.problem(), self.searches.seed
        return [self.searches.find(problem, gates=seed + more) for more in range(1, MORE_SEARCHES + 1)]

    def _resamples(self) -> list[Circuit]:
        seed = self.searches.seed
        return [self.searches.find(self.searches.problem(prompts=seed + more)) for more in range(1, MORE_SEARCHES + 1)]

    def _templates(self) -> list[Circuit]:
        task = self.searches.task
        if not isinstance(task, Task) or len(task.search) < 2:
            raise CircuitError("the task has no templates to take halves of")
        halves = (replace(task, search=task.search[start::2]) for start in range(2))
        return [self.searches.find(self.searches.problem(half)) for half in halves]

    def _backups(self) -> Rows:
        try:
            found = find_backups(self.searches, self.circuit)
        except SparseLensError as error:
            missing = not_measurable(str(error))
            return {"backups": {"count": missing, "nodes": missing}}
        return {"backups": {"count": found.count, "nodes": found.nodes}}


def control_rows(name: str, result: Result) -> dict[str, Result]:
    """The three rows of a control that was not measured."""
    return {f"{name}_{part}": result for part in ("nodes", "loss", "ratio")}


def not_searched(reason: str) -> Rows:
    """The rows of all these tests, none of them measured."""
    missing = not_measurable(reason)
    controls = {key: result for name in CONTROL_NAMES for key, result in control_rows(name, missing).items()}
    backups = {"count": missing, "nodes": missing}
    return {"stability": dict.fromkeys(STABILITY_NAMES, missing), "controls": controls, "backups": backups}
