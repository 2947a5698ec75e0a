"""A measure of the claims as a job, and what its record depends on."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.comparisons.concepts.pair_labels import labels_read
from sparse_lens.comparisons.instrument.sizes import ROLES, tasks_of
from sparse_lens.comparisons.jobs import Job
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.comparisons.reading import files_read

_FORMAT = "claims 1"
"""What every cell depends on beside its models: raised when what all cells compute changes."""

_CHANGED = {
    "concepts": "at equal numbers of neurons",
    "robustness": "scores of tasks and masks",
    "circuits": "with shuffled weights and random circuits",
    "superposition": "with the token held fixed, and on renamed text",
    "latent_circuits": "with SAEs of shuffled weights",
    "compositionality": "three mask seeds",
    "predictability": "also from all features",
    "fracture": "tasks that pass on 64 pairs",
}
"""What a measure gives beside what it gave at first: its older cells are computed anew."""

_ON_HELD_OUT_FILES = ("concepts", "shift", "robustness", "superposition")
_ON_TRAINING_FILES = ("superposition", "predictability", "latent_circuits")
_ON_TASKS = ("circuits", "latent_circuits", "fracture", "robustness")

LONGEST_FIRST = (
    "superposition",
    "circuits",
    "latent_circuits",
    "compositionality",
    "fracture",
    "concepts",
    "robustness",
    "binding",
    "predictability",
    "shift",
    "losses",
)
"""The measures by what they cost, so that no process waits long for the last cell of another."""

_CELL = "sparse_lens.comparisons.instrument.measuring:measured"


def measuring_job(pair: ModelPair, measure: str, name: str, *, smoke: bool, layers: Sequence[int] | None = None) -> Job:
    """The cell of one measure on both models of a pair, called `name`; `smoke` reads as little as runs, `layers` as in `measured`.

    It depends on their weights, the pair's windows and, where it reads them, the pair's tasks and this machine's files: held-out
    ones and their labels, or those of training.
    """
    depends = [_FORMAT, *(part for own in ROLES.values() for part in fingerprints(pair, ColumnSpec(own, own)))]
    depends += [_CHANGED[measure]] if measure in _CHANGED else []
    depends += labels_read(pair.address) if measure in _ON_HELD_OUT_FILES else []
    depends += [files_read(pair)] if measure in _ON_TRAINING_FILES else []
    depends += [f"tasks {' '.join(tasks_of(pair))}"] if measure in _ON_TASKS else []
    chosen = {} if layers is None else {"layers": list(layers)}
    return Job(name, _CELL, {"pair": pair.address, "measure": measure, "smoke": smoke} | chosen, depends)
