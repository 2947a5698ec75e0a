"""The scanner agrees with the standard library's tokenizer on whole files, and reads what that one refuses."""

import io
import sys
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_lens.data import FileFilter, StandardLibrary
from sparse_lens.data.labels.lexemes import KINDS, QUOTES, scan_source
from sparse_lens.data.labels.states import lexical_states

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
KIND_OF_TOKEN = {"NAME": "name", "NUMBER": "number", "OP": "operator", "COMMENT": "comment"}


def states(text):
    return lexical_states(text, scan_source(text))


def at(text, name):
    return states(text)[name].tolist()


def by_tokenize(text):
    """Per character: inside a string (whole f-strings), inside a comment, bracket depth outside strings; and kinds by start."""
    starts = np.cumsum([0, *(len(line) + 1 for line in text.split("\n"))])
    in_string, in_comment, depth = (np.zeros(len(text) + 1, dtype=int) for _ in range(3))
    kinds, open_fstrings = {}, []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        start, end = (int(starts[line - 1] + column) for line, column in (token.start, token.end))
        if kind == "STRING" and not open_fstrings:
            in_string[start + min(token.string.find(q) for q in "'\"" if q in token.string) : end - 1] = 1
        elif kind == "FSTRING_START":
            open_fstrings.append(end - len(token.string.lstrip("rRfF")))
        elif kind == "FSTRING_END":
            first = open_fstrings.pop()
            in_string[first : end - 1] = 1
        elif kind == "COMMENT" and not open_fstrings:
            in_comment[start:end] = 1
        elif kind == "OP" and token.string in "([{)]}" and not open_fstrings:
            depth[start] += 1 if token.string in "([{" else -1
        if kind in KIND_OF_TOKEN and not open_fstrings:
            kinds[start] = KIND_OF_TOKEN[kind]
    return in_string[:-1], in_comment[:-1], np.cumsum(depth)[:-1], kinds


def check_against_tokenize(text):
    in_string, in_comment, depth, kinds = by_tokenize(text)
    scan, found = scan_source(text), states(text)
    assert np.array_equal(found["in_string"] > 0, in_string > 0)
    assert np.array_equal(found["in_comment"] > 0, in_comment > 0)
    assert np.array_equal(found["bracket_depth"], depth)
    own = {int(start): KINDS[kind] for start, kind in zip(scan.starts, scan.kinds, strict=True)}
    assert {start: own.get(start) for start in kinds} == kinds


def library_texts(pattern):
    for path in sorted(LIBRARY.glob(pattern)):
        text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
        if text and not text.startswith("\ufeff"):
            yield path, text


def test_agrees_with_tokenize_on_standard_library():
    texts = list(library_texts("[a-b]*.py"))
    assert len(texts) > 10
    for _, text in texts:
        check_against_tokenize(text)


@pytest.mark.slow
def test_agrees_with_tokenize_on_the_packages_of_the_library():
    """A fourth of its files, but for the last Python 2 in it, whose numbers are others."""
    for document in list(StandardLibrary().documents(FileFilter()))[::4]:
        if not document.text.startswith("\ufeff") and not document.path.startswith("lib2to3/"):
            check_against_tokenize(document.text)


@pytest.mark.parametrize(
    "text",
    [
        "f'{x!r:>{width}} {{}} {a != b}'\n",
        'rf"""{x:%H:%M}\n{y}""" + b\'\\\'\'\n',
        "f\"{d['k']}\" 's'\n",
        "f'{(lambda: 1)()}{ {1: 2}[1] }'\n",
        "f'\\N{BULLET} {x}'\n",
        "x = f'{x = }' f'{y:=5}'\n",
        "\tif x:\n\t  y = 0x_ff, 1_0.5e-3j, .5, 1.\n",
    ],
)
def test_agrees_with_tokenize_on_format_strings(text):
    if text.startswith("\t"):
        text = "if 1:\n" + text
    check_against_tokenize(text)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="quotes are reused inside of f-strings since Python 3.12")
def test_agrees_with_tokenize_on_reused_quotes():
    check_against_tokenize('x = f"{d["k"]:{w["v"]}}" + "a"\n')


def test_reused_quotes_are_read_as_of_python_3_12():
    text = 'f"{d["k"]}"+1'
    assert at(text, "in_string") == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert at(text, "in_fstring_field") == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_states_after_reading():
    text = "a([{1}])"
    assert at(text, "bracket_depth") == [0, 1, 2, 3, 3, 2, 1, 0]
    assert at(text, "bracket_innermost") == [0, 1, 2, 3, 3, 2, 1, 0]
    assert at(text, "bracket_stack") == [0, 1, 6, 27, 27, 6, 1, 0]
    text = "x = 'ab' #c\ny"
    assert at(text, "quote") == [0] * 4 + [QUOTES.index("'")] * 3 + [0] * 6
    assert at(text, "since_quote") == [0] * 4 + [1, 2, 3] + [0] * 6
    assert at(text, "in_comment") == [0] * 9 + [1, 1, 0, 0]
    assert at(text, "column") == [*range(1, 12), 0, 1]


def test_indentation_counts_what_was_read():
    assert at("if x:\n    y\n\tz\n", "indentation") == [0] * 6 + [1, 2, 3, 4, 4, 0, 8, 8, 0]
    assert at("  \n  a b", "at_line_start") == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("x = 'abc", "in_string", [0, 0, 0, 0, 1, 1, 1, 1]),
        ("'ab\nc", "in_string", [1, 1, 1, 0, 0]),  # a quote of one line ends with it
        ('"""a\nb', "quote", [4] * 6),
        ("f(a, [b", "bracket_depth", [0, 1, 1, 1, 1, 2, 2]),
        ("a))(", "bracket_depth", [0, 0, 0, 1]),
        ("f'{x", "in_fstring_field", [0, 0, 1, 1]),
        ("'a\\\nb'", "in_string", [1, 1, 1, 1, 1, 0]),
        ("", "in_string", []),
    ],
)
def test_cut_off_text_has_its_states(text, name, expected):
    assert at(text, name) == expected


@given(st.text(alphabet="ab1 \n\t'\"\\(){}[]#f:=.,é\r!N", max_size=60))
def test_any_text_is_covered_and_no_state_depends_on_what_follows(text):
    scan, found = scan_source(text), states(text)
    assert all(len(values) == len(text) for values in found.values())
    assert (np.diff(scan.starts) > 0).all() and (not text or scan.starts[0] == 0)
    cut = len(text) * 2 // 3
    # Only the second and third of three quotes are read together.
    if not any(text[max(0, cut - 2) : cut + 2].count(quote) for quote in "'\""):
        earlier = states(text[:cut])
        assert all(np.array_equal(earlier[name], values[:cut]) for name, values in found.items())


def test_hostile_text_takes_time_in_proportion():
    for part in ("(", "f'{", "'\\", "\t", "f'{{'", '"""'):
        text = part * 10_000
        assert len(states(text)["in_string"]) == len(text)
