"""Tasks about what follows a keyword or an operator: the start of the line decides its end."""

from __future__ import annotations

from sparse_lens.tasks.slots import read_templates
from sparse_lens.tasks.task import Task

# Where a fork changes the number of tokens, an argument or a letter elsewhere makes up for it.
WHILE_RETURN_TRUE = Task(
    name="while_return_true",
    description="`while True` goes on with a colon, `return True` ends its line. Own version.",
    answers=(":", "\n"),
    search=read_templates(
        """
def <verb>(<var>):
    <var2> = <digit>
    «while|return» True
---
def <verb>(<many>, <letter>):
    if <letter> in <many>:
        return False
    «while|return» True
---
import time

def <verb>():
    <thing> = <verb2>(<digit>)
    print(<thing>)
    «while|return» True
---
    def <verb>(self, <var>):
        self.<many> = <var>
        «while|return» True
"""
    ),
    validation=read_templates(
        """
def <verb>(<var>, <many>=None):
    <many>.<verb2>(<digit>)
    «while|return» True
---
    def <verb>(self, <letter>):
        <var> = [<digit>]
        «while|return» True
"""
    ),
    heldout=read_templates(
        """
def <verb>(<many>):
    <var> = len(<many>)
    <thing> = []
    «while|return» True
---
def <verb>(<var>, <var2>=None):
    <var2>.<verb2>(<var>)
    «while|return» True
---
import sys

<many> = <digit>

def <verb>(<letter>):
    <letter> += <digit2>
    «while|return» True
---
    def <verb>(self):
        <thing> = self.<var>
        <thing>.<verb2>()
        «while|return» True
"""
    ),
)

IF_EQUALS = Task(
    name="if_equals",
    description="`if a == b` goes on with a colon, `a.c = b` ends its line. Own version of the paper's task.",
    answers=(":", "\n"),
    search=read_templates(
        """
import os

<many> = <digit>
«if |»<var>« ==|.<letter> =» <var2>
---
<var> = <verb>(<digit>)
<many> = [<digit>, <digit2>]
«if |»<thing>« ==|.<letter> =» <var>
---
def <verb>(<var>, <var2>):
    <many> = <digit>
    «if |»<var>« ==|.<letter> =» <var2>
---
<many> = <verb>(<letter2>)
<var> = <digit>
«if |»<thing>« ==|.<letter> =» <thing2>
"""
    ),
    validation=read_templates(
        """
def <verb>(<many>):
    <letter2> = <digit>
    «if |»<var>« ==|.<letter> =» <thing>
---
<many> = [<digit>]
<var2> = <verb>(<letter2>)
«if |»<var>« ==|.<letter> =» <var2>
"""
    ),
    heldout=read_templates(
        """
<many> = <verb>()
print(<digit>)
«if |»<var>« ==|.<letter> =» <var2>
---
class <verb>:
    <many> = None
    <letter2> = <digit>

«if |»<thing>« ==|.<letter> =» <var>
---
import re

<var> = <verb>(<many>)
<many2> = <digit>
«if |»<var>« ==|.<letter> =» <thing>
---
def <verb>(<many>, <thing>=<digit>):
    <var> = None
    «if |»<thing>« ==|.<letter> =» <var>
"""
    ),
)

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

LAMBDA_FUNC = Task(
    name="lambda_func",
    description="Arguments of a lambda end in a colon, of a def in a parenthesis. Own version.",
    answers=(":", ")"),
    search=read_templates(
        """
import os

<many> = <digit>

«<verb> = lambda |def <verb3>(»<letter>, <letter2>
---
<var> = [<digit>, <digit2>]
print(<var>)

«<verb> = lambda |def <verb3>(»<letter>, <letter2>
---
class <thing>:
    <var> = <digit>

    «<verb> = lambda |def <verb3>(»<letter>, <letter2>
---
if <var>:
    <many> = <digit>
    «<verb> = lambda |def <verb3>(»<letter>, <letter2>
"""
    ),
    validation=read_templates(
        """
import re

<many> = [<digit>]
<var> = <verb2>(<many>)

«<verb> = lambda |def <verb3>(»<letter>, <letter2>
---
while <many>:
    <var> = <digit>
    «<verb> = lambda |def <verb3>(»<letter>, <letter2>
"""
    ),
    heldout=read_templates(
        """
<many> = {}
<thing> = <verb>(<many>)

«<verb2> = lambda |def <verb3>(»<letter>, <letter2>
---
try:
    <var> = <digit>
except NameError:
    «<verb> = lambda |def <verb3>(»<letter>, <letter2>
---
import re

<var> = None
<many> = <var>

«<verb> = lambda |def <verb3>(»<letter>, <letter2>, <letter3>
---
def <thing>(<many>):
    <var> = len(<many>)
    «<verb> = lambda |def <verb3>(»<letter>, <letter2>
"""
    ),
)
