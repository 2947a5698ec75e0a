"""Small maps out of large ones, for heat maps: the labels best told by single units, and the units best matched between models."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_lens.comparisons.concepts.coverage import ConceptScores
from sparse_lens.comparisons.rows.correspondence import Correspondence

MOST = 16
"""Rows of a map: more cannot be read."""

Map = dict[str, Any]
"""`rows` and `columns` by name, `values [row column]`."""


def concept_map(scores: ConceptScores, most: int = MOST) -> Map:
    """F1 of the labels that single units tell best, and of each label's best unit: a diagonal where each has a unit of its own."""
    if not scores.f1.size:
        return {"rows": [], "columns": [], "values": []}
    labels = np.argsort(-scores.f1.max(1), kind="stable")[:most]
    units = list(dict.fromkeys(scores.f1[labels].argmax(1).tolist()))
    values = scores.f1[np.ix_(labels, units)]
    names = [scores.names[label] for label in labels]
    return {"rows": names, "columns": [str(unit) for unit in units], "values": np.round(values, 3).tolist()}


def matching_map(found: Correspondence, most: int = MOST) -> Map:
    """Correlations of the pairs of units that match best, each with all others of them."""
    matched = found.correlation[found.first, found.second].abs().nan_to_num(-1.0)
    best = matched.argsort(descending=True, stable=True)[:most]
    best = best[matched[best] >= 0]
    first, second = found.first[best], found.second[best]
    values = found.correlation[first][:, second].nan_to_num(0.0)
    names = ([str(unit) for unit in side.tolist()] for side in (first, second))
    return {"rows": next(names), "columns": next(names), "values": [[round(v, 3) for v in row] for row in values.tolist()]}
