"""`sparse-lens circuit`: effort, kinds of target, targets that are missed, Ctrl-C."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparse_lens.circuits import SearchConfig
from sparse_lens.circuits.search import nodes as search
from sparse_lens.cli import main
from sparse_lens.cli.circuits import search_config
from sparse_lens.errors import ConfigError
from sparse_lens.models_shipped import reference_windows

from .test_interrupts import Bar

ARGUMENTS = ["circuit", "python-sparse", "single_double_quote"]


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few windows, prompts and steps, no scores: `tests/test_cli.py` has a whole run."""
    config = SearchConfig(steps=2, evaluations=2, pairs_per_step=2, search_pairs=8, evaluation_pairs=4)
    monkeypatch.setattr("sparse_lens.cli.circuits.search_config", lambda _: config)
    windows = reference_windows()[0][:2]
    monkeypatch.setattr(search, "default_windows", lambda _: windows)
    monkeypatch.setattr("sparse_lens.circuits.score_circuit", lambda *_: SimpleNamespace(sufficiency=1.0))


def test_interrupted_searches_are_saved_and_exit_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(search, "tqdm", Bar(2))
    assert main([*ARGUMENTS, "--edges", "--out", str(tmp_path / "c")]) == 130
    out = capsys.readouterr().out
    assert "saved in" in out and "interrupted: this is the best found by then" in out
    assert json.loads((tmp_path / "c" / "circuit.json").read_text(encoding="utf-8"))["search"]["interrupted"] is True


def test_a_missed_target_is_said_with_the_best_and_the_effort(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--target", "1e-9"]) == 0
    out = capsys.readouterr().out
    assert "no circuit at the target 1e-09 was found; the best has" in out
    assert "the whole model's on the same prompts" in out and "effort 4 model runs" in out


def test_divergence_as_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--target-kind", "kl", "--target", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target_kind"] == "kl" and found["effort"] == 4 and found["reached"]
    assert found["task_loss"] != found["loss"] and isinstance(found["beats_model"], bool)


def test_converged_effort_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    """With a target that everything meets, the size does not change."""
    assert main([*ARGUMENTS, "--effort", "converged", "--target", "99"]) == 0
    assert "model runs, settled (sizes " in capsys.readouterr().out


@pytest.mark.parametrize("effort", ["much", "1.5"])
def test_an_effort_that_is_no_number_is_wrong_usage(effort: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*ARGUMENTS, "--effort", effort])
    assert stopped.value.code == 2 and "converged" in capsys.readouterr().err


def test_effort_becomes_restarts() -> None:
    assert search_config(argparse.Namespace(steps=None, published=False, effort=3 * 264)).restarts == 3
    assert search_config(argparse.Namespace(steps=7, effort="converged")).restarts == 1
    with pytest.raises(ConfigError, match="effort"):
        search_config(argparse.Namespace(steps=None, effort=0))
