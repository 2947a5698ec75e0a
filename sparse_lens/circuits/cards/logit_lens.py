"""What a node that writes to the residual stream would do to the logits if nothing lay between (the logit lens)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.circuits.sites import FINAL_SITE, RESIDUAL_SITES, Site
from sparse_lens.hooks.layout import decoder_layout, layer_matrices

_RESIDUAL = ("attn_out", "mlp_out", FINAL_SITE, *RESIDUAL_SITES)


@torch.no_grad()
def logit_directions(bridge: Any, site: Site, index: int) -> Float[Tensor, " vocab"] | None:
    """Logits per unit of a node's activation, through the final norm's gain alone; None for a node that writes no direction.

    Neurons write their column of the MLP's output matrix, whatever channels a circuit keeps of it; the error of a dictionary and
    the nodes that queries, keys and values read or are have none. Source: nostalgebraist, "interpreting GPT: the logit lens"
    (2020).
    """
    direction = _direction(bridge, site, index)
    if direction is None:
        return None
    if "RMS" not in str(bridge.cfg.normalization_type):
        direction = direction - direction.mean()
    gain = getattr(bridge.ln_final, "w", None)
    direction = direction if gain is None else direction * gain.detach().float()
    return direction @ bridge.W_U.detach().float()


def top_tokens(logits: Float[Tensor, " vocab"], most: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Ids and logits of the `most` promoted and suppressed tokens, the strongest first; tokens at zero are neither."""
    order = logits.argsort(descending=True, stable=True)
    best, worst = order[:most].tolist(), order.flip(0)[:most].tolist()
    promoted = [(token, float(logits[token])) for token in best if logits[token] > 0]
    return promoted, [(token, float(logits[token])) for token in worst if logits[token] < 0]


def _direction(bridge: Any, site: Site, index: int) -> Float[Tensor, " d_model"] | None:
    if index >= site.n_latents:
        return None
    if site.is_identity:
        if site.kind in _RESIDUAL:
            return torch.nn.functional.one_hot(torch.tensor(index), decoder_layout(bridge).d_model).float()
        if site.kind == "mlp_neuron" and site.layer is not None:
            return layer_matrices(bridge, site.layer).fc_out[:, index].detach().float()
        return None
    written = site.dictionary.W_dec[index].detach().float()
    if site.kind == "mlp_neuron" and site.layer is not None:
        return layer_matrices(bridge, site.layer).fc_out.detach().float() @ written
    return written if site.kind in _RESIDUAL else None
