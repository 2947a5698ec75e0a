"""The public replication's checkpoints: its forward pass written out plainly, against ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.errors import SparseLensError
from sparse_lens.models import load_checkpoint

FIELDS = {
    **{"n_layer": 2, "d_model": 12, "n_ctx": 10, "d_head": 4, "d_mlp": 20, "vocab_size": 17, "use_rms_norm": True},
    **{"tie_embeddings": False, "use_positional_embeddings": False, "use_bigram_table": True, "use_attention_sinks": True},
    **{"activation": "gelu", "dropout": 0.0, "use_bias": True},
}
SPARSITY = {"enable_weight_sparsity": True, "target_l0_fraction": 0.1, "enable_activation_sparsity": True}


def write(folder: Path, sparsity: dict[str, Any] | None = None, **changes: Any) -> dict[str, Tensor]:
    fields, generator = FIELDS | changes, torch.Generator().manual_seed(3)
    d, heads = fields["d_model"], fields["d_model"] // fields["d_head"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (17, d), "ln_f.weight": (d,), "lm_head.weight": (17, d)}
    if fields["use_positional_embeddings"]:
        shapes["wpe.weight"] = (10, d)
    if fields["use_bigram_table"]:
        shapes["bigram_table"] = (17, 17)
    for layer in range(2):
        stem = f"blocks.{layer}."
        shapes |= {f"{stem}ln_1.weight": (d,), f"{stem}ln_2.weight": (d,)}
        for name, rows, columns in (("attn.c_attn", 3 * d, d), ("attn.c_proj", d, d), ("mlp.c_fc", 20, d), ("mlp.c_proj", d, 20)):
            shapes[f"{stem}{name}.weight"] = (rows, columns)
            if fields["use_bias"]:
                shapes[f"{stem}{name}.bias"] = (rows,)
        if fields["use_attention_sinks"]:
            shapes[f"{stem}attn.attn_fn.sink_logit"] = (heads,)
    state = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    config = {"model_config": fields, "sparsity_config": SPARSITY | {"activation_topk_fraction": 0.25} | (sparsity or {})}
    (folder / "config.json").write_text(json.dumps(config | {"training_config": {"batch_size": 1}}))
    return state


def plain(state: dict[str, Tensor], tokens: Tensor, fields: dict[str, Any], share: float | None) -> Tensor:
    """The replication's equations (jacobcd52/sparse_pretrain_public, src/model.py), head by head."""

    def keep(x: Tensor) -> Tensor:
        if share is None:
            return x
        kept = x.abs().topk(max(1, int(share * x.shape[-1])), dim=-1).indices
        return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))

    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * state[f"{name}.weight"]

    d_head, length = fields["d_head"], tokens.shape[1]
    x = state["wte.weight"][tokens]
    if "wpe.weight" in state:
        x = x + state["wpe.weight"][:length]
    for layer in range(2):
        stem = f"blocks.{layer}."
        q, k, v = (keep(part) for part in linear(f"{stem}attn.c_attn", keep(norm(f"{stem}ln_1", x))).chunk(3, -1))
        heads = []
        for head, (qh, kh, vh) in enumerate(zip(q.split(d_head, -1), k.split(d_head, -1), v.split(d_head, -1), strict=True)):
            weights = (qh @ kh.mT / math.sqrt(d_head)).exp().tril()
            total = weights.sum(-1, keepdim=True)
            sink = state.get(f"{stem}attn.attn_fn.sink_logit")
            heads.append(weights / (total if sink is None else total + sink[head].exp()) @ vh)
        x = x + keep(linear(f"{stem}attn.c_proj", torch.cat(heads, -1)))
        hidden = keep(F.gelu(linear(f"{stem}mlp.c_fc", keep(norm(f"{stem}ln_2", x)))))
        x = x + keep(linear(f"{stem}mlp.c_proj", hidden))
    logits = norm("ln_f", x) @ state["lm_head.weight"].T
    return logits + state["bigram_table"][tokens] if "bigram_table" in state else logits


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_positional_embeddings": True}, {"use_attention_sinks": False}, {"use_bias": False, "use_bigram_table": False}],
)
@pytest.mark.parametrize("sparse", [True, False])
@torch.no_grad()
def test_logits(tmp_path: Path, changes: dict[str, Any], sparse: bool) -> None:
    state = write(tmp_path / "m", {"enable_activation_sparsity": sparse}, **changes)
    model = load_checkpoint(tmp_path / "m")
    tokens = torch.randint(17, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = plain(state, tokens, FIELDS | changes, 0.25 if sparse else None)
    torch.testing.assert_close(model.core(tokens), expected, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load_checkpoint(tmp_path / "again").core(tokens), model.core(tokens))


@pytest.mark.parametrize(
    ("sparsity", "changes", "message"),
    [
        ({"activation_sparsity_locations": "attn_in,resid_pre"}, {}, "resid_pre"),
        ({"activation_topk_fraction": 0.01}, {}, "keeps no channel"),
        ({}, {"d_head": 5}, "multiple of d_head"),
        ({}, {"use_flash_attention": False}, "sink does nothing"),
        ({}, {"rotary": True}, "unknown fields: rotary"),
        ({}, {"n_ctx": 1 << 20}, "leaves out"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path: Path, sparsity: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "m", sparsity)
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    content["model_config"] |= changes
    (tmp_path / "m" / "config.json").write_text(json.dumps(content))
    with pytest.raises(SparseLensError, match=message):
        load_checkpoint(tmp_path / "m")
