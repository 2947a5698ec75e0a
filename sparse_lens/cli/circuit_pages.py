"""`sparse-lens report CIRCUIT…`: the page of circuits that were saved in folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_lens.cli.printing import command_line, print_line

DEFAULT_PAGE = Path("circuit.html")
RECORD, EVALUATION = "circuit.json", "card.json"
"""Files of a circuit's folder; the former's name is also in `sparse_lens.circuits`, which takes seconds to import."""


def is_circuit(path: Path) -> bool:
    """Whether `path` is the folder of a circuit."""
    return (path / RECORD).is_file()


def report_circuits(options: argparse.Namespace, folders: Sequence[Path]) -> None:
    """Write the page of the circuits in `folders`."""
    from sparse_lens.errors import OutputError
    from sparse_lens.files import check_writable
    from sparse_lens.report.circuit.page import write_circuit_page

    page = DEFAULT_PAGE if options.out is None else options.out
    if page.is_dir():
        raise OutputError(f"cannot write the page {page}: a folder of that name is in the way; name a file, such as {page}.html")
    check_writable(page)
    models = _Models(list(options.model or ()), list(options.dictionary or ()))
    names = _names(folders)
    shown = [_look(options, folder, name, models) for folder, name in zip(folders, names, strict=True)]
    write_circuit_page(shown, page, command=command_line())
    print_line(f"wrote {page}")


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with as much of their paths as tells them apart."""
    parts = [folder.absolute().parts[1:] for folder in folders]
    for depth in range(1, max(len(path) for path in parts) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _look(options: argparse.Namespace, folder: Path, name: str, models: _Models) -> Any:
    from sparse_lens.circuits import Circuit
    from sparse_lens.circuits.checked import read_json_object
    from sparse_lens.report.circuit.page import look_at

    record = read_json_object(folder / RECORD)
    model, bridge = models.of(str(record.get("model")), folder)
    circuit = Circuit.load(folder, bridge, models.dictionaries(model, record.get("space")))
    prompts, remark = _prompts(options, bridge, circuit.task)
    evaluation = _evaluation(folder, circuit)
    return look_at(bridge, circuit, prompts, name=name, model=model, evaluation=evaluation, remark=remark, progress=True)


def _evaluation(folder: Path, circuit: Any) -> dict[str, Any] | None:
    """The card of the circuit's evaluation, if one stands beside it; raises `CircuitError` for that of another circuit."""
    from sparse_lens.circuits.checked import read_json_object
    from sparse_lens.errors import CircuitError

    if not (folder / EVALUATION).is_file():
        return None
    card = read_json_object(folder / EVALUATION)
    for name, own in (("model", circuit.model), ("task", circuit.task), ("nodes", circuit.n_nodes)):
        if card.get(name, own) != own:
            raise CircuitError(
                f"the {EVALUATION} in {folder} is of another circuit: its {name} is {str(card[name])[:80]!r}, not {own!r}; "
                "evaluate the circuit again, or remove that file"
            )
    return card


def _prompts(options: argparse.Namespace, bridge: Any, name: str) -> tuple[Any, str]:
    """Held-out pairs of the circuit's task, or why there are none."""
    from sparse_lens.errors import UnknownNameError
    from sparse_lens.tasks import get_task, task_from_file

    own = None if options.pairs_file is None else task_from_file(options.pairs_file)
    try:
        task = own if own is not None and own.name == name else get_task(name)
    except UnknownNameError:
        given = "" if own is None else f" (the pairs given are of the task {own.name})"
        return None, (
            f"The task {name} is not known here{given}: without its prompts there are no ablation deltas, no effects of edges and "
            "no positions. Give them with --pairs-file, in a file named as the task."
        )
    return task.sample(bridge.tokenizer, options.pairs, seed=0, split="heldout"), ""


@dataclass
class _Models:
    """The models that circuits may belong to, each opened once: those that were named, else the shipped ones."""

    named: list[str]
    folders: list[Path]
    _open: dict[str, tuple[str, Any]] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)

    def of(self, fingerprint: str, folder: Path) -> tuple[str, Any]:
        """Name and bridge of the model with this fingerprint; raises `CircuitError` if there is none."""
        from sparse_lens.circuits import model_fingerprint
        from sparse_lens.errors import CircuitError
        from sparse_lens.hooks import load
        from sparse_lens.models_shipped import shipped_models

        candidates = self.named or list(shipped_models())
        for name in candidates:
            if fingerprint not in self._open and name not in self._tried:
                self._tried.add(name)
                bridge = load(name)
                self._open[model_fingerprint(bridge)] = (name, bridge)
        if fingerprint not in self._open:
            raise CircuitError(
                f"the circuit in {folder} was found in a model of fingerprint {fingerprint!r}, which is none of "
                f"{', '.join(candidates)}; name its model with --model MODEL"
            )
        return self._open[fingerprint]

    def dictionaries(self, model: str, space: Any) -> list[Any]:
        """The dictionaries that a circuit's sites name by hash, among those given and those shipped with its model."""
        from sparse_lens.comparisons import ModelPair
        from sparse_lens.dictionaries import load_saelens
        from sparse_lens.models_shipped import shipped_models

        known: list[Any] = [load_saelens(folder) for folder in self.folders]
        if model in shipped_models():
            known += ModelPair.open(shipped_models()[model].parent).dictionaries()
        wanted = {entry[3] for entry in space if isinstance(entry, list) and len(entry) == 4} if isinstance(space, list) else set()
        return list({found.hash: found for found in known if found.hash in wanted}.values())
