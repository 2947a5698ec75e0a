"""Tasks about how a statement or a list of arguments ends: its keyword or operator decides whether with a colon."""

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
