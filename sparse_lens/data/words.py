"""Word pools of the generated programs; the tasks use other words, and a test holds the two apart."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _split(
    """
    account address agent alert amount answer archive area argument array article asset author average
    badge balance bank batch bill block board body bonus book bound branch budget bundle byte cache call
    camera capacity case cell change channel chapter charge chart chat check client clock cluster code
    column command comment company config contact content contract copy corner cost counter country
    course credit cursor customer cycle data date day deadline degree delay delta demand department
    depth detail device digit direction discount disk distance document domain draft driver duration
    edge editor effect element email employee energy engine entry error event exam example expense
    factor failure feature fee field figure file filter flag folder font form format formula frame
    frequency function gap gate goal grade graph grid growth guest handle hash header height history
    host hour image income index input interval invoice item job journal key label language layer layout
    lead league lesson letter level library license limit line link list loan location lock log loss
    machine manager map margin market mask mass matrix measure member memory menu message meter method
    metric minute mode model module moment month movie network node note number object offer office
    offset option order owner package page panel parent partner password path patient pattern payment
    percent period person phone photo phrase picture pixel place plan player point policy pool port
    position post power price printer priority problem process product profile profit program project
    property queue quota range rate ratio reader reading reason record region rent reply report request
    reserve resource response review reward risk role room root route row rule salary sale sample scale
    schedule school score screen script season section segment sensor sequence server service session
    shape share sheet shift signal size slot snapshot source space speed stage station status step stock
    storage store stream street student subject sum supplier support survey symbol system table tag
    target task tax team template term test theme thread threshold ticket time title tool topic track
    trade traffic transfer trend type unit update url usage user value vector vendor vertex video view
    visit voice volume vote wallet week weight width winner word worker year zone
    """
)

VERBS = _split(
    """
    accept add adjust allow analyze append apply approve ask assign attach audit backup begin bind build
    calculate cancel capture choose clean clear close collect combine compare compress compute confirm
    connect convert count create debug decode delete deliver describe detect display divide download
    drop emit enable encode estimate evaluate execute expand explain export extract fetch fill find
    finish fix flush follow generate get group guess handle hide improve increase insert inspect install
    invite join keep launch learn list load locate make manage mark measure merge monitor move normalize
    notify observe open order pack parse pay pick plot predict prepare print process produce publish
    pull push query rank read rebuild receive record recover reduce refresh register reject release
    reload remove rename render repair repeat replace report request reset resize resolve restore resume
    retry reverse rotate round run save scan schedule search select send set show shuffle skip solve
    sort split start stop store submit sum switch sync take trace track train translate trim update
    upload use validate verify visit wait walk watch wrap write
    """
)

ADJECTIVES = _split(
    """
    active annual average basic big blank broken busy central cheap clean closed cold common complete
    correct daily dark deep dirty double dry early easy empty equal exact fair false fast final first
    fixed flat free fresh full global good half happy hard heavy hidden high hot idle inner internal
    invalid large last late light local long loose low main major manual maximum mean minimum minor
    missing mixed modern monthly narrow native negative new next normal old online outer parallel
    partial past plain positive previous primary private public pure quick quiet random rare raw ready
    real recent regular remote rich safe secure shared short simple single slow small smart soft spare
    special stable static steady strict strong sub tall temporary thin tiny tight true unique upper
    urgent useful valid visible warm weak weekly wide wild wrong young
    """
)

ACCUMULATORS = _split(
    """
    acc answer batch bag bucket builder bundle collected combined counts entries fields finished history
    items joined keys lines log marked message notes out picked pieces queue record report res selected
    stack summary table tags unique users values visited
    """
)

LETTERS = _split("a b c d e f g h i j k m n p q r s t u v w x y z")

MODULES = _split(
    """
    os sys re json math time random csv string itertools functools collections datetime logging pathlib
    shutil copy heapq bisect hashlib struct socket threading typing uuid glob
    """
)

IMPORTED = (
    "from collections import Counter",
    "from collections import defaultdict, deque",
    "from dataclasses import dataclass",
    "from datetime import date, timedelta",
    "from functools import partial",
    "from itertools import chain, product",
    "from math import sqrt",
    "from os import path",
    "from pathlib import Path",
    "from random import choice, randint",
    "from typing import Any, Optional",
)

ERRORS = _split(
    """
    ValueError TypeError KeyError IndexError OSError RuntimeError AttributeError ZeroDivisionError
    FileNotFoundError StopIteration
    """
)

FILE_ENDINGS = _split("txt csv json log dat md ini yaml xml html")
