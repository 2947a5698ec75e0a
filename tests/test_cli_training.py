"""`sparse-lens train` as a newcomer runs it: from the standard library's source to a model that the other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sparse_lens
from sparse_lens.cli import main
from sparse_lens.comparisons import ModelPair
from sparse_lens.errors import CheckpointError, UnknownNameError
from sparse_lens.models_shipped import shipped_models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke model, trained by the command on a corpus that it builds."""
    folder = tmp_path_factory.mktemp("smoke")
    assert main(["train", "--recipe", "smoke", "--out", str(folder / "tiny"), "--data", str(folder / "data")]) == 0
    return folder / "tiny"


def test_the_folder_is_whole(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Model, card, curves, corpus and windows; the same command again opens it without training; another one is refused."""
    names = {path.name for path in smoke.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "card.json", "README.md", "curves.svg", "log.jsonl"}
    assert names >= {"corpus.json", "windows.safetensors", "training.json", "checkpoints"}
    card = json.loads((smoke / "card.json").read_text())
    assert 2.5 < card["loss"] < 5.5 and 1 < card["bits_per_byte"] < 4
    assert card["matrix_nonzeros"] == json.loads((smoke / "log.jsonl").read_text().splitlines()[-1])["nonzeros"]
    again = ["train", "--recipe", "smoke", "--out", str(smoke), "--data", str(smoke.parent / "data")]
    written = (smoke / "model.safetensors").stat().st_mtime_ns
    assert main(again) == 0 and (smoke / "model.safetensors").stat().st_mtime_ns == written
    capsys.readouterr()
    assert main([*again, "--set", "learning_rate=0.01"]) == 1
    assert "learning_rate: 0.036, now 0.01" in capsys.readouterr().err


def test_other_commands_take_it(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`load`, `check`, `circuit`, and the comparison with this model in the sparse one's place."""
    assert sparse_lens.load(smoke).cfg.n_layers == 2
    assert main(["check", str(smoke)]) == 0
    assert main(["circuit", str(smoke), "while_return_true", "--steps", "20", "--json"]) == 0
    capsys.readouterr()
    options = ["--tasks", "while_return_true", "--steps", "20", "--out", str(tmp_path / "report")]
    assert main(["compare", "--sparse", str(smoke), *options]) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["models"]["sparse"]["name"] == "tiny"


def test_a_model_in_the_wrong_place(smoke: Path, tmp_path: Path) -> None:
    """A role that there is not, and a folder without a tokenizer; a model of another vocabulary is known as such."""
    pair = ModelPair.open()
    with pytest.raises(UnknownNameError, match="role"):
        pair.with_models(spars=smoke)
    other = tmp_path / "other"
    other.mkdir()
    tokenizer = json.loads((smoke / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:-1])
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="tokenizer"):
        pair.with_models(sparse=tmp_path / "missing")
    assert not pair.with_models(sparse=other).shares_tokens("sparse") and pair.shares_tokens("sparse")
    assert pair.with_models(dense_matched=shipped_models()["python-dense"]).dictionaries() == []
