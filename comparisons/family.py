"""The family of trained models: a card for each, kept as JSON, and the table of all of them.

    python -m sparse_lens.comparisons.family --data DATA --models MODELS --out docs/family --page docs/pages/family.md

measures every model folder below MODELS that has no card yet, writes its results to the folder of results, and the table anew. The
weights of most of them are not kept: `sparse-lens train --recipe NAME --corpus python --seed N` makes them again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparse_lens.comparisons.assembling import corpus_sentence, pair_source_windows, recipe_command, training_command
from sparse_lens.comparisons.cards import write_card
from sparse_lens.comparisons.circuit_sizes import ACCURACY_GATE
from sparse_lens.data import TokenData
from sparse_lens.errors import DataError
from sparse_lens.files import new_file
from sparse_lens.models_shipped import CARD_FILE

_KEPT = ("loss", "bits_per_byte", "matrix_nonzeros", "matrix_parameters", "tokens", "seconds", "seed", "command", "versions")


def collect_family(models: Path, data: TokenData, out: Path) -> list[dict[str, Any]]:
    """Measure the models below `models` that have no card, and write one JSON file for each into `out`; returns their contents."""
    folders = sorted(path.parent for path in models.glob("*/training.json"))
    if not folders:
        raise DataError(f"there is no trained model below {models}: no folder there has a training.json")
    heldout: np.ndarray | None = None
    results = []
    for folder in tqdm(folders, desc="models"):
        if not (folder / CARD_FILE).is_file():
            heldout = pair_source_windows(data, "stdlib")["heldout"] if heldout is None else heldout
            command = training_command(recipe_command(folder), data.manifest)
            write_card(folder, heldout, about=_about(folder), command=command, data=corpus_sentence(data.manifest))
        results.append(_result(folder))
        out.mkdir(parents=True, exist_ok=True)
        with new_file(out / f"{folder.name}.json") as path:
            path.write_text(json.dumps(results[-1], indent=1) + "\n", encoding="utf-8")
    return results


def _result(folder: Path) -> dict[str, Any]:
    """What is kept of a model: its card's figures, its recipe, and its curve."""
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    curve = [[row["step"], round(row["loss"], 4)] for row in training["history"]]
    values = {task: found["value"] for task, found in card["task_accuracies"].items()}
    accuracies = {task: round(value, 4) for task, value in values.items() if value is not None}
    kept = {name: card[name] for name in _KEPT}
    return {"name": folder.name, **kept, "task_accuracies": accuracies, "recipe": training["config"], "curve": curve}


def _about(folder: Path) -> str:
    config = json.loads((folder / "training.json").read_text(encoding="utf-8"))["config"]
    method = "weight-dense" if config["sparsity"] is None else f"weight-sparse by {config['sparsity']['method']}"
    return f"{method}, {'AbsTopK' if config['model'].get('afrac') else 'no AbsTopK'}, {config['model']['n_layer']} layers"


def read_family(folder: Path) -> list[dict[str, Any]]:
    """The kept results, sorted by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def family_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, one row for each recipe: means over its seeds, and their range where there are several."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        by_recipe[result["name"].removesuffix(f"-seed{result['seed']}")].append(result)
    rows = [
        "| recipe | seeds | million tokens | nonzero matrix weights | loss (nats/token) | bits/byte | tasks at 90 % | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in by_recipe.items():
        done = [sum(value >= ACCURACY_GATE for value in result["task_accuracies"].values()) for result in found]
        cells = [
            f"`{name}`",
            ", ".join(str(result["seed"]) for result in found),
            f"{found[0]['tokens'] / 1e6:.1f}",
            f"{found[0]['matrix_nonzeros']:,} of {found[0]['matrix_parameters']:,}",
            _spread([result["loss"] for result in found]),
            _spread([result["bits_per_byte"] for result in found]),
            ", ".join(map(str, done)),
            f"{statistics.mean(result['seconds'] for result in found) / 60:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _spread(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def accuracy_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of two-way accuracies, one row for each task, one column for each model."""
    tasks = list(results[0]["task_accuracies"])
    rows = ["| task | " + " | ".join(f"`{result['name']}`" for result in results) + " |", "|---" * (1 + len(results)) + "|"]
    for task in tasks:
        found = [result["task_accuracies"].get(task) for result in results]
        rows.append(f"| {task} | " + " | ".join("" if value is None else f"{100 * value:.1f}" for value in found) + " |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, keep, and tabulate."""
    parser = argparse.ArgumentParser(description="Cards, kept results, and the table of a family of trained models.")
    parser.add_argument("--data", type=Path, required=True, help="the corpus' folder")
    parser.add_argument("--models", type=Path, required=True, help="folder of the trained models' folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, a JSON file for each model")
    parser.add_argument("--page", type=Path, default=None, help="page whose tables, between their markers, are written anew")
    options = parser.parse_args(arguments)
    collect_family(options.models, TokenData(options.data), options.out)
    if options.page is not None:
        write_tables(options.page, read_family(options.out))


def write_tables(page: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Put the tables between the markers `<!-- table: NAME -->` and `<!-- end -->` of a page."""
    main_set = [result for result in results if result["name"].startswith("python-")]
    arms = [result for result in results if result["name"].startswith("arm-")]
    tables = {"main": family_table(main_set), "arms": family_table(arms), "accuracies": accuracy_table(main_set)}
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- table: {name} -->\n")
        if not found or "<!-- end -->" not in rest:
            raise DataError(f"{page} has no marker <!-- table: {name} --> followed by <!-- end -->")
        text = before + found + table + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    with new_file(page) as path:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
