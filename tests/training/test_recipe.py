"""Thirty steps of the recipe against a transcription that shares no code with it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.training import TopK, TrainingConfig
from sparse_lens.training.run import TrainingRun


def _transcription() -> ModuleType:
    path = Path(__file__).with_name("transcription.py")
    spec = importlib.util.spec_from_file_location("transcription", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["transcription"] = module
    spec.loader.exec_module(module)
    return module


plain = _transcription()

STEPS, VOCAB, LENGTH = 30, 60, 12
ANNEAL_END = 0.53  # no density on the way is a whole number of entries, which rounding could take for one less
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "block_size": LENGTH,
    "n_layer": 2,
    "n_head": 2,
    "d_model": 16,
    "d_head": 8,
    "rms_norm": True,
    "tied_unembed": False,
    "tokenizer_name": None,
}
BIGRAM = {"enable_bigram_table": True, "learnable_bigram_table": True}
SITES = "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "released": ({"afrac": 0.25, "afrac_loctypes": SITES} | BIGRAM, {}),
    "sink, cubic": ({"afrac": 0.5, "afrac_loctypes": SITES, "sink": True} | BIGRAM, {"anneal_exponent": 3.0}),
    "power law, biases": ({"sink": True}, {"anneal_shape": "power_law", "sparse_biases": True}),
    "positions apart": ({"afrac": 0.25, "afrac_loctypes": SITES, "d_pos_emb": 4}, {}),
}


def recipe(model: dict[str, Any], sparsity: dict[str, Any], precision: Any) -> TrainingConfig:
    return TrainingConfig(
        name="test",
        model=SHAPE | model,
        steps=STEPS,
        warmup=0.1,
        decay_start=0.1,
        learning_rate=0.05,
        precision=precision,
        sparsity=TopK(density=0.25, embedding_density=0.7, min_alive=2, anneal_start=0.1, anneal_end=ANNEAL_END, **sparsity),
    )


def both(case: str, precision: str) -> tuple[TrainingRun, Any, list[Tensor]]:
    """The run, the transcription with equal weights, and the batches."""
    model_fields, sparsity = CASES[case]
    config = recipe(model_fields, sparsity, precision)
    model = CircuitGPTForCausalLM(CircuitGPTConfig(**config.model))  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.core.parameters():
            parameter.uniform_(-0.2, 0.2, generator=generator)
        model.core.lm_head.bias.zero_()
    run = TrainingRun(config, model.train())
    weights = {n: p.detach().double().clone() for n, p in model.core.named_parameters() if n != "lm_head.bias"}
    shape = plain.Shape(2, 2, model_fields.get("afrac"), "d_pos_emb" in model_fields)
    options = {"exponent": sparsity.get("anneal_exponent", 1.0), "sparse_biases": sparsity.get("sparse_biases", False)}
    written = plain.Recipe(
        STEPS, 0.05, 0.1, 0.25, 0.7, (0.1, ANNEAL_END), power_law=sparsity.get("anneal_shape") == "power_law", **options
    )
    batches = list(torch.randint(0, VOCAB, (STEPS, 4, LENGTH + 1), generator=generator))
    return run, plain.Trainer(weights, shape, written), batches


@pytest.mark.parametrize("case", [*list(CASES)[:2], *(pytest.param(case, marks=pytest.mark.slow) for case in list(CASES)[2:])])
def test_thirty_steps_in_float64(case: str) -> None:
    """Losses, masks and weights, at every step and in the end."""
    run, trainer, batches = both(case, "float64")
    for step, batch in enumerate(batches):
        assert float(run.optimize(batch)) == pytest.approx(trainer.step(step, batch), abs=1e-9)
    named = dict(run.model.core.named_parameters())
    assert set(trainer.w) == set(named) - {"lm_head.bias"}
    for name, expected in trainer.w.items():
        assert torch.equal(named[name] != 0, expected != 0), name
        assert float((named[name] - expected).abs().max().detach()) < 1e-9, name


@pytest.mark.parametrize("case", CASES)
def test_masks_in_float32_agree_but_at_the_threshold(case: str) -> None:
    """One projection of equal weights in both precisions: where masks differ, the magnitude lies within 1e-6 of the cut."""
    run, trainer, _ = both(case, "float32")
    named = dict(run.model.core.named_parameters())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trainer.w.items():
            trainer.w[name] = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            named[name].copy_(trainer.w[name])
    before = {name: weight.clone() for name, weight in trainer.w.items()}
    trainer.project(12)
    run.sparsifier.after_step(12)
    for name, expected in trainer.w.items():
        dropped = expected == 0
        differ = (named[name].detach() == 0) != dropped
        assert named[name].ndim < 2 or name in ("bigram_table.weight", "wpe.weight") or bool(dropped.any()), name
        if bool(differ.any()):
            cut = before[name].abs()[~dropped].min()
            assert float((before[name].abs()[differ] - cut).abs().max()) < 1e-6, name
