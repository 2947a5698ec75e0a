"""The two marks of a template: slots for words, and forks in which the two prompts of a pair differ."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from sparse_lens.tasks.batch import Span

_SLOT = re.compile(r"<([a-z]+)(\d*)>")
_FORK = re.compile(r"«([^|»]*)\|([^»]*)»")


def read_templates(text: str) -> tuple[str, ...]:
    """Split a text into templates at lines of `---`; newlines around a template do not belong to it."""
    return tuple(template.strip("\n") for template in text.split("\n---\n"))


def slot_kinds(template: str) -> set[str]:
    """The kinds of words that a template has slots for."""
    return {kind for kind, _ in _SLOT.findall(template)}


def has_fork(template: str) -> bool:
    """Whether the two prompts of the template differ at all."""
    return _FORK.search(template) is not None


def fill(template: str, words: Mapping[str, tuple[str, ...]], rng: random.Random) -> str:
    """Fill the slots: equal slots with equal words, different slots with different words."""
    slots = dict.fromkeys(match.group(0) for match in _SLOT.finditer(template))
    used: set[str] = set()
    filled: dict[str, str] = {}
    for slot in slots:
        pool = words[slot.strip("<>0123456789")]
        # There are few digits: where a pool runs out, words repeat.
        word = rng.choice([word for word in pool if word not in used] or pool)
        used.add(word)
        filled[slot] = word
    return _SLOT.sub(lambda match: filled[match.group(0)], template)


def take_side(filled: str, side: int) -> tuple[str, tuple[Span, ...]]:
    """One side of every fork, and where the forks' text lies in the result; an empty side lies nowhere."""
    text, spans, end = "", [], 0
    for fork in _FORK.finditer(filled):
        text += filled[end : fork.start()]
        end, taken = fork.end(), fork.group(side + 1)
        # White space at an end of a fork may be part of the next word's token, which is no input of the task; where a fork is
        # nothing but white space, it is the input itself.
        bare = taken.strip() or taken
        start = len(text) + taken.index(bare)
        text += taken
        if bare:
            spans.append((start, start + len(bare)))
    return text + filled[end:], tuple(spans)
