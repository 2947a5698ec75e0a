"""What the columns and rows of the full comparison are called, and which numbers of a row its tables show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_lens.report.contents import sequence
from sparse_lens.report.glossary import COLUMNS, Term, term
from sparse_lens.report.strings import visible

FURTHER = {
    "dense_matched_components": Term("Dense, principal components", "matched PCA", "The matched model on principal components."),
    "dense_matched_singular_vectors": Term("Dense, singular vectors of heads", "matched SVD", "The matched model, head by head."),
    "dense_topk": Term("TopK SAE", "TopK", "SAEs of the matched model's MLP neurons."),
    "dense_batchtopk": Term("BatchTopK SAE", "BatchTopK", "The same, chosen over a batch, its threshold fitted after training."),
    "dense_matryoshka": Term("Matryoshka SAE", "Matryoshka", "The same with losses of nested prefixes."),
    "dense_jumprelu": Term("JumpReLU SAE", "JumpReLU", "The same with learned thresholds."),
    "dense_transcoder": Term("Transcoder", "transcoder", "From the matched model's MLP input to its MLP output."),
    "dense_skip_transcoder": Term("Skip transcoder", "skip tc.", "The same with a linear path past the latents."),
    "dense_frozen": Term("SAE, frozen random decoder", "frozen", "Control: its decoder was never trained."),
    "dense_topk_errors_kept": Term("TopK SAE, errors kept", "TopK, kept", "Its error nodes are in every circuit."),
    "dense_topk_errors_ablated": Term("TopK SAE, errors ablated", "TopK, abl.", "Its error nodes are in no circuit."),
    "dense_matched_best_basis": Term(
        "Dense, best of three bases", "matched best", "Task by task the smallest of neurons, PCA, SVD."
    ),
    "dense_matched_first_training": Term("Dense, loss-matched, one training", "matched 0", "The first training seed alone."),
    "dense_interpolated_neurons": Term(
        "Dense, at the sparse loss", "dense, interp.", "Sizes read off between the matched model and the dense twin."
    ),
    "dense_untrained": Term("SAE before training", "untrained", "Control: a TopK SAE that has learned nothing but the mean."),
    "dense_matched_supervised": Term(
        "Labels' own directions, dense", "labels", "Upper line: a latent for each label, from labels."
    ),
    "sparse_supervised": Term("Labels' own directions, sparse", "labels", "Upper line: the same in the sparse model."),
    "dense_matched_rotated": Term("Dense neurons, rotated", "matched rot.", "Control: the same model in a random basis."),
    "sparse_rotated": Term("Sparse neurons, rotated", "sparse rot.", "Control: the same model in a random basis."),
    "shuffled_weights": Term("Shuffled weights", "shuffled", "Control: the matched model, its weights in random places."),
    "magnitude_pruned": Term(
        "Pruned by magnitude", "pruned", "Control: a dense model pruned while training to as many nonzeros as the sparse one."
    ),
    "dense_abstopk": Term(
        "Dense, sparse activations", "dense AbsTopK", "Control: all weights, but AbsTopK at the sparse model's sites."
    ),
    "sparse_topk": Term("TopK SAE of the sparse model", "sparse SAE", "Control: what an SAE finds in the sparse model."),
}

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "capability": (
        "Capability",
        ("loss", "bits_per_byte", "nonzeros", "active_parameters", "loss_spliced", "dictionary_numbers"),
    ),
    "reconstruction": (
        "Reconstruction",
        ("explained_variance", "cosine", "loss_added_spliced", "loss_recovered_mean", "kl_spliced", "kl_recovered_mean"),
    ),
    "activation": ("Activation", ("l0", "dead", "dense_above_1_percent", "kurtosis", "description_bits_per_token")),
    "concepts": ("Concepts", ()),
    "probes": ("Probes", ()),
    "separability": ("Separability", ()),
    "absorption": ("Absorption and splitting", ()),
    "superposition": ("Superposition", ()),
    "weights": ("Weights of the MLP", ("in_nonzero", "out_nonzero", "paths_nonzero", "in_hoyer", "in_overlap", "out_overlap")),
    "stability": (
        "Stability over dictionary seeds, or training seeds of neurons",
        ("matched_correlation", "best_correlation", "partner_share_correlation", "matched_mcc", "mmcs", "mcc"),
    ),
    "overlap": ("Overlap of the circuits of different search seeds", ()),
    "jacobian": ("Sparsity of computation", ("jacobian_hoyer", "jacobian_effective_entries", "jacobian_nonzero")),
    "correspondence": ("Correspondence with the sparse neurons", ()),
}
"""Rows in order: title, and the numbers its table shows (none: the first ones)."""

MOST_NUMBERS = 8


SAID = {
    "undistinguished": "Not distinguishable in this run",
    "unmatched": "Not at matched loss",
    "left_out": "Left out",
    "caveats": "What holds for every run",
}
"""What a comparison says in words, by its name in the metrics, and the titles."""


def said_in(full: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Titles and sentences of what is said in words; without those of which there is nothing to say."""
    found = [(title, [visible(sentence) for sentence in sequence(full, name)]) for name, title in SAID.items()]
    return [(title, sentences) for title, sentences in found if sentences]


def column_term(name: str) -> Term:
    """The term of a column, here or in the basic comparison."""
    return FURTHER.get(name) or term(COLUMNS, name)
