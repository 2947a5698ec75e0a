"""SAELens' own way to attach SAEs, on a bridge of ours.

`SAETransformerBridge.boot_transformers` replaces the bridge's class, and with it what keeps decompositions and refusals right;
`with_saelens` gives both.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any

from transformer_lens.hook_points import HookPoint

from sparse_lens.errors import SparseLensError, UnknownNameError
from sparse_lens.hooks.bridge import CircuitGPTBridge
from sparse_lens.hooks.names import canonical_hook_name

_SAFE = re.compile(
    r"blocks\.\d+\.(hook_(in|out|resid_(pre|mid|post)|attn_out|mlp_out)|resid_mid\.hook_out|(attn|mlp)\.hook_(act_in|in|out)"
    r"|attn\.hook_[qkvz]|mlp\.hook_(pre|post)|attn\.[qkvo]\.hook_(in|out)|mlp\.(in|out)\.hook_(in|out)|ln[12]\.hook_(in|out|normalized))"
    r"|(ln_final|embed|unembed)\.hook_(in|out|normalized)|hook_embed"
)
"""Hooks whose tensor is one vector a position on the path itself; the tests put a wrapper into each kind of them."""


def with_saelens(bridge: CircuitGPTBridge) -> Any:
    """The same bridge with SAELens' `add_sae`, `run_with_saes`, `saes(...)` and their kin (`SAETransformerBridge`'s methods).

    An SAE on a hook that does not exist raises `UnknownNameError`, where SAELens would log a line and go on without it; one on a
    hook outside the model's path warns. SAELens' error term carries no gradient: for attribution use `sparse_lens.hooks.splice`.
    Raises `SparseLensError` without sae-lens.
    """
    if isinstance(bridge, _saelens_class()):
        return bridge
    bridge.__class__ = _saelens_class()
    bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}  # as SAELens sets up its own
    return bridge


@cache
def _saelens_class() -> Any:
    try:
        from sae_lens import SAETransformerBridge
    except ImportError as error:
        raise SparseLensError("attaching SAEs SAELens' way needs sae-lens; install sparse_lens[sae], or use splice()") from error

    class CircuitGPTSAEBridge(CircuitGPTBridge, SAETransformerBridge):
        """`CircuitGPTBridge` and `SAETransformerBridge` in one."""

        @property
        def hook_dict(self) -> dict[str, HookPoint]:
            hooks = dict(super().hook_dict)  # SAELens leaves the aliases out, and hooks by those names without effect
            aliases = [*self.hook_aliases, *self._collect_hook_aliases_from_registry()]
            return hooks | {name: hooks[canonical_hook_name(name)] for name in aliases if canonical_hook_name(name) in hooks}

        def _resolve_hook_name(self, hook_name: str) -> str:
            return canonical_hook_name(hook_name)  # SAELens' own way leaves an SAE at an alias without effect

        def add_sae(self, sae: Any, use_error_term: bool | None = None) -> None:
            metadata = sae.cfg.metadata
            for name in {metadata.hook_name, metadata.hook_name_out or metadata.hook_name}:
                if canonical_hook_name(name) not in self._hook_registry:
                    raise UnknownNameError("hook", str(name), self.hook_dict)
                if not _SAFE.fullmatch(name):
                    warnings.warn(
                        f"an SAE at {name}: this hook is not one vector a position on the model's path, or fires only after a flag "
                        "is set, so SAELens' wrapper may do nothing or fail; use sparse_lens.hooks.splice",
                        stacklevel=3,
                    )
            super().add_sae(sae, use_error_term)

    return CircuitGPTSAEBridge
