"""Variants that no fixture has: the bridge against the core, and both against a second implementation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_lens.hooks import load, to_reference_layout, transformerlens_hook_name
from sparse_lens.models import load_checkpoint

NAMES = (
    "plain_layernorm afrac_half_rms afrac_default_sites afrac_keeps_one afrac_keeps_all layernorm_without_bias "
    "layernorm_no_linear_bias tied bigram_buffer learned_concatenated learned_concatenated_rms_sparse sink_concatenated "
    "sink_sparse sink_sparse_biased wide_heads narrow_heads heads_wider_than_model relu_residual_sparse everything"
).split()
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(23, (2, 9), generator=torch.Generator().manual_seed(2))


def agrees(folder: Path, tokens: Tensor, witness: Callable[..., Any]) -> None:
    """The bridge equals the core exactly, and the witness in logits and at every hook."""
    bridge = load(folder)
    logits, cache = bridge.run_with_cache(tokens)
    core = load_checkpoint(folder).core(tokens)
    torch.testing.assert_close(logits, core, **CLOSE)
    expected, acts = witness(folder, tokens)
    torch.testing.assert_close(logits.double(), expected, **CLOSE)
    for key, activation in acts.items():
        name = transformerlens_hook_name(key)
        torch.testing.assert_close(to_reference_layout(name, cache[name]).double(), activation, **CLOSE, msg=key)


def test_names_are_the_variants() -> None:
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_variant(name: str, variant_folder: Callable[[str], Path], tokens: Tensor, witness: Callable[..., Any]) -> None:
    agrees(variant_folder(name), tokens, witness)


def test_witness_is_the_reference(reference: Any, witness: Callable[..., Any]) -> None:
    """Else its agreement with us would say little."""
    logits, acts = witness(reference.folder, reference.expected["tokens"])
    torch.testing.assert_close(logits.float(), reference.expected["logits"], atol=1e-5, rtol=0.0)
    for key, stored in reference.expected["acts"].items():
        torch.testing.assert_close(acts[key].float(), stored, atol=1e-5, rtol=0.0, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_survive(name: str, variant_folder: Callable[[str], Path], parameters: Callable[..., dict[str, Tensor]]) -> None:
    folder = variant_folder(name)
    stored, loaded = torch.load(folder / "final_model.pt", weights_only=True), parameters(load(folder))
    assert stored.keys() == loaded.keys()
    for key, tensor in stored.items():
        assert torch.equal(tensor, loaded[key].detach()), key


def test_bf16_file(variant_folder: Callable[[str], Path], tokens: Tensor, witness: Callable[..., Any]) -> None:
    folder = variant_folder("sink_sparse")
    rewrite(folder, lambda state: {key: tensor.bfloat16() for key, tensor in state.items()})
    assert load(folder).cfg.dtype == torch.float32
    agrees(folder, tokens, witness)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(variant_folder: Callable[[str], Path], tokens: Tensor, dtype: torch.dtype) -> None:
    folder = variant_folder("learned_concatenated")
    bridge = load(folder, dtype=dtype)
    logits, cache = bridge.run_with_cache(tokens)
    assert logits.dtype == cache["blocks.0.attn.hook_z"].dtype == bridge.cfg.dtype == dtype
    assert torch.equal(logits, load_checkpoint(folder, dtype=dtype).core(tokens))


def test_file_saved_without_flash(variant_folder: Callable[[str], Path], tokens: Tensor, witness: Callable[..., Any]) -> None:
    """Its causal-mask buffers `attn.bias` are no parameters, its `c_attn.bias` are; the logit bias may be missing."""
    folder = variant_folder("plain_layernorm")

    def old_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 12, 12).tril() for layer in range(2)}
        return {key: tensor for key, tensor in state.items() if key != "final_logits_bias"} | masks

    rewrite(folder, old_file)
    agrees(folder, tokens, witness)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "final_model.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
