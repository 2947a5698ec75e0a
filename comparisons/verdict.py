"""What a run does not show, in plain words, derived from its own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.results import Result

LOSS_TOLERANCE = 0.05
_WEAK_NONSENSE = 3.0


def verdict(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences that name the differences this run cannot support; the most important ones first."""
    return [
        *_loss_match(metrics["models"]),
        *_ratios(metrics["summary"]),
        *_nonsense(metrics["tasks"]),
        *_tasks(metrics["tasks"]),
        *_heldout(metrics["tasks"]),
        *_always(metrics["effort"]),
    ]


def _loss_match(models: Mapping[str, Any]) -> list[str]:
    sparse, matched, dense = (models[role]["loss"].value for role in ("sparse", "dense_matched", "dense"))
    gap = matched - sparse
    said = [
        f"The dense model of the same shape is {sparse - dense:.2f} nats per token better than the sparse "
        f"one: its larger circuits may "
        "belong to a better model, so the fair baseline is the loss-matched one."
    ]
    if abs(gap) > LOSS_TOLERANCE:
        said.insert(
            0,
            f"The loss-matched dense model is off by {gap:+.3f} nats per token (allowed {LOSS_TOLERANCE}): it "
            f"is not a fair baseline.",
        )
    return said


def _ratios(summary: Mapping[str, Result]) -> list[str]:
    said = []
    for name, what in (("edge_ratio_geomean", "edges"), ("node_ratio_geomean", "nodes")):
        ratio = summary[name]
        if ratio.value is None:
            said.append(f"No ratio of {what} to the loss-matched dense model: {ratio.reason}.")
        elif ratio.lo is not None and ratio.hi is not None and ratio.lo <= 1 <= ratio.hi:
            said.append(
                f"The ratio of {what}, loss-matched dense to sparse, is {ratio} over {ratio.n} tasks: its interval "
                f"holds 1, so this run "
                f"does not show that either model needs fewer {what}."
            )
    return said


def _nonsense(tasks: Mapping[str, Any]) -> list[str]:
    """Columns in which the learner fits meaningless labels almost as cheaply as the task."""
    weak: dict[str, list[str]] = {}
    for task, entry in tasks.items():
        for name, column in entry["columns"].items():
            ratio = column["nonsense_ratio"].value
            if ratio is not None and ratio < _WEAK_NONSENSE:
                weak.setdefault(name, []).append(f"{task} ({ratio:.1f}x)")
    return [
        f"In {name}, labels that mean nothing are fitted with less than {_WEAK_NONSENSE:.0f} times the "
        f"nodes of {', '.join(of)}: there a small "
        "circuit is weak evidence that the model computes the task this way."
        for name, of in weak.items()
    ]


def _tasks(tasks: Mapping[str, Any]) -> list[str]:
    failed = {name: entry["failed_gate"] for name, entry in tasks.items() if entry["failed_gate"]}
    said = [f"Not measurable (accuracy gate failed): {name} in {', '.join(columns)}." for name, columns in failed.items()]
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
    said = ["Each model was trained once: what separates two models here may separate two runs of the same recipe."]
    if seeds < 3:
        said.append(
            f"Circuits were searched with {seeds} seed(s): sizes carry no useful interval, and another seed "
            f"finds other nodes."
        )
    return [
        *said,
        "The sparse model has sparse activations (AbsTopK) as well as sparse weights, the dense ones "
        "neither: the two are not separated.",
        "SAE latents are counted without the cost of their dictionary, and their edges are not counted at all.",
        "A circuit is one of many that meet the target, found by one learner under mean ablation; smaller "
        "ones may exist in any column.",
    ]
