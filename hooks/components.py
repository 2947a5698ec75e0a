"""Bridge components: TransformerLens' own, around the modules of `sparse_lens.models.core`.

Nothing is computed here. Attention and MLP pass their `tap` to the core module, which calls it with every named
intermediate tensor; the tap looks the hook point up by name at that moment, so that a tool which puts its own module in
a hook point's place (SAELens does) takes effect.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from sparse_lens.models.core import Remember


class Component(GeneralizedComponent):
    """A bridge component whose hook points keep their full name (and conversion) when a tool replaces them.

    SAELens removes a dictionary by assigning a fresh `HookPoint`, which TransformerLens names "hook_in" instead of
    "blocks.0.mlp.out.hook_in"; every later hook by that name would be silently ignored.
    """

    def _register_hook(self, name: str, hook: HookPoint) -> None:
        previous = self._hook_registry.get(name)
        super()._register_hook(name, hook)
        if previous is not None and previous is not hook:
            hook.name = previous.name
            hook.hook_conversion = hook.hook_conversion or previous.hook_conversion


class Linear(Component, LinearBridge):
    """A linear layer; its hook_in and hook_out are the plain input and output, before any AbsTopK."""


class Norm(Component, NormalizationBridge):
    """A LayerNorm or RMSNorm, computed by torch unless a hook edits its scale."""

    def __init__(self, name: str, config: Any) -> None:
        super().__init__(name, config, use_native_layernorm_autograd=True)

    def _hf_autograd_forward_with_hooks(self, x: Tensor) -> Tensor:
        """Torch's norm when nobody watches; when something foreign sits at a hook point, the norm written out.

        TransformerLens' form knows only hooks set through `HookPoint.add_hook`, and would cut the gradient of others.
        """
        hooks = (self.hook_scale, self.hook_normalized)
        if not all(isinstance(hook, HookPoint) and len(hook._forward_hooks) == len(hook.fwd_hooks) for hook in hooks):
            return self._python_norm_forward(x)
        if not any(hook.fwd_hooks or hook.bwd_hooks for hook in hooks):
            return cast(nn.Module, self.original_component)(x)
        return super()._hf_autograd_forward_with_hooks(x)


class Embedding(Component, EmbeddingBridge):
    """The token embedding, or the bigram table."""


class Positions(Component, PosEmbedBridge):
    """The position embedding, `[batch pos d_model]`, or `[batch pos d_pos_emb]` with concatenated positions."""


class Unembedding(Component, UnembeddingBridge):
    """The unembedding with `final_logits_bias`; its output does not contain the bigram term."""


class ResidMid(Component):
    """The residual stream between the sublayers, on the path itself: an edit reaches MLP and skip connection."""


class Attention(Component, AttentionBridge):
    """Attention, with q, k, v after AbsTopK, the sink logit before the softmax, and z, as hook points."""

    supports_split_qkv_fork = True
    supports_attn_result = True
    hook_aliases: ClassVar[dict[str, str]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    head_hooks: ClassVar[tuple[str, ...]] = ("hook_q", "hook_k", "hook_v", "hook_z")
    pattern_hooks: ClassVar[tuple[str, ...]] = ("hook_attn_scores", "hook_sink", "hook_pattern")

    def __init__(self, name: str, config: Any, submodules: dict[str, GeneralizedComponent]) -> None:
        super().__init__(name, config, submodules=submodules)
        # The default conversion reorders 4-D tensors only, and remembers every tensor it has seen.
        self.conversion_rule = self.hook_in.hook_conversion = self.hook_out.hook_conversion = None
        del self.hook_hidden_states, self._hook_registry["hook_hidden_states"]  # would never fire
        self.hook_act_in = HookPoint()
        for hook in self.head_hooks:
            setattr(self, hook, HookPoint())

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        if getattr(original_component, "sink_logit", None) is not None:
            self.hook_sink = HookPoint()

    def setup_hook_compatibility(self) -> None:
        super().setup_hook_compatibility()
        self.hook_k.hook_conversion = None  # ours has its heads split already

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Tensor, "batch pos d_model"],
        positional: Float[Tensor, "batch pos d_pos_emb"] | None = None,
        mask: Tensor | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        core = cast(nn.Module, self.original_component)
        per_head, forks = bool(getattr(self.config, "use_attn_result", False)), self._forks()
        watched = not all(_is_idle(getattr(self, hook, None)) for hook in self.pattern_hooks)
        return self.hook_out(core(self.hook_in(x), positional, mask, remember, self.tap, per_head, forks, watched))

    def _forks(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """A normalized copy of the residual stream for every head's query, key and value, `[batch pos head d_model]` each.

        TransformerLens' flags `use_split_qkv_input` (a hook for each) and `use_attn_in` (one for all three) ask for it; it has
        put the residual stream aside before the norm.
        """
        residual, self._captured_pre_ln_residual = self._captured_pre_ln_residual, None
        split, joint = (bool(getattr(self.config, flag, False)) for flag in ("use_split_qkv_input", "use_attn_in"))
        if residual is None or not (split or joint):
            return None
        copies = residual[:, :, None].expand(-1, -1, cast(Any, self.original_component).n_head, -1)
        norm = cast(nn.Module, self._ln1_module)
        if joint:
            shared = norm(self.hook_attn_in(copies.clone()))
            return shared, shared, shared
        hooks = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        q, k, v = (norm(hook(copies.clone())) for hook in hooks)
        return q, k, v

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias, zeros where the model has none (also below)."""
        return self._split(_bias(self.q))

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        return self._split(_bias(self.k))

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        return self._split(_bias(self.v))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return _bias(self.o)

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        """Send `tensor` through the hook point `name`; q, k, v, z are `[batch pos head d_head]` there.

        A foreign module in the hook point's place is a dictionary, and gets the heads as one flat vector.
        """
        hook = getattr(self, name)
        if name in self.head_hooks and not isinstance(hook, HookPoint):
            return self._split(hook(tensor.flatten(-2)))
        return hook(tensor)

    def _split(self, flat: Tensor) -> Tensor:
        core = cast(Any, self.original_component)
        return flat.unflatten(-1, (core.n_head, core.d_head))


def _is_idle(point: nn.Module | None) -> bool:
    """Whether a hook point is none, or one that hands on what it gets and shows it to nobody."""
    if point is None:
        return True
    hooks = (point._forward_hooks, point._forward_pre_hooks, point._backward_hooks, point._backward_pre_hooks)
    return type(point) is HookPoint and "forward" not in vars(point) and not any(hooks)


def _bias(linear: nn.Module) -> Tensor:
    weight = cast(Tensor, linear.weight)
    return weight.new_zeros(weight.shape[0]) if linear.bias is None else cast(Tensor, linear.bias)


class MLP(Component, MLPBridge):
    """The MLP; hook_act_in is its input after concatenation and AbsTopK, hook_post its neurons after AbsTopK."""

    hook_aliases: ClassVar[dict[str, str]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, name: str, config: Any, submodules: dict[str, GeneralizedComponent]) -> None:
        super().__init__(name, config, submodules=submodules)
        self.hook_act_in, self.hook_pre, self.hook_post = HookPoint(), HookPoint(), HookPoint()

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "batch pos d_model"], positional: Float[Tensor, "batch pos d_pos_emb"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        core = cast(nn.Module, self.original_component)
        return self.hook_out(core(self.hook_in(x), positional, self.tap))

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Neuron bias, zeros where the model has none (also below)."""
        return _bias(getattr(self, "in"))

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return _bias(self.out)

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        """Send `tensor` through the hook point `name`."""
        return getattr(self, name)(tensor)


class Block(Component, BlockBridge):
    """One layer, with `hook_resid_mid` on the residual path (stock bridges hook the input of ln2 only)."""

    hook_aliases: ClassVar[dict[str, str]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "hook_resid_pre": "hook_in",
        "hook_resid_mid": "resid_mid.hook_out",
        "hook_resid_post": "hook_out",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    }

    def _filter_kwargs_for_forward(self, kwargs: dict[str, Any], num_positional_args: int = 0) -> dict[str, Any]:
        """TransformerLens' method; without keywords, as always here, its look at the signature costs for nothing."""
        return super()._filter_kwargs_for_forward(kwargs, num_positional_args) if kwargs else kwargs
