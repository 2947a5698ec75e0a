"""Fracture of language models: partners, perturbations, the probe, and the shipped pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.fracture import model_fracture
from sparse_lens.comparisons.fracture.answer_probe import probe_accuracies, ridge_classifier
from sparse_lens.comparisons.fracture.instances import answers_of, sample_instances
from sparse_lens.comparisons.fracture.model_fracture import FractureConfig, fracture_index, fracture_table
from sparse_lens.dictionaries import IdentityDictionary, RotationDictionary, random_rotation
from sparse_lens.errors import ConfigError, DataError, UnknownNameError
from sparse_lens.tasks import get_task

TASKS = ("single_double_quote", "while_return_true")
HOOK = "blocks.1.mlp.hook_post"
SMALL = FractureConfig(n_pairs=3, n_units=12)


@pytest.fixture(scope="module")
def bridge() -> Any:
    return ModelPair.open().open_model("dense_matched")


@pytest.fixture(scope="module")
def neurons(bridge: Any) -> IdentityDictionary:
    return IdentityDictionary(bridge.cfg.d_mlp, HOOK)


@dataclass(frozen=True)
class Broken(IdentityDictionary):
    """One latent in the middle is NaN."""

    def encode(self, x: Tensor) -> Tensor:
        return x.index_fill(-1, torch.tensor([5]), torch.nan)


@dataclass(frozen=True)
class Silent(IdentityDictionary):
    """No latent ever fires."""

    def encode(self, x: Tensor) -> Tensor:
        return 0 * x


def test_partners_are_the_other_answer_and_the_other_names(bridge: Any) -> None:
    """Mirrored prompts differ in the answer, renamed ones do not; every row has one partner of each kind."""
    instances = sample_instances(bridge, TASKS, n_pairs=3)
    assert len(instances.tokens) == 2 * 2 * 2 * 3
    for kind in ("mirror", "renamed"):
        here, there = instances.partners(kind)
        assert sorted(torch.cat([here, there]).tolist()) == list(range(24))
        assert torch.equal(instances.task[here], instances.task[there])
        assert torch.equal(instances.right[here] == instances.right[there], torch.full((12,), kind == "renamed"))
        assert not any(torch.equal(instances.tokens[a], instances.tokens[b]) for a, b in zip(here, there, strict=True))
    with pytest.raises(UnknownNameError, match="mirrored"):
        instances.partners("mirrored")


def test_answers_are_the_models_own(bridge: Any) -> None:
    """Sharing what prompts begin with changes no logit: prompt by prompt the same."""
    instances = sample_instances(bridge, TASKS, n_pairs=3)
    answers = answers_of(bridge, instances)
    for row in (0, 7, 23):
        logits = bridge(instances.tokens[row : row + 1, : int(instances.position[row]) + 1])[0, -1].detach()
        torch.testing.assert_close(answers.log_probs[row], logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
        assert answers.differences[row] == pytest.approx(
            float(logits[instances.right[row]] - logits[instances.wrong[row]]), abs=1e-3
        )
    assert answers.accuracy > 0.9


def test_the_index_is_the_plain_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A witness that multiplies each neuron with a hook of TransformerLens, by the same strength.

    In double precision: in single, rounding decides whether a neuron that does next to nothing counts.
    """
    bridge: Any = ModelPair.open().open_model("dense_matched").double()
    neurons = IdentityDictionary(bridge.cfg.d_mlp, HOOK, dtype=torch.float64)
    monkeypatch.setattr(model_fracture, "_CALIBRATIONS", 0)  # the strength is then one half
    config = FractureConfig(n_pairs=2, n_units=10_000, output_kl=1e-4)
    found = fracture_index(bridge, neurons, TASKS[:1], config)
    strength = found["strength"].value or 0
    instances = sample_instances(bridge, TASKS[:1], n_pairs=2)
    base = answers_of(bridge, instances).differences.double()
    effects = []
    for neuron in range(bridge.cfg.d_mlp):

        def weaken(value: Tensor, hook: Any, neuron: int = neuron) -> Tensor:
            value = value.clone()
            value[..., neuron] *= 1 - strength
            return value

        with bridge.hooks(fwd_hooks=[(HOOK, weaken)]):
            effects.append(answers_of(bridge, instances).differences.double() - base)
    D = torch.stack(effects)
    for kind in ("mirror", "renamed"):
        here, there = instances.partners(kind)
        energy = D[:, here].square().sum(1) + D[:, there].square().sum(1)
        live = energy > 1e-9 * base.square().sum()
        each = (D[:, here] - D[:, there]).square().sum(1)[live] / energy[live]
        assert found[f"{kind}_fracture"].value == pytest.approx(float(each.mean()), rel=1e-6)


def test_the_model_is_left_as_it_was(bridge: Any, neurons: IdentityDictionary) -> None:
    """After latents, mixtures, weights and random weights: the same logits, and all units have been measured."""
    tokens = torch.arange(40)[None]
    before = bridge(tokens).detach()
    for units in ("rotated", "weights"):
        found = fracture_index(bridge, neurons, TASKS[:1], SMALL, units=units)
        value = found["mirror_fracture"].value
        assert value is not None and 0 <= value <= 2 and (found["live_units"].value or 0) > 1
    fracture_table({"neurons": (bridge, neurons)}, TASKS[:1], FractureConfig(n_pairs=2, n_units=3))
    assert torch.equal(bridge(tokens).detach(), before)


def test_gates_and_bad_input(bridge: Any, neurons: IdentityDictionary) -> None:
    """A task that the model does not do is not measurable; NaN latents and impossible settings are errors."""
    failed = fracture_index(bridge, neurons, ["class_init"], SMALL)
    assert not failed["mirror_fracture"].measurable and "class_init" in str(failed["mirror_fracture"].reason)
    table = fracture_table({"neurons": (bridge, neurons)}, ["class_init"], SMALL)
    assert not table["neurons"]["renamed_fracture"].measurable
    assert set(table["neurons"]) == set(fracture_table({"neurons": (bridge, neurons)}, TASKS[:1], SMALL)["neurons"])
    silent = fracture_index(bridge, Silent(bridge.cfg.d_mlp, HOOK), TASKS[:1], SMALL)
    assert "no latent" in str(silent["mirror_fracture"].reason)
    with pytest.raises(DataError, match="latents that are NaN"):
        fracture_index(bridge, Broken(bridge.cfg.d_mlp, HOOK), TASKS[:1], SMALL)
    with pytest.raises(ConfigError):
        FractureConfig(n_pairs=1)
    with pytest.raises(UnknownNameError, match="neurons"):
        fracture_index(bridge, neurons, TASKS, SMALL, units="neurons")


def test_the_probe_reads_a_planted_answer_and_nothing_from_noise() -> None:
    """Separable inputs are read off, noise is not, and a rotation changes no guess."""
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.standard_normal((400, 30)))
    labels = inputs[:, 3] - 2 * inputs[:, 7] > 0
    guesses = ridge_classifier(inputs[:200], labels[:200])(inputs[200:])
    assert float((guesses == labels[200:]).double().mean()) > 0.85
    rotation = random_rotation(30, dtype=torch.float64)
    assert torch.equal(ridge_classifier(inputs[:200] @ rotation, labels[:200])(inputs[200:] @ rotation), guesses)
    coin = torch.from_numpy(generator.random(400) < 0.5)
    noise = ridge_classifier(inputs[:200], coin[:200])(inputs[200:])
    assert float((noise == coin[200:]).double().mean()) == pytest.approx(0.5, abs=0.12)


def test_the_probe_is_the_same_in_a_rotated_basis(bridge: Any, neurons: IdentityDictionary) -> None:
    """The shipped model's quotes can be read off its neurons, and off any rotation of them as well."""
    rotated = RotationDictionary(random_rotation(neurons.width), HOOK)
    found, other = (probe_accuracies(bridge, d, TASKS[:1], n_pairs=32) for d in (neurons, rotated))
    for name, accuracy in found.items():
        assert accuracy.value == other[name].value and (accuracy.value or 0) > 0.8


def test_the_shipped_pair_with_its_controls(bridge: Any, neurons: IdentityDictionary) -> None:
    """Neurons and SAE latents of one model through the same functions, on tasks that both do."""
    sae = ModelPair.open().dictionaries()[1]
    table = fracture_table({"neurons": (bridge, neurons), "sae": (bridge, sae)}, [*TASKS, "class_init"], FractureConfig(2, 6))
    assert table.keys() == {"neurons", "sae", "neurons - sae"}
    gap = (table["neurons"]["mirror_fracture"].value or 0) - (table["sae"]["mirror_fracture"].value or 0)
    assert table["neurons - sae"]["mirror_fracture"].value == pytest.approx(gap) and table["neurons - sae"]["nonzeros"].value == 0
    for column in (table["neurons"], table["sae"]):
        assert column["tasks"].value == column["tasks"].n == 2
        for name in ("mirror_fracture", "rotated_mirror_fracture", "random_weights_renamed_fracture"):
            value = column[name].value
            assert value is not None and 0 <= value <= 2 and column[name].null == 1
        assert column["probe_accuracy"].null == 0.5 and (column["probe_accuracy"].value or 0) > 0.7


def test_renaming_moves_effects_less_than_mirroring(bridge: Any, neurons: IdentityDictionary) -> None:
    """Most neurons push for one of two answers, whichever is right: mirrored effects are opposed, renamed ones alike."""
    found = fracture_index(bridge, neurons, TASKS, FractureConfig(n_pairs=3, n_units=24))
    mirror, renamed = found["mirror_fracture"].value, found["renamed_fracture"].value
    assert mirror is not None and renamed is not None and renamed < 0.7 < mirror
    assert 0.3e-4 < (found["output_kl"].value or 0) < 3e-4


def test_words_of_twins_come_from_the_same_template(bridge: Any) -> None:
    """Renamed pairs carry the same answers as the task's own samples of two seeds."""
    instances = sample_instances(bridge, TASKS[:1], n_pairs=3)
    batch = get_task(TASKS[0]).sample(bridge.tokenizer, 3, seed=1, split="heldout")
    rows = (instances.twin == 1) & (instances.side == 0)
    assert instances.right[rows].tolist() == batch.target.tolist()
