"""Variable-binding programs: a few assignments, distractor lines, and a question about one of the names (arXiv:2505.20896).

    key = 3                 key = set()
    t += 8                  size = str()
    size = 5                key
    print(key

Of the kind `value` (left) the answer is the number that the name was bound to, of the kind `type` how the name grows: `.add` for a
set, ` +=` for a string. The empty string is written `str()`, so that both types are equally many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.tasks.batch import Span
from sparse_lens.tasks.tokens import Encoder

KINDS = ("value", "type")
"""What a name is bound to: a number, or a type."""

VALUES: dict[str, tuple[str, ...]] = {"value": tuple("123456789"), "type": ("set()", "str()")}
"""What stands right of ` = `, by kind."""

ANSWERS: dict[str, tuple[str, ...]] = {"value": tuple(f" {digit}" for digit in "123456789"), "type": (".add", " +=")}
"""What the question about a name is answered with, value by value."""

NAMES = (
    *"abcdefghijkmnopqrstuvwxyz",
    *("name", "value", "data", "count", "index", "item", "items", "key", "line", "lines", "head", "size", "path", "code"),
    *("date", "file", "image", "label", "mask", "model", "node", "option", "order", "output", "page", "part", "row", "shape"),
    *("state", "table", "time", "word", "work", "text", "queue", "graph", "edge", "array", "group", "sub", "val", "url"),
)
"""Names to draw from; of these only the ones that are a single token in a model's tokenizer are used."""

FEWEST_NAMES = 18
"""Names that a tokenizer must have as single tokens: up to 9 in a program, and as many others to rename them to."""

_GROWTH: dict[str, str] = {"set()": ".add(1)", "str()": " += str()"}


@dataclass(frozen=True)
class BindingProgram:
    """Assignments `names[i] = values[i]` in order, distractors between them, and which variable is asked for.

    A distractor is `(place, name, number)`: the line `name += number` before the assignment of index `place`, or after all.
    """

    kind: str
    names: tuple[str, ...]
    values: tuple[str, ...]
    query: int
    distractors: tuple[tuple[int, str, str], ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer to the question about each variable."""
        return tuple(ANSWERS[self.kind][VALUES[self.kind].index(value)] for value in self.values)

    def prompt(self) -> str:
        """The source up to the answer."""
        return self._lines()[0] + _question(self.kind, self.names[self.query])

    def spans(self) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """Where the names, and the values, of the assignments lie in the prompt, in characters."""
        return self._lines()[1:]

    def text(self, queries: Sequence[int]) -> str:
        """The whole source with several questions and their answers, as it is trained on."""
        return self._lines()[0] + "".join(self._asked(query) for query in queries)

    def renamed(self, names: Sequence[str]) -> BindingProgram:
        """The same program with other variable names."""
        return replace(self, names=tuple(names))

    def _asked(self, query: int) -> str:
        name, value = self.names[query], self.values[query]
        return f"print({name}{self.answers[query]})\n" if self.kind == "value" else f"{name}{_GROWTH[value]}\n"

    def _lines(self) -> tuple[str, tuple[Span, ...], tuple[Span, ...]]:
        text, names, values = "", [], []
        for index, (name, value) in enumerate(zip(self.names, self.values, strict=True)):
            text += self._distractors(index)
            names.append((len(text), len(text) + len(name)))
            start = names[-1][1] + len(" = ")
            values.append((start, start + len(value.removesuffix("()"))))
            text += f"{name} = {value}\n"
        return text + self._distractors(len(self.names)), tuple(names), tuple(values)

    def _distractors(self, place: int) -> str:
        return "".join(f"{name} += {number}\n" for where, name, number in self.distractors if where == place)


def _question(kind: str, name: str) -> str:
    """The last line up to the answer, which follows the name at once in both kinds."""
    return f"print({name}" if kind == "value" else name


def usable_names(tokenizer: Any, kind: str) -> tuple[str, ...]:
    """The names that are the same single token of this tokenizer at the start of a line and in the question.

    Raises `DataError` if there are fewer than 18 or an answer of the kind is not one token, `UnknownNameError` for another kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of binding", kind, KINDS)
    encoder = Encoder(tokenizer)
    for answer in ANSWERS[kind]:
        if len(ids := encoder.ids(answer)) != 1:
            raise DataError(f"the answer {answer!r} is {len(ids)} tokens in this tokenizer, not one; binding needs one")
    names = tuple(name for name in NAMES if _is_one_token(encoder, name))
    if len(names) < FEWEST_NAMES:
        raise DataError(f"only {len(names)} variable names are single tokens in this tokenizer; binding needs {FEWEST_NAMES}")
    return names


def _is_one_token(encoder: Encoder, name: str) -> bool:
    own, asked, opened = encoder.ids(name), encoder.ids(_question("value", name)), encoder.ids(_question("value", ""))
    line, newline = encoder.ids(f"\n{name} = 1"), encoder.ids("\n")
    return len(own) == 1 and asked == [*opened, *own] and line[: len(newline) + 1] == [*newline, *own]
