"""A card for each kept node: where it is active, how often, what it is worth, what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sparse_lens.circuits.cards.activation_summary import ActivationSummary, Histogram
from sparse_lens.circuits.cards.connections import Connection, Connections, Place, circuit_connections
from sparse_lens.circuits.cards.kept_values import kept_values
from sparse_lens.circuits.cards.logit_lens import logit_directions, top_tokens
from sparse_lens.circuits.cards.node_ablation import ablation_deltas
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.nodes import default_windows
from sparse_lens.results import Result
from sparse_lens.tasks import TaskBatch
from sparse_lens.tasks.tokens import Encoder

Promoted = tuple[tuple[str, float], ...]
"""Tokens as texts, with their logits per unit of activation."""


@dataclass(frozen=True)
class Context:
    """A cutting of a window around a node's peak there: `tokens` as texts, the node's `values` on them, and where it is from."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    window: int
    start: int


@dataclass(frozen=True, eq=False)
class NodeCard:
    """What is known of one kept node.

    `contexts` are the windows of its highest |activation|, one cutting each; `density` is the share of tokens on which it is above
    the threshold, `mean` its mean over all tokens. `in_circuit` and `in_model` are the rise of the task loss in nats when it
    alone is ablated there, None where no prompts were given. `arriving` and `leaving` are its largest edges, of `n_arriving`
    and `n_leaving`; `promoted` and `suppressed` what the logit lens reads off it, None where it writes no direction.
    """

    place: Place
    latent: bool
    error: bool
    contexts: tuple[Context, ...]
    density: float
    mean: float
    histogram: Histogram
    in_circuit: Result | None
    in_model: Result | None
    arriving: tuple[Connection, ...]
    leaving: tuple[Connection, ...]
    n_arriving: int
    n_leaving: int
    promoted: Promoted | None
    suppressed: Promoted | None


def node_cards(
    bridge: Any,
    circuit: Circuit,
    prompts: TaskBatch | None = None,
    *,
    windows: Int[np.ndarray, "window pos"] | None = None,
    connections: Connections | None = None,
    n_contexts: int = 5,
    n_edges: int = 8,
    n_tokens: int = 6,
    threshold: float = 0.0,
    progress: bool = False,
) -> tuple[NodeCard, ...]:
    """A card for every kept node of `circuit`, in the order of computation.

    Contexts, density and histogram are of the whole model on `windows` (token ids; by default those that come with the model);
    deltas are measured on `prompts`, pairs of the circuit's task: two passes over them for each node. `connections` are the
    circuit's, where they are at hand. Memory grows with the kept nodes, not with the windows. Raises `CircuitError` for another
    model, and without `windows` for a model whose windows are not known.
    """
    circuit.check_model(bridge)
    chosen: np.ndarray = default_windows(bridge) if windows is None else windows
    connections = circuit_connections(bridge, circuit, prompts) if connections is None else connections
    summary = summarize(bridge, circuit, chosen, n_contexts=n_contexts, threshold=threshold, progress=progress)
    deltas = _deltas(bridge, circuit, prompts, circuit.mask.nonzero().flatten(), progress)
    encoder = None if bridge.tokenizer is None else Encoder(bridge.tokenizer)
    cards, sites = [], {site.name: site for site in circuit.space.sites}
    places = [Place(name, index) for name, indices in circuit.kept().items() for index in indices]
    for rank, place in enumerate(places):
        site = sites[place.site]
        promoted, suppressed = _lens(logit_directions(bridge, site, place.index), encoder, n_tokens)
        arriving, leaving = connections.arriving.get(place, ()), connections.leaving.get(place, ())
        card = NodeCard(
            place=place,
            latent=not site.is_identity,
            error=place.index >= site.n_latents,
            contexts=_contexts(summary, rank, chosen, encoder),
            density=float(summary.active[rank]) / summary.n_tokens,
            mean=float(summary.sums[rank]) / summary.n_tokens,
            histogram=summary.histograms.result(rank),
            in_circuit=deltas[0][rank],
            in_model=deltas[1][rank],
            arriving=arriving[:n_edges],
            leaving=leaving[:n_edges],
            n_arriving=len(arriving),
            n_leaving=len(leaving),
            promoted=promoted,
            suppressed=suppressed,
        )
        cards.append(card)
    return tuple(cards)


def summarize(
    bridge: Any,
    circuit: Circuit,
    windows: Int[np.ndarray, "window pos"],
    *,
    n_contexts: int = 5,
    threshold: float = 0.0,
    batch_size: int = 16,
    progress: bool = False,
) -> ActivationSummary:
    """The activity of the kept nodes over `windows` in the whole model, in the order of the space."""
    summary = ActivationSummary(circuit.n_nodes, n_contexts=n_contexts, threshold=threshold)
    for start in tqdm(range(0, len(windows), batch_size), desc="contexts", disable=not progress, leave=False):
        tokens = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
        summary.add(kept_values(bridge, circuit.space, circuit.mask, tokens))
    return summary


def _deltas(
    bridge: Any, circuit: Circuit, prompts: TaskBatch | None, chosen: Int[Tensor, " node"], progress: bool
) -> tuple[list[Result | None], list[Result | None]]:
    if prompts is None:
        return [None] * len(chosen), [None] * len(chosen)
    with tqdm(total=2 * len(chosen), desc="ablations", disable=not progress, leave=False) as bar:
        inside = ablation_deltas(bridge, circuit, prompts, chosen, on_step=bar.update)
        outside = ablation_deltas(bridge, circuit, prompts, chosen, whole_model=True, on_step=bar.update)
    return [*inside], [*outside]


def _contexts(summary: ActivationSummary, node: int, windows: np.ndarray, encoder: Encoder | None) -> tuple[Context, ...]:
    peaks, found = summary.peaks, []
    for rank in range(0 if peaks is None else len(peaks.value)):
        assert peaks is not None
        if not peaks.value[rank, node] > summary.threshold:
            break
        window, start = int(peaks.window[rank, node]), int(peaks.start[rank, node])
        values = tuple(peaks.cutting[rank, :, node].tolist())
        tokens = tuple(_text(encoder, int(token)) for token in windows[window, start : start + len(values)])
        found.append(Context(tokens, values, window, start))
    return tuple(found)


def _lens(logits: Tensor | None, encoder: Encoder | None, most: int) -> tuple[Promoted | None, Promoted | None]:
    if logits is None:
        return None, None
    promoted, suppressed = top_tokens(logits, most)
    return (
        tuple((_text(encoder, token), value) for token, value in promoted),
        tuple((_text(encoder, token), value) for token, value in suppressed),
    )


def _text(encoder: Encoder | None, token: int) -> str:
    return str(token) if encoder is None else encoder.text(token)
