"""From what was measured on each training seed to one row a claim: values, difference, controls, verdict, scope, literature."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from sparse_lens.comparisons.circuit_sizes import over_seeds
from sparse_lens.comparisons.compositionality import SUBROUTINES
from sparse_lens.comparisons.instrument.circuit_controls import circuit_controls
from sparse_lens.comparisons.instrument.claim import CLAIMS, DISENTANGLING, Claim
from sparse_lens.comparisons.instrument.kept_weights import with_kept_weights
from sparse_lens.comparisons.instrument.literature import Item, Literature
from sparse_lens.comparisons.instrument.sizes import NOTHING, ON_TASK, Seed
from sparse_lens.comparisons.instrument.verdicts import (
    FEWEST_SEEDS,
    Judgement,
    Verdict,
    difference_over_seeds,
    incomplete,
    judge,
    undecidable,
)
from sparse_lens.results import Result, exact, less


@dataclass(frozen=True)
class ClaimRow:
    """One claim's row. `controls` has for each control the difference (sparse less dense) in it; `found` what decided otherwise.

    `scope` says on which models it was measured, where these are not the report's: their weights, training seeds and tokens.
    """

    claim: Claim
    judgement: Judgement
    sparse: Result = NOTHING
    dense: Result = NOTHING
    controls: Mapping[str, Result] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    literature: tuple[Item, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What the rule says."""
        return self.judgement.verdict

    def to_plain(self) -> dict[str, Any]:
        """The row as nested plain values and Results."""
        facts = {
            name: getattr(self.claim, name)
            for name in ("id", "text", "kind", "source", "measure", "metric", "larger", "against", "unit")
        }
        return facts | {
            "sparse": self.sparse,
            "dense": self.dense,
            "difference": self.judgement.difference,
            "controls": dict(self.controls),
            "verdict": self.verdict,
            "reasons": list(self.judgement.reasons),
            "found": list(self.found),
            "scope": list(self.scope),
            "literature": [vars(item) for item in self.literature],
        }


def claim_rows(seeds: Sequence[Seed], literature: Literature, claims: Sequence[Claim] = CLAIMS) -> list[ClaimRow]:
    """One row for each claim, in their order; a claim of the list that was not measured is not measurable, and says why."""
    rows, seeds = [], [with_kept_weights(seed) for seed in seeds]
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
    sides = {role: [seed[claim.measure][role].get(claim.metric, NOTHING) for seed in seeds_with] for role in ("sparse", "dense")}
    sparse, dense = ([result.value for result in side] for side in sides.values())
    if claim.against is not None:
        dense = [claim.against] * len(seeds_with)
    controls = {name: _control(claim, name, seeds_with) for name in claim.controls}
    judgement = judge(sparse, dense, loss_gaps=loss_gaps(seeds_with), larger=claim.larger, controls=controls)
    reasons = {result.reason for side in sides.values() for result in side if result.reason}
    if judgement.verdict == "not measurable" and reasons:
        told = (*judgement.reasons, *sorted(reasons), *([claim.elsewhere] if claim.elsewhere else []))
        judgement = Judgement("not measurable", judgement.difference, told)
    judgement = _own_side(claim, _on_alike_seeds(claim, judgement, seeds_with), sparse)
    shown = {name: difference_over_seeds([value for value in values if value is not None]) for name, values in controls.items()}
    beside = tuple(_beside(claim.measure, name, seeds_with) for name in _names(claim, seeds_with))
    return ClaimRow(claim, judgement, _over_seeds(sides["sparse"]), _over_seeds(sides["dense"]), shown, beside)


def _names(claim: Claim, seeds: Sequence[Seed]) -> list[str]:
    """The metrics beside a claim by their full names, those that no seed has among them."""
    measured = sorted({name for seed in seeds for of in seed[claim.measure].values() for name in of})
    return [
        name
        for asked in (*claim.forms, *claim.beside)
        for name in ([one for one in measured if fnmatchcase(one, asked)] or [asked])
    ]


def _beside(measure: str, name: str, seeds: Sequence[Seed]) -> str:
    """A metric in words: in both models, with what chance gives where that is not 0, and their difference."""
    sides = [[seed[measure][role].get(name, NOTHING) for seed in seeds] for role in ("sparse", "dense")]
    both = (_over_seeds(side) for side in sides)
    sparse, dense = (f"{found} (by chance {found.null:.3g})" if found.null else str(found) for found in both)
    told = f"{name}: {sparse} in the sparse model, {dense} in the dense one"
    pairs = [(one.value, other.value) for one, other in zip(*sides, strict=True)]
    apart = [less(one, other) for one, other in pairs if one is not None and other is not None]
    return told + (f", difference {difference_over_seeds(apart)}" if len(apart) == len(seeds) else "")


def _on_alike_seeds(claim: Claim, judgement: Judgement, seeds: Sequence[Seed]) -> Judgement:
    """The judgement, unless what has to be the same on every seed is not: a share of four tasks is no share of five."""
    if not claim.alike:
        return judgement
    counts = [_number(seed, claim.measure, role, claim.alike, np.nan) for seed in seeds for role in ("sparse", "dense")]
    found = sorted({count for count in counts if np.isfinite(count)})
    if len(found) < 2:
        return judgement
    told = f"{claim.alike} differ between training seeds: {', '.join(f'{count:g}' for count in found)}"
    reasons = judgement.reasons if judgement.verdict == "not measurable" else ()
    return Judgement("not measurable", NOTHING, (*reasons, told))


def _own_side(claim: Claim, judgement: Judgement, sparse: Sequence[float | None]) -> Judgement:
    """The judgement, unless the claim says where the sparse model's own value lies, too, and it does not lie there."""
    if claim.beyond is None or judgement.verdict != "supports":
        return judgement
    own = difference_over_seeds([value - claim.beyond for value in sparse if value is not None])
    assert own.lo is not None and own.hi is not None
    if (own.lo > 0) if claim.larger == "sparse" else (own.hi < 0):
        return judgement
    other_side = own.hi < 0 if claim.larger == "sparse" else own.lo > 0
    verdict: Verdict = "contradicts" if other_side else "indistinguishable"
    return Judgement(verdict, judgement.difference, (f"the sparse model's own value is {own} from {claim.beyond:g}",))


def _control(claim: Claim, name: str, seeds: Sequence[Seed]) -> list[float | None]:
    """The control's difference, sparse less dense, for each seed."""
    found: list[float | None] = []
    for seed in seeds:
        sides = [seed[claim.measure][role].get(f"{name}_{claim.metric}", NOTHING).value for role in ("sparse", "dense")]
        found.append(None if sides[0] is None or sides[1] is None else less(sides[0], sides[1]))
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


def _smaller_circuits(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    """By the difference, if circuits mean something in both models of every pair (`circuit_controls`)."""
    row = _by_difference(claim, seeds)
    found, failed, missing = list(row.found), [], []
    for number, seed in enumerate(seeds):
        for role, of in seed.get(claim.measure, {}).items():
            controls = circuit_controls(of, f"in the {role} model of seed {number}")
            for told, kept in zip(controls, (found, failed, missing), strict=True):
                kept += told
    judgement = row.judgement
    if judgement.verdict in ("supports", "contradicts") and (missing or failed):
        verdict: Verdict = "not measurable" if missing else "indistinguishable"
        judgement = Judgement(verdict, judgement.difference, tuple(missing or failed))
    return replace(row, judgement=judgement, found=tuple(found))


def _coexistence(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    """Per training seed: superposition in the sparse model, and circuits smaller than the dense one's, of real labels alone.

    Superposition is more features than neurons, or at least as many per neuron as the dense model has. Pairs in which the two do
    not coexist do not say that they nowhere do: no run contradicts it.
    """
    pairs = [pair for seed in seeds if (pair := _superposed_and_small(seed)) is not None]
    if reasons := [*undecidable(loss_gaps(seeds)), *incomplete(len(seeds) - len(pairs), len(seeds))]:
        return ClaimRow(claim, Judgement("not measurable", NOTHING, tuple(reasons)))
    n = sum(both for both, _ in pairs)
    verdict: Verdict = "supports" if n == len(pairs) else "indistinguishable"
    reasons = [] if n == len(pairs) else [f"{n} of {len(pairs)} pairs show both, which does not say that none does"]
    share = exact(n, n=len(pairs), seeds=len(pairs))
    return ClaimRow(claim, Judgement(verdict, NOTHING, tuple(reasons)), sparse=share, found=tuple(told for _, told in pairs))


def _superposed_and_small(seed: Seed) -> tuple[bool, str] | None:
    """Whether the sparse model of a pair shows both, and its numbers in words; None without the numbers."""
    psi, nodes = (
        {role: _number(seed, measure, role, metric, np.nan) for role in ("sparse", "dense")}
        for measure, metric in (("superposition", "psi"), ("circuits", "log2_nodes"))
    )
    _, failed, missing = circuit_controls(seed.get("circuits", {}).get("sparse", {}), "in the sparse model")
    if missing or not np.isfinite([psi["sparse"], nodes["sparse"], nodes["dense"]]).all():
        return None
    superposed = psi["sparse"] > 1 or psi["sparse"] >= psi["dense"]
    small = nodes["sparse"] < nodes["dense"] and not failed
    told = (
        f"{psi['sparse']:.2f} features per neuron against {psi['dense']:.2f}, "
        f"{2 ** nodes['sparse']:,.0f} nodes against {2 ** nodes['dense']:,.0f}"
    )
    return superposed and small, "; ".join([told, *failed])


def _always(claim: Claim, seeds: Sequence[Seed]) -> ClaimRow:
    """One cell whose seed average is worse in the sparse model ends the claim; they are all printed, with their intervals.

    Whether a cell is told apart from 0 and from its controls does not matter to the claim, but to its reader: it is said.

    Cells are the measures and, where a measure is known by task or subroutine, each of these; those with a number in every
    training seed count. A cell in which both models are exactly alike ends nothing.
    """
    if reasons := undecidable(loss_gaps(seeds)):
        return ClaimRow(claim, Judgement("not measurable", NOTHING, tuple(reasons)))
    judged = 0
    worse = []
    for cell in _cells(seeds):
        row = _by_difference(cell, seeds)
        value, counted = row.judgement.difference.value, row.judgement.difference.seeds
        if value is None or counted < max(FEWEST_SEEDS, len(seeds)):
            continue
        judged += 1
        if value != 0 and (value > 0) != (cell.larger == "sparse"):
            told = f"{cell.id} ({cell.metric}): {row.sparse} in the sparse model, {row.dense} in the dense one"
            worse.append("; ".join([f"{told}, difference {row.judgement.difference}", *row.judgement.reasons]))
    if not judged:
        few = f"no measure has a number on both sides in {FEWEST_SEEDS} training seeds"
        return ClaimRow(claim, Judgement("not measurable", NOTHING, (few,)))
    verdict: Verdict = "contradicts" if worse else "indistinguishable"
    held = () if worse else ("no measure of this run ends the claim, which no run can prove",)
    return ClaimRow(
        claim, Judgement(verdict, NOTHING, held), sparse=exact(len(worse), n=judged, seeds=len(seeds)), found=tuple(worse)
    )


def _cells(seeds: Sequence[Seed]) -> list[Claim]:
    """The disentangling claims, and each of them again in its other forms, and on every task and subroutine that any model has
    a number for."""
    found = []
    for claim in CLAIMS:
        if claim.id in DISENTANGLING:
            measured = {name for seed in seeds for of in seed.get(claim.measure, {}).values() for name in of}
            parts = {name for name in measured if name.startswith(claim.metric + ON_TASK)}
            parts |= {f"{subroutine}_{claim.metric}" for subroutine in SUBROUTINES} & measured
            names = [*(form for form in claim.forms if form in measured), *sorted(parts)]
            found += [claim, *(_cell(claim, name, measured) for name in names)]
    return found


def _cell(claim: Claim, name: str, measured: Collection[str]) -> Claim:
    """The claim about another metric, with the controls that this one has."""
    return replace(claim, metric=name, controls=tuple(control for control in claim.controls if f"{control}_{name}" in measured))


_OTHERWISE: dict[str, Callable[[Claim, Sequence[Seed]], ClaimRow]] = {
    "T2": _coexistence,
    "T3b": _smaller_circuits,
    "T3b-SAE": _smaller_circuits,
    "ALWAYS": _always,
}
