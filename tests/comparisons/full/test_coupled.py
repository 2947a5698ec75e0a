"""Couplings as cells, on the shipped pair with few tokens: trained once, then steered with from what was kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.full.coupled import coupling_jobs, couplings_part, steering_jobs
from sparse_lens.comparisons.jobs import run_jobs
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.results import from_plain


@pytest.mark.slow
def test_the_shipped_twins_are_coupled_and_steered(tmp_path: Path) -> None:
    pair = ModelPair.open()
    (job,) = coupling_jobs(pair, 4096, tmp_path)
    jobs = [replace(job, arguments={**job.arguments, "n_windows": 8})]
    coupled = run_jobs(jobs, tmp_path / "cells", workers=1, progress=False)
    assert run_jobs(jobs, tmp_path / "cells", workers=1, progress=False) == coupled
    (job,) = steering_jobs(list(zip(jobs, coupled, strict=True)), ["single_double_quote"])
    few = replace(job, arguments={**job.arguments, "n_pairs": 8})
    steered = run_jobs([few], tmp_path / "cells", workers=1, progress=False)
    part = from_plain(couplings_part(coupled, [(few, steered[0])]))
    assert len(part["boundaries"]) == 5 and set(part["steering"]["single_double_quote"]) == set(part["boundaries"])
    losses = {name: result.value for name, result in part["losses"].items()}
    last = part["boundaries"][-1]
    assert losses["loss_dense"] < losses[f"loss_sparse_to_dense_at_{last}"] < part["losses"][f"loss_sparse_to_dense_at_{last}"].null
    effect = part["steering"]["single_double_quote"][last]["results"]["effect"]
    assert effect.measurable and effect.n == 8


def test_models_of_unlike_depth_have_no_coupling(tmp_path: Path) -> None:
    pair, deeper = ModelPair.open(), tmp_path / "deeper"
    config = CircuitGPTConfig(n_layer=3, d_model=16, n_head=2, d_head=8, vocab_size=1024, block_size=128)
    CircuitGPTForCausalLM(config).save_pretrained(deeper)
    shutil.copy(pair.model_folder("dense") / "tokenizer.json", deeper)
    assert coupling_jobs(pair.with_models(dense=deeper), 4096, tmp_path) == []
    assert couplings_part([], []) == {}
