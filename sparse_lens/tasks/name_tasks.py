"""Tasks about a name that was bound earlier."""

from __future__ import annotations

from sparse_lens.tasks.task import Task, read_templates

# `set()`, `str()` and a one-letter string are three tokens each; an empty string and a blank line as well.
SET_OR_STRING = Task(
    name="set_or_string",
    description="A name bound to a set grows by `.add`, one bound to a string by ` +=`. Own version.",
    answers=(".add", " +="),
    search=read_templates(
        """
def <verb>(<many>):
    <var> = «set()|"<letter>"»
    for <thing> in <many>:
        <var>
---
<var> = «set()|str()»
for <letter>, <thing> in enumerate(<many>):
    if <thing> == <digit>:
        <var>
---
<many> = <verb>(<digit>)
<var> = «set()|""
»
while <many>:
    <thing> = <many>.pop()
    <var>
---
def <verb>(<many>, <thing>=None):
    <var> = «set()|'<letter>'»
    if <thing> in <many>:
        <var>
"""
    ),
    heldout=read_templates(
        """
<var> = «set()|str()»
<many> = [<digit>, <digit2>]
for <letter> in range(<digit>):
    <var>
---
def <verb>(<thing>):
    <var> = «set()|"<letter>"»
    with open(<thing>) as f:
        for <letter2> in f:
            <var>
---
try:
    <many> = <verb>(<digit>)
except KeyError:
    <many> = []
<var> = «set()|''
»
for <thing> in <many>:
    <var>
---
def <verb>(<thing>, <many>):
    <var> = «set()|'<letter>'»
    for <letter2> in <many>:
        if not <letter2>:
            continue
        <var>
"""
    ),
)
