"""How many weights the masks of subroutines keep, from the shares that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.compositionality import SUBROUTINES
from sparse_lens.comparisons.instrument.neuron_controls import mean_results
from sparse_lens.comparisons.instrument.sizes import NOTHING, Seed
from sparse_lens.results import Result, exact, not_measurable

_MASKS = "compositionality"


def with_kept_weights(seed: Seed) -> Seed:
    """The same with `log2_kept`: log2 of the weights that masks keep, of random weights as well."""
    if _MASKS not in seed:
        return seed
    return {**seed, _MASKS: {role: {**of, **_kept_weights(of)} for role, of in seed[_MASKS].items()}}


def _kept_weights(of: Mapping[str, Result]) -> dict[str, Result]:
    """By subroutine, and the mean over those that were asked for.

    Not measurable where the mask of the model itself does not do its subroutine. Masks of random weights have no such gate: one
    that does less is smaller than one that did as much would be.
    """
    found: dict[str, Result] = {}
    names = [name for name in SUBROUTINES if f"{name}_kept_share" in of]
    if not names:
        return found
    for prefix, gate in (("", ACCURACY_GATE), ("random_weights_", 0.0)):
        parts = {name: _log2_kept(of, f"{name}_{prefix}", gate) for name in names}
        found |= {f"{name}_{prefix}log2_kept": part for name, part in parts.items()}
        found[f"{prefix}log2_kept"] = mean_results([{"both": part} for part in parts.values()])["both"]
    return found


def _log2_kept(of: Mapping[str, Result], name: str, gate: float) -> Result:
    share, alone, all_of_them = (of.get(key, NOTHING) for key in (f"{name}kept_share", f"{name}sub_own", "maskable"))
    if share.value is None or alone.value is None or all_of_them.value is None:
        return next(result for result in (share, alone, all_of_them) if result.value is None)
    if alone.value < gate:
        return not_measurable(f"the mask alone has an accuracy of {alone.value:.2f}, below the gate of {gate:g}")
    return exact(math.log2(max(share.value * all_of_them.value, 1.0)), n=share.n, seeds=share.seeds)
