"""Circuits at many targets share their candidates; error nodes are scored, kept or ablated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_lens.circuits import SearchConfig, node_space
from sparse_lens.circuits.ablation import Ablation
from sparse_lens.circuits.masking import mean_reference
from sparse_lens.circuits.search.nodes import search_circuit
from sparse_lens.circuits.search.problems import SearchProblem, with_errors
from sparse_lens.circuits.search.tracing import trace_circuits
from sparse_lens.circuits.sites import full_mask
from sparse_lens.circuits.weights import weight_graph
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.errors import ConfigError, UnknownNameError

from ..conftest import Planted, problem_of

CONFIG = SearchConfig(steps=30, pairs_per_step=4, penalties=(1e-2,), evaluations=6)


def test_no_circuit_is_larger_than_its_own_search(planted: Planted) -> None:
    problem, targets = problem_of(planted), (0.05, 0.5)
    traced = trace_circuits(problem, targets, CONFIG, seed=1)
    for circuit, target in zip(traced, targets, strict=True):
        single = search_circuit(problem, target, CONFIG, seed=1)
        assert circuit.reached == single.reached and circuit.target_loss == target
        assert circuit.n_nodes <= single.n_nodes and circuit.loss <= target
        assert circuit.search["traced"] == list(targets)
    by_target = sorted(zip(targets, (circuit.n_nodes for circuit in traced), strict=True))
    sizes = [size for _, size in by_target]
    assert sizes == sorted(sizes, reverse=True)
    for wrong in ((), (0.1, 0.0)):
        with pytest.raises(ConfigError, match="above 0"):
            trace_circuits(problem, wrong, CONFIG)


def latents_of(planted: Planted) -> tuple[SearchProblem, int]:
    """The planted model through an SAE whose latents do nothing: its error node is all there is."""
    weights = {"W_enc": torch.eye(6), "b_enc": torch.zeros(6), "W_dec": torch.zeros(6, 6), "b_dec": torch.zeros(6)}
    sae: Any = SAELensDictionary("standard", weights, "blocks.0.mlp.hook_post")
    space = node_space(planted.bridge, [sae])
    reference = mean_reference(planted.bridge, space, planted.batch.clean)
    graph = weight_graph(planted.bridge, planted.batch)
    problem = SearchProblem(planted.bridge, space, Ablation(reference), "planted", planted.prompts, planted.prompts, graph)
    return problem, space.slices["mlp_neuron.0"].stop - 1


def test_error_nodes(planted: Planted) -> None:
    problem, error = latents_of(planted)
    found = {mode: search_circuit(with_errors(problem, mode), 0.1, CONFIG) for mode in ("scored", "kept", "ablated")}
    assert found["scored"].mask[error] and found["kept"].mask[error] and not found["ablated"].mask[error]
    assert found["scored"].reached and found["kept"].reached and not found["ablated"].reached
    kept = with_errors(problem, "kept")
    assert kept.require is not None and kept.require.nonzero().flatten().tolist() == [error]
    assert kept.score(full_mask(problem.space) & ~kept.require, "x").mask[error]
    none = kept.score(full_mask(problem.space, keep=False), "x")
    assert none.size == 0  # off all paths it does nothing
    assert with_errors(problem_of(planted), "kept").require is None
    with pytest.raises(UnknownNameError, match="error mode"):
        with_errors(problem, "on")
