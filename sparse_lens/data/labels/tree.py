"""Syntax trees of whole files, their places in characters, and a walk that knows the scope of each node."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparse_lens.data.labels.lexemes import Scan
from sparse_lens.data.labels.states import code_points

MAX_CHARACTERS = 2_000_000
"""Longer texts get lexical labels only."""

MAX_DEPTH = 100
"""Brackets deeper than this are not parsed: no one writes them, and parsers spend stack on them."""

_LINE_END = re.compile(r"\r\n|\r|\n")
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
INTERPOLATED: tuple[type[ast.AST], ...] = (ast.JoinedStr, *filter(None, [getattr(ast, "TemplateStr", None)]))
"""Strings with replacement fields; before Python 3.12 the places of the nodes inside are wrong."""


def parse_source(text: str, scan: Scan) -> ast.Module | None:
    """The syntax tree of a whole file, or None if there is none: cut off, of another Python, too long or too deep."""
    if len(text) > MAX_CHARACTERS or not scan.is_closed or int(scan.states[:, 0].max()) > MAX_DEPTH:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the text's own odd escapes, which are not ours to report
            return ast.parse(without_mark(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def without_mark(text: str) -> str:
    """The text without the byte-order mark, which is no part of the source."""
    return text.removeprefix("\ufeff")


class Places:
    """Places of nodes in characters of the text; `ast` counts lines, and columns in bytes of UTF-8."""

    def __init__(self, text: str) -> None:
        points = code_points(text)
        widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        self._first_byte = np.concatenate([[0], np.cumsum(widths)])
        self._line_start = np.array([0, *(end.end() for end in _LINE_END.finditer(text))])
        self._mark = len(text) - len(without_mark(text))

    def characters(self, lines: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Indices `[place]` of characters, for lines counted from 1 and columns in bytes."""
        starts = self._line_start[lines - 1] + np.where(lines == 1, self._mark, 0)
        return np.searchsorted(self._first_byte, self._first_byte[starts] + columns)

    def spans(self, nodes: list[ast.AST]) -> tuple[np.ndarray, np.ndarray]:
        """First characters, and those after the last, of nodes that have a place."""
        fields = ("lineno", "col_offset", "end_lineno", "end_col_offset")
        numbers = np.array([[getattr(node, name) for name in fields] for node in nodes], dtype=np.int64).reshape(-1, 4)
        return self.characters(numbers[:, 0], numbers[:, 1]), self.characters(numbers[:, 2], numbers[:, 3])


@dataclass
class Scope:
    """A module, class, function, lambda or comprehension; `parent` is the index of the scope around it (-1: none).

    `name` is the one in the symbol table; `class_name` that of the innermost class, whose private names are mangled.
    """

    kind: str
    name: str
    line: int
    parent: int
    class_name: str | None


class Visit(NamedTuple):
    """A node on the walk: what it hangs from, by which field, in which scope, and whether inside an interpolated string."""

    node: ast.AST
    parent: ast.AST | None
    field: str
    scope: int
    interpolated: bool


def walk_scopes(tree: ast.Module) -> tuple[list[Visit], list[Scope]]:
    """All nodes, parents before children, in the order in which `symtable` visits them; and their scopes, in order of opening."""
    scopes = [Scope("module", "top", 0, -1, None)]
    stack: list[tuple[Visit, _Opening | None]] = [(Visit(tree, None, "", 0, False), None)]
    visits: list[Visit] = []
    while stack:
        visit, opening = stack.pop()
        if opening is not None:
            visit = visit._replace(scope=opening.number(scopes))
        visits.append(visit)
        opens = _Opening(visit)
        interpolated = visit.interpolated or isinstance(visit.node, INTERPOLATED)
        children = [
            (Visit(child, visit.node, field, visit.scope, interpolated), opens if inside else None)
            for child, field, inside in _children(visit.node)
        ]
        stack.extend(reversed(children))
    return visits, scopes


@dataclass
class _Opening:
    """The scope that a node makes; it opens with the first child inside, after the children outside, as in the symbol table."""

    visit: Visit
    opened: int | None = None

    def number(self, scopes: list[Scope]) -> int:
        if self.opened is None:
            node, parent = self.visit.node, self.visit.scope
            is_class = isinstance(node, ast.ClassDef)
            class_name = node.name if isinstance(node, ast.ClassDef) else scopes[parent].class_name
            name = getattr(node, "name", None) or _SCOPE_NAMES[type(node)]
            scopes.append(Scope("class" if is_class else "function", name, getattr(node, "lineno", 0), parent, class_name))
            self.opened = len(scopes) - 1
        return self.opened


_SCOPE_NAMES: dict[type[ast.AST], str] = {
    ast.Lambda: "lambda",
    ast.ListComp: "listcomp",
    ast.SetComp: "setcomp",
    ast.DictComp: "dictcomp",
    ast.GeneratorExp: "genexpr",
}


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, str, bool]]:
    """Children with their fields, and whether they lie in the scope that the node makes; what lies outside it comes first."""
    if isinstance(node, _FUNCTIONS):
        yield from _function_children(node)
    elif isinstance(node, _COMPREHENSIONS):
        yield node.generators[0].iter, "iter", False
        for number, generator in enumerate(node.generators):
            yield generator.target, "target", True
            yield from ((test, "ifs", True) for test in generator.ifs)
            if number:
                yield generator.iter, "iter", True
        for name in ("elt", "key", "value"):
            if (part := getattr(node, name, None)) is not None:
                yield part, name, True
    else:
        inside = ("body",) if isinstance(node, ast.ClassDef) else ()
        fields = [(name, child) for name, value in ast.iter_fields(node) for child in _nodes(value)]
        yield from ((child, name, False) for name, child in fields if name not in inside)
        yield from ((child, name, True) for name, child in fields if name in inside)


def _function_children(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Iterator[tuple[ast.AST, str, bool]]:
    arguments = node.args
    names = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
    parameters = [argument for argument in names if argument is not None]
    yield from ((value, "defaults", False) for value in [*arguments.defaults, *arguments.kw_defaults] if value is not None)
    yield from ((argument.annotation, "annotation", False) for argument in parameters if argument.annotation is not None)
    for name in ("returns", "decorator_list", "type_params"):
        yield from ((child, name, False) for child in _nodes(getattr(node, name, None)))
    yield from ((argument, "args", True) for argument in parameters)
    yield from ((child, "body", True) for child in _nodes(node.body))


def _nodes(value: object) -> Iterator[ast.AST]:
    if isinstance(value, ast.AST):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, ast.AST))
