"""Three side questions about models: few wires or few weights, hidden until shift, structure against capacity.

    python -m sparse_lens.comparisons.shipped.side_questions --out docs/mechanism --page docs/pages/claims-details.md

measures the shipped models of the default pair, or those that are named; models that are named alike but for `-seedN` are one
recipe, and rows are recipes. Structure against capacity is asked of arms of trained
models, each given once for every training seed (`--bias-only` asks nothing else):

    ... --bias-arm fixed=runs/arm-random --bias-arm narrow=runs/narrow --bias-arm narrow=runs/narrow-seed1 --baseline narrow

Cells are kept in `--cells`, and the command goes on where it stopped. The tables are printed, written to the page between their
markers, and their numbers kept in one file; arms that an earlier run has kept there stay.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.fracture.hidden_until_shift import LOSSES, ShiftPoint, hidden_until_shift
from sparse_lens.comparisons.mechanism.regression import wiring_table
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.predictability.capacity import structural_bias
from sparse_lens.comparisons.shipped.kept_file import read_kept_file
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.comparisons.shipped.side_cells import QUICK, SideModel, SideSize, measure_side
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.models_shipped import DEFAULT_PAIR, shipped_models
from sparse_lens.results import Result, write_json

KEPT = "side_questions.json"
WIRES, HIDDEN, BIAS = "wires", "hidden until shift", "structural bias"
"""The tables, by their markers."""

OUTCOME = "effective_concepts"
POOLED = "pooled"

FULL_DENSITY = 0.99
"""Models with at least this share of their weights are dense: one of them may be zero by chance."""

Results = Mapping[str, Mapping[str, Result]]

_QUICK_WINDOWS = 8
_SEED = re.compile(r"-seed\d+$")
_NEURONS = re.compile(r"all \d+ neurons")


def recipe_name(name: str) -> str:
    """A model's name without its training seed: `dose-5-160` of `dose-5-160-seed2`."""
    return _SEED.sub("", name)


def wires_of(models: Mapping[str, SideModel]) -> dict[str, dict[str, Result]]:
    """`wiring_table` of effective concepts: each recipe and, as "pooled", all weight-sparse ones, if there are any."""
    found: dict[bool, dict[str, dict[str, Result]]] = {}
    for dense in (False, True):
        wiring = {name: model.wiring for name, model in models.items() if (model.density >= FULL_DENSITY) == dense}
        found[dense] = wiring_table(wiring, OUTCOME, recipes={name: recipe_name(name) for name in wiring}) if wiring else {}
    alone = found[False] | found[True]
    pooled = {POOLED: found[False][POOLED]} if found[False] else {}
    return {recipe: alone[recipe] for recipe in dict.fromkeys(map(recipe_name, models))} | pooled


def shifts_of(models: Mapping[str, SideModel]) -> dict[str, dict[str, Result]]:
    """`hidden_until_shift` for each of the `LOSSES`, over the recipes that have a fracture, a task loss and this loss.

    A recipe is a point, at the means of its training seeds: models of one recipe are no independent draws.
    """
    return {loss: hidden_until_shift(list(_points(models, loss))) for loss in LOSSES}


def _points(models: Mapping[str, SideModel], lost: str) -> Iterator[ShiftPoint]:
    for name, of in _shift_by_recipe(models).items():
        fracture, loss, change = (of[key].value for key in ("fracture", "task_loss", lost))
        if fracture is not None and loss is not None and change is not None:
            yield ShiftPoint(name, fracture, loss, change)


def _shift_by_recipe(models: Mapping[str, SideModel]) -> dict[str, dict[str, Result]]:
    """By recipe the mean of every number over its training seeds, with the extremes; not measurable where one is not."""
    found = {}
    for recipe in dict.fromkeys(map(recipe_name, models)):
        members = [model.shift for name, model in models.items() if recipe_name(name) == recipe]
        found[recipe] = {key: _over_seeds([shift[key] for shift in members]) for key in members[0]}
    return found


def _over_seeds(results: Sequence[Result]) -> Result:
    if len(results) == 1:
        return results[0]
    if failed := next((result for result in results if result.value is None), None):
        return failed
    return over_seeds([result.value for result in results if result.value is not None], n=results[0].n, null=results[0].null)


def wires_page(table: Results) -> str:
    """One row for each recipe: standardised coefficients and R², with their intervals and nulls.

    A column without any number is left out, as that of weights is where all sparse models have equally many.
    """
    columns = {"fan-in": "coefficient_fan_in", "fan-out": "coefficient_fan_out"}
    columns |= {"weights": "coefficient_weights", "R² of wires": "r2_wires", "R² of weights": "r2_weights", "R² of all": "r2_all"}
    columns = {told: name for told, name in columns.items() if any(found[name].measurable for found in table.values())}
    rows = _head(["recipe", "seeds", "neurons", "effective concepts", *columns])
    for name, found in table.items():
        mean = found[f"mean_{OUTCOME}"]
        numbers = [_with_null(found[column]) for column in columns.values()]
        rows.append(_row([_model(name), str(mean.seeds), f"{mean.n:,}", str(mean), *numbers]))
    wanted = {_model(name): [found[column] for column in columns.values()] for name, found in table.items()}
    return "\n".join([*rows, *_missing(wanted)])


def shift_page(models: Mapping[str, SideModel], correlations: Results) -> str:
    """One row for each recipe, what it loses when something changes; below, rank correlations with fracture for each loss."""
    columns = ("fracture", "accuracy", "task_loss", *LOSSES)
    rows, recipes = _head(["recipe", "seeds", *map(_told, columns)]), _shift_by_recipe(models)
    for name, shift in recipes.items():
        rows.append(_row([_model(name), str(shift["accuracy"].seeds), *(str(shift[column]) for column in columns)]))
    rows += _missing({_model(name): [shift[column] for column in columns] for name, shift in recipes.items()})
    names = ("fracture_with_lost", "fracture_with_loss", "fracture_with_lost_given_loss")
    told = ("fracture with it", "fracture with task loss", "fracture with it, given task loss")
    rows += ["", *_head(["what is lost", "recipes", *told])]
    for loss, found in correlations.items():
        rows.append(_row([_told(loss), str(sum(1 for _ in _points(models, loss))), *(str(found[name]) for name in names)]))
    return "\n".join([*rows, *_missing({_told(loss): [found[name] for name in names] for loss, found in correlations.items()})])


def bias_page(table: Results, baseline: str) -> str:
    """One row for each arm; the null of a difference is the spread that seeds alone make."""
    rows = _head(["arm", "seeds", "nonzeros", "tokens", "loss", f"loss above {baseline}"])
    for name, found in table.items():
        cells = [name, str(found["loss"].seeds), *(f"{found[count].value or 0:,.0f}" for count in ("nonzeros", "tokens"))]
        rows.append(_row([*cells, str(found["loss"]), _with_null(found["loss_above_baseline"])]))
    return "\n".join([*rows, *_missing({name: [found["loss_above_baseline"]] for name, found in table.items()})])


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---|" + "---:|" * (len(names) - 1)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _model(name: str) -> str:
    return "weight-sparse models, pooled" if name == POOLED else f"`{name}`"


def _told(name: str) -> str:
    return name.replace("_", " ")


def _with_null(result: Result) -> str:
    return str(result) if result.null is None else f"{result}; null {result.null:.2g}"


def _missing(rows: Mapping[str, Sequence[Result]]) -> list[str]:
    """Lines below a table that say why numbers of its rows are not there: the rows behind each reason, whatever their neurons."""
    names: dict[str, list[str]] = {}
    for name, results in rows.items():
        reasons = [_NEURONS.sub("all neurons", result.reason) for result in results if result.reason is not None]
        for reason in dict.fromkeys(reasons):
            names.setdefault(reason, []).append(name)
    told = [f"{reason} ({', '.join(of)})" for reason, of in names.items()]
    return ["", f"Not measurable: {'; '.join(told)}."] if told else []


def named_models(models: Sequence[str]) -> dict[str, Path]:
    """Folders by name of shipped models and of folders; of none, the shipped models of the default pair.

    Raises `UnknownNameError` for a model that is neither, `ConfigError` for two folders of one name.
    """
    if not models:
        return {name: folder for name, folder in shipped_models().items() if folder.parent.name == DEFAULT_PAIR}
    folders: dict[str, Path] = {}
    for model in models:
        folder = _model_folder(model)
        if folders.setdefault(folder.name, folder) != folder:
            raise ConfigError(f"{folder} and {folders[folder.name]} have one name in the tables; rename one of the folders")
    return folders


def _model_folder(name_or_path: str) -> Path:
    shipped = shipped_models()
    if name_or_path in shipped:
        return shipped[name_or_path]
    folder = Path(name_or_path).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise UnknownNameError("model (and no folder with a config.json)", name_or_path, shipped)
    return folder


def named_arms(arms: Sequence[str], baseline: str | None) -> dict[str, list[Path]]:
    """Folders by arm, of "NAME=FOLDER" each; an arm has as many as it is named times.

    Raises `ConfigError` for another form, or if there is a baseline without arms or the reverse; `UnknownNameError` for a
    `baseline` that is no arm, or a folder that is none.
    """
    found: dict[str, list[Path]] = {}
    for arm in arms:
        name, _, folder = arm.partition("=")
        if not name or not folder:
            raise ConfigError(f"an arm is NAME=FOLDER, got {arm!r}; give as many as it has training seeds")
        found.setdefault(name, []).append(_model_folder(folder))
        if len(set(found[name])) < len(found[name]):
            raise ConfigError(f"arm {name!r} has the folder {folder} twice; give each training seed once")
    if bool(found) != (baseline is not None):
        raise ConfigError(f"arms and a baseline go together, got {len(found)} arms and {baseline or 'no baseline'}")
    if baseline is not None and baseline not in found:
        raise UnknownNameError("arm", baseline, found)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has not been measured, print the tables, keep their numbers, and write the page's tables anew."""
    options = _parser().parse_args(arguments)
    pair, arms = ModelPair.open(), named_arms(options.bias_arm, options.baseline)
    if options.bias_only and not arms:
        raise ConfigError("--bias-only needs arms: --bias-arm NAME=FOLDER for each of their models, and a --baseline")
    content, tables = read_kept_file(options.out / KEPT), {}
    if not options.bias_only:
        answers, tables = _of_models(pair, options)
        content |= answers
    if options.baseline is not None:
        heldout = pair.windows["heldout"][: _QUICK_WINDOWS if options.quick else None]
        bias = structural_bias(arms, heldout, baseline=options.baseline)
        content[BIAS] = {"quick": options.quick, "baseline": options.baseline, "arms": bias}
        tables[BIAS] = bias_page(bias, options.baseline)
    for name, table in tables.items():
        sys.stdout.write(f"{name}\n\n{table}\n\n")
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(content, options.out / KEPT)
    if options.page is not None:
        write_tables(options.page, tables)


def _of_models(pair: ModelPair, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The first two questions, of models: what is kept, and the tables."""
    how: dict[str, Any] = {"cache": options.cells, "workers": options.workers}
    models, read = measure_side(pair, named_models(options.models), QUICK if options.quick else SideSize(), **how)
    wires, shifts = wires_of(models), shifts_of(models)
    tables = {WIRES: wires_page(wires), HIDDEN: shift_page(models, shifts)}
    facts = {name: {"density": model.density, "weights": model.wiring.weights, **model.shift} for name, model in models.items()}
    return {"scope": {"quick": options.quick, **read}, "models": facts, WIRES: wires, HIDDEN: shifts}, tables


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Few wires or few weights, hidden until shift, structure against capacity.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="shipped models or folders (default: those of the default pair)")
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    parser.add_argument("--cells", type=Path, default=Path("side.cells"), help="folder of the cells (default: %(default)s)")
    parser.add_argument(
        "--bias-arm",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a trained model of an arm; repeatable, for its seeds",
    )
    parser.add_argument("--baseline", default=None, metavar="NAME", help="the arm that the others are held against")
    parser.add_argument(
        "--bias-only",
        action="store_true",
        help="structure against capacity alone; the file keeps its other answers",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the least that runs everything")
    return parser


if __name__ == "__main__":
    main()
