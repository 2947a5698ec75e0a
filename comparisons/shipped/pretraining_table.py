"""Does training on Python first make subroutines easier to take apart? Models trained and measured, over training seeds.

    python -m sparse_lens.comparisons.shipped.pretraining_table MODELS --data DATA --out OUT --page docs/pages/claims-details.md

trains both arms of every recipe and seed into the folder MODELS from the token data in DATA, learns their masks, prints the table,
keeps its numbers and writes the page's table anew. Models, and what was measured in `--cells`, are kept: the command goes on where
it stopped. Recipes that the file in OUT holds already stay in the table, so that one can be added.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.compositionality.pretraining import COMPARED, pretraining_effect
from sparse_lens.comparisons.compositionality.training import ARMS, SUBROUTINES, train_arm
from sparse_lens.comparisons.compositionality.weight_masks import CHEAP, MaskConfig
from sparse_lens.comparisons.instrument.verdicts import difference_over_seeds
from sparse_lens.comparisons.jobs import Job, run_jobs
from sparse_lens.comparisons.shipped.kept_file import read_kept_file
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.data import TokenData
from sparse_lens.errors import ConfigError
from sparse_lens.hooks import load
from sparse_lens.results import Result, from_plain, not_measurable, write_json
from sparse_lens.training.recipes import get_recipe

KEPT, TABLE = "pretraining.json", "pretraining"
"""The file of the numbers, and the table's marker."""

RECIPES = ("dose-20-64", "dose-100-32", "subroutines-100-64")
"""A weight-sparse model, a dense one of about its loss on Python, and a dense one that learns the subroutines; all small."""

Results = Mapping[str, Result]

_CELLS = "sparse_lens.comparisons.shipped.pretraining_table"
"""This module, by the name that it has not when it is run: its cells are the same ones then."""


def train_cell(data: str, folder: str, recipe: str, seed: int, arm: str, steps: int, python_first: int) -> dict[str, Any]:
    """Train one arm (`train_arm`) and give its folder and its loss on held-out Python, in nats a token: a cell."""
    config = get_recipe(recipe).with_seed(seed).model_copy(update={"steps": steps})
    trained = train_arm(arm, config, TokenData(Path(data)), Path(folder), python_first=python_first, progress=False)
    return {"folder": folder, "loss": trained.loss}


def effect_cell(pretrained: str, alone: str, config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Result]:
    """`pretraining_effect` of two trained folders: a cell."""
    return pretraining_effect(pretrained, alone, *SUBROUTINES, config=MaskConfig(**config), seeds=seeds, progress=False)


def measure(
    models: Path,
    data: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    python_first: int | None = None,
    masks: MaskConfig | None = None,
    mask_seeds: Sequence[int] = (0, 1, 2),
    **how: Any,
) -> dict[str, list[Results]]:
    """By recipe the numbers of `pretraining_effect` for every training seed; `how` is that of `run_jobs`.

    `steps` are the recipe's if not given, of which Python takes `python_first` (half) in the pretrained arm. Raises
    `UnknownNameError` for an unknown recipe, and what training and masks raise.
    """
    trainings = [
        job
        for recipe in recipes
        for seed in seeds
        for job in _training_jobs(models, data, recipe, seed, steps or get_recipe(recipe).steps, python_first)
    ]
    trained = run_jobs(trainings, **how)
    config = (masks or MaskConfig()).model_dump(mode="json")
    effects = []
    for pretrained, alone in zip(trained[::2], trained[1::2], strict=True):
        folders = {arm: str(record["folder"]) for arm, record in zip(ARMS, (pretrained, alone), strict=True)}
        depends = [model_fingerprint(load(folder)) for folder in folders.values()]
        name = f"masks of {Path(folders['alone']).name.replace('-alone', '')}"
        effects.append(Job(name, f"{_CELLS}:effect_cell", folders | {"config": config, "seeds": list(mask_seeds)}, depends))
    found = iter(run_jobs(effects, **how))
    return {recipe: [from_plain(next(found)) for _ in seeds] for recipe in recipes}


def _training_jobs(models: Path, data: Path, recipe: str, seed: int, steps: int, python_first: int | None) -> list[Job]:
    """A job for each of the `ARMS`, in their order."""
    first = steps // 2 if python_first is None else python_first
    reads = [str(TokenData(data).manifest["config_hash"])]
    jobs = []
    for arm in ARMS:
        name = f"{recipe}-{arm}-seed{seed}"
        place = {"data": str(data.absolute()), "folder": str((models / name).absolute())}
        of = {"recipe": recipe, "seed": seed, "arm": arm, "steps": steps, "python_first": first}
        jobs.append(Job(f"train {name}", f"{_CELLS}:train_cell", place | of, reads))
    return jobs


def over_trainings(effects: Sequence[Results]) -> dict[str, Result]:
    """Each number over the training seeds: of an arm the mean with the extremes, of a difference Student's 95 % interval.

    Not measurable where it is not with every seed.
    """
    found: dict[str, Result] = {}
    for name in effects[0]:
        of = [effect[name] for effect in effects]
        values = [result.value for result in of if result.value is not None]
        if len(values) < len(of):
            found[name] = not_measurable("; ".join(dict.fromkeys(result.reason for result in of if result.reason)))
        elif name.startswith("difference_"):
            found[name] = difference_over_seeds(values)
        else:
            found[name] = over_seeds(values, n=of[0].n)
    return found


def page(effects: Mapping[str, Sequence[Results]]) -> str:
    """The table: every recipe with both arms and their difference."""
    head = ["recipe", "measure", "Python first", "subroutines alone", "difference", "trainings"]
    rows = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for recipe, of in effects.items():
        found, missing = over_trainings(of), []
        for measured in COMPARED:
            sides = [found[f"{part}_{measured}"] for part in (*ARMS, "difference")]
            rows.append("| " + " | ".join([recipe, f"`{measured}`", *map(str, sides), str(len(of))]) + " |")
            missing += [f"{arm}: {side.reason}" for arm, side in zip(ARMS, sides, strict=False) if side.reason]
        rows += [f"| {recipe} | no number, {reason} |||||" for reason in dict.fromkeys(missing)]
    return "\n".join(rows)


def kept_effects(folder: Path, scope: Mapping[str, Any]) -> dict[str, list[Results]]:
    """What an earlier run has kept in a folder, by recipe; none without one. Raises what `read_kept_file` raises."""
    return read_kept_file(folder / KEPT, ["effects"], scope).get("effects", {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, print the table, keep its numbers, and write the page's table anew."""
    options = _parser().parse_args(arguments)
    shape: dict[str, Any] = {"steps": options.steps, "python_first": options.python_first}
    if options.quick:
        shape |= {"masks": CHEAP, "mask_seeds": (0,)}
    if options.seeds < 1:
        raise ConfigError(f"at least one training seed is needed, got {options.seeds}")
    recipes, seeds = options.recipe or list(RECIPES), list(range(options.seeds))
    how = {"cache": options.cells, "workers": options.workers}
    scope = {"quick": options.quick, "steps": options.steps, "python_first": options.python_first, "seeds": seeds}
    effects = kept_effects(options.out, scope)
    effects |= measure(options.models, options.data, recipes, seeds, **shape, **how)
    table = page(effects)
    sys.stdout.write(f"{table}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    content = {"scope": scope, "effects": effects, "over_trainings": {name: over_trainings(of) for name, of in effects.items()}}
    write_json(content, options.out / KEPT)
    if options.page is not None:
        write_tables(options.page, {TABLE: table})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train models on two subroutines alone and after Python, and compare their structural compositionality.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("models", type=Path, help="folder of the models")
    parser.add_argument(
        "--data", type=Path, required=True, help="corpus folder of `sparse-lens train`, in the shipped pair's tokens"
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {KEPT}")
    parser.add_argument("--page", type=Path, default=None, help="page whose table, between its markers, is written anew")
    parser.add_argument("--cells", type=Path, default=Path("pretraining.cells"), help="folder of what was measured")
    parser.add_argument("--recipe", action="append", default=[], help=f"repeatable; default: {', '.join(RECIPES)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many training seeds")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps, instead of the recipe's")
    parser.add_argument("--python-first", type=int, default=None, help="steps on Python of the pretrained arm; default: half")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="one mask seed, masks of rows")
    return parser


if __name__ == "__main__":
    main()
