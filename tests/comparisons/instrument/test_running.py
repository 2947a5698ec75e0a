"""`claims` on the shipped pair, the smallest form; what is kept is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair, claims
from sparse_lens.comparisons.instrument import measuring
from sparse_lens.errors import ConfigError, UnknownNameError


def test_smoke_on_the_shipped_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One claim with its controls, by one seed: reported, without a verdict; then from the cache alone."""
    report = claims(only=["EASE"], smoke=True, cache=tmp_path, workers=1, progress=False)
    (row,) = report.rows
    assert row.verdict == "not measurable" and "1 training seed(s)" in row.judgement.reasons[0]
    assert row.sparse.value is not None and set(row.controls) == {"random_weights", "rotated"}
    assert abs(report.scope["loss_gaps"][0]) <= 0.05 and "tested up to" in report.scope["largest"]
    frame = report.to_frame()
    assert {"seed", "measure", "side", "metric", "value"} <= set(frame.columns)
    monkeypatch.setattr(measuring, "MEASURES", {})
    again = claims(only=["EASE"], smoke=True, cache=tmp_path, workers=1, progress=False)
    assert again.to_plain()["claims"] == report.to_plain()["claims"]


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="claim 'EAST': did you mean 'EASE'"):
        claims(only=["EAST"], cache=tmp_path)
    with pytest.raises(ConfigError, match="at least one pair"):
        claims([], cache=tmp_path)
    with pytest.raises(UnknownNameError, match="measure"):
        measuring.measured(ModelPair.open().address, "superpositoin")
