"""Rows on synthetic measurements: every verdict, the claims that are decided otherwise, and what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.literature import read_literature
from sparse_lens.comparisons.instrument.measuring import MEASURES
from sparse_lens.comparisons.instrument.neuron_controls import mean_results
from sparse_lens.comparisons.instrument.rows import ClaimRow, claim_rows
from sparse_lens.comparisons.instrument.running import choose_claims, needed_measures
from sparse_lens.errors import UnknownNameError
from sparse_lens.results import exact, not_measurable

LITERATURE = read_literature()


def synthetic(sparse: float, dense: float, *, seed: int, gap: float = 0.01, controls: float = 0.0) -> dict[str, Any]:
    """Every metric of every claim with these values (jittered by seed), controls that differ by `controls`."""
    jitter = 0.01 * np.sin(seed + 1.0)
    found: dict[str, Any] = {"losses": {"sparse": {"loss": exact(3.0)}, "dense": {"loss": exact(3.0 + gap)}}}
    for claim in CLAIMS:
        if claim.measure:
            for role, value in (("sparse", sparse + jitter), ("dense", dense)):
                metrics = found.setdefault(claim.measure, {}).setdefault(role, {})
                metrics[claim.metric] = exact(value)
                for control in claim.controls:
                    metrics[f"{control}_{claim.metric}"] = exact(controls if role == "sparse" else 0.0)
    for measure in ("circuits", "latent_circuits"):
        for of in found[measure].values():
            of |= {f"{control}_fitted": exact(0, n=5) for control in ("nonsense", "random_weights")}
            of |= {"recovered": exact(0.95), "random_circuits_recovered": exact(0.02)}
    return found


def fitted(seed: dict[str, Any], measure: str, role: str, control: str, margin: float) -> None:
    """Let a control of circuits be fitted, at so many powers of two of the circuits' nodes."""
    seed[measure][role] |= {f"{control}_fitted": exact(1, n=5), f"{control}_margin": exact(margin)}


def rows_of(seeds: Sequence[dict[str, Any]]) -> dict[str, ClaimRow]:
    return {row.claim.id: row for row in claim_rows(seeds, LITERATURE)}


def test_a_larger_sparse_value_decides_every_claim_by_its_direction() -> None:
    rows = rows_of([synthetic(2.0, 1.5, seed=seed) for seed in range(3)])
    for claim in CLAIMS:
        if claim.measure and claim.against is None:
            assert rows[claim.id].verdict == ("supports" if claim.larger == "sparse" else "contradicts"), claim.id
    assert rows["T1a"].verdict == "supports"  # held against 1, whatever the dense model has
    assert rows["T1b"].verdict == rows["DEPTH"].verdict == "not measurable" and "--arm" in rows["T1b"].judgement.reasons[0]
    assert rows["T1a"].judgement.difference.value == pytest.approx(1.0, abs=0.01) and rows["T1a"].to_plain()["against"] == 1.0


def test_identical_models_are_indistinguishable_in_every_row() -> None:
    """ALWAYS among them; only T1a, held against 1, has an answer for them."""
    same = [{**found, **{m: {"sparse": v["sparse"], "dense": v["sparse"]} for m, v in found.items()}} for found in
            (synthetic(1.2, 1.2, seed=seed) for seed in range(3))]  # fmt: skip
    rows = rows_of(same)
    assert {rows[claim.id].verdict for claim in CLAIMS if claim.measure and claim.against is None} == {"indistinguishable"}
    assert rows["ALWAYS"].verdict == rows["T2"].verdict == "indistinguishable" and rows["ALWAYS"].sparse.value == 0
    assert rows["T1a"].verdict == "supports"


def test_a_control_that_shows_as_much_takes_the_verdict() -> None:
    rows = rows_of([synthetic(2.0, 1.5, seed=seed, controls=0.5) for seed in range(3)])
    assert rows["EASE"].verdict == "indistinguishable" and "not told apart from" in rows["EASE"].judgement.reasons[0]
    assert rows["EASE"].controls["rotated"].value == pytest.approx(0.5)


def test_losses_that_are_apart_and_two_seeds() -> None:
    apart = rows_of([synthetic(2.0, 1.5, seed=seed, gap=0.08) for seed in range(3)])
    for name in ("EASE", "T2", "T3b", "ALWAYS"):
        assert apart[name].verdict == "not measurable" and "+0.080" in apart[name].judgement.reasons[0]
    few = rows_of([synthetic(2.0, 1.5, seed=seed) for seed in range(2)])
    assert few["EASE"].verdict == few["T2"].verdict == few["ALWAYS"].verdict == "not measurable"


def test_a_failed_gate_is_never_zero() -> None:
    """One seed fails: its reason is printed, and the side has no mean."""
    seeds = [synthetic(2.0, 1.5, seed=seed) for seed in range(3)]
    seeds[1]["binding"]["dense"]["representation"] = not_measurable("accuracy 0.4 is below the gate of 0.9")
    row = rows_of(seeds)["BIND"]
    assert row.verdict == "not measurable" and row.dense.value is None
    assert any("below the gate" in reason for reason in row.judgement.reasons)
    assert "--pair binding --only BIND" in row.judgement.reasons[-1]


def test_a_share_of_tasks_needs_as_many_tasks_on_every_seed() -> None:
    """4 of 5 and 5 of 5 are not averaged, and end nothing; FRACTURE, which is no share of tasks, goes on."""
    seeds = [synthetic(1.5, 2.0, seed=seed) for seed in range(3)]
    for seed, tasks in zip(seeds, (5, 4, 5), strict=True):
        for side in seed["fracture"].values():
            side["tasks"] = exact(tasks)
    rows = rows_of(seeds)
    assert rows["ENTANGLE"].verdict == "not measurable" and rows["ENTANGLE"].judgement.difference.value is None
    assert rows["ENTANGLE"].judgement.reasons == ("tasks differ between training seeds: 4, 5",)
    assert rows["FRACTURE"].verdict == "supports" and rows["ENTANGLE"].found[0].startswith("tasks: ")
    cells = rows["ALWAYS"].sparse.n
    for seed in seeds:
        for side in seed["fracture"].values():
            side["tasks"] = exact(5)
    assert rows_of(seeds)["ENTANGLE"].verdict == "supports" and rows_of(seeds)["ALWAYS"].sparse.n == cells + 1


def test_numbers_beside_a_claim_by_a_pattern() -> None:
    seeds = [synthetic(2.0, 1.5, seed=seed) for seed in range(3)]
    for seed in seeds:
        for side in seed["robustness"].values():
            side["accuracy_if_equals_slope"] = exact(-0.25)
    found = rows_of(seeds)["T1c"].found
    assert found[0].startswith("accuracy_if_equals_slope: -0.25") and found[1].startswith("d_abl_slope: ")
    assert rows_of([synthetic(2.0, 1.5, seed=0)])["T1c"].found[0].startswith("accuracy_*_slope: ")


def test_coexistence_needs_both_in_every_seed() -> None:
    both = rows_of([synthetic(1.4, 1.5, seed=seed) for seed in range(3)])["T2"]
    assert both.verdict == "supports" and both.sparse.value == 3 and len(both.found) == 3
    none = rows_of([synthetic(0.6, 1.5, seed=seed) for seed in range(3)])["T2"]
    assert none.verdict == "indistinguishable" and "0 of 3 pairs" in none.judgement.reasons[0]
    mixed = [synthetic(1.4, 1.5, seed=0), synthetic(0.6, 1.5, seed=1), synthetic(1.4, 1.5, seed=2)]
    assert rows_of(mixed)["T2"].verdict == "indistinguishable"


def test_coexistence_beside_the_dense_model_and_of_real_labels_alone() -> None:
    """As many features per neuron as the dense model has are enough; circuits that nonsense labels have, too, are not."""
    seeds = [synthetic(0.6, 1.5, seed=seed) for seed in range(3)]
    for seed in seeds:
        seed["superposition"]["dense"]["psi"] = exact(0.5)
    assert rows_of(seeds)["T2"].verdict == "supports"
    for control in ("nonsense", "random_weights"):
        fitted(seeds[1], "circuits", "sparse", control, 0.2)
        row = rows_of(seeds)["T2"]
        assert row.verdict == "indistinguishable" and "2 of 3 pairs" in row.judgement.reasons[0]
        fitted(seeds[1], "circuits", "sparse", control, 1.2)
        assert rows_of(seeds)["T2"].verdict == "supports"
    del seeds[1]["circuits"]["sparse"]["recovered"]  # a control without a number: two pairs are left
    assert rows_of(seeds)["T2"].verdict == "not measurable"


def test_always_is_ended_by_one_measure() -> None:
    """All better: no run proves it. One worse on average: that one is printed."""
    seeds = [synthetic(1.0, 2.0, seed=seed) for seed in range(3)]
    for seed in seeds:
        for claim in CLAIMS:
            if claim.measure and claim.larger == "sparse" and claim.against is None:
                seed[claim.measure]["sparse"][claim.metric] = exact(3.0)
    row = rows_of(seeds)["ALWAYS"]
    assert row.verdict == "indistinguishable" and row.sparse.value == 0
    for seed in seeds:
        seed["fracture"]["sparse"]["entanglement"] = exact(2.5)
    row = rows_of(seeds)["ALWAYS"]
    assert row.verdict == "contradicts" and len(row.found) == 1 and row.found[0].startswith("ENTANGLE")


def test_always_looks_at_every_task_and_at_whole_families_alone() -> None:
    """One task on which the sparse model is worse on average ends it; what a single seed has a number for does not."""
    seeds = [synthetic(1.0, 2.0, seed=seed) for seed in range(3)]
    for seed in seeds:
        for claim in CLAIMS:
            if claim.measure and claim.larger == "sparse" and claim.against is None:
                seed[claim.measure]["sparse"][claim.metric] = exact(3.0)
    for seed in seeds[1:]:
        seed["fracture"]["sparse"]["entanglement"] = not_measurable("gate")
    seeds[0]["fracture"]["sparse"]["entanglement"] = exact(2.5)
    assert rows_of(seeds)["ALWAYS"].verdict == "indistinguishable"
    for seed in seeds:
        for role, nodes in (("sparse", 6.0), ("dense", 5.0)):
            seed["circuits"][role]["log2_nodes_on_if_equals"] = exact(nodes)
    row = rows_of(seeds)["ALWAYS"]
    assert row.verdict == "contradicts" and row.found[0].startswith("T3b (log2_nodes_on_if_equals)")
    for seed in seeds:
        for role, d_abl in (("sparse", -0.1), ("dense", -0.2)):
            seed["compositionality"][role]["quote_d_abl"] = exact(d_abl)
    assert any(cell.startswith("COMP (quote_d_abl)") for cell in rows_of(seeds)["ALWAYS"].found)


CIRCUITS = (("T3b", "circuits"), ("T3b-SAE", "latent_circuits"))


@pytest.mark.parametrize(("name", "measure"), CIRCUITS)
@pytest.mark.parametrize("control", ["nonsense", "random_weights"])
def test_circuits_count_only_where_controls_need_more(name: str, measure: str, control: str) -> None:
    """In each model by itself; where the control is fitted by no circuit it is passed."""
    seeds = [synthetic(5.0, 6.0, seed=seed) for seed in range(3)]
    for seed in seeds:
        fitted(seed, measure, "dense", control, 2.0)
    row = rows_of(seeds)[name]
    assert row.verdict == "supports" and sum("of seed" in told for told in row.found) == 12
    fitted(seeds[1], measure, "dense", control, 0.9)
    row = rows_of(seeds)[name]
    assert row.verdict == "indistinguishable" and len(row.judgement.reasons) == 1
    assert "are too small in the dense model of seed 1: 2^0.90 times" in row.judgement.reasons[0]


@pytest.mark.parametrize(("name", "measure"), CIRCUITS)
def test_circuits_count_only_beside_random_ones_and_with_all_controls(name: str, measure: str) -> None:
    seeds = [synthetic(5.0, 6.0, seed=seed) for seed in range(3)]
    seeds[2][measure]["sparse"]["random_circuits_recovered"] = exact(0.6)
    row = rows_of(seeds)[name]
    assert row.verdict == "indistinguishable" and "random circuits of equal size recover 0.60" in row.judgement.reasons[0]
    for lacking in ("random_circuits_recovered", "nonsense_fitted", "random_weights_fitted"):
        without = [synthetic(5.0, 6.0, seed=seed) for seed in range(3)]
        del without[0][measure]["dense"][lacking]
        row = rows_of(without)[name]
        assert row.verdict == "not measurable" and "has no number in the dense model of seed 0" in row.judgement.reasons[0]


def test_weights_that_masks_keep_are_counted_from_their_share() -> None:
    """A sixteenth of 1,024 in one model, a quarter in the other, and a control that differs as much."""
    seeds = [synthetic(1.0, 1.0, seed=seed) for seed in range(3)]
    for number, seed in enumerate(seeds):
        for role, share in (("sparse", 1 / 16), ("dense", 1 / 4)):
            masks = {"maskable": 1024.0}
            for name in ("quote", "bracket"):
                masks |= {f"{name}_kept_share": share * (1 + 0.01 * number), f"{name}_sub_own": 1.0}
                masks |= {f"{name}_random_weights_kept_share": 1 / 2, f"{name}_random_weights_sub_own": 0.6}
            seed["compositionality"][role] |= {name: exact(value) for name, value in masks.items()}
    row = rows_of(seeds)["T3b-mask"]
    assert row.verdict == "supports" and row.judgement.difference.value == pytest.approx(-2.0)
    assert row.dense.lo == pytest.approx(8.0) and row.controls["random_weights"].value == pytest.approx(0.0)
    seeds[1]["compositionality"]["dense"]["bracket_kept_share"] = exact(1 / 512)
    assert any("bracket_log2_kept" in told for told in rows_of([*seeds[1:2]] * 3)["ALWAYS"].found)
    for seed in seeds:
        for name in ("quote", "bracket"):
            seed["compositionality"]["sparse"][f"{name}_random_weights_kept_share"] = exact(1 / 8)
            seed["compositionality"]["dense"][f"{name}_kept_share"] = exact(1 / 4)
    assert rows_of(seeds)["T3b-mask"].verdict == "indistinguishable"
    seeds[0]["compositionality"]["dense"]["quote_sub_own"] = exact(0.85)
    assert "below the gate of 0.9" in " ".join(rows_of(seeds)["T3b-mask"].judgement.reasons)
    seeds[0]["compositionality"]["dense"]["quote_sub_own"] = exact(1.0)
    seeds[0]["compositionality"]["dense"]["quote_kept_share"] = not_measurable("accuracy is below")
    assert "accuracy is below" in " ".join(rows_of(seeds)["T3b-mask"].judgement.reasons)


def test_a_claim_of_two_parts_needs_both() -> None:
    """SHIFT: representations grow sparser, and more so in the sparse model. Denser in both is no support."""
    for sparse, dense, verdict in ((0.2, 0.1, "supports"), (-0.1, -0.2, "contradicts"), (0.001, -0.2, "indistinguishable")):
        row = rows_of([synthetic(sparse, dense, seed=seed) for seed in range(3)])["SHIFT"]
        assert row.verdict == verdict, (sparse, row.judgement)


def test_every_claim_has_a_measure_or_says_what_it_needs() -> None:
    for claim in CLAIMS:
        assert claim.measure in MEASURES or claim.only_if or claim.id in ("T2", "ALWAYS"), claim.id
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)


def test_what_a_choice_needs() -> None:
    assert needed_measures(choose_claims(["EASE"])) == ["losses", "predictability"]
    assert needed_measures(choose_claims(["T2"])) == ["losses", "superposition", "circuits"]
    assert set(needed_measures(choose_claims(None))) == {"losses", *(claim.measure for claim in CLAIMS if claim.measure)}
    with pytest.raises(UnknownNameError, match="FRACTURE"):
        choose_claims(["FRACTUR"])


def test_means_over_layers() -> None:
    found = mean_results([{"a": exact(1.0), "b": exact(1.0)}, {"a": exact(3.0), "b": not_measurable("dead")}])
    assert found["a"].value == 2.0 and found["b"].reason == "dead"
