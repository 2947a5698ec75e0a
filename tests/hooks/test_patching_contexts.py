"""`sparse_lens.hooks.patching` where others are at work too: hooks, circuits, dictionaries, dropout, threads, odd metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens import patching as original
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

import sparse_lens.hooks.patching as ours
from sparse_lens.circuits import Circuit
from sparse_lens.circuits.masking import Reference
from sparse_lens.circuits.sites import model_fingerprint, node_space
from sparse_lens.errors import SparseLensError
from sparse_lens.hooks import Blend, splice
from sparse_lens.hooks.instrumenting import watched_modules
from sparse_lens.hooks.patch_tables import checked_tokens

MAJOR = int(version("transformer-lens").split(".")[0])
CLEAN = torch.tensor([[3, 1, 4], [3, 6, 2]])
CORRUPT = torch.tensor([[3, 7, 4], [3, 8, 2]])


def last(logits: Tensor) -> Tensor:
    return (logits[:, -1, 9] - logits[:, -1, 11]).mean()


def gpt2(**fields: Any) -> TransformerBridge:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=12, vocab_size=23, n_positions=12, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape) if parameter.ndim == 2 else parameter + 0.1)
    architecture = type(model).__name__
    return build_bridge_from_module(model, architecture, hf_config=model.config, tokenizer=None, device="cpu", model_name="gpt2")


@pytest.fixture
def sparse(build_bridge: Callable[[str], TransformerBridge]) -> TransformerBridge:
    return build_bridge("sink_abstopk_bigram")


@pytest.fixture(autouse=True)
def quiet_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original, "tqdm", lambda iterable, **_: iterable)


@torch.no_grad()
def assert_equal_tables(
    bridge: Any, functions: tuple[str, ...], metric: Any = last, cache: Any = None, context: Any = nullcontext
) -> None:
    """Ours and TransformerLens' under one context; the clean run is made without it."""
    cache = bridge.run_with_cache(CLEAN)[1] if cache is None else cache
    for name in functions:
        with context():
            expected = getattr(original, f"get_act_patch_{name}")(bridge, CORRUPT, cache, metric)
            found = getattr(ours, f"get_act_patch_{name}")(bridge, CORRUPT, cache, metric, progress=False)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_hook_that_edits_the_residual_stream_through_an_alias() -> None:
    """GPT-2 hands the residual stream itself to ln2: an edit in place there changes what later is added to."""
    bridge = gpt2()

    def halve(tensor: Tensor, hook: Any) -> None:
        tensor[:, 1:] *= 0.5

    with bridge.hooks(fwd_hooks=[("blocks.1.ln2.hook_in", halve)]):
        assert_equal_tables(bridge, ("mlp_out", "attn_out", "attn_head_out_all_pos"))


def test_hooks_of_the_libraries_are_no_ones(sparse: TransformerBridge) -> None:
    """Caching leaves hooks of transformers behind; runs are batched all the same."""
    for bridge in (gpt2(), sparse):
        bridge.run_with_cache(CLEAN)
        assert not watched_modules(bridge)
        with bridge.hooks(fwd_hooks=[("hook_embed", lambda tensor, hook: None)]):
            assert len(watched_modules(bridge)) == 1


@pytest.mark.parametrize("hook", ["blocks.0.hook_out", "blocks.1.attn.hook_z"])
def test_hooks_that_hand_something_on(sparse: TransformerBridge, hook: str) -> None:
    """One hook remembers, a later one uses it: a run's hooks are called one after the other, before those of the next run."""
    kept: list[Tensor] = []

    def remember(tensor: Tensor, hook: Any) -> None:
        kept.append(tensor[:, -1].clone())

    def use(tensor: Tensor, hook: Any) -> Tensor:
        early = kept.pop().flatten(1)
        assert not kept
        return tensor + early[:, None].mean(-1, keepdim=True)

    with sparse.hooks(fwd_hooks=[(hook, remember), ("blocks.1.mlp.hook_out", use)]):
        assert_equal_tables(sparse, ("resid_pre", "attn_head_v_all_pos"))


def test_torch_hooks_elsewhere(sparse: TransformerBridge) -> None:
    """Of a component, and one before it: they too see one run at a time."""
    sizes = set()

    def halve(module: Any, args: Any, output: Tensor) -> Tensor:
        sizes.add(len(output))
        return 0.5 * output

    handles = [
        sparse.blocks[0].mlp.register_forward_hook(halve),
        sparse.blocks[1].attn.register_forward_pre_hook(lambda module, args: (halve(module, (), args[0]), *args[1:])),
    ]
    assert_equal_tables(sparse, ("resid_pre", "attn_head_out_all_pos"))
    assert sizes == {2}
    for handle in handles:
        handle.remove()


def test_inside_a_circuit(sparse: TransformerBridge) -> None:
    space = node_space(sparse)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(space.n_nodes, generator=generator) < 0.7
    reference = {
        site.name: Reference(torch.randn(site.n_latents, generator=generator), torch.zeros(site.dictionary.W_dec.shape[-1]))
        for site in space.sites
    }
    circuit = Circuit(mask, space, reference, task="a task", model=model_fingerprint(sparse), target_loss=1.0, loss=1.0)
    plain = sparse(CORRUPT)
    assert_equal_tables(sparse, ("resid_pre", "attn_out", "attn_head_out_all_pos"), context=lambda: circuit.applied(sparse))
    torch.testing.assert_close(sparse(CORRUPT), plain)


@dataclass
class Transcoder:
    """Reads at one hook and writes at another, badly."""

    hook_in: str
    hook_out: str
    width: int
    n_latents: int = 20
    name: str = "transcoder"
    hash: str = "0" * 16
    exact: bool = False

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.W_enc, self.W_dec = (torch.randn(shape, generator=generator) for shape in ((self.width, 20), (20, self.width)))

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.W_dec


@pytest.mark.parametrize("hook_in", ["blocks.1.mlp.hook_out", "blocks.1.ln2.hook_out", "blocks.0.hook_out"])
def test_inside_a_splice(sparse: TransformerBridge, hook_in: str) -> None:
    """Also of a transcoder, whose two hooks belong together."""
    spliced = Transcoder(hook_in, "blocks.1.mlp.hook_out", sparse.cfg.d_model)
    assert_equal_tables(
        sparse,
        ("resid_pre", "attn_out", "attn_head_out_all_pos", "mlp_out"),
        context=lambda: splice(sparse, [spliced], "edit", Blend(mask=0.5)),
    )


@pytest.mark.skipif(MAJOR >= 4, reason="TransformerLens 4 patches models in evaluation mode only")
def test_dropout() -> None:
    """In training mode each patched run draws its own, as in TransformerLens' loop after one run for the record."""
    bridge = gpt2(resid_pdrop=0.3, embd_pdrop=0.1)
    _, cache = bridge.run_with_cache(CLEAN)
    bridge.train()
    with torch.no_grad():
        torch.manual_seed(1)
        bridge(CORRUPT)
        expected = original.get_act_patch_attn_out(bridge, CORRUPT, cache, last)
    torch.manual_seed(1)
    found = ours.get_act_patch_attn_out(bridge, CORRUPT, cache, last, progress=False)
    torch.testing.assert_close(found, expected)
    assert len(found.unique()) == found.numel()


@contextmanager
def keeping(kept: list[Tensor], part: Any = ...) -> Iterator[Callable[[Tensor], Tensor]]:
    def metric(logits: Tensor) -> Tensor:
        kept.append(logits if part is ... else logits[part])
        return last(logits)

    yield metric


def test_metric_that_keeps_the_logits(sparse: TransformerBridge) -> None:
    """What it keeps is that run's logits, whatever happens to the bridge afterwards."""
    cache = sparse.run_with_cache(CLEAN)[1]
    for part in (..., (slice(None), -1)):
        expected: list[Tensor] = []
        with keeping(expected, part) as metric, torch.no_grad():
            original.get_act_patch_resid_pre(sparse, CORRUPT, cache, metric)
        found: list[Tensor] = []
        with keeping(found, part) as metric:
            table = ours.get_act_patch_resid_pre(sparse, CORRUPT, cache, metric, progress=False)
        with sparse.hooks(fwd_hooks=[("blocks.0.hook_out", lambda tensor, hook: 0 * tensor)]):
            kept = [logits.clone() for logits in found]
        for number, logits in enumerate(expected):  # a patch that changes nothing makes no run
            assert any(torch.allclose(logits, ours_, atol=1e-5) for ours_ in kept), number
        assert not any(logits.requires_grad for logits in kept) and table.shape == (2, 3)


@pytest.mark.parametrize(
    "metric",
    [
        lambda logits: logits[np.array([[True, False, True], [False, True, True]]), 5].sum(),
        lambda logits: logits[np.array([True, False]), -1].sum(),
        lambda logits: logits[[True, False], -1].sum() + logits[[0, 1], -1].sum(),
        lambda logits: logits[np.arange(2), -1, np.array([4, 5])].sum() + logits[0, np.int64(-1), np.int64(2)],
        lambda logits: logits[torch.tensor([True, False]), -1, 3].sum(),
        lambda logits: logits[:, -1, torch.arange(23) > 11].sum(),
        lambda logits: logits[torch.tensor(1), torch.tensor(-1), torch.tensor(3)],
        lambda logits: logits[:, [-1, 1], 3].sum(),
        lambda logits: logits[:, np.array([2, 1]), 3].sum(),
        lambda logits: logits[..., 3].sum(),
        lambda logits: logits[:, -1:][:, None].sum(),
    ],
)
def test_odd_indices(sparse: TransformerBridge, metric: Any) -> None:
    assert_equal_tables(sparse, ("attn_out", "attn_head_out_all_pos"), metric)


def test_metric_that_uses_the_bridge(sparse: TransformerBridge) -> None:
    """It finds the bridge as it was, and may even patch it."""
    cache = sparse.run_with_cache(CLEAN)[1]
    alone = last(sparse(CORRUPT))
    inner = ours.get_act_patch_mlp_out(sparse, CORRUPT, cache, last, progress=False)

    def metric(logits: Tensor) -> Tensor:
        torch.testing.assert_close(last(sparse(CORRUPT)), alone)
        again = ours.get_act_patch_mlp_out(sparse, CORRUPT, cache, last, progress=False)
        torch.testing.assert_close(again, inner)
        return last(logits)

    found = ours.get_act_patch_resid_pre(sparse, CORRUPT, cache, metric, progress=False)
    torch.testing.assert_close(found, ours.get_act_patch_resid_pre(sparse, CORRUPT, cache, last, progress=False))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_autograd_modes(sparse: TransformerBridge, mode: Any) -> None:
    """Also with a cache that was made in another one."""
    with torch.no_grad():
        cache = sparse.run_with_cache(CLEAN)[1]
        expected = original.get_act_patch_attn_head_out_all_pos(sparse, CORRUPT, cache, last)
    with mode():
        other = sparse.run_with_cache(CLEAN)[1]
        found = ours.get_act_patch_attn_head_out_all_pos(sparse, CORRUPT, cache, last, progress=False)
    torch.testing.assert_close(found, expected)
    found = ours.get_act_patch_attn_head_out_all_pos(sparse, CORRUPT, other, last, progress=False)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_cache_of_another_dtype(sparse: TransformerBridge) -> None:
    cache = sparse.run_with_cache(CLEAN)[1]
    for dtype in (torch.float64, torch.bfloat16):
        assert_equal_tables(sparse, ("attn_out",), cache={name: tensor.to(dtype) for name, tensor in cache.items()})


def test_two_threads_on_one_bridge(sparse: TransformerBridge) -> None:
    cache = sparse.run_with_cache(CLEAN)[1]
    functions = ("get_act_patch_resid_pre", "get_act_patch_attn_head_v_by_pos", "get_act_patch_mlp_out") * 3
    expected = [getattr(ours, name)(sparse, CORRUPT, cache, last, progress=False) for name in functions]
    found: dict[int, Tensor] = {}

    def run(number: int, name: str) -> None:
        found[number] = getattr(ours, name)(sparse, CORRUPT, cache, last, progress=False)

    threads = [threading.Thread(target=run, args=entry) for entry in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, table in enumerate(expected):
        torch.testing.assert_close(found[number], table)


@torch.no_grad()
def test_indices_as_transformerlens_takes_them(sparse: TransformerBridge) -> None:
    """Positions from the end; with a setter of one's own also columns that it alone understands, and none returned."""
    cache = sparse.run_with_cache(CLEAN)[1]
    full = ours.get_act_patch_resid_pre(sparse, CORRUPT, cache, last, progress=False)
    rows = pd.DataFrame({"layer": [0, 1], "pos": [-1, -2]})
    some = ours.activation_patch(sparse, CORRUPT, cache, last, "resid_pre", index_df=rows, progress=False)
    torch.testing.assert_close(some, full[[0, 1], [-1, -2]])

    def setter(corrupted: Tensor, index: Any, clean: Tensor) -> Tensor:
        corrupted[..., index[1]] = index[2] * clean[..., index[1]]
        return corrupted

    def in_place(corrupted: Tensor, index: Any, clean: Tensor) -> None:
        setter(corrupted, index, clean)

    rows = pd.DataFrame({"layer": [0, 1, 1], "neuron": [3, 40, 2], "factor": [2, -3, 100]})
    for function in (setter, in_place):
        arguments: Any = (sparse, CORRUPT, cache, last, function, "post", None, rows)
        expected = original.generic_activation_patch(*arguments)
        torch.testing.assert_close(ours.generic_activation_patch(*arguments, progress=False), expected)
    arguments = (sparse, CORRUPT, cache, last, lambda x, index, clean: x * (1 + index[1]), "resid_pre", ["layer", "head"])
    torch.testing.assert_close(
        ours.generic_activation_patch(*arguments, progress=False), original.generic_activation_patch(*arguments)
    )


def test_text_is_refused(sparse: TransformerBridge) -> None:
    with pytest.raises(SparseLensError, match="to_tokens"):
        checked_tokens(sparse, ["some", "text"])


def test_prompts_that_are_equal(sparse: TransformerBridge) -> None:
    """No patch changes anything, and no run is made."""
    cache = sparse.run_with_cache(CORRUPT)[1]
    table = ours.get_act_patch_block_every(sparse, CORRUPT, cache, last, progress=False)
    torch.testing.assert_close(table, last(sparse(CORRUPT)).expand(3, 2, 3))


def test_metric_that_reads_nothing(sparse: TransformerBridge) -> None:
    assert_equal_tables(sparse, ("resid_pre", "attn_head_out_all_pos"), lambda logits: torch.tensor(float(logits.shape[1])))
