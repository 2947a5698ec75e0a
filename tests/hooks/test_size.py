"""A checkpoint of csp_yolo2's shape, 1.7 GB: written, loaded without a second copy, run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sparse_lens.benchmarks.large import LARGE_SHAPE, cost_of_loading, write_large_checkpoint
from sparse_lens.hooks import load


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_checkpoint(tmp_path: Path) -> None:
    path = write_large_checkpoint(tmp_path / "large")
    size = path.stat().st_size / 1e9
    assert size == pytest.approx(1.68, abs=0.02)
    cost = cost_of_loading(path.parent)
    assert cost.peak <= 1.25 * size
    assert cost.after <= 1.1 * size
    bridge = load(path.parent)
    assert bridge.n_params_total - bridge.cfg.d_vocab == 419_122_688
    tokens = torch.randint(2048, (1, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens)
    assert logits.isfinite().all()
    assert cache["blocks.7.attn.hook_act_in"].shape == (1, 16, LARGE_SHAPE["d_model"] + LARGE_SHAPE["d_pos_emb"])
    kept = (cache["blocks.7.mlp.hook_post"] != 0).sum(-1)
    assert int(kept.max()) <= LARGE_SHAPE["d_mlp"] // 4
