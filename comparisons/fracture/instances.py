"""Prompts of several tasks as rows, each with two partners of the same concept: the mirrored prompt and the renamed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.prompts import Prompts
from sparse_lens.circuits.scoring import answer_logits
from sparse_lens.errors import UnknownNameError
from sparse_lens.tasks import TaskBatch, get_task

_SPLIT = "heldout"


@dataclass(frozen=True, eq=False)
class Instances:
    """Rows of prompts, task by task; the answer is predicted at `position`.

    `side` is 0 for clean and 1 for corrupt prompts, `twin` 0 or 1 for the two programs that differ in names only, `pair` their
    number within the `task`.
    """

    tokens: Int[Tensor, "row pos"]
    position: Int[Tensor, " row"]
    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]
    task: Int[Tensor, " row"]
    pair: Int[Tensor, " row"]
    side: Int[Tensor, " row"]
    twin: Int[Tensor, " row"]

    def partners(self, kind: str) -> tuple[Int[Tensor, " instance"], Int[Tensor, " instance"]]:
        """Rows and their partners: `mirror` clean and corrupt, `renamed` the two twins; raises `UnknownNameError` for others."""
        if kind not in ("mirror", "renamed"):
            raise UnknownNameError("kind of partner", kind, ("mirror", "renamed"))
        varied, kept = (self.side, self.twin) if kind == "mirror" else (self.twin, self.side)
        key = (self.task * (int(self.pair.max()) + 1) + self.pair) * 2 + kept
        sides = [(varied == value).nonzero().flatten() for value in (0, 1)]
        here, there = (rows[key[rows].argsort()] for rows in sides)
        return here, there

    def first_pairs(self, n: int) -> Instances:
        """The rows of the first `n` pairs of every task."""
        return Instances(*(getattr(self, field.name)[self.pair < n] for field in fields(self)))

    def prompts(self, rows: Int[Tensor, " some"]) -> Prompts:
        """Some of the rows, cut to the longest, as what circuits are scored on; the two sides of a program are a pair."""
        position = self.position[rows]
        tokens = self.tokens[rows, : int(position.max()) + 1]
        return Prompts(tokens, tokens, position, self.right[rows], self.wrong[rows], 2 * self.pair[rows] + self.twin[rows])


def sample_instances(bridge: Any, tasks: Sequence[str], *, n_pairs: int, seed: int = 0) -> Instances:
    """`n_pairs` held-out pairs of every task, and as many with other words from the same templates in the same order."""
    parts = []
    for number, name in enumerate(tasks):
        for twin in (0, 1):
            batch = get_task(name).sample(bridge.tokenizer, n_pairs, seed=2 * seed + twin, split=_SPLIT)
            parts += [_rows(batch, side, number, twin) for side in (0, 1)]
    longest = max(part.tokens.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part.tokens, (0, longest - part.tokens.shape[1])) for part in parts]
    names = ("position", "right", "wrong", "task", "pair", "side", "twin")
    return Instances(torch.cat(padded), **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _rows(batch: TaskBatch, side: int, task: int, twin: int) -> Instances:
    answers = (batch.target, batch.distractor) if side == 0 else (batch.distractor, batch.target)
    tokens, position = torch.from_numpy((batch.clean, batch.corrupt)[side]), torch.from_numpy(batch.length) - 1
    right, wrong = (torch.from_numpy(answer) for answer in answers)
    same = [torch.full_like(position, value) for value in (task, side, twin)]
    return Instances(tokens, position, right, wrong, same[0], torch.arange(len(batch)), same[1], same[2])


@dataclass(frozen=True, eq=False)
class Answers:
    """Log-probabilities at the answer position, and the right answer's logit minus the wrong one's."""

    log_probs: Float[Tensor, "row vocab"]
    differences: Float[Tensor, " row"]

    @cached_property
    def accuracy(self) -> float:
        """The share of prompts whose right answer is the likelier of the two."""
        return float((self.differences > 0).double().mean())


@torch.no_grad()
def answers_of(bridge: Any, instances: Instances) -> Answers:
    """The model's answers, under whatever hooks are set; these must treat all tokens alike.

    Task by task, for their prompts are of different lengths, and what both sides of a pair begin with is run once.
    """
    logits: list[Tensor] = []
    for task in instances.task.unique():
        rows = (instances.task == task).nonzero().flatten()
        logits.append(answer_logits(bridge, instances.prompts(rows), [], alike=True))
    found, row = torch.cat(logits), torch.arange(len(instances.tokens))
    return Answers(found.log_softmax(-1), found[row, instances.right] - found[row, instances.wrong])
