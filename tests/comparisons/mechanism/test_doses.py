"""Dose and response: planted orders, matched losses only, and a shipped pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.mechanism.doses import Dose, dose_response, measure_doses
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.hooks import sparsity_report
from sparse_lens.results import Result, exact, not_measurable

DENSITIES = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0)


def planted(values: list[float], *, error: float = 0.0, losses: list[float] | None = None) -> dict[str, Dose]:
    """A dose for each of the six densities."""
    losses = losses or [3.5] * len(values)
    triples = zip(DENSITIES, values, losses, strict=True)
    return {
        f"d{density}": Dose(density, exact(loss, n=8), Result(value, value - error, value + error))
        for density, value, loss in triples
    }


def test_a_planted_order_is_recovered() -> None:
    """Rising and falling: rho of one and a permutation p of 2 in 720; the slope is the planted one."""
    rising = dose_response(planted([1 + 2 * float(np.log10(d)) for d in DENSITIES]), target="d0.05").results
    assert rising["spearman"].value == pytest.approx(1) and rising["spearman"].lo == pytest.approx(1)
    assert rising["slope_per_decade"].value == pytest.approx(2) and rising["slope_per_decade"].lo == pytest.approx(2)
    assert rising["permutation_p"].value == pytest.approx(2 / 720)
    falling = dose_response(planted([6.0, 5, 4, 3, 2, 1]), target="d0.05").results
    assert falling["spearman"].value == pytest.approx(-1) and falling["doses"].value == 6


def test_no_order_has_an_interval_around_zero() -> None:
    """Values without order; and a weak order among large errors of measurement."""
    values = [3.0, 1.0, 2.5, 1.5, 2.0, 2.2]
    found = dose_response(planted(values), target="d1.0").results
    assert found["spearman"].value == pytest.approx(float(stats.spearmanr(DENSITIES, values).statistic))
    assert (found["spearman"].lo or 0) < 0 < (found["spearman"].hi or 0) and (found["permutation_p"].value or 0) > 0.2
    unsure = dose_response(planted([1.0, 2, 3, 4, 5, 6], error=20.0), target="d1.0").results["spearman"]
    assert unsure.value == pytest.approx(1) and (unsure.lo or 0) < 0


def test_the_permutation_p_by_brute_force() -> None:
    """All orders of six values with scipy's correlation; more points are drawn."""
    values = [1.0, 3.0, 2.0, 4.0, 6.0, 5.0]
    found = dose_response(planted(values), target="d1.0").results["permutation_p"].value
    strength = abs(float(stats.spearmanr(DENSITIES, values).statistic))
    orders = [np.corrcoef(range(6), order)[0, 1] for order in itertools.permutations(values)]  # they are ranks
    assert found == pytest.approx(float(np.mean([abs(order) >= strength - 1e-9 for order in orders])))
    seeds = {f"{name}-{seed}": Dose(d.density, d.loss, d.value, seed) for name, d in planted(values).items() for seed in (0, 1)}
    many = dose_response(seeds, target="d1.0-0")
    assert len(many.points) == 12 and many.results["doses"].seeds == 2
    assert 0 < (many.results["permutation_p"].value or 0) < 0.02


def test_unmatched_losses_are_named_and_not_used() -> None:
    """Two doses too good for the target: not in the order, and said so."""
    found = dose_response(planted([1.0, 2, 3, 4, 9, 0], losses=[3.52, 3.5, 3.5, 3.46, 3.3, 3.2]), target="d0.05")
    assert found.results["spearman"].value == pytest.approx(1) and found.results["doses"].value == 4
    assert set(found.apart) == {(0.5, 0), (1.0, 0)} and "too far apart" in found.apart[1.0, 0]
    few = dose_response(planted([1.0, 2, 3, 4, 9, 0], losses=[3.52, 3.5, 3.5, 3.3, 3.3, 3.2]), target="d0.05").results
    assert not few["spearman"].measurable and "3 densities" in str(few["spearman"].reason)


def test_two_models_on_either_side_are_interpolated() -> None:
    """At density 1 a better and a worse model: half-way in the loss, half-way between the logarithms."""
    doses = planted([1.0, 2, 3, 4, 5, 4.0], losses=[3.5] * 5 + [3.3])
    doses["worse"] = Dose(1.0, exact(3.7, n=8), exact(9.0))
    found = dose_response(doses, target="d0.05")
    assert found.matches[1.0, 0].how == "interpolated" and not found.apart
    assert found.points[-1][1].value == pytest.approx(6.0) and found.results["spearman"].value == pytest.approx(1)


def test_what_has_no_value_is_no_point() -> None:
    """A value that is not measurable, and values that are all the same."""
    doses = planted([1.0, 2, 3, 4, 5, 6])
    doses["d1.0"] = Dose(1.0, exact(3.5, n=8), not_measurable("failed its gate"))
    assert dose_response(doses, target="d0.05").results["doses"].value == 5
    same = dose_response(planted([2.0] * 6), target="d0.05").results
    assert not same["spearman"].measurable and "same at every density" in str(same["spearman"].reason)
    with pytest.raises(UnknownNameError, match=r"d0\.07"):
        dose_response(doses, target="d0.07")
    with pytest.raises(ConfigError, match="share of nonzeros"):
        Dose(0.0, exact(3.5), exact(1.0))


def test_the_shipped_models() -> None:
    """Two densities are no order; the estimator runs on the bridges, the losses are theirs."""
    pair = ModelPair.open()
    models = {role: (density, 0, pair.open_model(role)) for role, density in (("sparse", 0.05), ("dense_matched", 1.0))}
    doses = measure_doses(models, lambda bridge: exact(sparsity_report(bridge).density), pair.windows["heldout"][:4])
    assert doses["dense_matched"].value.value == 1 and doses["sparse"].loss.n == 4
    found = dose_response(doses, target="sparse", tolerance=1.0).results
    assert not found["spearman"].measurable and found["doses"].value == 2
