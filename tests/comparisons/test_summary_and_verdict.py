"""The summary's ratios by hand, and that the verdict names what its numbers do not support."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.summary import summarize
from sparse_lens.comparisons.verdict import verdict
from sparse_lens.results import Result, exact, not_measurable

KINDS = ("embedding", "qkv", "output", "mlp_in", "mlp_out", "unembedding")


def column(nodes: int, edges: int | None, *, reached: bool = True, nonsense: float | None = 5.0) -> dict[str, Any]:
    by_kind = {} if edges is None else dict.fromkeys(KINDS, exact(0)) | {"qkv": exact(edges)}
    return {
        "nodes": exact(nodes),
        "edges": not_measurable("latents") if edges is None else exact(edges),
        "edges_by_kind": by_kind,
        "reached": reached,
        "circuit_loss": exact(0.14),
        "heldout_circuit_loss": exact(0.15),
        "heldout_full_loss": exact(0.1),
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
    assert summary["edge_ratio_geomean"].lo == pytest.approx(4) and summary["edge_ratio_geomean"].hi == pytest.approx(9)
    assert summary["site_edge_ratio_geomean"].value == pytest.approx(6)
    assert summary["node_ratio_geomean_sae"].value == pytest.approx(2)
    assert not summary["node_ratio_geomean_dense"].measurable


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


def test_verdict_alarms() -> None:
    fair = {"a": task(column(10, 100), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    calm = said(metrics(fair, seeds=3))
    assert "not a fair baseline" not in calm and "interval holds 1" not in calm and "seed(s)" not in calm
    assert "not a fair baseline" in said(metrics(fair, matched_loss=3.2))
    mixed = {"a": task(column(10, 100), column(5, 50)), "b": task(column(10, 100), column(40, 400))}
    assert "interval holds 1" in said(metrics(mixed))
    weak = {"a": task(column(10, 100, nonsense=1.5), column(40, 900)), "b": task(column(10, 100), column(80, 900))}
    assert "labels that mean nothing" in said(metrics(weak)) and "a (1.5x)" in said(metrics(weak))
    failing = fair | {"c": task(column(1, 1), column(1, 1), failed=("dense_neurons",))}
    assert "accuracy gate failed" in said(metrics(failing))
    unreached = fair | {"c": task(column(10, 100), column(80, 900, reached=False))}
    assert "No circuit reached its target for c in dense_matched_neurons" in said(metrics(unreached))


def test_over_seeds_gives_the_range() -> None:
    assert over_seeds([3.0], n=5) == Result(3.0, n=5, seeds=1)
    assert over_seeds([1.0, 2.0, 6.0], n=5) == Result(3.0, 1.0, 6.0, n=5, seeds=3)
