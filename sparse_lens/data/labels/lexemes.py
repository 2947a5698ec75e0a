"""Lexemes of Python source, and what is open after each of its characters; no source is refused.

The standard library's `tokenize` stops at the first mistake, which is where a file was cut, and gives other tokens for an f-string
before Python 3.12 than since. This scanner reads every prefix of every text, in the same way on every version; on whole files it
agrees with `tokenize` (the tests compare them on the standard library). An f-string is one string whose replacement fields are
lexemes of their own, with quotes reused inside them as Python 3.12 allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

KINDS = ("space", "newline", "comment", "string", "name", "number", "operator", "other")
"""Kinds of lexemes, in the order of their codes."""

QUOTES = ("", "'", '"', "'''", '"""')
"""Quotes, in the order of their codes; the first stands for none."""

BRACKETS = "([{"
"""Opening brackets; their codes are 1, 2, 3."""

STATES = ("depth", "stack", "quote", "prefix", "opened_at", "comment", "field")
"""Columns of `Scan.states`."""

PREFIX_BITS = {"f": 1, "r": 2, "b": 4, "u": 8, "t": 16}
"""What a string's prefix is made of."""

_KIND = {kind: code for code, kind in enumerate(KINDS)}
_LEXEME = re.compile(
    r"""(?P<newline>\r\n|\r|\n)
    |(?P<space>(?:[ \t\f]|\\(?:\r\n|\r|\n))+)
    |(?P<comment>\#[^\r\n]*)
    |(?P<quote>(?:[rR][bBfFtT]?|[bBfFtT][rR]?|[uU])?(?:'''|\"\"\"|'|\"))
    |(?P<number>0[xXoObB][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.(?:[0-9][0-9_]*)?)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9][0-9_]*)?[jJ]?)
    |(?P<name>[^\W\d]\w*)
    |(?P<open>[(\[{])
    |(?P<close>[)\]}])
    |(?P<operator>\*\*=?|//=?|>>=?|<<=?|!=|->|:=|\.\.\.|[-+*/%&|^=<>@]=?|[~.,:;!])
    |(?P<other>[\s\S])""",
    re.VERBOSE,
)
_STOPS = {
    (quote, formatted): re.compile(r"[\\" + quote[0] + ("" if len(quote) == 3 else r"\r\n") + ("{}" if formatted else "") + "]")
    for quote in QUOTES[1:]
    for formatted in (False, True)
}


@dataclass(frozen=True, eq=False)
class Scan:
    """Lexemes of a text and its states.

    Lexemes cover the text without gaps; `starts [lexeme]` are the characters they begin at, `kinds [lexeme]` their codes, `in_field
    [lexeme]` says which lie in the replacement field of an f-string. `states [change, 7]` (columns `STATES`) hold from the
    character `changed_at [change]` on, that is, after it was read: an opening bracket has already raised the depth, and the last
    character of a closing quote lies outside its string. `stack` holds the codes of the four innermost brackets to the base of 4.
    """

    starts: np.ndarray
    kinds: np.ndarray
    in_field: np.ndarray
    changed_at: np.ndarray
    states: np.ndarray

    @property
    def is_closed(self) -> bool:
        """Whether no bracket and no string is open at the end: otherwise the text is cut off, or no Python."""
        return bool(self.states[-1, 0] == 0 and self.states[-1, 2] == 0)


def scan_source(text: str) -> Scan:
    """Scan any text, in time proportional to its length."""
    scanner = _Scanner(text)
    scanner.run()
    lexemes = np.array(scanner.lexemes, dtype=np.int64).reshape(-1, 3)
    changes = np.array(scanner.changes, dtype=np.int64).reshape(-1, 1 + len(STATES))
    return Scan(lexemes[:, 0], lexemes[:, 1], lexemes[:, 2].astype(bool), changes[:, 0], changes[:, 1:])


@dataclass
class _String:
    """A string that is open: `fields` has, for each replacement field open in it, the number of brackets open in the field."""

    quote: str
    prefix: int
    opened_at: int
    fields: list[int] = field(default_factory=list)
    in_spec: list[bool] = field(default_factory=list)

    @property
    def formatted(self) -> bool:
        return bool(self.prefix & (PREFIX_BITS["f"] | PREFIX_BITS["t"]))

    @property
    def reads_code(self) -> bool:
        """Whether what comes next is code in a replacement field, not text or a format specification."""
        return bool(self.fields) and not self.in_spec[-1]


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.brackets: list[int] = []
        self.strings: list[_String] = []
        self.lexemes: list[tuple[int, int, bool]] = []
        self.changes: list[tuple[int, ...]] = [(0, 0, 0, 0, 0, -1, 0, 0)]

    def run(self) -> None:
        while self.at < len(self.text):
            if self.strings and not self.strings[-1].reads_code:
                self._read_string(self.strings[-1])
            else:
                self._read_code()

    def _mark(self, at: int, *, comment: bool = False) -> None:
        """Note the state that holds after the character `at` was read."""
        stack = 0
        for bracket in self.brackets[-4:]:
            stack = stack * 4 + bracket
        quote, prefix, opened_at, in_field = 0, 0, -1, False
        if self.strings:
            string = self.strings[-1]
            quote, prefix, opened_at = QUOTES.index(string.quote), string.prefix, string.opened_at
            in_field = any(open_.fields for open_ in self.strings[-2:])
        state = (len(self.brackets), stack, quote, prefix, opened_at, int(comment), int(in_field))
        if self.changes[-1][0] == at:
            self.changes.pop()
        self.changes.append((at, *state))

    def _add(self, kind: str, start: int, *, in_field: bool) -> None:
        self.lexemes.append((start, _KIND[kind], in_field))

    def _read_code(self) -> None:
        found = _LEXEME.match(self.text, self.at)
        assert found is not None and found.lastgroup is not None
        kind, start, in_field = found.lastgroup, self.at, bool(self.strings)
        self.at = found.end()
        if kind == "quote":
            self._open_string(found.group(), start, in_field=in_field)
        elif in_field and self._leaves_field(found.group(), start):
            return
        elif kind in ("open", "close"):
            self._add("operator", start, in_field=in_field)
            self._count_bracket(found.group(), opens=kind == "open")
            self._mark(start)
        else:
            self._add(kind, start, in_field=in_field)
            if kind == "comment":
                self._mark(start, comment=True)
                self._mark(self.at)

    def _count_bracket(self, bracket: str, *, opens: bool) -> None:
        if self.strings:
            fields = self.strings[-1].fields
            fields[-1] = max(0, fields[-1] + (1 if opens else -1))
        elif opens:
            self.brackets.append(1 + BRACKETS.index(bracket))
        elif self.brackets:
            self.brackets.pop()

    def _leaves_field(self, word: str, start: int) -> bool:
        """Go on to the format specification, or out of the field, if `word` ends its code."""
        string = self.strings[-1]
        if string.fields[-1] or word[0] not in "}:":
            return False
        self.at = start + 1  # of `:=` only the colon
        if word[0] == ":":
            string.in_spec[-1] = True
        else:
            string.fields.pop()
            string.in_spec.pop()
        self._add("string", start, in_field=len(self.strings) > 1)
        self._mark(start)
        return True

    def _open_string(self, opening: str, start: int, *, in_field: bool) -> None:
        quote = opening.lstrip("rRbBuUfFtT")
        prefix = sum(PREFIX_BITS[letter] for letter in opening[: -len(quote)].lower())
        opened_at = start + len(opening) - len(quote)
        self._add("string", start, in_field=in_field)
        self.strings.append(_String(quote, prefix, opened_at))
        self._mark(opened_at)

    def _read_string(self, string: _String) -> None:
        """Read on to where the string ends, a replacement field opens, or a format specification ends."""
        stop = _STOPS[string.quote, string.formatted].search(self.text, self.at)
        if stop is None:
            self.at = len(self.text)
            return
        at, character = stop.start(), stop.group()
        if character == "\\":
            self.at = self._after_backslash(string, at)
        elif character in "\r\n":  # a quote of one line ends with it, whatever it had open
            self.strings.pop()
            self.at = at
            self._mark(at)
        elif character in "{}":
            self._read_brace(string, at)
        elif self.text.startswith(string.quote, at):
            self.strings.pop()
            self.at = at + len(string.quote)
            self._mark(self.at - 1)
        else:
            self.at = at + 1

    def _after_backslash(self, string: _String, at: int) -> int:
        following = self.text[at + 1 : at + 3]
        if string.formatted and following[:1] in ("{", "}"):
            return at + 1
        if string.formatted and following == "N{" and not string.prefix & PREFIX_BITS["r"]:
            closed = re.compile(r"[^}'\"\r\n]*\}?").match(self.text, at + 3)
            assert closed is not None
            return closed.end()
        return at + (3 if following == "\r\n" else 2)

    def _read_brace(self, string: _String, at: int) -> None:
        opens, in_spec = self.text[at] == "{", bool(string.fields)
        self.at = at + 1
        if not in_spec and self.text.startswith(self.text[at], at + 1):  # {{ or }}
            self.at = at + 2
        elif opens:
            string.fields.append(0)
            string.in_spec.append(False)
            self._mark(at)
        elif in_spec:
            string.fields.pop()
            string.in_spec.pop()
            self._mark(at)
