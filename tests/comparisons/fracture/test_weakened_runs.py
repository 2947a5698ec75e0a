"""Weakened directions against a splice of each: neurons, mixtures, a skip transcoder, and a model of another architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.fracture.instances import Instances, answers_of, sample_instances
from sparse_lens.comparisons.fracture.weakened_runs import WeakenedDirections
from sparse_lens.dictionaries import Dictionary, IdentityDictionary, TranscoderDictionary, random_rotation
from sparse_lens.hooks import splice

TASKS = ("single_double_quote", "while_return_true")
HOOK = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def bridge() -> Any:
    return ModelPair.open().open_model("sparse")


def spliced(bridge: Any, dictionary: Dictionary, directions: Tensor, instances: Instances, strength: float) -> tuple[Tensor, float]:
    """The same by a splice and a pass for every direction."""
    base = answers_of(bridge, instances)
    effects, moved = [], []
    for along in directions:

        def edit(latents: Tensor, error: Tensor, along: Tensor = along) -> tuple[Tensor, Tensor]:
            return latents - strength * (latents @ along)[..., None] * along, error

        with splice(bridge, [dictionary], mode="edit", edit=edit):
            answers = answers_of(bridge, instances)
        effects.append(answers.differences - base.differences)
        moved.append(float(F.kl_div(answers.log_probs, base.log_probs, reduction="batchmean", log_target=True)))
    return torch.stack(effects).double(), sum(moved) / len(moved)


def assert_as_spliced(bridge: Any, dictionary: Dictionary, directions: Tensor, instances: Instances) -> None:
    """At a strength that moves the outputs well beyond rounding."""
    units = WeakenedDirections(bridge, dictionary, directions)
    effects, moved = units.effects(instances, 3.0)
    assert torch.equal(units.on(instances)(3.0)[0], effects)
    expected, expected_moved = spliced(bridge, dictionary, directions, instances, 3.0)
    assert expected.abs().max() > 0.02
    torch.testing.assert_close(effects, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert moved == pytest.approx(expected_moved, rel=1e-3)


def one_each(width: int, n: int) -> Tensor:
    return torch.eye(width)[torch.randperm(width, generator=torch.Generator().manual_seed(0))[:n]]


@pytest.mark.slow
def test_neurons_and_mixtures_as_by_a_splice(bridge: Any) -> None:
    """Prompts of two tasks, of several lengths each."""
    neurons, instances = IdentityDictionary(bridge.cfg.d_mlp, HOOK), sample_instances(bridge, TASKS, n_pairs=3)
    assert len(instances.position.unique()) > 2
    for directions in (one_each(bridge.cfg.d_mlp, 12), random_rotation(bridge.cfg.d_mlp)[:12]):
        assert_as_spliced(bridge, neurons, directions, instances)


def test_a_skip_transcoder_as_by_a_splice(bridge: Any) -> None:
    """Latents are read where the MLP begins and written where it ends."""
    generator, width = torch.Generator().manual_seed(0), bridge.cfg.d_model
    shapes = {"W_enc": (width, 32), "W_dec": (32, width), "W_skip": (width, width)}
    weights = {name: torch.randn(*shape, generator=generator) / 8 for name, shape in shapes.items()}
    weights |= {"b_enc": torch.zeros(32), "b_dec": torch.ones(width)}
    transcoder = TranscoderDictionary(weights, "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out")
    assert_as_spliced(bridge, transcoder, torch.eye(32)[:8], sample_instances(bridge, TASKS[:1], n_pairs=3))


def test_a_model_of_another_architecture(bridge: Any) -> None:
    """GPT-2's, whose prompts share no beginnings."""
    torch.manual_seed(0)
    undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=1024, n_positions=256, initializer_range=0.2, **undropped)
    model = GPT2LMHeadModel(config).eval()
    other: Any = build_bridge_from_module(
        model, "GPT2LMHeadModel", hf_config=config, tokenizer=None, device="cpu", model_name="gpt2-shaped"
    )
    other.tokenizer = bridge.tokenizer
    assert_as_spliced(other, IdentityDictionary(128, HOOK), one_each(128, 12), sample_instances(other, TASKS[:1], n_pairs=2))


def test_beside_a_hook_of_someone_else(bridge: Any) -> None:
    """Every run is then a pass of its own, and the hook is in all of them."""
    neurons, instances = IdentityDictionary(bridge.cfg.d_mlp, HOOK), sample_instances(bridge, TASKS[:1], n_pairs=2)

    def double(value: Tensor, hook: Any) -> Tensor:
        return 2 * value

    with bridge.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", double)]):
        assert_as_spliced(bridge, neurons, one_each(bridge.cfg.d_mlp, 6), instances)
