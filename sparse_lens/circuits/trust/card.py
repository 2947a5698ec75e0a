"""The card of a circuit: everything that was measured on it, in one object that can be saved, read and printed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sparse_lens.circuits import checked
from sparse_lens.circuits.scoring import CircuitScores
from sparse_lens.circuits.trust.curves import Curve
from sparse_lens.circuits.trust.verdicts import verdict_lines
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, not_measurable, to_frame, to_plain

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1
_FACTS = {"task": str, "model": str, "ablation": str, "effort": str, "frozen_norms": bool, "nodes": int, "all_nodes": int}
_MOST_CHARACTERS = 4 << 20

Measures = Mapping[str, Mapping[str, Result]]
"""Results by section and name; `sparse_lens.circuits.trust.rows` says what each one is."""


@dataclass(frozen=True)
class CircuitCard:
    """How far one circuit can be trusted, on one card.

    `heldout` and `rephrased` are its scores on the two sets of prompts, `measures` all other results by section and name,
    `curves` the points of faithfulness and completeness. `nodes` of `all_nodes` are kept, and `edges`, if those were searched;
    `search_loss` is the loss it was selected at (None: not measured). `effort` "quick" made no new searches; what it leaves out is
    not measurable, with the reason. `verdict` is derived from the numbers by the rules of `trust.verdicts`, never stored.
    """

    task: str
    model: str
    nodes: int
    all_nodes: int
    ablation: str
    frozen_norms: bool
    target_loss: float
    effort: str
    seed: int
    heldout: CircuitScores
    rephrased: CircuitScores
    measures: Measures
    curves: Mapping[str, Curve] = field(default_factory=dict)
    edges: int | None = None
    search_loss: float | None = None

    @property
    def verdict_lines(self) -> list[str]:
        """What the numbers allow to say, and what they do not; the most important first."""
        return verdict_lines(self)

    @property
    def verdict(self) -> str:
        """The same in one line."""
        return "; ".join(self.verdict_lines)

    def result(self, section: str, name: str) -> Result:
        """One result; not measurable if the card does not have it."""
        return self.measures.get(section, {}).get(name, not_measurable("not on this card"))

    def sections(self) -> dict[str, dict[str, Result]]:
        """All results by section and name, the scores included."""
        scores = {"heldout": vars(self.heldout), "rephrased": vars(self.rephrased)}
        return {section: dict(of) for section, of in (scores | dict(self.measures)).items()}

    def to_frame(self) -> pd.DataFrame:
        """One row a number: `section`, `metric`, and the fields of `Result`."""
        return to_frame(self.sections(), ("section",))

    def to_markdown(self) -> str:
        """The card as a heading, its verdict, and a table."""
        from sparse_lens.circuits.trust.rows import card_markdown

        return card_markdown(self)

    def to_plain(self) -> dict[str, Any]:
        """The card as plain JSON values, its verdict added for readers."""
        apart = ("heldout", "rephrased", "measures", "curves")
        facts = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in apart}
        scores = {"heldout": to_plain(vars(self.heldout)), "rephrased": to_plain(vars(self.rephrased))}
        rest = {"measures": to_plain(self.measures), "curves": {name: to_plain(vars(curve)) for name, curve in self.curves.items()}}
        return {"format": _FORMAT, "verdict": self.verdict} | facts | scores | rest

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_plain(cls, content: Any) -> CircuitCard:
        """The inverse of `to_plain`; raises `CircuitError` for anything else. The verdict is made anew."""
        card = checked.mapping(content, "the card")
        if (found := card.get("format")) != _FORMAT:
            raise CircuitError(f"this card has format {checked.shown(found)}, not {_FORMAT}; evaluate the circuit again")
        facts = {name: _fact(card, name, kind) for name, kind in _FACTS.items()}
        loss, edges = card.get("search_loss"), card.get("edges")
        return cls(
            **facts,
            target_loss=checked.number(checked.field(card, "target_loss", "the card"), "target_loss"),
            seed=checked.integer(checked.field(card, "seed", "the card"), "seed"),
            heldout=_scores(checked.field(card, "heldout", "the card"), "heldout"),
            rephrased=_scores(checked.field(card, "rephrased", "the card"), "rephrased"),
            measures={
                section: {name: _result(value, f"{section}.{name}") for name, value in checked.named(of, section).items()}
                for section, of in checked.named(checked.field(card, "measures", "the card"), "measures").items()
            },
            curves={name: _curve(curve, name) for name, curve in checked.named(card.get("curves", {}), "curves").items()},
            edges=None if edges is None else checked.integer(edges, "edges"),
            search_loss=None if loss is None else checked.number(loss, "search_loss"),
        )

    @classmethod
    def from_json(cls, text: str) -> CircuitCard:
        """The inverse of `to_json`; raises `CircuitError` for text that is no card."""
        if len(text) > _MOST_CHARACTERS:
            raise CircuitError(f"a card has at most {_MOST_CHARACTERS} characters, this text has {len(text)}")
        try:
            return cls.from_plain(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise CircuitError(f"this text is no card of a circuit: {error}") from error


def unscored(reason: str) -> CircuitScores:
    """Scores that could not be measured."""
    return CircuitScores(**{item.name: not_measurable(reason) for item in fields(CircuitScores)})


def measured_loss(loss: float) -> float | None:
    """A circuit's loss, None where it was not measured."""
    return loss if math.isfinite(loss) else None


def _fact(card: Mapping[Any, Any], name: str, kind: type) -> Any:
    value = checked.field(card, name, "the card")
    read = {str: checked.text, bool: checked.truth, int: checked.integer}[kind]
    return read(value, name)


def _scores(content: Any, what: str) -> CircuitScores:
    table = checked.named(content, what)
    return CircuitScores(**{item.name: _result(checked.field(table, item.name, what), item.name) for item in fields(CircuitScores)})


def _result(content: Any, what: str) -> Result:
    table = checked.named(content, what)
    numbers = {name: table.get(name) for name in ("value", "lo", "hi", "null")}
    reason = table.get("reason")
    try:
        return Result(
            **{name: None if value is None else checked.number(value, f"{what}.{name}") for name, value in numbers.items()},
            n=checked.integer(table.get("n"), f"{what}.n"),
            seeds=checked.integer(table.get("seeds"), f"{what}.seeds"),
            measurable=checked.truth(table.get("measurable"), f"{what}.measurable"),
            reason=None if reason is None else checked.text(reason, f"{what}.reason"),
        )
    except ValueError as error:
        raise CircuitError(f"{what} is no result: {error}") from error


def _curve(content: Any, what: str) -> Curve:
    table = checked.named(content, what)
    sizes = checked.items(checked.field(table, "sizes", what), f"{what}.sizes")
    points = checked.items(checked.field(table, "points", what), f"{what}.points", length=len(sizes))
    areas = checked.named(checked.field(table, "areas", what), f"{what}.areas")
    return Curve(
        sizes=tuple(checked.integer(size, f"{what}.sizes", least=1) for size in sizes),
        n_nodes=checked.integer(checked.field(table, "n_nodes", what), f"{what}.n_nodes", least=1),
        points=tuple(_result(point, f"{what}.points") for point in points),
        areas={name: _result(area, f"{what}.{name}") for name, area in areas.items()},
    )
