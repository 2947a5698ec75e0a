"""Whether circuits of a model mean something: what their controls have to show, by the rule of the claims."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_lens.comparisons.instrument.sizes import NOTHING
from sparse_lens.results import Result

NONSENSE_MARGIN = 1.0
"""Log2 of nodes: the same search needs at least twice as many where there is nothing to find."""

MOST_BY_CHANCE = 0.5
"""Random circuits of equal size recover less than this share of what the circuits do."""

_SEARCHED = {"nonsense": "nonsense labels", "random_weights": "shuffled weights"}
"""The controls of circuits that are searches, in words."""


def circuit_controls(of: Mapping[str, Result], where: str) -> tuple[list[str], list[str], list[str]]:
    """What a model's controls of circuits show, which of them failed, and which have no number; in words.

    Where a search is fitted by no circuit at all, no mask makes a circuit of anything, and the control is passed.
    """
    found, failed, missing = [], [], []
    for name, told in _SEARCHED.items():
        fitted, margin = of.get(f"{name}_fitted", NOTHING), of.get(f"{name}_margin", NOTHING)
        more = margin.reason if margin.value is None else f"log2 of nodes more than the circuits' {margin}"
        found.append(f"{told} {where}: {more}")
        if fitted.value is None or (fitted.value and margin.value is None):
            missing.append(f"the control {name} has no number {where}")
        elif margin.value is not None and margin.value < NONSENSE_MARGIN:
            failed.append(f"circuits of {told} are too small {where}: 2^{margin.value:.2f} times")
    own, random = of.get("recovered", NOTHING).value, of.get("random_circuits_recovered", NOTHING).value
    if own is None or random is None:
        missing.append(f"the control random_circuits has no number {where}")
    elif random >= MOST_BY_CHANCE * own:
        failed.append(f"random circuits of equal size recover {random:.2f} {where}, the circuits {own:.2f}")
    return found, failed, missing
