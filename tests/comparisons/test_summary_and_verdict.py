"""The summary's ratios by hand, and that the verdict names what its numbers do not support."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.column_searches import _control_targets
from sparse_lens.comparisons.summary import summarize
from sparse_lens.comparisons.verdict import verdict
from sparse_lens.results import Result, exact, not_measurable

KINDS = ("embedding", "q", "k", "v", "output", "mlp_in", "mlp_out", "unembedding")


def column(
    nodes: int,
    edges: int | None,
    *,
    reached: bool = True,
    nonsense: float | None = 5.0,
    error_nodes: int = 0,
    pairs: int = 1000,
    density: float = 0.1,
) -> dict[str, Any]:
    by_kind = {} if edges is None else dict.fromkeys(KINDS, exact(0)) | {"v": exact(edges)}
    return {
        "nodes": exact(nodes),
        "edges": not_measurable("latents") if edges is None else exact(edges),
        "possible_pairs": not_measurable("latents") if edges is None else exact(pairs),
        "expected_edges": not_measurable("latents") if edges is None else exact(pairs * density),
        "edges_by_kind": by_kind,
        "reached": reached,
        "circuit_loss": exact(0.14),
        "heldout_circuit_loss": exact(0.15),
        "heldout_full_loss": exact(0.1),
        "error_nodes": exact(error_nodes),
        "nonsense_ratio": not_measurable("unreached") if nonsense is None else exact(nonsense),
    }


def task(sparse: dict[str, Any], matched: dict[str, Any], failed: tuple[str, ...] = ()) -> dict[str, Any]:
    columns = {"sparse_neurons": sparse, "dense_matched_neurons": matched, "dense_sae": column(20, None)}
    return {"measurable": not failed, "failed_gate": list(failed), "columns": columns}


def test_ratios_are_geometric_means_over_tasks() -> None:
    tasks = {"a": task(column(10, 100), column(20, 400)), "b": task(column(10, 100), column(80, 900))}
    summary = summarize(tasks, 1)
    assert summary["tasks_measurable"].value == 2
    assert summary["node_ratio_geomean"].value == pytest.approx((2 * 8) ** 0.5)
    assert summary["edge_ratio_geomean"].value == pytest.approx((4 * 9) ** 0.5)
    # Student's interval by hand: the logs' standard error is log(9/4)/2, the quantile at one degree of freedom 12.706.
    assert summary["edge_ratio_geomean"].lo == pytest.approx(6 / 2.25 ** (12.706 / 2), rel=1e-4)
    assert summary["edge_ratio_geomean"].hi == pytest.approx(6 * 2.25 ** (12.706 / 2), rel=1e-4)
    assert summary["site_edge_ratio_geomean"].value == pytest.approx(6)
    assert summary["node_ratio_geomean_sae"].value == pytest.approx(2)
    assert not summary["node_ratio_geomean_dense"].measurable


def test_the_edge_ratio_is_the_product_of_its_parts() -> None:
    """By hand: four times the edges are twice the pairs, four times the density, and half the remainder."""
    one = task(column(10, 100, pairs=1000, density=0.05), column(20, 400, pairs=2000, density=0.2))
    summary = summarize({"a": one, "b": one}, 1)
    parts = [summary[f"edge_ratio_{name}"].value for name in ("pairs", "density", "remainder")]
    assert parts == pytest.approx([2, 4, 0.5])
    assert summary["edge_ratio_geomean"].value == pytest.approx(4)


def test_tasks_without_a_circuit_on_both_sides_do_not_count() -> None:
    tasks = {
        "a": task(column(10, 100), column(20, 400)),
        "b": task(column(10, 100), column(80, 900, reached=False)),
    }
    assert not summarize(tasks, 1)["edge_ratio_geomean"].measurable


def metrics(tasks: dict[str, Any], matched_loss: float = 3.0, seeds: int = 1) -> dict[str, Any]:
    losses = {"sparse": 3.0, "dense": 2.5, "dense_matched": matched_loss}
    models = {role: {"loss": exact(loss)} for role, loss in losses.items()}
    return {"models": models, "tasks": tasks, "summary": summarize(tasks, seeds), "effort": {"search_seeds": seeds}}


def said(content: dict[str, Any]) -> str:
    return "\n".join(verdict(content))


def test_a_fair_run_of_six_tasks_raises_no_alarm() -> None:
    fair = {name: task(column(10, 100), column(40 + i, 900 + i)) for i, name in enumerate("abcdef")}
    calm = said(metrics(fair, seeds=3))
    for alarm in ("not a fair baseline", "interval holds 1", "seed(s)", "too few", "mean nothing", "error node", "not fitted"):
        assert alarm not in calm


def test_verdict_alarms() -> None:
    fair = {"a": task(column(10, 100), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    assert "means over 2 tasks: too few" in said(metrics(fair))
    assert "not a fair baseline" in said(metrics(fair, matched_loss=3.2))
    mixed = {"a": task(column(10, 100), column(5, 50)), "b": task(column(10, 100), column(40, 400))}
    assert "interval holds 1" in said(metrics(mixed))
    weak = {"a": task(column(10, 100, nonsense=1.5), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    assert "labels that mean nothing" in said(metrics(weak)) and "a (1.5x)" in said(metrics(weak))
    unfitted = {"a": task(column(10, 100, nonsense=None), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    assert "In sparse_neurons, the nonsense labels were not fitted to the target of a" in said(metrics(unfitted))
    failing = fair | {"c": task(column(1, 1), column(1, 1), failed=("dense_neurons",))}
    assert "accuracy gate failed" in said(metrics(failing))
    unreached = fair | {"c": task(column(10, 100), column(80, 900, reached=False))}
    assert "No circuit reached its target for c in dense_matched_neurons" in said(metrics(unreached))
    errors = {"a": task(column(10, 100), column(40, 900, error_nodes=2)), "b": task(column(10, 100), column(80, 900))}
    assert "In dense_matched_neurons, 1 of 2 circuits keep the error node" in said(metrics(errors))


def test_a_dense_model_that_is_worse_is_called_worse() -> None:
    tasks = {"a": task(column(10, 100), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    content = metrics(tasks)
    content["models"]["dense"]["loss"] = exact(3.1)
    assert "0.10 nats per token worse" in said(content)


def test_targets_that_are_almost_equal_share_a_control() -> None:
    assert _control_targets([0.15, 0.1507, 0.3, 0.15, 0.305, 0.31]) == {0.15: 0.15, 0.1507: 0.15, 0.3: 0.3, 0.305: 0.3, 0.31: 0.31}
    assert _control_targets([]) == {}


def test_over_seeds_gives_the_range() -> None:
    assert over_seeds([3.0], n=5) == Result(3.0, n=5, seeds=1)
    assert over_seeds([1.0, 2.0, 6.0], n=5) == Result(3.0, 1.0, 6.0, n=5, seeds=3)
