"""EASE: the closed form against ridge regressions done one by one, and the recommender on MovieLens-100K where it is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.comparisons.predictability.recommending import hold_out_users, ranking_quality, read_ratings, recommender_report
from sparse_lens.comparisons.predictability.ridge import ease, zero_diagonal_ridge
from sparse_lens.errors import DataError


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_every_column_is_the_ridge_regression_on_the_others() -> None:
    """`B[:, j]` solves `(X_-j' X_-j + lam) b = X_-j' x_j`; the closed form is exact to rounding."""
    X, lam = drawn(400, 12) @ drawn(12, 12, 1), 50.0
    B = ease(X, lam)
    assert float(B.diagonal().abs().max()) == 0
    for j in range(12):
        others = [i for i in range(12) if i != j]
        gram = X[:, others].T @ X[:, others] + lam * torch.eye(11, dtype=torch.float64)
        torch.testing.assert_close(B[others, j], torch.linalg.solve(gram, X[:, others].T @ X[:, j]), rtol=1e-10, atol=1e-12)


def test_residuals_are_those_of_the_prediction() -> None:
    """On other data, on the fitted data by the formula of its own, and of every third column."""
    X, Y = drawn(400, 12) @ drawn(12, 12, 1), drawn(100, 12, 2)
    solved = zero_diagonal_ridge(X.T @ X, 20.0)
    for data in (X, Y):
        direct = (data - data @ solved.weights).square().sum(0)
        torch.testing.assert_close(solved.residuals(data.T @ data), direct, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(solved.residuals(data.T @ data, every=3), direct[::3], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solved.fitted_residuals(), solved.residuals(X.T @ X), rtol=1e-9, atol=1e-9)


def test_orthonormal_columns_predict_nothing_and_copies_everything() -> None:
    """`B = 0` for orthonormal X; a column and its copy predict each other ever better as the ridge falls."""
    Q = torch.linalg.qr(drawn(50, 8)).Q
    assert float(ease(Q, 0.1).abs().max()) < 1e-14
    twice = torch.cat([drawn(100, 3), drawn(100, 3)[:, :1]], 1)
    B = ease(twice, 1e-6)
    assert B[0, 3] == pytest.approx(1, abs=1e-6) and B[3, 0] == pytest.approx(1, abs=1e-6)
    left = (twice - twice @ B).square().sum(0) / twice.square().sum(0)
    assert float(left[[0, 3]].max()) < 1e-12, "of both nothing is left to predict"
    with pytest.raises(DataError, match="not unique"):
        ease(twice, 0.0)


def test_arrays_tensors_and_sparse_matrices_are_the_same() -> None:
    """The recommender form takes what people have; dead items get no weight."""
    from scipy.sparse import csr_matrix

    X = (np.random.default_rng(0).random((60, 9)) < 0.3).astype(float)
    X[:, 4] = 0
    dense = ease(X, 5.0)
    assert torch.equal(dense, ease(torch.from_numpy(X), 5.0))
    torch.testing.assert_close(dense, ease(csr_matrix(X), 5.0))
    many = np.tile(X, (7, 1))  # 420 users: what two items share does not fit into eight bits
    for same in (many > 0, torch.from_numpy(many > 0), csr_matrix(many > 0), many.astype(np.int8), many.astype(np.uint8)):
        torch.testing.assert_close(ease(same, 5.0), ease(many, 5.0))
    assert float(dense[4].abs().max()) == float(dense[:, 4].abs().max()) == 0


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan), np.zeros(4), "rows"])
def test_what_is_no_matrix_of_numbers_is_refused(bad: object) -> None:
    """NaN, a vector, text."""
    with pytest.raises(DataError):
        ease(bad, 1.0)


def test_a_table_of_too_many_users_and_items_is_refused(tmp_path: Path) -> None:
    """A few hundred kilobytes of lines would be a matrix of terabytes."""
    path = tmp_path / "u.data"
    path.write_text("".join(f"{n}\t{n}\t5\n" for n in range(20_000)))
    with pytest.raises(DataError, match="20,000 users and 20,000 items"):
        read_ratings(path)


def test_a_negative_ridge_is_refused() -> None:
    """It would be a reward for large weights."""
    for lam in (-1.0, np.inf, np.nan):
        with pytest.raises(DataError, match="from 0 up"):
            ease(np.eye(3), lam)


@pytest.mark.parametrize("seed", range(20))
def test_a_solution_that_is_not_unique_is_refused_whatever_rounding_says(seed: int) -> None:
    """More columns than rows, and a column that is the sum of others: without a ridge neither has one answer."""
    wide, tall = drawn(12, 20, seed), drawn(60, 8, seed)
    tall[:, 5] = tall[:, 0] + tall[:, 3]
    for data in (wide, tall):
        with pytest.raises(DataError, match="not unique"):
            ease(data, 0.0)
    assert ease(tall[:, :5], 0.0).isfinite().all() and ease(tall, 1e-6).isfinite().all()
    few = drawn(1000, 3, seed) + 100
    few[:, 2] = few[:, 0] + few[:, 1]
    with pytest.raises(DataError, match="not unique"):
        ease(few, 0.0)


def test_ranking_quality_by_hand() -> None:
    """Two hidden items, one ranked first, one third: recall 1 of both; NDCG (1 + 1/2) / (1 + 1/log2 3)."""
    X = np.zeros((12, 30))
    X[:, :5] = 1
    split = hold_out_users(X, n_users=1, hidden_share=0.4)
    assert split.hidden.sum() == 2 and split.given.sum() == 3 and len(split.training) == 11
    first, second = np.flatnonzero(split.hidden[0])
    scores = np.zeros((1, 30))
    scores[0, [first, 20, second]] = 3, 2, 1
    scores += 100 * (split.given > 0)  # what was given is never recommended
    found = ranking_quality(scores, split)
    assert found["recall_at_20"].value == found["recall_at_50"].value == 1
    assert found["ndcg_at_100"].value == pytest.approx(1.5 / (1 + 1 / np.log2(3)))


def test_ratings_are_read_by_number_and_from_a_threshold(tmp_path: Path) -> None:
    """With a head line or without; items 2 and 10 are in the order of numbers."""
    path = tmp_path / "u.data"
    path.write_text("user_id:token\titem_id:token\trating:float\n1\t10\t5\t7\n1\t2\t3\t7\n30\t2\t4\t7\n")
    assert read_ratings(path).tolist() == [[1, 1], [1, 0]]
    assert read_ratings(path, least=4).tolist() == [[0, 1], [1, 0]]
    path.write_text("nothing\n")
    with pytest.raises(DataError, match="no table"):
        read_ratings(path)
    with pytest.raises(DataError, match="no table"):
        read_ratings(tmp_path / "absent")
    path.write_text(f"{10**20}\t1\t5\n")
    with pytest.raises(DataError, match="no table"):
        read_ratings(path)
    with pytest.raises(DataError, match="hold out fewer"):
        hold_out_users(np.ones((4, 3)), n_users=4)


def movielens() -> Path | None:
    """MovieLens-100K: where SPARSE_LENS_MOVIELENS says (`u.data`), or as the RecBole package brings it."""
    if named := os.environ.get("SPARSE_LENS_MOVIELENS"):
        return Path(named)
    found = importlib.util.find_spec("recbole")
    places = list(found.submodule_search_locations or []) if found else []
    files = [Path(place) / "dataset_example" / "ml-100k" / "ml-100k.inter" for place in places]
    return next((file for file in files if file.is_file()), None)


@pytest.mark.parametrize(
    ("least", "expected", "popularity", "clipped", "negative"),
    [
        (0, (0.451, 0.569, 0.530), (0.227, 0.320, 0.295), (0.440, 0.563, 0.520), 0.52),
        (4, (0.381, 0.553, 0.432), (0.191, 0.342, 0.265), (0.384, 0.545, 0.432), 0.59),
    ],
)
def test_movielens_100k(
    least: int, expected: tuple[float, ...], popularity: tuple[float, ...], clipped: tuple[float, ...], negative: float
) -> None:
    """The measured figures of 150 held-out users, 80/20, seed 0, lam 250, to the last digit but one that ties move."""
    path = movielens()
    if path is None:
        pytest.skip("MovieLens-100K is not installed: pip install --no-deps recbole==1.2.1, or set SPARSE_LENS_MOVIELENS")
    X = read_ratings(path, least=least)
    assert X.shape == (943, 1682) and X.sum() == (100_000 if least == 0 else 55_375)
    found = recommender_report(X)
    names = ("recall_at_20", "recall_at_50", "ndcg_at_100")
    for prefix, figures in (("", expected), ("popularity_", popularity), ("clipped_", clipped)):
        assert [found[prefix + name].value for name in names] == pytest.approx(figures, abs=0.0016)
    assert found["recall_at_20"].null == found["popularity_recall_at_20"].value
    assert found["negative_weights_share"].value == pytest.approx(negative, abs=0.005)
