"""The card as data and as text, and the sentences that its numbers allow."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from sparse_lens.circuits import CircuitCard, CircuitScores
from sparse_lens.circuits.trust.card import unscored
from sparse_lens.circuits.trust.curves import Curve
from sparse_lens.circuits.trust.rows import ROWS
from sparse_lens.circuits.trust.searched import not_searched
from sparse_lens.errors import CircuitError
from sparse_lens.results import Result, not_measurable


def number(value: float, *, null: float | None = None, n: int = 64) -> Result:
    return Result(value, value - 0.01, value + 0.01, null, n)


def scores(sufficiency: float = 0.97, necessity: float = 0.92, accuracy: float = 1.0) -> CircuitScores:
    given = {"circuit_loss": 0.03, "full_loss": 0.02, "ablated_loss": 0.8, "complement_loss": 0.7, "accuracy": 0.99}
    given |= {"full_accuracy": accuracy, "sufficiency": sufficiency, "necessity": necessity}
    return CircuitScores(**{name: number(value) for name, value in given.items()})


def card(changes: dict[str, dict[str, Result]] | None = None, **fields: Any) -> CircuitCard:
    """A card of a good circuit, all controls passed, with some rows or fields changed."""
    measures: dict[str, dict[str, Result]] = {
        "model": {"loss_above_model": number(0.02)},
        "hypotheses": {
            "circuit_ahead": number(0.5, null=0.5),
            "equivalence_p": Result(0.9, n=64),
            "redundant_nodes": Result(0.0, 0.0, 0.0, n=24),
            "minimality_p": Result(1.0, n=24),
        },
        "knockouts": {"distance": number(0.1)},
        "interchange": {"moved": number(0.98)},
        "mixtures": {"stochastic": number(0.95), "adversarial": number(0.8)},
        "random": {"sufficiency": number(0.03)},
        "stability": {name: number(0.8) for name in ("seeds", "resamples", "templates")},
        "controls": {
            f"{name}_{part}": Result(value)
            for name in ("nonsense", "random_answers", "shuffled", "random_weights")
            for part, value in (("nodes", 200.0), ("loss", 0.14), ("ratio", 8.0))
        },
        "backups": {"count": Result(0.0), "nodes": not_measurable("none")},
    }
    for section, rows in (changes or {}).items():
        measures[section] = measures[section] | rows
    given: dict[str, Any] = {
        "task": "quotes",
        "model": "0123",
        "nodes": 24,
        "all_nodes": 5888,
        "ablation": "mean",
        "effort": "full",
    }
    given |= {"frozen_norms": False, "target_loss": 0.15, "seed": 0, "search_loss": 0.14, "edges": None}
    given |= {"heldout": scores(), "rephrased": scores(0.91), "measures": measures}
    given |= {"curves": {"faithfulness": Curve((1, 24), 5888, (number(0.1), number(0.97)), {"cpr": number(0.9)})}}
    return CircuitCard(**given | fields)


def test_a_good_circuit() -> None:
    expected = "small (24 of 5,888 nodes), sufficient (0.97) and necessary (0.92) on held-out prompts; rephrased prompts: 0.91; "
    assert card().verdict == expected + "a random circuit of equal size: 0.03; nonsense labels take 8.0 times its nodes"


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"controls": {"nonsense_ratio": Result(1.3), "nonsense_nodes": Result(31.0)}},
        {},
        "looks small but also fits nonsense: labels that",
    ),
    (
        {"controls": {"nonsense_ratio": not_measurable("-")}},
        {},
        "nonsense labels are not fitted at all with the same effort (loss 0.14)",
    ),
    ({"controls": {"random_answers_ratio": Result(0.9)}}, {}, "looks small but also fits nonsense: random tokens as answers"),
    ({"model": {"loss_above_model": number(-0.2)}}, {}, "beats its own model (loss 0.03 against 0.02)"),
    ({"backups": {"count": Result(2.0), "nodes": Result(31.0)}}, {}, "not necessary: a backup of 31 nodes does the same"),
    ({}, {"heldout": scores(accuracy=0.6)}, "not measurable: the model is right on 60% of the held-out prompts, 90% are needed"),
    ({}, {"heldout": unscored("no gain")}, "not measurable: no gain"),
    ({}, {"heldout": scores(0.5, 0.1)}, "partly sufficient (0.50) but not necessary (0.10)"),
    ({}, {"rephrased": scores(0.1)}, "rephrased prompts: 0.10, it does not hold there"),
    ({}, {"rephrased": unscored("no such pairs")}, "rephrased prompts: not measurable (no such pairs)"),
    ({}, {"nodes": 2000}, "large (2,000 of 5,888 nodes), sufficient"),
    ({"random": {"sufficiency": number(0.9)}}, {}, "no evidence: a random circuit of equal size: 0.90"),
    (
        {"hypotheses": {"redundant_nodes": Result(0.25, n=24), "minimality_p": Result(1e-6, n=24)}},
        {},
        "6 of 24 tested nodes do no more than random ones",
    ),
    (
        {"hypotheses": {"circuit_ahead": number(0.05), "equivalence_p": Result(1e-9)}},
        {},
        "worse than its model on 95% of the pairs",
    ),
    ({"interchange": {"moved": number(0.5)}}, {}, "the answer follows its values from prompt to prompt in 50% only"),
    ({"mixtures": {"adversarial": number(-1.0)}}, {}, "breaks under the worst mixture found of what it leaves out (-1.00)"),
    (
        {"knockouts": {"distance": number(0.4)}},
        {},
        "with parts knocked out of both, circuit and model differ (probabilities by 0.40)",
    ),
    ({"stability": {"seeds": number(0.2)}}, {}, "other seeds find other nodes (overlap 0.20)"),
    ({}, {"search_loss": 0.3}, "misses its target of 0.15 nats (loss 0.3)"),
    (not_searched("later"), {"effort": "quick"}, "not tested (quick): nonsense labels, other seeds, random weights, backups"),
]


@pytest.mark.parametrize(("changes", "given", "sentence"), CASES)
def test_every_rule_says_its_sentence(changes: dict[str, Any], given: dict[str, Any], sentence: str) -> None:
    found = card(changes, **given)
    assert sentence in found.verdict and sentence not in card().verdict


def test_alarms_come_before_the_claim() -> None:
    """And what is not measurable before all: then nothing is claimed."""
    alarmed = card({"controls": {"shuffled_ratio": Result(1.0)}})
    assert alarmed.verdict_lines[0].startswith("looks small but also fits nonsense: shuffled labels")
    gated = replace(alarmed, heldout=scores(accuracy=0.5))
    assert gated.verdict_lines[0].startswith("not measurable") and not any("sufficient" in line for line in gated.verdict_lines)


@pytest.mark.parametrize("given", [card(), card(not_searched("later"), rephrased=unscored("none"), search_loss=None, edges=7)])
def test_a_card_comes_back(given: CircuitCard) -> None:
    assert CircuitCard.from_json(given.to_json()) == given
    assert json.loads(given.to_json())["verdict"] == given.verdict


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("nodes",), -1),
        (("nodes",), "many"),
        (("task",), "x" * 100_000),
        (("heldout",), {}),
        (("measures", "random", "sufficiency", "value"), None),
        (("measures", "random", "sufficiency", "n"), 1.5),
        (("measures", "random"), [1]),
        (("curves", "faithfulness", "points"), []),
        (("frozen_norms",), 1),
    ],
)
def test_a_damaged_card_is_refused(path: tuple[str, ...], value: Any) -> None:
    content = card().to_plain()
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(CircuitError):
        CircuitCard.from_plain(content)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, '{"format": 1', "x" * (5 << 20)])
def test_text_that_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(CircuitError):
        CircuitCard.from_json(text)


def test_a_stored_verdict_is_not_believed() -> None:
    content = card().to_plain() | {"verdict": "perfect"}
    assert CircuitCard.from_plain(content).verdict == card().verdict


def test_markdown_has_every_number_and_no_markup_from_outside() -> None:
    hostile = "<img src=x>|[a](javascript:x)`\n# no"
    text = card(task=hostile, rephrased=unscored(hostile)).to_markdown()
    assert "<img" not in text and "\n# no" not in text and "[a]" not in text.replace("\\[", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 7 for line in rows)
    assert sum("not measurable" in line for line in rows) == 2  # all of `rephrased` in one row, and the backup's nodes
    labels = [label for section, of in card().measures.items() for name in of for label in [ROWS[section][1][name]]]
    assert all(any(label in row for row in rows) for label in labels)


def test_a_frame_has_a_row_for_each_number() -> None:
    frame = card().to_frame()
    numbers = 2 * len(fields(CircuitScores)) + sum(len(of) for of in card().measures.values())
    assert len(frame) == numbers and set(frame["section"]) >= {"heldout", "rephrased", "mixtures"} and (frame["n"] >= 0).all()
