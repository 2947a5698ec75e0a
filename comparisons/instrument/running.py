"""`claims`: every claim re-tested on a pair and its further training seeds, from cells that are kept.

sparse-lens claims --out claims
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.comparisons.instrument.claim import ARM_CLAIMS, CLAIMS, Claim, arm_claim
from sparse_lens.comparisons.instrument.kept_rows import read_kept, with_kept
from sparse_lens.comparisons.instrument.literature import Literature, read_literature
from sparse_lens.comparisons.instrument.measuring import ROLES
from sparse_lens.comparisons.instrument.rows import ClaimRow, Seed, claim_rows, loss_gaps
from sparse_lens.comparisons.jobs import Job, run_jobs
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.data.labels.labelling import LABELS_FORMAT
from sparse_lens.errors import ConfigError, UnknownNameError
from sparse_lens.results import Result, from_plain, to_frame, to_plain

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
FORMAT = "claims 1"
"""What every cell of the claims depends on beside its models: raised when what cells compute changes."""

_CHANGED = {
    "robustness": "scores of tasks and masks",
    "circuits": "those that reach the target, by task",
    "concepts": LABELS_FORMAT,
}
"""What a measure gives beside what it gave at first: its older cells are computed anew."""

_CELL = "sparse_lens.comparisons.instrument.measuring:measured"


@dataclass(frozen=True)
class Report:
    """The rows, what they were measured on (`scope`), everything measured by training seed, and what could not be grounded."""

    rows: tuple[ClaimRow, ...]
    scope: dict[str, Any]
    seeds: tuple[Seed, ...]
    literature: Literature
    command: str = ""

    def to_plain(self) -> dict[str, Any]:
        """The content of `claims.json`."""
        content = {
            "schema": SCHEMA,
            "command": self.command,
            "scope": self.scope,
            "claims": [row.to_plain() for row in self.rows],
            "measured": [dict(seed) for seed in self.seeds],
            "covered_until": self.literature.covered_until,
            "grounds": self.literature.grounds,
            "not_grounded": list(self.literature.not_grounded),
        }
        return to_plain(content)

    def to_frame(self) -> pd.DataFrame:
        """Everything measured as a tidy table: one row a number, with its training seed, measure, side and metric."""
        return to_frame({str(number): dict(seed) for number, seed in enumerate(self.seeds)}, ("seed", "measure", "side"))


def claims(
    pair: ModelPair | str | Sequence[ModelPair | str] = "python",
    *,
    only: Sequence[str] | None = None,
    arms: Mapping[str, Sequence[str | Path]] | None = None,
    kept: Sequence[str | Path] = (),
    smoke: bool = False,
    cache: str | Path | None = None,
    literature: str | Path | None = None,
    workers: int = 2,
    command: str = "sparse_lens.claims(...)",
    progress: bool = True,
) -> Report:
    """Re-test the claims (`only` these ids: default all) on a pair and its further training seeds, or on the pairs given.

    Each of the `arms` is a kind of model by name (a dense one pruned afterwards, say) with one folder for each training seed, in
    their order; it takes the dense model's place in the claim T1b. `kept` are files with rows of other runs, on models trained for
    a claim: where this run cannot measure one, they are put in. `smoke` reads the first pair alone, with as little as runs
    everything: nothing can be learned from it. Cells are kept in the folder `cache`, and a run that was stopped goes on. Raises
    `UnknownNameError` for another id, and what `ModelPair.open`, `read_literature`, `read_kept` and `run_jobs` raise.
    """
    chosen = choose_claims(only)
    known = read_literature(literature)
    other_rows = [row for path in kept for row in read_kept(path)]
    pairs = _pairs(pair)[: 1 if smoke else None]
    groups = {"": (pairs, chosen)}
    for arm, folders in (arms or {}).items() if any(claim.id == "T1b" for claim in chosen) else ():
        groups[arm] = _with_arm(pairs, arm, folders), [claim for claim in CLAIMS if claim.id in ARM_CLAIMS]
    jobs = [job for opened, asked in groups.values() for one in opened for job in _jobs(one, asked, smoke=smoke)]
    found = dict(zip([job.fingerprint for job in jobs], run_jobs(jobs, cache, workers=workers, progress=progress), strict=True))
    measured = {arm: tuple(_seed(one, asked, found, smoke=smoke) for one in opened) for arm, (opened, asked) in groups.items()}
    rows = with_kept(claim_rows(measured[""], known, chosen), other_rows)
    for arm in list(groups)[1:]:
        told = _nonzeros(measured[arm])
        of_arm = claim_rows(measured[arm], known, [arm_claim(claim, arm) for claim in groups[arm][1]])
        rows += [replace(row, found=(*row.found, told)) for row in of_arm]
    return Report(tuple(rows), _scope(pairs, measured[""], smoke=smoke), measured[""], known, command)


def choose_claims(only: Sequence[str] | None) -> list[Claim]:
    """The claims of these ids, in the order of the table; raises `UnknownNameError`."""
    known = {claim.id: claim for claim in CLAIMS}
    for name in only or ():
        if name not in known:
            raise UnknownNameError("claim", name, known)
    return [claim for claim in CLAIMS if only is None or claim.id in only]


def _pairs(pair: ModelPair | str | Sequence[ModelPair | str]) -> list[ModelPair]:
    given = [pair] if isinstance(pair, (str, ModelPair)) else list(pair)
    if not given:
        raise ConfigError("claims are re-tested on at least one pair, got none")
    opened = [ModelPair.open(each) if isinstance(each, str) else each for each in given]
    return opened[0].training_seeds() if len(opened) == 1 else opened


def pairs_of_models(
    pair: ModelPair | str | Path = "python", *, sparse: Sequence[str | Path] = (), dense_matched: Sequence[str | Path] = ()
) -> list[ModelPair]:
    """A pair with other models in its place, one folder of each for every training seed; windows and tasks stay the pair's.

    Where a side is not given, it is that of the pair's own training seeds. Raises `ConfigError` for unequal numbers, or for more
    models than that has seeds, and as `ModelPair.with_models`.
    """
    seeds = (pair if isinstance(pair, ModelPair) else ModelPair.open(pair)).training_seeds()
    given = {"sparse": list(sparse), "dense_matched": list(dense_matched)}
    counts = {role: len(folders) for role, folders in given.items() if folders}
    if len(set(counts.values())) > 1:
        told = " and ".join(f"{n} for {role}" for role, n in counts.items())
        raise ConfigError(f"one folder of each side for each training seed, got {told}")
    n = max(counts.values(), default=len(seeds))
    if len(counts) == 1 and n > len(seeds):
        raise ConfigError(
            f"{n} models for {next(iter(counts))}, but the pair has {len(seeds)} training seeds: give the other side, too"
        )
    base = seeds[0] if len(counts) == 2 else None
    return [
        (base or seeds[number]).with_models(**{role: folders[number] for role, folders in given.items() if folders})
        for number in range(n)
    ]


def _with_arm(pairs: Sequence[ModelPair], arm: str, folders: Sequence[str | Path]) -> list[ModelPair]:
    """The pairs of the first training seeds with an arm's models in the dense one's place; one folder for each seed."""
    if not arm or not folders or len(folders) > len(pairs):
        raise ConfigError(f"arm {arm!r} has {len(folders)} folders; give one to {len(pairs)}, one for each training seed in order")
    return [pair.with_models(dense_matched=folder) for pair, folder in zip(pairs, folders, strict=False)]


def needed_measures(chosen: Sequence[Claim]) -> list[str]:
    """The measures that the chosen claims rest on, the losses first."""
    derived = {"T2": ("superposition", "circuits"), "ALWAYS": tuple(claim.measure for claim in CLAIMS if claim.measure)}
    names = [name for claim in chosen for name in (derived.get(claim.id, (claim.measure,) if claim.measure else ()))]
    return ["losses", *dict.fromkeys(names)]


def _jobs(pair: ModelPair, chosen: Sequence[Claim], *, smoke: bool) -> list[Job]:
    depends = [FORMAT, *(part for own in ROLES.values() for part in fingerprints(pair, ColumnSpec(own, own)))]
    return [
        Job(
            f"{measure} of {pair.model_name('sparse')}",
            _CELL,
            {"pair": pair.address, "measure": measure, "smoke": smoke},
            [*depends, *((_CHANGED[measure],) if measure in _CHANGED else ())],
        )
        for measure in needed_measures(chosen)
    ]


def _seed(pair: ModelPair, chosen: Sequence[Claim], found: dict[str, Any], *, smoke: bool) -> Seed:
    return {str(job.arguments["measure"]): from_plain(found[job.fingerprint]) for job in _jobs(pair, chosen, smoke=smoke)}


def _nonzeros(seeds: Sequence[Seed]) -> str:
    """What an arm is compared at: nonzeros as the losses are, by training seed."""
    sides = (", ".join(f"{seed['losses'][role]['matrix_nonzeros'].value or 0:,.0f}" for seed in seeds) for role in ROLES)
    return "nonzero weights in matrices: {} in the sparse models, {} in the arm's".format(*sides)


def _scope(pairs: Sequence[ModelPair], seeds: Sequence[Seed], *, smoke: bool) -> dict[str, Any]:
    def of(role: str, metric: str) -> list[Result]:
        return [seed["losses"][role][metric] for seed in seeds]

    nonzeros = max(result.value or 0 for result in of("sparse", "matrix_nonzeros"))
    return {
        "pairs": [{role: pair.model_name(own) for role, own in ROLES.items()} for pair in pairs],
        "training_seeds": len(pairs),
        "loss_gaps": loss_gaps(seeds),
        **{f"{role}_{metric}": of(role, metric) for role in ROLES for metric in ("loss", "nonzeros", "matrix_nonzeros")},
        "largest": f"tested up to {nonzeros:,.0f} nonzero weights in matrices; no result on a billion weights could be grounded",
        "smoke": smoke,
    }
