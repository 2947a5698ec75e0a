"""Functional edges between MLP nodes: a planted chain, plain loops, and the identity as a dictionary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparse_lens.circuits import Circuit, mean_reference, model_fingerprint, node_space
from sparse_lens.circuits.edges.functional import FunctionalGraph, _Runs, functional_graph
from sparse_lens.circuits.masking import mask_hooks
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.search.objectives import TASK_LOSS, Objective
from sparse_lens.circuits.sites import full_mask
from sparse_lens.dictionaries import RotationDictionary, TranscoderDictionary
from sparse_lens.errors import CircuitError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

from ..conftest import FIRST, NO, SECOND, VOCAB, YES, pairs, plant, random_bridge

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))


def chain() -> Any:
    """channel 0 -> neuron 1 of layer 0 -> channel 3 -> neuron 2 of layer 1 -> channel 2 -> answers; noise beside it."""
    shape = {"vocab_size": VOCAB, "block_size": 8, "n_layer": 2, "n_head": 2, "d_model": 8, "d_mlp": 6, "tied_unembed": False}
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**shape, rms_norm=True, bias=False, activation_type="relu"))
    core: Any = model.core
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            parameter.fill_(1.0 if "ln_" in name else 0.0)
        core.wte.weight[:, 4:] = torch.randn(VOCAB, 4, generator=noise) * 0.3
        core.wte.weight[FIRST, 0], core.wte.weight[SECOND, 0] = 2.0, -2.0
        core.wte.weight[[FIRST, SECOND], 2] = -1.0
        first, second = core.blocks[0].mlp, core.blocks[1].mlp
        first.fc_in.weight[1, 0], first.fc_out.weight[3, 1] = 1.0, 3.0
        first.fc_in.weight[4, 5], first.fc_out.weight[6, 4] = 1.0, 1.0
        second.fc_in.weight[2, 3], second.fc_out.weight[2, 2] = 1.0, 3.0
        second.fc_in.weight[5, 6], second.fc_out.weight[7, 5] = 1.0, 1.0
        core.lm_head.weight[YES, 2], core.lm_head.weight[NO, 2] = 3.0, -3.0
    return plant(model, {})


def circuit_of(bridge: Any, space: Any, mask: torch.Tensor, reference: Any = None) -> Circuit:
    reference = mean_reference(bridge, space, WINDOWS) if reference is None else reference
    return Circuit(mask, space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)


def test_the_planted_chain_is_one_edge() -> None:
    planted = chain()
    circuit = circuit_of(planted.bridge, planted.space, full_mask(planted.space), planted.reference)
    found = functional_graph(planted.bridge, circuit, planted.prompts)
    kept = [(found.nodes[i], found.nodes[j]) for i, j in found.kept.nonzero().tolist()]
    assert kept == [(("mlp_neuron.0", 1), ("mlp_neuron.1", 2))]
    assert (found.faithfulness.value or 0) >= 0.9 and found.n_edges.value == 1 and found.n_possible == 36
    two = [("mlp_neuron.0", 4), ("mlp_neuron.1", 5)]
    assert found.effects[found.nodes.index(two[0]), found.nodes.index(two[1])] > 0
    assert float(found.effects[found.nodes.index(("mlp_neuron.0", 1)), found.nodes.index(two[1])]) < 0.2


@pytest.mark.parametrize("architecture", ["neurons", "transcoder"])
def test_effects_and_patching_by_loops(architecture: str) -> None:
    """Effects from runs with one node less; under patching each later node alone in a run of its own; attention between them."""
    bridge = random_bridge(5, activation_type="gelu", sink=True)
    dictionaries: list[Any] = []
    if architecture == "transcoder":
        generator = torch.Generator().manual_seed(0)
        shapes = {"W_enc": (8, 6), "b_enc": (6,), "W_dec": (6, 8), "b_dec": (8,)}
        weights = {name: torch.randn(*shape, generator=generator) * 0.5 for name, shape in shapes.items()}
        dictionaries = [TranscoderDictionary(weights, f"blocks.{x}.mlp.hook_act_in", f"blocks.{x}.hook_mlp_out") for x in (0, 1)]
    space, prompts = node_space(bridge, dictionaries), both_sides(pairs(6))
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(2)) < 0.8
    circuit = circuit_of(bridge, space, mask)
    found = functional_graph(bridge, circuit, prompts)
    alone, _ = run(bridge, circuit, prompts, {})
    counted = torch.arange(prompts.tokens.shape[1]) <= prompts.position[:, None]
    reference = circuit.reference["mlp_neuron.1"].latents
    for i, (site, index) in enumerate(found.nodes):
        for j, (other, later) in enumerate(found.nodes):
            if site == "mlp_neuron.1" or other == "mlp_neuron.0":
                assert found.effects[i, j] == 0
                continue
            changed, _ = run(bridge, circuit, prompts, {(site, index): None})
            change = (changed[other] - alone[other])[..., later][counted].abs().mean()
            own = (alone[other][..., later] - reference[later])[counted].abs().mean()
            expected = change / own if own > 0 else change.sign()
            assert float(found.effects[i, j]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    runs = _Runs(bridge, circuit, prompts, TASK_LOSS, lambda: None)
    generator = torch.Generator().manual_seed(1)
    edges = (torch.rand(found.effects.shape, generator=generator) < 0.5) & (found.effects > 0)
    with torch.no_grad():
        assert runs.patched_loss(found.effects > -1) == pytest.approx(runs.loss(mask), abs=1e-5)
        patched = runs.patched_loss(edges)
    assert patched == pytest.approx(by_loops(bridge, circuit, prompts, found, edges, alone), abs=1e-5)


def by_loops(bridge: Any, circuit: Circuit, prompts: Any, graph: FunctionalGraph, edges: Any, alone: Any) -> float:
    """The loss under edge patching, one later node a run."""
    values = {node: alone["mlp_neuron.0"][..., node[1]] for node in graph.nodes if node[0] == "mlp_neuron.0"}
    later = {}
    for j, (site, index) in enumerate(graph.nodes):
        if site == "mlp_neuron.1":
            seen = {node: values[node] if edges[i, j] else None for i, node in enumerate(graph.nodes) if node in values}
            later[site, index] = run(bridge, circuit, prompts, seen)[0][site][..., index]
    return run(bridge, circuit, prompts, values | later)[1]


def run(bridge: Any, circuit: Circuit, prompts: Any, given: dict[Any, Any]) -> tuple[dict[str, torch.Tensor], float]:
    """The circuit with some nodes at given values (None: ablated); values of MLP nodes and the mean task loss."""
    mask, reference, seen = circuit.mask.clone(), dict(circuit.reference), {}
    for (site, index), value in given.items():
        mask[circuit.space.slices[site].start + index] = False
        if value is not None:
            latents = reference[site].latents.expand(*prompts.tokens.shape, -1).clone()
            latents[..., index] = value
            error = reference[site].error.expand(*prompts.tokens.shape, reference[site].error.shape[-1])
            reference[site] = replace(reference[site], latents=latents, error=error)
    sites = [site for site in circuit.space.sites if site.kind == "mlp_neuron"]
    before, after = [], []
    for site in sites:

        def hook(tensor: Any, hook: Any, site: Any = site) -> None:
            seen[site.name] = site.dictionary.encode(tensor)

        (after if site.reads_elsewhere else before).append((site.dictionary.hook_in, hook))
    hooks = [*before, *mask_hooks(circuit.space, mask, reference), *after]
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        logits = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
    row = torch.arange(len(prompts))
    loss = F.softplus(logits[row, prompts.wrong] - logits[row, prompts.right]).mean()
    return seen, float(loss)


def test_the_identity_is_the_neurons() -> None:
    bridge, prompts = random_bridge(6, activation_type="gelu"), both_sides(pairs(8))
    identity = [RotationDictionary(torch.eye(12), f"blocks.{layer}.mlp.hook_post") for layer in (0, 1)]
    found = []
    for dictionaries in ([], identity):
        space = node_space(bridge, dictionaries)
        mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(3)) < 0.8
        found.append(functional_graph(bridge, circuit_of(bridge, space, mask), prompts, objective=Objective("kl")))
    torch.testing.assert_close(found[0].effects, found[1].effects, atol=1e-6, rtol=1e-4)
    assert torch.equal(found[0].kept, found[1].kept) and found[0].nodes == found[1].nodes


def test_refused_and_not_measurable() -> None:
    bridge, prompts = random_bridge(), both_sides(pairs(4))
    space = node_space(bridge)
    circuit = circuit_of(bridge, space, full_mask(space))
    with pytest.raises(CircuitError, match="fixed values"):
        functional_graph(bridge, replace(circuit, ablation="counterfactual"), prompts)
    empty = Prompts(*[tensor[:0] for tensor in vars(prompts).values() if tensor is not None])
    with pytest.raises(CircuitError, match="at least one prompt"):
        functional_graph(bridge, circuit, empty)
    nothing = functional_graph(bridge, replace(circuit, mask=full_mask(space, keep=False)), prompts)
    assert not nothing.n_edges.measurable and "no better than nothing" in (nothing.n_edges.reason or "")
