"""What a reader of Python source knows after each character: brackets, quotes, comments, indentation, place in the line."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int32

from sparse_lens.data.labels.lexemes import Scan

PerCharacter = Int32[np.ndarray, " character"]

_TABBED = re.compile(r"^([ \t\f]*\t[ \t\f]*)[^\r\n]*", re.MULTILINE)
_TAB = 8


def lexical_states(text: str, scan: Scan) -> dict[str, PerCharacter]:
    """Label values by name, `[character]` each, after the character was read; they never depend on what follows it.

    (But for one case: whether the second and third of three quotes belong together is seen only at the third.)
    """
    spans = np.diff(np.append(scan.changed_at, len(text)))
    depth, stack, quote, prefix, opened_at, comment, field = np.repeat(scan.states, spans, axis=0).T
    place = np.arange(len(text))
    column, indentation, at_line_start = _columns(text)
    states = {
        "bracket_depth": depth,
        "bracket_innermost": stack % 4,
        "bracket_stack": stack,
        "in_string": quote > 0,
        "quote": quote,
        "string_prefix": prefix,
        "since_quote": np.where(quote > 0, place - opened_at + 1, 0),
        "in_fstring_field": field,
        "in_comment": comment,
        "indentation": indentation,
        "column": column,
        "at_line_start": at_line_start,
    }
    return {name: values.astype(np.int32) for name, values in states.items()}


def code_points(text: str) -> np.ndarray:
    """The code points of a text, `[character]`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _columns(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns read of the line so far, of them those of leading white space, and whether there was nothing else on the line.

    A tab that leads a line goes to the next multiple of 8, as for `tokenize`.
    """
    points, place = code_points(text), np.arange(len(text))
    ends = np.isin(points, [ord("\n"), ord("\r")])
    after_end = np.maximum.accumulate(np.where(ends, place + 1, 0))
    line_start = np.concatenate([[0], after_end])[: len(text)]
    filled = np.concatenate([[0], np.cumsum(~np.isin(points, [ord(" "), ord("\t"), ord("\f")]))])
    leading = filled[1:] == filled[line_start]
    n_leading = np.concatenate([[0], np.cumsum(leading)])
    column, indentation = place + 1 - line_start, n_leading[1:] - n_leading[line_start]
    for tabbed in _TABBED.finditer(text):
        _widen(tabbed, indentation)
    return np.where(ends, 0, column), np.where(ends, 0, indentation), leading | ends


def _widen(tabbed: re.Match[str], indentation: np.ndarray) -> None:
    """Give the tabs at the start of a line their width."""
    width = 0
    for at, character in enumerate(tabbed.group(1), tabbed.start()):
        width = (width // _TAB + 1) * _TAB if character == "\t" else width + 1
        indentation[at] = width
    indentation[tabbed.end(1) : tabbed.end()] = width
