"""The literature: the package's own list, files of its form, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_lens.comparisons.instrument.claim import CLAIMS
from sparse_lens.comparisons.instrument.literature import read_literature
from sparse_lens.errors import DataError, UnknownNameError

OWN = """
format: 1
covered_until: 2030-01
grounds: {abstract: read the abstract}
items:
  - {id: "A", side: against, claims: [EASE], grounds: abstract, finding: "none"}
  - {id: "B", side: for, claims: [EASE, T1a], grounds: abstract, finding: "some"}
not_grounded: [all else]
"""


def test_the_packages_list() -> None:
    literature = read_literature()
    ids = {claim.id for claim in CLAIMS}
    assert all(item.claims and set(item.claims) <= ids for item in literature.items)
    assert {item.side for item in literature.about("T1a-dose")} == {"for", "against", "warning", "theory", "background"}
    assert not {item.id for item in literature.about("T1a") if item.side == "for"} & {
        item.id for item in literature.about("T1a-dose") if item.side == "for"
    }
    assert literature.about("T1b-magnitude-EASE") == literature.about("T1b")
    assert literature.covered_until == "2026-07" and any("billion" in line for line in literature.not_grounded)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    literature = read_literature(tmp_path / "own.yaml")
    assert [item.id for item in literature.about("EASE")] == ["B", "A"] and not literature.about("COMP")
    assert literature.covered_until == "2030-01"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read"),
        ("a: 1", "no list of literature"),
        (OWN.replace("abstract,", "hearsay,"), "grounds one of abstract"),
        (OWN.replace("side: for", "side: fro"), "side is one of"),
        (OWN.replace(', finding: "none"', ""), "an item has"),
        ("format: 1\nitems: 3", "items must be a list"),
        ("format: 1\nx: &a [1]\ny: [*a, *a]", "aliases"),
        ("format: 1\nx: !!python/object/apply:os.getcwd []", "tags"),
        (OWN.replace("2030-01", "!!int ''"), "tags"),
        ("#" * ((1 << 20) + 1), "more than 1,048,576 bytes"),
        (OWN.replace("covered_until: 2030-01", "covered_until: 1\ncovered_until: 2"), "'covered_until' stands twice"),
    ],
)
def test_files_that_are_none(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(DataError, match=match):
        read_literature(tmp_path / "bad.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_literature(tmp_path / "missing.yaml")


@pytest.mark.parametrize("value", ["1:" + "59:" * 400 + "1", "null", "2030-01-01", "yes"])
def test_everything_is_text(value: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("2030-01", value))
    assert read_literature(tmp_path / "own.yaml").covered_until == value


def test_items_about_an_arm(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("claims: [EASE, T1a]", "claims: [T1b-mine-EASE]"))
    assert [item.id for item in read_literature(tmp_path / "own.yaml").about("T1b-mine-EASE")] == ["B"]


def test_items_about_claims_that_there_are_not(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN.replace("claims: [EASE, T1a]", "claims: [EASE, T1aa]"))
    with pytest.raises(UnknownNameError, match="T1a"):
        read_literature(tmp_path / "own.yaml")
