"""What the claims rest on: each measure on the two models of one pair, at a default and at a smoke size; cells of plain arguments.

A cell gives `{role: {metric: Result}}` for `sparse` and `dense` (the model of equal loss), with the controls of a metric beside it
under `random_weights_METRIC` and `rotated_METRIC`. Measures of MLP neurons are means over layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_lens.circuits import SearchConfig
from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.binding import binding_table
from sparse_lens.comparisons.circuit_sizes import common_target, nonsense_circuit, prepare_setting, search_column
from sparse_lens.comparisons.column_specs import ColumnSpec, mlp_units, open_column
from sparse_lens.comparisons.compositionality import CHEAP, MaskConfig, compositionality_table
from sparse_lens.comparisons.concepts.coverage import measure_concepts
from sparse_lens.comparisons.concepts.labelled_tokens import label_pair
from sparse_lens.comparisons.fracture.model_fracture import FractureConfig, fracture_table
from sparse_lens.comparisons.pair import ModelPair, model_facts
from sparse_lens.comparisons.predictability.measuring import predictability_table
from sparse_lens.comparisons.reading import reading_windows
from sparse_lens.comparisons.rows.superposition import measure_superposition
from sparse_lens.comparisons.shift import python_ladder, renamed_ablation, renamed_task, robustness_slopes, shift_table
from sparse_lens.dictionaries import Dictionary, RotationDictionary, SAETrainingConfig, random_rotation, train_sae
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import Result, exact, not_measurable
from sparse_lens.tasks import get_task

Measured = dict[str, dict[str, Result]]

ROLES = {"sparse": "sparse", "dense": "dense_matched"}
"""What a claim calls the sides, and what the pair calls them."""


SAE_K = 16
"""Latents of an SAE that are active at a token."""

ON_TASK = "_on_"
"""Between a metric's name and a task's: the metric on that task alone."""


@dataclass(frozen=True)
class Size:
    """How much each measure reads; the default, and the least that still runs everything."""

    tokens: int = 60_000
    labelled_tokens: int = 60_000
    sae_tokens: int = 200_000
    fracture: FractureConfig = FractureConfig()  # noqa: RUF009 - frozen
    tasks: int = 5
    masks: MaskConfig = MaskConfig()  # noqa: RUF009 - frozen
    mask_seeds: tuple[int, ...] = (0, 1, 2)
    binding_pairs: int = 240
    shift_windows: int = 128
    search: SearchConfig = SearchConfig()  # noqa: RUF009 - frozen


SMOKE = Size(
    tokens=12_800,
    labelled_tokens=12_800,
    sae_tokens=8_192,
    fracture=FractureConfig(n_pairs=2, n_units=16),
    tasks=1,
    masks=CHEAP.model_copy(update={"steps": 20}),
    mask_seeds=(0,),
    binding_pairs=48,
    shift_windows=16,
    search=SearchConfig(steps=20, search_pairs=64, evaluation_pairs=32, evaluations=6),
)


def measured(pair: str, measure: str, *, smoke: bool = False) -> Measured:
    """One measure on both models of a pair, given by its address: a cell. Raises `UnknownNameError` for another measure."""
    if measure not in MEASURES:
        raise UnknownNameError("measure", measure, MEASURES)
    return MEASURES[measure](ModelPair.at(pair), SMOKE if smoke else Size())


def _losses(pair: ModelPair, size: Size) -> Measured:  # noqa: ARG001 - all windows are read: the match of losses decides
    found = {}
    for role, own in ROLES.items():
        found[role] = model_facts(pair.open_model(own), pair.windows_of(own)["heldout"])
    return found


def _superposition(pair: ModelPair, size: Size) -> Measured:
    """Effective features of SAEs on the neurons (arXiv:2512.13568), of twice as many latents as neurons in either model.

    Neurons themselves cannot be more features than neurons. An SAE is as good in one basis as in another: the control is the
    model with shuffled weights, and an SAE of its own.
    """
    batches = _batches(pair, size.tokens)

    def measure(bridge: Any, units: Dictionary) -> dict[str, Result]:
        buffer = min(65_536, size.sae_tokens)
        sae = SAETrainingConfig(d_sae=2 * units.n_latents, k=SAE_K, tokens=size.sae_tokens, batch_size=2048, buffer_tokens=buffer)
        reading = reading_windows(pair, int(1.3 * size.sae_tokens) + 2 * buffer)
        with tempfile.TemporaryDirectory() as folder:
            training = np.array_split(reading, max(1, len(reading) // 16))
            trained = train_sae(bridge, units.hook_in, training, sae, Path(folder) / "sae", held_out=batches, progress=False)
            found = measure_superposition(bridge, trained.dictionary, batches)
        fvu = trained.statistics.fvu
        unexplained = not_measurable("the activation does not vary") if fvu is None else exact(fvu)
        return {name: found[name] for name in ("psi", "effective_features")} | {"fvu": unexplained}

    return _with_controls(pair, measure, ("psi",), rotated=False)


def _concepts(pair: ModelPair, size: Size) -> Measured:
    """Of single neurons, also at equal numbers of them: the best of as many as the model with the fewest has in a layer."""
    train, test = label_pair(pair, n_tokens=size.labelled_tokens).split()
    columns = (open_column(pair.address, ColumnSpec(own, own)) for own in ROLES.values())
    fewest = min(units.n_latents for column in columns for units in mlp_units(column))

    def measure(bridge: Any, units: Dictionary) -> Mapping[str, Result]:
        return measure_concepts(bridge, units, train, test, magnitude=True, of_units=fewest).results

    controlled = ("concepts_per_unit", "coverage_f1_over_tokens_ambiguous", "equal_coverage_f1_over_tokens_ambiguous")
    found = _with_controls(pair, measure, controlled)
    return {role: results | {"equal_units": exact(fewest)} for role, results in found.items()}


def _predictability(pair: ModelPair, size: Size) -> Measured:
    batches = _batches(pair, size.tokens)
    return _by_layer(pair, lambda columns: predictability_table(columns, batches))


def _fracture(pair: ModelPair, size: Size) -> Measured:
    return _by_layer(pair, lambda columns: fracture_table(columns, _tasks(pair), size.fracture))


def _circuits(pair: ModelPair, size: Size) -> Measured:
    """Nodes of the smallest circuits found at one target a task, as log2: for each task, and the mean over tasks.

    Of the tasks that both models do, those count on which both reach the target. `nonsense_margin` is the control in each model by
    itself: log2 of the nodes that the same search needs for nonsense labels at the same targets, less that of the circuits, over
    the tasks at whose target nonsense was fitted at all (`nonsense_fitted`).
    """
    columns = {role: open_column(pair.address, ColumnSpec(own, own)) for role, own in ROLES.items()}
    nodes: dict[str, dict[str, float]] = {role: {} for role in ROLES}
    margins: dict[str, list[float]] = {role: [] for role in ROLES}
    for task in _tasks(pair)[: size.tasks]:
        settings = {role: prepare_setting(column, task, size.search, seed=0) for role, column in columns.items()}
        if not all(setting.passes for setting in settings.values()):
            continue
        target = common_target(list(settings.values()))
        found = {role: search_column(of, target, size.search, seed=0, on_step=_nothing).circuit for role, of in settings.items()}
        if not all(circuit.reached for circuit in found.values()):
            continue
        for role, circuit in found.items():
            nodes[role][task] = float(np.log2(max(circuit.n_nodes, 1)))
            nonsense = nonsense_circuit(columns[role], target, size.search, seed=0, on_step=_nothing)
            if nonsense.reached:
                margins[role].append(float(np.log2(max(nonsense.n_nodes, 1))) - nodes[role][task])
    return {role: _circuit_sizes(nodes[role], margins[role], _tasks(pair)[: size.tasks]) for role in ROLES}


def _circuit_sizes(nodes: Mapping[str, float], margins: Sequence[float], tasks: Sequence[str]) -> dict[str, Result]:
    missing = not_measurable(f"on no task of {', '.join(tasks)} do both models reach the target")
    unfitted = not_measurable("nonsense labels are fitted by no circuit at these targets", n=len(nodes))
    found = {f"log2_nodes{ON_TASK}{task}": exact(value) for task, value in nodes.items()}
    return found | {
        "log2_nodes": exact(float(np.mean(list(nodes.values()))), n=len(nodes)) if nodes else missing,
        "nonsense_margin": exact(float(np.mean(margins)), n=len(margins)) if margins else unfitted,
        "nonsense_fitted": exact(len(margins), n=len(nodes)),
    }


def _compositionality(pair: ModelPair, size: Size) -> Measured:
    """On the quote and the bracket subroutine, both asked of the same prompts: means over mask seeds (random weights: one)."""
    return compositionality_table(_bridges(pair), config=size.masks, seeds=size.mask_seeds, progress=False)


def _binding(pair: ModelPair, size: Size) -> Measured:
    """On two variables and their values, the form that all others build on."""
    table = binding_table(_bridges(pair), forms=(("value", 2, 0),), n_pairs=size.binding_pairs)
    return {role: forms["value_2_0"] for role, forms in table.items()}


def _shift(pair: ModelPair, size: Size) -> Measured:
    """The last hidden state while identifiers are renamed to rare strings, a share of them at each level."""
    ladder = python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    return _roles_of(shift_table(_bridges(pair), ladder))


def _robustness(pair: ModelPair, size: Size) -> Measured:
    """Loss, accuracy on a task, and what masks of subroutines spare, while identifiers are renamed to rare strings."""
    bridges, ladder = _bridges(pair), python_ladder(pair, "identifiers", n_windows=size.shift_windows)
    tokenizer = bridges["sparse"].tokenizer
    scores: dict[str, Any] = {f"accuracy_{task}": renamed_task(get_task(task), tokenizer) for task in _tasks(pair)[:1]}
    scores["d_abl"] = renamed_ablation(tokenizer, config=size.masks)
    return _roles_of(robustness_slopes(bridges, ladder, scores=scores))


def _roles_of(table: Measured) -> Measured:
    """Without the rows of differences: intervals over texts are not what a claim rests on."""
    return {role: table[role] for role in ROLES}


MEASURES: dict[str, Callable[[ModelPair, Size], Measured]] = {
    "losses": _losses,
    "superposition": _superposition,
    "concepts": _concepts,
    "predictability": _predictability,
    "fracture": _fracture,
    "circuits": _circuits,
    "compositionality": _compositionality,
    "binding": _binding,
    "shift": _shift,
    "robustness": _robustness,
}


def _bridges(pair: ModelPair) -> dict[str, Any]:
    return {role: open_column(pair.address, ColumnSpec(own, own)).bridge for role, own in ROLES.items()}


def _with_controls(
    pair: ModelPair, measure: Callable[[Any, Dictionary], Mapping[str, Result]], controlled: Sequence[str], *, rotated: bool = True
) -> Measured:
    """A measure of MLP neurons with its controls: the same on shuffled weights, and, if `rotated`, on random mixtures of them."""
    found: Measured = {}
    for role, own in ROLES.items():
        column = open_column(pair.address, ColumnSpec(own, own))
        layers = []
        for units in mlp_units(column):
            results = dict(measure(column.bridge, units))
            with random_weights(column.bridge, seed=0):
                shuffled = measure(column.bridge, units)
            results |= {f"random_weights_{name}": shuffled[name] for name in controlled}
            if rotated:
                mixed = measure(column.bridge, RotationDictionary(random_rotation(units.n_latents), units.hook_in))
                results |= {f"rotated_{name}": mixed[name] for name in controlled}
            layers.append(results)
        found[role] = mean_results(layers)
    return found


def _by_layer(pair: ModelPair, table: Callable[[Mapping[str, tuple[Any, Dictionary]]], Measured]) -> Measured:
    """A table over both models' MLP neurons, layer by layer, and its mean; a deeper model's further layers are left out."""
    columns = {role: open_column(pair.address, ColumnSpec(own, own)) for role, own in ROLES.items()}
    units = {role: mlp_units(column) for role, column in columns.items()}
    tables = [
        table({role: (columns[role].bridge, units[role][layer]) for role in ROLES})
        for layer in range(min(len(layers) for layers in units.values()))
    ]
    return {role: mean_results([found[role] for found in tables]) for role in ROLES}


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


def _batches(pair: ModelPair, n_tokens: int) -> list[np.ndarray]:
    windows = reading_windows(pair, n_tokens, seed=1)
    return np.array_split(windows, max(1, len(windows) // 16))


def _tasks(pair: ModelPair) -> list[str]:
    return list(pair.default_tasks or ())


def _nothing(*_: Any) -> None:
    pass
