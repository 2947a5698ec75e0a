"""Sparsity report, node space, paths and edges of decoders that are not ours: GPT-2 and Llama, small, random, pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from sparse_lens import sparsity_report
from sparse_lens.circuits.edges.counting import count_edges
from sparse_lens.circuits.masking import mask_hooks, mean_reference
from sparse_lens.circuits.paths import on_paths
from sparse_lens.circuits.sites import node_space
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.errors import CircuitError
from sparse_lens.tasks.task import PromptPair, TaskBatch

VOCAB = 40


def models() -> dict[str, Any]:
    gpt2 = GPT2Config(n_layer=2, n_head=4, n_embd=16, vocab_size=VOCAB, n_positions=32)
    llama = LlamaConfig(
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16},
        **{"intermediate_size": 24, "vocab_size": VOCAB, "max_position_embeddings": 32},
    )
    return {"GPT2LMHeadModel": GPT2LMHeadModel(gpt2), "LlamaForCausalLM": LlamaForCausalLM(llama)}


def build(architecture: str, share: float) -> Any:
    """A bridge around a random model whose matrices keep that share of their weights, the largest."""
    torch.manual_seed(0)
    model = models()[architecture].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_()
                parameter.mul_(parameter.abs() >= parameter.abs().quantile(1 - share))
    return build_bridge_from_module(model, architecture, hf_config=model.config, tokenizer=None, device="cpu", model_name="pruned")


@pytest.fixture(params=["GPT2LMHeadModel", "LlamaForCausalLM"])
def pruned(request: pytest.FixtureRequest) -> Any:
    return build(request.param, 0.1)


@pytest.fixture(params=["GPT2LMHeadModel", "LlamaForCausalLM"])
def dense(request: pytest.FixtureRequest) -> Any:
    return build(request.param, 1.0)


@pytest.fixture
def prompts() -> TaskBatch:
    clean = np.array([[3, 1, 4, 9], [5, 1, 4, 9]])
    corrupt = np.array([[3, 2, 4, 9], [5, 2, 4, 9]])
    length, fork = np.array([4, 4]), np.array([[False, True, False, False]] * 2)
    pair = PromptPair("a", "b", "c", "d")
    return TaskBatch(
        pairs=(pair, pair), clean=clean, corrupt=corrupt, target=np.array([7, 7]), distractor=np.array([8, 8]), length=length,
        clean_fork=fork, corrupt_fork=fork,
    )  # fmt: skip


def test_sparsity_report(pruned: Any) -> None:
    report = sparsity_report(pruned)
    for matrix in report.matrices:
        assert matrix.density == pytest.approx(0.1, abs=0.05), matrix.name
    assert report.edges["qkv"] == sum(int((pruned.blocks[i].attn.W_Q != 0).sum()) for i in range(2)) + sum(
        int((getattr(pruned.blocks[i].attn, name) != 0).sum()) for i in range(2) for name in ("W_K", "W_V")
    )
    with torch.no_grad():  # a neuron whose output weights are zero is dead
        before = report.dead_neurons[1]
        neuron = int((pruned.blocks[1].mlp.W_out != 0).any(1).nonzero()[0])
        pruned.blocks[1].mlp.W_out[neuron] = 0
    assert sparsity_report(pruned).dead_neurons[1] in (before, before + 1)
    assert list(report.to_frame().columns)[:2] == ["name", "outputs"]


def edges_of(bridge: Any) -> Iterator[tuple[str, str]]:
    """Every nonzero weight and every residual connection as a pair of named channels, weight by weight."""
    for layer in range(2):
        attn, mlp = bridge.blocks[layer].attn, bridge.blocks[layer].mlp
        n_head, n_kv = attn.W_Q.shape[0], attn.W_K.shape[0]
        for channel in range(16):
            yield f"r{layer}a.{channel}", f"attn_in.{layer}.{channel}"
            yield f"r{layer}a.{channel}", f"r{layer}m.{channel}"
            yield f"attn_out.{layer}.{channel}", f"r{layer}m.{channel}"
            yield f"r{layer}m.{channel}", f"mlp_in.{layer}.{channel}"
            yield f"r{layer}m.{channel}", f"r{layer + 1}a.{channel}"
            yield f"mlp_out.{layer}.{channel}", f"r{layer + 1}a.{channel}"
        for letter in "QKV":
            weight = getattr(attn, f"W_{letter}")
            for head, source, inner in weight.nonzero().tolist():
                yield f"attn_in.{layer}.{source}", f"attn_{letter.lower()}.{layer}.{head * weight.shape[-1] + inner}"
        width = attn.W_Q.shape[-1]
        for head in range(n_head):
            kv = head // (n_head // n_kv)
            for inner in range(width):
                yield f"attn_q.{layer}.{head * width + inner}", f"pattern.{layer}.{head}"
                yield f"attn_k.{layer}.{kv * width + inner}", f"pattern.{layer}.{head}"
                # A head's output channel stands under its value's name: it is there if the value is kept.
                mixed = f"attn_v.{layer}.{kv * width + inner}#{head}"
                yield f"attn_v.{layer}.{kv * width + inner}", mixed
                yield f"pattern.{layer}.{head}", mixed
            for inner, target in attn.W_O[head].nonzero().tolist():
                yield f"attn_v.{layer}.{kv * width + inner}#{head}", f"attn_out.{layer}.{target}"
        reads = (mlp.W_in != 0) | (mlp.W_gate != 0) if getattr(mlp, "W_gate", None) is not None else mlp.W_in != 0
        for source, neuron in reads.nonzero().tolist():
            yield f"mlp_in.{layer}.{source}", f"mlp_neuron.{layer}.{neuron}"
        for neuron, target in mlp.W_out.nonzero().tolist():
            yield f"mlp_neuron.{layer}.{neuron}", f"mlp_out.{layer}.{target}"
    for channel in range(16):
        yield f"r2a.{channel}", f"final_resid.{channel}"


def reachable(starts: set[str], edges: list[tuple[str, str]]) -> set[str]:
    found, frontier, following = set(starts), list(starts), {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    while frontier:
        for target in following.get(frontier.pop(), []):
            if target not in found:
                found.add(target)
                frontier.append(target)
    return found


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_paths_are_those_of_a_search(pruned: Any, prompts: TaskBatch, share: float) -> None:
    """A kept node is on a path if a plain search of the weights, from embeddings and to the answers, passes it both ways."""
    space, graph = node_space(pruned), weight_graph(pruned, prompts)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(3)) < share
    kept = {f"{name}.{index}" for name, part in space.split(mask).items() for index in part.nonzero()[:, 0].tolist()}
    every = {f"{site.name}.{index}" for site in space.sites for index in range(site.n_nodes)}
    edges = [(a, b) for a, b in edges_of(pruned) if not {a.split("#")[0], b.split("#")[0]} & (every - kept)]
    embedded = (pruned.W_E != 0).any(0)
    if "pos_embed" in pruned.adapter.component_mapping:
        embedded = embedded | (pruned.pos_embed.W_pos != 0).any(0)
    starts = {f"r0a.{channel}" for channel in embedded.nonzero()[:, 0].tolist()}
    answers = (pruned.W_U[:, [7, 8]] != 0).any(1).nonzero()[:, 0].tolist()
    forward = reachable(starts, edges)
    backward = reachable({f"final_resid.{c}" for c in answers} & kept, [(b, a) for a, b in edges])
    found = space.split(on_paths(space, mask, graph))
    names = {f"{name}.{index}" for name, part in found.items() for index in part.nonzero()[:, 0].tolist()}
    passed = {name.split("#")[0] for name in forward & backward}  # a value may be constant under a pattern that varies
    assert names == passed & kept


def test_edges_are_counted_weight_by_weight(pruned: Any, prompts: TaskBatch) -> None:
    space, graph = node_space(pruned), weight_graph(pruned, prompts)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(5)) < 0.5
    kept = space.split(mask)
    counts = count_edges(space, mask, graph)
    n_head, n_kv = pruned.blocks[0].attn.W_Q.shape[0], pruned.blocks[0].attn.W_K.shape[0]
    width, output = pruned.blocks[0].attn.W_Q.shape[-1], 0
    for layer in range(2):
        for head, inner, target in pruned.blocks[layer].attn.W_O.nonzero().tolist():
            value = (head // (n_head // n_kv)) * width + inner
            output += bool(kept[f"attn_v.{layer}"][value] and kept[f"attn_out.{layer}"][target])
    assert counts["output"] == output
    named = {f"{name}.{index}" for name, part in kept.items() for index in part.nonzero()[:, 0].tolist()}
    inside = [(a.split(".")[0], b.split(".")[0]) for a, b in edges_of(pruned) if a in named and b in named]
    assert counts["q"] + counts["k"] + counts["v"] == sum(a == "attn_in" for a, _ in inside)
    assert counts["mlp_in"] == sum(a == "mlp_in" for a, _ in inside)
    assert counts["mlp_out"] == sum(a == "mlp_neuron" for a, _ in inside)


@torch.no_grad()
def test_ablation_acts_at_every_site(dense: Any) -> None:
    """A full mask changes nothing; each site, ablated alone, changes the logits to those of a plain hook."""
    windows = np.random.default_rng(0).integers(VOCAB, size=(4, 8))
    space, tokens = node_space(dense), torch.tensor([[3, 1, 4, 1, 5]])
    reference, clean = mean_reference(dense, space, windows), dense(tokens)
    full = torch.ones(space.n_nodes, dtype=torch.bool)
    assert mask_hooks(space, full, reference) == []
    for site in space.sites:
        mask = full.clone()
        mask[space.slices[site.name]] = False
        ablated = dense.run_with_hooks(tokens, fwd_hooks=mask_hooks(space, mask, reference))
        mean = reference[site.name].latents
        by_hand = dense.run_with_hooks(
            tokens, fwd_hooks=[(site.hook, lambda x, hook, mean=mean: mean.expand(*x.shape[:2], -1).reshape(x.shape))]
        )
        torch.testing.assert_close(ablated, by_hand, atol=1e-5, rtol=1e-5)
        assert not torch.equal(ablated, clean), site.name


def test_other_blocks_are_refused() -> None:
    config = MixtralConfig(
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 8},
        **{"intermediate_size": 8, "vocab_size": VOCAB, "num_local_experts": 2, "max_position_embeddings": 16},
    )
    model = MixtralForCausalLM(config)
    bridge = build_bridge_from_module(model, "MixtralForCausalLM", hf_config=config, tokenizer=None, device="cpu", model_name="moe")
    with pytest.raises(CircuitError, match=r"block 0 .* norm, attention, norm, MLP"):
        sparsity_report(bridge)
