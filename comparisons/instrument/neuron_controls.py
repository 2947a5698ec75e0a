"""A measure of MLP neurons on both models of a pair, with its controls; its numbers are means over layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.instrument.sizes import ROLES, Measured
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries import Dictionary, RotationDictionary, random_rotation
from sparse_lens.results import Result


def with_controls(
    pair: ModelPair,
    measure: Callable[[Any, Dictionary], Mapping[str, Result]],
    controlled: Sequence[str],
    *,
    rotated: bool = True,
    layers: Sequence[int] | None = None,
) -> Measured:
    """A measure of MLP neurons with its controls: the same on shuffled weights, and, if `rotated`, on random mixtures of them.

    The mean over all layers, or over the given ones.
    """
    found: Measured = {}
    for role, own in ROLES.items():
        column = open_column(pair.address, ColumnSpec(own, own))
        of_layers, units_of = [], mlp_units(column)
        for units in units_of if layers is None else [units_of[layer] for layer in layers]:
            results = dict(measure(column.bridge, units))
            with random_weights(column.bridge, seed=0):
                shuffled = measure(column.bridge, units)
            results |= {f"random_weights_{name}": shuffled[name] for name in controlled}
            if rotated:
                mixed = measure(column.bridge, RotationDictionary(random_rotation(units.n_latents), units.hook_in))
                results |= {f"rotated_{name}": mixed[name] for name in controlled}
            of_layers.append(results)
        found[role] = mean_results(of_layers)
    return found


def mean_results(layers: Sequence[Mapping[str, Result]]) -> dict[str, Result]:
    """The mean over layers of every result, without an interval; not measurable where a layer's is not."""
    found = {}
    for name in layers[0]:
        results = [layer[name] for layer in layers]
        failed = next((result for result in results if result.value is None), None)
        values = [result.value for result in results if result.value is not None]
        nulls = [result.null for result in results if result.null is not None]
        null = float(np.mean(nulls)) if len(nulls) == len(results) else None
        found[name] = failed or Result(float(np.mean(values)), null=null, n=sum(result.n for result in results))
    return found
