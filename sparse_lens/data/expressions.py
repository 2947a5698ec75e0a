"""Random Python expressions for the program generator; every function returns one-line source text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparse_lens.data.draw import Draw
from sparse_lens.data.words import FILE_ENDINGS, LETTERS

Names = Sequence[str]
Element = Callable[[], str]

_JOINTS = ("_", "-", "/", ".", ", ", ": ")
_ENDS = ("", "", "", "", "", ".", "!", ":", "?", "\\n", " %s", ": ")
_COMPARISONS = (" == ", " == ", " == ", " != ", " < ", " > ", " <= ", " >= ", " in ", " is ")
_OPERATORS = (" + ", " + ", " - ", " * ", " / ", " % ")
_MODES = ("r", "w", "a", "rb")


def quoted(draw: Draw, text: str) -> str:
    """Put a text between quotes of a random kind."""
    quote = '"' if draw.chance(0.5) else "'"
    return f"{quote}{text}{quote}"


def string(draw: Draw) -> str:
    """Return a string literal of one to five words."""
    if draw.chance(0.45):
        return quoted(draw, draw.noun())
    if draw.chance(0.25):
        return quoted(draw, draw.noun() + draw.pick(_JOINTS) + draw.noun())
    text = draw.phrase(1, 5)
    return quoted(draw, (text.capitalize() if draw.chance(0.3) else text) + draw.pick(_ENDS))


def fstring(draw: Draw, names: Names) -> str:
    """Return an f-string with one or two fields."""
    field = f"{draw.noun()}{draw.pick((': ', ' ', '=', ' is ', '/'))}{{{name(draw, names)}}}"
    if draw.chance(0.3):
        field += f" {draw.noun()} {{{name(draw, names)}}}"
    return "f" + quoted(draw, field + draw.pick(("", "", " ", ".", f" {draw.noun()}")))


def number(draw: Draw) -> str:
    """Return an integer or a short decimal."""
    if draw.chance(0.6):
        return str(draw.between(0, 9))
    if draw.chance(0.75):
        return str(draw.between(10, 99))
    return str(draw.between(100, 5000)) if draw.chance(0.6) else f"{draw.between(0, 9)}.{draw.between(1, 99)}"


def name(draw: Draw, names: Names) -> str:
    """Return a name that is in scope, or now and then a new one."""
    return draw.pick(names) if names and draw.chance(0.9) else draw.variable()


def element_maker(draw: Draw, names: Names) -> Element:
    """Return a function that makes the elements of one collection: all numbers, strings or names."""
    if draw.chance(0.45):
        return lambda: number(draw)
    if draw.chance(0.55):
        quote = '"' if draw.chance(0.5) else "'"
        return lambda: f"{quote}{draw.noun()}{quote}"
    return lambda: name(draw, names) if draw.chance(0.3) else draw.variable()


def elements(draw: Draw, names: Names, low: int = 1, high: int = 6) -> str:
    """Return comma-separated elements of one kind."""
    make = element_maker(draw, names)
    return ", ".join([make() for _ in range(draw.between(low, high))])


def nested_list(draw: Draw, names: Names) -> str:
    """Return a list of depth two or three on one line.

    Rows are equally long and mostly two, so that what closes is settled by what was opened before.
    """
    make = element_maker(draw, names)
    if draw.chance(0.3):
        head = ", ".join([make() for _ in range(draw.between(1, 4))])
        return f"[{head}, [{', '.join([make() for _ in range(draw.between(1, 3))])}]]"
    width = draw.between(1, 3)
    count = 2 if draw.chance(0.8) else draw.pick((1, 3))
    rows = [f"[{', '.join([make() for _ in range(width)])}]" for _ in range(count)]
    body = f"[{', '.join(rows)}]"
    return f"[{body}]" if draw.chance(0.05) else body


def dictionary(draw: Draw, names: Names) -> str:
    """Return a dictionary literal on one line."""
    make = element_maker(draw, names)
    pairs = [f"{quoted(draw, draw.noun())}: {make()}" for _ in range(draw.between(1, 4))]
    return f"{{{', '.join(pairs)}}}"


def collection(draw: Draw, names: Names) -> str:
    """Return a list, set, tuple or dictionary literal."""
    choice = draw.between(0, 9)
    if choice < 3:
        return f"[{elements(draw, names)}]"
    if choice < 5:
        return f"{{{elements(draw, names)}}}"
    if choice < 6:
        return f"({elements(draw, names, 2, 4)})"
    return nested_list(draw, names) if choice < 8 else dictionary(draw, names)


def subscript(draw: Draw, names: Names) -> str:
    """Return an index expression of depth one to three."""
    inner = draw.pick(LETTERS) if draw.chance(0.5) else draw.pick((name(draw, names), number(draw), string(draw)))
    text = f"{draw.plural()}[{inner}]"
    for _ in range(draw.pick((0, 0, 1, 1, 2))):
        text = f"{draw.plural()}[{text}]"
    return text


def call(draw: Draw, names: Names, depth: int = 0) -> str:
    """Return a call, nested up to three deep."""
    arguments = [argument(draw, names, depth) for _ in range(draw.pick((0, 1, 1, 1, 2, 2, 3)))]
    function = draw.function() if draw.chance(0.7) else f"{name(draw, names)}.{draw.function()}"
    if draw.chance(0.15):
        arguments.append(f"{draw.noun()}={atom(draw, names)}")
    return f"{function}({', '.join(arguments)})"


def argument(draw: Draw, names: Names, depth: int) -> str:
    """Return an argument of a call at the given nesting depth."""
    if depth < 2 and draw.chance(0.2):
        return call(draw, names, depth + 1)
    if draw.chance(0.12):
        return collection(draw, names)
    return subscript(draw, names) if draw.chance(0.08) else atom(draw, names)


def atom(draw: Draw, names: Names) -> str:
    """Return a name or a literal."""
    if draw.chance(0.45):
        return name(draw, names)
    if draw.chance(0.55):
        return string(draw)
    return number(draw) if draw.chance(0.75) else draw.pick(("True", "False", "None"))


def arithmetic(draw: Draw, names: Names) -> str:
    """Return a sum, product or the like of two operands."""
    left = name(draw, names) if draw.chance(0.7) else subscript(draw, names)
    right = number(draw) if draw.chance(0.4) else name(draw, names)
    return f"{left}{draw.pick(_OPERATORS)}{right}"


def condition(draw: Draw, names: Names) -> str:
    """Return a condition, half of the time an equality."""
    choice = draw.between(0, 9)
    left = name(draw, names)
    if choice < 4:
        return f"{left} == {atom(draw, names)}"
    if choice < 7:
        return f"{left}{draw.pick(_COMPARISONS)}{atom(draw, names)}"
    if choice < 8:
        return f"not {left}"
    return left if choice < 9 else call(draw, names, depth=1)


def lambda_function(draw: Draw, names: Names) -> str:
    """Return a lambda of one or two arguments."""
    arguments = [draw.pick(LETTERS) if draw.chance(0.6) else draw.noun() for _ in range(draw.pick((1, 1, 2)))]
    scope = [*arguments, *arguments, *arguments, name(draw, names)]
    body = draw.pick((arithmetic, condition, call, subscript))(draw, scope)
    return f"lambda {', '.join(dict.fromkeys(arguments))}: {body}"


def opened(draw: Draw, names: Names) -> str:
    """Return a call of `open` on a name or a literal path."""
    choice = draw.between(0, 3)
    if choice == 0:
        target = quoted(draw, f"{draw.noun()}.{draw.pick(FILE_ENDINGS)}")
    else:
        target = name(draw, names) if choice < 3 else draw.pick(("path", "filename", "file_path"))
    mode = f", {quoted(draw, draw.pick(_MODES))}" if draw.chance(0.4) else ""
    return f"open({target}{mode})"


def value(draw: Draw, names: Names) -> str:
    """Return any expression fit for the right side of an assignment."""
    choice = draw.between(0, 19)
    if choice < 3:
        return string(draw)
    if choice < 8:
        return collection(draw, names)
    if choice < 11:
        return call(draw, names)
    makers = (arithmetic, subscript, nested_list, atom, fstring, atom, name, lambda_function, opened)
    return makers[choice - 11](draw, names)
