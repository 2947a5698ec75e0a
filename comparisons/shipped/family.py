"""The family of trained models: results of each, kept as JSON, the weights of some, and the tables of all.

    python -m sparse_lens.comparisons.shipped.family MODELS --out docs/family --keep 'python-*-seed*' --page docs/pages/family.md

measures every model folder below MODELS that has no results yet (half a minute each; the command goes on where it stopped),
keeps packed weights of those whose name matches `--keep`, and writes the page's tables anew. All models
are measured on the same windows, those of the shipped pair. `sparse-lens train --recipe NAME --corpus python --seed N` makes any
of them again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.pair import model_facts
from sparse_lens.comparisons.shipped.assembling import copy_packed, recipe_command
from sparse_lens.comparisons.shipped.cards import bits_per_byte, task_accuracies, write_card
from sparse_lens.comparisons.shipped.page_tables import write_tables
from sparse_lens.data import load_tokenizer
from sparse_lens.errors import DataError
from sparse_lens.files import new_directory, new_file
from sparse_lens.hooks import load
from sparse_lens.models_shipped import CORPUS_FILE, pair_windows

Family = Sequence[Mapping[str, Any]]


def collect_family(models: Path, out: Path, *, keep: str | None = None) -> list[dict[str, Any]]:
    """Measure each model below `models` that has no results in `out`, and write them there; returns all that are there.

    Packed weights of models whose name matches the pattern `keep` go to `out/weights`. Raises `DataError` if there is no model.
    """
    folders = sorted(path.parent for path in models.glob("*/training.json") if (path.parent / "config.json").is_file())
    if not folders:
        raise DataError(f"there is no trained model below {models}: no folder there has a training.json and a config.json")
    out.mkdir(parents=True, exist_ok=True)
    for folder in tqdm(folders, desc="models"):
        if not (out / f"{folder.name}.json").is_file():
            with new_file(out / f"{folder.name}.json") as path:
                path.write_text(json.dumps(measure_model(folder), indent=1) + "\n", encoding="utf-8")
        if keep is not None and fnmatch(folder.name, keep) and not (out / "weights" / folder.name).is_dir():
            keep_weights(folder, out / "weights" / folder.name)
    return read_family(out)


def measure_model(folder: Path) -> dict[str, Any]:
    """What is kept of a model: losses on held-out real files, accuracies on all tasks, its recipe, and its curve.

    `loss` (nats per token) and `bits_per_byte` are on the shipped pair's held-out windows, `validation_loss` is the last of the
    training's own, on files of all sources.
    """
    bridge, training = load(folder), json.loads((folder / "training.json").read_text(encoding="utf-8"))
    heldout = pair_windows()["heldout"]
    facts = model_facts(bridge, heldout)
    loss = facts.pop("loss")
    last = training["history"][-1]
    return {
        "name": folder.name,
        "command": f"sparse-lens train --recipe {recipe_command(folder)} --corpus python --threads {training['threads']}",
        "seed": training["config"]["seed"],
        **{name: int(fact.value or 0) for name, fact in facts.items()},
        "loss": loss.value,
        "loss_result": loss.to_json(),
        "bits_per_byte": bits_per_byte(loss.value or 0.0, heldout, load_tokenizer(folder)),
        "validation_loss": last["loss"],
        "dead_neurons": last.get("dead_neurons"),
        **{name: training[name] for name in ("tokens", "seconds", "versions")},
        "task_accuracies": {task: round(found.value or 0.0, 6) for task, found in task_accuracies(bridge).items()},
        "recipe": training["config"],
        "curve": [[row["step"], round(row["loss"], 4)] for row in training["history"] if "loss" in row],
    }


def keep_weights(folder: Path, target: Path) -> None:
    """Pack a trained model's weights (float16, bit masks) into `target`, with its tokenizer, its record and a card."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    with new_directory(target) as staging:
        place = staging / folder.name
        copy_packed(folder, place)
        command = f"sparse-lens train --recipe {recipe_command(folder)} --corpus python --threads 1"
        read = card["data"].replace(f"are in {CORPUS_FILE}", f"are in the {CORPUS_FILE} of the shipped pair")
        write_card(place, pair_windows()["heldout"], about=card["about"], command=command, data=read)
        for path in place.iterdir():
            path.rename(staging / path.name)
        place.rmdir()


def read_family(folder: Path) -> list[dict[str, Any]]:
    """The kept results, sorted by recipe and seed."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: (_recipe(result), result["seed"]))


def _recipe(result: Mapping[str, Any]) -> str:
    return str(result["name"]).removesuffix(f"-seed{result['seed']}")


def family_table(results: Family) -> str:
    """A Markdown table, one row for each recipe: means over its seeds, and their range where there are several."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        by_recipe[_recipe(result)].append(result)
    n_tasks = max((len(result["task_accuracies"]) for result in results), default=0)
    rows = [
        "| recipe | seeds | million tokens | nonzero matrix weights | loss (nats/token) | bits/byte | loss, all sources "
        f"| tasks of {n_tasks} at 90 % | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in by_recipe.items():
        done = [sum(value >= ACCURACY_GATE for value in result["task_accuracies"].values()) for result in found]
        cells = [
            f"`{name}`",
            ", ".join(str(result["seed"]) for result in found),
            f"{found[0]['tokens'] / 1e6:.1f}",
            f"{found[0]['matrix_nonzeros']:,} of {found[0]['matrix_parameters']:,}",
            *(_spread([result[field] for result in found]) for field in ("loss", "bits_per_byte", "validation_loss")),
            ", ".join(map(str, done)),
            f"{statistics.mean(result['seconds'] for result in found) / 60:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def accuracy_table(results: Family) -> str:
    """A Markdown table of two-way accuracies in per cent, one row for each task, one column for each model."""
    tasks = list(dict.fromkeys(task for result in results for task in result["task_accuracies"]))
    rows = ["| task | " + " | ".join(f"`{result['name']}`" for result in results) + " |", "|---" * (1 + len(results)) + "|"]
    for task in tasks:
        found = [result["task_accuracies"].get(task) for result in results]
        rows.append(f"| {task} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in found) + " |")
    return "\n".join(rows)


def measurable_everywhere(results: Family) -> list[str]:
    """Tasks that every one of `results` does with an accuracy of at least 90 %."""
    tasks = results[0]["task_accuracies"] if results else {}
    return [task for task in tasks if all(result["task_accuracies"].get(task, 0) >= ACCURACY_GATE for result in results)]


def family_tables(results: Family) -> dict[str, str]:
    """What goes between the markers of the family's page."""
    main_set = [result for result in results if result["name"].startswith("python-")]
    arms = [result for result in results if result["name"].startswith("arm-")]
    common = measurable_everywhere(main_set)
    return {
        "main": family_table(main_set),
        "arms": family_table(arms),
        "accuracies": accuracy_table(main_set),
        "measurable": f"{len(common)} tasks are measurable in every model of the main set: {', '.join(common)}.",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, and tabulate."""
    parser = argparse.ArgumentParser(description="Results, kept weights, and tables of a family of trained models.")
    parser.add_argument("models", type=Path, help="folder of the trained models' folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, a JSON file for each model")
    parser.add_argument("--keep", default=None, metavar="PATTERN", help="keep packed weights of models of such a name")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    options = parser.parse_args(arguments)
    results = collect_family(options.models, options.out, keep=options.keep)
    if options.page is not None:
        write_tables(options.page, family_tables(results))


if __name__ == "__main__":
    main()
