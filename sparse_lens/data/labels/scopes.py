"""Which scope a name belongs to, from the standard library's symbol table."""

from __future__ import annotations

import symtable
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sparse_lens.data.labels.tree import Scope, without_mark

SCOPES = ("none", "local", "global", "free", "cell")
"""Scopes of a name, in the order of their codes. A cell is a local variable that an inner function reads; names of the module,
and built-in ones, are global."""

UNKNOWN = -1
_LOCAL, _GLOBAL, _FREE, _CELL = 1, 2, 3, 4
_MOST_LOOKUPS = 10_000_000
"""A class of so many names times functions would take seconds to look up; its names stay unknown."""

Names = dict[str, int]


def resolve_scopes(text: str, scopes: Sequence[Scope]) -> list[Names | None]:
    """For each scope of the walk the code of every name that stands in it; None where the symbol table has no match for it.

    Scopes are matched by kind, name and line; where several have the same, by order.
    """
    try:
        top = symtable.symtable(without_mark(text), "source", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [None] * len(scopes)
    tables: list[symtable.SymbolTable | None] = [top, *[None] * (len(scopes) - 1)]
    inner = defaultdict(list)
    for number, scope in enumerate(scopes[1:], 1):
        inner[scope.parent].append(number)
    for number in range(len(scopes)):  # scopes are in order of opening, so that a parent is matched before its children
        if (table := tables[number]) is not None and inner[number]:
            for child, found in _matched(inner[number], scopes, table):
                tables[child] = found
    names = [None if table is None else _names(table) for table in tables]
    _mark_cells(scopes, names)
    return names


def module_names(text: str) -> frozenset[str]:
    """Names that a module binds at its top level by assignment, definition or import; none where there is no symbol table."""
    try:
        table = symtable.symtable(without_mark(text), "source", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())


def _matched(
    children: Sequence[int], scopes: Sequence[Scope], table: symtable.SymbolTable
) -> Iterator[tuple[int, symtable.SymbolTable]]:
    ours, theirs = defaultdict(list), defaultdict(list)
    for number in children:
        scope = scopes[number]
        ours[scope.kind, scope.name, scope.line].append(number)
    for child in _plain_children(table):
        theirs[_kind(child), child.get_name().strip("<>"), child.get_lineno()].append(child)
    for key, numbers in ours.items():
        if len(theirs[key]) == len(numbers):
            yield from zip(numbers, theirs[key], strict=True)


def _plain_children(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """Tables of the functions and classes inside; since Python 3.12 those of generic ones lie in a table of their parameters."""
    for child in table.get_children():
        if _kind(child) in ("function", "class"):
            yield child
        else:
            yield from _plain_children(child)


def _kind(table: symtable.SymbolTable) -> str:
    return str(getattr(table.get_type(), "value", table.get_type()))


def _names(table: symtable.SymbolTable) -> Names:
    if isinstance(table, symtable.Function):
        found = dict.fromkeys(table.get_locals(), _LOCAL) | dict.fromkeys(table.get_globals(), _GLOBAL)
        return found | dict.fromkeys(table.get_frees(), _FREE)
    identifiers = list(table.get_identifiers())
    if _kind(table) == "module":
        return dict.fromkeys(identifiers, _GLOBAL)
    if len(identifiers) * len(table.get_children()) > _MOST_LOOKUPS:
        return {}
    symbols = {name: table.lookup(name) for name in identifiers}
    return {name: _FREE if symbol.is_free() else _LOCAL if symbol.is_local() else _GLOBAL for name, symbol in symbols.items()}


def _mark_cells(scopes: Sequence[Scope], names: Sequence[Names | None]) -> None:
    """Turn a local variable of a function into a cell where a scope inside has it free."""
    wanted: list[set[str]] = [set() for _ in scopes]
    for number in range(len(scopes) - 1, 0, -1):  # inner scopes first
        own = names[number] or {}
        free = {name for name, code in own.items() if code == _FREE} | wanted[number]
        if scopes[number].kind == "function":
            bound = {name for name in wanted[number] if own.get(name) == _LOCAL}
            own.update(dict.fromkeys(bound, _CELL))
            free -= bound
        wanted[scopes[number].parent] |= free


def mangled(name: str, class_name: str | None) -> str:
    """The name as the symbol table has it: `__private` names carry their class's."""
    if class_name is None or not name.startswith("__") or name.endswith("__") or not class_name.strip("_"):
        return name
    return f"_{class_name.lstrip('_')}{name}"


def scope_code(number: int, name: str, names: Sequence[Names | None]) -> int:
    """Code of the scope that a name in scope `number` has, -1 if unknown; all names of a module are global.

    The symbol table leaves out the names in annotations, under `from __future__ import annotations` and in newer versions.
    """
    return (names[number] or {}).get(name, UNKNOWN if number or names[0] is None else _GLOBAL)


def owner(number: int, name: str, scopes: Sequence[Scope], names: Sequence[Names | None]) -> int | None:
    """The scope whose variable a name in scope `number` is; None if unknown."""
    code = scope_code(number, name, names)
    while code == _FREE:
        number = scopes[number].parent
        while number > 0 and scopes[number].kind == "class":
            number = scopes[number].parent
        code = scope_code(number, name, names)
    if code == _GLOBAL:
        return 0
    return None if code == UNKNOWN else number
