"""The labelled tokens of a pair, read once in a process, and the dictionary that their labels alone give."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch

from sparse_lens.comparisons.concepts.labelled_tokens import (
    LEAST_POSITIVES,
    LabelledTokens,
    held_out_files,
    label_pair,
    labelled_latents,
)
from sparse_lens.comparisons.pair import ROLES, ModelPair
from sparse_lens.data.labels.labelling import LABELS_FORMAT
from sparse_lens.dictionaries import Bridge, IdentityDictionary, SupervisedDictionary, supervise
from sparse_lens.errors import DataError


def label_role(pair: ModelPair, model: str) -> str:
    """The role in whose tokens a model's labels are read: the same one for all models of the pair's tokenizer."""
    if model in pair.record and not pair.shares_tokens(model):
        return model
    return next((role for role in ROLES if pair.shares_tokens(role)), "sparse")


@lru_cache(maxsize=2)
def split_labels(pair: str, role: str, tokens: int) -> tuple[LabelledTokens, LabelledTokens]:
    """About so many labelled tokens of held-out files, in the tokens of a role of the pair (by its address).

    In two parts of different files, to train on and to test on.
    """
    return label_pair(ModelPair.at(pair), role, n_tokens=tokens).split()


@lru_cache(maxsize=2)
def labels_read(pair: str) -> tuple[str, str]:
    """What numbers of labels depend on beside models: the rules of the labels, and the held-out files of this machine."""
    documents, _ = held_out_files(ModelPair.at(pair))
    digest = hashlib.sha256("".join(document.sha256 for document in documents).encode()).hexdigest()[:16]
    return LABELS_FORMAT, f"labelled files {digest}"


def supervised_units(bridge: Bridge, hook: str, width: int, train: LabelledTokens) -> SupervisedDictionary:
    """A latent for each label that is frequent enough, along the discriminant of `train`: the upper line (arXiv:2405.08366).

    Give files that nothing is tested on. Raises `DataError` where no label has, and lacks, `LEAST_POSITIVES` tokens.
    """
    chosen = ((train.positives >= LEAST_POSITIVES) & (train.negatives >= LEAST_POSITIVES)).nonzero()[0]
    if not len(chosen):
        raise DataError(f"no label has {LEAST_POSITIVES} of the {train.n_tokens:,} tokens; read more files")
    parts = [activations[hook] for _, activations, _ in labelled_latents(bridge, IdentityDictionary(width, hook), train)]
    labels = torch.from_numpy(train.labels.reshape(-1, train.labels.shape[-1])[:, chosen]).long()
    return supervise(torch.cat(parts), labels, hook, [train.names[index] for index in chosen])
