"""Thirty steps on a tiny corpus: the run is repeatable, resumes bit for bit, and refuses what does not belong to it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparse_lens.circuits.search.nodes import default_windows
from sparse_lens.data import TokenData, load_tokenizer
from sparse_lens.errors import CheckpointError, ConfigError, DataError, OutputError, UnknownNameError
from sparse_lens.hooks import load
from sparse_lens.models import CircuitGPTForCausalLM, load_checkpoint
from sparse_lens.models_shipped import read_windows
from sparse_lens.training import (
    TopK,
    TrainingConfig,
    TrainingResult,
    train,
    window_losses,
)
from sparse_lens.training.optimizer import scale_gradient
from sparse_lens.training.run import resolve_precision


@pytest.fixture(scope="module")
def dense(tiny: TrainingConfig) -> TrainingConfig:
    """The weight-dense twin."""
    plain = {name: value for name, value in tiny.model.items() if name != "afrac" and "bigram" not in name}
    return tiny.model_copy(update={"name": "dense", "model": plain, "sparsity": None})


class Interruption(Exception):
    """Stands for a machine that goes down."""


class RecordedData(TokenData):
    """Token data that remember the batches they gave."""

    def resumable_batches(self, **options: Any) -> Any:
        for batch, state in super().resumable_batches(**options):
            self.__dict__.setdefault("seen", []).append(batch)
            yield batch, state


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    clock = ("seconds", "evaluation_seconds", "tokens_per_second")
    return [{name: value for name, value in row.items() if name not in clock} for row in history]


def assert_same_run(result: TrainingResult, expected: TrainingResult) -> None:
    """Equal weights and equal log, bit for bit; only the clock may differ."""
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(result.model.get_parameter(name), parameter), name
    assert without_seconds(result.history) == without_seconds(expected.history)
    assert result.loss == expected.loss


def test_bfloat16_products_learn_as_well(finished: TrainingResult, data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """Half precision of the products costs little; weights stay float32, and the record says what was used."""
    half = train(tiny.model_copy(update={"precision": "bfloat16"}), data, tmp_path / "half", progress=False)
    assert half.loss == pytest.approx(finished.loss, rel=0.05) and half.loss != finished.loss
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "half" / "training.json").read_text())["precision"] == "bfloat16"


def test_automatic_precision_is_one_of_the_two() -> None:
    assert resolve_precision("auto") in ("float32", "bfloat16")
    assert resolve_precision("bfloat16") == "bfloat16"


def stop_at(step: int) -> Any:
    """A callback that ends the run at the evaluation of that step, before its checkpoint."""

    def callback(model: CircuitGPTForCausalLM, now: int) -> dict[str, float]:
        assert not model.training
        if now == step:
            raise Interruption
        return {}

    return callback


def test_it_learns(finished: TrainingResult, data: TokenData) -> None:
    """The loss starts near that of a uniform guess and falls; the log has a row for every evaluation."""
    assert [row["step"] for row in finished.history] == [10, 20, 30]
    losses = [row["loss"] for row in finished.history]
    assert losses[-1] < losses[0] < math.log(data.vocab_size) + 0.5
    assert losses[-1] < math.log(data.vocab_size) - 0.5
    assert finished.loss == losses[-1]


def test_the_loss_is_the_models(finished: TrainingResult, data: TokenData, tiny: TrainingConfig) -> None:
    """The reported loss is the mean over the held-out windows, whatever the batch size."""
    windows = data.validation_windows(tiny.context, tiny.evaluation_windows)
    for batch_size in (3, 8):
        losses = window_losses(finished.model.core, windows, batch_size=batch_size)
        assert losses.shape == (tiny.evaluation_windows,)
        assert losses.mean() == pytest.approx(finished.loss, abs=1e-4)


def test_the_model_is_sparse(finished: TrainingResult) -> None:
    """The final density, to the entry."""
    core = finished.model.core
    assert int((core.wte.weight != 0).sum()) == int(0.4 * core.wte.weight.numel())
    weight = core.blocks[1].get_parameter("mlp.fc_in.weight")
    assert int((weight != 0).sum()) == int(0.2 * weight.numel())


def test_the_folder_holds_the_model(finished: TrainingResult, data: TokenData, tiny: TrainingConfig) -> None:
    """Weights, tokenizer and a record of the run, as Hugging Face names them."""
    loaded = load_checkpoint(finished.folder)
    for name, parameter in finished.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    assert load_tokenizer(finished.folder).get_vocab() == data.tokenizer.get_vocab()
    record = json.loads((finished.folder / "training.json").read_text())
    assert record["format"] == 2
    assert (finished.folder / "model.safetensors").is_file() and (finished.folder / "config.json").is_file()
    assert TrainingConfig(**record["config"]) == tiny
    assert record["tokens"] == 30 * 4 * 16
    assert record["history"] == finished.history


def test_a_run_repeats(finished: TrainingResult, data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """The same configuration gives the same weights, whatever the random state outside."""
    torch.manual_seed(123)
    assert_same_run(train(tiny, data, tmp_path / "tiny", progress=False), finished)


@pytest.mark.parametrize("step", [10, 20, 30])
def test_a_resumed_run_is_bit_identical(
    finished: TrainingResult, data: TokenData, tmp_path: Path, step: int, tiny: TrainingConfig
) -> None:
    """Interrupted before, between and after checkpoints: no model appears, and the second run ends where one would have."""
    with pytest.raises(Interruption):
        train(tiny, data, tmp_path / "tiny", progress=False, on_evaluation=stop_at(step))
    assert not (tmp_path / "tiny" / "model.safetensors").exists()
    assert bool(list((tmp_path / "tiny" / "checkpoints").glob("step-*"))) == (step > 10)
    assert_same_run(train(tiny, data, tmp_path / "tiny", progress=False), finished)


def test_a_finished_run_is_not_run_again(finished: TrainingResult, data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """It is opened where it is, or written anew from its last checkpoint, without a step."""
    recorded = RecordedData(data.directory)
    there = train(tiny, recorded, finished.folder, progress=False)
    assert "seen" not in recorded.__dict__
    elsewhere = train(tiny, recorded, tmp_path / "again", checkpoints=finished.folder / "checkpoints", progress=False)
    assert len(recorded.__dict__["seen"]) == 256 / 4  # the windows that are left beside the model
    for again in (there, elsewhere):
        assert again.history == finished.history
        assert_same_run(again, finished)


def test_what_a_callback_returns_joins_the_log(data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """Task accuracies reach the log this way: training knows nothing of tasks."""
    config = tiny.model_copy(update={"steps": 2, "evaluate_every": 1})
    seen = train(config, data, tmp_path / "t", progress=False, on_evaluation=lambda _, step: {"accuracy": step / 2})
    assert [row["accuracy"] for row in seen.history] == [0.5, 1.0]


def test_initial_weights_are_changed_once_and_a_run_that_goes_on_keeps_its_own(
    data: TokenData, tmp_path: Path, tiny: TrainingConfig
) -> None:
    """The recipe's weights are there to be changed; the second call, from a checkpoint, ends where one would have."""

    def halve(model: CircuitGPTForCausalLM) -> None:
        with torch.no_grad():
            assert model.core.wte.weight.any()
            model.core.wte.weight /= 2

    whole = train(tiny, data, tmp_path / "whole", progress=False, initialize=halve)
    with pytest.raises(Interruption):
        train(tiny, data, tmp_path / "tiny", progress=False, on_evaluation=stop_at(20), initialize=halve)
    assert_same_run(train(tiny, data, tmp_path / "tiny", progress=False, initialize=halve), whole)
    plain = train(tiny, data, tmp_path / "plain", progress=False)
    assert not torch.equal(plain.model.core.wte.weight, whole.model.core.wte.weight)


def test_two_models_see_equal_tokens_in_equal_order(
    data: TokenData, tmp_path: Path, tiny: TrainingConfig, dense: TrainingConfig
) -> None:
    """Sparse and dense twin: the batches depend on the data seed alone, not on the model or its seed."""
    orders = []
    for config in (tiny, dense.model_copy(update={"seed": 7})):
        recorded = RecordedData(data.directory)
        train(config.model_copy(update={"steps": 6}), recorded, tmp_path / config.name, progress=False)
        orders.append(np.stack(recorded.__dict__["seen"][:6]))
    assert orders[0].shape == (6, 4, 17)
    assert np.array_equal(*orders)


def test_dropout_resumes_too(data: TokenData, tmp_path: Path, dense: TrainingConfig) -> None:
    """What dropout draws depends on the step alone, not on where the run began."""
    config = dense.model_copy(update={"model": dense.model | {"dropout": 0.3}})
    whole = train(config, data, tmp_path / "whole", progress=False)
    with pytest.raises(Interruption):
        train(config, data, tmp_path / "cut", progress=False, on_evaluation=stop_at(20))
    torch.rand(5)
    assert_same_run(train(config, data, tmp_path / "cut", progress=False), whole)


def test_another_corpus_is_not_resumed_on(data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    config = tiny.model_copy(update={"steps": 10})
    train(config, data, tmp_path / "model", progress=False)
    other = RecordedData(data.directory)
    other.__dict__["manifest"] = data.manifest | {"config_hash": "another"}
    with pytest.raises(CheckpointError, match="another corpus"):
        train(config, other, tmp_path / "model", progress=False)


@pytest.mark.parametrize("place", ["file", "foreign", "model"])
def test_a_place_that_cannot_end_well_is_refused_at_once(place: str, data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """A file, a folder of other things, a folder with a model that was not trained here."""
    folder = tmp_path / "place"
    if place == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / ("thesis.txt" if place == "foreign" else "model.safetensors")).write_text("mine")
    seen = RecordedData(data.directory)
    with pytest.raises((OutputError, CheckpointError)):
        train(tiny, seen, folder, progress=False)
    assert "seen" not in seen.__dict__


def test_a_misspelt_model_field_is_named(data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    config = tiny.model_copy(update={"model": {"n_layr": 2}})
    with pytest.raises(UnknownNameError, match="n_layer"):
        train(config, data, tmp_path / "model", progress=False)


def test_a_density_below_the_minimum_alive_is_known_before_the_first_step(
    data: TokenData, tmp_path: Path, tiny: TrainingConfig
) -> None:
    config = tiny.model_copy(update={"sparsity": TopK(density=0.05, min_alive=8)})
    seen = RecordedData(data.directory)
    with pytest.raises(ConfigError, match="alive weights"):
        train(config, seen, tmp_path / "model", progress=False)
    assert "seen" not in seen.__dict__


def test_another_configurations_checkpoint(finished: TrainingResult, data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """A run is resumed by its own configuration only, and the difference is told; the name and the cadence are free to change."""
    other = tiny.model_copy(update={"learning_rate": 2e-2, "model": tiny.model | {"afrac": None}})
    for where in ({"folder": finished.folder}, {"folder": tmp_path / "other", "checkpoints": finished.folder / "checkpoints"}):
        with pytest.raises(CheckpointError, match=r"learning_rate: 0.01, now 0.02; model.afrac: 0.5, now None"):
            train(other, data, progress=False, **where)
    renamed = tiny.model_copy(update={"name": "other", "checkpoint_every": 7, "evaluate_every": 3, "log_every": 1})
    assert renamed.fingerprint() == tiny.fingerprint() != other.fingerprint()


def test_an_unwritable_folder_is_known_before_the_first_step(data: TokenData, tmp_path: Path, tiny: TrainingConfig) -> None:
    """A file in the way is found at once, not after the training."""
    (tmp_path / "file").write_text("in the way")
    recorded = RecordedData(data.directory)
    with pytest.raises(OutputError, match="cannot write"):
        train(tiny, recorded, tmp_path / "file" / "tiny", checkpoints=tmp_path / "c", progress=False)
    assert "seen" not in recorded.__dict__


def test_a_diverging_run_stops(data: TokenData, tmp_path: Path, dense: TrainingConfig) -> None:
    """A loss that is no number ends the run with the knob to turn; no model is written."""
    config = dense.model_copy(update={"learning_rate": 1e38, "warmup": 0.0})
    with pytest.raises(ConfigError, match="lower learning_rate"):
        train(config, data, tmp_path / "diverging", progress=False)
    assert not (tmp_path / "diverging" / "model.safetensors").exists()


def test_a_model_too_small_for_the_data(data: TokenData, tmp_path: Path, dense: TrainingConfig) -> None:
    """Fewer tokens or positions than the corpus needs."""
    config = dense.model_copy(update={"model": dense.model | {"vocab_size": 10}})
    with pytest.raises(DataError, match="the model has 10 tokens"):
        train(config, data, tmp_path / "small", progress=False)


@pytest.mark.parametrize(
    ("how", "gradients"),
    [("none", [3.0, 4.0, 0.0, 0.0]), ("rms", [1.2, 1.6, 0.0, 0.0]), ("clip", [0.6, 0.8, 0.0, 0.0])],
)
def test_gradient_scaling(how: str, gradients: list[float]) -> None:
    """A gradient of norm 5 over four entries: its root mean square is 2.5."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
    model[0].grad, model[1].grad = torch.tensor([3.0, 4.0]), torch.zeros(2)
    scale_gradient(list(model.parameters()), how)
    assert [value for p in model for value in p.grad.tolist()] == pytest.approx(gradients, abs=1e-4)  # pyright: ignore


@pytest.mark.parametrize("field", [{"stepz": 3}, {"steps": 0}, {"gradient": "max"}, {"learning_rate": -1.0}])
def test_a_configuration_is_checked(field: dict[str, Any], tiny: TrainingConfig) -> None:
    """Unknown fields and impossible values are errors, not ignored."""
    with pytest.raises(ValueError, match=next(iter(field))):
        TrainingConfig(**(tiny.model_dump() | field))


def test_circuits_of_a_model_with_a_tokenizer_of_its_own(finished: TrainingResult) -> None:
    """The folder holds windows of what the model has read, and `load` hands them to the search for circuits."""
    bridge: Any = load(finished.folder)
    assert bridge.reference_windows.shape == (256, 16)
    assert np.array_equal(default_windows(bridge), bridge.reference_windows)
    assert len(read_windows(finished.folder / "windows.safetensors")["heldout"]) == 256
