"""From what was measured on each training seed to one row a claim: values, difference, controls, verdict, scope, literature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.instrument.claim import CLAIMS, Claim
from sparse_lens.comparisons.instrument.literature import Item, Literature
from sparse_lens.comparisons.instrument.measuring import Measured
from sparse_lens.comparisons.instrument.verdicts import FEWEST_SEEDS, Judgement, Verdict, difference_over_seeds, judge
from sparse_lens.results import Result, exact, not_measurable

Seed = Mapping[str, Measured]
"""What was measured on the pair of one training seed, by measure."""

NOTHING = not_measurable("not measured in this run")


@dataclass(frozen=True)
class ClaimRow:
    """One claim's row. `controls` has for each control the difference (sparse less dense) in it; `found` what decided otherwise."""

    claim: Claim
    judgement: Judgement
    sparse: Result = NOTHING
    dense: Result = NOTHING
    controls: Mapping[str, Result] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    literature: tuple[Item, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What the rule says."""
        return self.judgement.verdict

    def to_plain(self) -> dict[str, Any]:
        """The row as nested plain values and Results."""
        facts = {
            name: getattr(self.claim, name) for name in ("id", "text", "kind", "source", "measure", "metric", "larger", "unit")
        }
        return facts | {
            "sparse": self.sparse,
            "dense": self.dense,
            "difference": self.judgement.difference,
            "controls": dict(self.controls),
            "verdict": self.verdict,
            "reasons": list(self.judgement.reasons),
            "found": list(self.found),
            "literature": [vars(item) for item in self.literature],
        }


def claim_rows(seeds: Sequence[Seed], literature: Literature, claims: Sequence[Claim] = CLAIMS) -> list[ClaimRow]:
    """One row for each claim, in their order; a claim of the list that was not measured is not measurable, and says why."""
    rows = []
    for claim in claims:
        row = _OTHERWISE[claim.id](claim, seeds) if claim.id in _OTHERWISE else _by_difference(claim, seeds)
        rows.append(ClaimRow(**{**vars(row), "literature": tuple(literature.about(claim.id))}))
    return rows


def loss_gaps(seeds: Sequence[Seed]) -> list[float]:
    """The dense model's loss less the sparse one's, nats per token, for each training seed."""
    return [_number(seed, "losses", "dense", "loss", np.nan) - _number(seed, "losses", "sparse", "loss", np.nan) for seed in seeds]


def _by_difference(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    if claim.only_if:
        return ClaimRow(claim, Judgement("not measurable", NOTHING, (claim.only_if,)))
    seeds_with = [seed for seed in seeds if claim.measure in seed]
    if not seeds_with:
        return ClaimRow(claim, Judgement("not measurable", NOTHING, ("not measured in this run",)))
    sides = {role: [seed[claim.measure][role][claim.metric] for seed in seeds_with] for role in ("sparse", "dense")}
    sparse, dense = ([result.value for result in side] for side in sides.values())
    if claim.against is not None:
        dense = [claim.against] * len(seeds_with)
    controls = {name: _control(claim, name, seeds_with) for name in claim.controls}
    judgement = judge(sparse, dense, loss_gaps=loss_gaps(seeds_with), larger=claim.larger, controls=controls)
    reasons = {result.reason for side in sides.values() for result in side if result.reason}
    if judgement.verdict == "not measurable" and reasons:
        judgement = Judgement("not measurable", judgement.difference, (*judgement.reasons, *sorted(reasons)))
    shown = {name: difference_over_seeds([value for value in values if value is not None]) for name, values in controls.items()}
    return ClaimRow(claim, judgement, _over_seeds(sides["sparse"]), _over_seeds(sides["dense"]), shown)


def _control(claim: Claim, name: str, seeds: Sequence[Seed]) -> list[float | None]:
    """The control's difference, sparse less dense, for each seed."""
    found: list[float | None] = []
    for seed in seeds:
        sides = [seed[claim.measure][role].get(f"{name}_{claim.metric}", NOTHING).value for role in ("sparse", "dense")]
        found.append(None if sides[0] is None or sides[1] is None else sides[0] - sides[1])
    return found


def _over_seeds(results: Sequence[Result]) -> Result:
    """Mean over training seeds with the least and the largest; the first reason where one is not measurable."""
    failed = next((result for result in results if result.value is None), None)
    if failed is not None:
        return failed
    values = [result.value for result in results if result.value is not None]
    nulls = [result.null for result in results if result.null is not None]
    return over_seeds(values, n=min(result.n for result in results), null=float(np.mean(nulls)) if nulls else None)


def _number(seed: Seed, measure: str, role: str, metric: str, otherwise: float) -> float:
    value = seed.get(measure, {}).get(role, {}).get(metric, NOTHING).value
    return otherwise if value is None else value


def _coexistence(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    """Per training seed: more features than neurons in the sparse model, and circuits smaller than the dense one's.

    One pair in which both hold would do; three that all do not say otherwise.
    """
    counted = [seed for seed in seeds if "superposition" in seed and "circuits" in seed]
    psi = [_number(seed, "superposition", "sparse", "psi", np.nan) for seed in counted]
    smaller = [_number(seed, "circuits", "sparse", "log2_nodes", np.nan) for seed in counted]
    larger = [_number(seed, "circuits", "dense", "log2_nodes", np.nan) for seed in counted]
    whole = [values for values in zip(psi, smaller, larger, strict=True) if np.isfinite(values).all()]
    if len(whole) < FEWEST_SEEDS:
        few = f"{len(whole)} training seed(s) have both numbers, {FEWEST_SEEDS} are needed"
        return ClaimRow(claim, Judgement("not measurable", NOTHING, (few,)))
    both = [p > 1 and own < other for p, own, other in whole]
    cells = tuple(f"{p:.2f} features per neuron, {2**own:,.0f} nodes against {2**other:,.0f}" for p, own, other in whole)
    verdict: Verdict = "supports" if all(both) else "indistinguishable" if any(both) else "contradicts"
    share = exact(sum(both), n=len(both), seeds=len(both))
    return ClaimRow(claim, Judgement(verdict, NOTHING), sparse=share, found=cells)


def _always(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    """One measure whose seed average is not better in the sparse model ends the claim; they are all printed."""
    if len(seeds) < FEWEST_SEEDS:
        few = f"{len(seeds)} training seed(s), {FEWEST_SEEDS} are needed for an average"
        return ClaimRow(claim, Judgement("not measurable", NOTHING, (few,)))
    judged = 0
    worse = []
    for other in CLAIMS:
        if other.id not in _DISENTANGLING:
            continue
        row = _by_difference(other, seeds)
        value = row.judgement.difference.value
        if value is None:
            continue
        judged += 1
        if value == 0 or (value > 0) != (other.larger == "sparse"):
            worse.append(f"{other.id} ({other.metric}): {row.sparse} in the sparse model, {row.dense} in the dense one")
    if not judged:
        return ClaimRow(claim, Judgement("not measurable", NOTHING, ("no measure has a number on both sides",)))
    verdict: Verdict = "contradicts" if worse else "indistinguishable"
    held = () if worse else ("no measure of this run ends the claim, which no run can prove",)
    return ClaimRow(
        claim, Judgement(verdict, NOTHING, held), sparse=exact(len(worse), n=judged, seeds=len(seeds)), found=tuple(worse)
    )


_DISENTANGLING = ("T1a-dose", "MONO", "CONCEPTS", "T3b", "COMP", "EASE", "FRACTURE", "ENTANGLE")
_OTHERWISE: dict[str, Callable[[Claim, Sequence[Seed]], ClaimRow]] = {"T2": _coexistence, "ALWAYS": _always}
