"""Every `transformer_lens.patching.get_act_patch_*`, entry by entry against a run with that one hook."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

pytestmark = pytest.mark.tool("transformer_lens.patching: all of get_act_patch_*, generic_activation_patch")

LENGTH = 3
ONE_SITE = {
    "resid_pre": "blocks.{i}.hook_resid_pre",
    "resid_mid": "blocks.{i}.hook_resid_mid",
    "attn_out": "blocks.{i}.hook_attn_out",
    "mlp_out": "blocks.{i}.hook_mlp_out",
    **{
        f"attn_head_{kind}_{where}": f"blocks.{{i}}.attn.hook_{name}"
        for kind, name in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"), ("pattern", "pattern"))
        for where in ("all_pos", "by_pos")
    },
    "attn_head_pattern_dest_src_pos": "blocks.{i}.attn.hook_pattern",
}
COMBINED = {
    "block_every": ("resid_pre", "attn_out", "mlp_out"),
    "attn_head_all_pos_every": tuple(f"attn_head_{kind}_all_pos" for kind in ("out", "q", "k", "v", "pattern")),
    "attn_head_by_pos_every": tuple(f"attn_head_{kind}_by_pos" for kind in ("out", "q", "k", "v", "pattern")),
}


@pytest.fixture
def clean() -> Tensor:
    return torch.tensor([[3, 1, 4]])


@pytest.fixture
def corrupt() -> Tensor:
    return torch.tensor([[2, 7, 1]])


@pytest.fixture(autouse=True)
def quiet_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "tqdm", lambda iterable, **_: iterable)


def score(logits: Tensor) -> Tensor:
    return logits[0, -1, 9] - logits[0, -1, 11]


def places(function: str, layers: int, heads: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Every entry of a function's table: its index, and the slice of the activation that it patches."""
    whole = slice(None)
    for layer, pos, head, source in itertools.product(range(layers), range(LENGTH), range(heads), range(LENGTH)):
        if "dest_src" in function:
            yield (layer, head, pos, source), (whole, head, pos, source)
        elif source == 0 and "pattern_by_pos" in function:
            yield (layer, head, pos), (whole, head, pos)
        elif source == 0 and "by_pos" in function:
            yield (layer, pos, head), (whole, pos, head)
        elif source == pos == 0 and "all_pos" in function:
            yield (layer, head), (whole, head) if "pattern" in function else (whole, whole, head)
        elif source == head == 0 and "head" not in function:
            yield (layer, pos), (whole, pos)


def test_no_function_is_left_out() -> None:
    found = {name.removeprefix("get_act_patch_") for name in dir(patching) if name.startswith("get_act_patch_")}
    assert found - {"direct_path", "direct_path_all_sources"} == ONE_SITE.keys() | COMBINED.keys()


@pytest.mark.parametrize("function", ONE_SITE)
@torch.no_grad()
def test_tables(architecture: TransformerBridge, clean: Tensor, corrupt: Tensor, function: str) -> None:
    _, cache = architecture.run_with_cache(clean)
    table = getattr(patching, f"get_act_patch_{function}")(architecture, corrupt, cache, score)
    seen = 0
    for index, where in places(function, architecture.cfg.n_layers, architecture.cfg.n_heads):
        name = ONE_SITE[function].format(i=index[0])

        def patch(tensor: Tensor, hook: Any, where: Any = where, source: Tensor = cache[name]) -> Tensor:
            tensor[where] = source[where]
            return tensor

        torch.testing.assert_close(table[index], score(architecture.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])))
        seen += 1
    assert seen == table.numel()
    assert (table - score(architecture(corrupt))).abs().max() > 1e-4


@pytest.mark.parametrize("function", COMBINED)
@torch.no_grad()
def test_combined_tables(architecture: TransformerBridge, clean: Tensor, corrupt: Tensor, function: str) -> None:
    _, cache = architecture.run_with_cache(clean)
    tables = getattr(patching, f"get_act_patch_{function}")(architecture, corrupt, cache, score)
    for table, single in zip(tables, COMBINED[function], strict=True):
        expected = getattr(patching, f"get_act_patch_{single}")(architecture, corrupt, cache, score)
        expected = expected if table.shape == expected.shape else expected.transpose(1, 2)  # patterns have their axes turned
        assert torch.equal(table, expected)


@torch.no_grad()
def test_generic_patching(architecture: TransformerBridge, clean: Tensor, corrupt: Tensor) -> None:
    """A setter of one's own: the clean activation at one neuron and position."""
    _, cache = architecture.run_with_cache(clean)

    def setter(corrupted: Tensor, index: Any, clean_activation: Tensor) -> Tensor:
        corrupted[:, index[1], 5] = clean_activation[:, index[1], 5]
        return corrupted

    table = patching.generic_activation_patch(architecture, corrupt, cache, score, setter, "post", ["layer", "pos"])
    name = "blocks.1.mlp.hook_post"

    def patch(tensor: Tensor, hook: Any) -> Tensor:
        tensor[:, 2, 5] = cache[name][:, 2, 5]
        return tensor

    torch.testing.assert_close(table[1, 2], score(architecture.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])))
