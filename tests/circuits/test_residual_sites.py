"""Dictionaries of the residual stream: their sites, ablation by hand, gradients, searches, and what is not said of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.circuits import (
    Ablation,
    Circuit,
    SearchConfig,
    both_sides,
    circuit_connections,
    compile_circuit,
    count_edges,
    find_circuit,
    mask_hooks,
    mean_reference,
    node_space,
    score_circuit,
)
from sparse_lens.circuits.attribution.exact_ablation import exact_effects
from sparse_lens.circuits.attribution.prompt_graph import attribute_prompt
from sparse_lens.circuits.cards.logit_lens import logit_directions
from sparse_lens.circuits.circuit_files import load_circuit
from sparse_lens.circuits.compiled.masked import masked_model, node_circuit
from sparse_lens.circuits.exchange.graph_json import read_graph_json, write_graph_json
from sparse_lens.circuits.paths import paths_are_known
from sparse_lens.circuits.scoring import masked_differences, task_loss
from sparse_lens.circuits.search.exhaustion import nodes_at
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.comparisons import ModelPair
from sparse_lens.dictionaries import IdentityDictionary, RotationDictionary, random_rotation
from sparse_lens.dictionaries.protocol import AtOneHook, dictionary_hash
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.report.circuit.rows import circuit_rows, lanes_of

from .conftest import NO, VOCAB, YES, Planted, pairs, problem_of, random_bridge
from .test_other_decoders import build

D = 8
HOOKS = [f"blocks.{layer}.hook_resid_{place}" for layer in (0, 1) for place in ("pre", "mid", "post")]


@dataclass(frozen=True, eq=False)
class Coarse(AtOneHook):
    """Twelve ReLU latents that leave an error."""

    hook: str
    name: str = "coarse"
    n_latents: int = 12
    exact: bool = False

    @property
    def W_enc(self) -> Tensor:
        return torch.randn(D, self.n_latents, generator=torch.Generator().manual_seed(1)) / 2

    @property
    def W_dec(self) -> Tensor:
        return torch.randn(self.n_latents, D, generator=torch.Generator().manual_seed(2)) / 4

    @property
    def hash(self) -> str:
        return dictionary_hash("coarse", {"hook": self.hook}, {})

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec + 0.1


@pytest.fixture(scope="module")
def bridge() -> Any:
    return random_bridge(sink=True)


def reference_of(bridge: Any, space: Any) -> Any:
    return mean_reference(bridge, space, np.random.default_rng(0).integers(0, VOCAB, (20, 8)))


def test_sites_stand_where_the_stream_is_read_and_only_there(bridge: Any) -> None:
    """In the order of computation; a space without such dictionaries is what it was."""
    plain = [site.name for site in node_space(bridge).sites]
    space = node_space(bridge, [Coarse(hook, name=hook) for hook in HOOKS])
    names = [site.name for site in space.sites]
    assert [name for name in names if not name.startswith("resid_")] == plain and len(names) == len(plain) + 6
    for layer in (0, 1):
        order = [
            names.index(f"{kind}.{layer}")
            for kind in ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
        ]
        assert order == sorted(order)
    assert not paths_are_known(space) and space.sees_residual and not node_space(bridge).sees_residual
    assert not paths_are_known(node_space(bridge, [IdentityDictionary(D, HOOKS[0])]))


@pytest.mark.parametrize("hook", HOOKS)
def test_ablation_is_that_by_hand(bridge: Any, hook: str) -> None:
    """Latents and the error blended with their means, at that hook, and nothing else changed; and the gradients of the masks."""
    dictionary = Coarse(hook)
    space = node_space(bridge, [dictionary])
    reference = reference_of(bridge, space)
    (site,) = (site for site in space.sites if not site.is_identity)
    mask = torch.ones(space.n_nodes)
    mask[space.slices[site.name]] = part = torch.rand(site.n_nodes, generator=torch.Generator().manual_seed(0))
    part.requires_grad_()
    tokens, means = torch.randint(VOCAB, (3, 6)), reference[site.name]

    def by_hand(x: Tensor, hook: Any) -> Tensor:
        f = dictionary.encode(x)
        error = x - dictionary.decode(f)
        kept = part[:-1] * f + (1 - part[:-1]) * means.latents
        return dictionary.decode(kept) + part[-1] * error + (1 - part[-1]) * means.error

    expected = bridge.run_with_hooks(tokens, fwd_hooks=[(hook, by_hand)])
    flat = mask.clone().requires_grad_()
    with bridge.hooks(fwd_hooks=mask_hooks(space, flat, reference)):
        found = bridge(tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (slope,) = torch.autograd.grad(found[:, -1, YES].sum(), flat)
    (by_hand_slope,) = torch.autograd.grad(expected[:, -1, YES].sum(), part)
    torch.testing.assert_close(slope[space.slices[site.name]], by_hand_slope, atol=1e-4, rtol=1e-4)
    assert by_hand_slope.abs().max() > 1e-3


def test_nothing_is_compiled_past_them(bridge: Any) -> None:
    """Compiled runs know no such site, so that the model runs itself: a Boolean mask gives what its hooks give."""
    space = node_space(bridge, [Coarse(HOOKS[2])])
    ablation = Ablation(reference_of(bridge, space))
    assert masked_model(bridge, space, ablation) is None and node_circuit(bridge, space, full_mask(space), ablation) is None
    identity = node_space(bridge, [IdentityDictionary(D, HOOKS[2])])
    reference = reference_of(bridge, identity)
    assert masked_model(bridge, identity, Ablation(reference)) is None
    circuit = Circuit(full_mask(identity), identity, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)
    with pytest.raises(CircuitError, match="dictionaries"):
        compile_circuit(bridge, circuit)
    with pytest.raises(CircuitError, match=r"not at resid_post\.0"):
        count_edges(identity, full_mask(identity), weight_graph(bridge, pairs(4)))


def test_the_planted_circuit_needs_its_channel_of_the_stream(planted: Planted, tmp_path: Path) -> None:
    """Behind the block, where channel 3 alone carries the answer: with the planted nodes it is enough, without it nothing is."""
    end = IdentityDictionary(D, "blocks.0.hook_resid_post")
    space = node_space(planted.bridge, [end])
    windows = np.concatenate([planted.batch.clean, planted.batch.corrupt])
    reference = mean_reference(planted.bridge, space, windows)
    nodes = planted.nodes | {"resid_post.0": [3]}
    mask = full_mask(space, keep=False)
    for site, indices in nodes.items():
        mask[space.slices[site].start + torch.tensor(indices)] = True
    circuit = Circuit(mask, space, reference, "planted", model_fingerprint(planted.bridge), 0.1, 0.0)
    scores = score_circuit(planted.bridge, circuit, planted.batch)
    assert scores.accuracy.value == 1 and (scores.circuit_loss.value or 1) < 1e-3
    channel = space.slices["resid_post.0"].start + 3
    without, everything = mask.clone(), full_mask(space)
    without[channel] = everything[channel] = False
    for less in (without, everything):
        found = masked_differences(planted.bridge, space, less, Ablation(reference), planted.prompts)
        assert (found > 0).float().mean() == 0.5  # one answer whatever the prompt, and half of the prompts want the other
    circuit.save(tmp_path / "circuit")
    again = load_circuit(tmp_path / "circuit", planted.bridge, [end])
    assert torch.equal(again.mask, mask) and again.space.signature() == space.signature()


@pytest.mark.slow
def test_a_search_among_latents_of_the_stream() -> None:
    """In the shipped dense model, seen through a rotation of its stream behind the first block."""
    bridge = ModelPair.open().open_model("dense_matched")
    rotated = RotationDictionary(random_rotation(bridge.cfg.d_model), HOOKS[2])
    config = SearchConfig(steps=80, evaluations=8, search_pairs=64, evaluation_pairs=32)
    circuit = find_circuit(bridge, "single_double_quote", dictionaries=[rotated], target_loss=0.3, config=config, progress=False)
    kept = circuit.kept()
    rows = circuit_rows(circuit, circuit_connections(bridge, circuit), [])
    assert "0 resid_post" in [row.label for row in rows] and not lanes_of(rows)  # latents cut the lanes
    assert circuit.reached and 0 < len(kept["resid_post.0"]) < rotated.n_latents and circuit.n_nodes < circuit.space.n_nodes / 2


def test_masks_of_latents_are_scored_and_each_ablated(bridge: Any) -> None:
    """Scores, single ablations and cards of a circuit with latents and the error of the stream."""
    dictionary = Coarse(HOOKS[2])
    space = node_space(bridge, [dictionary])
    reference = reference_of(bridge, space)
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.7
    circuit = Circuit(mask, space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)
    prompts = both_sides(pairs(8))
    found = masked_differences(bridge, space, mask, Ablation(reference), prompts)
    with bridge.hooks(fwd_hooks=circuit.fwd_hooks()):
        logits = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
    row = torch.arange(len(prompts))
    torch.testing.assert_close(found, logits[row, prompts.right] - logits[row, prompts.wrong], atol=1e-4, rtol=0)
    effects = exact_effects(bridge, space, Ablation(reference), reference, prompts, batch_size=8, progress=False)
    part = space.slices["resid_post.0"]
    for node in (part.start, part.stop - 1):
        without = full_mask(space)
        without[node] = False
        whole, less = (masked_differences(bridge, space, m, Ablation(reference), prompts) for m in (full_mask(space), without))
        torch.testing.assert_close(effects[:, node], task_loss(less) - task_loss(whole), atol=1e-4, rtol=0)
    assert set(circuit.to_frame().query("kind == 'resid_post'")["latent"]) == {True}


def test_direct_effects_add_up_through_the_stream(bridge: Any, tmp_path: Path) -> None:
    """What passes the latents is in their error, so that edges into every node still add up to its value."""
    space = node_space(bridge, [Coarse(HOOKS[2])])
    graph = attribute_prompt(bridge, (5, 7, 2, 9, 6, 1), (YES, NO), space=space, keep=1.0, smallest=1e-4)
    assert any(node.site == "resid_post" for node in graph.nodes)
    sums = dict.fromkeys((node for node in graph.nodes if node.kind in ("feature", "logit")), 0.0)
    for edge in graph.edges:
        sums[graph.nodes[edge.target]] += edge.weight
    assert all(node.activation == pytest.approx(total, abs=1e-4) for node, total in sums.items())
    write_graph_json(tmp_path / "graph.json", graph)
    assert read_graph_json(tmp_path / "graph.json").nodes == graph.nodes
    ids = [node["node_id"] for node in json.loads((tmp_path / "graph.json").read_text())["nodes"]]
    assert len(set(ids)) == len(ids)


def test_the_logit_lens_reads_their_directions(bridge: Any) -> None:
    """A latent of the stream writes its decoder row into it."""
    dictionary = Coarse(HOOKS[5])
    (site,) = (site for site in node_space(bridge, [dictionary]).sites if not site.is_identity)
    lens = logit_directions(bridge, site, 3)
    assert lens is not None and logit_directions(bridge, site, dictionary.n_latents) is None
    torch.testing.assert_close(lens, (dictionary.W_dec[3] * bridge.ln_final.w) @ bridge.W_U)


def test_other_architectures_have_two_of_the_three() -> None:
    """GPT-2's `hook_resid_mid` is what a norm reads: what is written there would not pass on."""
    gpt2 = build("GPT2LMHeadModel", 1.0)
    width = int(gpt2.cfg.d_model)
    for place, kind in (("pre", "resid_pre.1"), ("post", "resid_post.1")):
        rotated = RotationDictionary(random_rotation(width), f"blocks.1.hook_resid_{place}")
        space = node_space(gpt2, [rotated])
        assert [site.name for site in space.sites if not site.is_identity] == [kind]
        logits = gpt2(torch.tensor([[3, 1, 4]]))
        reference = reference_of(gpt2, space)
        with gpt2.hooks(fwd_hooks=mask_hooks(space, torch.ones(space.n_nodes), reference)):
            torch.testing.assert_close(gpt2(torch.tensor([[3, 1, 4]])), logits, atol=1e-5, rtol=0)
        if place == "post":  # everything passes here, and nothing comes behind but the unembedding
            closed = torch.ones(space.n_nodes)
            closed[space.slices[kind]] = 0
            with gpt2.hooks(fwd_hooks=mask_hooks(space, closed, reference)):
                found = gpt2(torch.tensor([[3, 1, 4], [5, 6, 2]]))
            torch.testing.assert_close(found, found[:1, :1].expand_as(found), atol=1e-4, rtol=0)
    aliased = node_space(gpt2, [RotationDictionary(random_rotation(width), "blocks.1.hook_in")])
    assert [site.name for site in aliased.sites if not site.is_identity] == ["resid_pre.1"]
    with pytest.raises(CircuitError, match=r"ln2\.hook_in.*hook_resid_pre or hook_resid_post"):
        node_space(gpt2, [RotationDictionary(random_rotation(width), "blocks.1.hook_resid_mid")])


def test_bad_dictionaries(bridge: Any, planted: Planted) -> None:
    """Of another width, twice at one place, and kinds of sites that do not exist."""
    with pytest.raises(CircuitError, match="dictionaries of one site"):
        node_space(bridge, [Coarse(HOOKS[0]), Coarse(HOOKS[0], name="again")])
    with pytest.raises(CircuitError, match="writes 6 channels"):
        node_space(bridge, [RotationDictionary(random_rotation(6), HOOKS[0])])
    problem = replace(problem_of(planted), space=node_space(bridge, [Coarse(HOOKS[0])]))
    assert int(nodes_at(problem, ["resid_pre"]).sum()) == 13
    with pytest.raises(CircuitError, match="no such nodes"):
        nodes_at(problem, ["resid_post"])
    with pytest.raises(UnknownNameError, match="hook_resid_pre"):
        node_space(bridge, [Coarse("blocks.0.hook_resid_prev")])
