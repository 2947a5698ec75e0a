"""Fresh weights of a model that Hugging Face makes, and of what a checkpoint lacks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

SIZES = {"block_size": 32, "vocab_size": 211, "n_layer": 3, "n_head": 2, "d_model": 64, "tied_unembed": False}


@pytest.mark.parametrize("fields", [{}, {"tied_unembed": True, "rms_norm": True}, {"d_pos_emb": 6}])
def test_a_model_made_from_a_configuration(fields: dict[str, int | bool]) -> None:
    for name, parameter in CircuitGPTForCausalLM(CircuitGPTConfig(**{**SIZES, **fields})).core.named_parameters():
        if parameter.ndim == 1:
            gain = ".ln_" in f".{name}" and name.endswith("weight")
            assert torch.equal(parameter, torch.full_like(parameter, float(gain))), name
        else:
            expected = 0.02 / math.sqrt(2 * 3) if name.endswith(("attn.o.weight", "fc_out.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.2), name


def test_bigram_table() -> None:
    table = CircuitGPTForCausalLM(CircuitGPTConfig(**SIZES, enable_bigram_table=True)).core.bigram_table.weight
    assert 0 <= table.min() < 0.001 and 0.019 < table.max() <= 0.02


def test_fixed_positions_are_sinusoids() -> None:
    """Periods 4 to `block_size`, log-spaced: three sines, then the cosines that there is room for."""
    weight = CircuitGPTForCausalLM(CircuitGPTConfig(**SIZES, d_pos_emb=5, sinusoidal_cat_pos_emb=True)).core.wpe.weight
    periods = [4.0, math.sqrt(4 * 32), 32.0]
    expected = [[f(2 * math.pi * n / period) for f in (math.sin, math.cos) for period in periods][:5] for n in range(32)]
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), atol=1e-5, rtol=0.0)


def test_only_what_a_checkpoint_lacks_is_fresh(tmp_path: Path) -> None:
    saved = CircuitGPTForCausalLM(CircuitGPTConfig(**SIZES))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.normal_()
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["core.lm_head.bias"], weights["core.blocks.1.attn.o.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = CircuitGPTForCausalLM.from_pretrained(tmp_path)
    assert not loaded.core.lm_head.bias.any()
    assert loaded.core.blocks[1].attn.o.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.1)
    for name, weight in weights.items():
        assert torch.equal(loaded.state_dict()[name], weight), name
