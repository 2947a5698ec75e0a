"""Compiled circuits against the masked model they are compiled from, and what all ablations of single edges cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.benchmarks.timing import Row, row
from sparse_lens.circuits import Circuit, SearchConfig, both_sides, find_circuit, on_paths, weight_graph
from sparse_lens.circuits.compiled.program import CompiledCircuit, compile_circuit
from sparse_lens.circuits.edges.ablation import ablate_each_edge
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.search import edge_problem
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import masked_differences
from sparse_lens.circuits.search.learning import frozen
from sparse_lens.circuits.search.nodes import default_windows
from sparse_lens.circuits.weights import WeightGraph
from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import load
from sparse_lens.tasks import TaskBatch, get_task

_MODEL, _TASK = "python-sparse", "single_double_quote"
_PAIRS, _EDGE_PAIRS, _EDGES = 256, 64, 500
_EXACT, _FROZEN, _SECONDS = 5, 50, 10
_TOLERANCE = 1e-5


def compiled_rows(circuit: Circuit | None = None) -> list[Row]:
    """All rows, in one run, for the nodes of a circuit of single_double_quote; two to three minutes on two cores.

    Half of it is the search for a circuit, if none is given. Raises `SparseLensError` if the exact form differs from the masked
    model by more than 1e-5.
    """
    bridge: Any = load(_MODEL)
    if circuit is None:
        circuit = find_circuit(bridge, _TASK, config=SearchConfig(steps=120, evaluations=12), progress=False)
    circuit = replace(circuit, edges=None)
    found: list[Row] = []
    for threads in sorted({1, torch.get_num_threads()}):
        with _threads(threads):
            spoken = f"{threads} thread{'s' if threads > 1 else ''}"
            found += [*_ratios(bridge, circuit, spoken), _step(bridge, circuit, spoken)]
    problem = _Problem.of(bridge, circuit)
    return [*found, _edge_row(problem), *_slopes(problem)]


def _step(bridge: Any, circuit: Circuit, threads: str) -> Row:
    """One step of an edge search, forwards and backwards, on the compiled circuit and in the whole model."""
    problem = edge_problem(bridge, circuit, get_task(_TASK), SearchConfig())
    if problem.gated is None:
        raise SparseLensError("the circuit's edges cannot be gated in its compiled form; report it")
    prompts = problem.nodes.search_prompts.rows(slice(2 * SearchConfig().pairs_per_step))

    def step(run: Callable[[Tensor, Prompts], Tensor]) -> Tensor:
        keep = torch.ones(problem.edges.n_edges, requires_grad=True)
        with torch.enable_grad(), frozen(bridge):
            return torch.autograd.grad(problem.nodes.objective.losses(run(keep, prompts), prompts).mean(), keep)[0]

    runs: dict[str, Callable[[], Tensor]] = {
        "compiled": lambda: step(problem.gated.logits) if problem.gated else torch.empty(0),
        "whole": lambda: step(problem.hooked_logits),
    }
    off = float((runs["compiled"]() - runs["whole"]()).abs().max())
    seconds = _in_turns(runs, repeats=5)
    return row(
        f"step of an edge search, {problem.edges.n_edges} gates, {len(prompts)} prompts, {threads}",
        f"{seconds['compiled'] * 1e3:.1f} ms, slopes off by {off:.1g} at most",
        f"whole model {seconds['whole'] * 1e3:.0f} ms",
        seconds["whole"] / seconds["compiled"],
    )


def _ratios(bridge: Any, circuit: Circuit, threads: str) -> list[Row]:
    """Both forms against the masked model, on prompts that neither the search nor the recording has seen."""
    task = get_task(_TASK)
    prompts = both_sides(task.sample(bridge.tokenizer, _PAIRS, seed=1, split="heldout"))
    recorded = task.sample(bridge.tokenizer, _PAIRS, seed=0, split="search")
    exact, frozen = (compile_circuit(bridge, circuit, form=form, prompts=recorded) for form in ("exact", "frozen"))
    runs: dict[str, Callable[[], Tensor]] = {
        "masked": lambda: masked_differences(bridge, circuit.space, circuit.mask, circuit.how_ablated, prompts),
        "exact": lambda: exact.differences(prompts),
        "frozen": lambda: frozen.differences(prompts),
    }
    error = {name: (run() - runs["masked"]()).abs() for name, run in runs.items()}
    if not float(error["exact"].max()) <= _TOLERANCE:
        raise SparseLensError(f"the compiled circuit differs from the masked model by {float(error['exact'].max()):.2g}; report it")
    seconds = _in_turns(runs, repeats=3)
    rows = []
    for name, compiled, bound in (("exact", exact, _EXACT), ("frozen", frozen, _FROZEN)):
        off = f"{float(error[name].mean()):.1g} on average, {float(error[name].max()):.1g} at most"
        rows.append(
            row(
                f"{_what(circuit, compiled)}, {len(prompts)} prompts, {threads}",
                f"{seconds[name] * 1e3:.1f} ms, off by {off}",
                f"masked model {seconds['masked'] * 1e3:.0f} ms (bound {bound} x faster)",
                seconds["masked"] / seconds[name],
            )
        )
    return rows


def _what(circuit: Circuit, compiled: CompiledCircuit) -> str:
    return f"{compiled.form} form of {circuit.n_nodes} nodes of {_TASK}, {compiled.n_weights} weights"


@dataclass(frozen=True, eq=False)
class _Problem:
    """A circuit of nodes, prompts, and what it takes to make circuits of edges in any number around it."""

    bridge: Any
    circuit: Circuit
    batch: TaskBatch
    graph: WeightGraph
    means: dict[str, Tensor]

    @classmethod
    def of(cls, bridge: Any, circuit: Circuit) -> _Problem:
        batch = get_task(_TASK).sample(bridge.tokenizer, _EDGE_PAIRS, seed=0, split="search")
        graph = weight_graph(bridge, batch)
        means = input_means(bridge, default_windows(bridge)[:32], circuit.reference, graph.inputs)
        return cls(bridge, circuit, batch, graph, dict(means))

    def nodes(self, share: float) -> Circuit:
        """The circuit and a random share of all other nodes, as far as they lie on paths."""
        circuit = self.circuit
        more = torch.rand(circuit.mask.shape, generator=torch.Generator().manual_seed(0)) < share
        return replace(circuit, mask=on_paths(circuit.space, circuit.mask | more, self.graph), edges=None)

    def edges(self, n_edges: int) -> Circuit:
        """The smallest of such circuits with `_EDGES` edges, with a random choice of `n_edges` of them kept."""
        for step in range(1, 51):
            circuit = self.nodes(step / 50)
            between = candidate_edges(circuit.space, circuit.mask, self.graph)
            if between.n_edges >= _EDGES:
                keep = torch.zeros(between.n_edges, dtype=torch.bool)
                keep[torch.randperm(between.n_edges, generator=torch.Generator().manual_seed(0))[:n_edges]] = True
                return replace(circuit, edges=CircuitEdges(between.chosen(keep), between.chosen(~keep), self.means))
        raise SparseLensError(f"the model has fewer than {_EDGES} weights between nodes on paths of {_TASK}")


def _edge_row(problem: _Problem) -> Row:
    circuit = problem.edges(_EDGES)
    seconds = _seconds(lambda: ablate_each_edge(problem.bridge, circuit, problem.batch, progress=False))
    what = f"all {_EDGES} single-edge ablations of a circuit of {circuit.n_nodes} nodes, {_EDGE_PAIRS} pairs of prompts"
    return row(what, f"{seconds:.1f} s", f"bound {_SECONDS} s", _SECONDS / seconds)


def _slopes(problem: _Problem) -> list[Row]:
    """Cost of the exact form as nodes and tokens grow, and of all single-edge ablations as edges do."""
    prompts = both_sides(problem.batch)
    circuits = [problem.nodes(share) for share in (0.04, 0.08, 0.16, 0.32)]
    compiled = [compile_circuit(problem.bridge, circuit) for circuit in circuits]
    by_nodes = [_seconds(lambda form=form: form.differences(prompts)) for form in tqdm(compiled, desc="nodes", leave=False)]
    parts = [prompts.rows(slice(None, None, step)) for step in (8, 4, 2, 1)]
    by_tokens = [_seconds(lambda part=part: compiled[1].differences(part)) for part in tqdm(parts, desc="tokens", leave=False)]
    sizes = (125, 250, 500)
    edges = [problem.edges(size) for size in sizes]
    by_edges = [
        _seconds(lambda c=c: ablate_each_edge(problem.bridge, c, problem.batch, progress=False), repeats=1)
        for c in tqdm(edges, desc="edges", leave=False)
    ]
    return [
        _slope("exact form against nodes", [circuit.n_nodes for circuit in circuits], by_nodes),
        _slope(
            f"exact form of {circuits[1].n_nodes} nodes against tokens of prompts", [_tokens(part) for part in parts], by_tokens
        ),
        _slope(f"all single-edge ablations of a circuit of {edges[0].n_nodes} nodes against its edges", sizes, by_edges),
    ]


def _tokens(prompts: Prompts) -> int:
    return int((prompts.position + 1).sum())


def _slope(what: str, sizes: Sequence[int], seconds: Sequence[float]) -> Row:
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    told = ", ".join(f"{time * 1e3:.0f}" for time in seconds)
    what = f"{what} ({', '.join(str(size) for size in sizes)})"
    return row(what, f"exponent {slope:.2f}: {told} ms", "exponent 1: in proportion", 1 / max(slope, 1e-3))


def _seconds(function: Callable[[], Any], *, repeats: int = 3) -> float:
    return _in_turns({"": function}, repeats=repeats)[""]


def _in_turns(functions: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Least seconds of each function, called in turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: min(seconds) for name, seconds in times.items()}


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
