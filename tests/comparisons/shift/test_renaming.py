"""Renaming and shuffling of Python source, against `tokenize` and `ast`; other languages' text."""

from __future__ import annotations

import ast
import inspect
import io
import random
import textwrap
import tokenize
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_lens.comparisons.shift.other_texts import GENERATED, generated_c, generated_c_texts, other_language_texts
from sparse_lens.comparisons.shift.renaming import (
    KEPT_NAMES,
    imported_names,
    lexemes,
    rename_identifiers,
    renamed,
    renamed_with_places,
    shuffle_lines,
)

SOURCE = inspect.getsource(textwrap)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def names(text: str) -> list[str]:
    """All names and keywords that `tokenize` sees."""
    return [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.NAME]


def test_only_names_change_and_the_program_stays_the_same() -> None:
    """A module whose names are all rare has the same tokens but for names, and these are renamed one to one."""
    kept = imported_names(SOURCE)
    found = rename_identifiers(SOURCE, 1.0, kept=kept)
    pairs = set(zip(names(SOURCE), names(found), strict=True))
    assert len({old for old, _ in pairs}) == len(pairs) == len({new for _, new in pairs})
    stayed = {old for old, new in pairs if old == new}
    assert stayed >= (KEPT_NAMES | kept) & set(names(SOURCE))
    assert {"re", "compile", "import", "def", "self", "len", "__init__", "append"} <= stayed
    changed = {new for old, new in pairs if old != new}
    assert len(changed) > 60
    assert not changed & set(names(SOURCE))
    assert all(3 <= len(name) <= 6 and not set(name) & set("aeiou") for name in changed)
    dumped = [Counter(type(node).__name__ for node in ast.walk(ast.parse(text))) for text in (SOURCE, found)]
    assert dumped[0] == dumped[1]


def test_shares_are_nested_and_near_what_was_asked_for() -> None:
    """0 changes nothing; a name renamed at a share keeps its new name at every larger one."""
    texts = [names(rename_identifiers(SOURCE, share, seed=3)) for share in SHARES]
    assert rename_identifiers(SOURCE, 0.0) == SOURCE
    before: dict[str, str] = {}
    free = sum(old != new for old, new in set(zip(texts[0], texts[-1], strict=True)))
    for share, text in zip(SHARES, texts, strict=True):
        now = {old: new for old, new in zip(texts[0], text, strict=True) if old != new}
        assert before.items() <= now.items()
        assert abs(len(now) / free - share) < 0.15
        before = now


def test_what_a_source_has_from_elsewhere() -> None:
    """Imported names and attributes reached through them stay; results of calls are the file's own."""
    text = "import os.path as p, sys\nfrom a import (b,\n  c as d)  # e\ny = p.join(x).upper\nraise z from w\ni = sys.argv[0].f\n"
    assert imported_names(text) == {"os", "path", "p", "sys", "a", "b", "c", "d", "join", "argv"}


def test_strings_comments_and_cut_text_stay() -> None:
    """Excerpts that no parser takes are renamed, too."""
    found = rename_identifiers("value) + f'{value} value' # value\nother = 'value", 1.0)
    assert found.count("value") == 3
    assert "{value}" not in found


def test_shuffling_moves_lines_and_keeps_the_last() -> None:
    """The same lines in another order; those moved at a share are among those moved at a larger one."""
    text = "".join(f"{'  ' * (number % 3)}line {number}\n" for number in range(40)) + "the end"
    moved_before: set[int] = set()
    for share in SHARES:
        found = shuffle_lines(text, share, seed=5)
        assert sorted(found.splitlines()) == sorted(text.splitlines())
        assert found.endswith("the end")
        lines = zip(text.splitlines(), found.splitlines(), strict=True)
        moved = {number for number, (old, new) in enumerate(lines) if old != new}
        assert len(moved) <= round(share * 40)
        assert len(moved) >= share * 40 - 6
        moved_before |= moved
    assert shuffle_lines(text, 0.0) == text
    assert shuffle_lines("", 1.0) == ""


def test_other_languages_are_there_on_every_machine(tmp_path, monkeypatch) -> None:
    """Files are sorted by their kind; equal, short and undecodable ones are left out; C is written where there is none."""
    import sysconfig

    (tmp_path / "a.h").write_text("int x;\n" * 300)
    (tmp_path / "b.h").write_text("int x;\n" * 300)
    (tmp_path / "short.c").write_text("int x;\n")
    (tmp_path / "latin.c").write_bytes(b"\xff" * 3000)
    (tmp_path / "LICENSE.txt").write_text("You may copy.\n" * 300)
    (tmp_path / "code.py").write_text("x = 1\n" * 600)
    (tmp_path / "link.c").symlink_to(tmp_path / "a.h")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: dict.fromkeys(("stdlib", "purelib", "include"), str(tmp_path)))
    found = other_language_texts(most_files=5)
    assert {kind: len(texts) for kind, texts in found.items() if texts} == {"c": 1, "licence": 1, GENERATED: 5}


def test_generated_c_is_the_same_everywhere_and_differs_by_seed() -> None:
    """The kind that does not depend on the installation."""
    assert generated_c(random.Random("a")) == generated_c(random.Random("a"))
    texts = {document.text for document in generated_c_texts(6)}
    assert len(texts) == 6
    assert all(text.count("{") == text.count("}") and len(text) > 1500 for text in texts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["name", "x", " = ", "'name'", '"', "[", "\n", "# name\n", ".add", "(", "1"]), max_size=14), st.data()
)
def test_places_move_with_their_characters(parts: list[str], data: st.DataObject) -> None:
    """A place that lies in no renamed name holds the same character as before, or both are the end of the text."""
    text, names = "".join(parts), {"name": "bcdfg", "x": "qqq"}
    fixed = [at for at in range(len(text) + 1) if at == len(text) or not any(at in span for span in _renamed_spans(text, names))]
    places = data.draw(st.lists(st.sampled_from(fixed), max_size=5))
    changed, moved = renamed_with_places(text, names, places)
    assert changed == renamed(text, names)
    assert [changed[at : at + 1] for at in moved] == [text[at : at + 1] for at in places]
    assert all((b - a >= 0) == (d - c >= 0) for a, b, c, d in zip(places, places[1:], moved, moved[1:], strict=False))


def _renamed_spans(text: str, names: dict[str, str]) -> list[range]:
    spans, start = [], 0
    for word, kind in lexemes(text):
        if kind == "name" and word in names:
            spans.append(range(start, start + len(word)))
        start += len(word)
    return spans
