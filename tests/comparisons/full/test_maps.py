"""Maps for figures: the best labels and units, and the best matched pairs, by hand."""

from __future__ import annotations

import numpy as np
import torch

from sparse_lens.comparisons.concepts.coverage import ConceptScores
from sparse_lens.comparisons.full.maps import concept_map, matching_map
from sparse_lens.comparisons.rows.correspondence import Correspondence


def test_the_best_labels_with_their_units() -> None:
    f1 = np.array([[0.1, 0.2, 0.0], [0.9, 0.1, 0.3], [0.2, 0.1, 0.8]])
    found = concept_map(ConceptScores({}, ("a", "b", "c"), f1, f1, {}), most=2)
    assert found == {"rows": ["b", "c"], "columns": ["0", "2"], "values": [[0.9, 0.3], [0.2, 0.8]]}
    empty = concept_map(ConceptScores({}, (), np.zeros((0, 3)), np.zeros((0, 3)), {}))
    assert empty["values"] == []


def test_the_best_matched_pairs() -> None:
    correlation = torch.tensor([[0.1, -0.9, 0.0], [0.5, 0.2, 0.1], [torch.nan, torch.nan, torch.nan]])
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2])
    found = matching_map(Correspondence({}, correlation, correlation, first, second), most=3)
    assert found["rows"] == ["0", "1"] and found["columns"] == ["1", "0"]
    assert found["values"] == [[-0.9, 0.1], [0.2, 0.5]]
