"""Generate varied, simple, valid Python modules: training text rich in the constructs of the tasks."""

from __future__ import annotations

import random

from sparse_lens.data import expressions as make
from sparse_lens.data.accumulators import Accumulator, accumulating_body, new_accumulator
from sparse_lens.data.draw import Draw
from sparse_lens.data.statements import Scope, assignment, block, long_collection, printed, returned
from sparse_lens.data.words import IMPORTED, LETTERS, MODULES

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other text; the manifest records it."""

MAX_LINES = 60
_MIN_LINES = 15
_MAX_TRIES = 200


def generate_program(rng: random.Random) -> str:
    """Return the source of one module of 15 to 60 lines that parses but is not meant to run."""
    draw = Draw(rng)
    lines = _opening(draw)
    target = draw.between(_MIN_LINES + 5, MAX_LINES - 10)
    # A unit that would overflow is drawn again; small units exist, so few tries suffice.
    for _ in range(_MAX_TRIES):
        unit = _unit(draw)
        if len(lines) + len(unit) <= MAX_LINES:
            lines += unit
        if len(lines) >= target:
            break
    while len(lines) < _MIN_LINES:
        lines += assignment(draw, Scope())
    return "\n".join(lines).strip("\n") + "\n"


def _opening(draw: Draw) -> list[str]:
    lines: list[str] = []
    if draw.chance(0.25):
        lines += [f'"""{draw.phrase(2, 7).capitalize()}."""', ""]
    for _ in range(draw.pick((0, 0, 1, 1, 2, 3))):
        lines.append(f"import {draw.pick(MODULES)}" if draw.chance(0.65) else draw.pick(IMPORTED))
    if lines:
        lines.append("")
    for _ in range(draw.pick((0, 0, 1, 2))):
        target = f"{draw.noun()}_{draw.noun()}" if draw.chance(0.5) else draw.noun()
        lines.append(f"{target.upper()} = {make.value(draw, [])}")
    return lines


def _unit(draw: Draw) -> list[str]:
    choice = draw.between(0, 9)
    if choice < 6:
        return ["", *_function(draw, "")]
    if choice < 8:
        return ["", *_class(draw)]
    scope = Scope(names=[draw.variable() for _ in range(3)])
    return ["", *block(draw, scope, 2, 4)]


def _arguments(draw: Draw, low: int, high: int) -> list[str]:
    names = [draw.pick(LETTERS) if draw.chance(0.25) else draw.variable() for _ in range(draw.between(low, high))]
    return list(dict.fromkeys(names))


def _function(draw: Draw, pad: str, first: str = "") -> list[str]:
    arguments = _arguments(draw, 0, 3)
    shown = [first, *arguments] if first else list(arguments)
    if arguments and draw.chance(0.2):
        shown[-1] += f"={make.number(draw) if draw.chance(0.5) else draw.pick(('None', 'True', 'False'))}"
    scope = Scope(pad=pad + "    ", names=arguments, in_function=True)
    lines = [f"{pad}def {draw.function()}({', '.join(shown)}):"]
    if draw.chance(0.2):
        lines.append(f'{scope.pad}"""{draw.phrase(2, 6).capitalize()}."""')
    if draw.chance(0.5):
        return lines + accumulating_body(draw, scope)
    lines += block(draw, scope, 1, 4)
    return lines + (returned(draw, scope) if draw.chance(0.6) else [])


def _class(draw: Draw) -> list[str]:
    base = f"({draw.class_name()})" if draw.chance(0.3) else ""
    arguments = _arguments(draw, 1, 4)
    lines = [f"class {draw.class_name()}{base}:"]
    if draw.chance(0.2):
        lines.append(f'    """{draw.phrase(2, 6).capitalize()}."""')
    lines += ["", f"    def __init__(self, {', '.join(arguments)}):"]
    lines += [f"        self.{argument} = {argument}" for argument in arguments]
    held = new_accumulator(draw) if draw.chance(0.6) else None
    if held is not None:
        lines.append(f"        self.{held.name} = {held.start}")
    for _ in range(draw.between(1, 2)):
        lines += ["", *_method(draw, arguments, held)]
    return lines


def _method(draw: Draw, attributes: list[str], held: Accumulator | None) -> list[str]:
    if held is not None and draw.chance(0.5):
        argument = draw.noun()
        on_self = Accumulator(f"self.{held.name}", held.kind, held.start)
        head = f"    def {draw.function()}(self, {argument}):"
        return [head, f"        {on_self.grow(draw, [argument])}", *_ending(draw, on_self.name)]
    if draw.chance(0.3):
        return [f"    def {draw.function()}(self):", f"        return self.{draw.pick(attributes)}"]
    return _function(draw, "    ", "self")


def _ending(draw: Draw, name: str) -> list[str]:
    if draw.chance(0.4):
        return []
    scope = Scope(pad="        ", names=[name], in_function=True)
    return draw.pick((printed, long_collection, returned))(draw, scope)
