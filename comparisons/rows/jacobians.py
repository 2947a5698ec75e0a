"""Sparsity of computation: how an MLP's outputs, as latents, change with its inputs, as latents (arXiv:2502.18147).

For every token `J[i, j] = d latent_out_i / d latent_in_j`, taken where the model is: the error of the input dictionary stays in
place. Rows of latents that are off are zero and cost nothing: as many backward passes are made as a token has active latents at
most.

An absolute threshold depends on the scale of the latents. `jacobian_hoyer` and `jacobian_effective_entries` do not: compare
columns by these. A control is a model with random weights (with dictionaries of its own): `against` puts its numbers into `null`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_lens.circuits.search.learning import frozen
from sparse_lens.comparisons.rows.sparsity_measures import hoyer
from sparse_lens.comparisons.rows.superposition import finite_latents
from sparse_lens.dictionaries import Dictionary
from sparse_lens.errors import DataError, UnknownNameError
from sparse_lens.hooks import splice
from sparse_lens.hooks.layout import layer_matrices
from sparse_lens.results import Result, exact, not_measurable

TAU = 0.01
"""A convention; `results` of two thresholds cannot be compared."""


def measure_jacobian(
    bridge: Any, source: Dictionary, target: Dictionary, token_batches: Iterable[Any], *, tau: float = TAU
) -> dict[str, Result]:
    """`JacobianSums` of the latents of `target` (read at its `hook_in`) by those of `source`, over batches of ids `[batch, pos]`.

    Both sit in one MLP: its input or neurons, and its neurons or output. Time and memory go with tokens, active latents of the
    target and latents of the source: give a few hundred tokens. Raises `UnknownNameError` for a hook that the bridge does not
    have, and `DataError` if the target does not depend on the source at the same token, or depends on other tokens, too.
    """
    sums = JacobianSums(tau)
    for batch in token_batches:
        sums.add_rows(*jacobian_rows(bridge, source, target, torch.as_tensor(batch)))
    return sums.results()


def jacobian_rows(
    bridge: Any, source: Dictionary, target: Dictionary, tokens: Int[Tensor, "batch pos"]
) -> tuple[Iterator[Float[Tensor, "token latent_in"]], int, int]:
    """The nonzero rows of every token's Jacobian, one of every token at a time; and its size, `n_out`, `n_in`.

    The k-th item holds for each token the row of its k-th active latent, zeros where it has fewer.
    """
    with torch.enable_grad(), frozen(bridge):
        latents_in, latents_out = _latents(bridge, source, target, tokens)
    _check_same_token(latents_out, latents_in)
    flat = latents_out.flatten(0, 1)
    active = flat.detach() != 0
    order = active.int().argsort(dim=1, descending=True, stable=True)

    def rows() -> Iterator[Tensor]:
        for place in range(int(active.sum(1).max())):
            chosen = order[:, place : place + 1]
            seed = torch.zeros_like(flat).scatter(1, chosen, active.gather(1, chosen).to(flat.dtype))
            (row,) = torch.autograd.grad(flat, latents_in, seed, retain_graph=True)
            yield row.flatten(0, 1)

    return rows(), flat.shape[1], latents_in.shape[-1]


def _latents(bridge: Any, source: Dictionary, target: Dictionary, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of the source as leaves, and those of the target as functions of them, `[batch pos latent]`."""
    if target.hook_in not in bridge.hook_dict:
        raise UnknownNameError("hook", target.hook_in, bridge.hook_dict)
    seen: list[Tensor] = []
    with splice(bridge, [source], mode="read") as sites:
        # after the splice's own hook, where both are at one hook
        handle = bridge.hook_dict[target.hook_in].register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            bridge(tokens, return_type=None)
        finally:
            handle.remove()
    finite_latents(source, sites[source.name].activation)
    finite_latents(target, seen[-1].detach())
    latents = target.encode(seen[-1].to(target.W_dec.dtype))
    if latents.ndim != 3 or sites[source.name].latents.ndim != 3:
        raise DataError(
            f"the hooks {source.hook_in!r} and {target.hook_in!r} must give one vector per position, [batch, pos, width]"
        )
    return sites[source.name].latents, latents


def _check_same_token(latents_out: Tensor, latents_in: Tensor) -> None:
    """Refuse what is no function of the same token's input alone, as what lies behind an attention is not."""
    last = latents_out[:, -1].sum()
    (gradient,) = torch.autograd.grad(last, latents_in, retain_graph=True, allow_unused=True) if last.requires_grad else (None,)
    if gradient is None:
        raise DataError("the target's latents do not depend on the source's; give the input of an MLP and what that MLP computes")
    if bool(gradient[:, :-1].any()):
        raise DataError("the target's latents depend on earlier tokens' too; give two hooks of one MLP, with no attention between")


@dataclass
class JacobianSums:
    """Sums over tokens of what is measured on each token's Jacobian; float64."""

    tau: float = TAU
    n_tokens: int = 0
    n_active: int = 0
    above: float = 0.0
    nonzero: float = 0.0
    entries: float = 0.0
    hoyer: float = 0.0
    effective: float = 0.0

    @torch.no_grad()
    def add_rows(self, rows: Iterable[Float[Tensor, "token latent_in"]], n_out: int, n_in: int) -> None:
        """Take in the Jacobians `[n_out, n_in]` of some tokens: rows as `jacobian_rows` gives them, missing ones are zero."""
        sums: Tensor | int = 0
        for row in rows:
            size = row.double().abs()
            parts = (size, size.square(), size**4, (size > self.tau).double(), (size > 0).double())
            sums = sums + torch.stack([part.sum(1) for part in parts])
        if isinstance(sums, int):
            raise DataError("no latent of the target is active on any of the tokens; there is no Jacobian to measure")
        l1, l2, l4, above, nonzero = sums[:, sums[1] > 0]
        root = (n_out * n_in) ** 0.5
        self.n_tokens, self.n_active = self.n_tokens + sums.shape[1], self.n_active + len(l1)
        self.above, self.nonzero = self.above + float(above.sum()), self.nonzero + float(nonzero.sum())
        self.entries = float(n_out * n_in)
        self.hoyer += float(((root - l1 / l2.sqrt()) / (root - 1)).sum()) if root > 1 else 0.0
        self.effective += float((l2.square() / l4).sum())

    def results(self) -> dict[str, Result]:
        """Means over tokens: the shares over all entries, Hoyer and effective entries over tokens whose Jacobian is not zero.

        `jacobian_above_tau` and `jacobian_nonzero` are shares of the `n_out * n_in` entries, `jacobian_entries_above_tau` their
        number; `jacobian_hoyer` is of all entries; `jacobian_effective_entries` is `(sum J^2)^2 / sum J^4`. Raises `DataError`
        without tokens.
        """
        if not self.n_tokens:
            raise DataError("no tokens to measure a Jacobian on; give at least one batch")
        n = self.n_tokens
        results = {
            "jacobian_above_tau": exact(self.above / n / self.entries, n=n),
            "jacobian_entries_above_tau": exact(self.above / n, n=n),
            "jacobian_nonzero": exact(self.nonzero / n / self.entries, n=n),
        }
        if not self.n_active or self.entries == 1:
            return results | dict.fromkeys(_SHAPES, not_measurable("the Jacobian is zero on every token, or a single number", n=n))
        means = (self.hoyer / self.n_active, self.effective / self.n_active)
        return results | {name: exact(mean, n=self.n_active) for name, mean in zip(_SHAPES, means, strict=True)}


_SHAPES = ("jacobian_hoyer", "jacobian_effective_entries")


def weight_sparsity(bridge: Any, layer: int) -> dict[str, Result]:
    """The same, read off an MLP's weights: no entry of a neuron's Jacobian is nonzero where its weight is zero.

    `in_nonzero`, `out_nonzero`: density of the two matrices; `paths_nonzero`: share of the pairs of an input and an output
    channel that some neuron joins. `*_hoyer` is the mean over neurons of their rows and columns, `*_overlap` their
    `support_overlap`. Raises what `layer_matrices`
    raises.
    """
    matrices = layer_matrices(bridge, layer)
    reads = matrices.fc_in.detach() if matrices.gate is None else matrices.fc_in.detach().abs() + matrices.gate.detach().abs()
    writes = matrices.fc_out.detach()
    joined = (writes != 0).float() @ (reads != 0).float() > 0
    results = {
        "in_nonzero": exact(float((reads != 0).double().mean())),
        "out_nonzero": exact(float((writes != 0).double().mean())),
        "paths_nonzero": exact(float(joined.double().mean())),
    }
    for name, rows in (("in_hoyer", reads), ("out_hoyer", writes.T)):
        used = rows[rows.any(1)]
        results[name] = exact(float(hoyer(used).mean()), n=len(used)) if len(used) else not_measurable("every weight is zero")
    return results | {"in_overlap": support_overlap(reads), "out_overlap": support_overlap(writes.T)}


def support_overlap(W: Float[Tensor, "unit d"]) -> Result:
    """Mean over pairs of units of the Jaccard index of their nonzero weights; `null` is that of random supports of these sizes."""
    support = (W != 0).double()
    support = support[support.any(1)]
    if len(support) < 2:
        return not_measurable("fewer than two units have a nonzero weight")
    sizes = support.sum(1)
    total = sizes[:, None] + sizes
    overlaps = [shared / (total - shared) for shared in (support @ support.T, torch.outer(sizes, sizes) / support.shape[1])]
    pairs = torch.ones_like(total).triu(1) > 0
    return Result(float(overlaps[0][pairs].mean()), null=float(overlaps[1][pairs].mean()), n=len(support))


def against(results: Mapping[str, Result], control: Mapping[str, Result]) -> dict[str, Result]:
    """The results with those of a control, where it was measurable, as their `null`."""
    return {
        name: replace(result, null=control[name].value) if result.measurable and name in control else result
        for name, result in results.items()
    }
