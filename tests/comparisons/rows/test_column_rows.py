"""Capability, reconstruction and activation: known answers, and sums that do not depend on batches."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.rows.activation import ActivationSums, activation, decoder_redundancy
from sparse_lens.comparisons.rows.capability import active_parameters, capability
from sparse_lens.comparisons.rows.reconstruction import ReconstructionSums, reconstruction, spliced_loss
from sparse_lens.dictionaries import (
    IdentityDictionary,
    SAELensDictionary,
    TranscoderDictionary,
    TranscoderTrainingConfig,
    train_transcoder,
)
from sparse_lens.errors import DataError
from sparse_lens.hooks import load

HOOK = "blocks.0.mlp.hook_post"
WINDOWS = ModelPair.open().windows["heldout"][:12]


@pytest.fixture(scope="module")
def bridge() -> Any:
    return load("python-dense-matched")


@pytest.fixture(scope="module")
def sae() -> Any:
    return ModelPair.open().dictionaries()[0]


def one_hot_sae(d: int = 4, **weights: torch.Tensor) -> SAELensDictionary:
    """ReLU of the channels themselves, `b_dec` 0."""
    own = {"W_enc": torch.eye(d), "b_enc": torch.zeros(d), "W_dec": torch.eye(d), "b_dec": torch.zeros(d)}
    return SAELensDictionary("standard", own | weights, "x")


def test_the_identity_reconstructs_all(bridge: Any) -> None:
    identity = IdentityDictionary(bridge.cfg.d_mlp, HOOK)
    found = reconstruction(bridge, identity, [WINDOWS[:, :-1]])
    assert found["explained_variance"].value == pytest.approx(1, abs=1e-12) and found["squared_error"].value == 0
    assert found["cosine"].value == pytest.approx(1) and found["norm_ratio"].value == found["reconstruction_bias"].value == 1
    losses = spliced_loss(bridge, [identity], WINDOWS)
    assert losses["loss_recovered_mean"].value == pytest.approx(1, abs=1e-5) and losses["kl_spliced"].value == pytest.approx(
        0, abs=1e-6
    )
    assert losses["loss"].value == pytest.approx(capability(bridge, WINDOWS)["loss"].value, abs=1e-5)


def test_the_mean_explains_nothing_and_a_shift_changes_nothing() -> None:
    x = torch.rand(500, 4) + 1
    constant = one_hot_sae(W_dec=torch.zeros(4, 4), b_dec=x.mean(0))
    sums = ReconstructionSums(constant)
    sums.add(x, x)
    assert sums.results()["explained_variance"].value == pytest.approx(0, abs=1e-6)
    plain = ReconstructionSums(one_hot_sae(W_dec=0.5 * torch.eye(4)))
    plain.add(x, x)
    shifted = ReconstructionSums(TranscoderDictionary({**plain.dictionary.weights, "b_dec": torch.full((4,), 5.0)}, "x", "y"))
    shifted.add(x, x + 5)
    assert shifted.results()["explained_variance"].value == pytest.approx(plain.results()["explained_variance"].value, abs=1e-6)


def test_batches_do_not_matter(bridge: Any, sae: Any) -> None:
    whole, parts = [WINDOWS[:, :-1]], np.array_split(WINDOWS[:, :-1], 5)
    for measure in (reconstruction, activation):
        one, other = (measure(bridge, sae, batches) for batches in (whole, parts))
        for name, result in one.items():
            assert other[name].value == (pytest.approx(result.value, rel=1e-6) if result.measurable else None), name


def test_explained_variance_agrees_with_saelens(bridge: Any, sae: Any) -> None:
    """SAELens' formula of 2026 (means over tokens, not a mean of ratios), written out here on one batch."""
    tokens = torch.from_numpy(WINDOWS[:, :-1])
    _, cache = bridge.run_with_cache(tokens, names_filter=HOOK)
    x = cache[HOOK].flatten(0, 1)
    with torch.no_grad():
        rebuilt = sae.decode(sae.encode(x))
    expected = 1 - (x - rebuilt).pow(2).sum(-1).mean() / (x - x.mean(0)).pow(2).sum(-1).mean()
    assert reconstruction(bridge, sae, [tokens])["explained_variance"].value == pytest.approx(float(expected), abs=1e-5)


def test_a_share_of_next_to_nothing_is_not_measurable(bridge: Any) -> None:
    """Ablating nothing costs nothing: a dictionary of a hook whose activation is its own mean."""
    found = spliced_loss(bridge, [], WINDOWS)
    assert not found["loss_recovered_zero"].measurable and "means nothing" in (found["loss_recovered_zero"].reason or "")
    assert found["loss_added_spliced"].value == pytest.approx(0, abs=1e-7)


def test_sparsity_by_hand() -> None:
    x = torch.tensor([[1.0, 0, 0, 0], [1.0, 2.0, 0, 0], [0, 4.0, 0, 0], [0, 0, -1.0, 0]])
    sums = ActivationSums(one_hot_sae())
    sums.add(x, x)
    found = sums.results()
    assert found["l0"].value == 1.0 and found["l0_share"].value == 0.25 and not found["dead"].measurable
    assert found["dense_above_10_percent"].value == 0.5
    # Two units fire half the time: one bit each for whether; the second also has two values, a bit for half its tokens.
    assert found["description_bits_per_token"].value == pytest.approx(1 + 1 + 0.5)
    assert found["density_share_above_1_percent"].value == found["density_share_above_10_percent"].value == 1
    # Powers of two lie at the lower end of their bins, of a quarter of an octave each; -1 is lost to ReLU.
    off = 2 ** (1 / 8) - 1
    assert found["description_squared_error"].value == pytest.approx((off**2 * (1 + 1 + 4 + 16) + 1) / 4)


def test_bits_and_kurtosis_do_not_depend_on_the_unit() -> None:
    x = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    x = torch.where(x > 0.7, x, torch.zeros(()))
    found = []
    for unit in (1.0, 2.0**-10):
        sums = ActivationSums(one_hot_sae())
        sums.add(x * unit, x * unit)
        found.append(sums.results())
    names = ("kurtosis", "description_bits_per_token", "description_explained_variance", "density_share_above_10_percent")
    for name in names:
        assert found[0][name].value == pytest.approx(found[1][name].value, rel=1e-6), name
    explained = found[0]["description_explained_variance"].value
    assert explained is not None and 0.99 < explained < 1 and found[0]["kurtosis"].null == 3


def test_tokens_without_activation_have_no_direction() -> None:
    x = torch.tensor([[0.0, 0, 0, 0], [3.0, 4.0, 0, 0]])
    sums = ReconstructionSums(one_hot_sae(b_dec=torch.tensor([0.0, 0, 0, 5.0]), W_dec=torch.zeros(4, 4)))
    sums.add(x, x)
    found = sums.results()
    assert found["norm_ratio"].value == 1 and found["cosine"].value == 0 and found["cosine"].n == 1
    assert "does not point along" in (found["reconstruction_bias"].reason or "")
    nothing = ReconstructionSums(one_hot_sae())
    nothing.add(x[:1], x[:1])
    assert not any(nothing.results()[name].measurable for name in ("cosine", "norm_ratio", "explained_variance"))


def test_a_gaussian_has_kurtosis_three_and_no_zeros() -> None:
    sums = ActivationSums(IdentityDictionary(3, "x"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x = torch.randn(12_000, 3, generator=generator)
        sums.add(x, x)
    found = sums.results()
    assert found["kurtosis"].value == pytest.approx(3, abs=0.1) and found["dead"].value == 0 and found["l0"].value == 3


def test_decoder_rows() -> None:
    assert decoder_redundancy(one_hot_sae())["nearest_row_cosine"].value == pytest.approx(0)
    repeated = one_hot_sae(W_dec=torch.eye(4)[[0, 0, 1, 1]])
    assert decoder_redundancy(repeated)["nearest_row_cosine"].value == pytest.approx(1)


def test_latents_that_are_no_numbers_are_named() -> None:
    damaged = one_hot_sae(b_enc=torch.tensor([0.0, math.nan, 0, 0]))
    for sums in (ActivationSums(damaged), ReconstructionSums(damaged)):
        with pytest.raises(DataError, match="2 latents that are not finite"):
            sums.add(torch.ones(2, 4), torch.ones(2, 4))
        with pytest.raises(DataError, match="at least one batch"):
            sums.results()


def test_a_spliced_loss_of_latents_that_are_no_numbers_is_refused(bridge: Any) -> None:
    width = bridge.cfg.d_mlp
    eye = {"W_enc": torch.eye(width), "W_dec": torch.eye(width), "b_dec": torch.zeros(width)}
    damaged = SAELensDictionary("standard", {**eye, "b_enc": torch.full((width,), math.nan)}, HOOK)
    with pytest.raises(DataError, match="latents that are not finite"):
        spliced_loss(bridge, [damaged], WINDOWS)


def used_weights(bridge: Any) -> int:
    """All weights of linear maps, and one row of each table: what a token of a dense model uses."""
    modules = {id(m): m for m in bridge.original_model.modules()}.values()
    linear = sum(m.weight.numel() for m in modules if isinstance(m, torch.nn.Linear))
    return linear + sum(m.weight.shape[1] for m in modules if isinstance(m, torch.nn.Embedding))


def test_active_parameters_of_a_dense_model_are_all_but_the_tables(bridge: Any) -> None:
    found = active_parameters(bridge, WINDOWS[:2, :-1])
    assert found.value == pytest.approx(used_weights(bridge), rel=0.01)  # GELU is exactly 0 now and then
    sparse_bridge = load("python-sparse")
    sparse, parts = active_parameters(sparse_bridge, WINDOWS[:, :-1]), np.array_split(WINDOWS[:, :-1], 4)
    assert sparse.value is not None and sparse.value < 90_000 < 185_134
    mean = np.mean([active_parameters(sparse_bridge, part).value for part in parts])
    assert sparse.value == pytest.approx(mean, rel=1e-9)


def test_active_parameters_of_another_architecture() -> None:
    """A random GPT-2: its maps are of another class, its position table is read once for all windows."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2)).eval()
    expected = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name and "wpe" not in name)
    expected += 50 * 8 + 2 * 8  # the unembedding, which is the embedding again, and a row of each table
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config, tokenizer=None, device="cpu")
    tokens = np.random.default_rng(0).integers(0, 50, (5, 9))
    assert active_parameters(bridge, tokens).value == pytest.approx(expected, rel=0.01)


def run_evals(bridge: Any, folder: Path) -> dict[str, float]:
    """SAELens' own evaluation of a folder on the windows, all measures in one table."""
    from sae_lens import SAE
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    tokens = torch.from_numpy(WINDOWS[:, :-1])
    store: Any = SimpleNamespace(
        get_batch_tokens=lambda n: tokens, store_batch_size_prompts=len(tokens), context_size=128, reset_input_dataset=lambda: None
    )
    config = EvalConfig(compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True)
    found, _ = run_evals(SAE.load_from_disk(folder), store, bridge, ActivationScaler(), config, exclude_special_tokens=False)
    return {name: value for group in found.values() for name, value in group.items()}


def test_saelens_evaluation_agrees_on_an_sae(bridge: Any, sae: Any) -> None:
    pytest.importorskip("sae_lens", reason="the second witness is SAELens")
    theirs = run_evals(bridge, ModelPair.open().folder / "sae-blocks-0-mlp-hook_post")
    batches = np.array_split(WINDOWS[:, :-1], 3)
    ours = reconstruction(bridge, sae, batches) | activation(bridge, sae, batches)
    names = {"explained_variance": "explained_variance", "squared_error": "mse", "cosine": "cossim", "norm_ratio": "l2_ratio"}
    for name, their_name in (names | {"reconstruction_bias": "relative_reconstruction_bias", "l0": "l0"}).items():
        assert ours[name].value == pytest.approx(theirs[their_name], rel=1e-4), name


def test_saelens_evaluation_of_a_transcoder_is_of_its_input(bridge: Any, tmp_path: Path) -> None:
    """It takes the input for the target (sae-lens 6.54): a transcoder that is right about the output gets another number."""
    pytest.importorskip("sae_lens", reason="the second witness is SAELens")
    hooks, windows = ("blocks.0.mlp.hook_act_in", "blocks.0.hook_mlp_out"), ModelPair.open().windows["reference"]
    config = TranscoderTrainingConfig(d_sae=96, k=6, tokens=12_000, batch_size=256, buffer_tokens=2048, lr=3e-3)
    kept = [windows[240:]]
    trained = train_transcoder(
        bridge, *hooks, np.array_split(windows[:240], 30), config, tmp_path / "t", held_out=kept, progress=False
    )
    theirs = run_evals(bridge, trained.folder)["explained_variance"]
    ours = reconstruction(bridge, trained.dictionary, [WINDOWS[:, :-1]])["explained_variance"].value
    _, cache = bridge.run_with_cache(torch.from_numpy(WINDOWS[:, :-1]), names_filter=list(hooks))
    x, y = (cache[hook].flatten(0, 1).double() for hook in hooks)
    rebuilt = trained.dictionary.decode(trained.dictionary.encode(x.float())).double()
    explained = [1 - float((t - rebuilt).pow(2).sum() / (t - t.mean(0)).pow(2).sum()) for t in (x, y)]
    assert theirs == pytest.approx(explained[0], abs=1e-4) and ours == pytest.approx(explained[1], abs=1e-6)
    assert abs(theirs - explained[1]) > 0.05
