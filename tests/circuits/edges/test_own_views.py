"""Views of single latents against their slow twin, which keeps every view and leaves the gradient to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_lens.circuits.edges import own_views
from sparse_lens.circuits.edges.encoders import EncoderRows
from sparse_lens.circuits.edges.own_views import OwnViews

ROWS, D_MLP, CHANNELS, LATENTS = 6, 10, 4, 20


def planted() -> tuple[OwnViews, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = EncoderRows(random(D_MLP, LATENTS), random(D_MLP), torch.relu)
    views = OwnViews(random(D_MLP, CHANNELS), F.gelu, rows, torch.tensor([0, 3, 4, 11, 19]))
    return views, (random(ROWS, D_MLP), random(ROWS, CHANNELS), torch.rand(5, CHANNELS, generator=generator))


@pytest.mark.parametrize("most", [own_views._MOST_NUMBERS, 130, 1])
@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_values_and_gradients_are_those_of_the_slow_twin(most: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kept` views of each row are the largest and alone get a gradient, as behind TopK: none, some, all; in chunks, too."""
    monkeypatch.setattr(own_views, "_MOST_NUMBERS", most)
    views, inputs = planted()
    found = []
    for compute in (views, views.plain):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        values = compute(*leaves)
        (values.topk(kept, dim=1).values ** 2).sum().backward()
        found.append([values.detach(), *(leaf.grad for leaf in leaves)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_views_without_a_gradient_are_not_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    views, inputs = planted()
    computed: list[int] = []
    at = OwnViews.at

    def counted(self: OwnViews, hidden: Tensor, moved: Tensor, cut: Tensor, latents: Tensor) -> Tensor:
        computed.append(len(latents))
        return at(self, hidden, moved, cut, latents)

    monkeypatch.setattr(OwnViews, "at", counted)
    views(*(tensor.requires_grad_() for tensor in inputs)).topk(2, dim=1).values.sum().backward()
    assert sum(computed) == 2 * ROWS
