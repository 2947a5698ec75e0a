"""The attribution graph of one prompt: against the layers written out in matrices, on the planted path, and through its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens import load
from sparse_lens.circuits import AttributionGraph, Circuit, mean_reference, node_space, read_graph_json, write_graph_json
from sparse_lens.circuits.attribution.direct_effects import linear_run
from sparse_lens.circuits.attribution.prompt_graph import attribute_prompt
from sparse_lens.circuits.attribution.prompt_nodes import shown_from
from sparse_lens.circuits.exchange.attribution_graph import GraphEdge, GraphNode
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.dictionaries import RotationDictionary
from sparse_lens.errors import CircuitError
from sparse_lens.tasks import get_task

from ..conftest import FIRST, NO, YES, Planted, random_bridge
from ..test_other_decoders import build

PROMPT = (5, 7, 2, 9, 6, 1)
MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sink and bigrams": {"sink": True, "enable_bigram_table": True},
    "AbsTopK": {"afrac": 0.5, "afrac_loctypes": "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out,resid_post_mlp"},
    "LayerNorm, ReLU, positions apart": {"rms_norm": False, "activation_type": "relu", "d_pos_emb": 4},
    "residual ReLU": {"residual_activation_type": "relu"},
    "experts": {"n_experts": 3, "experts_per_token": 2},
}


def incoming(graph: AttributionGraph) -> dict[GraphNode, float]:
    """By feature and logit, the sum of the edges into it."""
    sums = {node: 0.0 for node in graph.nodes if node.kind in ("feature", "logit")}
    for edge in graph.edges:
        sums[graph.nodes[edge.target]] += edge.weight
    return sums


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_edges_into_a_node_add_up_to_it(name: str, keep: float) -> None:
    """At any pruning; the logits are the model's, the nodes' values those of its cache."""
    bridge = random_bridge(density=0.6, **MODELS[name])
    graph = attribute_prompt(bridge, PROMPT, (YES, NO), keep=keep, smallest=1e-4)
    logits, cache = bridge.run_with_cache(torch.tensor([PROMPT]))
    hooks = {site.name: site for site in node_space(bridge).sites}
    for node, total in incoming(graph).items():
        assert node.activation == pytest.approx(total, abs=1e-4)
        if node.kind == "logit":
            assert total == pytest.approx(float(logits[0, -1, node.channel]), abs=1e-4)
        else:
            site = node.site if node.layer is None else f"{node.site}.{node.layer}"
            assert total == pytest.approx(float(cache[hooks[site].hook][0, node.position].flatten()[node.channel]), abs=1e-4)
    assert {node.channel for node in graph.nodes if node.kind == "logit"} == {YES, NO}


def by_matrices(bridge: Any, run: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Layer 0's direct effects written out with the model's weights, `[pos, target, pos or source]`, for a model of RMSNorms."""
    core, cache = bridge.original_model.core, bridge.run_with_cache(torch.tensor([PROMPT]))[1]
    block = core.blocks[0]
    weight = {k: getattr(getattr(block, p), k).weight for p, ks in (("attn", "qkvo"), ("mlp", ("fc_in", "fc_out"))) for k in ks}
    kept = {site: cache[hook][0].flatten(1) != 0 for site, hook in (("attn_in", "blocks.0.attn.hook_act_in"),)}
    first = block.ln_1.weight / cache["blocks.0.ln1.hook_scale"][0]
    second = block.ln_2.weight / cache["blocks.0.ln2.hook_scale"][0]
    pre, post = (cache[f"blocks.0.mlp.hook_{name}"][0] for name in ("pre", "post"))
    pattern, v = cache["blocks.0.attn.hook_pattern"][0], cache["blocks.0.attn.hook_v"][0]
    heads = weight["o"].view(-1, *v.shape[1:])
    return {
        "attn_in.0": {"tokens": kept["attn_in"] * first * cache["embed.hook_out"][0]},
        "attn_v.0": {"attn_in.0": weight["v"] * cache["blocks.0.attn.hook_act_in"][0][:, None]},
        "attn_out.0": {"attn_v.0": torch.einsum("hqk,khd,mhd->qmkhd", pattern, v, heads).flatten(-2)},
        "mlp_in.0": {"attn_out.0": second * cache["blocks.0.hook_attn_out"][0], "tokens": second * cache["embed.hook_out"][0]},
        "mlp_neuron.0": {"mlp_in.0": (post / pre)[..., None] * weight["fc_in"] * cache["blocks.0.mlp.hook_act_in"][0][:, None]},
        "mlp_out.0": {"mlp_neuron.0": weight["fc_out"] * post[:, None]},
    }


def test_direct_effects_are_weights_times_activations() -> None:
    """Every effect in the first layer, and the constants: biases, positions and nothing else."""
    bridge = random_bridge(density=0.6, n_layer=1, sink=True)
    run, n = linear_run(bridge, node_space(bridge), torch.tensor([PROMPT])), len(PROMPT)
    expected, core = by_matrices(bridge, run), bridge.original_model.core
    block = core.blocks[0]
    biases = {"attn_v.0": block.attn.v, "attn_out.0": block.attn.o, "mlp_out.0": block.mlp.fc_out}
    for site, sources in expected.items():
        width = run.values[site].shape[-1]
        index = torch.cartesian_prod(torch.arange(n), torch.arange(width))
        parts = list(run.of_nodes(site, index))
        for source, table in sources.items():
            found = torch.cat([part.tokens if source == "tokens" else part.nodes[source] for part in parts])
            found = found.view(n, width, *found.shape[1:])
            if source == "attn_v.0":  # the one effect across positions
                torch.testing.assert_close(found, table.detach(), atol=1e-5, rtol=1e-4)
                continue
            own = found[torch.arange(n), :, torch.arange(n)]
            assert float(found.abs().sum()) == pytest.approx(float(own.abs().sum()), rel=1e-5)
            if own.ndim == 3 and table.ndim == 2:  # residual reads: channel to the same channel
                own = own.diagonal(dim1=1, dim2=2)
            torch.testing.assert_close(own, table.detach(), atol=1e-5, rtol=1e-4)
        if site in biases:
            constant = torch.cat([part.constant for part in parts]).view(n, width)
            torch.testing.assert_close(constant, biases[site].bias.detach().expand(n, -1), atol=1e-5, rtol=1e-4)


def test_without_biases_and_positions_nothing_is_constant() -> None:
    bridge = random_bridge(bias=False, sink=True)
    with torch.no_grad():
        bridge.original_model.core.wpe.weight.zero_()
        bridge.original_model.core.lm_head.bias.zero_()
    graph = attribute_prompt(bridge, PROMPT, (YES, NO), keep=0.9)
    constants = [e.weight for e in graph.edges if graph.nodes[e.source].site == "constants"]
    assert max(map(abs, constants), default=0.0) < 1e-5


def test_the_planted_path(planted: Planted) -> None:
    """Token, channel 0, neuron 1, channel 3 and the answers: nothing else has influence on what tells them apart."""
    tokens = planted.batch.clean[0].tolist()
    assert tokens[-1] == FIRST
    graph = attribute_prompt(planted.bridge, tokens, (YES, NO), keep=1.0)
    last, features = len(tokens) - 1, [node for node in graph.nodes if node.kind == "feature"]
    assert {(node.site, node.channel, node.position) for node in features} == {
        *(("mlp_in", 0, last), ("mlp_neuron", 1, last), ("mlp_out", 3, last), ("final_resid", 3, last))
    }
    joined = {
        (graph.nodes[e.source].site or graph.nodes[e.source].kind, graph.nodes[e.target].site or "logit") for e in graph.edges
    }
    path = [("embedding", "mlp_in"), ("mlp_in", "mlp_neuron"), ("mlp_neuron", "mlp_out"), ("mlp_out", "final_resid")]
    assert joined - {(s, t) for s, t in joined if s == "constants"} == {
        *path,
        ("embedding", "final_resid"),
        ("final_resid", "logit"),
    }
    weight = {(graph.nodes[e.source].site, graph.nodes[e.target].channel): e.weight for e in graph.edges}
    assert weight["final_resid", YES] == pytest.approx(-weight["final_resid", NO])
    neuron = next(node for node in features if node.site == "mlp_neuron")
    assert weight["mlp_neuron", 3] == pytest.approx(6.0 * (neuron.activation or 0))


def test_round_trip(tmp_path: Path) -> None:
    bridge = random_bridge(density=0.6, sink=True)
    graph = attribute_prompt(bridge, PROMPT, (YES, NO), keep=0.5)
    assert any(node.kind == "error" for node in graph.nodes)
    write_graph_json(tmp_path / "graph.json", graph)
    assert read_graph_json(tmp_path / "graph.json") == graph


def test_influence() -> None:
    """Shares that each node is shown from: rising, the last is 1; more is kept with a larger share, the most influential first."""
    bridge = random_bridge(density=0.6)
    few, many = (attribute_prompt(bridge, PROMPT, (YES, NO), keep=keep, smallest=1e-4) for keep in (0.3, 0.9))
    for graph in (few, many):
        shares = [node.influence for node in graph.nodes if node.kind != "logit"]
        assert all(share is not None and 0 < share <= 1 for share in shares)
        assert max(share or 0 for share in shares) == pytest.approx(1.0)
        assert all(node.influence is None for node in graph.nodes if node.kind == "logit")
        assert all(graph.nodes[e.source].kind != "logit" and e.source < e.target for e in graph.edges)
        reached = {e.source for e in graph.edges}
        assert all(index in reached for index, node in enumerate(graph.nodes) if node.kind != "logit")

    def named(graph: AttributionGraph) -> set[tuple[Any, ...]]:
        return {(n.site, n.layer, n.position, n.channel) for n in graph.nodes if n.kind == "feature"}

    assert 0 < len(named(few)) < len(named(many)) and named(few) <= named(many)


def test_influence_in_a_chain_and_in_a_fork() -> None:
    """0 -> 1 -> target: both have all of it: the last column of the known influence matrix [[0, 1, 1], [0, 0, 1], [0, 0, 0]].

    In the fork 0 and 1 -> 2 -> target with weights 3 and -1, the middle has 1, the others 3/4 and 1/4: shown from 1/2, 7/8, 1.
    """
    chain = [GraphEdge(0, 1, -2.0), GraphEdge(1, 2, 5.0)]
    assert shown_from(chain, 3, [1.0]) == pytest.approx([1 / 2, 1.0])
    fork = [GraphEdge(0, 2, 3.0), GraphEdge(1, 2, -1.0), GraphEdge(2, 3, 0.1)]
    assert shown_from(fork, 4, [-1.0]) == pytest.approx([7 / 8, 1.0, 1 / 2])


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_other_decoders(architecture: str) -> None:
    bridge = build(architecture, 0.5)
    graph = attribute_prompt(bridge, [3, 1, 4, 1, 5], [7, 8], keep=0.7)
    assert all(node.activation == pytest.approx(total, abs=1e-4) for node, total in incoming(graph).items())
    assert graph.n_layers == 2 and any(node.kind == "feature" for node in graph.nodes)


def test_dictionaries() -> None:
    """A rotated basis has other nodes; they add up all the same."""
    bridge = random_bridge()
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    space = node_space(bridge, [RotationDictionary(rotation, "blocks.0.mlp.hook_post")])
    graph = attribute_prompt(bridge, PROMPT, (YES,), space=space, keep=0.9)
    assert any(node.site == "mlp_neuron" and node.layer == 0 for node in graph.nodes)
    assert all(node.activation == pytest.approx(total, abs=1e-4) for node, total in incoming(graph).items())


def test_only_a_circuits_nodes() -> None:
    """The model runs as the circuit: its logits, its nodes alone, and still nothing is lost."""
    bridge = random_bridge(density=0.6)
    space = node_space(bridge)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.6
    reference = mean_reference(bridge, space, np.random.default_rng(0).integers(0, 12, (20, 8)))
    circuit = Circuit(mask, space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)
    graph = attribute_prompt(bridge, PROMPT, (YES, NO), circuit=circuit, keep=1.0, smallest=1e-4)
    kept = {(name, index) for name, indices in circuit.kept().items() for index in indices}
    for node in graph.nodes:
        if node.kind == "feature":
            assert (node.site if node.layer is None else f"{node.site}.{node.layer}", node.channel) in kept
    with circuit.applied(bridge), torch.no_grad():
        logits = bridge(torch.tensor([PROMPT]))[0, -1]
    for node, total in incoming(graph).items():
        assert node.activation == pytest.approx(total, abs=1e-4)
        assert node.kind != "logit" or total == pytest.approx(float(logits[node.channel]), abs=1e-4)
    with pytest.raises(CircuitError, match="found in the model"):
        attribute_prompt(random_bridge(seed=1), PROMPT, (YES, NO), circuit=circuit)
    whole = Circuit(full_mask(space), space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)
    assert attribute_prompt(bridge, PROMPT, (YES, NO), circuit=whole) == attribute_prompt(bridge, PROMPT, (YES, NO))


def test_nothing_stays() -> None:
    bridge = random_bridge()
    before = bridge(torch.tensor([PROMPT]))
    attribute_prompt(bridge, PROMPT, (YES,))
    assert torch.equal(bridge(torch.tensor([PROMPT])), before)
    assert not any(point.fwd_hooks or point.bwd_hooks or point._forward_hooks for point in bridge.hook_dict.values())
    assert all(parameter.requires_grad for parameter in bridge.parameters() if parameter.ndim == 2)


@pytest.mark.parametrize(
    ("prompt", "answers", "message"),
    [
        ("a text", (YES,), "no tokenizer"),
        (PROMPT, ("yes",), "no tokenizer"),
        (PROMPT, (YES, YES), "are explained"),
        (PROMPT, (YES, NO, 5), "are explained"),
        ((), (YES,), "0 tokens"),
        (PROMPT * 2, (YES,), "12 tokens, the model reads 1 to 8"),
        ((5, 99), (YES,), "token id 99"),
        (PROMPT, (-1,), "token id -1"),
    ],
)
def test_bad_prompts(prompt: Any, answers: Any, message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        attribute_prompt(random_bridge(), prompt, answers)


def test_bad_shares() -> None:
    with pytest.raises(CircuitError, match="shares"):
        attribute_prompt(random_bridge(), PROMPT, (YES,), keep=0.0)
    with pytest.raises(CircuitError, match="shares"):
        attribute_prompt(random_bridge(), PROMPT, (YES,), smallest=2.0)


def test_on_a_shipped_model(tmp_path: Path) -> None:
    """The quote is traced back to where it was opened, over the value channel that reads it."""
    bridge = load("python-sparse")
    batch = get_task("single_double_quote").sample(bridge.tokenizer, 1, seed=0, split="search")
    graph = attribute_prompt(bridge, batch.pairs[0])
    assert [target.token for target in graph.targets] == [int(batch.target[0]), int(batch.distractor[0])]
    assert list(graph.tokens) == [bridge.tokenizer.decode([t]) for t in batch.clean[0, : batch.length[0]]]
    assert all(node.activation == pytest.approx(total, abs=1e-4) for node, total in incoming(graph).items())
    opened = int(np.flatnonzero(batch.clean_fork[0])[0])
    strongest = min((n for n in graph.nodes if n.kind == "embedding"), key=lambda node: node.influence or 1)
    assert strongest.position == opened
    value = next(
        index for index, n in enumerate(graph.nodes) if (n.site, n.layer, n.position, n.channel) == ("attn_v", 0, opened, 11)
    )
    assert any(graph.nodes[e.target].site == "attn_out" for e in graph.edges if e.source == value)
    text = attribute_prompt(bridge, "".join(graph.tokens[1:]), ('"', "'"))
    assert text.tokens == graph.tokens
    assert attribute_prompt(bridge, "x = 1").targets[0].probability > 0
    write_graph_json(tmp_path / "graph.json", graph)
    assert read_graph_json(tmp_path / "graph.json") == graph
    with pytest.raises(CircuitError, match="not one"):
        attribute_prompt(bridge, "x = 1", ("return value",))
