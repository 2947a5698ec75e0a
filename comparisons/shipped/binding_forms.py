"""Binding in all of its forms, over the training seeds of the pair that is trained for it.

    python -m sparse_lens.comparisons.shipped.binding_forms --out docs/binding --page docs/pages/claims-details.md

measures the sparse and the dense model of every training seed, keeps the numbers in one file, prints the tables and writes those of
the page, between their markers, anew. Cells are kept, and the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.binding import binding_columns
from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints, open_column
from sparse_lens.comparisons.instrument.sizes import ROLES
from sparse_lens.comparisons.instrument.verdicts import judge
from sparse_lens.comparisons.jobs import Job, run_jobs
from sparse_lens.comparisons.pair import ModelPair, model_facts
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.results import Result, exact, from_plain, not_measurable, write_json

KEPT = "binding.json"
BEHAVIOUR, INSIDE, LOGITS, EXCHANGED = "binding behaviour", "binding inside", "binding logits", "binding exchanged"
"""The tables, by their markers: what the models answer, which answers moving mean vectors inside them flips, by how many logits,
and which follow the state of a program whose names are exchanged."""

RANDOM, BEYOND = "random: ", "beyond random: "
"""Before a metric's name: what random vectors of equal length do, which is its null, and what the metric has beyond that."""

MEASURES = {
    BEHAVIOUR: {
        "accuracy": "accuracy",
        "with shuffled weights": "random_weights_accuracy",
        "segregation": "segregation",
        "renaming": "renaming",
        "composition gap": "composition_gap",
    },
    INSIDE: {
        "representation": "representation",
        "flipped by the value's": "flip_attribute",
        "by the name's": "flip_entity",
        "restored": "restore",
        "flipped by random ones": "random_flip",
    },
    LOGITS: {
        "value's vectors": "attribute_shift_logits",
        "random ones there": f"{RANDOM}attribute_shift_logits",
        "name's vectors": "entity_shift_logits",
        "random ones at the name": f"{RANDOM}entity_shift_logits",
        "both": "both_shift_logits",
        "random ones at both": f"{RANDOM}both_shift_logits",
        "leakage": "leakage_logits",
        "of random ones": f"{RANDOM}leakage_logits",
    },
    EXCHANGED: {
        "at the values' tokens": "layer1_exchange_flip_attribute",
        "random vectors there": f"{RANDOM}layer1_exchange_flip_attribute",
        "at the names' tokens": "layer1_exchange_flip_entity",
        "random vectors at the names": f"{RANDOM}layer1_exchange_flip_entity",
        "at the names' beyond random": f"{BEYOND}layer1_exchange_flip_entity",
    },
}
JUDGED = ("composition gap", "representation", "at the names' beyond random")
"""Of these the difference over training seeds is printed, too, with its verdict."""

_CELL = "sparse_lens.comparisons.shipped.binding_forms:binding_cell"
_FORMAT = "binding forms 4"
_QUICK_PAIRS = 24

Seed = Mapping[str, Mapping[str, Mapping[str, Result]]]
"""Of one training seed `binding_columns` by side and form, and under the form "model" the facts of a side's model."""


def binding_cell(pair: str, n_pairs: int) -> Seed:
    """The `MEASURES` of every form in both models of a pair, given by its address, and the facts of these models: a cell."""
    opened = ModelPair.at(pair)
    bridges = {side: open_column(pair, ColumnSpec(own, own)).bridge for side, own in ROLES.items()}
    table = binding_columns(bridges, n_pairs=n_pairs)
    facts = {side: model_facts(bridges[side], opened.windows_of(own)["heldout"]) for side, own in ROLES.items()}
    shown = {metric.rpartition(": ")[2] for columns in MEASURES.values() for metric in columns.values()}
    found: dict[str, dict[str, dict[str, Result]]] = {side: {"model": dict(facts[side])} for side in ROLES}
    for side in ROLES:
        found[side] |= {form: {name: of[name] for name in of if name in shown} for form, of in table[side].items()}
    return found


def measure_forms(pairs: Sequence[ModelPair], *, quick: bool = False, **how: Any) -> list[Seed]:
    """`binding_cell` of every pair; `how` is that of `run_jobs`."""
    jobs = []
    for pair in pairs:
        depends = [_FORMAT, *(line for own in ROLES.values() for line in fingerprints(pair, ColumnSpec(own, own)))]
        arguments = {"pair": pair.address, "n_pairs": _QUICK_PAIRS if quick else 240}
        jobs.append(Job(f"binding of {pair.model_name('sparse')}", _CELL, arguments, depends))
    return [from_plain(record) for record in run_jobs(jobs, **how)]


def forms_page(seeds: Sequence[Seed]) -> dict[str, str]:
    """Markdown by marker: one row a form; means over training seeds with their extremes, differences with Student's interval."""
    forms = [form for form in seeds[0]["sparse"] if form != "model"]
    return {marker: _table(seeds, forms, columns) for marker, columns in MEASURES.items()}


def _table(seeds: Sequence[Seed], forms: Sequence[str], columns: Mapping[str, str]) -> str:
    head = ["bound to, variables, lines between"]
    for told in columns:
        head += [f"{told}, sparse", "dense", *(["difference", "verdict"] if told in JUDGED else [])]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    gaps = [_number(seed, "dense", "model", "loss") - _number(seed, "sparse", "model", "loss") for seed in seeds]
    for form in forms:
        cells = [form.replace("value", "number").replace("_", ", ")]
        for told, metric in columns.items():
            sides = {side: [_read(seed[side][form], metric) for seed in seeds] for side in ROLES}
            cells += [_mean(results) for results in sides.values()]
            if told in JUDGED:
                sparse, dense = ([result.value for result in results] for results in sides.values())
                judged = judge(sparse, dense, loss_gaps=gaps, larger="sparse")
                cells += [str(judged.difference), judged.verdict]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


_NOTHING = not_measurable("not measured")


def _read(form: Mapping[str, Result], metric: str) -> Result:
    """A metric of a form, or what its prefix says of it."""
    prefix, told, name = metric.rpartition(": ")
    found = form.get(name, _NOTHING)
    if not prefix:
        return found
    if found.value is None or found.null is None:
        return _NOTHING
    return exact(found.null if prefix + told == RANDOM else found.value - found.null, n=found.n)


def _number(seed: Seed, side: str, form: str, metric: str) -> float:
    value = seed[side][form][metric].value
    assert value is not None, f"{metric} of a model always has a value"
    return value


def _mean(results: Sequence[Result]) -> str:
    values = [result.value for result in results if result.value is not None]
    return "—" if len(values) < len(results) else str(over_seeds(values, n=results[0].n))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has not been measured, print the tables, keep the numbers, and write the page's tables anew."""
    parser = argparse.ArgumentParser(
        description="Binding in all forms, over the training seeds of the pair that is trained for it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--cells", type=Path, default=Path("binding.cells"), help="folder of what was measured")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="the first training seed, a tenth of the programs")
    options = parser.parse_args(arguments)
    pairs = ModelPair.open("binding").training_seeds()[: 1 if options.quick else None]
    seeds = measure_forms(pairs, quick=options.quick, cache=options.cells, workers=options.workers)
    tables = forms_page(seeds)
    for name, table in tables.items():
        sys.stdout.write(f"{name}\n\n{table}\n\n")
    options.out.mkdir(parents=True, exist_ok=True)
    write_json({"scope": {"quick": options.quick, "seeds": len(seeds)}, "measured": seeds}, options.out / KEPT)
    if options.page is not None:
        write_tables(options.page, tables)


if __name__ == "__main__":
    main()
