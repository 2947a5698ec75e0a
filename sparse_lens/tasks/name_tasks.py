"""Tasks about a name that was bound earlier."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

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
    validation=read_templates(
        """
<var> = «set()|str()»
while <many>:
    <thing> = <verb>(<many>)
    <var>
---
def <verb>(<many>, <letter2>):
    <var> = «set()|"<letter>"»
    for <thing> in <many>:
        if <letter2>:
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

_NAMED = "current"
"""The one variable name of the published `set_or_string_fixedvarname`."""

SET_OR_STRING_FIXEDVARNAME = Task(
    name="set_or_string_fixedvarname",
    description="As set_or_string, and the name is always `current`: the published form; own templates.",
    answers=SET_OR_STRING.answers,
    search=tuple(template.replace("<var>", _NAMED) for template in SET_OR_STRING.search),
    validation=tuple(template.replace("<var>", _NAMED) for template in SET_OR_STRING.validation),
    heldout=tuple(template.replace("<var>", _NAMED) for template in SET_OR_STRING.heldout),
)

VAR_SWAP = Task(
    name="var_swap",
    description="`a, b = b,` goes on with ` a`, `b, a = a,` with ` b`. Own version of the paper's task.",
    answers=(" a", " b"),
    search=read_templates(
        """
def <verb>(<many>):
    <var> = <digit>
    «a, b = b|b, a = a»,
---
import os

if <var> > <verb>(<digit>):
    «a, b = b|b, a = a»,
---
while <many>:
    <var> = <verb>(<digit>)
    «a, b = b|b, a = a»,
---
    def <verb>(self, <var>):
        self.<many> = <var>
        «a, b = b|b, a = a»,
"""
    ),
    validation=read_templates(
        """
for <thing> in <many>:
    <verb>(<thing>)
    «a, b = b|b, a = a»,
---
<many> = [<digit>, <digit2>]
<var> = <verb>(<many>)
«a, b = b|b, a = a»,
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>, <var>=None):
    <thing>.<verb2>(<var>)
    «a, b = b|b, a = a»,
---
<thing> = <verb>()
if <thing> in <many>:
    «a, b = b|b, a = a»,
---
try:
    <thing> = <verb>(<digit>)
except OSError:
    «a, b = b|b, a = a»,
---
    def <verb>(self):
        <many> = self.<thing>
        «a, b = b|b, a = a»,
"""
    ),
)

VAR_IF = Task(
    name="var_if",
    description="`if` asks for the name that was bound just before. Own version of the paper's task.",
    answers=(" x", " y"),
    search=read_templates(
        """
import os

<many> = [<digit2>]
«x|y» = <verb>(<digit>)
if
---
def <verb>(<many>, <var>):
    «x|y» = len(<many>)
    if
---
for «x|y» in <many>:
    <var> = <verb>(<digit>)
    if
---
def <verb>(«x|y»):
    <var> = <digit>
    if
"""
    ),
    validation=read_templates(
        """
while <many>:
    «x|y» = <many>[<verb>(<digit>)]
    if
---
    def <verb>(self, «x|y»):
        self.<var> = <digit>
        if
"""
    ),
    heldout=read_templates(
        """
«x|y» = <many>.<verb>(<digit>)
<thing> = []
if
---
def <verb>(«x|y», <many>=None):
    <many>.<verb2>()
    if
---
while <many>:
    <thing> = <digit>
    «x|y» = <many>.pop()
    if
---
with open(<thing>) as f:
    «x|y» = f.<verb>()
    if
"""
    ),
)
