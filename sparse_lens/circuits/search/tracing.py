"""Circuits at many targets: each gets a search of its own, and every candidate that any of them has scored.

A candidate's loss does not depend on the target that led to it. So no circuit is larger than that of its own search alone, and
sizes never rise with the target. (Masks are learned anew for each target: going on from the gates of another ends in circuits twice
as large, in either direction, and what two runs have in common is over after a dozen steps.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.candidates import Candidate, score_masks
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.learning import LearnedMask, frozen
from sparse_lens.circuits.search.nodes import found_circuit, learn_masks
from sparse_lens.circuits.search.problems import SearchProblem
from sparse_lens.errors import ConfigError


def trace_circuits(
    problem: SearchProblem,
    targets: Sequence[float],
    config: SearchConfig,
    *,
    seed: int = 0,
    on_step: Callable[[], Any] = lambda: None,
) -> list[Circuit]:
    """One circuit for every target, in the order given; a target that none meets gets the circuit of least loss.

    `search["traced"]` holds the targets that share candidates, `search["effort"]` is that of one of them. Raises `ConfigError`
    without a target and for one not above 0.
    """
    if not targets or min(targets) <= 0:
        raise ConfigError(f"a curve needs targets above 0, in nats; got {list(targets)}")
    learned: list[LearnedMask] = []
    candidates: list[Candidate] = []
    for target in targets:
        masks = learn_masks(problem, target, config, seed=seed, on_step=on_step)
        with frozen(problem.bridge):
            candidates += score_masks(problem.score, masks, target, config)
        learned += masks
    found = [found_circuit(problem, learned, candidates, target, config) for target in targets]
    return [replace(circuit, search=circuit.search | {"traced": list(targets)}) for circuit in found]
