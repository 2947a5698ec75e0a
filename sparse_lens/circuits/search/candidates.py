"""Candidates around a learned mask, whether of nodes or of edges: which masks are scored, and which one is taken.

Loss is not monotone in size, so a bisection alone is never trusted: every learned mask, masks met along the way, everything
that is allowed, prefixes of the learned ranking inside and around the mask, and the best of these less single gates are
candidates, equally many for every mask that leads to a circuit at the target.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_lens.circuits.search.config import SearchConfig
from sparse_lens.circuits.search.interrupting import SearchInterrupted
from sparse_lens.circuits.search.learning import LearnedMask
from sparse_lens.circuits.search.objectives import Measured


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask with what is dead dropped, and its loss; `measured` holds further losses where they were asked for."""

    mask: Bool[Tensor, " gate"]
    loss: float
    source: str
    measured: Measured | None = None

    @property
    def size(self) -> int:
        return int(self.mask.sum())


Score = Callable[[Tensor, str], Candidate]
"""Drops what is dead from a mask and measures its loss; the text says where the mask comes from."""


def best_candidate(candidates: Sequence[Candidate], target: float) -> Candidate:
    """The smallest candidate that meets `target`; without one, the candidate of least loss."""
    reached = [candidate for candidate in candidates if candidate.loss <= target]
    if reached:
        return min(reached, key=lambda candidate: (candidate.size, candidate.loss))
    return min(candidates, key=lambda candidate: candidate.loss)


def score_masks(score: Score, learned: Sequence[LearnedMask], target: float, config: SearchConfig) -> list[Candidate]:
    """The candidates around all learned masks; `SearchInterrupted` with those scored so far if a Ctrl-C comes in between."""
    found: list[Candidate] = []

    def noted(mask: Tensor, source: str) -> Candidate:
        found.append(score(mask, source))
        return found[-1]

    try:
        for mask in learned:
            gather_candidates(noted, mask, target, config)
    except KeyboardInterrupt:
        if not found:
            raise
        raise SearchInterrupted(found) from None
    return found


def gather_candidates(score: Score, learned: LearnedMask, target: float, config: SearchConfig) -> list[Candidate]:
    """`config.evaluations` candidates around one learned mask, fewer if none meets the target."""
    if config.method == "published":
        return _bisected(score, learned, target, config.evaluations)
    evaluations = config.evaluations
    masks = {"mask": learned.mask, "smallest": learned.smallest, "everything": learned.allowed}
    masks |= {f"snapshot {index}": mask for index, mask in enumerate(learned.snapshots)}
    found = [score(mask, source) for source, mask in masks.items() if mask is not None][:evaluations]
    order = _order(learned)
    sizes = _sizes(int(learned.mask.sum()), len(order), found[0].loss <= target)
    size = next(sizes, None)
    while size is not None and len(found) < evaluations:
        prefix = torch.zeros_like(learned.mask)
        prefix[order[:size]] = True
        found.append(score(prefix, f"prefix {size}"))
        try:
            size = sizes.send(found[-1].loss <= target)
        except StopIteration:
            size = None
    best = best_candidate(found, target)
    for gate in order.flip(0).tolist():  # with what is left of the effort, single gates are tried, the lowest ranked first
        if len(found) >= evaluations or best.loss > target:
            break
        if best.mask[gate]:
            fewer = best.mask.clone()
            fewer[gate] = False
            found.append(score(fewer, f"without {gate}"))
            best = best_candidate([best, found[-1]], target)
    return found


def _order(learned: LearnedMask) -> Int[Tensor, " allowed"]:
    """The gates that may be open, the highest ranked first."""
    order = learned.ranking.argsort(descending=True)
    return order[learned.allowed[order]]


def _bisected(score: Score, learned: LearnedMask, target: float, evaluations: int) -> list[Candidate]:
    """Everything that is allowed, and prefixes of the ranking by bisection between nothing and everything: as published."""
    found = [score(learned.allowed, "everything")]
    order = _order(learned)
    low, high = 0, len(order)
    while high - low > 1 and len(found) < evaluations:
        middle = (low + high) // 2
        prefix = torch.zeros_like(learned.mask)
        prefix[order[:middle]] = True
        found.append(score(prefix, f"prefix {middle}"))
        low, high = (low, middle) if found[-1].loss <= target else (middle, high)
    return found


def _sizes(size: int, most: int, met: bool) -> Generator[int, bool, None]:
    """Prefix sizes to try, told each time whether the last one met the target: grow until one does, then bisect below it."""
    low, high = (0, size) if met else (size, size)
    grow = 1.05
    while not met and high < most:
        low, high = high, min(most, max(high + 1, int(size * grow)))
        met = yield high
        grow = 1 + 2 * (grow - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if (yield middle) else (middle, high)
