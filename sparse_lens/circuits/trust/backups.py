"""Backup circuits: does the model do the task as well without any of a circuit's inner nodes, and with how many others?

Find, forbid, find again (`sparse_lens.circuits.search.exhaustion`), with the given circuit as the first that is forbidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.exhaustion import INTERIOR_SITES, exhaust, nodes_at
from sparse_lens.circuits.trust.searches import Searches
from sparse_lens.results import Result, exact, not_measurable


@dataclass(frozen=True)
class Backups:
    """`count` further circuits without a node in common inside sublayers, at most `limit`; `nodes` of the first of them."""

    count: Result
    nodes: Result
    limit: int


def find_backups(searches: Searches, circuit: Circuit, *, limit: int = 2) -> Backups:
    """Forbid the circuit's queries, keys, values and neurons, and search again, up to `limit` times.

    Not measurable for a circuit without such nodes: then nothing can be forbidden without forbidding the residual stream.
    """
    problem = searches.problem()
    used = circuit.mask & nodes_at(problem, INTERIOR_SITES)
    if not bool(used.any()):
        nothing = not_measurable("the circuit has no query, key, value or neuron that could be forbidden")
        return Backups(nothing, nothing, limit)
    forbidden = replace(problem, forbid=used)
    found = exhaust(forbidden, searches.target, searches.config, max_circuits=limit, seed=searches.seed)
    n = searches.config.evaluation_pairs
    if not found:
        return Backups(exact(0, n=n), not_measurable("no backup meets the target", n=n), limit)
    return Backups(exact(len(found), n=n), exact(found[0].n_nodes, n=n), limit)
