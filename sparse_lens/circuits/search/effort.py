"""Search until more effort finds nothing smaller: circuits of unequal effort are of no comparable size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.errors import ConfigError

Find = Callable[[SearchConfig], Circuit | Sequence[Circuit]]
"""A search, or several that are to be compared, at a given effort."""


@dataclass(frozen=True, eq=False)
class Converged:
    """The best circuits found, in the order that the search gives them, and what every effort has found.

    `settled` says whether the last doubling changed every size by less than the tolerance; `config` is that of the last effort.
    """

    circuits: tuple[Circuit, ...]
    history: tuple[dict[str, Any], ...]
    settled: bool
    config: SearchConfig


def converge(find: Find, config: SearchConfig | None = None, *, tolerance: float = 0.05, max_doublings: int = 4) -> Converged:
    """Double the effort of `find` until no circuit's size changes by `tolerance` or more, at most `max_doublings` times.

    `find` may do nodes only, or nodes and then edges: the size is that of the edges where there are some. Of several circuits none
    is settled before all are, so that all get the same effort. Where no circuit meets the target its loss must settle instead. The
    best circuit of all efforts is kept; `search["convergence"]` holds its history. Ctrl-C ends it with what is there.

    Raises `ConfigError` for a tolerance outside 0 to 1 and for less than one doubling.
    """
    if not 0 < tolerance < 1 or max_doublings < 1:
        raise ConfigError(f"tolerance must lie between 0 and 1 and max_doublings be at least 1, got {tolerance}, {max_doublings}")
    config = config or SearchConfig()
    best = _found(find, config)
    history, settled, interrupted = [_entry(config, best)], False, _interrupted(best)
    while not settled and not interrupted and len(history) <= max_doublings:
        try:
            found = _found(find, config.doubled())
        except KeyboardInterrupt:  # at a point where that search had nothing yet
            interrupted = True
            break
        config = config.doubled()
        history.append(_entry(config, found))
        better = [_better(old, new) for old, new in zip(best, found, strict=True)]
        interrupted = _interrupted(found)
        settled = not interrupted and all(_settled(old, new, tolerance) for old, new in zip(best, better, strict=True))
        best = better
    record = {"settled": settled, "interrupted": interrupted}
    circuits = [_recorded(circuit, index, history, record) for index, circuit in enumerate(best)]
    return Converged(tuple(circuits), tuple(history), settled, config)


def size_of(circuit: Circuit) -> int:
    """Edges of a circuit whose edges were searched for, else its nodes."""
    return circuit.n_nodes if circuit.edges is None else circuit.edges.kept.n_edges


def _found(find: Find, config: SearchConfig) -> list[Circuit]:
    found = find(config)
    return [found] if isinstance(found, Circuit) else list(found)


def _interrupted(circuits: Sequence[Circuit]) -> bool:
    return any(circuit.search.get("interrupted") for circuit in circuits)


def _better(old: Circuit, new: Circuit) -> Circuit:
    """The one that meets its target, then the smaller, then the one of less loss; without the target, that of least loss."""

    def key(circuit: Circuit) -> tuple[bool, float, float]:
        return (not circuit.reached, size_of(circuit) if circuit.reached else 0, circuit.loss)

    return min(old, new, key=key)


def _settled(old: Circuit, new: Circuit, tolerance: float) -> bool:
    if old.reached != new.reached:
        return False
    before, after = (size_of(old), size_of(new)) if new.reached else (old.loss, new.loss)
    return before == after or abs(before - after) < tolerance * before


def _entry(config: SearchConfig, circuits: Sequence[Circuit]) -> dict[str, Any]:
    facts = [
        {
            "nodes": circuit.n_nodes,
            "edges": None if circuit.edges is None else circuit.edges.kept.n_edges,
            "loss": circuit.loss,
            "reached": circuit.reached,
        }
        for circuit in circuits
    ]
    return {"effort": config.effort, "circuits": facts}


def _recorded(circuit: Circuit, index: int, history: Sequence[dict[str, Any]], record: dict[str, bool]) -> Circuit:
    own = [{"effort": entry["effort"]} | entry["circuits"][index] for entry in history]
    convergence = {"settled": record["settled"], "history": own}
    return replace(circuit, search=circuit.search | {"convergence": convergence, "interrupted": record["interrupted"]})
