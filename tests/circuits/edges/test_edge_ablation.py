"""Edges cut one at a time and two at a time, against `cut_edges` in the whole masked model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Circuit, model_fingerprint, weight_graph
from sparse_lens.circuits.edges import ablation as edge_ablation
from sparse_lens.circuits.edges.ablation import ablate_each_edge, ablate_edge_pairs
from sparse_lens.circuits.edges.cutting import CircuitEdges, cut_edges, input_means
from sparse_lens.circuits.edges.space import EdgeSpace, candidate_edges
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import masked_differences, task_loss
from sparse_lens.circuits.sites import full_mask
from sparse_lens.errors import CircuitError

from ..compiled.test_compiled import MODELS, random_circuit, some_prompts
from ..conftest import FIRST, NO, SECOND, YES, Planted, random_bridge


def slowly(bridge: Any, circuit: Circuit, prompts: Prompts, variants: list[tuple[int, ...]]) -> torch.Tensor:
    """The second witness: the whole model, run once for every variant."""
    assert circuit.edges is not None
    kept, cut = circuit.edges.kept, circuit.edges.cut
    losses = []
    for variant in [(), *variants]:
        removed = torch.zeros(kept.n_edges, dtype=torch.bool)
        removed[list(variant)] = True
        also = kept.chosen(removed).index
        everything = EdgeSpace({name: torch.cat([index, also[name]]) for name, index in cut.index.items()})
        with cut_edges(bridge, everything, torch.zeros(everything.n_edges), circuit.edges.means):
            found = masked_differences(bridge, circuit.space, circuit.mask, circuit.how_ablated, prompts)
        losses.append(task_loss(found).double().mean())
    return (torch.stack(losses[1:]) - losses[0]).float()


def answered(prompts: Prompts) -> Prompts:
    """The prompts with two answers only, so that their unembedding edges are candidates."""
    right = torch.where(prompts.right % 2 == 0, YES, NO)
    return replace(prompts, right=right, wrong=YES + NO - right)


@pytest.mark.parametrize("kind", ["sparse activations", "positions beside", "tied LayerNorm", "one expert"])
def test_equals_one_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of edges, some of them, in batches of variants that are cut where memory ends."""
    monkeypatch.setattr(edge_ablation, "_MOST_NUMBERS", 9000)
    monkeypatch.setattr(edge_ablation, "_BATCH", 16)
    check_each_edge(kind, list(MODELS).index(kind), share=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_one_at_a_time_often(kind: str, seed: int) -> None:
    check_each_edge(kind, seed, share=1.0)


def check_each_edge(kind: str, seed: int, share: float) -> None:
    bridge, prompts = random_bridge(seed, density=0.4, **MODELS[kind]), answered(some_prompts(seed=seed))
    circuit = random_circuit(bridge, 0.6, seed=seed, edges=True)
    assert circuit.edges is not None
    chosen = np.random.default_rng(0).permutation(circuit.edges.kept.n_edges)
    chosen = chosen[: max(1, int(share * len(chosen)))].tolist()
    found = ablate_each_edge(bridge, circuit, prompts, progress=False)
    assert len(circuit.edges_frame()) == len(found)
    expected = slowly(bridge, circuit, prompts, [(edge,) for edge in chosen])
    torch.testing.assert_close(found[chosen], expected, atol=1e-5, rtol=1e-5)


def test_pairs() -> None:
    """Against two weights cut at once; singles on the diagonal; edges of one matrix, of one neuron, and of different layers."""
    bridge, prompts = random_bridge(1, density=0.4, **MODELS["sparse activations"]), answered(some_prompts())
    circuit = random_circuit(bridge, 0.9, seed=0, edges=True)
    frame = circuit.edges_frame()
    chosen = [int(rows[0]) for rows in frame.groupby(["kind", "layer"]).groups.values()]
    shared = frame[(frame["kind"] == "mlp_in") & (frame["layer"] == 0)].groupby("output").groups
    chosen = sorted({*chosen, *[int(row) for row in next(rows for rows in shared.values() if len(rows) > 1)[:2]]})
    found = ablate_edge_pairs(bridge, circuit, prompts, chosen, progress=False)
    assert torch.equal(found, found.T)
    singles = ablate_each_edge(bridge, circuit, prompts, progress=False)
    torch.testing.assert_close(found.diagonal(), singles[chosen], atol=1e-5, rtol=1e-5)
    some = [(a, b) for a in range(len(chosen)) for b in range(a) if (a + b) % 4 == 0]
    expected = slowly(bridge, circuit, prompts, [(chosen[a], chosen[b]) for a, b in some])
    torch.testing.assert_close(torch.stack([found[a, b] for a, b in some]), expected, atol=1e-5, rtol=1e-5)


def planted_circuit(planted: Planted) -> Circuit:
    """The planted nodes and all edges between them."""
    mask = full_mask(planted.space, keep=False)
    circuit = Circuit(mask, planted.space, planted.reference, "", model_fingerprint(planted.bridge), 0.1, 0.0).with_nodes(
        planted.nodes
    )
    edges = candidate_edges(planted.space, circuit.mask, weight_graph(planted.bridge, planted.batch))
    means = input_means(planted.bridge, planted.batch.clean, planted.reference, (FIRST, SECOND))
    return replace(circuit, edges=CircuitEdges(edges, edges.chosen(torch.zeros(edges.n_edges, dtype=torch.bool)), means))


def test_planted_edges(planted: Planted) -> None:
    """Each weight on the one path costs; the start at the written channel is the same for both tokens and costs nothing."""
    circuit = planted_circuit(planted)
    found = circuit.edges_frame().assign(change=ablate_each_edge(planted.bridge, circuit, planted.batch, progress=False).numpy())
    on_path = found[
        found["kind"].isin(["mlp_in", "mlp_out", "unembedding"]) | ((found["kind"] == "embedding") & (found["input"] == 0))
    ]
    assert (on_path["change"] > 0.01).any() and (on_path[on_path["kind"].str.startswith("mlp")]["change"] > 0.5).all()
    common = found[(found["kind"] == "embedding") & (found["input"] == 3)]
    assert len(common) == 2 and (common["change"].abs() < 1e-6).all()


def test_batch_size_does_not_matter(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = planted_circuit(planted)
    expected = ablate_each_edge(planted.bridge, circuit, planted.prompts, progress=False)
    monkeypatch.setattr(edge_ablation, "_MOST_NUMBERS", 1)
    monkeypatch.setattr(edge_ablation, "_BATCH", 7)
    found = ablate_each_edge(planted.bridge, circuit, planted.prompts, progress=False)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_refused(planted: Planted) -> None:
    circuit = planted_circuit(planted)
    with pytest.raises(CircuitError, match="nodes only"):
        ablate_each_edge(planted.bridge, replace(circuit, edges=None), planted.prompts)
    with pytest.raises(CircuitError, match="there is no 99"):
        ablate_edge_pairs(planted.bridge, circuit, planted.prompts, [0, 99])
    with pytest.raises(CircuitError, match="twice"):
        ablate_edge_pairs(planted.bridge, circuit, planted.prompts, [0, 0])
    with pytest.raises(CircuitError, match="no prompts"):
        ablate_each_edge(
            planted.bridge, circuit, Prompts(*[tensor[:0] for tensor in vars(planted.prompts).values() if tensor is not None])
        )
    with pytest.raises(CircuitError, match="depends on the prompts"):
        ablate_each_edge(planted.bridge, replace(circuit, ablation="resample"), planted.prompts)
    assert ablate_edge_pairs(planted.bridge, circuit, planted.prompts, [], progress=False).shape == (0, 0)
