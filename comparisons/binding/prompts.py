"""Binding programs as rows of token ids, with the places of their names and values, and the answers that a model chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.comparisons.binding.programs import BindingProgram
from sparse_lens.errors import DataError
from sparse_lens.tasks.batch import Span
from sparse_lens.tasks.tokens import Encoder

ROWS = 256
"""Prompts that run at once."""


@dataclass(frozen=True, eq=False)
class BindingPrompts:
    """Rows of prompts with as many variables each, end-of-text first, right-padded; the answer is predicted at `position`.

    `name_at` and `value_at` are the tokens of the assignments' names and values, `answers` the token that each variable's question
    is answered with, `query` the variable that is asked for.
    """

    tokens: Int[Tensor, "row pos"]
    position: Int[Tensor, " row"]
    name_at: Int[Tensor, "row var"]
    value_at: Int[Tensor, "row var"]
    answers: Int[Tensor, "row var"]
    query: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def right(self) -> Int[Tensor, " row"]:
        """The token of the right answer."""
        return self.answers.gather(1, self.query[:, None])[:, 0]

    def batches(self) -> Iterator[BindingPrompts]:
        """The same prompts, at most `ROWS` at a time."""
        for start in range(0, len(self), ROWS):
            yield BindingPrompts(*(getattr(self, field.name)[start : start + ROWS] for field in fields(self)))


def encode_programs(tokenizer: Any, programs: Sequence[BindingProgram]) -> BindingPrompts:
    """The prompts of programs with equally many variables; raises `DataError` for none, or if a name is not one token."""
    if not programs:
        raise DataError("no binding programs to encode; draw at least one")
    encoder = Encoder(tokenizer)
    encoded = [encoder.encode(program.prompt()) for program in programs]
    places = [
        [[_token_at(offsets, span) + 1 for span in part] for part in program.spans()]
        for (_, offsets), program in zip(encoded, programs, strict=True)
    ]
    longest = max(len(ids) for ids, _ in encoded)
    answer_ids = {answer: encoder.ids(answer)[0] for program in programs for answer in program.answers}
    return BindingPrompts(
        tokens=torch.tensor([[encoder.end, *ids, *[encoder.end] * (longest - len(ids))] for ids, _ in encoded]),
        position=torch.tensor([len(ids) for ids, _ in encoded]),
        name_at=torch.tensor([names for names, _ in places]),
        value_at=torch.tensor([values for _, values in places]),
        answers=torch.tensor([[answer_ids[answer] for answer in program.answers] for program in programs]),
        query=torch.tensor([program.query for program in programs]),
    )


def _token_at(offsets: Sequence[Span], span: Span) -> int:
    """The one token that ends where the span ends; a space before it may belong to it."""
    found = [index for index, (start, end) in enumerate(offsets) if end == span[1] and start in (span[0], span[0] - 1)]
    if len(found) != 1:
        raise DataError("a name or value of a binding program is not one token in this tokenizer; draw names from usable_names")
    return found[0]


@torch.no_grad()
def answer_logits(bridge: Any, prompts: BindingPrompts) -> Float[Tensor, "row var"]:
    """The logits of every variable's answer at the answer position, under whatever hooks are set.

    Raises `DataError` for logits that are NaN or infinite.
    """
    device = getattr(bridge.cfg, "device", None) or "cpu"
    logits = bridge(prompts.tokens.to(device)).cpu()[torch.arange(len(prompts)), prompts.position].double()
    found = logits.gather(1, prompts.answers)
    if wrong := int((~found.isfinite()).sum()):
        raise DataError(f"the model gave {wrong} answer logits that are NaN or infinite; check its weights")
    return found


def all_answer_logits(bridge: Any, prompts: BindingPrompts) -> Float[Tensor, "row var"]:
    """`answer_logits` of any number of prompts, some at a time."""
    return torch.cat([answer_logits(bridge, batch) for batch in prompts.batches()])


def margins(logits: Float[Tensor, "row var"], prompts: BindingPrompts, of: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The logit of variable `of` minus the highest of another answer."""
    answer = prompts.answers.gather(1, of[:, None])
    others = logits.masked_fill(prompts.answers == answer, -torch.inf)
    return logits.gather(1, of[:, None])[:, 0] - others.max(1).values


def share_chosen(logits: Float[Tensor, "row var"], prompts: BindingPrompts, of: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """1 where the answer of variable `of` is likelier than the program's others, 0 where it is not, its share where several tie."""
    answer = prompts.answers.gather(1, of[:, None])
    first = torch.stack(
        [(prompts.answers[:, :var] == prompts.answers[:, var : var + 1]).sum(1) == 0 for var in range(logits.shape[1])], 1
    )
    best = (logits == logits.max(1, keepdim=True).values) & first
    return (best & (prompts.answers == answer)).double().sum(1) / best.double().sum(1)
