"""What the measures behind the claims cost: EASE over as many features as it is ever run on, and the slow ones on the main pair."""

from __future__ import annotations

import time
from typing import Any

from sparse_lens.benchmarks.large import cost_of
from sparse_lens.benchmarks.timing import Row, fastest, row

_FEATURES, _WINDOWS, _LENGTH = 4096, 256, 128
_SECONDS, _GIGABYTES = 90, 1.5

_TOGETHER = ("compositionality", "predictability", "fracture", "binding", "shift", "robustness")
_MINUTES, _WORKERS = 20, 2

_WEAKENED, _FRACTURE_TASKS = 48, ("single_double_quote", "while_return_true", "if_equals")

_EASE = f"""
import torch
from sparse_lens.comparisons.predictability.measuring import PredictabilitySums
from sparse_lens.dictionaries import IdentityDictionary

def model():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, {_FEATURES}, generator=generator) / 16
    sums = PredictabilitySums(IdentityDictionary({_FEATURES}, "features"))
    for first in range(0, {_WINDOWS}, 16):
        tokens = torch.arange(first, first + 16)[:, None].expand(-1, {_LENGTH})
        sums.add(tokens, (torch.randn(16 * {_LENGTH}, 256, generator=generator) @ mixing).relu())
    return sums.measure()
"""


def ease_rows() -> list[Row]:
    """Time and memory of held-out predictability of 4,096 features over 32,768 tokens, five ridges tried, in a process of its own.

    A minute on two cores; memory is over that of the interpreter that had imported everything.
    """
    cost = cost_of(_EASE)
    what = f"EASE of {_FEATURES:,} features over {_WINDOWS * _LENGTH:,} tokens"
    return [
        row(f"{what}, time", f"{cost.seconds:.0f} s", f"bound {_SECONDS} s", _SECONDS / cost.seconds),
        row(f"{what}, memory", f"{cost.peak:.2f} GB", f"bound {_GIGABYTES} GB", _GIGABYTES / cost.peak),
    ]


def fracture_rows() -> list[Row]:
    """Weakening neurons many in a pass, from where they are written, against a splice and a whole pass for each."""
    import torch

    from sparse_lens.comparisons.fracture.instances import answers_of, sample_instances
    from sparse_lens.comparisons.fracture.weakened_runs import WeakenedDirections
    from sparse_lens.comparisons.pair import ModelPair
    from sparse_lens.dictionaries import IdentityDictionary
    from sparse_lens.hooks import splice

    bridge = ModelPair.open().open_model("sparse")
    instances = sample_instances(bridge, _FRACTURE_TASKS, n_pairs=4)
    rows = []
    for layer in range(bridge.cfg.n_layers):
        neurons = IdentityDictionary(bridge.cfg.d_mlp, f"blocks.{layer}.mlp.hook_post")
        directions = torch.eye(neurons.n_latents)[:_WEAKENED]

        def together(neurons: IdentityDictionary = neurons, directions: torch.Tensor = directions) -> None:
            units = WeakenedDirections(bridge, neurons, directions)
            units.effects(instances, 0.5)

        def one_by_one(neurons: IdentityDictionary = neurons, directions: torch.Tensor = directions) -> None:
            for along in directions:

                def edit(latents: torch.Tensor, error: torch.Tensor, along: torch.Tensor = along) -> tuple[Any, Any]:
                    return latents - 0.5 * (latents @ along)[..., None] * along, error

                with splice(bridge, [neurons], mode="edit", edit=edit):
                    answers_of(bridge, instances)

        fast, plain = fastest(together, repeats=2), fastest(one_by_one, repeats=2, warm_up=False)
        what = f"{_WEAKENED} neurons of layer {layer} weakened, {len(instances.tokens)} prompts"
        rows.append(row(what, f"{fast:.2f} s", f"a splice and a pass for each {plain:.2f} s", plain / fast))
    return rows


def measure_rows() -> list[Row]:
    """Time of the measures of structure, prediction, fracture, binding and shift on the shipped main pair, in two processes."""
    from sparse_lens.comparisons.instrument.measuring_jobs import measuring_job
    from sparse_lens.comparisons.jobs import run_jobs
    from sparse_lens.comparisons.pair import ModelPair

    pair = ModelPair.open()
    jobs = [measuring_job(pair, measure, measure, smoke=False) for measure in _TOGETHER]
    begun = time.perf_counter()
    run_jobs(jobs, workers=_WORKERS)
    minutes = (time.perf_counter() - begun) / 60
    return [
        row(f"{len(_TOGETHER)} measures of the claims, one pair", f"{minutes:.1f} min", f"bound {_MINUTES} min", _MINUTES / minutes)
    ]
