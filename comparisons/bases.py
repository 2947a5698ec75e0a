"""Other bases of a model's own activations: a dense model may keep its features in directions that are no channels.

All are rotations, exact as dictionaries: they change which directions a circuit may keep, not the model's function.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries import RotationDictionary, harvest_activations, random_rotation
from sparse_lens.errors import DataError
from sparse_lens.hooks.layout import decoder_layout, layer_matrices

RESIDUAL_SITES = ("attn_in", "attn_out", "mlp_in", "mlp_out")
"""The sites of a layer that read or write the residual stream."""

ALL_SITES = ("attn_in", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")


def principal_components(bridge: Any, hooks: Sequence[str], token_batches: Iterable[Any]) -> list[RotationDictionary]:
    """For each hook the rotation onto the principal components of its activations, largest first.

    The mean is left out of the covariance only: a rotation keeps the origin. Sums are float64 and streamed; memory is one `[d, d]`
    a hook. Raises what `harvest_activations` raises, and `DataError` without tokens.
    """
    totals: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    n_tokens = 0
    for activations in harvest_activations(bridge, hooks, token_batches):
        for hook in hooks:
            x = activations[hook].double()
            totals[hook] = totals.get(hook, 0) + x.sum(0)
            products[hook] = products.get(hook, 0) + x.T @ x
        n_tokens += len(activations[hooks[0]])
    if n_tokens == 0:
        raise DataError("no activations to find principal components of; give at least one batch of tokens")
    return [
        RotationDictionary(_components(totals[hook] / n_tokens, products[hook] / n_tokens), hook, "components") for hook in hooks
    ]


def _components(mean: Tensor, second: Tensor) -> Float[Tensor, "d d"]:
    return torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors.flip(1).float()


def residual_components(bridge: Any, token_batches: Iterable[Any]) -> list[RotationDictionary]:
    """Principal components at all sites that read or write the residual stream, and at final_resid."""
    layout = decoder_layout(bridge)
    hooks = [f"blocks.{layer}.{layout.hooks[site]}" for layer in range(layout.n_layers) for site in RESIDUAL_SITES]
    return principal_components(bridge, [*hooks, "ln_final.hook_in"], token_batches)


def head_singular_vectors(bridge: Any) -> list[RotationDictionary]:
    """In every layer the channels of each head on singular vectors: queries and keys of what they read, values of what they write.

    A head's queries `x W_Q^T` turn onto the singular vectors of `W_Q`, so that their directions in the residual stream are
    orthogonal, its keys likewise; values turn onto those of `W_O`, so that what they write is orthogonal.
    """
    layout, rotations = decoder_layout(bridge), []
    for layer in range(layout.n_layers):
        matrices = layer_matrices(bridge, layer)
        for site, matrix, heads in (
            ("attn_q", matrices.q, layout.n_head),
            ("attn_k", matrices.k, layout.n_kv_head),
            ("attn_v", matrices.v if layout.n_kv_head != layout.n_head else matrices.o.T, layout.n_kv_head),
        ):
            rotations.append(
                RotationDictionary(_by_head(matrix, heads), f"blocks.{layer}.{layout.hooks[site]}", "singular_vectors")
            )
    return rotations


def _by_head(matrix: Float[Tensor, "channel d"], heads: int) -> Float[Tensor, "channel channel"]:
    """Block-diagonal rotation of the channels of each head onto the left singular vectors of its rows."""
    parts = matrix.detach().double().chunk(heads)
    return torch.block_diag(*(torch.linalg.svd(part, full_matrices=False).U for part in parts)).float()


def random_bases(bridge: Any, *, seed: int = 0) -> list[RotationDictionary]:
    """A random rotation at every site: the control for each claim about neurons. Equal function, no neuron left.

    (The sites' own AbsTopK stays where it is: the rotation is of what comes out of it.)
    """
    layout = decoder_layout(bridge)
    places = [(f"blocks.{layer}.{layout.hooks[site]}", site) for layer in range(layout.n_layers) for site in ALL_SITES]
    places.append(("ln_final.hook_in", "attn_out"))
    rotations = [random_rotation(layout.widths[site], seed * 1000 + index) for index, (_, site) in enumerate(places)]
    return [RotationDictionary(rotation, hook) for rotation, (hook, _) in zip(rotations, places, strict=True)]
