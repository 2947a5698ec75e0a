"""Circuits of heads and MLPs: from channels and back, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_lens.circuits import Circuit, model_fingerprint, node_space, score_circuit
from sparse_lens.circuits.exchange.component_circuits import component_circuit, component_graph
from sparse_lens.circuits.exchange.components import ComponentGraph
from sparse_lens.circuits.exchange.mib_json import read_mib_json, write_mib_json
from sparse_lens.circuits.sites import full_mask
from sparse_lens.dictionaries import RotationDictionary
from sparse_lens.errors import CircuitError

from ..conftest import VOCAB, Planted, pairs, random_bridge
from .schema_checker import violations


def circuit_in(bridge: Any, mask: torch.Tensor) -> Circuit:
    return Circuit(mask, node_space(bridge), {}, "planted", model_fingerprint(bridge), 0.15, 0.1)


def random_circuit(bridge: Any, seed: int, share: float) -> Circuit:
    space = node_space(bridge)
    return circuit_in(bridge, torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share)


def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (8, 6))


def plain_graph(bridge: Any, circuit: Circuit) -> tuple[set[str], dict[str, int]]:
    """The rule, by loops over single weights of a model with as many key heads as query heads and no sink."""
    state, config, kept = bridge.state_dict(), bridge.model_config, circuit.kept()
    writes, reads, nodes = {"input": set(range(config.d_model))}, {}, {"input", "logits"}

    def readers(name: str, outs: list[int], allowed: list[int]) -> set[int]:
        matrix = state[name]
        return {i for i in allowed if i < config.d_model and any(matrix[o, i] != 0 for o in outs)}

    def writers(name: str, ins: list[int], allowed: list[int]) -> set[int]:
        matrix = state[name]
        return {o for o in allowed if any(matrix[o, i] != 0 for i in ins)}

    embedding, positions = state["embed.weight"], state["pos_embed.weight"]
    if config.d_pos_emb is None:
        written = [c for c in range(config.d_model) if bool((embedding[:, c] != 0).any() | (positions[:, c] != 0).any())]
        writes["input"] = set(written)
    else:
        writes["input"] = {c for c in range(config.d_model) if bool((embedding[:, c] != 0).any())}
    for layer in range(config.n_layer):
        for head in range(config.n_head):
            own = {k: [c for c in kept[f"attn_{k}.{layer}"] if c // config.d_head == head] for k in "qkv"}
            if not any(own.values()):
                continue
            name = f"a{layer}.h{head}"
            nodes.add(name)
            for k in "qkv":
                reads[f"{name}<{k}>"] = readers(f"blocks.{layer}.attn.{k}.weight", own[k], kept[f"attn_in.{layer}"])
            writes[name] = writers(f"blocks.{layer}.attn.o.weight", own["v"], kept[f"attn_out.{layer}"])
        if neurons := kept[f"mlp_neuron.{layer}"]:
            nodes.add(f"m{layer}")
            reads[f"m{layer}"] = readers(f"blocks.{layer}.mlp.in.weight", neurons, kept[f"mlp_in.{layer}"])
            writes[f"m{layer}"] = writers(f"blocks.{layer}.mlp.out.weight", neurons, kept[f"mlp_out.{layer}"])
    reads["logits"] = set(kept["final_resid"])

    def order(name: str) -> float:
        if name in ("input", "logits"):
            return -1 if name == "input" else 1000
        return float(name[1]) + (0.5 if name[0] == "m" else 0)

    joined = {f"{s}->{t}": len(writes[s] & reads[t]) for s in writes for t in reads if order(s) < order(t) and writes[s] & reads[t]}
    return nodes, joined


@pytest.mark.parametrize("seed", range(6))
def test_edges_are_those_of_plain_loops_over_the_weights(seed: int) -> None:
    bridge = random_bridge(seed, density=0.3, **({"d_pos_emb": 3} if seed % 2 else {}))
    circuit = random_circuit(bridge, seed, share=0.3)
    graph = component_graph(bridge, circuit)
    nodes, edges = plain_graph(bridge, circuit)
    assert graph.nodes == nodes
    assert graph.edges == set(edges) and dict(graph.edge_scores) == edges


def test_planted_circuit_is_one_mlp(planted: Planted) -> None:
    mask = full_mask(planted.space, keep=False)
    for name, nodes in planted.nodes.items():
        mask[planted.space.slices[name]][nodes] = True
    graph = component_graph(planted.bridge, circuit_in(planted.bridge, mask))
    assert graph.nodes == {"input", "m0", "logits"}
    assert graph.edges == {"input->m0", "m0->logits", "input->logits"}


def test_whole_dense_model_has_every_edge() -> None:
    bridge = random_bridge(1)
    graph = component_graph(bridge, circuit_in(bridge, full_mask(node_space(bridge))))
    # Half-layer by half-layer: three per head and source before attention, one per source before the MLP and before the logits.
    assert len(graph.edges) == 3 * 2 * 1 + 3 + 3 * 2 * 4 + 6 + 7 == len(list(graph.all_edges()))
    assert graph.edges == set(graph.all_edges()) and graph.nodes == set(graph.all_nodes())
    assert set(graph.edge_scores.values()) == {float(bridge.cfg.d_model)}


def test_a_sink_lets_a_head_write_without_kept_values() -> None:
    for sink in (False, True):
        bridge = random_bridge(2, sink=sink)
        space = node_space(bridge)
        mask = full_mask(space)
        mask[space.slices["attn_v.0"]] = False
        assert ("a0.h0->m0" in component_graph(bridge, circuit_in(bridge, mask)).edges) == sink


def test_circuit_of_another_model_or_of_latents_is_refused(planted: Planted) -> None:
    with pytest.raises(CircuitError, match="found in the model"):
        component_graph(random_bridge(5), circuit_in(planted.bridge, full_mask(planted.space)))
    space = node_space(planted.bridge, [RotationDictionary(torch.eye(6), "blocks.0.mlp.hook_post")])
    circuit = dataclasses.replace(circuit_in(planted.bridge, full_mask(planted.space)), space=space)
    with pytest.raises(CircuitError, match="not latents"):
        component_graph(planted.bridge, circuit)


def grouped_bridge() -> Any:
    """A small random Llama: four query heads share two key heads, the MLP is gated, positions are rotary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16},
        **{"intermediate_size": 24, "vocab_size": VOCAB, "max_position_embeddings": 32},
    )
    model = LlamaForCausalLM(config).eval()
    return build_bridge_from_module(model, "LlamaForCausalLM", hf_config=config, tokenizer=None, device="cpu", model_name="grouped")


def test_query_heads_that_share_a_key_head() -> None:
    bridge = grouped_bridge()
    graph = ComponentGraph(2, 4, 16, nodes=frozenset({"a0.h1", "a1.h2"}))
    circuit = component_circuit(bridge, graph, task="planted", windows=windows())
    kept = circuit.kept()
    assert kept["attn_q.0"] == [4, 5, 6, 7] and kept["attn_k.0"] == kept["attn_v.0"] == [0, 1, 2, 3]
    assert kept["attn_q.1"] == [8, 9, 10, 11] and kept["attn_k.1"] == [4, 5, 6, 7] and not kept["mlp_neuron.0"]
    found = component_graph(bridge, circuit)
    # The head beside it has its keys and values, too, though no query: any kept channel puts a head into the graph.
    assert found.nodes == {"input", "a0.h0", "a0.h1", "a1.h2", "a1.h3", "logits"}
    assert "input->a0.h1<q>" in found.edges and "input->a0.h0<k>" in found.edges and "input->a0.h0<q>" not in found.edges
    whole = component_graph(bridge, circuit_in(bridge, full_mask(node_space(bridge))))
    assert whole.edges == set(whole.all_edges())


def test_components_become_a_circuit_of_all_their_channels(tmp_path: Path) -> None:
    bridge = random_bridge(3)
    graph = ComponentGraph(2, 2, 8, nodes=frozenset({"input", "a0.h1", "m1", "logits"}), edges=frozenset({"input->m1"}))
    circuit = component_circuit(bridge, graph, task="planted", windows=windows())
    kept = circuit.kept()
    assert kept["attn_q.0"] == kept["attn_k.0"] == kept["attn_v.0"] == [4, 5, 6, 7]
    assert len(kept["attn_in.0"]) == len(kept["attn_out.0"]) == len(kept["final_resid"]) == 8
    assert len(kept["mlp_neuron.1"]) == 12 and not kept["mlp_neuron.0"] and not kept["attn_q.1"] and not kept["mlp_in.0"]
    assert component_graph(bridge, circuit).nodes == graph.nodes
    scores = score_circuit(bridge, circuit, pairs(16))
    assert scores.circuit_loss.value is not None
    circuit.save(tmp_path / "circuit")
    assert torch.equal(Circuit.load(tmp_path / "circuit", bridge).mask, circuit.mask)


def test_graph_with_every_component_is_the_whole_model() -> None:
    bridge = random_bridge(4)
    names = ComponentGraph(2, 2, 8)
    graph = dataclasses.replace(names, nodes=frozenset(names.all_nodes()))
    circuit = component_circuit(bridge, graph, task="planted", windows=windows())
    assert bool(circuit.mask.all())


@pytest.mark.parametrize("every_edge", [False, True])
def test_graph_comes_back(tmp_path: Path, every_edge: bool) -> None:
    bridge = random_bridge(6, density=0.4)
    graph = component_graph(bridge, random_circuit(bridge, 6, share=0.4))
    path = tmp_path / "circuit.json"
    write_mib_json(path, graph, every_edge=every_edge)
    assert violations(path, "mib_json.schema.json") == []
    back = read_mib_json(path)
    assert (back.nodes, back.edges) == (graph.nodes, graph.edges)
    assert {name: score for name, score in back.edge_scores.items() if score} == graph.edge_scores
    assert len(json.loads(path.read_text())["edges"]) == (46 if every_edge else len(graph.edges))


def test_scores_alone_come_back_and_are_no_circuit_yet(tmp_path: Path) -> None:
    scores = ComponentGraph(2, 2, 8, edge_scores={"input->a0.h0<q>": -0.5, "m1->logits": 2.0}, node_scores={"m1": 0.25})
    write_mib_json(tmp_path / "importances.json", scores)
    assert violations(tmp_path / "importances.json", "mib_json.schema.json") == []
    back = read_mib_json(tmp_path / "importances.json")
    assert back.edge_scores == scores.edge_scores and back.node_scores == scores.node_scores and not back.edges
    with pytest.raises(CircuitError, match="choose components by their scores"):
        component_circuit(random_bridge(), back, task="planted", windows=windows())


def test_what_eap_ig_writes_is_read(tmp_path: Path) -> None:
    # Python's json writes nodes that were not scored as NaN.
    (tmp_path / "theirs.json").write_text(
        '{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": true, "d_model": 4}, '
        '"nodes": {"input": {"in_graph": true, "score": NaN}, "a0.h0": {"in_graph": true, "score": 0.5}, '
        '"m0": {"in_graph": false, "score": NaN}, "logits": {"in_graph": true, "score": NaN}}, '
        '"edges": {"input->a0.h0<q>": {"score": 1e-05, "in_graph": true}, "a0.h0->logits": {"score": -3, "in_graph": true}}}'
    )
    graph = read_mib_json(tmp_path / "theirs.json")
    assert graph.parallel and graph.nodes == {"input", "a0.h0", "logits"} and graph.node_scores == {"a0.h0": 0.5}
    assert "a0.h0->m0" not in set(graph.all_edges()) and "a0.h0->logits" in set(graph.all_edges())
    with pytest.raises(CircuitError, match="in parallel"):
        component_circuit(random_bridge(), graph, task="planted", windows=windows())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": {"a0.h2"}}, "no component"),
        ({"nodes": {"m05"}}, "no component"),
        ({"nodes": {"x" * 500}}, "no component"),
        ({"edges": {"m0->a0.h0<q>"}}, "against the order"),
        ({"edges": {"a0.h0->a0.h1<q>"}}, "against the order"),
        ({"edges": {"input->a0.h0"}}, "no edge is called"),
        ({"edges": {"input->m0<q>"}}, "no edge is called"),
        ({"edges": {"logits->m0"}}, "against the order"),
        ({"edges": {"m0->input"}}, "against the order"),
    ],
)
def test_impossible_names_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CircuitError, match=said):
        dataclasses.replace(ComponentGraph(2, 2, 8), **{name: frozenset(value) for name, value in change.items()})


@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_are_refused_or_read(tmp_path: Path, seed: int) -> None:
    bridge, path, choose = random_bridge(6, density=0.4), tmp_path / "circuit.json", random.Random(seed)
    write_mib_json(path, component_graph(bridge, random_circuit(bridge, 6, share=0.4)))
    whole = path.read_text()
    values: list[Any] = [None, -1, 1e999, "x", [], {}, True, 10**400, 1 << 40, float("nan"), {"in_graph": 1}]
    for _ in range(40):
        path.write_text(whole[: choose.randrange(len(whole) - 1)])
        with pytest.raises(CircuitError):
            read_mib_json(path)
        content = json.loads(whole)
        part = choose.choice([content, *content.values(), *content["nodes"].values(), *content["edges"].values()])
        part[choose.choice([*part, "m99", "input->m99"])] = choose.choice(values)
        path.write_text(json.dumps(content))
        try:
            read_mib_json(path)
        except CircuitError as error:
            assert len(str(error)) < 2000


def test_single_neurons_are_refused(tmp_path: Path) -> None:
    write_mib_json(tmp_path / "circuit.json", ComponentGraph(1, 1, 4))
    content = json.loads((tmp_path / "circuit.json").read_text())
    content["nodes"]["m0"]["neurons"] = [True] * 4
    (tmp_path / "circuit.json").write_text(json.dumps(content))
    with pytest.raises(CircuitError, match="single neurons"):
        read_mib_json(tmp_path / "circuit.json")
