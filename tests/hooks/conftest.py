"""Models to bridge: the reference's fixtures, random variants of the architecture, and a second witness for both."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sparse_lens.hooks import (
    load,
    reference_hook_name,
    to_reference_layout,
    to_transformerlens_layout,
    transformerlens_hook_name,
    wrap,
)
from sparse_lens.models import CircuitGPTConfig, CircuitGPTForCausalLM, save_reference


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tool-page", default=None, help="write the documentation's table of tools to this Markdown file")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--tool-page", default=None):
        config.pluginmanager.register(ToolPage(Path(path)))


class ToolPage:
    """Collects what became of the tests of every tool, and writes it down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limits: dict[str, str] = {}
        self.counts: dict[str, Counter[str]] = {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if (mark := item.get_closest_marker("tool")) is not None:
            self.limits[mark.args[0]] = mark.kwargs.get("limits", "")
            item.user_properties.append(("tool", mark.args[0]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tool = dict(report.user_properties).get("tool")
        if tool is not None and (report.when == "call" or not report.passed):
            self.counts.setdefault(str(tool), Counter())[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        packages = ("transformer-lens", "torch", "transformers", "sae-lens", "nnsight", "circuitsvis")
        found = ", ".join(f"{name} {installed}" for name in packages if (installed := _version(name)))
        lines = [
            f"# Tools on TransformerLens {_version('transformer-lens')}",
            "",
            f"Written by `pytest -n 0 tests/hooks -m '' --tool-page FILE` with {found}. A tool works if its tests, each against a",
            "computation made another way on three architectures, pass.",
            "",
            "| tool | works | tests | limits |",
            "|---|---|---|---|",
        ]
        for tool in sorted(self.counts):
            count = self.counts[tool]
            works = "no" if count["failed"] else "yes" if count["passed"] > 1 else "not here"
            tests = f"{count['passed']} passed" + (f", {count['skipped']} skipped" if count["skipped"] else "")
            tests += f", {count['failed']} failed" if count["failed"] else ""
            lines.append(f"| {tool} | {works} | {tests} | {self.limits[tool]} |")
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


FIXTURES = Path(__file__).parents[1] / "fixtures" / "reference_models"
EIGHT_SITES = "attn_in,attn_q,attn_k,attn_v,attn_out,mlp_in,mlp_neuron,mlp_out"
ALL_SITES = EIGHT_SITES + ",resid_post_attn,resid_post_mlp"

VARIANTS: dict[str, dict[str, Any]] = {
    "plain_layernorm": {},
    "afrac_half_rms": {"afrac": 0.5, "afrac_loctypes": ALL_SITES, "rms_norm": True},
    "afrac_default_sites": {"afrac": 0.4},
    "afrac_keeps_one": {"afrac": 0.1, "afrac_loctypes": EIGHT_SITES, "bias": False, "rms_norm": True},
    "afrac_keeps_all": {"afrac": 1.0, "afrac_loctypes": ALL_SITES},
    "layernorm_without_bias": {"ln_bias": False},
    "layernorm_no_linear_bias": {"bias": False},
    "tied": {"tied_unembed": True, "rms_norm": True, "activation_type": "relu"},
    "bigram_buffer": {"enable_bigram_table": True, "rms_norm": True},
    "learned_concatenated": {"d_pos_emb": 6},
    "learned_concatenated_rms_sparse": {"d_pos_emb": 3, "rms_norm": True, "afrac": 0.5, "afrac_loctypes": EIGHT_SITES},
    "sink_concatenated": {"d_pos_emb": 5, "sinusoidal_cat_pos_emb": True, "sink": True},
    "sink_sparse": {"sink": True, "afrac": 0.4, "afrac_loctypes": EIGHT_SITES, "rms_norm": True, "bias": False},
    "sink_sparse_biased": {"sink": True, "afrac": 0.5, "afrac_loctypes": "attn_v,mlp_neuron"},
    "wide_heads": {"d_head": 7, "n_head": 4},
    "narrow_heads": {"d_head": 1, "n_head": 2, "d_mlp": 5},
    "heads_wider_than_model": {"d_head": 20, "n_head": 2, "rms_norm": True},
    "relu_residual_sparse": {"residual_activation_type": "relu", "afrac": 0.6, "afrac_loctypes": ALL_SITES, "sink": True},
    "everything": {
        **{"sink": True, "d_pos_emb": 4, "enable_bigram_table": True, "learnable_bigram_table": True, "tied_unembed": True},
        **{"afrac": 0.5, "afrac_loctypes": ALL_SITES, "residual_activation_type": "relu", "d_head": 5, "n_layer": 3},
    },
}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain_rms": {"rms_norm": True},
    "sink_abstopk_bigram": {
        **{"rms_norm": True, "sink": True, "afrac": 0.5, "afrac_loctypes": EIGHT_SITES},
        **{"enable_bigram_table": True, "learnable_bigram_table": True},
    },
    "concatenated": {"rms_norm": True, "d_pos_emb": 4, "sink": True},
}
"""Every tool is tried on these three."""


@dataclass(frozen=True)
class Reference:
    """One fixture: its folder, its configuration, and what the reference implementation computed."""

    folder: Path
    fields: dict[str, Any]
    expected: dict[str, Any]

    def state(self) -> dict[str, Tensor]:
        return torch.load(self.folder / "final_model.pt", weights_only=True)


@pytest.fixture(scope="module", params=sorted(path.name for path in FIXTURES.iterdir()))
def reference(request: pytest.FixtureRequest) -> Reference:
    return _reference(request.param)


@pytest.fixture(scope="module")
def bridge(reference: Reference) -> TransformerBridge:
    """For tests that leave the bridge as it was."""
    return load(reference.folder)


@pytest.fixture
def fresh_bridge(reference: Reference) -> TransformerBridge:
    return load(reference.folder)


@pytest.fixture
def sink_reference() -> Reference:
    return _reference("v13_sink")


@pytest.fixture
def sink_bridge(sink_reference: Reference) -> TransformerBridge:
    return load(sink_reference.folder)


@pytest.fixture
def random_model() -> Callable[..., CircuitGPTForCausalLM]:
    """A small model with every parameter random, biases, gains and sink logits too; only fixed positions are what they are."""

    def build(**fields: Any) -> CircuitGPTForCausalLM:
        sizes = {"block_size": 12, "vocab_size": 23, "n_layer": 2, "n_head": 2, "d_model": 12, "tied_unembed": False}
        model = CircuitGPTForCausalLM(CircuitGPTConfig(**{**sizes, **fields})).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.core.named_parameters():
                frozen_positions = name == "wpe.weight" and model.config.sinusoidal_cat_pos_emb
                if not frozen_positions:
                    gain = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
                    parameter.copy_(gain + 0.4 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest, random_model: Callable[..., CircuitGPTForCausalLM]) -> TransformerBridge:
    """A fresh bridge of each of the three architectures."""
    return wrap(random_model(**ARCHITECTURES[request.param]), name=request.param)


@pytest.fixture
def build_bridge(random_model: Callable[..., CircuitGPTForCausalLM]) -> Callable[[str], TransformerBridge]:
    """A fresh bridge of the named one of the three architectures, or of the variants."""
    return lambda name: wrap(random_model(**(ARCHITECTURES | VARIANTS)[name]), name=name)


@pytest.fixture
def variant_folder(tmp_path: Path, random_model: Callable[..., CircuitGPTForCausalLM]) -> Callable[[str], Path]:
    """A random model of a named variant, written in the reference's format."""

    def write(name: str) -> Path:
        save_reference(random_model(**VARIANTS[name]), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def witness() -> Callable[[Path, Tensor], tuple[Tensor, dict[str, Tensor]]]:
    """A second implementation, from the files to logits and every activation by the reference's name, in float64."""
    return lambda folder, tokens: _Witness(folder).run(tokens)


@pytest.fixture
def parameters() -> Callable[[TransformerBridge], dict[str, Tensor]]:
    """The bridge's parameters by the reference's names, from TransformerLens' state dictionary."""
    return _parameters_by_reference_name


@pytest.fixture
def intervene() -> Callable[[TransformerBridge, Tensor, str, Callable[[Tensor], Tensor]], Tensor]:
    """Logits with an edit of the flat tensor at a reference hook."""

    def run(bridge: TransformerBridge, tokens: Tensor, key: str, edit: Callable[[Tensor], Tensor]) -> Tensor:
        name = transformerlens_hook_name(key)
        assert reference_hook_name(name) == key

        def hook(tensor: Tensor, hook: Any) -> Tensor:
            return to_transformerlens_layout(name, edit(to_reference_layout(name, tensor)), bridge.cfg.n_heads)

        return bridge.run_with_hooks(tokens, fwd_hooks=[(name, hook)])

    return run


def _reference(name: str) -> Reference:
    folder = FIXTURES / name
    expected = torch.load(folder / "expected.pt", weights_only=True)
    return Reference(folder, json.loads((folder / "beeg_config.json").read_text()), expected)


def _parameters_by_reference_name(bridge: TransformerBridge) -> dict[str, Tensor]:
    found = bridge.state_dict(keep_vars=True)
    top = {"embed": "transformer.wte", "pos_embed": "transformer.wpe", "ln_final": "transformer.ln_f", "unembed": "lm_head"}
    inner = {"ln1": "ln_1", "ln2": "ln_2", "attn.o": "attn.c_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
    named: dict[str, Tensor] = {}
    for key, tensor in found.items():
        place, kind = key.rsplit(".", 1)
        if key == "unembed.bias":
            named["final_logits_bias"] = tensor
        elif key == "bigram.weight":
            named["bigram_table"] = tensor
        elif place in top:
            named[f"{top[place]}.{kind}"] = tensor
        elif kind == "sink_logit":
            named[f"transformer.h.{key.split('.')[1]}.attn.attn_imp.sink_logit"] = tensor
        elif place.split(".", 2)[2] not in ("attn.q", "attn.k", "attn.v"):
            _, layer, rest = place.split(".", 2)
            named[f"transformer.h.{layer}.{inner.get(rest, rest)}.{kind}"] = tensor
    for layer in range(bridge.cfg.n_layers):
        for kind in ("weight", "bias"):
            if f"blocks.{layer}.attn.q.{kind}" in found:
                blocks = [found[f"blocks.{layer}.attn.{letter}.{kind}"] for letter in "qkv"]
                joined = torch.cat([block.detach() for block in blocks])
                if all(block.grad is not None for block in blocks):
                    joined.grad = torch.cat([block.grad for block in blocks if block.grad is not None])
                named[f"transformer.h.{layer}.attn.c_attn.{kind}"] = joined
    return named


class _Witness:
    """Written from the architecture's description, head by head, without a look at the package."""

    def __init__(self, folder: Path) -> None:
        fields = json.loads((folder / "beeg_config.json").read_text())
        self.fields: dict[str, Any] = {"n_head": 12, "afrac": None, "afrac_loctypes": "", "activation_type": "gelu"} | fields
        state = torch.load(folder / "final_model.pt", weights_only=True)
        self.state = {key.removeprefix("transformer."): value.double() for key, value in state.items()}
        self.acts: dict[str, Tensor] = {}

    def run(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        positions = self.state["wpe.weight"][: tokens.shape[1]].expand(tokens.shape[0], -1, -1)
        concatenated = self.fields.get("d_pos_emb") is not None
        x = self.state["wte.weight"][tokens]
        if not concatenated:
            x = x + positions
        for layer in range(self.fields["n_layer"]):
            x = self.layer(layer, x, positions if concatenated else None)
        self.acts["final_resid"] = x
        output = self.state["wte.weight"] if self.fields.get("tied_unembed", True) else self.state["lm_head.weight"]
        logits = self.norm("ln_f", x) @ output.T
        if "final_logits_bias" in self.state:
            logits = logits + self.state["final_logits_bias"]
        if self.fields.get("enable_bigram_table"):
            logits = logits + self.state["bigram_table"][tokens]
        return logits, self.acts

    def layer(self, layer: int, x: Tensor, positions: Tensor | None) -> Tensor:
        self.acts[f"{layer}.resid_in"] = x
        for part, norm, after in (("attn", "1", "resid_post_attn"), ("mlp", "2", "resid_post_mlp")):
            u = self.norm(f"h.{layer}.ln_{norm}", x)
            if positions is not None:
                u = torch.cat([u, self.norm(f"h.{layer}.ln_p{norm}", positions)], dim=-1)
            u = self.acts[f"{layer}.{part}.act_in"] = self.sparse(f"{part}_in", u)
            write = self.attention(layer, u) if part == "attn" else self.mlp(layer, u)
            write = self.acts[f"{layer}.{part}.resid_delta"] = self.sparse(f"{part}_out", write)
            x = x + write
            if self.fields.get("residual_activation_type") == "relu":
                x = x.clamp(min=0)
            x = self.sparse(after, x)
            if part == "attn":
                self.acts[f"{layer}.resid_mid"] = x
        return x

    def attention(self, layer: int, u: Tensor) -> Tensor:
        stem, heads = f"h.{layer}.attn", self.fields["n_head"]
        for letter, flat in zip("qkv", self.linear(f"{stem}.c_attn", u).tensor_split(3, dim=-1), strict=True):
            self.acts[f"{layer}.attn.{letter}"] = self.sparse(f"attn_{letter}", flat)
        q, k, v = (self.acts[f"{layer}.attn.{letter}"].tensor_split(heads, dim=-1) for letter in "qkv")
        mixed = []
        for head in range(heads):
            weights = (q[head] @ k[head].mT / math.sqrt(q[head].shape[-1])).exp().tril()
            total = weights.sum(-1, keepdim=True)
            if self.fields.get("sink"):
                total = total + self.state[f"{stem}.attn_imp.sink_logit"][head].exp()
            mixed.append(weights / total @ v[head])
        y = self.acts[f"{layer}.attn.y"] = torch.cat(mixed, dim=-1)
        return self.linear(f"{stem}.c_proj", y)

    def mlp(self, layer: int, u: Tensor) -> Tensor:
        hidden = self.linear(f"h.{layer}.mlp.c_fc", u)
        if self.fields["activation_type"] == "relu":
            hidden = hidden.clamp(min=0)
        else:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        self.acts[f"{layer}.mlp.post_act"] = self.sparse("mlp_neuron", hidden)
        return self.linear(f"h.{layer}.mlp.c_proj", self.acts[f"{layer}.mlp.post_act"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.fields.get("rms_norm"):
            return x / (x.pow(2).mean(-1, keepdim=True) + 2.0**-23).sqrt() * self.state[f"{name}.weight"]
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.state[f"{name}.weight"]
        return scaled + self.state.get(f"{name}.bias", 0.0)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def sparse(self, site: str, x: Tensor) -> Tensor:
        if self.fields["afrac"] is None or site not in self.fields["afrac_loctypes"].split(","):
            return x
        kept = math.floor(self.fields["afrac"] * x.shape[-1])
        smaller = x.abs().argsort(dim=-1, descending=True)[..., kept:]
        return x.scatter(-1, smaller, 0.0)
