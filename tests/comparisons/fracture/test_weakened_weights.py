"""Weakened weights: drawn among nonzeros alone, put back afterwards, and with the effects of changing each by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.fracture.instances import answers_of, sample_instances
from sparse_lens.comparisons.fracture.weakened_weights import WeakenedWeights


def test_effects_are_those_of_changing_each_weight_by_hand() -> None:
    """Halved, one by one, in the sparse model, most of whose weights are zero."""
    bridge = ModelPair.open().open_model("sparse")
    instances = sample_instances(bridge, ["single_double_quote"], n_pairs=2)
    base = answers_of(bridge, instances)
    units = WeakenedWeights(bridge, 8, torch.Generator().manual_seed(0))
    effects, moved = units.on(instances)(0.5)
    assert effects.shape == (len(units), len(instances.tokens)) and len(units) > 6
    divergences = []
    for (weight, place), found in zip(units.weights, effects, strict=True):
        before = weight.detach().flatten()[place].clone()
        assert before != 0
        with torch.no_grad():
            weight.view(-1)[place] = before / 2
            answers = answers_of(bridge, instances)
            weight.view(-1)[place] = before
        torch.testing.assert_close(found, (answers.differences - base.differences).double(), rtol=0, atol=0)
        divergences.append(float(F.kl_div(answers.log_probs, base.log_probs, reduction="batchmean", log_target=True)))
    assert moved == pytest.approx(sum(divergences) / len(divergences))
