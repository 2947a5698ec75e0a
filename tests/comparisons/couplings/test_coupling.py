"""Couplings: closed form, files, hybrids; a model coupled with itself, and with a copy whose channels are permuted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.couplings.coupling import (
    MAPS_FILE,
    RECORD_FILE,
    Coupling,
    RidgeSums,
    load_coupling,
    ridge_coupling,
    shared_boundaries,
)
from sparse_lens.comparisons.couplings.hybrids import hybrid_logits, hybrid_losses, replaced_stream, streams
from sparse_lens.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.training import window_losses

WINDOWS = np.random.default_rng(0).integers(0, 20, (40, 9))


def tiny(d_model: int, seed: int, n_layer: int = 2, vocab_size: int = 20) -> CircuitGPTForCausalLM:
    config = CircuitGPTConfig(
        vocab_size=vocab_size,
        block_size=8,
        n_layer=n_layer,
        n_head=2,
        d_head=4,
        d_model=d_model,
        d_mlp=10,
        enable_bigram_table=True,
    )
    model = CircuitGPTForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.normal_(std=0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def twins():
    return wrap(tiny(12, 0)), wrap(tiny(8, 1))


def permuted(model: CircuitGPTForCausalLM, order: torch.Tensor) -> CircuitGPTForCausalLM:
    """The same function with the residual channels in another order."""
    copy = CircuitGPTForCausalLM(model.config)
    state = {}
    for name, tensor in model.state_dict().items():
        reads = name.endswith(("wte.weight", "wpe.weight", "q.weight", "k.weight", "v.weight", "fc_in.weight", "lm_head.weight"))
        writes = ".ln_" in name or any(f"{part}.{kind}" in name for part in ("attn.o", "fc_out") for kind in ("weight", "bias"))
        state[name] = tensor[:, order] if reads else tensor[order] if writes else tensor
    copy.load_state_dict(state)
    return copy


def identity(bridge) -> Coupling:
    boundaries, d = shared_boundaries(bridge, bridge), bridge.cfg.d_model
    coupling = Coupling(boundaries, d, d, kept=None, models=(model_fingerprint(bridge),) * 2)
    with torch.no_grad():
        coupling.encoder_weight += torch.eye(d)
        coupling.decoder_weight += torch.eye(d)
    return coupling


def test_boundaries_are_before_each_sublayer_and_after_the_last(twins) -> None:
    assert shared_boundaries(*twins) == (
        "blocks.0.hook_in",
        "blocks.0.resid_mid.hook_out",
        "blocks.1.hook_in",
        "blocks.1.resid_mid.hook_out",
        "blocks.1.hook_out",
    )
    with pytest.raises(ConfigError, match="2 and 1 layers"):
        shared_boundaries(twins[0], wrap(tiny(8, 1, n_layer=1)))
    with pytest.raises(DataError, match="tokenizers of their own"):
        shared_boundaries(twins[0], wrap(tiny(8, 1, vocab_size=21)))


def test_the_stream_is_on_the_path_at_every_boundary(twins) -> None:
    """Putting back what was there changes nothing; putting in something else does."""
    bridge, tokens = twins[0], torch.from_numpy(WINDOWS[:4, :-1])
    with torch.no_grad():
        logits, found = streams(bridge, shared_boundaries(*twins), tokens)
        for hook, stream in zip(shared_boundaries(*twins), found, strict=True):
            with replaced_stream(bridge, hook, stream):
                assert torch.equal(bridge(tokens), logits)
            with replaced_stream(bridge, hook, 2 - stream):
                assert (bridge(tokens) - logits).abs().max() > 0.1
    assert torch.equal(bridge(tokens), logits)


def test_a_model_coupled_with_itself_by_the_identity(twins) -> None:
    bridge = twins[0]
    results = hybrid_losses(bridge, bridge, identity(bridge), WINDOWS)
    own = window_losses(bridge, WINDOWS).mean()
    assert len(results) == 12
    assert all(result.value == pytest.approx(own, abs=1e-5) for result in results.values())


def test_a_model_coupled_with_itself_in_closed_form(twins) -> None:
    bridge = twins[0]
    coupling = ridge_coupling(bridge, bridge, [WINDOWS[:, :-1]], ridge=1e-9)
    eye = torch.eye(12).expand(5, 12, 12)
    assert torch.allclose(coupling.encoder_weight, eye, atol=1e-4) and torch.allclose(coupling.decoder_weight, eye, atol=1e-4)
    own = window_losses(bridge, WINDOWS).mean()
    results = hybrid_losses(bridge, bridge, coupling, WINDOWS)
    assert all(result.value == pytest.approx(own, abs=1e-5) for result in results.values())


def test_a_permuted_copy_gives_the_permutation_back() -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    bridge, copy = wrap(tiny(12, 0)), wrap(permuted(tiny(12, 0), order))
    tokens = torch.from_numpy(WINDOWS[:, :-1])
    with torch.no_grad():
        assert torch.allclose(bridge(tokens), copy(tokens), atol=1e-4)
    coupling = ridge_coupling(bridge, copy, [tokens], ridge=1e-9)
    expected = torch.eye(12)[:, order].expand(5, 12, 12)
    assert torch.allclose(coupling.encoder_weight, expected, atol=1e-4)
    assert torch.allclose(coupling.decoder_weight, expected.mT, atol=1e-4)
    results = hybrid_losses(bridge, copy, coupling, WINDOWS)
    assert all(result.value == pytest.approx(results["loss_dense"].value, abs=1e-5) for result in results.values())


def test_hybrids_by_hand(twins) -> None:
    """Second witness: the blocks of the core modules called one after the other."""
    dense, sparse = twins
    coupling = ridge_coupling(dense, sparse, [WINDOWS[:, :-1]])
    tokens = torch.from_numpy(WINDOWS[:3, :-1])

    def core(bridge):
        return bridge.original_model.core

    def stream_after_first(bridge):
        part = core(bridge)
        found = part.blocks[0](part.wte(tokens) + part.wpe(torch.arange(8)))
        return found[0] if isinstance(found, tuple) else found  # TransformerLens' block returns a tuple on some versions

    def finish(bridge, stream):
        part = core(bridge)
        found = part.blocks[1](stream)
        return part.lm_head(part.ln_f(found[0] if isinstance(found, tuple) else found)) + part.bigram_table(tokens)

    with torch.no_grad():
        there = finish(sparse, stream_after_first(dense) @ coupling.encoder_weight[2] + coupling.encoder_bias[2])
        back = finish(dense, stream_after_first(sparse) @ coupling.decoder_weight[2] + coupling.decoder_bias[2])
        assert torch.allclose(hybrid_logits(dense, sparse, coupling, tokens, 2, "dense_to_sparse"), there, atol=1e-5)
        assert torch.allclose(hybrid_logits(dense, sparse, coupling, tokens, 2, "sparse_to_dense"), back, atol=1e-5)
    with pytest.raises(UnknownNameError, match="direction 'sideways'"):
        hybrid_logits(dense, sparse, coupling, tokens, 2, "sideways")


def test_the_null_lets_nothing_through(twins) -> None:
    dense, sparse = twins
    coupling = ridge_coupling(dense, sparse, [WINDOWS[:, :-1]])
    nothing = ridge_coupling(dense, sparse, [WINDOWS[:, :-1]], ridge=1e12)
    found, empty = (hybrid_losses(dense, sparse, each, WINDOWS) for each in (coupling, nothing))
    for name, result in empty.items():
        if "_at_" in name:
            assert result.value == pytest.approx(result.null, abs=1e-4)
            assert found[name].null == pytest.approx(result.null, abs=1e-6)


def test_the_closed_form_is_least_squares() -> None:
    """By numpy, on rows that hold the penalty; and whatever the batches."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 4, generator=generator) * 3 + 1, torch.randn(500, 3, generator=generator)
    y = y + x @ torch.randn(4, 3, generator=generator)
    whole, parts = RidgeSums(), RidgeSums()
    whole.add(x, y)
    for rows in torch.randperm(500, generator=generator).split(77):
        parts.add(x[rows], y[rows])
    for one, other in zip(whole.maps(0.1), parts.maps(0.1), strict=True):
        assert torch.allclose(one, other)
    centered, target = ((side - side.mean(0)).double().numpy() for side in (x, y))
    penalty = np.sqrt(0.1 * centered.var(0).mean() * 500) * np.eye(4)
    expected = np.linalg.lstsq(np.concatenate([centered, penalty]), np.concatenate([target, np.zeros((4, 3))]), rcond=None)[0]
    assert np.allclose(whole.maps(0.1)[0], expected)
    assert torch.allclose(x.mean(0).double() @ whole.maps(0.1)[0] + whole.maps(0.1)[1], y.mean(0).double(), atol=1e-6)


def test_sums_refuse_what_is_no_stream() -> None:
    with pytest.raises(DataError, match="1 activations"):
        RidgeSums().add(torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2))
    with pytest.raises(DataError, match="at least one batch"):
        RidgeSums().maps(1.0)
    constant = RidgeSums()
    constant.add(torch.ones(5, 2), torch.ones(5, 2))
    with pytest.raises(DataError, match="does not vary"):
        constant.maps(1.0)


def test_the_encoder_keeps_the_largest(twins) -> None:
    coupling = ridge_coupling(*twins, [WINDOWS[:, :-1]], kept=3)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    encoded = coupling.encode(1, x)
    linear = x @ coupling.encoder_weight[1] + coupling.encoder_bias[1]
    assert ((encoded != 0).sum(-1) == 3).all() and torch.equal(encoded[encoded != 0], linear[encoded != 0])
    with pytest.raises(ConfigError, match="kept=9 of 8"):
        Coupling(("a",), 12, 8, kept=9, models=("", ""))


def test_a_coupling_comes_back_from_its_folder(twins, tmp_path: Path) -> None:
    coupling = ridge_coupling(*twins, [WINDOWS[:, :-1]], kept=5)
    coupling.save(tmp_path / "coupling")
    again = load_coupling(tmp_path / "coupling")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in coupling.state_dict().items())
    assert (again.boundaries, again.kept, again.models) == (coupling.boundaries, 5, coupling.models)
    again.check_models(*twins)
    with pytest.raises(ConfigError, match="belongs to the dense model"):
        again.check_models(twins[1], twins[0])
    coupling.save(tmp_path / "coupling")  # over its own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "another format"),
        ({"boundaries": []}, "no boundaries"),
        ({"boundaries": ["a"]}, "expected finite"),
        ({"kept": -1}, "kept=-1"),
        ({"models": ["one"]}, "damaged"),
    ],
)
def test_damaged_records_are_refused(twins, tmp_path: Path, change: dict, message: str) -> None:
    folder = tmp_path / "coupling"
    ridge_coupling(*twins, [WINDOWS[:, :-1]]).save(folder)
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        load_coupling(folder)


def test_damaged_maps_are_refused(twins, tmp_path: Path) -> None:
    folder = tmp_path / "coupling"
    ridge_coupling(*twins, [WINDOWS[:, :-1]]).save(folder)
    tensors = load_file(folder / MAPS_FILE)
    save_file(tensors | {"encoder_bias": tensors["encoder_bias"] * torch.inf}, folder / MAPS_FILE)
    with pytest.raises(CheckpointError, match="encoder_bias is"):
        load_coupling(folder)
    save_file({"other": torch.zeros(1)}, folder / MAPS_FILE)
    with pytest.raises(CheckpointError, match="a coupling has encoder_weight"):
        load_coupling(folder)
    (folder / MAPS_FILE).write_bytes(b"")  # as released ones are
    with pytest.raises(CheckpointError, match="no readable coupling"):
        load_coupling(folder)
    with pytest.raises(CheckpointError, match="no readable coupling"):
        load_coupling(tmp_path / "nothing")


def test_hooks_go_after_an_error(twins) -> None:
    bridge = twins[0]
    before = {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()}
    with pytest.raises(RuntimeError), replaced_stream(bridge, "blocks.1.hook_in", torch.zeros(2, 3, 4)):
        bridge(torch.zeros(2, 3, dtype=torch.long))
    assert {name: len(point._forward_hooks) for name, point in bridge.hook_dict.items()} == before


def test_the_shipped_twins() -> None:
    """A ridge coupling of the matched model carries most of what crosses to it."""
    pair = ModelPair.open()
    dense, sparse = pair.open_model("dense_matched"), pair.open_model("sparse")
    coupling = ridge_coupling(dense, sparse, [pair.windows["reference"][start : start + 4, :64] for start in (0, 128)])
    assert isinstance(coupling, nn.Module) and coupling.encoder_weight.shape == (5, 56, 256)
    results = hybrid_losses(dense, sparse, coupling, pair.windows["heldout"][:4, :65])
    for hook in coupling.boundaries:
        hybrid = results[f"loss_sparse_to_dense_at_{hook}"]
        assert results["loss_dense"].value - 0.1 < hybrid.value < hybrid.null
