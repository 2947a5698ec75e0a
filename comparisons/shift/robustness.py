"""What a model loses along a ladder of shift, sparse against dense: loss, and scores of tasks whose prompts are shifted alike.

Rises are within a model, so that a model that is worse to begin with is not less robust for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sparse_lens.circuits.prompts import Prompts, both_sides, per_pair
from sparse_lens.circuits.scoring import answer_differences, answer_logits
from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.comparisons.shift.ladder import ShiftLadder
from sparse_lens.comparisons.shift.level_means import LevelSums, result_of
from sparse_lens.comparisons.shift.losses import bridge_losses
from sparse_lens.comparisons.shift.python_ladders import SHARES
from sparse_lens.comparisons.shift.renaming import names_in, rare_names, renamed
from sparse_lens.errors import DataError
from sparse_lens.results import Result
from sparse_lens.tasks import AnyTask, TaskBatch
from sparse_lens.tasks.batch import PromptPair, encode_pair, make_batch
from sparse_lens.tasks.tokens import Encoder

Score = Callable[[Any, float], Float[np.ndarray, " sample"]]
"""A score of a bridge at a dose of a shift; the same samples, in the same order, at every dose."""


def robustness_slopes(
    columns: Mapping[str, Any],
    ladder: ShiftLadder,
    *,
    scores: Mapping[str, Score] | None = None,
    doses: Sequence[float] = SHARES,
    n_boot: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, dict[str, Result]]:
    """Loss along a ladder and `scores` along `doses`, of several bridges; rows `A - B` hold the first less each other one.

    `loss_slope` is in nats per unit of the ladder's shift, `loss_at_…` in nats per token over all tokens read,
    `loss_rank_correlation` Spearman's. For a score `accuracy`: `accuracy_slope` from dose 0 to dose 1, `accuracy_at_0.5`, and its
    rank correlation. Intervals draw texts, or samples, anew, the same for all columns. `random_weights_…` is the same with every
    tensor's nonzero weights in other places. Other measures, `d_abl` of `structural_compositionality` among them, are scores that
    the caller gives. A rotation that keeps the function keeps losses and scores: there is no such control here.
    Raises `DataError` where a score has not as many samples for every column.
    """
    settings = (ladder, scores or {}, doses, batch_size)
    model = {name: _curves(bridge, *settings) for name, bridge in columns.items()}
    control = {}
    for name, bridge in columns.items():
        with random_weights(bridge, seed=seed):
            control[name] = _curves(bridge, *settings)
    drawn = {name: _drawn(model[name], n_boot, seed) | _drawn(control[name], n_boot, seed, "random_weights_") for name in columns}
    first, *others = columns
    for other in others:
        if unlike := [name for name, (_, n) in drawn[first].items() if drawn[other][name][1] != n]:
            raise DataError(f"{first!r} and {other!r} have scores of unlike samples ({unlike[0]}); score both on the same ones")
        drawn[f"{first} - {other}"] = {name: (draws - drawn[other][name][0], n) for name, (draws, n) in drawn[first].items()}
    return {name: {key: result_of(draws, n) for key, (draws, n) in found.items()} for name, found in drawn.items()}


def renamed_task(task: AnyTask, tokenizer: Any, *, n_pairs: int = 64, shares: Sequence[float] = SHARES, seed: int = 0) -> Score:
    """Two-way accuracy on a task's held-out prompts with a share of their names written as rare strings, by pair of prompts.

    Names in the answers stay, and those of one side alone, which are what the two sides differ in. Pairs whose sides come out
    unlike in length at some share are left out at all.
    Raises `DataError` if none is left, or later for a share that is not among `shares`.
    """
    encoder = Encoder(tokenizer)
    batch = task.sample(tokenizer, n_pairs, seed=seed, split="heldout")
    encoded = {share: [_renamed(batch, row, share, encoder, seed) for row in range(len(batch))] for share in shares}
    rows = [row for row in range(len(batch)) if all(encoded[share][row] is not None for share in shares)]
    if not rows:
        raise DataError(f"no pair of task {task.name!r} keeps its two sides equally long when names change; take another task")
    answers = {batch.pairs[row]: (int(batch.target[row]), int(batch.distractor[row])) for row in rows}
    prompts = {
        share: both_sides(make_batch({batch.pairs[row]: sides[row] for row in rows}, answers, encoder.end))
        for share, sides in encoded.items()
    }
    return lambda bridge, share: _accuracy(bridge, prompts, share)


def _renamed(batch: TaskBatch, row: int, share: float, encoder: Encoder, seed: int) -> Any:
    pair = batch.pairs[row]
    kept = {name for answer in (pair.target, pair.distractor) for name, _ in names_in(answer)}
    clean, corrupt = ({name for name, _ in names_in(side)} for side in (pair.clean, pair.corrupt))
    names = rare_names([pair.clean, pair.corrupt], share, seed=seed + row, kept=kept | (clean ^ corrupt))
    other = PromptPair(renamed(pair.clean, names), renamed(pair.corrupt, names), pair.target, pair.distractor)
    return encode_pair(other, encoder, {pair.target: int(batch.target[row]), pair.distractor: int(batch.distractor[row])})


@torch.no_grad()
def _accuracy(bridge: Any, prompts: Mapping[float, Prompts], share: float) -> Float[np.ndarray, " pair"]:
    if share not in prompts:
        raise DataError(f"the task's prompts were shifted by {', '.join(map(str, prompts))}, not by {share}; name it in shares=")
    differences = answer_differences(answer_logits(bridge, prompts[share], [], alike=True), prompts[share])
    return per_pair((differences > 0).float(), prompts[share])


@dataclass(frozen=True, eq=False)
class Curve:
    """A number by text (or sample) and level, against the shift of the levels."""

    sums: LevelSums
    levels: tuple[str, ...]
    shift: tuple[float, ...]

    def draws(self, n_boot: int, seed: int) -> dict[str, Float[np.ndarray, " draw"]]:
        """Slope, rank correlation and levels by draw of texts; the first is of the texts as they are."""
        weights = self.sums.draw_weights(n_boot, seed)
        found = {
            "slope": self.sums.slopes(self.shift, weights)[:, 0],
            "rank_correlation": self.sums.rank_correlations(self.shift, weights)[:, 0],
        }
        levels = self.sums.levels(weights)[..., 0]
        return found | {f"at_{level}": levels[:, place] for place, level in enumerate(self.levels)}


def _drawn(curves: Mapping[str, Curve], n_boot: int, seed: int, control: str = "") -> dict[str, tuple[np.ndarray, int]]:
    """Draws of everything that the curves give, and of how many texts or samples."""
    return {
        f"{control}{name}_{key}": (draws, curve.sums.n_files)
        for name, curve in curves.items()
        for key, draws in curve.draws(n_boot, seed).items()
    }


def _curves(
    bridge: Any, ladder: ShiftLadder, scores: Mapping[str, Score], doses: Sequence[float], batch_size: int
) -> dict[str, Curve]:
    files = np.unique(np.concatenate(ladder.files))
    sums = LevelSums(len(files), len(ladder.levels), 1)
    for level, windows in enumerate(ladder.windows):
        losses = bridge_losses(bridge, windows, ladder.read_from[level], batch_size)
        sums.add(losses[:, None], level=level, files=np.searchsorted(files, ladder.files[level]))
    found = {"loss": Curve(sums, ladder.levels, ladder.shift)}
    for name, score in scores.items():
        samples = np.stack([np.asarray(score(bridge, dose), dtype=np.float64) for dose in doses])
        own = LevelSums(samples.shape[1], len(doses), 1)
        for level, values in enumerate(samples):
            own.add(values[:, None], level=level, files=np.arange(len(values)))
        found[name] = Curve(own, tuple(f"{dose:g}" for dose in doses), tuple(doses))
    return found
