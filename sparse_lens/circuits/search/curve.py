"""Sizes of one task's circuits over several targets: one target alone hides where a size begins to grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_lens.circuits.ablation import AblationKind
from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.effort import size_of
from sparse_lens.circuits.search.nodes import prepare_search, search_circuit
from sparse_lens.circuits.search.objectives import Objective
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import ConfigError
from sparse_lens.tasks import AnyTask

if TYPE_CHECKING:
    import pandas as pd


def find_curve(
    bridge: Any,
    task: str | AnyTask,
    *,
    task_losses: Sequence[float] = (0.5, 0.3, 0.15),
    divergences: Sequence[float] = (),
    calibrate: bool = False,
    dictionaries: Sequence[Dictionary] = (),
    ablation: AblationKind = "mean",
    frozen_norms: bool = False,
    config: SearchConfig | None = None,
    windows: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[Circuit]:
    """One circuit for every target: first the task losses, then the divergences from the model's own output, all in nats.

    Every target gets a search of its own, on the same prompts and with the same effort. `calibrate` is for the task losses; the
    other arguments are those of `find_circuit`. After a Ctrl-C the circuits found so far come back, the last of them marked
    `search["interrupted"]`. Raises `ConfigError` without a target and for one that is not above 0.
    """
    targets = [*task_losses, *divergences]
    if not targets or min(targets) <= 0:
        raise ConfigError(f"a curve needs targets above 0, in nats; got {targets}")
    config = config or SearchConfig()
    how: dict[str, Any] = {"ablation": ablation, "frozen_norms": frozen_norms, "windows": windows, "seed": seed}
    problem = prepare_search(
        bridge, task, config, objective=Objective("task", calibrate), dictionaries=dictionaries, progress=progress, **how
    )
    problems = [problem] * len(task_losses)
    if divergences:
        problems += [problem.under(Objective("kl"))] * len(divergences)
    found: list[Circuit] = []
    for each, target in zip(problems, targets, strict=True):
        found.append(search_circuit(each, target, config, seed=seed, progress=progress, keep_interrupted=True))
        if found[-1].search["interrupted"]:
            break
    return found


def curve_frame(circuits: Sequence[Circuit]) -> pd.DataFrame:
    """One row for each circuit, with the columns below; `size` counts edges where those were searched for."""
    import pandas as pd

    rows = [
        {
            "task": circuit.task,
            "kind": circuit.search.get("target_kind", "task"),
            "target": circuit.target_loss,
            "loss": circuit.loss,
            "task_loss": circuit.search.get("task_loss"),
            "nodes": circuit.n_nodes,
            "size": size_of(circuit),
            "reached": circuit.reached,
            "beats_model": circuit.search.get("beats_model"),
        }
        for circuit in circuits
    ]
    return pd.DataFrame(rows)
