"""Python source made stranger step by step: names written as rare strings, lines in another order.

Text is read with the scanner of the labels, not with `tokenize`: excerpts begin and end anywhere, and `tokenize` stops there.
"""

from __future__ import annotations

import builtins
import keyword
import random
from collections.abc import Collection, Iterator, Sequence

from sparse_lens.data.labels.lexemes import KINDS, scan_source

KEPT_NAMES = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "self", "cls"})
"""Names that renaming leaves alone, beside those that begin and end with two underscores."""

BUILTIN_METHODS = frozenset(
    name for kind in (str, bytes, list, tuple, dict, set, frozenset, int, float, BaseException) for name in dir(kind)
)
"""Names that stay where they stand after a dot somewhere in the text: it may be a string or a list that they are called on."""

_RARE_LETTERS = "bcdfghjkqvwxz"
_SHORTEST, _LONGEST = 3, 6


def rename_identifiers(text: str, share: float, *, seed: int = 0, kept: Collection[str] = ()) -> str:
    """The source with a `share` of its different identifiers written as rare strings, everywhere in the text.

    Keywords, builtins and their methods, `self`, `cls`, dunders and the names in `kept` stay (`imported_names` of the whole file),
    as do words in strings and comments. Two names never become one, so that the program stays the same.
    """
    return renamed(text, rare_names([text], share, seed=seed, kept=kept))


def rare_names(texts: Sequence[str], share: float, *, seed: int = 0, kept: Collection[str] = ()) -> dict[str, str]:
    """Rare strings of consonants for a `share` of the names in some texts, three to six characters long, as the names are.

    A name that has one at some share has the same at every larger one.
    """
    words = [name for text in texts for name in names_in(text)]
    names, attributes = sorted({name for name, _ in words}), {name for name, after_dot in words if after_dot}
    stay = KEPT_NAMES | (attributes & BUILTIN_METHODS) | set(kept)
    free = [name for name in names if name not in stay and not _is_dunder(name)]
    generator, taken, found = random.Random(seed), {*names, *kept}, {}
    for name in free:
        draw, rare = generator.random(), name
        while rare in taken:
            rare = "".join(generator.choices(_RARE_LETTERS, k=min(_LONGEST, max(_SHORTEST, len(name)))))
        taken.add(rare)
        if draw < share:
            found[name] = rare
    return found


def names_in(text: str) -> Iterator[tuple[str, bool]]:
    """Names in a source in their order, each with whether a dot stands before it."""
    before = ""
    for word, kind in lexemes(text):
        if kind == "name":
            yield word, before == "."
        if kind not in ("space", "comment"):
            before = word


def renamed(text: str, names: dict[str, str]) -> str:
    """The source with its names replaced."""
    return "".join(names.get(word, word) if kind == "name" else word for word, kind in lexemes(text))


def renamed_with_places(text: str, names: dict[str, str], places: Sequence[int]) -> tuple[str, list[int]]:
    """`renamed`, and where in its text the characters at some places of the old one are; none of them lies within a name."""
    old, new, moved, written = 0, 0, dict.fromkeys(places, -1), []
    for word, kind in lexemes(text):
        other = names.get(word, word) if kind == "name" else word
        for place in places:
            if old <= place < old + len(word):
                moved[place] = new + place - old
        old, new = old + len(word), new + len(other)
        written.append(other)
    moved |= {place: new for place in places if place == old}
    return "".join(written), [moved[place] for place in places]


def imported_names(text: str) -> frozenset[str]:
    """Names that a source has from elsewhere: those in its import statements, and attributes reached through them."""
    imported: set[str] = set()
    within, depth, fresh = False, 0, True
    for word, kind in lexemes(text):
        if kind in ("space", "comment"):
            continue
        if fresh and word in ("import", "from"):
            within = True
        depth += (word == "(") - (word == ")")
        fresh = word == ";" or (kind == "newline" and depth <= 0)
        if fresh:
            within, depth = False, 0
        elif within and kind == "name":
            imported.add(word)
    return frozenset((imported | set(_attributes(text, imported))) - set(keyword.kwlist))


def _attributes(text: str, roots: Collection[str]) -> Iterator[str]:
    """`b` and `c` of `a.b.c` with `a` among the roots; a call or an index ends the chain."""
    rooted, before = False, ""
    for word, kind in lexemes(text):
        if kind in ("space", "comment"):
            continue
        if kind == "name" and before == ".":
            if rooted:
                yield word
        elif kind == "name":
            rooted = word in roots
        elif word != ".":
            rooted = False
        before = word


def lexemes(text: str) -> Iterator[tuple[str, str]]:
    """Lexemes of any text with their kinds (`KINDS`); together they are the text."""
    scan = scan_source(text)
    starts = scan.starts.tolist()
    for start, end, kind in zip(starts, [*starts, len(text)][1:], scan.kinds.tolist(), strict=True):
        yield text[start:end], KINDS[kind]


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def shuffle_lines(text: str, share: float, *, seed: int = 0) -> str:
    """The text with a `share` of its lines, chosen at random, in another order; the last line stays where it is.

    Lines that are chosen at some share are chosen at every larger one. Indentation stays with its line.
    """
    lines = text.splitlines(keepends=True)
    generator = random.Random(seed)
    movable = max(0, len(lines) - 1)
    rank = generator.sample(range(movable), movable)
    places = [place for place in range(movable) if rank[place] < round(share * movable)]
    sources = generator.sample(places, len(places))
    moved = dict(zip(places, sources, strict=True))
    return "".join(lines[moved.get(place, place)] for place in range(len(lines)))
