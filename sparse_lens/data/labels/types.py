"""The type of a variable by its last assignment, read from the source alone: nothing is run, and no call is followed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence

from sparse_lens.data.labels.scopes import UNKNOWN, Names, mangled, owner
from sparse_lens.data.labels.tree import Scope, Visit

TYPES = ("none", "set", "str", "list", "dict", "int", "other")
"""Types of a variable, in the order of their codes; "none": not a variable. What is not known is -1."""

_CODE = {name: code for code, name in enumerate(TYPES)}
_OTHER = _CODE["other"]
_BY_NODE: dict[type[ast.AST], str] = {
    **{ast.Set: "set", ast.SetComp: "set", ast.List: "list", ast.ListComp: "list", ast.Dict: "dict", ast.DictComp: "dict"},
    **{ast.JoinedStr: "str", ast.Tuple: "other", ast.GeneratorExp: "other", ast.Lambda: "other"},
}
_BY_CALL = {
    **{"set": "set", "frozenset": "set", "str": "str", "repr": "str", "input": "str", "chr": "str", "list": "list"},
    **{"sorted": "list", "dict": "dict", "int": "int", "len": "int", "ord": "int"},
    **{"tuple": "other", "bool": "other", "float": "other", "bytes": "other", "isinstance": "other", "range": "other"},
}
_BY_ANNOTATION = {
    **{"set": "set", "Set": "set", "frozenset": "set", "str": "str", "list": "list", "List": "list", "dict": "dict"},
    **{"Dict": "dict", "int": "int", "float": "other", "bool": "other", "bytes": "other", "tuple": "other", "Tuple": "other"},
}
_BLOCKS = (
    *(ast.For, ast.AsyncFor, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.With, ast.AsyncWith),
    ast.ExceptHandler,
)
_KEEPING: dict[int, tuple[type[ast.operator], ...]] = {
    _CODE["set"]: (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Sub),
    _CODE["str"]: (ast.Add, ast.Mult, ast.Mod),
    _CODE["list"]: (ast.Add, ast.Mult),
    _CODE["dict"]: (ast.BitOr,),
    _CODE["int"]: (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.BitOr, ast.BitAnd, ast.BitXor, ast.LShift, ast.RShift),
}
"""Operators that leave a variable its type when they update it in place."""

_TEXT_METHODS = frozenset("join format strip lstrip rstrip lower upper replace title capitalize".split())


def variable_types(visits: Sequence[Visit], scopes: Sequence[Scope], names: Sequence[Names | None]) -> dict[ast.AST, int]:
    """Type codes of the nodes that are variables: of a name that is assigned the new one, else that of its last assignment.

    "Last" goes by place in the source, and variables are told apart by the scope they belong to. The type is -1 where the last
    assignment does not show it (a call of an unknown function, a loop, a deletion), or where there is none.
    """
    now: dict[tuple[int, str], int] = {}
    found: dict[ast.AST, int] = {}

    def key(scope: int, name: str) -> tuple[int, str] | None:
        spelled = mangled(name, scopes[scope].class_name)
        place = owner(scope, spelled, scopes, names)
        return None if place is None else (place, spelled)

    def read(scope: int, name: str) -> int:
        place = key(scope, name)
        return UNKNOWN if place is None else now.get(place, UNKNOWN)

    for event in sorted(_events(visits), key=lambda event: event[0]):
        _, scope, name, node, value, step = event
        if step == "read":
            found[node] = read(scope, name)
        else:
            kind = value if isinstance(value, int) else type_of(value, lambda name, scope=scope: read(scope, name))
            if (place := key(scope, name)) is not None:
                now[place] = kind
            if isinstance(node, (ast.Name, ast.arg)):
                found[node] = kind
    return found


def type_of(value: ast.AST | None, read: Callable[[str], int] = lambda _: UNKNOWN) -> int:
    """Type code of an expression; `read(name)` gives that of a variable."""
    if isinstance(value, ast.Constant):
        by_class: Mapping[type, str] = {str: "str", int: "int", bool: "other", float: "other", bytes: "other", complex: "other"}
        return _CODE[by_class.get(type(value.value), "other")]
    if value is not None and type(value) in _BY_NODE:
        return _CODE[_BY_NODE[type(value)]]
    if isinstance(value, ast.Name):
        return read(value.id)
    if isinstance(value, ast.NamedExpr):
        return type_of(value.value, read)
    if isinstance(value, ast.Call):
        return _type_of_call(value)
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Mod, ast.Add, ast.Mult)):
        kind = type_of(_leftmost(value), read)
        return kind if kind in (_CODE["str"], _CODE["list"]) else UNKNOWN
    if isinstance(value, ast.AugAssign):
        return _type_of_update(value, read)
    return UNKNOWN


def _type_of_update(update: ast.AugAssign, read: Callable[[str], int]) -> int:
    """What a variable is after `+=` or the like: it keeps its type where the operator lets it; an integer by an integer alone."""
    kind = type_of(update.target, read)
    keeps = kind in _KEEPING and isinstance(update.op, _KEEPING[kind])
    return kind if keeps and (kind != _CODE["int"] or type_of(update.value, read) == kind) else UNKNOWN


def _leftmost(value: ast.BinOp) -> ast.AST:
    """The first operand of a chain of operators, without recursion: such chains may be long."""
    left: ast.AST = value
    while isinstance(left, ast.BinOp):
        left = left.left
    return left


def _type_of_call(call: ast.Call) -> int:
    function = call.func
    if isinstance(function, ast.Name) and function.id in _BY_CALL:
        return _CODE[_BY_CALL[function.id]]
    if isinstance(function, ast.Attribute) and isinstance(function.value, (ast.Constant, ast.JoinedStr)):
        is_text = type_of(function.value) == _CODE["str"] and function.attr in _TEXT_METHODS
        return _CODE["str"] if is_text else UNKNOWN
    return UNKNOWN


def _type_of_annotation(annotation: ast.AST | None) -> int:
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    name = annotation.attr if isinstance(annotation, ast.Attribute) else getattr(annotation, "id", None)
    return _CODE[_BY_ANNOTATION[name]] if name in _BY_ANNOTATION else UNKNOWN


Place = tuple[int, int]
Event = tuple[tuple[Place, int], int, str, ast.AST, ast.AST | int | None, str]
"""When it takes effect (place in the source, then reads before writes), scope, name, node, value or type, kind of step."""


def _events(visits: Sequence[Visit]) -> Iterator[Event]:
    for node, _, _, scope, interpolated in visits:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not interpolated:
            yield ((node.lineno, node.col_offset), 0), scope, node.id, node, None, "read"
        for target, value in _assignments(node):
            place = _takes_effect(node)
            if isinstance(target, (ast.Name, ast.arg)):
                name = target.id if isinstance(target, ast.Name) else target.arg
                yield (place, 1), scope, name, target, value, "write"
            elif isinstance(target, str):
                yield (place, 1), scope, target, node, value, "write"


def _takes_effect(node: ast.AST) -> Place:
    """Where an assignment is done: behind its value, at the head of a block, and before all else in a comprehension."""
    if isinstance(node, _BLOCKS):
        return node.lineno, node.col_offset
    return getattr(node, "end_lineno", 0), getattr(node, "end_col_offset", 0)


def _assignments(node: ast.AST) -> Iterator[tuple[ast.AST | str, ast.AST | int | None]]:
    """Targets that a node assigns, each with the value or the type it gets."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _pairs(target, node.value)
    elif isinstance(node, ast.AnnAssign):
        kind = _type_of_annotation(node.annotation)
        yield node.target, kind if kind != UNKNOWN or node.value is None else node.value
    elif isinstance(node, ast.AugAssign):
        yield node.target, node
    elif isinstance(node, ast.NamedExpr):
        yield node.target, node.value
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
        for target in _leaves(node.target):
            yield target, _type_of_item(node.iter) if target is node.target else UNKNOWN
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        for item in node.items:
            yield from ((target, UNKNOWN) for target in _leaves(item.optional_vars))
    elif isinstance(node, ast.arg):
        yield node, _type_of_annotation(node.annotation)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name, _OTHER
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name.partition(".")[0], _OTHER) for alias in node.names)
    elif isinstance(node, ast.Delete):
        yield from ((target, UNKNOWN) for target in node.targets)
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name, _OTHER


def _pairs(target: ast.AST, value: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | int]]:
    """A target with its value; those of a tuple one by one where both sides are spelled out."""
    if not isinstance(target, (ast.Tuple, ast.List)):
        yield target, value
        return
    values = value.elts if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts) else None
    if values is None or any(isinstance(part, ast.Starred) for part in [*target.elts, *values]):
        yield from ((leaf, UNKNOWN) for leaf in _leaves(target))
        return
    for one, its_value in zip(target.elts, values, strict=True):
        if isinstance(one, ast.Name):
            yield one, its_value
        else:
            yield from ((leaf, UNKNOWN) for leaf in _leaves(one))


def _leaves(target: ast.AST | None) -> Iterator[ast.AST]:
    """Names that a target binds."""
    if target is not None:
        yield from (node for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def _type_of_item(iterated: ast.AST) -> int:
    is_range = isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Name) and iterated.func.id == "range"
    return _CODE["int"] if is_range else UNKNOWN
