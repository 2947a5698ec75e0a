"""The five losses, their gradients, and training a coupling."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparse_lens.circuits.sites import model_fingerprint
from sparse_lens.comparisons.couplings.coupling import ridge_coupling
from sparse_lens.comparisons.couplings.hybrids import hybrid_logits
from sparse_lens.comparisons.couplings.losses import LOSSES, OF_COUPLING, coupling_losses, nmse
from sparse_lens.comparisons.couplings.training import (
    STATISTICS,
    CouplingTrainingConfig,
    loss_lines,
    main,
    tokens_to_read,
    train_coupling,
)
from sparse_lens.errors import DataError
from sparse_lens.hooks import wrap
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

GENERATOR = torch.Generator().manual_seed(0)
WINDOWS = np.random.default_rng(0).integers(0, 20, (64, 9))
TOKENS = torch.from_numpy(WINDOWS[:6])
QUICK = CouplingTrainingConfig(tokens=1_000, batch_size=8, ridge_tokens=256, lr=0.02, kl_top=None)


def tiny(d_model: int, seed: int, dtype: torch.dtype = torch.float32):
    config = CircuitGPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, d_head=4, d_model=d_model, d_mlp=10)
    model = CircuitGPTForCausalLM(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" not in name:
                parameter.normal_(std=0.5, generator=generator)
    return wrap(model)


def batches(n: int = 200):
    return (WINDOWS[torch.randint(64, (8,), generator=torch.Generator().manual_seed(step))] for step in range(n))


@pytest.fixture(scope="module")
def twins():
    return tiny(8, 0), tiny(6, 1)


@pytest.fixture(scope="module")
def exact_twins():
    """In float64, with the coupling that they are measured with."""
    dense, sparse = tiny(8, 0, torch.float64), tiny(6, 1, torch.float64)
    return dense, sparse, ridge_coupling(dense, sparse, [WINDOWS[:, :-1]]).double()


def directional(parameters: list[torch.Tensor], loss, step: float = 1e-6) -> tuple[float, float]:
    """The derivative along a random direction, by autograd and by central differences."""
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(parameters)]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    by_graph = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            ends.append(float(loss()))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter += step * direction
    return by_graph, (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("kl_top", [None, 5])
@pytest.mark.parametrize("name", OF_COUPLING)
def test_gradients_to_the_coupling(exact_twins, name: str, kl_top: int | None) -> None:
    dense, sparse, coupling = exact_twins
    by_graph, by_steps = directional(
        list(coupling.parameters()), lambda: coupling_losses(dense, sparse, coupling, TOKENS, kl_top=kl_top)[name]
    )
    assert by_graph == pytest.approx(by_steps, rel=1e-5) and abs(by_graph) > 1e-3


@pytest.mark.parametrize("name", LOSSES[:2])
def test_gradients_to_the_sparse_model(exact_twins, name: str) -> None:
    """Which the paper trains along; the coupling has no part in these two."""
    dense, sparse, coupling = exact_twins
    parameters = [
        sparse.original_model.core.blocks[layer].mlp.original_component.fc_in.original_component.weight for layer in (0, 1)
    ]
    losses = lambda: coupling_losses(dense, sparse, coupling, TOKENS)[name]  # noqa: E731
    by_graph, by_steps = directional(parameters, losses)
    assert by_graph == pytest.approx(by_steps, rel=1e-5) and abs(by_graph) > 1e-3
    assert all(g is None for g in torch.autograd.grad(losses(), list(coupling.parameters()), allow_unused=True))


def test_losses_are_what_they_are_called(exact_twins) -> None:
    """Second witness: torch's own losses on logits that were made one by one."""
    dense, sparse, coupling = exact_twins
    ids, following = TOKENS[:, :-1], TOKENS[:, 1:]
    with torch.no_grad():
        losses = coupling_losses(dense, sparse, coupling, TOKENS, kl_top=None)
        target = dense(ids).log_softmax(-1)

        def divergence(logits):
            kl = F.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="none")
            return float(kl.sum(-1).mean())

        assert float(losses["sparse_loss"]) == pytest.approx(float(F.cross_entropy(sparse(ids).mT, following)))
        assert float(losses["distillation"]) == pytest.approx(divergence(sparse(ids)))
        for name in OF_COUPLING[1:]:
            hybrids = [hybrid_logits(dense, sparse, coupling, ids, at, name) for at in range(5)]
            assert float(losses[name]) == pytest.approx(sum(map(divergence, hybrids)))
            some = coupling_losses(dense, sparse, coupling, TOKENS, kl_top=None, hybrids_at=[1, 3])[name]
            assert float(some) == pytest.approx(5 / 2 * (divergence(hybrids[1]) + divergence(hybrids[3])))


def test_nmse_of_known_predictions() -> None:
    wanted = torch.randn(3, 4, 5, generator=GENERATOR)
    assert float(nmse(wanted, wanted)) == 0
    assert float(nmse(wanted.mean((0, 1)).expand_as(wanted), wanted)) == pytest.approx(1)
    assert float(nmse(2 * wanted - wanted.mean((0, 1)), wanted)) == pytest.approx(1)


def test_training_lowers_the_losses_of_hybrids(twins, tmp_path: Path) -> None:
    state, fingerprints = torch.random.get_rng_state(), [model_fingerprint(bridge) for bridge in twins]
    wanted = [parameter.requires_grad for bridge in twins for parameter in bridge.parameters()]
    trained = train_coupling(*twins, batches(), QUICK, tmp_path / "c", held_out=WINDOWS[:4], progress=False)
    report = json.loads((tmp_path / "c" / STATISTICS).read_text())
    closed_form = ridge_coupling(*twins, [batch[:, :-1] for batch in batches(4)])
    with torch.no_grad():
        before, after = (coupling_losses(*twins, c, torch.from_numpy(WINDOWS)) for c in (closed_form, trained.coupling))
    assert all(after[name] < before[name] for name in OF_COUPLING[1:])
    assert sum(after[name] for name in OF_COUPLING) < sum(before[name] for name in OF_COUPLING)
    assert set(report["curve"][0]) == {"tokens", *LOSSES}
    assert report["held_out"]["loss_dense"] == report["held_out_before"]["loss_dense"]
    assert report["config"]["lr"] == 0.02
    trained.coupling.check_models(*twins)
    assert fingerprints == [model_fingerprint(bridge) for bridge in twins]
    assert wanted == [parameter.requires_grad for bridge in twins for parameter in bridge.parameters()]
    assert torch.equal(state, torch.random.get_rng_state())
    assert "nothing crosses" in loss_lines(trained.statistics)


def test_equal_seeds_give_equal_maps(twins, tmp_path: Path) -> None:
    """From random maps, with boundaries drawn; and another seed gives others."""
    config = QUICK.model_copy(update={"tokens": 256, "start": "random", "boundaries_per_step": 2})
    seeds = (1, 1, 2)
    maps = [
        train_coupling(
            *twins, batches(), config.model_copy(update={"seed": seed}), tmp_path / str(run), held_out=WINDOWS[:4], progress=False
        ).coupling.encoder_weight
        for run, seed in enumerate(seeds)
    ]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])


def test_no_tokens_to_train_on_leave_the_closed_form(twins, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"tokens": 0, "ridge_tokens": 8 * 64})
    trained = train_coupling(*twins, [WINDOWS[:40], WINDOWS[40:]], config, tmp_path / "c", held_out=WINDOWS[:4], progress=False)
    expected = ridge_coupling(*twins, [WINDOWS[:, :-1]])
    assert torch.allclose(trained.coupling.encoder_weight, expected.encoder_weight, atol=1e-6)


def test_too_few_tokens_leave_no_folder(twins, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 1000 to train on"):
        train_coupling(*twins, batches(10), QUICK, tmp_path / "c", held_out=WINDOWS[:4], progress=False)
    with pytest.raises(DataError, match="of ridge_tokens=256"):
        train_coupling(*twins, batches(1), QUICK, tmp_path / "c", held_out=WINDOWS[:4], progress=False)
    with pytest.raises(DataError, match=r"\[batch, context \+ 1\]"):
        train_coupling(*twins, [WINDOWS[0]], QUICK, tmp_path / "c", held_out=WINDOWS[:4], progress=False)
    assert not list(tmp_path.iterdir())


def test_the_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "--boundaries-per-step" in capsys.readouterr().out


@pytest.mark.parametrize(("tokens", "context"), [(200_000, 128), (1_000_000, 128), (200_000, 96), (1, 64)])
def test_as_many_tokens_are_read_as_are_trained_on(tokens: int, context: int) -> None:
    """Of each window one token is only a target, and windows that do not fill a batch are dropped."""
    windows = -(-tokens_to_read(tokens, context, 16) // (context + 1))
    assert windows // 16 * 16 * context >= tokens
