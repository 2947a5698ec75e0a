"""Binding: does a model keep variables apart, represent which value is whose, and compose names and values anew?

After Greff, van Steenkiste and Schmidhuber (arXiv:2012.05208), who name the three and measure none; measured on variable-binding
programs (`programs`).

| score | definition |
|---|---|
| `segregation` | accuracy minus the best that a rule of position gives (first, last, most frequent value) |
| `representation` | swaps of binding vectors (`swaps`): flips and restoration, less the flips of random vectors |
| `composition_gap` | accuracy on pairs of a name and a value that training held out, minus accuracy on other pairs |
| `renaming` | share of answers that stay when all names are exchanged for others |

The gate: below an accuracy of 0.9 none of them is measurable.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.binding.drawing import ProgramDraw, held_out
from sparse_lens.comparisons.binding.programs import ANSWERS, KINDS, BindingProgram, usable_names
from sparse_lens.comparisons.binding.prompts import BindingPrompts, all_answer_logits, encode_programs, share_chosen
from sparse_lens.comparisons.binding.representation import representation_names, representation_results
from sparse_lens.comparisons.side_by_side import Heldout, facts_beside, with_differences
from sparse_lens.results import Result, bootstrap_mean, not_measurable

N_PAIRS = 240
"""Programs measured; each has a twin under other names, and one with its first two names exchanged."""

FORMS = tuple((kind, n_vars, distractors) for kind in KINDS for n_vars in (2, 3) for distractors in (0, 2))
"""Kind, variables and distractor lines of each form in the table."""

_ESTIMATION_SEED = 1_000_003
_ROTATED = "any rotation of the residual stream gives the same numbers: whole vectors are exchanged, no measure reads a channel"


def binding_report(
    bridge: Any,
    *,
    n_vars: int = 2,
    kind: str = "value",
    distractors: int = 0,
    n_pairs: int = N_PAIRS,
    seed: int = 0,
    gate: float = ACCURACY_GATE,
) -> dict[str, Result]:
    """Every measure on `n_pairs` programs of one form, as many again for held-out pairs and for estimating the binding vectors.

    `accuracy` is among the program's own values, `heuristic_accuracy` the best rule's; with them the scores above, their parts
    (`representation_results`) and `held_out_accuracy`. Pairs are held out of the training of `training` only: for a model from
    elsewhere the gap says nothing. Raises `DataError` for a tokenizer in which too few names, or not all answers, are single
    tokens, and for logits that are not finite; `ConfigError` or `UnknownNameError` for a form that there is not.
    """
    sample = _Sample.drawn(bridge, ProgramDraw(usable_names(bridge.tokenizer, kind), kind, n_vars, distractors), n_pairs, seed)
    heuristic, chance = _best_heuristic(sample.prompts), 1 / min(n_vars, len(ANSWERS[kind]))
    accuracy = bootstrap_mean(sample.right, null=chance)
    found = {"accuracy": accuracy, "heuristic_accuracy": bootstrap_mean(heuristic)}
    if sample.right.mean() < gate:
        reason = f"accuracy {sample.right.mean():.2f} on binding programs is below the gate of {gate:g}"
        return found | dict.fromkeys(_gated_names(bridge), not_measurable(reason, n=n_pairs))
    found["segregation"] = bootstrap_mean(sample.right - heuristic, null=0.0)
    found |= _composition(bridge, sample)
    found["renaming"] = _renaming(bridge, sample, chance)
    return found | _representation(bridge, sample)


def binding_columns(
    columns: Mapping[str, Any],
    *,
    forms: Sequence[tuple[str, int, int]] = FORMS,
    n_pairs: int = N_PAIRS,
    seed: int = 0,
    gate: float = ACCURACY_GATE,
) -> dict[str, dict[str, dict[str, Result]]]:
    """`binding_report` of bridges by name, for each form (kind, variables, distractor lines), as `value_2_0`, with the controls.

    `random_weights_…`: the same of the model with every tensor's nonzero weights shuffled; it fails the gate, which leaves its
    accuracy. `rotated_…` is not measurable, and says why; no mask is learned, so there is none to draw at random.
    """
    scores = ("segregation", "composition_gap", "renaming", "representation")
    found: dict[str, dict[str, dict[str, Result]]] = {name: {} for name in columns}
    for name, bridge in columns.items():
        for kind, n_vars, distractors in forms:
            form: Any = {"kind": kind, "n_vars": n_vars, "distractors": distractors, "n_pairs": n_pairs, "seed": seed, "gate": gate}
            report = binding_report(bridge, **form)
            with random_weights(bridge, seed=seed):
                control = binding_report(bridge, **form)
            controls = {f"random_weights_{score}": control[score] for score in ("accuracy", *scores)}
            controls |= {f"rotated_{score}": not_measurable(_ROTATED) for score in scores}
            found[name][f"{kind}_{n_vars}_{distractors}"] = report | controls
    return found


def binding_table(
    columns: Mapping[str, Any], *, heldout: Heldout | None = None, **options: Any
) -> dict[str, dict[str, dict[str, Result]]]:
    """`binding_columns`, whose `options` it takes, with each model's facts under `model` and a row `A - B` of differences.

    The facts are its loss on `heldout` windows of token ids, its parameters and nonzeros.
    """
    found = binding_columns(columns, **options)
    return with_differences({name: {"model": facts_beside(columns[name], heldout)} | forms for name, forms in found.items()})


@dataclass(frozen=True, eq=False)
class _Sample:
    """Programs of one draw, their prompts, and which of them the model answers rightly."""

    draw: ProgramDraw
    programs: list[BindingProgram]
    prompts: BindingPrompts
    right: Float[np.ndarray, " row"]
    seed: int

    @classmethod
    def drawn(cls, bridge: Any, draw: ProgramDraw, n: int, seed: int) -> _Sample:
        programs = draw.programs(n, seed=seed)
        prompts = encode_programs(bridge.tokenizer, programs)
        return cls(draw, programs, prompts, share_chosen(all_answer_logits(bridge, prompts), prompts, prompts.query).numpy(), seed)


def _gated_names(bridge: Any) -> list[str]:
    scores = ["segregation", "held_out_accuracy", "composition_gap", "renaming"]
    return scores + representation_names(int(bridge.cfg.n_layers))


def _best_heuristic(prompts: BindingPrompts) -> Float[np.ndarray, " row"]:
    """Which rows the best of three rules answers rightly that do not read the question."""
    answers = prompts.answers
    counts = (answers[:, :, None] == answers[:, None]).sum(2)
    picks = (answers[:, 0], answers[:, -1], answers.gather(1, counts.argmax(1)[:, None])[:, 0])
    return max(((pick == prompts.right).double().numpy() for pick in picks), key=np.mean)


def _composition(bridge: Any, sample: _Sample) -> dict[str, Result]:
    draw, n, seen = replace(sample.draw, pairs="held_out"), len(sample.programs), sample.right
    right = _Sample.drawn(bridge, draw, n, sample.seed).right
    picks = np.random.default_rng(sample.seed).integers(0, n, (2, 1000, n))
    lo, hi = np.percentile(right[picks[0]].mean(1) - seen[picks[1]].mean(1), [2.5, 97.5])
    gap = Result(float(right.mean() - seen.mean()), float(lo), float(hi), 0.0, n)
    return {"held_out_accuracy": bootstrap_mean(right), "composition_gap": gap}


def _renaming(bridge: Any, sample: _Sample, chance: float) -> Result:
    """The answers' agreement with those to the same programs under other names, whose pairs training may hold, too."""
    rng = random.Random(f"renaming:{sample.seed}")
    renamed = encode_programs(bridge.tokenizer, [_renamed(program, sample.draw.names, rng) for program in sample.programs])
    before, after = (
        part.answers.gather(1, all_answer_logits(bridge, part).argmax(1, keepdim=True)) for part in (sample.prompts, renamed)
    )
    return bootstrap_mean((before == after)[:, 0].double().numpy(), null=chance)


def _renamed(program: BindingProgram, names: tuple[str, ...], rng: random.Random) -> BindingProgram:
    free = [name for name in names if name not in {*program.names, *(name for _, name, _ in program.distractors)}]
    while True:
        drawn = rng.sample(free, len(program.names))
        if not any(held_out(*pair) for pair in zip(drawn, program.values, strict=True)):
            return program.renamed(drawn)


def _representation(bridge: Any, sample: _Sample) -> dict[str, Result]:
    estimation = sample.draw.programs(len(sample.programs), seed=sample.seed + _ESTIMATION_SEED)
    exchanged = [_names_exchanged(program) for program in sample.programs]
    encoded = (encode_programs(bridge.tokenizer, part) for part in (estimation, exchanged))
    return representation_results(bridge, next(encoded), sample.prompts, next(encoded), seed=sample.seed)


def _names_exchanged(program: BindingProgram) -> BindingProgram:
    first, second, *rest = program.names
    return program.renamed((second, first, *rest))
