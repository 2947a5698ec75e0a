"""The command line in one process: exit statuses, JSON for programs, errors without tracebacks, nothing half-written."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from sparse_lens.cli import main
from sparse_lens.cli.comparing import named_folder
from sparse_lens.cli.printing import DefaultsFormatter
from sparse_lens.errors import ConfigError
from sparse_lens.models_shipped import shipped_models


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard error of a call that must end with status 1 and without a traceback."""
    assert main(arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "Traceback" not in text
    return text


@pytest.mark.parametrize("command", ["models", "check", "train", "patch", "circuit", "compare", "report", "bench"])
def test_every_subcommand_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_help_names_a_default_once_and_only_where_there_is_one() -> None:
    parser = argparse.ArgumentParser(formatter_class=DefaultsFormatter)
    for name, default, said in (("a", None, "one"), ("b", [], "two"), ("c", 0, "three"), ("d", 5, "four; default: 5")):
        parser.add_argument(f"--{name}", default=default, help=said)
    parser.add_argument("--e", action="store_true", help="five")
    told = [line.split(None, 2)[2] for line in parser.format_help().splitlines() if re.match(r"  --[a-d] ", line)]
    assert told == ["one", "two", "three (default: 0)", "four; default: 5"] and parser.format_help().endswith(" five\n")


def test_an_arm_is_a_shipped_model_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert named_folder(f"mine={tmp_path}") == ("mine", str(tmp_path))
    assert named_folder("pruned=arm-magnitude") == ("pruned", str(shipped_models()["arm-magnitude"]))
    for bad in ("arm-magnitude", "=arm-magnitude", "pruned=no-such-model"):
        with pytest.raises(ConfigError, match="NAME=MODEL"):
            named_folder(bad)


def test_wrong_usage_is_status_two() -> None:
    for arguments in ([], ["nonsense"], ["check"], ["train"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


def test_errors_offer_the_nearest_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "'python-sparse'" in failing(capsys, "check", "python-spares")
    assert "'if_equals'" in failing(capsys, "patch", "python-dense-matched", "if_equal")
    assert "'smoke'" in failing(capsys, "train", "--recipe", "smok")
    assert "'python'" in failing(capsys, "compare", "--pair", "pyton", "--out", str(tmp_path / "r"))
    assert "'if_equals'" in failing(capsys, "compare", "--tasks", "if_eqals", "--out", str(tmp_path / "r"))
    assert "'projection'" in failing(capsys, "bench", "projectoin")
    assert list(tmp_path.iterdir()) == []


def test_bad_places_and_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "file" in failing(capsys, "compare", "--out", str(tmp_path / "file"))
    assert "file" in failing(capsys, "compare", "--out", str(tmp_path / "file" / "below"))
    assert "metrics" in failing(capsys, "report", str(tmp_path), "--out", str(tmp_path / "r"))
    assert "seeds" in failing(capsys, "compare", "--seeds", "0", "--out", str(tmp_path / "r"))
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_models_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert {"python-sparse", "python-dense", "python-dense-matched", "csp_yolo2"} <= {model["name"] for model in models}
    for model in [model for model in models if model["shipped"]]:
        assert 0 < model["matrix_nonzeros"] < model["nonzeros"] <= model["parameters"] and model["loss"] > 0


def test_models_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "185,134" in printed and "training seed 1" in printed and "csp_yolo2" in printed


def test_check_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "python-sparse", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["largest_difference"] <= 1e-5
    assert all("read nothing" in problem for problem in found["problems"])  # more than half of layer 1's MLP outputs have no weight
    assert found["densities"]["blocks.0.mlp.in"] < 0.06
    assert found["edges"]["qkv"] > 0 and found["nonzeros"] < found["parameters"]
    assert "blocks.0.attn.hook_sink" in found["hook_points"]


def test_patch_prints_and_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "patching.html"
    assert main(["patch", "python-dense-matched", "if_equals", "--pairs", "4", "--json", "--out", str(page)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["models"]["python-dense-matched"]["heads"]) == 2
    assert "<svg" in page.read_text(encoding="utf-8")


def test_circuit_is_found_and_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["circuit", "python-dense-matched", "if_equals", "--steps", "20", "--out", str(tmp_path / "c"), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"] == sum(len(kept) for kept in found["kept"].values())
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["circuit.json", "circuit.safetensors"]


@pytest.mark.slow
def test_circuit_of_edges_by_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Model and task as options, another ablation, a control; the edges that are kept are fewer than those between the nodes."""
    arguments = ["circuit", "--model", "python-dense-matched", "--task", "while_return_true", "--ablation", "zero", "--edges"]
    assert main([*arguments, "--steps", "20", "--out", str(tmp_path / "c"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ablation"] == "zero" and found["edges_searched"] and sum(found["edges"].values()) > 0
    assert sum(found["edges"].values()) <= found["search"]["candidate_edges"]


@pytest.mark.parametrize(
    "arguments", [["--task", "if_equals"], ["python-sparse"], ["python-sparse", "if_equals", "--task", "with_as"]]
)
def test_circuit_needs_one_model_and_one_task(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuit", *arguments]) == 1
    assert "name one" in capsys.readouterr().err


def test_train_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "python-sparse", "--dry-run"]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe["tokens"] == recipe["steps"] * recipe["batch_size"] * recipe["context"]


@pytest.mark.slow
def test_a_circuit_is_tested_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--trust` prints and keeps the card, `--page` draws; a saved one has the verdict on its page."""
    folder, page = tmp_path / "c", tmp_path / "c.html"
    arguments = ["circuit", "python-dense-matched", "while_return_true", "--steps", "80", "--target", "0.6", "--out", str(folder)]
    assert main([*arguments, "--trust", "quick", "--page", str(page)]) == 0
    out = capsys.readouterr().out
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert "on held-out prompts" in out and "not tested (quick)" in out and "not tested (quick)" in card["verdict"]
    assert "not tested (quick)" in page.read_text(encoding="utf-8")
    assert main(["report", str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert "not tested (quick)" in (tmp_path / "again.html").read_text(encoding="utf-8")
    assert main([*arguments, "--steps", "2", "--json"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["circuit.json", "circuit.safetensors"]
