"""Hybrids: run one model up to a boundary, cross over through a coupling, go on in the other; the loss of each.

Whatever does not pass through the residual stream is the second model's own: its bigram table, positions, norms, unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.couplings.coupling import Coupling
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import Result, bootstrap_mean
from sparse_lens.training import window_losses

DIRECTIONS = ("dense_to_sparse", "sparse_to_dense")


@contextmanager
def replaced_stream(bridge: Any, hook: str, stream: Float[Tensor, "#batch #pos d_model"]) -> Iterator[None]:
    """The bridge with `stream` in the place of its own residual stream at `hook`; a single row stands for every token."""

    def replace(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens' signature
        return stream.to(activation.dtype).expand_as(activation)

    with bridge.hooks(fwd_hooks=[(hook, replace)]):
        yield


def streams(
    bridge: Any, boundaries: tuple[str, ...], tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos vocab"], list[Float[Tensor, "batch pos d_model"]]]:
    """Logits, and the residual stream at every boundary."""
    seen: dict[str, Tensor] = {}

    def note(activation: Tensor, hook: Any) -> None:
        seen[hook.name] = activation

    with bridge.hooks(fwd_hooks=[(name, note) for name in boundaries]):
        logits = bridge(tokens)
    return logits, [seen[name] for name in boundaries]


def hybrid_logits(
    dense: Any, sparse: Any, coupling: Coupling, tokens: Int[Tensor, "batch pos"], boundary: int, direction: str
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of one hybrid; `boundary` is a number in the coupling's order. Gradients flow to the coupling and to both models."""
    if direction not in DIRECTIONS:
        raise UnknownNameError("direction", direction, DIRECTIONS)
    hook = coupling.boundaries[boundary]
    first, second = (dense, sparse) if direction == "dense_to_sparse" else (sparse, dense)
    _, (stream,) = streams(first, (hook,), tokens)
    crossed = coupling.encode(boundary, stream) if direction == "dense_to_sparse" else coupling.decode(boundary, stream)
    with replaced_stream(second, hook, crossed):
        return second(tokens)


def hybrid_losses(
    dense: Any,
    sparse: Any,
    coupling: Coupling,
    windows: Int[np.ndarray, "window context_plus_1"],
    *,
    batch_size: int = 32,
    seeds: int = 1,
) -> dict[str, Result]:
    """Pretraining loss (nats per token) of every hybrid, `loss_{direction}_at_{hook}`, and of the models, `loss_dense`,
    `loss_sparse`.

    `null` is the loss when nothing crosses the boundary: the second model with its stream at its mean there. Intervals are over
    windows. Raises `ConfigError` for models that the coupling does not belong to.
    """
    coupling.check_models(dense, sparse)

    def loss(logits: Callable[[Tensor], Tensor], null: float | None = None) -> Result:
        return bootstrap_mean(window_losses(logits, windows, batch_size=batch_size), null=null, seeds=seeds)

    results = {"loss_dense": loss(dense), "loss_sparse": loss(sparse)}
    for direction in DIRECTIONS:
        second, means = (sparse, coupling.sparse_mean) if direction == "dense_to_sparse" else (dense, coupling.dense_mean)
        for boundary, hook in enumerate(coupling.boundaries):
            with replaced_stream(second, hook, means[boundary][None, None]):
                null = loss(second).value
            results[f"loss_{direction}_at_{hook}"] = loss(
                lambda tokens, at=boundary, to=direction: hybrid_logits(dense, sparse, coupling, tokens, at, to), null
            )
    return results
