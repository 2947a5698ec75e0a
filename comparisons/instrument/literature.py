"""What has been published for and against the claims, as data that users can extend: `literature.yaml`, or a file of its form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparse_lens.comparisons.instrument.claim import ARM_CLAIMS, CLAIMS
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.files import read_text

SIDES = ("for", "against", "warning", "theory", "background")
_FIELDS = {"id", "side", "claims", "grounds", "finding"}
_MOST_BYTES = 1 << 20

KNOWN = tuple(claim.id for claim in CLAIMS)
"""What an item may be about, beside the rows of an arm, as T1b-NAME-EASE."""

_OF_ARMS = tuple(f"-{name}" for name in ARM_CLAIMS)


@dataclass(frozen=True)
class Item:
    """One publication: on which side of which claims it stands, what it found, and how we know (`grounds`)."""

    id: str
    side: str
    claims: tuple[str, ...]
    grounds: str
    finding: str


@dataclass(frozen=True)
class Literature:
    """All items, until when they were looked for, what the grounds mean, and what could not be grounded at all."""

    items: tuple[Item, ...]
    covered_until: str
    grounds: dict[str, str]
    not_grounded: tuple[str, ...]

    def about(self, claim: str) -> list[Item]:
        """The items that name a claim (of an arm, as T1b-NAME-EASE, those that name T1b), those for it first."""
        named = [item for item in self.items if claim in item.claims or (claim.startswith("T1b-") and "T1b" in item.claims)]
        return sorted(named, key=lambda item: SIDES.index(item.side))


class _PlainLoader(yaml.BaseLoader):
    """Text, lists and mappings alone: no tags, no name twice, and no aliases, a few lines of which can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here; write the text out")
        if getattr(self.peek_event(), "tag", None):
            raise yaml.YAMLError("tags (!name) are not read here; leave them out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = Counter(str(key.value) for key, _ in node.value)
        if twice := [name for name, count in names.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} stands twice in one mapping; only one of them would be read")
        return super().construct_mapping(node, deep)


def read_literature(path: str | Path | None = None) -> Literature:
    """The literature that comes with the package, or a file of the same form; raises `DataError` saying what is wrong with it.

    Raises `UnknownNameError` for an item about a claim that there is not.
    """
    source = Path(__file__).with_name("literature.yaml") if path is None else Path(path)
    try:
        content = yaml.load(read_text(source, _MOST_BYTES), _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{source} cannot be read as a list of literature: {error}") from error
    if not isinstance(content, dict) or content.get("format") not in ("1", "1.0"):
        raise DataError(
            f"{source} is no list of literature; it begins with `format: 1` and holds `items` as the package's own does"
        )
    grounds = {str(name): str(meaning) for name, meaning in _mapping(content, "grounds", source).items()}
    items = tuple(_item(raw, grounds, source) for raw in _list(content, "items", source))
    unknown = tuple(str(text) for text in _list(content, "not_grounded", source))
    return Literature(items, str(content.get("covered_until", "unknown")), grounds, unknown)


def _item(raw: Any, grounds: dict[str, str], source: Any) -> Item:
    if not isinstance(raw, dict) or set(raw) != _FIELDS or not isinstance(raw["claims"], list):
        raise DataError(f"{source}: an item has {', '.join(sorted(_FIELDS))}, claims being a list; got {str(raw)[:200]}")
    item = Item(str(raw["id"]), str(raw["side"]), tuple(map(str, raw["claims"])), str(raw["grounds"]), str(raw["finding"]))
    if item.side not in SIDES or item.grounds not in grounds:
        raise DataError(f"{source}: {item.id}: side is one of {', '.join(SIDES)} and grounds one of {', '.join(grounds)}")
    for claim in item.claims:
        if claim not in KNOWN and not (claim.startswith("T1b-") and claim.endswith(_OF_ARMS)):
            raise UnknownNameError(f"claim of {item.id} in {source}", claim, KNOWN)
    return item


def _mapping(content: dict[str, Any], name: str, source: Any) -> dict[Any, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise DataError(f"{source}: {name} must be a mapping, got a {type(value).__name__}")
    return value


def _list(content: dict[str, Any], name: str, source: Any) -> list[Any]:
    value = content.get(name, [])
    if not isinstance(value, list):
        raise DataError(f"{source}: {name} must be a list, got a {type(value).__name__}")
    return value
