"""The projection mask against a twin in plain numpy: the minimum per neuron first, then the largest of the rest."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_lens.errors import ConfigError
from sparse_lens.kernels import projection_mask

BOTH_FORMS = pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])


def brute_force_mask(weight: np.ndarray, k: int, min_alive: int, neuron_axis: int) -> np.ndarray:
    """Entry by entry, for a matrix without ties: no selection, only sorted lists."""
    by_size = sorted(np.ndindex(weight.shape), key=lambda place: -abs(weight[place]))
    kept: set[tuple[int, ...]] = set()
    for neuron in range(weight.shape[neuron_axis]):
        kept |= set([place for place in by_size if place[neuron_axis] == neuron][:min_alive])
    kept |= set([place for place in by_size if place not in kept][: k - len(kept)])
    mask = np.zeros(weight.shape, dtype=bool)
    for place in kept:
        mask[place] = True
    return mask


@st.composite
def matrices_without_ties(draw: st.DrawFn) -> Tensor:
    """Distinct magnitudes in a random order, with random signs."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    magnitudes = rng.permutation(rows * columns).reshape(rows, columns) + 1.0
    signs = rng.choice([-1.0, 1.0], (rows, columns))
    return torch.from_numpy((magnitudes * signs).astype(np.float32))


@BOTH_FORMS
@pytest.mark.parametrize("neuron_axis", [0, 1])
@given(weight=matrices_without_ties(), data=st.data())
def test_it_equals_brute_force(fast: bool, neuron_axis: int, weight: Tensor, data: st.DataObject) -> None:
    """Every density and every minimum that fits, neurons as rows and as columns."""
    neurons = weight.shape[neuron_axis]
    min_alive = data.draw(st.integers(0, weight.shape[1 - neuron_axis]), label="min_alive")
    k = data.draw(st.integers(min_alive * neurons, weight.numel()), label="k")
    mask = projection_mask(weight, k, min_alive=min_alive, neuron_axis=neuron_axis, fast=fast)
    assert int(mask.sum()) == k
    assert mask.sum(1 - neuron_axis).min() >= min_alive
    assert np.array_equal(mask.numpy(), brute_force_mask(weight.numpy(), k, min_alive, neuron_axis))


@BOTH_FORMS
@pytest.mark.parametrize("k", range(13))
def test_equal_magnitudes_keep_exactly_k(fast: bool, k: int) -> None:
    """A matrix of zeros or of ones has only ties; the density must come out all the same."""
    assert int(projection_mask(torch.zeros(3, 4), k, fast=fast).sum()) == k
    if k >= 3:
        assert int(projection_mask(torch.ones(3, 4), k, min_alive=1, fast=fast).sum()) == k


@BOTH_FORMS
def test_a_known_mask(fast: bool) -> None:
    """Worked by hand: the second row is small but keeps its largest entry."""
    weight = torch.tensor([[5.0, -4.0, 3.0], [0.1, -0.3, 0.2]])
    without = projection_mask(weight, 3, fast=fast)
    assert without.tolist() == [[True, True, True], [False, False, False]]
    rows = projection_mask(weight, 3, min_alive=1, fast=fast)
    assert rows.tolist() == [[True, True, False], [False, True, False]]
    columns = projection_mask(-weight, 4, min_alive=1, neuron_axis=1, fast=fast)
    assert columns.tolist() == [[True, True, True], [False, True, False]]


@BOTH_FORMS
def test_a_transposed_view(fast: bool) -> None:
    """The mask of a view is the view of the mask."""
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for axis in (0, 1):
        straight = projection_mask(weight, 20, min_alive=2, neuron_axis=axis, fast=fast)
        turned = projection_mask(weight.T, 20, min_alive=2, neuron_axis=1 - axis, fast=fast)
        assert torch.equal(turned, straight.T)


@BOTH_FORMS
def test_the_whole_matrix(fast: bool) -> None:
    """k equal to or above the number of entries keeps all of them."""
    assert projection_mask(torch.randn(3, 4), 12, fast=fast).all()
    assert projection_mask(torch.randn(3, 4), 99, min_alive=2, fast=fast).all()


def test_a_minimum_wider_than_a_neuron_is_all_of_it() -> None:
    """A neuron of three inputs cannot keep four alive: it keeps its three."""
    assert projection_mask(torch.randn(2, 3), 6, min_alive=4).all()


def test_a_minimum_above_the_density_is_refused() -> None:
    """The error says what was asked, what there is, and which knob to turn."""
    with pytest.raises(ConfigError, match=r"2 alive weights for each of 5 neurons need 10 .* leaves 9 .* lower"):
        projection_mask(torch.randn(5, 4), 9, min_alive=2)


def test_shapes_are_checked_at_run_time() -> None:
    """In the tests a wrong shape is an error at the call (see conftest.py); this shows that the check is on."""
    with pytest.raises(jaxtyping.TypeCheckError):
        projection_mask(torch.randn(6), 3)


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("neuron_axis", [0, 1])
def test_the_forms_agree_at_every_k(spread: float, neuron_axis: int) -> None:
    """Numbers over few and over many powers of two, every k that fits: the cut falls inside, between and at the ends of bins."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, generator=generator) * torch.exp(spread * torch.randn(12, 20, generator=generator))
    for min_alive in (0, 2):
        for k in range(min_alive * weight.shape[neuron_axis], weight.numel() + 1):
            fast, plain = (
                projection_mask(weight, k, min_alive=min_alive, neuron_axis=neuron_axis, fast=form) for form in (True, False)
            )
            assert int(fast.sum()) == k
            assert torch.equal(fast, plain), (k, min_alive)
