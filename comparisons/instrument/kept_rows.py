"""Rows of claims that another run has measured: a claim that needs models of its own is read from a file that holds its row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from sparse_lens.comparisons.instrument.claim import ARM_CLAIMS, CLAIMS, Claim, arm_claim
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import FEWEST_SEEDS, Judgement, Verdict
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.files import read_text
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
        content = json.loads(read_text(source, _MOST_BYTES))
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
    try:
        of_file = _scope_of(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{source}: its scope cannot be read ({error!r}); give it as `sparse-lens claims` writes it") from error
    rows = [_row(row, source, of_file) for row in kept]
    return [row for row in rows if row.verdict != "not measurable"]


def with_kept(rows: Sequence[ClaimRow], kept: Sequence[ClaimRow]) -> list[ClaimRow]:
    """The rows, and in the place of each that needs models of its own and has no number the first of `kept` for its claim.

    A row whose models were measured stays, whatever its verdict: one that losses or seeds left undecided is not decided by other
    models. Kept rows of arms come last, those of arms that were measured here left out.
    """
    known: dict[str, ClaimRow] = {}
    for row in kept:
        known.setdefault(row.claim.id, row)
    found = [
        replace(known[row.claim.id], literature=row.literature) if row.claim.id in known and _needs_others(row) else row
        for row in rows
    ]
    measured = {row.claim.id for row in rows}
    arms = [row for name, row in known.items() if name.startswith(_ARM) and name not in measured]
    about = next((row.literature for row in rows if row.claim.id == _ARM.strip("-")), None)
    return found if about is None else [*found, *(replace(row, literature=about) for row in arms)]


def not_taken(rows: Sequence[ClaimRow], kept: Sequence[ClaimRow]) -> list[str]:
    """Ids of the kept rows that `with_kept` leaves out: of claims that this run has measured, or that need no other models."""
    place = {row.claim.id: row for row in rows}
    return sorted({row.claim.id for row in kept if row.claim.id in place and not _needs_others(place[row.claim.id])})


def _needs_others(row: ClaimRow) -> bool:
    """Whether the claim needs models trained for it, of which this run has none."""
    needs = bool(row.claim.only_if or row.claim.elsewhere)
    return needs and row.verdict == "not measurable" and row.judgement.difference.value is None


def _claim(name: str) -> Claim:
    claims = {claim.id: claim for claim in CLAIMS}
    arm, _, measured = name.removeprefix(_ARM).rpartition("-")
    if name.startswith(_ARM) and arm and measured in ARM_CLAIMS:
        return arm_claim(claims[measured], arm)
    if name not in claims:
        raise UnknownNameError("claim", name, claims)
    return claims[name]


def _scope_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The models of a claims.json in words, for rows that do not say themselves; nothing of a file without pairs.

    Rows of arms are about other models than the pairs', and say which in words of their own.
    """
    scope = content.get("scope")
    if not isinstance(scope, dict) or "pairs" not in scope:
        return ()
    pairs = "; ".join(f"{pair['sparse']} with {pair['dense']}" for pair in scope["pairs"])
    gaps = ", ".join(f"{gap:+.3f}" for gap in scope["loss_gaps"])
    lines = [pairs, f"loss of the dense model less that of the sparse one: {gaps} nats per token"]
    lines += [f"training tokens of each {role} model: {_counted(counts)}" for role, counts in scope.get("tokens", {}).items()]
    return (*lines, str(scope["largest"]).partition(";")[0])


def _counted(counts: Sequence[int | None]) -> str:
    return ", ".join("not known" if count is None else f"{count:,.0f}" for count in dict.fromkeys(counts))


def _sound(number: Result) -> bool:
    """Whether what a file says is a number has numbers for value, ends and null, and a value only where it is measurable."""
    parts = [number.value, number.lo, number.hi, number.null]
    real = all(part is None or (type(part) in (int, float) and math.isfinite(part)) for part in parts)
    counts = all(type(count) is int and count >= 0 for count in (number.n, number.seeds))
    told = number.reason is None or isinstance(number.reason, str)
    return real and counts and told and number.measurable is (number.value is not None)


def _consistent(claim: Claim, verdict: str, difference: Result) -> bool:
    """Whether a claim that is decided by its difference over training seeds lies on the side of its verdict."""
    if verdict not in ("supports", "contradicts") or not (claim.metric or claim.only_if):
        return True
    lo, value, hi = difference.lo, difference.value, difference.hi
    if lo is None or value is None or hi is None or not lo <= value <= hi or difference.seeds < FEWEST_SEEDS:
        return False
    beyond = lo > 0 if (claim.larger == "sparse") == (verdict == "supports") else hi < 0
    return beyond or (claim.beyond is not None and verdict == "contradicts")


def _row(row: Mapping[str, Any], source: Path, of_file: tuple[str, ...]) -> ClaimRow:
    name = str(row.get("id"))
    claim = _claim(name)
    if row.get("verdict") not in get_args(Verdict):
        raise DataError(f"{source}: the verdict of {name} is {row.get('verdict')!r}, not one of {', '.join(get_args(Verdict))}")
    try:
        plain = from_plain({part: row[part] for part in ("sparse", "dense", "difference", "controls")})
        numbers = [plain["sparse"], plain["dense"], plain["difference"], *plain["controls"].values()]
        sound = all(isinstance(number, Result) and _sound(number) for number in numbers)
        reasons, found, scope = (tuple(map(str, part)) for part in (row["reasons"], row["found"], row.get("scope", ())))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{source}: the row of {name} is not whole ({error!r})") from error
    if not sound:
        raise DataError(f"{source}: the row of {name} has numbers that are no results; give it as `sparse-lens claims` writes it")
    if not _consistent(claim, row["verdict"], plain["difference"]):
        raise DataError(
            f"{source}: {name} is said to be {row['verdict']!r}, which its difference {plain['difference']} (larger in the "
            f"{claim.larger} model, by the claim) does not say; measure it anew"
        )
    judgement = Judgement(row["verdict"], plain["difference"], reasons)
    found = (*found, f"kept in {source.name}")
    told = scope or (() if name.startswith(_ARM) else of_file)
    return ClaimRow(claim, judgement, plain["sparse"], plain["dense"], plain["controls"], found, told)
