"""Tasks about the head of a loop or a `with`: what has been written so far decides the next keyword or name."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

# Where a fork changes the number of tokens, an argument or a letter elsewhere makes up for it.
ENUMERATE_RANGE = Task(
    name="enumerate_range",
    description="Two loop variables call for enumerate, one number for range. Own version.",
    answers=(" enumerate", " range"),
    search=read_templates(
        """
def <verb>(<many>«|, <letter2>»):
    <var> = <digit>
    for <letter>«, <letter2>|» in
---
<many> = <verb>(<var>«|, <letter2>»)
<var2> = []
for <letter>«, <letter2>|» in
---
    def <verb>(self«|, <letter2>»):
        self.<many> = <digit>
        for <letter>«, <letter2>|» in
---
import os

<many> = [<digit>, <digit2>«|, <letter2>»]
<var> = <verb>()
for <letter>«, <letter2>|» in
"""
    ),
    validation=read_templates(
        """
<many> = <verb>(<digit>«|, <letter2>»)
<var> = <digit2>
for <letter>«, <letter2>|» in
---
class <verb>:
    def <verb2>(self, <many>«|, <letter2>»):
        <var> = <digit>
        for <letter>«, <letter2>|» in
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>, <many>«|, <letter2>»):
    <thing>.<verb2>()
    for <letter>«, <letter2>|» in
---
<var> = {}
<many> = <verb>(<digit>)
print(<many>«|, <letter2>»)
for <letter>«, <letter2>|» in
---
try:
    <many> = <verb>(<var>«|, <letter2>»)
except OSError:
    for <letter>«, <letter2>|» in
---
if <var> in (<digit>, <digit2>«|, <letter2>»):
    <many>.<verb>()
    for <letter>«, <letter2>|» in
"""
    ),
)

WITH_AS = Task(
    name="with_as",
    description="`with open(...)` goes on with ` as`, `return open(...)` ends its line. Own version.",
    answers=(" as", "\n"),
    spellings=((" as", "\n"), (")", ")\n")),  # some tokenizers put the line break to the parenthesis
    search=read_templates(
        """
import os

def <verb>(<var>):
    <many> = <digit>
    «with|return» open(<var>)
---
def <verb>(<many>, <letter>):
    <many>.<verb2>(<letter>)
    «with|return» open("<thing>.txt")
---
    def <verb>(self, <thing>):
        self.<var> = <thing>
        «with|return» open(<thing>)
---
def <verb>(<thing>=None):
    <var> = <thing>
    «with|return» open(<var>, "r")
"""
    ),
    validation=read_templates(
        """
<many> = <digit>

def <verb>(<var>, <letter>):
    <many>.<verb2>(<letter>)
    «with|return» open(<var>)
---
def <verb>(<many>):
    <thing> = <many>[<digit>]
    «with|return» open("<thing>.csv")
"""
    ),
    heldout=read_templates(
        """
def <verb>(<thing>):
    if not <thing>:
        return None
    «with|return» open(<thing>)
---
import json

<many> = <digit>

def <verb>():
    print(<many>)
    «with|return» open('<thing>.json')
---
    def <verb>(self):
        <var> = self.<thing>
        «with|return» open(<var>)
---
def <verb>(<var>, <many>):
    <thing> = <var> + <many>
    «with|return» open(<thing>, 'w')
"""
    ),
)

FOR_WHILE = Task(
    name="for_while",
    description="`for x` goes on with ` in`, `while x` with a colon. Own version of the paper's task.",
    answers=(" in", ":"),
    search=read_templates(
        """
def <verb>(<many>):
    <var> = <digit>
    «for|while» <thing>
---
import os

<many> = <verb>(<digit>)
<var> = []
«for|while» <letter>
---
    def <verb>(self, <many>):
        self.<many> = <many>
        «for|while» <thing>
---
<var> = {}
<thing> = <verb>(<many>)
if <var>:
    «for|while» <letter>
"""
    ),
    validation=read_templates(
        """
def <verb>(<many>, <var>):
    <many>.<verb2>(<digit>)
    «for|while» <letter>
---
import re

<many> = [<digit>]
<var> = <many>
«for|while» <thing>
"""
    ),
    heldout=read_templates(
        """
def <verb>(<var>, <many>=None):
    <thing> = <many>
    «for|while» <letter>
---
<many> = [<digit>, <digit2>, <digit3>]
print(<many>)
«for|while» <thing>
---
try:
    <var> = <verb>(<many>)
except OSError:
    <var> = None
«for|while» <thing>
---
class <verb>:
    def <verb2>(self):
        <many> = self.<var>
        «for|while» <letter>
"""
    ),
)
