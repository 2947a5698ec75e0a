"""Couplings in the full comparison: the dense twin and the sparse model joined at every sublayer boundary, as cells.

Each hybrid's loss says how much of one model's stream the other can go on from (arXiv:2511.13653, bridges); steering says whether a
channel of the sparse model is a handle on the dense one. Both rest on one coupling, which is trained once and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints, model_folder
from sparse_lens.comparisons.couplings.coupling import load_coupling
from sparse_lens.comparisons.couplings.steering import measure_steering
from sparse_lens.comparisons.couplings.training import CouplingTrainingConfig, train_coupling, training_windows
from sparse_lens.comparisons.jobs import Job, Record
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import files_read
from sparse_lens.hooks import load
from sparse_lens.tasks import get_task

_STEERING = "steering 2"
"""Changes when the numbers of `steer` do."""

DENSE, SPARSE = "dense", "sparse"
"""The roles that are coupled: twins of one architecture, but for the weights that are zero."""


def couple(pair: str, tokens: int, folder: str, n_windows: int) -> dict[str, Any]:
    """Train the coupling of a pair's twins, keep it in `folder`, and measure its hybrids on `n_windows` held-out windows."""
    opened = ModelPair.at(pair)
    config = CouplingTrainingConfig(tokens=tokens, ridge_tokens=tokens)
    windows = training_windows(opened, config)
    dense, sparse = (opened.open_model(role) for role in (DENSE, SPARSE))
    found = train_coupling(dense, sparse, windows, config, folder, held_out=opened.windows["heldout"][:n_windows], progress=False)
    return {"folder": folder, "boundaries": list(found.coupling.boundaries), "losses": found.statistics}


def steer(pair: str, folder: str, task: str, n_pairs: int) -> dict[str, Any]:
    """Steering of a pair's dense model on one task, by boundary: the channel chosen in the sparse model, and `Steering.results`."""
    opened, coupling = ModelPair.at(pair), load_coupling(folder)
    dense, sparse = (opened.open_model(role) for role in (DENSE, SPARSE))
    found = {}
    for number, boundary in enumerate(coupling.boundaries):
        steering = measure_steering(dense, sparse, coupling, get_task(task), number, n_pairs=n_pairs)
        found[boundary] = {"channel": steering.channel, "results": steering.results}
    return found


def coupling_jobs(pair: ModelPair, tokens: int, folder: Path, *, n_windows: int = 64) -> list[Job]:
    """The job of the pair's coupling, with hybrids on `n_windows` held-out windows.

    None for models of unlike depth or with tokenizers of their own, which cannot be joined.
    """
    specs = [ColumnSpec(role, role) for role in (DENSE, SPARSE)]
    depths = {int(load(model_folder(pair, spec)).cfg.n_layers) for spec in specs}
    if len(depths) > 1 or not all(pair.shares_tokens(spec.model) for spec in specs):
        return []
    depends = [part for spec in specs for part in fingerprints(pair, spec)]
    depends += [hashlib.sha256(pair.windows[name].tobytes()).hexdigest()[:16] for name in ("reference", "heldout")]
    depends.append(files_read(pair))
    place = hashlib.sha256(repr((tokens, depends)).encode()).hexdigest()[:12]
    where = {
        "pair": pair.address,
        "tokens": tokens,
        "n_windows": n_windows,
        "folder": str((folder / f"coupling-{place}").absolute()),
    }
    return [Job("train the coupling", f"{__name__}:couple", where, depends)]


def steering_jobs(coupled: Sequence[tuple[Job, Record]], tasks: Sequence[str], *, n_pairs: int = 128) -> list[Job]:
    """One job for each task, given the coupling's own job and record; effects are means over `n_pairs` pairs of prompts."""
    return [
        Job(
            f"steering on {task}",
            f"{__name__}:steer",
            _steered(job, record) | {"task": task, "n_pairs": n_pairs},
            [*job.depends, job.fingerprint, _STEERING],
        )
        for job, record in coupled
        for task in tasks
    ]


def _steered(job: Job, record: Record) -> dict[str, Any]:
    return {"pair": job.arguments["pair"], "folder": record["folder"]}


def couplings_part(coupled: Sequence[Record], steered: Sequence[tuple[Job, Record]]) -> dict[str, Any]:
    """The part `couplings` of the full comparison: losses by hybrid, steering by task and boundary; empty without a coupling."""
    if not coupled:
        return {}
    (record,) = coupled
    by_task = {str(job.arguments["task"]): dict(found) for job, found in steered}
    return {"boundaries": record["boundaries"], "losses": record["losses"], "steering": by_task}
