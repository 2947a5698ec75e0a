"""What each number of a card is, in words, and the card as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_lens.results import Result

if TYPE_CHECKING:
    from sparse_lens.circuits.trust.card import CircuitCard

_SCORES = {
    "circuit_loss": "loss of the circuit (nats)",
    "full_loss": "loss of the model (nats)",
    "ablated_loss": "loss with everything ablated (nats)",
    "complement_loss": "loss of the model without the circuit (nats)",
    "accuracy": "accuracy of the circuit",
    "full_accuracy": "accuracy of the model",
    "sufficiency": "sufficiency",
    "necessity": "necessity",
}
_AREAS = {
    "cpr": "CPR: area under it, over the share of nodes",
    "cmd": "CMD: area between it and 1, over the share of nodes",
    "cpr_log": "CPR over log10(nodes), in decades",
    "cmd_log": "CMD over log10(nodes), in decades",
}
_SIZES = {"nodes": "nodes", "loss": "loss (nats)", "ratio": "nodes, over the circuit's"}

ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "heldout": ("held-out prompts", _SCORES),
    "rephrased": ("rephrased prompts", _SCORES),
    "model": ("against its model", {"loss_above_model": "loss above the model's, pair by pair (nats)"}),
    "faithfulness": ("faithfulness curve", _AREAS),
    "completeness": ("completeness curve (low is good)", _AREAS),
    "hypotheses": (
        "hypothesis tests (p small: not ideal)",
        {
            "circuit_ahead": "share of pairs on which the circuit's loss is lower",
            "equivalence_p": "equivalence, p (Holm)",
            "complement_accuracy": "accuracy of the model without the circuit",
            "independence_p": "independence, p (Holm)",
            "redundant_nodes": "share of nodes that do no more than random ones",
            "minimality_p": "minimality, p (Holm)",
        },
    ),
    "knockouts": (
        "same under knock-outs",
        {
            "distance": "distance of probabilities, parts knocked out of both",
            "intact": "distance of probabilities, nothing knocked out",
            "kl": "KL, parts knocked out of both (nats)",
            "kl_intact": "KL, nothing knocked out (nats)",
        },
    ),
    "interchange": (
        "interchange",
        {"moved": "the answer follows the circuit's values", "held": "the answer stays, all else of the other prompt"},
    ),
    "mixtures": (
        "mixtures of ablated and own values",
        {"stochastic": "sufficiency, random mixtures", "adversarial": "sufficiency, worst mixture found"},
    ),
    "random": ("random circuits of equal size", {"sufficiency": "sufficiency"}),
    "stability": (
        "overlap (Jaccard)",
        {"seeds": "over search seeds", "resamples": "over prompts drawn anew", "templates": "over halves of the templates"},
    ),
    "controls": (
        "searches of controls at the same target",
        {
            f"{name}_{size}": f"{what}: {label}"
            for name, what in (
                ("nonsense", "nonsense labels"),
                ("random_answers", "random answers"),
                ("shuffled", "shuffled labels"),
                ("random_weights", "random weights"),
            )
            for size, label in _SIZES.items()
        },
    ),
    "backups": ("backup circuits", {"count": "found, after forbidding this one", "nodes": "nodes of the first"}),
}
"""Title of every section, and what its numbers are, in the order of the card."""


def card_markdown(card: CircuitCard) -> str:
    """Heading, verdict, facts and one table with a row for every number."""
    edges = "" if card.edges is None else f", {card.edges:,} edges"
    norms = ", norms frozen" if card.frozen_norms else ""
    facts = (
        f"{card.nodes:,} of {card.all_nodes:,} nodes{edges}; target {card.target_loss:.3g} nats, {card.ablation} ablation{norms}"
    )
    lines = [f"# Circuit for {_escaped(card.task)}", "", *(f"- {_escaped(line)}" for line in card.verdict_lines), ""]
    lines += [f"{_escaped(facts)}; model {_escaped(card.model)}; effort {_escaped(card.effort)}, seed {card.seed}.", ""]
    lines += ["| | | value [95 %] | chance or control | n | seeds |", "|---|---|---|---|---|---|"]
    for section, results in card.sections().items():
        title, labels = ROWS.get(section, (section, {}))
        if not any(result.measurable for result in results.values()) and len({result.reason for result in results.values()}) == 1:
            results = {"": next(iter(results.values()))}  # one reason for all of them
        for name, result in results.items():
            lines.append("| " + " | ".join([_escaped(title), _escaped(labels.get(name, name)), *_cells(result)]) + " |")
            title = ""
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> list[str]:
    value = str(result) if result.measurable else f"not measurable: {_escaped(result.reason or '')}"
    return [value, "" if result.null is None else f"{result.null:.3g}", str(result.n), str(result.seeds)]


def _escaped(text: str) -> str:
    """Text from outside as one harmless table cell."""
    cleaned = "".join(" " if ord(c) < 32 else c for c in text)
    for mark, written in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        cleaned = cleaned.replace(mark, written)
    return cleaned
