"""The columns of the comparison: a model and the dictionaries it is seen through. All of them run through the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from sparse_lens.circuits import Ablation, NodeSpace, mean_reference, node_space
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.dictionaries import Dictionary

COLUMNS = ("sparse_neurons", "dense_neurons", "dense_matched_neurons", "dense_sae")
"""Every column of the comparison, in the order of the tables."""

_ROLE = {
    "sparse_neurons": "sparse",
    "dense_neurons": "dense",
    "dense_matched_neurons": "dense_matched",
    "dense_sae": "dense_matched",
}


@dataclass(frozen=True, eq=False)
class Column:
    """A bridge of its own, its node space, and the windows of the pretraining distribution in the bridge's tokens."""

    name: str
    role: str
    bridge: Any
    space: NodeSpace
    reference: Int[np.ndarray, "window pos"]

    @cached_property
    def ablation(self) -> Ablation:
        """What stands in for ablated nodes: their means over `reference`, computed at the first look, as most rows ask for none."""
        return Ablation(mean_reference(self.bridge, self.space, self.reference))


def open_columns(pair: ModelPair) -> list[Column]:
    """All columns of a pair; `dense_sae` only where the pair has dictionaries."""
    columns = []
    for name in COLUMNS:
        dictionaries: Sequence[Dictionary] = pair.dictionaries() if name == "dense_sae" else ()
        if name == "dense_sae" and not dictionaries:
            continue
        bridge = pair.open_model(_ROLE[name])
        space = node_space(bridge, dictionaries)
        columns.append(Column(name, _ROLE[name], bridge, space, pair.windows_of(_ROLE[name])["reference"]))
    return columns
