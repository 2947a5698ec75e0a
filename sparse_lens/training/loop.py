"""Training: batches in a fixed order, a step on each, and everything around it that lets a run be watched, stopped and resumed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

from sparse_lens.data import END_OF_TEXT, TrainingData
from sparse_lens.errors import CheckpointError, ConfigError, DataError, DivergedError, UnknownNameError
from sparse_lens.files import check_writable, sweep_staging
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM
from sparse_lens.models.config import EXTENSION_FIELDS, REFERENCE_FIELDS
from sparse_lens.training.checkpoints import Checkpoint, CheckpointFolder, differences
from sparse_lens.training.config import UNIMPORTANT, TrainingConfig
from sparse_lens.training.evaluation import count_nonzeros, dead_neurons, window_losses
from sparse_lens.training.folder import CHECKPOINTS, LOG_FILE, MODEL_FILES, finished_record, open_finished, write_model
from sparse_lens.training.interruption import Interruption
from sparse_lens.training.log import Row, Tracker, TrainingLog, make_tracker
from sparse_lens.training.memory import check_memory
from sparse_lens.training.processes import Processes
from sparse_lens.training.run import TrainingRun
from sparse_lens.training.sharding import own, shard_core, whole
from sparse_lens.training.sparsity import LearnedMask, LotteryTicket, MagnitudePruning
from sparse_lens.training.state import load_state, run_state

logger = logging.getLogger(__name__)

_WINDOWS = 256
Evaluation = Callable[[CircuitGPTForCausalLM, int], dict[str, float]]
Initialization = Callable[[CircuitGPTForCausalLM], None]


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: the model, the folder that holds it, its loss on held-out real files (nats per token), its evaluations."""

    model: CircuitGPTForCausalLM
    folder: Path
    loss: float
    history: list[Row]


def train(
    config: TrainingConfig,
    data: TrainingData,
    folder: str | Path,
    *,
    checkpoints: str | Path | None = None,
    device: str = "cpu",
    sharded: bool = False,
    progress: bool = True,
    trackers: Sequence[Tracker] = (),
    on_evaluation: Evaluation | None = None,
    initialize: Initialization | None = None,
) -> TrainingResult:
    """Train a model into `folder`; started again on the same folder, an interrupted run goes on, on the same curve.

    The folder ends with `model.safetensors`, configuration, tokenizer, `training.json` and `log.jsonl` (a row every
    `log_every` steps). Checkpoints lie in `checkpoints`, by default inside the folder; the newest two are kept. SIGINT and SIGTERM
    end the run after the step at hand, with a checkpoint. `on_evaluation` is called with the model and the step at every
    evaluation, in every process, and its numbers join the log (task accuracies, for instance). Under `torchrun` every process takes
    its part of each batch; with `sharded` it holds its part of the weights only (FSDP2). With dropout torch's global generator is
    seeded anew at every step. `initialize` changes the initial weights of a new run in place, after they have been drawn.

    Raises `CheckpointError` for a folder with another run in it (the difference is shown), `ConfigError` for a recipe that cannot
    work or a loss that is no number (the last checkpoint is kept), `DataError` for data that do not fit, `OutputError` for a place
    that cannot be written.
    """
    folder = Path(folder).absolute()
    where = CheckpointFolder(Path(checkpoints).absolute() if checkpoints else folder / CHECKPOINTS)
    processes = Processes.here(config.batch_size, device)
    if processes.first:
        sweep_staging(folder, MODEL_FILES)
    processes.wait()
    check_writable(folder, MODEL_FILES)
    if checkpoints:
        check_writable(where.path)
    if (record := finished_record(folder)) is not None:
        _refuse_difference(folder / "training.json", record, config, data)
        return _finished(folder, record)
    model_config = _model_config(config, data)
    if processes.device.type == "cpu":
        check_memory(config, model_config, processes=processes.count, here=processes.local_count)
    session = _Session(config, data, model_config, where, processes, sharded, initialize)
    session.resume()
    if processes.first:
        session.open_log(folder, trackers)
    session.go(progress, on_evaluation)
    model = session.whole_model()
    if processes.first:
        write_model(model, data.tokenizer, session.record(), _windows(config, data), folder)
    processes.wait()
    return TrainingResult(model.eval(), folder, session.history[-1]["loss"], session.history)


class _Session:
    """A run together with its data, its checkpoints and its log."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        model_config: CircuitGPTConfig,
        checkpoints: CheckpointFolder,
        processes: Processes,
        sharded: bool,
        initialize: Initialization | None = None,
    ) -> None:
        self.config, self.data, self.checkpoints, self.processes = config, data, checkpoints, processes
        self.windows = data.validation_windows(config.context, config.evaluation_windows)
        model = CircuitGPTForCausalLM(model_config)
        model.core.initialize(torch.Generator().manual_seed(config.seed))
        if initialize is not None:
            initialize(model)
        model = model.to(cast(Any, processes.device)).train()
        _check_shareable(config, processes, sharded)
        if sharded:
            shard_core(model.core, processes.count)
        self.sharded = sharded
        self.run = TrainingRun(config, model)
        self.run.rank = processes.rank
        self.history: list[Row] = []
        self.losses: list[float] = []  # since the last row of the log
        self.data_state: dict[str, Any] | None = None
        self.log: TrainingLog | None = None

    def open_log(self, folder: Path, trackers: Sequence[Tracker]) -> None:
        """Go on with the log in `folder`, or begin one."""
        settings, step = self.config.model_dump(mode="json"), self.run.step
        chosen = [make_tracker(name, folder, self.config.name, settings, step) for name in trackers]
        self.log = TrainingLog(folder / LOG_FILE, resumed_at=step, history=self.history, trackers=chosen)

    def go(self, progress: bool, on_evaluation: Evaluation | None) -> None:
        """Take all steps that are left."""
        run, config = self.run, self.config
        run.forward = run.model.core if self.sharded else self.processes.wrap(run.model.core)
        bar = tqdm(
            total=config.steps,
            initial=run.step,
            desc=config.name,
            unit="step",
            disable=not (progress and self.processes.first),
        )
        meter = _Meter(config, self.losses)
        with Interruption() as interruption, bar:
            for batch in self._batches():
                ids = torch.from_numpy(self.processes.part(batch)).to(run.device)
                meter.add(self._finite(self.processes.mean(run.optimize(ids))))
                bar.update()
                last = run.step == config.steps
                row: Row = {"step": run.step, "tokens": run.step * meter.per_step}
                if run.step % config.log_every == 0 or last:
                    row |= meter.row(run)
                    bar.set_postfix(
                        loss=f"{row['training_loss']:.3f}", nonzeros=int(row["nonzeros"]), tokens_s=int(row["tokens_per_second"])
                    )
                if run.step % config.evaluate_every == 0 or last:
                    row |= self._evaluate(on_evaluation, row)
                if len(row) > 2 and self.log is not None:
                    self.log.append(row)
                stopped = self.processes.any(interruption.asked)
                if run.step % config.checkpoint_every == 0 or last or stopped:
                    self.save()
                if stopped and not last:
                    raise KeyboardInterrupt

    def _batches(self) -> Iterator[np.ndarray]:
        config, start = self.config, self.run.step
        options = {"context": config.context, "batch_size": config.batch_size, "seed": config.data_seed}
        for batch, state in self.data.resumable_batches(
            **options, start_step=start, n_steps=config.steps - start, state=self.data_state
        ):
            self.data_state = state
            yield batch

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        kept = self.checkpoints.files()
        raise DivergedError(
            f"the loss is {loss} at step {self.run.step}; lower learning_rate ({self.config.learning_rate}) in a new folder"
            + (f"; the last good checkpoint, {kept[0]}, is kept" if kept else "")
        )

    def _check_weights(self) -> None:
        """Raise `DivergedError` if any weight is no number: nothing of it must be saved."""
        finite = all(bool(own(parameter).isfinite().all()) for parameter in self.run.trained)
        if self.processes.any(not finite):
            self._finite(math.nan)

    def _evaluate(self, extra: Evaluation | None, row: Row) -> Row:
        """Losses and dead neurons of this step; they join the history as well."""
        self._check_weights()
        started = time.perf_counter()
        model = self.run.model.eval()
        found: Row = {"loss": float(window_losses(lambda ids: model.core(ids.to(self.run.device)), self.windows).mean())}
        found["dead_neurons"] = dead_neurons(model.core, self.windows)
        extras = extra(model, self.run.step) if extra is not None else {}
        found |= {name: float(value) for name, value in extras.items()}
        model.train()
        found["evaluation_seconds"] = round(time.perf_counter() - started, 1)
        self.history.append(row | found)
        logger.info("%s", self.history[-1])
        return found

    def whole_model(self) -> CircuitGPTForCausalLM:
        """The model, its shards put together if it has any."""
        if not self.sharded:
            self.run.model.core.compress_weights(0)  # its weights are the user's to change now
            return self.run.model
        model = CircuitGPTForCausalLM(self.run.model.config)  # pyright: ignore[reportArgumentType]
        model.core.load_state_dict({name: whole(tensor) for name, tensor in self.run.model.core.state_dict().items()})
        return model

    def record(self) -> dict[str, Any]:
        """What is known of the run, JSON-able."""
        return {
            "format": 2,
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.config.fingerprint(),
            "data": self.data.manifest["config_hash"],
            "precision": self.run.precision,
            "step": self.run.step,
            "tokens": self.run.step * self.config.batch_size * self.config.context,
            "seconds": round(self.run.seconds, 1),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "history": self.history,
        }

    def save(self) -> None:
        """Write a checkpoint, in the first process."""
        self._check_weights()
        state = run_state(self.run) if self.sharded or self.processes.first else {}  # shards are put together by all
        if self.processes.first:
            record = self.record() | {"data_state": self.data_state, "losses": self.losses}
            self.checkpoints.save(self.run.step, Checkpoint(state, record))
        self.processes.wait()

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one; every process reads it."""
        if self.processes.first:
            self.checkpoints.newest()  # puts damaged ones out of the way before the others look
        self.processes.wait()
        checkpoint = self.checkpoints.newest()
        self.processes.agree(0 if checkpoint is None else checkpoint.record["step"])
        if checkpoint is None:
            return
        record = checkpoint.record
        _refuse_difference(self.checkpoints.path, record, self.config, self.data)
        load_state(self.run, checkpoint.tensors)
        self.run.step, self.run.seconds, self.run.precision = record["step"], record["seconds"], record["precision"]
        self.history, self.data_state, self.losses = record["history"], record["data_state"], record["losses"]


class _Meter:
    """Mean loss and speed since the last row of the log."""

    def __init__(self, config: TrainingConfig, losses: list[float]) -> None:
        self.per_step = config.batch_size * config.context
        self.losses, self.n_timed = losses, 0
        self.since = time.perf_counter()

    def add(self, loss: float) -> None:
        self.losses.append(loss)
        self.n_timed += 1

    def row(self, run: TrainingRun) -> Row:
        """The numbers of the log, which start anew."""
        now = time.perf_counter()
        speed = self.n_timed * self.per_step / (now - self.since)
        nonzeros = count_nonzeros(run.decayed)
        row: Row = {
            "training_loss": sum(self.losses) / len(self.losses),
            "learning_rate": run.optimizer.param_groups[0]["lr"],
            "nonzeros": nonzeros,
            "density": nonzeros / sum(p.numel() for p in run.decayed),
            "tokens_per_second": round(speed, 1),
            "seconds": round(run.seconds, 1),
        }
        self.losses.clear()
        self.n_timed, self.since = 0, now
        return row


def _refuse_difference(where: Path, record: dict[str, Any], config: TrainingConfig, data: TrainingData) -> None:
    """Raise `CheckpointError` if a record is of another configuration or corpus."""
    before, now = ({k: v for k, v in c.items() if k not in UNIMPORTANT} for c in (record["config"], config.model_dump(mode="json")))
    changes = differences(before, now)
    known = [change for change in changes if "not there" not in change]  # fields of another version are the fingerprint's to judge
    if known or record["fingerprint"] != config.fingerprint():
        changed = "; ".join(changes) or "it was written by another version of sparse_lens"
        raise CheckpointError(
            f"{where} belongs to another configuration ({changed}); give another folder, or delete it to start over"
        )
    if record["data"] != data.manifest["config_hash"]:
        raise CheckpointError(f"{where} was trained on another corpus; give that one, or delete it to start over")


def _windows(config: TrainingConfig, data: TrainingData) -> dict[str, np.ndarray]:
    """The first windows that training read, for mean activations, and held-out ones, for losses."""
    per_batch = min(_WINDOWS, config.batch_size)
    options = {"context": config.context, "batch_size": per_batch, "seed": config.data_seed}
    batches = data.resumable_batches(**options, start_step=0, n_steps=-(-_WINDOWS // per_batch), state=None)
    read = np.concatenate([batch for batch, _ in batches])[:_WINDOWS, :-1]
    return {"reference": read, "heldout": data.validation_windows(config.context, _WINDOWS)}


def _check_shareable(config: TrainingConfig, processes: Processes, sharded: bool) -> None:
    """Raise `ConfigError` for what several processes, or shards of weights, cannot do."""
    if processes.count > 1 and isinstance(config.sparsity, LearnedMask):
        raise ConfigError("learned masks are trained by one process: their gates go away halfway, which DDP does not expect")
    if not sharded:
        return
    if processes.count == 1:
        raise ConfigError("sharded training needs several processes: start it with torchrun")
    if isinstance(config.sparsity, LotteryTicket | MagnitudePruning):
        raise ConfigError(f"sparsity by {config.sparsity.method!r} does not work on sharded weights; leave `sharded` out")
    if config.model.get("tied_unembed", True):
        raise ConfigError("sharded training needs an unembedding of its own: set tied_unembed to false")


def _finished(folder: Path, record: dict[str, Any]) -> TrainingResult:
    model = open_finished(folder)
    return TrainingResult(model, folder, record["history"][-1]["loss"], record["history"])


def _model_config(config: TrainingConfig, data: TrainingData) -> CircuitGPTConfig:
    """The model's configuration, its vocabulary and positions taken from the data."""
    end_of_text = data.tokenizer.token_to_id(END_OF_TEXT)
    fields = {
        "vocab_size": data.vocab_size,
        "block_size": config.context,
        "tokenizer_name": None,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
    }
    known = {*REFERENCE_FIELDS, *EXTENSION_FIELDS, *fields}
    for name in config.model:
        if name not in known:
            raise UnknownNameError("model field", name, known)
    try:
        model_config = CircuitGPTConfig(**(fields | config.model))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"the recipe's model is no model: {error}") from error
    if model_config.vocab_size < data.vocab_size or model_config.block_size < config.context:
        raise DataError(
            f"the model has {model_config.vocab_size} tokens and {model_config.block_size} positions, "
            f"the data need {data.vocab_size} and {config.context}; leave both out of `model`"
        )
    return model_config
