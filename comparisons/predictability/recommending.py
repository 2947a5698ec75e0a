"""EASE as the recommender that it was published as: held-out users, ranked items, and popularity as what any method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sparse_lens.comparisons.predictability.ridge import RECBOLE_LAM, ease
from sparse_lens.errors import DataError
from sparse_lens.results import Result, bootstrap_mean, exact

_MOST_BYTES, _MOST_ENTRIES = 1 << 28, 1 << 28
_RECALL_AT, _NDCG_AT = (20, 50), 100


def read_ratings(path: str | Path, *, least: float = 0.0) -> Float[np.ndarray, "user item"]:
    """The matrix of zeros and ones of a file of ratings: which user gave which item at least `least`.

    One rating a line, `user item rating ...` between tabs, as MovieLens-100K's `u.data` and RecBole's `ml-100k.inter` have it
    (a first line without numbers is skipped). Raises `DataError` for a file that is too large or written otherwise.
    """
    file = Path(path)
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise DataError(f"{file} has {size:,} bytes, at most {_MOST_BYTES:,} are read; the matrix would not fit in memory")
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t")[:3] for line in lines if line.split("\t", 1)[0].isdecimal()]
        users, items, ratings = (np.array(column) for column in zip(*rows, strict=True))
        kept = ratings.astype(np.float64) >= least
        user, item = (_numbered(names) for names in (users, items))
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file} is no table of user, item and rating between tabs: {error}") from error
    n_users, n_items = int(user.max()) + 1, int(item.max()) + 1
    if n_users * n_items > _MOST_ENTRIES:
        raise DataError(f"{file} has {n_users:,} users and {n_items:,} items, a matrix of more than {_MOST_ENTRIES:,} entries")
    matrix = np.zeros((n_users, n_items))
    matrix[user[kept], item[kept]] = 1
    return matrix


def _numbered(names: np.ndarray) -> np.ndarray:
    """Each name's place among the sorted names: by number where all are numbers, so that draws are the same for both formats."""
    numbers = bool(np.char.isdecimal(names).all())
    return np.unique(names.astype(np.int64) if numbers else names, return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class HeldOutUsers:
    """Users to learn from, and others of whom a part of their items is given (the fold-in) and the rest to be found."""

    training: Float[np.ndarray, "user item"]
    given: Float[np.ndarray, "other item"]
    hidden: Float[np.ndarray, "other item"]


def hold_out_users(
    interactions: Float[np.ndarray, "user item"], *, n_users: int = 150, hidden_share: float = 0.2, seed: int = 0
) -> HeldOutUsers:
    """Draw `n_users`, and hide a share of the items of each (at least one); users with fewer than two items are left out.

    Raises `DataError` if there are not more users than that.
    """
    users = np.flatnonzero((interactions > 0).sum(1) >= 2)
    if not 0 < n_users < len(users):
        raise DataError(f"{n_users} users cannot be held out of {len(users)} with two items or more; hold out fewer")
    generator = np.random.default_rng(seed)
    users = generator.permutation(users)
    others, training = interactions[users[:n_users]], interactions[users[n_users:]]
    given = others.copy()
    for row in given:
        items = generator.permutation(np.flatnonzero(row))
        row[items[: max(1, int(hidden_share * len(items)))]] = 0
    return HeldOutUsers(training, given, others - given)


def ranking_quality(
    scores: Float[np.ndarray, "other item"], split: HeldOutUsers, *, null: Mapping[str, Result] | None = None
) -> dict[str, Result]:
    """Recall@20, Recall@50 and NDCG@100 of the hidden items among all that were not given, means over users.

    Recall@k is the share of `min(k, hidden items)` found; NDCG weighs place r by `1 / log2(r + 1)`, both after Liang et al.
    (arXiv:1802.05814, section 4.2). `null` is another method's answer on the same split.
    """
    ranked = np.argsort(-np.where(split.given > 0, -np.inf, scores), axis=1, kind="stable")[:, :_NDCG_AT]
    hits = np.take_along_axis(split.hidden > 0, ranked, axis=1)
    hidden = (split.hidden > 0).sum(1)
    found = {f"recall_at_{k}": hits[:, :k].sum(1) / np.minimum(hidden, k) for k in _RECALL_AT}
    gains = 1 / np.log2(np.arange(2, ranked.shape[1] + 2))
    best = np.array([gains[:n].sum() for n in hidden])
    found[f"ndcg_at_{_NDCG_AT}"] = (hits * gains).sum(1) / best
    return {name: bootstrap_mean(values, null=null[name].value if null else None) for name, values in found.items()}


def recommender_report(
    interactions: Float[np.ndarray, "user item"], *, lam: float = RECBOLE_LAM, n_users: int = 150, seed: int = 0
) -> dict[str, Result]:
    """EASE on held-out users: its ranking with popularity as the null, the same with negative weights set to zero, their share.

    Clipping is not the published variant with weights bound to be nonnegative (arXiv:1905.03375, section 4), which is fitted anew.
    """
    split = hold_out_users(interactions, n_users=n_users, seed=seed)
    weights = ease(split.training, lam).numpy()
    popularity = ranking_quality(np.broadcast_to(split.training.sum(0), split.given.shape), split)
    signed = ranking_quality(split.given @ weights, split, null=popularity)
    clipped = ranking_quality(split.given @ weights.clip(min=0), split, null=popularity)
    negative = float((weights < 0).sum() / np.count_nonzero(weights))
    return {
        **signed,
        **{f"popularity_{name}": result for name, result in popularity.items()},
        **{f"clipped_{name}": result for name, result in clipped.items()},
        "negative_weights_share": exact(negative, n=weights.size),
    }
