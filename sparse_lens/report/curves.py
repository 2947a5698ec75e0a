"""The curves of a training run as a figure of its own: losses and density against the tokens read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sparse_lens.errors import DataError
from sparse_lens.files import new_file
from sparse_lens.report.svg import document, tag, text
from sparse_lens.training.log import read_log

_WIDTH, _PANEL, _LEFT, _RIGHT, _GAP = 640.0, 190.0, 62.0, 20.0, 46.0
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#999}.grid{stroke:#e4e4e4}path{fill:none;stroke-width:1.6}"
    ".training{stroke:#8fb4d9}.loss{stroke:#1f4e79}.density{stroke:#b5541c}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.loss{stroke:#9cc8f0}.training{stroke:#4d7ba6}}"
)

Points = list[tuple[float, float]]


def write_curves(log: Path, out: Path) -> None:
    """Draw the log of a run (`log.jsonl`) into an SVG file; raises `DataError` if it holds no row."""
    try:
        rows = read_log(log)
    except OSError as error:
        raise DataError(f"{log} cannot be read as the log of a run: {error}") from error
    out_text = curves_figure(rows)
    with new_file(out) as path:
        path.write_text(out_text, encoding="utf-8")


def curves_figure(rows: Sequence[dict[str, float]]) -> str:
    """Losses (training, and on held-out real files) above, density below."""
    training, held_out, density = (_series(rows, name) for name in ("training_loss", "loss", "density"))
    if not training:
        raise DataError("the log has no row with a training loss yet")
    most = max(tokens for tokens, _ in training)
    losses = [value for _, value in training + held_out]
    span = (math.floor(min(losses) * 2) / 2, math.ceil(max(losses) * 2) / 2)
    told = f"Training loss ends at {training[-1][1]:.3f} nats per token"
    told += f", held-out loss at {held_out[-1][1]:.3f}" if held_out else ""
    told += f", density at {density[-1][1]:.1%} of the matrices, after {most:,.0f} tokens." if density else "."
    body = [tag("style", _STYLE)]
    body += _panel("loss, nats per token", 30.0, span, most, [("training", training), ("loss", held_out)])
    body += _panel("density of the matrices", 30.0 + _PANEL + _GAP, (0.0, 1.0), most, [("density", density)])
    body += [text("training", 470, 46, class_="note"), tag("path", d="M440,42 h24", class_="training")]
    body += [text("held-out files", 550, 46), tag("path", d="M520,42 h24", class_="loss")]
    body.append(text(f"tokens read (to {most / 1e6:.2f} million)", _LEFT, 2 * _PANEL + _GAP + 58))
    return document(_WIDTH, 2 * _PANEL + _GAP + 72, *body, ident="curves", title="Training curves", description=told) + "\n"


def _panel(label: str, top: float, span: tuple[float, float], most: float, series: Sequence[tuple[str, Points]]) -> list[str]:
    """A labelled frame with four grid lines and the series in it."""
    low, high = span if span[1] > span[0] else (span[0], span[0] + 1)
    width = _WIDTH - _LEFT - _RIGHT

    def at(tokens: float, value: float) -> str:
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{_LEFT + width * tokens / most:.1f},{top + _PANEL * (1 - share):.1f}"

    parts = [text(label, _LEFT, top - 10)]
    for step in range(5):
        value = low + (high - low) * step / 4
        y = top + _PANEL * (1 - step / 4)
        parts += [tag("path", d=f"M{_LEFT},{y:.1f} h{width}", class_="grid"), text(f"{value:.2f}", _LEFT - 40, y + 4)]
    for name, points in series:
        if points:
            parts.append(tag("path", d="M" + " L".join(at(*point) for point in points), class_=name))
    return parts


def _series(rows: Sequence[dict[str, float]], name: str) -> Points:
    found = [(float(row["tokens"]), float(row[name])) for row in rows if name in row and "tokens" in row]
    return [point for point in found if all(map(math.isfinite, point))]
