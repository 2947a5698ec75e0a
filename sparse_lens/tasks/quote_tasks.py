"""Tasks about the quote that closes a string: the real one, and its control with labels that mean nothing."""

from __future__ import annotations

from dataclasses import replace

from sparse_lens.tasks.pools import HELDOUT_WORDS, SEARCH_WORDS
from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

SINGLE_DOUBLE_QUOTE = Task(
    name="single_double_quote",
    description="A string closes with the kind of quote that opened it. Own version of the paper's task.",
    answers=('"', "'"),
    search=read_templates(
        """
import os

def <verb>(<many>):
    <var> = <digit>
    print(«"|'»<thing> <thing2>
---
<var> = <digit>
<many> = [<var>, <digit2>]
<verb>(<var>, «"|'»<thing>
---
    def __init__(self, <var>):
        self.<var> = <var>
        self.<many> = «"|'»<thing>-<thing2>
---
if <var> in <many>:
    <var2> = <verb>(<letter>)
    <many2> = {«"|'»<thing>
---
<many> = ['<thing2>', "<thing3>"]
for <letter> in <many>:
    if <letter> == «"|'»<thing>
"""
    ),
    validation=read_templates(
        """
def <verb>(<letter>):
    <many> = [<digit>, <digit2>]
    <var> = <letter> + «"|'»<thing>
---
while <var>:
    <var2> = <verb>(<digit>)
    <verb2>(«"|'»<thing> <thing2>
"""
    ),
    heldout=read_templates(
        """
import sys

<many> = <verb>(<digit>)
if not <many>:
    raise ValueError(«"|'»<thing> <thing2> <thing3>
---
def <verb>(<var>, <many>=None):
    <var2> = <digit>
    return <many>.get(«"|'»<thing>
---
try:
    <var> = <verb>(<many>)
except KeyError:
    <many2> = [«"|'»<thing>
---
<var> = <verb>("<thing2>")
<many> = '<thing3>'
<var>.<verb2>(<many>, <var2>=«"|'»<thing>
---
class <verb>:
    <var> = None
    <many> = <digit>
    <var2> = «"|'»<thing>/<thing2>
"""
    ),
)

_RULE = {"first": ("print", "str", "list"), "second": ("len", "set", "int")}
"""The calls that decide the control's label; both splits share them, for they are the rule."""

NONSENSE_QUOTE = Task(
    name="nonsense_quote",
    description=(
        "Control: the call around a string decides which quote is 'right', whichever quote opened it. No "
        "rule of Python gives these labels; a search that finds as small a circuit for them shows nothing."
    ),
    answers=('"', "'"),
    search=read_templates(
        """
import os

def <verb>(<many>):
    <var> = <digit>
    «<first>|<second>»("<thing> <thing2>
---
import os

def <verb>(<many>):
    <var> = <digit>
    «<first>|<second>»('<thing> <thing2>
---
<var> = <digit>
<many> = [<var>, <digit2>]
«<first>|<second>»(<var>, "<thing>
---
<var> = <digit>
<many> = [<var>, <digit2>]
«<first>|<second>»(<var>, '<thing>
"""
    ),
    validation=read_templates(
        """
import re

while <many>:
    <var> = <digit>
    «<first>|<second>»("<thing>
---
import re

while <many>:
    <var> = <digit>
    «<first>|<second>»('<thing>
"""
    ),
    heldout=read_templates(
        """
import sys

<many> = <verb>(<digit>)
if not <many>:
    «<first>|<second>»("<thing> <thing2> <thing3>
---
import sys

<many> = <verb>(<digit>)
if not <many>:
    «<first>|<second>»('<thing> <thing2> <thing3>
---
try:
    <var> = <verb>(<many>)
except KeyError:
    «<first>|<second>»(<many>, "<thing>
---
try:
    <var> = <verb>(<many>)
except KeyError:
    «<first>|<second>»(<many>, '<thing>
"""
    ),
    search_words={**SEARCH_WORDS, **_RULE},
    heldout_words={**HELDOUT_WORDS, **_RULE},
    control=True,
)


def _other_nonsense(draw: int, first: str, second: str) -> Task:
    rule = {"first": tuple(first.split()), "second": tuple(second.split())}
    return replace(
        NONSENSE_QUOTE,
        name=f"nonsense_quote_{draw}",
        search_words={**SEARCH_WORDS, **rule},
        heldout_words={**HELDOUT_WORDS, **rule},
    )


OTHER_NONSENSE = (_other_nonsense(1, "print set list", "len str int"), _other_nonsense(2, "len set list", "print str int"))
"""The same control with the calls shared out in two other ways."""
