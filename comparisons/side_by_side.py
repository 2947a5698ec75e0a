"""What every table of a measure says beside it: whose models these are, and how far apart their numbers are.

A measure of two models whose losses differ does not say what else makes them different, so that loss, parameters and nonzeros
belong into the table itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Int

from sparse_lens.comparisons.pair import model_facts, model_sizes
from sparse_lens.results import Result, less, not_measurable

Heldout = Int[np.ndarray, "window pos"]
"""Windows of token ids to read the loss on."""

Row = TypeVar("Row", bound=Mapping[str, Any])
"""Results by name, or by form and name."""

_NO_WINDOWS = "no heldout windows were given to read the loss on: what differs may be the loss"


def side_by_side(
    columns: Mapping[str, Mapping[str, Result]], bridges: Mapping[str, Any], heldout: Heldout | None
) -> dict[str, dict[str, Result]]:
    """A measure's results by column with the facts of each column's model, and rows of differences (`with_differences`)."""
    return with_differences({name: facts_beside(bridges[name], heldout) | dict(of) for name, of in columns.items()})


def facts_beside(bridge: Any, heldout: Heldout | None) -> dict[str, Result]:
    """`model_facts` of a column's model; without `heldout` windows its loss is not measurable, and says so."""
    if heldout is None:
        return {"loss": not_measurable(_NO_WINDOWS)} | model_sizes(bridge)
    return model_facts(bridge, heldout)


def with_differences(table: Mapping[str, Row]) -> dict[str, Row]:
    """A table by column with a row `A - B` of the first column less each other one, of all that both have.

    They are `difference`s of one model each, and say nothing of training seeds (`sparse-lens claims` does).
    """
    first, others = next(iter(table), ""), list(table)[1:]
    return dict(table) | {f"{first} - {other}": cast(Row, _differences(table[first], table[other])) for other in others}


def difference(first: Result, second: Result) -> Result:
    """`first` less `second`, with 0 as its null. Its bounds are the farthest that those of the two allow: too wide, if anything."""
    if first.value is None or second.value is None:
        reasons = dict.fromkeys(result.reason for result in (first, second) if result.reason)
        return not_measurable("; ".join(reasons), n=min(first.n, second.n))
    lo = None if first.lo is None or second.hi is None else first.lo - second.hi
    hi = None if first.hi is None or second.lo is None else first.hi - second.lo
    return Result(less(first.value, second.value), lo, hi, 0.0, min(first.n, second.n), min(first.seeds, second.seeds))


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in first.items():
        if name in second:
            found[name] = difference(one, second[name]) if isinstance(one, Result) else _differences(one, second[name])
    return found
