"""Rows of other runs: read back as they were, put only where nothing was measured, and refused where they are no rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sparse_lens.comparisons.instrument.claim import CLAIMS, arm_claim
from sparse_lens.comparisons.instrument.kept_rows import not_taken, read_kept, with_kept
from sparse_lens.comparisons.instrument.rows import ClaimRow
from sparse_lens.comparisons.instrument.verdicts import judge
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.results import Result, exact, not_measurable, to_plain

BY_ID = {claim.id: claim for claim in CLAIMS}
DECIDED = judge([2.0, 2.1, 2.2], [1.0, 1.0, 1.0], loss_gaps=[0.0] * 3, larger="sparse", controls={"rotated": [0.1, 0.0, 0.1]})
SMALLER = judge([1.0, 1.0, 1.0], [2.0, 2.1, 2.2], loss_gaps=[0.0] * 3, larger="dense")
NOTHING = judge([None] * 3, [None] * 3, loss_gaps=[0.0] * 3, larger="sparse")


def kept_file(folder: Path, *rows: ClaimRow, **changes: Any) -> Path:
    path = folder / "claims.json"
    path.write_text(json.dumps({"claims": [to_plain(row.to_plain()) | changes for row in rows]}))
    return path


def test_rows_are_read_back(tmp_path: Path) -> None:
    """All but those that were not measurable; the file they are from is said."""
    row = ClaimRow(BY_ID["BIND"], DECIDED, exact(2.1), exact(1.0), {"rotated": exact(0.1)}, ("a cell",))
    arm = ClaimRow(arm_claim(BY_ID["EASE"], "pruned-late"), SMALLER, exact(2.1), exact(1.0))
    path = kept_file(tmp_path, row, arm, ClaimRow(BY_ID["T3a"], NOTHING))
    found, of_arm = read_kept(path)
    assert found.found == ("a cell", "kept in claims.json") and found.verdict == "supports"
    assert (found.claim, found.judgement, found.sparse, found.controls) == (row.claim, row.judgement, row.sparse, row.controls)
    assert of_arm.claim == arm.claim


def test_a_kept_row_says_on_which_models_it_was_measured(tmp_path: Path) -> None:
    """Its own scope, or that of the file; a file that names no pairs says nothing."""
    told = ClaimRow(BY_ID["T3a"], DECIDED, exact(1.0), exact(2.0), scope=("21 models",))
    assert read_kept(kept_file(tmp_path, told))[0].scope == ("21 models",)
    path = kept_file(tmp_path, ClaimRow(BY_ID["BIND"], DECIDED, exact(1.0), exact(2.0)))
    assert read_kept(path)[0].scope == ()
    scope = {"pairs": [{"sparse": "a", "dense": "b"}], "loss_gaps": [0.01], "tokens": {"sparse": [1000, None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scope": scope | {"largest": "tested up to 9 weights; no more"}}))
    pairs, gap, tokens, largest = read_kept(path)[0].scope
    assert pairs == "a with b" and "+0.010 nats" in gap and tokens.endswith("sparse model: 1,000, not known")
    assert largest == "tested up to 9 weights"
    arm = ClaimRow(arm_claim(BY_ID["EASE"], "pruned"), SMALLER, exact(1.0), exact(2.0))
    path.write_text(json.dumps({"claims": [to_plain(arm.to_plain())], "scope": scope | {"largest": "9"}}))
    assert read_kept(path)[0].scope == (), "the pairs of the file are not what an arm is held against"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scope": scope | {"pairs": [1]}}))
    with pytest.raises(DataError, match="scope"):
        read_kept(path)


def test_a_kept_row_stands_only_where_a_claim_needs_other_models(tmp_path: Path) -> None:
    """Not where the models of this run were measured: losses that are apart are not mended by other models."""
    rows = (ClaimRow(BY_ID["BIND"], DECIDED, exact(9.0)), ClaimRow(BY_ID["EASE"], SMALLER, exact(9.0)))
    kept = read_kept(kept_file(tmp_path, *rows))
    apart = judge([1.0] * 3, [2.0] * 3, loss_gaps=[0.9] * 3, larger="dense")
    assert apart.verdict == "not measurable" and apart.difference.value == -1
    own = [ClaimRow(BY_ID["BIND"], NOTHING), ClaimRow(BY_ID["EASE"], apart, exact(1.0)), ClaimRow(BY_ID["MONO"], NOTHING)]
    found = with_kept(own, kept)
    assert [row.sparse.value for row in found] == [9.0, 1.0, None] and found[1].verdict == "not measurable"
    measured = ClaimRow(BY_ID["BIND"], judge([1.0] * 2, [2.0] * 2, loss_gaps=[0.0] * 2, larger="sparse"), exact(1.0))
    assert with_kept([measured], kept) == [measured]
    assert with_kept(own, []) == own and not_taken(own, kept) == ["EASE"] and not_taken([measured], kept) == ["BIND"]


def test_rows_of_arms_come_after_all_others_where_their_claim_was_asked_for(tmp_path: Path) -> None:
    kept = read_kept(kept_file(tmp_path, ClaimRow(arm_claim(BY_ID["COMP"], "pruned"), SMALLER, exact(9.0), exact(1.0))))
    assert [row.claim.id for row in with_kept([ClaimRow(BY_ID["T1b"], NOTHING)], kept)] == ["T1b", "T1b-pruned-COMP"]
    assert [row.claim.id for row in with_kept([ClaimRow(BY_ID["EASE"], NOTHING)], kept)] == ["EASE"]
    own = [ClaimRow(BY_ID["T1b"], NOTHING), ClaimRow(arm_claim(BY_ID["COMP"], "pruned"), NOTHING, exact(1.0))]
    assert with_kept(own, kept) == own


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"verdict": "proves"}, "verdict of BIND is 'proves'"),
        ({"controls": 3}, "BIND is not whole"),
        ({"sparse": 2.0}, "no results"),
        ({"sparse": {**to_plain(exact(1.0)), "value": "much"}}, "BIND is not whole"),
        ({"reasons": None}, "BIND is not whole"),
        ({"sparse": {**to_plain(exact(1.0)), "lo": math.nan}}, "no results"),
        ({"sparse": {**to_plain(exact(1.0)), "lo": "a"}}, "row of BIND"),
        ({"sparse": {**to_plain(exact(1.0)), "value": True}}, "no results"),
        ({"sparse": {**to_plain(exact(1.0)), "measurable": False, "reason": "gate"}}, "no results"),
        ({"verdict": "contradicts"}, "BIND is said to be 'contradicts'"),
        ({"difference": to_plain(not_measurable("a gate"))}, "BIND is said to be 'supports'"),
        ({"difference": to_plain(exact(1.1, seeds=3))}, "BIND is said to be 'supports'"),
        ({"difference": to_plain(Result(1.1, 3.0, -9.0, seeds=3))}, "BIND is said to be 'supports'"),
        ({"difference": to_plain(Result(1.1, 1.0, 1.2, seeds=2))}, "BIND is said to be 'supports'"),
    ],
)
def test_damaged_rows_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = kept_file(tmp_path, ClaimRow(BY_ID["BIND"], DECIDED, exact(2.1), exact(1.0)), **changes)
    with pytest.raises(DataError, match=match):
        read_kept(path)


def test_files_that_hold_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_kept(path)
    for content in ("{", '{"claims": {}}', "[]", '{"claims": [1]}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(DataError):
            read_kept(path)
    with pytest.raises(UnknownNameError, match="BIND"):
        read_kept(kept_file(tmp_path, ClaimRow(BY_ID["BIND"], DECIDED, exact(2.1), exact(1.0)), id="BINDS"))
