"""How far circuits of one task are the same circuit: Jaccard overlap, beside what circuits of these sizes share by chance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result


def jaccard(first: Bool[Tensor, " node"], second: Bool[Tensor, " node"]) -> float:
    """`|A & B| / |A | B|`; two empty sets are equal."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def overlap(circuits: Sequence[Circuit]) -> Result:
    """Mean Jaccard over all pairs of circuits, `lo` and `hi` the least and the largest (arXiv:2606.16920).

    The null is what random nodes would give, as many at every site. Raises `CircuitError` for fewer than two circuits, or
    circuits of different models.
    """
    if len(circuits) < 2:
        raise CircuitError(f"an overlap is of two circuits at least, got {len(circuits)}")
    first = circuits[0]
    for other in circuits[1:]:
        if other.model != first.model or other.space.signature() != first.space.signature():
            raise CircuitError("these circuits belong to different models or dictionaries, so they share no nodes to compare")
    pairs = list(combinations(circuits, 2))
    values = [jaccard(a.mask, b.mask) for a, b in pairs]
    null = float(np.mean([_by_chance(a, b) for a, b in pairs]))
    return Result(float(np.mean(values)), min(values), max(values), null, n=len(pairs), seeds=len(circuits))


def _by_chance(first: Circuit, second: Circuit) -> float:
    """Expected intersection over expected union, if each site's nodes were drawn at random."""
    shared = 0.0
    for part in first.space.slices.values():
        shared += float(first.mask[part].sum() * second.mask[part].sum()) / max(1, part.stop - part.start)
    union = first.n_nodes + second.n_nodes - shared
    return shared / union if union else 1.0
