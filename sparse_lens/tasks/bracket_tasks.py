"""Tasks about the bracket that closes: how many at once, and of which kind."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

# Where the two sides of a fork differ in tokens, an earlier number takes up the difference.
BRACKET_COUNTING = Task(
    name="bracket_counting",
    description="Two brackets close a nested list or index, one a flat one. Own version of the paper's task.",
    answers=("]]", "]"),
    spellings=(("]]\n", "]\n"), ("]]", "]")),
    search=read_templates(
        """
<var> = «<digit5>|<digit5><digit6> + <digit7>»
<many> = «[[<digit>, <digit2>], [<digit3>, <digit4>|[<digit>, <digit2>, <digit3>, <digit4>»
---
def <verb>(<many>, <letter>):
    <var> = <digit>
    <var2> = <many>«[| + »<many2>[<letter>
---
<var> = <verb>(<digit>)
<many> = [<var>, «[|-»<letter>, <letter2>
---
for <letter> in <many>:
    <var> = <digit>
    <var2> = <many2>«[| + »<many>[<digit2>
"""
    ),
    validation=read_templates(
        """
<var> = <digit>
<many> = <verb>(<var>)
if <letter>:
    <var2> = <many2>«[| - »<many>[<letter>
---
import os

def <verb>(<var>):
    <many> = [<digit>, «[|-»<letter>, <letter2>
"""
    ),
    heldout=read_templates(
        """
<var> = «<digit3>|<digit3><digit4>»
<many> = «[[<digit>], [<digit2>, <digit5>|[<digit>, <digit2>, <digit6>, <digit5>»
---
def <verb>(<many>):
    <var> = <verb2>(<many>)
    <var> += <many>«[| * »<many2>[<letter>
---
<many> = <verb>()
<var> = <digit>
<many2> = [<letter>, «[|-»<letter2>, <letter3>
---
class <verb>:
    <var> = <digit>
    <many> = [<digit2>, <digit3>, «[|-»<digit4>, <digit5>
"""
    ),
)

BRACKET_BRACE = Task(
    name="bracket_brace",
    description="A list closes with a bracket, a set with a brace. Own version of the paper's task.",
    answers=("]", "}"),
    search=read_templates(
        """
import math

<var> = <digit4>
<many> = «[|{»<digit>, <digit2>, <digit3>
---
def <verb>(<var>, <letter>):
    <many> = <digit>
    return «[|{»<var>, <letter>
---
<var> = <digit>
<many> = <verb>(<var>)
for <letter> in «[|{»"<thing>", "<thing2>"
---
    def __init__(self, <var>):
        self.<var> = <var>
        self.<many> = «[|{»<digit>, <digit2>
---
<many> = <verb>(<letter>)
<var> = <many> in «[|{»<digit>, <digit2>
"""
    ),
    validation=read_templates(
        """
import os

if <var>:
    <many> = «[|{»<letter>, <letter2>
---
while <var>:
    <many> = <digit>
    <var2> = «[|{»"<thing>", "<thing2>"
"""
    ),
    heldout=read_templates(
        """
<many>.<verb>()
<letter> = <digit>
<var> = «[|{»'<thing>', '<thing2>'
---
<many> = <verb>()
while <letter> not in «[|{»<digit>, <digit2>, <digit3>
---
try:
    <letter> = <verb>(<digit>)
except OSError:
    <many> = «[|{»<var>, <var2>
---
def <verb>(<many>=None):
    <var> = <digit3>
    <many> = <many> or «[|{»<digit>, <digit2>
"""
    ),
)
