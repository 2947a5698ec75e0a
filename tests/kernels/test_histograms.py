"""The compiled counts against a plain form, one token and one latent at a time."""

import numpy as np
import pytest
import torch

from sparse_lens.kernels.histograms import any_fires, count_firing, grid_step, grid_value

SLOTS = 8


def data(seed=0, n_tokens=300, n_latents=40, n_flags=5):
    generator = np.random.default_rng(seed)
    latents = generator.lognormal(0, 1.5, (n_tokens, n_latents)).astype(np.float32)
    latents *= generator.choice([0, 1, -1], latents.shape, p=[0.6, 0.3, 0.1])
    return latents.astype(np.float32), generator.integers(0, 2, (n_tokens, n_flags)).astype(np.uint32)


def empty(n_latents=40, n_flags=5):
    counts = np.zeros((n_latents, SLOTS, n_flags), dtype=np.uint32)
    return counts, np.zeros((n_latents, n_flags)), np.full(n_latents, -1, dtype=np.int64)


def plain_counts(latents, flags):
    """The same from the finished maxima, by Python loops."""
    counts, sums, top = empty(latents.shape[1], flags.shape[1])
    for latent in range(latents.shape[1]):
        positive = latents[:, latent][latents[:, latent] > 0]
        top[latent] = grid_step(positive).max() if len(positive) else -1
        for token in range(len(latents)):
            if latents[token, latent] > 0:
                slot = min(SLOTS - 1, top[latent] - int(grid_step(latents[token, latent])))
                counts[latent, slot] += flags[token]
                sums[latent] += float(latents[token, latent]) * flags[token]
    return counts, sums, top


@pytest.mark.parametrize("threads", [1, 2])
def test_counts_equal_the_plain_ones_in_any_order_and_any_batches(threads):
    latents, flags = data()
    expected = plain_counts(latents, flags)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for order in (np.arange(300), np.argsort(latents.max(1)), np.random.default_rng(1).permutation(300)):
            found = empty()
            for start in range(0, 300, 70):
                rows = order[start : start + 70]
                count_firing(np.ascontiguousarray(latents[rows]), flags[rows], *found, moves=True)
            assert np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2])
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
    finally:
        torch.set_num_threads(before)


def test_windows_that_stay_count_what_is_stronger_in_the_first_slot():
    counts, sums, top = empty(1, 1)
    top[:] = grid_step(np.float32(1.0))
    count_firing(
        np.array([[1.0], [64.0], [0.01]], dtype=np.float32), np.ones((3, 1), dtype=np.uint32), counts, sums, top, moves=False
    )
    assert counts[0, :, 0].tolist() == [2, 0, 0, 0, 0, 0, 0, 1] and top[0] == grid_step(np.float32(1.0))


def test_any_fires_equals_the_plain_form():
    latents, _ = data()
    needed = np.random.default_rng(2).choice(
        [0, int(grid_step(np.float32(2.0))), np.iinfo(np.int32).max], (40, 6), p=[0.05, 0.2, 0.75]
    )
    found = np.zeros((300, 6), dtype=np.uint8)
    any_fires(latents, needed.astype(np.int32), found)
    steps = np.where(latents > 0, grid_step(np.abs(latents)), -1)
    assert np.array_equal(found == 1, (steps[:, :, None] >= needed[None]).any(1))


def test_grid_has_sixteen_steps_an_octave():
    values = np.array([1.0, 1.0624, 1.0626, 1.99, 2.0, 0.5], dtype=np.float32)
    base = int(grid_step(np.float32(1.0)))
    assert (grid_step(values) - base).tolist() == [0, 0, 1, 15, 16, -16]
    steps = np.arange(base - 40, base + 40)
    assert np.array_equal(grid_step(grid_value(steps)), steps)
