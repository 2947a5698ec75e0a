"""The metrics of one state: the known answers of the reference's table, the Gaussian null, scale and basis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import Tensor

from sparse_lens.comparisons.shift import METRICS, gaussian_null, sparsity_metrics
from sparse_lens.dictionaries import random_rotation
from sparse_lens.errors import DataError

D = 400
TABLE = {
    "one-hot": (1, (1.0, 1.0, 0.0025, 1.0, 0.9975, 0.0025)),
    "constant": (D, (0.05, 0.10, 1.0, 0.0, 0.0, 1.0)),
    "40 equal": (40, (0.5, 1.0, 0.1, 0.7198, 0.9, 0.1)),
    "10 equal": (10, (1.0, 1.0, 0.025, 0.8862, 0.975, 0.025)),
}


def equal(k: int) -> Tensor:
    """`k` equal channels of 400, with either sign, spread over the vector."""
    h = torch.zeros(D, dtype=torch.float64)
    places = torch.arange(k) * (D // k)
    h[places] = 0.7 * (1.0 - 2.0 * (torch.arange(k) % 2)).double()
    return h if k < D else h.abs()


def named(h: Tensor) -> dict[str, float]:
    return dict(zip(METRICS, sparsity_metrics(h).tolist(), strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_known_answers(name: str) -> None:
    """One-hot, constant, 40 and 10 equal channels of 400, to the digits of the reference."""
    k, (top5, top10, rank, hoyer, gini, participation) = TABLE[name]
    found = named(equal(k))
    assert found["top_1_percent_energy"] == pytest.approx(min(1.0, 4 / k))
    assert found["top_5_percent_energy"] == pytest.approx(top5)
    assert found["top_10_percent_energy"] == pytest.approx(top10)
    assert found["effective_rank_energy_share"] == pytest.approx(rank)
    assert found["effective_rank_amplitude_share"] == pytest.approx(rank)
    assert found["hoyer"] == pytest.approx(hoyer, abs=5e-5)
    assert found["gini"] == pytest.approx(gini, abs=1e-12)
    assert found["participation_share"] == pytest.approx(participation)
    assert found["l1"] == pytest.approx(0.7 * k)
    assert found["l0_above_deviation_share"] == pytest.approx(0.0 if k == D else k / D)


def test_a_rotated_vector_falls_to_gaussian_values() -> None:
    """10 equal channels, rotated: within four standard errors of a Gaussian vector on average, and like the reference's draw."""
    found = torch.stack([sparsity_metrics(equal(10) @ random_rotation(D, seed, dtype=torch.float64)) for seed in range(24)])
    scale = float(equal(10).norm())
    for place, name in enumerate(METRICS):
        error = float(found[:, place].std()) / np.sqrt(len(found))
        null = gaussian_null(D)[name] * (scale if name == "l1" else 1.0)
        assert abs(float(found[:, place].mean()) - null) < 4 * error + 1e-3 * abs(null), name
    published = {"top_5_percent_energy": 0.283, "top_10_percent_energy": 0.427, "hoyer": 0.204, "gini": 0.403}
    published |= {"participation_share": 0.339, "effective_rank_energy_share": 0.498, "effective_rank_amplitude_share": 0.760}
    for name, value in published.items():
        column = found[:, METRICS.index(name)]
        assert float(column.min()) - 0.01 <= value <= float(column.max()) + 0.01, name


def test_gaussian_null() -> None:
    """The limits for many channels (in closed form), and the reference's figures of a finite draw at d = 400."""
    null = gaussian_null(D)
    limits = {
        "effective_rank_energy_share": np.exp(-digamma(1.5) - np.log(2)),
        "effective_rank_amplitude_share": np.sqrt(2 / np.pi) * np.exp(-(digamma(1) + np.log(2)) / 2),
        "hoyer": (np.sqrt(D) - np.sqrt(2 * D / np.pi)) / (np.sqrt(D) - 1),
        "gini": np.sqrt(2) - 1,
    }
    for name, value in limits.items():
        assert null[name] == pytest.approx(value, abs=0.002), name
    published = {"top_5_percent_energy": 0.280, "top_10_percent_energy": 0.437, "effective_rank_energy_share": 0.486}
    published |= {"effective_rank_amplitude_share": 0.752, "hoyer": 0.210, "gini": 0.414, "participation_share": 0.336}
    published |= {"l0_above_deviation_share": 0.162}
    for name, value in published.items():
        assert null[name] == pytest.approx(value, abs=0.004), name
    assert null["kurtosis"] == pytest.approx(3.0, abs=0.05)
    assert null["l1"] == pytest.approx(np.sqrt(2 * D / np.pi), rel=0.002)


def test_all_but_l1_ignore_the_scale() -> None:
    """A thousandfold state has the same metrics, and a thousandfold L1."""
    h = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = sparsity_metrics(h), sparsity_metrics(-1000 * h)
    other = [place for place, name in enumerate(METRICS) if name != "l1"]
    torch.testing.assert_close(before[:, other], after[:, other])
    torch.testing.assert_close(1000 * before[:, METRICS.index("l1")], after[:, METRICS.index("l1")])


def test_against_plain_loops() -> None:
    """A second witness for each formula, by loops over the channels."""
    h = np.random.default_rng(1).standard_t(3, 50)
    found, size, energy = named(torch.from_numpy(h)), np.sort(np.abs(h)), h**2
    p, q = energy / energy.sum(), size / size.sum()
    gini = sum(abs(a - b) for a in size for b in size) / (2 * 50 * size.sum())
    moment = np.mean((h - h.mean()) ** 4) / np.var(h) ** 2
    expected = {
        "top_1_percent_energy": energy.max() / energy.sum(),
        "top_10_percent_energy": np.sort(energy)[-5:].sum() / energy.sum(),
        "effective_rank_energy_share": np.exp(-(p * np.log(p)).sum()) / 50,
        "effective_rank_amplitude_share": np.exp(-(q * np.log(q)).sum()) / 50,
        "gini": gini,
        "hoyer": (np.sqrt(50) - size.sum() / np.sqrt(energy.sum())) / (np.sqrt(50) - 1),
        "l0_above_deviation_share": np.mean(size > size.mean() + size.std(ddof=1)),
        "participation_share": energy.sum() ** 2 / (50 * (energy**2).sum()),
        "kurtosis": moment,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_what_has_no_answer() -> None:
    """A row of zeros has no metric but L1; a constant row no kurtosis; one channel is refused."""
    zeros = named(torch.zeros(8))
    assert all(np.isnan(value) for name, value in zeros.items() if name != "l1")
    assert zeros["l1"] == 0
    assert np.isnan(named(torch.full((8,), 0.1))["kurtosis"])
    with pytest.raises(DataError, match="1 channel"):
        sparsity_metrics(torch.ones(3, 1))
    with pytest.raises(DataError):
        gaussian_null(1)
