"""The whole model compiled with a gate on every node, against masks under hooks: logits and slopes in models of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_lens.circuits import Ablation, find_circuit
from sparse_lens.circuits.compiled.masked import MaskedModel, masked_model
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_differences, answer_logits, task_loss
from sparse_lens.circuits.search import learning
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.hooks import load

from ..conftest import Planted, problem_of, random_bridge
from .test_compiled import MODELS, random_circuit, some_prompts


def slopes(run: Any, mask: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    gates = mask.clone().requires_grad_()
    with torch.enable_grad():
        logits = run(gates)
        (slope,) = torch.autograd.grad(task_loss(answer_differences(logits, prompts)).mean(), gates)
    return logits.detach(), slope


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("model", MODELS)
def test_logits_and_slopes_equal_those_under_hooks(model: str, ablation: Any) -> None:
    """Mixtures, with closed gates between them, too, masks of zeros and ones, from nearly nothing kept to everything."""
    bridge = random_bridge(1, density=0.6, **MODELS[model])
    circuit, prompts = random_circuit(bridge, 0.5), some_prompts(seed=1)
    space, how = circuit.space, Ablation(circuit.reference, ablation)
    compiled = masked_model(bridge, space, how)
    assert isinstance(compiled, MaskedModel)
    drawn = torch.rand(space.n_nodes, generator=torch.Generator().manual_seed(3))
    shares = [(drawn < share).float() for share in (0.0, 0.03, 0.3, 0.7, 1.0)]
    for mask in (drawn, drawn * (drawn > 0.6), *shares):
        found = slopes(lambda gates: compiled.logits(gates, prompts), mask, prompts)
        expected = slopes(
            lambda gates: answer_logits(bridge, prompts, how.hooks(bridge, space, gates, prompts), alike=True), mask, prompts
        )
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=1e-4)


def test_a_search_learns_what_it_learns_under_hooks(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ranking after forty steps."""
    problem, config = problem_of(planted), SearchConfig(steps=40, pairs_per_step=8, penalties=(1e-3,))
    where = (problem.bridge, problem.space, problem.ablation, problem.search_prompts, 0.1, config)
    fast = learning.learn_mask(*where, penalty=1e-3, seed=0)
    monkeypatch.setattr(learning, "masked_model", lambda *_: None)
    slow = learning.learn_mask(*where, penalty=1e-3, seed=0)
    torch.testing.assert_close(fast.ranking, slow.ranking, atol=2e-3, rtol=0)
    assert torch.equal(fast.mask, slow.mask)


def test_what_depends_on_the_prompts_runs_in_the_whole_model() -> None:
    config = SearchConfig(steps=3, evaluations=4, search_pairs=32, evaluation_pairs=16)
    how: dict[str, Any] = {"frozen_norms": True, "target_loss": 9.0, "config": config, "progress": False}
    assert find_circuit(load("python-dense-matched"), "if_equals", **how).reached
