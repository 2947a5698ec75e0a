"""What the full comparison does not show: differences that the controls give, too, and caveats that hold for every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_lens.comparisons.column_specs import ColumnSpec
from sparse_lens.results import Result

CAVEATS = (
    "Bits price what a circuit needs beyond the architecture: nodes, edges, values and constants, and every dictionary row used; "
    "another code would give other bits. Totals without the dictionaries stand beside them.",
    "A kept error node is priced as what it takes to compute it; circuits without error nodes may be larger, or not exist.",
    "Sizes are of the smallest circuit that one learner found at equal effort, under mean ablation; smaller ones may exist in any "
    "column, and what survives other ablations stands beside them.",
    "Divergence is from each column's own model: a column can be small because its model does something simpler. The losses stand "
    "beside it.",
    "Intervals are over tasks and search seeds (dictionary seeds among them), and over training seeds where a column has them (the "
    "neurons of the two models of matched loss); in all others they do not say what another training would give.",
    "Each column's ratio is over the tasks that it and the sparse neurons have circuits for at that divergence (n says how many): "
    "two columns with other tasks are not compared with each other.",
    "Concept labels are computed from syntax, and many are told by the token alone: read the rows on token-ambiguous positions.",
    "Dictionaries were trained briefly on the standard library and generated programs; longer training may help them.",
)
"""Printed with every full comparison."""

_HEADLINE, _NODES = "bits_ratio_at_0.5", "nodes_ratio_at_0.5"

_MIXED = "its basis mixes channels, between which there are no weights to price; nodes are compared"

_PAIRS = (
    ("dense_topk", "dense_frozen", "an SAE and one with a frozen random decoder"),
    ("dense_matched_neurons", "dense_matched_rotated", "the dense neurons and a random rotation of them"),
    ("sparse_neurons", "sparse_rotated", "the sparse neurons and a random rotation of them"),
    ("dense_matched_neurons", "shuffled_weights", "the dense model and the same with shuffled weights"),
)
"""Columns and their controls."""

_METRICS = {"concepts": "coverage_f1", "probes": "probe_accuracy_k1", "superposition": "psi"}
"""The rows in which a column is held against its control."""


def undistinguished(
    headline: Mapping[str, Mapping[str, Result]], rows: Mapping[str, Mapping[str, Mapping[str, Any]]], specs: Sequence[ColumnSpec]
) -> list[str]:
    """Sentences: columns whose ratio of bits holds 1, and rows in which a control comes as far as what it controls."""
    names = {spec.name for spec in specs}
    return [*_ratios(headline), *_controls(rows, names)]


def _ratios(headline: Mapping[str, Mapping[str, Result]]) -> list[str]:
    said = []
    for name, ratios in headline.items():
        ratio = ratios[_HEADLINE]
        if ratio.value is None:
            reason = ratio.reason if ratios[_NODES].value is None else _MIXED
            said.append(f"{name}: no ratio of bits at 0.5 nats ({reason}).")
        elif ratio.lo is not None and ratio.hi is not None and ratio.lo <= 1 <= ratio.hi:
            said.append(f"{name}: its circuits take {ratio} times the bits of the sparse neurons' at 0.5 nats; 1 is inside.")
    return said


def _controls(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], names: set[str]) -> list[str]:
    said = []
    for column, control, words in _PAIRS:
        if not {column, control} <= names:
            continue
        for row, metric in _METRICS.items():
            own, their = (_mean(rows.get(row, {}).get(name, {}), metric) for name in (column, control))
            if own is not None and their is not None and _overlap(own, their):
                said.append(f"{row}, {metric}: {words} are not told apart ({own} and {their}, over layers).")
    return said


def _mean(places: Mapping[str, Any], metric: str) -> Result | None:
    """Mean over layers and seeds; the interval is that of the least and the largest end."""
    found = [results[metric] for results in places.values() if metric in results and results[metric].value is not None]
    if not found:
        return None
    ends = [(r.lo if r.lo is not None else r.value, r.hi if r.hi is not None else r.value) for r in found]
    return Result(sum(r.value for r in found) / len(found), min(lo for lo, _ in ends), max(hi for _, hi in ends), n=found[0].n)


def _overlap(one: Result, other: Result) -> bool:
    assert one.lo is not None and one.hi is not None and other.lo is not None and other.hi is not None
    return one.lo <= other.hi and other.lo <= one.hi
