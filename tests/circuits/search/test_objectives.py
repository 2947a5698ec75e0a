"""Targets as task loss or as divergence from the model; calibration; a circuit that beats its model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import find_circuit, find_edges
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_logits, task_loss
from sparse_lens.circuits.search.calibration import Calibration, fit_calibration
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.nodes import learn_masks, search_circuit
from sparse_lens.circuits.search.objectives import Objective, objective_of
from sparse_lens.circuits.sites import full_mask
from sparse_lens.errors import CircuitError, ConfigError
from sparse_lens.hooks import load
from sparse_lens.tasks import get_task, task_from_pairs
from sparse_lens.tasks.controls import control_of

from ..conftest import Planted, problem_of

CONFIG = SearchConfig(steps=12, pairs_per_step=4, penalties=(1e-3,), evaluations=8)


def some_nodes(planted: Planted) -> torch.Tensor:
    return torch.rand(planted.space.n_nodes, generator=torch.Generator().manual_seed(3)) < 0.7


def test_kl_is_zero_for_the_whole_model_and_equals_a_plain_sum(planted: Planted) -> None:
    problem = problem_of(planted).under(Objective("kl"))
    assert problem.loss(full_mask(planted.space)) == pytest.approx(0, abs=1e-6)
    mask, total = some_nodes(planted), 0.0
    prompts = problem.evaluation_prompts
    hooks = problem.ablation.hooks(planted.bridge, planted.space, mask, prompts)
    with torch.no_grad():
        p, q = (answer_logits(planted.bridge, prompts, h).double().softmax(-1).numpy() for h in ([], hooks))
    for row in range(len(prompts)):
        total += sum(p[row, token] * math.log(p[row, token] / q[row, token]) for token in range(p.shape[1]))
    assert problem.loss(mask) == pytest.approx(total / len(prompts), rel=1e-4)
    assert problem.loss(mask) > 1e-3


def test_kl_does_not_depend_on_the_order_or_choice_of_rows(planted: Planted) -> None:
    problem = problem_of(planted).under(Objective("kl"))
    prompts, mask = problem.evaluation_prompts, some_nodes(planted)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    assert replace(problem, evaluation_prompts=prompts.rows(order)).loss(mask) == pytest.approx(problem.loss(mask), rel=1e-5)
    halves = [replace(problem, evaluation_prompts=prompts.rows(order[part])).loss(mask) for part in (slice(64), slice(64, None))]
    assert np.mean(halves) == pytest.approx(problem.loss(mask), rel=1e-5)


def test_a_circuit_at_a_kl_target(planted: Planted) -> None:
    problem = problem_of(planted).under(Objective("kl"))
    circuit = search_circuit(problem, 0.2, CONFIG)
    assert circuit.reached and circuit.loss <= 0.2
    assert circuit.search["target_kind"] == "kl" and circuit.n_nodes < planted.space.n_nodes
    assert circuit.loss == pytest.approx(problem.loss(circuit.mask), abs=1e-6)
    assert circuit.search["task_loss"] == pytest.approx(problem_of(planted).loss(circuit.mask), abs=1e-6)


def test_paths_of_a_divergence_end_at_every_token(planted: Planted) -> None:
    """Channels 4 to 7 reach no answer, but other tokens: without them the output is another, with them only a norm differs."""
    task, kl = problem_of(planted), problem_of(planted).under(Objective("kl"))
    whole = full_mask(planted.space)
    four, everything = task.score(whole, ""), kl.score(whole, "")
    assert four.size == 4 < everything.size
    assert everything.loss < kl.loss(four.mask)


def test_a_circuit_that_beats_its_model_is_flagged(planted: Planted) -> None:
    """The noise of the planted model costs it: its circuit is better. No circuit beats itself."""
    circuit = search_circuit(problem_of(planted), 0.02, CONFIG)
    whole = problem_of(planted).loss(full_mask(planted.space))
    assert circuit.search["model_loss"] == pytest.approx(whole, abs=1e-9)
    assert circuit.search["beats_model"] is (circuit.loss < whole)


def test_calibration_is_the_least_loss_of_a_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(400, generator=generator) + 0.4
    prompts = rows_of(torch.randint(0, 2, (400,), generator=generator).bool())
    fitted = fit_calibration(d, prompts)
    least = task_loss(fitted.apply(d, prompts)).mean()
    for scale in np.linspace(0.05, 4, 60):
        for shift in np.linspace(-2, 2, 41):
            assert task_loss(Calibration(float(scale), float(shift)).apply(d, prompts)).mean() >= least - 1e-6


def test_calibration_recovers_a_known_scale_and_shift() -> None:
    """Logits a quarter as large as their odds, one answer preferred by 0.5: scale 4 and shift -2 undo both."""
    generator = torch.Generator().manual_seed(1)
    logit = 2 * torch.randn(200_000, generator=generator)  # true log odds of the smaller id
    small_is_right = torch.rand(len(logit), generator=generator) < torch.sigmoid(logit)
    seen = logit / 4 + 0.5
    fitted = fit_calibration(torch.where(small_is_right, seen, -seen), rows_of(small_is_right))
    assert fitted.scale == pytest.approx(4, rel=0.03) and fitted.shift == pytest.approx(-2, rel=0.05)


def test_a_shift_cannot_know_the_answer() -> None:
    """A circuit that says nothing stays at chance on balanced prompts; one that says the opposite is not turned round."""
    prompts = rows_of(torch.arange(100) % 2 == 0)
    for d in (torch.zeros(100), -torch.ones(100)):
        loss = task_loss(fit_calibration(d, prompts).apply(d, prompts)).mean()
        assert float(loss) == pytest.approx(math.log(2), abs=1e-3)


def rows_of(small_is_right: torch.Tensor) -> Prompts:
    n = len(small_is_right)
    right = torch.where(small_is_right, 3, 4)
    tokens = torch.zeros(n, 1, dtype=torch.long)
    return Prompts(tokens, tokens, torch.zeros(n, dtype=torch.long), right, 7 - right, torch.arange(n))


def test_calibrated_searches_calibrate_circuit_and_model(planted: Planted) -> None:
    problem = problem_of(planted).under(Objective("task", calibrate=True))
    circuit = search_circuit(problem, 0.02, CONFIG)
    record = circuit.search["calibration"]
    assert circuit.reached and circuit.loss <= record["uncalibrated_loss"]
    assert circuit.search["model_loss"] <= record["model"]["uncalibrated_loss"]
    assert record["uncalibrated_loss"] == pytest.approx(problem_of(planted).loss(circuit.mask), abs=1e-6)
    assert search_circuit(problem_of(planted), 0.02, CONFIG).search["calibration"] is None


def test_the_objective_of_a_saved_circuit(planted: Planted, tmp_path: object) -> None:
    problem = problem_of(planted).under(Objective("task", calibrate=True))
    circuit = search_circuit(problem, 0.1, CONFIG.model_copy(update={"steps": 5, "evaluations": 3}))
    circuit.save(f"{tmp_path}/c")
    again = Circuit.load(f"{tmp_path}/c", planted.bridge)
    assert objective_of(again) == Objective("task", calibrate=True)
    assert again.search["calibration"]["scale"] == circuit.search["calibration"]["scale"]
    assert objective_of(replace(circuit, search={"derived": "a | b"})) == Objective()
    with pytest.raises(CircuitError, match="kind of target"):
        objective_of(replace(circuit, search={"target_kind": ["task"]}))


def cross_entropy(logits: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """Of the right answer among all tokens."""
    del wrong
    return torch.nn.functional.cross_entropy(logits, right, reduction="none")


def test_a_metric_of_ones_own(planted: Planted) -> None:
    """The two-token loss as a metric learns and scores as without one; another one is met as a plain sum gives it.

    Only the paths differ: a metric may read every logit.
    """
    plain, own = (problem_of(planted).under(o) for o in (Objective(), Objective("task", metric=_two_tokens)))
    rankings = [learn_masks(problem, 0.1, CONFIG)[0].ranking for problem in (plain, own)]
    torch.testing.assert_close(*rankings, atol=1e-4, rtol=0)
    assert plain.loss(some_nodes(planted)) == pytest.approx(own.loss(some_nodes(planted)), abs=1e-6)
    problem = problem_of(planted).under(Objective("task", metric=cross_entropy))
    circuit = search_circuit(problem, 10.0, CONFIG)
    assert circuit.search["metric"] == "cross_entropy" and circuit.reached
    prompts = problem.evaluation_prompts
    hooks = problem.ablation.hooks(planted.bridge, planted.space, circuit.mask, prompts)
    with torch.no_grad():
        chances = answer_logits(planted.bridge, prompts, hooks).softmax(-1)[torch.arange(len(prompts)), prompts.right]
    assert circuit.loss == pytest.approx(float(-chances.log().mean()), rel=1e-5)


def _two_tokens(logits: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(logits))
    return task_loss(logits[rows, right] - logits[rows, wrong])


def test_a_tasks_metric_is_used_for_nodes_and_edges() -> None:
    """A task from pairs, on a shipped model: five lines, and the metric goes with them; a control of it keeps it."""
    bridge, batch = load("python-dense-matched"), get_task("if_equals")
    drawn = batch.sample(bridge.tokenizer, 60, seed=0, split="search").pairs
    rows = [{"clean": p.clean, "corrupt": p.corrupt, "target": p.target, "distractor": p.distractor} for p in drawn]
    task = task_from_pairs("own", rows, metric=cross_entropy)
    config = CONFIG.model_copy(update={"steps": 3, "evaluations": 4})
    circuit = find_circuit(bridge, task, target_loss=20.0, config=config, progress=False)
    edges = find_edges(bridge, circuit, task, config=config, progress=False)
    assert circuit.search["metric"] == edges.search["metric"] == "cross_entropy"
    assert control_of(task, "shuffled").metric is cross_entropy
    with pytest.raises(ConfigError, match="metric of its own"):
        find_circuit(bridge, task, calibrate=True, config=config, progress=False)


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        (lambda logits, right, wrong: logits.mean(), "one loss a prompt"),
        (lambda logits, right, wrong: 0.5, "got float"),
        (lambda logits, right, wrong: logits[:, 0] * torch.nan, "not finite"),
    ],
)
def test_metrics_that_are_none(planted: Planted, metric: Any, match: str) -> None:
    with pytest.raises(CircuitError, match=match):
        search_circuit(problem_of(planted).under(Objective("task", metric=metric)), 0.1, CONFIG)


def test_a_calibrated_divergence_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one"):
        Objective("kl", calibrate=True)
