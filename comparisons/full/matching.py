"""Which columns are compared at matched loss? Those whose model is as good as the sparse one on the same real files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sparse_lens.comparisons.curves.loss_matching import match_losses
from sparse_lens.comparisons.full.plan import BASE
from sparse_lens.results import Result, exact, not_measurable

Losses = Mapping[str, Mapping[str, Mapping[str, Result]]]
"""Rows of `capability` by column and place."""

_DIFFERENCES = ("difference", "difference_spliced")


def match_to_base(
    capability: Losses,
    same: Mapping[str, str] | None = None,
    *,
    other_tokens: Collection[str] = (),
    further: Mapping[str, Losses] | None = None,
) -> dict[str, dict[str, Any]]:
    """By column, how its model's loss is matched to the sparse model's (`match_losses`): as it is, or too far apart.

    `difference` is the column's loss less the sparse model's, in nats a token; `difference_spliced` the same of the model with all
    dictionaries of the column in place and their errors left out, not measurable for a column without dictionaries.
    `difference_training_seed_1` and so on are those of `further` training seeds, each to the sparse model of its own seed: of
    columns that have them, all must be within the tolerance. A column of `other_tokens` has a tokenizer of its own: `how` is "other
    tokens", and nothing is said about its loss. Columns of `same` have no losses of their own, but those of another column.
    """
    losses = {column: places["model"] for column, places in capability.items()}
    if BASE not in losses:
        return {}
    found = {}
    for column, own in losses.items():
        found[column] = _other_tokens() if column in other_tokens else _match(losses[BASE]["loss"], own)
        for seed, rows in (further or {}).items() if column not in other_tokens else ():
            if column in rows and BASE in rows:
                again = _match(rows[BASE]["model"]["loss"], rows[column]["model"])
                found[column][f"difference_training_seed_{seed}"] = again["difference"]
                if again["how"] != "matched":
                    found[column] |= {"how": again["how"], "reason": f"training seed {seed}: {again['reason']}"}
    return found | {column: found[of] for column, of in (same or {}).items() if of in found}


def _match(target: Result, found: Mapping[str, Result]) -> dict[str, Any]:
    own, spliced = found["loss"], found.get("loss_spliced", not_measurable("the column has no dictionaries"))
    match = match_losses(target, {"model": own})
    differences = (match.difference, spliced if spliced.value is None else exact(spliced.value - (target.value or 0.0), n=own.n))
    return {"how": match.how, "reason": match.reason} | dict(zip(_DIFFERENCES, differences, strict=True))


def _other_tokens() -> dict[str, Any]:
    reason = "its model reads other tokens, so that nats a token are not comparable"
    return {"how": "other tokens", "reason": reason} | dict.fromkeys(_DIFFERENCES, not_measurable(reason))
