"""Circuits as figures in a notebook: objects that show themselves, and save themselves as files that need nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_lens.circuits.cards.connections import Place, circuit_connections
from sparse_lens.circuits.cards.input_differences import pair_values
from sparse_lens.circuits.cards.node_ablation import ablation_deltas
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.files import new_file
from sparse_lens.report.circuit.drawing import MOST_EDGES, draw_circuit
from sparse_lens.report.circuit.positions import PairRun, draw_positions, token_texts
from sparse_lens.report.circuit.templates import render
from sparse_lens.tasks import TaskBatch, get_task
from sparse_lens.tasks.tokens import Encoder

N_PAIRS = 16
"""Prompt pairs that deltas and effects are measured on."""

LIGHT = {
    "surface": "#ffffff", "ink": "#1a1e24", "muted": "#565e68", "line": "#dedfda", "axis": "#9aa1a9", "accent": "#0b5c94",
    "positive": "#0a4f8c", "negative": "#a84300",
}  # fmt: skip
DARK = {
    "surface": "#1c2026", "ink": "#e9ebee", "muted": "#a7afb9", "line": "#343a42", "axis": "#6d757f", "accent": "#7cc0f5",
    "positive": "#2475ba", "negative": "#b9530f",
}  # fmt: skip
"""The page's colors, for a figure that stands alone."""

_FONTS = "--sans: system-ui, sans-serif; --mono: ui-monospace, monospace;"


@dataclass(frozen=True)
class Figure:
    """An SVG figure with its own style sheet; a notebook shows it as it is."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the figure as an SVG file; raises `OutputError` where `path` cannot be written."""
        with new_file(path) as staging:
            staging.write_text(self.svg, encoding="utf-8")
        return Path(path)


def circuit_figure(
    circuit: Circuit, bridge: Any, prompts: TaskBatch | None = None, *, deltas: bool = True, most_edges: int = MOST_EDGES
) -> Figure:
    """The circuit drawn: nodes in the order of computation, edges, and the residual stream as lanes.

    `prompts` are pairs of the circuit's task, by default 16 held-out ones; with `deltas`, nodes are colored by the rise of the task
    loss when they are ablated, which takes one pass over the prompts for each. Raises `CircuitError` for another model, and
    `UnknownNameError` without prompts where the task is not registered.

    Example: `circuit_figure(circuit, bridge)` as the last line of a notebook's cell, or `.save("circuit.svg")`.
    """
    prompts = _prompts(circuit, bridge) if prompts is None else prompts
    connections = circuit_connections(bridge, circuit, prompts)
    worth = _deltas(bridge, circuit, prompts) if deltas else None
    return Figure(standing_alone(draw_circuit(circuit, connections, deltas=worth, most_edges=most_edges).svg))


def positions_figure(circuit: Circuit, bridge: Any, prompts: TaskBatch | None = None, *, pair: int = 0) -> Figure:
    """At which positions of a pair of prompts the circuit's nodes differ; `prompts` and errors as in `circuit_figure`."""
    prompts = _prompts(circuit, bridge) if prompts is None else prompts
    return Figure(standing_alone(draw_positions(circuit, pair_run(bridge, circuit, prompts, pair))))


def pair_run(bridge: Any, circuit: Circuit, prompts: TaskBatch, pair: int = 0) -> PairRun:
    """The circuit's values on a pair, with the texts of its tokens."""
    clean, corrupt = pair_values(bridge, circuit, prompts, pair)
    first, second = (side[pair, : len(clean)].tolist() for side in (prompts.clean, prompts.corrupt))
    encoder = None if bridge.tokenizer is None else Encoder(bridge.tokenizer)
    texts = {} if encoder is None else {token: encoder.text(token) for token in {*first, *second}}
    return PairRun(clean, corrupt, token_texts(first, second, texts))


def standing_alone(svg: str) -> str:
    """The figure with its style sheet inside, for light and dark surroundings; the sheet touches nothing outside the figure."""
    rules = f"svg.circuit {{ {_variables(LIGHT)} {_FONTS} background: var(--surface); }}\n"
    rules += f"@media (prefers-color-scheme: dark) {{ svg.circuit {{ {_variables(DARK)} }} }}\n"
    head, body = svg.split(">", 1)
    return f"{head}><style>{rules}{figure_rules()}</style>{body}"


def figure_rules() -> str:
    """The style sheet of circuit figures; its colors are variables."""
    return render("circuit_style.html.jinja", {})


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


def _prompts(circuit: Circuit, bridge: Any) -> TaskBatch:
    return get_task(circuit.task).sample(bridge.tokenizer, N_PAIRS, seed=0, split="heldout")


def _deltas(bridge: Any, circuit: Circuit, prompts: TaskBatch) -> dict[Place, float]:
    nodes = circuit.mask.nonzero().flatten()
    found = ablation_deltas(bridge, circuit, prompts, nodes)
    places = [Place(site, index) for site, indices in circuit.kept().items() for index in indices]
    return {place: delta.value for place, delta in zip(places, found, strict=True) if delta.value is not None}
