"""The tools of `transformer_lens.tools.analysis` (those not tested elsewhere), against plain computations."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import attribution_patching, jacobian_lens

from sparse_lens.hooks import load

pytestmark = pytest.mark.tool(
    "attribution patching, Jacobian lens, logit lens, interchange, sparse probes, SVD of heads",
    limits="BackwardLens takes GPT-2 only; logit_lens leaves a bigram table out and takes a cache then; some in one major only",
)

MAJOR = int(version("transformer-lens").split(".")[0])
older = pytest.mark.skipif(MAJOR > 3, reason="only TransformerLens 3 has it")
newer = pytest.mark.skipif(MAJOR < 4, reason="TransformerLens 4 brings it")
CLEAN, CORRUPT = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[2, 7, 1, 8, 2]])


def score(logits: Tensor) -> Tensor:
    return logits[0, -1, 9] - logits[0, -1, 11]


def test_attribution_patching(architecture: TransformerBridge) -> None:
    """A node's score is the first-order effect of a small step towards the clean activation, here by finite differences."""
    found = attribution_patching.attribution_patch(architecture, CLEAN, CORRUPT, score).node_scores
    double = architecture.to(torch.float64)
    with torch.no_grad():
        _, clean = double.run_with_cache(CLEAN)
        for node in list(found)[:: max(1, len(found) // 12)]:
            step, rows = 1e-6, [0] if node.head is None else [0, node.position, node.head]

            def moved(size: float, node: Any = node) -> Tensor:
                def hook(tensor: Tensor, hook: Any) -> Tensor:
                    where = (0, node.position) if node.head is None else (0, node.position, node.head)
                    tensor[where] += size * (clean[node.hook_name][where] - tensor[where])
                    return tensor

                return score(double.run_with_hooks(CORRUPT, fwd_hooks=[(node.hook_name, hook)]))

            slope = float((moved(step) - moved(-step)) / (2 * step))
            assert found[node] == pytest.approx(slope, abs=2e-4, rel=2e-3), (node, rows)


@older
def test_svd_of_a_head(architecture: TransformerBridge) -> None:
    from transformer_lens.tools.analysis import svd_circuits  # pyright: ignore[reportAttributeAccessIssue]

    if architecture.model_config.d_pos_emb is not None:
        return  # its query and key read more than the residual stream: covered by the factored matrices
    found = svd_circuits.decompose_head(architecture, 1, 0)
    for name, matrix in (
        ("QK", architecture.W_Q[1, 0] @ architecture.W_K[1, 0].T),
        ("OV", architecture.W_V[1, 0] @ architecture.W_O[1, 0]),
    ):
        head = getattr(found, name)
        expected = torch.linalg.svdvals(matrix)[: len(head.S)]
        torch.testing.assert_close(head.S, expected, atol=1e-4, rtol=1e-4)


def test_jacobian_lens() -> None:
    """The mean Jacobian of the last layer's output by an earlier one's, against autograd's."""
    bridge = load("python-dense-matched")
    text = "for i in range(10):\n    x = i + 1\n    print(x)\n"
    lens = jacobian_lens.JacobianLens.fit(bridge, [text], corpus="one", skip_first_positions=2, show_progress=False)
    tokens = bridge.to_tokens(text)
    length = tokens.shape[1]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    stream = cache["blocks.0.hook_resid_post"].clone().requires_grad_()
    kept: dict[str, Tensor] = {}

    def replace(tensor: Tensor, hook: Any) -> Tensor:
        return stream

    def keep(tensor: Tensor, hook: Any) -> None:
        kept["last"] = tensor

    with bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", replace), ("blocks.1.hook_resid_post", keep)]):
        bridge(tokens)
    valid = slice(2, length - 1)
    for row in (0, 7):
        (gradient,) = torch.autograd.grad(kept["last"][0, valid, row].sum(), stream, retain_graph=True)
        expected = gradient[0, valid].mean(0)
        torch.testing.assert_close(lens.jacobians[0][row].float(), expected, atol=1e-4, rtol=1e-3)


@older
def test_backward_lens_says_what_it_takes() -> None:
    from transformer_lens.tools.analysis.backward_lens import BackwardLens  # pyright: ignore[reportMissingImports]

    with pytest.raises((TypeError, ValueError, NotImplementedError), match=r"GPT-?2|gpt2"):
        BackwardLens(load("python-dense-matched"))


@newer
@torch.no_grad()
def test_logit_lens(architecture: TransformerBridge) -> None:
    from transformer_lens.tools.analysis.logit_lens import logit_lens  # pyright: ignore[reportMissingImports]

    logits, cache = architecture.run_with_cache(CLEAN)
    bigram = cache["bigram.hook_out"] if "bigram.hook_out" in cache else torch.zeros_like(logits)
    found = logit_lens(cache, positions=None).readout.values
    core = architecture.original_model.core
    for entry, hook in zip(found, ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"), strict=True):
        expected = core.lm_head(core.ln_f(cache[hook]))
        torch.testing.assert_close(entry, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[-1], logits - bigram, atol=1e-4, rtol=1e-4)


@newer
def test_logit_lens_refuses_to_run_where_a_bigram_table_adds_to_the_logits(build_bridge: Any) -> None:
    from transformer_lens.tools.analysis.logit_lens import logit_lens  # pyright: ignore[reportMissingImports]

    with pytest.raises(ValueError, match=r"ln_final|readout"):
        logit_lens(build_bridge("sink_abstopk_bigram"), CLEAN)


@newer
@torch.no_grad()
def test_interchange(architecture: TransformerBridge) -> None:
    """Swapping every coordinate of the residual stream at a position is patching it."""
    from transformer_lens.tools.analysis import interchange  # pyright: ignore[reportAttributeAccessIssue]

    position, name = torch.tensor([2]), "blocks.1.hook_resid_pre"
    _, cache = architecture.run_with_cache(CLEAN)
    whole = interchange.SubspaceInterchange(interchange.random_basis(12, 12, seed=0))
    found = interchange.intervened_logits(
        architecture, name, whole, CORRUPT, cache[name][:, 2], lambda inputs: architecture(inputs)[:, -1], positions=position
    )

    def patch(tensor: Tensor, hook: Any) -> Tensor:
        tensor[:, 2] = cache[name][:, 2]
        return tensor

    expected = architecture.run_with_hooks(CORRUPT, fwd_hooks=[(name, patch)])[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@newer
@torch.no_grad()
def test_sparse_probe(architecture: TransformerBridge) -> None:
    """One neuron that is the label is found."""
    from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe  # pyright: ignore[reportMissingImports]

    tokens = torch.randint(22, (40, 6), generator=torch.Generator().manual_seed(0))
    _, cache = architecture.run_with_cache(tokens)
    features = cache["blocks.0.mlp.hook_post"].flatten(0, 1).clone()
    labels = torch.arange(len(features)) % 2 == 0
    features[:, 5] = labels.float() * 10 * math.pi
    assert fit_sparse_probe(features, labels, k=1).metrics.accuracy == 1.0
