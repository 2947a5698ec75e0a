"""What a run does not show, in plain words, derived from its own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.circuits.trust.verdicts import NONSENSE_FACTOR
from sparse_lens.comparisons.curves.loss_matching import TOLERANCE
from sparse_lens.results import Result


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences that name the differences this run cannot support; the most important ones first."""
    return [
        *_loss_match(metrics["models"]),
        *_ratios(metrics["summary"]),
        *_nonsense(metrics["tasks"]),
        *_error_nodes(metrics["tasks"]),
        *_tasks(metrics["tasks"]),
        *_heldout(metrics["tasks"]),
        *_always(metrics["effort"]),
    ]


def _loss_match(models: Mapping[str, Any]) -> list[str]:
    unlike = [role for role in ("dense_matched", "dense") if not models[role].get("shares_tokens", True)]
    if unlike or not models["sparse"].get("shares_tokens", True):
        return [*_unlike(models), *_gaps(models, "bits_per_byte", "bits per byte", _tolerance_by_byte(models["sparse"]))]
    return _gaps(models, "loss", "nats per token", TOLERANCE)


def _unlike(models: Mapping[str, Any]) -> list[str]:
    names = ", ".join(models[role]["name"] for role in models if not models[role]["shares_tokens"])
    return [
        f"{names}: of another tokenizer than the pair. Losses are compared by the byte; a prompt is the same text in other tokens, "
        "so that circuits differ in the length of their prompts as well; whatever needs tokens side by side is refused."
    ]


def _tolerance_by_byte(sparse: Mapping[str, Any]) -> float:
    """What the tolerance in nats per token is in bits per byte, at the sparse model's bytes per token."""
    return TOLERANCE * sparse["bits_per_byte"].value / sparse["loss"].value


def _gaps(models: Mapping[str, Any], measure: str, unit: str, tolerance: float) -> list[str]:
    sparse, matched, dense = (models[role][measure].value for role in ("sparse", "dense_matched", "dense"))
    gap, lead = matched - sparse, sparse - dense
    said = []
    if abs(gap) > tolerance:
        said.append(
            f"The loss-matched dense model is off by {gap:+.3f} {unit} (allowed {tolerance:.2g}): it is not a fair baseline."
        )
    if abs(lead) > tolerance:
        better = f"{abs(lead):.2f} {unit} {'better' if lead > 0 else 'worse'} than the sparse one"
        said.append(
            f"The dense model of the same shape is {better}: its circuits are not those of an equally able model, so the fair "
            "baseline is the loss-matched one."
        )
    return said


_RATIOS = {
    "edge_ratio_geomean": "edges, loss-matched dense to sparse",
    "site_edge_ratio_geomean": "inner edges (between sites), loss-matched dense to sparse",
    "node_ratio_geomean": "nodes, loss-matched dense to sparse",
    "node_ratio_geomean_sae": "nodes, SAE latents to sparse neurons",
}
_FEWEST_TASKS = 6
"""Below this many tasks even ratios that all point one way are no evidence: five of five have a chance of 6 %."""


def _ratios(summary: Mapping[str, Result]) -> list[str]:
    said = []
    for name, what in _RATIOS.items():
        ratio = summary[name]
        if ratio.value is None:
            said.append(f"No ratio of {what}: {ratio.reason}.")
        elif ratio.lo is not None and ratio.hi is not None and ratio.lo <= 1 <= ratio.hi:
            said.append(
                f"The ratio of {what}, is {ratio} over {ratio.n} tasks: its interval holds 1, so this run does not show that "
                "either side needs fewer."
            )
    few = {summary[name].n for name in _RATIOS if summary[name].value is not None and summary[name].n < _FEWEST_TASKS}
    if few:
        said.append(
            f"The ratios are means over {min(few)} tasks: too few to speak of tasks in general, even where all point one way "
            f"(below {_FEWEST_TASKS}, chance alone does that in more than 3 of 100 runs)."
        )
    return said


def _nonsense(tasks: Mapping[str, Any]) -> list[str]:
    """Columns in which the learner fits meaningless labels almost as cheaply as the task, or not at all."""
    weak: dict[str, list[str]] = {}
    unreached: dict[str, list[str]] = {}
    for task, entry in tasks.items():
        for name, column in entry["columns"].items():
            ratio = column["nonsense_ratio"].value
            if ratio is not None and ratio < NONSENSE_FACTOR:
                weak.setdefault(name, []).append(f"{task} ({ratio:.1f}x)")
            elif ratio is None and column["nodes"].value is not None:
                unreached.setdefault(name, []).append(task)
    said = [
        f"In {name}, labels that mean nothing are fitted with less than {NONSENSE_FACTOR:.0f} times the nodes of {', '.join(of)}: "
        "there a small circuit is weak evidence that the model computes the task this way."
        for name, of in weak.items()
    ]
    return said + [
        f"In {name}, the nonsense labels were not fitted to the target of {', '.join(of)}: "
        "there the control gives a loss, not a size."
        for name, of in unreached.items()
    ]


def _error_nodes(tasks: Mapping[str, Any]) -> list[str]:
    """Circuits that keep a dictionary's error: one node, yet as wide as all neurons of the site."""
    said = []
    for name in sorted({name for entry in tasks.values() for name in entry["columns"]}):
        kept = [entry["columns"][name]["error_nodes"] for entry in tasks.values() if name in entry["columns"]]
        with_error = sum(1 for number in kept if number.value)
        if with_error:
            said.append(
                f"In {name}, {with_error} of {len(kept)} circuits keep the error node of a dictionary: it counts as one node, but "
                "carries whatever the latents miss."
            )
    return said


def _tasks(tasks: Mapping[str, Any]) -> list[str]:
    failed = {name: entry["failed_gate"] for name, entry in tasks.items() if entry["failed_gate"]}
    unasked = [f"{name}: {entry['reason']}" for name, entry in tasks.items() if not entry["columns"]]
    said = [f"Not measurable: {why}" for why in unasked]
    said += [f"Not measurable (accuracy gate failed): {name} in {', '.join(columns)}." for name, columns in failed.items()]
    missed = [
        f"{task} in {name}"
        for task, entry in tasks.items()
        for name, column in entry["columns"].items()
        if column["nodes"].value is not None and not column["reached"]
    ]
    return said + (
        [f"No circuit reached its target for {', '.join(missed)}; the size printed is of the best attempt."] if missed else []
    )


def _heldout(tasks: Mapping[str, Any]) -> list[str]:
    """Circuits that are much worse on held-out templates than on the prompts they were found on."""
    worse = [
        f"{task} in {name}"
        for task, entry in tasks.items()
        for name, column in entry["columns"].items()
        if column["heldout_circuit_loss"].value is not None
        and column["heldout_circuit_loss"].value > 1.5 * max(column["circuit_loss"].value, column["heldout_full_loss"].value)
    ]
    return [f"On held-out templates these circuits lose more than half again: {', '.join(worse)}."] if worse else []


def _always(effort: Mapping[str, Any]) -> list[str]:
    seeds = effort["search_seeds"]
    said = ["Sizes of single tasks are of one training run of each model: two runs of one recipe may differ as much."]
    if seeds < 3:
        said.append(
            f"Circuits were searched with {seeds} seed(s): sizes carry no useful interval, and another seed finds other nodes."
        )
    return [
        *said,
        "The sparse model has sparse activations (AbsTopK) as well as sparse weights, the dense ones "
        "neither: the two are not separated.",
        "In the sizes of single tasks SAE latents are counted without the cost of their dictionary, and their edges not at all.",
        "A circuit is one of many that meet the target, found by one learner under mean ablation; smaller "
        "ones may exist in any column.",
    ]
