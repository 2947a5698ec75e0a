"""The figures of the full comparison, as SVG text by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.report.contents import part
from sparse_lens.report.figures import Mark, Row, dot_plot
from sparse_lens.report.full.contents import (
    columns,
    faithful_points,
    frontier_cell,
    grids,
    is_measured,
    mean_points,
    pooled_points,
    row_cell,
)
from sparse_lens.report.full.words import column_term
from sparse_lens.report.heatmaps import Axes, heatmap
from sparse_lens.report.line_plots import Axis, Line, Point, line_plot
from sparse_lens.report.numbers import format_number
from sparse_lens.report.plot_legend import with_legend
from sparse_lens.report.strings import visible

WIDTH = 620.0

_SHARES = (1, 2, 5, 16)
"""The k of the probes."""


def figures(full: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Caption and SVG of every figure for which there are numbers, by a name that is good for a file."""
    found: dict[str, tuple[str, str]] = {}
    elsewhere = {where: against for where, against in _ELSEWHERE.items() if is_measured(full, against[0])}
    if part(full, "curves"):
        found["bits-pooled"] = ("Bits against divergence, over tasks", _pooled(full, "total_bits", "bits", _DIVERGENCE))
        found["nodes-pooled"] = ("Nodes against divergence, over tasks", _pooled(full, "nodes", "nodes", _DIVERGENCE))
        for where, against in elsewhere.items():
            found[f"bits-{where}-pooled"] = (f"Bits against {against[2]}, over tasks", _pooled(full, "total_bits", "bits", against))
    for against, where in ((_DIVERGENCE, ""), *((against, f"{where}-") for where, against in elsewhere.items())):
        for task in part(full, "curves"):
            caption = f"Bits against {against[2]}, {visible(task)}"
            found[f"bits-{where}{task}"] = (caption, _curves(full, task, "total_bits", "bits", against))
    for task in part(full, "curves"):
        found[f"nodes-{task}"] = (f"Nodes against divergence, {visible(task)}", _curves(full, task, "nodes", "nodes"))
    for task in part(full, "curves"):
        caption = f"Nodes against task loss, {visible(task)}"
        found[f"frontier-{task}"] = (caption, _curves(full, task, "nodes", "nodes", against=_TASK_LOSS))
        found[f"faithfulness-{task}"] = (f"Faithfulness against nodes, {visible(task)}", _faithfulness(full, task))
    if part(full, "rows", "concepts"):
        found["coverage"] = ("Coverage of concepts against latents active per token", _coverage(full))
    if part(full, "frontier"):
        for name, (row, metric, spoken) in _FRONTIERS.items():
            found[name] = (f"{spoken} against active latents, width by width", _frontier(full, row, metric, spoken))
    if part(full, "rows", "superposition"):
        found["psi"] = ("Effective features per neuron", _psi(full))
    if part(full, "rows", "probes"):
        found["probes"] = ("Accuracy of sparse probes against the latents they may use", _probes(full))
    return found | _maps(full)


def standalone_figures(full: Mapping[str, Any]) -> dict[str, str]:
    """The figures to be files of their own: a legend is in those whose lines do not name themselves."""
    legend: list[tuple[int | None, str]] = [
        (series, column_term(name).label) for name, (series, control) in series_of(full).items() if not control
    ]
    legend.append((None, "Gray and dashed: controls"))
    drawn = {name: svg for name, (_, svg) in figures(full).items()}
    own = ("psi", "map-", "widths-")
    return {name: svg if name.startswith(own) else with_legend(svg, legend) for name, svg in drawn.items()}


def series_of(full: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Number of the color and shape of each column, and whether it is drawn quietly, as a control."""
    loud = [name for name, control in columns(full).items() if not control]
    return {name: (loud.index(name) if name in loud else 5, control) for name, control in columns(full).items()}


_DIVERGENCE = ("kl_heldout", "KL(model, circuit) on held-out templates, nats", "divergence")
_ELSEWHERE = {
    "rephrased": ("kl_rephrased", "KL(model, circuit) on rephrased prompts, nats", "divergence on rephrased prompts"),
    "natural": ("kl_natural", "KL(model, circuit) on real files, nats", "divergence on real files"),
}
_TASK_LOSS = ("loss_heldout", "two-token loss on held-out templates, nats", "task loss")


def _curves(full: Mapping[str, Any], task: str, size: str, label: str, against: tuple[str, str, str] = _DIVERGENCE) -> str:
    metric, axis, spoken = against
    lines = []
    for name, (series, control) in series_of(full).items():
        found = mean_points(full, task, name, metric, size)
        told = column_term(name).label
        points = [
            Point(across, up, f"{told}: {up:,.0f} {label} at {across:.3g} nats, {seeds:.0f} seeds", low, high)
            for across, up, low, high, seeds in found
        ]
        lines.append(Line(told, series, points, quiet=control))
    title = f"{label} against {spoken}, {visible(task)}"
    axes = Axis(axis, log=True), Axis(label, log=True)
    return line_plot(lines, *axes, ident=f"{size}-{metric}-{visible(task)}", title=title, description=title + ".", width=WIDTH)


def _pooled(full: Mapping[str, Any], size: str, label: str, against: tuple[str, str, str]) -> str:
    """Over the tasks that all columns have."""
    metric, axis, spoken = against
    tasks, found = pooled_points(full, metric, size)
    lines = []
    for name, (series, control) in series_of(full).items():
        told = column_term(name).label
        points = [Point(x, y, f"{told}: {y:,.0f} {label} at {x:.3g} nats, {len(tasks)} tasks") for x, y in found[name]]
        lines.append(Line(told, series, points, quiet=control))
    title = f"{label} against {spoken}, geometric means over {', '.join(map(visible, tasks)) or 'no common task'}"
    axes = Axis(axis, log=True), Axis(label, log=True)
    ident = f"{size}-pooled" if against == _DIVERGENCE else f"{size}-{metric}-pooled"
    return line_plot(lines, *axes, ident=ident, title=title, description=title + ".", width=WIDTH)


def _faithfulness(full: Mapping[str, Any], task: str) -> str:
    lines = []
    for name, (series, control) in series_of(full).items():
        told = column_term(name).label
        found = faithful_points(full, task, name)
        points = [Point(nodes, share, f"{told}: {share:.2f} with {nodes:,.0f} nodes", None, None) for nodes, share in found]
        lines.append(Line(told, series, points, quiet=control))
    title = f"Faithfulness against nodes, {visible(task)}"
    axes = Axis("nodes", log=True), Axis("1 - KL / KL of everything ablated")
    return line_plot(lines, *axes, ident=f"faithfulness-{visible(task)}", title=title, description=title + ".", width=WIDTH)


_MAPPED = {
    "concepts": ("concept", "unit", "Concepts and the units that tell them best: F1"),
    "correspondence": ("sparse neuron", "unit", "The units that match sparse neurons best: correlation"),
}


def _maps(full: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Heat maps of the loud columns, layer by layer."""
    found = {}
    for row, (row_name, column_name, caption) in _MAPPED.items():
        for name, (_, control) in series_of(full).items():
            for place, rows, columns_, values in () if control else grids(full, row, name):
                ident = f"map-{row}-{visible(name)}-{visible(place)}".replace(" ", "-").replace(",", "")
                title = f"{caption}; {column_term(name).label}, {visible(place)}"
                axes = Axes(row_name, column_name, rows, columns_)
                drawn = heatmap(values, axes, limit=1.0, ident=ident, title=title, description=title, most_width=WIDTH)
                found[ident] = title, drawn
    return found


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


_FRONTIERS = {
    "widths-loss": ("reconstruction", "loss_added_spliced", "nats added by the splice"),
    "widths-coverage": ("concepts", "coverage_f1", "mean best F1 over concepts"),
}
"""Figures of the frontier: row, number and words."""


def _frontier(full: Mapping[str, Any], row: str, metric: str, spoken: str) -> str:
    """One line a width."""
    widths: dict[int, list[Point]] = {}
    for name, content in part(full, "frontier").items():
        l0, value = frontier_cell(full, name, "activation", "l0").value, frontier_cell(full, name, row, metric).value
        if l0 and value is not None:
            told = f"{content.get('d_sae')} latents, {l0:.1f} active: {value:.3g}"
            widths.setdefault(int(content.get("d_sae", 0)), []).append(Point(l0, value, told))
    lines = [
        Line(f"{width:,} latents", series, sorted(widths[width], key=lambda point: point.x))
        for series, width in enumerate(sorted(widths))
    ]
    axes, title = (Axis("latents active per token (L0)", log=True), Axis(spoken)), f"SAEs of the first kind: {spoken}"
    drawn = line_plot(lines, *axes, ident=f"widths-{metric}", title=title, description=title + ".", width=WIDTH)
    return with_legend(drawn, [(line.series, line.label) for line in lines])


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
