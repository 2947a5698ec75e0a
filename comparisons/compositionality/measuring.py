"""Structural compositionality: does a model carry two subroutines in two subnetworks? (arXiv:2301.10884)

A mask over the frozen model's weights is learned for each subroutine. `sub` keeps the mask alone, `abl` removes it alone; both are
asked for their own subroutine and for the other one, on the same prompts. With accuracies floored at chance `ch`:

| measure | formula | of a compositional model |
|---|---|---|
| `d_sub` | `acc(sub, own) - acc(sub, other)` | above 0 |
| `d_abl` | `acc(abl, own) - acc(abl, other)` | below 0 |
| `score` | `(d_sub - d_abl) / (2 (1 - ch))` | 1 at best |

**`d_abl` is the evidence, `d_sub` alone proves nothing**: a mask can make a circuit out of random weights, which is why the same
cells of the model with shuffled weights stand beside the real ones. And `d_abl` is to be read against its null: where one
subroutine is the more fragile, ablating random weights gives a difference, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.compositionality.cells import CHANCE, REAL, Cell, Compositionality
from sparse_lens.comparisons.compositionality.rotated_twin import rotated_twin, rotation_obstacle
from sparse_lens.comparisons.compositionality.scoring import MaskStudy, accuracies
from sparse_lens.comparisons.compositionality.shared_prompts import SharedPrompts, sample_shared
from sparse_lens.comparisons.compositionality.weight_masks import SITES, MaskConfig, Masks, maskable
from sparse_lens.comparisons.side_by_side import Heldout, side_by_side
from sparse_lens.errors import ConfigError
from sparse_lens.results import Result

Control = Callable[[Any], AbstractContextManager[Any]]
"""Puts other weights into a model for as long as the context lasts."""


def structural_compositionality(
    bridge: Any,
    task_a: str = "quote",
    task_b: str = "bracket",
    *,
    config: MaskConfig | None = None,
    sites: Sequence[str] = SITES,
    seeds: Sequence[int] = (0, 1, 2),
    n_search: int = 512,
    n_heldout: int = 256,
    prompt_seed: int = 0,
    progress: bool = True,
) -> Compositionality:
    """Compositionality of a bridge on two of the built-in `SUBROUTINES`, with all controls; `.results` has the numbers.

    `random_weights`: every tensor's nonzero weights shuffled; `rotated`: the same function in a rotated basis, where the model has
    such a twin. Their masks are learned for the first seed alone. Nothing is measurable where the model's accuracy on either
    subroutine is below the gate. Raises as `measure_masks` and `sample_shared`.
    """
    names = (task_a, task_b)
    search = sample_shared(bridge.tokenizer, names, n_search, seed=prompt_seed, split="search")
    heldout = sample_shared(bridge.tokenizer, names, n_heldout, seed=prompt_seed, split="heldout")
    controls: dict[str, Control] = {"random_weights": random_weights}
    missing = {}
    if (obstacle := rotation_obstacle(bridge)) is None:
        controls["rotated"] = rotated_twin
    else:
        missing["rotated"] = obstacle
    options: Any = {"sites": sites, "seeds": seeds, "controls": controls, "missing": missing, "progress": progress}
    return measure_masks(bridge, search, heldout, config, **options)


def compositionality_columns(
    columns: Mapping[str, Any], task_a: str = "quote", task_b: str = "bracket", **options: Any
) -> dict[str, dict[str, Result]]:
    """`structural_compositionality` of several bridges by name, with the same prompts, effort and controls for each.

    A column that does not do both subroutines is not measurable, the others are. `options` are those of the measure.
    """
    return {name: structural_compositionality(bridge, task_a, task_b, **options).results for name, bridge in columns.items()}


def compositionality_table(
    columns: Mapping[str, Any], task_a: str = "quote", task_b: str = "bracket", *, heldout: Heldout | None = None, **options: Any
) -> dict[str, dict[str, Result]]:
    """`compositionality_columns`, with each model's loss on `heldout` windows of token ids, its parameters and nonzeros.

    A row `A - B` is the first column less each other one.
    """
    return side_by_side(compositionality_columns(columns, task_a, task_b, **options), columns, heldout)


def measure_masks(
    model: nn.Module,
    search: SharedPrompts,
    heldout: SharedPrompts,
    config: MaskConfig | None = None,
    *,
    sites: Sequence[str] | None = SITES,
    seeds: Sequence[int] = (0, 1, 2),
    gate: float = ACCURACY_GATE,
    controls: Mapping[str, Control] | None = None,
    missing: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Compositionality:
    """Learn a mask for each subroutine and seed on `search`, and score what it keeps and what it leaves on `heldout`.

    `model` is a bridge, or any torch module that turns `inputs` into logits `[row, pos, vocab]`. Nothing is measurable where the
    whole model's accuracy on either subroutine is below the `gate`. Under each of `controls` masks are learned for the first seed,
    without the gate; `missing` says of others why they cannot be run. Equal arguments give equal results. Raises `ConfigError`
    without seeds, or as `learn_weight_masks`, and what `maskable` raises.
    """
    if not seeds:
        raise ConfigError("masks need at least one seed, got none")
    controls, missing = dict(controls or {}), dict(missing or {})
    config = config or MaskConfig()
    allowed, whole = maskable(model, sites, config.from_layer), _whole_accuracies(model, heldout)
    about: Any = {"accuracies": whole, "allowed": allowed, "n_prompts": len(heldout), "controls": (*controls, *missing)}
    if failed := [f"{name} {result.value:.2f}" for name, result in whole.items() if (result.value or 0) < gate]:
        missing[REAL] = f"the model's accuracy is below {gate:g}: {', '.join(failed)}"
        return Compositionality(heldout.names, missing=missing, **about)
    study = MaskStudy(model, search, heldout, config, tuple(allowed))
    found: list[tuple[Cell, Masks]] = []
    with tqdm(total=len(seeds) + len(controls), desc="pairs of masks", disable=not progress) as bar:
        for seed in seeds:
            found += study.cells(REAL, seed)
            bar.update()
        masks = {(cell.subroutine, cell.seed): mask for cell, mask in found}
        for name, control in controls.items():
            with control(model):
                found += study.cells(name, seeds[0])
            bar.update()
    return Compositionality(heldout.names, cells=tuple(cell for cell, _ in found), masks=masks, missing=missing, **about)


def _whole_accuracies(model: Any, prompts: SharedPrompts) -> dict[str, Result]:
    values = accuracies(model, prompts).tolist()
    return {name: Result(value, null=CHANCE, n=len(prompts)) for name, value in zip(prompts.names, values, strict=True)}
