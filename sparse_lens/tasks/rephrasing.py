"""The same prompts in other words: an unrelated statement or remark before them, and names from the other pool."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sparse_lens.tasks.slots import slot_kinds

_BEFORE_STATEMENTS = (
    "# <thing7> <thing8>\n",
    "<many7> = [<digit7>, <digit8>]\n",
    '"""<thing7> <thing8> <thing9>"""\n\n',
    "if <letter7>:\n    <verb7>(<digit7>)\n",
    "<var7> = <verb7>(<letter7>)\n\n",
)
_BEFORE_METHODS = (
    "class <thing7>:\n",
    "class <thing7>:\n    <many7> = <digit7>\n\n",
    "class <thing7>:\n    # <thing8> <thing9>\n",
)
_ALWAYS = "# note\n"


def rephrasings(templates: Iterable[str], kinds: Collection[str]) -> tuple[str, ...]:
    """Every template behind every preamble that stands at its depth and has slots of known `kinds` only."""
    found = []
    for template in templates:
        before = _BEFORE_METHODS if template.startswith(" ") else _BEFORE_STATEMENTS
        fitting = [preamble for preamble in before if slot_kinds(preamble) <= set(kinds)]
        found += [preamble + template for preamble in fitting or [_ALWAYS]]
    return tuple(found)
