"""Which columns are compared at matched loss? Those whose model is as good as the sparse one on the same real files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_lens.comparisons.curves.loss_matching import match_losses
from sparse_lens.comparisons.full.plan import BASE
from sparse_lens.results import Result, bootstrap_mean, exact, not_measurable


@dataclass(frozen=True)
class ModelLosses:
    """A column's `loss` in nats a token and, with dictionaries, `loss_spliced`; `per_window` has the same of each window."""

    results: Mapping[str, Result]
    per_window: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def less(self, base: ModelLosses, name: str = "loss") -> Result:
        """A loss of this column less that of `base`: over the same windows, each window is one sample of the difference.

        Without the losses of single windows the difference of the means, with no interval.
        """
        own, target = self.results.get(name, not_measurable("the column has no dictionaries")), base.results["loss"]
        if own.value is None or target.value is None:
            return own if own.value is None else target
        pair = [np.array(losses) for losses in (self.per_window.get(name, ()), base.per_window.get("loss", ()))]
        if len(pair[0]) != len(pair[1]) or not len(pair[0]):
            return exact(own.value - target.value, n=own.n)
        return bootstrap_mean(pair[0] - pair[1])

    def without_errors(self) -> ModelLosses:
        """Those of a column whose circuits run with the dictionaries in place and their errors left out."""
        spliced = self.results.get("loss_spliced", not_measurable("the column has no dictionaries"))
        windows = self.per_window.get("loss_spliced", ())
        return ModelLosses({**self.results, "loss": spliced}, {**self.per_window, "loss": windows})


Losses = Mapping[str, ModelLosses]
"""By column."""


def match_to_base(
    losses: Losses,
    same: Mapping[str, str] | None = None,
    *,
    other_tokens: Collection[str] = (),
    further: Mapping[str, Losses] | None = None,
    base: str = BASE,
) -> dict[str, dict[str, Any]]:
    """By column, how its model's loss is matched to that of `base`, the sparse model (`match_losses`): as it is, or too far apart.

    `difference` is the column's loss less the sparse model's, in nats a token; `difference_spliced` the same of the model with all
    dictionaries of the column in place and their errors left out, not measurable for a column without dictionaries.
    `difference_training_seed_1` and so on are those of `further` training seeds, each to the sparse model of its own seed: of
    columns that have them, all must be within the tolerance. A column of `other_tokens` has a tokenizer of its own: `how` is "other
    tokens", and nothing is said about its loss. Columns of `same` have no losses of their own, but those of another column.
    """
    if base not in losses:
        return {}
    found = {}
    for column, own in losses.items():
        found[column] = _other_tokens() if column in other_tokens else _match(losses[base], own)
        for seed, again in (further or {}).items() if column not in other_tokens else ():
            if column in again and base in again:
                match = _match(again[base], again[column])
                found[column][f"difference_training_seed_{seed}"] = match["difference"]
                if match["how"] != "matched":
                    found[column] |= {"how": match["how"], "reason": f"training seed {seed}: {match['reason']}"}
    return found | {column: found[of] for column, of in (same or {}).items() if of in found}


def bracketing_widths(losses: Losses, columns: Sequence[str], base: str = BASE) -> dict[str, float]:
    """The shares of the two of `columns` (dense models) whose losses lie on either side of that of `base`; else none.

    None where one of them is matched as it is, or all lie on one side: there is nothing to interpolate, or nothing to do it with.
    """
    there = {name: losses[name].results["loss"] for name in columns if name in losses}
    if base not in losses or not there or any(loss.value is None for loss in (losses[base].results["loss"], *there.values())):
        return {}
    match = match_losses(losses[base].results["loss"], there)
    return dict(match.weights) if match.how == "interpolated" else {}


def interpolated_match(widths: Mapping[str, float]) -> dict[str, Any]:
    """The entry of `match_to_base` for sizes that are interpolated between columns, given with their shares."""
    nothing = not_measurable("no model of its own: sizes between those of two, at the loss of the sparse one by construction")
    reason = " and ".join(f"{share:.2f} of {name}" for name, share in widths.items())
    return {"how": "interpolated", "reason": reason, "difference": nothing, "difference_spliced": nothing}


def _match(base: ModelLosses, own: ModelLosses) -> dict[str, Any]:
    match = match_losses(base.results["loss"], {"model": own.results["loss"]})
    differences = {"difference": own.less(base), "difference_spliced": own.less(base, "loss_spliced")}
    return {"how": match.how, "reason": match.reason} | differences


def _other_tokens() -> dict[str, Any]:
    reason = "its model reads other tokens, so that nats a token are not comparable"
    return {"how": "other tokens", "reason": reason} | dict.fromkeys(("difference", "difference_spliced"), not_measurable(reason))
