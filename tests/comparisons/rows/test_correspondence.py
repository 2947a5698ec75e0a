"""Matching units across models: permuted copies, planted partners, turned tokens, tokenizers that differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparse_lens.comparisons import ModelPair
from sparse_lens.comparisons.rows.correspondence import (
    CorrelationSums,
    _products,
    check_same_tokens,
    concept_agreement,
    match_each_pair,
    measure_correspondence,
)
from sparse_lens.dictionaries import IdentityDictionary
from sparse_lens.errors import DataError

GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(30, 40, 12, generator=GENERATOR).relu()
ORDER = torch.randperm(12, generator=GENERATOR)


@dataclass(eq=False)
class ToyBridge:
    cfg: SimpleNamespace
    tokenizer: SimpleNamespace | None
    hook_dict: dict = field(default_factory=dict)

    def __call__(self, tokens, **options):
        raise NotImplementedError


def matched(first, second, batch: int = 8):
    sums = CorrelationSums()
    for part in zip(first.split(batch), second.split(batch), strict=True):
        sums.add(*part)
    return sums.correspondence()


def test_a_permuted_copy_gives_the_permutation_back() -> None:
    signs = torch.where(torch.arange(12) % 2 == 0, 1.0, -1.0)
    found = matched(LATENTS, (LATENTS * signs * 3)[..., ORDER])
    assert torch.equal(ORDER[found.second], found.first) and len(found.first) == 12
    for name in ("matched", "best", "best_reverse", "partner_share", "partner_share_reverse"):
        metric = f"{name.removesuffix('_reverse')}_correlation" + ("_reverse" if name.endswith("_reverse") else "")
        assert found.results[metric].value == pytest.approx(1)
        assert found.results[metric].null < 0.2
    same = matched(LATENTS, LATENTS[..., ORDER])
    assert same.results["matched_mcc"].value == pytest.approx(1) and same.results["matched_mcc"].n == 1200


def test_correlations_are_numpys() -> None:
    """And the MCC is what its four counts give."""
    other = torch.cat([LATENTS[..., :5] + 0.5 * torch.randn(30, 40, 5, generator=GENERATOR), -LATENTS[..., 5:7]], -1)
    found = matched(LATENTS, other)
    flat = [side.flatten(0, 1).double().numpy() for side in (LATENTS, other)]
    expected = np.corrcoef(*flat, rowvar=False)[:12, 12:]
    assert np.allclose(found.correlation, expected)
    a, b = flat[0][:, 2] > 0, flat[1][:, 2] > 0
    tp, fp, fn, tn = (int((x & y).sum()) for x, y in ((a, b), (~a, b), (a, ~b), (~a, ~b)))
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert float(found.mcc[2, 2]) == pytest.approx(mcc)


def test_units_that_do_not_vary_are_left_out() -> None:
    dead = LATENTS.clone()
    dead[..., [3, 7]] = 0
    found = matched(dead, LATENTS)
    assert found.results["varying_units"].value == 10 and found.results["varying_units"].n == 12
    assert found.results["varying_units_reverse"].value == 12
    assert found.correlation[3].isnan().all() and not set(found.first.tolist()) & {3, 7}
    assert found.results["partner_share_correlation"].value == 1
    assert found.results["partner_share_correlation_reverse"].value == pytest.approx(10 / 12)
    silent = matched(torch.zeros(2, 4, 3), torch.ones(2, 4, 3)).results
    assert not silent["matched_correlation"].measurable and "varies" in silent["matched_mcc"].reason


def test_batches_do_not_matter() -> None:
    """Nor does their order; the turn of the null is within each window."""
    other = LATENTS[..., ORDER] + torch.randn(LATENTS.shape, generator=GENERATOR)
    found, again = matched(LATENTS, other, 30), matched(LATENTS.flip(0), other.flip(0), 7)
    for name, result in found.results.items():
        assert again.results[name].value == pytest.approx(result.value)
        assert again.results[name].null == pytest.approx(result.null)


def test_the_null_keeps_what_windows_share() -> None:
    """A unit that is constant within windows correlates with its turned copy as well: that is no match of tokens."""
    steady = torch.randn(30, 1, 4, generator=GENERATOR).expand(30, 40, 4)
    results = matched(steady, steady).results
    assert results["matched_correlation"].value == pytest.approx(1) == results["matched_correlation"].null


def test_concepts_of_partners() -> None:
    found = matched(LATENTS, LATENTS[..., ORDER])
    scores = np.full((12, 6), 0.1)
    scores[np.arange(12), np.arange(12) % 6] = 0.9
    same = concept_agreement(found, scores, scores[ORDER.numpy()])
    assert same["concept_agreement"].value == 1 and same["concept_agreement"].null == pytest.approx(1 / 6)
    shifted = concept_agreement(found, scores, np.roll(scores, 1, axis=1)[ORDER.numpy()])
    assert shifted["concept_agreement"].value == 0 and shifted["concept_pairs"].value == 12
    weak = concept_agreement(found, scores / 2, np.full((12, 6), np.nan))
    assert not weak["concept_agreement"].measurable and weak["concept_pairs"].value == 0
    with pytest.raises(DataError, match=r"\(12, 6\) and \(12, 5\)"):
        concept_agreement(found, scores, scores[:, :5])


def test_unlike_tokenizers_are_refused_by_name() -> None:
    def bridge(name: str, vocabulary: dict[str, int] | None, size: int = 2) -> ToyBridge:
        tokenizer = None if vocabulary is None else SimpleNamespace(get_vocab=lambda: vocabulary)
        return ToyBridge(SimpleNamespace(model_name=name, d_vocab=size), tokenizer)

    check_same_tokens(bridge("a", {"x": 0}), bridge("b", {"x": 0}))
    check_same_tokens(bridge("a", None), bridge("b", None))
    with pytest.raises(DataError, match="'small' and 'large' have tokenizers of their own"):
        check_same_tokens(bridge("small", {"x": 0}), bridge("large", {"x": 1}))
    with pytest.raises(DataError, match="'small' and 'large'"):
        check_same_tokens(bridge("small", None, 5), bridge("large", None, 6))
    with pytest.raises(DataError, match="window of 1 token"):
        CorrelationSums().add(torch.ones(3, 1, 2), torch.ones(3, 1, 2))
    with pytest.raises(DataError, match="at least one batch"):
        CorrelationSums().correspondence()


def test_the_shipped_pair() -> None:
    """The matched model with itself, and its SAE with the sparse model's neurons."""
    pair = ModelPair.open()
    matched_model, sparse = pair.open_model("dense_matched"), pair.open_model("sparse")
    batches = [pair.windows["reference"][:8], pair.windows["reference"][8:16]]
    neurons = IdentityDictionary(224, "blocks.0.mlp.hook_post")
    itself = measure_correspondence(matched_model, neurons, matched_model, neurons, batches)
    assert itself.results["matched_correlation"].value == pytest.approx(1)
    assert torch.equal(itself.first, itself.second)
    across = measure_correspondence(
        sparse, IdentityDictionary(1024, neurons.hook), matched_model, pair.dictionaries()[0], batches
    ).results
    assert across["best_correlation"].null < across["best_correlation"].value < 1
    assert across["matched_mcc"].measurable


@pytest.mark.parametrize("sparse", [(True, False), (False, True), (True, True)])
def test_products_of_sparse_latents_are_those_of_dense_ones(sparse: tuple[bool, bool]) -> None:
    sides = [torch.randn(50, width, dtype=torch.float64, generator=GENERATOR) for width in (12, 9)]
    for side, few in zip(sides, sparse, strict=True):
        if few:
            side[torch.rand(side.shape, generator=GENERATOR) > 0.05] = 0
    assert torch.allclose(_products(*sides), sides[0].T @ sides[1], rtol=0, atol=1e-13)


def test_every_two_of_three_sides() -> None:
    """As one after the other, in the order of `itertools.combinations`."""
    pair = ModelPair.open()
    matched_model, batches = pair.open_model("dense_matched"), np.array_split(pair.windows["reference"][:8], 2)
    layers = [IdentityDictionary(224, f"blocks.{layer}.mlp.hook_post") for layer in (0, 1, 0)]
    found = list(match_each_pair([(matched_model, layer) for layer in layers], batches))
    for pair, (a, b) in zip(found, [(0, 1), (0, 2), (1, 2)], strict=True):
        alone = measure_correspondence(matched_model, layers[a], matched_model, layers[b], batches)
        assert torch.equal(pair.correlation, alone.correlation) and pair.results == alone.results
    assert found[1].results["matched_correlation"].value == pytest.approx(1)
