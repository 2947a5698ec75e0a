"""`claims` on the shipped pair, the smallest form; what is kept is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.comparisons import ModelPair, claims
from sparse_lens.comparisons.instrument import measuring
from sparse_lens.comparisons.instrument.running import pairs_of_models
from sparse_lens.comparisons.instrument.sizes import Size
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.results import exact


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


def test_an_arm_in_the_dense_models_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claims are rows of their own, beside T1b; the losses decide whether they can be compared."""
    monkeypatch.setattr(measuring, "MEASURES", {name: _planted for name in measuring.MEASURES})
    folder = ModelPair.open().model_folder("dense")
    report = claims(only=["T1b"], arms={"twin": [folder]}, cache=tmp_path, workers=1, progress=False)
    assert [row.claim.id for row in report.rows] == ["T1b", "T1b-twin-COMP", "T1b-twin-EASE", "T1b-twin-FRACTURE"]
    assert "apart, by -0.640" in " ".join(report.rows[2].judgement.reasons)
    assert "below" in report.rows[0].judgement.reasons[0]
    assert report.rows[2].scope[-1] == "the arm's loss less the sparse model's: -0.640 nats a token"
    assert report.to_plain()["arms"]["twin"][0]["losses"]["dense"]["loss"]["value"] == 2.73
    assert set(report.to_frame()["arm"]) == {"", "twin"}
    assert {item.id for item in report.rows[2].literature} >= {"arXiv:2603.25325"}
    with pytest.raises(ConfigError, match="one for each training seed"):
        claims(only=["T1b"], arms={"twin": [folder] * 4}, cache=tmp_path)
    with pytest.raises(ConfigError, match=r"arms \(twin\) are for the claim T1b"):
        claims(only=["EASE"], arms={"twin": [folder]}, cache=tmp_path)
    with pytest.raises(ConfigError, match="smoke run teaches nothing"):
        claims(only=["EASE"], smoke=True, kept=[folder / "claims.json"])
    smoke = claims(only=["T1b"], arms={"twin": [folder] * 2}, smoke=True, cache=tmp_path, workers=1, progress=False)
    assert len(smoke.arms["twin"]) == 1


def test_one_model_is_no_two_training_seeds(tmp_path: Path) -> None:
    """Copies have intervals of no width: refused, in a pair's place and as an arm, before anything is measured."""
    sparse, dense = (ModelPair.open().model_folder(role) for role in ("sparse", "dense_matched"))
    for given in (["python"] * 3, pairs_of_models(sparse=[sparse] * 3, dense_matched=[dense] * 3)):
        with pytest.raises(ConfigError, match="trained apart"):
            claims(given, only=["EASE"], cache=tmp_path)
    with pytest.raises(ConfigError, match="trained apart"):
        claims(only=["T1b"], arms={"twin": [dense] * 3}, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def _planted(pair: ModelPair, size: Size) -> measuring.Measured:
    del size
    loss = {"python-dense-matched": 3.41, "python-dense": 2.73}
    numbers = ("heldout_r2_mean", "d_abl", "mirror_fracture", "nonzeros", "matrix_nonzeros")
    metrics = dict.fromkeys(numbers, exact(0.5))
    own = loss.get(pair.model_name("dense_matched"), 3.37)
    return {"sparse": metrics | {"loss": exact(3.37)}, "dense": metrics | {"loss": exact(own)}}


def test_other_models_in_a_pairs_place() -> None:
    """Both sides of every training seed, or one of them beside the pair's own."""
    pair = ModelPair.open()
    sparse, dense = ([seed.model_folder(role) for seed in pair.training_seeds()] for role in ("sparse", "dense_matched"))
    both = pairs_of_models(pair, sparse=sparse[::-1], dense_matched=dense)
    assert [one.model_name("sparse") for one in both] == ["python-sparse-seed2", "python-sparse-seed1", "python-sparse"]
    alone = pairs_of_models("python", sparse=[sparse[0], sparse[0]])
    assert [one.model_name("dense_matched") for one in alone] == ["python-dense-matched", "python-dense-matched-seed1"]
    assert len(pairs_of_models(pair)) == 3
    with pytest.raises(ConfigError, match="2 for sparse and 1 for dense_matched"):
        pairs_of_models(pair, sparse=sparse[:2], dense_matched=dense[:1])
    with pytest.raises(ConfigError, match="has 3 training seeds"):
        pairs_of_models(pair, sparse=[*sparse, sparse[0]])


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="claim 'EAST': did you mean 'EASE'"):
        claims(only=["EAST"], cache=tmp_path)
    with pytest.raises(ConfigError, match="at least one pair"):
        claims([], cache=tmp_path)
    with pytest.raises(UnknownNameError, match="measure"):
        measuring.measured(ModelPair.open().address, "superpositoin")
