"""Prompts that two subroutines share: both are asked of every prompt, and the two answers vary independently.

    kites = set()
    current = ["apple"]
    kites.add

| subroutine | answers | what decides |
|---|---|---|
| `quote` | `"` or `'` | the quote that opened the string |
| `bracket` | `]` or `}` | the bracket that opened the list or set |
| `set_or_string` | `.add` or ` +=` | what the name was bound to |

All are asked of one sequence, so that nothing but the subroutine tells them apart: not the tokens, not the words. A next token
answers one question at a time, which is why their positions differ, by one for quote and bracket. Lines that only a subroutine
that was not asked for needs are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.tasks.pools import HELDOUT_WORDS, SEARCH_WORDS, WordPools
from sparse_lens.tasks.slots import fill, read_templates
from sparse_lens.tasks.tokens import Encoder

_FORKS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "quote": (('"', "'"),),
    "bracket": (("[", "{"), ("]", "}")),
    "set_or_string": (("set()", "str()"), (".add", " +=")),
}
"""In what a prompt differs between the two answers of a subroutine; the last is the answer."""

SUBROUTINES = tuple(_FORKS)
"""What the built-in pool can ask of every prompt."""

_FORK = re.compile(r"«([^|»]*)\|([^»]*)»")
_OWNER: Mapping[tuple[str, str], str] = {sides: name for name, forks in _FORKS.items() for sides in forks}

_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "search": read_templates(
        """
<many> = «set()|str()»
<var> = «[|{»«"|'»<thing>«"|'»«]|}»
<many>«.add| +=»
---
<many> = «set()|str()»
<var> = <digit>
<var2> = «[|{»<digit>, «"|'»<thing>«"|'»«]|}»
<many>«.add| +=»
---
def <verb>(<letter>):
    <many> = «set()|str()»
    <var> = «[|{»<letter>, «"|'»<thing>«"|'»«]|}»
    <many>«.add| +=»
---
<many> = «set()|str()»
if <letter> in «[|{»«"|'»<thing>«"|'», «"|'»<thing2>«"|'»«]|}»:
    <many>«.add| +=»
"""
    ),
    "heldout": read_templates(
        """
<many> = «set()|str()»
<var> = <verb>()
<var2> = «[|{»«"|'»<thing>«"|'»«]|}»
<many>«.add| +=»
---
<many> = «set()|str()»
while <letter> not in «[|{»«"|'»<thing>«"|'»«]|}»:
    <many>«.add| +=»
---
def <verb>(<var>, <letter>):
    <many> = «set()|str()»
    <var2> = «[|{»<digit>, «"|'»<thing>«"|'»«]|}»
    <many>«.add| +=»
"""
    ),
}
_WORDS: Mapping[str, WordPools] = {"search": SEARCH_WORDS, "heldout": HELDOUT_WORDS}


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Rows of inputs with one question for each of two subroutines, in the order of `names`.

    `inputs` is what the model takes (token ids `[row, pos]`, or features `[row, pos, feature]`); its logits at `position` are those
    of `right` and `wrong`. Raises `DataError` where the shapes do not fit.
    """

    names: tuple[str, str]
    inputs: Tensor
    position: Int[Tensor, "subroutine row"]
    right: Int[Tensor, "subroutine row"]
    wrong: Int[Tensor, "subroutine row"]

    def __post_init__(self) -> None:
        shapes = {tuple(part.shape) for part in (self.position, self.right, self.wrong)}
        if shapes != {(2, len(self.inputs))} or len(self.inputs) == 0:
            raise DataError(
                f"two subroutines over {len(self.inputs)} prompts need positions and answers [2, {len(self.inputs)}], got {shapes}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: Tensor) -> SharedPrompts:
        """A selection of rows, inputs cut to the last question."""
        position = self.position[:, index]
        inputs = self.inputs[index, : int(position.max()) + 1]
        return SharedPrompts(self.names, inputs, position, self.right[:, index], self.wrong[:, index])


Rewrite = Callable[[str, Sequence[int], int], tuple[str, list[int]]]
"""From a program, places in it and its row to another text and where those places are there."""


def sample_shared(
    tokenizer: Any, names: tuple[str, str], n: int, *, seed: int, split: str, rewrite: Rewrite | None = None
) -> SharedPrompts:
    """`n` prompts that ask two of `SUBROUTINES`, all combinations of answers alike.

    `split`: `search` to learn on, `heldout` to score on, with other templates and words. `rewrite` changes the programs, row by
    row, after they are drawn. Raises `UnknownNameError` for another split or subroutine, `ConfigError` for one subroutine twice
    or no prompts, `DataError` where an answer is no token of its own in the tokenizer, or where there are not as many different
    prompts.
    """
    if split not in _TEMPLATES:
        raise UnknownNameError("split of shared prompts", split, _TEMPLATES)
    _check_names(names)
    if n < 1:
        raise ConfigError(f"at least one prompt of two subroutines is needed, got n={n} for the split {split!r}")
    encoder, rng = Encoder(tokenizer), random.Random(f"shared prompts:{names}:{split}:{seed}")
    rows: dict[str, _Row] = {}
    for _ in range(40 * n):
        if len(rows) == n:
            break
        sides = {name: len(rows) >> i & 1 for i, name in enumerate(SUBROUTINES)}
        template = _TEMPLATES[split][len(rows) // 2 ** len(SUBROUTINES) % len(_TEMPLATES[split])]
        program = fill(_without_idle_lines(template, names), _WORDS[split], rng)
        text, questions = _with_sides(program, sides)
        asked = text[: max(questions[name].place for name in names)]
        if asked not in rows:
            rows[asked] = _row(encoder, text, [questions[name] for name in names], names, rewrite, len(rows))
    if len(rows) < n:
        raise DataError(f"found only {len(rows)} different prompts that ask {' and '.join(names)}, not {n}; ask for fewer")
    return _assembled(names, list(rows.values()), encoder.end)


def subroutine_texts(names: tuple[str, str], rng: random.Random) -> Iterator[str]:
    """Programs of the split `search` with their answers, without end: a corpus of two subroutines alone, to train a model on."""
    _check_names(names)
    while True:
        sides = {name: rng.randrange(2) for name in SUBROUTINES}
        program = fill(_without_idle_lines(rng.choice(_TEMPLATES["search"]), names), _WORDS["search"], rng)
        yield _FORK.sub(lambda fork: fork.group(1 + sides[_owner(fork)]), program) + "\n"  # noqa: B023 - used at once


_Row = tuple[list[int], list[int], list[int], list[int]]
"""Tokens up to the last question; positions, right and wrong answers of both subroutines."""


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in SUBROUTINES:
            raise UnknownNameError("subroutine", name, SUBROUTINES)
    if len(set(names)) != 2:
        raise ConfigError(f"prompts are shared by two different subroutines, got {', '.join(names)}")


def _owner(fork: re.Match[str]) -> str:
    return _OWNER[fork.group(1), fork.group(2)]


def _without_idle_lines(template: str, names: Sequence[str]) -> str:
    """The template without the lines whose forks all belong to other subroutines."""
    owners = [(line, {_owner(fork) for fork in _FORK.finditer(line)}) for line in template.split("\n")]
    return "\n".join(line for line, asked in owners if not asked or asked & set(names))


@dataclass(frozen=True)
class _Question:
    """Where in a text the answer to a subroutine begins, that answer, and the other one."""

    place: int
    answer: str
    other: str


def _with_sides(program: str, sides: Mapping[str, int]) -> tuple[str, dict[str, _Question]]:
    """A program with its sides taken, and the question for the last fork of each subroutine."""
    text, end, last = "", 0, {}
    for fork in _FORK.finditer(program):
        text += program[end : fork.start()]
        side, end = sides[_owner(fork)], fork.end()
        last[_owner(fork)] = _Question(len(text), fork.group(1 + side), fork.group(2 - side))
        text += fork.group(1 + side)
    return text, last


def _row(
    encoder: Encoder, text: str, questions: Sequence[_Question], names: Sequence[str], rewrite: Rewrite | None, row: int
) -> _Row:
    places = [question.place for question in questions]
    if rewrite is not None:
        text, places = rewrite(text, places, row)
    tokens, offsets = encoder.encode(text)
    starts = {start: i for i, (start, _) in enumerate(offsets)}
    positions, right, wrong = [], [], []
    for name, place, question in zip(names, places, questions, strict=True):
        ids = [encoder.ids(one) for one in (question.answer, question.other)]
        position = starts.get(place, -1)
        if position < 0 or [len(one) for one in ids] != [1, 1] or tokens[position] != ids[0][0]:
            raise DataError(
                f"the answers {question.answer!r} and {question.other!r} of {name!r} are no tokens of their own in this "
                "tokenizer; use a tokenizer of sparse_lens.data.train_tokenizer, or other subroutines"
            )
        positions.append(position)  # of the token before the answer, once the end-of-text token stands in front
        right.append(ids[0][0])
        wrong.append(ids[1][0])
    return [encoder.end, *tokens[: max(positions)]], positions, right, wrong


def _assembled(names: tuple[str, str], rows: Sequence[_Row], end: int) -> SharedPrompts:
    longest = max(len(tokens) for tokens, *_ in rows)
    position, right, wrong = (torch.tensor([row[part] for row in rows]).T for part in (1, 2, 3))
    return SharedPrompts(
        names=names,
        inputs=torch.tensor([tokens + [end] * (longest - len(tokens)) for tokens, *_ in rows]),
        position=position,
        right=right,
        wrong=wrong,
    )
