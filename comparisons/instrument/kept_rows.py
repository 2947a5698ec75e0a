"""Rows of claims that another run has measured: a claim that needs models of its own is read from a file that holds its row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from sparse_lens.comparisons.instrument.claim import ARM_CLAIMS, CLAIMS, Claim, arm_claim
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import Judgement, Verdict
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.results import Result, from_plain

_MOST_BYTES = 1 << 25
_ARM = "T1b-"


def read_kept(path: str | Path) -> list[ClaimRow]:
    """The rows of a `claims.json`, or of any JSON file with the same `claims`, but those that were not measurable there.

    Each says in `found` which file it is from. Raises `DataError` for a file that holds no such rows or those of a smoke run,
    `UnknownNameError` for a claim that there is not.
    """
    source = Path(path)
    try:
        if source.stat().st_size > _MOST_BYTES:
            raise DataError(f"{source} has {source.stat().st_size:,} bytes, a file of claims at most {_MOST_BYTES:,}")
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{source} cannot be read as JSON ({error}); give a claims.json") from error
    kept = content.get("claims") if isinstance(content, dict) else None
    if not isinstance(kept, list) or not all(isinstance(row, dict) for row in kept):
        raise DataError(
            f"{source} has no list of `claims`; give a claims.json, or what a table of doses or of the grid has written"
        )
    scope = content.get("scope")
    if isinstance(scope, dict) and scope.get("smoke"):
        raise DataError(f"{source} is of a smoke run, from which nothing can be learned; measure it without --smoke")
    rows = [_row(row, source) for row in kept]
    return [row for row in rows if row.verdict != "not measurable"]


def with_kept(rows: Sequence[ClaimRow], kept: Sequence[ClaimRow]) -> list[ClaimRow]:
    """The rows, and in the place of each that was not measurable the first of `kept` for its claim; rows of arms come last."""
    known: dict[str, ClaimRow] = {}
    for row in kept:
        known.setdefault(row.claim.id, row)
    found = [
        replace(known[row.claim.id], literature=row.literature)
        if row.verdict == "not measurable" and row.claim.id in known
        else row
        for row in rows
    ]
    arms = [row for name, row in known.items() if name.startswith(_ARM)]
    about = next((row.literature for row in rows if row.claim.id == _ARM.strip("-")), None)
    return found if about is None else [*found, *(replace(row, literature=about) for row in arms)]


def _claim(name: str) -> Claim:
    claims = {claim.id: claim for claim in CLAIMS}
    arm, _, measured = name.removeprefix(_ARM).rpartition("-")
    if name.startswith(_ARM) and arm and measured in ARM_CLAIMS:
        return arm_claim(claims[measured], arm)
    if name not in claims:
        raise UnknownNameError("claim", name, claims)
    return claims[name]


def _row(row: Mapping[str, Any], source: Path) -> ClaimRow:
    name = str(row.get("id"))
    claim = _claim(name)
    if row.get("verdict") not in get_args(Verdict):
        raise DataError(f"{source}: the verdict of {name} is {row.get('verdict')!r}, not one of {', '.join(get_args(Verdict))}")
    try:
        plain = from_plain({part: row[part] for part in ("sparse", "dense", "difference", "controls")})
        numbers = [plain["sparse"], plain["dense"], plain["difference"], *plain["controls"].values()]
        reasons, found = ([str(line) for line in row[part]] for part in ("reasons", "found"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{source}: the row of {name} is not whole ({error!r})") from error
    if not all(isinstance(number, Result) for number in numbers):
        raise DataError(f"{source}: the row of {name} has numbers that are no results; give it as `sparse-lens claims` writes it")
    judgement = Judgement(row["verdict"], plain["difference"], tuple(reasons))
    found = (*found, f"kept in {source.name}")
    return ClaimRow(claim, judgement, plain["sparse"], plain["dense"], plain["controls"], found)
