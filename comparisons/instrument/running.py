"""`claims`: every claim re-tested on a pair and its further training seeds, from cells that are kept.

sparse-lens claims --out claims
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_lens.comparisons.column_specs import ColumnSpec, fingerprints
from sparse_lens.comparisons.instrument.claim import ARM_CLAIMS, CLAIMS, DISENTANGLING, Claim, arm_claim
from sparse_lens.comparisons.instrument.kept_rows import not_taken, read_kept, with_kept
from sparse_lens.comparisons.instrument.literature import Literature, read_literature
from sparse_lens.comparisons.instrument.measuring_jobs import LONGEST_FIRST, measuring_job
from sparse_lens.comparisons.instrument.rows import ClaimRow, claim_rows, loss_gaps
from sparse_lens.comparisons.instrument.sizes import ROLES, Seed
from sparse_lens.comparisons.jobs import Job, run_jobs
from sparse_lens.comparisons.pair import ModelPair
from sparse_lens.errors import CheckpointError, ConfigError, UnknownNameError
from sparse_lens.results import Result, from_plain, to_frame, to_plain

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """The rows, what they were measured on (`scope`), everything measured by training seed, and what could not be grounded.

    `arms` has by name what was measured of the sparse models beside each arm's.
    """

    rows: tuple[ClaimRow, ...]
    scope: dict[str, Any]
    seeds: tuple[Seed, ...]
    literature: Literature
    command: str = ""
    arms: Mapping[str, tuple[Seed, ...]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The content of `claims.json`."""
        content = {
            "schema": SCHEMA,
            "command": self.command,
            "scope": self.scope,
            "claims": [row.to_plain() for row in self.rows],
            "measured": [dict(seed) for seed in self.seeds],
            "arms": {arm: [dict(seed) for seed in seeds] for arm, seeds in self.arms.items()},
            "covered_until": self.literature.covered_until,
            "grounds": self.literature.grounds,
            "not_grounded": list(self.literature.not_grounded),
        }
        return to_plain(content)

    def to_frame(self) -> pd.DataFrame:
        """Everything measured as a tidy table: one row a number, with arm ("" for the pair), training seed, measure and side."""
        groups = {"": self.seeds, **self.arms}
        content = {arm: {str(number): dict(seed) for number, seed in enumerate(seeds)} for arm, seeds in groups.items()}
        return to_frame(content, ("arm", "seed", "measure", "side"))


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
    `UnknownNameError` for another id, `ConfigError` for a model in other tokens than its pair's windows (most measures read both
    models token by token), and what `ModelPair.open`, `read_literature`, `read_kept` and `run_jobs` raise.
    """
    chosen = choose_claims(only)
    if smoke and kept:
        raise ConfigError("a smoke run teaches nothing, so that rows of other runs are not put into it; leave out either")
    known = read_literature(literature)
    other_rows = [row for path in kept for row in read_kept(path)]
    pairs = _pairs(pair)[: 1 if smoke else None]
    if arms and not any(claim.id == "T1b" for claim in chosen):
        raise ConfigError(f"arms ({', '.join(arms)}) are for the claim T1b, which is none of those chosen: {', '.join(only or ())}")
    of_arm = [claim for claim in CLAIMS if claim.id in ARM_CLAIMS]
    groups = {arm: (_with_arm(pairs, arm, of[: 1 if smoke else None]), of_arm) for arm, of in (arms or {}).items()}
    groups = {"": (pairs, chosen)} | groups
    for opened, _ in groups.values():
        _check_tokens(opened)
        _check_apart(opened)
    tokens = {role: [_tokens(pair.model_folder(own)) for pair in pairs] for role, own in ROLES.items()}
    jobs = [job for opened, asked in groups.values() for one in opened for job in _jobs(one, asked, smoke=smoke)]
    jobs.sort(key=lambda job: LONGEST_FIRST.index(job.arguments["measure"]))
    found = dict(zip([job.fingerprint for job in jobs], run_jobs(jobs, cache, workers=workers, progress=progress), strict=True))
    measured = {arm: tuple(_seed(one, asked, found, smoke=smoke) for one in opened) for arm, (opened, asked) in groups.items()}
    of_arms = {arm: seeds for arm, seeds in measured.items() if arm}
    asked = [replace(claim, only_if=_BELOW) if of_arms and claim.id == "T1b" else claim for claim in chosen]
    rows = claim_rows(measured[""], known, asked)
    for arm, seeds in of_arms.items():
        told = _compared_at(seeds)
        own = claim_rows(seeds, known, [arm_claim(claim, arm) for claim in of_arm])
        rows += [replace(row, scope=told) for row in own]
    if unread := not_taken(rows, other_rows):
        warnings.warn(f"kept rows of {', '.join(unread)} are left out: models of this run stand for these claims", stacklevel=2)
    scope = _scope(pairs, measured[""], tokens, smoke=smoke)
    return Report(tuple(with_kept(rows, other_rows)), scope, measured[""], known, command, of_arms)


def _check_tokens(pairs: Sequence[ModelPair]) -> None:
    for pair in pairs:
        for own in ROLES.values():
            if not pair.shares_tokens(own):
                raise ConfigError(
                    f"{pair.model_name(own)} has another tokenizer than the pair {pair.name!r}, whose windows all measures read "
                    "token by token; claims compare models of one tokenizer: give a pair.json with windows in theirs"
                )


def _check_apart(pairs: Sequence[ModelPair]) -> None:
    """Refuse one model as several training seeds: intervals over copies are of no width, and decide everything."""
    for role, own in ROLES.items():
        first: dict[str, ModelPair] = {}
        for pair in pairs:
            weights = fingerprints(pair, ColumnSpec(own, own))[0]
            other = first.setdefault(weights, pair)
            if other is not pair:
                raise ConfigError(
                    f"{pair.model_folder(own)} has the weights of {other.model_folder(own)}, given as the {role} model of another "
                    "training seed; an interval over seeds needs models that were trained apart"
                )


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
    disentangling = tuple(claim.measure for claim in CLAIMS if claim.id in DISENTANGLING)
    derived = {"T2": ("superposition", "circuits"), "ALWAYS": disentangling}
    names = [name for claim in chosen for name in (derived.get(claim.id, (claim.measure,) if claim.measure else ()))]
    return ["losses", *dict.fromkeys(names)]


def _jobs(pair: ModelPair, chosen: Sequence[Claim], *, smoke: bool) -> list[Job]:
    name = pair.model_name("sparse")
    return [measuring_job(pair, measure, f"{measure} of {name}", smoke=smoke) for measure in needed_measures(chosen)]


def _seed(pair: ModelPair, chosen: Sequence[Claim], found: dict[str, Any], *, smoke: bool) -> Seed:
    return {str(job.arguments["measure"]): from_plain(found[job.fingerprint]) for job in _jobs(pair, chosen, smoke=smoke)}


_BELOW = "each arm has its own rows, T1b-NAME-…, below"


def _compared_at(seeds: Sequence[Seed]) -> tuple[str, str]:
    """What an arm is compared at, by training seed: nonzeros of both sides, and the arm's loss less the sparse model's."""
    sides = (", ".join(f"{seed['losses'][role]['matrix_nonzeros'].value or 0:,.0f}" for seed in seeds) for role in ROLES)
    gaps = ", ".join(f"{gap:+.3f}" for gap in loss_gaps(seeds))
    return (
        "nonzero weights in matrices: {} in the sparse models, {} in the arm's".format(*sides),
        f"the arm's loss less the sparse model's: {gaps} nats a token",
    )


def _tokens(folder: Path) -> int | None:
    """How many tokens a model was trained on; None where no training of ours says so."""
    record = folder / "training.json"
    if not record.is_file():
        return None
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{record} does not say how many tokens the model was trained on ({error})") from error


def _scope(
    pairs: Sequence[ModelPair], seeds: Sequence[Seed], tokens: Mapping[str, Sequence[int | None]], *, smoke: bool
) -> dict[str, Any]:
    def of(role: str, metric: str) -> list[Result]:
        return [seed["losses"][role][metric] for seed in seeds]

    nonzeros = max(result.value or 0 for result in of("sparse", "matrix_nonzeros"))
    return {
        "pairs": [{role: pair.model_name(own) for role, own in ROLES.items()} for pair in pairs],
        "training_seeds": len(pairs),
        "loss_gaps": loss_gaps(seeds),
        **{f"{role}_{metric}": of(role, metric) for role in ROLES for metric in ("loss", "nonzeros", "matrix_nonzeros")},
        "tokens": tokens,
        "largest": f"tested up to {nonzeros:,.0f} nonzero weights in matrices; no result on a billion weights could be grounded",
        "smoke": smoke,
    }
