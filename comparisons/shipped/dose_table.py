"""Dose and response on models of one loss: what of the measures moves with the density of weights?

    for model in 2.5-256 5-96 5-160 10-64 10-96 20-64 20-128 100-32 100-64; do for seed in 0 1 2
    do sparse-lens train --recipe dose-$model --seed $seed --corpus python --out doses/dose-$model-seed$seed; done; done
    python -m sparse_lens.comparisons.shipped.dose_table doses/* --target dose-2.5-256 \
        --out docs/doses --page docs/pages/claims-details.md

The fewer weights a model has, the wider it is. At each density two widths lie on either side of the target's loss, and what is
measured is interpolated between them (`mechanism.doses`), for each training seed by itself. Cells are kept in `--cells`, and the
command goes on where it stopped. The file it writes holds the row of the claim T3a (`sparse-lens claims --kept`) and what was
measured of every model; those that it holds already stay in the tables, so that a family can be measured seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import Judgement, difference_over_seeds, judge
from sparse_lens.comparisons.mechanism.doses import Dose, DoseResponse, dose_response
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.shipped.kept_file import read_kept_file
from sparse_lens.comparisons.shipped.measuring_family import (
    CONTROLS,
    MEASURED,
    MEASURES,
    PSI,
    SHUFFLED,
    control_of,
    measure_family,
    recipe_of,
)
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.results import Result, not_measurable, write_json
from sparse_lens.training.recipes import RECIPES

KEPT = "doses.json"


def responses(models: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, dict[int, DoseResponse]]:
    """Dose and response of every measure that all models have, for each training seed among its models at one loss: that of its
    model of the recipe `target`.

    Raises `UnknownNameError` where a seed has no such model.
    """
    found: dict[str, dict[int, DoseResponse]] = {}
    first, *others = (model["values"] for model in models.values())
    order = {name: place for place, name in enumerate(MEASURED)}
    common = [measure for measure in first if all(measure in values for values in others)]
    measures = sorted(common, key=lambda measure: order.get(measure, len(order)))
    for seed in sorted({model["seed"] for model in models.values()}):
        of_seed = {name: model for name, model in models.items() if model["seed"] == seed}
        aim = {model["recipe"]: name for name, model in of_seed.items()}
        if target not in aim:
            raise UnknownNameError(f"recipe of training seed {seed}", target, aim)
        for measure in measures:
            doses = {name: Dose(model["density"], model["loss"], model["values"][measure]) for name, model in of_seed.items()}
            found.setdefault(measure, {})[seed] = dose_response(doses, target=aim[target])
    return found


def dose_page(models: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, str]:
    """Markdown by marker: the models, and each measure at every density (means over training seeds) with its slope.

    Beside it the slope in each of its controls, and whether the rule of the claims tells it apart from 0 and from all of them.
    """
    rows = ["| recipe | density | loss, by training seed |", "|---|---:|---:|"]
    recipes: dict[str, list[Mapping[str, Any]]] = {}
    for model in sorted(models.values(), key=lambda model: (model["density"], model["recipe"], model["seed"])):
        recipes.setdefault(model["recipe"], []).append(model)
    for recipe, of in recipes.items():
        losses = ", ".join(f"{model['loss'].value:.3f}" for model in of)
        rows.append(f"| `{recipe}` | {100 * of[0]['density']:g} % | {losses} |")
    densities = sorted({model["density"] for model in models.values()})
    head = ["measure", *(f"{100 * density:g} %" for density in densities), "slope for ten times the density", "rank correlation"]
    head += ["slope in controls", "told apart from them"]
    table = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    everything, controls = responses(models, target), {name for told in CONTROLS for name in _controls(told).values()}
    for told, found in everything.items():
        if told in controls:
            continue
        means = [_mean_at(found, density) for density in densities]
        cells = ["—" if mean.value is None else f"{mean.value:.3g}" for mean in means]
        correlations = [response.results["spearman"] for response in found.values()]
        shown = ", ".join("—" if each.value is None else f"{each.value:.2g}" for each in correlations)
        table.append("| " + " | ".join([told, *cells, _number(slope_of(found)), shown, *_beyond(told, everything)]) + " |")
    return {"dose models": "\n".join(rows), "doses": "\n".join(table) + _fracture_told(models)}


def _controls(measure: str) -> dict[str, str]:
    """The names of a measure's numbers in its controls, by control."""
    return {control: control_of(measure, control) for control in CONTROLS.get(measure, ())}


def _beyond(measure: str, everything: Mapping[str, Mapping[int, DoseResponse]]) -> tuple[str, str]:
    """A measure's slope in its controls, and whether its own lies beyond 0 and all of them, in words."""
    found = {control: everything[name] for control, name in _controls(measure).items() if name in everything}
    if not found:
        return "—", "no control"
    shown = "; ".join(f"{control} {_number(slope_of(of)).partition(':')[0]}" for control, of in found.items())
    verdict = _judged(everything[measure], found).verdict
    return shown, {"indistinguishable": "no", "not measurable": "—"}.get(verdict, "yes")


def _judged(found: Mapping[int, DoseResponse], controls: Mapping[str, Mapping[int, DoseResponse]]) -> Judgement:
    """The rule of the claims on slopes over training seeds, against 0; models are compared at one loss, so that there is no gap."""
    slopes, *others = ([of.results["slope_per_decade"].value for of in each.values()] for each in (found, *controls.values()))
    nothing = [0.0] * len(slopes)
    return judge(slopes, nothing, loss_gaps=nothing, larger="sparse", controls=dict(zip(controls, others, strict=True)))


def _fracture_told(models: Mapping[str, Mapping[str, Any]]) -> str:
    """On which tasks fracture and entanglement were measured: models that were measured apart may have other ones in common."""
    sets = {tuple(model["fracture_tasks"]) for model in models.values() if model.get("fracture_tasks")}
    if not sets:
        return ""
    if len(sets) > 1:
        return "\n\nFracture and entanglement are not of the same tasks in all models: measure these models in one run."
    (tasks,) = sets
    return f"\n\nFracture and entanglement on {', '.join(f'`{task}`' for task in tasks)}: what all models do."


def slope_of(found: Mapping[int, DoseResponse]) -> Result:
    """Slope for ten times the density: mean over training seeds with Student's interval; of a single one with its own."""
    slopes = [response.results["slope_per_decade"] for response in found.values()]
    values = [slope.value for slope in slopes if slope.value is not None]
    return difference_over_seeds(values) if len(values) > 1 else next((s for s in slopes if s.value is not None), slopes[0])


def prevention_row(models: Mapping[str, Mapping[str, Any]], target: str) -> ClaimRow:
    """The claim T3a by the rule of all claims: slopes of features per neuron over training seeds, against 0 and shuffled weights.

    What stands for the sparse and the dense model are the least and the greatest density.
    """
    claim = next(claim for claim in CLAIMS if claim.id == "T3a")
    found = responses(models, target)
    if PSI not in found:
        return ClaimRow(claim, judge([None], [None], loss_gaps=[0.0], larger="sparse"))
    judgement = _judged(found[PSI], {"random_weights": found[SHUFFLED]})
    densities = sorted({model["density"] for model in models.values()})
    means = [_mean_at(found[PSI], density) for density in densities]
    told = tuple(f"{100 * density:g} % of weights: {mean}" for density, mean in zip(densities, means, strict=True))
    controls = {"random_weights": slope_of(found[SHUFFLED])}
    found = ("the difference is the slope for ten times the density", *told)
    return ClaimRow(claim, judgement, means[0], means[-1], controls, found, (_scope(models, target),))


def _scope(models: Mapping[str, Mapping[str, Any]], target: str) -> str:
    """The models of the doses in words; tokens where their recipes are the library's."""
    densities = sorted({model["density"] for model in models.values()})
    recipes, seeds = ({model[of] for model in models.values()} for of in ("recipe", "seed"))
    tokens = {RECIPES[name].tokens for name in recipes} if recipes <= RECIPES.keys() else set()
    trained = "".join(f", {count:,} tokens each" for count in tokens) if len(tokens) == 1 else ""
    told = ", ".join(f"{100 * density:g}" for density in densities)
    return f"{len(models)} models of {len(seeds)} training seed(s) with {told} % of their weights, at the loss of {target}{trained}"


def _mean_at(found: Mapping[int, DoseResponse], density: float) -> Result:
    """Mean over the training seeds that have a value at a density, with the least and the largest."""
    values = [value.value for response in found.values() for at, value in response.points if at == density]
    there = [value for value in values if value is not None]
    return over_seeds(there, n=len(there)) if there else not_measurable("no training seed has models near the target's loss")


def _number(result: Result) -> str:
    if result.value is None:
        return f"not measurable: {result.reason}"
    interval = "" if result.lo is None or result.hi is None else f" [{result.lo:.2g}, {result.hi:.2g}]"
    return f"{result.value:.2g}{interval}"


def kept_models(folder: Path, scope: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The models, as `measure_family` gives them, that an earlier run has kept in a folder; none without one.

    Raises what `read_kept_file` raises.
    """
    return read_kept_file(folder / KEPT, ["models"], scope).get("models", {})


def merged(kept: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both, by model; of one that is in both the new facts, and the values of both, unless it was trained anew in between."""
    found = {name: dict(model) for name, model in kept.items()}
    for name, model in new.items():
        old = found.get(name, {"loss": None})
        if (old["loss"], old.get("density")) != (model["loss"], model["density"]):
            old = {"values": {}, "fracture_tasks": []}
        tasks = model["fracture_tasks"] or old["fracture_tasks"]
        found[name] = {**model, "fracture_tasks": tasks, "values": {**old["values"], **model["values"]}}
    return found


def _named_folders(given: Sequence[Path], kept: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, Path]:
    """The folders by their names; each training seed has a model of the recipe `target`, here or kept."""
    folders: dict[str, Path] = {}
    for folder in given:
        if folders.setdefault(folder.name, folder.absolute()) != folder.absolute():
            raise ConfigError(f"{folder} and {folders[folder.name]} have one name in the tables; rename one of the folders")
    recipes: dict[int, list[str]] = {}
    for model in [*kept.values(), *map(recipe_of, folders.values())]:
        recipes.setdefault(model["seed"], []).append(model["recipe"])
    for seed, names in sorted(recipes.items()):
        if target not in names:
            raise UnknownNameError(f"recipe of training seed {seed}", target, names)
    return folders


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has not been measured, keep the numbers, and write the page's tables anew."""
    parser = argparse.ArgumentParser(description="Measures against the density of weights, at one loss.")
    parser.add_argument("folders", type=Path, nargs="+", help="model folders, several widths at each density")
    parser.add_argument("--target", required=True, help="recipe of the model whose loss all of a training seed are compared at")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--cells", type=Path, default=Path("doses.cells"), help="folder of the cells (default: %(default)s)")
    parser.add_argument("--tasks", nargs="*", default=["single_double_quote", "if_equals", "with_as"], help="tasks of the curves")
    parser.add_argument(
        "--only", nargs="*", default=MEASURES, choices=MEASURES, metavar="MEASURE", help=f"of {', '.join(MEASURES)}"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="the least that runs everything")
    options = parser.parse_args(arguments)
    scope = {"smoke": options.smoke, "tasks": list(options.tasks)}
    kept = kept_models(options.out, scope)
    folders = _named_folders(options.folders, kept, options.target)
    how = {"cache": options.cells, "workers": options.workers, "measures": options.only, "smoke": options.smoke}
    models = merged(kept, measure_family(ModelPair.open(), folders, tasks=options.tasks, **how))
    options.out.mkdir(parents=True, exist_ok=True)
    row = prevention_row(models, options.target)
    content = {"target": options.target, "scope": scope, "models": models, "claims": [row.to_plain()]}
    write_json(content, options.out / KEPT)
    if options.page is not None:
        write_tables(options.page, dose_page(models, options.target))


if __name__ == "__main__":
    main()
