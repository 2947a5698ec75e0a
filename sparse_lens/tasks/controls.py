"""Controls made from any task: the same prompts with labels that cannot be right for a reason.

A search that finds as small a circuit for these as for the task itself has fitted, not found. `get_task("NAME~shuffled")` and
`get_task("NAME~random-1")` make them; the number is the draw.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from sparse_lens.errors import UnknownNameError
from sparse_lens.tasks.batch import AnyTask, PromptPair, TaskBatch
from sparse_lens.tasks.metrics import Metric
from sparse_lens.tasks.tokens import Encoder

ControlKind = Literal["shuffled", "random"]
MARK = "~"


@dataclass(frozen=True)
class ControlTask:
    """`shuffled`: a coin for each pair swaps its two answers. `random`: other tokens, drawn once, stand for the answers."""

    base: AnyTask
    kind: ControlKind
    draw: int = 0
    control: bool = True

    @property
    def name(self) -> str:
        return f"{self.base.name}{MARK}{self.kind}" + (f"-{self.draw}" if self.draw else "")

    @property
    def description(self) -> str:
        labels = "answers swapped by a coin for each pair" if self.kind == "shuffled" else "two random tokens for its answers"
        return f"Control: {self.base.name} with {labels}."

    @property
    def metric(self) -> Metric | None:
        """The task's own, if it has one."""
        return getattr(self.base, "metric", None)

    def sample(self, tokenizer: Any, n: int, *, seed: int, split: str) -> TaskBatch:
        """The task's own pairs, with this control's labels."""
        batch = self.base.sample(tokenizer, n, seed=seed, split=split)
        return self._shuffled(batch) if self.kind == "shuffled" else self._random(batch, Encoder(tokenizer))

    def _shuffled(self, batch: TaskBatch) -> TaskBatch:
        swap = np.array([self._coin(pair) for pair in batch.pairs])
        pairs = tuple(
            replace(pair, target=pair.distractor, distractor=pair.target) if swapped else pair
            for pair, swapped in zip(batch.pairs, swap, strict=True)
        )
        target = np.where(swap, batch.distractor, batch.target)
        return replace(batch, target=target, distractor=np.where(swap, batch.target, batch.distractor), pairs=pairs)

    def _coin(self, pair: PromptPair) -> bool:
        """The same for a pair whichever of its prompts is the clean one."""
        return random.Random(f"{self.draw}:{min(pair.clean, pair.corrupt)}").random() < 0.5

    def _random(self, batch: TaskBatch, encoder: Encoder) -> TaskBatch:
        answers = sorted({*batch.target.tolist(), *batch.distractor.tolist()})
        others = [token for token in range(encoder.vocab_size) if token != encoder.end and token not in answers]
        drawn = random.Random(f"{self.base.name}:{self.draw}").sample(others, len(answers))
        of = dict(zip(answers, drawn, strict=True))
        target, distractor = (np.array([of[token] for token in side.tolist()]) for side in (batch.target, batch.distractor))
        texts = {token: encoder.text(token) for token in drawn}
        pairs = tuple(
            replace(pair, target=texts[right], distractor=texts[wrong])
            for pair, right, wrong in zip(batch.pairs, target.tolist(), distractor.tolist(), strict=True)
        )
        return replace(batch, target=target, distractor=distractor, pairs=pairs)


def control_of(base: AnyTask, suffix: str) -> ControlTask:
    """The control that `suffix` names: `shuffled`, `random`, either with `-DRAW`; raises `UnknownNameError` for another."""
    kind, _, draw = suffix.partition("-")
    if kind not in get_args(ControlKind) or not (draw.isdecimal() or not draw):
        raise UnknownNameError("control", suffix, get_args(ControlKind))
    return ControlTask(base, "shuffled" if kind == "shuffled" else "random", int(draw or 0))
