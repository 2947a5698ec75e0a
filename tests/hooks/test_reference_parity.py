"""The bridge computes what the reference implementation computed: outputs, activations, gradients, interventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.hooks import to_reference_layout, transformerlens_hook_name

TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "half": lambda x: x / 2,
    "neg": torch.neg,
    "zero_last_dim0": lambda x: torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:]], dim=-1),
}


def reference_loss(bridge: TransformerBridge, expected: dict[str, Any]) -> Tensor:
    """The reference's loss: cross-entropy with the targets, where -1 is left out."""
    return F.cross_entropy(bridge(expected["tokens"]).flatten(0, 1), expected["targets"].flatten(), ignore_index=-1)


def test_parameters_are_the_files(reference: Any, bridge: TransformerBridge, parameters: Callable[..., dict[str, Tensor]]) -> None:
    stored, loaded = reference.state(), parameters(bridge)
    for key, tensor in stored.items():
        if not key.endswith(".attn.bias"):
            assert torch.equal(loaded.pop(key).detach(), tensor.float()), key
    leftover = {key: tensor for key, tensor in loaded.items() if tensor.abs().max() > 0}
    assert leftover.keys() <= ({"lm_head.weight"} if reference.fields.get("tied_unembed", True) else set())


@pytest.mark.parametrize(("tokens", "logits"), [("tokens", "logits"), ("tokens", "logits_T1"), ("tokens_full", "logits_full")])
def test_logits(reference: Any, bridge: TransformerBridge, tokens: str, logits: str) -> None:
    expected = reference.expected[logits]
    torch.testing.assert_close(bridge(reference.expected[tokens][:, : expected.shape[1]]), expected, **TOLERANCE)


def test_loss(reference: Any, bridge: TransformerBridge) -> None:
    torch.testing.assert_close(reference_loss(bridge, reference.expected), reference.expected["loss"], **TOLERANCE)


def test_activations(reference: Any, bridge: TransformerBridge) -> None:
    _, cache = bridge.run_with_cache(reference.expected["tokens"])
    for key, stored in reference.expected["acts"].items():
        name = transformerlens_hook_name(key)
        torch.testing.assert_close(to_reference_layout(name, cache[name]), stored, **TOLERANCE, msg=key)


def test_activation_gradients_by_backward_hooks(reference: Any, bridge: TransformerBridge) -> None:
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda gradient, hook: seen.__setitem__(key, gradient)

    keys = list(reference.expected["act_grads"])
    with bridge.hooks(bwd_hooks=[(transformerlens_hook_name(key), keep(key)) for key in keys]):
        reference_loss(bridge, reference.expected).backward()
    for key, stored in reference.expected["act_grads"].items():
        gradient = to_reference_layout(transformerlens_hook_name(key), seen[key])
        torch.testing.assert_close(gradient, stored, **TOLERANCE, msg=key)
    assert max(float(gradient.abs().max()) for gradient in seen.values()) > 1e-4


def test_activation_gradients_of_captured_tensors(reference: Any, bridge: TransformerBridge) -> None:
    """A hook that only looks gets the tensor on the graph itself, so `autograd.grad` and `retain_grad` work."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda tensor, hook: seen.__setitem__(key, tensor)

    keys = list(reference.expected["act_grads"])
    with bridge.hooks(fwd_hooks=[(transformerlens_hook_name(key), keep(key)) for key in keys]):
        loss = reference_loss(bridge, reference.expected)
    gradients = torch.autograd.grad(loss, [seen[key] for key in keys])
    for key, gradient in zip(keys, gradients, strict=True):
        flat = to_reference_layout(transformerlens_hook_name(key), gradient)
        torch.testing.assert_close(flat, reference.expected["act_grads"][key], **TOLERANCE, msg=key)


def test_parameter_gradients(reference: Any, fresh_bridge: TransformerBridge, parameters: Callable[..., dict[str, Tensor]]) -> None:
    reference_loss(fresh_bridge, reference.expected).backward()
    found = parameters(fresh_bridge)
    for key, stored in reference.expected["param_grads"].items():
        gradient = found[key].grad
        assert gradient is not None, key
        torch.testing.assert_close(gradient, stored, **TOLERANCE, msg=key)
    without = {key for key, tensor in found.items() if tensor.grad is None}
    assert not without & set(reference.expected["param_grads"])
    assert "final_logits_bias" in without


def test_interventions(reference: Any, bridge: TransformerBridge, intervene: Callable[..., Tensor]) -> None:
    clean = reference.expected["logits"]
    for case, stored in reference.expected["interventions"].items():
        logits = intervene(bridge, reference.expected["tokens"], stored["key"], OPERATIONS[stored["op"]])
        torch.testing.assert_close(logits, stored["logits"], **TOLERANCE, msg=case)
        if (stored["logits"] - clean).abs().max() > 1e-4:
            assert (logits - clean).abs().max() > 1e-4, case
    torch.testing.assert_close(bridge(reference.expected["tokens"]), clean, **TOLERANCE)


def test_interventions_after_compatibility_mode(
    reference: Any, fresh_bridge: TransformerBridge, intervene: Callable[..., Tensor]
) -> None:
    fresh_bridge.enable_compatibility_mode(no_processing=True)
    for case, stored in reference.expected["interventions"].items():
        logits = intervene(fresh_bridge, reference.expected["tokens"], stored["key"], OPERATIONS[stored["op"]])
        torch.testing.assert_close(logits, stored["logits"], **TOLERANCE, msg=case)


def test_greedy_continuation(reference: Any, bridge: TransformerBridge) -> None:
    prompt, stored = reference.expected["tokens"], reference.expected["greedy"]
    steps = stored.shape[1] - prompt.shape[1]
    ours = bridge.generate(prompt, max_new_tokens=steps, do_sample=False, stop_at_eos=False, verbose=False)
    assert torch.equal(ours, stored)
    model: Any = bridge.original_model
    assert torch.equal(model.generate(prompt, max_new_tokens=steps, do_sample=False), stored)
