"""Sparse execution: a model that holds the nonzeros of its matrices alone, and multiplies by them; for inference on the CPU.

| part | in sparse execution |
|---|---|
| linear layers, unembedding | nonzeros row by row, `kernels.products`, where the density is at most `SPARSE_ENOUGH` |
| embedding, positions, bigram table | the same nonzeros, a lookup writes those of the row |
| attention | `kernels.attention`, without the pattern in memory, as long as nobody watches the pattern |
| norms, biases, AbsTopK, routers, denser matrices | as they were |

Modules keep their place and change their class, so that a bridge around them, its hook points and its tools stay what they were.
`weight` still gives the dense matrix, made anew at every reading.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_lens.errors import SparseLensError
from sparse_lens.kernels import CompressedRows, causal_attention, compress_rows, expand, expand_rows, multiply
from sparse_lens.models.core import Attention, CircuitGPTCore, Linear, Tap

SPARSE_ENOUGH = 0.1
"""Largest density at which a product by nonzeros is as fast as the dense one for one token; for 64 tokens at 0.2 still twice so."""

_REFUSAL = "sparse execution is for inference: a gradient was asked for; use dense_execution(model), or load with execution='dense'"


def sparse_execution(model: Any, *, most: float = SPARSE_ENOUGH) -> Any:
    """Turn a model or its bridge, in place, to sparse execution, and return it; matrices of a density above `most` stay dense.

    The dense weights are freed and no parameter asks for a gradient any more; `dense_execution` is the way back. A model that is
    in sparse execution already stays so.

    Raises `SparseLensError` for a model that is no CircuitGPT, or not in float32 on the CPU.
    """
    core = _core(model)
    check_fits(core)
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    for layers in _layers_by_weight(core):
        compress_layers(layers, most)
    for module in core.modules():
        if type(module) is Attention:
            module.__class__ = SparseAttention
    core.__class__ = SparseCore
    return model


def dense_execution(model: Any) -> Any:
    """Undo `sparse_execution`, in place; returns the model. Parameters ask for gradients again as those of a new model do.

    Raises `SparseLensError` for a model that is no CircuitGPT.
    """
    core = _core(model)
    made: dict[CompressedRows, nn.Parameter] = {}
    for module in core.modules():
        if isinstance(module, Compressed):
            rows = module.__dict__.pop("rows")
            if rows not in made:
                made[rows] = nn.Parameter(expand(rows))
            module.__class__ = _DENSE[type(module)]
            module.register_parameter("weight", made[rows])
        elif isinstance(module, SparseAttention):
            cast(Any, module).__class__ = Attention
    core.__class__ = CircuitGPTCore
    with torch.device("meta"):
        trained = {name: parameter.requires_grad for name, parameter in CircuitGPTCore(core.config).named_parameters()}
    for name, parameter in core.named_parameters():
        parameter.requires_grad_(trained[name.replace("_original_component.", "")])
    return model


def is_sparse(model: Any) -> bool:
    """Whether a model or its bridge is in sparse execution."""
    return isinstance(_core(model), SparseCore)


def weight_bytes(model: Any) -> int:
    """Bytes that the weights of a model or its bridge take in memory, each counted once however many modules share it."""
    core = _core(model)
    tensors = [*core.parameters(), *core.buffers()]
    rows = {module.rows for module in core.modules() if isinstance(module, Compressed)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + sum(each.nbytes for each in rows)


class Compressed(nn.Module):
    """What layers in sparse execution have in common: the weight can be read and saved, but not set or loaded."""

    rows: CompressedRows

    @property
    def weight(self) -> Float[Tensor, "row column"]:
        """The dense matrix, a new one each time: what is written into it is lost."""
        return expand(self.rows)

    @weight.setter
    def weight(self, value: Any) -> None:  # noqa: ARG002 - every property's signature
        raise SparseLensError(_FROZEN)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise SparseLensError(_FROZEN)
        super().register_parameter(name, param)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        raise SparseLensError(_FROZEN)


_FROZEN = "in sparse execution weights cannot be set or loaded; use dense_execution(model) first"


class CompressedLinear(Compressed, Linear):  # pyright: ignore[reportIncompatibleVariableOverride] - a property for the weight
    """A linear layer in sparse execution."""

    def forward(self, input: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        _check_input(input)
        out = multiply(input, self.rows)
        return _without_gradient(out if self.bias is None else out.add_(self.bias.detach()), input)


class CompressedEmbedding(Compressed, nn.Embedding):  # pyright: ignore[reportIncompatibleVariableOverride] - as above
    """A lookup in sparse execution."""

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        return expand_rows(self.rows, input)


class SparseAttention(Attention):
    """Attention in sparse execution: where nobody watches the pattern, it is not made."""

    def _mix(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, tap: Tap, watched: bool) -> Tensor:
        dropped = self.training and self.pattern_dropout.p > 0
        grows = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, keys, values))
        plain = all(type(tensor) is Tensor and tensor.dtype == torch.float32 for tensor in (q, keys, values))
        if watched or dropped or grows or mask is not None or not plain:
            return super()._mix(q, keys, values, mask, tap, watched)
        return causal_attention(q, keys, values, self.sink_logit)


class SparseCore(CircuitGPTCore):
    """A core in sparse execution: what asks its logits for a gradient is told why there is none."""

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "batch pos vocab"]:
        logits = super().forward(*args, **kwargs)
        return _without_gradient(logits, torch.zeros((), requires_grad=torch.is_grad_enabled()))


_COMPRESSED: dict[type, type] = {Linear: CompressedLinear, nn.Embedding: CompressedEmbedding}
_DENSE = {compressed: dense for dense, compressed in _COMPRESSED.items()}


def is_compressible(layer: nn.Module) -> bool:
    """Whether a layer is one whose weight sparse execution can hold by its nonzeros, and is not yet."""
    return type(layer) in _COMPRESSED


def compress_layers(layers: list[nn.Module], most: float) -> None:
    """Replace the weight that these layers share by its nonzeros, unless its density is above `most`."""
    weight = cast(Tensor, layers[0].weight)
    if int(weight.count_nonzero()) > most * weight.numel():
        return
    hold_rows(layers, compress_rows(weight))


def hold_rows(layers: list[nn.Module], rows: CompressedRows) -> None:
    """Put layers into sparse execution with these nonzeros for their weight."""
    for layer in layers:
        del layer._parameters["weight"]
        layer.__class__ = _COMPRESSED[type(layer)]
        cast(Any, layer).rows = rows
        if isinstance(layer, Linear):
            layer.compressed = None


def check_fits(core: CircuitGPTCore) -> None:
    """Raise `SparseLensError` unless all weights are float32 on the CPU."""
    for name, parameter in core.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            seen = f"{parameter.dtype} on {parameter.device}"
            raise SparseLensError(f"sparse execution is in float32 on the CPU, {name} is {seen}; load the model so")


def _core(model: Any) -> CircuitGPTCore:
    """The core of a bridge, of a Hugging Face model, or itself."""
    inner = getattr(model, "original_model", model)
    core = getattr(inner, "core", inner)
    if not isinstance(core, CircuitGPTCore):
        raise SparseLensError(f"sparse execution needs a CircuitGPT model or its bridge, got {type(inner).__name__}")
    return core


def _layers_by_weight(core: CircuitGPTCore) -> list[list[nn.Module]]:
    """The layers that can be compressed; those that share a weight (a tied unembedding) together."""
    groups: dict[int, list[nn.Module]] = {}
    for module in core.modules():
        if is_compressible(module):
            groups.setdefault(id(module.weight), []).append(module)
    return list(groups.values())


def _check_input(x: Tensor) -> None:
    transformed = torch._C._are_functorch_transforms_active()
    if x.dtype != torch.float32 or x.device.type != "cpu" or transformed:
        seen = "a torch.func transform" if transformed else f"{x.dtype} on {x.device}"
        raise SparseLensError(f"sparse execution is in float32 on the CPU, got {seen}; use dense_execution(model) first")


def _without_gradient(out: Tensor, *inputs: Tensor) -> Tensor:
    """`out`, which raises if a gradient is asked through it for one of the inputs."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return cast(Tensor, _Refusal.apply(out, *inputs))
    return out


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] # noqa: ARG004
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        raise SparseLensError(_REFUSAL)
