"""What can be seen of a run: its log, its trackers, its curves, and the memory it is going to take."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_lens.data import TokenData
from sparse_lens.errors import ConfigError, DataError
from sparse_lens.models import CircuitGPTConfig, CircuitGPTCore
from sparse_lens.report import write_curves
from sparse_lens.training import TrainingConfig, TrainingResult, get_recipe
from sparse_lens.training.evaluation import count_nonzeros, dead_neurons
from sparse_lens.training.log import TrainingLog, make_tracker, read_log
from sparse_lens.training.memory import available_bytes, check_memory, estimate_bytes


def test_the_log(finished: TrainingResult, tiny: TrainingConfig) -> None:
    """A row every `log_every` steps, at the end and at every evaluation; the nonzeros are those of the matrices."""
    rows = read_log(finished.folder / "log.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert [row["tokens"] for row in rows] == [step * tiny.batch_size * tiny.context for step in (10, 20, 30)]
    assert ["training_loss" in row for row in rows] == [False, True, True]
    assert all("loss" in row and "dead_neurons" in row for row in rows)
    core = finished.model.core
    weights = [p for name, p in core.named_parameters() if p.ndim == 2 and not name.startswith("bigram")]
    assert rows[-1]["nonzeros"] == count_nonzeros(weights) == sum(int((w != 0).sum()) for w in weights)
    assert rows[-1]["density"] == pytest.approx(rows[-1]["nonzeros"] / sum(w.numel() for w in weights))


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """As is a line that was cut off; the rest stays as it was."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (5, 10, 15)) + '{"step": 2')
    seen: list[Any] = []
    log = TrainingLog(path, resumed_at=10, trackers=[seen.append])
    log.append({"step": 12})
    assert read_log(path) == [{"step": 5}, {"step": 10}, {"step": 12}]
    assert seen == [{"step": 12}]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is named, and nothing is tracked silently."""
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        make_tracker(name, tmp_path, "run", {}, 0)


def test_dead_neurons() -> None:
    """Neurons that no token opens: with ReLU and a very negative bias, exactly those."""
    shape = {"block_size": 8, "vocab_size": 20, "n_layer": 2, "n_head": 2, "d_model": 16, "activation_type": "relu"}
    core = CircuitGPTCore(CircuitGPTConfig(**shape))
    core.initialize(torch.Generator().manual_seed(0))
    windows = torch.randint(0, 20, (16, 9), generator=torch.Generator().manual_seed(0)).numpy()
    before = dead_neurons(core, windows)
    with torch.no_grad():
        core.get_parameter("blocks.1.mlp.fc_in.bias")[:5] = -100
    assert before == 0 and dead_neurons(core, windows) == 5


def test_curves(finished: TrainingResult, tmp_path: Path) -> None:
    """A figure with a name, a description in words, and three curves; a log without rows is an error."""
    write_curves(finished.folder / "log.jsonl", tmp_path / "curves.svg")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert root.attrib["role"] == "img"
    assert sum(element.attrib.get("class") in ("training", "loss", "density") for element in root.iter()) == 5  # two in the legend
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no row"):
        write_curves(tmp_path / "empty.jsonl", tmp_path / "none.svg")


def model_config(config: TrainingConfig) -> CircuitGPTConfig:
    fields = config.model | {"vocab_size": 1024, "tokenizer_name": None}
    return CircuitGPTConfig(**({"block_size": config.context} | fields))  # pyright: ignore[reportArgumentType]


def test_too_little_memory_is_known_before_the_first_step() -> None:
    """The released recipe on a small machine: the error says what is needed, what there is, and what to lower."""
    config = get_recipe("released")
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d GB, 8\.0 GB are free; lower batch_size \(512\)"):
        check_memory(config, model_config(config), available=8 * 10**9)
    check_memory(get_recipe("smoke"), model_config(get_recipe("smoke")), available=8 * 10**9)
    assert (available_bytes() or 10**9) > 10**8


_GROWTH = """
import re, sys, torch
from pathlib import Path
from sparse_lens.data import TokenData
from sparse_lens.training import TrainingConfig, train
torch.set_num_threads(1)
config, data = TrainingConfig.model_validate_json(sys.argv[1]), TokenData(Path(sys.argv[2]))
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
train(config, data, Path(sys.argv[3]), progress=False)
print(peak() - before)
"""
"""In kilobytes. Not of `getrusage`: there a process starts with the peak of the one that started it, on Linux."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read as Linux gives it")
def test_the_estimate_is_near_what_is_taken(data: TokenData, tmp_path: Path) -> None:
    """Growth of a fresh process that takes two steps of a model of 0.1 GB: not more than estimated, and not less than a third."""
    recipe = get_recipe("python-dense")
    config = recipe.model_copy(update={"steps": 2, "batch_size": 64, "evaluation_windows": 8})
    arguments = [config.model_dump_json(), str(data.directory), str(tmp_path / "run")]
    run = subprocess.run([sys.executable, "-c", _GROWTH, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    grown = 1024 * int(run.stdout.split()[-1])
    estimate = estimate_bytes(config, model_config(config))
    assert estimate / 3 < grown < estimate
