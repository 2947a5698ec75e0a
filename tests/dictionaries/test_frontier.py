"""A frontier equals single trainings, harvests once, goes on after a kill, and does not mix sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_lens.dictionaries import SAETrainingConfig, activation_store, frontier, frontier_configs, train_frontier, train_sae
from sparse_lens.dictionaries.activation_store import stored_activations
from sparse_lens.errors import CheckpointError, ConfigError, DataError

HOOK = "blocks.0.mlp.hook_post"
BASE = SAETrainingConfig(
    d_sae=32, k=4, tokens=1200, batch_size=100, buffer_tokens=1000, dead_window=1000, held_out_tokens=512, lr=3e-3
)


@pytest.fixture(scope="module")
def bridge() -> Any:
    pytest.importorskip("sae_lens", reason="training an SAE needs sae-lens")
    from sparse_lens.hooks import wrap
    from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM

    torch.manual_seed(0)
    config = CircuitGPTConfig(vocab_size=20, block_size=16, n_layer=1, n_head=2, d_head=8, d_model=16, d_mlp=24)
    return wrap(CircuitGPTForCausalLM(config).eval(), name="tiny")


def batches(n: int = 200, seed: int = 3) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(20, (4, 16), generator=generator) for _ in range(n))


def test_the_grid_leaves_out_what_cannot_be() -> None:
    configs = frontier_configs(BASE, d_sae=[8, 32], k=[4, 16], seeds=[0, 1], architectures=["topk", "batchtopk"])
    assert len(configs) == 2 * 3 * 2 and all(config.k <= config.d_sae for config in configs)
    assert len({frontier.frontier_name(config) for config in configs}) == len(configs)
    assert frontier.frontier_name(BASE) != frontier.frontier_name(BASE.model_copy(update={"lr": 1e-4}))


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "file"])
def test_a_frontier_equals_single_trainings(bridge: Any, tmp_path: Path, memory_gb: float) -> None:
    configs = frontier_configs(BASE, d_sae=[16, 32], k=[4], seeds=[1], architectures=["topk", "batchtopk"])
    found = train_frontier(bridge, HOOK, batches(), configs, tmp_path / "all", memory_gb=memory_gb, progress=False)
    for number, (config, trained) in enumerate(zip(configs, found, strict=True)):
        alone = train_sae(bridge, HOOK, batches(), config, tmp_path / str(number), progress=False)
        assert trained.dictionary.hash == alone.dictionary.hash and trained.statistics == alone.statistics
        assert trained.statistics.l0 == pytest.approx(4, rel=0.05)
    assert len({trained.dictionary.name for trained in found}) == len(found)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(
        [*(frontier.frontier_name(config) for config in configs), "source.json"]
    )


def test_a_killed_frontier_goes_on(bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = frontier_configs(BASE, d_sae=[16, 32], k=[4], seeds=[0])
    train, done = frontier.train_sae_on, []

    def killed(*args: Any, **named: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(args)
        return train(*args, **named)

    monkeypatch.setattr(frontier, "train_sae_on", killed)
    with pytest.raises(KeyboardInterrupt):
        train_frontier(bridge, HOOK, batches(), configs, tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2  # one SAE and the source: no stored activations are left behind
    trained_now: list[SAETrainingConfig] = []
    monkeypatch.setattr(frontier, "train_sae_on", lambda *args, **named: (trained_now.append(args[2]), train(*args, **named)))
    both = train_frontier(bridge, HOOK, batches(), configs, tmp_path, progress=False)
    assert trained_now == configs[1:] and [trained.dictionary.n_latents for trained in both] == [16, 32]
    again = train_frontier(bridge, HOOK, batches(), configs, tmp_path, progress=False)
    assert trained_now == configs[1:] and [t.dictionary.hash for t in again] == [t.dictionary.hash for t in both]


def test_tokens_are_run_once(bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvest, seen = activation_store.harvest_activations, []

    def counted(bridge: Any, hooks: Any, token_batches: Any) -> Any:
        for found in harvest(bridge, hooks, token_batches):
            seen.append(len(found[HOOK]))
            yield found

    monkeypatch.setattr(activation_store, "harvest_activations", counted)
    configs = frontier_configs(BASE, d_sae=[16], k=[2, 4], seeds=[0, 1])
    train_frontier(bridge, HOOK, batches(), configs, tmp_path, progress=False)
    needed = (BASE.steps + BASE.scale_batches) * BASE.batch_size + 2 * BASE.buffer_tokens + BASE.held_out_tokens
    assert sum(seen) <= needed + 3 * 64  # the sample, and two cut batches


def test_other_activations_are_refused(bridge: Any, tmp_path: Path) -> None:
    train_frontier(bridge, HOOK, batches(), [BASE], tmp_path, progress=False)
    with pytest.raises(ConfigError, match="other activations"):
        train_frontier(bridge, HOOK, batches(seed=4), [BASE], tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"hook 'blocks.0.mlp.hook_post', width 24\), not of 'blocks.0.hook_mlp_out'"):
        train_frontier(bridge, "blocks.0.hook_mlp_out", batches(), [BASE], tmp_path, progress=False)
    with pytest.raises(ConfigError, match="no configurations"):
        train_frontier(bridge, HOOK, batches(), [], tmp_path, progress=False)
    folder = tmp_path / frontier.frontier_name(BASE)
    report = json.loads((folder / "statistics.json").read_text())
    (folder / "statistics.json").write_text(json.dumps(report | {"hash": "0" * 16}))
    with pytest.raises(CheckpointError, match="does not hold the SAE"):
        train_frontier(bridge, HOOK, batches(), [BASE], tmp_path, progress=False)


def test_too_few_tokens(bridge: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ended after \d+ of 1200"):
        train_frontier(bridge, HOOK, batches(15), [BASE], tmp_path / "a", progress=False)
    with pytest.raises(DataError, match="no tokens"):
        train_frontier(bridge, HOOK, batches(8), [BASE], tmp_path / "b", progress=False)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "file"])
def test_stored_activations_are_those_that_came_in(tmp_path: Path, memory_gb: float) -> None:
    given = [torch.randn(7, 3).double(), torch.randn(7, 3).double(), torch.randn(2, 3).double()]
    for n_tokens, expected in ((16, torch.cat(given)), (100, torch.cat(given)), (9, torch.cat(given)[:9])):
        with stored_activations(given, n_tokens, tmp_path / "kept.npy", memory_gb=memory_gb) as stored:
            assert (tmp_path / "kept.npy").exists() == (memory_gb == 0)
            assert len(stored) == len(expected) and next(len(batch) for batch in stored) == 7
            for _ in range(2):
                assert torch.equal(torch.cat(list(stored)), expected.float())
        assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="no tokens"), stored_activations([], 5, tmp_path / "kept.npy"):
        pass
