"""What the claims rest on: each measure on the two models of one pair, at a default and at a smoke size; cells of plain arguments.

A cell gives `{role: {metric: Result}}` for `sparse` and `dense` (the model of equal loss), with the controls of a metric beside it
under `random_weights_METRIC` and `rotated_METRIC`. Measures of MLP neurons are means over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparse_lens.comparisons.binding import binding_columns
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.compositionality import compositionality_columns
from sparse_lens.comparisons.concepts.coverage import measure_concepts
from sparse_lens.comparisons.concepts.labelled_tokens import label_pair
from sparse_lens.comparisons.fracture.model_fracture import fracture_columns
from sparse_lens.comparisons.instrument.neuron_controls import mean_results, with_controls
from sparse_lens.comparisons.instrument.pair_circuits import measure_latent_circuits, measure_pair_circuits
from sparse_lens.comparisons.instrument.pair_superposition import measure_pair_superposition
from sparse_lens.comparisons.instrument.sizes import ROLES, SMOKE, Measured, Size, reading_batches, tasks_of
from sparse_lens.comparisons.pair import ModelPair, model_facts
from sparse_lens.comparisons.predictability.measuring import predictability_columns
from sparse_lens.comparisons.shift import python_ladder, renamed_ablation, renamed_task, robustness_slopes, shift_table
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import Result, exact
from sparse_lens.tasks import get_task


def measured(pair: str, measure: str, *, smoke: bool = False, layers: Sequence[int] | None = None) -> Measured:
    """One measure on both models of a pair, given by its address: a cell; of some measures in the given `layers` alone.

    Raises `UnknownNameError` for another measure.
    """
    if measure not in MEASURES:
        raise UnknownNameError("measure", measure, MEASURES)
    return MEASURES[measure](ModelPair.at(pair), replace(SMOKE if smoke else Size(), layers=layers))


def _losses(pair: ModelPair, size: Size) -> Measured:  # noqa: ARG001 - all windows are read: the match of losses decides
    found = {}
    for role, own in ROLES.items():
        found[role] = model_facts(pair.open_model(own), pair.windows_of(own)["heldout"])
    return found


def _concepts(pair: ModelPair, size: Size) -> Measured:
    """Of single neurons, also at equal numbers of them: the best of as many as the model with the fewest has in a layer."""
    train, test = label_pair(pair, n_tokens=size.labelled_tokens).split()
    columns = (open_column(pair.address, ColumnSpec(own, own)) for own in ROLES.values())
    fewest = min(units.n_latents for column in columns for units in mlp_units(column))

    def measure(bridge: Any, units: Dictionary) -> Mapping[str, Result]:
        return measure_concepts(bridge, units, train, test, magnitude=True, of_units=fewest).results

    controlled = ("concepts_per_unit", "coverage_f1_over_tokens_ambiguous", "equal_coverage_f1_over_tokens_ambiguous")
    found = with_controls(pair, measure, controlled, layers=size.layers)
    return {role: results | {"equal_units": exact(fewest)} for role, results in found.items()}


def _predictability(pair: ModelPair, size: Size) -> Measured:
    batches = reading_batches(pair, size.tokens)
    return _by_layer(pair, lambda columns: predictability_columns(columns, batches), size.layers)


def _fracture(pair: ModelPair, size: Size) -> Measured:
    return _by_layer(pair, lambda columns: fracture_columns(columns, tasks_of(pair), size.fracture))


def _compositionality(pair: ModelPair, size: Size) -> Measured:
    """On the quote and the bracket subroutine, both asked of the same prompts: means over mask seeds (random weights: one)."""
    return compositionality_columns(_bridges(pair), config=size.masks, seeds=size.mask_seeds, progress=False)


def _binding(pair: ModelPair, size: Size) -> Measured:
    """On two variables and their values, the form that all others build on."""
    table = binding_columns(_bridges(pair), forms=(("value", 2, 0),), n_pairs=size.binding_pairs)
    return {role: forms["value_2_0"] for role, forms in table.items()}


def _shift(pair: ModelPair, size: Size) -> Measured:
    """The last hidden state while identifiers are renamed to rare strings, a share of them at each level."""
    ladder = python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    return _roles_of(shift_table(_bridges(pair), ladder))


def _robustness(pair: ModelPair, size: Size) -> Measured:
    """Loss, accuracy on a task, and what masks of subroutines spare, while identifiers are renamed to rare strings."""
    bridges, ladder = _bridges(pair), python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    tokenizer = bridges["sparse"].tokenizer
    scores: dict[str, Any] = {f"accuracy_{task}": renamed_task(get_task(task), tokenizer) for task in tasks_of(pair)[:1]}
    scores["d_abl"] = renamed_ablation(tokenizer, config=size.masks)
    return _roles_of(robustness_slopes(bridges, ladder, scores=scores))


def _roles_of(table: Measured) -> Measured:
    """Without the rows of differences: intervals over texts are not what a claim rests on."""
    return {role: table[role] for role in ROLES}


MEASURES: dict[str, Callable[[ModelPair, Size], Measured]] = {
    "losses": _losses,
    "superposition": measure_pair_superposition,
    "concepts": _concepts,
    "predictability": _predictability,
    "fracture": _fracture,
    "circuits": measure_pair_circuits,
    "latent_circuits": measure_latent_circuits,
    "compositionality": _compositionality,
    "binding": _binding,
    "shift": _shift,
    "robustness": _robustness,
}


def _bridges(pair: ModelPair) -> dict[str, Any]:
    return {role: open_column(pair.address, ColumnSpec(own, own)).bridge for role, own in ROLES.items()}


def _by_layer(
    pair: ModelPair, table: Callable[[Mapping[str, tuple[Any, Dictionary]]], Measured], layers: Sequence[int] | None = None
) -> Measured:
    """A table over both models' MLP neurons, layer by layer, and its mean; a deeper model's further layers are left out.

    Of all layers, or of the given ones.
    """
    columns = {role: open_column(pair.address, ColumnSpec(own, own)) for role, own in ROLES.items()}
    units = {role: mlp_units(column) for role, column in columns.items()}
    tables = [
        table({role: (columns[role].bridge, units[role][layer]) for role in ROLES})
        for layer in range(min(len(of) for of in units.values()))
        if layers is None or layer in layers
    ]
    return {role: mean_results([found[role] for found in tables]) for role in ROLES}
