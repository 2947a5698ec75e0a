"""Tasks about blocks: what follows a header, a definition, or an opened file, and how deep it stands."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

# The published prompts of this task end in the keyword itself, so the two sides do not share their last token.
ELSE_ELIF = Task(
    name="else_elif",
    description="`else` goes on with a colon, `elif` with a condition (here ` not`). The published form; own templates.",
    answers=(":", " not"),
    same_last_token=False,
    search=read_templates(
        """
def <verb>(<var>, <letter>):
    if <var> == <digit>:
        return <letter>
    «else|elif»
---
if <many>:
    <var> = <verb>(<digit>)
«else|elif»
---
for <letter> in <many>:
    if <letter> in <var>:
        <verb>(<letter>)
    «else|elif»
---
    def <verb>(self, <var>):
        if self.<many>:
            return <digit>
        «else|elif»
"""
    ),
    validation=read_templates(
        """
def <verb>(<many>):
    <var> = [<digit>]
    if <many> is <var>:
        <many>.<verb2>(<var>)
    «else|elif»
---
import os

if <var> != <digit>:
    <many> = <verb>(<var>)
«else|elif»
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>):
    if <thing> > <digit>:
        <many> = <thing>
        return <many>
    «else|elif»
---
while <many>:
    if <verb>(<many>):
        <thing> = <digit>
    «else|elif»
---
import sys

<thing> = <verb>(<digit>)
if <thing> in (<digit2>, <digit3>):
    print(<thing>)
«else|elif»
---
    def <verb>(self, <letter>=None):
        if <letter>.<thing> == self:
            <letter>.<verb2>()
        «else|elif»
"""
    ),
)

INDENT_FOR = Task(
    name="indent_for",
    description="The body of a loop stands one level deeper than its `for`. Own version of the paper's task.",
    answers=("\n        ", "\n    "),
    spellings=(("\n        ", "\n    "), ("\n       ", "\n   ")),
    search=read_templates(
        """
def <verb>(<many>):
    <var> = <digit>«
    |
»for <letter> in <many>:
---
def <verb>(<var>, <many>):
    <var>.<verb2>(<many>)«
    |
»for <letter>, <letter2> in <many>:
---
if <var>:
    <many> = [<digit>, <digit2>]«
    |
»for <thing> in <many>:
---
class <verb>:
    <many> = <digit>«
    |
»for <letter> in <verb2>(<digit2>):
"""
    ),
    validation=read_templates(
        """
while <var>:
    <var> = <verb>(<digit>)«
    |
»for <letter> in <var>:
---
def <verb>(<letter>=None):
    <many> = <letter>.<verb2>()«
    |
»for <thing> in <many>:
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>):
    print(<thing>)«
    |
»for <letter> in <thing>:
---
with open(<var>) as f:
    <many> = <digit>«
    |
»for <thing> in f:
---
def <verb>(<many>, <thing>=<digit>):
    <thing>.<verb2>(<many>)«
    |
»for <letter>, <letter2> in <verb2>(<many>):
---
if <letter> > <digit>:
    <thing> = <verb>(<letter>)«
    |
»for <var> in [<digit>, <digit2>]:
"""
    ),
)

CLASS_INIT = Task(
    name="class_init",
    description="`__init__` begins by storing its argument in `self`, a method like any other may `return`. Own version.",
    answers=("\n        self", "\n        return"),
    search=read_templates(
        """
class <thing>:
    def «__init__|<verb>»(self, <var>):
---
class <thing>:
    <many> = <digit>

    def «__init__|<verb>»(self, <var>, <letter>):
---
import os

class <thing>:
    def «__init__|<verb>»(self, <many>):
---
class <thing>(<thing3>):
    def «__init__|<verb>»(self, <letter>, <var>=None):
"""
    ),
    validation=read_templates(
        """
<many> = [<digit>, <digit2>]

class <thing>:
    def «__init__|<verb>»(self, <letter>):
---
class <thing>(<thing3>):
    <var> = None

    def «__init__|<verb>»(self, <many>):
"""
    ),
    heldout=read_templates(
        """
class <verb>:
    def «__init__|<verb2>»(self, <thing2>):
---
class <verb>(object):
    <var> = [<digit>]

    def «__init__|<verb2>»(self, <thing2>, <thing3>):
---
<many> = {}

class <verb>:
    def «__init__|<verb2>»(self, <var>=<digit>):
---
if <many>:
    print(<digit>)

class <verb>(<thing2>):
    def «__init__|<verb2>»(self, <var>, <letter>):
"""
    ),
)

WITH_OPEN = Task(
    name="with_open",
    description="`with` opens a file where a function was given a path, and enters something of `self` in a method. Own version.",
    answers=(" open", " self"),
    search=read_templates(
        """
def <verb>(«path|self», <many>):
    <var> = <digit>
    with
---
import os

def <verb>(«file|self», <letter>):
    <many> = [<letter>]
    with
---
def <verb>(«path|self»):
    <var> = <verb2>(«path|self»)
    with
---
def <verb>(<var>, «file|self»):
    if <var> == <digit>:
        with
"""
    ),
    validation=read_templates(
        """
def <verb>(«path|self», <var>=None):
    <var>.<verb2>(<digit>)
    with
---
def <verb>(«file|self»):
    <many> = «file|self».<verb2>
    with
"""
    ),
    heldout=read_templates(
        """
def <verb>(«path|self», <thing>):
    print(<thing>)
    with
---
import json

def <verb>(«file|self»):
    <many> = <verb2>({})
    with
---
def <verb>(«path|self», <many>):
    for <thing> in <many>:
        with
---
def <verb>(«file|self», <letter>=<digit>):
    <thing> = <verb2>(«file|self», <letter>)
    with
"""
    ),
)
