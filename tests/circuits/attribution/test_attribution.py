"""Attribution of nodes and edges: against loops of ablations, finite differences and rules worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sparse_lens import load
from sparse_lens.circuits import Ablation, Circuit, NodeSpace, both_sides, mean_reference, node_space
from sparse_lens.circuits.attribution.edges import attribute_edges
from sparse_lens.circuits.attribution.method_comparison import agreement, compare_methods, spearman
from sparse_lens.circuits.attribution.nodes import attribute_nodes
from sparse_lens.circuits.attribution.relevance import relevance_hooks, silent_norms
from sparse_lens.circuits.scoring import logit_differences, masked_differences, task_loss
from sparse_lens.circuits.sites import full_mask, model_fingerprint
from sparse_lens.dictionaries import RotationDictionary
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.tasks.task import TaskBatch

from ..conftest import VOCAB, pairs, random_bridge
from ..test_other_decoders import build

METHODS = ("eap", "eap_ig", "relp", "exact")
WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))


def some_pairs(n: int = 4) -> TaskBatch:
    """Pairs whose prompts are of two lengths."""
    batch = pairs(n)
    length = np.where(np.arange(n) < n // 2, 5, 4)
    moved = {side: getattr(batch, side).copy() for side in ("clean", "corrupt")}
    for side in moved.values():
        side[n // 2 :, 3] = side[n // 2 :, 4]
    return replace(batch, length=length, **moved)


def by_hand(bridge: Any, space: Any, ablation: Ablation, batch: TaskBatch, node: int) -> float:
    prompts, mask = both_sides(batch), full_mask(space)
    mask[node] = False
    losses = [task_loss(masked_differences(bridge, space, m, ablation, prompts)) for m in (mask, full_mask(space))]
    return float((losses[0] - losses[1]).mean())


@pytest.mark.parametrize(
    ("kind", "frozen_norms"), [("mean", False), ("zero", False), ("counterfactual", False), ("resample", False), ("resample", True)]
)
def test_exact_is_ablating_one_node_after_the_other(kind: Any, frozen_norms: bool) -> None:
    bridge = random_bridge(density=0.5, n_layer=1, sink=True, afrac=0.5, afrac_loctypes="attn_in,attn_v,mlp_neuron")
    space, batch = NodeSpace(node_space(bridge).sites[:: 3 if frozen_norms else 1]), some_pairs()
    ablation = Ablation(mean_reference(bridge, space, WINDOWS), kind, frozen_norms)
    found = attribute_nodes(bridge, batch, method="exact", space=space, ablation=ablation)
    for node in range(0, space.n_nodes, 9):
        assert float(found.scores[node]) == pytest.approx(by_hand(bridge, space, ablation, batch, node), abs=2e-6), node


def test_dictionaries_are_scored_like_neurons() -> None:
    """A rotation by the unit matrix gives the channels' own scores; an SAE-like one has an error node."""
    bridge = random_bridge(density=0.5, n_layer=1)
    hook = "blocks.0.mlp.hook_post"
    plain, turned = node_space(bridge), node_space(bridge, [RotationDictionary(torch.eye(12), hook)])
    for method in METHODS:
        scores = [
            attribute_nodes(bridge, some_pairs(), method=method, space=s, windows=WINDOWS, steps=2).scores for s in (plain, turned)
        ]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-4)


def test_eap_is_the_slope_of_ablating() -> None:
    """Against central differences in single entries of a real mask, on a smooth model."""
    bridge, batch = random_bridge(activation_type="gelu"), some_pairs()
    space, prompts = node_space(bridge), both_sides(batch)
    ablation = Ablation(mean_reference(bridge, space, WINDOWS))
    found = attribute_nodes(bridge, batch, method="eap", ablation=ablation).scores
    for node in range(0, space.n_nodes, 11):
        losses = []
        for step in (-0.02, 0.02):
            mask = torch.ones(space.n_nodes)
            mask[node] += step
            with torch.no_grad():
                losses.append(
                    float(task_loss(logit_differences(bridge, prompts, ablation.hooks(bridge, space, mask, prompts))).mean())
                )
        assert float(found[node]) == pytest.approx(-(losses[1] - losses[0]) / 0.04, abs=2e-4)


def test_integrated_scores_of_a_site_add_up() -> None:
    """Completeness of integrated gradients: a site's scores sum to the effect of ablating the whole site."""
    bridge, batch = random_bridge(n_layer=1), some_pairs()
    space, prompts = node_space(bridge), both_sides(batch)
    ablation = Ablation(mean_reference(bridge, space, WINDOWS))
    parts = space.split(attribute_nodes(bridge, batch, method="eap_ig", steps=12, ablation=ablation).scores)
    whole = task_loss(masked_differences(bridge, space, full_mask(space), ablation, prompts)).mean()
    for name, part in parts.items():
        mask = full_mask(space)
        mask[space.slices[name]] = False
        effect = task_loss(masked_differences(bridge, space, mask, ablation, prompts)).mean() - whole
        assert float(part.sum()) == pytest.approx(float(effect), abs=2e-3), name


@pytest.mark.parametrize("name", ["CircuitGPT", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_relevance_changes_no_value(name: str) -> None:
    bridge = random_bridge(sink=True) if name == "CircuitGPT" else build(name, 1.0)
    tokens = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), silent_norms():
        found = bridge.run_with_hooks(tokens, fwd_hooks=relevance_hooks(bridge, freeze_patterns=True))
        torch.testing.assert_close(found, bridge(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["CircuitGPT", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_relevance_of_an_mlp_by_hand(name: str) -> None:
    """Activation functions pass on f(x)/x, gates half to each factor: the relevance of a layer's input, written out."""
    bridge = random_bridge() if name == "CircuitGPT" else build(name, 1.0)
    tokens = torch.randint(VOCAB, (1, 6), generator=torch.Generator().manual_seed(1))
    mlp, kept = bridge.blocks[1].mlp, {}

    def leaf(tensor: Any, hook: Any) -> Any:
        kept["x"] = tensor.detach().clone().requires_grad_()
        return kept["x"]

    def keep(tensor: Any, hook: Any) -> None:
        kept["post"] = tensor

    entry = "mlp.hook_act_in" if name == "CircuitGPT" else "ln2.hook_out"
    hooks = [*relevance_hooks(bridge), (f"blocks.1.{entry}", leaf), ("blocks.1.mlp.hook_post", keep)]
    with silent_norms(), torch.enable_grad():
        bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        direction = torch.randn(kept["post"].shape, generator=torch.Generator().manual_seed(2))
        found = torch.autograd.grad((kept["post"] * direction).sum(), kept["x"])[0]
    post, x = kept["post"].detach(), kept["x"].detach()
    inputs = [mlp.W_in] if getattr(mlp, "W_gate", None) is None else [mlp.W_gate, mlp.W_in]
    biases = [mlp.b_in, None] if len(inputs) == 1 else [None, None]
    expected = torch.zeros_like(x)
    for matrix, bias in zip(inputs, biases, strict=False):
        factor = x @ matrix + (0 if bias is None else bias)
        expected += (direction * post / factor) @ matrix.T / len(inputs)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-3)


def test_frozen_patterns_leave_no_relevance_to_queries_and_keys() -> None:
    bridge = random_bridge(sink=True)
    for frozen in (False, True):
        found = attribute_nodes(bridge, some_pairs(), method="relp", freeze_patterns=frozen, windows=WINDOWS)
        parts = found.space.split(found.scores)
        assert all(bool(part.any()) != frozen for name, part in parts.items() if name.startswith(("attn_q", "attn_k")))
        assert bool(parts["attn_v.0"].any())


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_other_decoders(architecture: str) -> None:
    """All methods on GPT-2 and Llama; exact against masks."""
    bridge, batch = build(architecture, 1.0), some_pairs()
    windows = np.random.default_rng(0).integers(40, size=(4, 8))
    space = NodeSpace(node_space(bridge).sites[::3])
    ablation = Ablation(mean_reference(bridge, space, windows))
    found = {m: attribute_nodes(bridge, batch, method=m, space=space, ablation=ablation, steps=2) for m in METHODS}
    for node in range(3, space.n_nodes, 31):
        assert float(found["exact"].scores[node]) == pytest.approx(by_hand(bridge, space, ablation, batch, node), abs=1e-5)
    assert all(torch.isfinite(a.scores).all() and a.scores.abs().sum() > 0 for a in found.values())


def test_what_comes_of_it() -> None:
    bridge = random_bridge(density=0.5)
    found = attribute_nodes(bridge, some_pairs(), method="eap", windows=WINDOWS)
    circuit, frame = found.circuit(5), found.to_frame()
    assert circuit.n_nodes == 5 and circuit.mask[found.ranking[:5]].all() and not circuit.reached
    assert circuit.search["method"] == "eap" and circuit.model == model_fingerprint(bridge)
    assert len(frame) == found.space.n_nodes and frame["score"].is_monotonic_decreasing
    first = circuit.kept()[frame["site"][0]]
    assert frame["index"][0] in first
    torch.testing.assert_close(found.per_pair.mean(0), found.scores)
    assert all(parameter.requires_grad for parameter in bridge.parameters() if parameter.ndim == 2)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in bridge.hook_dict.values())


def test_spearman() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(40, generator=generator), torch.randint(5, (40,), generator=generator).float()
    assert spearman(first, second) == pytest.approx(float(spearmanr(first.numpy(), second.numpy()).statistic))
    assert spearman(first, first.exp()) == pytest.approx(1.0) and spearman(first, -first) == pytest.approx(-1.0)
    assert np.isnan(spearman(first, torch.ones(40)))
    with pytest.raises(CircuitError, match="same nodes"):
        spearman(first, first[:3])


def test_agreement_of_equal_and_of_unrelated_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(6, 200, generator=generator) + torch.randn(200, generator=generator)
    other = torch.randn(6, 200, generator=generator)
    same = agreement(exact, exact, top=20)
    assert all(result.value == pytest.approx(1.0) and result.lo == pytest.approx(1.0) and result.n == 6 for result in same.values())
    apart = agreement(other, exact, top=20)
    assert abs(apart["spearman"].value or 0) < 0.3 and (apart["overlap"].value or 0) < 0.4
    assert apart["overlap"].null == pytest.approx(0.1)
    assert not agreement(torch.zeros(6, 200), exact, top=20)["spearman"].measurable


def test_methods_are_compared() -> None:
    frame = compare_methods(random_bridge(n_layer=1), some_pairs(8), top=10, windows=WINDOWS, n_resamples=9, steps=2)
    assert set(frame["method"]) == {"eap", "eap_ig", "relp"} and set(frame["metric"]) == {"spearman", "spearman_top", "overlap"}
    assert (frame["n"] == 8).all() and frame["value"].between(-1, 1).all()
    assert frame.set_index(["method", "metric"])["value"]["eap", "spearman"] > 0.5


def circuit_of(bridge: Any) -> Circuit:
    space = node_space(bridge)
    reference = mean_reference(bridge, space, WINDOWS)
    return Circuit(full_mask(space), space, reference, "planted", model_fingerprint(bridge), 0.1, 0.0)


@pytest.mark.slow
def test_edges_against_cutting_them() -> None:
    """Exact: against the loss with one edge less; batches change nothing; slopes agree where the model is smooth."""
    bridge, batch = random_bridge(density=0.15), some_pairs()
    circuit = circuit_of(bridge)
    found = {
        m: attribute_edges(bridge, circuit, batch, method=m, windows=WINDOWS, batch_size=3) for m in ("eap", "eap_ig", "exact")
    }
    whole = attribute_edges(bridge, circuit, batch, method="eap", windows=WINDOWS)
    torch.testing.assert_close(found["eap"].scores, whole.scores, atol=1e-6, rtol=1e-4)
    assert spearman(found["eap"].scores, found["exact"].scores) > 0.8
    prompts, exact = both_sides(batch), found["exact"]
    for edge in exact.ranking[:3].tolist():
        fewer = exact.circuit(exact.edges.n_edges)
        keep = torch.ones(exact.edges.n_edges, dtype=torch.bool)
        keep[edge] = False
        assert fewer.edges is not None
        cut = replace(fewer, edges=replace(fewer.edges, kept=exact.edges.chosen(keep), cut=exact.edges.chosen(~keep)))
        losses = []
        for one in (cut, fewer):
            with one.applied(bridge), torch.no_grad():
                losses.append(float(task_loss(logit_differences(bridge, prompts, [])).mean()))
        assert float(exact.scores[edge]) == pytest.approx(losses[0] - losses[1], abs=1e-6)
    frame, first = exact.to_frame(), exact.circuit(4)
    assert frame["score"].is_monotonic_decreasing and len(first.edges_frame()) == 4
    named = set(map(tuple, frame[["kind", "layer", "output", "input"]].head(4).values.tolist()))
    assert named == set(map(tuple, first.edges_frame().values.tolist()))


def test_bad_input() -> None:
    bridge, batch = random_bridge(), some_pairs()
    with pytest.raises(UnknownNameError, match="attribution method"):
        attribute_nodes(bridge, batch, method="epa", windows=WINDOWS)
    with pytest.raises(UnknownNameError, match="RelP scores nodes"):
        attribute_edges(bridge, circuit_of(bridge), batch, method="relp", windows=WINDOWS)
    with pytest.raises(CircuitError, match="at least 1"):
        attribute_nodes(bridge, batch, steps=0, windows=WINDOWS)
    with pytest.raises(CircuitError, match="tokenizer"):
        attribute_nodes(bridge, "if_equals", windows=WINDOWS)
    found = attribute_nodes(bridge, batch, method="eap", windows=WINDOWS)
    with pytest.raises(CircuitError, match="were asked for"):
        found.circuit(found.space.n_nodes + 1)
    with pytest.raises(CircuitError, match="same prompts"):
        compare_methods(bridge, some_pairs(8), exact=found, windows=WINDOWS)
    with pytest.raises(CircuitError, match="found in the model"):
        attribute_edges(random_bridge(seed=1), circuit_of(bridge), batch, windows=WINDOWS)
    with pytest.raises(CircuitError, match="fixed values"):
        attribute_edges(bridge, replace(circuit_of(bridge), ablation="resample"), batch, windows=WINDOWS)


def test_on_a_shipped_model() -> None:
    """The value channel that reads the quote is found: on a few pairs, by every fast method, among the first."""
    bridge = load("python-sparse")
    windows = np.random.default_rng(0).integers(0, 1000, (4, 32))
    for method in ("relp", "eap"):
        found = attribute_nodes(bridge, "single_double_quote", method=method, n_pairs=2, windows=windows)
        assert len(found.per_pair) == 2 and found.task == "single_double_quote"
        first = found.to_frame().head(30)
        assert ((first["site"] == "attn_v.0") & (first["index"] == 11)).any(), method
