"""The whole comparison on real models, and patching against a plain loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_lens.circuits import EDGE_KINDS, SearchConfig
from sparse_lens.comparisons import COLUMNS, ModelPair, compare, patch_task
from sparse_lens.comparisons.circuit_sizes import Setting
from sparse_lens.comparisons.head_patching import pairs_of_one_layout
from sparse_lens.errors import CheckpointError
from sparse_lens.hooks import load
from sparse_lens.models_shipped import find_pair
from sparse_lens.results import to_plain
from sparse_lens.tasks import get_task

QUICK = SearchConfig(steps=30, search_pairs=64, evaluation_pairs=48, evaluations=6)


def test_patching_equals_a_plain_loop() -> None:
    """One head patched by hand over the same prompts."""
    bridge = load("python-dense-matched")
    table = patch_task(bridge, "if_equals", n_pairs=4)
    batch = pairs_of_one_layout(get_task("if_equals"), bridge.tokenizer, 4, seed=0)
    assert len({tuple(np.flatnonzero(differ)) for differ in batch.clean != batch.corrupt}) == 1
    clean, corrupt = torch.from_numpy(batch.clean), torch.from_numpy(batch.corrupt)
    hook = "blocks.1.attn.hook_z"
    _, cache = bridge.run_with_cache(clean, names_filter=hook)

    def difference(logits: torch.Tensor) -> float:
        rows = [logits[i, -1, batch.target[i]] - logits[i, -1, batch.distractor[i]] for i in range(len(batch))]
        return float(torch.stack(rows).mean())

    def patch(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        z[:, :, 1] = cache["blocks.1.attn.hook_z"][:, :, 1]
        return z

    with torch.no_grad():
        high, low = difference(bridge(clean)), difference(bridge(corrupt))
        patched = difference(bridge.run_with_hooks(corrupt, fwd_hooks=[(hook, patch)]))
    assert table.clean_difference == pytest.approx(high, abs=1e-4)
    assert float(table.heads[1, 1]) == pytest.approx((patched - low) / (high - low), abs=1e-4)


def pair_of_equals(folder: Path) -> ModelPair:
    """A pair whose three models are one and the same."""
    source = find_pair("python")
    record = json.loads((source / "pair.json").read_text())
    for role in ("sparse", "dense", "dense_matched"):
        shutil.copytree(source / record["dense_matched"], folder / role)
    shutil.copy(source / "windows.safetensors", folder)
    names = {role: role for role in ("sparse", "dense", "dense_matched")}
    (folder / "pair.json").write_text(json.dumps({"format": 1, **names, "dictionaries": [], "tasks": ["if_equals", "with_as"]}))
    return ModelPair.open(folder)


@pytest.mark.slow
def test_equal_models_have_equal_circuits(tmp_path: Path) -> None:
    """The known answer of every ratio: one, for columns that hold the same model."""
    metrics = compare(pair_of_equals(tmp_path / "pair"), config=QUICK, progress=False).metrics
    for name in ("edge_ratio_geomean", "node_ratio_geomean", "edge_ratio_geomean_dense"):
        assert metrics["summary"][name].value == pytest.approx(1) or not metrics["summary"][name].measurable
    for task in metrics["tasks"].values():
        sizes = {column["nodes"].value for column in task["columns"].values()}
        assert len(sizes) == 1


@pytest.mark.slow
def test_shipped_pair_gives_every_column() -> None:
    metrics = compare("python", tasks=["if_equals"], config=QUICK, progress=False).metrics
    assert metrics["schema"] == 1 and set(metrics["models"]) == {"sparse", "dense", "dense_matched"}
    for task in metrics["tasks"].values():
        assert tuple(task["columns"]) == COLUMNS
        worst = max(column["full_loss"].value for column in task["columns"].values())
        assert task["target_loss"].value == pytest.approx(max(0.15, 1.15 * worst))
        for name, column in task["columns"].items():
            assert column["accuracy"].value >= 0.9 and column["accuracy"].n >= 256
            assert column["reached"] == (column["circuit_loss"].value <= task["target_loss"].value)
            if name == "dense_sae":
                assert not column["edges"].measurable and column["edges"].reason
            else:
                assert column["edges"].value == sum(column["edges_by_kind"][kind].value for kind in EDGE_KINDS)
    assert not np.isnan(metrics["models"]["sparse"]["loss"].value)


@pytest.mark.slow
def test_what_is_kept_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed goes on where it was: with all cells kept the second run searches nothing and says the same."""
    from sparse_lens.comparisons import column_searches

    pair, config = pair_of_equals(tmp_path / "pair"), SearchConfig(steps=4, search_pairs=32, evaluation_pairs=16, evaluations=4)
    first = compare(pair, tasks=["if_equals"], config=config, progress=False, cache=tmp_path / "cells").metrics
    monkeypatch.setattr(column_searches, "search_column", lambda *a, **k: pytest.fail("searched again"))
    again = compare(pair, tasks=["if_equals"], config=config, progress=False, cache=tmp_path / "cells").metrics
    assert to_plain(again) == to_plain(first)


def test_unknown_task_and_pair_are_refused(tmp_path: Path) -> None:
    from sparse_lens.errors import SparseLensError

    with pytest.raises(SparseLensError, match="if_equals"):
        compare("python", tasks=["if_equal"], progress=False)
    (tmp_path / "pair.json").write_text(json.dumps({"sparse": "a"}))
    with pytest.raises(SparseLensError, match="dense"):
        compare(str(tmp_path), progress=False)
    (tmp_path / "pair.json").write_text(json.dumps({"sparse": "../a", "dense": "b", "dense_matched": "c"}))
    with pytest.raises(SparseLensError, match="outside"):
        compare(str(tmp_path), progress=False)


def test_an_error_in_one_column_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error comes through, and no other column goes on learning masks for minutes."""
    from sparse_lens.comparisons import column_searches

    steps: list[int] = []

    def failing(setting: Setting, target: float, config: SearchConfig, *, seed: int, on_step: Any) -> None:
        if setting.column.name == "sparse_neurons":
            raise KeyError("planted")
        for step in range(100_000):
            on_step()
            steps.append(step)

    monkeypatch.setattr(column_searches, "search_column", failing)
    with pytest.raises(KeyError, match="planted"):
        compare(pair_of_equals(tmp_path / "pair"), tasks=["if_equals"], config=QUICK, progress=False)
    assert len(steps) < 200_000


def test_training_seeds_of_a_pair(tmp_path: Path) -> None:
    """The shipped pair has three, with matched losses by their cards; a pair with a replaced model stands alone."""
    pair = ModelPair.open()
    seeds = pair.training_seeds()
    assert seeds[0] is pair and [seed.model_name("sparse") for seed in seeds[1:]] == ["python-sparse-seed1", "python-sparse-seed2"]
    for seed in seeds:
        losses = [json.loads((seed.model_folder(role) / "card.json").read_text())["loss"] for role in ("sparse", "dense_matched")]
        assert abs(losses[0] - losses[1]) <= 0.05
    replaced = pair.with_models(dense=pair.model_folder("dense"))
    assert replaced.training_seeds()[1:] == [] and pair.with_models(dense="python-dense").address == replaced.address
    shutil.copytree(pair.folder, tmp_path / "pair", ignore=shutil.ignore_patterns("*seed*"))
    with pytest.raises(CheckpointError, match="seed1"):
        ModelPair.open(tmp_path / "pair")
