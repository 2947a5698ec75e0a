"""Functions that fill a set, text, list, dictionary or number: its first value decides how it grows later."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_lens.data import expressions as make
from sparse_lens.data.draw import Draw
from sparse_lens.data.statements import Scope, block, loop_head, plain_copy, printed
from sparse_lens.data.words import ACCUMULATORS

_KINDS = ("set", "set", "set", "text", "text", "text", "list", "dict", "number")


@dataclass(frozen=True)
class Accumulator:
    """A variable, its kind and its first value as source text."""

    name: str
    kind: str
    start: str

    def grow(self, draw: Draw, names: list[str]) -> str:
        """Return one statement that adds to the variable."""
        item = make.atom(draw, names) if draw.chance(0.7) else make.call(draw, names, depth=1)
        if self.kind == "set":
            return f"{self.name}.add({item})"
        if self.kind == "list":
            return f"{self.name}.append({item})"
        if self.kind == "dict":
            return f"{self.name}[{make.name(draw, names)}] = {item}"
        if self.kind == "number":
            return f"{self.name} += {make.number(draw) if draw.chance(0.6) else make.name(draw, names)}"
        return f"{self.name} += {make.string(draw) if draw.chance(0.4) else make.name(draw, names)}"


def new_accumulator(draw: Draw, taken: str = "") -> Accumulator:
    """Draw a variable other than `taken`, and its first value."""
    name = taken
    while name == taken:
        name = draw.variable() if draw.chance(0.5) else draw.pick(ACCUMULATORS)
    kind = draw.pick(_KINDS)
    starts = {
        "set": ("set()", "set()", "set()", f"{{{make.string(draw)}}}", f"set({draw.plural()})"),
        "text": ('""', "''", '""', "''", "str()", make.string(draw), make.quoted(draw, draw.noun()[0])),
        "list": ("[]", "[]", "list()"),
        "dict": ("{}", "dict()"),
        "number": ("0", "0", "1"),
    }
    return Accumulator(name, kind, draw.pick(starts[kind]))


def accumulating_body(draw: Draw, scope: Scope) -> list[str]:
    """Return a function body: start one or two variables, grow them in a loop or in sequence, return one."""
    first = new_accumulator(draw)
    variables = [first, new_accumulator(draw, first.name)] if draw.chance(0.25) else [first]
    lines = [f"{scope.pad}{variable.name} = {variable.start}" for variable in variables]
    for _ in range(draw.pick((0, 0, 0, 1, 1, 2))):
        lines += draw.pick((plain_copy, printed))(draw, scope)
    if draw.chance(0.2):
        lines += [scope.pad + draw.pick(variables).grow(draw, scope.names) for _ in range(draw.between(2, 4))]
    else:
        lines += _growing_loop(draw, scope, variables)
    if draw.chance(0.15):
        lines.append(scope.pad + first.grow(draw, scope.names))
    return [*lines, f"{scope.pad}return {first.name}"]


def _growing_loop(draw: Draw, scope: Scope, variables: list[Accumulator]) -> list[str]:
    head, new = loop_head(draw, scope.names)
    inner = scope.inner(*new, loop=True)
    lines = [f"{scope.pad}{head}:"]
    if draw.chance(0.2):
        lines += block(draw, inner, 1, 1)
    for variable in variables:
        growth = variable.grow(draw, inner.names)
        choice = draw.between(0, 9)
        if choice < 6:
            lines.append(inner.pad + growth)
            continue
        deeper = inner.inner()
        lines += [f"{inner.pad}if {make.condition(draw, inner.names)}:", deeper.pad + growth]
        if choice == 9:
            lines += [f"{inner.pad}else:", deeper.pad + variable.grow(draw, inner.names)]
    return lines
