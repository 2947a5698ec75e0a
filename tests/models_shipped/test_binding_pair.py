"""The shipped pair that binds: both models pass the gate, have read the same and are equally good."""

from __future__ import annotations

import json

import pytest
import torch

from sparse_lens.comparisons import ModelPair, model_facts
from sparse_lens.comparisons.binding import binding_report
from sparse_lens.comparisons.binding.training import binding_recipes
from sparse_lens.comparisons.curves.loss_matching import TOLERANCE
from sparse_lens.comparisons.shipped.binding_pair import binding_accuracies
from sparse_lens.errors import DataError
from sparse_lens.hooks import load, sparsity_report
from sparse_lens.models_shipped import CARD_FILE

PAIR = ModelPair.open("binding")
SEEDS = PAIR.training_seeds()
MODELS = [seed.model_name(role) for seed in SEEDS for role in ("sparse", "dense_matched")]


@pytest.mark.parametrize("name", MODELS)
def test_both_models_bind(name: str) -> None:
    """Two and three variables, numbers and types, with lines between; the card says so."""
    bridge = load(name)
    card = json.loads((PAIR.folder / name / CARD_FILE).read_text())
    for kind, n_vars, distractors in (("value", 3, 2), ("type", 2, 0)):
        found = binding_report(bridge, kind=kind, n_vars=n_vars, distractors=distractors, n_pairs=48)
        assert found["accuracy"].value is not None and found["accuracy"].value >= 0.9 and found["segregation"].measurable
        assert card["binding_accuracies"][f"{kind}_{n_vars}_{distractors}"]["value"] >= 0.9


@pytest.mark.parametrize("name", MODELS)
def test_cards_and_windows_are_the_models(name: str) -> None:
    bridge, windows = load(name), PAIR.windows["heldout"]
    assert windows.shape[1] == bridge.model_config.block_size + 1
    card, facts = json.loads((PAIR.folder / name / CARD_FILE).read_text()), model_facts(bridge, windows)
    assert card["loss"] == pytest.approx(facts["loss"].value, abs=1e-3) and card["nonzeros"] == facts["nonzeros"].value


def test_three_training_seeds() -> None:
    assert len(SEEDS) == 3 and len(set(MODELS)) == 6


@pytest.mark.parametrize("seed", range(3))
def test_a_seeds_models_are_matched_and_saw_equal_tokens(seed: int) -> None:
    folders = [SEEDS[seed].model_folder(role) for role in ("sparse", "dense_matched")]
    sparse, dense = (load(folder) for folder in folders)
    losses = [json.loads((folder / CARD_FILE).read_text())["loss"] for folder in folders]
    assert abs(losses[0] - losses[1]) <= TOLERANCE
    blocks = [matrix for matrix in sparsity_report(sparse).matrices if matrix.name.startswith("blocks.")]
    assert sum(m.nonzeros for m in blocks) / sum(m.entries for m in blocks) == pytest.approx(0.1, abs=0.01)
    assert min(matrix.density for matrix in sparsity_report(dense).matrices) > 0.99
    assert sparse.model_config.afrac is None and dense.model_config.afrac is None
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    for field in ("batch_size", "context", "steps", "data_seed", "seed"):
        assert len({record["config"][field] for record in records}) == 1
    assert len({record["data"] for record in records}) == 1 and records[0]["config"]["seed"] == seed
    assert {record["config"]["name"] for record in records} <= {
        config.with_seed(seed).name for config in binding_recipes().values()
    }


def test_a_model_that_does_not_bind_is_refused() -> None:
    bridge = load("binding-sparse")
    with torch.no_grad():
        for parameter in bridge.original_model.core.blocks[1].parameters():
            parameter.zero_()
    with pytest.raises(DataError, match="below the gate"):
        binding_accuracies(bridge)
