"""The words of the report: what each column, model and measure is called, how it is printed, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_lens.report.strings import visible


@dataclass(frozen=True)
class Term:
    """One word of the report: its `label`, its `short` form for narrow tables, its meaning, and how its numbers are printed."""

    label: str
    short: str
    meaning: str
    kind: str = "number"


COLUMNS = {
    "sparse_neurons": Term("Sparse neurons", "sparse", "The neurons of the weight-sparse model."),
    "dense_neurons": Term(
        "Dense neurons", "dense", "The neurons of the dense twin: the same architecture and tokens, all weights allowed."
    ),
    "dense_matched_neurons": Term(
        "Dense neurons, loss-matched",
        "matched",
        "The neurons of a narrower dense model whose pretraining loss is close to the sparse model's: the fair baseline.",
    ),
    "dense_sae": Term(
        "Dense SAE latents",
        "SAE",
        "The loss-matched dense model with its MLP neurons replaced by the latents of a sparse autoencoder; "
        "what the autoencoder misses is a node of its own.",
    ),
}
"""The columns of the comparison, in the order they are shown; others follow under their own names."""

MODELS = {
    "sparse": Term("Sparse", "sparse", "The weight-sparse model."),
    "dense": Term("Dense", "dense", "The dense twin: the same architecture and tokens."),
    "dense_matched": Term("Dense, loss-matched", "matched", "The narrower dense model of about the same pretraining loss."),
}

MEASURES = {
    "accuracy": Term(
        "Accuracy",
        "acc.",
        "Share of held-out prompts on which the whole model prefers the right one of the two answers.",
        "percent",
    ),
    "full_loss": Term(
        "Full loss", "full", "Task loss of the whole model: two-token cross-entropy at the answer position, in nats.", "loss"
    ),
    "circuit_loss": Term(
        "Circuit loss",
        "circuit",
        "Task loss when everything outside the circuit is ablated. It has to reach the task's target loss.",
        "loss",
    ),
    "heldout_circuit_loss": Term("Held-out loss", "held-out", "Circuit loss on prompts that the search never saw.", "loss"),
    "nodes": Term("Nodes", "nodes", "Channels that the circuit keeps, over all sites.", "count"),
    "edges": Term("Edges", "edges", "Nonzero weights between two kept nodes.", "count"),
    "sufficiency": Term("Sufficiency", "suff.", "How much of the model's behavior is left when only the circuit is kept.", "share"),
    "necessity": Term("Necessity", "nec.", "How much of the model's behavior is lost when the circuit alone is ablated.", "share"),
    "nonsense_ratio": Term(
        "Nonsense ratio",
        "non-\nsense",
        "Nodes of the circuit found for a nonsense task, over nodes of the real one. "
        "Near or below 1, the circuit's size says little about the task: the search can fit anything.",
        "ratio",
    ),
}
"""The measures of the main table, in order."""

MODEL_MEASURES = {
    "loss": Term("Pretraining loss", "loss", "Nats per token on held-out real files.", "loss"),
    "bits_per_byte": Term("Bits per byte", "bits/byte", "The same loss spread over the bytes of the text.", "loss"),
    "nonzeros": Term("Nonzero weights", "nonzeros", "Weights that are not zero.", "count"),
    "parameters": Term("Parameters", "parameters", "Weights counted whether zero or not.", "count"),
}

_OVER = "over those of the sparse neurons' circuit, geometric mean over tasks."
_BETWEEN = "between the sites (embedding and unembedding edges, which grow with the prompts' vocabulary, left out)"

SUMMARY = {
    "edge_ratio_geomean": Term("Edge ratio", "edges", f"Edges of the dense loss-matched circuit {_OVER}", "ratio"),
    "node_ratio_geomean": Term("Node ratio", "nodes", f"Nodes of the dense loss-matched circuit {_OVER}", "ratio"),
    "tasks_measurable": Term("Tasks measurable", "tasks", "Tasks that every model passes with at least 90 % accuracy.", "count"),
    "site_edge_ratio_geomean": Term("Inner edge ratio", "inner", f"Dense loss-matched edges {_BETWEEN}, {_OVER}", "ratio"),
    "edge_ratio_geomean_dense": Term(
        "Edge ratio, dense twin", "edges, twin", f"Edges of the dense twin's circuit {_OVER}", "ratio"
    ),
    "node_ratio_geomean_dense": Term(
        "Node ratio, dense twin", "nodes, twin", f"Nodes of the dense twin's circuit {_OVER}", "ratio"
    ),
    "site_edge_ratio_geomean_dense": Term(
        "Inner edge ratio, dense twin", "inner, twin", f"The twin's edges {_BETWEEN}, {_OVER}", "ratio"
    ),
    **{
        f"edge_ratio_{name}{suffix}": Term(f"Edge ratio{label}: {spoken}", f"{spoken}{label}", meaning, "ratio")
        for suffix, label in (("", ""), ("_dense", ", dense twin"))
        for name, spoken, meaning in (
            ("pairs", "pairs", "The part of the edge ratio that is due to more pairs of nodes that could be joined."),
            ("density", "density", "The part that is due to the density of the matrices between them."),
            ("remainder", "remainder", "What is left: how much oftener than by chance a circuit's own nodes are joined."),
        )
    },
    "node_ratio_geomean_sae": Term("Node ratio, SAE latents", "nodes, SAE", f"Nodes of the SAE's circuit {_OVER}", "ratio"),
}
"""The headline numbers, in order."""


def term(terms: dict[str, Term], name: str) -> Term:
    """The term called `name`, or one made of the name itself: later issues add columns and measures."""
    spoken = visible(name).replace("_", " ")
    kind = "ratio" if "ratio" in name else "loss" if name.endswith("loss") else "number"
    return terms.get(name) or Term(spoken[:1].upper() + spoken[1:], spoken, "", kind)


def ordered(terms: dict[str, Term], names: list[str]) -> list[str]:
    """`names`, the known ones first and in the order of `terms`."""
    known = [name for name in terms if name in names]
    return known + [name for name in names if name not in terms]
