"""Random Python statements for the program generator; every function returns complete, indented lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sparse_lens.data import expressions as make
from sparse_lens.data.draw import Draw
from sparse_lens.data.words import ERRORS, LETTERS

_INDENT = "    "


@dataclass(frozen=True)
class Scope:
    """Where a statement stands: its indentation, the names in reach, and which keywords are legal."""

    pad: str = ""
    names: list[str] = field(default_factory=list)
    in_function: bool = False
    in_loop: bool = False

    def inner(self, *new_names: str, loop: bool = False) -> Scope:
        """Return the scope of a block one level deeper."""
        names = [*self.names, *new_names, *new_names]
        return replace(self, pad=self.pad + _INDENT, names=names, in_loop=loop or self.in_loop)


Statement = Callable[[Draw, Scope], list[str]]


def block(draw: Draw, scope: Scope, low: int = 1, high: int = 3) -> list[str]:
    """Return a few statements; compound ones stop at four levels of indentation."""
    kinds = SIMPLE if len(scope.pad) >= 12 else COMPOUND_OR_SIMPLE
    lines: list[str] = []
    for _ in range(draw.between(low, high)):
        lines += draw.pick(kinds)(draw, scope)
    if (scope.in_loop or scope.in_function) and draw.chance(0.15):
        lines += leave(draw, scope)
    return lines


def assignment(draw: Draw, scope: Scope) -> list[str]:
    """Assign any value to a new name."""
    text = make.value(draw, scope.names)
    target = draw.variable()
    scope.names.append(target)
    return [f"{scope.pad}{target} = {text}"]


def plain_copy(draw: Draw, scope: Scope) -> list[str]:
    """Assign one name to another name, attribute or entry: `a = b` beside the `if a == b` of conditions."""
    text = make.name(draw, scope.names)
    target = draw.variable()
    if draw.chance(0.3):
        return [f"{scope.pad}{make.name(draw, scope.names)}.{target} = {text}"]
    if draw.chance(0.2):
        return [f"{scope.pad}{make.subscript(draw, scope.names)} = {text}"]
    scope.names.append(target)
    return [f"{scope.pad}{target} = {text}"]


def expression_call(draw: Draw, scope: Scope) -> list[str]:
    """Call something for its effect."""
    return [scope.pad + make.call(draw, scope.names)]


def printed(draw: Draw, scope: Scope) -> list[str]:
    """Print strings and names."""
    first = make.fstring(draw, scope.names) if draw.chance(0.3) else make.string(draw)
    more = f", {make.name(draw, scope.names)}" if draw.chance(0.4) else ""
    return [f"{scope.pad}print({first}{more})"]


def update(draw: Draw, scope: Scope) -> list[str]:
    """Change a number or a text in place."""
    amount = make.number(draw) if draw.chance(0.6) else make.atom(draw, scope.names)
    return [f"{scope.pad}{make.name(draw, scope.names)}{draw.pick((' += ', ' += ', ' -= ', ' *= '))}{amount}"]


def leave(draw: Draw, scope: Scope) -> list[str]:
    """Leave a loop or a function; outside both, do nothing."""
    if scope.in_loop and draw.chance(0.6):
        return [scope.pad + draw.pick(("break", "continue"))]
    if scope.in_function:
        return returned(draw, scope)
    return [f"{scope.pad}pass"]


def returned(draw: Draw, scope: Scope) -> list[str]:
    """Return something from a function, often True or False."""
    choice = draw.between(0, 9)
    if choice < 4:
        return [f"{scope.pad}return {draw.pick(('True', 'True', 'False', 'None'))}"]
    if choice < 6:
        return [f"{scope.pad}return {make.opened(draw, scope.names)}"]
    return [f"{scope.pad}return {make.value(draw, scope.names)}"]


def branch(draw: Draw, scope: Scope) -> list[str]:
    """Write an if with up to two elif and perhaps an else."""
    inner = scope.inner()
    lines = [f"{scope.pad}if {make.condition(draw, scope.names)}:", *block(draw, inner, 1, 2)]
    for _ in range(draw.pick((0, 0, 0, 1, 1, 2))):
        lines += [f"{scope.pad}elif {make.condition(draw, scope.names)}:", *block(draw, inner, 1, 1)]
    if draw.chance(0.5):
        lines += [
            f"{scope.pad}else:",
            *(block(draw, inner, 1, 1) if draw.chance(0.6) else leave(draw, inner)),
        ]
    return lines


def counted_loop(draw: Draw, scope: Scope) -> list[str]:
    """Loop over range, enumerate, zip, items or a collection."""
    head, new = loop_head(draw, scope.names)
    return [f"{scope.pad}{head}:", *block(draw, scope.inner(*new, loop=True), 1, 2)]


def loop_head(draw: Draw, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return `for ... in ...` without its colon, and the names that it binds."""
    many = make.name(draw, names) if draw.chance(0.4) else draw.plural()
    one = draw.noun() if draw.chance(0.7) else draw.pick(LETTERS)
    index = draw.pick(LETTERS) if draw.chance(0.7) else draw.pick(("index", "position", "number", "count"))
    choice = draw.between(0, 11)
    if choice < 4:
        bounds = (f"len({many})", make.number(draw), f"1, {make.number(draw)}", f"{many}", f"0, {many}, 2")
        return f"for {index} in range({draw.pick(bounds)})", [index]
    if choice < 8:
        start = f", {draw.between(1, 2)}" if draw.chance(0.2) else ""
        return f"for {index}, {one} in enumerate({many}{start})", [index, one]
    if choice == 8:
        return f"for {draw.pick(('key', 'name'))}, {one} in {many}.items()", ["key", one]
    if choice == 9:
        return f"for {one} in [{make.elements(draw, names)}]", [one]
    return f"for {one} in {many}", [one]


def conditional_loop(draw: Draw, scope: Scope) -> list[str]:
    """Write a while loop: forever with a break, or on a condition."""
    inner = scope.inner(loop=True)
    if draw.chance(0.5):
        stop = [f"{inner.pad}if {make.condition(draw, scope.names)}:", *leave(draw, inner.inner())]
        return [f"{scope.pad}while True:", *block(draw, inner, 1, 2), *stop]
    test = make.name(draw, scope.names) if draw.chance(0.5) else make.condition(draw, scope.names)
    return [f"{scope.pad}while {test}:", *block(draw, inner, 1, 2)]


def with_file(draw: Draw, scope: Scope) -> list[str]:
    """Open a file in a with statement and read or write it."""
    handle = draw.pick(("f", "f", "file", "handle", "fp", "stream", "source", "reader"))
    inner = scope.inner(handle)
    target = draw.variable()
    use = draw.pick(
        (
            f"{target} = {handle}.read()",
            f"{target} = {handle}.readlines()",
            f"{target} = json.load({handle})",
            f"{handle}.write({make.atom(draw, scope.names)})",
            f"return {handle}.read()" if scope.in_function else f"{target} = {handle}.readline()",
        )
    )
    lines = [f"{scope.pad}with {make.opened(draw, scope.names)} as {handle}:", inner.pad + use]
    return lines + (block(draw, inner, 1, 1) if draw.chance(0.3) else [])


def attempt(draw: Draw, scope: Scope) -> list[str]:
    """Write a try statement with an except, perhaps an else or finally."""
    inner = scope.inner()
    error = draw.pick(ERRORS)
    caught = f"except {error} as {draw.pick(('error', 'exc', 'e', 'err'))}:" if draw.chance(0.5) else f"except {error}:"
    lines = [f"{scope.pad}try:", *block(draw, inner, 1, 2), scope.pad + caught]
    if draw.chance(0.25):
        lines.append(f"{inner.pad}raise {draw.pick(ERRORS)}({make.string(draw)})")
    else:
        lines += draw.pick((printed, leave, assignment))(draw, inner)
    if draw.chance(0.15):
        lines += [f"{scope.pad}finally:", *expression_call(draw, inner)]
    return lines


def long_collection(draw: Draw, scope: Scope) -> list[str]:
    """Assign a list, nested list, set or dictionary that is spread over lines."""
    inner = scope.pad + _INDENT
    target = draw.plural()
    element = make.element_maker(draw, scope.names)
    start, end = draw.pick((("[", "]"), ("{", "}"), ("(", ")")))
    rows = [f"{inner}{element()}," for _ in range(draw.between(2, 4))]
    if start == "[" and draw.chance(0.5):
        width = draw.between(2, 3)
        rows = [f"{inner}[{', '.join([element() for _ in range(width)])}]," for _ in range(draw.between(2, 3))]
    elif start == "{" and draw.chance(0.7):
        rows = [f"{inner}{make.quoted(draw, draw.noun())}: {element()}," for _ in range(draw.between(2, 4))]
    scope.names.append(target)
    return [f"{scope.pad}{target} = {start}", *rows, scope.pad + end]


def keyed(draw: Draw, scope: Scope) -> list[str]:
    """Sort, filter or map with a lambda."""
    source = make.name(draw, scope.names)
    target = draw.plural()
    scope.names.append(target)
    function = make.lambda_function(draw, [])
    text = draw.pick(
        (
            f"{target} = sorted({source}, key={function})",
            f"{target} = list(map({function}, {source}))",
            f"{target} = max({source}, key={function})",
            f"{draw.function()} = {function}",
            f"{source}.sort(key={function})",
        )
    )
    return [scope.pad + text]


def comment(draw: Draw, scope: Scope) -> list[str]:
    """Write a comment and one statement below it."""
    return [f"{scope.pad}# {draw.phrase(2, 6)}", *draw.pick(SIMPLE[:6])(draw, scope)]


SIMPLE: tuple[Statement, ...] = (
    *(assignment, assignment, assignment, plain_copy, plain_copy, expression_call),
    *(expression_call, printed, printed, update, keyed),
)
COMPOUND_OR_SIMPLE: tuple[Statement, ...] = (
    *SIMPLE,
    *(branch, branch, branch, counted_loop, counted_loop, conditional_loop, conditional_loop),
    *(with_file, with_file, attempt, long_collection, comment),
)
