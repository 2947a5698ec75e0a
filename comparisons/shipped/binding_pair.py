"""`assemble_binding`: the pair that binds, with its training seeds, as it is shipped.

    for seed in 0 1 2
    do python -m sparse_lens.comparisons.binding.training --out MODELS --seed $seed; done
    python -m sparse_lens.comparisons.shipped.binding_pair MODELS --out sparse_lens/models_shipped/binding

All models must pass the gate of `binding_report`. Windows are the main pair's, cut to the models' context. Without `binding-dense`
the matched model stands in both dense roles; of further seeds the sparse and the matched model are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.binding.drawing import MOST_VARIABLES
from sparse_lens.comparisons.binding.measuring import FORMS, binding_report
from sparse_lens.comparisons.binding.training import ROLES, SHARE, binding_recipes
from sparse_lens.comparisons.shipped.assembling import common_tasks, copy_packed
from sparse_lens.comparisons.shipped.cards import task_accuracies, write_card
from sparse_lens.errors import DataError
from sparse_lens.files import check_writable, new_directory
from sparse_lens.hooks import load
from sparse_lens.models_shipped import CORPUS_FILE, PAIR_FILE, WINDOWS_FILE, pair_windows, write_windows
from sparse_lens.results import Result

ABOUT = {
    "sparse": "weight-sparse without AbsTopK, trained on binding programs and Python",
    "dense": "dense twin of binding-sparse: same shape, tokens and order",
    "dense_matched": "dense, half as wide, same tokens and order, within 0.05 nats of binding-sparse",
}
_COMMAND = "python -m sparse_lens.comparisons.binding.training --out FOLDER"
_MATCHED = ("sparse", "dense_matched")
_READ = (
    f"{SHARE:.0%} of the training rows are binding programs of 2 to {MOST_VARIABLES} variables, the others the Python source and "
    f"generated programs that the {CORPUS_FILE} of the pair 'python' lists"
)


def assemble_binding(models: Path, folder: str | Path) -> None:
    """Write the pair of `models / binding-sparse` and so on; raises `DataError` if one fails the gate, or is missing."""
    sources = {role: models / binding_recipes()[role].name for role in ROLES}
    sources = {role: source for role, source in sources.items() if source.is_dir()}
    if missing := set(_MATCHED) - set(sources):
        raise DataError(f"{models} has no model for {', '.join(sorted(missing))}; train it with the module binding.training")
    seeds = further_seeds(models)
    check_writable(folder, [*(source.name for source in sources.values()), WINDOWS_FILE, PAIR_FILE])
    windows, context = pair_windows(), load(sources["sparse"]).model_config.block_size
    cut = {"reference": windows["reference"][:, :context], "heldout": windows["heldout"][:, : context + 1]}
    with new_directory(folder) as staging:
        accuracies = {role: _ship(role, source, staging, cut["heldout"]) for role, source in sources.items()}
        for seed in seeds:
            for role, name in seed.items():
                _ship(role, models / name, staging, cut["heldout"])
        write_windows(staging / WINDOWS_FILE, cut["reference"], cut["heldout"])
        names = {"dense": sources["dense_matched"].name} | {role: source.name for role, source in sources.items()}
        record = {"format": 1} | names | {"dictionaries": [], "tasks": common_tasks(accuracies), "windows_source": "stdlib"}
        record |= {"seeds": seeds} if seeds else {}
        (staging / PAIR_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def further_seeds(models: Path) -> list[dict[str, str]]:
    """Names of the sparse and the matched model of seeds 1, 2, ... by role, as far as both are in the folder `models`."""
    found: list[dict[str, str]] = []
    while True:
        seed = {role: binding_recipes()[role].with_seed(len(found) + 1).name for role in _MATCHED}
        if not all((models / name).is_dir() for name in seed.values()):
            return found
        found.append(seed)


def _ship(role: str, source: Path, staging: Path, heldout: np.ndarray) -> dict[str, Result]:
    """Pack a model into `staging` with its card; its accuracies on tasks."""
    place = staging / source.name
    copy_packed(source, place)
    bridge = load(place)
    accuracies = task_accuracies(bridge)
    write_card(
        place,
        heldout,
        about=ABOUT[role],
        command=_command(source),
        data=_READ,
        more={"binding_accuracies": {name: found.to_json() for name, found in binding_accuracies(bridge).items()}},
        accuracies=accuracies,
    )
    return accuracies


def _command(source: Path) -> str:
    seed = json.loads((source / "training.json").read_text(encoding="utf-8"))["config"]["seed"]
    return _COMMAND + (f" --seed {seed}" if seed else "")


def binding_accuracies(bridge: Any) -> dict[str, Result]:
    """Accuracy among a program's own values, by form; raises `DataError` for one below the gate."""
    found = {f"{kind}_{n}_{lines}": binding_report(bridge, kind=kind, n_vars=n, distractors=lines) for kind, n, lines in FORMS}
    failed = [f"{name} {report['accuracy'].value:.2f}" for name, report in found.items() if not _passes(report)]
    if failed:
        raise DataError(f"binding accuracies below the gate of {ACCURACY_GATE:g}: {', '.join(failed)}; train longer")
    return {name: report["accuracy"] for name, report in found.items()}


def _passes(report: Mapping[str, Result]) -> bool:
    return (report["accuracy"].value or 0.0) >= ACCURACY_GATE


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the shipped pair from trained models."""
    parser = argparse.ArgumentParser(description="Put a trained binding pair into a folder as it is shipped.")
    parser.add_argument("models", type=Path, help="folder of binding-sparse and binding-dense")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pair")
    options = parser.parse_args(arguments)
    assemble_binding(options.models, options.out)


if __name__ == "__main__":
    main()
