"""The fitted threshold: exact on numbers without ties, whatever the batches."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.dictionaries.thresholds import threshold_for
from sparse_lens.errors import DataError


@pytest.mark.parametrize("k", [0.5, 3, 8])
def test_as_many_fire_as_asked(k: float) -> None:
    before = torch.randn(400, 60, generator=torch.Generator().manual_seed(0))
    for batches in ([before], list(before.split(37))):
        threshold = threshold_for(batches, k)
        assert int((before > threshold).sum()) == round(k * 400)


def test_all_that_is_positive_fires_where_that_is_fewer() -> None:
    before = -torch.rand(50, 20)
    before[:, :2] = 1.0
    assert threshold_for([before], 5) == 0.0
    assert threshold_for([before - 3], 5) == 0.0


def test_without_tokens() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        threshold_for([], 3)
