"""What a character of Python source lies in: functions, loops, calls, default values, the innermost statement."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sparse_lens.data.labels.states import PerCharacter
from sparse_lens.data.labels.tree import INTERPOLATED, Places, Visit

ENCLOSING: Mapping[str, tuple[str, ...]] = {
    "function": ("FunctionDef", "AsyncFunctionDef"),
    "class": ("ClassDef",),
    "loop": ("For", "AsyncFor", "While"),
    "for": ("For", "AsyncFor"),
    "while": ("While",),
    "if": ("If",),
    "with": ("With", "AsyncWith"),
    "try": ("Try", "TryStar"),
    "except": ("ExceptHandler",),
    "match": ("Match",),
    "comprehension": ("ListComp", "SetComp", "DictComp", "GeneratorExp"),
    "list_comprehension": ("ListComp",),
    "set_comprehension": ("SetComp",),
    "dict_comprehension": ("DictComp",),
    "generator": ("GeneratorExp",),
    "lambda": ("Lambda",),
    "call": ("Call",),
    "keyword_argument": ("keyword",),
    "subscript": ("Subscript",),
    "slice": ("Slice",),
    "attribute": ("Attribute",),
    "starred": ("Starred",),
    "list_display": ("List",),
    "tuple_display": ("Tuple",),
    "set_display": ("Set",),
    "dict_display": ("Dict",),
    "binary_operation": ("BinOp",),
    "boolean_operation": ("BoolOp",),
    "unary_operation": ("UnaryOp",),
    "comparison": ("Compare",),
    "conditional_expression": ("IfExp",),
    "f_string": tuple(kind.__name__ for kind in INTERPOLATED),
    "assignment": ("Assign",),
    "augmented_assignment": ("AugAssign",),
    "annotated_assignment": ("AnnAssign",),
    "return": ("Return",),
    "raise": ("Raise",),
    "assert": ("Assert",),
    "delete": ("Delete",),
    "import": ("Import", "ImportFrom"),
    "yield": ("Yield", "YieldFrom"),
    "await": ("Await",),
}
"""Label `in_<name>`: whether a character lies in a node of one of these types."""

PARTS: Mapping[str, str] = {
    "decorator_list": "decorator",
    "annotation": "annotation",
    "returns": "annotation",
    "defaults": "default",
    "test": "condition",
}
"""Label `in_<value>`: whether a character lies in what hangs from a node by this field (a test: of a statement)."""

SPECIAL = ("docstring", "else", "method")
"""Label `in_<name>` for a docstring, an else branch (no elif), and a function whose body a class holds."""

STATEMENTS = (
    *("none", "Expr", "Assign", "AugAssign", "AnnAssign", "Return", "If", "For", "While", "With", "Try", "FunctionDef"),
    *("ClassDef", "Import", "ImportFrom", "Raise", "Assert", "Pass", "Break", "Continue", "Delete", "Global", "Nonlocal", "other"),
)
"""Kinds of the innermost statement, in the order of their codes; asynchronous ones count as plain ones."""

SURROUNDING_LABELS = (*(f"in_{name}" for name in dict.fromkeys([*ENCLOSING, *PARTS.values(), *SPECIAL])), "nesting", "statement")
"""Names of the labels of `surroundings`."""

_LABELS_OF_TYPE: dict[str, list[str]] = defaultdict(list)
for _label, _types in ENCLOSING.items():
    for _type in _types:
        _LABELS_OF_TYPE[_type].append(_label)
_BLOCKS = (
    *("FunctionDef", "AsyncFunctionDef", "ClassDef", "If", "For", "AsyncFor", "While"),
    *("With", "AsyncWith", "Try", "TryStar", "Match"),
)
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_WITH_ELSE = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.Try, *((ast.TryStar,) if hasattr(ast, "TryStar") else ()))
_STATEMENT = {name: code for code, name in enumerate(STATEMENTS)}

Pair = tuple[ast.AST, ast.AST]
"""The first and the last node of a stretch of the text."""


def surroundings(text: str, visits: Sequence[Visit], places: Places) -> dict[str, PerCharacter]:
    """Label values by name, `[character]` each: `in_...` (0 or 1), `nesting` (blocks around), `statement` (innermost)."""
    stretches: dict[str, list[Pair]] = defaultdict(list)
    blocks: list[Pair] = []
    statements: list[ast.AST] = []
    for visit in visits:
        node = visit.node
        if not hasattr(node, "lineno") or visit.interpolated:
            continue
        for name, pair in _stretches(visit):
            stretches[f"in_{name}"].append(pair)
        if type(node).__name__ in _BLOCKS:
            blocks.append((node, node))
        if isinstance(node, ast.stmt):
            statements.append(node)
    covers = {name: _cover(stretches[name], len(text), places) > 0 for name in SURROUNDING_LABELS if name.startswith("in_")}
    covers["in_else"] = _cover(_without_elif(text, stretches["in_else"], places), len(text), places) > 0
    covers["nesting"] = _cover(_without_elif(text, blocks, places), len(text), places)
    covers["statement"] = _innermost(statements, len(text), places)
    return {name: values.astype(np.int32) for name, values in covers.items()}


def _stretches(visit: Visit) -> Iterator[tuple[str, Pair]]:
    node, parent, field = visit.node, visit.parent, visit.field
    yield from ((name, (node, node)) for name in _LABELS_OF_TYPE.get(type(node).__name__, ()))
    if field in PARTS and (field != "test" or isinstance(parent, (ast.If, ast.While))):
        yield PARTS[field], (node, node)
    if isinstance(parent, _DOCUMENTED) and field == "body" and parent.body[0] is node and _is_text(node):
        yield "docstring", (node, node)
    if isinstance(node, _WITH_ELSE) and node.orelse:
        yield "else", (node.orelse[0], node.orelse[-1])
    if isinstance(parent, ast.ClassDef) and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield "method", (node, node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _without_elif(text: str, pairs: list[Pair], places: Places) -> list[Pair]:
    """Without what begins with `elif`, which the tree holds as an `if` inside of an `else`."""
    starts, _ = places.spans([first for first, _ in pairs])
    return [pair for pair, start in zip(pairs, starts.tolist(), strict=True) if not text.startswith("elif", start)]


def _cover(pairs: list[Pair], length: int, places: Places) -> np.ndarray:
    """How many of the stretches each character lies in."""
    starts, _ = places.spans([first for first, _ in pairs])
    _, ends = places.spans([last for _, last in pairs])
    return np.cumsum(np.bincount(starts, minlength=length + 1) - np.bincount(ends, minlength=length + 1))[:length]


def _innermost(statements: list[ast.AST], length: int, places: Places) -> np.ndarray:
    """Code of the innermost statement of each character, by a stack of those open: no stretch is painted twice."""
    starts, ends = places.spans(statements)
    other = len(STATEMENTS) - 1
    codes = [_STATEMENT.get(type(node).__name__.removeprefix("Async").removesuffix("Star"), other) for node in statements]
    edges, values, open_ = [0], [0], [(length + 1, 0)]
    for index in np.argsort(starts, kind="stable"):
        while open_[-1][0] <= starts[index]:
            edges.append(open_.pop()[0])
            values.append(open_[-1][1])
        open_.append((int(ends[index]), codes[index]))
        edges.append(int(starts[index]))
        values.append(codes[index])
    while len(open_) > 1:
        edges.append(open_.pop()[0])
        values.append(open_[-1][1])
    return np.repeat(values, np.diff([*edges, length]))
