"""Structure against capacity on shipped models: equal nonzeros only, differences over the same windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.predictability.capacity import structural_bias
from sparse_lens.errors import CheckpointError, ConfigError, UnknownNameError
from sparse_lens.training import window_losses


def test_the_shipped_pair() -> None:
    """Sparse against narrow dense at equal nonzeros: the mean difference of their losses; the wide dense model is not compared."""
    pair = ModelPair.open()
    heldout = pair.windows["heldout"][:12]
    folders = {role: pair.model_folder(role) for role in ("sparse", "dense_matched", "dense")}
    arms = {"learned": [folders["sparse"]], "narrow": [folders["dense_matched"]], "wide": [folders["dense"]]}
    found = structural_bias(arms, heldout, baseline="narrow")
    losses = [window_losses(pair.open_model(role), heldout) for role in ("sparse", "dense_matched")]
    difference = found["learned"]["loss_above_baseline"]
    assert difference.value == pytest.approx(float((losses[0] - losses[1]).mean()), abs=1e-6)
    assert difference.lo is not None and difference.lo < difference.value < (difference.hi or 0) + 1 and difference.n == 12
    assert found["learned"]["nonzeros"].value == 185_134 and found["narrow"]["nonzeros"].value == 193_536
    assert found["narrow"]["loss_above_baseline"].value == 0
    refused = found["wide"]["loss_above_baseline"]
    assert not refused.measurable and refused.value is None and "2,129,920 nonzeros against 193,536" in str(refused.reason)
    assert found["wide"]["loss"].measurable


def test_several_seeds_give_the_spread_as_null() -> None:
    """Twice the same model: no spread, and the mean is the model's own."""
    pair = ModelPair.open()
    narrow, heldout = pair.model_folder("dense_matched"), pair.windows["heldout"][:2]
    found = structural_bias({"a": [narrow, narrow], "b": [narrow, narrow]}, heldout, baseline="a")
    assert found["b"]["loss_above_baseline"].null == 0 and found["b"]["loss_above_baseline"].seeds == 2


def test_bad_arms(tmp_path: Path) -> None:
    """A baseline that is no arm, an arm without models, a model without its record."""
    heldout = ModelPair.open().windows["heldout"][:1]
    with pytest.raises(UnknownNameError, match="narow"):
        structural_bias({"narrow": [tmp_path]}, heldout, baseline="narow")
    with pytest.raises(ConfigError, match="no models are given for empty"):
        structural_bias({"narrow": [tmp_path], "empty": []}, heldout, baseline="narrow")
    (tmp_path / "training.json").write_text(json.dumps({"tokens": None}))
    with pytest.raises(CheckpointError, match=r"training\.json"):
        structural_bias({"narrow": [tmp_path]}, heldout, baseline="narrow")
