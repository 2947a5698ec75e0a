"""What a card allows to say, in plain words, by stated rules.

| constant | value | why |
|---|---|---|
| `ACCURACY_GATE` | 0.9 | a circuit for a task that the model does not do explains nothing; the gate of the comparison |
| `HOLDS` | 0.75 | at the published target of 0.15 nats, 0.78 is left of ln 2, a coin flip; the interval's lower end counts |
| `PARTLY` | 0.25 | below it, less than a third of what `HOLDS` asks for is left |
| `SMALL`, `LARGE` | 0.02, 0.2 | shares of all nodes; the published circuits keep less than 1 % |
| `NONSENSE_FACTOR` | 3 | the nonsense circuit was 6 times the real one in a sparse model and 1.6 times in a dense one (measured) |
| `BEATS` | 0.01 | nats; below it, a difference of losses is rounding and chance |
| `WORSE_THAN_HALF` | 0.5 | of the circuit's own sufficiency: what is left under an attack, or what a random circuit reaches |
| `FOLLOWS` | 0.75 | of the prompts: halfway between a coin and certainty |
| `APART` | 0.25 | in probability: half the way from certainty to a coin |
| `SAME_NODES` | 0.5 | Jaccard of two equally large circuits that share two thirds of their nodes |

Every sentence names the numbers that it rests on. What was not tested is said to be so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_lens.results import Result

if TYPE_CHECKING:
    from sparse_lens.circuits.trust.card import CircuitCard

ACCURACY_GATE = 0.9
HOLDS, PARTLY = 0.75, 0.25
SMALL, LARGE = 0.02, 0.2
NONSENSE_FACTOR = 3.0
BEATS = 0.01
WORSE_THAN_HALF = 0.5
FOLLOWS = 0.75
APART = 0.25
SAME_NODES = 0.5
REJECTED = 0.05

FITTED_LABELS = {
    "nonsense": "labels that follow no rule",
    "random_answers": "random tokens as answers",
    "shuffled": "shuffled labels",
}
"""Controls that raise the alarm, and what they are in words."""


def verdict_lines(card: CircuitCard) -> list[str]:
    """Sentences about a card: what cannot be measured and alarms first, then the claim, then its limits."""
    gate, alarms = _gate(card), [*_nonsense(card), *_beats(card)]
    claim = [*_claim(card), *_rephrased(card), *_random(card), *_nonsense_passed(card)] if gate is None else []
    limits = [*_uses(card), *_damage(card), *_backups(card), *_stability(card), *_equivalence(card)] if gate is None else []
    return [*([gate] if gate else []), *alarms, *claim, *limits, *_target(card), *_untested(card)]


def _gate(card: CircuitCard) -> str | None:
    accuracy, sufficiency = card.heldout.full_accuracy, card.heldout.sufficiency
    if accuracy.value is None or sufficiency.value is None:
        return f"not measurable: {accuracy.reason or sufficiency.reason}"
    if accuracy.value < ACCURACY_GATE:
        return f"not measurable: the model is right on {accuracy.value:.0%} of the held-out prompts, {ACCURACY_GATE:.0%} are needed"
    return None


def _nonsense(card: CircuitCard) -> list[str]:
    said = []
    for control, labels in FITTED_LABELS.items():
        ratio, nodes = (card.result("controls", f"{control}_{name}") for name in ("ratio", "nodes"))
        if ratio.value is not None and ratio.value < NONSENSE_FACTOR:
            said.append(f"{labels} take {nodes} nodes at the same target, {ratio.value:.1f} times the circuit's")
    return [f"looks small but also fits nonsense: {', '.join(said)}"] if said else []


def _nonsense_passed(card: CircuitCard) -> list[str]:
    """How far off the nonsense labels are, where they raise no alarm; not fitted is no proof if the effort was small."""
    ratio, loss = card.result("controls", "nonsense_ratio"), card.result("controls", "nonsense_loss")
    if ratio.value is not None and ratio.value >= NONSENSE_FACTOR:
        return [f"nonsense labels take {ratio.value:.1f} times its nodes"]
    unfitted = ratio.value is None and loss.value is not None
    return [f"nonsense labels are not fitted at all with the same effort (loss {_number(loss)})"] if unfitted else []


def _beats(card: CircuitCard) -> list[str]:
    above, scores = card.result("model", "loss_above_model"), card.heldout
    if above.hi is None or above.hi >= -BEATS:
        return []
    losses = f"loss {_number(scores.circuit_loss)} against {_number(scores.full_loss)}"
    return [f"beats its own model ({losses}): it does something that the model does not do"]


def _claim(card: CircuitCard) -> list[str]:
    sufficiency, necessity = card.heldout.sufficiency, card.heldout.necessity
    share = card.nodes / card.all_nodes
    size = "small" if share <= SMALL else "large" if share > LARGE else "of middle size"
    parts = [f"{word}sufficient ({_number(sufficiency)})" for word in [_degree(sufficiency)]]
    parts += [f"{word}necessary ({_number(necessity)})" for word in [_degree(necessity)]]
    joined = " and " if _degree(sufficiency) == _degree(necessity) else " but "
    kept = f"{card.nodes:,} of {card.all_nodes:,} nodes"
    return [f"{size} ({kept}), {joined.join(parts)} on held-out prompts"]


def _degree(result: Result) -> str:
    if result.value is None or result.lo is None:
        return "not measurably "
    return "" if result.lo >= HOLDS else "partly " if result.value >= PARTLY else "not "


def _rephrased(card: CircuitCard) -> list[str]:
    sufficiency = card.rephrased.sufficiency
    if sufficiency.value is None:
        return [f"rephrased prompts: not measurable ({sufficiency.reason})"]
    return [f"rephrased prompts: {_number(sufficiency)}" + ("" if sufficiency.value >= PARTLY else ", it does not hold there")]


def _random(card: CircuitCard) -> list[str]:
    random, own = card.result("random", "sufficiency"), card.heldout.sufficiency
    if random.value is None or own.value is None:
        return []
    as_good = random.value >= WORSE_THAN_HALF * own.value
    return [f"{'no evidence: ' if as_good else ''}a random circuit of equal size: {_number(random)}"]


def _uses(card: CircuitCard) -> list[str]:
    said = []
    redundant, p = card.result("hypotheses", "redundant_nodes"), card.result("hypotheses", "minimality_p")
    if redundant.value and p.value is not None and p.value < REJECTED:
        said.append(f"{redundant.value * redundant.n:.0f} of {redundant.n} tested nodes do no more than random ones")
    moved = card.result("interchange", "moved")
    if moved.value is not None and moved.value < FOLLOWS:
        said.append(f"the answer follows its values from prompt to prompt in {moved.value:.0%} only")
    return said


def _damage(card: CircuitCard) -> list[str]:
    said, own = [], card.heldout.sufficiency.value
    assert own is not None
    for name, what in (("stochastic", "random mixtures"), ("adversarial", "the worst mixture found")):
        left = card.result("mixtures", name)
        if left.value is not None and left.value < WORSE_THAN_HALF * own:
            said.append(f"breaks under {what} of what it leaves out ({_number(left)})")
    apart = card.result("knockouts", "distance")
    if apart.value is not None and apart.value > APART:
        said.append(f"with parts knocked out of both, circuit and model differ (probabilities by {_number(apart)})")
    return said


def _backups(card: CircuitCard) -> list[str]:
    count, nodes = card.result("backups", "count"), card.result("backups", "nodes")
    return [f"not necessary: a backup of {nodes} nodes does the same"] if count.value and nodes.value is not None else []


def _stability(card: CircuitCard) -> list[str]:
    said = []
    for name, what in (("seeds", "other seeds"), ("resamples", "other prompts"), ("templates", "other templates")):
        shared = card.result("stability", name)
        if shared.value is not None and shared.value < SAME_NODES:
            said.append(f"{what} find other nodes (overlap {_number(shared)})")
    return said


def _equivalence(card: CircuitCard) -> list[str]:
    ahead, p = card.result("hypotheses", "circuit_ahead"), card.result("hypotheses", "equivalence_p")
    if ahead.value is None or p.value is None or p.value >= REJECTED:
        return []
    worse, share = ahead.value < 0.5, max(ahead.value, 1 - ahead.value)
    return [f"{'worse' if worse else 'better'} than its model on {share:.0%} of the pairs"]


def _target(card: CircuitCard) -> list[str]:
    if card.search_loss is None or card.search_loss <= card.target_loss:
        return []
    return [f"misses its target of {card.target_loss:.3g} nats (loss {card.search_loss:.3g})"]


def _untested(card: CircuitCard) -> list[str]:
    names = {"nonsense labels": ("controls", "nonsense_loss"), "other seeds": ("stability", "seeds")}
    names |= {"random weights": ("controls", "random_weights_loss"), "backups": ("backups", "count")}
    missing = [what for what, place in names.items() if card.result(*place).value is None]
    return [f"not tested ({card.effort}): {', '.join(missing)}"] if missing else []


def _number(result: Result) -> str:
    return "—" if result.value is None else f"{result.value:.2f}"
