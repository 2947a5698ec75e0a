"""The frozen form of a compiled circuit: weights between its own channels alone, with recorded norm scales and choices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_lens.circuits.compiled.choices import FrozenChoices
from sparse_lens.circuits.compiled.plan import (
    Affine,
    AttentionPart,
    Layer,
    MLPPart,
    Plan,
    PositionalPart,
    Projection,
    Read,
    SiteChoice,
    Write,
)
from sparse_lens.circuits.compiled.prefixes import Level, PrefixRows
from sparse_lens.circuits.compiled.recording import RecordingRun
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.compiled.weights import neurons


@dataclass(frozen=True, eq=False)
class FrozenPlan:
    """A plan of the circuit's own channels: of the residual stream those that are read, of every matrix the kept entries.

    `noted` says which of the recorded channels of a site are left.
    """

    plan: Plan
    noted: dict[str, Int[Tensor, " channel"]]

    def choices(self, run: RecordingRun) -> FrozenChoices:
        """What a run over the exact plan recorded, for the channels that are left."""
        run.value("logits")
        left = {name: c.channels(self.noted[name]) if name in self.noted else c for name, c in run.choices.items()}
        return FrozenChoices(run.rows, left, len(self.plan.embedding))


class FrozenRun(Run):
    """A pass over a frozen plan, with recorded scales and choices."""

    def __init__(self, frozen: FrozenPlan, choices: FrozenChoices, rows: PrefixRows, answers: Int[Tensor, " answer"]) -> None:
        super().__init__(frozen.plan, rows, answers)
        self._choices, self._index = choices, choices.index(rows)

    def read(self, read: Read, x: Tensor, level: Level) -> Tensor:
        if read.positional is not None:
            x = torch.cat([x, read.positional[self.rows.position[level]]], dim=-1)
        return self._chosen(read.site.name, x[:, read.site.kept])

    def choose(self, site: SiteChoice, values: Tensor) -> Tensor:
        return self._chosen(site.name, values)

    def activate(self, part: MLPPart, pre: Tensor, inputs: Tensor) -> Tensor:  # noqa: ARG002
        return self._chosen(part.neuron.site.name, neurons(pre, pre, part.gelu, None))

    def after(self, write: Write, x: Tensor, name: str) -> Tensor:
        return self._chosen(name, x.relu_() if write.relu else x)

    def final(self, x: Tensor) -> Tensor:
        return self._chosen(self.plan.final.name, torch.cat([x[:, self.plan.final.kept], x.new_ones(len(x), 2)], dim=-1))

    def _chosen(self, name: str, values: Tensor) -> Tensor:
        return self._choices.apply(name, values, self._index)


def frozen_plan(plan: Plan) -> FrozenPlan:
    """What is left of an exact plan without the channels that only norms and AbsTopK read."""
    width = len(plan.final.rest)
    read = torch.zeros(width, dtype=torch.bool)
    read[plan.final.kept] = True
    for layer in plan.layers:
        for part in (layer.attention, layer.mlp):
            if isinstance(part, AttentionPart | MLPPart):
                read[part.read.site.kept[part.read.site.kept < width]] = True
    narrowed = _Narrowing(read)
    layers = tuple(narrowed.layer(number, layer) for number, layer in enumerate(plan.layers))
    found = replace(
        plan,
        embedding=plan.embedding[:, narrowed.columns],
        positions=None if plan.positions is None else plan.positions[:, narrowed.columns],
        layers=layers,
        final=replace(plan.final, kept=narrowed.place[plan.final.kept]),
        unembedding=_unembedding(plan),
    )
    return FrozenPlan(found, narrowed.noted)


def _unembedding(plan: Plan) -> Affine:
    """Logits from the kept final channels, the norm's factor and what it adds; the constant channels are summed up."""
    weight, norm = plan.unembedding.weight.double(), plan.norm
    others = weight.index_fill(1, plan.final.kept, 0)
    gain = norm.weight.double()
    beside = torch.stack([others @ (gain * plan.final.rest), others @ gain], dim=1)
    bias = plan.unembedding.bias if norm.bias is None else plan.unembedding.bias + others @ norm.bias.double()
    return Affine(torch.cat([weight[:, plan.final.kept], beside], dim=1).float(), bias.float())


class _Narrowing:
    """Parts of a plan with the residual stream cut down to the channels `read`."""

    def __init__(self, read: Tensor) -> None:
        self.width, self.columns = len(read), read.nonzero().flatten()
        self.place = torch.full((self.width,), -1)
        self.place[self.columns] = torch.arange(len(self.columns))
        self.noted: dict[str, Tensor] = {}

    def layer(self, number: int, layer: Layer) -> Layer:
        write, left = self._write(layer.attention_write, f"resid_mid.{number}")
        attention = self._attention(layer.attention, write, left)
        mlp_write, left = self._write(layer.mlp_write, f"resid_post.{number}")
        mlp = self._mlp(layer.mlp, mlp_write, left) if isinstance(layer.mlp, MLPPart) and len(left) else None
        return replace(layer, attention=attention, attention_write=write, mlp=mlp, mlp_write=mlp_write)

    def _write(self, write: Write, after: str) -> tuple[Write, Tensor]:
        """The write into the channels that are left, and which of its kept ones these are."""
        left = (self.place[write.site.kept] >= 0).nonzero().flatten()
        self.noted |= {write.site.name: left, after: self.columns}
        site = replace(write.site, kept=self.place[write.site.kept[left]], rest=write.site.rest[self.columns])
        return replace(write, site=site), left

    def _attention(
        self, part: AttentionPart | PositionalPart | None, write: Write, left: Tensor
    ) -> AttentionPart | PositionalPart | None:
        if part is None or len(left) == 0:
            return None
        if isinstance(part, PositionalPart):
            return PositionalPart(part.table[:, left])
        rows = part.output.site.kept[left] if part.output.site.k is not None else left
        matrix = Affine(part.output.matrix.weight[rows], part.output.matrix.bias[rows])
        query, key = (replace(operand, projection=_kept_rows(operand.projection)) for operand in (part.query, part.key))
        return replace(
            part,
            read=self._read(part.read),
            query=query,
            key=key,
            value=_kept_rows(part.value),
            output=Projection(matrix, write.site),
            table=part.table[:, rows],
        )

    def _mlp(self, part: MLPPart, write: Write, left: Tensor) -> MLPPart:
        rows = part.output.site.kept[left] if part.output.site.k is not None else left
        matrix = Affine(part.output.matrix.weight[rows], part.output.matrix.bias[rows])
        neuron = _kept_rows(part.neuron)
        assert neuron is not None
        return replace(part, read=self._read(part.read), neuron=neuron, output=Projection(matrix, write.site), routing=None)

    def _read(self, read: Read) -> Read:
        kept, beyond = read.site.kept, len(self.columns) - self.width
        places = torch.where(kept < self.width, self.place[kept.clamp(max=self.width - 1)], kept + beyond)
        return replace(read, site=replace(read.site, kept=places))


def _kept_rows(projection: Projection | None) -> Projection | None:
    """A matrix with the kept outputs alone."""
    if projection is None or projection.site.k is None:
        return projection
    kept, matrix = projection.site.kept, projection.matrix
    return replace(projection, matrix=Affine(matrix.weight[kept], matrix.bias[kept]))
