"""Hook names and layouts, there and back."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.errors import UnknownNameError
from sparse_lens.hooks import reference_hook_name, to_reference_layout, to_transformerlens_layout, transformerlens_hook_name
from sparse_lens.hooks.names import canonical_hook_name

PAIRS = {
    "{i}.resid_in": "blocks.{i}.hook_resid_pre",
    "{i}.attn.act_in": "blocks.{i}.attn.hook_act_in",
    "{i}.attn.q": "blocks.{i}.attn.hook_q",
    "{i}.attn.k": "blocks.{i}.attn.hook_k",
    "{i}.attn.v": "blocks.{i}.attn.hook_v",
    "{i}.attn.y": "blocks.{i}.attn.hook_z",
    "{i}.attn.resid_delta": "blocks.{i}.hook_attn_out",
    "{i}.resid_mid": "blocks.{i}.hook_resid_mid",
    "{i}.mlp.act_in": "blocks.{i}.mlp.hook_act_in",
    "{i}.mlp.post_act": "blocks.{i}.mlp.hook_post",
    "{i}.mlp.resid_delta": "blocks.{i}.hook_mlp_out",
    "final_resid": "ln_final.hook_in",
}


@pytest.mark.parametrize("layer", [0, 7, 12])
@pytest.mark.parametrize(("theirs", "ours"), PAIRS.items())
def test_round_trip(theirs: str, ours: str, layer: int) -> None:
    theirs, ours = theirs.format(i=layer), ours.format(i=layer)
    assert transformerlens_hook_name(theirs) == ours
    assert reference_hook_name(ours) == theirs


@pytest.mark.parametrize(
    ("canonical", "theirs"),
    [
        ("blocks.3.hook_in", "3.resid_in"),
        ("blocks.3.resid_mid.hook_out", "3.resid_mid"),
        ("blocks.3.attn.hook_out", "3.attn.resid_delta"),
        ("blocks.3.mlp.hook_out", "3.mlp.resid_delta"),
    ],
)
def test_canonical_names_are_understood(canonical: str, theirs: str) -> None:
    assert reference_hook_name(canonical) == theirs


@pytest.mark.parametrize(
    ("function", "name", "suggestion"),
    [
        (reference_hook_name, "blocks.4.attn.hook_zz", "blocks.4.attn.hook_z"),
        (reference_hook_name, "ln_final.hook_inn", "ln_final.hook_in"),
        (transformerlens_hook_name, "2.mlp.postact", "2.mlp.post_act"),
        (transformerlens_hook_name, "final_residual", "final_resid"),
        (transformerlens_hook_name, "-1.attn.q", "0.attn.q"),
    ],
)
def test_unknown_names_suggest_the_nearest(function: object, name: str, suggestion: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown .*{name}.*did you mean .*'{suggestion}'"):
        function(name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "hook_embed", "", "blocks.x.attn.hook_q", "blocks.0.attn.q"])
def test_hooks_that_the_reference_lacks(name: str) -> None:
    with pytest.raises(UnknownNameError):
        reference_hook_name(name)


def test_layout() -> None:
    tensor = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    flat = to_reference_layout("blocks.0.attn.hook_q", tensor)
    assert flat.shape == (2, 3, 20)
    assert flat[1, 2, 5] == tensor[1, 2, 1, 0]
    assert torch.equal(to_transformerlens_layout("blocks.0.attn.hook_q", flat, 4), tensor)
    residual = torch.ones(2, 3, 8)
    assert to_reference_layout("blocks.0.hook_resid_mid", residual) is residual
    assert to_transformerlens_layout("ln_final.hook_in", residual, 4) is residual


def test_aliases_lead_to_their_hook_points(bridge: TransformerBridge) -> None:
    for name, point in bridge.hook_dict.items():
        assert canonical_hook_name(name) == point.name, name
    assert canonical_hook_name("blocks.11.hook_resid_post") == "blocks.11.hook_out"
