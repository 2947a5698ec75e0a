"""What the templates show of activation patching: heatmaps and the strongest effects of each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from markupsafe import Markup

from sparse_lens.report.contents import model_names, part, sequence
from sparse_lens.report.figures import WIDE, color_key, effect_bar
from sparse_lens.report.glossary import MODELS, term
from sparse_lens.report.heatmaps import Axes, heatmap
from sparse_lens.report.numbers import read_number
from sparse_lens.report.strings import token_label, visible
from sparse_lens.report.tables import patching_cells, strongest_rows

_MOST_POSITIONS = 64
_PLACES = {"attn_positions": "attention output", "mlp_positions": "MLP output"}


def patching_view(patching: Mapping[str, Any], *, most_rows: int = 10) -> dict[str, Any] | None:
    """Template variables for the patching section; None where nothing was patched. All heatmaps share one color scale."""
    models = part(patching, "models")
    if not models:
        return None
    limit, names = _limit(models), model_names(models)
    metrics = {visible(part(models, name).get("metric") or "") for name in names}
    return {
        "task": visible(patching.get("task", "")),
        "metric": metrics.pop() if len(metrics) == 1 else "",
        "key": Markup(color_key(limit)),
        "heads": _figures(models, limit, _head_map),
        "places": [
            {"part": output, "maps": _figures(models, limit, partial(_place_map, name=name, output=output))}
            for name, output in _PLACES.items()
        ],
        "tables": [_rows_view(part(models, name), _label(name), limit, most_rows) for name in names],
    }


def _rows_view(content: Mapping[str, Any], label: str, limit: float, most_rows: int) -> dict[str, Any]:
    found = strongest_rows(content, most_rows)
    bars = [Markup(effect_bar(read_number(row.get("effect")).value, limit)) for row in found]
    rows = [(*patching_cells(row), bar) for row, bar in zip(found, bars, strict=True)]
    return {"label": label, "metric": visible(content.get("metric") or ""), "rows": rows}


def _figures(
    models: Mapping[str, Any], limit: float, draw: Callable[[Mapping[str, Any], str, str, float], str]
) -> list[dict[str, Any]]:
    names = model_names(models)
    drawn = [(_label(name), draw(part(models, name), _label(name), f"patch-{index}", limit)) for index, name in enumerate(names)]
    return [{"label": label, "svg": Markup(svg)} for label, svg in drawn if svg]


def _head_map(content: Mapping[str, Any], label: str, ident: str, limit: float) -> str:
    heads = _grid(content, "heads")
    if not heads:
        return ""
    axes = Axes("layer", "head", _numbers(len(heads)), _numbers(len(heads[0])))
    told = f"Effect of patching each attention head of the {label} model. {_peak(heads, axes)}"
    return heatmap(heads, axes, limit=limit, ident=f"{ident}-heads", title=f"{label}: heads", description=told, most_width=WIDE)


def _place_map(content: Mapping[str, Any], label: str, ident: str, limit: float, *, name: str, output: str) -> str:
    by_layer = _grid(content, name)
    if not by_layer:
        return ""
    tokens, count = [token_label(token) for token in sequence(content, "tokens")], len(by_layer[0])
    named = [f"{place} {token}" for place, token in enumerate((tokens + [""] * count)[:count])][-_MOST_POSITIONS:]
    by_token = [[layer[place] for layer in by_layer] for place in range(count)][-_MOST_POSITIONS:]
    axes = Axes("token", "layer", named, _numbers(len(by_layer)), monospace_rows=True)
    told = f"Effect of patching the {output} of the {label} model at each token and layer. {_peak(by_token, axes)}"
    return heatmap(by_token, axes, limit=limit, ident=f"{ident}-{name}", title=f"{label}: {output}", description=told)


def _grid(content: Mapping[str, Any], name: str) -> list[list[float | None]]:
    """A 2-D list of effects, its rows filled up to one length."""
    rows = [list(row) for row in sequence(content, name) if isinstance(row, (list, tuple))]
    width = max([len(row) for row in rows], default=0)
    return [[read_number(value).value for value in row] + [None] * (width - len(row)) for row in rows] if width else []


def _peak(values: list[list[float | None]], axes: Axes) -> str:
    """One sentence for those who cannot see the figure."""
    cells = [(abs(v), v, i, j) for i, row in enumerate(values) for j, v in enumerate(row) if v is not None]
    if not cells:
        return "Nothing was measurable."
    _, value, row, column = max(cells)
    return f"The strongest, {value:+.2f}, is at {axes.row_name} {axes.rows[row]}, {axes.column_name} {axes.columns[column]}."


def _limit(models: Mapping[str, Any]) -> float:
    values = [
        value
        for model in models
        for name in ("heads", *_PLACES)
        for row in _grid(part(models, model), name)
        for value in row
        if value is not None
    ]
    values += [read_number(row.get("effect")).value or 0.0 for model in models for row in strongest_rows(part(models, model), 1)]
    return max([abs(value) for value in values], default=0.0) or 1.0


def _label(model: str) -> str:
    return visible(term(MODELS, model).label)


def _numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]
