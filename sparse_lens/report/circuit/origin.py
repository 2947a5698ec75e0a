"""Where a circuit is from: its search in words, the command that makes it again, and what an evaluation has said of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.learning import SearchConfig
from sparse_lens.report.numbers import Reading, read_number
from sparse_lens.report.strings import visible
from sparse_lens.tasks import available_tasks

_MOST_NUMBERS = 200


def search_command(circuit: Circuit, model: str) -> str | None:
    """The command line that finds `circuit` again in `model`; None for one that no command made, as far as its record tells."""
    search = circuit.search
    steps, seeds = _steps(search.get("config")), search.get("seeds")
    if steps is None or not isinstance(seeds, list) or not seeds or not isinstance(seeds[0], int):
        return None
    if circuit.task not in available_tasks(controls=True) or circuit.space.has_dictionaries:
        return None
    nodes = search.get("nodes")
    if circuit.edges is not None and not (isinstance(nodes, dict) and nodes.get("config") == search.get("config")):
        return None
    words = ["sparse-lens", "circuit", model, circuit.task, "--target", f"{circuit.target_loss:g}", *steps]
    words += ["--ablation", circuit.ablation] if circuit.ablation != "mean" else []
    words += ["--frozen-norms"] if circuit.frozen_norms else []
    words += ["--edges"] if circuit.edges is not None else []
    words += ["--seed", str(seeds[0] // 1000)] if seeds[0] else []
    return visible(shlex.join(words))


def _steps(config: Any) -> list[str] | None:
    """The options that give this configuration on the command line; None where none do."""
    if not isinstance(config, dict) or not isinstance(config.get("steps"), int) or config["steps"] < 1:
        return None
    steps = config["steps"]
    for make, option in ((SearchConfig, []), (SearchConfig.published, ["--published"])):
        if make(steps=steps).model_dump(mode="json") == config:
            return option + ([] if make().steps == steps else ["--steps", str(steps)])
    return None


def search_facts(circuit: Circuit) -> list[tuple[str, str]]:
    """The record of the search, one line a fact; long lists are counted."""
    return list(_facts(circuit.search, ""))


def _facts(content: Mapping[str, Any], where: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        label = visible(f"{where}{str(name).replace('_', ' ')}")
        if isinstance(value, Mapping) and depth < 3:
            yield from _facts(value, f"{label}: ", depth + 1)
        elif isinstance(value, list) and len(value) > 12:
            yield label, f"{len(value)} entries"
        else:
            yield label, visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))[:400]


def evaluation_numbers(evaluation: Mapping[str, Any]) -> list[tuple[str, Reading]]:
    """Every number of an evaluation's card with where it stands there, at most 200."""
    found = list(_numbers(evaluation, ""))
    return found[:_MOST_NUMBERS]


def _numbers(content: Mapping[str, Any], where: str, depth: int = 0) -> Iterator[tuple[str, Reading]]:
    for name, value in content.items():
        label = visible(f"{where}{str(name).replace('_', ' ')}")
        if isinstance(value, Mapping) and "value" not in value:
            if depth < 4:
                yield from _numbers(value, f"{label}: ", depth + 1)
        elif isinstance(value, Mapping) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield label, read_number(value)


def evaluation_number(evaluation: Mapping[str, Any], name: str) -> Reading | None:
    """The number called `name`, wherever in the card it stands; None where there is none."""
    return next((found for label, found in _numbers(evaluation, "") if label.split(": ")[-1] == name), None)


def verdict(evaluation: Mapping[str, Any]) -> list[str]:
    """The sentences of an evaluation's verdict."""
    found = evaluation.get("verdict")
    sentences = found.split("; ") if isinstance(found, str) else found if isinstance(found, list) else []
    return [visible(sentence) for sentence in sentences[:40]]
