"""Which columns are compared at matched loss? Those whose model is as good as the sparse one on the same real files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.comparisons.curves.loss_matching import match_losses
from sparse_lens.comparisons.full.plan import BASE
from sparse_lens.results import Result, exact, not_measurable

Losses = Mapping[str, Mapping[str, Mapping[str, Result]]]
"""Rows of `capability` by column and place."""


def match_to_base(capability: Losses) -> dict[str, dict[str, Any]]:
    """By column, how its model's loss is matched to the sparse model's (`match_losses`): as it is, or too far apart.

    `difference` is the column's loss less the sparse model's, in nats a token; `difference_spliced` the same of the model with all
    dictionaries of the column in place and their errors left out, not measurable for a column without dictionaries. A model with a
    tokenizer of its own has other tokens: `how` is "other tokens", and nothing is said about its loss.
    """
    losses = {column: places["model"] for column, places in capability.items()}
    if BASE not in losses:
        return {}
    target = losses[BASE]["loss"]
    return {column: _match(target, found) for column, found in losses.items()}


def _match(target: Result, found: Mapping[str, Result]) -> dict[str, Any]:
    own, missing = found["loss"], not_measurable("the column has no dictionaries")
    if own.n != target.n:
        reason = "its model reads other tokens, so that nats a token are not comparable"
        return {"how": "other tokens", "reason": reason} | dict.fromkeys(_DIFFERENCES, not_measurable(reason))
    match = match_losses(target, {"model": own})
    spliced = found.get("loss_spliced", missing)
    differences = (match.difference, spliced if spliced.value is None else exact(spliced.value - (target.value or 0.0), n=own.n))
    return {"how": match.how, "reason": match.reason} | dict(zip(_DIFFERENCES, differences, strict=True))


_DIFFERENCES = ("difference", "difference_spliced")
