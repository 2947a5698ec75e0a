"""What the full comparison does not show: differences that the controls give, too, unequal losses, gaps, and caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_lens.comparisons.column_specs import OWN_UNITS, ColumnSpec
from sparse_lens.comparisons.curves.edge_levels import TOO_LARGE
from sparse_lens.comparisons.curves.loss_matching import TOLERANCE
from sparse_lens.comparisons.full.plan import BASE, FullPlan
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.results import Result, bootstrap_mean

CAVEATS_OF_CURVES = (
    "Bits price what a circuit needs beyond the architecture: nodes, edges, values and constants, and every dictionary row used; "
    "another code would give other bits. Totals without the dictionaries stand beside them.",
    "A kept error node is priced as what it takes to compute it; circuits without error nodes may be larger, or not exist.",
    "Sizes are of the smallest circuit that one learner found at equal effort, under mean ablation; smaller ones may exist in any "
    "column, and what survives other ablations stands beside them.",
    "Divergence is from each column's own model: a column can be small because its model does something simpler. The losses stand "
    "beside it.",
    "Each column's ratio is over the tasks that it and the column it is held against have circuits for (n says how many): "
    "two columns with other tasks are not compared with each other.",
    "There is no nonsense task on a curve: a divergence from the model asks for what the model does, right or wrong. Random "
    "circuits of equal size stand there instead; the basic comparison has the nonsense task.",
)
"""What holds for all curves, whatever the columns are."""

CAVEATS = (
    *CAVEATS_OF_CURVES,
    "Intervals are over tasks, over search seeds in the main columns (those of dictionaries have one each), and over "
    "training seeds in the neurons of the two models of matched loss; elsewhere they do not say what another training would give.",
    "Features per neuron of latents depend on how many there are and how well they reconstruct: those of the sparse and the dense "
    "model's SAEs stand at one number of active latents, not at equal reconstruction.",
    "Concept labels are computed from syntax, and many are told by the token alone: read the rows on token-ambiguous positions.",
    "Dictionaries were trained briefly on the standard library and generated programs; longer training may help them.",
    "Units of neurons are scored by magnitude, latents by value; full absorption is 0 by definition where no unit is ever silent.",
)
"""Printed with every full comparison."""

_HEADLINE, _NODES = "bits_ratio_at_0.5", "nodes_ratio_at_0.5"

_MIXED = "between nodes of its basis there are no single weights to price; nodes are compared"

_NEURONS = (
    ("dense_matched_neurons", "dense_matched_rotated", "the dense neurons and a random rotation of them"),
    ("sparse_neurons", "sparse_rotated", "the sparse neurons and a random rotation of them"),
    ("dense_matched_neurons", "shuffled_weights", "the dense model and the same with shuffled weights"),
)
"""Columns of neurons and their controls."""


def controls_of(kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Columns, their controls, and both in words: every kind of dictionary has the two that were never, or only half, trained."""
    found = list(_NEURONS)
    for kind in kinds:
        if kind != "frozen":
            found.append((f"dense_{kind}", "dense_frozen", f"{kind} latents and those of an SAE with a frozen random decoder"))
            found.append((f"dense_{kind}", "dense_untrained", f"{kind} latents and those of an SAE before training"))
    return found


_BY_LABEL = {"concepts": "coverage_f1", "probes": "probe_accuracy_k1"}
"""Rows that have a number for each label: a column and its control are held against each other label by label."""

_BY_LAYER = {"superposition": "psi"}
"""Rows that have one number a layer: only the ranges over layers can be held against each other."""


def undistinguished(
    headline: Mapping[str, Mapping[str, Result]],
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    per_label: Mapping[str, Mapping[str, Mapping[str, Any]]],
    specs: Sequence[ColumnSpec],
    kinds: Sequence[str],
    against: Mapping[tuple[str, str], Mapping[str, Result]],
) -> list[str]:
    """Sentences: columns whose ratio of bits holds 1, and sizes and rows in which a column does not come further than its control.

    `per_label` has, for rows, columns and places, each label's number by metric; `against` the ratios of `against_controls`.
    """
    names = {spec.name for spec in specs}
    said = not_told_from_one(headline, "the sparse neurons'")
    for column, control, words in controls_of(kinds):
        if {column, control} <= names:
            said += _by_size(against.get((column, control), {}), words)
            said += _by_label(per_label, column, control, words) + _by_layer(rows, column, control, words)
    return said


def not_told_from_one(headline: Mapping[str, Mapping[str, Result]], base: str) -> list[str]:
    """Sentences: columns whose ratio of bits to `base`, as it is called in a sentence, has 1 in its interval, or no number."""
    said = []
    for name, ratios in headline.items():
        if _HEADLINE not in ratios:
            continue
        ratio = ratios[_HEADLINE]
        if ratio.value is None:
            reason = ratio.reason if ratios[_NODES].value is None else _MIXED
            said.append(f"{name}: no ratio of bits at 0.5 nats ({reason}).")
        elif ratio.lo is not None and ratio.hi is not None and ratio.lo <= 1 <= ratio.hi:
            said.append(f"{name}: its circuits take {ratio} times the bits of {base} at 0.5 nats; 1 is inside.")
    return said


def _by_size(ratios: Mapping[str, Result], words: str) -> list[str]:
    """Sizes at which a column's circuits are not smaller than its control's by their interval."""
    said = []
    for name, size in ((_HEADLINE, "bits"), (_NODES, "nodes")):
        ratio = ratios.get(name)
        if ratio is None or ratio.value is None or ratio.lo is None or ratio.hi is None:
            continue
        told = f"(ratio {ratio}, {ratio.n} tasks)"
        if ratio.lo > 1:
            said.append(f"{size} of circuits at 0.5 nats: {words}: the control's are smaller {told}.")
        elif ratio.hi >= 1:
            said.append(f"{size} of circuits at 0.5 nats: {words} are not told apart {told}.")
    return said


def _by_label(per_label: Mapping[str, Mapping[str, Mapping[str, Any]]], column: str, control: str, words: str) -> list[str]:
    """Rows in which the mean over labels of the differences to the control is not above 0 by its interval."""
    said = []
    for row, metric in _BY_LABEL.items():
        own, their = (_label_means(per_label.get(row, {}).get(name, {}), metric) for name in (column, control))
        labels = sorted(own.keys() & their.keys())
        if len(labels) < 2:
            continue
        gain = bootstrap_mean(np.array([own[label] - their[label] for label in labels]))
        paired = f"(difference {gain}, paired over {len(labels)} labels)"
        if gain.hi is not None and gain.hi < 0:
            said.append(f"{row}, {metric}: {words}: the control comes further {paired}.")
        elif gain.lo is not None and gain.lo <= 0:
            said.append(f"{row}, {metric}: {words} are not told apart {paired}.")
    return said


def _label_means(places: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Each label's mean over the layers and seeds in which it has a number."""
    found: dict[str, list[float]] = {}
    for numbers in places.values():
        for label, value in numbers.get(metric, {}).items():
            found.setdefault(label, []).append(value)
    return {label: float(np.mean(values)) for label, values in found.items()}


def _by_layer(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], column: str, control: str, words: str) -> list[str]:
    said = []
    for row, metric in _BY_LAYER.items():
        own, their = (_range(rows.get(row, {}).get(name, {}), metric) for name in (column, control))
        if own and their and own[0] <= their[1] and their[0] <= own[1]:
            ranges = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in (own, their))
            said.append(f"{row}, {metric}: {words} are not told apart ({ranges} over layers and seeds).")
    return said


def _range(places: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Least and largest over layers and seeds."""
    found = [results[metric].value for results in places.values() if metric in results and results[metric].value is not None]
    return (min(found), max(found)) if found else None


def unmatched(matching: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences: columns whose model is not as good as the sparse one, or better, and those that are worse without their errors."""
    said = []
    for column, match in matching.items():
        own, spliced = match["difference"], match["difference_spliced"]
        if match["how"] == "interpolated":
            said.append(f"{column}: no model of this loss, but sizes between those of two ({match['reason']}), of logarithms.")
        elif match["how"] != "matched":
            by = match["reason"] if own.value is None else f"its model's loss is {own.value:+.3g} nats a token off"
            said.append(f"{column}: {by}; its ratios are not at matched loss.")
        elif spliced.value is not None and abs(spliced.value) > TOLERANCE:
            said.append(
                f"{column}: with its dictionaries in place and their errors left out its model is {spliced.value:+.3g} nats a "
                "token off; only with error nodes is it at matched loss."
            )
    return said


def left_out(
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]],
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    specs: Sequence[ColumnSpec],
) -> list[str]:
    """Sentences: tasks that a model cannot do, targets that searches missed, circuits too large for functional edges, and columns
    not matched with the sparse neurons.

    `curves` are those of every training seed, by its name ("" for the first).
    """
    said = []
    for run, by_task in curves.items():
        where = f" (training seed {run})" if run else ""
        said += [
            f"{column}, {task}{where}: {records[0]['reason']}."
            for task, columns in by_task.items()
            for column, records in columns.items()
            if records and records[0].get("reason")
        ]
        said += [f"{column}{where}: {missed}" for column, missed in _missed(by_task).items()]
        said += [f"{column}, {task}{where}: {large}" for (column, task), large in _without_functional_edges(by_task).items()]
    matched = rows.get("correspondence", {})
    own = [spec.name for spec in specs if spec.basis in OWN_UNITS and spec.basis != "supervised" and spec.error_mode == "scored"]
    return said + [
        f"{name}: not matched with the sparse neurons, whose tokens or layers its model does not share."
        for name in own
        if rows and name not in matched and name != BASE
    ]


def absent(pair: ModelPair, plan: FullPlan, *, is_coupled: bool) -> list[str]:
    """Sentences: whole parts that the pair's models do not have, or cannot."""
    said = []
    if not (pair.arms() or plan.arms):
        said.append(
            "No model that was pruned, and none with sparse activations, stands beside this pair: arms of the shipped pair are no "
            "controls of other models. Name your own with --arm NAME=MODEL."
        )
    if min(len(pair.training_seeds()), plan.training_seeds) < 2:
        said.append("The models have one training seed: no interval says what another training would give.")
    if not is_coupled:
        said.append("No couplings, hybrids or steering: the dense and the sparse model differ in depth or in their tokens.")
    return said


def _missed(by_task: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, str]:
    """By column, how many of its searches did not reach their target: their points are the best attempts."""
    counts: dict[str, list[int]] = {}
    for columns in by_task.values():
        for column, records in columns.items():
            reached = [bool(point["reached"]) for record in records for point in record["points"]]
            counts.setdefault(column, []).extend(reached)
    return {
        column: f"{reached.count(False)} of {len(reached)} searches did not reach their target; their points are best attempts."
        for column, reached in counts.items()
        if False in reached
    }


def _without_functional_edges(by_task: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[tuple[str, str], str]:
    """By column and task, why circuits have no functional edges where they are too large for them."""
    found: dict[tuple[str, str], str] = {}
    for task, columns in by_task.items():
        for column, records in columns.items():
            measured = [point["results"].get("functional_edges", {}) for record in records for point in record["points"]]
            for reason in (result.get("reason") or "" for result in measured):
                if reason.endswith(TOO_LARGE):
                    found.setdefault((column, task), f"{reason}.")
    return found
