"""Areas with known answers; curves of a planted circuit; rankings against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_lens.circuits.trust import completeness_curve, faithfulness_curve
from sparse_lens.circuits.trust.curves import SHARES, cmd, cmd_log, cpr, cpr_log, curve_sizes, random_ranking, ranked_after
from sparse_lens.errors import CircuitError

from .conftest import Planted, circuit_of, runs_of

GRID = np.array(SHARES) * 100_000


def test_areas_with_known_answers() -> None:
    """f = 1 gives CPR .999 and CMD 0, f(k) = k gives .500 and .499."""
    flat, rising = np.ones(len(GRID)), np.array(SHARES)
    assert cpr(GRID, flat, 100_000) == pytest.approx(0.999) and cmd(GRID, flat, 100_000) == 0
    assert round(float(cpr(GRID, rising, 100_000)), 3) == 0.5 and round(float(cmd(GRID, rising, 100_000)), 3) == 0.499
    assert cpr_log(np.array([1, 10, 100]), np.ones(3)) == pytest.approx(2) and cmd_log(np.array([1, 100]), np.zeros(2)) == 2


def test_areas_over_log_size_do_not_see_useless_nodes() -> None:
    """Ten times as many nodes, the new ones without effect: shares move, missing decades do not."""
    sizes, f = np.array([1, 10, 100]), np.array([0.0, 1.0, 1.0])
    assert cmd_log(np.append(sizes, 1000), np.append(f, 1.0)) == cmd_log(sizes, f)
    assert cmd(sizes, f, 100) != cmd(np.append(sizes, 1000), np.append(f, 1.0), 1000)


def test_the_planted_nodes_first_is_the_perfect_ranking(planted: Planted) -> None:
    runs = runs_of(planted)
    sizes = curve_sizes(planted.space.n_nodes, 4)
    ranking = ranked_after(random_ranking(runs), runs.circuit.mask)
    perfect = faithfulness_curve(runs, ranking, sizes)
    assert [point.value for point in perfect.points][-1] == pytest.approx(1)
    assert all((point.value or 0) > 0.95 for size, point in zip(sizes, perfect.points, strict=True) if size >= 4)
    missing = completeness_curve(runs, ranking, sizes)
    assert all(abs(point.value or 0) < 0.55 for size, point in zip(sizes, missing.points, strict=True) if size >= 4)
    for seed in range(3):
        chance = faithfulness_curve(runs, random_ranking(runs, seed=seed), sizes)
        assert (perfect.areas["cpr"].value or 0) > (chance.areas["cpr"].value or 0)
        assert (perfect.areas["cmd_log"].value or 0) < (chance.areas["cmd_log"].value or 0)


def test_a_point_is_the_recovered_share(planted: Planted) -> None:
    """At the circuit's own size the curve is its sufficiency, and the model without it its complement's share; n are the pairs."""
    runs = runs_of(planted)
    ranking = runs.circuit.mask.float()
    (point,) = faithfulness_curve(runs, ranking, [4]).points
    (rest,) = completeness_curve(runs, ranking, [4]).points
    expected = [runs.recovered(runs.alone), runs.recovered(runs.without)]
    assert [point.value, rest.value] == pytest.approx([result.value for result in expected])
    assert point.n == 64 and point.lo is not None and point.lo <= (point.value or 0) + 1e-9


def test_a_model_without_gain_has_no_curve(planted: Planted) -> None:
    """Answers that the model cannot tell apart: nothing to recover, so nothing is measurable."""
    runs = runs_of(planted)
    same = replace(runs, prompts=replace(runs.prompts, right=torch.full_like(runs.prompts.right, 0), wrong=runs.prompts.right * 0))
    curve = faithfulness_curve(same, random_ranking(runs), [1, 4])
    assert not curve.areas["cpr"].measurable and curve.areas["cpr"].value is None and curve.areas["cpr"].reason


def test_bad_input(planted: Planted) -> None:
    runs = runs_of(planted, circuit_of(planted))
    with pytest.raises(CircuitError, match="one value for each"):
        faithfulness_curve(runs, torch.zeros(3))
    with pytest.raises(CircuitError, match="ascend"):
        faithfulness_curve(runs, random_ranking(runs), [4, 2])
    with pytest.raises(CircuitError, match="ascend"):
        faithfulness_curve(runs, random_ranking(runs), [planted.space.n_nodes + 1])
