"""`label_tokens`: labels of every token of a Python file, from its source alone."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from sparse_lens.data.labels.identifiers import IDENTIFIER_LABELS, ROLES, PerLexeme, identifiers
from sparse_lens.data.labels.lexemes import KINDS, Scan, scan_source
from sparse_lens.data.labels.offsets import OffsetEncoder, Offsets, last_characters, main_lexemes
from sparse_lens.data.labels.scopes import SCOPES, module_names
from sparse_lens.data.labels.states import PerCharacter, lexical_states
from sparse_lens.data.labels.surroundings import SURROUNDING_LABELS, surroundings
from sparse_lens.data.labels.tree import Places, parse_source, walk_scopes

PerToken = Int32[np.ndarray, " token"]

LABELS_FORMAT = "labels 3"
"""Changes when a label of a token does: kept numbers that rest on labels are then computed anew."""

WORD_KINDS = (*KINDS, "keyword", "builtin")
"""Values of the label `kind`: the kinds of lexemes, names told apart from keywords and built-in names.

Where the syntax tree is known, what the program itself defines is a name, however it is spelled: parameters, local names, names of
arguments, and what the module binds at its top level, there and wherever a function reads it."""

WORDS = ("", *keyword.kwlist, "self", "cls")
"""Values of the label `word`: which of these words a token belongs to; the first stands for any other."""

_SITE_NAMES = frozenset(("copyright", "credits", "license", "exit", "quit", "help"))
_BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_")) - _SITE_NAMES - frozenset(keyword.kwlist)
_RANK = np.array([("space", "newline").index(kind) if kind in ("space", "newline") else 2 for kind in KINDS])
"""A line's end says more than the spaces around it, and anything else more than both."""

_OWN_ROLES = [ROLES.index(role) for role in ("parameter", "keyword_argument", "function_name", "class_name", "import_name")]
_OWN_SCOPES = [SCOPES.index(scope) for scope in ("local", "free", "cell")]
"""Roles and scopes of names that are the program's own, however they are spelled."""

_WORD = {word: code for code, word in enumerate(WORDS)}


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Labels of the tokens of one text.

    `ids [token]`, `offsets [token, 2]` (first character, past the last), and `values`: by the label's name an int32 `[token]`, with
    -1 where the label is not known. `parsed` says whether the text is a whole file that Python can read; otherwise the labels that
    come from its syntax tree are -1 throughout, and the lexical ones are given all the same.
    """

    ids: Int64[np.ndarray, " token"]
    offsets: Offsets
    values: Mapping[str, PerToken]
    parsed: bool

    def following(self) -> TokenLabels:
        """The same tokens with the labels of the token after each, for what predicts; -1 at the last."""
        after = {name: np.append(labels[1:], np.int32(-1)) for name, labels in self.values.items()}
        return TokenLabels(self.ids, self.offsets, after, self.parsed)


def label_tokens(text: str, tokenizer: Any) -> TokenLabels:
    """Label every token of a whole Python file; cut windows afterwards, so that each token is labelled by all that precedes it.

    `tokenizer` is a `tokenizers.Tokenizer`, a fast tokenizer of transformers, or an `OffsetEncoder` of one (for many files).
    Labels of state (brackets, quotes, indentation, what a character lies in) are those after the token's last character; labels of
    a word (its kind, role, scope, type) those of the lexeme that most of the token's characters belong to, white space aside.
    The text is never run. Raises `DataError` for a tokenizer without offsets or a text that is no Unicode.
    """
    encoder = tokenizer if isinstance(tokenizer, OffsetEncoder) else OffsetEncoder(tokenizer)
    ids, offsets = encoder.encode(text)
    scan = scan_source(text)
    characters, lexemes, parsed = _labels(text, scan)
    last = last_characters(offsets)
    main = main_lexemes(offsets, scan.starts, _RANK[scan.kinds], len(text))
    values = {name: _taken(labels, last) for name, labels in characters.items()}
    values |= {name: _taken(labels, main) for name, labels in lexemes.items()}
    return TokenLabels(ids, offsets, values, parsed)


def _taken(labels: np.ndarray, places: np.ndarray) -> PerToken:
    """The labels at these places; -1 where there is none."""
    return np.append(labels, np.int32(-1))[places]


def _labels(text: str, scan: Scan) -> tuple[dict[str, PerCharacter], dict[str, PerLexeme], bool]:
    """Labels of characters and of lexemes, and whether the text has a syntax tree."""
    characters, lexemes = lexical_states(text, scan), _words(text, scan)
    tree = parse_source(text, scan)
    if tree is None:
        unknown = {name: np.full(len(text), -1, dtype=np.int32) for name in SURROUNDING_LABELS}
        names = {name: np.full(len(scan.starts), -1, dtype=np.int32) for name in IDENTIFIER_LABELS}
        return characters | unknown, lexemes | names, False
    places = Places(text)
    visits, scopes = walk_scopes(tree)
    found = identifiers(text, scan, visits, scopes, places)
    lexemes["kind"] = _shadowed(text, scan, lexemes["kind"], found)
    return characters | surroundings(text, visits, places), lexemes | found, True


def _shadowed(text: str, scan: Scan, kinds: PerLexeme, found: Mapping[str, PerLexeme]) -> PerLexeme:
    """Kinds where what the program itself defines is a plain name, though it is spelled like a built-in one."""
    own = np.isin(found["role"], _OWN_ROLES) | np.isin(found["scope"], _OWN_SCOPES)
    spelled = kinds == WORD_KINDS.index("builtin")
    if shadowing := module_names(text) & _BUILTINS:
        ends = np.append(scan.starts, len(text))[1:]
        for index in np.flatnonzero(spelled & (found["scope"] == SCOPES.index("global"))).tolist():
            own[index] = text[scan.starts[index] : ends[index]] in shadowing
    return np.where(spelled & own, KINDS.index("name"), kinds).astype(np.int32)


def _words(text: str, scan: Scan) -> dict[str, PerLexeme]:
    """Lexical labels of lexemes: `kind`, `word`, and whether a name stands in the text for the first time."""
    kinds = scan.kinds.astype(np.int32)
    words, first = np.zeros_like(kinds), np.zeros_like(kinds)
    seen: set[str] = set()
    ends = np.append(scan.starts, len(text))[1:].tolist()
    before = ""
    for index, (start, end, kind) in enumerate(zip(scan.starts.tolist(), ends, scan.kinds.tolist(), strict=True)):
        if kind == KINDS.index("name"):
            word = text[start:end]
            words[index] = _WORD.get(word, 0)
            if keyword.iskeyword(word):
                kinds[index] = WORD_KINDS.index("keyword")
            else:
                first[index] = word not in seen
                seen.add(word)
                if word in _BUILTINS and before != ".":
                    kinds[index] = WORD_KINDS.index("builtin")
        if kind > KINDS.index("comment"):
            before = text[start:end] if end - start == 1 else ""
    return {"kind": kinds, "word": words, "first_use": first}
