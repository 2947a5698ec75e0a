"""`untrained_sae`: the dictionary that has learned nothing, the floor under every claim about a trained one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.errors import ConfigError


def untrained_sae(
    width: int, d_sae: int, k: int, hook: str, *, mean: Float[Tensor, " width"] | None = None, seed: int = 0
) -> SAELensDictionary:
    """A TopK SAE as it is before training: random decoder rows of norm one, the encoder their transpose, no encoder bias.

    `mean` is what the decoder's bias holds, zero if not given; give the activation's mean to grant the control as much. Equal for
    equal seeds, the global random state is left alone. Raises `ConfigError` for sizes below 1 or `k` above `d_sae`.
    """
    if min(width, d_sae, k) < 1 or k > d_sae:
        raise ConfigError(f"an SAE needs width, d_sae and k above 0 and no more than d_sae active, got {width}, {d_sae}, {k}")
    rows = torch.randn(d_sae, width, generator=torch.Generator().manual_seed(seed))
    rows = rows / rows.norm(dim=1, keepdim=True)
    bias = torch.zeros(width) if mean is None else mean.detach().float().cpu().clone()
    if bias.shape != (width,):
        raise ConfigError(f"the mean has shape {tuple(bias.shape)}, the SAE's width is {width}")
    weights = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(d_sae), "W_dec": rows, "b_dec": bias}
    return SAELensDictionary("topk", weights, hook, k, label=f"untrained{d_sae}k{k}s{seed}@{hook}")
