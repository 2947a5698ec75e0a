"""What every kept edge of a circuit is worth: the rise of the task loss if it alone is cut, or it and another one.

Exact, on the compiled circuit: many edges are cut at a time, each in a variant of its own, and what is computed before the first of
them is shared. An edge whose input is constant in the circuit, or that reaches no answer, has a circuit compiled without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.compiled.cuts import Cuts, VariantRun, is_live, most_variants, node_of, ranks
from sparse_lens.circuits.compiled.plan import Plan
from sparse_lens.circuits.compiled.prefixes import prefix_rows
from sparse_lens.circuits.compiled.program import check_compilable, edges_cut, exact_plan
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.edges.cutting import CircuitEdges, cut_edges, edge_module
from sparse_lens.circuits.edges.space import EdgeSpace
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import task_loss
from sparse_lens.errors import CircuitError
from sparse_lens.tasks import TaskBatch

MOST_PAIRS = 50_000
"""Pairs of edges that are cut in one call."""

_BATCH = 256
_MOST_NUMBERS = 1 << 20
"""Numbers in the largest tensor of a batch of variants: few enough to stay near the processor."""

Variant = tuple[int, ...]
"""Numbers of the edges that are cut together."""


def ablate_each_edge(
    bridge: Any, circuit: Circuit, prompts: Prompts | TaskBatch, *, progress: bool = True
) -> Float[Tensor, " edge"]:
    """Rise of the mean task loss on `prompts`, in nats, if each of the circuit's kept edges alone is cut.

    In the order of `circuit.edges_frame()`. A cut edge carries the mean of its input, as in `cut_edges`, which the result equals to
    1e-5. Raises `CircuitError` for a circuit of nodes alone, and as `compile_circuit` does.
    """
    with torch.no_grad():
        ablation = _EdgeAblation(bridge, circuit, _as_prompts(prompts))
        return ablation.changes([(edge,) for edge in range(ablation.n_edges)], progress=progress)


def ablate_edge_pairs(
    bridge: Any,
    circuit: Circuit,
    prompts: Prompts | TaskBatch,
    edges: Sequence[int] | None = None,
    *,
    progress: bool = True,
) -> Float[Tensor, "chosen chosen"]:
    """Rise of the mean task loss, in nats, if each two of `edges` are cut together; on the diagonal, each alone.

    `edges` are rows of `circuit.edges_frame()`, by default all. What two edges do beyond their single effects is
    `pairs - singles[:, None] - singles`. Raises `CircuitError` for edges that are not there or given twice, for more than
    `MOST_PAIRS` pairs, and as `ablate_each_edge` does.
    """
    with torch.no_grad():
        ablation = _EdgeAblation(bridge, circuit, _as_prompts(prompts))
        chosen = list(range(ablation.n_edges)) if edges is None else [int(edge) for edge in edges]
        _check_chosen(chosen, ablation.n_edges)
        places = [(place,) for place in range(len(chosen))] + list(combinations(range(len(chosen)), 2))
        changes = ablation.changes([tuple(chosen[place] for place in pair) for pair in places], progress=progress)
    found = torch.zeros(len(chosen), len(chosen))
    first, last = torch.tensor([[pair[0], pair[-1]] for pair in places], dtype=torch.long).reshape(-1, 2).T
    found[first, last] = found[last, first] = changes
    return found


def _as_prompts(prompts: Prompts | TaskBatch) -> Prompts:
    return prompts if isinstance(prompts, Prompts) else both_sides(prompts)


def _check_chosen(chosen: list[int], n_edges: int) -> None:
    if wrong := [edge for edge in chosen if not 0 <= edge < n_edges]:
        raise CircuitError(f"the circuit has edges 0 to {n_edges - 1}, there is no {wrong[0]}")
    if len(set(chosen)) < len(chosen):
        raise CircuitError("an edge is given twice; name each edge once")
    if (n_pairs := len(chosen) * (len(chosen) - 1) // 2) > MOST_PAIRS:
        raise CircuitError(f"{len(chosen)} edges make {n_pairs} pairs, more than {MOST_PAIRS}; choose fewer with edges=...")


@dataclass(frozen=True, eq=False)
class _EdgeList:
    """All kept edges with their weight and their input's mean; `matrix` is a number in `names`."""

    names: list[str]
    matrix: Tensor
    output: Tensor
    input: Tensor
    weight: Tensor
    mean: Tensor

    def cuts(self, variants: Sequence[Variant]) -> dict[str, Cuts]:
        """The cuts of some variants, by matrix."""
        edge = torch.tensor([edge for variant in variants for edge in variant])
        variant = torch.tensor([number for number, edges in enumerate(variants) for _ in edges])
        found = {}
        for matrix in self.matrix[edge].unique().tolist():
            here = self.matrix[edge] == matrix
            e = edge[here]
            found[self.names[matrix]] = Cuts(variant[here], self.output[e], self.input[e], self.weight[e], self.mean[e])
        return found


def _edge_list(bridge: Any, edges: CircuitEdges) -> _EdgeList:
    names, columns = list(edges.kept.index), []
    for number, (name, index) in enumerate(edges.kept.index.items()):
        output, source = index.T
        weight, mean = edge_module(bridge, name).weight.detach()[output, source], edges.means[name].float()[source]
        columns.append((torch.full((len(index),), number), output, source, weight, mean))
    return _EdgeList(names, *[torch.cat(column) for column in zip(*columns, strict=True)])


class _EdgeAblation:
    """A circuit's edges, the prompts, and the runs in which none is cut."""

    def __init__(self, bridge: Any, circuit: Circuit, prompts: Prompts) -> None:
        circuit.check_model(bridge)
        if circuit.edges is None:
            raise CircuitError("this circuit has nodes only; sparse_lens.circuits.find_edges finds the edges between them")
        if len(prompts) == 0:
            raise CircuitError("there are no prompts; give at least one pair")
        check_compilable(bridge, circuit)
        self.bridge, self.circuit, self.kept, self.cut = bridge, circuit, circuit.edges.kept, circuit.edges.cut
        self.means, self.edges, self.n_edges = circuit.edges.means, _edge_list(bridge, circuit.edges), circuit.edges.kept.n_edges
        with edges_cut(bridge, circuit):
            self.plan = exact_plan(bridge, circuit)
        self.batches = [_Batch(self.plan, prompts.rows(slice(s, s + _BATCH))) for s in range(0, len(prompts), _BATCH)]
        self.n_prompts, self.rank = len(prompts), ranks(self.plan)

    def changes(self, variants: Sequence[Variant], *, progress: bool) -> Float[Tensor, " variant"]:
        """Rise of the mean loss in each variant."""
        losses = torch.zeros(len(variants), dtype=torch.float64)
        live = [all(self._live[edge] for edge in variant) for variant in variants]
        first = {number: min(self._rank_of[edge] for edge in variants[number]) for number, runs in enumerate(live) if runs}
        order = sorted(first, key=lambda number: first[number])
        with tqdm(total=len(variants) * len(self.batches), desc="edge ablations", disable=not progress, leave=False) as bar:
            for batch in self.batches:
                for part in batch.parts(order, first, self.rank):
                    losses[part] += batch.losses(self.edges.cuts([variants[number] for number in part]), len(part), self.rank)
                    bar.update(len(part))
            for number in (number for number, runs in enumerate(live) if not runs):
                losses[number] = self._recompiled(variants[number])
                bar.update(len(self.batches))
        return ((losses - sum(batch.loss for batch in self.batches)) / self.n_prompts).float()

    @cached_property
    def _live(self) -> list[bool]:
        edges = self.edges
        entries = zip(edges.matrix.tolist(), edges.input.tolist(), strict=True)
        return [is_live(self.plan, edges.names[matrix], source) for matrix, source in entries]

    @cached_property
    def _rank_of(self) -> list[int]:
        return [self.rank[node_of(self.edges.names[matrix])] for matrix in self.edges.matrix.tolist()]

    def _recompiled(self, variant: Variant) -> float:
        """The summed loss of a circuit compiled without some edges."""
        removed = torch.zeros(self.n_edges, dtype=torch.bool)
        removed[list(variant)] = True
        also = self.kept.chosen(removed).index
        cut = EdgeSpace({name: torch.cat([index, also[name]]) for name, index in self.cut.index.items()})
        with cut_edges(self.bridge, cut, torch.zeros(cut.n_edges), self.means):
            plan = exact_plan(self.bridge, self.circuit)
        return sum(_Batch(plan, batch.prompts).loss for batch in self.batches)


class _Batch:
    """Some of the prompts, and the run on them in which nothing is cut."""

    def __init__(self, plan: Plan, prompts: Prompts) -> None:
        self.prompts, self.rows = prompts, prefix_rows(prompts.tokens, prompts.position)
        answers, self.index = torch.stack([prompts.right, prompts.wrong]).unique(return_inverse=True)
        self.run = Run(plan, self.rows, answers)

    @cached_property
    def loss(self) -> float:
        """The summed loss."""
        return float(self._summed(self.run.value("logits")))

    def losses(self, cuts: dict[str, Cuts], n: int, rank: dict[str, int]) -> Float[Tensor, " variant"]:
        """The summed loss of each of `n` variants."""
        logits = VariantRun(self.run, cuts, n, rank).value("logits")
        return self._summed(logits.view(n, -1, logits.shape[1]))

    def _summed(self, logits: Float[Tensor, "*variant prompt answer"]) -> Float[Tensor, " *variant"]:
        right, wrong = (logits[..., self.rows.inverse, index] for index in self.index)
        differences = right - wrong
        return task_loss(differences.flatten()).view_as(differences).double().sum(-1)

    def parts(self, order: list[int], first: dict[int, int], rank: dict[str, int]) -> Iterator[list[int]]:
        """Variants that are run together: as many as memory is meant for, all from about the same node on."""
        start = 0
        while start < len(order):
            size = most_variants(self.run, rank, first[order[start]], _MOST_NUMBERS)
            yield order[start : start + size]
            start += size
