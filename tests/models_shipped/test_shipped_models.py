"""The shipped models are what their cards say, and fit for the comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse_lens.circuits import both_sides
from sparse_lens.circuits.scoring import logit_differences
from sparse_lens.circuits.trust.verdicts import ACCURACY_GATE
from sparse_lens.comparisons import ModelPair, model_facts
from sparse_lens.comparisons.circuit_sizes import HELDOUT_PAIRS
from sparse_lens.comparisons.curves.loss_matching import TOLERANCE
from sparse_lens.comparisons.pair import ROLES
from sparse_lens.errors import CheckpointError, ConfigError
from sparse_lens.hooks import load
from sparse_lens.models_shipped import CARD_FILE, address_of, describe_models, folder_at, shipped_models, shipped_pairs
from sparse_lens.tasks import get_task

PAIR = ModelPair.open("python")


def test_addresses_are_names_wherever_the_package_is_installed(tmp_path: Path) -> None:
    for name, folder in (shipped_models() | shipped_pairs()).items():
        assert address_of(folder) == name
    assert all(folder_at(name) == folder for name, folder in shipped_models().items())
    assert folder_at(address_of(tmp_path)) == tmp_path and PAIR.address == "python"
    for pair in PAIR.training_seeds():
        assert str(PAIR.folder) not in pair.address and ModelPair.at(pair.address).replaced == pair.replaced
    with pytest.raises(CheckpointError, match="folder python-dense"):
        PAIR.with_models(dense=Path("python-dense"))  # a path is meant as one, whatever it is called


def test_everything_together_is_small() -> None:
    size = sum(path.stat().st_size for pair in shipped_pairs().values() for path in pair.rglob("*") if path.is_file())
    assert size <= 40e6


@pytest.mark.parametrize("role", ROLES)
def test_card_equals_the_model(role: str) -> None:
    facts = model_facts(PAIR.open_model(role), PAIR.windows["heldout"])
    card = json.loads((PAIR.model_folder(role) / CARD_FILE).read_text())
    for name in ("parameters", "nonzeros"):
        assert card[name] == facts[name].value
    assert card["loss"] == pytest.approx(facts["loss"].value, abs=1e-3)
    assert card["command"].startswith("sparse-lens train --recipe")


def test_matched_model_is_matched_and_narrower() -> None:
    losses = {model["name"]: model["loss"] for model in describe_models()}
    assert abs(losses[PAIR.model_name("dense_matched")] - losses[PAIR.model_name("sparse")]) <= TOLERANCE
    widths = {role: PAIR.open_model(role).model_config.d_model for role in ROLES}
    assert widths["dense_matched"] < widths["dense"] == widths["sparse"]


def test_three_models_saw_equal_tokens_in_equal_order() -> None:
    records = [json.loads((PAIR.model_folder(role) / "training.json").read_text()) for role in ROLES]
    for field in ("batch_size", "context", "steps", "data_seed"):
        assert len({record["config"][field] for record in records}) == 1
    assert len({record["data"] for record in records}) == 1


def test_the_arms_are_what_they_control_for() -> None:
    """As many nonzeros as the sparse model; all weights, with the sparse model's AbsTopK."""
    sparse, arms = PAIR.open_model("sparse"), {name: load(folder) for name, folder in PAIR.arms().items()}
    windows = PAIR.windows["heldout"][:8]
    facts = {name: model_facts(bridge, windows) for name, bridge in (arms | {"sparse": sparse}).items()}
    assert facts["magnitude_pruned"]["matrix_nonzeros"].value == facts["sparse"]["matrix_nonzeros"].value
    nonzeros, all_weights = (facts["dense_abstopk"][name].value for name in ("matrix_nonzeros", "matrix_parameters"))
    assert nonzeros == pytest.approx(all_weights, rel=1e-5)  # float16 has no number for the least
    config = arms["dense_abstopk"].model_config
    assert (config.afrac, config.afrac_loctypes) == (sparse.model_config.afrac, sparse.model_config.afrac_loctypes)


def test_arms_of_another_form_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    shutil.copytree(PAIR.folder, folder)
    record = json.loads((folder / "pair.json").read_text())
    for arms, words in ((["x"], "arms must name a folder each"), ({"x": "nowhere"}, "nowhere")):
        (folder / "pair.json").write_text(json.dumps(record | {"arms": arms}))
        with pytest.raises(CheckpointError, match=words):
            ModelPair.open(folder)


def test_arms_belong_to_the_pairs_own_models(tmp_path: Path) -> None:
    """A pair with other models has no arms, and an arm reads the pair's tokens."""
    assert PAIR.with_models(sparse=PAIR.model_folder("sparse")).arms() == {}
    tokenizer = json.loads((PAIR.model_folder("sparse") / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {word + "x": number for word, number in tokenizer["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="another tokenizer"):
        PAIR.check_tokens(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_default_tasks_pass_the_gate(role: str) -> None:
    bridge = PAIR.open_model(role)
    tasks = PAIR.default_tasks
    assert tasks is not None and len(tasks) >= 5
    for name in tasks:
        prompts = both_sides(get_task(name).sample(bridge.tokenizer, HELDOUT_PAIRS, seed=0, split="heldout"))
        accuracy = float((logit_differences(bridge, prompts, []) > 0).float().mean())
        assert accuracy >= ACCURACY_GATE, name


def test_windows_are_tokens_of_the_vocabulary() -> None:
    vocabulary = PAIR.open_model("sparse").model_config.vocab_size
    for windows in PAIR.windows.values():
        assert windows.dtype == np.int64 and windows.min() >= 0 and windows.max() < vocabulary


def test_every_layer_of_the_matched_model_has_an_sae() -> None:
    hooks = {dictionary.hook_out for dictionary in PAIR.dictionaries()}
    assert hooks == {f"blocks.{layer}.mlp.hook_post" for layer in range(2)}
    assert all(dictionary.n_latents <= 2048 for dictionary in PAIR.dictionaries())
