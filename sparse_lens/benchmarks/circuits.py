"""What finding a circuit costs on the shipped model, and exhaustive patching against TransformerLens' loops."""

from __future__ import annotations

import time

from sparse_lens.benchmarks.compiled import compiled_rows
from sparse_lens.benchmarks.patching import patching_rows
from sparse_lens.benchmarks.sparse_execution import sparse_execution_rows
from sparse_lens.benchmarks.timing import Row, row
from sparse_lens.circuits import find_circuit, find_edges
from sparse_lens.hooks import load

_MODEL, _TASK = "python-sparse", "single_double_quote"
_NODE_SECONDS = 60


def circuit_rows() -> list[Row]:
    """A circuit's nodes and edges at the target loss, with the comparison's effort; then all of `patching_rows`."""
    bridge = load(_MODEL)
    started = time.perf_counter()
    circuit = find_circuit(bridge, _TASK, progress=False)
    nodes = time.perf_counter() - started
    edges = find_edges(bridge, circuit, progress=False)
    both = time.perf_counter() - started
    met = f"{circuit.n_nodes} nodes at a loss of {circuit.loss:.3f}"
    kept = 0 if edges.edges is None else edges.edges.kept.n_edges
    return [
        row(f"{_TASK}, nodes", f"{nodes:.0f} s, {met}", f"bound {_NODE_SECONDS} s", _NODE_SECONDS / nodes),
        row(
            f"{_TASK}, edges", f"{both - nodes:.0f} s, {kept} edges at a loss of {edges.loss:.3f}", "nodes", nodes / (both - nodes)
        ),
        *compiled_rows(edges),
        *patching_rows(),
        *sparse_execution_rows(),
    ]
