"""The activation cache of a weight-sparse transformer: it knows where a decomposition would not add up."""

from __future__ import annotations

import warnings
from typing import Any

from transformer_lens.ActivationCache import ActivationCache

from sparse_lens.errors import SparseLensError
from sparse_lens.models import CircuitGPTConfig

CONCATENATED = (
    "this model concatenates positions (d_pos_emb={width}): they never enter the residual stream, so {what} does not "
    "exist; {instead}"
)


class CircuitGPTCache(ActivationCache):
    """`ActivationCache` that refuses terms which do not exist, and warns of sums that do not hold."""

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' method.

        Raises `SparseLensError` with concatenated positions unless `incl_embeds=False`; warns where the residual stream
        is not the sum of what is written to it.
        """
        if kwargs.get("incl_embeds", args[5] if len(args) > 5 else True):
            self._refuse_positions()
        _warn_unless_additive(self._config(), ("resid_post_attn", "resid_post_mlp"))
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' method; raises and warns as `decompose_resid`, warns also of AbsTopK on a sublayer's output."""
        self._refuse_positions()
        _warn_unless_additive(self._config(), ("resid_post_attn", "resid_post_mlp", "attn_out", "mlp_out"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said already
            return super().get_full_resid_decomposition(*args, **kwargs)

    def _config(self) -> CircuitGPTConfig:
        return self.model.original_model.config  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]

    def _refuse_positions(self) -> None:
        width = self._config().d_pos_emb
        if width is not None and self.has_embed and self.has_pos_embed:
            what = "a decomposition with the position embedding as a term"
            instead = "use accumulated_resid, or decompose_resid(incl_embeds=False) and add hook_embed"
            raise SparseLensError(CONCATENATED.format(width=width, what=what, instead=instead))


def _warn_unless_additive(config: CircuitGPTConfig, sites: tuple[str, ...]) -> None:
    causes = [f"AbsTopK on {site}" for site in sites if site in config.sparse_sites]
    if config.residual_activation_type != "identity":
        causes.append(f"residual_activation_type={config.residual_activation_type}")
    if causes:
        warnings.warn(
            f"the components do not add up to the residual stream in this model ({', '.join(causes)}): "
            "read them one by one, or use accumulated_resid",
            stacklevel=3,
        )
