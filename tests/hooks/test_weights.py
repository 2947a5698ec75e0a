"""Weights by TransformerLens' names, and what is computed from them, against plain linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.SVDInterpreter import SVDInterpreter
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution
from transformer_lens.tools.analysis.projection_kernel import attention_head_subspace_affinity

from sparse_lens.errors import UnknownNameError
from sparse_lens.hooks import load

pytestmark = pytest.mark.tool(
    "weights by name, QK/OV, composition scores, SVDInterpreter, detect_head, direct logit attribution, head subspaces",
    limits="direct logit attribution: after fold_final_norm; head subspaces: not with concatenated positions",
)

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(1))


def test_factored_matrices(architecture: TransformerBridge) -> None:
    for layer in range(2):
        for head in range(2):
            query, key = architecture.W_Q[layer, head], architecture.W_K[layer, head]
            torch.testing.assert_close(architecture.QK[layer, head].AB, query @ key.T, **CLOSE)
            value, output = architecture.W_V[layer, head], architecture.W_O[layer, head]
            torch.testing.assert_close(architecture.OV[layer, head].AB, value @ output, **CLOSE)
            torch.testing.assert_close(architecture.OV[layer, head].norm(), (value @ output).norm(), **CLOSE)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores(architecture: TransformerBridge, mode: str) -> None:
    """Elhage et al. 2021: the norm of the product over the product of the norms, over heads of later layers."""
    scores = architecture.all_composition_scores(mode)
    width = architecture.cfg.d_model
    for head in range(2):
        writes = (architecture.W_V[0, head] @ architecture.W_O[0, head])[:width]
        for reader in range(2):
            query, key, value = (weights[1, reader][:width] for weights in (architecture.W_Q, architecture.W_K, architecture.W_V))
            reads = {"Q": query @ key.T, "K": key @ query.T, "V": value @ architecture.W_O[1, reader]}[mode]
            expected = (writes @ reads).norm() / (writes.norm() * reads.norm())
            torch.testing.assert_close(scores[0, head, 1, reader], expected, **CLOSE)
    assert not scores[1].any()
    assert scores.head_labels == ["L0H0", "L0H1", "L1H0", "L1H1"]


def test_an_unknown_composition_is_named(architecture: TransformerBridge) -> None:
    with pytest.raises(UnknownNameError, match="composition"):
        architecture.all_composition_scores("X")


def test_composition_scores_equal_transformerlens(build_bridge: Callable[[str], TransformerBridge]) -> None:
    bridge = build_bridge("plain_rms")
    for mode in "QKV":
        theirs = TransformerBridge.all_composition_scores(bridge, mode)
        torch.testing.assert_close(bridge.all_composition_scores(mode).scores, theirs.scores, **CLOSE)
        assert bridge.all_composition_scores(mode).head_labels == theirs.head_labels


def test_singular_vectors(architecture: TransformerBridge) -> None:
    interpreter = SVDInterpreter(architecture)
    for kind, matrix in (("OV", architecture.W_V[0, 1] @ architecture.W_O[0, 1]), ("w_out", architecture.W_out[0])):
        found = interpreter.get_singular_vectors(kind, 0, num_vectors=2, head_index=1 if kind == "OV" else None)
        right = torch.linalg.svd(matrix).Vh[:2]
        torch.testing.assert_close(found[:, 0].T.abs(), (right @ architecture.W_U).abs(), atol=1e-4, rtol=1e-3)


def test_head_subspaces(architecture: TransformerBridge) -> None:
    """Affinity of a head's output space with a later head's key space: the squared cosines between them, summed."""
    width = architecture.cfg.d_model
    if architecture.model_config.d_pos_emb is not None:
        with pytest.raises(ValueError, match="d_model"):
            attention_head_subspace_affinity(architecture, target_role="K")
        return
    found = attention_head_subspace_affinity(architecture, target_role="K")
    for pair in found.top_pairs(k=4):
        writes = torch.linalg.qr(architecture.W_O[pair.source.layer, pair.source.head].T).Q
        reads = torch.linalg.qr(architecture.W_K[pair.target.layer, pair.target.head][:width]).Q
        assert pair.source.layer < pair.target.layer
        assert pair.score == pytest.approx(float((writes.T @ reads).square().sum().detach()), abs=1e-4)


def test_biases_accumulate(architecture: TransformerBridge) -> None:
    expected = architecture.b_O[0] + architecture.b_out[0]
    torch.testing.assert_close(architecture.accumulated_bias(1), expected)
    torch.testing.assert_close(architecture.accumulated_bias(1, mlp_input=True), expected + architecture.b_O[1])


@torch.no_grad()
def test_directions_read_the_logits(architecture: TransformerBridge, tokens: Tensor) -> None:
    logits, cache = architecture.run_with_cache(tokens)
    normalized = cache["ln_final.hook_normalized"]
    scaled = cache["ln_final.hook_in"] / cache["ln_final.hook_scale"]
    torch.testing.assert_close(scaled, normalized, **CLOSE)
    bigram = cache["bigram.hook_out"] if "bigram.hook_out" in cache else torch.zeros_like(logits)
    for token in (3, torch.tensor([3, 8])):
        direction = architecture.tokens_to_residual_directions(token)
        expected = (logits - bigram)[..., token] - architecture.b_U[token]
        torch.testing.assert_close(normalized @ direction.T, expected, **CLOSE)


@torch.no_grad()
def test_folding_the_final_norm(architecture: TransformerBridge, tokens: Tensor) -> None:
    before = architecture(tokens)
    architecture.fold_final_norm()
    torch.testing.assert_close(architecture(tokens), before, **CLOSE)
    assert torch.equal(architecture.ln_final.weight, torch.ones(12))


@pytest.mark.parametrize("variant", ["plain_layernorm", "tied", "layernorm_without_bias"])
@torch.no_grad()
def test_folding_the_final_norm_of_other_kinds(
    build_bridge: Callable[[str], TransformerBridge], variant: str, tokens: Tensor
) -> None:
    bridge = build_bridge(variant)
    before = bridge(tokens)
    bridge.fold_final_norm()
    torch.testing.assert_close(bridge(tokens), before, **CLOSE)


@pytest.mark.parametrize("unit", ["component", "layer", "head"])
@torch.no_grad()
def test_direct_logit_attribution(architecture: TransformerBridge, tokens: Tensor, unit: str) -> None:
    architecture.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    architecture.fold_final_norm()
    logits, cache = architecture.run_with_cache(tokens)
    bigram = cache["bigram.hook_out"] if "bigram.hook_out" in cache else torch.zeros_like(logits)
    expected = (logits - bigram)[:, -1, 5] - architecture.b_U[5]
    found = direct_logit_attribution(architecture, answer_tokens=5, unit=unit, cache=cache).attribution
    whole = found[-1] if unit == "layer" else found.sum(0)
    torch.testing.assert_close(whole, expected, **CLOSE)


@torch.no_grad()
def test_detected_heads() -> None:
    """The share of attention on the previous token, on a real model with a sink."""
    bridge = load("python-sparse")
    text = "for i in range(10):\n    print(i)\n    x = x + i\n"
    found = detect_head(bridge, text, "previous_token_head", error_measure="mul")
    _, cache = bridge.run_with_cache(bridge.to_tokens(text))
    for layer in range(bridge.cfg.n_layers):
        for head in range(bridge.cfg.n_heads):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
            expected = pattern.diagonal(-1).sum() / pattern.sum()
            torch.testing.assert_close(found[layer, head], expected, atol=1e-3, rtol=0)
