"""Steering through a channel: the edits against runs made by hand, in a model that is coupled with itself."""

from __future__ import annotations

import pytest
import torch

from sparse_lens.circuits.prompts import both_sides
from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.couplings.coupling import Coupling, shared_boundaries
from sparse_lens.comparisons.couplings.steering import channel_attributions, measure_steering
from sparse_lens.errors import ConfigError
from sparse_lens.tasks import get_task

TASK = get_task("single_double_quote")
AT = 3
PAIRS = 24


@pytest.fixture(scope="module")
def bridge():
    return ModelPair.open().open_model("dense_matched")


@pytest.fixture(scope="module")
def itself(bridge) -> Coupling:
    d = bridge.cfg.d_model
    coupling = Coupling(shared_boundaries(bridge, bridge), d, d, kept=None, models=(model_fingerprint(bridge),) * 2)
    with torch.no_grad():
        coupling.encoder_weight += torch.eye(d)
        coupling.decoder_weight += torch.eye(d)
    return coupling


@pytest.fixture(scope="module")
def prompts(bridge):
    return both_sides(TASK.sample(bridge.tokenizer, PAIRS, seed=0, split="heldout"))


@torch.no_grad()
def change_by_hand(bridge, prompts, hook: str, channels) -> float:
    """Mean change of the logit difference when `channels` take the other prompt's values."""
    _, cache = bridge.run_with_cache(prompts.other, names_filter=hook)

    def put(activation, hook):
        edited = activation.clone()
        edited[..., channels] = cache[hook.name][..., channels]
        return edited

    rows = torch.arange(len(prompts))

    def difference(logits):
        at_answer = logits[rows, prompts.position]
        return at_answer[rows, prompts.right] - at_answer[rows, prompts.wrong]

    steered = bridge.run_with_hooks(prompts.tokens, fwd_hooks=[(hook, put)])
    return float((difference(steered) - difference(bridge(prompts.tokens))).mean())


def test_effects_are_those_of_runs_by_hand(bridge, itself: Coupling, prompts) -> None:
    steering = measure_steering(bridge, bridge, itself, TASK, AT, n_pairs=PAIRS, n_controls=3)
    hook, results = itself.boundaries[AT], steering.results
    assert steering.boundary == hook and steering.task == TASK.name
    assert results["effect"].value == pytest.approx(change_by_hand(bridge, prompts, hook, [steering.channel]), abs=1e-4)
    assert results["sparse_effect"].value == pytest.approx(results["effect"].value, abs=1e-4)
    assert results["whole_effect"].value == pytest.approx(change_by_hand(bridge, prompts, hook, slice(None)), abs=1e-4)
    assert results["whole_effect"].value < results["effect"].value < 0 and results["effect"].null is not None
    assert results["logit_difference"].value > 0 and results["effect"].n == PAIRS


def test_attributions_are_the_slope_of_the_effect(bridge, itself: Coupling, prompts) -> None:
    slopes = channel_attributions(bridge, itself.boundaries[AT], prompts)
    for channel in (int(slopes.argmin()), int(slopes.argmax())):
        small = measure_steering(
            bridge, bridge, itself, TASK, AT, channel=channel, strength=0.02, n_pairs=PAIRS, n_controls=1
        ).results["effect"]
        assert small.value / 0.02 == pytest.approx(float(slopes[channel]), rel=0.05)


def test_an_edit_of_equal_norm_is_its_own_control(bridge, itself: Coupling) -> None:
    """Of all channels but the chosen one, the least: the null of equal norm is not the plain one."""
    results = measure_steering(bridge, bridge, itself, TASK, AT, n_pairs=PAIRS, n_controls=4).results
    assert results["effect_equal_norm"].value != pytest.approx(results["effect"].null, abs=1e-6)
    assert abs(results["effect_equal_norm"].value) < abs(results["effect"].value)


def test_no_strength_has_no_effect(bridge, itself: Coupling) -> None:
    results = measure_steering(bridge, bridge, itself, TASK, AT, strength=0.0, n_pairs=PAIRS, n_controls=2).results
    for name in ("effect", "effect_equal_norm", "flipped", "whole_effect", "sparse_effect"):
        assert results[name].value == pytest.approx(0, abs=1e-5)


def test_places_that_there_are_not(bridge, itself: Coupling) -> None:
    with pytest.raises(ConfigError, match="boundary 5 is none of 0 to 4"):
        measure_steering(bridge, bridge, itself, TASK, 5)
    with pytest.raises(ConfigError, match="channel 56 is none"):
        measure_steering(bridge, bridge, itself, TASK, 0, channel=56)
