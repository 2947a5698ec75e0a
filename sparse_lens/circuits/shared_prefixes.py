"""The two prompts of a pair in one sequence: what they begin with in common is run once.

A prompt and its counterpart are the same up to the first token in which they differ. Packed, a pair is that beginning, the rest
of one side, and the rest of the other, which does not look at the first; tokens keep their positions. A causal model then
gives the same logits as for two prompts apart, for little more than half the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparse_lens.circuits.prompts import Prompts


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """Pairs as sequences that branch: their tokens, the tokens' positions, which token looks at which, and the rows' answers.

    `sequence` and `answer` say in which sequence and at which of its tokens a row of the prompts is answered.
    """

    tokens: Int[Tensor, "pair token"]
    positions: Int[Tensor, "pair token"]
    looks: Bool[Tensor, "pair 1 token key"]
    sequence: Int[Tensor, " row"]
    answer: Int[Tensor, " row"]


def takes_branches(bridge: Any) -> bool:
    """Whether a model can be given sequences that branch: ours can, other architectures differ in what a mask may be."""
    return getattr(bridge.original_model, "core", None) is not None


def share_prefixes(prompts: Prompts) -> SharedPrefixes | None:
    """The prompts with the common beginning of each pair once; None if the rows are not whole pairs of equal lengths."""
    sides = _sides(prompts)
    if sides is None or not torch.equal(*(prompts.position[side] for side in sides)):
        return None
    first, second = sides
    n_pairs, length = len(first), prompts.position[first] + 1
    left, right = prompts.tokens[first], prompts.tokens[second]
    place = torch.arange(left.shape[1])
    differs = (left != right) & (place < length[:, None])
    common = torch.where(differs.any(1), differs.int().argmax(1), length)
    width = int((2 * length - common).max())
    token = torch.arange(width)
    branch = token >= length[:, None]
    source = torch.where(branch, token - length[:, None] + common[:, None], token).clamp(max=left.shape[1] - 1)
    tokens = torch.where(branch, right.gather(1, source), left.gather(1, source))
    beginning = token < common[:, None]
    looks = beginning[:, None, :] | (branch[:, :, None] == branch[:, None, :])
    sequence, answer = torch.empty(len(prompts), dtype=torch.long), torch.empty(len(prompts), dtype=torch.long)
    sequence[first] = sequence[second] = torch.arange(n_pairs)
    answer[first], answer[second] = length - 1, 2 * length - common - 1
    return SharedPrefixes(tokens, source, looks[:, None], sequence, answer)


def _sides(prompts: Prompts) -> tuple[Tensor, Tensor] | None:
    """Rows of the first and of the second side of every pair; None if some pair has not two rows."""
    order = prompts.pair.argsort(stable=True)
    pair = prompts.pair[order]
    if len(pair) != 2 * len(pair.unique()) or not torch.equal(pair[::2], pair[1::2]):
        return None
    return order[::2], order[1::2]
