"""The figures of the full comparison, as SVG text by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.report.contents import part
from sparse_lens.report.figures import Mark, Row, dot_plot
from sparse_lens.report.full.contents import columns, mean_points, row_cell
from sparse_lens.report.full.words import column_term
from sparse_lens.report.line_plots import Axis, Line, Point, line_plot
from sparse_lens.report.numbers import format_number
from sparse_lens.report.strings import visible

WIDTH = 620.0

_SHARES = (1, 2, 5, 16)
"""The k of the probes."""


def figures(full: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Caption and SVG of every figure for which there are numbers, by a name that is good for a file."""
    found: dict[str, tuple[str, str]] = {}
    for task in part(full, "curves"):
        found[f"bits-{task}"] = (f"Bits against divergence, {visible(task)}", _curves(full, task, "total_bits", "bits"))
    for task in part(full, "curves"):
        found[f"nodes-{task}"] = (f"Nodes against divergence, {visible(task)}", _curves(full, task, "nodes", "nodes"))
    if part(full, "rows", "concepts"):
        found["coverage"] = ("Coverage of concepts against latents active per token", _coverage(full))
    if part(full, "rows", "superposition"):
        found["psi"] = ("Effective features per neuron", _psi(full))
    if part(full, "rows", "probes"):
        found["probes"] = ("Accuracy of sparse probes against the latents they may use", _probes(full))
    return found


def series_of(full: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Number of the color and shape of each column, and whether it is drawn quietly, as a control."""
    loud = [name for name, control in columns(full).items() if not control]
    return {name: (loud.index(name) if name in loud else 5, control) for name, control in columns(full).items()}


def _curves(full: Mapping[str, Any], task: str, size: str, label: str) -> str:
    lines = []
    for name, (series, control) in series_of(full).items():
        found = mean_points(full, task, name, "kl_heldout", size)
        told = column_term(name).label
        points = [
            Point(kl, bits, f"{told}: {bits:,.0f} {label} at {kl:.3g} nats, {seeds:.0f} seeds", low, high)
            for kl, bits, low, high, seeds in found
        ]
        lines.append(Line(told, series, points, quiet=control))
    title = f"{label} against divergence, {visible(task)}"
    axes = Axis("KL(model, circuit) on held-out templates, nats", log=True), Axis(label, log=True)
    return line_plot(lines, *axes, ident=f"{size}-{visible(task)}", title=title, description=title + ".", width=WIDTH)


def _coverage(full: Mapping[str, Any]) -> str:
    lines = []
    for name, (series, control) in series_of(full).items():
        l0, f1 = (row_cell(full, row, name, metric).reading for row, metric in (("activation", "l0"), ("concepts", "coverage_f1")))
        if l0.value and f1.value:
            told = f"{column_term(name).label}: best F1 {f1.value:.3f} at L0 {l0.value:.1f}"
            lines.append(Line(column_term(name).label, series, [Point(l0.value, f1.value, told, f1.lo, f1.hi)], quiet=control))
    axes = Axis("latents active per token (L0)", log=True), Axis("mean best F1 over concepts")
    title = "Coverage of concepts against L0"
    return line_plot(lines, *axes, ident="coverage", title=title, description=title + ".", width=WIDTH)


def _psi(full: Mapping[str, Any]) -> str:
    rows = []
    for name, (series, control) in series_of(full).items():
        reading = row_cell(full, "superposition", name, "psi").reading
        if reading.value:
            told = f"{column_term(name).label}: psi {format_number(reading.value)}"
            rows.append(
                Row(column_term(name).label, [Mark(0, series, reading.value, told, reading.lo, reading.hi, hollow=control)])
            )
    title = "Effective features per neuron (psi); above 1 is superposition"
    return dot_plot(rows, lanes=1, ident="psi", title=title, description=title, axis_label="psi (log scale)", width=WIDTH)


def _probes(full: Mapping[str, Any]) -> str:
    lines = []
    for name, (series, control) in series_of(full).items():
        points = []
        for k in _SHARES:
            reading = row_cell(full, "probes", name, f"probe_accuracy_k{k}").reading
            if reading.value:
                told = f"{column_term(name).label}: {reading.value:.3f} with {k}"
                points.append(Point(float(k), reading.value, told, reading.lo, reading.hi))
        lines.append(Line(column_term(name).label, series, points, quiet=control))
    axes = Axis("latents that the probe may use", log=True), Axis("balanced accuracy")
    title = "Sparse probes"
    return line_plot(lines, *axes, ident="probes", title=title, description=title + ".", width=WIDTH)
