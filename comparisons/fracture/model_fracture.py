"""Fracture and entanglement of a language model at one site: do the same units carry a concept on both of two prompts?

Partners carry the same concept: `mirror` is the prompt of the other answer (`'` and `"`, whichever closes its string), `renamed`
is the same program with other names. The output is the right answer's logit minus the wrong one's. Latents of a dictionary are
weakened by one strength for all, set so that the outputs of every model move by the same KL on average: equal relative changes
would not be fair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.trust.controls import random_weights
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons.fracture.answer_probe import probe_accuracies
from sparse_lens.comparisons.fracture.index import FractureSums
from sparse_lens.comparisons.fracture.instances import Instances, answers_of, sample_instances
from sparse_lens.comparisons.fracture.weakened_runs import WeakenedDirections
from sparse_lens.comparisons.fracture.weakened_weights import WeakenedWeights
from sparse_lens.comparisons.side_by_side import Heldout, side_by_side
from sparse_lens.dictionaries import Dictionary, random_rotation
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.hooks import splice
from sparse_lens.results import Result, exact, not_measurable

UNITS = ("latents", "rotated", "weights")
"""What is perturbed: latents, random orthogonal mixtures of them, or nonzero weights of all blocks."""

OUTPUT_KL = 1e-4
"""Nats by which an answer's distribution moves, on average over units and one pair of prompts a task.

The strength is set on these alone; on all prompts that are measured the mean (`output_kl`) comes out within a factor of 1.5 of it.

Small for the output, not for every unit: those of a model that hardly depends on any one are moved far to reach it, through
zero and beyond (`strength` above 1), where an effect is no derivative any more. Read `strength` beside a fracture.
"""

_LIVE = 1e-9
"""Share of the output's energy below which an effect of a perturbation as small is rounding."""

_GATE_PAIRS = 64
"""Pairs of prompts that decide whether a model does a task: more than are perturbed, which would decide by luck."""

_CALIBRATED_ON, _CALIBRATIONS, _CLOSE, _STRONGEST = 1, 4, 0.1, 64.0
_MEASURES = ("mirror_fracture", "renamed_fracture", "effective_dimension", "entanglement")


@dataclass(frozen=True)
class FractureConfig:
    """The same for every column: pairs of prompts of each task (each with its renamed twin), units drawn, the KL, the seed."""

    n_pairs: int = 4
    n_units: int = 128
    output_kl: float = OUTPUT_KL
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_pairs < 2 or self.n_units < 2 or not self.output_kl > 0:
            raise ConfigError(f"fracture needs two pairs, two units and a KL above 0 at least, got {self}")


def fracture_index(
    bridge: Any,
    dictionary: Dictionary,
    tasks: Sequence[str],
    config: FractureConfig | None = None,
    *,
    units: str = "latents",
    gate: float = ACCURACY_GATE,
) -> dict[str, Result]:
    """Fracture of a bridge at a dictionary's hook, on the `tasks` whose two-way accuracy reaches the `gate`.

    `mirror_fracture` and `renamed_fracture` (0 to 2, null 1), `effective_dimension`, `entanglement` over tasks, `live_units`;
    beside them `probe_accuracy` (clean prompts) and `probe_accuracy_partner` (corrupt ones) of a linear probe on the latents, for
    the claim is about equal decodability; `strength` and `output_kl` of the perturbation, `tasks` that passed. `units` are
    latents, random orthogonal mixtures of them, or nonzero weights of all blocks. Raises `DataError` for effects or latents
    that are not finite.
    """
    if units not in UNITS:
        raise UnknownNameError("kind of unit", units, UNITS)
    config = config or FractureConfig()
    passed = _done([bridge], tasks, gate, config.seed)
    if not passed:
        return _failed(f"none of {', '.join(tasks)} is done with an accuracy of {gate:g}")
    return _indexed(bridge, dictionary, passed, config, units, of=len(tasks))


def _done(bridges: Sequence[Any], tasks: Sequence[str], gate: float, seed: int) -> list[str]:
    """The tasks that all bridges do by the gate; a gate of 0 runs nothing."""
    return [task for task in tasks if gate <= 0 or all(task_accuracy(bridge, task, seed) >= gate for bridge in bridges)]


def _indexed(
    bridge: Any, dictionary: Dictionary, passed: Sequence[str], config: FractureConfig, units: str, *, of: int
) -> dict[str, Result]:
    """The index on those `of` so many tasks that have passed."""
    found = _measured(bridge, dictionary, passed, config, units)
    if not found["live_units"].measurable:
        return found
    return found | probe_accuracies(bridge, dictionary, passed, seed=config.seed) | {"tasks": exact(len(passed), n=of)}


def _measured(bridge: Any, dictionary: Dictionary, tasks: Sequence[str], config: FractureConfig, units: str) -> dict[str, Result]:
    """Everything but the probe, on the given tasks without a gate."""
    instances = sample_instances(bridge, tasks, n_pairs=config.n_pairs, seed=config.seed)
    drawn = _drawn(bridge, dictionary, instances, units, config)
    if not len(drawn):
        return _failed(f"no latent of {dictionary.name!r} fires on the prompts")
    strength = _calibrated(drawn, instances, config.output_kl)
    effects, moved = drawn.effects(instances, strength)
    sums = {name: _sums(effects, answers_of(bridge, instances).differences, instances, name) for name in ("mirror", "renamed")}
    return {
        **{f"{name}_fracture": part["fracture"] for name, part in sums.items()},
        **{name: sums["mirror"][name] for name in ("effective_dimension", "entanglement", "live_units")},
        "strength": exact(strength, n=len(drawn)),
        "output_kl": exact(moved, n=len(drawn)),
    }


def _failed(reason: str) -> dict[str, Result]:
    names = (*_MEASURES, "live_units", "probe_accuracy", "probe_accuracy_partner", "strength", "output_kl", "tasks")
    return dict.fromkeys(names, not_measurable(reason))


def fracture_columns(
    columns: Mapping[str, tuple[Any, Dictionary]],
    tasks: Sequence[str],
    config: FractureConfig | None = None,
    *,
    gate: float = ACCURACY_GATE,
) -> dict[str, dict[str, Result]]:
    """`fracture_index` of several columns on the tasks that all of them do, with the same controls for each.

    `rotated_…`: random mixtures of the latents, the same function in another basis. `random_weights_…`: every tensor's nonzero
    weights shuffled, without the gate, which such a model cannot pass. No mask is learned, so there is none to draw at random. A
    `gate` of 0 runs nothing: for tasks that are known to be done.
    """
    config = config or FractureConfig()
    bridges = [bridge for bridge, _ in columns.values()]
    done = _done(bridges, tasks, gate, config.seed)
    if not done:
        none = f"no task of {', '.join(tasks)} is done with an accuracy of {gate:g} by every column"
        controls = {f"{control}_{key}": not_measurable(none) for control in ("rotated", "random_weights") for key in _MEASURES}
        return {name: _failed(none) | controls for name in columns}
    found: dict[str, dict[str, Result]] = {}
    for name, column in columns.items():
        rotated = _measured(*column, done, config, "rotated")
        with random_weights(column[0], seed=config.seed):
            random = _measured(*column, done, config, "latents")
        controls = {f"rotated_{key}": rotated[key] for key in _MEASURES} | {
            f"random_weights_{key}": random[key] for key in _MEASURES
        }
        found[name] = _indexed(*column, done, config, "latents", of=len(done)) | controls
    return found


def fracture_table(
    columns: Mapping[str, tuple[Any, Dictionary]],
    tasks: Sequence[str],
    config: FractureConfig | None = None,
    *,
    gate: float = ACCURACY_GATE,
    heldout: Heldout | None = None,
) -> dict[str, dict[str, Result]]:
    """`fracture_columns`, with each model's loss on `heldout` windows of token ids, its parameters and nonzeros.

    A row `A - B` is the first column less each other one.
    """
    bridges = {name: bridge for name, (bridge, _) in columns.items()}
    return side_by_side(fracture_columns(columns, tasks, config, gate=gate), bridges, heldout)


def task_accuracy(bridge: Any, task: str, seed: int = 0) -> float:
    """The share of a task's prompts whose right answer is the likelier of the two: on as many pairs as the gate asks for."""
    return answers_of(bridge, sample_instances(bridge, [task], n_pairs=_GATE_PAIRS, seed=seed)).accuracy


def _sums(
    effects: Float[Tensor, "unit row"], outputs: Float[Tensor, " row"], instances: Instances, partner: str
) -> dict[str, Result]:
    """The measures with each task's effects in units of its own outputs, so that no task outweighs the others."""
    n_tasks = int(instances.task.max()) + 1
    squares = torch.zeros(n_tasks, dtype=torch.float64).index_add_(0, instances.task, outputs.double().square())
    scale = (squares / torch.bincount(instances.task, minlength=n_tasks)).sqrt()[instances.task]
    effects, outputs = effects / scale, outputs / scale
    here, there = instances.partners(partner)
    sums = FractureSums(len(effects), n_tasks, dead=_LIVE)
    sums.add(
        effects[:, here],
        effects[:, there],
        outputs=outputs[here],
        partner_outputs=outputs[there],
        behaviour=instances.task[here],
    )
    return sums.results()


def _calibrated(units: WeakenedDirections | WeakenedWeights, instances: Instances, target: float) -> float:
    """The strength that moves the outputs by `target` on average over all units, on some of the prompts; at most `_STRONGEST`.

    A few units do most of the moving, so that a part of them would not do.
    """
    effects, strength = units.on(instances.first_pairs(_CALIBRATED_ON)), 0.5
    for _ in range(_CALIBRATIONS):
        moved = effects(strength)[1]
        if abs(moved / target - 1) < _CLOSE:
            break
        factor = (target / max(moved, 1e-12)) ** 0.5  # KL grows with the square of a small change
        strength = min(_STRONGEST, strength * min(8.0, max(1 / 8, factor)))
    return strength


def _drawn(
    bridge: Any, dictionary: Dictionary, instances: Instances, units: str, config: FractureConfig
) -> WeakenedDirections | WeakenedWeights:
    """Up to `n_units` of the latents that fire on the prompts, of as many mixtures, or of the nonzero weights, drawn at random."""
    generator = torch.Generator().manual_seed(config.seed)
    if units == "weights":
        return WeakenedWeights(bridge, config.n_units, generator)
    fires = _firing(bridge, dictionary, instances)
    drawn = fires[torch.randperm(len(fires), generator=generator)[: config.n_units]]
    if units == "latents":
        directions = F.one_hot(drawn, dictionary.n_latents).to(dictionary.W_dec.dtype)
    else:
        mixed = random_rotation(len(fires), config.seed, dtype=dictionary.W_dec.dtype)[: len(drawn)]
        directions = torch.zeros(len(drawn), dictionary.n_latents, dtype=mixed.dtype).index_copy_(1, fires, mixed)
    return WeakenedDirections(bridge, dictionary, directions)


@torch.no_grad()
def _firing(bridge: Any, dictionary: Dictionary, instances: Instances) -> Int[Tensor, " latent"]:
    """The latents that are nonzero somewhere on the prompts."""
    with splice(bridge, [dictionary], mode="edit") as seen:
        bridge(instances.tokens, return_type=None)
    latents = seen[dictionary.name].latents
    if wrong := int((~latents.isfinite()).sum()):
        raise DataError(f"dictionary {dictionary.name!r} gave {wrong} latents that are NaN or infinite; check its weights")
    read = torch.arange(latents.shape[1]) <= instances.position[:, None]
    return (latents[read] != 0).any(0).nonzero().flatten()
