"""A run that is killed, stopped, starved of disk or robbed of its newest checkpoint ends in the same bits all the same."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_lens.data import TokenData
from sparse_lens.errors import CheckpointError, ConfigError, OutputError
from sparse_lens.models import load_checkpoint
from sparse_lens.training import TrainingConfig, TrainingResult, train
from sparse_lens.training.checkpoints import Checkpoint, CheckpointFolder, differences, read_checkpoint
from sparse_lens.training.log import read_log


def assert_same_weights(folder: Path, expected: TrainingResult) -> None:
    """The saved models are equal bit for bit."""
    loaded = load_checkpoint(folder)
    for name, parameter in load_checkpoint(expected.folder).named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def in_a_fork(work: Callable[[], None]) -> int:
    """Process id of a child that does `work` and leaves without cleaning up after pytest."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.slow
def test_twenty_kills(tiny: TrainingConfig, data: TokenData, tmp_path: Path) -> None:
    """SIGKILL at random moments: while starting, stepping, evaluating, writing. Each child goes on from what the last one left."""
    config = tiny.model_copy(update={"steps": 120, "checkpoint_every": 3, "evaluate_every": 5, "log_every": 2})
    torch.set_num_threads(1)
    started = time.perf_counter()
    whole = train(config, data, tmp_path / "whole", progress=False)
    seconds = time.perf_counter() - started
    moments = random.Random(0)
    kills, finished = 0, 0
    while kills < 20:
        place = tmp_path / f"cut-{finished}"
        child = in_a_fork(lambda place=place: (train(config, data, place, progress=False), None)[1])
        time.sleep(moments.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert_same_weights(place, whole)
            finished += 1
    for number in range(finished + 1):
        last = train(config, data, tmp_path / f"cut-{number}", progress=False)
        assert_same_weights(last.folder, whole)
        steps = [row["step"] for row in read_log(last.folder / "log.jsonl")]
        assert steps == sorted(set(steps)) == [row["step"] for row in read_log(whole.folder / "log.jsonl")]
        left = {path.name for path in last.folder.iterdir()} | {path.name for path in (last.folder / "checkpoints").iterdir()}
        assert not any(name.startswith(".") for name in left)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult, number: signal.Signals
) -> None:
    """Nothing is lost, not even the steps since the last regular checkpoint."""
    config = tiny.model_copy(update={"evaluate_every": 7})

    def callback(model: Any, step: int) -> dict[str, float]:
        if step == 14:
            os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "run", progress=False, on_evaluation=callback)
    assert signal.getsignal(number) == before
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").files()[0].name == "step-00000014.safetensors"
    train(config, data, tmp_path / "run", progress=False)
    assert_same_weights(tmp_path / "run", finished)


def test_a_full_disk_loses_nothing(tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult) -> None:
    """A checkpoint that cannot be written is an error that says so; the one before it stands, and the run goes on from there."""

    def starved() -> None:
        def callback(model: Any, step: int) -> dict[str, float]:
            if step == 20:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            return {}

        with pytest.raises(OutputError, match="step-00000020"):
            train(tiny, data, tmp_path / "run", progress=False, on_evaluation=callback)

    _, status = os.waitpid(in_a_fork(starved), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [path.name for path in CheckpointFolder(tmp_path / "run" / "checkpoints").files()] == ["step-00000010.safetensors"]
    train(tiny, data, tmp_path / "run", progress=False)
    assert_same_weights(tmp_path / "run", finished)


def copied(finished: TrainingResult, tmp_path: Path) -> list[Path]:
    """A run's folder with its checkpoints but without its model; the checkpoints, newest first."""
    shutil.copytree(finished.folder / "checkpoints", tmp_path / "run" / "checkpoints")
    return CheckpointFolder(tmp_path / "run" / "checkpoints").files()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"not a checkpoint",
    "cut": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_by(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it is taken, with a warning that names the file."""
    newest, before = copied(finished, tmp_path)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    assert read_checkpoint(before).record["step"] == 20
    train(tiny, data, tmp_path / "run", progress=False)
    assert newest.name in caplog.text and "damaged" in caplog.text
    assert_same_weights(tmp_path / "run", finished)


def test_damaged_checkpoints_alone_are_not_started_over_from(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult
) -> None:
    """That would lose the user's hours without a word."""
    for path in copied(finished, tmp_path):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete the folder to start over"):
        train(tiny, data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_checkpoint_of_another_kind_of_file(tmp_path: Path) -> None:
    """Safetensors, but not ours."""
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, tmp_path / "step-00000001.safetensors")
    with pytest.raises(CheckpointError, match="no training checkpoint"):
        read_checkpoint(tmp_path / "step-00000001.safetensors")


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """The oldest goes when a newer one is whole; the record comes back as it was."""
    folder = CheckpointFolder(tmp_path / "c")
    assert folder.newest() is None
    for step in (5, 10, 100_000_000, 15):
        folder.save(step, Checkpoint({"x": torch.full((2,), float(step))}, {"step": step, "loss": 0.1}))
    assert [path.name for path in folder.files()] == ["step-100000000.safetensors", "step-00000015.safetensors"]
    newest = folder.newest()
    assert newest is not None and newest.record == {"step": 100_000_000, "loss": 0.1} and float(newest.tensors["x"][0]) == 1e8


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tiny: TrainingConfig, data: TokenData, tmp_path: Path) -> None:
    """The step is named, and where the last good state is."""

    def poison(model: Any, step: int) -> dict[str, float]:
        if step == 20:
            with torch.no_grad():
                model.core.ln_f.weight.fill_(float("nan"))
        return {}

    config = tiny.model_copy(update={"checkpoint_every": 15})
    with pytest.raises(ConfigError, match=r"the loss is nan at step 21.*step-00000015"):
        train(config, data, tmp_path / "run", progress=False, on_evaluation=poison)


def test_differences() -> None:
    """Nested fields by dotted names, both values; what is new or gone is named too."""
    before = {"a": 1, "b": {"c": (1, 2), "d": None}, "gone": 1}
    now = {"a": 2, "b": {"c": [1, 2], "d": "x"}, "new": 3}
    assert differences(before, now) == ["a: 1, now 2", "b.d: None, now 'x'", "gone: 1, now not there", "new: not there, now 3"]


@pytest.mark.parametrize("n_moved", range(8))
def test_a_kill_while_the_finished_model_is_moved_in(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult, monkeypatch: pytest.MonkeyPatch, n_moved: int
) -> None:
    """Killed before any of its files is renamed: the same command ends with a whole folder, and nothing lies about."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder / "checkpoints", folder / "checkpoints")

    def cut() -> None:
        rename, moved = Path.replace, [0]

        def replace(self: Path, target: Path) -> Path:
            if Path(target).parent == folder and Path(target).name != "log.jsonl":
                if moved[0] == n_moved:
                    os.kill(os.getpid(), signal.SIGKILL)
                moved[0] += 1
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        train(tiny, data, folder, progress=False)

    _, status = os.waitpid(in_a_fork(cut), 0)
    train(tiny, data, folder, progress=False)
    assert_same_weights(folder, finished)
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished.folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert os.WIFSIGNALED(status) or n_moved == 7


def test_what_a_killed_writer_left_in_the_folder_is_swept(
    tiny: TrainingConfig, data: TokenData, tmp_path: Path, finished: TrainingResult
) -> None:
    """The half-written log of a start that was killed is no foreign file."""
    for left in (tmp_path / "run" / ".log.jsonl-ab12cd_9", tmp_path / ".run-zz00zz00"):
        left.mkdir(parents=True)
        (left / "half").write_text("{")
    other = tmp_path / ".run-of-mine-zz00zz00"
    other.mkdir()
    train(tiny, data, tmp_path / "run", progress=False)
    assert_same_weights(tmp_path / "run", finished)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run-of-mine-zz00zz00", "run"]


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_no_numbers_are_never_saved(tiny: TrainingConfig, data: TokenData, tmp_path: Path, steps: int) -> None:
    """The loss is computed before the update: the step that ruins the weights must not become the last good checkpoint."""
    changes = {"steps": steps, "learning_rate": 1e38, "warmup": 0.0, "checkpoint_every": 1, "sparsity": None}
    with pytest.raises(ConfigError, match="the loss is nan at step 1"):
        train(tiny.model_copy(update=changes), data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").files() == []


def test_a_place_for_checkpoints_that_cannot_be_written(tiny: TrainingConfig, data: TokenData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        train(tiny, data, tmp_path / "run", checkpoints=tmp_path / "file" / "c", progress=False)
