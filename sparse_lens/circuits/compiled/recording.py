"""An exact run that notes what the frozen form of a compiled circuit takes over from it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.choices import Choice
from sparse_lens.circuits.compiled.plan import MLPPart, Norm, Plan, Read, SiteChoice, Write
from sparse_lens.circuits.compiled.prefixes import Level, PrefixRows
from sparse_lens.circuits.compiled.run import Run
from sparse_lens.circuits.compiled.weights import neurons


class RecordingRun(Run):
    """An exact run that notes every norm's scale and every choice; `choices` by site once the logits have been asked for."""

    def __init__(self, plan: Plan, rows: PrefixRows, answers: Int[Tensor, " answer"]) -> None:
        super().__init__(plan, rows, answers)
        self.choices: dict[str, Choice] = {}

    def read(self, read: Read, x: Tensor, level: Level) -> Tensor:
        found = super().read(read, x, level)
        kept, whole = read.site.kept, x
        if read.positional is not None:
            whole = torch.cat([x, read.positional[self.rows.position[level]]], dim=-1)
        stream = kept < x.shape[1]
        inverse, shift = _scale(read.norm, x)
        factor, offset = torch.ones_like(found), torch.zeros_like(found)
        factor[:, stream], offset[:, stream] = _affine(read.norm, kept[stream], inverse, shift)
        chosen = (found != 0).float()
        self._note(read.site.name, whole[:, kept], factor * chosen, offset * chosen)
        return found

    def choose(self, site: SiteChoice, values: Tensor) -> Tensor:
        found = super().choose(site, values)
        if site.k is not None:
            self._note(site.name, super().choose(replace(site, k=None), values), (found != 0).float())
        return found

    def activate(self, part: MLPPart, pre: Tensor, inputs: Tensor) -> Tensor:
        found = super().activate(part, pre, inputs)
        if part.routing is not None:  # the expert's factor belongs to what is frozen
            plain = super().choose(replace(part.neuron.site, k=None), neurons(pre, inputs, part.gelu, None))
            self._note(part.neuron.site.name, plain, torch.where(plain != 0, found / plain, 0))
        return found

    def after(self, write: Write, x: Tensor, name: str) -> Tensor:
        found = super().after(write, x, name)
        if write.k is not None:
            self._note(name, x, (found != 0).float())
        return found

    def final(self, x: Tensor) -> Tensor:
        site = self.plan.final
        kept = x[:, site.kept]
        inverse, shift = _scale(self.plan.norm, site.rest.expand(len(x), -1).index_copy(1, site.kept, kept))
        factor, offset = _affine(self.plan.norm, site.kept, inverse, shift)
        columns = [
            torch.cat(pair, 1)
            for pair in ((kept, x.new_ones(len(x), 2)), (factor, inverse, shift), (offset, x.new_zeros(len(x), 2)))
        ]
        self._note(site.name, *columns)
        return super().final(x)

    def _note(self, name: str, values: Tensor, factor: Tensor, offset: Tensor | None = None) -> None:
        offset = offset if offset is not None and bool(offset.any()) else None
        self.choices[name] = Choice(self.plan.level_of(name), values, factor, offset)


def _scale(norm: Norm, x: Tensor) -> tuple[Float[Tensor, "row 1"], Float[Tensor, "row 1"]]:
    """What a norm multiplies every row by, and what it then adds, before gain and bias."""
    if not norm.centred:
        inverse = (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        return inverse, torch.zeros_like(inverse)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    inverse = (variance + norm.eps).rsqrt()
    return inverse, -mean * inverse


def _affine(norm: Norm, kept: Tensor, inverse: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """A norm with a given scale, as factor and offset of some channels."""
    weight = norm.weight[kept]
    offset = weight * shift
    return weight * inverse, offset if norm.bias is None else offset + norm.bias[kept]
