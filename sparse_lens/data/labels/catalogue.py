"""A fixed catalogue of binary concepts of Python source, read off the labels of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8

from sparse_lens.data.labels.identifiers import CONTEXTS, ROLES
from sparse_lens.data.labels.labelling import WORD_KINDS, WORDS, TokenLabels
from sparse_lens.data.labels.lexemes import BRACKETS, QUOTES
from sparse_lens.data.labels.scopes import SCOPES
from sparse_lens.data.labels.surroundings import STATEMENTS
from sparse_lens.data.labels.types import TYPES
from sparse_lens.errors import UnknownNameError


@dataclass(frozen=True)
class Concept:
    """A yes-or-no question about a token: whether the value of `label` satisfies `holds`; unknown where the value is."""

    name: str
    label: str
    holds: Callable[[np.ndarray], np.ndarray]


def _equal(name: str, label: str, value: int) -> Concept:
    return Concept(name, label, lambda values: values == value)


def _at_least(name: str, label: str, least: int) -> Concept:
    return Concept(name, label, lambda values: values >= least)


def _one_of(name: str, label: str, wanted: Sequence[int]) -> Concept:
    return Concept(name, label, lambda values: np.isin(values, wanted))


def _lexical() -> list[Concept]:
    return [
        _at_least("in_string", "in_string", 1),
        _one_of("in_single_quotes", "quote", [QUOTES.index("'"), QUOTES.index("'''")]),
        _one_of("in_double_quotes", "quote", [QUOTES.index('"'), QUOTES.index('"""')]),
        _one_of("in_triple_quotes", "quote", [QUOTES.index("'''"), QUOTES.index('"""')]),
        _at_least("deep_in_string", "since_quote", 20),
        _at_least("in_fstring_field", "in_fstring_field", 1),
        _at_least("in_comment", "in_comment", 1),
        _at_least("in_brackets", "bracket_depth", 1),
        _at_least("bracket_depth_2", "bracket_depth", 2),
        _at_least("bracket_depth_3", "bracket_depth", 3),
        *(
            _equal(f"innermost_{name}", "bracket_innermost", 1 + BRACKETS.index(bracket))
            for name, bracket in (("parenthesis", "("), ("square", "["), ("curly", "{"))
        ),
        _equal("indented_4", "indentation", 4),
        _equal("indented_8", "indentation", 8),
        _at_least("indented_12", "indentation", 12),
        _at_least("at_line_start", "at_line_start", 1),
        _at_least("late_in_line", "column", 60),
        *(_equal(f"is_{kind}", "kind", WORD_KINDS.index(kind)) for kind in ("keyword", "builtin", "name", "number", "operator")),
        *(
            _equal(f"word_{word.lower()}", "word", WORDS.index(word))
            for word in "def class if else for return import self None".split()
        ),
        _at_least("first_use", "first_use", 1),
    ]


def _syntactic() -> list[Concept]:
    surrounding = (
        *("function", "class", "method", "loop", "if", "else", "try", "with", "comprehension", "lambda", "call", "subscript"),
        *(
            "dict_display",
            "list_display",
            "tuple_display",
            "keyword_argument",
            "comparison",
            "binary_operation",
            "boolean_operation",
        ),
        *("condition", "decorator", "annotation", "default", "docstring", "assignment", "return", "raise", "import"),
    )
    roles = ("variable", "parameter", "attribute", "keyword_argument", "decorator", "function_name", "class_name", "import_name")
    return [
        *(_equal(f"role_{role}", "role", ROLES.index(role)) for role in roles),
        _at_least("called", "called", 1),
        *(_equal(f"is_{context}", "context", CONTEXTS.index(context)) for context in ("load", "store")),
        *(_at_least(f"in_{name}", f"in_{name}", 1) for name in surrounding),
        _equal("statement_expression", "statement", STATEMENTS.index("Expr")),
        _at_least("nested_2", "nesting", 2),
        _at_least("nested_3", "nesting", 3),
        *(_equal(f"scope_{scope}", "scope", SCOPES.index(scope)) for scope in ("local", "global", "free", "cell")),
        *(_equal(f"variable_is_{kind}", "variable_type", TYPES.index(kind)) for kind in ("set", "str", "list", "dict", "int")),
    ]


CATALOGUE: Mapping[str, Concept] = {concept.name: concept for concept in [*_lexical(), *_syntactic()]}
"""The concepts by name, in a fixed order."""

HIERARCHIES: Mapping[str, tuple[str, ...]] = {
    "in_brackets": ("bracket_depth_2", "innermost_parenthesis", "innermost_square", "innermost_curly"),
    "in_string": ("in_single_quotes", "in_double_quotes", "in_triple_quotes", "in_fstring_field"),
    "in_function": ("in_method", "in_loop", "in_if", "in_return"),
    "role_variable": ("scope_local", "scope_global", "scope_free", "scope_cell"),
    "in_call": ("in_keyword_argument", "bracket_depth_2"),
}
"""General concepts with more special ones, by which a latent for the general one may be split or have its work absorbed."""


def available_concepts() -> list[str]:
    """Names of the concepts, in the catalogue's order."""
    return list(CATALOGUE)


def binary_labels(
    labels: TokenLabels, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Int8[np.ndarray, "token label"]]:
    """Names of the concepts (default: all) and a matrix `[token, label]`: 1 where a token has it, 0 where not, -1 where not known.

    Raises `UnknownNameError` for a concept that the catalogue does not have.
    """
    chosen = tuple(CATALOGUE if names is None else names)
    matrix = np.empty((len(labels.ids), len(chosen)), dtype=np.int8)
    for column, name in enumerate(chosen):
        if name not in CATALOGUE:
            raise UnknownNameError("concept", name, CATALOGUE)
        concept = CATALOGUE[name]
        values = labels.values[concept.label]
        matrix[:, column] = np.where(values < 0, -1, concept.holds(values))
    return chosen, matrix
