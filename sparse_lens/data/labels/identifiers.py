"""What each name in Python source is: its role, its use, its scope, and the type of the variable it stands for."""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from sparse_lens.data.labels.lexemes import KINDS, Scan
from sparse_lens.data.labels.scopes import mangled, resolve_scopes, scope_code
from sparse_lens.data.labels.tree import Places, Scope, Visit
from sparse_lens.data.labels.types import variable_types

PerLexeme = Int32[np.ndarray, " lexeme"]

ROLES = (
    *("none", "variable", "parameter", "attribute", "keyword_argument", "decorator"),
    *("function_name", "class_name", "import_name", "other"),
)
"""Roles of an identifier, in the order of their codes. Functions and classes have their role where they are defined; "other" is
any other place of a name, as after `global` or in a pattern; "none" is no identifier."""

CONTEXTS = ("none", "load", "store", "delete")
"""What is done to a variable or an attribute, in the order of the codes."""

IDENTIFIER_LABELS = ("role", "context", "called", "scope", "variable_type")
"""Names of the labels of `identifiers`."""

_ROLE = {name: code for code, name in enumerate(ROLES)}
_CONTEXT: dict[type[ast.AST], int] = {ast.Load: 1, ast.Store: 2, ast.Del: 3}
_DEFINING = ("async", "def", "class")


class _Mark(NamedTuple):
    """A role for the name that begins where the node does, or ends where it does, or is the first one defined in it."""

    node: ast.AST
    where: str
    role: int
    context: int
    called: bool


def identifiers(text: str, scan: Scan, visits: Sequence[Visit], scopes: Sequence[Scope], places: Places) -> dict[str, PerLexeme]:
    """Label values by name, `[lexeme]` each: codes of `ROLES`, `CONTEXTS`, `SCOPES`, `TYPES`, and whether a name is called.

    Scope and type are those of variables and parameters. In the replacement fields of f-strings all are -1: where the nodes there
    lie is known since Python 3.12 only.
    """
    names = _Names(text, scan)
    zeros = np.zeros(len(scan.starts), dtype=np.int32)
    labels = {name: zeros.copy() for name in IDENTIFIER_LABELS}
    labels["role"][names.identifiers] = _ROLE["other"]
    plain = [visit for visit in visits if not visit.interpolated]
    _mark(labels, names, places, [mark for visit in plain for mark in _marks(visit)])
    _mark(labels, names, places, [mark for visit in plain if visit.field == "decorator_list" for mark in _decorator(visit.node)])
    starts, ends = places.spans([visit.node for visit in plain if isinstance(visit.node, (ast.Import, ast.ImportFrom))])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        labels["role"][names.between(start, end)] = _ROLE["import_name"]
    _label_variables(labels, names, places, text, visits, scopes)
    for values in labels.values():
        values[scan.in_field] = -1
    return labels


class _Names:
    """The lexemes that are names, by place."""

    def __init__(self, text: str, scan: Scan) -> None:
        self.starts = scan.starts
        every = np.flatnonzero(scan.kinds == KINDS.index("name"))
        ends = np.append(scan.starts, len(text))[every + 1]
        self.words = [text[start:end] for start, end in zip(scan.starts[every].tolist(), ends.tolist(), strict=True)]
        self.every = every
        self.identifiers = every[np.array([not keyword.iskeyword(word) for word in self.words], dtype=bool)]

    def at(self, places: np.ndarray) -> np.ndarray:
        """Indices of the lexemes that hold these characters."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def between(self, start: int, end: int) -> np.ndarray:
        """Indices of the identifiers from `start` to `end`."""
        first, last = np.searchsorted(self.starts[self.identifiers], [start, end])
        return self.identifiers[first:last]

    def defined_from(self, lexeme: int) -> int:
        """Index of the name behind `def` or `class`, which stand at `lexeme` or behind `async`."""
        place = int(np.searchsorted(self.every, lexeme))
        while self.words[place] in _DEFINING:
            place += 1
        return int(self.every[place])


def _marks(visit: Visit) -> Iterator[_Mark]:
    node, parent = visit.node, visit.parent
    called = visit.field == "func" and isinstance(parent, ast.Call)
    if isinstance(node, ast.Name):
        yield _Mark(node, "start", _ROLE["variable"], _CONTEXT[type(node.ctx)], called)
    elif isinstance(node, ast.Attribute):
        yield _Mark(node, "end", _ROLE["attribute"], _CONTEXT[type(node.ctx)], called)
    elif isinstance(node, ast.arg):
        yield _Mark(node, "start", _ROLE["parameter"], 0, False)
    elif isinstance(node, ast.keyword) and node.arg is not None:
        yield _Mark(node, "start", _ROLE["keyword_argument"], 0, False)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield _Mark(node, "defined", _ROLE["function_name"], 0, False)
    elif isinstance(node, ast.ClassDef):
        yield _Mark(node, "defined", _ROLE["class_name"], 0, False)


def _decorator(node: ast.AST) -> Iterator[_Mark]:
    """The dotted name of a decorator, which may be called."""
    called = isinstance(node, ast.Call)
    if isinstance(node, ast.Call):
        node = node.func
    while isinstance(node, ast.Attribute):
        yield _Mark(node, "end", _ROLE["decorator"], 1, called)
        node, called = node.value, False
    if isinstance(node, ast.Name):
        yield _Mark(node, "start", _ROLE["decorator"], 1, called)


def _mark(labels: dict[str, PerLexeme], names: _Names, places: Places, marks: list[_Mark]) -> None:
    starts, ends = places.spans([mark.node for mark in marks])
    where = np.array([mark.where == "end" for mark in marks], dtype=bool)
    lexemes = names.at(np.where(where, ends - 1, starts))
    for index, mark in enumerate(marks):
        if mark.where == "defined":
            lexemes[index] = names.defined_from(int(lexemes[index]))
    labels["role"][lexemes] = [mark.role for mark in marks]
    labels["context"][lexemes] = [mark.context for mark in marks]
    labels["called"][lexemes] = [mark.called for mark in marks]


def _label_variables(
    labels: dict[str, PerLexeme], names: _Names, places: Places, text: str, visits: Sequence[Visit], scopes: Sequence[Scope]
) -> None:
    tables = resolve_scopes(text, scopes)
    types = variable_types(visits, scopes, tables)
    variables = [visit for visit in visits if isinstance(visit.node, (ast.Name, ast.arg)) and not visit.interpolated]
    lexemes = names.at(places.spans([visit.node for visit in variables])[0])
    for lexeme, visit in zip(lexemes, variables, strict=True):
        name = visit.node.id if isinstance(visit.node, ast.Name) else visit.node.arg  # pyright: ignore[reportAttributeAccessIssue]
        spelled = mangled(name, scopes[visit.scope].class_name)
        labels["scope"][lexeme] = scope_code(visit.scope, spelled, tables)
        labels["variable_type"][lexeme] = types.get(visit.node, -1)
