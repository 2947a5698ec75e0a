"""Compiled circuits against the masked model: random models of every kind, known answers, and what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from sparse_lens.circuits import Circuit, mean_reference, model_fingerprint, node_space, weight_graph
from sparse_lens.circuits.compiled.prefixes import prefix_rows
from sparse_lens.circuits.edges.cutting import CircuitEdges, input_means
from sparse_lens.circuits.edges.space import candidate_edges
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import masked_differences
from sparse_lens.circuits.sites import full_mask
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.models.config import ABSTOPK_SITES
from sparse_lens.tasks import get_task

from ..conftest import FIRST, SECOND, VOCAB, Planted, pairs, random_bridge
from ..test_other_decoders import build

WINDOWS = np.random.default_rng(0).integers(0, VOCAB, (20, 8))
EVERY = ",".join(ABSTOPK_SITES)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer": {"n_layer": 1},
    "sparse activations": {"afrac": 0.5, "afrac_loctypes": EVERY, "sink": True},
    "sparse stream": {"afrac": 0.6, "afrac_loctypes": "resid_post_mlp,attn_q", "residual_activation_type": "relu"},
    "sparse writes": {"afrac": 0.4, "afrac_loctypes": "attn_out,mlp_out", "n_layer": 3},
    "sink and bigram": {"sink": True, "enable_bigram_table": True, "activation_type": "relu"},
    "positions beside": {"d_pos_emb": 4, "afrac": 0.5, "afrac_loctypes": "attn_in,mlp_in", "sink": True},
    "sinusoidal": {"d_pos_emb": 5, "sinusoidal_cat_pos_emb": True, "rms_norm": False},
    "tied LayerNorm": {"tied_unembed": True, "rms_norm": False, "afrac": 0.5, "afrac_loctypes": EVERY},
    "no biases": {"bias": False, "rms_norm": False, "ln_bias": False, "n_head": 4},
    "experts": {"n_experts": 3, "experts_per_token": 2},
    "one expert": {"n_experts": 4, "afrac": 0.5, "afrac_loctypes": "mlp_neuron,attn_v", "sink": True},
}


def some_prompts(n: int = 24, *, seed: int = 0) -> Prompts:
    """Random prompts of any length, some of them the same, with any answers."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, VOCAB, (n, 8))
    tokens[1::2, :3] = tokens[::2, :3]
    tokens[3] = tokens[2]
    position = draw.integers(0, 8, n)
    position[3] = position[2]
    right, wrong = draw.integers(0, VOCAB, (2, n))
    arrays = (tokens, tokens, position, right, wrong, np.arange(n) // 2)
    return Prompts(*[torch.from_numpy(array) for array in arrays])


def random_circuit(bridge: Any, share: float, *, seed: int = 0, edges: bool = False, ablation: Any = "mean") -> Circuit:
    """Random nodes, a share of each site, of each site, and of some sites none; with edges, a random half of those between them."""
    space = node_space(bridge)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(space.n_nodes, generator=generator) < share
    if seed % 2:
        for site in space.sites:
            if float(torch.rand(1, generator=generator)) < 0.15:
                mask[space.slices[site.name]] = False
    reference = mean_reference(bridge, space, WINDOWS)
    circuit = Circuit(mask, space, reference, "random", model_fingerprint(bridge), 0.1, 0.0, ablation=ablation)
    if not edges:
        return circuit
    between = candidate_edges(space, mask, weight_graph(bridge, pairs(8)))
    keep = torch.rand(between.n_edges, generator=generator) < 0.5
    means = input_means(bridge, WINDOWS, circuit.how_ablated.fixed_values(), (FIRST, SECOND))
    return replace(circuit, edges=CircuitEdges(between.chosen(keep), between.chosen(~keep), means))


def masked(bridge: Any, circuit: Circuit, prompts: Prompts) -> torch.Tensor:
    """The second witness: the whole model under hooks, with edges cut."""
    with nullcontext() if circuit.edges is None else circuit.edges.cut_in(bridge):
        return masked_differences(bridge, circuit.space, circuit.mask, circuit.how_ablated, prompts)


def check(bridge: Any, circuit: Circuit, prompts: Prompts) -> None:
    """The exact form equals the masked model, and so does the frozen one on the prompts that it was recorded on."""
    expected = masked(bridge, circuit, prompts)
    torch.testing.assert_close(circuit.compile(bridge).differences(prompts), expected, atol=1e-5, rtol=1e-5)
    frozen = circuit.compile(bridge, form="frozen", prompts=prompts)
    torch.testing.assert_close(frozen.differences(prompts), expected, atol=2e-5, rtol=2e-5)
    assert frozen.error is not None and frozen.error.largest < 2e-4


KINDS = {"mean": (0.5, False, "mean"), "zero": (0.2, False, "zero"), "edges": (0.8, True, "mean"), "many": (0.95, True, "mean")}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["mean", "edges"])
def test_equals_the_masked_model(model: str, kind: str) -> None:
    seed = list(KINDS).index(kind)
    share, edges, ablation = KINDS[kind]
    bridge = random_bridge(seed, density=0.6, **MODELS[model])
    check(bridge, random_circuit(bridge, share, seed=seed, edges=edges, ablation=ablation), some_prompts(seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10, 16))
def test_equals_the_masked_model_often(model: str, kind: str, seed: int) -> None:
    share, edges, ablation = KINDS[kind]
    bridge = random_bridge(seed, density=0.6, **MODELS[model])
    check(bridge, random_circuit(bridge, share, seed=seed, edges=edges, ablation=ablation), some_prompts(seed=seed))


@pytest.mark.parametrize("model", ["sparse activations", "sinusoidal", "one expert"])
def test_full_and_empty(model: str) -> None:
    bridge, prompts = random_bridge(7, **MODELS[model]), some_prompts(seed=7)
    circuit = random_circuit(bridge, 2.0)
    with torch.no_grad():
        logits = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position]
    expected = logits.gather(1, prompts.right[:, None]) - logits.gather(1, prompts.wrong[:, None])
    torch.testing.assert_close(circuit.compile(bridge).differences(prompts), expected[:, 0], atol=1e-5, rtol=1e-5)
    empty = replace(circuit, mask=~circuit.mask)
    compiled = empty.compile(bridge)
    torch.testing.assert_close(compiled.differences(prompts), masked(bridge, empty, prompts), atol=1e-5, rtol=1e-5)
    assert compiled.n_weights == 0


@pytest.mark.slow
def test_single_sites() -> None:
    """Circuits that keep one kind of site alone, or all but one: what is constant then is folded."""
    bridge, prompts = random_bridge(3, **MODELS["sparse activations"]), some_prompts()
    circuit = random_circuit(bridge, 2.0)
    for site in circuit.space.sites:
        one = torch.zeros_like(circuit.mask)
        one[circuit.space.slices[site.name]] = True
        for mask in (one | circuit.mask.new_zeros(len(one)).index_fill(0, torch.arange(len(one))[-8:], True), ~one):
            check(bridge, replace(circuit, mask=mask), prompts)


def test_planted(planted: Planted) -> None:
    """The planted nodes alone: both prompts' answers as in the model, by four weights."""
    circuit = Circuit(
        full_mask(planted.space, False), planted.space, planted.reference, "", model_fingerprint(planted.bridge), 0.1, 0.0
    )
    circuit = circuit.with_nodes(planted.nodes)
    compiled = circuit.compile(planted.bridge, form="frozen", prompts=planted.batch)
    check(planted.bridge, circuit, planted.prompts)
    assert compiled.n_weights == 2  # into the neuron and out of it
    assert compiled.loss(planted.batch) == pytest.approx(circuit.compile(planted.bridge).loss(planted.batch), abs=1e-5)


def test_arbitrary_answers() -> None:
    """Logits themselves, of any number of answers, against the model's."""
    bridge, prompts = random_bridge(5, **MODELS["sink and bigram"]), some_prompts(seed=5)
    circuit = random_circuit(bridge, 0.7, seed=2)
    answers = torch.randint(VOCAB, (len(prompts), 3), generator=torch.Generator().manual_seed(0))
    with circuit.applied(bridge), torch.no_grad():
        expected = bridge(prompts.tokens)[torch.arange(len(prompts)), prompts.position].gather(1, answers)
    found = circuit.compile(bridge).answer_logits(prompts.tokens, prompts.position, answers)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["exact", "frozen"])
def test_batches_and_padding(form: Any) -> None:
    """Neither how prompts are batched nor what stands behind their answer matters; the model may be gone."""
    bridge, prompts = random_bridge(6, **MODELS["sparse writes"]), some_prompts(seed=6)
    compiled = random_circuit(bridge, 0.8).compile(bridge, form=form, prompts=some_prompts(seed=9))
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.zero_()
    expected = compiled.differences(prompts)
    torch.testing.assert_close(compiled.differences(prompts, batch_size=5), expected, atol=1e-5, rtol=1e-5)
    behind = torch.arange(8) > prompts.position[:, None]
    other = replace(prompts, tokens=prompts.tokens.masked_fill(behind, 10_000))
    assert torch.equal(compiled.differences(other), expected)


def test_permuted_channels() -> None:
    """The residual stream's channels and the neurons in another order, in model and circuit: the same results."""
    bridge, prompts = random_bridge(8, **MODELS["sink and bigram"]), some_prompts(seed=8)
    circuit = random_circuit(bridge, 0.6, seed=2)
    expected = circuit.compile(bridge).differences(prompts)
    draw = torch.Generator().manual_seed(0)
    stream, neuron = torch.randperm(8, generator=draw), torch.randperm(12, generator=draw)
    _permute(bridge.original_model.core, stream, neuron)
    orders = {
        "attn_in": stream,
        "attn_out": stream,
        "mlp_in": stream,
        "mlp_out": stream,
        "final_resid": stream,
        "mlp_neuron": neuron,
    }
    kept, reference = circuit.space.split(circuit.mask), dict(circuit.reference)
    for site in circuit.space.sites:
        if (order := orders.get(site.kind)) is not None:
            kept[site.name] = kept[site.name][order]
            reference[site.name] = replace(reference[site.name], latents=reference[site.name].latents[order])
    moved = replace(circuit, mask=circuit.space.join(kept), reference=reference, model=model_fingerprint(bridge))
    torch.testing.assert_close(moved.compile(bridge).differences(prompts), expected, atol=1e-5, rtol=1e-5)


def _permute(core: Any, stream: torch.Tensor, neuron: torch.Tensor) -> None:
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            last = name.replace("_original_component.", "")
            if "bigram" in last:
                continue
            if last.endswith(("fc_in.weight", "fc_in.bias")):
                parameter.copy_(parameter[neuron])
            if last.endswith("fc_out.weight"):
                parameter.copy_(parameter[:, neuron])
            if last.endswith(("attn.o.weight", "attn.o.bias", "fc_out.weight", "fc_out.bias")) or "ln_" in last:
                parameter.copy_(parameter[stream])
            elif last.endswith(("wte.weight", "wpe.weight", "lm_head.weight", "q.weight", "k.weight", "v.weight", "fc_in.weight")):
                parameter.copy_(parameter[:, stream])


def test_distinct_rows() -> None:
    """Every position of every prompt finds its token, and prefixes are as many as there are different ones."""
    prompts = some_prompts(60, seed=4)
    rows = prefix_rows(prompts.tokens, prompts.position)
    seen = set()
    for prompt, last, place in zip(prompts.tokens.tolist(), prompts.position.tolist(), rows.inverse.tolist(), strict=True):
        assert int(rows.length[place]) == last + 1 and int(rows.token["prompt"][place]) == prompt[last]
        for position in range(last + 1):
            seen.add(tuple(prompt[: position + 1]))
            for level in ("token", "prefix"):
                row = int(rows.grid[level][place, position])
                assert int(rows.token[level][row]) == prompt[position] and int(rows.position[level][row]) == position
    assert rows.n_rows("prefix") == len(seen)
    assert rows.n_rows("token") == len({(prefix[-1], len(prefix)) for prefix in seen})


def test_frozen_on_other_prompts() -> None:
    """Tokens that were never recorded run by averages; what is expected of fresh prompts is measured on halves, as by hand."""
    bridge, prompts = random_bridge(2, **MODELS["sparse writes"]), some_prompts(seed=2)
    circuit = random_circuit(bridge, 0.8)
    expected = masked(bridge, circuit, prompts)
    frozen = circuit.compile(bridge, form="frozen", prompts=prompts)
    halves = [(prompts.pair % 2 == half).nonzero().flatten() for half in (0, 1)]
    off = []
    for here, there in (halves, halves[::-1]):
        other = circuit.compile(bridge, form="frozen", prompts=prompts.rows(here))
        off.append((other.differences(prompts.rows(there)) - expected[there]).abs())
    assert frozen.error is not None and frozen.fresh_error is not None
    assert frozen.fresh_error.mean == pytest.approx(float(torch.cat(off).mean()), rel=1e-4)
    assert frozen.fresh_error.largest == pytest.approx(float(torch.cat(off).max()), rel=1e-4)
    assert frozen.error.largest < 1e-4 < frozen.fresh_error.mean and frozen.error.n == frozen.fresh_error.n == len(prompts)
    few = circuit.compile(bridge, form="frozen", prompts=prompts.rows(torch.tensor([0])))
    assert few.fresh_error is None and bool(torch.isfinite(few.differences(prompts)).all())


def test_shipped_model() -> None:
    """A few nodes in every site of the shipped sparse model, on prompts of a task."""
    bridge: Any = load("python-sparse")
    space = node_space(bridge)
    reference = mean_reference(bridge, space, np.random.default_rng(0).integers(0, 1000, (8, 64)))
    mask = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(0)) < 0.1
    circuit = Circuit(mask, space, reference, "single_double_quote", model_fingerprint(bridge), 0.1, 0.0)
    check(bridge, circuit, both_sides(get_task("single_double_quote").sample(bridge.tokenizer, 8, seed=0, split="search")))


def test_refused() -> None:
    bridge, prompts = random_bridge(), some_prompts()
    circuit = random_circuit(bridge, 0.5)
    with pytest.raises(CircuitError, match="found in the model"):
        circuit.compile(random_bridge(1))
    with pytest.raises((UnknownNameError, jaxtyping.TypeCheckError), match="froze"):
        circuit.compile(bridge, form="froze")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CircuitError, match="give the prompts"):
        circuit.compile(bridge, form="frozen")
    for other in ({"ablation": "resample"}, {"ablation": "counterfactual"}, {"frozen_norms": True}):
        with pytest.raises(CircuitError, match="depends on the prompts"):
            replace(circuit, **other).compile(bridge)  # pyright: ignore[reportArgumentType]
    compiled = circuit.compile(bridge)
    with pytest.raises(CircuitError, match="no prompts"):
        compiled.answer_logits(prompts.tokens[:0], prompts.position[:0], prompts.tokens[:0])
    with pytest.raises(CircuitError, match="positions"):
        compiled.differences(replace(prompts, position=prompts.position + 4))
    with pytest.raises(CircuitError, match=f"token {VOCAB} does not exist"):
        compiled.differences(replace(prompts, tokens=prompts.tokens.index_fill(1, torch.tensor([0]), VOCAB)))
    with pytest.raises(CircuitError, match="answer -1"):
        compiled.differences(replace(prompts, right=torch.full_like(prompts.right, -1)))


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_other_models_are_refused(architecture: str) -> None:
    bridge = build(architecture, 1.0)
    circuit = random_circuit(bridge, 0.5)
    with pytest.raises(CircuitError, match="CircuitGPT"):
        circuit.compile(bridge)


def test_other_precisions_are_refused() -> None:
    bridge = random_bridge().to(torch.bfloat16)
    with pytest.raises(CircuitError, match="float32"):
        random_circuit(bridge, 0.5).compile(bridge)
