"""Searches that go on: asked again with twice the restarts, they do the second half only. What `converge` is best given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.edges.search import EdgeProblem, found_edges, learn_edges
from sparse_lens.circuits.search.candidates import Candidate, Score, score_masks
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.interrupting import so_far
from sparse_lens.circuits.search.learning import LearnedMask, frozen
from sparse_lens.circuits.search.nodes import found_circuit, learn_masks
from sparse_lens.circuits.search.problems import SearchProblem

Find = Callable[[SearchConfig], Circuit]


def growing_search(problem: SearchProblem, target: float, *, seed: int = 0, progress: bool = False) -> Find:
    """A search of nodes that keeps what it has learned and scored: at an effort it gives what `find_circuit` gives.

    Each configuration must be the one before with more restarts. After a Ctrl-C the best of what was learned by then comes back,
    with `interrupted` in its record.
    """
    learn = partial(learn_masks, problem, target, seed=seed)
    finish = partial(found_circuit, problem)
    return _growing(problem.bridge, learn, problem.score, target, finish, f"circuit for {problem.task}", progress)


def growing_edge_search(problem: EdgeProblem, circuit: Circuit, target: float, *, seed: int = 0, progress: bool = False) -> Find:
    """The same for the edges between the nodes of `circuit`, as `find_edges` finds them."""
    learn = partial(learn_edges, problem, target, seed=seed)
    finish = partial(found_edges, problem, circuit)
    return _growing(problem.nodes.bridge, learn, problem.score, target, finish, f"edges for {problem.nodes.task}", progress)


def _growing(
    bridge: Any,
    learn: Callable[..., list[LearnedMask]],
    score: Score,
    target: float,
    finish: Callable[..., Circuit],
    name: str,
    progress: bool,
) -> Find:
    learned: list[LearnedMask] = []
    candidates: list[Candidate] = []

    def find(config: SearchConfig) -> Circuit:
        first = len(learned) // len(config.penalties)
        total = (config.restarts - first) * len(config.penalties) * config.steps
        with tqdm(total=total, desc=name, disable=not progress, leave=False) as bar:
            new, stopped = so_far(lambda: learn(config=config, first=first, on_step=bar.update), keep=True)
        with frozen(bridge):
            scored, cut = so_far(lambda: score_masks(score, new, target, config), keep=not stopped)
        candidates.extend(scored)
        learned.extend(new)
        return finish(learned, candidates, target, config, interrupted=stopped or cut)

    return find
