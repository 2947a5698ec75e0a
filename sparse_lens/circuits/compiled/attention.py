"""The heads of a compiled circuit, on the distinct rows of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_lens.circuits.compiled.plan import AttentionPart, Head, Operand
from sparse_lens.circuits.compiled.prefixes import Level, PrefixRows

_MOST_SCORES = 1 << 20
"""Scores of one head that are held at a time: what stays in the cache."""


def mix_heads(
    part: AttentionPart,
    rows: PrefixRows,
    values: tuple[Tensor | None, Tensor | None, Tensor | None],
    levels: tuple[Level, Level],
) -> Float[Tensor, "row feature"]:
    """The features of all varying heads for the rows of the second of `levels`.

    `values` are the varying channels of queries, keys and values, None where all are constant. The first level is that of keys and
    values, and of queries, too, unless only prompts' last rows are asked for.
    """
    level_in, level_out = levels
    query, key = _side_by_side(part.query, values[0]), _side_by_side(part.key, values[1])
    everywhere = level_out == "prefix"
    out = query.new_empty(rows.n_rows(level_out), sum(_width(head) for head in part.heads))
    for prompts, longest in _chunks(rows.length, everywhere):
        grid = rows.grid["token" if level_in == "token" else "prefix"][prompts, :longest]
        q = _at(query, grid) if everywhere else _of_prompts(query, prompts)
        hidden = _hidden(rows.length[prompts], longest, everywhere)
        keys, mixed = _at(key, grid), None if values[2] is None else values[2][grid]
        by_head = _by_head(part.heads, q, keys, mixed)
        found = torch.cat([_head(head, part.scale, *operands, hidden) for head, operands in by_head], dim=-1)
        if everywhere:
            first = rows.first[prompts, :longest]
            out[rows.grid["prefix"][prompts, :longest][first]] = found.expand(len(grid), -1, -1)[first]
        else:
            out[prompts] = found[:, 0]
    return out


def _width(head: Head) -> int:
    return head.values.stop - head.values.start + head.summed


def _by_head(
    heads: tuple[Head, ...], q: Tensor, k: Tensor, v: Tensor | None
) -> Iterator[tuple[Head, tuple[Tensor, Tensor, Tensor | None]]]:
    """Queries, keys and values of each head. They stand side by side in the heads' order: as one split, backwards is one copy."""
    scored = [head.channels.stop - head.channels.start for head in heads]
    valued = [head.values.stop - head.values.start for head in heads]
    values = [None] * len(heads) if v is None else v.split(valued, dim=-1)
    yield from zip(heads, zip(q.split(scored, dim=-1), k.split(scored, dim=-1), values, strict=True), strict=True)


def _side_by_side(operand: Operand, values: Tensor | None) -> Float[Tensor, "row channel"]:
    """Varying channels and constants in one tensor; a single row if all is constant."""
    if values is None:
        return operand.rest[None]
    return operand.rest.expand(len(values), -1).index_copy(1, operand.places, values)


def _at(values: Tensor, grid: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos channel"]:
    return values.expand(*grid.shape, -1) if len(values) == 1 else values[grid]


def _of_prompts(values: Tensor, prompts: slice) -> Float[Tensor, "prompt 1 channel"]:
    return (values.expand(prompts.stop - prompts.start, -1) if len(values) == 1 else values[prompts])[:, None]


def _chunks(length: Int[Tensor, " prompt"], everywhere: bool) -> Iterator[tuple[slice, int]]:
    """Prompts of about the same length, not too many at a time, and the longest of them."""
    n = len(length)
    longest = int(length.max())
    size = max(1, _MOST_SCORES // (longest * longest if everywhere else longest))
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        yield part, int(length[part].max())


def _hidden(length: Int[Tensor, " prompt"], longest: int, everywhere: bool) -> Bool[Tensor, "#prompt query key"]:
    """Where a query must not look; past the end of a prompt nothing is read."""
    if everywhere:
        return torch.ones(1, longest, longest, dtype=torch.bool).triu(1)
    return torch.arange(longest) >= length[:, None, None]


def _head(
    head: Head, scale: float, q: Tensor, k: Tensor, v: Tensor | None, hidden: Tensor
) -> Float[Tensor, "prompt query feature"]:
    """Weighted sums of a head's varying values, and the sum of its weights, of which the sink gets the rest."""
    scores = (q * scale) @ k.transpose(1, 2) + head.score * scale
    scores = scores.masked_fill(hidden, -math.inf)
    top = scores.detach().amax(-1, keepdim=True)  # of no effect but on rounding, so of no gradient
    top = top if head.sink is None else top.clamp(min=head.sink)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    norm = total if head.sink is None else total + (head.sink - top).exp()
    found = [] if v is None else [weights @ v / norm]
    found += [total / norm] if head.summed else []
    return torch.cat(found, dim=-1) if found else scores.new_zeros(*scores.shape[:2], 0)
