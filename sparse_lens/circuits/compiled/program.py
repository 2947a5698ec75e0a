"""A circuit as the small program that it is: only what its nodes need, for any prompts.

The *exact* form computes what the masked model computes: it keeps what norms and AbsTopK need of channels outside the circuit, and
leaves out whatever is replaced by a constant. The *frozen* form takes the norms' scales and the choices of AbsTopK from a recorded
run, and multiplies by weights between the circuit's own channels alone; it is approximate, and says by how much.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.circuit import Circuit
from sparse_lens.circuits.compiled.choices import FrozenChoices
from sparse_lens.circuits.compiled.frozen import FrozenPlan, FrozenRun, frozen_plan
from sparse_lens.circuits.compiled.plan import Plan, with_levels
from sparse_lens.circuits.compiled.prefixes import PrefixRows, prefix_rows
from sparse_lens.circuits.compiled.recording import RecordingRun
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.compiled.weights import PartBuilder
from sparse_lens.circuits.edges.cutting import edge_module
from sparse_lens.circuits.prompts import Prompts, both_sides
from sparse_lens.circuits.scoring import masked_differences, task_loss
from sparse_lens.errors import CircuitError, UnknownNameError
from sparse_lens.tasks import TaskBatch

CompiledForm = Literal["exact", "frozen"]


@dataclass(frozen=True)
class FrozenError:
    """How far the frozen form's logit differences are from the masked model's: at most, and on average, on `n` prompts."""

    largest: float
    mean: float
    n: int


@dataclass(frozen=True, eq=False)
class CompiledCircuit:
    """A circuit that runs without its model; made by `compile_circuit` or `circuit.compile(bridge)`.

    The frozen form is *approximate*: `error` is measured on the prompts that it was recorded on, where it comes out as the masked
    model does; `fresh_error` on the same prompts, each half of their pairs by what was recorded on the other half, which is what to
    expect on other prompts. Both are None in the exact form.
    """

    form: CompiledForm
    task: str
    model: str
    plan: Plan
    frozen: FrozenPlan | None = None
    choices: FrozenChoices | None = None
    error: FrozenError | None = None
    fresh_error: FrozenError | None = None

    @property
    def n_weights(self) -> int:
        """Number of nonzero weights of the layers' matrices that a run multiplies by."""
        plan = self.plan if self.frozen is None else self.frozen.plan
        return sum(int(matrix.weight.count_nonzero()) for layer in plan.layers for matrix in layer.matrices())

    @torch.no_grad()
    def answer_logits(
        self,
        tokens: Int[Tensor, "row pos"],
        position: Int[Tensor, " row"],
        answers: Int[Tensor, "row answer"],
        *,
        batch_size: int = 1024,
    ) -> Float[Tensor, "row answer"]:
        """Logits of each prompt's own `answers` (token ids) at its `position`; what stands behind that is not read.

        Prompts that begin alike are computed together, hence large batches; memory grows with `batch_size`. Raises `CircuitError`
        for prompts or tokens that the model cannot read.
        """
        self._check(tokens, position, answers)
        found = [
            self._batch(tokens[part], position[part], answers[part])
            for part in (slice(start, start + batch_size) for start in range(0, len(tokens), batch_size))
        ]
        return torch.cat(found)

    def differences(self, prompts: Prompts | TaskBatch, *, batch_size: int = 1024) -> Float[Tensor, " row"]:
        """Right answer's logit minus the wrong one's, as `masked_differences` gives them for the whole model."""
        prompts = prompts if isinstance(prompts, Prompts) else both_sides(prompts)
        answers = torch.stack([prompts.right, prompts.wrong], dim=1)
        logits = self.answer_logits(prompts.tokens, prompts.position, answers, batch_size=batch_size)
        return logits[:, 0] - logits[:, 1]

    def loss(self, prompts: Prompts | TaskBatch) -> float:
        """Mean two-token task loss, in nats."""
        return float(task_loss(self.differences(prompts)).mean())

    def _batch(self, tokens: Tensor, position: Tensor, answers: Tensor) -> Tensor:
        rows = prefix_rows(tokens, position)
        distinct, index = answers.unique(return_inverse=True)
        return self._run(rows, distinct).value("logits")[rows.inverse].gather(1, index)

    def _run(self, rows: PrefixRows, answers: Tensor) -> Run:
        if self.frozen is None or self.choices is None:
            return Run(self.plan, rows, answers)
        return FrozenRun(self.frozen, self.choices, rows, answers)

    def _check(self, tokens: Tensor, position: Tensor, answers: Tensor) -> None:
        if len(tokens) == 0:
            raise CircuitError("there are no prompts; give at least one")
        longest, context = int(position.max()) + 1, self.plan.n_positions
        if int(position.min()) < 0 or longest > min(context, tokens.shape[1]):
            raise CircuitError(
                f"answer positions run from {int(position.min())} to {longest - 1}, the prompts have {tokens.shape[1]} tokens and "
                f"the model reads {context}; give positions inside both"
            )
        n_vocab = len(self.plan.embedding)
        read = tokens[torch.arange(tokens.shape[1]) <= position[:, None]]
        for name, ids in (("token", read), ("answer", answers.flatten())):
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest < 0 or highest >= n_vocab:
                raise CircuitError(
                    f"{name} {lowest if lowest < 0 else highest} does not exist: the model has ids 0 to {n_vocab - 1}"
                )


def compile_circuit(
    bridge: Any, circuit: Circuit, *, form: CompiledForm = "exact", prompts: Prompts | TaskBatch | None = None
) -> CompiledCircuit:
    """The circuit as a program of its own, equal to the masked model (`exact`) or approximate and smaller still (`frozen`).

    With edges, those that are cut are left out; hooks on the bridge have no part in it. The frozen form is recorded on `prompts`,
    and its error is measured there. Raises `CircuitError` for another model than the circuit's, one that is no CircuitGPT or not in
    float32, nodes of dictionaries, an ablation that depends on the prompts, frozen norms, and the frozen form without prompts.
    """
    if form not in get_args(CompiledForm):
        raise UnknownNameError("form", str(form), get_args(CompiledForm))
    circuit.check_model(bridge)
    check_compilable(bridge, circuit)
    with edges_cut(bridge, circuit):
        plan = exact_plan(bridge, circuit)
    exact = CompiledCircuit("exact", circuit.task, circuit.model, plan)
    if form == "exact":
        return exact
    if prompts is None:
        raise CircuitError("the frozen form takes norm scales and choices from a run; give the prompts of that run")
    return _freeze(bridge, circuit, exact, prompts if isinstance(prompts, Prompts) else both_sides(prompts))


def exact_plan(bridge: Any, circuit: Circuit) -> Plan:
    """The plan of a circuit's nodes, with the weights that `bridge` has at the moment."""
    builder = PartBuilder(bridge, circuit.space.split(circuit.mask), circuit.how_ablated.fixed_values(), {})
    with torch.no_grad():
        return with_levels(builder.plan())


def edges_cut(bridge: Any, circuit: Circuit) -> AbstractContextManager[None]:
    """The bridge without the edges that are cut in the circuit, inside a block."""
    return nullcontext() if circuit.edges is None else circuit.edges.cut_in(bridge)


def check_compilable(bridge: Any, circuit: Circuit) -> None:
    """Raise `CircuitError` for what `compile_circuit` cannot compile."""
    if circuit.space.has_dictionaries:
        raise CircuitError(
            "this circuit has nodes seen through dictionaries; only circuits of the model's own channels are compiled"
        )
    if not circuit.how_ablated.fixed:
        norms = " with frozen norms" if circuit.frozen_norms else ""
        raise CircuitError(f"{circuit.ablation} ablation{norms} depends on the prompts; only mean and zero ablation are compiled")
    if getattr(bridge.original_model, "core", None) is None:
        raise CircuitError(
            f"circuits are compiled in weight-sparse models and their dense twins (CircuitGPT), not in {type(bridge).__name__}; "
            "use `with circuit.applied(bridge)`"
        )
    dtype = edge_module(bridge, "embedding").weight.dtype
    if dtype != torch.float32:
        raise CircuitError(f"the model is in {dtype}; load it with dtype=torch.float32 to compile circuits of it")


def _freeze(bridge: Any, circuit: Circuit, exact: CompiledCircuit, prompts: Prompts) -> CompiledCircuit:
    with edges_cut(bridge, circuit):
        expected = masked_differences(bridge, circuit.space, circuit.mask, circuit.how_ablated, prompts)
    frozen = frozen_plan(exact.plan)
    found = _recorded(exact, frozen, prompts)
    error, fresh = _error(found.differences(prompts) - expected), None
    halves = [(prompts.pair % 2 == half).nonzero().flatten() for half in (0, 1)]
    if all(len(half) for half in halves):
        there = [
            _recorded(exact, frozen, prompts.rows(half)).differences(prompts.rows(o)) - expected[o] for half, o in _crossed(halves)
        ]
        fresh = _error(torch.cat(there))
    return CompiledCircuit("frozen", exact.task, exact.model, exact.plan, frozen, found.choices, error, fresh)


def _crossed(halves: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(halves[0], halves[1]), (halves[1], halves[0])]


@torch.no_grad()
def _recorded(exact: CompiledCircuit, frozen: FrozenPlan, prompts: Prompts) -> CompiledCircuit:
    run = RecordingRun(exact.plan, prefix_rows(prompts.tokens, prompts.position), prompts.right[:1])
    return CompiledCircuit("frozen", exact.task, exact.model, exact.plan, frozen, frozen.choices(run))


def _error(difference: Float[Tensor, " row"]) -> FrozenError:
    size = difference.abs()
    return FrozenError(float(size.max()), float(size.mean()), len(size))
