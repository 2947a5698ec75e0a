"""What a measure's cell depends on: everything that it reads, so that nothing stale is taken for it."""

from __future__ import annotations

import pytest

from sparse_lens.comparisons import ModelPair, reading
from sparse_lens.comparisons.instrument import measuring_jobs
from sparse_lens.comparisons.instrument.measuring import MEASURES
from sparse_lens.comparisons.instrument.measuring_jobs import LONGEST_FIRST, measuring_job


def test_every_measure_has_its_place_in_the_order() -> None:
    assert set(LONGEST_FIRST) == set(MEASURES) and len(LONGEST_FIRST) == len(MEASURES)


def test_cells_depend_on_the_files_that_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another standard library is another cell of the measures that read it, and so are other held-out files and other tasks."""
    pair = ModelPair.open()

    def fingerprints() -> dict[str, str]:
        return {measure: measuring_job(pair, measure, measure, smoke=True).fingerprint for measure in MEASURES}

    def unchanged() -> set[str]:
        return {measure for measure, fingerprint in fingerprints().items() if before[measure] == fingerprint}

    before, library = fingerprints(), reading._library()
    with monkeypatch.context() as patched:
        patched.setattr(reading, "_library", lambda: library[::2])
        assert set(MEASURES) - unchanged() == {"superposition", "predictability", "latent_circuits"}
    with monkeypatch.context() as patched:
        patched.setattr(measuring_jobs, "labels_read", lambda _: ("labels", "other files"))
        assert set(MEASURES) - unchanged() == {"superposition", "concepts", "shift", "robustness"}
    pair.record["tasks"] = ["if_equals"]
    assert set(MEASURES) - unchanged() == {"circuits", "latent_circuits", "fracture", "robustness"}
