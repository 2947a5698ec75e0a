"""Bits of a circuit: a planted one by hand, dictionaries by loops, and what they must not depend on."""

from __future__ import annotations

from dataclasses import replace
from math import comb, log2
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.circuits import Circuit, mean_reference, node_space, weight_graph
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.sites import full_mask
from sparse_lens.comparisons.curves.description_length import BITS, PARTS, description_length, log2_choices
from sparse_lens.dictionaries import IdentityDictionary, TranscoderDictionary
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.tasks.task import PromptPair, TaskBatch

VOCAB, D, D_MLP, N = 12, 8, 12, 20
WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 6))


def batch() -> TaskBatch:
    """Prompts that differ in their last token, 1 against 2, answered by 3 and 4."""
    clean = np.random.default_rng(1).integers(5, VOCAB, (8, 5))
    corrupt = clean.copy()
    first = np.arange(8) % 2 == 0
    clean[:, -1], corrupt[:, -1] = np.where(first, 1, 2), np.where(first, 2, 1)
    target, distractor = np.where(first, 3, 4), np.where(first, 4, 3)
    differ = clean != corrupt
    return TaskBatch(clean, corrupt, differ, differ, np.full(8, 5), target, distractor, (PromptPair("", "", "", ""),) * 8)


def model(seed: int = 0, density: float = 0.5, bias: bool = True, zero: bool = False) -> CircuitGPTForCausalLM:
    shape = {"vocab_size": VOCAB, "block_size": 8, "n_layer": 1, "n_head": 2, "d_model": D, "d_mlp": D_MLP}
    made = CircuitGPTForCausalLM(CircuitGPTConfig(**shape, tied_unembed=False, rms_norm=True, bias=bias, activation_type="relu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.core.named_parameters():
            if zero:
                parameter.fill_(1.0 if "ln_" in name else 0.0)
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            if parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return made.eval()


def circuit_of(bridge: Any, dictionaries: Any = (), share: float = 0.4, seed: int = 0, mask: Tensor | None = None) -> Circuit:
    space = node_space(bridge, dictionaries)
    if mask is None:
        mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share
    return Circuit(mask, space, mean_reference(bridge, space, WINDOWS), "t", "m", 0.1, 0.1)


def bits(bridge: Any, circuit: Circuit) -> dict[str, float]:
    found = description_length(circuit, weight_graph(bridge, batch()))
    assert all(result.measurable for result in found.values())
    return {name.removesuffix("_bits"): result.value or 0.0 for name, result in found.items()}


def test_choices() -> None:
    for n, k in ((5, 2), (8, 0), (8, 8), (1024, 37)):
        assert log2_choices(n, k) == pytest.approx(log2(comb(n, k)), rel=1e-12, abs=1e-9)


def test_a_planted_circuit_by_hand() -> None:
    """Four nodes and eight weights; then one weight more that is not kept, a bias, an ablated write, and a calibration."""
    made = model(zero=True)
    core: Any = made.core
    with torch.no_grad():
        core.wte.weight[1, 0], core.wte.weight[2, 0], core.wte.weight[[1, 2], 3] = 2.0, -2.0, -3.0
        core.blocks[0].mlp.fc_in.weight[1, 0] = 1.0
        core.blocks[0].mlp.fc_out.weight[3, 1] = 6.0
        core.lm_head.weight[3, 3], core.lm_head.weight[4, 3] = 3.0, -3.0
    bridge = wrap(made)
    nothing = circuit_of(bridge, mask=full_mask(node_space(bridge), keep=False))
    circuit = nothing.with_nodes({"mlp_in.0": [0], "mlp_neuron.0": [1], "mlp_out.0": [3], "final_resid": [3]})
    found = bits(bridge, circuit)
    assert found["nodes"] == pytest.approx(3 * log2(8) + log2(12))
    assert found["edge_values"] == 8 * (4 + 1 + 1 + 2)  # two tokens into two channels, two weights, two answers
    assert found["edges"] == 0  # every pair that could be joined is
    assert found["total"] == pytest.approx(9 + log2(12) + 64) == found["total_without_dictionary"] == found["total_once"]
    with torch.no_grad():
        core.blocks[0].mlp.fc_in.weight[1, 2] = 1.0  # an ablated input whose mean is not 0: a constant of the neuron
        core.wte.weight[:, 2] = 1.0
        core.blocks[0].mlp.fc_in.bias[1] = 0.5
        core.lm_head.weight[4, 3] = 0.0  # one pair of four joined no more
        core.blocks[0].attn.o.bias[0] = 1.0  # an ablated write to the channel that mlp_in reads
    again = circuit_of(bridge, mask=circuit.mask)
    changed = bits(bridge, replace(again, search={"calibration": {"scale": 1.0}}))
    assert changed["edge_values"] == 8 * 7 and changed["edges"] == pytest.approx(log2(comb(2, 1)))
    assert changed["biases"] == 8 and changed["means"] == 2 * 8 and changed["calibration"] == 16
    assert changed["total"] == pytest.approx(9 + log2(12) + 56 + 1 + 8 + 16 + 16)


def test_parts_add_up_and_the_identity_costs_nothing() -> None:
    """Identity dictionaries at any site: the same bits as neurons, part by part."""
    bridge = wrap(model())
    plain = circuit_of(bridge)
    identity = [IdentityDictionary(D_MLP, "blocks.0.mlp.hook_post"), IdentityDictionary(D, "blocks.0.hook_mlp_out")]
    found = bits(bridge, plain)
    assert found == bits(bridge, circuit_of(bridge, identity))
    assert sum(found[part] for part in PARTS) == pytest.approx(found["total"])
    assert found["encoder_rows"] == found["decoder_rows"] == found["hidden"] == found["error"] == 0


def test_searched_edges_are_priced_and_what_is_cut_folds() -> None:
    bridge = wrap(model(density=1.0))
    circuit, graph = circuit_of(bridge, share=0.8), weight_graph(bridge, batch())
    edges = candidate_edges(circuit.space, circuit.mask, graph)
    means = input_means(bridge, WINDOWS, circuit.reference, graph.inputs)
    order, totals = torch.randperm(edges.n_edges, generator=torch.Generator().manual_seed(0)), []
    for n_edges in (0, 5, 20, 60, edges.n_edges // 2):
        keep = torch.zeros(edges.n_edges, dtype=torch.bool)
        keep[order[:n_edges]] = True
        some = replace(circuit, edges=CircuitEdges(edges.chosen(keep), edges.chosen(~keep), means))
        found = bits(bridge, some)
        kept, possible = edges.chosen(keep), edges
        expected = sum(log2(comb(len(possible.index[name]), len(kept.index[name]))) for name in possible.index)
        assert found["edge_values"] == 8 * n_edges and found["edges"] == pytest.approx(expected)
        totals.append(found["total"] - found["means"])
    assert totals == sorted(totals)  # up to half of the pairs, more edges are more bits


def test_more_nodes_are_more_bits() -> None:
    bridge = wrap(model(density=1.0))
    space = node_space(bridge)
    order, totals = torch.randperm(space.n_nodes, generator=torch.Generator().manual_seed(2)), []
    for size in range(0, space.n_nodes // 3, 4):
        mask = full_mask(space, keep=False)
        mask[order[:size]] = True
        totals.append(bits(bridge, circuit_of(bridge, mask=mask))["total"])
    assert totals == sorted(totals)


@pytest.mark.parametrize("what", ["neurons", "channels"])
def test_bits_do_not_depend_on_the_order_of_channels(what: str) -> None:
    """Neurons, or residual channels, of model and circuit in another order."""
    made, permuted = model(3), model(3)
    order = torch.randperm(D_MLP if what == "neurons" else D, generator=torch.Generator().manual_seed(0))
    core: Any = permuted.core
    block = core.blocks[0]
    rows = [(block.mlp.fc_in.weight, 0), (block.mlp.fc_in.bias, 0), (block.mlp.fc_out.weight, 1)]
    if what == "channels":
        names = (block.attn.q, block.attn.k, block.attn.v, block.mlp.fc_in, core.lm_head)
        rows = [(module.weight, 1) for module in names] + [(core.wte.weight, 1), (core.wpe.weight, 1)]
        rows += [(parameter, 0) for module in (block.attn.o, block.mlp.fc_out) for parameter in (module.weight, module.bias)]
        rows += [(norm.weight, 0) for norm in (block.ln_1, block.ln_2, core.ln_f)]
        rows += [(norm.bias, 0) for norm in (block.ln_1, block.ln_2, core.ln_f) if getattr(norm, "bias", None) is not None]
    with torch.no_grad():
        for parameter, axis in rows:
            parameter.copy_(parameter.index_select(axis, order))
    first, second = wrap(made), wrap(permuted)
    circuit = circuit_of(first, share=0.6)
    kept = circuit.space.split(circuit.mask)
    sites = ("mlp_neuron.0",) if what == "neurons" else ("attn_in.0", "attn_out.0", "mlp_in.0", "mlp_out.0", "final_resid")
    mask = circuit.space.join({name: part[order] if name in sites else part for name, part in kept.items()})
    assert bits(first, circuit) == pytest.approx(bits(second, circuit_of(second, mask=mask)))


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_dictionary_rows_by_loops(kind: str) -> None:
    """Every number of a kept latent's rows, of the hidden layer behind it, and of the error node, counted one by one."""
    bridge, generator = wrap(model(4)), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (torch.rand(*shape, generator=generator) < 0.7)

    d_in, d_out = (D_MLP, D_MLP) if kind == "sae" else (D, D)
    weights = {"W_enc": draw(d_in, N), "b_enc": draw(N), "W_dec": draw(N, d_out), "b_dec": draw(d_out)}
    if kind == "sae":
        dictionary: Any = SAELensDictionary("topk", weights, "blocks.0.mlp.hook_post", k=4)
    else:
        weights |= {"W_skip": draw(D, D)}
        dictionary = TranscoderDictionary(weights, "blocks.0.mlp.hook_act_in", "blocks.0.hook_mlp_out")
    for error in (False, True):
        circuit = circuit_of(bridge, [dictionary], share=0.5, seed=5)
        circuit.mask[circuit.space.slices["mlp_neuron.0"].stop - 1] = error
        found, kept = bits(bridge, circuit), circuit.space.split(circuit.mask)
        latents = kept["mlp_neuron.0"][:N].nonzero().flatten().tolist()
        mlp = bridge.blocks[0].mlp
        fc_in, fc_out, b_in = mlp.W_in.detach().T, mlp.W_out.detach().T, mlp.b_in.detach()
        encoder = sum(int((weights["W_enc"][:, latent] != 0).sum()) + 1 for latent in latents)
        shift = int((weights["b_dec"] != 0).sum()) if kind == "sae" else 0
        assert found["encoder_rows"] == BITS * (encoder + shift)
        assert found["decoder_rows"] == BITS * sum(int((weights["W_dec"][latent] != 0).sum()) for latent in latents)
        hidden = int((fc_in[:, kept["mlp_in.0"]] != 0).sum()) + int((b_in != 0).sum())
        assert found["hidden"] == (BITS * hidden if kind == "sae" else 0)
        rest = [latent for latent in range(N) if latent not in latents]
        rows = sum(int((weights["W_enc"][:, x] != 0).sum()) + 1 + int((weights["W_dec"][x] != 0).sum()) for x in rest)
        own = rows + int((weights["b_dec"] != 0).sum()) + int((fc_out[kept["mlp_out.0"]] != 0).sum())
        assert found["error"] == (BITS * (own + (0 if kind == "sae" else hidden)) if error else 0)
        edges = candidate_edges(circuit.space, circuit.mask, weight_graph(bridge, batch()))
        virtual = int((edges.index["mlp_out.0"][:, 1] < N).sum())
        virtual += 0 if kind == "sae" else int((edges.index["mlp_in.0"][:, 0] < N).sum())
        assert found["virtual_values"] == BITS * virtual
        skip = int((weights["W_skip"][kept["mlp_out.0"]][:, kept["mlp_in.0"]] != 0).sum()) if kind == "transcoder" else 0
        assert found["skips"] == BITS * skip
        assert found["total_once"] == pytest.approx(found["total"] - found["virtual_values"])
        assert found["total_without_dictionary"] == pytest.approx(
            found["total"] - sum(found[part] for part in ("encoder_rows", "decoder_rows", "hidden", "error"))
        )


def test_no_latent_kept_costs_no_rows() -> None:
    bridge = wrap(model(6))
    generator = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(D_MLP, N, generator=generator), "W_dec": torch.randn(N, D_MLP, generator=generator)}
    weights |= {"b_enc": torch.zeros(N), "b_dec": torch.zeros(D_MLP)}
    circuit = circuit_of(bridge, [SAELensDictionary("topk", weights, "blocks.0.mlp.hook_post", k=4)])
    circuit.mask[circuit.space.slices["mlp_neuron.0"]] = False
    found = bits(bridge, circuit)
    assert found["total"] == found["total_without_dictionary"] == found["total_once"]
