"""Tasks about expressions: what an argument, a field of an f-string, or half of a conditional calls for."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

# Slots on one side of a fork let the sampler find names that make the two sides equally long.
IF_TERNARY = Task(
    name="if_ternary",
    description="`x = a if b` goes on with ` else`, `if b` with a colon. Own version of the paper's task.",
    answers=(" else", ":"),
    spellings=((" else", ":"), (" ", ":")),  # some tokenizers part the space before `else`, hardly ever before another word
    search=read_templates(
        """
def <verb>(<var>, <many>):
    <thing> = <digit>
    «<var2> = <digit2> if|if not <var2> ==» <letter>
---
def <verb>(<many>, <letter>):
    <many>.<verb2>(<digit>)
    «return <letter2> if|if <letter2> in» <letter>
---
<many> = <verb>(<digit>)
<var> = [<digit2>]
«<thing> = <letter2> if|if not <thing> in» <letter>
---
    def <verb>(self, <many>):
        self.<many> = <many>
        «self.<var> = <letter2> if|if not self.<var> ==» <letter>
"""
    ),
    validation=read_templates(
        """
import os

<many> = [<digit>, <digit2>]
«<var> = <letter2> if|if not <var> ==» <letter>
---
def <verb>(<var>=<digit>):
    <many> = <verb2>(<var>)
    «return <digit2> if|if <digit2> <» <letter>
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>):
    <many> = len(<thing>)
    «return <digit> if|if <digit> >» <letter>
---
import sys

<many> = {}
«<thing> = <letter2> if|if not <thing> ==» <letter>
---
for <thing> in <many>:
    print(<thing>)
    «<var> = <digit> if|if not <var> in» <letter>
---
    def <verb>(self, <thing>=None):
        <thing>.<verb2>()
        «<thing>.<var> = <letter2> if|if not <thing>.<var> in» <letter>
"""
    ),
)

FSTRING_BRACE = Task(
    name="fstring_brace",
    description="A name in an f-string's field ends in a brace, in a call in a parenthesis. Own version of the paper's task.",
    answers=("}", ")"),
    search=read_templates(
        """
import os

<var> = <digit>
<many> = «f"{|<verb>(»<var>
---
def <verb>(<var>, <letter>):
    <many> = [<digit>]
    return «f"{|<verb2>(»<var>
---
<many> = <verb>(<digit>)
for <var> in <many>:
    print(«f"<thing>: {|<thing>, <verb2>(»<var>
---
    def <verb>(self, <var>):
        self.<many> = <digit>
        <thing> = «f'{|<verb2>(»<var>
"""
    ),
    validation=read_templates(
        """
def <verb>(<many>):
    <var> = <many>[<digit>]
    <many>.<verb2>(«f'<thing>: {|<thing>, <verb3>(»<var>
---
while <many>:
    <var> = <digit>
    <thing> = «f"{|<verb>(»<var>
"""
    ),
    heldout=read_templates(
        """
import sys

<thing> = <verb>(<digit>)
if <thing>:
    <many> = «f"{|<verb2>(»<thing>
---
def <verb>(<thing>, <many>=None):
    <many>.<verb2>()
    return «f'{|<verb3>(»<thing>
---
try:
    <thing> = <digit>
except OSError:
    print(«f"<var>: {|<var>, <verb>(»<thing>
---
class <verb>:
    <thing> = <digit>
    <many> = «f"<letter>: {|<letter>, <verb2>(»<thing>
"""
    ),
)

FINAL_KWARG = Task(
    name="final_kwarg",
    description=(
        "After an argument with a default or a keyword, the last one needs `=`, too; after plain ones the "
        "parenthesis may close. Own reading of the paper's task."
    ),
    answers=("=", ")"),
    search=read_templates(
        """
<var> = [<digit2>]
<many> = <verb>(«<thing>=<digit>|<thing>, <digit>», <letter>
---
def <verb>(<many>, «<letter>=<digit>|<letter>, <letter2>», <letter3>
---
class <thing>:
    def <verb>(self, «<var>=<digit>|<var>, <letter>», <letter2>
---
if <var>:
    <many> = <digit>
    <verb>(<many>, «<thing>=<digit2>|<thing>, <digit2>», <thing2>
"""
    ),
    validation=read_templates(
        """
import os

def <verb>(«<letter>=<digit>|<letter>, <letter2>», <many>
---
for <letter> in <many>:
    <var> = <verb>(<letter>, «<thing>=<digit>|<thing>, <digit>», <thing2>
"""
    ),
    heldout=read_templates(
        """
import re

<many> = {}

def <verb>(<var>, «<thing>=<digit>|<thing>, <letter>», <thing2>
---
<thing> = <verb>()
print(<thing>)
<many> = <verb2>(<thing>, «<letter>=<digit>|<letter>, <digit>», <letter2>
---
class <verb>:
    <many> = <digit>

    def <verb2>(self, «<thing>=None|<thing>, <letter>», <var>
---
while <many>:
    <thing>.<verb>(«<var>=<digit>|<var>, <digit>», <letter>
"""
    ),
)
