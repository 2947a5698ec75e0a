"""Is a binding a vector that can be exchanged? Results of the swaps and exchanges of `swaps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.comparisons.binding.prompts import BindingPrompts, all_answer_logits, margins, share_chosen
from sparse_lens.comparisons.binding.swaps import PARTS, binding_vectors, exchange_logits, stream_hooks, swap_logits
from sparse_lens.results import Result, bootstrap_mean, not_measurable

Runs = Mapping[str, Float[Tensor, "row var"]]
"""Logits of the answers, by what was intervened on."""

_FLIPS = {"attribute": "flip_attribute", "entity": "flip_entity", "both": "restore"}
_SWAPS = (*_FLIPS.values(), "random_flip", "representation", *(f"{part}_shift_logits" for part in PARTS), "leakage_logits")
_EXCHANGES = ("exchange_flip_attribute", "exchange_flip_entity")


def representation_names(n_layers: int) -> list[str]:
    """What `representation_results` measures in a model of so many layers."""
    by_layer = [f"layer{layer}_{name}" for layer in range(n_layers) for name in (*_SWAPS, *(_EXCHANGES if layer else ()))]
    return [*_SWAPS, *by_layer]


def representation_results(
    bridge: Any, estimation: BindingPrompts, test: BindingPrompts, exchanged: BindingPrompts, *, seed: int
) -> dict[str, Result]:
    """Swaps at all layers together and, as `layer0_…`, at each alone; exchanges at each layer after the first.

    `flip_attribute`, `flip_entity`: share of answers that become the other variable's; `restore`: share that is the own one when
    both are swapped; `random_flip`: what random vectors of equal length flip. `representation` is the mean of the first three less
    `random_flip`; 1/3 if nothing has any effect, as its null, the same of random vectors, shows. `…_shift_logits`: mean change of
    the own answer's margin over the others; `leakage_logits`: mean size of that change for a third variable, which nothing
    touched (needs three). `exchange_flip_…`: the stream comes from the program with the two names exchanged; the first layer is
    left out, where this is another program and no intervention. The null of each is what random vectors of equal length do.
    """
    hooks, base = stream_hooks(bridge), all_answer_logits(bridge, test)
    found = _swapped(bridge, estimation, test, hooks, base, "", seed)
    for layer, hook in enumerate(hooks):
        found |= _swapped(bridge, estimation, test, [hook], base, f"layer{layer}_", seed)
        if layer:
            runs = exchange_logits(bridge, test, exchanged, hook, seed=seed)
            flips, random = _flips(runs["own"], test), _flips(runs["random"], test)
            found |= {
                f"layer{layer}_exchange_{_FLIPS[part]}": bootstrap_mean(flips[part], null=float(random[part].mean()))
                for part in flips
            }
    return found


def _swapped(
    bridge: Any, estimation: BindingPrompts, test: BindingPrompts, hooks: Sequence[str], base: Tensor, prefix: str, seed: int
) -> dict[str, Result]:
    vectors = binding_vectors(bridge, estimation, hooks)
    runs = swap_logits(bridge, test, hooks, {"own": vectors, "random": vectors.random(seed)})
    flips, random = _flips(runs["own"], test), _flips(runs["random"], test)
    random_flip = np.mean([random[part] for part in PARTS[:2]], axis=0)
    found = {name: bootstrap_mean(flips[part], null=float(random[part].mean())) for part, name in _FLIPS.items()}
    found["random_flip"] = bootstrap_mean(random_flip)
    score = np.mean([flips[part] for part in PARTS], axis=0) - random_flip
    null = float(np.mean([random[part] for part in PARTS]) - random_flip.mean())
    found["representation"] = bootstrap_mean(score, null=null)
    found |= _shifts(runs["own"], runs["random"], base, test)
    return {f"{prefix}{name}": result for name, result in found.items()}


def _shifts(own: Runs, random: Runs, base: Tensor, test: BindingPrompts) -> dict[str, Result]:
    """Changes of margins, in logits: of the variables that were intervened on, and of a third one."""
    own_shifts, random_shifts = ({part: _shift(base, run, test) for part, run in runs.items()} for runs in (own, random))
    rows = _two_differ(test)
    found = {
        f"{part}_shift_logits": bootstrap_mean(shift[rows].numpy(), null=float(random_shifts[part][rows].mean()))
        for part, shift in own_shifts.items()
    }
    aside = test.query == 2
    if not bool(aside.any()):
        leakage = not_measurable("leakage needs a third variable, which the intervention does not touch", n=len(test))
    else:
        sizes = [sum(shifts[part][aside].abs() for part in PARTS[:2]) / 2 for shifts in (own_shifts, random_shifts)]
        leakage = bootstrap_mean(np.asarray(sizes[0]), null=float(np.mean(np.asarray(sizes[1]))))
    return found | {"leakage_logits": leakage}


def _two_differ(prompts: BindingPrompts) -> Bool[Tensor, " row"]:
    """Rows that ask for one of the first two variables, and whose answers differ."""
    return (prompts.query < 2) & (prompts.answers[:, 0] != prompts.answers[:, 1])


def _flips(runs: Runs, prompts: BindingPrompts) -> dict[str, Float[np.ndarray, " kept"]]:
    """For each row 1 if the answer is what theory says: the other's for one intervention, its own for both."""
    rows, other = _two_differ(prompts), (1 - prompts.query).clamp(min=0)

    def expected(part: str) -> Int[Tensor, " row"]:
        return prompts.query if part == "both" else other

    return {part: share_chosen(run, prompts, expected(part))[rows].numpy() for part, run in runs.items()}


def _shift(base: Tensor, run: Tensor, prompts: BindingPrompts) -> Float[Tensor, " row"]:
    return margins(run, prompts, prompts.query) - margins(base, prompts, prompts.query)
