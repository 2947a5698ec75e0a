"""What it costs to score the latents of a wide dictionary against forty labels on a million tokens."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_lens.benchmarks.large import cost_of
from sparse_lens.benchmarks.timing import Row, fastest, row
from sparse_lens.comparisons.concepts.coverage import ConceptScores, ConceptTraining
from sparse_lens.comparisons.concepts.labelled_tokens import LabelledTokens
from sparse_lens.comparisons.concepts.token_identity import LabelColumns

_LATENTS, _ACTIVE, _LABELS, _TOKENS = 4096, 32, 40, 1_000_000
_MINUTES, _GIGABYTES = 3, 2
_CONTEXT, _WINDOWS, _VOCABULARY = 128, 32, 1024


def concept_rows() -> list[Row]:
    """Time and memory of a fresh process that scores made-up latents, those on token-ambiguous positions included."""
    cost = cost_of("from sparse_lens.benchmarks.concepts import score_made_up\nmodel = score_made_up")
    what = f"concept scores of {_LATENTS:,} latents, {_ACTIVE} active, {_LABELS} labels, {_TOKENS:,} tokens"
    minutes = cost.seconds / 60
    return [
        row(f"{what}, time", f"{minutes:.2f} min", f"bound {_MINUTES} min", _MINUTES / minutes),
        row(f"{what}, memory", f"{cost.peak:.2f} GB", f"bound {_GIGABYTES} GB", _GIGABYTES / cost.peak),
        _against_products(),
    ]


def score_made_up(n_tokens: int = _TOKENS) -> ConceptScores:
    """Scores of random latents, a few of them detectors of a label, on random labels; seven tenths of the windows are for
    training."""
    train, test = made_up_tokens(n_tokens).split()
    training = ConceptTraining(_LATENTS, LabelColumns.of(train, test))
    for batch in train.batches(_WINDOWS):
        training.add(_latents(batch), batch)
    testing = training.test()
    for batch in test.batches(_WINDOWS):
        testing.add(_latents(batch), batch)
    return testing.scores(train, test)


def made_up_tokens(n_tokens: int) -> LabelledTokens:
    """Random token ids in a hundred files, and labels that are two thirds a matter of the token."""
    generator = np.random.default_rng(0)
    n_windows = n_tokens // _CONTEXT
    tokens = generator.integers(0, _VOCABULARY, (n_windows, _CONTEXT))
    share = np.linspace(0.01, 0.5, _LABELS)
    by_token = generator.random((_VOCABULARY, _LABELS)) < share
    labels = np.empty((n_windows, _CONTEXT, _LABELS), dtype=np.int8)
    for label in range(_LABELS):
        by_chance = generator.random(tokens.shape) < share[label]
        labels[:, :, label] = np.where(generator.random(tokens.shape) < 2 / 3, by_token[tokens, label], by_chance)
    names = tuple(f"label_{label}" for label in range(_LABELS))
    files = np.arange(n_windows) % 100
    return LabelledTokens(tokens, labels, names, files, np.arange(n_windows), tuple(map(str, range(100))), "made up")


def _latents(batch: LabelledTokens) -> Float[Tensor, "token latent"]:
    """`_ACTIVE` random latents for each token, and for each of its labels a latent that fires with it."""
    generator = torch.Generator().manual_seed(int(batch.numbers[0]))
    n = batch.n_tokens
    latents = torch.zeros(n, _LATENTS)
    active = torch.randint(_LABELS, _LATENTS, (n, _ACTIVE), generator=generator)
    latents.scatter_(1, active, torch.rand(n, _ACTIVE, generator=generator))
    latents[:, :_LABELS] = torch.from_numpy(batch.labels.reshape(n, -1)).clamp(min=0) * torch.rand(n, 1, generator=generator)
    return latents


def _against_products() -> Row:
    """One batch, against ten matrix products of thresholded latents with labels."""
    data = made_up_tokens(_WINDOWS * _CONTEXT * 4)
    columns = LabelColumns.of(data, data, least=1)
    training = ConceptTraining(_LATENTS, columns)
    latents = _latents(data)
    labels = torch.from_numpy(columns.expand(data.tokens.reshape(-1), data.labels.reshape(-1, _LABELS)))
    flags = torch.cat([labels == 1, labels >= 0], dim=1).float()
    maxima = latents.max(0).values

    def products() -> list[Tensor]:
        return [(latents > share / 10 * maxima).float().T @ flags for share in range(10)]

    ours, plain = fastest(lambda: training.add(latents, data), repeats=3), fastest(products, repeats=3)
    what = f"counts of {_LATENTS:,} latents against {len(columns.labels)} columns, {data.n_tokens:,} tokens"
    return row(what, f"{ours * 1e3:.0f} ms", f"ten matrix products {plain * 1e3:.0f} ms", plain / ours)
