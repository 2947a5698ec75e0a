"""Two processes on one run, over gloo on the CPU: the same losses as one, the same masks in both, checkpoints that one can read."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparse_lens.data import TokenData, generate_program
from sparse_lens.errors import ConfigError
from sparse_lens.models import load_checkpoint
from sparse_lens.training import RandomMask, RigL, TopK, TrainingConfig, TrainingResult, train
from sparse_lens.training.checkpoints import CheckpointFolder
from sparse_lens.training.log import read_log
from sparse_lens.training.processes import Processes


def on_two_processes(config: TrainingConfig, data: TokenData, folder: Path, **options: Any) -> None:
    """Train in two forks; each leaves its weights in `rank-N.pt` beside the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                where = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
                os.environ.update(where | {"MASTER_PORT": str(port)})
                result = train(config, data, folder, progress=False, **options)
                torch.save(result.model.core.state_dict(), folder.with_name(f"rank-{rank}.pt"))
                dist.destroy_process_group()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def curve(folder: Path) -> list[float]:
    return [row["training_loss"] for row in read_log(folder / "log.jsonl")]


METHODS = {
    "top_k": TopK(density=0.2, embedding_density=0.4, min_alive=2),
    "dense": None,
    "random": RandomMask(density=0.2, min_alive=2),
    "rigl": RigL(density=0.2, min_alive=2, update_every=6),
}


SLOW = pytest.mark.slow
CASES = [
    pytest.param(method, sharded, marks=SLOW if sharded or method != "top_k" else ())
    for method in METHODS
    for sharded in (False, True)
]


@pytest.mark.parametrize(("method", "sharded"), CASES)
def test_two_processes_are_one(tiny: TrainingConfig, data: TokenData, tmp_path: Path, method: str, sharded: bool) -> None:
    """The loss curve of one process with the same global batch; equal weights in both ranks; the same masks.

    In float64, where the order of a sum moves no weight across a threshold: far closer than the 1e-4 of float32.
    """
    config = tiny.model_copy(update={"sparsity": METHODS[method], "log_every": 1, "precision": "float64"})
    one = train(config, data, tmp_path / "one", progress=False)
    on_two_processes(config, data, tmp_path / "two", sharded=sharded)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), abs=1e-9)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    ranks = [{name: weight.float() for name, weight in rank.items()} for rank in ranks]  # the writer's model is float32 already
    saved = load_checkpoint(tmp_path / "two").core.state_dict()
    for name, weight in one.model.core.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]) and torch.equal(ranks[0][name], saved[name]), name
        assert (ranks[0][name] - weight).abs().max() < 1e-6, name
        assert torch.equal(ranks[0][name] != 0, weight != 0), name


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=SLOW)], ids=["replicated", "sharded"])
def test_one_process_reads_their_checkpoint(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult, sharded: bool
) -> None:
    """Half by two, half by one; and the other way round."""
    on_two_processes(tiny, data, tmp_path / "two", sharded=sharded)
    newest, before = CheckpointFolder(tmp_path / "two" / "checkpoints").files()
    newest.unlink()
    by_one = train(tiny, data, tmp_path / "one", checkpoints=before.parent, progress=False)
    assert by_one.loss == pytest.approx(finished.loss, abs=1e-4)
    halfway = CheckpointFolder(finished.folder / "checkpoints").files()[1]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / halfway.name).write_bytes(halfway.read_bytes())
    on_two_processes(tiny, data, tmp_path / "again", checkpoints=tmp_path / "half", sharded=sharded)
    weights = load_checkpoint(tmp_path / "again").core.state_dict()
    for name, weight in finished.model.core.state_dict().items():
        assert (weights[name] - weight).abs().max() < 1e-3, name


def test_a_batch_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="a batch of 4 sequences cannot be shared equally by 3"):
        Processes.here(4)


@pytest.mark.parametrize("device", ["cuda", "tpu9"])
def test_a_device_that_is_not_there(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"GPU|no device"):
        Processes.here(4, device)


def test_sharding_is_for_several(tiny: TrainingConfig, data: TokenData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        train(tiny, data, tmp_path / "x", progress=False, sharded=True)


@pytest.mark.slow
def test_torchrun_in_float32(tmp_path: Path) -> None:
    """The command of the docs, at the size of the smoke run: the losses of the first steps agree to 1e-4.

    At a tenth of the recipe's rate: eight steps have no warm-up to speak of, and at the whole rate the curves part by 1e-3 at the
    fourth step, as float32 sums in another order move activations across AbsTopK's cut (in float64 they agree to 1e-9, above).
    """
    command = ["--recipe", "smoke", "--steps", "8", "--data", str(tmp_path / "data"), "--set", "log_every=1", "--threads", "1"]
    command += ["--source", str(tmp_path / "source"), "--set", "precision=float32", "--set", "learning_rate=0.003"]
    (tmp_path / "source").mkdir()
    for number in range(60):
        (tmp_path / "source" / f"module_{number}.py").write_text(generate_program(random.Random(number)))
    for name, launcher in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"])):
        arguments = [sys.executable, *launcher, "sparse_lens", "train", *command, "--out", str(tmp_path / name)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), abs=1e-4)
