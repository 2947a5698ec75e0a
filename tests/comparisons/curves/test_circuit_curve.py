"""The curve's measures against their definitions, and a whole curve of the shipped matched model, seen through its SAEs too."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import Circuit, SearchConfig, log_ratio_parts, mask_hooks, node_space
from sparse_lens.circuits.edges.density import edge_density
from sparse_lens.circuits.search.objectives import Objective
from sparse_lens.circuits.search.problems import search_problem
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.columns import Column
from sparse_lens.comparisons.curves import edge_levels as edge_levels_module
from sparse_lens.comparisons.curves.circuit_curve import CircuitCurve, circuit_curve
from sparse_lens.comparisons.curves.curve_measures import CurveMeasures, CurvePrompts
from sparse_lens.comparisons.curves.edge_levels import TOO_LARGE, decompose, edge_levels
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.results import exact, from_plain
from sparse_lens.tasks import get_task

CONFIG = SearchConfig(steps=16, pairs_per_step=4, evaluations=5, search_pairs=24, evaluation_pairs=8, penalties=(1e-2,))
TASK = "single_double_quote"


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return ModelPair.open()


@pytest.fixture(scope="module")
def columns(pair: ModelPair) -> dict[str, Column]:
    bridge = pair.open_model("dense_matched")
    found = {}
    for name, dictionaries in (("dense_matched_neurons", ()), ("dense_sae", pair.dictionaries())):
        space = node_space(bridge, dictionaries)
        found[name] = Column(name, "dense_matched", bridge, space, pair.windows["reference"][:8])
    return found


def problem_of(column: Column) -> Any:
    return search_problem(column.bridge, column.space, column.ablation, get_task(TASK), CONFIG, objective=Objective("kl"))


def random_circuit(column: Column, share: float, seed: int = 0) -> Circuit:
    mask = torch.rand(column.space.n_nodes, generator=torch.Generator().manual_seed(seed)) < share
    means = column.ablation.means
    return Circuit(mask, column.space, means, TASK, model_fingerprint(column.bridge), 1.0, 1.0, {"target_kind": "kl"})


def test_measures_by_definition(columns: dict[str, Column], pair: ModelPair) -> None:
    """KL at the answer and over all positions, and losses under other ablations, from logits of plain runs."""
    column = columns["dense_matched_neurons"]
    bridge, windows = column.bridge, pair.windows["heldout"][:3, :-1]
    problem, circuit = problem_of(column), random_circuit(column, 0.9)
    prompts = CurvePrompts.sample(problem, TASK, windows, 6, seed=0)
    found = CurveMeasures(bridge, column.space, column.ablation, prompts).of(circuit)

    def divergence(tokens: torch.Tensor, hooks: Any) -> torch.Tensor:
        with torch.no_grad():
            p = bridge(tokens).softmax(-1)
            with bridge.hooks(fwd_hooks=hooks):
                return (p * (p.log() - bridge(tokens).log_softmax(-1))).sum(-1)

    whole = replace(circuit, mask=torch.ones_like(circuit.mask))
    random = CurveMeasures(bridge, column.space, column.ablation, prompts).of(whole)["kl_random"]
    assert random.value == pytest.approx(0.0, abs=1e-5) and found["kl_random"].value > 0.01 and found["kl_random"].n == 3
    hooks = mask_hooks(circuit.space, circuit.mask, circuit.reference)
    heldout, row = prompts.heldout, torch.arange(len(prompts.heldout))
    at_answer = divergence(heldout.tokens, hooks)[row, heldout.position]
    assert found["kl_heldout"].value == pytest.approx(float(at_answer.mean()), rel=1e-4) == found["kl_mean"].value
    natural = divergence(torch.from_numpy(windows.astype(np.int64)), hooks)
    assert found["kl_natural"].value == pytest.approx(float(natural.mean()), rel=1e-4) and found["kl_natural"].n == 3
    zero = {name: replace(ref, latents=torch.zeros_like(ref.latents)) for name, ref in circuit.reference.items()}
    with torch.no_grad(), bridge.hooks(fwd_hooks=mask_hooks(circuit.space, circuit.mask, zero)):
        logits = bridge(heldout.tokens)[row, heldout.position]
    loss = torch.nn.functional.softplus(logits[row, heldout.wrong] - logits[row, heldout.right])
    assert found["loss_zero"].value == pytest.approx(float(loss.mean()), rel=1e-4)
    assert (found["kl_adversarial"].value or 0) > 0 and found["kl_heldout"].n == 6
    assert {"kl_search", "kl_rephrased", "kl_counterfactual", "loss_rephrased", "loss_model"} <= found.keys()


def test_the_whole_model_is_at_no_distance_and_nothing_at_the_null(columns: dict[str, Column], pair: ModelPair) -> None:
    column = columns["dense_sae"]
    problem = problem_of(column)
    prompts = CurvePrompts.sample(problem, TASK, pair.windows["heldout"][:2, :-1], 4, seed=0)
    measures = CurveMeasures(column.bridge, column.space, column.ablation, prompts)
    whole = measures.of(random_circuit(column, 1.1))
    names = [name for name in whole if name.startswith("kl_")]
    assert len(names) == 9 and all(abs(whole[name].value or 0) < 1e-5 for name in names)
    assert whole["loss_heldout"].value == pytest.approx(whole["loss_model"].value)
    nothing = measures.of(random_circuit(column, 0.0))
    for name in ("kl_heldout", "kl_natural", "kl_zero", "loss_rephrased"):
        assert nothing[name].value == pytest.approx(nothing[name].null)


def test_edge_levels_and_their_decomposition(columns: dict[str, Column]) -> None:
    """Counts of two circuits against `edge_density`, and the parts against `log_ratio_parts`; with a search, its part too."""
    column = columns["dense_matched_neurons"]
    problem, found, densities = problem_of(column), [], []
    for seed, share in ((0, 0.3), (1, 0.2)):
        circuit = random_circuit(column, share, seed)
        levels = edge_levels(problem, circuit, None, functional=False)
        assert not levels.results["searched_edges"].measurable and not levels.results["functional_edges"].measurable
        densities.append(edge_density(problem.space, circuit.mask, problem.graph))
        assert levels.results["structural_edges"].value == densities[-1].n_edges
        assert sum(result.value or 0 for result in levels.by_kind["structural"].values()) == densities[-1].n_edges
        found.append(levels.results)
    for name, value in log_ratio_parts(*densities).items():
        assert decompose(*found)[name].value == pytest.approx(value, abs=1e-9)
    searched = [dict(results) | {"searched_edges": exact(count)} for results, count in zip(found, (30, 60), strict=True)]
    expected = log_ratio_parts(*densities, kept=(30, 60))
    assert {name: result.value for name, result in decompose(*searched).items()} == pytest.approx(expected)


def test_circuits_that_are_too_large_have_no_functional_edges(columns: dict[str, Column], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of MLPs count, up to the limit: one more, and the reason says so."""
    column = columns["dense_matched_neurons"]
    problem, circuit = problem_of(column), random_circuit(column, 0.02)
    kept = column.space.split(circuit.mask)
    n_nodes = sum(int(kept[site.name].sum()) for site in column.space.sites if site.kind == "mlp_neuron")
    assert n_nodes > 0
    for limit in (n_nodes, n_nodes - 1):
        monkeypatch.setattr(edge_levels_module, "FUNCTIONAL_NODES", limit)
        found = edge_levels(problem, circuit, None, functional=True).results["functional_edges"]
        assert found.measurable == (limit == n_nodes)
    assert found.reason is not None and found.reason.startswith(f"{n_nodes} MLP nodes") and found.reason.endswith(TOO_LARGE)


@pytest.mark.parametrize("name", ["dense_matched_neurons", pytest.param("dense_sae", marks=pytest.mark.slow)])
def test_a_curve_of_the_shipped_model(columns: dict[str, Column], pair: ModelPair, name: str) -> None:
    """End to end with little effort: points by falling target, all levels measured where asked for, plain JSON and back."""
    windows, steps = pair.windows["heldout"][:2, :-1], []
    curve = circuit_curve(
        columns[name],
        TASK,
        windows,
        pair.windows["reference"][:4],
        targets=(1.0, 2.4),
        edge_targets=(2.4,),
        functional_targets=(2.4,),
        config=CONFIG,
        heldout_pairs=4,
        error_mode="kept",
        on_step=lambda: steps.append(1),
    )
    assert curve.reason is None and [point.target for point in curve.points] == [2.4, 1.0]
    assert len(steps) == 5 * CONFIG.steps  # nodes at 2.4, 1.2 and 1.0, edges at 2.4 from the first two
    loose, tight = curve.points
    assert loose.results["searched_edges"].measurable and not tight.results["searched_edges"].measurable
    assert (loose.results["searched_edges"].value or 0) <= (loose.results["structural_edges"].value or 0)
    assert loose.results["functional_pairs"].measurable
    assert (loose.results["searched_total_bits"].value or 0) <= (loose.results["total_bits"].value or 0)
    assert {f"searched_{name}" for name in ("nodes", "kl_heldout", "loss_zero", "edges_bits")} <= loose.results.keys()
    assert "searched_nodes" not in tight.results
    assert (tight.results["nodes"].value or 0) >= (loose.results["nodes"].value or 0)
    assert curve.facts["error_nodes"] == ("kept" if name == "dense_sae" else "none: the dictionaries are exact")
    again = CircuitCurve.from_plain(json.loads(json.dumps(curve.to_plain())))
    assert from_plain(again.to_plain()) == from_plain(curve.to_plain())
    assert set(curve.to_frame()["column"]) == {name}


def test_a_task_that_the_model_cannot_do_has_no_points(columns: dict[str, Column], pair: ModelPair) -> None:
    curve = circuit_curve(
        columns["dense_matched_neurons"],
        "nonsense_quote",
        pair.windows["heldout"][:1, :-1],
        pair.windows["reference"][:1],
        config=CONFIG,
        heldout_pairs=32,
    )
    assert not curve.points and "gate" in (curve.reason or "")
    assert CircuitCurve.from_plain(json.loads(json.dumps(curve.to_plain()))) == curve
