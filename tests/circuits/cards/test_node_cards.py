"""Cards of nodes and what they are made of, against plain loops, state dicts and runs by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_lens.circuits import Circuit, mean_reference, model_fingerprint, node_space, weight_graph
from sparse_lens.circuits.cards.activation_summary import BINS, CONTEXT, ActivationSummary, RunningHistograms
from sparse_lens.circuits.cards.connections import Connection, Connections, Place, circuit_connections
from sparse_lens.circuits.cards.input_differences import input_differences, pair_values
from sparse_lens.circuits.cards.kept_values import kept_values
from sparse_lens.circuits.cards.logit_lens import logit_directions
from sparse_lens.circuits.cards.node_ablation import ablation_deltas
from sparse_lens.circuits.cards.node_card import NodeCard, node_cards, summarize
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.scoring import score_circuit
from sparse_lens.dictionaries import RotationDictionary, random_rotation
from sparse_lens.errors import CircuitError

from ..conftest import FIRST, NO, SECOND, VOCAB, YES, Planted, pairs, random_bridge
from ..test_other_decoders import build

WINDOWS = np.random.default_rng(1).integers(0, VOCAB, (11, 8))


def planted_circuit(planted: Planted, edges: bool = False) -> Circuit:
    mask = torch.zeros(planted.space.n_nodes, dtype=torch.bool)
    for site, indices in planted.nodes.items():
        mask[torch.tensor(indices) + planted.space.slices[site].start] = True
    circuit = Circuit(mask, planted.space, planted.reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.0)
    if not edges:
        return circuit
    graph = weight_graph(planted.bridge, planted.batch)
    found = candidate_edges(planted.space, mask, graph)
    means = input_means(planted.bridge, WINDOWS, planted.reference, (FIRST, SECOND))
    keep = torch.arange(found.n_edges) % 3 > 0
    return replace(circuit, edges=CircuitEdges(found.chosen(keep), found.chosen(~keep), means))


def random_circuit(bridge: Any, share: float = 0.5, dictionaries: Any = ()) -> Circuit:
    space = node_space(bridge, dictionaries)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < share
    return Circuit(mask, space, mean_reference(bridge, space, WINDOWS), "random", model_fingerprint(bridge), 0.1, 0.1)


def by_place(cards: tuple[NodeCard, ...]) -> dict[tuple[str, int], NodeCard]:
    return {(card.place.site, card.place.index): card for card in cards}


def test_contexts_and_density_against_a_full_recording() -> None:
    bridge = random_bridge(activation_type="relu")
    circuit = random_circuit(bridge, 0.3)
    cards = node_cards(bridge, circuit, windows=WINDOWS, n_contexts=3)
    assert [(card.place.site, card.place.index) for card in cards] == [(s, i) for s, kept in circuit.kept().items() for i in kept]
    _, cache = bridge.run_with_cache(torch.from_numpy(WINDOWS))
    for card in cards:
        site = next(site for site in circuit.space.sites if site.name == card.place.site)
        values = cache[site.hook].flatten(2)[..., card.place.index].numpy()
        assert card.density == pytest.approx(float((values != 0).mean()), abs=1e-9)
        assert card.mean == pytest.approx(float(values.mean()), abs=1e-5)
        assert sum(card.histogram.counts) == int((values != 0).sum())
        peaks = np.sort(np.abs(values).max(1))[::-1][:3]
        assert [max(abs(v) for v in context.values) for context in card.contexts] == pytest.approx(peaks[peaks > 0], abs=1e-6)
        for context in card.contexts:
            where = slice(context.start, context.start + len(context.values))
            assert context.values == pytest.approx(values[context.window, where], abs=1e-6)
            assert context.tokens == tuple(str(token) for token in WINDOWS[context.window, where])


def test_the_summary_does_not_depend_on_the_batches() -> None:
    bridge = random_bridge()
    circuit = random_circuit(bridge)
    first, second = (summarize(bridge, circuit, WINDOWS, batch_size=size) for size in (1, 16))
    assert first.peaks is not None and second.peaks is not None
    torch.testing.assert_close(first.peaks.value, second.peaks.value, atol=1e-5, rtol=1e-5)
    assert torch.equal(first.peaks.window, second.peaks.window) and torch.equal(first.active, second.active)
    assert torch.equal(first.histograms.limit, second.histograms.limit)


def test_long_windows_are_cut_around_the_peak() -> None:
    values = torch.zeros(2, 60, 1)
    values[0, 30, 0], values[1, 2, 0], values[1, 59, 0] = 3.0, -5.0, 4.0
    summary = ActivationSummary(1, n_contexts=5)
    summary.add(values)
    peaks = summary.peaks
    assert peaks is not None and peaks.value[:, 0].tolist() == [5.0, 3.0] and peaks.window[:, 0].tolist() == [1, 0]
    assert peaks.start[:, 0].tolist() == [0, 30 - CONTEXT[0]] and peaks.cutting.shape == (2, sum(CONTEXT) + 1, 1)
    assert peaks.cutting[0, 2, 0] == -5 and peaks.cutting[1, CONTEXT[0], 0] == 3


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6), min_size=1, max_size=5))
def test_running_histograms_are_exact(batches: list[list[float]]) -> None:
    found = RunningHistograms(1)
    for batch in batches:
        found.add(torch.tensor(batch)[:, None], 0.0)
    values = np.array([np.float32(value) for batch in batches for value in batch if np.float32(value) != 0], dtype=np.float64)
    result = found.result(0)
    assert sum(result.counts) == len(values)
    if len(values):
        edges = np.linspace(-result.limit, result.limit, BINS + 1)
        on_an_edge = np.isclose(values[:, None], edges[None], rtol=1e-6, atol=0).any()
        assert np.abs(values).max() <= result.limit
        if not on_an_edge:
            assert result.counts == tuple(np.histogram(values, edges)[0])


def loss_by_hand(planted: Planted, kept: dict[str, list[int]] | None, dropped: tuple[str, int] | None) -> float:
    """The task loss with everything outside `kept` at its mean (None: everything kept) and one more node at its mean."""
    rows, spots = planted.prompts, planted.bridge.hook_dict
    handles = []
    for site in planted.space.sites:
        width = site.n_latents
        keep = torch.zeros(width, dtype=torch.bool)
        keep[kept.get(site.name, []) if kept is not None else range(width)] = True
        if dropped is not None and dropped[0] == site.name:
            keep[dropped[1]] = False
        mean = planted.reference[site.name].latents

        def replace_channels(_: Any, __: Any, output: Tensor, keep: Tensor = keep, mean: Tensor = mean) -> Tensor:
            return torch.where(keep, output.flatten(2), mean).view(output.shape)

        handles.append(spots[site.hook].register_forward_hook(replace_channels))
    with torch.no_grad():
        logits = planted.bridge(rows.tokens)
    for handle in handles:
        handle.remove()
    at = logits[torch.arange(len(rows)), rows.position]
    two = torch.stack([at.gather(1, rows.right[:, None]), at.gather(1, rows.wrong[:, None])], 1)[..., 0]
    return float(-torch.log_softmax(two, 1)[:, 0].mean())


@pytest.mark.parametrize("whole", [False, True])
def test_deltas_against_runs_by_hand(planted: Planted, whole: bool) -> None:
    circuit = planted_circuit(planted)
    nodes = circuit.mask.nonzero().flatten()
    found = ablation_deltas(planted.bridge, circuit, planted.batch, nodes, whole_model=whole)
    kept = None if whole else planted.nodes
    before = loss_by_hand(planted, kept, None)
    for delta, (site, indices) in zip(found, planted.nodes.items(), strict=True):
        assert delta.value == pytest.approx(loss_by_hand(planted, kept, (site, indices[0])) - before, abs=1e-5)
        assert (delta.value or 0) > 0.1 and delta.n == len(planted.batch)


def test_deltas_leave_edges_cut(planted: Planted) -> None:
    """The loss before is the one that the circuit with its edges is scored at."""
    circuit = planted_circuit(planted, edges=True)
    node = circuit.mask.nonzero().flatten()[-1:]
    delta = ablation_deltas(planted.bridge, circuit, planted.batch, node)[0]
    scores = score_circuit(planted.bridge, circuit, planted.batch)
    mask = circuit.mask.clone()
    mask[node] = False
    after = score_circuit(planted.bridge, replace(circuit, mask=mask), planted.batch)
    assert delta.value == pytest.approx((after.circuit_loss.value or 0) - (scores.circuit_loss.value or 0), abs=1e-5)


def test_weights_are_those_of_the_state_dict() -> None:
    bridge = random_bridge(density=0.9, sink=True)
    circuit = random_circuit(bridge, 0.6)
    connections = circuit_connections(bridge, circuit, pairs(8))
    core = dict(bridge.original_model.core.named_parameters())
    weights = {name.replace("._original_component", "").replace(".original_component", ""): value for name, value in core.items()}
    modules = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "output": "attn.o", "mlp_in": "mlp.fc_in", "mlp_out": "mlp.fc_out"}
    assert {edge.kind for edge in connections.edges} == {"embedding", *modules, "unembedding"}
    for edge in connections.edges:
        row, column = edge.target.index, edge.source.index
        if edge.kind == "embedding":
            expected = weights["wte.weight"][column, row]
        elif edge.kind == "unembedding":
            expected = weights["lm_head.weight"][row, column]
        else:
            expected = weights[f"blocks.{edge.target.layer}.{modules[edge.kind]}.weight"][row, column]
        assert edge.weight == pytest.approx(float(expected.detach())) and edge.weight != 0
    assert (
        connections.total
        == len(connections.edges)
        == candidate_edges(circuit.space, circuit.mask, weight_graph(bridge, pairs(8))).n_edges
    )
    sizes = [edge.size for edge in connections.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert circuit_connections(bridge, circuit, pairs(8), most=5).edges == connections.edges[:5]


def test_cards_list_the_largest_edges(planted: Planted) -> None:
    cards = by_place(node_cards(planted.bridge, planted_circuit(planted), planted.batch, windows=WINDOWS))
    neuron = cards["mlp_neuron.0", 1]
    assert [(edge.source, edge.weight) for edge in neuron.arriving] == [(Place("mlp_in.0", 0), 1.0)]
    assert [(edge.target, edge.weight) for edge in neuron.leaving] == [(Place("mlp_out.0", 3), 6.0)]
    final = cards["final_resid", 3]
    assert {(edge.target.index, edge.weight) for edge in final.leaving} == {(YES, 3.0), (NO, -3.0)} and final.n_leaving == 2
    assert final.promoted is not None and final.promoted[0] == (str(YES), 3.0)
    assert final.suppressed is not None and final.suppressed[0] == (str(NO), -3.0)
    assert cards["mlp_in.0", 0].promoted is None
    one = by_place(node_cards(planted.bridge, planted_circuit(planted), planted.batch, windows=WINDOWS, n_edges=1))
    assert len(one["final_resid", 3].leaving) == 1 and one["final_resid", 3].n_leaving == 2


def test_kept_edges_alone_are_shown_where_edges_were_searched(planted: Planted) -> None:
    circuit = planted_circuit(planted, edges=True)
    assert circuit.edges is not None
    for prompts in (planted.batch, None):
        found = circuit_connections(planted.bridge, circuit, prompts)
        assert found.searched and found.total == circuit.edges.kept.n_edges
        kept = {(name.partition(".")[0], *pair) for name, index in circuit.edges.kept.index.items() for pair in index.tolist()}
        ends = [
            (e.kind, e.source.index, e.target.index) if e.kind == "embedding" else (e.kind, e.target.index, e.source.index)
            for e in found.edges
        ]
        assert set(ends) == kept and len(ends) == len(kept)
    assert circuit_connections(planted.bridge, planted_circuit(planted)).reason


def test_effects_are_weights_times_changes(planted: Planted) -> None:
    """The neuron's input differs by as much as channel 0 behind the norm, at the last position alone."""
    circuit = planted_circuit(planted)
    differences = input_differences(planted.bridge, circuit, planted.batch, batch_size=40)
    changes = []
    with circuit.applied(planted.bridge):
        for tokens in (planted.batch.clean, planted.batch.corrupt):
            _, cache = planted.bridge.run_with_cache(torch.from_numpy(tokens))
            changes.append(cache["blocks.0.mlp.hook_act_in"][..., 0])
    expected = float((changes[0] - changes[1]).abs().amax(1).mean())
    assert float(differences["mlp_in.0"][0]) == pytest.approx(expected, abs=1e-5) and expected > 0.5
    edge = next(e for e in circuit_connections(planted.bridge, circuit, planted.batch).edges if e.kind == "mlp_in")
    assert edge.effect == pytest.approx(expected, abs=1e-5)
    clean, corrupt = pair_values(planted.bridge, circuit, planted.batch, 5)
    assert clean.shape == (5, 4) and torch.equal(clean[:-1], corrupt[:-1])
    assert (clean[-1, 0] - corrupt[-1, 0]).abs() == pytest.approx(float((changes[0] - changes[1])[5, -1].abs()), abs=1e-5)
    assert torch.sign(clean[-1, 0] - corrupt[-1, 0]) == torch.sign((changes[0] - changes[1])[5, -1])
    with pytest.raises(CircuitError, match="no 64"):
        pair_values(planted.bridge, circuit, planted.batch, 64)


def test_padding_does_not_count(planted: Planted) -> None:
    """Prompts of other lengths in the batch change no difference of the others."""
    batch, circuit = planted.batch, planted_circuit(planted)
    filler = np.random.default_rng(0).integers(5, VOCAB, (len(batch), 2))
    clean, corrupt = np.hstack([batch.clean, filler]), np.hstack([batch.corrupt, filler[::-1]])
    none = np.zeros((len(batch), 2), dtype=bool)
    forks = {"clean_fork": np.hstack([batch.clean_fork, none]), "corrupt_fork": np.hstack([batch.corrupt_fork, none])}
    padded = replace(batch, clean=clean, corrupt=corrupt, **forks)
    found, expected = (input_differences(planted.bridge, circuit, prompts) for prompts in (padded, batch))
    for name, difference in found.items():
        torch.testing.assert_close(difference, expected[name])


@dataclass(frozen=True)
class Positive:
    """A dictionary that sees positive parts alone: its error is the negative part."""

    hook: str
    width: int

    hash = name = "positive"
    exact = False

    @property
    def hook_in(self) -> str:
        return self.hook

    hook_out = hook_in

    @property
    def n_latents(self) -> int:
        return self.width

    @property
    def W_dec(self) -> Tensor:
        return torch.eye(self.width)

    def encode(self, x: Tensor) -> Tensor:
        return x.relu()

    def decode(self, f: Tensor) -> Tensor:
        return f


def test_latents_have_contexts_and_deltas_but_no_weights() -> None:
    bridge = random_bridge()
    circuit = random_circuit(bridge, 0.1, [Positive("blocks.0.mlp.hook_post", 12)])
    start = circuit.space.slices["mlp_neuron.0"].start
    circuit = replace(circuit, mask=circuit.mask.clone().index_fill(0, torch.tensor([start + 2, start + 12]), True))
    cards = by_place(node_cards(bridge, circuit, pairs(8), windows=WINDOWS))
    _, cache = bridge.run_with_cache(torch.from_numpy(WINDOWS))
    values = cache["blocks.0.mlp.hook_post"]
    error = cards["mlp_neuron.0", 12]
    assert error.error and error.latent and error.promoted is None
    assert error.density == pytest.approx(float(((values.clamp(max=0) ** 2).sum(-1) > 0).float().mean()))
    latent = cards["mlp_neuron.0", 2]
    assert latent.latent and not latent.error and latent.contexts and latent.in_circuit is not None
    assert not latent.arriving and not latent.leaving and latent.promoted
    assert "do not apply" in circuit_connections(bridge, circuit, pairs(8)).reason


def test_a_rotated_basis_reads_through_the_logit_lens_as_its_directions_do() -> None:
    bridge = random_bridge(ln_bias=False)
    rotation = random_rotation(8)
    space = node_space(bridge, [RotationDictionary(rotation, "ln_final.hook_in")])
    plain = node_space(bridge)
    lens = [logit_directions(bridge, plain.sites[-1], index) for index in range(8)]
    stacked = torch.stack([found for found in lens if found is not None])
    for latent in range(8):
        found = logit_directions(bridge, space.sites[-1], latent)
        expected = space.sites[-1].dictionary.W_dec[latent] @ stacked
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:A forward hook edited")
def test_the_logit_lens_is_what_a_channel_adds_to_the_logits() -> None:
    """A step in a final channel with the norm's scale frozen, seen in the model's own logits."""
    bridge = random_bridge(enable_bigram_table=False)
    site = node_space(bridge).sites[-1]
    tokens = torch.from_numpy(WINDOWS[:2])
    _, cache = bridge.run_with_cache(tokens)
    scale = cache["ln_final.hook_scale"]
    step = torch.nn.functional.one_hot(torch.tensor(3), 8).float()
    hooks = [("ln_final.hook_scale", lambda tensor, hook: scale), ("ln_final.hook_in", lambda tensor, hook: tensor + step)]
    moved = bridge.run_with_hooks(tokens, fwd_hooks=hooks) - bridge(tokens)
    lens = logit_directions(bridge, site, 3)
    assert lens is not None
    torch.testing.assert_close(moved, lens / scale, atol=1e-4, rtol=1e-3)


def test_grouped_values_and_heads() -> None:
    """Two query heads of three channels share a key-value head: a channel of the second reads the same value channel."""
    edge = Connection("output", Place("head_out.0", 4), Place("attn_out.0", 1), 0.5)
    found = Connections((edge,), 1, True, {}, n_head=4, n_kv_head=2, d_head=3, d_model=8)
    assert found.value_channel(4) == 1 and found.value_channel(8) == 5 and found.value_channel(11) == 5
    assert found.head(Place("attn_q.0", 4)) == 1 and found.head(Place("attn_v.0", 4)) == 2
    assert found.leaving[Place("attn_v.0", 1)] == (edge,) and Place("attn_v.0", 4) not in found.leaving


def test_another_model_is_refused(planted: Planted) -> None:
    with pytest.raises(CircuitError, match="found in the model"):
        node_cards(random_bridge(), planted_circuit(planted), windows=WINDOWS)
    empty = replace(planted_circuit(planted), mask=torch.zeros(planted.space.n_nodes, dtype=torch.bool))
    assert node_cards(planted.bridge, empty, windows=WINDOWS) == ()
    assert kept_values(planted.bridge, planted.space, empty.mask, torch.from_numpy(WINDOWS)).shape == (11, 8, 0)


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_other_decoders_have_edges_and_values_too(architecture: str) -> None:
    """Grouped heads and other layouts: weights as TransformerLens has them, and a recording of the kept nodes."""
    bridge = build(architecture, 0.5)
    space = node_space(bridge)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.5
    windows = np.random.default_rng(0).integers(0, 40, (4, 8))
    circuit = Circuit(mask, space, mean_reference(bridge, space, windows), "random", model_fingerprint(bridge), 0.1, 0.1)
    batch = pairs(4)
    found = circuit_connections(bridge, circuit, batch)
    assert {edge.kind for edge in found.edges} >= {"q", "k", "v", "output", "mlp_in", "mlp_out"}
    for edge in found.edges:
        row, column, layer = edge.target.index, edge.source.index, edge.target.layer or 0
        if edge.kind == "k":
            expected = bridge.blocks[layer].attn.W_K.transpose(1, 2).flatten(0, 1)[row, column]
        elif edge.kind == "output":
            expected = bridge.blocks[layer].attn.W_O.flatten(0, 1)[column, row]
        elif edge.kind == "mlp_out":
            expected = bridge.blocks[layer].mlp.W_out[column, row]
        else:
            continue
        assert edge.weight == pytest.approx(float(expected.detach())) and edge.effect is not None
    values = kept_values(bridge, space, mask, torch.from_numpy(windows))
    assert values.shape == (4, 8, int(mask.sum())) and bool(values.isfinite().all())
